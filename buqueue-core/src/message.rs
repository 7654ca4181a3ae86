//! A message: payload, headers, routing key, deduplication id.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::capability::Limits;
use crate::headers::RESERVED_PREFIX;
use crate::{BuqueueError, ErrorKind, Headers, Result, observe};

/// What is sent and received.
///
/// ```
/// # fn main() -> Result<(), buqueue_core::BuqueueError> {
/// use buqueue_core::Message;
///
/// let message = Message::builder()
///     .payload("{\"order_id\":99}")
///     .routing_key("orders.placed")
///     .header("schema-version", "3")
///     .deduplication_id("order-99")
///     .build();
/// assert_eq!(message.header("schema-version"), Some("3"));
/// # Ok(()) }
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message {
    payload: Bytes,
    // Boxed as a whole: a message that has none of it stays 40 bytes, and a queue of a million stays small.
    meta: Option<Box<Meta>>,
}

#[derive(Clone, Default)]
struct Meta {
    routing_key: Option<Box<str>>,
    deduplication_id: Option<Box<str>>,
    headers: Headers,
    /// When it was due, if it was scheduled and that is measured. It travels as a header, and is none to who gets it.
    deliver_at: Option<DateTime<Utc>>,
    /// Written by buqueue itself (a dead letter or a redriven message), hence allowed reserved headers.
    internal: bool,
}

static NO_HEADERS: Headers = Headers::new();

impl Message {
    /// A message of these bytes, without headers or key.
    #[must_use]
    #[inline]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), meta: None }
    }

    /// Starts building a message field by field.
    pub fn builder() -> MessageBuilder {
        MessageBuilder { message: Self::default() }
    }

    /// Encodes a value as JSON and sets `content-type: application/json`.
    ///
    /// # Errors
    /// [`Serialization`](ErrorKind::Serialization) when the value cannot be written as JSON.
    pub fn from_json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let payload = serde_json::to_vec(value).map_err(|error| {
            BuqueueError::new(ErrorKind::Serialization, "payload to JSON").with_source(error)
        })?;
        Ok(Self::new(payload).with_header("content-type", "application/json"))
    }

    /// As [`from_json`](Self::from_json), with a routing key.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_json_with_key<T: Serialize + ?Sized>(
        value: &T,
        routing_key: impl Into<String>,
    ) -> Result<Self> {
        Ok(Self::from_json(value)?.with_routing_key(routing_key))
    }

    /// Sets the routing key.
    #[must_use]
    pub fn with_routing_key(mut self, routing_key: impl Into<String>) -> Self {
        self.meta_mut().routing_key = Some(routing_key.into().into_boxed_str());
        self
    }

    /// Sets the deduplication id.
    #[must_use]
    pub fn with_deduplication_id(mut self, id: impl Into<String>) -> Self {
        self.meta_mut().deduplication_id = Some(id.into().into_boxed_str());
        self
    }

    /// Sets a header, replacing the value that the name had.
    #[must_use]
    pub fn with_header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let meta = self.meta_mut();
        meta.headers.insert(name.as_ref(), value.as_ref());
        if name.as_ref() == observe::DELIVER_AT {
            meta.take_due_time();
        }
        self
    }

    /// Replaces all headers.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        if !headers.is_empty() || self.meta.is_some() {
            let meta = self.meta_mut();
            meta.headers = headers;
            meta.take_due_time();
        }
        self
    }

    /// The payload, exactly as it was sent.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The payload, taken out without a copy.
    #[must_use]
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// Decodes the payload from JSON.
    ///
    /// # Errors
    /// [`Serialization`](ErrorKind::Serialization) when the payload is not the JSON of a `T`. The message is
    /// unharmed.
    pub fn payload_json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload).map_err(|error| {
            // The parser's text may quote the payload; its class and position do not.
            let fact = format!(
                "payload from JSON: {:?} error at line {} column {}",
                error.classify(),
                error.line(),
                error.column()
            );
            BuqueueError::new(ErrorKind::Serialization, fact)
        })
    }

    /// The value of one header.
    #[must_use]
    #[inline]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.meta.as_ref()?.headers.get(name)
    }

    /// All headers.
    #[must_use]
    #[inline]
    pub fn headers(&self) -> &Headers {
        self.meta.as_ref().map_or(&NO_HEADERS, |meta| &meta.headers)
    }

    /// The routing key: Kafka's message key, NATS' subject, SQS' message group, RabbitMQ's routing key; a field on
    /// Redis and in memory.
    #[must_use]
    #[inline]
    pub fn routing_key(&self) -> Option<&str> {
        self.meta.as_ref()?.routing_key.as_deref()
    }

    /// The deduplication id.
    #[must_use]
    pub fn deduplication_id(&self) -> Option<&str> {
        self.meta.as_ref()?.deduplication_id.as_deref()
    }

    /// The id by which a broker may drop this message as a duplicate: the deduplication id, except on dead letters
    /// and redriven messages. Those are deliberate second copies, and dropping one would lose the message.
    #[must_use]
    #[inline]
    pub fn broker_deduplication_id(&self) -> Option<&str> {
        let meta = self.meta.as_ref()?;
        if meta.internal { None } else { meta.deduplication_id.as_deref() }
    }

    fn meta_mut(&mut self) -> &mut Meta {
        self.meta.get_or_insert_default()
    }

    /// The message as its consumer gets it. A backend that keeps messages in this process calls this when it takes one:
    /// what buqueue was allowed to write, a user who sends the message on is not.
    #[must_use]
    pub fn into_stored(mut self) -> Self {
        if let Some(meta) = &mut self.meta {
            meta.internal = false;
            meta.take_due_time();
        }
        self
    }

    /// The message as it travels, for a backend that reads what waits and sends it on: with what is a header on the way, and
    /// none to who gets it.
    #[must_use]
    pub fn as_travelling(&self) -> Cow<'_, Self> {
        let Some(at) = self.deliver_at() else { return Cow::Borrowed(self) };
        let mut message = self.clone();
        message.set_header(observe::DELIVER_AT, &observe::due_time(at));
        Cow::Owned(message)
    }

    /// Marks a message that buqueue writes itself.
    pub(crate) fn into_internal(mut self) -> Self {
        self.meta_mut().internal = true;
        self
    }

    pub(crate) fn set_header(&mut self, name: &str, value: &str) {
        self.meta_mut().headers.insert(name, value);
    }

    /// When it was due, if it was scheduled and that is measured.
    pub(crate) fn deliver_at(&self) -> Option<DateTime<Utc>> {
        self.meta.as_ref()?.deliver_at
    }

    /// A copy of the message without the headers that buqueue adds.
    pub(crate) fn without_reserved_headers(&self) -> Self {
        let headers = self.headers().iter().filter(|(name, _)| !name.starts_with(RESERVED_PREFIX)).collect();
        self.clone().with_headers(headers)
    }

    /// Checks what every backend refuses alike, before any I/O.
    #[inline]
    pub(crate) fn validate(&self, limits: &Limits) -> Result<()> {
        check_size("payload", self.payload.len(), limits.payload_bytes)?;
        let Some(meta) = &self.meta else { return Ok(()) };
        for (name, _) in meta.headers.iter() {
            if name.is_empty() || name.len() > 255 || !name.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
            {
                let fact = format!("header name {name:?}: must be 1 to 255 bytes of visible ASCII");
                return Err(BuqueueError::new(ErrorKind::InvalidMessage, fact));
            }
            if !meta.internal && name.starts_with(RESERVED_PREFIX) {
                let fact = format!("header name {name:?}: the prefix {RESERVED_PREFIX:?} is reserved");
                return Err(BuqueueError::new(ErrorKind::InvalidMessage, fact));
            }
        }
        check_size("headers", meta.headers.byte_len(), limits.header_bytes)?;
        check_key("routing_key", meta.routing_key.as_deref(), limits.routing_key_bytes)?;
        check_key("deduplication_id", meta.deduplication_id.as_deref(), limits.deduplication_id_bytes)
    }
}

