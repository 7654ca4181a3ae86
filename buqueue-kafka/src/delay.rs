//! Sends on what waits in the delay topic: one step further, or to where it is due, in a transaction with the offset, so that
//! whoever reads committed records only sees each once.
//!
//! Every consumer takes part in a group of its own kind, and who is given the first partition there sends on all of them. One
//! at a time, so that the transactions of a successor, which have the same name, end those of who was killed: an open one
//! would hold up all readers of the topic until the brokers give it up.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buqueue_core::driver::Activity;
use buqueue_core::{Backoff, BuqueueError, ErrorKind, Message, Result};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use tokio::sync::watch;

use crate::backlog::{Backlog, Entry};
use crate::config::KafkaOptions;
use crate::convert::{self, Delayed, Story};
use crate::election::Election;
use crate::error;
use crate::group::{ASKING, add};
use crate::levels::{self, LEVELS};
use crate::metadata::Position;
use crate::reports::{Reported, Reports, Works, is_of_all, permanent};
use crate::session::lock;
use crate::topology::Topology;
use crate::watch::tell;

/// How many records are sent on in one transaction.
const MOST: usize = 500;
/// How long a transaction with all its steps may take until the group takes its maker for dead.
const POLL: Duration = Duration::from_secs(60);
/// How long a step of a transaction may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits for word from the brokers before it looks around.
const STEP: Duration = Duration::from_millis(2);
/// How long the thread sleeps at most.
const IDLE: Duration = Duration::from_millis(100);
/// What cannot be sent to where it is due is tried again after this, and holds up nobody meanwhile.
const PUT_OFF: i64 = 60_000;
/// Who has gone on for so long is well.
const STEADY: Duration = Duration::from_secs(30);
/// What has been sent on is deleted so often.
const TRIM_EVERY: Duration = Duration::from_secs(30);

/// Which record of the delay topic.
type Origin = (i32, i64);
/// What is on its way, and from where.
type Taken = (i32, Entry<Waiting>);
/// What cannot be sent to where it is due, and why.
type Unsendable = HashMap<Origin, ErrorKind>;

/// A record that waits.
struct Waiting {
    message: Message,
    story: Story,
    delayed: Option<Delayed>,
}

/// A record of the delay topic, as it waits in its partition.
fn entry(record: &BorrowedMessage<'_>) -> Entry<Waiting> {
    let incoming = convert::incoming(record);
    let appended = match record.timestamp() {
        Timestamp::CreateTime(at) | Timestamp::LogAppendTime(at) => at,
        Timestamp::NotAvailable => now(),
    };
    let (message, story, delayed) = (incoming.message, incoming.story, incoming.delayed);
    // The rest is less than what the next level waits; where clocks differ it may seem longer, and is waited for anew.
    let span = levels::span(record.partition().max(1));
    let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    Entry {
        offset: record.offset(),
        due: delayed.as_ref().map_or(0, |delayed| delayed.due),
        moves_at: appended.saturating_add(span),
        bytes: message.payload().len(),
        record: Waiting { message, story, delayed },
    }
}

/// The thread that sends on.
#[derive(Debug)]
pub(crate) struct Forwarding {
    stop: Arc<AtomicBool>,
    ended: watch::Receiver<bool>,
}

impl Forwarding {
    /// `tell` is told why messages stay where they are: once, until they go on again.
    pub(crate) fn start(
        options: &KafkaOptions,
        tell: impl Fn(BuqueueError) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (ending, ended) = watch::channel(false);
        let stop = Arc::new(AtomicBool::new(false));
        let (options, stopped) = (options.clone(), Arc::clone(&stop));
        std::thread::Builder::new().name("buqueue-kafka-delay".to_owned()).spawn(move || {
            forward(&options, &stopped, tell);
            ending.send_replace(true);
        })?;
        Ok(Self { stop, ended })
    }

    /// Has the thread end, which takes a moment: until then nobody else can send on.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits until it has ended, for so long at most.
    pub(crate) async fn ended(&self, limit: Duration) {
        let mut ended = self.ended.clone();
        // Whichever comes first.
        let _late = tokio::time::timeout(limit, ended.wait_for(|ended| *ended)).await.is_err();
    }
}

