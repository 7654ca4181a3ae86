//! A message to subject, headers and payload, and back. No I/O.
//!
//! Headers travel as headers of NATS where it can carry them: names and values are ASCII-named lines of text there,
//! trimmed, and names that begin with `Nats-` are orders to the server. Any other header is percent-encoded into the
//! one header [`ENCODED`], and when all headers together are too many for JetStream (64 KiB) they are written before
//! the payload.

use async_nats::Subject;
use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use buqueue_core::{Headers, Message, percent};
use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use crate::config::JetStreamConfig;
use crate::subject;

/// The routing key, where the subject does not tell it.
const KEY: &str = "buqueue-nats-key";
/// The deduplication id, where `Nats-Msg-Id` does not tell it.
const ID: &str = "buqueue-nats-id";
/// Headers that NATS cannot carry.
const ENCODED: &str = "buqueue-nats-headers";
/// How many bytes of the payload are headers.
const INLINE: &str = "buqueue-nats-inline";
/// Of a delayed message: the subject it is for, and when it is due, in milliseconds since 1970.
const TARGET: &str = "buqueue-nats-target";
const DUE: &str = "buqueue-nats-due";
const OURS: &str = "buqueue-nats-";
const SERVERS: &str = "Nats-";

const MSG_ID: &str = "Nats-Msg-Id";

/// JetStream takes 64 KiB of headers; what the server adds must fit too.
const NATIVE_MAX: usize = 48 * 1024;
/// JetStream's own limit, less what the server adds.
const BLOCK_MAX: usize = 60 * 1024;
/// Names, numbers and times of our own headers take no more than that together, schedules included.
const OWN_MOST: usize = 512;

/// Which subject a routing key means, and the other way round.
#[derive(Debug, Clone)]
pub(crate) struct Subjects {
    patterns: Vec<String>,
    default: Subject,
}

impl Subjects {
    pub(crate) fn new(config: &JetStreamConfig) -> Self {
        // An empty list does not pass the validation.
        let first = config.subjects.first().map_or("", String::as_str);
        Self { patterns: config.subjects.clone(), default: subject::default_of(first).into() }
    }

    /// The subject to publish to, and whether the key must travel beside it.
    fn of(&self, key: Option<&str>) -> (Subject, bool) {
        match key {
            None => (self.default.clone(), false),
            Some(key)
                if key != self.default.as_str()
                    && subject::is_literal(key)
                    && self.patterns.iter().any(|pattern| subject::covers(pattern, key)) =>
            {
                (key.into(), false)
            }
            Some(_) => (self.default.clone(), true),
        }
    }
}

/// What is published.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) subject: Subject,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

impl Outgoing {
    pub(crate) fn new(message: &Message, subjects: &Subjects) -> Self {
        let (subject, key_beside) = subjects.of(message.routing_key());
        let mut outgoing = Self { subject, headers: HeaderMap::new(), payload: message.payload().clone() };
        if let Some(key) = message.routing_key().filter(|_| key_beside) {
            outgoing.set(KEY, &percent::encode(key));
        }
        if let Some(id) = message.deduplication_id() {
            outgoing.set(ID, &percent::encode(id));
        }
        if let Some(id) = message.broker_deduplication_id().filter(|id| !id.is_empty()) {
            outgoing.set(MSG_ID, &percent::encode(id));
        }
        outgoing.set_headers(message.headers());
        outgoing
    }

    fn set_headers(&mut self, headers: &Headers) {
        if headers.is_empty() {
            return;
        }
        if are_inline(headers) {
            self.write_inline(headers);
            return;
        }
        let mut encoded = String::new();
        for (name, value) in headers.iter() {
            match native(name, value) {
                Some((name, value)) => self.headers.insert(name, value),
                None => percent::push_header(&mut encoded, name, value),
            }
        }
        if encoded.len() > NATIVE_MAX / 2 {
            self.headers = self.headers.iter().filter(|(name, _)| is_ours(name.as_ref())).fold(
                HeaderMap::new(),
                |mut kept, (name, values)| {
                    values.iter().for_each(|value| kept.append(name.clone(), value.clone()));
                    kept
                },
            );
            self.write_inline(headers);
        } else if !encoded.is_empty() {
            self.set(ENCODED, &encoded);
        }
    }

    fn write_inline(&mut self, headers: &Headers) {
        let mut encoded = String::new();
        for (name, value) in headers.iter() {
            percent::push_header(&mut encoded, name, value);
        }
        self.set(INLINE, &encoded.len().to_string());
        let mut payload = BytesMut::with_capacity(encoded.len() + self.payload.len());
        payload.put_slice(encoded.as_bytes());
        payload.put_slice(&self.payload);
        self.payload = payload.freeze();
    }

