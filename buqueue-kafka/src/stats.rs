//! What the group has before it: what lies between what it has committed and where its partitions end.
//!
//! Asked with a client that never becomes a member. Its calls block, and so does its end: it lives on a thread of its own, which
//! comes with the first question, and goes with who asks, or when nobody has asked for a while.

use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, ErrorKind, QueueStats, Result};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use crate::config::{KafkaOptions, OffsetReset};
use crate::error;
use crate::group::is_missing;
use crate::metadata::Position;
use crate::refusals::Refusals;
use crate::session::lock;

/// How long the client is kept for who asks next.
const KEPT: Duration = Duration::from_secs(60);
/// How long brokers may take until all know of a topic or a leader that is new.
const SETTLING: Duration = Duration::from_secs(1);
/// How long they are given until they are asked again.
const AGAIN: Duration = Duration::from_millis(20);
/// Of no more than so many offsets at the end of a partition is it looked which are records.
const FEW: u64 = 16;
/// How long that may take.
const READING: Duration = Duration::from_secs(2);
/// So many events of the client are thrown away at a time.
const EVENTS: usize = 1000;

type Client = BaseConsumer<Refusals>;

/// Counts. The same for who sends and who receives.
#[derive(Debug)]
pub(crate) struct Stats {
    options: KafkaOptions,
    /// The thread, if there is one.
    asks: Mutex<Option<Sender<Ask>>>,
}

#[derive(Debug)]
struct Ask {
    until: Instant,
    answer: oneshot::Sender<Result<QueueStats>>,
}

impl Stats {
    pub(crate) fn new(options: &KafkaOptions) -> Self {
        Self { options: options.clone(), asks: Mutex::default() }
    }

    /// Within the time that a send may take.
    pub(crate) async fn count(&self) -> Result<QueueStats> {
        // Who only sends may have named no group.
        self.options.validate(true)?;
        let limit = self.options.request_timeout;
        // The client knows more of what is wrong than that it takes too long.
        let until = Instant::now() + limit / 10 * 9;
        let asking = async {
            // A thread that ends just now may leave a question unanswered; the next one does not.
            for _ in 0..2 {
                if let Ok(counted) = self.ask(until)?.await {
                    return counted;
                }
            }
            Err(error::lost("queue_stats"))
        };
        tokio::time::timeout(limit, asking).await.unwrap_or_else(|_| {
            let fact = format!("queue_stats: no broker answered within {limit:?}");
            Err(BuqueueError::new(ErrorKind::Timeout, fact))
        })
    }

    fn ask(&self, until: Instant) -> Result<oneshot::Receiver<Result<QueueStats>>> {
        let (answer, answered) = oneshot::channel();
        let mut ask = Ask { until, answer };
        let mut asks = lock(&self.asks);
        if let Some(thread) = &*asks {
            match thread.send(ask) {
                Ok(()) => return Ok(answered),
                Err(unsent) => ask = unsent.0,
            }
        }
        let (thread, asked) = mpsc::channel();
        // It is received below.
        let _sent = thread.send(ask).is_ok();
        let options = self.options.clone();
        let spawned = std::thread::Builder::new()
            .name("buqueue-kafka-stats".to_owned())
            .spawn(move || serve(&options, asked));
        spawned.map_err(|error| {
            let kind = ErrorKind::BackendSpecific { code: "thread".to_owned(), message: error.to_string() };
            BuqueueError::new(kind, "the thread that counts cannot be started")
        })?;
        *asks = Some(thread);
        Ok(answered)
    }
}

fn serve(options: &KafkaOptions, asked: Receiver<Ask>) {
    let mut client = None;
    while let Ok(ask) = asked.recv_timeout(KEPT) {
        // Who has gone is not waited for.
        if ask.answer.is_closed() {
            continue;
        }
        let counted = count(options, &mut client, ask.until);
        let failed = counted.is_err();
        let _gone = ask.answer.send(counted).is_err();
        if failed {
            // The next one begins with new connections.
            break;
        }
    }
    // Before the client, whose end takes its time: who asks meanwhile asks another thread.
    drop(asked);
    drop(client);
}

