//! The in-memory backend keeps the contract.

use std::net::SocketAddr;
use std::time::Duration;

use buqueue_conformance::{Excluded, Foreign, Harness, Hook, Setup, Skip};
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
        Duration::from_millis(1500)
    }

    fn deduplication_window(&self) -> Option<Duration> {
        Some(Duration::from_millis(500))
    }

    fn broker_addr(&self) -> Hook<SocketAddr> {
        Err(Excluded::new("there is no connection to an in-memory broker"))
    }

    async fn delete_group(&self, _: &Setup) -> Hook<()> {
        Err(Excluded::new("an in-memory queue has one group, for as long as it lives"))
    }

    async fn delete_queue(&self, _: &Setup) -> Hook<()> {
        Err(Excluded::new("an in-memory queue lives as long as its broker"))
    }

    async fn inject(&self, _: &Setup, _: Foreign) -> Hook<()> {
        Err(Excluded::new("nobody but buqueue writes into an in-memory queue"))
    }

    fn wrong_credentials(&self, _: &Setup) -> Hook<(QueueBuilder<MemoryBackend>, String)> {
        Err(Excluded::new("an in-memory broker asks for no credentials"))
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
