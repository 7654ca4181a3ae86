use std::time::Duration;

use buqueue_core::url::UrlParts;
use buqueue_core::{BuqueueError, ErrorKind, Result};

use crate::MemoryBroker;

/// Which queue, in which broker, and how it behaves.
///
/// `MemoryConfig::default()` is a fresh, private broker. Clones of a config share its broker, so a second queue (a
/// dead letter queue, say) of the same broker is `MemoryConfig { queue: "other".into(), ..config.clone() }`.
///
/// With the feature `serde` it can be read from a file, where durations are as in `30s` or `1h30m`. As the configuration of
/// any backend it cannot be written: most hold credentials, and what can be written gets logged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct MemoryConfig {
    /// The queue's name in the broker, not empty. Default: `"queue"`.
    pub queue: String,
    /// How many messages may wait in the queue, scheduled ones included; `send` waits while it is full, and
    /// goes on when a quarter is free or half a second has passed. What consumers
    /// have taken does not count, also the little that a busy one takes ahead: at most 64 messages, and at most a
    /// sixteenth of the capacity. At least 1. Default: 1 048 576. Fixed by the first to open the queue.
    pub capacity: usize,
    /// How long a delivery stays with this consumer unsettled before it goes to another. From 1 ms to 100 years.
    /// Default: 30 s.
    #[cfg_attr(feature = "serde", serde(with = "buqueue_core::duration"))]
    pub lease: Duration,
    /// How long a deduplication id is remembered at least; zero means not at all. Default: 5 min. Fixed by the first
    /// to open the queue; at most 100 years.
    #[cfg_attr(feature = "serde", serde(with = "buqueue_core::duration"))]
    pub deduplication_window: Duration,
    /// Where the queues live. A file and a URL cannot name it: what is read from them has a broker of its own.
    /// Default: a fresh one.
    #[cfg_attr(feature = "serde", serde(skip))]
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
    /// Reads `memory://queue`, with `capacity`, `lease` and `deduplication_window` in the query:
    /// `memory://orders?capacity=1000&lease=30s`.
    ///
    /// The broker is a fresh one, each time; clone the config to open its queues more than once.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig), with `url` or the field at fault. What the values say is checked when
    /// the queue is built.
    pub fn from_url(url: &str) -> Result<Self> {
        let (parts, mut query) = UrlParts::parse(url, &["memory"])?;
        if parts.user_info().is_some() || !parts.path().is_empty() {
            let fact = "url: must name the queue and nothing else, as in memory://orders";
            return Err(BuqueueError::new(ErrorKind::InvalidConfig, fact));
        }
        let mut config = Self { queue: parts.host_name("queue", "memory://orders")?, ..Self::default() };
        query.set("capacity", &mut config.capacity)?;
        query.set("lease", &mut config.lease)?;
        query.set("deduplication_window", &mut config.deduplication_window)?;
        query.finish()?;
        Ok(config)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_every_field() {
        let url = "memory://new%20orders?capacity=7&lease=1m30s&deduplication_window=0s";
        let config = MemoryConfig::from_url(url).unwrap();
        let expected = MemoryConfig {
            queue: "new orders".to_owned(),
            capacity: 7,
            lease: Duration::from_secs(90),
            deduplication_window: Duration::ZERO,
            broker: config.broker.clone(),
        };
        assert_eq!(config, expected);
        let config = MemoryConfig::from_url("memory://orders/").unwrap();
        let expected = MemoryConfig {
            queue: "orders".to_owned(),
            broker: config.broker.clone(),
            ..MemoryConfig::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn each_url_has_a_broker_of_its_own() {
        let read = || MemoryConfig::from_url("memory://orders").unwrap();
        assert_ne!(read().broker, read().broker);
    }

    #[test]
    fn wrong_urls_name_the_fault_and_no_secret() {
        for (url, beginning) in [
            ("redis://canary", "url: must begin with memory://"),
            ("memory://u:canary@orders", "url: must name the queue"),
            ("memory://orders/canary", "url: must name the queue"),
            ("memory://", "queue: is missing"),
            ("memory://%zz", "queue: has a `%`"),
            ("memory://orders?capacity=-1", "capacity: must be a whole number"),
            ("memory://orders?lease=30", "lease: must be a duration"),
            ("memory://orders?deduplication_window=no", "deduplication_window: must be a duration"),
            ("memory://orders?capacity=1&capacity=2", "url: the key \"capacity\" is there twice"),
            (
                "memory://orders?broker=canary",
                "url: unknown key \"broker\"; known are capacity, lease, deduplication_window",
            ),
        ] {
            let error = MemoryConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(beginning), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