fn count(options: &KafkaOptions, client: &mut Option<Client>, until: Instant) -> Result<QueueStats> {
    let failed = |error| error::from_client("queue_stats", error);
    let client = match client {
        Some(client) => client,
        None => client.insert(connect(options).map_err(failed)?),
    };
    // Nobody else polls it: what it has said meanwhile is old, and takes room.
    forget_events(client);
    client.context().take();
    let settled = until.min(Instant::now() + SETTLING);
    loop {
        let error = match look(options, client, until) {
            Ok(counted) => return Ok(counted),
            Err(error) => error,
        };
        let may_pass = is_missing(&error) || failed(error.clone()).is_transient();
        if !may_pass || Instant::now() >= settled {
            forget_events(client);
            // A client that is refused goes on trying, and says no more than that nobody has answered.
            return Err(client.context().take().unwrap_or_else(|| failed(error)));
        }
        std::thread::sleep(AGAIN);
    }
}

fn connect(options: &KafkaOptions) -> KafkaResult<Client> {
    let mut settings = options.client();
    settings
        .set("group.id", &options.config.group_id)
        .set("enable.auto.commit", "false")
        // A partition ends where its readers come to.
        .set("isolation.level", "read_committed")
        // For the ends of partitions, which are read: there is nothing to wait for.
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .set("allow.auto.create.topics", "false");
    settings.create_with_context(Refusals::default())
}

fn forget_events(client: &Client) {
    let mut left = EVENTS;
    while left > 0 && client.poll(Duration::ZERO).is_some() {
        left -= 1;
    }
}

/// Asks once. First what is committed, which grows, or what was done meanwhile would seem to be more than there is.
fn look(options: &KafkaOptions, client: &Client, until: Instant) -> KafkaResult<QueueStats> {
    let left = || until.saturating_duration_since(Instant::now());
    let (topic, retry) = (options.config.topic.as_str(), options.retry_topic());
    let mut places: Vec<(&str, i32)> = Vec::new();
    places.extend(partitions(client, topic, left())?.into_iter().map(|partition| (topic, partition)));
    match partitions(client, &retry, left()) {
        Ok(found) => places.extend(found.into_iter().map(|partition| (retry.as_str(), partition))),
        // No consumer of the group was ever there.
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(error),
    }
    let all = |offset| {
        let mut list = TopicPartitionList::with_capacity(places.len());
        let added = places
            .iter()
            .try_for_each(|&(topic, partition)| list.add_partition_offset(topic, partition, offset));
        added.map(|()| list)
    };
    let committed = client.committed_offsets(all(Offset::Invalid)?, left())?;
    // Asked for in place of a time these are answered as they are, by one request to each broker.
    let firsts = client.offsets_for_times(all(Offset::Beginning)?, left())?;
    let ends = client.offsets_for_times(all(Offset::End)?, left())?;
    let mut positions = Vec::with_capacity(places.len());
    for &(name, partition) in &places {
        let range = (offset(&firsts, name, partition)?, offset(&ends, name, partition)?);
        let place = committed.find_partition(name, partition);
        let place = place.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
        place.error()?;
        let position = match place.offset() {
            Offset::Offset(next) => Some(Position::decode(next, place.metadata())),
            _ => None,
        };
        positions.push((name == topic, position, range));
    }
    // As the consumers do: a group that has read nothing yet begins where it is told to, with what was sent before or without.
    let known = positions.iter().any(|(is_main, position, _)| *is_main && position.is_some());
    let skips = options.config.offset_reset == OffsetReset::Latest && !known;
    let mut ready = 0;
    let mut tails = Vec::new();
    for (&(name, partition), (is_main, position, range)) in places.iter().zip(&positions) {
        if position.is_none() && *is_main && skips {
            continue;
        }
        let (open, unread) = undone(position.as_ref(), *range);
        ready += open;
        match distance(unread, range.1) {
            0 => {}
            few @ 1..=FEW => tails.push(Tail { name, partition, unread, few }),
            many => ready += many,
        }
    }
    Ok(QueueStats::of_ready(ready + Tail::records(&tails, client, until)?))
}

