//! Who sends on what waits in the delay topic: the member of a group of its own that is given the first partition reads all of
//! them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;

use crate::session::lock;

/// What the group has decided.
pub(crate) struct Election {
    topic: String,
    failure: Mutex<Option<KafkaError>>,
    leads: AtomicBool,
    /// Somebody else does; between the two nobody knows.
    follows: AtomicBool,
    /// Grows with every change.
    changes: AtomicU64,
}

impl Election {
    pub(crate) fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            failure: Mutex::default(),
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

    /// Whether something has changed since `known`.
    pub(crate) fn changed_since(&self, known: &mut u64) -> KafkaResult<bool> {
        let latest = self.changes.load(Ordering::Acquire);
        let changed = std::mem::replace(known, latest) != latest;
        lock(&self.failure).take().map_or(Ok(changed), Err)
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
        let outcome = if assigning {
            // Who leads says what it reads when the transactions of who did before have ended.
            consumer.assign(&TopicPartitionList::new())
        } else {
            // The client remembers across assignments what was paused.
            let resumed = consumer.assignment().and_then(|assigned| consumer.resume(&assigned));
            consumer.unassign().and(resumed)
        };
        self.leads.store(leads && outcome.is_ok(), Ordering::Release);
        self.follows.store(assigning && !leads, Ordering::Release);
        if let Err(error) = outcome {
            *lock(&self.failure) = Some(error);
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
