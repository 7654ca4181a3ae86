//! The receiving half.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::{self, Control, Received};
use buqueue_core::{QueueFuture, QueueStats, Result};

use crate::lease::Delivered;
use crate::session::{Held, Session};

/// How long closing waits for what was settled meanwhile to be committed, and for who sends on schedules to make room.
const QUIET: Duration = Duration::from_secs(2);

/// Receives from a topic, as a member of a group.
#[derive(Debug)]
pub struct KafkaConsumer {
    session: Arc<Session>,
    /// On their way out; empty between calls.
    taken: Vec<Held>,
}

impl KafkaConsumer {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session, taken: Vec::new() }
    }

    fn hand_out(&mut self, out: &mut Vec<Received>) {
        let session = &self.session;
        out.extend(self.taken.drain(..).map(|held| {
            let delivery_count = held.delivery_count();
            let first_failed_at = (delivery_count > 1).then(|| session.first_failure(&held));
            let lease = Arc::new(Delivered::new(Arc::clone(session), held));
            Received { lease, index: 0, delivery_count, first_failed_at }
        }));
    }
}

impl driver::Consumer for KafkaConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        let session = &self.session;
        session.mailbox.take(max.get(), |_, _| session.hands_out(), &mut self.taken);
        if !self.taken.is_empty() {
            self.session.wake();
        }
        self.hand_out(out);
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let fetched = {
            let session = Arc::clone(&self.session);
            let fetching =
                session.mailbox.fetch(max.get(), wait, |_, _| session.hands_out(), &mut self.taken);
            let mut fetching = std::pin::pin!(fetching);
            // The reader is a thread: it is told that somebody waits when the call has said so.
            std::future::poll_fn(|cx| {
                let polled = fetching.as_mut().poll(cx);
                session.wake();
                polled
            })
            .await
        };
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
            self.mailbox.finished().await;
            self.quiet(QUIET).await;
            Ok(())
        })
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::pending(self.stats.count())
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        Session::close(&self.session);
    }
}