/// The end of a partition that is nearly done: it may be all markers of transactions, and gaps, which hold an offset each.
struct Tail<'a> {
    name: &'a str,
    partition: i32,
    unread: i64,
    few: u64,
}

impl Tail<'_> {
    /// Reads them, without becoming a member, and counts what is there.
    fn records(tails: &[Self], client: &Client, until: Instant) -> KafkaResult<u64> {
        if tails.is_empty() {
            return Ok(0);
        }
        let mut list = TopicPartitionList::with_capacity(tails.len());
        for tail in tails {
            list.add_partition_offset(tail.name, tail.partition, Offset::Offset(tail.unread))?;
        }
        client.assign(&list)?;
        let read = Self::read(tails, client, until.min(Instant::now() + READING));
        client.unassign()?;
        // What could not be read in time may all be records.
        Ok(read?.unwrap_or_else(|| tails.iter().map(|tail| tail.few).sum()))
    }

    /// Until each has come to its end; `None` when that takes too long.
    fn read(tails: &[Self], client: &Client, until: Instant) -> KafkaResult<Option<u64>> {
        let (mut records, mut ended) = (0, 0);
        while ended < tails.len() {
            match client.poll(until.saturating_duration_since(Instant::now())) {
                None => return Ok(None),
                Some(Ok(_)) => records += 1,
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                // Who may not read may count.
                Some(Err(error))
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) =>
                {
                    return Ok(None);
                }
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(Some(records))
    }
}

fn partitions(client: &Client, topic: &str, limit: Duration) -> KafkaResult<Vec<i32>> {
    let metadata = client.fetch_metadata(Some(topic), limit)?;
    let unknown = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition);
    let found = metadata.topics().iter().find(|found| found.name() == topic).ok_or(unknown)?;
    match found.error() {
        Some(error) => Err(KafkaError::MetadataFetch(error.into())),
        None => Ok(found.partitions().iter().map(|partition| partition.id()).collect()),
    }
}

fn offset(list: &TopicPartitionList, topic: &str, partition: i32) -> KafkaResult<i64> {
    let place = list.find_partition(topic, partition);
    let place = place.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
    place.error()?;
    match place.offset() {
        Offset::Offset(offset) => Ok(offset),
        _ => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OffsetNotAvailable)),
    }
}

/// How many records of a partition were read and are not done, and from where it was not read, where it goes from `first` to
/// `end`.
fn undone(committed: Option<&Position>, (first, end): (i64, i64)) -> (u64, i64) {
    // Beyond the end of a topic that was created again it is begun anew.
    let Some(committed) = committed.filter(|committed| committed.next <= end) else {
        return (0, first);
    };
    // Retention may have taken some of them.
    let open = committed.open.iter().filter(|(offset, _)| (first..end).contains(offset)).count();
    (u64::try_from(open).unwrap_or(u64::MAX), committed.read_to.max(first))
}