fn forward(options: &KafkaOptions, stop: &Arc<AtomicBool>, tell: impl Fn(BuqueueError)) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut told = false;
    let works = Works::default();
    while !stop.load(Ordering::Acquire) {
        let Err(error) = Forwarder::run(options, stop, &mut backoff, &mut told, &works) else { return };
        if !stop.load(Ordering::Acquire) {
            works.whole.failed(&options.config.topic, &error);
        }
        // Other failures show in the consumer's own calls, which ask the same brokers.
        if !error.is_transient() && error.kind != ErrorKind::NotFound && !told {
            told = true;
            tell(error);
        }
        let until = Instant::now() + backoff.next_delay();
        while Instant::now() < until && !stop.load(Ordering::Acquire) {
            std::thread::sleep(IDLE);
        }
    }
}

struct Forwarder<'a> {
    options: &'a KafkaOptions,
    topic: String,
    consumer: BaseConsumer<Election>,
    /// Made when this one leads, which ends the transactions of who did before.
    producer: Option<BaseProducer<Reports>>,
    waiting: HashMap<i32, Backlog<Waiting>>,
    paused: HashSet<i32>,
    /// It is said what is read.
    begun: bool,
    /// What could not be sent when it was sent alone.
    unsendable: Unsendable,
    reported: Reported,
    /// Those of them that were tried once more.
    forgiven: HashSet<Origin>,
    /// How many are sent on in one transaction.
    most: usize,
    /// After a failure.
    not_before: Instant,
    backoff: Backoff,
    /// What has been sent on, to be deleted.
    done: HashMap<i32, i64>,
    trimmed_at: Instant,
    trimming: Arc<AtomicBool>,
    works: &'a Works,
}

impl<'a> Forwarder<'a> {
    /// Until something fails that it does not survive, or it is told to stop.
    fn run(
        options: &'a KafkaOptions,
        stop: &AtomicBool,
        backoff: &mut Backoff,
        told: &mut bool,
        works: &'a Works,
    ) -> Result<()> {
        let topic = options.delay_topic();
        let election = Election::new(&topic);
        let mut settings = options.client();
        settings
            .set("group.id", &topic)
            .set("partition.assignment.strategy", "range")
            .set("enable.auto.commit", "false")
            // What is read from where is said with the assignment.
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("session.timeout.ms", options.session_timeout.as_millis().to_string())
            .set("max.poll.interval.ms", options.session_timeout.max(POLL).as_millis().to_string())
            .set("heartbeat.interval.ms", (options.session_timeout / 15).as_millis().to_string())
            .set("fetch.wait.max.ms", "100")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.message.max.bytes", "262144")
            .set("allow.auto.create.topics", "false");
        let consumer: BaseConsumer<Election> = settings.create_with_context(election).map_err(failed)?;
        consumer.subscribe(&[topic.as_str()]).map_err(failed)?;
        let mut forwarder = Self {
            options,
            topic,
            consumer,
            producer: None,
            waiting: HashMap::new(),
            paused: HashSet::new(),
            begun: false,
            unsendable: Unsendable::new(),
            reported: Reported::default(),
            forgiven: HashSet::new(),
            most: MOST,
            not_before: Instant::now(),
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
            done: HashMap::new(),
            trimmed_at: Instant::now(),
            trimming: Arc::default(),
            works,
        };
        let (mut changes, started) = (0, Instant::now());
        while !stop.load(Ordering::Acquire) {
            forwarder.take_in(&mut changes)?;
            if started.elapsed() >= STEADY {
                works.whole.worked();
            }
            let election = forwarder.consumer.context();
            if !election.leads() {
                // While members come and go it may lead again in a moment.
                if election.follows() {
                    forwarder.producer = None;
                }
                continue;
            }
            if forwarder.producer.is_none() {
                forwarder.producer = Some(producer(options, &forwarder.reported)?);
            }
            // Not before: an open transaction of who led hides where it has come to.
            if !forwarder.begun {
                forwarder.begin().map_err(failed)?;
            }
            if forwarder.next().is_some_and(|next| next <= now()) && Instant::now() >= forwarder.not_before {
                forwarder.transact()?;
                backoff.reset();
                *told = false;
            }
            forwarder.trim();
        }
        Ok(())
    }

