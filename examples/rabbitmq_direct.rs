//! Emails from a RabbitMQ quorum queue, without an exchange: two workers, a fair share, and one address that always fails.
//!
//! `cargo run --features rabbitmq --example rabbitmq_direct`. `AMQP_URL` says where RabbitMQ is,
//! `amqp://guest:guest@127.0.0.1:5672/%2F` where it is not set.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use buqueue::prelude::*;
use buqueue::rabbitmq::{QueueType, RabbitMqBackend, RabbitMqConfig};
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const EMAILS: u32 = 40;
const BAD: u32 = 7;

#[derive(Debug, Serialize, Deserialize)]
struct Email {
    number: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let config = RabbitMqConfig {
        url: address("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2F"),
        // Declared when it is not there. Messages go straight to it, by its name.
        queue: fresh("emails"),
        queue_type: QueueType::Quorum,
        // How many messages one worker may hold: its concurrency.
        prefetch_count: 4,
        ..Default::default()
    };
    let undeliverable = RabbitMqConfig { queue: fresh("emails-dead"), ..config.clone() };
    let dlq = DlqConfig { destination: undeliverable.queue.clone(), max_receive_count: 3 };

    let producer = RabbitMqBackend::builder(config.clone()).build_producer().await?;
    let (sent, mut log) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for name in ["worker-1", "worker-2"] {
        let builder = RabbitMqBackend::builder(config.clone()).dead_letter_queue(dlq.clone());
        let consumer = builder.build_consumer().await?;
        workers.push((consumer.shutdown_handle(), tokio::spawn(work(name, consumer, sent.clone()))));
    }
    drop(sent);

    let messages: Result<Vec<Message>, _> =
        (0..EMAILS).map(|number| Message::from_json(&Email { number })).collect();
    // `Ok` when RabbitMQ has confirmed each, on a majority of nodes where there are several.
    let ids = producer.send_batch(messages?).await?;
    println!("{} emails are confirmed", ids.len());

    let (mut by_email, mut by_worker) = (BTreeMap::new(), BTreeMap::new());
    while by_email.len() < EMAILS as usize - 1 {
        let next = tokio::time::timeout(Duration::from_secs(30), log.recv()).await?;
        let (name, number): (&str, u32) = next.ok_or("every worker has ended")?;
        *by_email.entry(number).or_insert(0) += 1;
        *by_worker.entry(name).or_insert(0) += 1;
    }
    println!("sent by {by_worker:?}");
    assert!(by_email.values().all(|times| *times == 1), "each was sent once: {by_email:?}");
    assert_eq!(by_worker.len(), 2, "both worked");

    let mut dead = RabbitMqBackend::builder(undeliverable).build_consumer().await?;
    let letter = dead.receive().await?;
    assert_eq!(letter.payload_json::<Email>()?.number, BAD);
    assert_eq!(letter.delivery_count(), 3, "attempts");
    assert!(letter.first_failed_at().is_some());
    println!("email {BAD} is in the dead letter queue, after {} attempts", letter.delivery_count());
    letter.ack().await?;

    for (shutdown, task) in workers {
        shutdown.shutdown().await;
        task.await??;
    }
    assert!(log.recv().await.is_none(), "nothing came twice");
    println!("✓ {} emails sent, each once, and 1 put aside after 3 attempts", by_email.len());
    Ok(())
}

async fn work(
    name: &'static str,
    mut consumer: impl QueueConsumer,
    sent: mpsc::UnboundedSender<(&'static str, u32)>,
) -> Result<(), BuqueueError> {
    while let Some(delivery) = consumer.receive_graceful().await {
        let Email { number } = delivery.payload_json()?;
        if number == BAD {
            delivery.nack().await?;
            continue;
        }
        // As long as it takes to send an email, nearly; so that both get some.
        tokio::time::sleep(Duration::from_millis(10)).await;
        delivery.ack().await?;
        // Nobody listens any more: the example has failed, and says so.
        let _ = sent.send((name, number));
    }
    Ok(())
}
