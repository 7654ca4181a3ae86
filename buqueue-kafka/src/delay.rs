//! Sends on what waits in the delay topic: one step further, or to where it is due, in a transaction with the offset, so that
//! whoever reads committed records only sees each once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buqueue_core::{Backoff, Message, Result, unique_id};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, Timestamp, TopicPartitionList};

use crate::config::KafkaOptions;
use crate::convert::{self, Delayed, Story};
use crate::error;
use crate::levels;

/// How many records are sent on in one transaction.
const MOST: usize = 500;
/// How many of a partition are kept ready.
const READY: usize = 200;
/// How long a step of a transaction may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the thread sleeps at most.
const IDLE: Duration = Duration::from_millis(100);

/// A record that waits.
struct Waiting {
    offset: i64,
    /// When it goes on, in milliseconds since 1970.
    goes_at: i64,
    message: Message,
    story: Story,
    delayed: Option<Delayed>,
}

/// Runs on a thread of its own until it is told to stop.
pub(crate) fn forward(options: &KafkaOptions, stop: &Arc<AtomicBool>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while !stop.load(Ordering::Acquire) {
        // What goes wrong here shows in the consumer's own calls, which ask the same brokers.
        let Err(_) = forwarding(options, stop, &mut backoff) else { return };
        let until = Instant::now() + backoff.next_delay();
        while Instant::now() < until && !stop.load(Ordering::Acquire) {
            std::thread::sleep(IDLE);
        }
    }
}

/// Until something fails, or it is told to stop.
fn forwarding(options: &KafkaOptions, stop: &AtomicBool, backoff: &mut Backoff) -> Result<()> {
    let client = |error| error::from_client("forwarding", error);
    let topic = options.delay_topic();
    let mut settings = options.client();
    settings
        .set("group.id", &topic)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1000")
        .set("fetch.wait.max.ms", "100")
        // The topic comes with the first message that waits.
        .set("topic.metadata.refresh.interval.ms", "1000")
        .set("allow.auto.create.topics", "false");
    let consumer: BaseConsumer = settings.create().map_err(client)?;
    let mut settings = options.producer();
    settings
        .set("transactional.id", format!("{topic}-{}", unique_id()))
        .set("transaction.timeout.ms", "15000");
    // Longer than a transaction it need not be tried.
    settings.set("message.timeout.ms", "10000");
    let producer: BaseProducer = settings.create().map_err(client)?;
    producer.init_transactions(PATIENCE).map_err(client)?;
    consumer.subscribe(&[topic.as_str()]).map_err(client)?;
    let mut waiting: HashMap<i32, VecDeque<Waiting>> = HashMap::new();
    let mut owned = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let now = now();
        let next = waiting.values().filter_map(|queue| queue.front()).map(|first| first.goes_at).min();
        let pause =
            next.map_or(IDLE, |next| Duration::from_millis(u64::try_from(next - now).unwrap_or(0)).min(IDLE));
        match consumer.poll(pause) {
            Some(Ok(record)) => {
                let level = record.partition();
                let incoming = convert::incoming(&record);
                let appended = match record.timestamp() {
                    Timestamp::CreateTime(at) | Timestamp::LogAppendTime(at) => at,
                    Timestamp::NotAvailable => now,
                };
                let due = incoming.delayed.as_ref().map_or(0, |delayed| delayed.due);
                let span = i64::try_from(levels::span(level).as_millis()).unwrap_or(i64::MAX);
                let goes_at = if level == 0 { due } else { appended.saturating_add(span) };
                let (message, story, delayed) = (incoming.message, incoming.story, incoming.delayed);
                let offset = record.offset();
                let queue = waiting.entry(level).or_default();
                queue.push_back(Waiting { offset, goes_at, message, story, delayed });
                if queue.len() == READY {
                    pause_one(&consumer, &topic, level, true).map_err(client)?;
                }
            }
            Some(Err(error)) if is_missing(&error) => {}
            Some(Err(error)) => return Err(client(error)),
            None => {}
        }
        // Partitions that have gone to somebody else are not ours to send on.
        let assigned = partitions(&consumer).map_err(client)?;
        if assigned != owned {
            waiting.retain(|partition, _| assigned.contains(partition));
            owned = assigned;
        }
        if waiting.values().any(|queue| queue.front().is_some_and(|first| first.goes_at <= self::now())) {
            transact(options, &consumer, &producer, &topic, &mut waiting)?;
            backoff.reset();
        }
    }
    Ok(())
}

/// There is no such topic yet.
fn is_missing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
    )
}

fn partitions(consumer: &BaseConsumer) -> std::result::Result<Vec<i32>, KafkaError> {
    let mut partitions: Vec<i32> =
        consumer.assignment()?.elements().iter().map(|place| place.partition()).collect();
    partitions.sort_unstable();
    Ok(partitions)
}

fn pause_one(
    consumer: &BaseConsumer,
    topic: &str,
    partition: i32,
    pause: bool,
) -> std::result::Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    if pause { consumer.pause(&list) } else { consumer.resume(&list) }
}

/// Sends on all that may go now.
fn transact(
    options: &KafkaOptions,
    consumer: &BaseConsumer,
    producer: &BaseProducer,
    topic: &str,
    waiting: &mut HashMap<i32, VecDeque<Waiting>>,
) -> Result<()> {
    let client = |error| error::from_client("forwarding", error);
    producer.begin_transaction().map_err(client)?;
    let mut offsets = TopicPartitionList::new();
    let mut sent = 0;
    for (&partition, queue) in waiting.iter_mut() {
        let was_full = queue.len() >= READY;
        let mut last = None;
        while sent < MOST && queue.front().is_some_and(|first| first.goes_at <= now()) {
            let Some(record) = queue.pop_front() else { break };
            last = Some(record.offset);
            sent += 1;
            send_on(options, producer, topic, &record)?;
        }
        if let Some(last) = last {
            offsets.add_partition_offset(topic, partition, Offset::Offset(last + 1)).map_err(client)?;
        }
        if was_full && queue.len() < READY {
            pause_one(consumer, topic, partition, false).map_err(client)?;
        }
    }
    let Some(group) = consumer.group_metadata() else { return Err(error::lost("forwarding")) };
    producer.send_offsets_to_transaction(&offsets, &group, PATIENCE).map_err(client)?;
    producer.commit_transaction(PATIENCE).map_err(client)
}

fn send_on(options: &KafkaOptions, producer: &BaseProducer, topic: &str, record: &Waiting) -> Result<()> {
    // Somebody else's, or one that names a topic that is none of this queue's: nobody waits for it.
    let Some(delayed) = record.delayed.as_ref().filter(|delayed| is_ours(options, &delayed.target)) else {
        return Ok(());
    };
    let left = Duration::from_millis(u64::try_from(delayed.due - now()).unwrap_or(0));
    let mut next = BaseRecord::<str, [u8]>::to(if left.is_zero() { &delayed.target } else { topic });
    next.key = record.message.routing_key();
    next.payload = Some(record.message.payload());
    if left.is_zero() {
        next.headers = convert::headers(&record.message, record.story, None);
    } else {
        next.partition = Some(levels::level(left));
        next.headers = convert::headers(&record.message, record.story, Some(delayed));
    }
    producer.send(next).map_err(|(error, _)| error::from_client("forwarding", error))
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
