//! Orders through a Kafka topic: one, a batch, and one that Kafka would never take.
//!
//! `cargo run --features kafka --example kafka_send_receive`. `KAFKA_BROKERS` says where Kafka is, `127.0.0.1:9092` where it is
//! not set.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use buqueue::kafka::{CompressionType, KafkaBackend, KafkaConfig};
use buqueue::prelude::*;
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct OrderPlaced {
    order_id: u64,
    customer: String,
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let config = KafkaConfig {
        brokers: address("KAFKA_BROKERS", "127.0.0.1:9092").split(',').map(str::to_owned).collect(),
        topic: fresh("orders"),
        group_id: fresh("billing"),
        compression: CompressionType::Snappy,
        ..Default::default()
    };
    // The group's start is fixed here: what is sent from now on is received, also with `OffsetReset::Latest`.
    let (producer, mut consumer) = KafkaBackend::builder(config).build_pair().await?;

    // The routing key is the record's key: the orders of one customer are in one partition, in order.
    let order = OrderPlaced { order_id: 1, customer: "alice".to_owned() };
    let message =
        Message::from_json_with_key(&order, &order.customer)?.with_header("source-service", "checkout");
    let id = producer.send(message).await?;
    println!("sent order 1, which is {id}: every in-sync replica has it");

    let delivery = consumer.receive().await?;
    assert_eq!(delivery.payload_json::<OrderPlaced>()?, order);
    assert_eq!(delivery.routing_key(), Some("alice"));
    assert_eq!(delivery.header("source-service"), Some("checkout"));
    assert_eq!(delivery.header("content-type"), Some("application/json"));
    delivery.ack().await?;
    println!("received it, and acked: the next commit has it, half a second later at most");

    let placed = |order_id| OrderPlaced { order_id, customer: "bob".to_owned() };
    let batch: Result<Vec<Message>, _> =
        (2..=101).map(|order_id| Message::from_json_with_key(&placed(order_id), "bob")).collect();
    let ids = producer.send_batch(batch?).await?;
    println!("sent {} orders as a batch", ids.len());

    let mut next = 2;
    while next <= 101 {
        // One at least, and as many as are there.
        let deliveries = consumer.receive_batch(50).await?;
        println!("received {} together", deliveries.len());
        for delivery in deliveries {
            assert_eq!(delivery.payload_json::<OrderPlaced>()?, placed(next), "bob's orders are in order");
            next += 1;
            delivery.ack().await?;
        }
    }

    // Two of these three are sent. Each has an outcome of its own.
    let huge = Message::new(vec![0; 100 << 20]);
    let mixed = vec![Message::new("first"), huge, Message::new("third")];
    let Err(error) = producer.send_batch(mixed).await else { panic!("Kafka took 100 MiB in one record") };
    let outcomes = error.outcomes();
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert!(
        matches!(&outcomes[1], Err(error) if error.kind == ErrorKind::PayloadTooLarge && !error.is_transient())
    );
    println!("of a batch of three, one was too large: {error}");

    let mut rest = Vec::new();
    for _ in 0..2 {
        let delivery = consumer.receive().await?;
        rest.push(delivery.payload().clone());
        delivery.ack().await?;
    }
    rest.sort();
    assert_eq!(rest, ["first", "third"]);
    println!("✓ 103 orders sent and received, each once, and one refused with a reason");
    Ok(())
}
