//! The thread that is the member of the group: it polls, commits, and answers rebalances. Nothing else touches the client.
//!
//! Before a record is handed out, a commit says so in its metadata: should the process die on it, the next owner knows. One
//! commit serves all that are handed out together, and gathers what was settled meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use buqueue_core::{Backoff, BuqueueError, ErrorKind, Result};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;

use crate::config::{KafkaOptions, OffsetReset};
use crate::convert;
use crate::error;
use crate::metadata::Position;
use crate::session::{Held, Session, Slot, Topic, lock};
use crate::topology::Topology;

/// How many records are taken from the client before other work is looked at.
const BURST: usize = 500;
/// After so many it is asked whether there is room for more; a commit has room for as many.
const ROOM: usize = 50;
/// How long the thread sleeps when nothing happens.
const IDLE: Duration = Duration::from_millis(100);
/// What was settled is committed after this at the latest.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// How long what is committed may be asked for.
const ASKING: Duration = Duration::from_secs(2);
/// A consumer that takes at least so often is fast, and reads ahead.
const FAST: Duration = Duration::from_millis(100);
/// A look waits so long for records that are there and do not come: what is there may be no records.
const LOOK: Duration = Duration::from_millis(300);
/// How long a consumer that is gone stays a member for the sake of deliveries that are not settled.
const GHOST: Duration = Duration::from_secs(60);
/// How long it is tried to take up what the group has given, before the group is asked once more.
const TAKING_UP: Duration = Duration::from_secs(3);
/// How often the last commit is tried.
const LAST_COMMITS: u32 = 3;
/// How long the members of a group are waited for when partitions are dealt out anew.
const REBALANCE: Duration = Duration::from_secs(10);
/// When a topic that could not be declared is tried again.
const REPAIR_AGAIN: Duration = Duration::from_secs(1);

/// What the client calls back.
pub(crate) struct Group {
    session: Arc<Session>,
    failure: Mutex<Option<BuqueueError>>,
    /// Whether partitions were assigned, and where they begin is committed.
    begun: watch::Sender<bool>,
    /// What is new to the group was sent since this consumer was built, and is read from its start.
    started: AtomicBool,
    /// The brokers do not know a topic any more.
    missing: AtomicBool,
    /// What the group has given could not be taken up.
    rejoin: AtomicBool,
    /// Partitions have come that are not paused.
    reassigned: AtomicBool,
    /// The last commit is made.
    leaving: AtomicBool,
    /// Whether the group had read anything when this consumer joined.
    known: OnceLock<bool>,
}

