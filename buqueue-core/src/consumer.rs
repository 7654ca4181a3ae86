//! Receiving: the trait applications see, and the one place that polls a driver.

use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use crate::delivery::{DEAD_LETTER_RETRY, MAX_RECEIVE_COUNT};
use crate::dlq::{self, Death, Verdict};
use crate::driver::{Backend, Consumer as _, Received};
use crate::shutdown::{CLOSE_TIMEOUT, Shared};
use crate::{
    Backoff, BuqueueError, Capabilities, Delivery, DeliveryStream, ErrorKind, QueueFuture, Result,
    ShutdownHandle, observe,
};

/// How long one driver fetch waits before core asks again. Stopping does not wait for it.
const FETCH_WAIT: Duration = Duration::from_secs(30);

const ONE: NonZeroUsize = NonZeroUsize::MIN;

/// Receives messages from one queue.
///
/// Object-safe, and implemented by [`Consumer`] for every backend and by `Box`. All futures are cancel-safe:
/// dropping one at any await loses no message and delays none by more than its lease.
pub trait QueueConsumer: fmt::Debug + Send + 'static {
    /// Waits for the next message.
    fn receive(&mut self) -> QueueFuture<'_, Result<Delivery>>;

    /// Waits for at least one message and returns up to `max`.
    fn receive_batch(&mut self, max: usize) -> QueueFuture<'_, Result<Vec<Delivery>>>;

    /// The next message if one is visible now.
    fn try_receive(&mut self) -> QueueFuture<'_, Result<Option<Delivery>>>;

    /// Waits for the next message; `None` when the consumer has been shut down and drained.
    fn receive_graceful(&mut self) -> QueueFuture<'_, Option<Delivery>>;

    /// A handle that stops this consumer from elsewhere.
    fn shutdown_handle(&self) -> ShutdownHandle;

    /// What the backend can do.
    fn capabilities(&self) -> &Capabilities;

    /// Turns the consumer into a stream of its messages.
    fn into_stream(self) -> DeliveryStream
    where
        Self: Sized,
    {
        DeliveryStream::new(self)
    }
}

/// The consumer of a backend whose type is known.
pub struct Consumer<B: Backend> {
    driver: B::Consumer,
    shared: Arc<Shared>,
    capabilities: Capabilities,
    /// Fetched and not yet handed out. Empty between calls, except after a cancelled one.
    inbox: Vec<Received>,
    /// Out of attempts before the user saw them (the last one crashed), waiting for the dead letter queue.
    exhausted: Vec<Received>,
    /// One of them on its way. Kept here and not in the future of a call, so that a cancelled call does not publish
    /// the dead letter twice. The lock is never contended: it only makes the consumer `Sync`.
    burying: Mutex<Option<Burying>>,
    backoff: Backoff,
    /// Ended a `receive_graceful` loop, which has no way to return it; the next call does.
    remembered: Option<BuqueueError>,
}

type Burying = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Counts since the consumer was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// Deliveries handed out and not settled.
    pub in_flight: usize,
    /// Deliveries that were dropped unsettled.
    pub abandoned: u64,
    /// Messages that this consumer moved to the dead letter queue.
    pub dead_lettered: u64,
}

impl<B: Backend> Consumer<B> {
    pub(crate) fn new(driver: B::Consumer, shared: Arc<Shared>, capabilities: Capabilities) -> Self {
        Self {
            driver,
            shared,
            capabilities,
            inbox: Vec::new(),
            exhausted: Vec::new(),
            burying: Mutex::new(None),
            backoff: Backoff::default(),
            remembered: None,
        }
    }

