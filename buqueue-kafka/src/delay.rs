//! Sends on what waits in the delay topic: one step further, or to where it is due, in a transaction with the offset, so that
//! whoever reads committed records only sees each once.
//!
//! Every consumer takes part in a group of its own kind, and who is given the first partition there sends on all of them. One
//! at a time, so that the transactions of a successor, which have the same name, end those of who was killed: an open one
//! would hold up all readers of the topic until the brokers give it up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use buqueue_core::{Backoff, ErrorKind, Message, Result};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, Timestamp, TopicPartitionList};

use crate::config::KafkaOptions;
use crate::convert::{self, Delayed, Story};
use crate::error;
use crate::levels::{self, LEVELS};
use crate::session::lock;
use crate::topology::Topology;

/// How many records are sent on in one transaction.
const MOST: usize = 500;
/// How many of a partition are kept ready.
const READY: usize = 200;
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
/// What has been sent on is deleted so often.
const TRIM_EVERY: Duration = Duration::from_secs(30);

/// Which record of the delay topic.
type Origin = (i32, i64);

/// A record that waits.
struct Waiting {
    offset: i64,
    /// When it goes on, in milliseconds since 1970.
    goes_at: i64,
    message: Message,
    story: Story,
    delayed: Option<Delayed>,
}

impl Waiting {
    fn new(record: &BorrowedMessage<'_>) -> Self {
        let level = record.partition();
        let incoming = convert::incoming(record);
        let appended = match record.timestamp() {
            Timestamp::CreateTime(at) | Timestamp::LogAppendTime(at) => at,
            Timestamp::NotAvailable => now(),
        };
        let due = incoming.delayed.as_ref().map_or(0, |delayed| delayed.due);
        let span = i64::try_from(levels::span(level).as_millis()).unwrap_or(i64::MAX);
        // Where the clocks of senders differ, nobody waits behind another for longer than a level does: what is left then is
        // waited for anew.
        let span = if level == 0 { levels::SHORTEST_MS } else { span };
        let goes_at = appended.saturating_add(span).min(due);
        let (message, story, delayed) = (incoming.message, incoming.story, incoming.delayed);
        Self { offset: record.offset(), goes_at, message, story, delayed }
    }
}

/// Runs on a thread of its own until it is told to stop.
pub(crate) fn forward(options: &KafkaOptions, stop: &Arc<AtomicBool>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let unsendable = Arc::new(Mutex::new(HashSet::new()));
    while !stop.load(Ordering::Acquire) {
        // What goes wrong here shows in the consumer's own calls, which ask the same brokers.
        let Err(_) = Forwarder::run(options, stop, &mut backoff, &unsendable) else { return };
        let until = Instant::now() + backoff.next_delay();
        while Instant::now() < until && !stop.load(Ordering::Acquire) {
            std::thread::sleep(IDLE);
        }
    }
}

/// Who leads sends on.
struct Election {
    topic: String,
    leads: AtomicBool,
    /// Grows with every change.
    changes: AtomicU64,
}

impl ClientContext for Election {
    fn error(&self, _error: KafkaError, _reason: &str) {}
    fn log(&self, _level: RDKafkaLogLevel, _fac: &str, _message: &str) {}
}

