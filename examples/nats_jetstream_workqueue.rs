//! Jobs in a JetStream work queue: two workers share them, one job needs a second try, and what is done is gone.
//!
//! `cargo run --features nats --example nats_jetstream_workqueue`. `NATS_URL` says where NATS is, `nats://127.0.0.1:4222` where
//! it is not set.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use buqueue::nats::{JetStreamConfig, NatsBackend, NatsConfig, RetentionPolicy};
use buqueue::prelude::*;
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const JOBS: u32 = 50;
/// Its first attempt fails.
const FLAKY: u32 = 13;

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    number: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let stream = fresh("JOBS");
    let config = NatsConfig {
        url: address("NATS_URL", "nats://127.0.0.1:4222"),
        jetstream: JetStreamConfig {
            // The routing key is the subject: these cover all that are sent here.
            subjects: vec![format!("{stream}.>")],
            stream_name: stream.clone(),
            // A message is deleted when it is acked. A work queue has one durable consumer, which all workers share.
            retention: RetentionPolicy::WorkQueue,
            ..Default::default()
        },
        durable_consumer: "workers".to_owned(),
        ack_wait: Duration::from_secs(30),
        ..Default::default()
    };
    let producer = NatsBackend::builder(config.clone()).build_producer().await?;
    let (done, mut log) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for name in ["anna", "ben"] {
        let consumer = NatsBackend::builder(config.clone()).build_consumer().await?;
        workers.push((consumer.shutdown_handle(), tokio::spawn(work(name, consumer, done.clone()))));
    }
    drop(done);

    for number in 0..JOBS {
        let subject = format!("{stream}.{}", if number % 2 == 0 { "images" } else { "videos" });
        let job = Message::from_json_with_key(&Job { number }, &subject)?
            // Within the stream's duplicate window a second send of the same id is taken, and delivered once.
            .with_deduplication_id(format!("job-{number}"));
        producer.send(job.clone()).await?;
        if number % 10 == 0 {
            producer.send(job).await?;
        }
    }
    println!("sent {JOBS} jobs, and every tenth twice");

    let (mut by_job, mut by_worker) = (BTreeMap::new(), BTreeMap::new());
    while by_job.len() < JOBS as usize {
        let next = tokio::time::timeout(Duration::from_secs(30), log.recv()).await?;
        let (name, number, attempt) = next.ok_or("every worker has ended")?;
        assert!(by_job.insert(number, attempt).is_none(), "job {number} was done twice");
        *by_worker.entry(name).or_insert(0) += 1;
    }
    println!("done by {by_worker:?}");
    assert_eq!(by_worker.len(), 2, "both worked");
    for (number, attempt) in by_job {
        assert_eq!(attempt, if number == FLAKY { 2 } else { 1 }, "attempts of job {number}");
    }

    let left = producer.queue_stats().await?;
    assert_eq!((left.ready, left.in_flight), (0, Some(0)), "a work queue forgets what is done");
    for (shutdown, task) in workers {
        shutdown.shutdown().await;
        task.await??;
    }
    assert!(log.recv().await.is_none(), "nothing was done twice");
    println!("✓ {JOBS} jobs done, each once, job {FLAKY} at the second attempt; the stream is empty");
    Ok(())
}

async fn work(
    name: &'static str,
    mut consumer: impl QueueConsumer,
    done: mpsc::UnboundedSender<(&'static str, u32, u32)>,
) -> Result<(), BuqueueError> {
    while let Some(delivery) = consumer.receive_graceful().await {
        let Job { number } = delivery.payload_json()?;
        let attempt = delivery.delivery_count();
        if number == FLAKY && attempt == 1 {
            println!("{name} failed at job {number}, to be tried again in half a second");
            // The server keeps the delay: it passes also when this process dies now.
            delivery.nack_after(Duration::from_millis(500)).await?;
            continue;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        delivery.ack().await?;
        // Nobody listens any more: the example has failed, and says so.
        let _ = done.send((name, number, attempt));
    }
    Ok(())
}
