//! A message to the body and attributes of one of SQS, and back. No I/O.
//!
//! The payload is the body, where it is text that SQS takes; else it is the binary attribute `buqueue-payload`. The
//! headers are attributes, where their names and values allow it and there are ten at most. What does not fit is in one
//! attribute, `buqueue`, an object of JSON.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{self, MessageAttributeValue, MessageSystemAttributeName as System};
use buqueue_core::{BuqueueError, ErrorKind, Headers, Message, Result, unique_id};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The attribute with all that has no place of its own.
const META: &str = "buqueue";
/// The attribute with a payload that no body can be.
const PAYLOAD: &str = "buqueue-payload";
/// A body must not be empty.
const PLACEHOLDER: &str = "-";
/// The most attributes of a message.
const MOST_ATTRIBUTES: usize = 10;
/// The longest message group or deduplication id.
const LONGEST_ID: usize = 128;
/// What a message of ours takes beside its payload, at least.
pub(crate) const OVERHEAD: usize = PLACEHOLDER.len() + PAYLOAD.len() + BINARY.len();
/// … and on a FIFO queue, which has to be told that it has neither key nor deduplication id.
pub(crate) const FIFO_OVERHEAD: usize =
    OVERHEAD + META.len() + STRING.len() + "{\"id\":null,\"key\":null}".len();
/// A message with its attributes, in bytes, and a batch of them.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

const STRING: &str = "String";
const BINARY: &str = "Binary";

/// Fields of the object in [`META`].
mod field {
    pub(super) const EMPTY: &str = "empty";
    /// The routing key, where the group does not tell it; null where there is none.
    pub(super) const KEY: &str = "key";
    /// The deduplication id, likewise.
    pub(super) const ID: &str = "id";
    pub(super) const HEADERS: &str = "headers";
    pub(super) const FAILURES: &str = "failures";
    pub(super) const FAILED_AT: &str = "failed-at";
    /// How long after it was sent the message is due, in milliseconds.
    pub(super) const WAIT: &str = "wait";
    /// When it is due by the clock of SQS, in milliseconds since 1970: in what was sent on.
    pub(super) const DUE: &str = "due";
    /// What is the same in all copies of a scheduled message.
    pub(super) const SCHEDULE: &str = "schedule";
}

/// What is known about the attempts before this copy was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) failures: u32,
    pub(crate) first_failed_at: Option<DateTime<Utc>>,
}

/// Until when it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// So many milliseconds from when it is sent: what SQS then does not know yet, it says when the message is received.
    FromSent(u64),
    /// Until then, by the clock of SQS, in milliseconds since 1970.
    Until(i64),
}

/// What a copy says beside its message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beside {
    pub(crate) story: Story,
    pub(crate) wait: Option<Wait>,
    pub(crate) schedule: Option<String>,
}

/// How a queue takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    pub(crate) fifo: bool,
    /// Whether the routing key is the message group.
    pub(crate) grouped: bool,
}

/// A message as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) body: String,
    pub(crate) attributes: Option<HashMap<String, MessageAttributeValue>>,
    pub(crate) group: Option<String>,
    pub(crate) deduplication: Option<String>,
    /// Whether the group stands for a key, and the deduplication id for one of the user's.
    pub(crate) keyed: bool,
    pub(crate) identified: bool,
    pub(crate) delay_seconds: Option<i32>,
    pub(crate) bytes: usize,
}