/// What the message is, and not when it came.
impl PartialEq for Meta {
    fn eq(&self, other: &Self) -> bool {
        let Self { routing_key, deduplication_id, headers, deliver_at: _, internal } = self;
        *routing_key == other.routing_key
            && *deduplication_id == other.deduplication_id
            && *headers == other.headers
            && *internal == other.internal
    }
}

impl Eq for Meta {}

impl Meta {
    fn take_due_time(&mut self) {
        let at = self.headers.get(observe::DELIVER_AT);
        let travelled = at.is_some();
        // None, where it was sent on without: it is no schedule any more.
        self.deliver_at = at.and_then(|at| DateTime::parse_from_rfc3339(at).ok()).map(|at| at.to_utc());
        if travelled {
            self.headers.remove(observe::DELIVER_AT);
        }
    }
}

fn check_size(field: &str, size: usize, limit: Option<usize>) -> Result<()> {
    match limit {
        Some(limit) if size > limit => Err(BuqueueError::new(
            ErrorKind::PayloadTooLarge,
            format!("{field}: {size} bytes, the limit is {limit} bytes"),
        )),
        _ => Ok(()),
    }
}

fn check_key(field: &str, value: Option<&str>, limit: Option<usize>) -> Result<()> {
    match (value, limit) {
        (Some(value), Some(limit)) if value.len() > limit => Err(BuqueueError::new(
            ErrorKind::InvalidMessage,
            format!("{field}: {} bytes, the limit is {limit} bytes", value.len()),
        )),
        _ => Ok(()),
    }
}

/// Sizes and names only: payload and header values may be personal or secret.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("payload_bytes", &self.payload.len())
            .field("routing_key", &self.routing_key())
            .field("deduplication_id", &self.deduplication_id())
            .field("headers", self.headers())
            .finish()
    }
}

/// Builds a [`Message`]; see [`Message::builder`].
#[derive(Debug, Clone, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct MessageBuilder {
    message: Message,
}

