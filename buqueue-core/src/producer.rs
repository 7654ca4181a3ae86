//! Sending: the trait applications see, and the portable layer over a driver.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::capability::Capabilities;
use crate::dlq;
use crate::driver::{self, Backend, Producer as _};
use crate::future::BeginSend;
use crate::observe::{Operation, Scope, Sending};
use crate::{BuqueueError, ErrorKind, Feature, Message, MessageId, QueueFuture, QueueStats, Result};

/// Sends messages to one queue.
///
/// Object-safe, and implemented by [`Producer`] for every backend, by `Box` and by `Arc`. The promises below hold on
/// every backend, except where [`Capabilities`] says otherwise.
pub trait QueueProducer: fmt::Debug + Send + Sync + 'static {
    /// Sends one message; `Ok` means that the broker has taken it.
    fn send(&self, message: Message) -> QueueFuture<'_, Result<MessageId>>;

    /// Sends one message that becomes visible at `deliver_at`.
    fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> QueueFuture<'_, Result<MessageId>>;

    /// Sends many messages, keeping their order.
    fn send_batch(&self, messages: Vec<Message>) -> QueueFuture<'_, Result<Vec<MessageId>>>;

    /// Counts what lies in the queue. Default: [`Unsupported`](ErrorKind::Unsupported).
    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::ready(Err(driver::no_stats()))
    }

    /// What the backend can do.
    fn capabilities(&self) -> &Capabilities;
}

/// The producer of a backend whose type is known. Cheap to clone; clones share one connection.
pub struct Producer<B: Backend> {
    inner: Arc<Inner<B>>,
}

struct Inner<B: Backend> {
    driver: B::Producer,
    scope: Scope,
    capabilities: Capabilities,
}

impl<B: Backend> Producer<B> {
    pub(crate) fn new(driver: B::Producer, scope: Scope, capabilities: Capabilities) -> Self {
        Self { inner: Arc::new(Inner { driver, scope, capabilities }) }
    }

    /// Sends one message; `Ok` means that the broker has taken it at its strongest ordinary acknowledgement.
    ///
    /// Dropping the future midway leaves open whether the message was sent.
    ///
    /// # Errors
    /// [`InvalidMessage`](ErrorKind::InvalidMessage) and [`PayloadTooLarge`](ErrorKind::PayloadTooLarge) before any
    /// I/O; [`ConnectionLost`](ErrorKind::ConnectionLost), [`Timeout`](ErrorKind::Timeout) when it is open whether
    /// the broker has the message (send again; give a deduplication id to make that harmless);
    /// [`Throttled`](ErrorKind::Throttled) when the broker refuses for now; [`NotFound`](ErrorKind::NotFound) when
    /// no queue took it.
    pub async fn send(&self, message: Message) -> Result<MessageId> {
        let sending = self.inner.scope.begin_send(Operation::Send);
        let outcome = match self.prepare(&sending, message, None) {
            Err(error) => Err(error),
            Ok(message) => match self.inner.driver.send_ready(message) {
                Ok(outcome) => outcome,
                // Boxed, so that the future of a send that need not wait stays small enough to be moved cheaply.
                Err(message) => Box::pin(self.inner.driver.send(message)).await,
            },
        };
        sending.end(&outcome);
        outcome.map_err(stamp::<B>("send"))
    }