    /// Reads on where the last one has ended.
    fn begin(&mut self) -> KafkaResult<()> {
        let mut all = TopicPartitionList::new();
        all.add_partition_range(&self.topic, 0, LEVELS - 1);
        let committed = self.consumer.committed_offsets(all, ASKING)?;
        let (mut list, mut waiting) = (TopicPartitionList::new(), HashMap::new());
        for place in committed.elements() {
            place.error()?;
            let partition = place.partition();
            let (first, end) = self.consumer.fetch_watermarks(&self.topic, partition, ASKING)?;
            let position = match place.offset() {
                Offset::Offset(next) if next <= end => {
                    let mut known = Position::decode(next, place.metadata());
                    // Somebody has deleted records.
                    known.next = known.next.max(first);
                    known.read_to = known.read_to.max(first);
                    known.open.retain(|(offset, _)| *offset >= first);
                    known
                }
                // The topic is new, or was created again.
                _ => Position { next: first, read_to: first, ..Position::default() },
            };
            list.add_partition_offset(&self.topic, partition, Offset::Offset(position.next))?;
            waiting.insert(partition, Backlog::new(&position));
        }
        self.consumer.assign(&list)?;
        (self.waiting, self.begun) = (waiting, true);
        Ok(())
    }

    /// When the next record goes on.
    fn next(&self) -> Option<i64> {
        self.waiting.values().filter_map(Backlog::next).min()
    }

    /// Takes in what is there: what goes on together shares a transaction.
    fn take_in(&mut self, changes: &mut u64) -> Result<()> {
        let left = |next: i64| Duration::from_millis(u64::try_from(next - now()).unwrap_or(0));
        let mut pause = self.next().map_or(IDLE, |next| left(next).min(IDLE));
        let held_up = self.not_before.saturating_duration_since(Instant::now());
        if !held_up.is_zero() {
            pause = held_up.min(IDLE);
        }
        for _ in 0..MOST {
            let polled = self.consumer.poll(pause);
            if self.consumer.context().changed_since(changes).map_err(failed)? {
                // It is read again from what is committed, by whoever leads now.
                self.begun = false;
                self.waiting.clear();
                self.paused.clear();
            }
            match polled {
                Some(Ok(record)) => {
                    let level = record.partition();
                    let Some(backlog) = self.waiting.get_mut(&level) else { continue };
                    backlog.push(entry(&record));
                    if backlog.is_full() && self.paused.insert(level) {
                        self.pause(level, true)?;
                    }
                }
                Some(Err(error)) => return Err(failed(error)),
                None => break,
            }
            pause = Duration::ZERO;
        }
        Ok(())
    }

    fn pause(&self, partition: i32, pause: bool) -> Result<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        let outcome = if pause { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        outcome.map_err(failed)
    }

    /// Sends on what may go now, all of it or nothing. What fails is tried again, with this consumer and producer if those
    /// have come through it: to join the group anew takes its time.
    fn transact(&mut self) -> Result<()> {
        let Some(producer) = self.producer.take() else { return Ok(()) };
        let taken = self.take_due();
        let error = match self.send_on(&producer, &taken) {
            Ok(arrived) => {
                self.producer = Some(producer);
                return self.sent_on(&taken, arrived);
            }
            Err(error) => error,
        };
        let cause = lock(&self.reported).take().or_else(|| permanent(&error));
        // What is sent together is refused together: it is sent in halves until it is known which record it is.
        self.most = (taken.len() / 2).max(1);
        let mut hopeless = false;
        match (&cause, taken.as_slice()) {
            (Some(kind), [(partition, only)]) => {
                let known = self.unsendable.insert((*partition, only.offset), kind.clone());
                hopeless = known.is_some();
                if !hopeless && !is_of_all(&error) {
                    let refused = BuqueueError::new(kind.clone(), "its topic does not take it");
                    self.works.records.failed(&self.options.config.topic, &refused);
                }
            }
            (Some(_), _) => {}
            (None, _) => {
                self.not_before = Instant::now() + self.backoff.next_delay();
            }
        }
        if !abort(&producer) || is_of_all(&error) {
            // What was popped is read again by whoever leads next.
            return Err(failed(error));
        }
        if cause.is_none() {
            self.works.transactions.failed(&self.options.config.topic, &failed(error));
        }
        for (partition, mut entry) in taken {
            if hopeless {
                // It cannot wait anywhere else either.
                entry.due = entry.due.max(now() + PUT_OFF);
                entry.moves_at = entry.due;
            }
            if let Some(backlog) = self.waiting.get_mut(&partition) {
                backlog.put_back(entry);
            }
        }
        self.declare_targets(&producer, cause == Some(ErrorKind::NotFound));
        self.producer = Some(producer);
        Ok(())
    }

