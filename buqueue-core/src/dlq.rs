//! Dead letters: the verdict, the headers, and publish-then-ack.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::driver::Received;
use crate::{BuqueueError, ErrorKind, Message, MessageId, QueueFuture, QueueStats, Result, driver};

/// When and where failed messages go.
///
/// A message that failed `max_receive_count` times is moved to `destination`, with its payload, headers, routing
/// key and deduplication id, and with headers that tell why, from where, after how many attempts and since when.
/// An attempt fails when it ends in a nack, in a dropped delivery, in an expired lease or in the death of the
/// process. The move is publish, confirm, then ack: a crash in between duplicates the dead letter, nothing is lost.
///
/// A dead letter queue is an ordinary queue; read it with an ordinary consumer, and send a message back with
/// [`Delivery::redrive`](crate::Delivery::redrive).
///
/// With the feature `serde` it can be read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
pub struct DlqConfig {
    /// The queue (topic, stream, URL) that dead letters go to, named as in the backend's own config. Not empty, and not the
    /// queue itself.
    pub destination: String,
    /// How many failed attempts a message is allowed. At least 1.
    pub max_receive_count: u32,
}

pub(crate) const REASON: &str = "buqueue-dlq-reason";
pub(crate) const SOURCE: &str = "buqueue-dlq-source";
pub(crate) const ATTEMPTS: &str = "buqueue-dlq-attempts";
pub(crate) const FIRST_FAILED_AT: &str = "buqueue-dlq-first-failed-at";
pub(crate) const DIED_AT: &str = "buqueue-dlq-died-at";
/// How often the message has died. Kept through redrives.
pub(crate) const DEATHS: &str = "buqueue-dlq-deaths";

/// A reason longer than this is cut: a stack trace must not push a message over the broker's limit.
const REASON_MAX_BYTES: usize = 1024;

/// No more than this is added to a message that becomes a dead letter: the reason, and some hundred bytes for the rest.
pub(crate) const LETTER_MAX_BYTES: usize = 2 * REASON_MAX_BYTES;

impl DlqConfig {
    /// Checks what can be checked without the broker.
    pub(crate) fn validate(&self, source: &str) -> Result<()> {
        let fact = if self.max_receive_count == 0 {
            "dead_letter_queue.max_receive_count: must be at least 1, is 0".to_owned()
        } else if self.destination.is_empty() {
            "dead_letter_queue.destination: must not be empty".to_owned()
        } else if self.destination == source {
            format!("dead_letter_queue.destination: must differ from the queue itself, both are {source:?}")
        } else {
            return Ok(());
        };
        Err(BuqueueError::new(ErrorKind::InvalidConfig, fact))
    }
}

/// What becomes of a message after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry,
    DeadLetter,
}

/// After the attempt number `delivery_count` has failed.
pub(crate) fn after_failure(delivery_count: u32, max_receive_count: u32) -> Verdict {
    if delivery_count >= max_receive_count { Verdict::DeadLetter } else { Verdict::Retry }
}

/// Before the attempt number `delivery_count`: the attempts before it all failed, if only by crashing.
pub(crate) fn before_attempt(delivery_count: u32, max_receive_count: u32) -> Verdict {
    after_failure(delivery_count.saturating_sub(1), max_receive_count)
}

/// The dead letter queue of a consumer.
pub(crate) struct DeadLetters {
    pub(crate) max_receive_count: u32,
    publisher: Arc<dyn Publish>,
}

/// The sending half of any backend, its type erased.
trait Publish: Send + Sync {
    fn publish(&self, message: Message) -> QueueFuture<'_, Result<MessageId>>;

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>>;
}

impl<P: driver::Producer> Publish for P {
    fn publish(&self, message: Message) -> QueueFuture<'_, Result<MessageId>> {
        match self.send_ready(message) {
            Ok(outcome) => QueueFuture::ready(outcome),
            Err(message) => QueueFuture::pending(self.send(message)),
        }
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::pending(driver::Producer::queue_stats(self))
    }
}

impl DeadLetters {
    pub(crate) fn new(max_receive_count: u32, producer: impl driver::Producer) -> Self {
        Self { max_receive_count, publisher: Arc::new(producer) }
    }

    /// Publishes the dead letter and waits for the broker's confirmation. The original is the caller's to ack.
    pub(crate) async fn publish(&self, death: &Death<'_>) -> Result<MessageId> {
        self.publisher.publish(death.letter(Utc::now())).await
    }

    pub(crate) async fn queue_stats(&self) -> Result<QueueStats> {
        self.publisher.queue_stats().await
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters")
            .field("max_receive_count", &self.max_receive_count)
            .finish_non_exhaustive()
    }
}