    /// Sends one message that becomes visible at `deliver_at`: never earlier by the broker's clock, at most a second
    /// later while a consumer is running. A time that has passed means now.
    ///
    /// The schedule is the broker's: it survives the death of this process and of every consumer. Not promised:
    /// precision to the millisecond, and order among messages that become visible together.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`Unsupported`](ErrorKind::Unsupported) when the time lies beyond the backend's
    /// horizon.
    pub async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        let sending = self.inner.scope.begin_send(Operation::SendAt);
        let outcome = match self.prepare(&sending, message, Some(deliver_at)) {
            Err(error) => Err(error),
            Ok(message) => self.inner.driver.send_at(message, deliver_at).await,
        };
        sending.end(&outcome);
        outcome.map_err(stamp::<B>("send_at"))
    }

    /// Sends many messages in as few round trips as the broker allows, keeping their order. Any length, also none.
    ///
    /// # Errors
    /// [`PartialBatch`](ErrorKind::PartialBatch) when at least one message failed; its
    /// [`outcomes`](BuqueueError::outcomes) tell which. The others were sent.
    pub async fn send_batch(&self, mut messages: Vec<Message>) -> Result<Vec<MessageId>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let count = messages.len();
        let sending = self.inner.scope.begin_batch(count);
        let verdicts: Vec<Result<()>> =
            messages.iter_mut().map(|message| self.check_and_equip(&sending, message, None)).collect();
        let mut outcomes = if verdicts.iter().all(Result::is_ok) {
            self.inner.driver.send_batch(messages).await
        } else {
            self.send_valid(messages, verdicts).await
        };
        outcomes.resize_with(count, || Err(no_outcome()));
        sending.end_batch(&outcomes);
        if outcomes.iter().all(Result::is_ok) {
            return outcomes.into_iter().collect();
        }
        let outcomes =
            outcomes.into_iter().map(|outcome| outcome.map_err(stamp::<B>("send_batch"))).collect();
        Err(BuqueueError::partial_batch(outcomes).at(B::NAME, "send_batch"))
    }

    /// Sends the messages that can be sent, and puts each outcome in its place.
    async fn send_valid(&self, messages: Vec<Message>, verdicts: Vec<Result<()>>) -> Vec<Result<MessageId>> {
        let valid: Vec<Message> = messages
            .into_iter()
            .zip(&verdicts)
            .filter_map(|(message, verdict)| verdict.is_ok().then_some(message))
            .collect();
        let sent = if valid.is_empty() { Vec::new() } else { self.inner.driver.send_batch(valid).await };
        let mut sent = sent.into_iter();
        verdicts
            .into_iter()
            .map(|verdict| match verdict {
                Ok(()) => sent.next().unwrap_or_else(|| Err(no_outcome())),
                Err(error) => Err(error),
            })
            .collect()
    }

    /// What the backend can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Counts what lies in the queue, as the broker sees it: one round trip or a few.
    ///
    /// On a log (Kafka, a Redis stream, a NATS stream with limits) it is what lies before the consumer group of this
    /// configuration.
    ///
    /// # Errors
    /// The connection's; [`AuthenticationFailed`](ErrorKind::AuthenticationFailed) where the broker's user may not
    /// count; [`Unsupported`](ErrorKind::Unsupported) from a backend that does not count.
    pub async fn queue_stats(&self) -> Result<QueueStats> {
        self.inner.driver.queue_stats().await.map_err(stamp::<B>("queue_stats"))
    }

    /// Flushes what is buffered. Call it when the last message has been sent; whether a send still works afterwards is
    /// the backend's affair.
    ///
    /// # Errors
    /// What could not be flushed.
    pub async fn close(&self) -> Result<()> {
        self.inner.driver.close().await.map_err(stamp::<B>("close"))
    }

    /// The message as it goes to the driver, or why it does not.
    #[inline]
    fn prepare(
        &self,
        sending: &Sending<'_>,
        mut message: Message,
        deliver_at: Option<DateTime<Utc>>,
    ) -> Result<Message> {
        self.check_and_equip(sending, &mut message, deliver_at)?;
        Ok(message)
    }

    /// Checks the message, and then gives it what travels with it.
    #[inline]
    fn check_and_equip(
        &self,
        sending: &Sending<'_>,
        message: &mut Message,
        deliver_at: Option<DateTime<Utc>>,
    ) -> Result<()> {
        message.validate(self.inner.capabilities.limits())?;
        if let Some(deliver_at) = deliver_at {
            self.check_horizon(deliver_at)?;
        }
        sending.equip(message, deliver_at, |message| self.header_room(message));
        Ok(())
    }

    /// How many bytes of headers may be added to a message that is valid, so that it stays so, also as a dead letter.
    fn header_room(&self, message: &Message) -> usize {
        let limit = self.inner.capabilities.limits().header_bytes;
        let room = limit.map_or(usize::MAX, |limit| limit.saturating_sub(message.headers().byte_len()));
        room.min(self.inner.driver.header_room(message)).saturating_sub(dlq::LETTER_MAX_BYTES)
    }

    fn check_horizon(&self, deliver_at: DateTime<Utc>) -> Result<()> {
        self.inner.capabilities.require(Feature::ScheduledDelivery)?;
        let Some(horizon) = self.inner.capabilities.limits().schedule_horizon else { return Ok(()) };
        match (deliver_at - Utc::now()).to_std() {
            Ok(ahead) if ahead > horizon => Err(BuqueueError::new(
                ErrorKind::Unsupported,
                format!("deliver_at: {} s ahead, the horizon is {} s", ahead.as_secs(), horizon.as_secs()),
            )),
            // A time in the past has no duration and means now.
            _ => Ok(()),
        }
    }
}

