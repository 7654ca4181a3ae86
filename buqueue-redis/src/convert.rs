//! A message to the fields of an entry, and back. No I/O.
//!
//! An entry of ours starts with `p`, the payload; then come `k`, the routing key, `d`, the deduplication id, and
//! `h`, all headers in one field, each where there is one. What the retry stream adds is described in
//! [`scripts`](crate::scripts).

use buqueue_core::{Headers, Message};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use redis::{Cmd, RedisResult, Value};

use crate::error;

const PAYLOAD: &[u8] = b"p";
const KEY: &[u8] = b"k";
const DEDUPLICATION_ID: &[u8] = b"d";
const HEADERS: &[u8] = b"h";

/// An entry id.
pub(crate) type Id = (u64, u64);

/// Which of the two streams of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stream,
    Retry,
}

/// One entry as read.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) source: Source,
    /// The id in that stream.
    pub(crate) id: Id,
    /// The id that the message had first.
    pub(crate) first_id: Id,
    pub(crate) message: Message,
    /// Attempts before this one.
    pub(crate) attempts: u32,
    pub(crate) first_failed_at: Option<DateTime<Utc>>,
}

/// Appends the fields of a message to a command.
pub(crate) fn write_fields(cmd: &mut Cmd, message: &Message) {
    cmd.arg(PAYLOAD).arg(&message.payload()[..]);
    if let Some(key) = message.routing_key() {
        cmd.arg(KEY).arg(key);
    }
    if let Some(id) = message.deduplication_id() {
        cmd.arg(DEDUPLICATION_ID).arg(id);
    }
    if !message.headers().is_empty() {
        cmd.arg(HEADERS).arg(encode_headers(message.headers()));
    }
}

/// Per header: length of the name, name, length of the value, value. A length is seven bits a byte, the lowest
/// first, the eighth bit set on all but the last.
fn encode_headers(headers: &Headers) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(headers.byte_len() + 4 * headers.len());
    for (name, value) in headers.iter() {
        for text in [name, value] {
            let mut length = text.len();
            while length >= 0x80 {
                bytes.push(low_bits(length) | 0x80);
                length >>= 7;
            }
            bytes.push(low_bits(length));
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

fn low_bits(length: usize) -> u8 {
    u8::try_from(length & 0x7f).unwrap_or(0)
}

/// `None` when the bytes are not headers of ours.
fn decode_headers(mut bytes: &[u8]) -> Option<Headers> {
    let mut headers = Headers::new();
    while !bytes.is_empty() {
        let name = decode_text(&mut bytes)?;
        let value = decode_text(&mut bytes)?;
        headers.insert(name, value);
    }
    Some(headers)
}

fn decode_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let mut length = 0_usize;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let (text, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            return std::str::from_utf8(text).ok();
        }
    }
    None
}

type Field = (Vec<u8>, Vec<u8>);

/// The message of an entry that buqueue or anybody else wrote. Never fails: what cannot be read is left out.
fn message(fields: Vec<Field>) -> Message {
    let ours = fields.first().is_some_and(|(name, _)| name == PAYLOAD);
    let payload_at = fields.iter().position(|(name, _)| name == PAYLOAD || name == b"payload").unwrap_or(0);
    let (mut payload, mut key, mut id, mut headers) = (Bytes::new(), None, None, Headers::new());
    let mut foreign = Vec::new();
    for (at, (name, value)) in fields.into_iter().enumerate() {
        if at == payload_at {
            payload = Bytes::from(value);
            continue;
        }
        match name.as_slice() {
            KEY if ours && key.is_none() => match String::from_utf8(value) {
                Ok(text) => key = Some(text),
                Err(error) => foreign.push((name, error.into_bytes())),
            },
            DEDUPLICATION_ID if ours && id.is_none() => match String::from_utf8(value) {
                Ok(text) => id = Some(text),
                Err(error) => foreign.push((name, error.into_bytes())),
            },
            HEADERS if ours && headers.is_empty() => match decode_headers(&value) {
                Some(decoded) => headers = decoded,
                None => foreign.push((name, value)),
            },
            _ => foreign.push((name, value)),
        }
    }
    for (name, value) in foreign {
        if let (Ok(name), Ok(value)) = (std::str::from_utf8(&name), std::str::from_utf8(&value)) {
            // The first of several fields with one name is kept, and what buqueue wrote itself.
            if headers.get(name).is_none() {
                headers.insert(name, value);
            }
        }
    }
    let mut message = Message::new(payload);
    if let Some(key) = key {
        message = message.with_routing_key(key);
    }
    if let Some(id) = id {
        message = message.with_deduplication_id(id);
    }
    if headers.is_empty() { message } else { message.with_headers(headers) }
}

