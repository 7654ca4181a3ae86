//! Runs one case: gate, connection, exclusions, time limit, report.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use buqueue_core::Support;
use tokio::sync::RwLock;

use crate::{Case, Ctx, Excluded, Harness, Skip};

/// How a case ends, unless it panics.
pub type Outcome = Result<(), Excluded>;

/// A case as the macro hands it over.
#[doc(hidden)]
pub(crate) type Body<H> = for<'a> fn(&'a Ctx<H>) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A case that has not even noticed its time limit after this has blocked its thread.
const BLOCKED: Duration = Duration::from_secs(10);

/// How long a broker may take to get rid of what a case has left.
const CLEANING: Duration = Duration::from_secs(5);

/// Cases that restart the broker take it exclusively, all others share it.
static GATE: RwLock<()> = RwLock::const_new(());

enum Verdict {
    Passed,
    Excluded(Excluded),
    Skipped(Skip),
}

/// Runs one case to its end and reports it. Called by the tests that
/// [`conformance_tests!`](crate::conformance_tests) generates.
///
/// # Panics
/// When the case fails, or takes longer than its time limit: two minutes, four for those that take their time.
#[doc(hidden)]
pub fn run<H: Harness>(case: Case, module: &'static str, body: Body<H>) {
    let (started, has_started) = mpsc::channel();
    let (ended, has_ended) = mpsc::channel();
    // On a thread of its own, which is left behind should the case block it.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
        let verdict = runtime.block_on(verdict::<H>(case, module, body, started));
        runtime.shutdown_timeout(Duration::from_secs(2));
        drop(ended.send(verdict));
    });
    // Fails when the case ended before it began: excluded, skipped or panicked.
    let _ended_early = has_started.recv();
    match has_ended.recv_timeout(case.time_limit() + BLOCKED) {
        Ok(verdict) => report(H::name(), case, &verdict),
        Err(RecvTimeoutError::Timeout) => panic!("{}::{} blocks its thread", case.group, case.name),
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(()) => unreachable!("a case that ends gives a verdict"),
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

async fn verdict<H: Harness>(
    case: Case,
    module: &'static str,
    body: Body<H>,
    started: mpsc::Sender<()>,
) -> Verdict {
    let harness = match H::connect().await {
        Ok(harness) => harness,
        Err(skip) if std::env::var_os("BUQUEUE_TEST_REQUIRE").is_some_and(|value| value == "1") => {
            panic!("BUQUEUE_TEST_REQUIRE is set, and {skip}")
        }
        Err(skip) => return Verdict::Skipped(skip),
    };
    let cx = Ctx::new(harness, case, module);
    for &feature in case.requires {
        if let Support::Unsupported(why) = cx.capabilities().support(feature) {
            return Verdict::Excluded(Excluded::new(why));
        }
    }
    if let Err(excluded) = cx.harness().keeps(&format!("{}::{}", case.group, case.name)) {
        return Verdict::Excluded(excluded);
    }
    let _alone;
    let _together;
    if case.alone {
        _alone = GATE.write().await;
    } else {
        _together = GATE.read().await;
    }
    drop(started);
    let verdict = match tokio::time::timeout(case.time_limit(), body(&cx)).await {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(excluded)) => Verdict::Excluded(excluded),
        Err(_) => {
            panic!("{}::{} has not ended within {} s", case.group, case.name, case.time_limit().as_secs())
        }
    };
    // A broker that does not get rid of it in time only becomes slower.
    let queues = cx.queues();
    let cleaning = async {
        for queue in &queues {
            cx.harness().clean_up(queue).await;
        }
    };
    let _in_time = tokio::time::timeout(CLEANING, cleaning).await.is_ok();
    verdict
}

#[expect(clippy::print_stdout, reason = "the report of a test run goes to standard output")]
fn report(harness: &str, case: Case, verdict: &Verdict) {
    let Case { group, name, .. } = case;
    // One call, so that lines of cases side by side do not mix.
    let line = match verdict {
        Verdict::Passed => format!("conformance {harness} {group}::{name}: passed"),
        Verdict::Excluded(why) => format!("conformance {harness} {group}::{name}: excluded, because {why}"),
        Verdict::Skipped(why) => format!("conformance {harness} {group}::{name}: skipped, because {why}"),
    };
    println!("{line}");
}