fn distance(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use buqueue_core::Message;
    use rdkafka::consumer::CommitMode;
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::convert::Story;
    use crate::group::add;
    use crate::publisher::{Publisher, To};

    fn position(next: i64, read_to: i64, open: &[(i64, u32)]) -> Position {
        Position { next, read_to, open: open.to_vec() }
    }

    #[test]
    fn what_is_done_above_what_is_open_does_not_count() {
        for (committed, range, expected) in [
            (None, (0, 0), 0),
            (None, (3, 8), 5),
            (Some(position(8, 8, &[])), (3, 8), 0),
            (Some(position(5, 5, &[])), (3, 8), 3),
            // 5 and 7 are open, 6 and 8 are done, 9 was not read yet.
            (Some(position(5, 9, &[(5, 1), (7, 0)])), (3, 10), 3),
            // Retention has taken what was open, and some of what was not read.
            (Some(position(5, 9, &[(5, 1), (7, 0)])), (12, 20), 8),
            (Some(position(5, 9, &[(5, 1), (7, 0)])), (7, 9), 1),
            // The topic was created again.
            (Some(position(100, 100, &[])), (0, 2), 2),
        ] {
            let (open, unread) = undone(committed.as_ref(), range);
            assert_eq!(open + distance(unread, range.1), expected, "{committed:?} {range:?}");
        }
    }

    #[tokio::test]
    async fn who_names_no_group_is_told_so() {
        let mut options = KafkaOptions::new(crate::KafkaConfig::default());
        options.config.group_id.clear();
        let error = Stats::new(&options).count().await.unwrap_err();
        assert!(error.kind == ErrorKind::InvalidConfig && error.message().starts_with("group_id"), "{error}");
    }

    #[tokio::test]
    async fn where_no_broker_is_the_answer_comes_in_time() {
        let mut options = KafkaOptions::new(crate::KafkaConfig::default());
        options.config.brokers = vec!["127.0.0.1:1".to_owned()];
        options.request_timeout = Duration::from_millis(500);
        let stats = Stats::new(&options);
        for _ in 0..2 {
            let asked = Instant::now();
            let error = stats.count().await.unwrap_err();
            assert!(error.is_transient(), "{error:?}");
            // The default is ten seconds.
            assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
        }
    }

    /// With the client's own broker, which has no transactions to speak of.
    #[tokio::test]
    async fn what_is_sent_counts_until_it_is_committed() {
        let cluster = MockCluster::new(1).unwrap();
        let mut options = KafkaOptions::new(crate::KafkaConfig {
            brokers: vec![cluster.bootstrap_servers()],
            offset_reset: OffsetReset::Earliest,
            ..crate::KafkaConfig::default()
        });
        let topic = options.config.topic.clone();
        cluster.create_topic(&topic, 3, 1).unwrap();
        let stats = Stats::new(&options);
        assert_eq!(stats.count().await.unwrap(), QueueStats::of_ready(0));
        let publisher = Publisher::new(&options).unwrap();
        for partition in [0, 0, 2, 2, 2] {
            let to = To { topic: &topic, partition: Some(partition) };
            publisher.send(to, &Message::new("text"), Story::default(), None).await.unwrap();
        }
        assert_eq!(stats.count().await.unwrap(), QueueStats::of_ready(5));
        options.config.offset_reset = OffsetReset::Latest;
        let latest = Stats::new(&options);
        assert_eq!(latest.count().await.unwrap(), QueueStats::of_ready(0), "the group is new");
        let retry = options.retry_topic();
        cluster.create_topic(&retry, 1, 1).unwrap();
        let to = To { topic: &retry, partition: Some(0) };
        publisher.send(to, &Message::new("again"), Story::default(), None).await.unwrap();
        let client = connect(&options).unwrap();
        let commit = |topic: &str, partition: i32, position: &Position| {
            let mut list = TopicPartitionList::new();
            add(&mut list, topic, partition, position).unwrap();
            client.commit(&list, CommitMode::Sync).unwrap();
        };
        commit(&topic, 2, &position(1, 3, &[(1, 1)]));
        for stats in [&stats, &latest] {
            assert_eq!(stats.count().await.unwrap(), QueueStats::of_ready(2 + 1 + 1));
        }
        commit(&topic, 0, &position(2, 2, &[]));
        commit(&topic, 2, &position(3, 3, &[]));
        commit(&retry, 0, &position(1, 1, &[]));
        for stats in [&stats, &latest] {
            assert_eq!(stats.count().await.unwrap(), QueueStats::of_ready(0));
        }
    }
}
