//! What a backend tells of work in the background that fails.

use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use tokio::time::Instant;

use crate::driver::{self, Activity};
use crate::{BuqueueError, ErrorKind};

/// What goes on failing in the same way is told no more often than this.
const QUIET: Duration = Duration::from_secs(120);

/// Tells of one kind of work in the background that fails and is tried again: each kind of error now and then, every two
/// minutes at most, and not each time.
#[derive(Debug)]
pub struct Complaints {
    backend: &'static str,
    what: &'static str,
    /// How it has failed, and when that was told. As many entries as there are kinds of errors at most.
    told: Vec<(Discriminant<ErrorKind>, Instant)>,
}

impl Complaints {
    /// About the work `what`, as in "renewing a lease failed".
    #[must_use]
    pub const fn new(backend: &'static str, what: &'static str) -> Self {
        Self { backend, what, told: Vec::new() }
    }

    /// It has failed.
    pub fn tell(&mut self, queue: &str, error: &BuqueueError) {
        if self.is_news(&error.kind) {
            driver::tell(self.backend, queue, Activity::Failed(self.what, error));
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
        let mut complaints = Complaints::new("memory", "testing");
        for _ in 0..3 {
            assert!(complaints.is_news(&ErrorKind::Timeout));
            for _ in 0..4 {
                tokio::time::advance(QUIET / 4).await;
                assert!(!complaints.is_news(&ErrorKind::Timeout));
            }
            assert!(complaints.is_news(&ErrorKind::Throttled), "it fails in another way");
            tokio::time::advance(QUIET).await;
        }
    }
}
