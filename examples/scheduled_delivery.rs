//! Reminders that come when they are due: the broker keeps them, on any backend, at any horizon.
//!
//! `cargo run --example scheduled_delivery` runs in memory. On a broker:
//! `BROKER_URL=redis://127.0.0.1:6379 cargo run --features redis --example scheduled_delivery`; other URLs are in `src/lib.rs`.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::time::Duration;

use buqueue::prelude::*;
use buqueue::{Feature, Support};
use buqueue_examples::Broker;
use chrono::{TimeDelta, Utc};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Reminder {
    text: String,
    /// When it is due, in milliseconds since the start.
    due: i64,
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let broker = Broker::from_env();
    let (producer, mut consumer) = broker.open("reminders", None).await?;
    match producer.capabilities().support(Feature::ScheduledDelivery) {
        Support::Emulated(how) => println!("on {}: {how}", broker.scheme()),
        support => println!("on {}: {support:?}", broker.scheme()),
    }
    // At start-up an application can insist on what it needs.
    producer.capabilities().require(Feature::ScheduledDelivery)?;

    // What is late already is due now.
    producer.send_at(Message::new("yesterday's"), Utc::now() - TimeDelta::days(1)).await?;
    let delivery = consumer.receive().await?;
    assert_eq!(delivery.payload(), "yesterday's");
    delivery.ack().await?;

    // In no order, and one is for next year.
    let start = Utc::now();
    let plan = [("third", 9000), ("first", 3000), ("next year", 365 * 86_400_000), ("second", 6000)];
    for (text, due) in plan {
        let reminder = Message::from_json_with_key(&Reminder { text: text.to_owned(), due }, "reminders")?
            .with_header("asked-by", "alice");
        producer.send_at(reminder, start + TimeDelta::milliseconds(due)).await?;
    }
    println!("scheduled {}; from here on this process could die", plan.len());

    for expected in ["first", "second", "third"] {
        let delivery = consumer.receive().await?;
        let now = (Utc::now() - start).num_milliseconds();
        let Reminder { text, due } = delivery.payload_json()?;
        // Each is a second late at most while a consumer runs, and they are further apart.
        assert_eq!(text, expected, "reminders come in the order in which they are due");
        assert!(now >= due, "{text} came {} ms early", due - now);
        assert_eq!(delivery.header("asked-by"), Some("alice"));
        assert_eq!(delivery.delivery_count(), 1, "a schedule is no failed attempt");
        println!("{text}: {} ms after its time", now - due);
        delivery.ack().await?;
    }

    // A retry is a schedule, too: the broker keeps the delay, and the message was never acked in between.
    producer.send(Message::new("call the bank")).await?;
    let delivery = consumer.receive().await?;
    let tried = Utc::now();
    delivery.nack_after(Duration::from_secs(4)).await?;
    assert!(consumer.try_receive().await?.is_none(), "it is not there before its time");
    let delivery = consumer.receive().await?;
    assert!(Utc::now() - tried >= TimeDelta::seconds(4), "a retry is never early");
    assert_eq!(delivery.delivery_count(), 2);
    delivery.ack().await?;
    println!("the bank was called again after four seconds");

    // Next year's is where it should be: not here.
    assert!(consumer.try_receive().await?.is_none());
    if let Some(scheduled) = producer.queue_stats().await?.scheduled {
        assert_eq!(scheduled, 1, "the broker knows of it");
    }
    println!(
        "✓ 3 reminders in the order of their times, none early, one retry after its delay, one waits for next year"
    );
    Ok(())
}
