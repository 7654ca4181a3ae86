use std::sync::Arc;

use buqueue_core::driver::Backend;
use buqueue_core::{Capabilities, Feature, Limits, QueueBuilder, Result};

use crate::error::blocking;
use crate::spool::Spool;
use crate::{SpoolConfig, SpoolConsumer, SpoolProducer};

/// A message is read whole into memory, so it has limits. Whatever is within them makes a file that is within
/// [`FILE_MAX`](crate::spool::FILE_MAX), also where each byte of a text is six in JSON.
pub(crate) const LIMITS: Limits = Limits {
    payload_bytes: Some(16 << 20),
    header_bytes: Some(1 << 20),
    routing_key_bytes: Some(64 << 10),
    deduplication_id_bytes: Some(64 << 10),
    schedule_horizon: None,
};

/// Queues in a directory.
#[derive(Debug, Clone, Copy)]
pub enum SpoolBackend {}

impl SpoolBackend {
    /// Starts building producers and consumers of the queue that `config` names.
    pub fn builder(config: SpoolConfig) -> QueueBuilder<Self> {
        QueueBuilder::new(config)
    }
}

impl Backend for SpoolBackend {
    const NAME: &'static str = "spool";

    type Config = SpoolConfig;
    type Producer = SpoolProducer;
    type Consumer = SpoolConsumer;

    fn capabilities(_: &SpoolConfig) -> Capabilities {
        Capabilities::native(Self::NAME)
            .emulated(
                Feature::BatchSend,
                "each message is a file; the directory is synced once for all of them",
            )
            .emulated(Feature::DeadLetters, "published to another queue, then acked")
            .unsupported(
                Feature::Deduplication,
                "a directory does not remember the ids of messages that are gone",
            )
            .unsupported(Feature::Groups, "a queue has one group of consumers: each message is one file")
            .with_limits(LIMITS)
    }

    fn destination(config: &SpoolConfig) -> String {
        config.queue.clone()
    }

    fn redirect(config: &SpoolConfig, destination: &str) -> SpoolConfig {
        SpoolConfig { queue: destination.to_owned(), ..config.clone() }
    }

    async fn connect_producer(config: &SpoolConfig) -> Result<SpoolProducer> {
        Ok(SpoolProducer::new(open(config).await?))
    }

    async fn connect_consumer(config: &SpoolConfig) -> Result<SpoolConsumer> {
        Ok(SpoolConsumer::new(open(config).await?, config))
    }
}

async fn open(config: &SpoolConfig) -> Result<Arc<Spool>> {
    config.validate()?;
    let config = config.clone();
    blocking(move || Spool::open(&config).map(Arc::new)).await
}