impl Group {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            failure: Mutex::default(),
            begun: watch::channel(false).0,
            started: AtomicBool::new(false),
            missing: AtomicBool::new(false),
            rejoin: AtomicBool::new(false),
            reassigned: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            known: OnceLock::new(),
        }
    }

    fn name(&self, topic: Topic) -> String {
        let options = &self.session.options;
        match topic {
            Topic::Main => options.config.topic.clone(),
            Topic::Retry => options.retry_topic(),
        }
    }

    fn slot(&self, topic: &str, partition: i32) -> Slot {
        let topic = if topic == self.session.options.config.topic { Topic::Main } else { Topic::Retry };
        Slot { topic, partition }
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, assigned: &mut TopicPartitionList) -> KafkaResult<()> {
        let deadline = Instant::now() + TAKING_UP;
        let positions = loop {
            match self.positions(consumer, assigned) {
                Ok(positions) => break positions,
                // A topic that has just been created is not known everywhere.
                Err(_) if Instant::now() < deadline && !self.session.is_closing() => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                Err(error) => {
                    // Read from anywhere else, messages would be lost or come again: the group is asked once more.
                    self.rejoin.store(true, Ordering::Release);
                    assigned_or_not(consumer, &TopicPartitionList::new())?;
                    return Err(error);
                }
            }
        };
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for (slot, position, fresh) in positions {
            let name = self.name(slot.topic);
            list.add_partition_offset(&name, slot.partition, Offset::Offset(position.next))?;
            self.session.own(slot, &position, fresh);
        }
        self.started.store(true, Ordering::Release);
        assigned_or_not(consumer, &list)?;
        self.reassigned.store(true, Ordering::Release);
        Ok(())
    }

    /// Where reading goes on, and whether it begins there.
    fn positions(
        &self,
        consumer: &BaseConsumer<Self>,
        assigned: &TopicPartitionList,
    ) -> KafkaResult<Vec<(Slot, Position, bool)>> {
        let committed = consumer.committed_offsets(assigned.clone(), ASKING)?;
        let mut positions = Vec::with_capacity(assigned.count());
        for place in committed.elements() {
            place.error()?;
            let slot = self.slot(place.topic(), place.partition());
            positions.push(match place.offset() {
                Offset::Offset(next) => (slot, Position::decode(next, place.metadata()), false),
                _ => (slot, self.beginning(slot)?, true),
            });
        }
        Ok(positions)
    }

    /// Where a group begins that has not read the partition yet.
    fn beginning(&self, slot: Slot) -> KafkaResult<Position> {
        let (first, next) = self.session.later.range_of(&self.name(slot.topic), slot.partition)?;
        let latest = self.session.options.config.offset_reset == OffsetReset::Latest;
        // What waits to be tried again belongs to the group. So does what is in a partition that was added to the topic, or
        // in a topic that was created anew: the group was there before.
        let known = self.started.load(Ordering::Acquire) || self.known.get() == Some(&true);
        let begins = if latest && slot.topic == Topic::Main && !known { next } else { first };
        Ok(Position { next: begins, read_to: begins, ..Position::default() })
    }

    /// Whether the group has read anything of the topic.
    fn is_known(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<bool> {
        let topic = &self.session.options.config.topic;
        let metadata = consumer.fetch_metadata(Some(topic), ASKING)?;
        let mut all = TopicPartitionList::new();
        for found in metadata.topics().iter().filter(|found| found.name() == topic) {
            found.partitions().iter().for_each(|partition| {
                all.add_partition(topic, partition.id());
            });
        }
        let committed = consumer.committed_offsets(all, ASKING)?;
        Ok(committed.elements().iter().any(|place| matches!(place.offset(), Offset::Offset(_))))
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, revoked: &TopicPartitionList) -> KafkaResult<()> {
        let lost = consumer.assignment_lost();
        let mut left = TopicPartitionList::new();
        for place in revoked.elements() {
            let slot = self.slot(place.topic(), place.partition());
            if let Some(position) = self.session.disown(slot) {
                add(&mut left, place.topic(), slot.partition, &position)?;
            }
        }
        // What is lost belongs to somebody else already. A commit while the client closes may never end.
        let written = if lost || self.leaving.load(Ordering::Acquire) || left.count() == 0 {
            Ok(())
        } else {
            consumer.commit(&left, CommitMode::Sync)
        };
        // Too late: what was settled since the last commit comes again to who owns it now.
        if let Err(error) = written {
            self.report("commit", error);
        }
        // What could not be taken up is not there to be taken away.
        let assigned = consumer.assignment()?;
        let mut taken = TopicPartitionList::new();
        for place in revoked.elements() {
            if assigned.find_partition(place.topic(), place.partition()).is_some() {
                taken.add_partition(place.topic(), place.partition());
            }
        }
        // The client remembers across assignments what was paused.
        if taken.count() > 0 {
            consumer.resume(&taken)?;
        }
        if matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
            consumer.incremental_unassign(&taken)
        } else {
            consumer.unassign()
        }
    }

    /// What has gone wrong is told to who receives, unless it is mended here: a topic that is gone is declared again, and who
    /// is no longer a member becomes one.
    fn report(&self, what: &str, error: KafkaError) {
        if is_missing(&error) {
            self.missing.store(true, Ordering::Release);
            return self.session.wake();
        }
        let error = error::from_client(what, error);
        if error.kind != ErrorKind::LeaseExpired {
            self.note(error);
        }
    }

    fn note(&self, error: BuqueueError) {
        *lock(&self.failure) = Some(error);
        self.session.wake();
    }
}

