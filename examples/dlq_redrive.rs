//! Payments that fail, where they go, what can be learned from them there, and how they come back; on any backend.
//!
//! `cargo run --example dlq_redrive` runs in memory. On a broker:
//! `BROKER_URL=redis://127.0.0.1:6379 cargo run --features redis --example dlq_redrive`; other URLs are in `src/lib.rs`.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeSet;
use std::time::Duration;

use buqueue::prelude::*;
use buqueue_examples::Broker;
use chrono::Utc;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Payment {
    invoice: u32,
    currency: String,
}

/// What this version of the service can do. Its next one can do more.
struct Service {
    currencies: &'static [&'static str],
}

impl Service {
    /// Takes a payment, or puts it where it belongs.
    async fn handle(&self, delivery: Delivery) -> Result<Option<u32>, BuqueueError> {
        let payment: Payment = match delivery.payload_json() {
            Ok(payment) => payment,
            // No second attempt makes it readable: at once, with the reason.
            Err(error) => {
                delivery.dead_letter(&format!("unreadable: {error}")).await?;
                return Ok(None);
            }
        };
        if self.currencies.contains(&payment.currency.as_str()) {
            delivery.ack().await?;
            return Ok(Some(payment.invoice));
        }
        // It may pass by itself. After `max_receive_count` attempts it is put aside.
        println!("invoice {} failed, attempt {}", payment.invoice, delivery.delivery_count());
        delivery.nack_after(Duration::from_millis(100)).await?;
        Ok(None)
    }
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let broker = Broker::from_env();
    println!("on {}", broker.scheme());
    let started = Utc::now();
    let dlq = DlqConfig { destination: broker.name("payments-dead"), max_receive_count: 3 };
    let (producer, mut consumer) = broker.open("payments", Some(dlq)).await?;
    // A dead letter queue is an ordinary queue, and its consumer an ordinary consumer.
    let (_, mut dead) = broker.open("payments-dead", None).await?;

    for (invoice, currency) in [(1, "EUR"), (2, "CHF"), (3, "EUR"), (4, "CHF")] {
        let payment = Payment { invoice, currency: currency.to_owned() };
        let message = Message::from_json_with_key(&payment, format!("invoice-{invoice}"))?
            .with_header("tenant", "acme");
        producer.send(message).await?;
    }
    producer.send(Message::new("{ not json")).await?;

    // Two are paid, one is unreadable, two are tried three times each.
    let service = Service { currencies: &["EUR"] };
    let mut paid = BTreeSet::new();
    for _ in 0..2 + 1 + 2 * 3 {
        let delivery = consumer.receive().await?;
        paid.extend(service.handle(delivery).await?);
    }
    assert_eq!(paid, BTreeSet::from([1, 3]));
    assert!(consumer.try_receive().await?.is_none(), "nothing loops");

    // What a person, or a tool, sees there.
    let mut letters = Vec::new();
    for _ in 0..3 {
        let letter = dead.receive().await?;
        let header = |name: &str| letter.header(name).unwrap_or("none").to_owned();
        println!(
            "dead: {}, attempts {}, because: {}",
            letter.routing_key().unwrap_or("no key"),
            letter.delivery_count(),
            header("buqueue-dlq-reason"),
        );
        assert!(letter.first_failed_at().is_some_and(|first| first >= started - Duration::from_secs(1)));
        assert!(header("buqueue-dlq-source").contains("payments"), "it says where it comes from");
        letters.push(letter);
    }
    assert!(dead.try_receive().await?.is_none());

    // The next version of the service knows francs. What is readable goes back, the rest is dropped.
    let service = Service { currencies: &["EUR", "CHF"] };
    let mut redriven = 0;
    for letter in letters {
        if letter.payload_json::<Payment>().is_ok() {
            // The original's, until the letter itself fails.
            assert_eq!(letter.delivery_count(), 3);
            // Published, confirmed, and only then acked: with its payload, headers, key and trace.
            letter.redrive(&producer).await?;
            redriven += 1;
        } else {
            letter.ack().await?;
        }
    }
    assert_eq!(redriven, 2);
    for _ in 0..redriven {
        let delivery = consumer.receive().await?;
        assert_eq!(delivery.delivery_count(), 1, "it starts anew");
        assert_eq!(delivery.header("tenant"), Some("acme"), "and is the same message");
        assert!(delivery.routing_key().is_some_and(|key| key.starts_with("invoice-")));
        paid.extend(service.handle(delivery).await?);
    }
    assert_eq!(paid, BTreeSet::from([1, 2, 3, 4]));
    assert!(consumer.try_receive().await?.is_none());
    assert!(dead.try_receive().await?.is_none());
    println!("✓ 4 invoices paid, 2 of them after 3 attempts and a redrive; 1 message unreadable, and known");
    Ok(())
}
