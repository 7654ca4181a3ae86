//! How much lies in a queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::Result;
use crate::shutdown::Shared;

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
    pub const fn ready(ready: u64) -> Self {
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
    pub async fn stats(&self) -> Result<QueueStats> {
        let stats = self.shared.control.queue_stats().await;
        stats.map_err(|error| error.at(self.shared.scope.backend, "queue_stats"))
    }

    /// Counts what lies in the dead letter queue of the consumer; `None` when it has none.
    ///
    /// # Errors
    /// As [`stats`](Self::stats).
    pub async fn dead_letter_stats(&self) -> Result<Option<QueueStats>> {
        let Some(dead_letters) = &self.shared.dead_letters else { return Ok(None) };
        let stats = dead_letters.queue_stats().await;
        stats.map(Some).map_err(|error| error.at(self.shared.scope.backend, "queue_stats"))
    }

    /// Counts again and again, `every` so long, and reports it as the metrics `buqueue.queue.messages` and
    /// `buqueue.queue.dead_letters`, until the consumer is shut down. Spawn it where the feature `metrics` is on:
    /// instruments cannot ask a broker by themselves.
    ///
    /// What cannot be counted is logged, and asked again the next time.
    pub async fn report(&self, every: Duration) {
        // A busy loop would be no interval.
        let every = every.max(Duration::from_millis(10));
        while !self.shared.is_stopped() {
            match self.count().await {
                Ok((queue, dead_letters)) => self.shared.scope.counted(&queue, dead_letters.as_ref()),
                Err(error) => self.shared.scope.count_failed(&error),
            }
            // In steps, so that a shutdown does not wait for the interval; the one waker is the consumer's.
            let next = Instant::now() + every;
            while Instant::now() < next && !self.shared.is_stopped() {
                sleep_until(next.min(Instant::now() + STEP)).await;
            }
        }
    }

    async fn count(&self) -> Result<(QueueStats, Option<QueueStats>)> {
        Ok((self.stats().await?, self.dead_letter_stats().await?))
    }
}

/// How soon [`QueueMonitor::report`] notices a shutdown.
const STEP: Duration = Duration::from_millis(500);
