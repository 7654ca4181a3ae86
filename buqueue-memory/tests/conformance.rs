//! The in-memory backend keeps the contract.

use std::time::Duration;

use buqueue_conformance::{Harness, Setup, Skip};
use buqueue_core::QueueBuilder;
use buqueue_memory::{MemoryBackend, MemoryConfig};

/// A broker of its own for each case.
struct Memory {
    shared: MemoryConfig,
}

impl Harness for Memory {
    type Backend = MemoryBackend;

    async fn connect() -> Result<Self, Skip> {
        Ok(Self { shared: MemoryConfig { capacity: 1 << 17, ..MemoryConfig::default() } })
    }

    fn builder(&self, setup: &Setup) -> QueueBuilder<MemoryBackend> {
        let mut config =
            MemoryConfig { queue: setup.queue.clone(), lease: setup.lease, ..self.shared.clone() };
        if let Some(window) = setup.deduplication_window {
            config.deduplication_window = window;
        }
        MemoryBackend::builder(config)
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(700)
    }

    fn deduplication_window(&self) -> Option<Duration> {
        Some(Duration::from_millis(500))
    }

    fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<MemoryBackend>, &'static str)> {
        let with = |change: fn(&mut MemoryConfig)| self.builder(setup).configure(change);
        vec![
            (with(|config| config.queue.clear()), "queue"),
            (with(|config| config.capacity = 0), "capacity"),
            (with(|config| config.lease = Duration::ZERO), "lease"),
            (with(|config| config.lease = Duration::MAX), "lease"),
            (with(|config| config.deduplication_window = Duration::MAX), "deduplication_window"),
        ]
    }
}

buqueue_conformance::conformance_tests!(Memory);
