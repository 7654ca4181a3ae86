//! Receiving: the trait applications see, and the one place that polls a driver.

use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::burial::{Burials, is_exhausted};
use crate::driver::{Backend, Consumer as _, Received};
use crate::future::Begin;
use crate::shutdown::{CLOSE_TIMEOUT, Shared};
use crate::{
    Backoff, BuqueueError, Capabilities, Delivery, DeliveryStream, ErrorKind, QueueFuture, QueueMonitor,
    Result, ShutdownHandle,
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

    /// A handle that counts what lies in the queue, from anywhere.
    fn monitor(&self) -> QueueMonitor {
        self.shutdown_handle().monitor()
    }

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
    burials: Burials,
    backoff: Backoff,
    /// Ended a `receive_graceful` loop, which has no way to return it; the next call does.
    remembered: Option<BuqueueError>,
}

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
            burials: Burials::default(),
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
        match self.receive_ready() {
            Some(delivery) => Ok(delivery),
            // Boxed, so that the future of a receive that need not wait stays small enough to be moved cheaply.
            None => Box::pin(self.wait()).await,
        }
    }

    /// The next delivery, if nothing stands in the way of handing it out at once.
    #[inline]
    fn receive_ready(&mut self) -> Option<Delivery> {
        if self.has_burial() {
            return None;
        }
        // An error is found again by the call that waits.
        let delivery = self.next_ready();
        match delivery {
            Ok(delivery) => delivery,
            Err(error) => {
                self.remember(error);
                None
            }
        }
    }

    async fn wait(&mut self) -> Result<Delivery> {
        loop {
            self.advance_burial().await;
            match self.next_ready() {
                Ok(Some(delivery)) => return Ok(delivery),
                Ok(None) => self.fill(ONE).await?,
                Err(error) => return Err(self.end(error).await),
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
            self.advance_burial().await;
            if let Err(error) = self.fetch_ready(max) {
                return Err(self.end(error).await);
            }
            if !self.inbox.is_empty() {
                let count = self.inbox.len().min(max.get());
                let mut batch = Vec::with_capacity(count);
                if !self.shared.in_flight.enter(count) {
                    return Err(self.end(stopped::<B>()).await);
                }
                // Made for the first: there may be none.
                let mut receiving = None;
                for received in self.inbox.drain(..count) {
                    if is_exhausted(&self.shared, &received) {
                        self.burials.push(received);
                    } else {
                        let receiving = receiving.get_or_insert_with(|| self.shared.scope.begin_receive());
                        batch.push(Delivery::new(received, Arc::clone(&self.shared), receiving));
                    }
                }
                self.shared.in_flight.leave(count - batch.len());
                if let Some(receiving) = receiving {
                    self.shared.scope.received(&receiving, batch.len(), true);
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
            // Begun or carried on, not waited for: this call is prompt.
            self.advance_burial().await;
            match self.next_ready() {
                Ok(Some(delivery)) => return Ok(Some(delivery)),
                Ok(None) => {}
                Err(error) => return Err(self.end(error).await),
            }
            if self.burials.is_full() {
                return Ok(None);
            }
            let started = self.shared.scope.begin_fetch();
            let outcome = self.driver.fetch(ONE, Duration::ZERO, &mut self.inbox).await;
            self.shared.scope.fetched(&started, &outcome, self.inbox.len());
            outcome.map_err(stamp::<B>)?;
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
            Err(error) => self.remember(error),
        }
        self.shared.stop();
        self.give_back().await;
        // What is not done in time is left to the leases.
        let Self { burials, shared, .. } = self;
        drop(timeout(CLOSE_TIMEOUT, burials.finish(shared)).await);
        self.shared.finish().await;
        None
    }

    /// A handle that stops this consumer from elsewhere. Cheap to clone.
    #[must_use]
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle { shared: Arc::clone(&self.shared) }
    }

    /// A handle that counts what lies in the queue, from anywhere. Cheap to clone.
    #[must_use]
    pub fn monitor(&self) -> QueueMonitor {
        self.shutdown_handle().monitor()
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
    #[inline]
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

    #[inline]
    fn fetch_ready(&mut self, max: NonZeroUsize) -> Result<()> {
        if let Some(error) = self.remembered.take() {
            return Err(error);
        }
        if self.shared.is_stopped() {
            return Err(stopped::<B>());
        }
        // Nothing more while dead letters pile up behind a queue that does not answer.
        if self.inbox.is_empty() && !self.burials.is_full() {
            self.driver.fetch_ready(max, &mut self.inbox).map_err(stamp::<B>)?;
        }
        Ok(())
    }

    /// Waits until the inbox has something, or a permanent error, or the stop.
    async fn fill(&mut self, max: NonZeroUsize) -> Result<()> {
        while self.inbox.is_empty() {
            let Self { driver, inbox, burials, shared, .. } = self;
            let started = shared.scope.begin_fetch();
            let outcome = if burials.is_full() {
                // More would pile up behind a dead letter queue that does not answer.
                shared.until_stopped(burials.finish(shared)).await.map(Ok)
            } else {
                let mut fetch = pin!(driver.fetch(max, FETCH_WAIT, inbox));
                let both = poll_fn(|context| {
                    // Beside the fetch: neither waits for the other.
                    let _more = burials.poll(shared, context);
                    fetch.as_mut().poll(context)
                });
                shared.until_stopped(both).await
            };
            if let Some(outcome) = &outcome {
                self.shared.scope.fetched(&started, outcome, self.inbox.len());
            }
            match outcome {
                None => return Err(self.end(stopped::<B>()).await),
                Some(Ok(())) => {
                    if self.backoff.failures() > 0 {
                        self.shared.scope.receive_recovered(self.backoff.failures());
                    }
                    self.backoff.reset();
                    if self.inbox.is_empty() {
                        // A driver that comes back empty-handed at once must not keep the thread to itself.
                        tokio::task::yield_now().await;
                    }
                }
                Some(Err(error)) if error.is_transient() => {
                    let delay = self.backoff.next_delay();
                    self.shared.scope.receive_failed(&error, self.backoff.failures());
                    if self.shared.until_stopped(tokio::time::sleep(delay)).await.is_none() {
                        return Err(self.end(stopped::<B>()).await);
                    }
                }
                Some(Err(error)) => return Err(stamp::<B>(error)),
            }
        }
        Ok(())
    }

    /// Keeps an error for the next call that can return it. A stop is no error to keep: it shows by itself.
    fn remember(&mut self, error: BuqueueError) {
        if error.kind != ErrorKind::ShuttingDown {
            self.remembered = Some(error);
        }
    }

    #[inline]
    fn has_burial(&self) -> bool {
        !self.burials.is_empty()
    }

    /// Carries the burials on as far as they go without waiting.
    async fn advance_burial(&mut self) {
        if self.has_burial() {
            let Self { burials, shared, .. } = self;
            poll_fn(|context| {
                let _more = burials.poll(shared, context);
                Poll::Ready(())
            })
            .await;
        }
    }

    /// The last step before the user: the verdict on attempts that crashed, then the in-flight count together with
    /// the closed flag. A delivery that comes too late is given back.
    #[inline]
    fn admit(&mut self, received: Received) -> Option<Delivery> {
        if is_exhausted(&self.shared, &received) {
            self.burials.push(received);
            return None;
        }
        if self.shared.in_flight.enter(1) {
            let receiving = self.shared.scope.begin_receive();
            self.shared.scope.received(&receiving, 1, false);
            return Some(Delivery::new(received, Arc::clone(&self.shared), &receiving));
        }
        self.inbox.push(received);
        None
    }

    /// On the way out: hands back what was fetched and not handed out. The error that ends the call, back again.
    async fn end(&mut self, error: BuqueueError) -> BuqueueError {
        if error.kind == ErrorKind::ShuttingDown {
            self.give_back().await;
        }
        error
    }

    /// Hands back what was fetched and not handed out. What is not done in time is left to the leases.
    async fn give_back(&mut self) {
        self.inbox.append(&mut self.burials.take_waiting());
        if self.inbox.is_empty() {
            return;
        }
        // The driver first: what it holds is younger than what is here, and belongs behind it.
        self.shared.close().await;
        let Self { inbox, shared, .. } = self;
        let all = async {
            while let Some(Received { lease, index, .. }) = inbox.pop() {
                let ready = lease.release(index).into_ready().ok();
                let released = match ready {
                    Some(released) => released,
                    // Out of the inbox, and so carried out although nobody may wait for it any more. A runtime that has
                    // ended leaves it to the lease.
                    None => tokio::spawn(async move { lease.release(index).await }).await.unwrap_or(Ok(())),
                };
                if let Err(error) = released {
                    shared.scope.close_failed(&error);
                }
            }
        };
        drop(timeout(CLOSE_TIMEOUT, all).await);
    }
}

fn stopped<B: Backend>() -> BuqueueError {
    BuqueueError::new(ErrorKind::ShuttingDown, "the consumer has been shut down").at(B::NAME, "receive")
}

fn stamp<B: Backend>(error: BuqueueError) -> BuqueueError {
    error.at(B::NAME, "receive")
}

impl<B: Backend> Begin<Result<Delivery>> for Consumer<B> {
    fn begin(&mut self) -> QueueFuture<'_, Result<Delivery>> {
        match self.receive_ready() {
            Some(delivery) => QueueFuture::ready(Ok(delivery)),
            None => QueueFuture::pending(self.wait()),
        }
    }
}

impl<B: Backend> Begin<Option<Delivery>> for Consumer<B> {
    fn begin(&mut self) -> QueueFuture<'_, Option<Delivery>> {
        match self.receive_ready() {
            Some(delivery) => QueueFuture::ready(Some(delivery)),
            None => QueueFuture::pending(Self::receive_graceful(self)),
        }
    }
}

