//! The receiving half.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::{self, Control, Lease, Received};
use buqueue_core::{QueueFuture, QueueStats, Result};
use redis::RedisResult;
use tokio::time::{Instant, sleep_until};

use crate::config::RedisConfig;
use crate::connection::Connector;
use crate::lease::{Batch, Held, Session};
use crate::reader::{Reader, Shared};
use crate::{reclaim, stats};

/// A lease keeps all messages of its batch in memory, so only small ones share one.
const BATCH_BYTES: usize = 64 * 1024;
/// How long a prompt look may take when the server does not answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Receives from a stream and from the group's retry stream.
#[derive(Debug)]
pub struct RedisConsumer {
    shared: Arc<Shared>,
}

impl RedisConsumer {
    /// Connects the reader, and starts it and the maintenance. Both end when the consumer is closed or dropped.
    pub(crate) async fn start(
        session: Arc<Session>,
        connector: Arc<Connector>,
        config: &RedisConfig,
    ) -> RedisResult<Self> {
        let shared = Arc::new(Shared::new(session, config.read_count));
        let reader = Reader::connect(Arc::clone(&shared), connector, config.block_ms).await?;
        tokio::spawn(reader.run());
        let maintained = Arc::clone(&shared);
        tokio::spawn(async move { reclaim::maintain(&maintained).await });
        Ok(Self { shared })
    }

    fn hand_out(&self, entries: Vec<Held>, out: &mut Vec<Received>) {
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::with_capacity(entries.len()), 0);
            while let Some(held) = entries.next_if(|held| {
                let message = &held.entry.message;
                bytes += message.payload().len() + message.headers().byte_len();
                batch.is_empty() || bytes <= BATCH_BYTES
            }) {
                batch.push(held);
            }
            let story: Vec<_> =
                batch.iter().map(|held| (held.entry.attempts, held.entry.first_failed_at)).collect();
            let lease: Arc<dyn Lease> =
                Arc::new(Batch { session: Arc::clone(self.shared.session()), entries: batch });
            for (index, (attempts, first_failed_at)) in (0_u32..).zip(story) {
                out.push(Received {
                    lease: Arc::clone(&lease),
                    index,
                    delivery_count: attempts.saturating_add(1),
                    first_failed_at,
                });
            }
        }
    }

    fn take(&self, max: NonZeroUsize, out: &mut Vec<Received>) -> bool {
        let entries = self.shared.take(max.get());
        let any = !entries.is_empty();
        if any {
            self.hand_out(entries, out);
        }
        any
    }
}

impl driver::Consumer for RedisConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        self.take(max, out);
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        if self.shared.is_closed() || self.take(max, out) {
            return Ok(());
        }
        let demand = self.shared.demand(max.get(), wait.is_zero());
        let deadline = Instant::now() + if wait.is_zero() { LOOK_TIMEOUT } else { wait };
        loop {
            // The end first: what comes in after it is for the next call.
            let over = demand.is_over();
            if self.take(max, out) {
                return Ok(());
            }
            if let Some(failure) = demand.take_failure() {
                return Err(failure);
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                () = demand.woken() => {}
                () = sleep_until(deadline) => {
                    self.take(max, out);
                    return Ok(());
                }
            }
        }
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.shared) as Arc<dyn Control>
    }
}

impl Control for Shared {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        Self::close(self);
        QueueFuture::pending(async move {
            self.finished().await;
            Ok(())
        })
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        let session = self.session();
        QueueFuture::pending(stats::count(&session.commands, &session.keys, &session.group))
    }
}

impl Drop for RedisConsumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}