impl Outgoing {
    pub(crate) fn new(message: &Message, manner: Manner, beside: &Beside) -> Result<Self> {
        let mut meta = Map::new();
        let mut attributes = HashMap::new();
        let payload = message.payload();
        let body = match std::str::from_utf8(payload) {
            Ok("") => {
                meta.insert(field::EMPTY.to_owned(), Value::Bool(true));
                PLACEHOLDER.to_owned()
            }
            Ok(text) if is_carried(text) => text.to_owned(),
            _ => {
                attributes.insert(PAYLOAD.to_owned(), binary(payload)?);
                PLACEHOLDER.to_owned()
            }
        };
        let (key, id) = (message.routing_key(), message.deduplication_id());
        let group = match key {
            Some(key) if manner.grouped && is_id(key) => Some(key.to_owned()),
            Some(key) if manner.grouped => Some(fingerprint(key)),
            // Without a key nothing is to be in order with it.
            None if manner.fifo => Some(unique_id()),
            _ => None,
        };
        if group.as_deref() != key {
            meta.insert(field::KEY.to_owned(), key.into());
        }
        let deduplication = manner.fifo.then(|| match message.broker_deduplication_id() {
            Some(id) if is_id(id) => id.to_owned(),
            Some(id) => fingerprint(id),
            None => beside.schedule.clone().unwrap_or_else(unique_id),
        });
        if deduplication.as_deref() != id {
            meta.insert(field::ID.to_owned(), id.into());
        }
        let Story { failures, first_failed_at } = beside.story;
        if failures > 0 {
            meta.insert(field::FAILURES.to_owned(), failures.into());
            if let Some(time) = first_failed_at {
                meta.insert(field::FAILED_AT.to_owned(), time.timestamp_millis().into());
            }
        }
        match beside.wait {
            Some(Wait::FromSent(wait)) => drop(meta.insert(field::WAIT.to_owned(), wait.into())),
            Some(Wait::Until(due)) => drop(meta.insert(field::DUE.to_owned(), due.into())),
            None => {}
        }
        if let Some(schedule) = &beside.schedule {
            meta.insert(field::SCHEDULE.to_owned(), schedule.as_str().into());
        }
        let headers = message.headers();
        let own = attributes.len() + usize::from(!meta.is_empty());
        let fit = own + headers.len() <= MOST_ATTRIBUTES
            && headers
                .iter()
                .all(|(name, value)| is_attribute(name) && !value.is_empty() && is_carried(value));
        if fit {
            for (name, value) in headers.iter() {
                attributes.insert(name.to_owned(), string(value)?);
            }
        } else {
            let all = headers.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            meta.insert(field::HEADERS.to_owned(), Value::Object(all));
        }
        if !meta.is_empty() {
            attributes.insert(META.to_owned(), string(&json(meta))?);
        }
        let bytes =
            body.len() + attributes.iter().map(|(name, value)| name.len() + size(value)).sum::<usize>();
        Ok(Self {
            body,
            attributes: (!attributes.is_empty()).then_some(attributes),
            group,
            deduplication,
            keyed: key.is_some(),
            identified: id.is_some(),
            delay_seconds: None,
            bytes,
        })
    }

    /// Visible so many seconds after it was sent, whatever the queue's own delay is. FIFO queues do not take that.
    pub(crate) fn delayed(self, seconds: u64) -> Self {
        Self { delay_seconds: i32::try_from(seconds).ok(), ..self }
    }
}

/// JSON in characters that a body may have.
fn json(meta: Map<String, Value>) -> String {
    let text = Value::Object(meta).to_string();
    if is_carried(&text) {
        return text;
    }
    // All others are escaped already.
    text.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff")
}

fn string(value: &str) -> Result<MessageAttributeValue> {
    MessageAttributeValue::builder().data_type(STRING).string_value(value).build().map_err(incomplete)
}

fn binary(value: &[u8]) -> Result<MessageAttributeValue> {
    MessageAttributeValue::builder()
        .data_type(BINARY)
        .binary_value(Blob::new(value))
        .build()
        .map_err(incomplete)
}

/// The SDK's own check of what it was given.
pub(crate) fn incomplete(error: aws_sdk_sqs::error::BuildError) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidMessage, "the request is not complete").with_source(error)
}

fn size(value: &MessageAttributeValue) -> usize {
    value.data_type().len()
        + value.string_value().map_or(0, str::len)
        + value.binary_value().map_or(0, |value| value.as_ref().len())
}

/// Whether SQS takes it as text: the characters of XML 1.0 (SendMessage, in the API reference).
fn is_carried(text: &str) -> bool {
    text.chars().all(|c| match c {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        c => c >= ' ',
    })
}