impl<B: Backend> QueueConsumer for Consumer<B> {
    fn receive(&mut self) -> QueueFuture<'_, Result<Delivery>> {
        QueueFuture::receive(self)
    }

    fn receive_batch(&mut self, max: usize) -> QueueFuture<'_, Result<Vec<Delivery>>> {
        QueueFuture::pending(Self::receive_batch(self, max))
    }

    fn try_receive(&mut self) -> QueueFuture<'_, Result<Option<Delivery>>> {
        QueueFuture::pending(Self::try_receive(self))
    }

    fn receive_graceful(&mut self) -> QueueFuture<'_, Option<Delivery>> {
        QueueFuture::receive(self)
    }

    fn shutdown_handle(&self) -> ShutdownHandle {
        Self::shutdown_handle(self)
    }

    fn monitor(&self) -> QueueMonitor {
        Self::monitor(self)
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

    fn monitor(&self) -> QueueMonitor {
        (**self).monitor()
    }

    fn capabilities(&self) -> &Capabilities {
        (**self).capabilities()
    }

    fn into_stream(self) -> DeliveryStream {
        DeliveryStream::new(self)
    }
}

/// A dropped consumer gives back what it had fetched: at once, in the background where a runtime is there, or by the
/// lease.
impl<B: Backend> Drop for Consumer<B> {
    fn drop(&mut self) {
        self.shared.be_gone();
        self.inbox.append(&mut self.burials.take_waiting());
        for Received { lease, index, .. } in self.inbox.drain(..).rev() {
            if lease.release(index).into_ready().is_ok() {
                continue;
            }
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(async move { lease.release(index).await })),
                Err(_) => lease.abandon(index),
            }
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
