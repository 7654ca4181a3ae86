//! The seam: what a backend implements, and nothing else.
//!
//! A backend is four small pieces: a [`Backend`] that connects, a [`Producer`] that sends, a [`Consumer`] that
//! fetches, and a [`Lease`] by which what was fetched is settled. Everything that must be the same on every broker
//! (validation, batches, the dead letter verdict, in-flight accounting, shutdown, streams, back-off) is core's.
//!
//! A driver never logs (it may [`tell`]), never retries on the user's behalf, never sleeps to retry, and spawns no task that nobody
//! owns. It reports errors by [kind](crate::ErrorKind); core decides what to do about them.

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::{
    BuqueueError, Capabilities, ErrorKind, Message, MessageId, QueueFuture, QueueStats, Result, observe,
};

/// A broker's adapter: how to connect, and what it can do.
pub trait Backend: Sized + Send + Sync + 'static {
    /// The name in errors, logs and `messaging.system`: lower case, as the broker's own.
    const NAME: &'static str;

    /// Everything needed to connect: the user's config struct and what the builder adds to it.
    type Config: Clone + Send + Sync + 'static;
    /// The sending half.
    type Producer: Producer;
    /// The receiving half.
    type Consumer: Consumer;

    /// What this backend can do in this configuration.
    fn capabilities(config: &Self::Config) -> Capabilities;

    /// The queue, topic or stream that the configuration names, as [`redirect`](Self::redirect) takes it.
    fn destination(config: &Self::Config) -> String;

    /// What telemetry calls it, where that is shorter.
    fn destination_name(config: &Self::Config) -> String {
        Self::destination(config)
    }

    /// The consumer group that the configuration names, for telemetry; `None` where there is none.
    fn group(config: &Self::Config) -> Option<String> {
        let _ = config;
        None
    }

    /// The same connection, pointed at another queue. Core opens the dead letter queue with it.
    fn redirect(config: &Self::Config, destination: &str) -> Self::Config;

    /// The same configuration for a consumer whose messages core moves to the dead letter queue after so many attempts.
    ///
    /// For brokers that have a verdict of their own, which must not come before core's.
    fn with_max_receive_count(config: Self::Config, max_receive_count: u32) -> Self::Config {
        let _ = max_receive_count;
        config
    }

    /// Connects the sending half.
    ///
    /// # Behavior
    /// - Validates the whole configuration; the error names the field.
    /// - Creates the queue, or verifies the one that is there; a clash names both values.
    /// - Fails with `ConnectionLost` within the connection timeout when the broker is unreachable.
    /// - Starts nothing that consumes.
    fn connect_producer(config: &Self::Config) -> impl Future<Output = Result<Self::Producer>> + Send;

    /// Connects the receiving half.
    ///
    /// # Behavior
    /// - As [`connect_producer`](Self::connect_producer).
    /// - The start position is fixed before this returns: what is sent afterwards is received.
    fn connect_consumer(config: &Self::Config) -> impl Future<Output = Result<Self::Consumer>> + Send;
}