/// What is known of a message that dies.
pub(crate) struct Death<'a> {
    pub(crate) message: &'a Message,
    pub(crate) reason: &'a str,
    pub(crate) source: &'a str,
    pub(crate) attempts: u32,
    pub(crate) first_failed_at: Option<DateTime<Utc>>,
}

impl Death<'_> {
    /// The message as it goes to the dead letter queue.
    fn letter(&self, now: DateTime<Utc>) -> Message {
        let deaths = deaths(self.message).saturating_add(1);
        let mut letter = self.message.without_reserved_headers().into_internal();
        let first_failed_at = self.first_failed_at.unwrap_or(now);
        letter.set_header(REASON, cut(self.reason, REASON_MAX_BYTES));
        letter.set_header(SOURCE, self.source);
        letter.set_header(ATTEMPTS, &self.attempts.to_string());
        letter.set_header(FIRST_FAILED_AT, &timestamp(first_failed_at));
        letter.set_header(DIED_AT, &timestamp(now));
        letter.set_header(DEATHS, &deaths.to_string());
        letter
    }
}

/// The message as it goes back to the queue it came from.
pub(crate) fn redriven(letter: &Message) -> Message {
    let mut message = letter.without_reserved_headers().into_internal();
    if let Some(deaths) = letter.header(DEATHS) {
        message.set_header(DEATHS, deaths);
    }
    message
}

/// On a dead letter that has not failed again, the count and the first failure tell the story of the original.
#[inline]
pub(crate) fn story(received: &Received) -> (u32, Option<DateTime<Utc>>) {
    let own = (received.delivery_count, received.first_failed_at);
    if received.delivery_count > 1 {
        return own;
    }
    let message = received.lease.message(received.index);
    let Some(attempts) = message.header(ATTEMPTS).and_then(|attempts| attempts.parse().ok()) else {
        return own;
    };
    let first_failed_at = message
        .header(FIRST_FAILED_AT)
        .and_then(|at| DateTime::parse_from_rfc3339(at).ok())
        .map(|at| at.with_timezone(&Utc));
    (attempts, first_failed_at)
}

fn deaths(message: &Message) -> u32 {
    message.header(DEATHS).and_then(|deaths| deaths.parse().ok()).unwrap_or(0)
}

fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The longest part of `text` that has at most `max` bytes and cuts no character.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        use Verdict::{DeadLetter, Retry};
        for (count, max, before, after) in [
            (1, 1, Retry, DeadLetter),
            (1, 3, Retry, Retry),
            (2, 3, Retry, Retry),
            (3, 3, Retry, DeadLetter),
            (4, 3, DeadLetter, DeadLetter),
            (u32::MAX, 1, DeadLetter, DeadLetter),
        ] {
            assert_eq!(before_attempt(count, max), before, "before attempt {count} of {max}");
            assert_eq!(after_failure(count, max), after, "after attempt {count} of {max}");
        }
    }

    #[test]
    fn a_letter_keeps_the_message_and_tells_its_story() {
        let message =
            Message::new("p").with_routing_key("k").with_deduplication_id("d").with_header("h", "v");
        let long = "é".repeat(2000);
        let death =
            Death { message: &message, reason: &long, source: "orders", attempts: 3, first_failed_at: None };
        let letter = death.letter(Utc::now());
        assert_eq!(letter.payload(), "p");
        assert_eq!((letter.routing_key(), letter.deduplication_id()), (Some("k"), Some("d")));
        assert_eq!(
            (letter.header("h"), letter.header(SOURCE), letter.header(ATTEMPTS)),
            (Some("v"), Some("orders"), Some("3"))
        );
        assert_eq!(letter.header(REASON).map(str::len), Some(REASON_MAX_BYTES));
        assert_eq!(
            letter.broker_deduplication_id(),
            None,
            "a second copy must not be dropped as a duplicate"
        );
    }

    #[test]
    fn deaths_are_counted_through_redrives() {
        let mut message = Message::new("p").with_header("h", "v");
        for round in 1..=3 {
            let death =
                Death { message: &message, reason: "r", source: "s", attempts: 1, first_failed_at: None };
            let letter = death.letter(Utc::now());
            assert_eq!(letter.header(DEATHS), Some(round.to_string().as_str()));
            message = redriven(&letter);
            assert_eq!(message.headers().len(), 2, "only the user's header and the deaths stay");
        }
    }

    #[test]
    fn configuration_is_checked() {
        for (destination, max) in [("dlq", 0), ("", 1), ("orders", 1)] {
            let config = DlqConfig { destination: destination.to_owned(), max_receive_count: max };
            assert_eq!(config.validate("orders").unwrap_err().kind, ErrorKind::InvalidConfig);
        }
    }
}
