//! The member of the group: what the client calls back when partitions come and go, and when a commit is answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, ErrorKind};
use rdkafka::client::ClientContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;

use crate::commits::Progress;
use crate::config::OffsetReset;
use crate::error;
use crate::metadata::Position;
use crate::session::{Session, Slot, Topic, lock};
use crate::watch::{Broken, Line, Work};

/// How long what is committed may be asked for.
pub(crate) const ASKING: Duration = Duration::from_millis(1500);
/// How long it is tried to take up what the group has given, before the group is asked once more.
const TAKING_UP: Duration = Duration::from_secs(1);
/// How long a commit that is under way is waited for when partitions go.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// What the client calls back.
pub(crate) struct Group {
    pub(crate) session: Arc<Session>,
    /// Whether it is heard of.
    pub(crate) line: Line,
    taking_up: Work,
    failure: Mutex<Option<BuqueueError>>,
    /// Whether partitions were assigned, and where they begin is committed.
    pub(crate) begun: watch::Sender<bool>,
    /// What is new to the group was sent since this consumer was built, and is read from its start.
    pub(crate) started: AtomicBool,
    /// The brokers do not know a topic any more.
    pub(crate) missing: AtomicBool,
    /// What the group has given could not be taken up.
    pub(crate) rejoin: AtomicBool,
    /// Partitions have come.
    pub(crate) reassigned: AtomicBool,
    /// The last commit is made.
    pub(crate) leaving: AtomicBool,
    /// Whether the group had read anything when this consumer joined.
    pub(crate) known: OnceLock<bool>,
    /// What became of commits.
    pub(crate) progress: Arc<Progress>,
    /// Grows with each call back: a poll that makes one brings no record, and there may be some.
    calls: AtomicU64,
    /// The client itself.
    consumer: OnceLock<Weak<BaseConsumer<Self>>>,
}

impl Group {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            line: Line::default(),
            taking_up: Work::new("taking up partitions"),
            failure: Mutex::default(),
            begun: watch::channel(false).0,
            started: AtomicBool::new(false),
            missing: AtomicBool::new(false),
            rejoin: AtomicBool::new(false),
            reassigned: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            known: OnceLock::new(),
            progress: Arc::default(),
            calls: AtomicU64::new(0),
            consumer: OnceLock::new(),
        }
    }

    /// Once, before it subscribes.
    pub(crate) fn belongs_to(&self, consumer: &Arc<BaseConsumer<Self>>) {
        let _set = self.consumer.set(Arc::downgrade(consumer));
    }

    /// Has the client put what it fetches of a partition into the queue of that partition. Said before it is assigned, all of
    /// it goes there, and its records are read in one order.
    pub(crate) fn own_queue(&self, slot: Slot) -> Option<PartitionQueue<Self>> {
        let consumer = self.consumer.get()?.upgrade()?;
        consumer.split_partition_queue(&self.name(slot.topic), slot.partition)
    }

    /// The queue's.
    pub(crate) fn topic(&self) -> &str {
        &self.session.options.config.topic
    }

    fn called(&self) {
        self.calls.fetch_add(1, Ordering::AcqRel);
    }

    /// The last failure that was not mended here.
    pub(crate) fn take_failure(&self) -> Option<BuqueueError> {
        lock(&self.failure).take()
    }

    pub(crate) fn wake(&self) {
        self.session.wake();
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Acquire)
    }

    pub(crate) fn name(&self, topic: Topic) -> String {
        let options = &self.session.options;
        match topic {
            Topic::Main => options.config.topic.clone(),
            Topic::Retry => options.retry_topic(),
        }
    }

    pub(crate) fn slot(&self, topic: &str, partition: i32) -> Slot {
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
            // It stays so when the handle is gone.
            drop(self.own_queue(slot));
        }
        self.started.store(true, Ordering::Release);
        if let Err(error) = assigned_or_not(consumer, &list) {
            self.rejoin.store(true, Ordering::Release);
            return Err(error);
        }
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
    pub(crate) fn is_known(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<bool> {
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
        if lost && !self.session.is_closing() {
            let ended = BuqueueError::new(ErrorKind::LeaseExpired, "the session with the group has ended");
            self.line.broke(self.topic(), Broken::Session, &ended);
        }
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
            // After the one that is under way, and before the word that the partitions are free. Its answer is not waited
            // for: the thread must not be held up. Should it fail, what was settled since the last one comes again to the
            // next owner.
            self.progress.quiet(UNDER_WAY);
            consumer.commit(&left, CommitMode::Async)
        };
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
        if matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
            consumer.incremental_unassign(&taken)
        } else {
            consumer.unassign()
        }
    }

    /// What has gone wrong is told to who receives, unless it is mended here: a topic that is gone is declared again, and who
    /// is no longer a member becomes one.
    pub(crate) fn report(&self, what: &str, error: KafkaError) {
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
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) && !self.session.is_closing() {
            let lost = error::from_client("connection", error.clone());
            self.line.broke(self.topic(), Broken::Connection, &lost);
        }
        self.report("connection", error);
    }

    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, _fac: &str, _message: &str) {
        self.called();
    }

    fn stats_raw(&self, _statistics: &[u8]) {
        self.called();
    }
}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let assigning = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let outcome =
            if assigning { self.assign(consumer, partitions) } else { self.revoke(consumer, partitions) };
        match outcome {
            Ok(()) if assigning => {
                self.taking_up.worked();
                self.line.mended(self.topic(), Broken::Session);
            }
            Ok(()) => {}
            Err(error) => {
                if assigning && !self.session.is_closing() {
                    self.taking_up.failed(self.topic(), &error::from_client("rebalance", error.clone()));
                }
                self.report("rebalance", error);
            }
        }
        self.called();
        self.session.wake();
    }

    fn commit_callback(&self, _result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        self.called();
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
pub(crate) fn is_missing(error: &KafkaError) -> bool {
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

pub(crate) fn add(
    list: &mut TopicPartitionList,
    topic: &str,
    partition: i32,
    position: &Position,
) -> KafkaResult<()> {
    let mut place = list.add_partition(topic, partition);
    place.set_offset(Offset::Offset(position.next))?;
    place.set_metadata(position.encode());
    Ok(())
}
