//! A message to properties and payload, and back. No I/O.

use buqueue_core::{Headers, Message, percent};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

/// The routing key, where the AMQP routing key does not tell it.
const KEY: &str = "buqueue-amqp-key";
/// The deduplication id.
const ID: &str = "buqueue-amqp-id";
/// Headers that the broker would obey, or a router could not tell from its own.
const ENCODED: &str = "buqueue-amqp-headers";
/// How many attempts failed before this copy was published.
const FAILURES: &str = "buqueue-amqp-failures";
/// When the first of them ended, in milliseconds since 1970.
const FAILED_AT: &str = "buqueue-amqp-failed-at";
/// The id of the message that this is a copy of.
const COPY_OF: &str = "buqueue-amqp-message-id";

const PERSISTENT: u8 = 2;

/// What is known about the attempts before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) failures: u32,
    pub(crate) first_failed_at: Option<DateTime<Utc>>,
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) message: Message,
    pub(crate) id: Option<String>,
    pub(crate) story: Story,
}

/// The properties of a message. `key_beside`: the routing key is not the AMQP routing key.
pub(crate) fn properties(message: &Message, id: &str, key_beside: bool, story: Story) -> BasicProperties {
    let mut table = FieldTable::default();
    if let Some(key) = message.routing_key().filter(|_| key_beside) {
        set(&mut table, KEY, key);
    }
    if let Some(dedup) = message.deduplication_id() {
        set(&mut table, ID, dedup);
    }
    if story.failures > 0 {
        set(&mut table, FAILURES, &story.failures.to_string());
        if let Some(time) = story.first_failed_at {
            set(&mut table, FAILED_AT, &time.timestamp_millis().to_string());
        }
    }
    let mut encoded = String::new();
    for (name, value) in message.headers().iter() {
        if is_the_brokers(name) {
            percent::push_header(&mut encoded, name, value);
        } else {
            set(&mut table, name, value);
        }
    }
    if !encoded.is_empty() {
        set(&mut table, ENCODED, &encoded);
    }
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let properties = match ShortString::try_new(id) {
        Ok(id) => properties.with_message_id(id),
        // Somebody else's, of a length that cannot be a property; it was read from a header then.
        Err(_) => {
            set(&mut table, COPY_OF, id);
            properties
        }
    };
    if table.inner().is_empty() { properties } else { properties.with_headers(table) }
}

/// How many bytes the table of a message takes at most; see [`properties`]. Each entry has the length of its name, a type
/// and the length of its value.
pub(crate) fn table_bytes(message: &Message) -> usize {
    const ENTRY: usize = 1 + 1 + 4;
    let beside = [(KEY, message.routing_key()), (ID, message.deduplication_id())];
    let beside = beside.into_iter().filter_map(|(name, value)| Some(ENTRY + name.len() + value?.len()));
    let headers = message.headers().iter().map(|(name, value)| {
        // Percent-encoding needs up to three bytes for one.
        let times = if is_the_brokers(name) { 3 } else { 1 };
        ENTRY + (name.len() + value.len()) * times
    });
    beside.sum::<usize>() + ENTRY + ENCODED.len() + headers.sum::<usize>()
}

fn set(table: &mut FieldTable, name: &str, value: &str) {
    // Core lets no longer names pass.
    if let Ok(name) = ShortString::try_new(name) {
        table.insert(name, AMQPValue::LongString(LongString::from(value)));
    }
}

/// Names that the broker gives a meaning to: its own annotations, and the sender-selected routes.
fn is_the_brokers(name: &str) -> bool {
    name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("x-")) || matches!(name, "CC" | "BCC")
}

/// What the broker itself has written about the way of a message. Sent back, 3.10 takes it for a cycle.
fn is_annotation(name: &str) -> bool {
    matches!(name, "x-death" | "x-delivery-count" | "x-acquired-count" | "x-opt-deliver-by")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// The message that buqueue or anybody else published. Never fails: what cannot be read is left out.
///
/// `own_key`: the AMQP routing key is the message's, unless a header says otherwise.
pub(crate) fn incoming(properties: &BasicProperties, data: Vec<u8>, routing_key: Option<&str>) -> Incoming {
    let mut headers = Headers::new();
    let (mut key, mut dedup, mut counted) = (None, None, 0_u64);
    let mut story = Story::default();
    let mut id = properties.message_id().as_ref().map(|id| id.as_str().to_owned());
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        match name.as_str() {
            KEY => key = text(value),
            ID => dedup = text(value),
            COPY_OF => id = text(value),
            ENCODED => {
                if let Some(encoded) = text(value) {
                    percent::read_headers(&encoded, &mut headers);
                }
            }
            FAILURES => story.failures = text(value).and_then(|text| text.parse().ok()).unwrap_or(0),
            FAILED_AT => {
                story.first_failed_at =
                    text(value).and_then(|text| text.parse().ok()).and_then(DateTime::from_timestamp_millis);
            }
            // The broker's own count goes on from what we counted.
            "x-delivery-count" => counted = text(value).and_then(|text| text.parse().ok()).unwrap_or(0),
            name if is_annotation(name) => {}
            name => {
                if let Some(value) = text(value) {
                    headers.insert(name, &value);
                }
            }
        }
    }
    story.failures = story.failures.saturating_add(u32::try_from(counted).unwrap_or(u32::MAX));
    let mut message = Message::new(Bytes::from(data));
    if let Some(key) = key.or_else(|| routing_key.map(str::to_owned)) {
        message = message.with_routing_key(key);
    }
    if let Some(dedup) = dedup {
        message = message.with_deduplication_id(dedup);
    }
    if !headers.is_empty() {
        message = message.with_headers(headers);
    }
    Incoming { message, id, story }
}

