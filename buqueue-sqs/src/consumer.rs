//! The receiving half.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::{self, Control, Received};
use buqueue_core::{QueueFuture, QueueStats, Result};
use tokio::time::Instant;

use crate::lease::{Delivered, Held, Session};
use crate::reader::Reader;
use crate::{schedule, stats};

/// Receives from a queue.
#[derive(Debug)]
pub struct SqsConsumer {
    session: Arc<Session>,
    /// On their way out; empty between calls.
    taken: Vec<Held>,
}

impl SqsConsumer {
    /// Starts the reader, and what sends on schedules; both end when the consumer is closed or dropped.
    pub(crate) fn start(session: Arc<Session>) -> Self {
        tokio::spawn(schedule::forward(Arc::clone(&session)));
        tokio::spawn(Reader::new(Arc::clone(&session)).run());
        Self { session, taken: Vec::new() }
    }

    /// Whether there is time left to handle it.
    fn is_fresh(&self) -> impl Fn(&Held, Instant) -> bool + use<> {
        let limit = self.session.stale_after();
        move |held, now| now.saturating_duration_since(held.received_at) < limit
    }

    fn hand_out(&mut self, out: &mut Vec<Received>) {
        let session = &self.session;
        out.extend(self.taken.drain(..).map(|held| {
            let delivery_count = session.attempts(&held);
            let first_failed_at = (delivery_count > 1).then(|| session.first_failure(&held));
            let lease = Arc::new(Delivered::new(Arc::clone(session), held));
            Received { lease, index: 0, delivery_count, first_failed_at }
        }));
    }
}

impl driver::Consumer for SqsConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        self.session.mailbox.take(max.get(), self.is_fresh(), &mut self.taken);
        self.hand_out(out);
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let fetched = self.session.mailbox.fetch(max.get(), wait, self.is_fresh(), &mut self.taken).await;
        self.hand_out(out);
        fetched
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.session) as Arc<dyn Control>
    }
}

impl Control for Session {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        Session::close(self);
        QueueFuture::pending(async move {
            self.ended().await;
            Ok(())
        })
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::pending(stats::count(&self.scheduler))
    }
}

impl Drop for SqsConsumer {
    fn drop(&mut self) {
        Session::close(&self.session);
    }
}
