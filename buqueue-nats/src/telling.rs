//! What is told of the work in the background: a failure now and then, and not each time that it is tried again.

use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend};
use buqueue_core::{BuqueueError, ErrorKind};
use tokio::time::Instant;

use crate::NatsBackend;

/// What goes on failing in the same way is told no more often than this.
const QUIET: Duration = Duration::from_secs(120);

/// Tells what happens to messages of one queue.
pub(crate) fn tell(queue: &str, activity: Activity<'_>) {
    driver::tell(NatsBackend::NAME, queue, activity);
}

/// One kind of work: how it has failed, and when that was told. As many entries as there are kinds of errors at most.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    told: Vec<(Discriminant<ErrorKind>, Instant)>,
}

impl Failing {
    /// Tells of a failure, unless it is the one that was told already.
    pub(crate) fn tell(&mut self, queue: &str, what: &'static str, error: &BuqueueError) {
        if self.is_news(&error.kind) {
            tell(queue, Activity::Failed(what, error));
        }
    }

    fn is_news(&mut self, kind: &ErrorKind) -> bool {
        let (kind, now) = (discriminant(kind), Instant::now());
        match self.told.iter_mut().find(|(told, _)| *told == kind) {
            Some((_, at)) if now.saturating_duration_since(*at) <= QUIET => false,
            Some((_, at)) => {
                *at = now;
                true
            }
            None => {
                self.told.push((kind, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_failing_is_told_now_and_then() {
        let mut failing = Failing::default();
        for _ in 0..3 {
            assert!(failing.is_news(&ErrorKind::Timeout));
            for _ in 0..4 {
                tokio::time::advance(QUIET / 4).await;
                assert!(!failing.is_news(&ErrorKind::Timeout));
            }
            assert!(failing.is_news(&ErrorKind::Throttled), "it fails in another way");
            tokio::time::advance(QUIET).await;
        }
    }
}
