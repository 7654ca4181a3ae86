//! What a consumer shares with its deliveries and handles, and how it ends.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::QueueMonitor;
use crate::dlq::DeadLetters;
use crate::driver::Control;
use crate::observe::Scope;

/// How long closing the driver may take after the drain, so that a dead broker cannot hold a shutdown.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The state that a consumer, its deliveries and its shutdown handles share.
pub(crate) struct Shared {
    /// The queue, as errors, dead letters and telemetry name it.
    pub(crate) scope: Scope,
    pub(crate) dead_letters: Option<DeadLetters>,
    pub(crate) in_flight: InFlight,
    pub(crate) abandoned: AtomicU64,
    pub(crate) dead_lettered: AtomicU64,
    /// The consumer was dropped.
    gone: AtomicBool,
    stopped: WakerSlot,
    drain_timeout: Duration,
    /// `None` inside: longer than a clock can tell.
    drain_deadline: OnceLock<Option<Instant>>,
    pub(crate) control: Arc<dyn Control>,
}

impl Shared {
    pub(crate) fn new(
        scope: Scope,
        dead_letters: Option<DeadLetters>,
        drain_timeout: Duration,
        control: Arc<dyn Control>,
    ) -> Self {
        Self {
            scope,
            dead_letters,
            in_flight: InFlight::default(),
            abandoned: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            stopped: WakerSlot::default(),
            drain_timeout,
            drain_deadline: OnceLock::new(),
            control,
        }
    }

    /// So many deliveries are no longer out.
    #[inline]
    pub(crate) fn leave(&self, count: usize) {
        self.scope.left(count);
        self.in_flight.leave(count);
    }

    /// Whether new deliveries have stopped.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        self.in_flight.is_closed()
    }

    /// The consumer was dropped; its deliveries and handles may go on.
    pub(crate) fn be_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Whether there is nobody to receive any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_stopped() || self.gone.load(Ordering::Relaxed)
    }

    /// Runs `future` until it ends or the consumer is stopped, whichever is first; `None` when stopped.
    ///
    /// The loser is dropped, so `future` must be cancel-safe. Only one task at a time waits here: the one that holds
    /// the consumer.
    pub(crate) async fn until_stopped<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|context| {
            // Before the poll: what a fetch brings after the stop would have nowhere to go.
            if self.is_stopped() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            self.stopped.register(context.waker());
            // Read after the waker is in place, so that a stop in between is not missed.
            if self.is_stopped() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// Stops new deliveries and wakes the receiver.
    pub(crate) fn stop(&self) {
        self.in_flight.close();
        self.stopped.wake();
    }

    /// Stops new deliveries, waits for those in flight, closes. Any number of callers may do this at once.
    pub(crate) async fn finish(&self) {
        self.stop();
        // The first caller sets the deadline for all of them.
        let deadline = *self.drain_deadline.get_or_init(|| Instant::now().checked_add(self.drain_timeout));
        match deadline {
            // Running out of time is not an error: what is left is redelivered when its lease runs out.
            Some(deadline) => drop(timeout_at(deadline, self.in_flight.drained()).await),
            None => self.in_flight.drained().await,
        }
        self.scope.stopped(self.in_flight.count());
        self.close().await;
    }

    /// Closes the driver; what takes too long is left to the leases.
    pub(crate) async fn close(&self) {
        match timeout(CLOSE_TIMEOUT, self.control.close()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => self.scope.close_failed(&error),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("backend", &self.scope.backend)
            .field("source", &self.scope.destination)
            .field("in_flight", &self.in_flight.count())
            .field("stopped", &self.is_stopped())
            .finish_non_exhaustive()
    }
}

/// The waker of the one task that waits. It stays registered between waits: a wake too many costs one poll, and
/// registering anew for each message costs more than the message.
#[derive(Default)]
struct WakerSlot(Mutex<Option<Waker>>);

impl WakerSlot {
    fn register(&self, waker: &Waker) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            Some(registered) => registered.clone_from(waker),
            None => *slot = Some(waker.clone()),
        }
    }

    fn wake(&self) {
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// How many deliveries are out, and whether more may go out: one atomic, so that each side always sees the other.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    // Bit 0: closed. The rest: the count.
    state: AtomicUsize,
    drained: Notify,
}

const CLOSED: usize = 1;
const ONE: usize = 2;

impl InFlight {
    /// Counts deliveries in; false, and not counted, when closed.
    #[inline]
    pub(crate) fn enter(&self, count: usize) -> bool {
        if self.state.fetch_add(count * ONE, Ordering::AcqRel) & CLOSED == 0 {
            return true;
        }
        self.leave(count);
        false
    }

    /// Counts deliveries out.
    #[inline]
    pub(crate) fn leave(&self, count: usize) {
        if count > 0 && self.state.fetch_sub(count * ONE, Ordering::AcqRel) == (count * ONE) | CLOSED {
            self.drained.notify_waiters();
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.state.load(Ordering::Acquire) / ONE
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }

    fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
    }

    async fn drained(&self) {
        loop {
            let mut drained = pin!(self.drained.notified());
            drained.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            drained.await;
        }
    }
}

/// Stops a consumer from anywhere: from a signal handler, another task, any number of times.
///
/// Cheap to clone. Get one from [`Consumer::shutdown_handle`](crate::Consumer::shutdown_handle).
#[derive(Debug, Clone)]
pub struct ShutdownHandle {
    pub(crate) shared: Arc<Shared>,
}

impl ShutdownHandle {
    /// Stops the consumer and returns when it has stopped.
    ///
    /// New deliveries stop at once and waiting receivers wake. Then this waits for the deliveries in flight to be
    /// settled or dropped, at most for the drain timeout (default 30 s, counted from the first call), hands what
    /// was fetched and not handed out back to the broker, and closes. Deliveries that are still out after the drain
    /// timeout stay valid; what is never settled is redelivered when its lease runs out.
    ///
    /// Idempotent, callable from several tasks at once. It does not need the consumer or its stream to be polled.
    /// Dropping the future leaves the consumer stopped; a later call finishes the rest.
    pub async fn shutdown(&self) {
        self.shared.finish().await;
    }

    /// Whether [`shutdown`](Self::shutdown) has been called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.shared.is_stopped()
    }

    pub(crate) fn monitor(&self) -> QueueMonitor {
        QueueMonitor { shared: Arc::clone(&self.shared) }
    }

    /// How many deliveries are handed out and not settled.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_enters_after_close() {
        let in_flight = InFlight::default();
        assert!(in_flight.enter(1));
        in_flight.close();
        assert!(!in_flight.enter(3));
        assert_eq!(in_flight.count(), 1);
        in_flight.leave(1);
        assert_eq!(in_flight.count(), 0);
        assert!(in_flight.is_closed());
    }
}
