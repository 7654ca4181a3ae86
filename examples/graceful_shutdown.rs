//! A worker that is told to stop in the middle of its work: what it began it finishes, the rest waits for the next one.
//!
//! `cargo run --example graceful_shutdown` runs in memory. On a broker:
//! `BROKER_URL=redis://127.0.0.1:6379 cargo run --features redis --example graceful_shutdown`; other URLs are in `src/lib.rs`.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buqueue::prelude::*;
use buqueue_examples::Broker;
use futures_util::StreamExt;
use tokio::signal::unix::{SignalKind, signal};

const JOBS: u32 = 100;
const AT_ONCE: usize = 8;
/// How many jobs have begun when the deployment comes.
const BEGUN: u32 = 20;

/// What came of the jobs.
#[derive(Debug)]
struct Work {
    /// How long a job takes.
    takes: Duration,
    begun: AtomicU32,
    done: Mutex<BTreeSet<u32>>,
}

impl Work {
    fn new(takes: Duration) -> Self {
        Self { takes, begun: AtomicU32::new(0), done: Mutex::default() }
    }

    async fn process(&self, delivery: Delivery) -> Result<(), BuqueueError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let job: u32 = delivery.payload_json()?;
        tokio::time::sleep(self.takes).await;
        let is_new = self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(job);
        assert!(is_new, "job {job} was done twice");
        delivery.ack().await
    }

    fn done(&self) -> BTreeSet<u32> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let broker = Broker::from_env();
    println!("on {}", broker.scheme());
    let builder = broker.queue("jobs")?;
    // How long a shutdown waits for what is in flight. Less than what the platform waits before it kills.
    let (producer, consumer) = builder.drain_timeout(Duration::from_secs(20)).build_pair().await?;
    let jobs: Result<Vec<Message>, _> = (0..JOBS).map(|job| Message::from_json(&job)).collect();
    producer.send_batch(jobs?).await?;

    let first = Arc::new(Work::new(Duration::from_millis(300)));
    let shutdown = consumer.shutdown_handle();
    // What a real service has, word for word.
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        terminated.recv().await;
        println!("SIGTERM: {} jobs are in flight", shutdown.in_flight());
        shutdown.shutdown().await;
    });
    // Only the example itself sends the signal.
    let deployment = tokio::spawn(deploy(Arc::clone(&first)));

    // Eight at a time, until the stream ends: it takes no more, and waits for those that are in flight.
    let outcomes: Vec<Result<(), BuqueueError>> = consumer
        .into_stream()
        .map(|delivery| async { first.process(delivery?).await })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
    deployment.await??;
    let done = first.done();
    let begun = first.begun.load(Ordering::SeqCst);
    assert_eq!(begun as usize, done.len(), "what was begun is finished, and acked");
    assert!((BEGUN..JOBS).contains(&begun), "it stopped in the middle: after {begun}");
    println!("the first worker has done {} jobs, and is gone", done.len());

    // The next one finds what is left. Nothing has to wait for a lease.
    let (_, mut consumer) = broker.open("jobs", None).await?;
    let second = Work::new(Duration::from_millis(10));
    while second.done().len() < JOBS as usize - done.len() {
        let delivery = tokio::time::timeout(Duration::from_secs(20), consumer.receive()).await??;
        second.process(delivery).await?;
    }
    assert!(done.is_disjoint(&second.done()), "no job was done twice");
    assert!(consumer.try_receive().await?.is_none());
    // Idempotent, and at any time.
    consumer.shutdown_handle().shutdown().await;
    assert!(consumer.receive_graceful().await.is_none());
    println!("✓ {JOBS} jobs done, each once, by two workers; the first stopped after those it had begun");
    Ok(())
}

/// Sends this process what a platform sends when a new version is rolled out.
async fn deploy(work: Arc<Work>) -> Result<(), std::io::Error> {
    while work.begun.load(Ordering::SeqCst) < BEGUN {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status =
        std::process::Command::new("kill").args(["-TERM", &std::process::id().to_string()]).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other("kill -TERM failed")) }
}
