//! An order's life: sent, received, failed once, retried, reminded of later, dead, and brought back.
//!
//! `cargo run --example quickstart` runs on the in-memory backend. The same story on a broker:
//! `BROKER_URL=redis://127.0.0.1:6379 cargo run --features redis --example quickstart`, and in `src/lib.rs` the other URLs.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::time::Duration;

use buqueue::prelude::*;
use buqueue_examples::Broker;
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

fn title(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m");
}

fn step(sign: &str, text: impl AsRef<str>) {
    println!("  {sign} {}", text.as_ref());
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let broker = Broker::from_env();
    println!("buqueue quickstart on {}", broker.scheme());

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
    let due = Utc::now() + Duration::from_secs(3);
    producer.send_at(Message::from_json_with_key(&Reminder { order_id: 99281 }, "reminders")?, due).await?;
    step("→", "scheduled a reminder three seconds ahead; the broker keeps it, not this process");
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
    step("✓", "drained and closed");
    println!("\n✓ 3 orders and a reminder: nothing was lost, nothing came early");
    Ok(())
}
