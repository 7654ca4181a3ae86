//! The receiving half.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::{self, Closer, Received};
use buqueue_core::{QueueFuture, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::NatsOptions;
use crate::delay;
use crate::lease::{Delivered, Held, Session};
use crate::reader::{Reader, Shared};
use crate::topology::Scheduling;

/// The most messages that one request asks for.
const BATCH_MAX: usize = 1000;
/// How long a prompt look may take when the server does not answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Receives from a durable consumer.
#[derive(Debug)]
pub struct NatsConsumer {
    shared: Arc<Shared>,
    // Moves delayed messages, where the server does not. Ends with the consumer.
    _mover: JoinSet<()>,
}

impl NatsConsumer {
    /// Starts the reader, which ends when the consumer is closed or dropped.
    pub(crate) async fn start(
        session: Arc<Session>,
        options: &NatsOptions,
        scheduling: Scheduling,
        floor: u64,
    ) -> Result<Self> {
        let mut mover = JoinSet::new();
        if scheduling == Scheduling::Delayed {
            mover.spawn(delay::move_what_is_due(session.link.clone(), options.clone()));
        }
        let shared = Arc::new(Shared::new(session));
        let reader = Reader::start(Arc::clone(&shared), options.clone(), scheduling, floor).await?;
        tokio::spawn(reader.run());
        Ok(Self { shared, _mover: mover })
    }

    fn take(&self, max: NonZeroUsize, out: &mut Vec<Received>) -> bool {
        let before = out.len();
        let session = self.shared.session();
        self.shared.take(max.get(), |held: Held| {
            let delivery_count = held.info.delivered.max(1);
            let first_failed_at =
                (delivery_count > 1).then(|| session.first_failure(held.info.stream_sequence));
            let lease = Delivered::new(Arc::clone(session), held);
            out.push(Received { lease, index: 0, delivery_count, first_failed_at });
        });
        out.len() > before
    }
}

impl driver::Consumer for NatsConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        self.take(max, out);
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        if self.shared.is_closed() || self.take(max, out) {
            return Ok(());
        }
        let demand = self.shared.demand(max.get().min(BATCH_MAX), wait.is_zero());
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

    fn closer(&self) -> Arc<dyn Closer> {
        Arc::clone(&self.shared) as Arc<dyn Closer>
    }
}

impl Closer for Shared {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        Self::close(self);
        QueueFuture::pending(async move {
            self.finished().await;
            Ok(())
        })
    }
}

impl Drop for NatsConsumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}
