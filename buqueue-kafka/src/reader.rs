//! The thread that is the member of the group: it polls, commits, and answers rebalances. Nothing else touches the client.
//!
//! Before a record is handed out, a commit says so in its metadata: should the process die on it, the next owner knows. One
//! commit serves all that are handed out together, and gathers what was settled meanwhile.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use buqueue_core::{Backoff, BuqueueError, ErrorKind, Result};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;

use crate::config::{KafkaOptions, OffsetReset};
use crate::convert;
use crate::error;
use crate::metadata::Position;
use crate::session::{Held, Session, Slot, Topic, lock};

/// How many records are taken from the client before other work is looked at.
const BURST: usize = 500;
/// How long the thread sleeps when nothing happens.
const IDLE: Duration = Duration::from_millis(100);
/// What was settled is committed after this at the latest.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// How long what is committed may be asked for.
const ASKING: Duration = Duration::from_secs(5);
/// A consumer that takes at least so often is fast, and reads ahead.
const FAST: Duration = Duration::from_millis(100);
/// A look waits so long for records that are there and do not come: what is there may be no records.
const LOOK: Duration = Duration::from_millis(300);
/// How long a consumer that is gone stays a member for the sake of deliveries that are not settled.
const GHOST: Duration = Duration::from_secs(60);
/// How often the last commit is tried.
const LAST_COMMITS: u32 = 3;

/// What the client calls back.
pub(crate) struct Group {
    session: Arc<Session>,
    failure: Mutex<Option<BuqueueError>>,
    /// Grows with every assignment.
    assignments: watch::Sender<u64>,
}

impl Group {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session, failure: Mutex::default(), assignments: watch::channel(0).0 }
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
        // Without it, it is read from where the client finds it, and only the attempts of crashes are not known.
        let committed = consumer.committed_offsets(assigned.clone(), ASKING);
        if let Err(error) = &committed {
            self.note(error::from_client("committed offsets", error.clone()));
        }
        for mut place in assigned.elements() {
            let (topic, partition) = (place.topic().to_owned(), place.partition());
            let slot = self.slot(&topic, partition);
            let found = committed.as_ref().ok().and_then(|list| list.find_partition(&topic, partition));
            let position = match found.map(|found| (found.offset(), found.metadata().to_owned())) {
                Some((Offset::Offset(next), metadata)) => (Position::decode(next, &metadata), false),
                _ => (self.beginning(consumer, slot)?, true),
            };
            let (position, fresh) = position;
            place.set_offset(Offset::Offset(position.next))?;
            self.session.own(slot, &position, fresh);
        }
        if matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
            consumer.incremental_assign(assigned)
        } else {
            consumer.assign(assigned)
        }
    }

    /// Where a group begins that has not read the partition yet.
    fn beginning(&self, consumer: &BaseConsumer<Self>, slot: Slot) -> KafkaResult<Position> {
        let (first, next) = consumer.fetch_watermarks(&self.name(slot.topic), slot.partition, ASKING)?;
        let begins = match (slot.topic, self.session.options.config.offset_reset) {
            (Topic::Main, OffsetReset::Latest) => next,
            // What waits to be tried again belongs to the group.
            _ => first,
        };
        Ok(Position { next: begins, read_to: begins, ..Position::default() })
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
        let written = if lost || self.session.is_closing() || left.count() == 0 {
            Ok(())
        } else {
            consumer.commit(&left, CommitMode::Sync)
        };
        if let Err(error) = written {
            let error = error::from_client("commit", error);
            // Too late: what was settled since the last commit comes again to who owns it now.
            if error.kind != ErrorKind::LeaseExpired {
                self.note(error);
            }
        }
        if matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
            consumer.incremental_unassign(revoked)
        } else {
            consumer.unassign()
        }
    }

    fn note(&self, error: BuqueueError) {
        *lock(&self.failure) = Some(error);
        self.session.wake();
    }
}

impl ClientContext for Group {
    fn error(&self, error: KafkaError, _reason: &str) {
        self.note(error::from_client("connection", error));
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
            Ok(()) => self.assignments.send_modify(|count| *count += 1),
            Err(error) => self.note(error::from_client("rebalance", error)),
        }
        self.session.wake();
    }
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
    pub(crate) fn start(session: &Arc<Session>) -> Result<watch::Receiver<u64>> {
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
        let assignments = consumer.context().assignments.subscribe();
        let retry = options.retry_topic();
        consumer
            .subscribe(&[options.config.topic.as_str(), retry.as_str()])
            .map_err(|error| error::from_client("subscribe", error))?;
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
        };
        let spawned =
            std::thread::Builder::new().name("buqueue-kafka".to_owned()).spawn(move || reader.run());
        match spawned {
            Ok(_) => Ok(assignments),
            Err(error) => {
                let kind =
                    ErrorKind::BackendSpecific { code: "thread".to_owned(), message: error.to_string() };
                Err(BuqueueError::new(kind, "the reader's thread cannot be started"))
            }
        }
    }

    fn run(mut self) {
        while !self.session.is_closing() {
            self.step();
            self.session.sleep(IDLE);
        }
        self.finish();
    }

    fn step(&mut self) {
        self.take_in();
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
        for _ in 0..BURST {
            match self.consumer.poll(Duration::ZERO) {
                None => return,
                Some(Ok(record)) => {
                    let slot = self.consumer.context().slot(record.topic(), record.partition());
                    self.session.read(slot, record.offset(), || {
                        let incoming = convert::incoming(&record);
                        (incoming.message, incoming.story)
                    });
                }
                Some(Err(error)) => self.consumer.context().note(error::from_client("receive", error)),
            }
        }
        // There may be more.
        self.session.wake();
    }

    /// Reads no more than is wanted.
    fn flow(&mut self) {
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
            Err(error) => self.consumer.context().note(error::from_client("pause", error)),
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
        if started.is_empty() && self.committed_at.elapsed() < COMMIT_EVERY {
            return;
        }
        // It blocks, and meanwhile the client fetches on.
        match self.commit() {
            Ok(()) => {
                self.backoff.reset();
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
                let error = error::from_client("commit", error);
                if error.kind != ErrorKind::LeaseExpired {
                    self.consumer.context().note(error);
                }
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
                match self.consumer.fetch_watermarks(&name, slot.partition, Duration::from_secs(1)) {
                    Ok((_, end)) => ends.push((slot, end)),
                    Err(error) => {
                        self.session.mailbox.fail(error::from_client("watermarks", error));
                        self.session.mailbox.answer(wishes.looks);
                        return;
                    }
                }
            }
            self.look = Some(Look { number: wishes.looks, until: Instant::now() + LOOK, ends });
        }
        let Some(Look { number, until, ends }) = &self.look else { return };
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

fn consumer(options: &KafkaOptions) -> rdkafka::ClientConfig {
    let mut consumer = options.client();
    consumer
        .set("group.id", &options.config.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // What is read from where is said with the assignment.
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1000")
        .set("fetch.wait.max.ms", "200")
        .set("fetch.error.backoff.ms", "100")
        .set("queued.min.messages", "1000")
        .set("queued.max.messages.kbytes", "16384")
        .set("allow.auto.create.topics", "false");
    consumer
}
