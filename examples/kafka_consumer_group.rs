//! Two services read one topic; one of them runs twice, and one of the two leaves.
//!
//! `cargo run --features kafka --example kafka_consumer_group`. `KAFKA_BROKERS` says where Kafka is, `127.0.0.1:9092` where it
//! is not set.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::Duration;

use buqueue::kafka::{KafkaBackend, KafkaConfig, OffsetReset};
use buqueue::prelude::*;
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const CUSTOMERS: u32 = 20;
const ORDERS: u32 = 200;

/// The nth order of a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Order {
    customer: u32,
    number: u32,
}

/// Who has seen it.
type Seen = (&'static str, Order);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let member_of = |group: &str| KafkaConfig {
        brokers: address("KAFKA_BROKERS", "127.0.0.1:9092").split(',').map(str::to_owned).collect(),
        topic: fresh("orders"),
        group_id: fresh(group),
        offset_reset: OffsetReset::Earliest,
        // As many members of a group can work at the same time.
        partitions: 4,
        ..Default::default()
    };
    let producer = KafkaBackend::builder(member_of("shop")).build_producer().await?;
    let (seen, mut log) = mpsc::unbounded_channel();
    let mut members = Vec::new();
    for (name, group) in [("billing-1", "billing"), ("billing-2", "billing"), ("audit", "audit")] {
        let consumer = KafkaBackend::builder(member_of(group)).build_consumer().await?;
        let shutdown = consumer.shutdown_handle();
        members.push((name, shutdown, tokio::spawn(work(name, consumer, seen.clone()))));
    }
    // The log ends when the last member does.
    drop(seen);

    // Each customer's orders have one key, and so one partition, and so one member at a time.
    let send = async |numbers: std::ops::Range<u32>| {
        let orders = numbers.map(|n| Order { customer: n % CUSTOMERS, number: n / CUSTOMERS });
        let messages: Result<Vec<Message>, _> = orders
            .map(|order| Message::from_json_with_key(&order, format!("customer-{}", order.customer)))
            .collect();
        producer.send_batch(messages?).await
    };
    send(0..ORDERS / 2).await?;
    let mut history = Vec::new();
    // Both groups have them all.
    collect(&mut log, &mut history, ORDERS as usize).await?;
    let by = |history: &[Seen]| {
        let mut counts = BTreeMap::new();
        history.iter().for_each(|(member, _)| *counts.entry(*member).or_insert(0) += 1);
        counts
    };
    let counts = by(&history);
    println!("of {} orders {counts:?}", ORDERS / 2);
    assert_eq!(counts["audit"], ORDERS / 2, "another group has everything for itself");
    assert_eq!(counts["billing-1"] + counts["billing-2"], ORDERS / 2, "a group shares");
    assert!(counts["billing-1"] > 0 && counts["billing-2"] > 0, "and both work");

    // One instance is rolled. What it had done is done; its partitions go to the other at once.
    let (name, shutdown, task) = members.remove(0);
    shutdown.shutdown().await;
    task.await??;
    println!("{name} is gone");
    let before = history.len();
    send(ORDERS / 2..ORDERS).await?;
    collect(&mut log, &mut history, ORDERS as usize).await?;
    let counts = by(&history[before..]);
    println!("of {} more {counts:?}", ORDERS / 2);
    assert_eq!(counts, BTreeMap::from([("audit", ORDERS / 2), ("billing-2", ORDERS / 2)]));

    for (_, shutdown, task) in members {
        shutdown.shutdown().await;
        task.await??;
    }
    assert!(log.recv().await.is_none(), "nothing came twice");

    // Each group: every order once, and those of a customer in order.
    for group in ["billing", "audit"] {
        let orders = history.iter().filter(|(member, _)| member.starts_with(group)).map(|(_, order)| *order);
        let mut last: BTreeMap<u32, u32> = BTreeMap::new();
        let mut all = BTreeSet::new();
        for order in orders {
            assert!(all.insert(order), "{group} had {order:?} twice");
            if let Some(last) = last.insert(order.customer, order.number) {
                assert_eq!(order.number, last + 1, "the orders of customer {} are in order", order.customer);
            }
        }
        assert_eq!(all.len(), ORDERS as usize);
    }
    println!("✓ {ORDERS} orders, each once for each of 2 groups, in order for each of {CUSTOMERS} customers");
    Ok(())
}

/// What every service does: process, ack, until it is told to stop.
async fn work(
    name: &'static str,
    mut consumer: impl QueueConsumer,
    seen: mpsc::UnboundedSender<Seen>,
) -> Result<(), BuqueueError> {
    while let Some(delivery) = consumer.receive_graceful().await {
        let order = delivery.payload_json()?;
        delivery.ack().await?;
        // Nobody listens any more: the example has failed, and says so.
        let _ = seen.send((name, order));
    }
    Ok(())
}

/// So many more.
async fn collect(
    log: &mut mpsc::UnboundedReceiver<Seen>,
    history: &mut Vec<Seen>,
    count: usize,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    for _ in 0..count {
        let next = tokio::time::timeout(Duration::from_secs(60), log.recv()).await?;
        history.push(next.ok_or("every member has ended")?);
    }
    Ok(())
}
