//! Sending one message: promises 5 to 7.

use std::sync::Arc;

use buqueue_core::{ErrorKind, Message};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::support::{SOON, ack, dropped_after, numbered, receive, send, sorted, take, within};
use crate::{Ctx, Excluded, Harness, Outcome};

/// Larger payloads are not worth the suite's time.
const LARGEST_TRIED: usize = 64 << 20;

/// `Ok(id)` carries an id that prints.
pub async fn id_is_printable<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let first = send(&producer, "a").await;
    let second = send(&producer, "b").await;
    assert!(!first.is_empty() && !second.is_empty());
    assert_ne!(first, second);
    let delivery = receive(&mut consumer).await;
    assert!(!delivery.message_id().to_string().is_empty());
    ack(delivery).await;
    Ok(())
}

/// One producer, one consumer, no failures: first in, first out.
pub async fn order_of_arrival<H: Harness>(cx: &Ctx<H>) -> Outcome {
    cx.capabilities()
        .require(buqueue_core::Feature::OrderPerKey)
        .map_err(|error| Excluded::new(error.message().to_owned()))?;
    let (producer, mut consumer) = cx.pair().await;
    for text in numbered("m", 50) {
        let message = Message::new(text).with_routing_key("one");
        send(&producer, message).await;
    }
    assert_eq!(take(&mut consumer, 50).await, numbered("m", 50));
    Ok(())
}

/// Many tasks share one producer.
pub async fn concurrent_sends_all_arrive<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let sending = numbered("m", 200).into_iter().map(|text| {
        let producer = producer.clone();
        tokio::spawn(async move { producer.send(Message::new(text)).await.map(drop) })
    });
    for sent in within(SOON, "200 sends side by side", join_all(sending)).await {
        sent.unwrap().unwrap();
    }
    assert_eq!(sorted(take(&mut consumer, 200).await), sorted(numbered("m", 200)));
    Ok(())
}

/// What is confirmed is there, with or without its sender.
pub async fn producer_dropped_then_received<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "left behind").await;
    drop(producer);
    assert_eq!(take(&mut consumer, 1).await, ["left behind"]);
    Ok(())
}

/// A send that is dropped midway was sent or was not; the next ones do not suffer.
pub async fn dropped_send_leaves_the_producer_usable<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let mut confirmed = 0;
    for polls in 1..=40 {
        let sent = dropped_after(polls % 8 + 1, producer.send(Message::new(format!("d-{polls}")))).await;
        confirmed += usize::from(sent.is_some_and(|sent| sent.is_ok()));
    }
    send(&producer, "last").await;
    let mut received = Vec::new();
    // Where the order is not kept, the last may come before those that were confirmed.
    while received.len() <= confirmed || !received.iter().any(|text| text == "last") {
        received.extend(take(&mut consumer, 1).await);
    }
    let before_last = received.len() - 1;
    assert!(before_last >= confirmed, "{confirmed} were confirmed, {before_last} arrived");
    received.sort_unstable();
    received.dedup();
    assert_eq!(received.len(), before_last + 1, "a dropped send was sent twice");
    Ok(())
}

async fn arrives_exact<H: Harness>(cx: &Ctx<H>, payload: impl Into<Bytes>) -> Outcome {
    let payload = payload.into();
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, Message::new(payload.clone())).await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.payload().len(), payload.len());
    assert!(*delivery.payload() == payload, "the payload differs");
    ack(delivery).await;
    Ok(())
}

/// No bytes at all.
pub async fn empty_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrives_exact(cx, "").await
}

/// Bytes that end strings in C.
pub async fn nul_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrives_exact(cx, "\0a\0\0").await
}

/// Each byte there is.
pub async fn every_byte_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrives_exact(cx, (0..=u8::MAX).collect::<Vec<u8>>()).await
}

/// Bytes that are no text.
pub async fn non_utf8_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrives_exact(cx, vec![0xff, 0xfe, 0xc3, 0x28, b'\r', b'\n', 0x80]).await
}