/// Whether it can be a message group or a deduplication id: 1 to 128 letters, digits and signs of ASCII.
fn is_id(text: &str) -> bool {
    (1..=LONGEST_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether it can be the name of an attribute.
fn is_attribute(name: &str) -> bool {
    let reserved =
        |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !reserved("aws.")
        && !reserved("amazon.")
        && !matches!(name, META | PAYLOAD)
}

/// Stands for a text that is too long or has other characters than an id may have.
pub(crate) fn fingerprint(text: &str) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text) {
        for digit in [byte >> 4, byte & 15] {
            hex.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    hex
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) message: Message,
    pub(crate) beside: Beside,
    pub(crate) id: String,
    pub(crate) receipt: String,
    /// The message group as SQS knows it.
    pub(crate) group: Option<String>,
    /// How often SQS has handed it out, this time included.
    pub(crate) receives: u32,
    /// When it was sent, and when it was handed out first, by the clock of SQS.
    pub(crate) sent_at: Option<DateTime<Utc>>,
    pub(crate) first_received_at: Option<DateTime<Utc>>,
}

impl Incoming {
    /// What SQS handed out, whoever has sent it. `None`: it has no handle, and nobody could settle it.
    pub(crate) fn read(raw: types::Message) -> Option<Self> {
        let system = |name: System| raw.attributes().and_then(|all| all.get(&name)).map(String::as_str);
        let time = |name: System| system(name)?.parse().ok().and_then(DateTime::from_timestamp_millis);
        let receives =
            system(System::ApproximateReceiveCount).and_then(|text| text.parse().ok()).unwrap_or(1);
        let (sent_at, first_received_at) =
            (time(System::SentTimestamp), time(System::ApproximateFirstReceiveTimestamp));
        let group = system(System::MessageGroupId).map(str::to_owned);
        let (mut key, mut dedup) = (group.clone(), system(System::MessageDeduplicationId).map(str::to_owned));
        let id = raw.message_id().unwrap_or_default().to_owned();
        let receipt = raw.receipt_handle()?.to_owned();

        let mut headers = Headers::new();
        let mut payload = None;
        let mut beside = Beside::default();
        let mut empty = false;
        for (name, value) in raw.message_attributes.into_iter().flatten() {
            let MessageAttributeValue { string_value, binary_value, .. } = value;
            match (name.as_str(), string_value, binary_value) {
                (PAYLOAD, None, Some(bytes)) => payload = Some(Bytes::from(bytes.into_inner())),
                (META, Some(text), _) => match serde_json::from_str::<Map<String, Value>>(&text) {
                    Ok(meta) => {
                        let number = |name: &str| meta.get(name).and_then(Value::as_u64);
                        let text = |value: &Value| value.as_str().map(str::to_owned);
                        empty = meta.get(field::EMPTY).is_some();
                        if let Some(value) = meta.get(field::KEY) {
                            key = text(value);
                        }
                        if let Some(value) = meta.get(field::ID) {
                            dedup = text(value);
                        }
                        if let Some(Value::Object(all)) = meta.get(field::HEADERS) {
                            for (name, value) in all {
                                headers.insert(name, value.as_str().unwrap_or_default());
                            }
                        }
                        beside = Beside {
                            story: Story {
                                failures: number(field::FAILURES)
                                    .and_then(|count| u32::try_from(count).ok())
                                    .unwrap_or(0),
                                first_failed_at: meta
                                    .get(field::FAILED_AT)
                                    .and_then(Value::as_i64)
                                    .and_then(DateTime::from_timestamp_millis),
                            },
                            wait: meta
                                .get(field::DUE)
                                .and_then(Value::as_i64)
                                .map(Wait::Until)
                                .or_else(|| number(field::WAIT).map(Wait::FromSent)),
                            schedule: meta.get(field::SCHEDULE).and_then(text),
                        };
                    }
                    // Somebody else's.
                    Err(_) => headers.insert(META, &text),
                },
                (name, Some(text), _) => headers.insert(name, &text),
                (name, None, Some(bytes)) => {
                    if let Ok(text) = std::str::from_utf8(bytes.as_ref()) {
                        headers.insert(name, text);
                    }
                }
                (_, None, None) => {}
            }
        }
        let payload = payload.unwrap_or_else(|| match raw.body {
            Some(body) if !(empty && body == PLACEHOLDER) => Bytes::from(body),
            _ => Bytes::new(),
        });
        let mut message = Message::new(payload);
        if !headers.is_empty() {
            message = message.with_headers(headers);
        }
        if let Some(key) = key {
            message = message.with_routing_key(key);
        }
        if let Some(dedup) = dedup {
            message = message.with_deduplication_id(dedup);
        }
        Some(Self { message, beside, id, receipt, group, receives, sent_at, first_received_at })
    }

    /// When it is due by the clock of SQS, in milliseconds since 1970, where it is scheduled.
    pub(crate) fn due(&self) -> Option<i64> {
        match self.beside.wait? {
            Wait::Until(due) => Some(due),
            Wait::FromSent(wait) => {
                Some(self.sent_at?.timestamp_millis().saturating_add(i64::try_from(wait).unwrap_or(i64::MAX)))
            }
        }
    }
}

/// The clock of SQS, as far as it is known from what it says about messages.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// How far it is ahead of ours, in milliseconds.
    ahead: AtomicI64,
}

