//! The receiving half.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::{self, Control, Received};
use buqueue_core::{QueueFuture, QueueStats, Result};

use crate::connection::Connector;
use crate::lease::{Delivered, Held, Session};
use crate::reader::Reader;

/// Receives from a queue.
#[derive(Debug)]
pub struct RabbitMqConsumer {
    session: Arc<Session>,
    /// On their way out; empty between calls.
    taken: Vec<Held>,
}

impl RabbitMqConsumer {
    /// Starts the reader, which ends when the consumer is closed or dropped.
    pub(crate) async fn start(session: Arc<Session>, connector: Connector) -> Result<Self> {
        let reader = Reader::start(Arc::clone(&session), connector).await?;
        tokio::spawn(reader.run());
        Ok(Self { session, taken: Vec::new() })
    }

    fn hand_out(&mut self, out: &mut Vec<Received>) {
        let session = &self.session;
        out.extend(self.taken.drain(..).filter(|held| held.epoch.is_alive()).map(|held| {
            let delivery_count = held.story.failures.saturating_add(1);
            let first_failed_at = Delivered::first_failed_at(session, &held);
            let lease = Delivered::new(Arc::clone(session), held);
            Received { lease, index: 0, delivery_count, first_failed_at }
        }));
    }
}

impl driver::Consumer for RabbitMqConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        self.session.mailbox.take(max.get(), |_, _| true, &mut self.taken);
        self.hand_out(out);
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let fetched = self.session.mailbox.fetch(max.get(), wait, |_, _| true, &mut self.taken).await;
        self.hand_out(out);
        fetched
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.session) as Arc<dyn Control>
    }
}

impl Control for Session {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        self.mailbox.close();
        QueueFuture::pending(async move {
            self.mailbox.finished().await;
            Ok(())
        })
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        // On the connection that carries the copies: the reader's may be waited for.
        QueueFuture::pending(self.publisher.queue_stats())
    }
}

impl Drop for RabbitMqConsumer {
    fn drop(&mut self) {
        self.session.mailbox.close();
    }
}
