//! The receiving half.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::{self, Control, Received};
use buqueue_core::{Mailbox, QueueFuture, QueueStats, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::{NatsConfig, NatsOptions};
use crate::delay;
use crate::lease::{Delivered, Held, Session};
use crate::reader::Reader;
use crate::stats;
use crate::topology::{Scheduling, Standing};

/// The most messages that one request asks for.
const BATCH_MAX: usize = 1000;

/// What a consumer, its reader and its monitors share.
#[derive(Debug)]
pub(crate) struct Shared {
    session: Arc<Session>,
    config: NatsConfig,
    mailbox: Mailbox<Held>,
}

impl Shared {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(crate) fn mailbox(&self) -> &Mailbox<Held> {
        &self.mailbox
    }

    /// How old a message may be when it is handed out, so that there is time left to handle it.
    pub(crate) fn stale_after(&self) -> Duration {
        self.session.ack_wait / 4 * 3
    }
}

/// Receives from a durable consumer.
#[derive(Debug)]
pub struct NatsConsumer {
    shared: Arc<Shared>,
    /// On their way out; empty between calls.
    taken: Vec<Held>,
    // Moves delayed messages, where the server does not. Ends with the consumer.
    _mover: JoinSet<()>,
}

impl NatsConsumer {
    /// Starts the reader, which ends when the consumer is closed or dropped.
    pub(crate) async fn start(
        session: Arc<Session>,
        options: &NatsOptions,
        standing: Standing,
        floor: u64,
    ) -> Result<Self> {
        let mut mover = JoinSet::new();
        if standing.scheduling == Scheduling::Delayed {
            mover.spawn(delay::move_what_is_due(session.link.clone(), options.clone()));
        }
        let shared =
            Arc::new(Shared { session, config: options.config.clone(), mailbox: Mailbox::default() });
        let reader = Reader::start(Arc::clone(&shared), options.clone(), standing, floor).await?;
        tokio::spawn(reader.run());
        Ok(Self { shared, taken: Vec::new(), _mover: mover })
    }

    /// Whether there is time left to handle it.
    fn is_fresh(&self) -> impl Fn(&Held, Instant) -> bool + use<> {
        let limit = self.shared.stale_after();
        move |held, now| now.saturating_duration_since(held.received_at) < limit
    }

    fn hand_out(&mut self, out: &mut Vec<Received>) {
        let session = self.shared.session();
        out.extend(self.taken.drain(..).map(|held| {
            let delivery_count = held.info.delivered.max(1);
            let first_failed_at =
                (delivery_count > 1).then(|| session.first_failure(held.info.stream_sequence));
            let lease = Delivered::new(Arc::clone(session), held);
            Received { lease, index: 0, delivery_count, first_failed_at }
        }));
    }
}

impl driver::Consumer for NatsConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        self.shared.mailbox().take(max.get(), self.is_fresh(), &mut self.taken);
        self.hand_out(out);
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let max = max.get().min(BATCH_MAX);
        let fetched = self.shared.mailbox().fetch(max, wait, self.is_fresh(), &mut self.taken).await;
        self.hand_out(out);
        fetched
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.shared) as Arc<dyn Control>
    }
}

impl Control for Shared {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        self.mailbox().close();
        QueueFuture::pending(async move {
            self.mailbox().finished().await;
            Ok(())
        })
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::pending(stats::count(&self.session.link, &self.config))
    }
}

impl Drop for NatsConsumer {
    fn drop(&mut self) {
        self.shared.mailbox().close();
    }
}