impl MessageBuilder {
    /// Sets the payload. Default: empty.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.message.payload = payload.into();
        self
    }

    /// Sets the routing key. Default: none.
    pub fn routing_key(mut self, routing_key: impl Into<String>) -> Self {
        self.message = self.message.with_routing_key(routing_key);
        self
    }

    /// Sets a header, replacing the value that the name had.
    ///
    /// Names are checked when the message is sent: 1 to 255 bytes of visible ASCII, not starting with `buqueue-`.
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.message = self.message.with_header(name, value);
        self
    }

    /// Sets the deduplication id. Default: none.
    pub fn deduplication_id(mut self, id: impl Into<String>) -> Self {
        self.message = self.message.with_deduplication_id(id);
        self
    }

    /// The message.
    #[must_use]
    pub fn build(self) -> Message {
        self.message
    }
}

/// The id that the broker gave a message. Prints as the broker writes it; not unique across brokers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Id);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Id {
    Number(u64),
    Pair(u64, u64),
    Text(Box<str>),
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Id::Number(number) => write!(f, "{number}"),
            Id::Pair(high, low) => write!(f, "{high}-{low}"),
            Id::Text(text) => f.write_str(text),
        }
    }
}

impl From<u64> for MessageId {
    fn from(number: u64) -> Self {
        Self(Id::Number(number))
    }
}

/// Prints as `high-low`, as Redis writes its entry ids.
impl From<(u64, u64)> for MessageId {
    fn from((high, low): (u64, u64)) -> Self {
        Self(Id::Pair(high, low))
    }
}

impl From<&str> for MessageId {
    fn from(text: &str) -> Self {
        Self(Id::Text(text.into()))
    }
}

impl From<String> for MessageId {
    fn from(text: String) -> Self {
        Self(Id::Text(text.into_boxed_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(result: Result<()>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind)
    }

    #[test]
    fn stays_small() {
        assert_eq!(size_of::<Message>(), 40);
    }

    #[test]
    fn limits_are_checked_to_the_byte() {
        let limits = Limits {
            payload_bytes: Some(8),
            header_bytes: Some(4),
            routing_key_bytes: Some(3),
            ..Limits::default()
        };
        assert_eq!(kind(Message::new("12345678").validate(&limits)), None);
        assert_eq!(kind(Message::new("123456789").validate(&limits)), Some(ErrorKind::PayloadTooLarge));
        assert_eq!(kind(Message::new("").with_header("ab", "cd").validate(&limits)), None);
        assert_eq!(
            kind(Message::new("").with_header("ab", "cde").validate(&limits)),
            Some(ErrorKind::PayloadTooLarge)
        );
        assert_eq!(
            kind(Message::new("").with_routing_key("abcd").validate(&limits)),
            Some(ErrorKind::InvalidMessage)
        );
    }

    #[test]
    fn header_names_are_checked() {
        for name in ["", "with space", "ümlaut", "tab\t", &"n".repeat(256), "buqueue-dlq-reason"] {
            let result = Message::new("").with_header(name, "v").validate(&Limits::default());
            assert_eq!(kind(result), Some(ErrorKind::InvalidMessage), "{name:?}");
        }
        for name in ["a", "X-Y_z!~", &"n".repeat(255), "Buqueue-x"] {
            assert_eq!(
                kind(Message::new("").with_header(name, "v").validate(&Limits::default())),
                None,
                "{name:?}"
            );
        }
    }

    #[test]
    fn the_time_it_was_due_is_no_header() {
        let headers: Headers =
            [("a", "b"), (observe::DELIVER_AT, "2026-01-02T03:04:05.678Z")].into_iter().collect();
        let mut sent = Message::new("m");
        sent.set_header("a", "b");
        sent.set_header(observe::DELIVER_AT, "2026-01-02T03:04:05.678Z");
        assert_eq!(sent.headers().len(), 2, "it travels as one");
        for received in [Message::new("m").with_headers(headers), sent.into_stored()] {
            assert_eq!(received.headers().iter().collect::<Vec<_>>(), [("a", "b")]);
            assert_eq!(received.deliver_at().unwrap().timestamp_millis(), 1_767_323_045_678);
            assert_eq!(kind(received.validate(&Limits::default())), None, "it can be passed on");
            assert!(received == Message::new("m").with_header("a", "b"), "it is the same message");
            let on = received.as_travelling();
            assert_eq!(on.header(observe::DELIVER_AT), Some("2026-01-02T03:04:05.678Z"));
        }
    }

    #[test]
    fn debug_hides_payload_and_values() {
        let message = Message::new("canary-payload").with_header("h", "canary-value");
        assert!(!format!("{message:?}").contains("canary"));
    }

    #[test]
    fn json_errors_do_not_quote_the_payload() {
        let error = Message::new(r#"{"a":"canary"}"#).payload_json::<Vec<u8>>().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Serialization);
        assert!(!format!("{error:?}").contains("canary"));
    }
}