/// A header's value as text. What is no text, and cannot be written as one, is left out.
fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        AMQPValue::ByteArray(bytes) => std::str::from_utf8(bytes.as_slice()).ok().map(str::to_owned),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        AMQPValue::ShortShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortShortUInt(value) => Some(value.to_string()),
        AMQPValue::ShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortUInt(value) => Some(value.to_string()),
        AMQPValue::LongInt(value) => Some(value.to_string()),
        AMQPValue::LongUInt(value) => Some(value.to_string()),
        AMQPValue::LongLongInt(value) => Some(value.to_string()),
        AMQPValue::Timestamp(value) => Some(value.to_string()),
        AMQPValue::Float(value) => Some(value.to_string()),
        AMQPValue::Double(value) => Some(value.to_string()),
        AMQPValue::FieldArray(values) => values.as_slice().iter().find_map(text),
        AMQPValue::DecimalValue(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(message: &Message, story: Story) -> Incoming {
        incoming(&properties(message, "id", true, story), message.payload().to_vec(), None)
    }

    #[test]
    fn a_message_comes_back() {
        let story =
            Story { failures: 2, first_failed_at: DateTime::from_timestamp_millis(1_700_000_000_123) };
        let mut message = Message::new("payload").with_routing_key("k ü").with_deduplication_id("d\n");
        for (name, value) in [
            ("a", ""),
            ("lines", "1\r\n2"),
            ("x-death", "user's"),
            ("CC", "other"),
            ("X-Y", "z"),
            ("größe", "ü"),
        ] {
            message = message.with_header(name, value);
        }
        let received = round(&message, story);
        assert_eq!(received.id.as_deref(), Some("id"));
        assert_eq!(received.story, story);
        assert_eq!(received.message.payload(), "payload");
        assert_eq!(received.message.routing_key(), Some("k ü"));
        assert_eq!(received.message.deduplication_id(), Some("d\n"));
        assert_eq!(received.message.headers().len(), 6);
        for (name, value) in message.headers().iter() {
            assert_eq!(received.message.header(name), Some(value));
        }
    }

    #[test]
    fn a_table_takes_no_more_than_was_reckoned() {
        let large = "ü&".repeat(500);
        for message in [
            Message::new(""),
            Message::new("").with_routing_key(&large).with_deduplication_id(&large),
            Message::new("").with_header("a", &large).with_header("b", "").with_header("x-a", &large),
            Message::new("").with_header("x-a", &large).with_header("X-b", "").with_header("CC", &large),
        ] {
            let properties = properties(&message, "id", true, Story::default());
            let table = properties.headers().iter().flat_map(|table| table.inner());
            let bytes: usize = table
                .map(|(name, value)| match value {
                    AMQPValue::LongString(value) => 6 + name.as_str().len() + value.as_bytes().len(),
                    other => panic!("{other:?}"),
                })
                .sum();
            let reckoned = table_bytes(&message);
            assert!(bytes <= reckoned && reckoned <= bytes + large.len() * 3, "{bytes} {reckoned}");
        }
    }

    #[test]
    fn what_the_broker_wrote_is_not_shown_and_counted() {
        let mut table = FieldTable::default();
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(3));
        table.insert("x-death".into(), AMQPValue::FieldArray(Vec::new().into()));
        table.insert("x-first-death-queue".into(), AMQPValue::LongString("q".into()));
        table.insert("x-last-death-reason".into(), AMQPValue::LongString("expired".into()));
        table.insert("x-foreign".into(), AMQPValue::LongInt(7));
        set(&mut table, FAILURES, "2");
        let properties = BasicProperties::default().with_headers(table);
        let received = incoming(&properties, Vec::new(), Some("key"));
        assert_eq!(received.story.failures, 5);
        assert_eq!(received.message.headers().len(), 1);
        assert_eq!(received.message.header("x-foreign"), Some("7"));
        assert_eq!(received.message.routing_key(), Some("key"));
    }

    #[test]
    fn values_of_any_type_are_read() {
        let mut table = FieldTable::default();
        table.insert("binary".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
        table.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
        table.insert("flag".into(), AMQPValue::Boolean(true));
        let twice = vec![AMQPValue::LongString("1".into()), AMQPValue::LongString("2".into())];
        table.insert("twice".into(), AMQPValue::FieldArray(twice.into()));
        let received = incoming(&BasicProperties::default().with_headers(table), b"x".to_vec(), None);
        assert_eq!(received.message.header("flag"), Some("true"));
        assert_eq!(received.message.header("twice"), Some("1"));
        assert_eq!(received.message.headers().len(), 2);
    }
}
