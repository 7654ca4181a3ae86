//! What the examples of buqueue share: where the broker is, and names that nothing else uses.
//!
//! Those that take any backend run in memory, and elsewhere with `BROKER_URL`, the URL of a queue without the queue:
//!
//! | backend | `BROKER_URL`, for example | to be built with |
//! |---|---|---|
//! | Kafka | `kafka://127.0.0.1:9092` | `--features kafka` |
//! | NATS | `nats://127.0.0.1:4222` | `--features nats` |
//! | RabbitMQ | `amqp://guest:guest@127.0.0.1:5672/%2F` | `--features rabbitmq` |
//! | Redis | `redis://127.0.0.1:6379` | `--features redis` |
//! | SQS | `sqs://sqs.eu-west-1.amazonaws.com/123456789012`; an emulator `sqs+http://127.0.0.1:4566/000000000000` | `--features sqs` |
//!
//! Those of one backend take `KAFKA_BROKERS`, `NATS_URL`, `AMQP_URL`, `REDIS_URL` or `SQS_ENDPOINT`, and look on this machine
//! without. SQS wants AWS credentials in the environment; an emulator takes any.
//!
//! Every run has queues of its own, and leaves them on the broker.

use std::sync::LazyLock;

use buqueue::AnyBuilder;
use buqueue::memory::{MemoryBackend, MemoryConfig};
use buqueue::prelude::*;
use chrono::Utc;

/// Both ends of a queue.
pub type Pair = (Box<dyn QueueProducer>, Box<dyn QueueConsumer>);

/// The broker of an example that takes any: the one place that knows which it is.
#[derive(Debug)]
pub struct Broker {
    /// Without it, queues live in `memory`.
    url: Option<String>,
    memory: MemoryConfig,
}

impl Broker {
    /// The broker of `BROKER_URL`, or none.
    #[must_use]
    pub fn from_env() -> Self {
        Self { url: std::env::var("BROKER_URL").ok(), memory: MemoryConfig::default() }
    }

    /// Queues that live in this process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { url: None, memory: MemoryConfig::default() }
    }

    /// The scheme of the broker's URL.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.url.as_deref().and_then(|url| Some(url.split_once("://")?.0)).unwrap_or("memory")
    }

    /// A queue's name at the broker.
    #[must_use]
    pub fn name(&self, queue: &str) -> String {
        if self.url.is_some() { fresh(queue) } else { queue.to_owned() }
    }

    /// Starts building a queue, which is made where it is not there.
    ///
    /// # Errors
    /// Those of [`buqueue::connect`].
    pub fn queue(&self, queue: &str) -> Result<AnyBuilder, BuqueueError> {
        let name = self.name(queue);
        match &self.url {
            None => Ok(MemoryBackend::builder(MemoryConfig { queue: name, ..self.memory.clone() }).into()),
            Some(url) => buqueue::connect(&queue_url(url, &name)),
        }
    }

    /// Opens a queue, perhaps with a dead letter queue.
    ///
    /// # Errors
    /// The broker's, and those of [`queue`](Self::queue).
    pub async fn open(&self, queue: &str, dlq: Option<DlqConfig>) -> Result<Pair, BuqueueError> {
        let builder = self.queue(queue)?;
        match dlq {
            Some(dlq) => builder.dead_letter_queue(dlq).build_pair().await,
            None => builder.build_pair().await,
        }
    }
}

/// The URL of a queue of this broker, as [`buqueue::connect`] reads it.
fn queue_url(broker: &str, queue: &str) -> String {
    // Dead letters are read by the group that could not process them.
    let group = queue.trim_end_matches("-dead");
    let (place, rest) =
        broker.split_once('?').map_or((broker, String::new()), |(place, query)| (place, format!("&{query}")));
    match place.split_once("://").map_or(place, |(scheme, _)| scheme) {
        "kafka" => format!("{place}/{queue}?group_id={group}{rest}"),
        "nats" | "tls" => format!("{place}/{queue}?durable_consumer={group}&subjects={queue}.>{rest}"),
        "amqp" | "amqps" => format!("{place}?queue={queue}{rest}"),
        "sqs" | "sqs+http" => format!("{place}/{queue}{}", rest.replacen('&', "?", 1)),
        scheme if scheme.contains("redis") || scheme.contains("valkey") => {
            format!("{place}?stream={queue}&group={group}{rest}")
        }
        // The error says which schemes there are.
        _ => broker.to_owned(),
    }
}

/// A name that no other run has used.
#[must_use]
pub fn fresh(name: &str) -> String {
    static RUN: LazyLock<String> =
        LazyLock::new(|| format!("{}-{}", std::process::id(), Utc::now().timestamp_millis()));
    format!("{}-{name}", *RUN)
}

/// The address in an environment variable, or this one.
#[must_use]
pub fn address(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}
