//! Domain events through a RabbitMQ topic exchange: each service's queue has what its pattern matches, and nothing vanishes.
//!
//! `cargo run --features rabbitmq --example rabbitmq_topic_exchange`. `AMQP_URL` says where RabbitMQ is,
//! `amqp://guest:guest@127.0.0.1:5672/%2F` where it is not set.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use buqueue::prelude::*;
use buqueue::rabbitmq::{ExchangeConfig, ExchangeKind, QueueType, RabbitMqBackend, RabbitMqConfig};
use buqueue_examples::{address, fresh};

/// Who wants what: `*` is one word, `#` any number of them.
const SERVICES: [(&str, &str, &[&str]); 3] = [
    ("billing", "orders.*.paid", &["orders.eu.paid", "orders.us.paid"]),
    ("europe", "*.eu.#", &["orders.eu.placed", "orders.eu.paid", "returns.eu.received.late"]),
    (
        "audit",
        "#",
        &[
            "orders.eu.placed",
            "orders.us.placed",
            "orders.eu.paid",
            "orders.us.paid",
            "returns.eu.received.late",
        ],
    ),
];

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let service = |name: &str, pattern: &str| RabbitMqConfig {
        url: address("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2F"),
        queue: fresh(name),
        queue_type: QueueType::Quorum,
        exchange: Some(ExchangeConfig {
            // All services name the same exchange.
            name: fresh("domain-events"),
            kind: ExchangeKind::Topic,
            binding_key: pattern.to_owned(),
            durable: true,
        }),
        ..Default::default()
    };

    // First the queue of one service only.
    let (name, pattern, _) = SERVICES[0];
    let (producer, billing) = RabbitMqBackend::builder(service(name, pattern)).build_pair().await?;

    // Nobody listens to returns yet: RabbitMQ would drop it without a word, and buqueue asks it to say so.
    let nobodys = Message::builder().payload("too early").routing_key("returns.eu.received").build();
    let Err(error) = producer.send(nobodys).await else { panic!("a message that no queue took was sent") };
    assert_eq!(error.kind, ErrorKind::NotFound);
    println!("not sent: {error}");

    let mut consumers = vec![billing];
    for (name, pattern, _) in &SERVICES[1..] {
        consumers.push(RabbitMqBackend::builder(service(name, pattern)).build_consumer().await?);
    }

    // The last service wants everything.
    let events = SERVICES[2].2;
    for key in events {
        producer.send(Message::builder().payload(format!("{key}!")).routing_key(*key).build()).await?;
    }
    println!("published {} events", events.len());

    for ((name, pattern, wanted), mut consumer) in SERVICES.iter().zip(consumers) {
        for key in *wanted {
            let delivery = consumer.receive().await?;
            assert_eq!(delivery.routing_key(), Some(*key), "{name} has what {pattern} matches, in order");
            delivery.ack().await?;
        }
        assert!(consumer.try_receive().await?.is_none(), "{name} has nothing else");
        println!("{name}, bound by {pattern}, has {wanted:?}");
    }
    println!(
        "✓ {} events for 3 services by their patterns, and one that nobody wants is an error",
        events.len()
    );
    Ok(())
}
