//! Dead letters of messages that the user never saw again: their last attempt ended in a crash.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use crate::ErrorKind;
use crate::delivery::{BURIAL, DEAD_LETTER_RETRY, MAX_RECEIVE_COUNT};
use crate::dlq::{self, Death, Verdict};
use crate::driver::Received;
use crate::shutdown::Shared;

/// Messages whose last attempt ended in a crash, on their way to the dead letter queue.
///
/// The one under way is kept here and not in the future of a call, so that a cancelled call does not publish a dead
/// letter twice.
#[derive(Default)]
pub(crate) struct Burials {
    waiting: Vec<Received>,
    /// The lock is never contended: it only makes the consumer `Sync`.
    current: Mutex<Option<Burying>>,
    has_current: bool,
}

type Burying = Pin<Box<dyn Future<Output = ()> + Send>>;

/// No more than this wait: the consumer reads no further until some are buried.
const BURIALS_MAX: usize = 100;

impl Burials {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.has_current
    }

    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= BURIALS_MAX
    }

    /// Those that wait, taken back.
    pub(crate) fn take_waiting(&mut self) -> Vec<Received> {
        std::mem::take(&mut self.waiting)
    }

    pub(crate) fn push(&mut self, received: Received) {
        self.waiting.push(received);
    }

    /// Goes on as far as it can; ready when nothing is left.
    pub(crate) fn poll(&mut self, shared: &Arc<Shared>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let current = self.current.get_mut().unwrap_or_else(PoisonError::into_inner);
            if current.is_none() {
                let Some(received) = self.waiting.pop() else { return Poll::Ready(()) };
                *current = Some(Box::pin(bury(Arc::clone(shared), Buried(Some(received)))));
                self.has_current = true;
            }
            if current.as_mut().is_some_and(|burying| burying.as_mut().poll(context).is_pending()) {
                return Poll::Pending;
            }
            *current = None;
            self.has_current = false;
        }
    }

    pub(crate) async fn finish(&mut self, shared: &Arc<Shared>) {
        poll_fn(|context| self.poll(shared, context)).await;
    }
}

/// A message that is being buried; dropped before it is done, it is abandoned to its queue.
struct Buried(Option<Received>);

impl Drop for Buried {
    fn drop(&mut self) {
        if let Some(received) = self.0.take() {
            received.lease.abandon(received.index);
        }
    }
}

/// Whether all attempts that the message is allowed have failed, if only by crashing.
#[inline]
pub(crate) fn is_exhausted(shared: &Shared, received: &Received) -> bool {
    shared.dead_letters.as_ref().is_some_and(|dead_letters| {
        dlq::before_attempt(received.delivery_count, dead_letters.max_receive_count) == Verdict::DeadLetter
    })
}

/// Publish, confirm, then ack, for a message whose last attempt ended in a crash.
async fn bury(shared: Arc<Shared>, mut buried: Buried) {
    let (Some(received), Some(dead_letters)) = (&buried.0, &shared.dead_letters) else { return };
    let Received { lease, index, delivery_count, first_failed_at } = received;
    let attempts = delivery_count.saturating_sub(1);
    let death = Death {
        message: lease.message(*index),
        reason: MAX_RECEIVE_COUNT,
        source: &shared.scope.destination,
        attempts,
        first_failed_at: *first_failed_at,
    };
    let lease_lost =
        lease.extend(*index, BURIAL).await.is_err_and(|error| error.kind == ErrorKind::LeaseExpired);
    if lease_lost {
        // Somebody else has it, and buries it.
        buried.0 = None;
        return;
    }
    let settling = shared.scope.begin_burial(death.message);
    let published = dead_letters.publish(&death).await;
    // It is settled from here on, once: dropped in the middle of that, it is not abandoned as well.
    let Some(Received { lease, index, .. }) = buried.0.take() else { return };
    match published {
        Err(error) => {
            settling.within(|| shared.scope.dead_letter_failed(&error));
            settling.end_with(Some(&error));
            // The message stays in its queue and comes again; others are not held up. If this nack fails too, the lease
            // brings the message back.
            drop(lease.nack(index, DEAD_LETTER_RETRY).await);
        }
        Ok(_) => {
            let acked = lease.ack(index).await;
            if let Err(error) = &acked {
                settling.within(|| shared.scope.dead_letter_not_acked(error));
            }
            shared.dead_lettered.fetch_add(1, Ordering::Relaxed);
            settling.within(|| shared.scope.dead_lettered(attempts));
            settling.end(&acked);
        }
    }
}
