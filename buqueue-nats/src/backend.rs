//! Connecting: validation, the stream and the durable, and what can be promised.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::{Capabilities, Feature, Limits, QueueBuilder, Result, driver};

use crate::config::{NatsConfig, NatsOptions, RetentionPolicy};
use crate::connection::Link;
use crate::consumer::NatsConsumer;
use crate::lease::Session;
use crate::producer::NatsProducer;
use crate::topology;

/// The server counts delays in nanoseconds, in 63 bits: 292 years.
const HORIZON: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// NATS JetStream.
#[derive(Debug, Clone, Copy)]
pub enum NatsBackend {}

impl NatsBackend {
    /// Starts building producers and consumers of the stream that `config` names.
    pub fn builder(config: NatsConfig) -> QueueBuilder<Self> {
        QueueBuilder::new(NatsOptions::new(config))
    }
}

impl driver::Backend for NatsBackend {
    const NAME: &'static str = "nats";
    type Config = NatsOptions;
    type Producer = NatsProducer;
    type Consumer = NatsConsumer;

    fn capabilities(options: &NatsOptions) -> Capabilities {
        let capabilities = Capabilities::native(Self::NAME)
            .emulated(
                Feature::ScheduledDelivery,
                "the server's schedules from 2.12 on; before, and on interest streams, a second stream whose \
                 messages running consumers hand back to the server until they are due",
            )
            .emulated(Feature::DeadLetters, "published to another stream, then acked")
            .emulated(
                Feature::DetectsLateSettle,
                "the server takes late acks silently; the lease is measured here, from the arrival of the message",
            )
            .with_limits(Limits {
                payload_bytes: Some(options.max_payload()),
                schedule_horizon: Some(HORIZON),
                ..Limits::default()
            });
        if options.config.jetstream.retention == RetentionPolicy::WorkQueue {
            capabilities.unsupported(Feature::Groups, "a work queue stream has one durable consumer")
        } else {
            capabilities
        }
    }

    fn destination(options: &NatsOptions) -> String {
        options.config.jetstream.stream_name.clone()
    }

    fn group(options: &NatsOptions) -> Option<String> {
        Some(options.config.durable_consumer.clone())
    }

    fn redirect(options: &NatsOptions, destination: &str) -> NatsOptions {
        let mut redirected = options.clone();
        let jetstream = &mut redirected.config.jetstream;
        destination.clone_into(&mut jetstream.stream_name);
        jetstream.subjects = vec![format!("{destination}.>")];
        redirected
    }

    async fn connect_producer(options: &NatsOptions) -> Result<NatsProducer> {
        let link = Link::connect(options, false).await?;
        let standing = topology::ensure_stream(&link, &options.config).await?;
        Ok(NatsProducer::new(link, options, standing.scheduling))
    }

    async fn connect_consumer(options: &NatsOptions) -> Result<NatsConsumer> {
        let link = Link::connect(options, true).await?;
        let standing = topology::ensure_stream(&link, &options.config).await?;
        let durable = topology::ensure_consumer(&link, options, &standing.scheduling, None).await?;
        let session = Session::new(link, options);
        let floor = durable.ack_floor.stream_sequence;
        NatsConsumer::start(Arc::new(session), options, standing, floor).await
    }
}
