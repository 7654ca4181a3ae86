//! Processes that can be killed.
//!
//! A worker is this very test binary, started once more to run one generated test, `worker_process`, which reads
//! from its environment what to do. It says what it has done in lines on standard output, and is then killed as
//! `kill -9` does, or aborts by itself.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use buqueue_core::{DlqConfig, Message, QueueBuilder};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::within;
use crate::{Harness, Setup};

const ENV: &str = "BUQUEUE_CONFORMANCE_WORKER";
/// Before everything a worker says; the test runner's own output may stand on the same line.
const MARK: &str = "conformance-worker: ";
/// A worker never lives longer, whatever happens to its parent.
const LIFETIME: Duration = Duration::from_secs(55);

/// What a worker does. Afterwards it waits to be killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Job {
    /// Receives one message, says `holding <count>` and holds it.
    Hold {
        /// Dead letters go to [`Setup::dlq`] after so many attempts.
        max_receive_count: Option<u32>,
    },
    /// Receives one message and aborts while it holds it.
    Abort {
        /// As for `Hold`.
        max_receive_count: Option<u32>,
    },
    /// Sends `<prefix>-<n>` for ever, one after another, and says `confirmed <payload>` after each `Ok`.
    Send {
        /// Starts every payload.
        prefix: String,
    },
    /// Schedules one message and says `scheduled`.
    Schedule {
        /// The payload.
        payload: String,
        /// When, in milliseconds since the epoch.
        at: i64,
    },
    /// Receives one message, nacks it with a delay and says `nacked`.
    NackAfter {
        /// The delay, in milliseconds.
        delay: u64,
    },
    /// Receives for ever, says `handled <payload>` and then acks.
    Handle,
    /// Waits in `receive` for ever and says `waiting` before.
    Wait,
    /// Says `ready`, then receives one message, holds it for three seconds while more pile up, and says
    /// `grown <bytes>`: by how much its memory has grown.
    Grow,
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    queue: String,
    group: String,
    lease: Duration,
    job: Job,
}

/// A worker process. Killed on drop.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    // The worker ends when this closes, so that none outlives a test that was itself killed.
    _stdin: Option<ChildStdin>,
}

impl Worker {
    pub(crate) fn start(module: &str, setup: &Setup, job: Job, env: Vec<(String, String)>) -> Self {
        let order = Order { queue: setup.queue.clone(), group: setup.group.clone(), lease: setup.lease, job };
        let order = serde_json::to_string(&order).unwrap_or_else(|error| panic!("order: {error}"));
        // The test runner's names leave the crate out.
        let test = match module.split_once("::") {
            Some((_, inner)) => format!("{inner}::worker_process"),
            None => "worker_process".to_owned(),
        };
        let program = std::env::current_exe().unwrap_or_else(|error| panic!("current_exe: {error}"));
        let started = Command::new(program)
            .args(["--exact", &test, "--nocapture", "--test-threads=1"])
            .env(ENV, order)
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = started.unwrap_or_else(|error| panic!("the worker does not start: {error}"));
        let stdin = child.stdin.take();
        let Some(stdout) = child.stdout.take() else { unreachable!("it was piped") };
        Self { child, lines: BufReader::new(stdout).lines(), _stdin: stdin }
    }

    /// What the worker says next.
    ///
    /// # Panics
    /// When it says nothing for 20 s, or has ended.
    pub async fn says(&mut self) -> String {
        let said = within(Duration::from_secs(20), "a word from the worker", self.next()).await;
        said.unwrap_or_else(|| panic!("the worker has ended without a word"))
    }

    /// What the worker says next; `None` when it has ended.
    pub async fn next(&mut self) -> Option<String> {
        while let Ok(Some(line)) = self.lines.next_line().await {
            if let Some((_, said)) = line.split_once(MARK) {
                return Some(said.to_owned());
            }
        }
        None
    }

    /// Kills the worker, as `kill -9` does, and waits until it is gone.
    pub async fn kill(&mut self) {
        let killed = within(Duration::from_secs(10), "the end of the worker", self.child.kill()).await;
        killed.unwrap_or_else(|error| panic!("kill: {error}"));
    }

    /// Waits until the worker has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = within(Duration::from_secs(20), "the end of the worker", self.child.wait()).await;
        ended.unwrap_or_else(|error| panic!("wait: {error}"))
    }
}