/// The sending half of a backend. Messages arrive here validated against [`Capabilities::limits`].
pub trait Producer: fmt::Debug + Send + Sync + 'static {
    /// Sends without waiting where that is possible; gives the message back where it is not.
    ///
    /// A broker across a network leaves this alone; it exists so that an in-memory send costs no future.
    ///
    /// # Errors
    /// The message, when sending it means waiting.
    fn send_ready(&self, message: Message) -> std::result::Result<Result<MessageId>, Message> {
        Err(message)
    }

    /// Sends one message.
    ///
    /// # Behavior
    /// - `Ok` means that the broker has taken the message at its strongest ordinary acknowledgement.
    /// - A message that no queue received is an error.
    /// - A message whose [`broker_deduplication_id`](Message::broker_deduplication_id) was sent before, within the
    ///   window, is `Ok` and delivered once, where the broker can.
    fn send(&self, message: Message) -> impl Future<Output = Result<MessageId>> + Send;

    /// Sends one message that becomes visible at `deliver_at`, by the broker's clock.
    ///
    /// # Behavior
    /// - Never early; a time that has passed means now.
    /// - Survives the death of this process, of every consumer and of the broker.
    fn send_at(
        &self,
        message: Message,
        deliver_at: DateTime<Utc>,
    ) -> impl Future<Output = Result<MessageId>> + Send;

    /// Sends many messages, keeping their order: one outcome a message, in the same order.
    ///
    /// # Behavior
    /// - Uses the broker's batch or pipelining, and splits by its limits.
    /// - `messages` is not empty.
    fn send_batch(&self, messages: Vec<Message>) -> impl Future<Output = Vec<Result<MessageId>>> + Send;

    /// How many bytes of headers, names and values together, may be added to `message` so that the broker still takes
    /// it. Core adds no more than that (trace context, above all), in 16 headers at most, whose names and values are printable
    /// ASCII.
    ///
    /// Only for limits beyond [`Limits::header_bytes`](crate::Limits::header_bytes), which core minds by itself: those
    /// on the whole message, or on the number of headers. Must be cheap; rather too little than too much.
    fn header_room(&self, message: &Message) -> usize {
        let _ = message;
        usize::MAX
    }

    /// Counts what lies in the queue. For a log: what the group of this configuration has before it.
    ///
    /// # Behavior
    /// - Takes nothing, and changes nothing.
    /// - Returns within the time that a send may take.
    fn queue_stats(&self) -> impl Future<Output = Result<QueueStats>> + Send {
        async { Err(no_stats()) }
    }

    /// Flushes what is buffered and closes.
    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// The receiving half of a backend.
///
/// A consumer that is dropped need not have been closed. Core then gives back what the driver has handed it; what the driver
/// itself has fetched ahead is the driver's to give back, in its own `Drop`: in the background where a runtime is there, or by
/// the lease.
pub trait Consumer: fmt::Debug + Send + 'static {
    /// Appends up to `max` deliveries that can be had without any I/O and without waiting.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        let _ = (max, out);
        Ok(())
    }

    /// Appends up to `max` deliveries.
    ///
    /// # Behavior
    /// - Returns as soon as one is there, and empty-handed after about `wait`; `wait == 0` means one prompt look.
    /// - Cancel-safe: when the future is dropped, no message is lost, and none is delayed by more than its lease.
    /// - Reconnects by itself, but never sleeps to retry: it returns the error, and core backs off and calls again.
    /// - A foreign or malformed record becomes a delivery with what could be read of it.
    /// - What was appended before an error is kept, and handed out.
    fn fetch(
        &mut self,
        max: NonZeroUsize,
        wait: Duration,
        out: &mut Vec<Received>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// A handle on this consumer for others, while the consumer itself may be held unpolled.
    fn control(&self) -> Arc<dyn Control>;
}

/// What can be done with a consumer from elsewhere.
pub trait Control: fmt::Debug + Send + Sync + 'static {
    /// Stops the consumer.
    ///
    /// # Behavior
    /// - What was fetched and not handed out is visible to other consumers when the future ends, without having
    ///   counted as an attempt where the broker allows it.
    /// - May come while a fetch is under way, or after one was dropped: what that still brings goes back, too.
    /// - Deliveries that are in flight can still be settled afterwards.
    /// - Idempotent. A later fetch returns empty-handed.
    fn close(&self) -> QueueFuture<'_, Result<()>>;

    /// Counts what lies in the queue; as [`Producer::queue_stats`].
    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::ready(Err(no_stats()))
    }
}

pub(crate) fn no_stats() -> BuqueueError {
    BuqueueError::new(ErrorKind::Unsupported, "queue_stats: this backend does not count")
}

/// Something that a driver does by itself, between the calls of core.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Activity<'a> {
    /// A connection broke, or a session ended.
    Disconnected(&'a BuqueueError),
    /// What was broken is whole again.
    Reconnected,
    /// So many messages that had waited for their time, schedules and delayed retries, were moved to where they are received,
    /// where the driver does that.
    Forwarded(usize),
    /// So many messages were taken over from consumers that are gone or too slow.
    Reclaimed(usize),
    /// Work in the background failed and is tried again; the text says which.
    Failed(&'static str, &'a BuqueueError),
}