impl ClientContext for Group {
    fn error(&self, error: KafkaError, _reason: &str) {
        self.report("connection", error);
    }

    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, _fac: &str, _message: &str) {}
}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let outcome = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions),
            _ => self.revoke(consumer, partitions),
        };
        match outcome {
            Ok(()) => {}
            Err(error) => self.report("rebalance", error),
        }
        self.session.wake();
    }
}

/// What the client is to read of what it was given.
fn assigned_or_not(consumer: &BaseConsumer<Group>, list: &TopicPartitionList) -> KafkaResult<()> {
    if matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
        consumer.incremental_assign(list)
    } else {
        consumer.assign(list)
    }
}

/// The brokers do not know the topic.
fn is_missing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownTopicId
                | Code::UnknownPartition
        )
    )
}

fn add(list: &mut TopicPartitionList, topic: &str, partition: i32, position: &Position) -> KafkaResult<()> {
    let mut place = list.add_partition(topic, partition);
    place.set_offset(Offset::Offset(position.next))?;
    place.set_metadata(position.encode());
    Ok(())
}

/// The thread's own.
pub(crate) struct Reader {
    consumer: BaseConsumer<Group>,
    session: Arc<Session>,
    committed_at: Instant,
    not_before: Instant,
    backoff: Backoff,
    paused: bool,
    ahead: usize,
    grown_at: u64,
    look: Option<Look>,
    /// The brokers do not know a topic any more, or again.
    repair: Arc<Mutex<Repair>>,
}

/// What becomes of a topic that was deleted.
#[derive(Debug, Default)]
enum Repair {
    #[default]
    Idle,
    Asked,
    Declared(Vec<String>),
}

/// A look that is being answered.
struct Look {
    number: u64,
    until: Instant,
    /// Where each partition ended when it was asked.
    ends: Vec<(Slot, i64)>,
}

impl Reader {
    /// Joins the group; the thread ends when the session is closed.
    pub(crate) fn start(session: &Arc<Session>) -> Result<watch::Receiver<bool>> {
        let options = &session.options;
        let mut consumer: BaseConsumer<Group> = consumer(options)
            .create_with_context(Group::new(Arc::clone(session)))
            .map_err(|error| error::from_client("consumer", error))?;
        let waking = Arc::downgrade(session);
        consumer.set_nonempty_callback(move || {
            if let Some(session) = waking.upgrade() {
                session.wake();
            }
        });
        let begun = consumer.context().begun.subscribe();
        let now = Instant::now();
        let reader = Self {
            consumer,
            session: Arc::clone(session),
            committed_at: now,
            not_before: now,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
            paused: false,
            ahead: 1,
            grown_at: 0,
            look: None,
            repair: Arc::default(),
        };
        let spawned =
            std::thread::Builder::new().name("buqueue-kafka".to_owned()).spawn(move || reader.run());
        match spawned {
            Ok(_) => Ok(begun),
            Err(error) => {
                let kind =
                    ErrorKind::BackendSpecific { code: "thread".to_owned(), message: error.to_string() };
                Err(BuqueueError::new(kind, "the reader's thread cannot be started"))
            }
        }
    }

    fn run(mut self) {
        self.join();
        while !self.session.is_closing() {
            self.step();
            self.session.sleep(IDLE);
        }
        self.finish();
    }

    fn step(&mut self) {
        self.take_in();
        self.rejoin();
        self.repair();
        self.flow();
        self.hand_over();
        self.answer_looks();
        let failure = lock(&self.consumer.context().failure).take();
        if let Some(error) = failure.filter(|error| !error.is_transient() || self.session.slots().is_empty())
        {
            self.session.mailbox.fail(error);
        }
    }

