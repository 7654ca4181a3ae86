//! Who sends on what waits in the delay topic: the member of a group of its own that is given the first partition reads all of
//! them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use crate::group::ASKING;
use crate::levels::LEVELS;
use crate::metadata::Position;
use crate::session::lock;

/// What the group has decided.
pub(crate) struct Election {
    topic: String,
    state: Mutex<State>,
    leads: AtomicBool,
    /// Somebody else does; between the two nobody knows.
    follows: AtomicBool,
    /// Grows with every change.
    changes: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Where each partition begins.
    positions: Vec<(i32, Position)>,
    failure: Option<KafkaError>,
}

impl Election {
    pub(crate) fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            state: Mutex::default(),
            leads: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            changes: AtomicU64::new(0),
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::Acquire)
    }

    pub(crate) fn follows(&self) -> bool {
        self.follows.load(Ordering::Acquire)
    }

    /// Whether something has changed since `known`: where each partition begins now.
    pub(crate) fn changed_since(&self, known: &mut u64) -> Option<KafkaResult<Vec<(i32, Position)>>> {
        let latest = self.changes.load(Ordering::Acquire);
        if *known == latest {
            return None;
        }
        *known = latest;
        let mut state = lock(&self.state);
        let positions = std::mem::take(&mut state.positions);
        Some(state.failure.take().map_or(Ok(positions), Err))
    }

    /// Reads on where the last one has ended.
    fn begin(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        let mut all = TopicPartitionList::new();
        all.add_partition_range(&self.topic, 0, LEVELS - 1);
        let committed = consumer.committed_offsets(all, ASKING)?;
        let (mut list, mut positions) = (TopicPartitionList::new(), Vec::new());
        for place in committed.elements() {
            place.error()?;
            let partition = place.partition();
            let (first, end) = consumer.fetch_watermarks(&self.topic, partition, ASKING)?;
            let position = match place.offset() {
                Offset::Offset(next) if (first..=end).contains(&next) => {
                    Position::decode(next, place.metadata())
                }
                // The topic is new, or was created again.
                _ => Position { next: first, read_to: first, ..Position::default() },
            };
            list.add_partition_offset(&self.topic, partition, Offset::Offset(position.next))?;
            positions.push((partition, position));
        }
        lock(&self.state).positions = positions;
        consumer.assign(&list)
    }
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
            self.begin(consumer)
        } else if assigning {
            consumer.assign(&TopicPartitionList::new())
        } else {
            // The client remembers across assignments what was paused.
            let resumed = consumer.assignment().and_then(|assigned| consumer.resume(&assigned));
            consumer.unassign().and(resumed)
        };
        self.leads.store(leads && outcome.is_ok(), Ordering::Release);
        self.follows.store(assigning && !leads, Ordering::Release);
        if let Err(error) = outcome {
            lock(&self.state).failure = Some(error);
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