impl ConsumerContext for Election {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        given: &mut TopicPartitionList,
    ) {
        let assigning = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let leads = assigning && given.find_partition(&self.topic, 0).is_some();
        let outcome = if leads {
            let mut all = TopicPartitionList::new();
            all.add_partition_range(&self.topic, 0, LEVELS - 1);
            consumer.assign(&all)
        } else if assigning {
            consumer.assign(&TopicPartitionList::new())
        } else {
            // The client remembers across assignments what was paused.
            let resumed = consumer.assignment().and_then(|assigned| consumer.resume(&assigned));
            consumer.unassign().and(resumed)
        };
        self.leads.store(leads && outcome.is_ok(), Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

/// Learns which records cannot be sent to where they are due.
struct Reports(Arc<Mutex<HashSet<Origin>>>);

impl ClientContext for Reports {
    fn error(&self, _error: KafkaError, _reason: &str) {}
    fn log(&self, _level: RDKafkaLogLevel, _fac: &str, _message: &str) {}
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Origin>;

    fn delivery(&self, result: &DeliveryResult<'_>, origin: Box<Origin>) {
        if let Err((error, _)) = result
            && is_permanent(error)
        {
            lock(&self.0).insert(*origin);
        }
    }
}

/// The record itself cannot be accepted, now or later.
fn is_permanent(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(|code| {
        matches!(
            error::classify(code),
            ErrorKind::PayloadTooLarge
                | ErrorKind::InvalidMessage
                | ErrorKind::InvalidConfig
                | ErrorKind::NotFound
                | ErrorKind::AuthenticationFailed
        )
    })
}

struct Forwarder<'a> {
    options: &'a KafkaOptions,
    topic: String,
    consumer: BaseConsumer<Election>,
    /// Made when this one leads, which ends the transactions of who did before.
    producer: Option<BaseProducer<Reports>>,
    waiting: HashMap<i32, VecDeque<Waiting>>,
    unsendable: &'a Arc<Mutex<HashSet<Origin>>>,
    /// Those of them that this transaction has put off.
    put_off: Vec<Origin>,
    /// What has been sent on, to be deleted.
    done: HashMap<i32, i64>,
    trimmed_at: Instant,
}

impl<'a> Forwarder<'a> {
    /// Until something fails, or it is told to stop.
    fn run(
        options: &'a KafkaOptions,
        stop: &AtomicBool,
        backoff: &mut Backoff,
        unsendable: &'a Arc<Mutex<HashSet<Origin>>>,
    ) -> Result<()> {
        let topic = options.delay_topic();
        let election =
            Election { topic: topic.clone(), leads: AtomicBool::new(false), changes: AtomicU64::new(0) };
        let mut settings = options.client();
        settings
            .set("group.id", &topic)
            .set("partition.assignment.strategy", "range")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("session.timeout.ms", options.session_timeout.as_millis().to_string())
            .set("max.poll.interval.ms", options.session_timeout.max(POLL).as_millis().to_string())
            .set("heartbeat.interval.ms", (options.session_timeout / 15).as_millis().to_string())
            .set("fetch.wait.max.ms", "100")
            .set("allow.auto.create.topics", "false");
        let consumer: BaseConsumer<Election> = settings.create_with_context(election).map_err(failed)?;
        consumer.subscribe(&[topic.as_str()]).map_err(failed)?;
        let mut forwarder = Self {
            options,
            topic,
            consumer,
            producer: None,
            waiting: HashMap::new(),
            unsendable,
            put_off: Vec::new(),
            done: HashMap::new(),
            trimmed_at: Instant::now(),
        };
        let mut changes = 0;
        while !stop.load(Ordering::Acquire) {
            forwarder.take_in(&mut changes)?;
            if !forwarder.consumer.context().leads.load(Ordering::Acquire) {
                forwarder.producer = None;
                continue;
            }
            if forwarder.producer.is_none() {
                forwarder.producer = Some(producer(options, unsendable)?);
            }
            if forwarder.next().is_some_and(|next| next <= now()) {
                forwarder.transact()?;
                backoff.reset();
            }
            forwarder.trim();
        }
        Ok(())
    }

    /// When the next record goes on.
    fn next(&self) -> Option<i64> {
        self.waiting.values().filter_map(|queue| queue.front()).map(|first| first.goes_at).min()
    }

    /// Takes in what is there: what goes on together shares a transaction.
    fn take_in(&mut self, changes: &mut u64) -> Result<()> {
        let left = |next: i64| Duration::from_millis(u64::try_from(next - now()).unwrap_or(0));
        let mut pause = self.next().map_or(IDLE, |next| left(next).min(IDLE));
        for _ in 0..MOST {
            let polled = self.consumer.poll(pause);
            let latest = self.consumer.context().changes.load(Ordering::Acquire);
            if *changes != latest {
                *changes = latest;
                // It is read again from what is committed, by whoever leads now.
                self.waiting.clear();
            }
            match polled {
                Some(Ok(record)) => {
                    let level = record.partition();
                    let queue = self.waiting.entry(level).or_default();
                    queue.push_back(Waiting::new(&record));
                    if queue.len() == READY {
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

    /// Sends on all that may go now, or nothing.
    fn transact(&mut self) -> Result<()> {
        let Some(producer) = self.producer.take() else { return Ok(()) };
        producer.begin_transaction().map_err(failed)?;
        let sent =
            self.send_on(&producer).and_then(|()| producer.commit_transaction(PATIENCE).map_err(failed));
        if let Err(error) = sent {
            // An open transaction would hold readers up. Where that cannot be said either, the brokers end it.
            let _until_then = producer.abort_transaction(PATIENCE).is_err();
            if error.kind == ErrorKind::NotFound || !lock(self.unsendable).is_empty() {
                self.declare_targets();
            }
            return Err(error);
        }
        for origin in self.put_off.drain(..) {
            lock(self.unsendable).remove(&origin);
        }
        self.producer = Some(producer);
        Ok(())
    }

    fn send_on(&mut self, producer: &BaseProducer<Reports>) -> Result<()> {
        let mut offsets = TopicPartitionList::new();
        let (mut sent, mut resumed) = (0, Vec::new());
        for (&partition, queue) in &mut self.waiting {
            let (was_full, mut last) = (queue.len() >= READY, None);
            while sent < MOST && queue.front().is_some_and(|first| first.goes_at <= now()) {
                let Some(record) = queue.pop_front() else { break };
                let origin = (partition, record.offset);
                let put_off = lock(self.unsendable).contains(&origin);
                if put_off {
                    self.put_off.push(origin);
                }
                send_one(self.options, producer, &self.topic, &record, origin, put_off)?;
                last = Some(record.offset + 1);
                sent += 1;
            }
            if let Some(next) = last {
                offsets.add_partition_offset(&self.topic, partition, Offset::Offset(next)).map_err(failed)?;
                self.done.insert(partition, next);
            }
            if was_full && queue.len() < READY {
                resumed.push(partition);
            }
        }
        for partition in resumed {
            self.pause(partition, false)?;
        }
        // Until all are accepted; the client's own waiting for that looks ten times a second only.
        let deadline = Instant::now() + PATIENCE;
        while producer.in_flight_count() > 0 && Instant::now() < deadline {
            producer.poll(STEP);
        }
        let Some(group) = self.consumer.group_metadata() else { return Err(error::lost("forwarding")) };
        producer.send_offsets_to_transaction(&offsets, &group, PATIENCE).map_err(failed)
    }

    /// Somebody has deleted a topic where messages are due: it is created again.
    fn declare_targets(&self) {
        let delayed = self.waiting.values().flatten().filter_map(|record| record.delayed.as_ref());
        let mut names: HashSet<String> = delayed.map(|delayed| delayed.target.clone()).collect();
        names.insert(self.options.config.topic.clone());
        names.retain(|name| is_ours(self.options, name));
        // What cannot be created is put off, record by record.
        let _tried = self.blocking(async |topology| topology.ensure_topics(names).await);
    }

    /// Deletes what has been sent on: time does not, as some of it waits for years.
    fn trim(&mut self) {
        if self.done.is_empty() || self.trimmed_at.elapsed() < TRIM_EVERY {
            return;
        }
        self.trimmed_at = Instant::now();
        let done = std::mem::take(&mut self.done);
        let topic = self.topic.clone();
        // What is not deleted now is when the next is.
        let _tried = self.blocking(async |topology| topology.delete_below(&topic, &done).await);
    }

    fn blocking(&self, work: impl AsyncFnOnce(Topology) -> Result<()>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|_| error::lost("forwarding"))?;
        runtime.block_on(async { work(Topology::new(self.options)?).await })
    }
}

fn failed(error: KafkaError) -> buqueue_core::BuqueueError {
    error::from_client("forwarding", error)
}

fn producer(
    options: &KafkaOptions,
    unsendable: &Arc<Mutex<HashSet<Origin>>>,
) -> Result<BaseProducer<Reports>> {
    let mut settings = options.producer();
    settings
        .set("transactional.id", options.delay_topic())
        .set("transaction.timeout.ms", "15000")
        // Longer than a transaction it need not be tried.
        .set("message.timeout.ms", "10000")
        // What the last transaction has left to do for the brokers is done in a moment.
        .set("retry.backoff.ms", "5")
        .set("retry.backoff.max.ms", "200");
    let reports = Reports(Arc::clone(unsendable));
    let producer: BaseProducer<Reports> = settings.create_with_context(reports).map_err(failed)?;
    producer.init_transactions(PATIENCE).map_err(failed)?;
    Ok(producer)
}

fn send_one(
    options: &KafkaOptions,
    producer: &BaseProducer<Reports>,
    topic: &str,
    record: &Waiting,
    origin: Origin,
    put_off: bool,
) -> Result<()> {
    // Somebody else's, or one that names a topic that is none of this queue's: nobody waits for it.
    let Some(delayed) = record.delayed.as_ref().filter(|delayed| is_ours(options, &delayed.target)) else {
        return Ok(());
    };
    let put_off = put_off.then(|| Delayed { due: now() + PUT_OFF, target: delayed.target.clone() });
    let delayed = put_off.as_ref().unwrap_or(delayed);
    let left = delayed.due - now();
    let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
    let to = if left.is_zero() { &delayed.target } else { topic };
    let mut next = BaseRecord::<str, [u8], Box<Origin>>::with_opaque_to(to, Box::new(origin));
    next.key = record.message.routing_key();
    next.payload = Some(record.message.payload());
    if left.is_zero() {
        next.headers = convert::headers(&record.message, record.story, None);
    } else {
        next.partition = Some(levels::level(left));
        next.headers = convert::headers(&record.message, record.story, Some(delayed));
    }
    producer.send(next).map_err(|(error, _)| failed(error))
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
