//! The contract of buqueue as a test suite that any backend can run.
//!
//! Each promise of the contract is one case or several, and each case is one test with a name, so that
//! `cargo test -p buqueue-redis dlq` runs what has to do with dead letters. A backend joins with a [`Harness`] and
//! one line in a file under its `tests/`:
//!
//! ```text
//! buqueue_conformance::conformance_tests!(MyHarness);
//! ```
//!
//! Every case ends with one line on standard output (`cargo test … -- --nocapture` shows it), or with a panic:
//!
//! ```text
//! conformance redis schedule::never_early: passed
//! conformance redis reconnect::half_open: excluded, because the harness has no broker address …
//! conformance redis send::roundtrip: skipped, because REDIS_URL is not set
//! ```
//!
//! *Excluded* means that the backend states, in its capabilities or through its harness, that the promise is not for
//! it; *skipped* means that there was no broker. Neither counts as passed. `BUQUEUE_TEST_REQUIRE=1` turns skips into
//! failures.
//!
//! Cases run beside one another in one process, each on queues of its own; those that restart the broker run alone.
//! A runner that gives every test a process of its own (nextest) must run the tests that restart the broker apart.
//!
//! What a harness may use, and third-party tests as well: the [`FaultProxy`], which breaks connections on command,
//! the [`Worker`](worker::Worker), a process that can be killed, the [`FailingDlq`] backend, and the
//! [`Ledger`](support::Ledger), which tells what was lost.

#[doc(hidden)]
pub mod cases;
mod context;
mod failing;
mod harness;
mod list;
mod proxy;
mod runner;
pub mod support;
mod traces;
pub mod worker;

pub use context::{ConsumerOf, Ctx, ProducerOf};
pub use failing::{FailingConfig, FailingDlq, FailingProducer};
pub use harness::{Counts, Excluded, Foreign, Harness, Held, Hook, Setup, Skip, unless_long};
pub use list::{CASES, Case};
pub use proxy::FaultProxy;
pub use runner::Outcome;
#[doc(hidden)]
pub use {buqueue_core as core, runner::run, worker::run_worker};

/// Generates the suite for one [`Harness`]: a module for each group, a test for each case.
///
/// Several harnesses fit into one file, each in a module of its own:
///
/// ```text
/// mod alone {
///     buqueue_conformance::conformance_tests!(crate::Alone);
/// }
/// mod cluster {
///     buqueue_conformance::conformance_tests!(crate::Cluster);
/// }
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($harness:ty) => {
        type ConformanceHarness = $harness;

        /// Does nothing, unless a case has started this process as its worker.
        #[test]
        fn worker_process() {
            $crate::run_worker::<ConformanceHarness>();
        }

        const CONFORMANCE_MODULE: &str = ::core::module_path!();

        $crate::__cases!($crate::__conformance_tests);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($($group:ident { $($promise:literal $name:ident($($feature:ident)*) $($alone:ident)?;)* })*) => {
        $(mod $group {
            $(#[test]
            fn $name() {
                let case = $crate::Case::find(::core::stringify!($group), ::core::stringify!($name));
                $crate::run::<super::ConformanceHarness>(case, super::CONFORMANCE_MODULE, |cx| {
                    ::std::boxed::Box::pin($crate::cases::$group::$name(cx))
                });
            })*
        })*
    };
}