    /// What the client has.
    fn take_in(&mut self) {
        for number in 0..BURST {
            // Not only between the bursts: so many more there may be no room for.
            if number % ROOM == ROOM - 1 {
                self.flow();
            }
            match self.consumer.poll(Duration::ZERO) {
                None => return,
                Some(Ok(record)) => {
                    let slot = self.consumer.context().slot(record.topic(), record.partition());
                    self.session.read(slot, record.offset(), || {
                        let incoming = convert::incoming(&record);
                        (incoming.message, incoming.story)
                    });
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => self.restart(&[], true),
                    _ => self.consumer.context().report("receive", error),
                },
            }
        }
        // There may be more.
        self.session.wake();
    }

    /// Somebody has deleted a topic: it is declared again.
    fn declare(&self) {
        let mut repair = lock(&self.repair);
        if !matches!(*repair, Repair::Idle) {
            return;
        }
        *repair = Repair::Asked;
        drop(repair);
        let (session, repair) = (Arc::clone(&self.session), Arc::clone(&self.repair));
        session.runtime.clone().spawn(async move {
            let declared = async { Topology::new(&session.options)?.ensure_all().await }.await;
            match declared {
                Ok(names) => *lock(&repair) = Repair::Declared(names),
                Err(error) => {
                    session.mailbox.fail(error);
                    tokio::time::sleep(REPAIR_AGAIN).await;
                    *lock(&repair) = Repair::Idle;
                }
            }
            session.wake();
        });
    }

    /// Asks about the group while nobody of those who come together has committed, and joins it.
    fn join(&mut self) {
        let latest = self.session.options.config.offset_reset == OffsetReset::Latest;
        while !self.session.is_closing() {
            let group = self.consumer.context();
            let joined = if latest && group.known.get().is_none() {
                group.is_known(&self.consumer).map(|known| _ = group.known.set(known))
            } else {
                Ok(())
            };
            match joined.and_then(|()| subscribe(&self.consumer, &self.session.options)) {
                Ok(()) => return self.backoff.reset(),
                Err(error) => group.report("join", error),
            }
            self.session.sleep(self.backoff.next_delay());
        }
    }

    /// Leaves the group and joins it again, when what it gave could not be taken up.
    fn rejoin(&mut self) {
        let group = self.consumer.context();
        if Instant::now() < self.not_before || !group.rejoin.swap(false, Ordering::AcqRel) {
            return;
        }
        self.not_before = Instant::now() + self.backoff.next_delay();
        self.consumer.unsubscribe();
        if let Err(error) = subscribe(&self.consumer, &self.session.options) {
            group.rejoin.store(true, Ordering::Release);
            group.report("subscribe", error);
        }
    }

    fn repair(&mut self) {
        if self.consumer.context().missing.swap(false, Ordering::AcqRel) {
            self.declare();
        }
        let mut repair = lock(&self.repair);
        let Repair::Declared(names) = &mut *repair else { return };
        let names = std::mem::take(names);
        *repair = Repair::Idle;
        drop(repair);
        self.restart(&names, false);
    }

    /// Begins at the start with what is left of partitions of which there is no more what was to be read next, and with those
    /// of topics that are new. Their deliveries are no longer ours to settle.
    ///
    /// The client has ceased to read a partition whose next record it could not find: with `stopped`, the others begin again
    /// where they were.
    fn restart(&self, created: &[String], stopped: bool) {
        let group = self.consumer.context();
        for slot in self.session.slots() {
            let name = group.name(slot.topic);
            let restarted = self.session.later.range_of(&name, slot.partition).and_then(|(first, next)| {
                let reads = self.session.next(slot).unwrap_or(first);
                let there = (first..=next).contains(&reads) && !created.contains(&name);
                if there && !stopped {
                    return Ok(());
                }
                let begins = if there { reads } else { first };
                if !there {
                    self.session.disown(slot);
                    let position = Position { next: first, read_to: first, ..Position::default() };
                    self.session.own(slot, &position, true);
                }
                group.reassigned.store(true, Ordering::Release);
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(&name, slot.partition, Offset::Offset(begins))?;
                self.consumer.incremental_unassign(&list)?;
                self.consumer.incremental_assign(&list)
            });
            if let Err(error) = restarted {
                group.report("restart", error);
            }
        }
    }

