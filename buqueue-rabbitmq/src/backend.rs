//! Connecting, and what can be promised.

use std::sync::Arc;

use buqueue_core::{Capabilities, Feature, Limits, QueueBuilder, Result, driver};

use crate::config::{QueueType, RabbitMqConfig, RabbitMqOptions, SHORT_MAX};
use crate::connection::Connector;
use crate::consumer::RabbitMqConsumer;
use crate::delay;
use crate::lease::Session;
use crate::producer::RabbitMqProducer;
use crate::publisher::Publisher;

/// All headers must fit into one frame, of 128 KiB by default, with what the broker adds.
const HEADER_MAX: usize = 100 * 1024;

/// RabbitMQ.
#[derive(Debug, Clone, Copy)]
pub enum RabbitMqBackend {}

impl RabbitMqBackend {
    /// Starts building producers and consumers of the queue that `config` names.
    pub fn builder(config: RabbitMqConfig) -> QueueBuilder<Self> {
        QueueBuilder::new(RabbitMqOptions::new(config))
    }
}

impl driver::Backend for RabbitMqBackend {
    const NAME: &'static str = "rabbitmq";
    type Config = RabbitMqOptions;
    type Producer = RabbitMqProducer;
    type Consumer = RabbitMqConsumer;

    fn capabilities(options: &RabbitMqOptions) -> Capabilities {
        let config = &options.config;
        let mut capabilities = Capabilities::native(Self::NAME)
            .emulated(
                Feature::ScheduledDelivery,
                "level queues of 2^n milliseconds, which the broker itself moves messages through",
            )
            .emulated(
                Feature::DelayedRetry,
                "a confirmed copy into the level queues, then the original is acked",
            )
            .emulated(Feature::DeadLetters, "published to another queue, then acked")
            .unsupported(Feature::Deduplication, "the broker has none; the id arrives with the message")
            .unsupported(
                Feature::Groups,
                "the consumers of a queue share it; a queue of its own, bound to an exchange, is a group",
            )
            .unsupported(Feature::Lease, "a delivery is its consumer's for as long as the channel lives")
            .unsupported(Feature::DetectsLateSettle, "the broker does not answer acks");
        if config.queue_type == QueueType::Classic {
            capabilities = capabilities.emulated(
                Feature::DeliveryCount,
                "a confirmed copy with the count takes the place of a message that failed",
            );
        }
        if !options.is_durable() {
            capabilities =
                capabilities.unsupported(Feature::SurvivesBrokerRestart, "the queue is declared not durable");
        }
        capabilities.with_limits(Limits {
            payload_bytes: Some(options.max_payload),
            header_bytes: Some(HEADER_MAX),
            routing_key_bytes: config.exchange.as_ref().map(|_| SHORT_MAX),
            schedule_horizon: Some(delay::LONGEST),
            ..Limits::default()
        })
    }

    fn destination(options: &RabbitMqOptions) -> String {
        options.config.queue.clone()
    }

    fn redirect(options: &RabbitMqOptions, destination: &str) -> RabbitMqOptions {
        let mut redirected = options.clone();
        destination.clone_into(&mut redirected.config.queue);
        // Straight to that queue: the exchange would bring it to this one again.
        redirected.config.exchange = None;
        redirected
    }

    async fn connect_producer(options: &RabbitMqOptions) -> Result<RabbitMqProducer> {
        let publisher = Publisher::new(Connector::new(options)?);
        publisher.live().await?;
        Ok(RabbitMqProducer { publisher })
    }

    async fn connect_consumer(options: &RabbitMqOptions) -> Result<RabbitMqConsumer> {
        let connector = Connector::new(options)?;
        let session = Session::new(Publisher::new(connector.clone()).quiet(), options.config.queue_type);
        RabbitMqConsumer::start(Arc::new(session), connector).await
    }
}
