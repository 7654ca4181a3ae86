//! A queue by its URL.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use buqueue_core::driver::Backend;
use buqueue_core::{
    BuqueueError, Capabilities, DlqConfig, Dynamic, ErrorKind, QueueBuilder, QueueConsumer, QueueProducer,
    Result,
};

/// Which feature a scheme needs.
const SCHEMES: &[(&str, &str)] = &[
    ("memory", "memory"),
    ("kafka", "kafka"),
    ("nats", "nats"),
    ("tls", "nats"),
    ("amqp", "rabbitmq"),
    ("amqps", "rabbitmq"),
    ("redis", "redis"),
    ("rediss", "redis"),
    ("redis+sentinel", "redis"),
    ("rediss+sentinel", "redis"),
    ("redis+unix", "redis"),
    ("valkey", "redis"),
    ("valkeys", "redis"),
    ("sqs", "sqs"),
    ("sqs+http", "sqs"),
];

/// Starts building a producer and a consumer of the queue that the URL names, on the backend that its scheme names; so one
/// environment variable is enough to choose a broker.
///
/// | backend | URL | must be there |
/// |---|---|---|
/// | memory | `memory://orders?capacity=1000` | the queue |
/// | Kafka | `kafka://h1:9092,h2:9092/orders?group_id=workers` | brokers, topic |
/// | NATS | `nats://host:4222/ORDERS?durable_consumer=workers&subjects=orders.>`, `tls://…` | server, stream |
/// | RabbitMQ | `amqp://user:password@host:5672/vhost?queue=orders`, `amqps://…` | `queue` |
/// | Redis | `redis://user:password@host:6379/0?stream=orders&group=workers`, `rediss://…`, `redis+sentinel://…` | `stream` |
/// | SQS | `sqs://sqs.eu-west-1.amazonaws.com/123456789012/orders`, `sqs+http://127.0.0.1:4566/…` | all of it |
///
/// The query has the fields of the backend's config struct; its `from_url` has the details. Durations are as in `30s` or
/// `1h30m`, lists have commas. In a user, a password or a value, what has a meaning in URLs is percent-encoded.
///
/// Nothing is connected before `build_*`. A queue in memory lives as long as what was built from **one** call: another call
/// with the same URL makes another queue, because there is nothing global that both could find it in.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> buqueue::Result<()> {
/// use buqueue::prelude::*;
///
/// let url = std::env::var("ORDERS_QUEUE_URL").unwrap_or_else(|_| "memory://orders".to_owned());
/// let (producer, mut consumer) = buqueue::connect(&url)?.build_pair().await?;
/// producer.send(Message::new("hello")).await?;
/// consumer.receive().await?.ack().await?;
/// # Ok(()) }
/// # #[cfg(not(feature = "memory"))] fn main() {}
/// ```
///
/// # Errors
/// [`InvalidConfig`](ErrorKind::InvalidConfig), with `url` or the field at fault, and without a user or a password: an
/// unknown scheme, one whose backend is not compiled in, an unknown key, a value that is none, a missing part.
pub fn connect(url: &str) -> Result<AnyBuilder> {
    open(url).map_err(|error| error.at("", "connect"))
}

fn open(url: &str) -> Result<AnyBuilder> {
    let known = || SCHEMES.iter().map(|(scheme, _)| format!("{scheme}://")).collect::<Vec<_>>().join(", ");
    let Some((scheme, _)) = url.split_once("://") else {
        return Err(invalid(format!("url: must begin with one of {}", known())));
    };
    match SCHEMES.iter().find(|(name, _)| *name == scheme) {
        #[cfg(feature = "memory")]
        Some((_, "memory")) => {
            use crate::memory::{MemoryBackend, MemoryConfig};
            Ok(MemoryBackend::builder(MemoryConfig::from_url(url)?).into())
        }
        #[cfg(feature = "kafka")]
        Some((_, "kafka")) => {
            use crate::kafka::{KafkaBackend, KafkaConfig};
            Ok(KafkaBackend::builder(KafkaConfig::from_url(url)?).into())
        }
        #[cfg(feature = "nats")]
        Some((_, "nats")) => {
            use crate::nats::{NatsBackend, NatsConfig};
            Ok(NatsBackend::builder(NatsConfig::from_url(url)?).into())
        }
        #[cfg(feature = "rabbitmq")]
        Some((_, "rabbitmq")) => {
            use crate::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
            Ok(RabbitMqBackend::builder(RabbitMqConfig::from_url(url)?).into())
        }
        #[cfg(feature = "redis")]
        Some((_, "redis")) => {
            use crate::redis::{RedisBackend, RedisConfig};
            Ok(RedisBackend::builder(RedisConfig::from_url(url)?).into())
        }
        #[cfg(feature = "sqs")]
        Some((_, "sqs")) => {
            use crate::sqs::{SqsBackend, SqsConfig};
            Ok(SqsBackend::builder(SqsConfig::from_url(url)?).into())
        }
        Some((scheme, feature)) => Err(invalid(format!("url: {scheme}:// needs the feature {feature:?}"))),
        // It may be anything, half a password included.
        None => Err(invalid(format!("url: unknown scheme; known are {}", known()))),
    }
}

