//! How much lies in a queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::observe::{MEASURED, Scope};
use crate::shutdown::Shared;
use crate::{ErrorKind, Result};

/// How many messages lie in a queue, as the broker counts them: for depth, lag and autoscaling, not for accounting.
///
/// A snapshot that is old when it arrives; some brokers (SQS) only promise it to be about right. The counts exclude
/// each other: a message is ready, in flight or scheduled. The crate of each backend tells what it counts where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Messages that wait to be delivered; on a log, what the consumer group has not settled yet (its lag).
    pub ready: u64,
    /// Messages that some consumer holds unsettled; `None` where they cannot be told: Kafka counts them as `ready`, AMQP
    /// (RabbitMQ) not at all.
    pub in_flight: Option<u64>,
    /// Messages of `send_at` and `nack_after` that are not due; `None` where they cannot be told.
    pub scheduled: Option<u64>,
}

impl QueueStats {
    /// So many messages are ready; whatever else there is, is added with the other methods.
    #[must_use]
    pub const fn of_ready(ready: u64) -> Self {
        Self { ready, in_flight: None, scheduled: None }
    }

    /// So many are in flight.
    #[must_use]
    pub const fn with_in_flight(mut self, in_flight: u64) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    /// So many are scheduled.
    #[must_use]
    pub const fn with_scheduled(mut self, scheduled: u64) -> Self {
        self.scheduled = Some(scheduled);
        self
    }
}

/// Watches a queue while its consumer is busy, or is a stream. Cheap to clone, and outlives the consumer.
///
/// Get one from [`Consumer::monitor`](crate::Consumer::monitor).
#[derive(Debug, Clone)]
pub struct QueueMonitor {
    pub(crate) shared: Arc<Shared>,
}

impl QueueMonitor {
    /// Counts what lies in the queue.
    ///
    /// # Errors
    /// As [`Producer::queue_stats`](crate::Producer::queue_stats).
    pub async fn queue_stats(&self) -> Result<QueueStats> {
        let stats = self.shared.control.queue_stats().await;
        stats.map_err(|error| error.at(self.shared.scope.backend, "queue_stats"))
    }

    /// Counts what lies in the dead letter queue of the consumer; `None` when it has none.
    ///
    /// On a log it is what lies before the consumer's own group: where dead letters are read in a group of another name, ask
    /// the consumer that reads them.
    ///
    /// # Errors
    /// As [`queue_stats`](Self::queue_stats).
    pub async fn dead_letter_stats(&self) -> Result<Option<QueueStats>> {
        let Some(dead_letters) = &self.shared.dead_letters else { return Ok(None) };
        let stats = dead_letters.queue_stats().await;
        stats.map(Some).map_err(|error| error.at(self.shared.scope.backend, "dead_letter_stats"))
    }

    /// Counts again and again, `every` so long, and reports it as the metrics `buqueue.queue.messages` and
    /// `buqueue.queue.dead_letters`, until the consumer is shut down or gone. Spawn it: instruments cannot ask a broker by
    /// themselves. Without the feature `metrics` it returns at once.
    ///
    /// Every consumer that reports says the same of the same queue; one a queue is enough. What cannot be counted is logged when
    /// that begins, and asked again the next time, unless the backend does not count at all.
    pub async fn report(&self, every: Duration) {
        if !MEASURED {
            return;
        }
        let scope = &self.shared.scope;
        let (mut queue, mut dead_letters) = (Asked::default(), Asked::default());
        while !self.shared.is_over() && (queue.is_worth_it() || dead_letters.is_worth_it()) {
            if queue.is_worth_it()
                && let Some(stats) = queue.told(scope, "the queue", self.queue_stats().await)
            {
                scope.counted(&stats);
            }
            if dead_letters.is_worth_it()
                && let Some(Some(stats)) =
                    dead_letters.told(scope, "the dead letter queue", self.dead_letter_stats().await)
            {
                scope.dead_letters_counted(&stats);
            }
            self.pause(every).await;
        }
    }

    /// In steps, so that the end of the consumer does not wait for the interval; the one waker is the consumer's.
    async fn pause(&self, every: Duration) {
        // A busy loop would be no interval.
        let mut left = every.max(Duration::from_millis(10));
        while !left.is_zero() && !self.shared.is_over() {
            let step = left.min(STEP);
            sleep(step).await;
            left -= step;
        }
    }
}

/// How soon [`QueueMonitor::report`] notices the end.
const STEP: Duration = Duration::from_millis(500);

/// What one of the counts has come to so far.
#[derive(Default)]
struct Asked {
    fails: bool,
    unsupported: bool,
}

impl Asked {
    fn is_worth_it(&self) -> bool {
        !self.unsupported
    }

    fn told<T>(&mut self, scope: &Scope, which: &'static str, told: Result<T>) -> Option<T> {
        let was_failing = std::mem::replace(&mut self.fails, told.is_err());
        match told {
            Ok(told) => Some(told),
            Err(error) => {
                self.unsupported = error.kind == ErrorKind::Unsupported;
                if !was_failing {
                    scope.count_failed(which, &error);
                }
                None
            }
        }
    }
}
