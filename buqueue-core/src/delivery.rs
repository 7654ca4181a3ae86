//! One delivery: the message, and the one chance to settle it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use crate::dlq::{self, DeadLetters, Death, Verdict};
use crate::driver::{Lease, Received};
use crate::observe::{Operation, Processing, Receiving, Settling, Started};
use crate::shutdown::Shared;
use crate::{BuqueueError, ErrorKind, Headers, Message, MessageId, QueueProducer, Result};

/// The lease of a message while its dead letter is published.
pub(crate) const BURIAL: Duration = Duration::from_secs(30);

/// How long a message stays away whose dead letter could not be published.
pub(crate) const DEAD_LETTER_RETRY: Duration = Duration::from_secs(1);

/// A message handed to a consumer, not yet settled.
///
/// Settle it once, with [`ack`](Self::ack), [`nack`](Self::nack), [`nack_after`](Self::nack_after) or
/// [`dead_letter`](Self::dead_letter); each consumes the delivery, so a second settle does not compile. A delivery
/// that is dropped unsettled (a panic, an early return, a cancelled task) is nacked in the background, or comes back
/// when its lease runs out, and counts as a failed attempt either way.
///
/// A delivery outlives its consumer: it can be settled after the consumer, or the stream, is gone.
///
/// Dropping the future of a settle midway leaves open whether it happened; the message is then either settled or
/// redelivered, never lost.
#[must_use = "a delivery that is not settled is redelivered"]
pub struct Delivery {
    lease: Arc<dyn Lease>,
    shared: Arc<Shared>,
    index: u32,
    delivery_count: u32,
    /// What the broker counted; differs from `delivery_count` on a dead letter that has not failed again.
    broker_count: u32,
    open: bool,
    /// Counted among the consumer's deliveries in flight.
    in_flight: bool,
    first_failed_at: Option<DateTime<Utc>>,
    /// When it was handed out.
    since: Started,
    pub(crate) processing: Processing,
}

impl Delivery {
    /// Wraps what a driver received, handed out by the call of `receiving`. It must have been counted in by
    /// `in_flight.enter()`.
    #[inline]
    pub(crate) fn new(received: Received, shared: Arc<Shared>, receiving: &Receiving) -> Self {
        let (delivery_count, first_failed_at) = dlq::story(&received);
        let processing = shared.scope.process(receiving, &received, delivery_count);
        Self {
            since: Started::now(),
            processing,
            lease: received.lease,
            shared,
            index: received.index,
            delivery_count,
            broker_count: received.delivery_count,
            open: true,
            in_flight: true,
            first_failed_at,
        }
    }

    /// The message.
    #[must_use]
    #[inline]
    pub fn message(&self) -> &Message {
        self.lease.message(self.index)
    }

