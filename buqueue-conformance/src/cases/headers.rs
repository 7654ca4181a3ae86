//! Headers: promise 7.

use buqueue_core::{ErrorKind, Message, RESERVED_PREFIX};

use crate::support::{ack, receive, send, take};
use crate::{Ctx, Excluded, Harness, Outcome};

/// These may be added by buqueue itself where tracing is on.
const TRACE_CONTEXT: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// Sends a message with these headers and expects exactly them.
async fn arrive<H: Harness>(cx: &Ctx<H>, headers: &[(String, String)]) -> Outcome {
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if cx.capabilities().limits().header_bytes.is_some_and(|limit| limit < bytes) {
        return Err(Excluded::new("the headers are larger than the backend's limit"));
    }
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, Message::new("m").with_headers(headers.iter().cloned().collect())).await;
    let delivery = receive(&mut consumer).await;
    for (name, value) in headers {
        let arrived = delivery.header(name);
        assert_eq!(arrived.map(str::len), Some(value.len()), "the length of {name:?}");
        assert!(arrived == Some(value), "the value of {name:?} differs");
    }
    for (name, _) in delivery.headers().iter() {
        let known = headers.iter().any(|(sent, _)| sent == name) || TRACE_CONTEXT.contains(&name);
        assert!(known, "{name:?} was not sent");
    }
    ack(delivery).await;
    Ok(())
}

fn owned<const N: usize>(headers: [(&str, &str); N]) -> Vec<(String, String)> {
    headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// No headers in, none out.
pub async fn none<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrive(cx, &[]).await
}

/// The shortest and the longest name.
pub async fn names_of_1_and_255_bytes<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrive(cx, &[("n".to_owned(), "short".to_owned()), ("N".repeat(255), "long".to_owned())]).await
}

/// Names of every visible ASCII character.
pub async fn visible_ascii_names<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let names: Vec<(String, String)> =
        (0x21..=0x7e_u8).map(|byte| (format!("x{}y", byte as char), byte.to_string())).collect();
    arrive(cx, &names).await
}

/// Names that differ in case are different names.
pub async fn names_are_case_sensitive<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrive(cx, &owned([("x-key", "lower"), ("X-Key", "mixed"), ("X-KEY", "upper")])).await
}

/// Names that brokers or clients use themselves are the user's all the same.
pub async fn names_that_others_use<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let headers = owned([
        ("payload", "a"),
        ("data", "b"),
        ("key", "c"),
        ("id", "d"),
        ("content-type", "text/plain"),
        ("x-delay", "100000"),
        ("x-death", "e"),
        ("Nats-Msg-Id", "f"),
        ("h:", "g"),
        ("routing_key", "h"),
        ("deduplication_id", "i"),
        ("delivery_count", "77"),
    ]);
    arrive(cx, &headers).await
}

/// The same name again replaces the value.
pub async fn a_repeated_name_replaces<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, Message::builder().header("x", "first").header("x", "second").build()).await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.header("x"), Some("second"));
    ack(delivery).await;
    Ok(())
}

/// A value may be empty, and differs from none.
pub async fn empty_value<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrive(cx, &owned([("empty", ""), ("full", "v")])).await
}

/// A value may have lines, and bytes that protocols use to separate.
pub async fn multiline_value<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let headers = owned([
        ("lines", "one\ntwo\r\nthree\r"),
        ("crlf", "\r\n\r\n"),
        ("colon", "a: b\r\nforged: c"),
        ("spaces", "  around \t"),
        ("nul", "a\0b"),
    ]);
    arrive(cx, &headers).await
}

/// A value may be any Unicode.
pub async fn unicode_value<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrive(cx, &owned([("u", "grüße 鍵 🔑 \u{202e}\u{feff} e\u{301}"), ("m", "\u{10ffff}")])).await
}

/// A value of 64 KiB.
pub async fn value_of_64_kib<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrive(cx, &[("big".to_owned(), "v".repeat(64 << 10))]).await
}

/// More headers than SQS has attributes.
pub async fn fifty_headers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let headers: Vec<_> = (0..50).map(|n| (format!("x-{n}"), format!("value {n}"))).collect();
    arrive(cx, &headers).await
}

/// Trace context is passed on as any other header.
pub async fn trace_context_passes_through<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let headers = owned([
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "vendor=value"),
        ("baggage", "user=1,tenant=2"),
    ]);
    arrive(cx, &headers).await
}

/// buqueue's own prefix is refused before any I/O, and the producer stays usable.
pub async fn reserved_prefix_is_refused<H: Harness>(cx: &Ctx<H>) -> Outcome {
    refused(cx, &[RESERVED_PREFIX.to_owned(), "buqueue-dlq-reason".to_owned()]).await
}

/// Names that not every broker can carry are refused on every broker.
pub async fn bad_names_are_refused<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let names = ["", "with space", "tab\t", "line\n", "nul\0", "ümlaut", "del\u{7f}"].map(str::to_owned);
    refused(cx, &[&names[..], &["n".repeat(256)]].concat()).await
}

async fn refused<H: Harness>(cx: &Ctx<H>, names: &[String]) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for name in names {
        let error = producer.send(Message::new("m").with_header(name, "v")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidMessage, "{name:?}");
        assert!(!error.is_transient());
    }
    send(&producer, "still usable").await;
    assert_eq!(take(&mut consumer, 1).await, ["still usable"], "nothing refused has arrived");
    Ok(())
}
