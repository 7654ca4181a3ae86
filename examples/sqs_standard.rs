//! Reports from an SQS queue: a batch, one that takes longer than its lease, one that is given up half-way.
//!
//! `cargo run --features sqs --example sqs_standard`. `SQS_ENDPOINT` says where an emulator is, `http://127.0.0.1:4566` where it
//! is not set; give it the credentials of the environment, any will do: `AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test`.
//! On AWS a queue is its URL, and `endpoint_url` stays `None`.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use buqueue::prelude::*;
use buqueue::sqs::{SqsBackend, SqsConfig, VisibilityTimeout};
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Report {
    month: u32,
}

/// Takes longer than a message is hidden.
const LONG: u32 = 12;
/// Its handler gives up the first time.
const FORGOTTEN: u32 = 3;

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let endpoint = address("SQS_ENDPOINT", "http://127.0.0.1:4566");
    let config = SqsConfig {
        queue_url: format!("{endpoint}/000000000000/{}", fresh("reports")),
        region: "us-east-1".to_owned(),
        endpoint_url: Some(endpoint),
        // The lease. Short, so that this example need not wait for long.
        visibility_timeout: VisibilityTimeout::Seconds(6),
        ..Default::default()
    };
    let (producer, mut consumer) = SqsBackend::builder(config).build_pair().await?;

    let messages: Result<Vec<Message>, _> =
        (1..=24).map(|month| Message::from_json(&Report { month })).collect();
    let ids = producer.send_batch(messages?).await?;
    println!("sent {} reports in three requests", ids.len());

    let mut attempts = BTreeMap::new();
    while attempts.len() < ids.len() {
        let delivery = consumer.receive().await?;
        let Report { month } = delivery.payload_json()?;
        let attempt = delivery.delivery_count();
        if month == LONG {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(8) {
                // Hidden for six seconds more, from now.
                delivery.extend_visibility(Duration::from_secs(6)).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            println!(
                "report {month} took {:.1} s, and nobody else was given it",
                started.elapsed().as_secs_f32()
            );
        }
        if month == FORGOTTEN && attempt == 1 {
            println!("the handler of report {month} returned early, and settled nothing");
            // As `?` does, or a panic. It is visible again at once, and the attempt counts.
            drop(delivery);
            continue;
        }
        delivery.ack().await?;
        // SQS promises at least once: a report may come twice.
        attempts.entry(month).or_insert(attempt);
    }
    assert_eq!(attempts[&LONG], 1, "a lease that is extended does not end");
    println!("✓ {} reports made, report {FORGOTTEN} at attempt {}", attempts.len(), attempts[&FORGOTTEN]);
    Ok(())
}