/// The body of the generated test `worker_process`: does nothing unless this process was started as a worker.
#[doc(hidden)]
pub fn run_worker<H: Harness>() {
    let Ok(order) = std::env::var(ENV) else { return };
    let order: Order = serde_json::from_str(&order).unwrap_or_else(|error| panic!("order: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    // Whoever of the three ends first ends the process, at once and without cleaning up.
    runtime.block_on(async {
        tokio::select! {
            () = work::<H>(order) => {}
            () = orphaned() => {}
            () = tokio::time::sleep(LIFETIME) => {}
        }
    });
    std::process::exit(1);
}

/// Returns when the parent is gone: its end of our standard input has closed.
async fn orphaned() {
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0; 16];
    while matches!(stdin.read(&mut buffer).await, Ok(1..)) {}
}

async fn work<H: Harness>(order: Order) {
    let Order { queue, group, lease, job } = order;
    let harness = H::connect().await.unwrap_or_else(|skip| panic!("{skip}"));
    let setup = Setup::new(queue).group(&group).lease(lease);
    let builder = harness.builder(&setup);
    if let Err(error) = perform(builder, &setup, job).await {
        say(&format!("failed: {error:?}"));
    }
    std::future::pending().await
}

async fn perform<B>(builder: QueueBuilder<B>, setup: &Setup, job: Job) -> buqueue_core::Result<()>
where
    B: buqueue_core::driver::Backend,
{
    match job {
        Job::Hold { max_receive_count } => {
            let mut consumer = with_dlq(builder, setup, max_receive_count).build_consumer().await?;
            let delivery = consumer.receive().await?;
            say(&format!("holding {}", delivery.delivery_count()));
            std::future::pending::<()>().await;
            drop(delivery);
        }
        Job::Abort { max_receive_count } => {
            let mut consumer = with_dlq(builder, setup, max_receive_count).build_consumer().await?;
            let _delivery = consumer.receive().await?;
            std::process::abort();
        }
        Job::Send { prefix } => {
            let producer = builder.build_producer().await?;
            for number in 0_u64.. {
                let payload = format!("{prefix}-{number}");
                producer.send(Message::new(payload.clone())).await?;
                say(&format!("confirmed {payload}"));
            }
        }
        Job::Schedule { payload, at } => {
            let producer = builder.build_producer().await?;
            let at = chrono::DateTime::from_timestamp_millis(at).unwrap_or_default();
            producer.send_at(Message::new(payload), at).await?;
            say("scheduled");
            std::future::pending::<()>().await;
        }
        Job::NackAfter { delay } => {
            let mut consumer = builder.build_consumer().await?;
            consumer.receive().await?.nack_after(Duration::from_millis(delay)).await?;
            say("nacked");
            std::future::pending::<()>().await;
        }
        Job::Handle => {
            let mut consumer = builder.build_consumer().await?;
            loop {
                let delivery = consumer.receive().await?;
                say(&format!("handled {}", crate::support::text(&delivery)));
                delivery.ack().await?;
            }
        }
        Job::Wait => {
            let mut consumer = builder.build_consumer().await?;
            say("waiting");
            let _delivery = consumer.receive().await?;
            say("received");
            std::future::pending::<()>().await;
        }
        Job::Grow => {
            let mut consumer = builder.build_consumer().await?;
            let before = resident_bytes();
            say("ready");
            let _delivery = consumer.receive().await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            say(&format!("grown {}", resident_bytes().saturating_sub(before)));
            std::future::pending::<()>().await;
        }
    }
    Ok(())
}

fn with_dlq<B: buqueue_core::driver::Backend>(
    builder: QueueBuilder<B>,
    setup: &Setup,
    max_receive_count: Option<u32>,
) -> QueueBuilder<B> {
    match max_receive_count {
        None => builder,
        Some(max_receive_count) => {
            builder.dead_letter_queue(DlqConfig { destination: setup.dlq().queue, max_receive_count })
        }
    }
}

/// The resident set of this process; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    // The second number: resident pages, of 4 KiB on the systems that have this file.
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

#[expect(clippy::print_stdout, reason = "standard output is how a worker talks to its parent")]
fn say(word: &str) {
    println!("\n{MARK}{word}");
}