    fn tell(&self, activity: Activity<'_>) {
        tell(&self.options.config.topic, activity);
    }

    /// What may go now, in the order in which it is due.
    fn take_due(&mut self) -> Vec<Taken> {
        let (mut taken, now) = (Vec::new(), now());
        for (partition, backlog) in &mut self.waiting {
            while taken.len() < self.most
                && let Some(entry) = backlog.pop(now)
            {
                taken.push((*partition, entry));
            }
        }
        taken.sort_by_key(|(_, entry)| entry.due);
        taken
    }

    /// How many have arrived where they are due; the others wait on.
    fn send_on(&self, producer: &BaseProducer<Reports>, taken: &[Taken]) -> KafkaResult<usize> {
        // What is reported late belongs to the one before.
        *lock(&self.reported) = None;
        producer.begin_transaction()?;
        let mut arrived = 0;
        for (partition, entry) in taken {
            let origin = (*partition, entry.offset);
            let put_off = self.unsendable.contains_key(&origin);
            arrived += usize::from(send_one(self.options, producer, &self.topic, &entry.record, put_off)?);
        }
        // Until all are accepted; the client's own waiting for that looks ten times a second only.
        let deadline = Instant::now() + PATIENCE;
        while producer.in_flight_count() > 0 && Instant::now() < deadline {
            producer.poll(STEP);
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, backlog) in &self.waiting {
            let gone = taken.iter().filter(|(from, _)| from == partition).map(|(_, entry)| entry.offset);
            let mut gone = gone.peekable();
            if gone.peek().is_some() {
                add(&mut offsets, &self.topic, *partition, &backlog.position_after(gone))?;
            }
        }
        // Without one it is no member any more.
        let gone = KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId);
        let group = self.consumer.group_metadata().ok_or(gone)?;
        producer.send_offsets_to_transaction(&offsets, &group, PATIENCE)?;
        producer.commit_transaction(PATIENCE).map(|()| arrived)
    }

    fn sent_on(&mut self, taken: &[Taken], arrived: usize) -> Result<()> {
        self.backoff.reset();
        self.works.transactions.worked();
        if arrived > 0 {
            self.works.records.worked();
            self.tell(Activity::Forwarded(arrived));
        }
        self.most = (self.most * 2).min(MOST);
        for (partition, entry) in taken {
            let origin = (*partition, entry.offset);
            self.unsendable.remove(&origin);
            self.forgiven.remove(&origin);
            if let Some(backlog) = self.waiting.get_mut(partition) {
                backlog.finish(entry.offset);
            }
        }
        for (partition, backlog) in &self.waiting {
            if taken.iter().any(|(from, _)| from == partition) {
                self.done.insert(*partition, backlog.done_to());
            }
        }
        let resumed: Vec<i32> = (self.waiting.iter())
            .filter(|(partition, backlog)| self.paused.contains(partition) && backlog.has_room())
            .map(|(partition, _)| *partition)
            .collect();
        for partition in resumed {
            self.pause(partition, false)?;
            self.paused.remove(&partition);
        }
        Ok(())
    }

    /// Somebody has deleted a topic where messages are due: it is created again, and what was due there is tried once more.
    fn declare_targets(&mut self, producer: &BaseProducer<Reports>, unknown: bool) {
        let missing = |(origin, kind): (&Origin, &ErrorKind)| {
            (*kind == ErrorKind::NotFound && !self.forgiven.contains(origin)).then_some(*origin)
        };
        let origins: HashSet<Origin> = self.unsendable.iter().filter_map(missing).collect();
        if origins.is_empty() && !unknown {
            return;
        }
        let waiting = self.waiting.values().flat_map(Backlog::records);
        let delayed = waiting.filter_map(|record| record.delayed.as_ref());
        let mut names: HashSet<String> = delayed.map(|delayed| delayed.target.clone()).collect();
        names.insert(self.options.config.topic.clone());
        names.retain(|name| is_ours(self.options, name));
        let wanted = names.clone();
        // What cannot be created is put off, record by record.
        if blocking(self.options, async |topology| topology.ensure_topics(wanted).await).is_err() {
            return;
        }
        for name in names {
            // By itself the producer would ask about it only later; should this fail, it does.
            let _asked = producer.client().fetch_metadata(Some(&name), PATIENCE).is_ok();
        }
        self.unsendable.retain(|origin, _| !origins.contains(origin));
        self.forgiven.extend(origins);
    }

    /// Deletes what has been sent on: time does not, as some of it waits for years. On the side, as it takes its time.
    fn trim(&mut self) {
        if self.done.is_empty()
            || self.trimmed_at.elapsed() < TRIM_EVERY
            || self.trimming.swap(true, Ordering::AcqRel)
        {
            return;
        }
        self.trimmed_at = Instant::now();
        let done = std::mem::take(&mut self.done);
        let (options, topic, trimming) =
            (self.options.clone(), self.topic.clone(), Arc::clone(&self.trimming));
        let trims = Arc::clone(&self.works.trims);
        let spawned = std::thread::Builder::new().name("buqueue-kafka-trim".to_owned()).spawn(move || {
            // What is not deleted now is when the next is.
            match blocking(&options, async |topology| topology.delete_below(&topic, &done).await) {
                Ok(()) => trims.worked(),
                Err(error) => trims.failed(&options.config.topic, &error),
            }
            trimming.store(false, Ordering::Release);
        });
        if spawned.is_err() {
            self.trimming.store(false, Ordering::Release);
        }
    }
}