fn no_outcome() -> BuqueueError {
    BuqueueError::new(ErrorKind::ConnectionLost, "the backend gave no outcome for this message")
}

fn stamp<B: Backend>(operation: &'static str) -> impl Fn(BuqueueError) -> BuqueueError {
    move |error| error.at(B::NAME, operation)
}

impl<B: Backend> BeginSend<Result<MessageId>> for Producer<B> {
    fn begin(&self, message: Message) -> QueueFuture<'_, Result<MessageId>> {
        let sending = self.inner.scope.begin_send(Operation::Send);
        let outcome = match self.prepare(&sending, message, None) {
            Err(error) => Err(error),
            Ok(message) => match self.inner.driver.send_ready(message) {
                Ok(outcome) => outcome,
                Err(message) => {
                    let sent = self.inner.driver.send(message);
                    return QueueFuture::pending(async move {
                        let outcome = sent.await;
                        sending.end(&outcome);
                        outcome.map_err(stamp::<B>("send"))
                    });
                }
            },
        };
        sending.end(&outcome);
        QueueFuture::ready(outcome.map_err(stamp::<B>("send")))
    }
}

impl<B: Backend> QueueProducer for Producer<B> {
    fn send(&self, message: Message) -> QueueFuture<'_, Result<MessageId>> {
        QueueFuture::send(self, message)
    }

    fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> QueueFuture<'_, Result<MessageId>> {
        QueueFuture::pending(Self::send_at(self, message, deliver_at))
    }

    fn send_batch(&self, messages: Vec<Message>) -> QueueFuture<'_, Result<Vec<MessageId>>> {
        QueueFuture::pending(Self::send_batch(self, messages))
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::pending(Self::queue_stats(self))
    }

    fn capabilities(&self) -> &Capabilities {
        Self::capabilities(self)
    }
}

macro_rules! forward {
    ($pointer:ident) => {
        #[deny(clippy::missing_trait_methods)]
        impl<P: QueueProducer + ?Sized> QueueProducer for $pointer<P> {
            fn send(&self, message: Message) -> QueueFuture<'_, Result<MessageId>> {
                (**self).send(message)
            }

            fn send_at(
                &self,
                message: Message,
                deliver_at: DateTime<Utc>,
            ) -> QueueFuture<'_, Result<MessageId>> {
                (**self).send_at(message, deliver_at)
            }

            fn send_batch(&self, messages: Vec<Message>) -> QueueFuture<'_, Result<Vec<MessageId>>> {
                (**self).send_batch(messages)
            }

            fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
                (**self).queue_stats()
            }

            fn capabilities(&self) -> &Capabilities {
                (**self).capabilities()
            }
        }
    };
}

forward!(Box);
forward!(Arc);

impl<B: Backend> Clone for Producer<B> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<B: Backend> fmt::Debug for Producer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("backend", &B::NAME).field("driver", &self.inner.driver).finish()
    }
}
