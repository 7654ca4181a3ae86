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

use buqueue_core::{Backoff, BuqueueError, ErrorKind, Message, Result};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use tokio::sync::watch;

use crate::config::KafkaOptions;
use crate::convert::{self, Delayed, Story};
use crate::error;
use crate::levels::{self, LEVELS};
use crate::session::lock;
use crate::topology::Topology;

/// How many records are sent on in one transaction.
const MOST: usize = 500;
/// How many of a partition are kept ready, and how many bytes of them.
const READY: usize = 2000;
const READY_BYTES: usize = 4 << 20;
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
/// What cannot be sent to where it is due, and why.
type Unsendable = HashMap<Origin, ErrorKind>;

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
    let unsendable = Arc::new(Mutex::new(Unsendable::new()));
    let mut told = false;
    while !stop.load(Ordering::Acquire) {
        let Err(error) = Forwarder::run(options, stop, &mut backoff, &unsendable, &mut told) else { return };
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

/// Who leads sends on.
struct Election {
    topic: String,
    leads: AtomicBool,
    /// Somebody else does; between the two nobody knows.
    follows: AtomicBool,
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
        self.follows.store(assigning && !leads, Ordering::Release);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

/// Learns which records cannot be sent to where they are due.
struct Reports(Arc<Mutex<Unsendable>>);

impl ClientContext for Reports {
    fn error(&self, _error: KafkaError, _reason: &str) {}
    fn log(&self, _level: RDKafkaLogLevel, _fac: &str, _message: &str) {}
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Origin>;

    fn delivery(&self, result: &DeliveryResult<'_>, origin: Box<Origin>) {
        if let Err((error, _)) = result
            && let Some(kind) = permanent(error)
        {
            lock(&self.0).insert(*origin, kind);
        }
    }
}

/// Why the record itself cannot be accepted, now or later.
fn permanent(error: &KafkaError) -> Option<ErrorKind> {
    let kind = error::classify(error.rdkafka_error_code()?);
    let permanent = matches!(
        kind,
        ErrorKind::PayloadTooLarge
            | ErrorKind::InvalidMessage
            | ErrorKind::InvalidConfig
            | ErrorKind::NotFound
            | ErrorKind::AuthenticationFailed
    );
    permanent.then_some(kind)
}

/// What waits in one partition, in its order.
#[derive(Default)]
struct Queue {
    records: VecDeque<Waiting>,
    bytes: usize,
    paused: bool,
}

impl Queue {
    fn push(&mut self, record: Waiting) {
        self.bytes += record.message.payload().len();
        self.records.push_back(record);
    }

    fn push_back_in_front(&mut self, record: Waiting) {
        self.bytes += record.message.payload().len();
        self.records.push_front(record);
    }

    fn pop_due(&mut self, now: i64) -> Option<Waiting> {
        self.records.front().filter(|first| first.goes_at <= now)?;
        let record = self.records.pop_front()?;
        self.bytes -= record.message.payload().len();
        Some(record)
    }

    fn is_full(&self) -> bool {
        self.records.len() >= READY || self.bytes >= READY_BYTES
    }

    fn has_room(&self) -> bool {
        self.records.len() <= READY / 2 && self.bytes <= READY_BYTES / 2
    }
}

struct Forwarder<'a> {
    options: &'a KafkaOptions,
    topic: String,
    consumer: BaseConsumer<Election>,
    /// Made when this one leads, which ends the transactions of who did before.
    producer: Option<BaseProducer<Reports>>,
    waiting: HashMap<i32, Queue>,
    unsendable: &'a Arc<Mutex<Unsendable>>,
    /// Those of them that were tried once more.
    forgiven: HashSet<Origin>,
    /// So many go on one by one, because nobody knows which of them it is that cannot.
    careful: usize,
    /// After a failure.
    not_before: Instant,
    backoff: Backoff,
    /// What has been sent on, to be deleted.
    done: HashMap<i32, i64>,
    trimmed_at: Instant,
    trimming: Arc<AtomicBool>,
}

impl<'a> Forwarder<'a> {
    /// Until something fails that it does not survive, or it is told to stop.
    fn run(
        options: &'a KafkaOptions,
        stop: &AtomicBool,
        backoff: &mut Backoff,
        unsendable: &'a Arc<Mutex<Unsendable>>,
        told: &mut bool,
    ) -> Result<()> {
        let topic = options.delay_topic();
        let election = Election {
            topic: topic.clone(),
            leads: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            changes: AtomicU64::new(0),
        };
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
            unsendable,
            forgiven: HashSet::new(),
            careful: 0,
            not_before: Instant::now(),
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
            done: HashMap::new(),
            trimmed_at: Instant::now(),
            trimming: Arc::default(),
        };
        let mut changes = 0;
        while !stop.load(Ordering::Acquire) {
            forwarder.take_in(&mut changes)?;
            let election = forwarder.consumer.context();
            if !election.leads.load(Ordering::Acquire) {
                // While members come and go it may lead again in a moment.
                if election.follows.load(Ordering::Acquire) {
                    forwarder.producer = None;
                }
                continue;
            }
            if forwarder.producer.is_none() {
                forwarder.producer = Some(producer(options, unsendable)?);
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

    /// When the next record goes on.
    fn next(&self) -> Option<i64> {
        self.waiting.values().filter_map(|queue| queue.records.front()).map(|first| first.goes_at).min()
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
                    queue.push(Waiting::new(&record));
                    if queue.is_full() && !queue.paused {
                        queue.paused = true;
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
        let known = lock(self.unsendable).len();
        let Err(error) = self.send_on(&producer, &taken) else {
            self.producer = Some(producer);
            return self.sent_on(&taken);
        };
        let learned = lock(self.unsendable).len() > known;
        let kind = permanent(&error);
        if let Some(kind) = kind.clone().filter(|_| !learned) {
            match taken.as_slice() {
                [(partition, record)] => {
                    lock(self.unsendable).insert((*partition, record.offset), kind);
                }
                // The brokers do not say which.
                _ => self.careful = taken.len(),
            }
        }
        if !abort(&producer) {
            // What was popped is read again by whoever leads next.
            return Err(failed(error));
        }
        for (partition, record) in taken.into_iter().rev() {
            self.waiting.entry(partition).or_default().push_back_in_front(record);
        }
        self.declare_targets(&producer, kind == Some(ErrorKind::NotFound));
        self.producer = Some(producer);
        self.not_before = Instant::now() + self.backoff.next_delay();
        Ok(())
    }

    fn take_due(&mut self) -> Vec<(i32, Waiting)> {
        let most = if self.careful > 0 { 1 } else { MOST };
        let (mut taken, now) = (Vec::new(), now());
        for (partition, queue) in &mut self.waiting {
            while taken.len() < most
                && let Some(record) = queue.pop_due(now)
            {
                taken.push((*partition, record));
            }
        }
        taken
    }

    fn send_on(&self, producer: &BaseProducer<Reports>, taken: &[(i32, Waiting)]) -> KafkaResult<()> {
        producer.begin_transaction()?;
        for (partition, record) in taken {
            let origin = (*partition, record.offset);
            let put_off = lock(self.unsendable).contains_key(&origin);
            send_one(self.options, producer, &self.topic, record, origin, put_off)?;
        }
        // Until all are accepted; the client's own waiting for that looks ten times a second only.
        let deadline = Instant::now() + PATIENCE;
        while producer.in_flight_count() > 0 && Instant::now() < deadline {
            producer.poll(STEP);
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, next) in ends(taken) {
            offsets.add_partition_offset(&self.topic, partition, Offset::Offset(next))?;
        }
        // Without one it is no member any more.
        let gone = KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId);
        let group = self.consumer.group_metadata().ok_or(gone)?;
        producer.send_offsets_to_transaction(&offsets, &group, PATIENCE)?;
        producer.commit_transaction(PATIENCE)
    }

    fn sent_on(&mut self, taken: &[(i32, Waiting)]) -> Result<()> {
        self.backoff.reset();
        self.careful = self.careful.saturating_sub(taken.len());
        self.done.extend(ends(taken));
        let mut unsendable = lock(self.unsendable);
        for (partition, record) in taken {
            unsendable.remove(&(*partition, record.offset));
            self.forgiven.remove(&(*partition, record.offset));
        }
        drop(unsendable);
        let mut resumed = Vec::new();
        for (partition, queue) in &mut self.waiting {
            if queue.paused && queue.has_room() {
                queue.paused = false;
                resumed.push(*partition);
            }
        }
        resumed.into_iter().try_for_each(|partition| self.pause(partition, false))
    }

    /// Somebody has deleted a topic where messages are due: it is created again, and what was due there is tried once more.
    fn declare_targets(&mut self, producer: &BaseProducer<Reports>, unknown: bool) {
        let missing = |(origin, kind): (&Origin, &ErrorKind)| {
            (*kind == ErrorKind::NotFound && !self.forgiven.contains(origin)).then_some(*origin)
        };
        let origins: HashSet<Origin> = lock(self.unsendable).iter().filter_map(missing).collect();
        if origins.is_empty() && !unknown {
            return;
        }
        let waiting = self.waiting.values().flat_map(|queue| &queue.records);
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
        lock(self.unsendable).retain(|origin, _| !origins.contains(origin));
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
        let spawned = std::thread::Builder::new().name("buqueue-kafka-trim".to_owned()).spawn(move || {
            // What is not deleted now is when the next is.
            let _tried = blocking(&options, async |topology| topology.delete_below(&topic, &done).await);
            trimming.store(false, Ordering::Release);
        });
        if spawned.is_err() {
            self.trimming.store(false, Ordering::Release);
        }
    }
}

/// Behind the last of each partition.
fn ends(taken: &[(i32, Waiting)]) -> HashMap<i32, i64> {
    // They are in their order.
    taken.iter().map(|(partition, record)| (*partition, record.offset + 1)).collect()
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

fn producer(options: &KafkaOptions, unsendable: &Arc<Mutex<Unsendable>>) -> Result<BaseProducer<Reports>> {
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
) -> KafkaResult<()> {
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
    producer.send(next).map_err(|(error, _)| error)
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