/// A mebibyte, where the limit allows it.
pub async fn one_mebibyte_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const MEBIBYTE: usize = 1 << 20;
    if cx.capabilities().limits().payload_bytes.is_some_and(|limit| limit < MEBIBYTE) {
        return Err(Excluded::new("the payload limit is below 1 MiB"));
    }
    arrives_exact(cx, (0..MEBIBYTE).map(|i| i.to_le_bytes()[0]).collect::<Vec<u8>>()).await
}

/// Exactly the limit.
pub async fn largest_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    arrives_exact(cx, vec![7; payload_limit(cx)?]).await
}

/// One byte over the limit: refused with size and limit, and the connection stays usable.
pub async fn too_large_payload_is_refused<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let limit = payload_limit(cx)?;
    let (producer, mut consumer) = cx.pair().await;
    let error = producer.send(Message::new(vec![7; limit + 1])).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PayloadTooLarge);
    for number in [limit, limit + 1] {
        assert!(error.to_string().contains(&number.to_string()), "{error} does not name {number}");
    }
    assert!(!error.is_transient());
    send(&producer, "still usable").await;
    assert_eq!(take(&mut consumer, 1).await, ["still usable"]);
    Ok(())
}

fn payload_limit<H: Harness>(cx: &Ctx<H>) -> crate::Hook<usize> {
    match cx.capabilities().limits().payload_bytes {
        None => Err(Excluded::new("no payload limit is known before I/O")),
        Some(limit) if limit > LARGEST_TRIED => Err(Excluded::new("the payload limit is above 64 MiB")),
        Some(limit) => Ok(limit),
    }
}

/// The routing key arrives as sent, and its absence too.
pub async fn routing_key_arrives<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, Message::new("a").with_routing_key("orders.placed")).await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.routing_key(), Some("orders.placed"));
    ack(delivery).await;
    send(&producer, "b").await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.routing_key(), None);
    ack(delivery).await;
    Ok(())
}

/// The deduplication id arrives as sent, and its absence too.
pub async fn deduplication_id_arrives<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, Message::new("a").with_deduplication_id("order-99")).await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.deduplication_id(), Some("order-99"));
    ack(delivery).await;
    send(&producer, "b").await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.deduplication_id(), None);
    ack(delivery).await;
    Ok(())
}

/// Keys that a broker may not be able to carry arrive as sent, or are refused by kind; never bent.
pub async fn unicode_keys_arrive<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for key in ["größe", "with space", "鍵🔑", "a.*.>", "line\nbreak", "", "#", "{tag}", "k:\u{1}"] {
        let message = Message::new("m").with_routing_key(key).with_deduplication_id(format!("id {key}"));
        match within(SOON, "send", producer.send(message)).await {
            Ok(_) => {
                let delivery = receive(&mut consumer).await;
                assert_eq!(delivery.routing_key(), Some(key), "the routing key {key:?}");
                assert_eq!(delivery.deduplication_id(), Some(format!("id {key}").as_str()));
                ack(delivery).await;
            }
            Err(error) => assert_eq!(error.kind, ErrorKind::InvalidMessage, "{key:?}: {error:?}"),
        }
    }
    Ok(())
}

/// JSON in, JSON out, and what is no JSON is an error that harms nothing.
pub async fn json_arrives<H: Harness>(cx: &Ctx<H>) -> Outcome {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Order {
        id: u64,
        note: String,
    }
    let order = Order { id: u64::MAX, note: "ü\n\"".to_owned() };
    let (producer, mut consumer) = cx.pair().await;
    let producer = Arc::new(producer);
    send(&*producer, Message::from_json_with_key(&order, "k").unwrap()).await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.payload_json::<Order>().unwrap(), order);
    assert_eq!(delivery.header("content-type"), Some("application/json"));
    let error = delivery.payload_json::<Vec<u8>>().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Serialization);
    ack(delivery).await;
    Ok(())
}