impl Clock {
    /// How long a message must still wait, in milliseconds, `now` by our clock.
    pub(crate) fn wait_left(&self, incoming: &Incoming, now: DateTime<Utc>) -> u64 {
        let now = now.timestamp_millis();
        // Of a message that is handed out for the first time it is known when that was.
        let theirs = match incoming.first_received_at.filter(|_| incoming.receives <= 1) {
            Some(time) => {
                let theirs = time.timestamp_millis();
                self.ahead.store(theirs.saturating_sub(now), Ordering::Relaxed);
                theirs
            }
            None => now.saturating_add(self.ahead.load(Ordering::Relaxed)),
        };
        incoming.due().map_or(0, |due| u64::try_from(due.saturating_sub(theirs)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD: Manner = Manner { fifo: false, grouped: false };
    const FIFO: Manner = Manner { fifo: true, grouped: true };

    /// As SQS would hand it out.
    fn through(outgoing: Outgoing) -> Incoming {
        let mut raw = types::Message::builder()
            .message_id("1")
            .receipt_handle("r")
            .body(outgoing.body)
            .attributes(System::ApproximateReceiveCount, "1");
        for (name, value) in outgoing.attributes.into_iter().flatten() {
            raw = raw.message_attributes(name, value);
        }
        if let Some(group) = outgoing.group {
            raw = raw.attributes(System::MessageGroupId, group);
        }
        if let Some(id) = outgoing.deduplication {
            raw = raw.attributes(System::MessageDeduplicationId, id);
        }
        Incoming::read(raw.build()).unwrap()
    }

    fn many_headers(count: usize) -> Message {
        (0..count).fold(Message::new("m"), |message, n| message.with_header(format!("h{n}"), format!("{n}")))
    }

    #[test]
    fn what_is_sent_arrives() {
        let messages = [
            Message::new("plain"),
            Message::new(""),
            Message::new("-"),
            Message::new(vec![0, 255, 10]),
            Message::new("a\r\n\tü\u{10000}"),
            Message::new("\u{ffff}\u{1}"),
            Message::new("m").with_header("empty", ""),
            Message::new("m").with_header("lines", "a\nb\u{fffe}\u{7}"),
            Message::new("m").with_header("AWS.x", "1").with_header("a!b", "2"),
            Message::new("m").with_header("buqueue", "mine"),
            Message::new("m").with_routing_key("k").with_deduplication_id("d"),
            Message::new("m").with_routing_key("ü key").with_deduplication_id("x".repeat(500)),
            Message::new("m").with_routing_key("").with_deduplication_id(""),
            many_headers(9),
            many_headers(10),
            many_headers(50),
            many_headers(10).with_routing_key("k"),
        ];
        for message in messages {
            for manner in [STANDARD, Manner { grouped: true, ..STANDARD }, FIFO] {
                let outgoing = Outgoing::new(&message, manner, &Beside::default()).unwrap();
                assert!(outgoing.attributes.as_ref().is_none_or(|all| all.len() <= MOST_ATTRIBUTES));
                assert!(is_carried(&outgoing.body) && !outgoing.body.is_empty());
                for (name, value) in outgoing.attributes.iter().flatten() {
                    assert!(
                        value.string_value().is_none_or(|value| is_carried(value) && !value.is_empty()),
                        "{name}"
                    );
                }
                assert!(outgoing.group.as_deref().is_none_or(is_id));
                assert_eq!(outgoing.deduplication.is_some(), manner.fifo);
                assert!(outgoing.deduplication.as_deref().is_none_or(is_id));
                let incoming = through(outgoing);
                assert!(incoming.message == message, "{:?} is not {message:?}", incoming.message);
                assert_eq!(incoming.beside, Beside::default());
            }
        }
    }

    #[test]
    fn text_and_few_headers_are_readable_by_others() {
        let message =
            Message::new("text").with_header("a", "1").with_routing_key("k").with_deduplication_id("d");
        let outgoing = Outgoing::new(&message, FIFO, &Beside::default()).unwrap();
        assert_eq!(outgoing.body, "text");
        assert_eq!(outgoing.attributes.unwrap().keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!((outgoing.group.as_deref(), outgoing.deduplication.as_deref()), (Some("k"), Some("d")));
    }

    #[test]
    fn copies_say_what_they_are_copies_of() {
        let beside = Beside {
            story: Story { failures: 3, first_failed_at: DateTime::from_timestamp_millis(1234) },
            wait: Some(Wait::FromSent(5000)),
            schedule: Some("s".to_owned()),
        };
        let outgoing = Outgoing::new(&Message::new("m"), FIFO, &beside).unwrap();
        assert_eq!(outgoing.deduplication.as_deref(), Some("s"), "copies are one message");
        assert_eq!(through(outgoing).beside, beside);
    }

    #[test]
    fn sizes_are_what_sqs_counts() {
        let plain = Outgoing::new(&Message::new("four"), STANDARD, &Beside::default()).unwrap();
        assert_eq!(plain.bytes, 4);
        let with =
            Outgoing::new(&Message::new("four").with_header("ab", "cde"), STANDARD, &Beside::default());
        assert_eq!(with.unwrap().bytes, 4 + 2 + "String".len() + 3);
        let bytes = Outgoing::new(&Message::new(vec![0; 100]), STANDARD, &Beside::default()).unwrap();
        assert_eq!(bytes.bytes, 100 + OVERHEAD);
        let bytes = Outgoing::new(&Message::new(vec![0; 100]), FIFO, &Beside::default()).unwrap();
        assert_eq!(bytes.bytes, 100 + FIFO_OVERHEAD);
    }

    #[test]
    fn the_clock_of_sqs_tells_how_long_is_left() {
        let at = |millis| DateTime::from_timestamp_millis(millis);
        let waiting = |wait| {
            let beside = Beside { wait: Some(wait), ..Beside::default() };
            through(Outgoing::new(&Message::new("m"), STANDARD, &beside).unwrap())
        };
        let clock = Clock::default();
        let ours = at(99_000).unwrap();
        let mut incoming = waiting(Wait::FromSent(1500));
        incoming.sent_at = at(10_000);
        incoming.first_received_at = at(11_100);
        assert_eq!(clock.wait_left(&incoming, ours), 400);
        // Received again, 200 ms later by our clock: theirs has gone on as well.
        incoming.receives = 2;
        assert_eq!(clock.wait_left(&incoming, at(99_200).unwrap()), 200);
        assert_eq!(clock.wait_left(&incoming, at(99_500).unwrap()), 0);
        // What was sent on says when, and not how long.
        let mut incoming = waiting(Wait::Until(11_500));
        incoming.sent_at = at(11_050);
        incoming.first_received_at = at(11_100);
        assert_eq!(clock.wait_left(&incoming, ours), 400);
        assert_eq!(
            clock.wait_left(
                &through(Outgoing::new(&Message::new("m"), STANDARD, &Beside::default()).unwrap()),
                ours
            ),
            0
        );
    }

    #[test]
    fn foreign_messages_are_read_as_far_as_they_go() {
        let raw = types::Message::builder()
            .message_id("1")
            .receipt_handle("r")
            .message_attributes("buqueue", string("no object").unwrap())
            .message_attributes("bytes", binary(&[255]).unwrap())
            .message_attributes("text", binary(b"t").unwrap())
            .build();
        let incoming = Incoming::read(raw).unwrap();
        assert!(incoming.message.payload().is_empty());
        assert_eq!(incoming.message.header("buqueue"), Some("no object"));
        assert_eq!((incoming.message.header("bytes"), incoming.message.header("text")), (None, Some("t")));
        assert_eq!(incoming.receives, 1);
        assert!(Incoming::read(types::Message::builder().body("m").build()).is_none());
    }
}