    /// Sets a header whose value is known to be visible ASCII.
    fn set(&mut self, name: &'static str, value: &str) {
        if let Some((name, value)) = parse(name, value) {
            self.headers.insert(name, value);
        }
    }

    /// Turns the message into an order to the server: publish it at `due`. `subject` is the schedule's own.
    pub(crate) fn schedule(mut self, subject: String, due: DateTime<Utc>) -> Self {
        let target = std::mem::replace(&mut self.subject, subject.into());
        // Rounded up, so that what is cut off does not make it early.
        let due = due + TimeDelta::microseconds(999);
        self.set("Nats-Schedule", &format!("@at {}", due.to_rfc3339_opts(SecondsFormat::Millis, true)));
        self.set_text("Nats-Schedule-Target", &target);
        // The age limit of the stream is for messages, not for those that wait.
        self.set("Nats-TTL", "never");
        self
    }

    /// Turns the message into one for the delay stream.
    pub(crate) fn delay(mut self, subject: String, due: DateTime<Utc>) -> Self {
        let target = std::mem::replace(&mut self.subject, subject.into());
        self.set(TARGET, &percent::encode(&target));
        self.set(DUE, &due.timestamp_millis().saturating_add(1).to_string());
        self
    }

    /// Subjects may be any text without blanks.
    fn set_text(&mut self, name: &'static str, value: &str) {
        self.set(name, value);
    }

    /// Bytes on the wire, roughly; what the server's `max_payload` counts.
    pub(crate) fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, values)| {
                let name: &str = name.as_ref();
                values.iter().map(|value| name.len() + value.as_str().len() + 4).sum::<usize>()
            })
            .sum();
        self.payload.len() + if headers == 0 { 0 } else { headers + 12 }
    }
}

/// How many bytes of further headers leave the message within `limit`, in whichever way they travel and whether it is sent
/// now or later.
pub(crate) fn header_room(message: &Message, subjects: &Subjects, limit: usize) -> usize {
    let headers = message.headers();
    let length = |text: Option<&str>| text.map_or(0, str::len);
    let texts =
        length(message.routing_key()) + 2 * length(message.deduplication_id()) + subjects.default.len();
    let inline = are_inline(headers);
    // Encoded, each byte may become three.
    let size = |(name, value): (&str, &str)| {
        let plain = name.len() + value.len();
        if !inline && native(name, value).is_some() { plain } else { 3 * plain }
    };
    let block =
        OWN_MOST + 3 * texts + headers.iter().map(size).sum::<usize>() + BESIDE * (headers.len() + ADDED);
    let within = |limit: usize, taken: usize| limit.saturating_sub(taken) / 3;
    let whole = within(limit, message.payload().len() + block);
    // Those before the payload are no headers to the server.
    if inline {
        return whole;
    }
    // And they stay native, or what is there already would become longer as well.
    let native = NATIVE_MAX.saturating_sub(native_bytes(headers) + NATIVE_BESIDE * ADDED);
    whole.min(within(BLOCK_MAX, block)).min(native)
}

/// As many headers as are added at most, and what each takes beside its name and value.
const ADDED: usize = 16;
const BESIDE: usize = 6;
const NATIVE_BESIDE: usize = 16;

fn are_inline(headers: &Headers) -> bool {
    native_bytes(headers) > NATIVE_MAX
}

fn native_bytes(headers: &Headers) -> usize {
    headers.byte_len() + NATIVE_BESIDE * headers.len()
}

fn is_ours(name: &str) -> bool {
    name.starts_with(OURS) || name.starts_with(SERVERS)
}

fn parse(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((name.parse().ok()?, value.parse().ok()?))
}

/// The header as NATS carries it, if it arrives as it was sent.
fn native(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let orders = name.get(..SERVERS.len()).is_some_and(|start| start.eq_ignore_ascii_case(SERVERS));
    if orders || value.is_empty() || value.trim() != value || value.contains(char::is_control) {
        return None;
    }
    parse(name, value)
}