/// Tells of something that a driver did by itself, for logs and metrics. The error's text must hold no payload, no
/// header value and no credential, as ever.
pub fn tell(backend: &'static str, destination: &str, activity: Activity<'_>) {
    observe::activity(backend, destination, activity);
}

/// What one fetch brought, and the means to settle it. Outlives its consumer.
///
/// A backend may hand out one lease a message, always with index 0, or one lease for a whole fetch. A lease keeps
/// all its messages in memory until the last delivery of it is gone, so group only what is small.
///
/// Core settles each index at most once. A settle after the broker's time limit returns `LeaseExpired` where the
/// broker can tell; it never panics.
pub trait Lease: Send + Sync + 'static {
    /// The message.
    fn message(&self, index: u32) -> &Message;

    /// The broker's id of the message.
    fn message_id(&self, index: u32) -> MessageId;

    /// Tells what only this broker has to say of the message, by the names that OpenTelemetry has for it: a partition, an
    /// offset, a delivery tag. Only asked when somebody wants to see it.
    fn details(&self, index: u32, tell: &mut dyn FnMut(&'static str, Detail<'_>)) {
        let _ = (index, tell);
    }

    /// The message is processed; the broker forgets it.
    ///
    /// # Behavior
    /// - `Ok` means that the broker has it, where the protocol can tell.
    /// - The settle happens even when the future is dropped after its first poll, or else not at all.
    fn ack(&self, index: u32) -> QueueFuture<'_, Result<()>>;

    /// The message failed: it is visible again after `after` (zero: at once), with a delivery count one higher.
    ///
    /// # Behavior
    /// - Crash-safe: the broker keeps the delay, never a sleep in this process with the message already acked.
    fn nack(&self, index: u32, after: Duration) -> QueueFuture<'_, Result<()>>;

    /// The message was never handed to the user: it is visible again at once, not counted where the broker allows.
    ///
    /// # Behavior
    /// - Either ready, or begun by the first poll and not before: core may ask twice, and poll once.
    fn release(&self, index: u32) -> QueueFuture<'_, Result<()>> {
        self.nack(index, Duration::ZERO)
    }

    /// The time limit starts again and ends `by` from now; `Ok` where there is none. However long `by` is, nothing
    /// overflows: it is cut to what the broker takes, or refused.
    ///
    /// # Behavior
    /// - What settles the message afterwards has the last word, also when this future was dropped midway: an extension
    ///   that arrives after a nack would hide a message that nobody has.
    /// - A lease that was extended, although nobody waited to hear of it, ends later. What settles the message in the
    ///   meantime is carried out; or it is refused, and the message is back within an ordinary lease.
    fn extend(&self, index: u32, by: Duration) -> QueueFuture<'_, Result<()>>;

    /// The delivery was dropped unsettled: nack it in the background, or leave it to the time limit.
    ///
    /// # Behavior
    /// - Must not block and must not panic, also outside a runtime.
    fn abandon(&self, index: u32);

    /// Acks several messages of this lease: one outcome for all, the first failure.
    fn ack_many<'a>(&'a self, indexes: &'a [u32]) -> QueueFuture<'a, Result<()>> {
        QueueFuture::pending(async move {
            // Started together, so that a backend that coalesces sees them together.
            let acks: Vec<_> = indexes.iter().map(|&index| self.ack(index)).collect();
            let mut first_failure = Ok(());
            for ack in acks {
                first_failure = first_failure.and(ack.await);
            }
            first_failure
        })
    }
}

/// A value of [`Lease::details`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detail<'a> {
    /// A text.
    Text(&'a str),
    /// A number.
    Number(i64),
}

/// One delivery on its way from a driver to the user.
pub struct Received {
    /// The lease that holds the message.
    pub lease: Arc<dyn Lease>,
    /// Which message of the lease.
    pub index: u32,
    /// 1 on first delivery, one more with every redelivery, whatever its cause.
    pub delivery_count: u32,
    /// When the first failed attempt ended or was first known; `None` on first delivery.
    pub first_failed_at: Option<DateTime<Utc>>,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("message", self.lease.message(self.index))
            .field("delivery_count", &self.delivery_count)
            .field("first_failed_at", &self.first_failed_at)
            .finish_non_exhaustive()
    }
}