    /// Waits for the next message, for as long as it takes.
    ///
    /// Reconnects by itself, with back-off. Cancel-safe.
    ///
    /// # Errors
    /// Only what will not pass by itself: [`AuthenticationFailed`](ErrorKind::AuthenticationFailed),
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) and the like, and [`ShuttingDown`](ErrorKind::ShuttingDown) once
    /// the consumer is stopped.
    pub async fn receive(&mut self) -> Result<Delivery> {
        match self.next_ready()? {
            Some(delivery) => Ok(delivery),
            // Boxed, so that the future of a receive that need not wait stays small enough to be moved cheaply.
            None => Box::pin(self.wait()).await,
        }
    }

    async fn wait(&mut self) -> Result<Delivery> {
        loop {
            self.fill(ONE).await?;
            if let Some(delivery) = self.next_ready()? {
                return Ok(delivery);
            }
        }
    }

    /// Waits until at least one message is there and returns what is there at once, up to `max`. Cancel-safe.
    ///
    /// # Errors
    /// As [`receive`](Self::receive); [`InvalidConfig`](ErrorKind::InvalidConfig) when `max` is 0.
    pub async fn receive_batch(&mut self, max: usize) -> Result<Vec<Delivery>> {
        let Some(max) = NonZeroUsize::new(max) else {
            let error = BuqueueError::new(ErrorKind::InvalidConfig, "max: must be at least 1, is 0");
            return Err(error.at(B::NAME, "receive_batch"));
        };
        loop {
            self.fetch_ready(max)?;
            if !self.inbox.is_empty() {
                let count = self.inbox.len().min(max.get());
                let mut batch = Vec::with_capacity(count);
                if !self.shared.in_flight.enter(count) {
                    return Err(self.stopped());
                }
                for received in self.inbox.drain(..count) {
                    if is_exhausted(&self.shared, &received) {
                        self.exhausted.push(received);
                    } else {
                        batch.push(Delivery::new(received, Arc::clone(&self.shared)));
                    }
                }
                self.shared.in_flight.leave(count - batch.len());
                if !batch.is_empty() {
                    return Ok(batch);
                }
            }
            self.fill(max).await?;
        }
    }

    /// The next message if one is visible now; takes one short round trip at most. Cancel-safe.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), and also what may pass by itself: this call does not wait.
    pub async fn try_receive(&mut self) -> Result<Option<Delivery>> {
        loop {
            if let Some(delivery) = self.next_ready()? {
                return Ok(Some(delivery));
            }
            self.bury_exhausted().await;
            self.driver.fetch(ONE, Duration::ZERO, &mut self.inbox).await.map_err(stamp::<B>)?;
            if self.inbox.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Waits for the next message; `None` when it is over: the consumer was shut down, what was in flight is
    /// settled or the drain timeout has passed, and what was fetched and not handed out is back with the broker.
    ///
    /// An error that will not pass by itself ends the loop too; the next call to [`receive`](Self::receive)
    /// returns it. Cancel-safe.
    ///
    /// Settle each delivery before the next call, or hand it to another task: held in the same task it keeps the
    /// loop waiting until the drain timeout.
    pub async fn receive_graceful(&mut self) -> Option<Delivery> {
        match self.receive().await {
            Ok(delivery) => return Some(delivery),
            Err(error) if error.kind == ErrorKind::ShuttingDown => {}
            Err(error) => self.remembered = Some(error),
        }
        // What this does not get done in time, the leases do.
        drop(timeout(CLOSE_TIMEOUT, self.give_back()).await);
        self.shared.finish().await;
        None
    }

    /// A handle that stops this consumer from elsewhere. Cheap to clone.
    #[must_use]
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle { shared: Arc::clone(&self.shared) }
    }

    /// Turns the consumer into a stream of its messages.
    pub fn into_stream(self) -> DeliveryStream {
        DeliveryStream::new(self)
    }

    /// What the backend can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Counts since the consumer was built.
    #[must_use]
    pub fn stats(&self) -> ConsumerStats {
        ConsumerStats {
            in_flight: self.shared.in_flight.count(),
            abandoned: self.shared.abandoned.load(Ordering::Relaxed),
            dead_lettered: self.shared.dead_lettered.load(Ordering::Relaxed),
        }
    }

    /// The next delivery that can be had without waiting.
    fn next_ready(&mut self) -> Result<Option<Delivery>> {
        loop {
            self.fetch_ready(ONE)?;
            // First in, first out; the inbox holds one element here unless an earlier call was cancelled.
            let received = match self.inbox.len() {
                0 => return Ok(None),
                1 => self.inbox.pop(),
                _ => Some(self.inbox.remove(0)),
            };
            let Some(received) = received else { return Ok(None) };
            if let Some(delivery) = self.admit(received) {
                return Ok(Some(delivery));
            }
        }
    }

    fn fetch_ready(&mut self, max: NonZeroUsize) -> Result<()> {
        if self.shared.is_stopped() {
            return Err(self.stopped());
        }
        if let Some(error) = self.remembered.take() {
            return Err(error);
        }
        if self.inbox.is_empty() {
            self.driver.fetch_ready(max, &mut self.inbox).map_err(stamp::<B>)?;
        }
        Ok(())
    }

    /// Waits until the inbox has something, or a permanent error, or the stop.
    async fn fill(&mut self, max: NonZeroUsize) -> Result<()> {
        while self.inbox.is_empty() {
            if self.shared.is_stopped() {
                return Err(self.stopped());
            }
            self.bury_exhausted().await;
            let fetch = self.driver.fetch(max, FETCH_WAIT, &mut self.inbox);
            match self.shared.until_stopped(fetch).await {
                None => return Err(self.stopped()),
                Some(Ok(())) => {
                    self.backoff.reset();
                    if self.inbox.is_empty() {
                        // A driver that comes back empty-handed at once must not keep the thread to itself.
                        tokio::task::yield_now().await;
                    }
                }
                Some(Err(error)) if error.is_transient() => {
                    let delay = self.backoff.next_delay();
                    observe::receive_failed(B::NAME, &self.shared.source, &error, self.backoff.failures());
                    if self.shared.until_stopped(tokio::time::sleep(delay)).await.is_none() {
                        return Err(self.stopped());
                    }
                }
                Some(Err(error)) => return Err(stamp::<B>(error)),
            }
        }
        Ok(())
    }

    /// The last step before the user: the verdict on attempts that crashed, then the in-flight count together with
    /// the closed flag. A delivery that comes too late is given back.
    fn admit(&mut self, received: Received) -> Option<Delivery> {
        if is_exhausted(&self.shared, &received) {
            self.exhausted.push(received);
            return None;
        }
        if self.shared.in_flight.enter(1) {
            return Some(Delivery::new(received, Arc::clone(&self.shared)));
        }
        self.inbox.push(received);
        None
    }

    /// Moves exhausted messages to the dead letter queue. Cancelled midway, the next call goes on where it was.
    async fn bury_exhausted(&mut self) {
        loop {
            let burying = self.burying.get_mut().unwrap_or_else(PoisonError::into_inner);
            if burying.is_none() {
                let Some(received) = self.exhausted.pop() else { return };
                *burying = Some(Box::pin(bury(Arc::clone(&self.shared), received)));
            }
            poll_fn(|context| {
                burying.as_mut().map_or(Poll::Ready(()), |burying| burying.as_mut().poll(context))
            })
            .await;
            *burying = None;
        }
    }

    /// Hands back what was fetched and not handed out, and finishes the dead letter that is on its way.
    async fn give_back(&mut self) {
        self.inbox.append(&mut self.exhausted);
        self.bury_exhausted().await;
        while let Some(received) = self.inbox.last() {
            if let Err(error) = received.lease.release(received.index).await {
                observe::close_failed(B::NAME, &self.shared.source, &error);
            }
            self.inbox.pop();
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a statement about this consumer")]
    fn stopped(&self) -> BuqueueError {
        BuqueueError::new(ErrorKind::ShuttingDown, "the consumer has been shut down").at(B::NAME, "receive")
    }
}

/// Whether all attempts that the message is allowed have failed, if only by crashing.
fn is_exhausted(shared: &Shared, received: &Received) -> bool {
    shared.dead_letters.as_ref().is_some_and(|dead_letters| {
        dlq::before_attempt(received.delivery_count, dead_letters.max_receive_count) == Verdict::DeadLetter
    })
}

/// Publish, confirm, then ack, for a message whose last attempt ended in a crash.
async fn bury(shared: Arc<Shared>, received: Received) {
    let Received { lease, index, delivery_count, first_failed_at } = received;
    let Some(dead_letters) = &shared.dead_letters else { return };
    let attempts = delivery_count.saturating_sub(1);
    let death = Death {
        message: lease.message(index),
        reason: MAX_RECEIVE_COUNT,
        source: &shared.source,
        attempts,
        first_failed_at,
    };
    if let Err(error) = dead_letters.publish(&death).await {
        observe::dead_letter_failed(shared.backend, &shared.source, &error);
        // The message stays in its queue and comes again; others are not held up. If this nack fails too, the lease
        // brings the message back.
        drop(lease.nack(index, DEAD_LETTER_RETRY).await);
        return;
    }
    if let Err(error) = lease.ack(index).await {
        observe::close_failed(shared.backend, &shared.source, &error);
    }
    shared.dead_lettered.fetch_add(1, Ordering::Relaxed);
    observe::dead_lettered(shared.backend, &shared.source, attempts);
}

fn stamp<B: Backend>(error: BuqueueError) -> BuqueueError {
    error.at(B::NAME, "receive")
}

impl<B: Backend> QueueConsumer for Consumer<B> {
    fn receive(&mut self) -> QueueFuture<'_, Result<Delivery>> {
        match self.next_ready() {
            Ok(Some(delivery)) => QueueFuture::ready(Ok(delivery)),
            Ok(None) => QueueFuture::pending(self.wait()),
            Err(error) => QueueFuture::ready(Err(error)),
        }
    }

    fn receive_batch(&mut self, max: usize) -> QueueFuture<'_, Result<Vec<Delivery>>> {
        QueueFuture::pending(Self::receive_batch(self, max))
    }

    fn try_receive(&mut self) -> QueueFuture<'_, Result<Option<Delivery>>> {
        QueueFuture::pending(Self::try_receive(self))
    }

    fn receive_graceful(&mut self) -> QueueFuture<'_, Option<Delivery>> {
        match self.next_ready() {
            Ok(Some(delivery)) => QueueFuture::ready(Some(delivery)),
            Ok(None) => QueueFuture::pending(Self::receive_graceful(self)),
            Err(error) => {
                if error.kind != ErrorKind::ShuttingDown {
                    self.remembered = Some(error);
                }
                QueueFuture::pending(Self::receive_graceful(self))
            }
        }
    }

    fn shutdown_handle(&self) -> ShutdownHandle {
        Self::shutdown_handle(self)
    }

    fn capabilities(&self) -> &Capabilities {
        Self::capabilities(self)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: QueueConsumer + ?Sized> QueueConsumer for Box<C> {
    fn receive(&mut self) -> QueueFuture<'_, Result<Delivery>> {
        (**self).receive()
    }

    fn receive_batch(&mut self, max: usize) -> QueueFuture<'_, Result<Vec<Delivery>>> {
        (**self).receive_batch(max)
    }

    fn try_receive(&mut self) -> QueueFuture<'_, Result<Option<Delivery>>> {
        (**self).try_receive()
    }

    fn receive_graceful(&mut self) -> QueueFuture<'_, Option<Delivery>> {
        (**self).receive_graceful()
    }

    fn shutdown_handle(&self) -> ShutdownHandle {
        (**self).shutdown_handle()
    }

    fn capabilities(&self) -> &Capabilities {
        (**self).capabilities()
    }

    fn into_stream(self) -> DeliveryStream {
        DeliveryStream::new(self)
    }
}

/// A dropped consumer closes as a crashed one would, only sooner: what it had fetched is given back in the
/// background where a runtime is there, else by the lease.
impl<B: Backend> Drop for Consumer<B> {
    fn drop(&mut self) {
        for received in self.inbox.drain(..) {
            received.lease.abandon(received.index);
        }
        for received in self.exhausted.drain(..) {
            received.lease.abandon(received.index);
        }
    }
}

impl<B: Backend> fmt::Debug for Consumer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("backend", &B::NAME)
            .field("driver", &self.driver)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}
