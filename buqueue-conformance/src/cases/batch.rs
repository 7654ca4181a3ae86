//! Sending batches: promise 8.

use std::collections::BTreeSet;
use std::time::Duration;

use buqueue_core::{ErrorKind, Message};
use tokio::time::Instant;

use crate::support::{SOON, ack, numbered, receive, send, send_all, sorted, take, within};
use crate::{Ctx, Excluded, Harness, Outcome};

/// A batch of nothing is `Ok` and costs nothing.
pub async fn empty<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    assert!(within(SOON, "send_batch", producer.send_batch(Vec::new())).await.unwrap().is_empty());
    send(&producer, "after").await;
    assert_eq!(take(&mut consumer, 1).await, ["after"]);
    Ok(())
}

/// A batch of one.
pub async fn one<H: Harness>(cx: &Ctx<H>) -> Outcome {
    in_order(cx, 1).await
}

/// A hundred, in order.
pub async fn hundred_in_order<H: Harness>(cx: &Ctx<H>) -> Outcome {
    in_order(cx, 100).await
}

/// More than any broker takes at once, in order.
pub async fn thousands_in_order<H: Harness>(cx: &Ctx<H>) -> Outcome {
    in_order(cx, 2500).await
}

async fn in_order<H: Harness>(cx: &Ctx<H>, count: usize) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let sent = numbered("m", count);
    send_all(&producer, sent.iter().map(|text| Message::new(text.clone()).with_routing_key("k"))).await;
    let received = take(&mut consumer, count).await;
    if cx.capabilities().require(buqueue_core::Feature::OrderPerKey).is_ok() {
        assert!(received == sent, "out of order: {received:?}");
    } else {
        assert_eq!(sorted(received), sorted(sent));
    }
    Ok(())
}

/// Each message has an id of its own, in the order of the batch.
pub async fn ids_are_in_order<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let messages = numbered("m", 20).into_iter().map(Message::new).collect();
    let ids = within(SOON, "send_batch", producer.send_batch(messages)).await.unwrap();
    assert_eq!(ids.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), 20);
    for _ in 0..20 {
        ack(receive(&mut consumer).await).await;
    }
    Ok(())
}

/// Headers, key and deduplication id travel with each message of a batch.
pub async fn keeps_headers_and_keys<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let message = |n: u32| {
        Message::new(n.to_string())
            .with_header("n", format!("h{n}"))
            .with_routing_key(format!("k{n}"))
            .with_deduplication_id(format!("d{n}"))
    };
    send_all(&producer, (0..30).map(message)).await;
    for _ in 0..30 {
        let delivery = receive(&mut consumer).await;
        let n: u32 = delivery.payload_json().unwrap();
        assert!(*delivery.message() == message(n) || has_trace_context(&delivery), "{delivery:?}");
        assert_eq!(delivery.header("n"), Some(format!("h{n}").as_str()));
        ack(delivery).await;
    }
    Ok(())
}

fn has_trace_context(delivery: &buqueue_core::Delivery) -> bool {
    delivery.header("traceparent").is_some()
}

/// Invalid messages fail at their own index; all the others are sent.
pub async fn invalid_items_keep_their_place<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let mut messages: Vec<Message> = numbered("m", 12).into_iter().map(Message::new).collect();
    for bad in [0, 5, 11] {
        messages[bad] = Message::new("bad").with_header("buqueue-x", "v");
    }
    let error = within(SOON, "send_batch", producer.send_batch(messages)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PartialBatch { failed: 3, total: 12 });
    assert!(!error.is_transient());
    for (index, outcome) in error.outcomes().iter().enumerate() {
        match outcome {
            Ok(_) => assert!(![0, 5, 11].contains(&index), "{index} is invalid"),
            Err(error) => {
                assert!([0, 5, 11].contains(&index), "{index} is valid: {error:?}");
                assert_eq!(error.kind, ErrorKind::InvalidMessage);
            }
        }
    }
    let valid: Vec<String> = numbered("m", 12)
        .into_iter()
        .enumerate()
        .filter(|(n, _)| ![0, 5, 11].contains(n))
        .map(|x| x.1)
        .collect();
    assert_eq!(sorted(take(&mut consumer, 9).await), sorted(valid));
    Ok(())
}

/// A batch of invalid messages sends nothing.
pub async fn all_invalid<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let messages = (0..3).map(|_| Message::new("bad").with_header("", "v")).collect();
    let error = within(SOON, "send_batch", producer.send_batch(messages)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PartialBatch { failed: 3, total: 3 });
    assert_eq!(error.outcomes().len(), 3);
    send(&producer, "after").await;
    assert_eq!(take(&mut consumer, 1).await, ["after"]);
    Ok(())
}

/// One message over the limit fails alone.
pub async fn too_large_item_fails_alone<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let Some(limit) = cx.capabilities().limits().payload_bytes.filter(|limit| *limit <= 64 << 20) else {
        return Err(Excluded::new("no payload limit below 64 MiB is known before I/O"));
    };
    let (producer, mut consumer) = cx.pair().await;
    let messages = vec![Message::new("a"), Message::new(vec![0; limit + 1]), Message::new("b")];
    let error = within(2 * SOON, "send_batch", producer.send_batch(messages)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PartialBatch { failed: 1, total: 3 });
    assert_eq!(error.outcomes()[1].as_ref().unwrap_err().kind, ErrorKind::PayloadTooLarge);
    assert_eq!(sorted(take(&mut consumer, 2).await), ["a", "b"]);
    Ok(())
}

/// Few messages, many bytes: the batch is split by bytes, too.
pub async fn splits_by_bytes<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const SIZE: usize = 200 << 10;
    if cx.capabilities().limits().payload_bytes.is_some_and(|limit| limit < SIZE) {
        return Err(Excluded::new("the payload limit is below 200 KiB"));
    }
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, (0..40_u8).map(|n| Message::new(vec![n; SIZE]))).await;
    let mut seen = BTreeSet::new();
    // A request that was answered too late may have been sent again: at least once.
    while seen.len() < 40 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.payload().len(), SIZE);
        seen.insert(delivery.payload()[0]);
        ack(delivery).await;
    }
    Ok(())
}

/// Where the round trip is long, a batch costs few of them.
pub async fn costs_few_round_trips<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const ONE_WAY: Duration = Duration::from_millis(30);
    let proxy = cx.proxy().await?;
    let setup = cx.setup();
    let producer = cx.producer(&setup.via(proxy.addr())).await;
    let mut consumer = cx.consumer(&setup).await;
    send(&producer, "warm").await;
    take(&mut consumer, 1).await;
    // The fastest of five: any of them may have met a machine, or a broker, that does something else.
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        proxy.delay(ONE_WAY);
        let start = Instant::now();
        send_all(&producer, numbered("m", 100)).await;
        fastest = fastest.min(start.elapsed());
        proxy.delay(Duration::ZERO);
        take(&mut consumer, 100).await;
        if fastest < 50 * ONE_WAY {
            break;
        }
    }
    // One by one it would be 100 round trips, 6 s.
    assert!(fastest < 50 * ONE_WAY, "100 messages took {fastest:?}");
    Ok(())
}
