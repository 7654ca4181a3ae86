//! An order's life: sent, received, failed once, retried, reminded of later, dead, and brought back.
//!
//! `cargo run --example quickstart` runs on the in-memory backend. The same story on a broker:
//!
//! | `QUEUE_BACKEND` | the broker's address, and its default |
//! |---|---|
//! | `redis` | `REDIS_URL`, `redis://127.0.0.1:6379` |
//! | `kafka` | `KAFKA_BROKERS`, `127.0.0.1:9092` |
//! | `nats` | `NATS_URL`, `nats://127.0.0.1:4222` |
//! | `rabbitmq` | `AMQP_URL`, `amqp://guest:guest@127.0.0.1:5672/%2F` |
//! | `sqs` | `SQS_ENDPOINT`, `http://127.0.0.1:4566`, and the AWS credentials of your environment; an emulator takes any |

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::time::Duration;

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
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct OrderPlaced {
    order_id: u64,
    customer: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reminder {
    order_id: u64,
}

type Pair = (Box<dyn QueueProducer>, Box<dyn QueueConsumer>);

/// The one place that knows the broker. Everything below is the same on all of them.
struct Broker {
    backend: String,
    memory: MemoryConfig,
    run: String,
}

impl Broker {
    fn from_env() -> Self {
        let backend = std::env::var("QUEUE_BACKEND").unwrap_or_else(|_| "memory".to_owned());
        // Each run has queues of its own, so that it does not meet what an earlier one left.
        let run = format!("quickstart-{}-{}", std::process::id(), Utc::now().timestamp_millis());
        Self { backend, memory: MemoryConfig::default(), run }
    }

    fn name(&self, queue: &str) -> String {
        format!("{}-{queue}", self.run)
    }

    async fn open(&self, queue: &str, dlq: Option<DlqConfig>) -> Result<Pair, BuqueueError> {
        let queue = self.name(queue);
        match self.backend.as_str() {
            "memory" => {
                pair(MemoryBackend::builder(MemoryConfig { queue, ..self.memory.clone() }), dlq).await
            }
            "redis" => {
                let url = address("REDIS_URL", "redis://127.0.0.1:6379");
                let group = "orders".to_owned();
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
                    group_id: "orders".to_owned(),
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
                    durable_consumer: "orders".to_owned(),
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

/// Both halves behind traits, so that the story below does not know what they are.
async fn pair<B: Backend>(builder: QueueBuilder<B>, dlq: Option<DlqConfig>) -> Result<Pair, BuqueueError> {
    let builder = builder.make_dynamic();
    match dlq {
        Some(dlq) => builder.dead_letter_queue(dlq).build_pair().await,
        None => builder.build_pair().await,
    }
}

fn title(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m");
}

fn step(sign: &str, text: impl AsRef<str>) {
    println!("  {sign} {}", text.as_ref());
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let broker = Broker::from_env();
    println!("buqueue quickstart on {}", broker.backend);

    let dlq = DlqConfig { destination: broker.name("orders-dead"), max_receive_count: 2 };
    let (producer, mut consumer) = broker.open("orders", Some(dlq)).await?;
    let (_, mut dead) = broker.open("orders-dead", None).await?;

    title("1. An order is placed, and processed");
    let order = OrderPlaced { order_id: 99281, customer: "alice".to_owned() };
    let message =
        Message::from_json_with_key(&order, "orders.placed")?.with_header("source-service", "checkout");
    producer.send(message).await?;
    step("→", "sent order 99281 with key orders.placed");
    let delivery = consumer.receive().await?;
    let received: OrderPlaced = delivery.payload_json()?;
    step(
        "←",
        format!(
            "received order {} of {}, attempt {}",
            received.order_id,
            received.customer,
            delivery.delivery_count()
        ),
    );
    delivery.ack().await?;
    step("✓", "acked: the broker has forgotten it");

    title("2. The payment service is down for a moment");
    producer
        .send(Message::from_json_with_key(
            &OrderPlaced { order_id: 99282, customer: "bob".to_owned() },
            "orders.placed",
        )?)
        .await?;
    let delivery = consumer.receive().await?;
    step("✗", format!("order 99282 failed, attempt {}; try again in 300 ms", delivery.delivery_count()));
    let failed_at = Utc::now();
    delivery.nack_after(Duration::from_millis(300)).await?;
    let delivery = consumer.receive().await?;
    assert!((Utc::now() - failed_at).num_milliseconds() >= 300, "a retry is never early");
    step("←", format!("order 99282 is back, attempt {}, and not a moment early", delivery.delivery_count()));
    assert_eq!(delivery.delivery_count(), 2);
    delivery.ack().await?;
    step("✓", "acked");

    title("3. A reminder for later");
    let due = Utc::now() + Duration::from_secs(1);
    producer.send_at(Message::from_json_with_key(&Reminder { order_id: 99281 }, "reminders")?, due).await?;
    step("→", "scheduled a reminder one second ahead; the broker keeps it, not this process");
    assert!(consumer.try_receive().await?.is_none(), "a schedule is invisible until its time");
    step("·", "nothing to see yet");
    let delivery = consumer.receive().await?;
    assert!(Utc::now() >= due, "a schedule is never early");
    let reminder: Reminder = delivery.payload_json()?;
    step("←", format!("reminder for order {}, and not a moment early", reminder.order_id));
    delivery.ack().await?;

    title("4. An order that nobody can process");
    producer
        .send(
            Message::from_json_with_key(
                &OrderPlaced { order_id: 13, customer: "mallory".to_owned() },
                "orders.placed",
            )?
            .with_header("schema-version", "3"),
        )
        .await?;
    for _ in 0..2 {
        let delivery = consumer.receive().await?;
        step("✗", format!("order 13 failed, attempt {} of 2", delivery.delivery_count()));
        delivery.nack().await?;
    }
    let letter = dead.receive().await?;
    step(
        "☠",
        format!(
            "order 13 is in the dead letter queue after {} attempts: {}",
            letter.delivery_count(),
            letter.header("buqueue-dlq-reason").unwrap_or("no reason"),
        ),
    );
    assert!(consumer.try_receive().await?.is_none(), "the queue itself is empty");

    title("5. The bug is fixed; the order gets another chance");
    letter.redrive(&producer).await?;
    step("↺", "redriven with its headers and key");
    let delivery = consumer.receive().await?;
    step(
        "←",
        format!(
            "order 13 is back: attempt {}, key {}, schema-version {}",
            delivery.delivery_count(),
            delivery.routing_key().unwrap_or("none"),
            delivery.header("schema-version").unwrap_or("none"),
        ),
    );
    delivery.ack().await?;
    step("✓", "acked");

    title("6. Time to go");
    let shutdown = consumer.shutdown_handle();
    let signal = tokio::spawn(async move { shutdown.shutdown().await });
    while let Some(delivery) = consumer.receive_graceful().await {
        delivery.ack().await?;
    }
    signal.await.map_err(|error| {
        BuqueueError::new(ErrorKind::ShuttingDown, "the shutdown task").with_source(error)
    })?;
    step("✓", "drained and closed; nothing was lost");
    println!();
    Ok(())
}
