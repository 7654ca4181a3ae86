//! Streams: promise 32.

use std::sync::Mutex;
use std::time::Duration;

use buqueue_core::{Delivery, Feature, Message};
use futures_util::{StreamExt, TryStreamExt, future};

use crate::support::{
    SOON, ack, dropped_after, numbered, receive, send, send_all, sorted, take, text, within,
};
use crate::{Ctx, Harness, Outcome};

/// The first few items, in order.
pub async fn take_some<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, consumer) = cx.pair().await;
    // In order with each other.
    send_all(&producer, numbered("m", 5).into_iter().map(|m| Message::new(m).with_routing_key("k"))).await;
    let deliveries: Vec<Delivery> =
        within(SOON, "three items", consumer.into_stream().take(3).try_collect()).await.unwrap();
    let texts: Vec<String> = deliveries.iter().map(text).collect();
    if cx.capabilities().require(Feature::OrderPerKey).is_ok() {
        assert_eq!(texts, numbered("m", 3));
    }
    assert_eq!(texts.len(), 3);
    for delivery in deliveries {
        ack(delivery).await;
    }
    Ok(())
}

/// What `take` has left is there for the next consumer.
pub async fn take_leaves_the_rest<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 20)).await;
    let mut seen: Vec<String> = Vec::new();
    {
        let mut stream = consumer.into_stream().take(5);
        while let Some(item) = within(SOON, "an item", stream.next()).await {
            let delivery = item.unwrap();
            seen.push(text(&delivery));
            ack(delivery).await;
        }
    }
    seen.extend(take(&mut cx.consumer(&setup).await, 15).await);
    assert_eq!(sorted(seen), sorted(numbered("m", 20)));
    Ok(())
}

/// The usual combinators.
pub async fn combinators_work<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 10)).await;
    let even = consumer.into_stream().take(10).map_ok(|delivery| (text(&delivery), delivery)).try_filter_map(
        async |(text, delivery)| {
            if text.ends_with(['0', '2', '4', '6', '8']) {
                return Ok(Some(delivery));
            }
            // Dropped, it might come again before the others.
            delivery.ack().await.map(|()| None)
        },
    );
    let even: Vec<Delivery> = within(SOON, "even items", even.try_collect()).await.unwrap();
    assert_eq!(even.len(), 5);
    for delivery in even {
        ack(delivery).await;
    }
    Ok(())
}

/// Eight handlers at a time; a shutdown ends it.
pub async fn concurrent_handlers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 100)).await;
    let stream = consumer.into_stream();
    let shutdown = stream.shutdown_handle();
    let seen = Mutex::new(Vec::new());
    let handling = stream.for_each_concurrent(8, async |item| {
        let delivery = item.unwrap();
        let text = text(&delivery);
        tokio::time::sleep(Duration::from_millis(2)).await;
        delivery.ack().await.unwrap();
        let done = {
            let mut seen = seen.lock().unwrap();
            seen.push(text);
            seen.len() == 100
        };
        if done {
            let shutdown = shutdown.clone();
            drop(tokio::spawn(async move { shutdown.shutdown().await }));
        }
    });
    within(2 * SOON, "100 messages and the end", handling).await;
    assert_eq!(sorted(seen.into_inner().unwrap()), sorted(numbered("m", 100)));
    Ok(())
}

/// A waiting stream ends on shutdown, and stays ended.
pub async fn ends_on_shutdown<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (_producer, consumer) = cx.pair().await;
    let mut stream = consumer.into_stream();
    let shutdown = stream.shutdown_handle();
    let waiting = tokio::spawn(async move {
        assert!(stream.next().await.is_none(), "an item after shutdown");
        assert!(stream.next().await.is_none(), "an item after the end");
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    within(SOON, "shutdown", shutdown.shutdown()).await;
    within(SOON, "the end of the stream", waiting).await.unwrap();
    Ok(())
}

/// Shut down before anybody has polled.
pub async fn shutdown_before_the_first_poll<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, consumer) = cx.pair().await;
    send(&producer, "m").await;
    let mut stream = consumer.into_stream();
    within(SOON, "shutdown", stream.shutdown_handle().shutdown()).await;
    assert!(within(SOON, "the end", stream.next()).await.is_none());
    Ok(())
}

/// Held and not polled, it holds up no shutdown.
pub async fn unpolled_stream_does_not_hold_up_shutdown<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (_producer, consumer) = cx.pair().await;
    let mut stream = consumer.into_stream();
    // It waits inside a receive, and then nobody polls it any more.
    assert!(dropped_after(1, stream.next()).await.is_none());
    within(SOON, "shutdown", stream.shutdown_handle().shutdown()).await;
    assert!(within(SOON, "the end", stream.next()).await.is_none());
    Ok(())
}

/// The stream may go before its deliveries.
pub async fn dropped_before_its_deliveries<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, consumer) = cx.pair_on(&setup).await;
    send_all(&producer, ["acked", "nacked"]).await;
    let mut stream = consumer.into_stream();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(within(SOON, "an item", stream.next()).await.unwrap().unwrap());
    }
    drop(stream);
    for delivery in held {
        if text(&delivery) == "acked" {
            ack(delivery).await;
        } else {
            within(SOON, "nack", delivery.nack()).await.unwrap();
        }
    }
    let again = receive(&mut cx.consumer(&setup).await).await;
    assert_eq!(text(&again), "nacked");
    cx.assert_failed_once(&again);
    ack(again).await;
    Ok(())
}

/// A stream that is dropped while it waits loses nothing.
pub async fn dropped_while_waiting_loses_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let producer = cx.producer(&setup).await;
    for polls in 1..=6 {
        let mut stream = cx.consumer(&setup).await.into_stream();
        let sending = producer.send(Message::new(format!("m-{polls}")));
        let (sent, item) = future::join(sending, dropped_after(polls, stream.next())).await;
        sent.unwrap();
        drop((item, stream));
    }
    let mut consumer = cx.consumer(&setup).await;
    let received = take(&mut consumer, 6).await;
    assert_eq!(sorted(received), (1..=6).map(|n| format!("m-{n}")).collect::<Vec<_>>());
    Ok(())
}