/// The message that buqueue or anybody else published. Never fails: what cannot be read is left out.
pub(crate) fn incoming(native: async_nats::Message, subjects: &Subjects) -> Message {
    let subject = native.subject;
    let Some(map) = native.headers else {
        let message = Message::new(native.payload);
        return if subject == subjects.default {
            message
        } else {
            message.with_routing_key(subject.as_str())
        };
    };
    let (mut payload, mut headers) = (native.payload, Headers::new());
    let (mut key, mut id, mut msg_id) = (None, None, None);
    for (name, values) in map.iter() {
        // Of several values of one name the first is kept.
        let Some(value) = values.first().map(HeaderValue::as_str) else { continue };
        match name.as_ref() {
            KEY => key = percent::decode(value),
            ID => id = percent::decode(value),
            MSG_ID => msg_id = Some(value.to_owned()),
            ENCODED => percent::read_headers(value, &mut headers),
            INLINE => {
                let length = value.parse().unwrap_or(usize::MAX);
                if let Some(text) = payload.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()) {
                    percent::read_headers(text, &mut headers);
                    payload = payload.slice(length..);
                }
            }
            name if is_ours(name) => {}
            name => headers.insert(name, value),
        }
    }
    let mut message = Message::new(payload);
    if let Some(key) = key {
        message = message.with_routing_key(key);
    } else if subject != subjects.default {
        message = message.with_routing_key(subject.as_str());
    }
    if let Some(id) = id.or(msg_id) {
        message = message.with_deduplication_id(id);
    }
    if headers.is_empty() { message } else { message.with_headers(headers) }
}