/// The entries of an `XREADGROUP` reply, by stream. `retry` is the key of the retry stream.
pub(crate) fn read_entries(reply: Value, retry: &str) -> RedisResult<(Vec<Entry>, Vec<Entry>)> {
    let (mut from_retry, mut from_stream) = (Vec::new(), Vec::new());
    let streams = match reply {
        Value::Nil => Vec::new(),
        Value::Map(streams) => streams,
        Value::Array(streams) => streams
            .into_iter()
            .map(pair)
            .collect::<Option<_>>()
            .ok_or_else(|| error::unexpected("XREADGROUP"))?,
        _ => return Err(error::unexpected("XREADGROUP")),
    };
    for (key, entries) in streams {
        let Value::Array(entries) = entries else { return Err(error::unexpected("XREADGROUP")) };
        let (source, list) = if bytes(&key) == Some(retry.as_bytes()) {
            (Source::Retry, &mut from_retry)
        } else {
            (Source::Stream, &mut from_stream)
        };
        list.reserve_exact(entries.len());
        for raw in entries {
            list.extend(entry(source, raw));
        }
    }
    Ok((from_retry, from_stream))
}

/// An entry of which only the id is left is an empty message, so that it can be settled. `None`: not even that.
fn entry(source: Source, raw: Value) -> Option<Entry> {
    let (id, fields) = pair(raw)?;
    let id = parse_id(bytes(&id)?)?;
    let mut flat = match fields {
        Value::Array(flat) => flat,
        // The newer protocol may say so.
        Value::Map(fields) => fields.into_iter().flat_map(|(name, value)| [name, value]).collect(),
        _ => Vec::new(),
    };
    if source == Source::Stream && flat.len() == 2 && bytes(&flat[0]) == Some(PAYLOAD) {
        let message = Message::new(into_bytes(flat.pop()?));
        return Some(Entry { source, id, first_id: id, message, attempts: 0, first_failed_at: None });
    }
    let mut fields = Vec::with_capacity(flat.len() / 2);
    let mut flat = flat.into_iter();
    while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
        fields.push((into_bytes(name), into_bytes(value)));
    }
    let (mut first_id, mut attempts, mut first_failed_at) = (id, 0, None);
    if source == Source::Retry && fields.len() >= 3 {
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<i64>().ok();
        let mut carried = fields.drain(..3).map(|(_, value)| value);
        first_id = carried.next().and_then(|value| parse_id(&value)).unwrap_or(id);
        attempts = carried.next().and_then(|value| u32::try_from(number(&value)?).ok()).unwrap_or(0);
        first_failed_at = carried
            .next()
            .and_then(|value| number(&value))
            .filter(|&at| at > 0)
            .and_then(DateTime::from_timestamp_millis);
        drop(carried);
    }
    Some(Entry { source, id, first_id, message: message(fields), attempts, first_failed_at })
}

fn pair(value: Value) -> Option<(Value, Value)> {
    let Value::Array(mut items) = value else { return None };
    if items.len() != 2 {
        return None;
    }
    let second = items.pop()?;
    Some((items.pop()?, second))
}