    /// Reads no more than is wanted.
    fn flow(&mut self) {
        if self.consumer.context().reassigned.swap(false, Ordering::AcqRel) && self.paused {
            // What has come is not paused, the others are: once more from the start.
            let resumed = self.consumer.assignment().and_then(|assigned| self.consumer.resume(&assigned));
            if let Err(error) = resumed {
                self.consumer.context().reassigned.store(true, Ordering::Release);
                return self.consumer.context().report("resume", error);
            }
            self.paused = false;
        }
        let (unfinished, most) = (self.session.unfinished(), self.session.options.max_in_flight);
        let full =
            unfinished >= most || self.session.slots().iter().any(|slot| !self.session.has_room(*slot));
        let wanted = if self.paused { full || unfinished > most / 2 } else { full };
        if wanted == self.paused {
            return;
        }
        let Ok(assigned) = self.consumer.assignment() else { return };
        let changed = if wanted { self.consumer.pause(&assigned) } else { self.consumer.resume(&assigned) };
        match changed {
            Ok(()) => self.paused = wanted,
            Err(error) => self.consumer.context().report("pause", error),
        }
    }

    /// Hands over what is wanted, once a commit has told of it; commits what was settled.
    fn hand_over(&mut self) {
        if Instant::now() < self.not_before {
            return;
        }
        let wishes = self.session.mailbox.wishes();
        let fast = wishes.last_take.is_some_and(|taken| taken.elapsed() < FAST);
        if wishes.taken >= self.grown_at.saturating_add(self.ahead as u64) && fast {
            self.ahead = (self.ahead * 2).min(self.session.options.max_in_flight / 2).max(1);
            self.grown_at = wishes.taken;
        } else if !fast {
            self.ahead = 1;
        }
        // Who has just ceased to wait may wait again at once.
        let lately = wishes.demand_ended.is_some_and(|ended| ended.elapsed() < FAST);
        let target = wishes.demand.max(if fast || lately { self.ahead } else { 0 });
        let alone = !self.session.is_out() && wishes.ready == 0;
        let started = self.session.start(target.saturating_sub(wishes.ready), alone);
        let begins = !*self.consumer.context().begun.borrow();
        if started.is_empty() && self.committed_at.elapsed() < COMMIT_EVERY && !begins {
            return;
        }
        // It blocks, and meanwhile the client fetches on.
        match self.commit() {
            Ok(()) => {
                self.backoff.reset();
                let group = self.consumer.context();
                if group.started.load(Ordering::Acquire) {
                    group.begun.send_if_modified(|begun| !std::mem::replace(begun, true));
                }
                // Those whose partition has gone meanwhile are somebody else's.
                let ours: Vec<Held> =
                    started.into_iter().filter(|held| self.session.check(held.place).is_ok()).collect();
                if !ours.is_empty() {
                    self.session.mailbox.push_all(ours);
                }
            }
            Err(error) => {
                self.session.unstart(started);
                self.session.commit_again();
                self.not_before = Instant::now() + self.backoff.next_delay();
                // Somebody joins or leaves: the client goes along, and then it is tried again.
                self.consumer.context().report("commit", error);
            }
        }
    }

    fn commit(&mut self) -> KafkaResult<()> {
        self.committed_at = Instant::now();
        let positions = self.session.to_commit();
        if positions.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for (slot, position) in &positions {
            add(&mut list, &self.consumer.context().name(slot.topic), slot.partition, position)?;
        }
        self.consumer.commit(&list, CommitMode::Sync)
    }

