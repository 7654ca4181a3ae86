//! A message to a record, and back. No I/O.
//!
//! The payload is the value, the routing key the key, and headers are headers. What has no place of its own is a header that
//! begins with `buqueue-kafka-`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use buqueue_core::{Headers, Message};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, OwnedHeaders};

/// The deduplication id.
const ID: &str = "buqueue-kafka-id";
/// How many attempts failed before this copy was sent.
const FAILURES: &str = "buqueue-kafka-failures";
/// When the first of them ended, in milliseconds since 1970.
const FAILED_AT: &str = "buqueue-kafka-failed-at";
/// When the record is due, in milliseconds since 1970.
const DUE: &str = "buqueue-kafka-due";
/// The topic where it goes then.
const TARGET: &str = "buqueue-kafka-target";

/// The largest batch of records that topics take by default (`max.message.bytes`).
pub(crate) const LARGEST: usize = 1_048_588;
/// What a batch and a record have beside what is in them, and what a copy has that waits: where it goes, when, and its story.
const BESIDE: usize = 1024;
/// The lengths of a header's name and value.
const LENGTHS: usize = 8;
/// So many headers more than there are have room for their lengths, too.
const ADDED: usize = 16;

/// How many bytes of headers may be added, names and values together, where a batch may have `largest`. How well the client
/// compresses is not known: as it is.
pub(crate) fn header_room(message: &Message, largest: usize) -> usize {
    let headers = message.headers();
    let texts = [message.routing_key(), message.deduplication_id()];
    let taken = message.payload().len()
        + texts.into_iter().flatten().map(str::len).sum::<usize>()
        + headers.byte_len()
        + (headers.len() + ADDED) * LENGTHS
        + BESIDE;
    largest.saturating_sub(taken)
}

/// What is known about the attempts before this copy was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) failures: u32,
    pub(crate) first_failed_at: Option<DateTime<Utc>>,
}

/// A record that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delayed {
    /// In milliseconds since 1970.
    pub(crate) due: i64,
    pub(crate) target: String,
}

/// The headers of a record.
pub(crate) fn headers(message: &Message, story: Story, delayed: Option<&Delayed>) -> Option<OwnedHeaders> {
    let mut own: Vec<(&str, String)> = Vec::new();
    if let Some(id) = message.deduplication_id() {
        own.push((ID, id.to_owned()));
    }
    if story.failures > 0 {
        own.push((FAILURES, story.failures.to_string()));
        if let Some(time) = story.first_failed_at {
            own.push((FAILED_AT, time.timestamp_millis().to_string()));
        }
    }
    if let Some(delayed) = delayed {
        own.push((DUE, delayed.due.to_string()));
        own.push((TARGET, delayed.target.clone()));
    }
    let count = own.len() + message.headers().len();
    if count == 0 {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(count);
    for (key, value) in message.headers().iter() {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    for (key, value) in &own {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    Some(headers)
}

/// A record as it came.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) message: Message,
    pub(crate) story: Story,
    pub(crate) delayed: Option<Delayed>,
}

/// The message that buqueue or anybody else has sent. Never fails: what cannot be read is left out.
pub(crate) fn incoming(record: &BorrowedMessage<'_>) -> Incoming {
    let (mut headers, mut story) = (Headers::new(), Story::default());
    let (mut id, mut due, mut target) = (None, None, None);
    // The client panics on a header whose name is not UTF-8.
    let read = catch_unwind(AssertUnwindSafe(|| {
        record.headers().map(|headers| {
            let text = |value: Option<&[u8]>| {
                value.and_then(|value| std::str::from_utf8(value).ok()).map(str::to_owned)
            };
            headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect::<Vec<_>>()
        })
    }));
    for (name, value) in read.ok().flatten().unwrap_or_default() {
        let Some(value) = value else { continue };
        match name.as_str() {
            ID => id = Some(value),
            FAILURES => story.failures = value.parse().unwrap_or(0),
            FAILED_AT => story.first_failed_at = value.parse().ok().and_then(DateTime::from_timestamp_millis),
            DUE => due = value.parse().ok(),
            TARGET => target = Some(value),
            // Of several with one name the first is kept.
            name if headers.get(name).is_none() => headers.insert(name, &value),
            _ => {}
        }
    }
    let mut message = Message::new(Bytes::copy_from_slice(record.payload().unwrap_or_default()));
    if !headers.is_empty() {
        message = message.with_headers(headers);
    }
    if let Some(key) = record.key().and_then(|key| std::str::from_utf8(key).ok()) {
        message = message.with_routing_key(key);
    }
    if let Some(id) = id {
        message = message.with_deduplication_id(id);
    }
    let delayed = due.zip(target).map(|(due, target)| Delayed { due, target });
    Incoming { message, story, delayed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_for_headers_is_what_the_rest_leaves() {
        let message = |bytes| Message::new(vec![0; bytes]);
        let room = header_room(&message(1_000_000), LARGEST);
        assert!((40_000..48_588).contains(&room), "{room}");
        let with_key = message(1_000_000).with_routing_key("x".repeat(100));
        assert_eq!(header_room(&with_key, LARGEST), room - 100);
        assert_eq!(header_room(&message(2_000_000), LARGEST), 0);
    }
}