/// The id that a command answers with.
pub(crate) fn parse_id(text: &[u8]) -> Option<Id> {
    let dash = text.iter().position(|&byte| byte == b'-')?;
    let number = |digits: &[u8]| {
        if digits.is_empty() {
            return None;
        }
        digits.iter().try_fold(0_u64, |number, &digit| {
            if !digit.is_ascii_digit() {
                return None;
            }
            number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
    };
    Some((number(&text[..dash])?, number(&text[dash + 1..])?))
}

/// The bytes of a string reply.
pub(crate) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

fn into_bytes(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        Value::Okay => b"OK".to_vec(),
        Value::Int(number) => number.to_string().into_bytes(),
        _ => Vec::new(),
    }
}

/// A number, which scripts also send as text.
pub(crate) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        value => std::str::from_utf8(bytes(value)?).ok()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: impl AsRef<[u8]>) -> Value {
        Value::BulkString(text.as_ref().to_vec())
    }

    fn reply(key: &str, id: &str, fields: &[&[u8]]) -> Value {
        let fields = fields.iter().map(bulk).collect();
        let entry = Value::Array(vec![bulk(id), Value::Array(fields)]);
        Value::Array(vec![Value::Array(vec![bulk(key), Value::Array(vec![entry])])])
    }

    fn fields_of(message: &Message) -> Vec<Vec<u8>> {
        let mut cmd = Cmd::new();
        write_fields(&mut cmd, message);
        cmd.args_iter()
            .map(|arg| match arg {
                redis::Arg::Simple(bytes) => bytes.to_vec(),
                _ => panic!("a cursor"),
            })
            .collect()
    }

    fn round_trip(message: &Message) -> Message {
        let fields = fields_of(message);
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        let (retry, mut stream) = read_entries(reply("s", "1-2", &fields), "r").unwrap();
        assert!(retry.is_empty());
        let entry = stream.pop().unwrap();
        assert_eq!((entry.id, entry.first_id, entry.attempts), ((1, 2), (1, 2), 0));
        entry.message
    }

    #[test]
    fn messages_survive() {
        let long = "x".repeat(65_536);
        for message in [
            Message::new(""),
            Message::new(&b"\0\xff\r\n$5"[..]),
            Message::new("p").with_routing_key("").with_deduplication_id(""),
            Message::new("p").with_routing_key("größe ✓").with_deduplication_id("a b\n"),
            Message::new("p")
                .with_header("empty", "")
                .with_header("lines", "a\nb\r\n")
                .with_header("h", "ünï")
                .with_header("127", &long[..127])
                .with_header("128", &long[..128])
                .with_header("long", &long),
        ] {
            assert_eq!(round_trip(&message), message);
        }
    }

    #[test]
    fn retries_carry_their_story() {
        let fields: [&[u8]; 8] = [b"i", b"5-6", b"a", b"3", b"f", b"1700000000123", b"p", b"x"];
        let (mut retry, stream) = read_entries(reply("r", "9-0", &fields), "r").unwrap();
        assert!(stream.is_empty());
        let entry = retry.pop().unwrap();
        assert_eq!((entry.id, entry.first_id, entry.attempts), ((9, 0), (5, 6), 3));
        assert_eq!(entry.first_failed_at.unwrap().timestamp_millis(), 1_700_000_000_123);
        assert_eq!(entry.message, Message::new("x"));
    }

    #[test]
    fn foreign_entries_are_read_as_far_as_they_go() {
        let read =
            |fields: &[&[u8]]| read_entries(reply("s", "1-1", fields), "r").unwrap().1.pop().unwrap().message;
        let message =
            read(&[b"a", b"1", b"a", b"2", b"a", b"3", b"\xff", b"x", b"bin", b"\xfe", b"ok", b"v"]);
        assert_eq!(message.payload(), "1");
        assert_eq!((message.header("a"), message.header("ok")), (Some("2"), Some("v")));
        assert_eq!(message.headers().len(), 2);
        // `h` and `k` of a stranger mean what they mean to him.
        let message = read(&[b"h", b"1", b"k", b"2", b"payload", b"3"]);
        assert_eq!((message.payload(), message.routing_key()), (&Bytes::from("3"), None));
        assert_eq!((message.header("h"), message.header("k")), (Some("1"), Some("2")));
        // Ours, damaged.
        let message = read(&[b"p", b"x", b"k", b"\xff", b"h", b"\x05abc", b"h", b"\xff\xff\xff\xff\xff"]);
        assert_eq!((message.payload(), message.routing_key()), (&Bytes::from("x"), None));
        assert_eq!(read(&[]).payload(), "");
    }

    #[test]
    fn both_protocols_and_deleted_entries_are_understood() {
        assert!(read_entries(Value::Nil, "r").unwrap().0.is_empty());
        let Value::Array(streams) = reply("s", "1-1", &[b"p", b"x"]) else { panic!() };
        let resp3 = Value::Map(streams.into_iter().filter_map(pair).collect());
        assert_eq!(read_entries(resp3, "r").unwrap().1.len(), 1);
        let deleted = Value::Array(vec![bulk("1-1"), Value::Nil]);
        let reply = Value::Array(vec![Value::Array(vec![bulk("s"), Value::Array(vec![deleted])])]);
        let read = read_entries(reply, "r").unwrap().1;
        assert_eq!((read[0].id, read[0].message.payload().len()), ((1, 1), 0));
        assert!(read_entries(Value::Int(1), "r").is_err());
    }
}