    /// The payload, exactly as it was sent.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &Bytes {
        self.message().payload()
    }

    /// Decodes the payload from JSON.
    ///
    /// # Errors
    /// [`Serialization`](ErrorKind::Serialization) when the payload is not the JSON of a `T`. The delivery is
    /// unharmed and waits to be settled.
    pub fn payload_json<T: DeserializeOwned>(&self) -> Result<T> {
        self.message().payload_json()
    }

    /// The value of one header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.message().header(name)
    }

    /// All headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.message().headers()
    }

    /// The routing key that the message was sent with.
    #[must_use]
    pub fn routing_key(&self) -> Option<&str> {
        self.message().routing_key()
    }

    /// The deduplication id that the message was sent with.
    #[must_use]
    pub fn deduplication_id(&self) -> Option<&str> {
        self.message().deduplication_id()
    }

    /// The broker's id of the message.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.lease.message_id(self.index)
    }

    /// Which attempt this is: 1 on first delivery, one more with every redelivery, whatever its cause.
    ///
    /// On a dead letter it is the count of the original, until the dead letter itself fails.
    #[must_use]
    pub fn delivery_count(&self) -> u32 {
        self.delivery_count
    }

    /// When the first failed attempt ended or was first known; `None` on first delivery.
    ///
    /// On a dead letter it is the original's, until the dead letter itself fails.
    #[must_use]
    pub fn first_failed_at(&self) -> Option<DateTime<Utc>> {
        self.first_failed_at
    }

    /// Runs `future` inside the span of this message, so that its own spans and events, and the messages that it sends,
    /// belong to the same trace. Without the feature `tracing` it is the future itself.
    ///
    /// Where `tracing::Instrument` is in scope, its method of this name, which is on everything, comes first; write
    /// `future.instrument(delivery.span().clone())` there.
    ///
    /// ```
    /// # async fn handle(payload: &[u8]) {}
    /// # async fn example(delivery: buqueue_core::Delivery) -> buqueue_core::Result<()> {
    /// delivery.instrument(handle(delivery.payload())).await;
    /// delivery.ack().await
    /// # }
    /// ```
    pub fn instrument<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        self.processing.instrument(future)
    }

    /// The message is processed; the broker forgets it.
    ///
    /// Acks awaited concurrently are sent together where the broker allows it.
    ///
    /// # Errors
    /// [`LeaseExpired`](ErrorKind::LeaseExpired) when the broker has given the message to somebody else, where it
    /// can tell; [`ConnectionLost`](ErrorKind::ConnectionLost) and [`Timeout`](ErrorKind::Timeout) when it is open
    /// whether the broker knows. In each case the message may be delivered again.
    #[inline]
    pub fn ack(self) -> impl Future<Output = Result<()>> + Send + 'static {
        // A block, not an `async fn`: it holds the delivery once, and stays small enough to be moved cheaply.
        let mut delivery = self;
        async move {
            delivery.open = false;
            let settling = delivery.settle(Operation::Ack);
            let outcome = delivery.lease.ack(delivery.index).await;
            settling.end(&outcome);
            outcome.map_err(|error| delivery.stamp(error, "ack"))
        }
    }

    /// Acks many deliveries at once: one round trip where the broker allows it.
    ///
    /// # Errors
    /// The first failure; the others are acked all the same.
    pub async fn ack_all(deliveries: impl IntoIterator<Item = Self>) -> Result<()> {
        let mut deliveries: Vec<Self> = deliveries.into_iter().collect();
        let now = Started::now();
        for delivery in &mut deliveries {
            delivery.open = false;
            delivery.shared.scope.ended(Operation::Ack, &delivery.processing, &delivery.since, &now);
        }
        // Mostly all are one consumer's.
        let mut settlings = Self::by_consumer(&deliveries).map(|(at, run)| {
            let scope = &run[0].shared.scope;
            let settling = match run {
                [one] => scope.begin_settle(Operation::Ack, &one.processing),
                many => scope.settle_many(many.iter().map(|delivery| &delivery.processing)),
            };
            (at, settling)
        });
        let first = settlings.next();
        let others: Vec<(usize, Settling<'_>)> = settlings.collect();
        let mut indexes = Vec::with_capacity(deliveries.len());
        let runs: Vec<&[Self]> = deliveries.chunk_by(|a, b| Arc::ptr_eq(&a.lease, &b.lease)).collect();
        indexes.extend(deliveries.iter().map(|delivery| delivery.index));
        // Every run is started before any is awaited, so that a backend that coalesces sees them together.
        let mut from = 0;
        let mut acks = Vec::with_capacity(runs.len());
        for run in runs {
            let to = from + run.len();
            let ack = match run {
                [one] => one.lease.ack(one.index),
                _ => run[0].lease.ack_many(&indexes[from..to]),
            };
            acks.push((from, &run[0], ack));
            from = to;
        }
        let mut first_failure = Ok(());
        // The last first: when it is done, those before it mostly are, and one wake was enough for all.
        for (at, settling) in first.into_iter().chain(others).rev() {
            let mut of_consumer = Ok(());
            while let Some((_, delivery, ack)) = acks.pop_if(|(from, ..)| *from >= at) {
                let outcome = ack.await.map_err(|error| delivery.stamp(error, "ack"));
                of_consumer = outcome.and(of_consumer);
            }
            settling.end(&of_consumer);
            first_failure = of_consumer.and(first_failure);
        }
        drop(acks);
        // Counted off together: the count is the one thing that all of them share.
        for run in deliveries.chunk_by_mut(|a, b| Arc::ptr_eq(&a.shared, &b.shared)) {
            let count = run
                .iter_mut()
                .filter_map(|delivery| delivery.in_flight.then(|| delivery.in_flight = false))
                .count();
            if let Some(delivery) = run.first() {
                delivery.shared.leave(count);
            }
        }
        first_failure
    }

    /// Runs of deliveries of one consumer, each with the place where it begins.
    fn by_consumer(deliveries: &[Self]) -> impl Iterator<Item = (usize, &[Self])> {
        deliveries.chunk_by(|a, b| Arc::ptr_eq(&a.shared, &b.shared)).scan(0, |next, run| {
            let at = *next;
            *next += run.len();
            Some((at, run))
        })
    }

    /// The attempt failed: the message is visible again at once, or, after the last allowed attempt, moves to the
    /// dead letter queue.
    ///
    /// # Errors
    /// As [`ack`](Self::ack). When the dead letter could not be published, its error; the message then stays in its
    /// queue.
    pub async fn nack(self) -> Result<()> {
        self.fail(Duration::ZERO, Operation::Nack).await
    }

    /// As [`nack`](Self::nack), but the message is visible again after `delay`. The broker keeps the delay, so it
    /// survives this process.
    ///
    /// # Errors
    /// As [`nack`](Self::nack).
    pub async fn nack_after(self, delay: Duration) -> Result<()> {
        self.fail(delay, Operation::NackAfter).await
    }

    /// Moves the message to the dead letter queue now, with the reason.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) when the consumer was built without a dead letter queue, else as
    /// [`nack`](Self::nack). The message then stays in its queue and is redelivered.
    pub async fn dead_letter(mut self, reason: impl AsRef<str>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(dead_letters) = &shared.dead_letters else {
            self.open = false;
            let settling = self.settle(Operation::Nack);
            let outcome = self.lease.nack(self.index, Duration::ZERO).await;
            settling.end(&outcome);
            outcome.map_err(|error| self.stamp(error, "dead_letter"))?;
            let error = BuqueueError::new(ErrorKind::Unsupported, "the consumer has no dead letter queue");
            return Err(self.stamp(error, "dead_letter"));
        };
        self.bury(dead_letters, reason.as_ref(), Operation::DeadLetter).await
    }

    /// Sends a dead letter back through `producer`, with its headers, routing key and deduplication id, and acks it
    /// here. Sent first, acked then: a crash in between duplicates.
    ///
    /// The headers that buqueue added are removed, except the count of deaths. The broker's deduplication is
    /// bypassed, since it would drop the message.
    ///
    /// # Errors
    /// The producer's, in which case the dead letter stays; or the ack's, in which case it may be seen again.
    pub async fn redrive<P: QueueProducer + ?Sized>(self, producer: &P) -> Result<MessageId> {
        let id = producer.send(dlq::redriven(self.message())).await?;
        self.ack().await?;
        Ok(id)
    }

    /// Starts the lease again: it now ends `by` from now. Where the broker has no lease, this is `Ok` and does
    /// nothing.
    ///
    /// Dropping the future midway leaves open whether the lease was extended. What settles the delivery afterwards has
    /// the last word, so a heartbeat may be dropped at any time. Not guaranteed where a request was given up because its
    /// connection was silent: what the network delivers later than that, the broker does then.
    ///
    /// # Errors
    /// [`LeaseExpired`](ErrorKind::LeaseExpired) when it is too late; the connection's errors.
    pub async fn extend_visibility(&self, by: Duration) -> Result<()> {
        self.lease.extend(self.index, by).await.map_err(|error| self.stamp(error, "extend_visibility"))
    }

    async fn fail(mut self, after: Duration, operation: Operation) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        match &shared.dead_letters {
            Some(dead_letters)
                if dlq::after_failure(self.broker_count, dead_letters.max_receive_count)
                    == Verdict::DeadLetter =>
            {
                self.bury(dead_letters, MAX_RECEIVE_COUNT, operation).await
            }
            _ => {
                self.open = false;
                let settling = self.settle(operation);
                let outcome = self.lease.nack(self.index, after).await;
                settling.end(&outcome);
                outcome.map_err(|error| self.stamp(error, operation.name()))
            }
        }
    }

    /// Moves the message to the dead letter queue, at the call named `operation`.
    async fn bury(mut self, dead_letters: &DeadLetters, reason: &str, operation: Operation) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let settling = shared.scope.begin_settle(Operation::DeadLetter, &self.processing);
        let outcome = self.publish_and_ack(dead_letters, reason).await;
        settling.end(&outcome);
        outcome.map_err(|error| self.stamp(error, operation.name()))
    }

    /// Publish, confirm, then ack. Until it is published the delivery stays open: dropped here, it is nacked.
    async fn publish_and_ack(&mut self, dead_letters: &DeadLetters, reason: &str) -> Result<()> {
        // A handler that outlived its lease must not publish what somebody else will publish too; and the lease must
        // not run out in the middle.
        if let Err(error) = self.lease.extend(self.index, BURIAL).await
            && error.kind == ErrorKind::LeaseExpired
        {
            self.end_as(Operation::Nack);
            return Err(error);
        }
        let published = dead_letters
            .publish(&Death {
                message: self.message(),
                reason,
                source: &self.shared.scope.destination,
                attempts: self.delivery_count,
                first_failed_at: self.first_failed_at,
            })
            .await;
        match published {
            Ok(_) => {
                self.end_as(Operation::DeadLetter);
                self.shared.dead_lettered.fetch_add(1, Ordering::Relaxed);
                self.processing.within(|| self.shared.scope.dead_lettered(self.delivery_count));
                self.lease.ack(self.index).await
            }
            Err(error) => {
                self.end_as(Operation::Nack);
                self.processing.within(|| self.shared.scope.dead_letter_failed(&error));
                // If this fails too, the lease brings the message back.
                drop(self.lease.nack(self.index, DEAD_LETTER_RETRY).await);
                Err(error)
            }
        }
    }

    #[inline]
    fn settle(&self, operation: Operation) -> Settling<'_> {
        self.shared.scope.settle(operation, &self.processing, &self.since)
    }

    /// From here on it is no longer abandoned when it is dropped.
    fn end_as(&mut self, operation: Operation) {
        self.open = false;
        self.shared.scope.ended(operation, &self.processing, &self.since, &Started::now());
    }

    fn stamp(&self, error: BuqueueError, operation: &'static str) -> BuqueueError {
        error.at(self.shared.scope.backend, operation)
    }
}

/// The reason on dead letters that ran out of attempts.
pub(crate) const MAX_RECEIVE_COUNT: &str = "max_receive_count reached";

impl Drop for Delivery {
    #[inline]
    fn drop(&mut self) {
        if self.open {
            self.shared.abandoned.fetch_add(1, Ordering::Relaxed);
            self.shared.scope.abandoned(&self.processing, &self.since);
            self.lease.abandon(self.index);
        }
        if self.in_flight {
            self.shared.leave(1);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", &self.message_id())
            .field("message", self.message())
            .field("delivery_count", &self.delivery_count)
            .field("first_failed_at", &self.first_failed_at)
            .finish_non_exhaustive()
    }
}
