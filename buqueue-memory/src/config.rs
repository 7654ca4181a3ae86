use std::time::Duration;

use buqueue_core::{BuqueueError, ErrorKind, Result};

use crate::MemoryBroker;

/// Which queue, in which broker, and how it behaves.
///
/// `MemoryConfig::default()` is a fresh, private broker. Clones of a config share its broker, so a second queue (a
/// dead letter queue, say) of the same broker is `MemoryConfig { queue: "other".into(), ..config.clone() }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// The queue's name in the broker. Default: `"queue"`.
    pub queue: String,
    /// How many messages may wait in the queue, scheduled ones included; `send` waits while it is full, and
    /// goes on when a quarter is free or half a second has passed. What consumers
    /// have taken does not count, also the little that a busy one takes ahead: at most 64 messages, and at most a
    /// sixteenth of the capacity. At least 1. Default: 1 048 576. Fixed by the first to open the queue.
    pub capacity: usize,
    /// How long a delivery stays with this consumer unsettled before it goes to another. From 1 ms to 100 years.
    /// Default: 30 s.
    pub lease: Duration,
    /// How long a deduplication id is remembered at least; zero means not at all. Default: 5 min. Fixed by the first
    /// to open the queue.
    pub deduplication_window: Duration,
    /// Where the queues live.
    pub broker: MemoryBroker,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            queue: "queue".to_owned(),
            capacity: 1 << 20,
            lease: Duration::from_secs(30),
            deduplication_window: Duration::from_secs(300),
            broker: MemoryBroker::default(),
        }
    }
}

/// Times are kept in milliseconds, in 62 bits; a century is plenty and cannot overflow.
const LEASE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl MemoryConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        let fact = if self.queue.is_empty() {
            "queue: must not be empty".to_owned()
        } else if self.capacity == 0 {
            "capacity: must be at least 1, is 0".to_owned()
        } else if self.lease < Duration::from_millis(1) || self.lease > LEASE_MAX {
            format!("lease: must lie between 1 ms and 100 years, is {:?}", self.lease)
        } else if self.deduplication_window > LEASE_MAX {
            format!("deduplication_window: must be at most 100 years, is {:?}", self.deduplication_window)
        } else {
            return Ok(());
        };
        Err(BuqueueError::new(ErrorKind::InvalidConfig, fact))
    }
}
