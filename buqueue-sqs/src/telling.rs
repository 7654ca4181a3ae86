//! What is told of the work in the background: a failure now and then, and not each time that it is tried again; and numbers now
//! and then.

use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend};
use buqueue_core::{BuqueueError, ErrorKind};
use tokio::time::Instant;

use crate::SqsBackend;

/// What goes on failing in the same way is told no more often than this.
const QUIET: Duration = Duration::from_secs(120);
/// Numbers are told at most so often.
const OFTEN: Duration = Duration::from_secs(1);

/// One kind of work: how it has failed, and when that was told. As many entries as there are kinds of errors at most.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    told: Vec<(Discriminant<ErrorKind>, Instant)>,
}

impl Failing {
    /// Tells of a failure, unless it is the one that was told already.
    pub(crate) fn tell(&mut self, queue: &str, what: &'static str, error: &BuqueueError) {
        if self.is_news(&error.kind) {
            driver::tell(SqsBackend::NAME, queue, Activity::Failed(what, error));
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

/// How many schedules were moved to their queue, and not told yet.
#[derive(Debug, Default)]
pub(crate) struct Forwarded {
    count: usize,
    told_at: Option<Instant>,
}

impl Forwarded {
    pub(crate) fn add(&mut self) {
        self.count += 1;
    }

    /// Tells, unless that was done a moment ago.
    pub(crate) fn tell(&mut self, queue: &str) {
        if self.count > 0 && self.told_at.is_none_or(|told_at| told_at.elapsed() >= OFTEN) {
            self.told_at = Some(Instant::now());
            self.tell_all(queue);
        }
    }

    pub(crate) fn tell_all(&mut self, queue: &str) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            driver::tell(SqsBackend::NAME, queue, Activity::Forwarded(count));
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

    #[tokio::test(start_paused = true)]
    async fn numbers_are_told_now_and_then() {
        let mut forwarded = Forwarded::default();
        for left in [0, 1, 2] {
            forwarded.add();
            forwarded.tell("q");
            assert_eq!(forwarded.count, left);
        }
        tokio::time::advance(OFTEN).await;
        forwarded.tell("q");
        assert_eq!(forwarded.count, 0);
    }
}
