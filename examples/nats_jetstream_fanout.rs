//! One JetStream stream, several services: each has every event, and one that comes later reads the history.
//!
//! `cargo run --features nats --example nats_jetstream_fanout`. `NATS_URL` says where NATS is, `nats://127.0.0.1:4222` where it
//! is not set.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use buqueue::nats::{DeliverPolicy, JetStreamConfig, NatsBackend, NatsConfig, RetentionPolicy};
use buqueue::prelude::*;
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
struct OrderEvent {
    order_id: u64,
    what: String,
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let stream = fresh("ORDER_EVENTS");
    // The durable's name says which service it is. Its instances share; different services do not.
    let service = |name: &str, from: DeliverPolicy| NatsConfig {
        url: address("NATS_URL", "nats://127.0.0.1:4222"),
        jetstream: JetStreamConfig {
            subjects: vec![format!("{stream}.>")],
            stream_name: stream.clone(),
            // Messages stay until the limits of the stream (here: seven days), acked or not.
            retention: RetentionPolicy::Limits,
            ..Default::default()
        },
        durable_consumer: name.to_owned(),
        deliver_policy: from,
        ..Default::default()
    };
    let new = DeliverPolicy::New;
    let (producer, billing) = NatsBackend::builder(service("billing", new)).build_pair().await?;
    let shipping = NatsBackend::builder(service("shipping", new)).build_consumer().await?;

    let events: Vec<OrderEvent> = (1..=5)
        .flat_map(|order_id| ["placed", "paid"].map(|what| OrderEvent { order_id, what: what.to_owned() }))
        .collect();
    for event in &events {
        // The routing key is the subject.
        let subject = format!("{stream}.{}.{}", event.order_id, event.what);
        producer.send(Message::from_json_with_key(event, &subject)?).await?;
    }
    println!("published {} events", events.len());

    // What one service does with its copy is nothing to the others: billing fails once.
    assert_eq!(read("billing", billing, events.len(), true).await?, events);
    assert_eq!(read("shipping", shipping, events.len(), false).await?, events);

    // Months later: a service that nobody had thought of.
    let history = service("analytics", DeliverPolicy::All);
    let analytics = NatsBackend::builder(history).build_consumer().await?;
    assert_eq!(read("analytics", analytics, events.len(), false).await?, events, "the whole history");

    println!(
        "✓ {} events, each once for each of 3 services, in order; one read them after the fact",
        events.len()
    );
    Ok(())
}

/// Reads so many events, and then nothing more. May fail at the first one, once.
async fn read(
    service: &str,
    mut consumer: impl QueueConsumer,
    count: usize,
    stumbles: bool,
) -> Result<Vec<OrderEvent>, BuqueueError> {
    if stumbles {
        let delivery = consumer.receive().await?;
        println!("{service} failed at {}", delivery.routing_key().unwrap_or("an event"));
        delivery.nack().await?;
    }
    let mut events = Vec::new();
    while events.len() < count {
        let delivery = consumer.receive().await?;
        let event: OrderEvent = delivery.payload_json()?;
        assert!(delivery.routing_key().is_some_and(|subject| subject.ends_with(&event.what)));
        events.push(event);
        delivery.ack().await?;
    }
    // After a failure order is not promised; this service does not mind.
    if stumbles {
        events.sort_by_key(|event| (event.order_id, event.what == "paid"));
    }
    assert!(consumer.try_receive().await?.is_none(), "{service} had everything once");
    println!("{service} has {} events", events.len());
    Ok(events)
}
