//! What the examples of buqueue share: how a broker is opened. Run one with `cargo run --example NAME`.
//!
//! All run in memory; `QUEUE_BACKEND` and the broker's address, as told in `quickstart.rs`, take them elsewhere.

use std::future::Future;
use std::pin::Pin;

use buqueue::QueueBuilder;
use buqueue::driver::Backend;
use buqueue::kafka::{KafkaBackend, KafkaConfig};
use buqueue::memory::{MemoryBackend, MemoryConfig};
use buqueue::nats::{JetStreamConfig, NatsBackend, NatsConfig, RetentionPolicy};
use buqueue::prelude::*;
use buqueue::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use buqueue::redis::{RedisBackend, RedisConfig};
use buqueue::sqs::{SqsBackend, SqsConfig};
use chrono::Utc;

/// Both ends of a queue.
pub type Pair = (Box<dyn QueueProducer>, Box<dyn QueueConsumer>);

/// The one place that knows the broker. The examples are the same on all of them.
#[derive(Debug)]
pub struct Broker {
    backend: String,
    memory: MemoryConfig,
    /// Before the name of each queue.
    run: String,
}

impl Broker {
    /// The broker that the environment names, or none.
    #[must_use]
    pub fn from_env(example: &str) -> Self {
        match std::env::var("QUEUE_BACKEND") {
            // Each run has queues of its own, so that it does not meet what an earlier one left.
            Ok(backend) if backend != "memory" => Self {
                backend,
                run: format!("{example}-{}-{}-", std::process::id(), Utc::now().timestamp_millis()),
                memory: MemoryConfig::default(),
            },
            _ => Self::in_memory(),
        }
    }

    /// Queues that live in this process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { backend: "memory".to_owned(), run: String::new(), memory: MemoryConfig::default() }
    }

    /// As in `QUEUE_BACKEND`.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// A queue's name at the broker.
    #[must_use]
    pub fn name(&self, queue: &str) -> String {
        format!("{}{queue}", self.run)
    }

    /// Opens a queue, and makes it where it is not there.
    ///
    /// # Errors
    /// The broker's, and [`InvalidConfig`](ErrorKind::InvalidConfig) where no backend has this name.
    pub async fn open(&self, queue: &str, dlq: Option<DlqConfig>) -> Result<Pair, BuqueueError> {
        // Dead letters are read by the group that could not process them.
        let group = queue.trim_end_matches("-dead").to_owned();
        let queue = self.name(queue);
        match self.backend.as_str() {
            "memory" => {
                pair(MemoryBackend::builder(MemoryConfig { queue, ..self.memory.clone() }), dlq).await
            }
            "redis" => {
                let url = address("REDIS_URL", "redis://127.0.0.1:6379");
                pair(
                    RedisBackend::builder(RedisConfig { url, stream: queue, group, ..Default::default() }),
                    dlq,
                )
                .await
            }
            "kafka" => {
                let brokers = address("KAFKA_BROKERS", "127.0.0.1:9092");
                let config = KafkaConfig {
                    brokers: brokers.split(',').map(str::to_owned).collect(),
                    topic: queue,
                    group_id: group,
                    ..Default::default()
                };
                pair(KafkaBackend::builder(config), dlq).await
            }
            "nats" => {
                let jetstream = JetStreamConfig {
                    subjects: vec![format!("{queue}.>")],
                    stream_name: queue,
                    retention: RetentionPolicy::WorkQueue,
                    ..Default::default()
                };
                let config = NatsConfig {
                    url: address("NATS_URL", "nats://127.0.0.1:4222"),
                    jetstream,
                    durable_consumer: group,
                    ..Default::default()
                };
                pair(NatsBackend::builder(config), dlq).await
            }
            "rabbitmq" => {
                let url = address("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2F");
                pair(RabbitMqBackend::builder(RabbitMqConfig { url, queue, ..Default::default() }), dlq).await
            }
            "sqs" => {
                let endpoint = address("SQS_ENDPOINT", "http://127.0.0.1:4566");
                let queue_url = format!("{endpoint}/000000000000/{queue}");
                pair(SqsBackend::builder(SqsConfig { queue_url, ..Default::default() }), dlq).await
            }
            other => Err(BuqueueError::new(
                ErrorKind::InvalidConfig,
                format!("QUEUE_BACKEND: must be memory, redis, kafka, nats, rabbitmq or sqs, is {other:?}"),
            )),
        }
    }
}

fn address(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

/// Both halves behind traits, so that the story does not know what they are.
///
/// Boxed: what it takes to connect to some brokers is nested deep, and the compiler counts it into every future around.
fn pair<B: Backend>(
    builder: QueueBuilder<B>,
    dlq: Option<DlqConfig>,
) -> Pin<Box<dyn Future<Output = Result<Pair, BuqueueError>> + Send>> {
    let builder = builder.make_dynamic();
    match dlq {
        Some(dlq) => Box::pin(builder.dead_letter_queue(dlq).build_pair()),
        None => Box::pin(builder.build_pair()),
    }
}
