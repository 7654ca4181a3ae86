//! Runs one case: gate, connection, exclusions, time limit, report.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use buqueue_core::Support;
use tokio::sync::RwLock;

use crate::{Case, Ctx, Excluded, Harness, Skip};

/// How a case ends, unless it panics.
pub type Outcome = Result<(), Excluded>;

/// A case as the macro hands it over.
#[doc(hidden)]
pub(crate) type Body<H> = for<'a> fn(&'a Ctx<H>) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// No case runs longer than this.
const TIME_LIMIT: Duration = Duration::from_secs(60);

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
/// When the case fails, or takes longer than a minute.
#[doc(hidden)]
pub fn run<H: Harness>(case: Case, module: &'static str, body: Body<H>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    // On a task of its own, so that the time limit also catches a case that blocks its thread.
    let verdict = runtime.block_on(async {
        match tokio::spawn(verdict::<H>(case, module, body)).await {
            Ok(verdict) => verdict,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    report(H::name(), case, &verdict);
}

async fn verdict<H: Harness>(case: Case, module: &'static str, body: Body<H>) -> Verdict {
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
    let _alone;
    let _together;
    if case.alone {
        _alone = GATE.write().await;
    } else {
        _together = GATE.read().await;
    }
    let mut running = tokio::spawn(async move { body(&cx).await });
    match tokio::time::timeout(TIME_LIMIT, &mut running).await {
        Ok(Ok(Ok(()))) => Verdict::Passed,
        Ok(Ok(Err(excluded))) => Verdict::Excluded(excluded),
        Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        Err(_) => {
            running.abort();
            panic!("{}::{} has not ended within {} s", case.group, case.name, TIME_LIMIT.as_secs())
        }
    }
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