/// A message of the delay stream: what to publish, and when. `None`: not one of ours.
pub(crate) fn delayed(native: &async_nats::Message) -> Option<(Outgoing, DateTime<Utc>)> {
    let map = native.headers.as_ref()?;
    let value = |name: &str| map.get(name.parse::<HeaderName>().ok()?).map(HeaderValue::as_str);
    let subject = percent::decode(value(TARGET)?)?;
    let due = DateTime::from_timestamp_millis(value(DUE)?.parse().ok()?)?;
    let mut headers = HeaderMap::new();
    for (name, values) in map.iter() {
        let known: &str = name.as_ref();
        // The deduplication id goes with it: it may have been sent meanwhile.
        if known != TARGET && known != DUE && (known == MSG_ID || !known.starts_with(SERVERS)) {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    Some((Outgoing { subject: subject.into(), headers, payload: native.payload.clone() }, due))
}

impl Outgoing {
    /// Publishing it again with the same id is harmless. One that it has is kept.
    pub(crate) fn or_msg_id(mut self, id: &str) -> Self {
        let has_one = MSG_ID.parse::<HeaderName>().is_ok_and(|name| self.headers.get(name).is_some());
        if !has_one {
            self.set(MSG_ID, id);
        }
        self
    }
}

/// What the server says about a delivery, in the subject that it is acked to.
///
/// `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, or with the domain and the
/// account before the stream and a token at the end (ADR-15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) delivered: u32,
    pub(crate) stream_sequence: u64,
}

impl Info {
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let tokens = rest.split('.').count();
        let mut rest = rest.split('.').skip(if tokens >= 9 { 4 } else { 2 });
        let delivered = rest.next()?.parse::<u64>().ok()?;
        Some(Self {
            delivered: u32::try_from(delivered).unwrap_or(u32::MAX),
            stream_sequence: rest.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subjects() -> Subjects {
        Subjects::new(&JetStreamConfig {
            subjects: vec!["orders.>".to_owned()],
            ..JetStreamConfig::default()
        })
    }

    fn native(outgoing: Outgoing) -> async_nats::Message {
        async_nats::Message {
            subject: outgoing.subject,
            reply: None,
            payload: outgoing.payload,
            headers: (!outgoing.headers.is_empty()).then_some(outgoing.headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    fn round(message: &Message) -> Message {
        incoming(native(Outgoing::new(message, &subjects())), &subjects())
    }

    #[test]
    fn keys_are_subjects_where_the_stream_covers_them() {
        for (key, subject) in [
            (None, "orders._"),
            (Some("orders.placed"), "orders.placed"),
            (Some("orders.größe"), "orders.größe"),
            (Some("orders._"), "orders._"),
            (Some("orders.*"), "orders._"),
            (Some("orders"), "orders._"),
            (Some("customers.new"), "orders._"),
            (Some("a b\n%=&ü"), "orders._"),
            (Some(""), "orders._"),
        ] {
            let mut message = Message::new("m");
            if let Some(key) = key {
                message = message.with_routing_key(key);
            }
            assert_eq!(Outgoing::new(&message, &subjects()).subject.as_str(), subject, "{key:?}");
            assert_eq!(round(&message).routing_key(), key);
        }
    }

    #[test]
    fn headers_arrive_as_they_were_sent() {
        let large = "x".repeat(64 * 1024);
        let odd_and_large = "\n".repeat(20 * 1024);
        for (name, value) in [
            ("plain", "value"),
            ("empty", ""),
            ("lines", "one\r\ntwo\n"),
            ("blank", " padded "),
            ("ünicode-value", "größe"),
            ("Nats-Rollup", "all"),
            ("nats-msg-id", "x"),
            ("with:colon", "x"),
            ("percent", "100%&a=b"),
            ("large", &large),
            ("odd", &odd_and_large),
        ] {
            let message = Message::new("payload").with_header(name, value).with_header("other", "kept");
            let received = round(&message);
            assert_eq!(received.header(name), Some(value), "{name}");
            assert_eq!(received.header("other"), Some("kept"), "{name}");
            assert_eq!(received.headers().len(), 2, "{name}");
            assert_eq!(received.payload(), "payload", "{name}");
        }
    }

    #[test]
    fn the_room_for_headers_is_there() {
        let (limit, subjects) = (1024 * 1024, subjects());
        let due = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        let typical = Message::new("x".repeat(2000)).with_header("a", "b").with_routing_key("orders.placed");
        assert!(header_room(&typical, &subjects, limit) >= 10_000);
        assert!(header_room(&Message::new("m"), &subjects, 16 * 1024) >= 4000);
        assert_eq!(header_room(&Message::new("x".repeat(limit)), &subjects, limit), 0);
        let bare = Message::new("m");
        let keyed =
            Message::new("m").with_routing_key("\n".repeat(300)).with_deduplication_id("ü".repeat(200));
        for (headers, header) in [(0, 0), (3, 20), (200, 30), (10, 1500), (300, 300)] {
            for message in [&bare, &keyed] {
                for (filler, limit) in [("x", limit), ("\n", limit), ("x", 5000), ("\n", 2000)] {
                    let mut message = message.clone();
                    for n in 0..headers {
                        message = message.with_header(format!("h{n}"), filler.repeat(header));
                    }
                    let room = header_room(&message, &subjects, limit);
                    let one = message.clone().with_header("n", "%".repeat(room.saturating_sub(1)));
                    let each = "%".repeat((room / ADDED).saturating_sub(2));
                    let many =
                        (0..ADDED).fold(message, |message, n| message.with_header(format!("{n:02}"), &each));
                    for message in [one, many].into_iter().filter(|_| room > 0) {
                        let now = Outgoing::new(&message, &subjects);
                        let sizes = [
                            now.size(),
                            Outgoing::new(&message, &subjects).schedule("s".repeat(100), due).size(),
                            Outgoing::new(&message, &subjects).delay("d".repeat(100), due).size(),
                        ];
                        assert!(sizes.iter().all(|size| *size <= limit), "{sizes:?} {limit} {room}");
                        assert!(now.size() - now.payload.len() <= BLOCK_MAX);
                    }
                }
            }
        }
    }

    #[test]
    fn deduplication_ids_arrive_and_are_the_servers() {
        let message = Message::new("m").with_deduplication_id("id 1\n");
        let outgoing = Outgoing::new(&message, &subjects());
        assert_eq!(outgoing.headers.get(MSG_ID).map(HeaderValue::as_str), Some("id%201%0A"));
        assert_eq!(round(&message).deduplication_id(), Some("id 1\n"));
    }

    #[test]
    fn a_delayed_message_is_the_same_afterwards() {
        let message = Message::new("m").with_routing_key("orders.placed").with_header("a", "b");
        let due = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        let delayed_native = native(Outgoing::new(&message, &subjects()).delay("d".to_owned(), due));
        let (outgoing, at) = delayed(&delayed_native).unwrap();
        assert!(at >= due && at - due <= TimeDelta::milliseconds(1));
        let received = incoming(native(outgoing), &subjects());
        assert_eq!(received.routing_key(), Some("orders.placed"));
        assert_eq!(received.headers().len(), 1);
    }

    #[test]
    fn schedules_are_rounded_up() {
        let due = DateTime::from_timestamp_micros(1_800_000_000_123_001).unwrap();
        let outgoing = Outgoing::new(&Message::new("m"), &subjects()).schedule("s".to_owned(), due);
        let at = outgoing.headers.get("Nats-Schedule").unwrap().as_str().to_owned();
        assert!(at.ends_with(".124Z"), "{at}");
    }

    #[test]
    fn ack_subjects_are_read_in_both_forms() {
        let info = Info { delivered: 2, stream_sequence: 17 };
        for reply in [
            "$JS.ACK.ORDERS.worker.2.17.5.1700000000000000000.3",
            "$JS.ACK.hub.A1B2.ORDERS.worker.2.17.5.1700000000000000000.3.rnd",
            "$JS.ACK._.A1B2.ORDERS.worker.2.17.5.1700000000000000000.3",
        ] {
            assert_eq!(Info::parse(reply), Some(info), "{reply}");
        }
        assert_eq!(Info::parse("_INBOX.x"), None);
    }
}
