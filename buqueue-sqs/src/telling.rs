//! What is told of the work in the background: numbers now and then.

use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend};
use tokio::time::Instant;

use crate::SqsBackend;

/// Numbers are told at most so often.
const OFTEN: Duration = Duration::from_secs(1);

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
