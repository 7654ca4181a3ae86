//! What is told of the work in the background: a failure once, and not each time that it is tried again.

use std::time::Duration;

use buqueue_core::BuqueueError;
use buqueue_core::driver::{self, Activity, Backend};
use tokio::time::Instant;

use crate::NatsBackend;

/// What fails again within this time has failed all along.
const QUIET: Duration = Duration::from_secs(120);

/// Tells what happens to messages of one queue.
pub(crate) fn tell(queue: &str, activity: Activity<'_>) {
    driver::tell(NatsBackend::NAME, queue, activity);
}

/// One kind of work, and when it failed last.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    last: Option<Instant>,
}

impl Failing {
    /// Tells of a failure, unless it is the one that was told already.
    pub(crate) fn tell(&mut self, queue: &str, what: &'static str, error: &BuqueueError) {
        if self.is_news() {
            tell(queue, Activity::Failed(what, error));
        }
    }

    fn is_news(&mut self) -> bool {
        let now = Instant::now();
        self.last.replace(now).is_none_or(|last| now.saturating_duration_since(last) > QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_failing_is_told_once() {
        let mut failing = Failing::default();
        assert!(failing.is_news());
        for _ in 0..10 {
            tokio::time::advance(QUIET / 2).await;
            assert!(!failing.is_news());
        }
        tokio::time::advance(QUIET * 2).await;
        assert!(failing.is_news());
    }
}