fn invalid(fact: String) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

type Building<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;
type Pair = (Box<dyn QueueProducer>, Box<dyn QueueConsumer>);

/// A [`QueueBuilder`] of whichever backend: what [`connect`] gives, and what any builder can be made into.
///
/// What only one backend can be told is told to its own builder, before: `RedisBackend::builder(config).request_timeout(…)`
/// is an `AnyBuilder` by [`into`](Into::into).
#[must_use = "a builder does nothing until `build_*`"]
pub struct AnyBuilder {
    builder: Box<dyn Build>,
}

impl AnyBuilder {
    /// Moves messages that fail too often to another queue. Default: none, a failing message comes back for ever.
    pub fn dead_letter_queue(self, dead_letter_queue: DlqConfig) -> Self {
        Self { builder: self.builder.dead_letter_queue(dead_letter_queue) }
    }

    /// How long a shutdown waits for deliveries in flight. Default: 30 s.
    pub fn drain_timeout(self, drain_timeout: Duration) -> Self {
        Self { builder: self.builder.drain_timeout(drain_timeout) }
    }

    /// What the backend can do in this configuration, as far as that can be told without the broker.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.builder.capabilities()
    }

    /// Connects both halves.
    ///
    /// # Errors
    /// As [`QueueBuilder::build_producer`] and [`QueueBuilder::build_consumer`].
    pub async fn build_pair(self) -> Result<Pair> {
        self.builder.build_pair().await
    }

    /// Connects the sending half; starts nothing that consumes.
    ///
    /// # Errors
    /// As [`QueueBuilder::build_producer`].
    pub async fn build_producer(self) -> Result<Box<dyn QueueProducer>> {
        self.builder.build_producer().await
    }

    /// Connects the receiving half. What is sent after this returns is received.
    ///
    /// # Errors
    /// As [`QueueBuilder::build_consumer`].
    pub async fn build_consumer(self) -> Result<Box<dyn QueueConsumer>> {
        self.builder.build_consumer().await
    }
}

impl<B: Backend> From<QueueBuilder<B>> for AnyBuilder {
    fn from(builder: QueueBuilder<B>) -> Self {
        Self { builder: Box::new(builder.make_dynamic()) }
    }
}

/// The backend and the queue's name; nothing else of the URL.
impl fmt::Debug for AnyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyBuilder").field(&self.builder).finish()
    }
}

/// A [`QueueBuilder`], its backend erased.
trait Build: fmt::Debug + Send + Sync {
    fn dead_letter_queue(self: Box<Self>, dead_letter_queue: DlqConfig) -> Box<dyn Build>;

    fn drain_timeout(self: Box<Self>, drain_timeout: Duration) -> Box<dyn Build>;

    fn capabilities(&self) -> Capabilities;

    fn build_pair(self: Box<Self>) -> Building<Pair>;

    fn build_producer(self: Box<Self>) -> Building<Box<dyn QueueProducer>>;

    fn build_consumer(self: Box<Self>) -> Building<Box<dyn QueueConsumer>>;
}

impl<B: Backend> Build for QueueBuilder<B, Dynamic> {
    fn dead_letter_queue(self: Box<Self>, dead_letter_queue: DlqConfig) -> Box<dyn Build> {
        Box::new((*self).dead_letter_queue(dead_letter_queue))
    }

    fn drain_timeout(self: Box<Self>, drain_timeout: Duration) -> Box<dyn Build> {
        Box::new((*self).drain_timeout(drain_timeout))
    }

    fn capabilities(&self) -> Capabilities {
        QueueBuilder::capabilities(self)
    }

    fn build_pair(self: Box<Self>) -> Building<Pair> {
        Box::pin((*self).build_pair())
    }

    fn build_producer(self: Box<Self>) -> Building<Box<dyn QueueProducer>> {
        Box::pin((*self).build_producer())
    }

    fn build_consumer(self: Box<Self>) -> Building<Box<dyn QueueConsumer>> {
        Box::pin((*self).build_consumer())
    }
}