/// Whether the transaction has ended, and another one can begin. An open one would hold readers up; where that cannot be said,
/// the brokers end it.
fn abort(producer: &BaseProducer<Reports>) -> bool {
    // The client's abort waits for reports, which only a poll takes.
    producer.purge(PurgeConfig::default().queue().inflight());
    let deadline = Instant::now() + PATIENCE;
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        producer.poll(STEP);
    }
    producer.abort_transaction(PATIENCE).is_ok()
}

fn blocking(options: &KafkaOptions, work: impl AsyncFnOnce(Topology) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|_| error::lost("forwarding"))?;
    runtime.block_on(async { work(Topology::new(options)?).await })
}

fn failed(error: KafkaError) -> BuqueueError {
    error::from_client("forwarding", error)
}

fn producer(options: &KafkaOptions, reported: &Reported) -> Result<BaseProducer<Reports>> {
    let mut settings = options.producer();
    settings
        .set("transactional.id", options.delay_topic())
        .set("transaction.timeout.ms", "15000")
        // Longer than a transaction it need not be tried.
        .set("message.timeout.ms", "10000")
        // What the last transaction has left to do for the brokers is done in a moment.
        .set("retry.backoff.ms", "5")
        .set("retry.backoff.max.ms", "200");
    let reports = Reports(Arc::clone(reported));
    let producer: BaseProducer<Reports> = settings.create_with_context(reports).map_err(failed)?;
    producer.init_transactions(PATIENCE).map_err(failed)?;
    Ok(producer)
}

/// Whether it goes to where it is due.
fn send_one(
    options: &KafkaOptions,
    producer: &BaseProducer<Reports>,
    topic: &str,
    record: &Waiting,
    put_off: bool,
) -> KafkaResult<bool> {
    // Somebody else's, or one that names a topic that is none of this queue's: nobody waits for it.
    let Some(delayed) = record.delayed.as_ref().filter(|delayed| is_ours(options, &delayed.target)) else {
        return Ok(false);
    };
    let put_off =
        put_off.then(|| Delayed { due: delayed.due.max(now() + PUT_OFF), target: delayed.target.clone() });
    let delayed = put_off.as_ref().unwrap_or(delayed);
    let left = delayed.due - now();
    let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
    let to = if left.is_zero() { &delayed.target } else { topic };
    let message = record.message.as_travelling();
    let mut next = BaseRecord::<str, [u8]>::to(to);
    next.key = record.message.routing_key();
    next.payload = Some(record.message.payload());
    if left.is_zero() {
        next.headers = convert::headers(&message, record.story, None);
    } else {
        next.partition = Some(levels::level(left));
        next.headers = convert::headers(&message, record.story, Some(delayed));
    }
    producer.send(next).map(|()| left.is_zero()).map_err(|(error, _)| error)
}

/// The topic itself, or one where a group's failed messages wait.
fn is_ours(options: &KafkaOptions, target: &str) -> bool {
    let topic = &options.config.topic;
    target == topic
        || target
            .strip_prefix(topic.as_str())
            .is_some_and(|rest| rest.starts_with('-') && rest.ends_with("-buqueue-retry"))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
