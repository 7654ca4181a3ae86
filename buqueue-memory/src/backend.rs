use buqueue_core::driver::Backend;
use buqueue_core::{Capabilities, Feature, QueueBuilder, Result};

use crate::{MemoryConfig, MemoryConsumer, MemoryProducer};

/// The in-memory backend.
#[derive(Debug, Clone, Copy)]
pub enum MemoryBackend {}

impl MemoryBackend {
    /// Starts building a producer and a consumer of the config's queue.
    pub fn builder(config: MemoryConfig) -> QueueBuilder<Self> {
        QueueBuilder::new(config)
    }
}

impl Backend for MemoryBackend {
    const NAME: &'static str = "memory";

    type Config = MemoryConfig;
    type Producer = MemoryProducer;
    type Consumer = MemoryConsumer;

    fn capabilities(config: &MemoryConfig) -> Capabilities {
        let capabilities = Capabilities::native(Self::NAME)
            .unsupported(Feature::Groups, "an in-memory queue has one group of consumers")
            .unsupported(Feature::SharedBetweenProcesses, "an in-memory queue lives in one process")
            .unsupported(Feature::SurvivesBrokerRestart, "an in-memory queue ends with its process");
        if config.deduplication_window.is_zero() {
            return capabilities.unsupported(Feature::Deduplication, "deduplication_window is zero");
        }
        capabilities
    }

    fn destination(config: &MemoryConfig) -> String {
        config.queue.clone()
    }

    fn redirect(config: &MemoryConfig, destination: &str) -> MemoryConfig {
        MemoryConfig { queue: destination.to_owned(), ..config.clone() }
    }

    async fn connect_producer(config: &MemoryConfig) -> Result<MemoryProducer> {
        Ok(MemoryProducer::new(config.broker.open(config)?))
    }

    async fn connect_consumer(config: &MemoryConfig) -> Result<MemoryConsumer> {
        Ok(MemoryConsumer::new(config.broker.open(config)?, config.lease))
    }
}
