//! The content of a file: `buqueue-spool`, a line of JSON, and the payload as it is.

use std::borrow::Cow;
use std::collections::BTreeMap;

use buqueue_core::{BuqueueError, ErrorKind, Message, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

const BEGINNING: &[u8] = b"buqueue-spool ";

/// The header that says why a message has no content.
const UNREADABLE: &str = "spool-unreadable";

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Head<'a> {
    routing_key: Option<Cow<'a, str>>,
    deduplication_id: Option<Cow<'a, str>>,
    headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

pub(crate) fn to_bytes(message: &Message) -> Result<Vec<u8>> {
    let head = Head {
        routing_key: message.routing_key().map(Cow::from),
        deduplication_id: message.deduplication_id().map(Cow::from),
        headers: message.headers().iter().map(|(name, value)| (name.into(), value.into())).collect(),
    };
    let mut bytes = BEGINNING.to_vec();
    serde_json::to_writer(&mut bytes, &head).map_err(|error| {
        BuqueueError::new(ErrorKind::InvalidMessage, "headers: no JSON").with_source(error)
    })?;
    bytes.push(b'\n');
    bytes.extend_from_slice(message.payload());
    Ok(bytes)
}

/// What is not as [`to_bytes`] writes it is a payload in whole: somebody else has put it there.
pub(crate) fn from_bytes(bytes: Vec<u8>) -> Message {
    let bytes = Bytes::from(bytes);
    let Some((head, payload_at)) = parse(&bytes) else { return Message::new(bytes) };
    let mut message =
        Message::new(bytes.slice(payload_at..)).with_headers(head.headers.into_iter().collect());
    if let Some(key) = head.routing_key {
        message = message.with_routing_key(key);
    }
    if let Some(id) = head.deduplication_id {
        message = message.with_deduplication_id(id);
    }
    message
}

/// For a file that cannot be read. So it is delivered, fails, and becomes a dead letter, as any message that nobody
/// understands.
pub(crate) fn unreadable(why: String) -> Message {
    Message::new("").with_header(UNREADABLE, why)
}

fn parse(bytes: &[u8]) -> Option<(Head<'static>, usize)> {
    let rest = bytes.strip_prefix(BEGINNING)?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    // Lossy: a header that is no text is kept as far as it is one.
    let head = serde_json::from_str(&String::from_utf8_lossy(&rest[..end])).ok()?;
    Some((head, BEGINNING.len() + end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_message_is_kept() {
        let message = Message::new(vec![0, 255, b'\n'])
            .with_header("x", "grüße\n")
            .with_header("empty", "")
            .with_routing_key("a\nb")
            .with_deduplication_id("");
        assert!(from_bytes(to_bytes(&message).unwrap()) == message);
        assert!(from_bytes(to_bytes(&Message::new("")).unwrap()) == Message::new(""));
    }

    #[test]
    fn all_within_the_limits_is_within_the_size_of_a_file() {
        let limits = crate::backend::LIMITS;
        // What takes most of JSON: a byte that is written as six.
        let text = |bytes: Option<usize>| "\u{1}".repeat(bytes.unwrap());
        let message = Message::new(vec![0; limits.payload_bytes.unwrap()])
            .with_header("x", text(limits.header_bytes))
            .with_routing_key(text(limits.routing_key_bytes))
            .with_deduplication_id(text(limits.deduplication_id_bytes));
        assert!(to_bytes(&message).unwrap().len() as u64 <= crate::spool::FILE_MAX);
    }

    #[test]
    fn what_others_write_is_a_payload() {
        for text in ["", "foreign", "buqueue-spool ", "buqueue-spool {}", "buqueue-spool {\"headers\":7}\nx"]
        {
            assert!(from_bytes(text.into()) == Message::new(text), "{text:?}");
        }
    }

    #[test]
    fn a_header_that_is_no_text_does_not_fail_the_rest() {
        let message = from_bytes(b"buqueue-spool {\"headers\":{\"x\":\"\xff\"}}\nbody".to_vec());
        assert_eq!((message.payload().as_ref(), message.header("x")), (b"body".as_slice(), Some("\u{fffd}")));
    }
}