    /// A look is answered when everything was read that was there when it was asked.
    fn answer_looks(&mut self) {
        let wishes = self.session.mailbox.wishes();
        if !wishes.is_looking() {
            self.look = None;
            return;
        }
        if self.look.as_ref().is_none_or(|look| look.number < wishes.looks) {
            let mut ends = Vec::new();
            for slot in self.session.slots() {
                let name = self.consumer.context().name(slot.topic);
                // Asked on a connection that no fetch waits on: a broker answers one after the other.
                match self.session.later.range_of(&name, slot.partition) {
                    Ok((_, end)) => ends.push((slot, end)),
                    Err(error) => {
                        self.consumer.context().report("watermarks", error);
                        self.session.mailbox.answer(wishes.looks);
                        return;
                    }
                }
            }
            self.look = Some(Look { number: wishes.looks, until: Instant::now() + LOOK, ends });
        }
        let Some(Look { number, until, ends }) = &self.look else { return };
        if wishes.demand == 0 {
            // Whoever looked has found something, or has gone.
            self.session.mailbox.answer(*number);
            self.look = None;
            return;
        }
        let read = ends.iter().all(|(slot, end)| self.session.next(*slot).is_none_or(|next| next >= *end));
        let idle = !self.session.has_waiting();
        if (read || Instant::now() >= *until) && idle {
            self.session.mailbox.answer(*number);
            self.look = None;
        } else {
            self.session.wake();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Gives back what nobody has seen, waits for what is out, and leaves the group.
    fn finish(mut self) {
        let deadline = Instant::now() + GHOST;
        self.give_back();
        // Nothing more is read; what is out is what matters.
        let assigned = self.consumer.assignment();
        if let Ok(assigned) = assigned.as_ref()
            && assigned.count() > 0
            && let Err(error) = self.consumer.pause(assigned)
        {
            self.consumer.context().report("pause", error);
        }
        while self.session.is_out() && Instant::now() < deadline {
            // Whoever closes does not wait for deliveries; what becomes of them is committed all the same.
            self.session.mailbox.finish();
            self.take_in();
            if self.committed_at.elapsed() >= COMMIT_EVERY && self.commit().is_err() {
                self.session.commit_again();
            }
            self.session.sleep(IDLE);
        }
        for _ in 0..LAST_COMMITS {
            if self.commit().is_ok() {
                break;
            }
            self.session.commit_again();
            std::thread::sleep(self.backoff.next_delay());
        }
        self.consumer.context().leaving.store(true, Ordering::Release);
        let session = Arc::clone(&self.session);
        for slot in session.slots() {
            session.disown(slot);
        }
        // Leaves the group; blocks for a moment, and for ever when a broker has gone in a bad one.
        let watched = Arc::clone(&session);
        session.runtime.spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            watched.mailbox.finish();
        });
        drop(self);
        session.mailbox.finish();
    }

    fn give_back(&mut self) {
        let unseen = self.session.mailbox.take_back(|_| true);
        self.session.unstart(unseen);
    }
}

fn subscribe(consumer: &BaseConsumer<Group>, options: &KafkaOptions) -> KafkaResult<()> {
    consumer.subscribe(&[options.config.topic.as_str(), options.retry_topic().as_str()])
}

fn consumer(options: &KafkaOptions) -> rdkafka::ClientConfig {
    let mut consumer = options.client();
    consumer
        .set("group.id", &options.config.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // What is read from where is said with the assignment.
        .set("auto.offset.reset", "error")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("isolation.level", "read_committed")
        .set("session.timeout.ms", options.session_timeout.as_millis().to_string())
        // The thread polls whatever handlers do. This is how long others are waited for in a rebalance, and for its end.
        .set("max.poll.interval.ms", options.session_timeout.max(REBALANCE).as_millis().to_string())
        .set("heartbeat.interval.ms", (options.session_timeout / 5).as_millis().to_string())
        .set("fetch.wait.max.ms", "200")
        .set("fetch.error.backoff.ms", "100")
        .set("queued.min.messages", "1000")
        .set("queued.max.messages.kbytes", "16384")
        .set("allow.auto.create.topics", "false");
    consumer
}
