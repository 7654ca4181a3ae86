//! Stopping: promises 30 and 31.

use std::time::Duration;

use buqueue_core::ErrorKind;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::support::{SOON, ack, nothing_for, numbered, receive, send, send_all, sorted, take, text, within};
use crate::{Ctx, Excluded, Harness, Outcome};

/// Who waits for a message is woken, and told why.
pub async fn wakes_idle_receivers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (_producer, mut consumer) = cx.pair().await;
    let handle = consumer.shutdown_handle();
    let waiting = tokio::spawn(async move { consumer.receive().await.map(drop).unwrap_err() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished() && !handle.is_shutting_down());
    within(SOON, "shutdown", handle.shutdown()).await;
    let error = within(SOON, "the waiting receiver", waiting).await.unwrap();
    assert_eq!(error.kind, ErrorKind::ShuttingDown);
    assert!(!error.is_transient());
    assert!(handle.is_shutting_down());
    Ok(())
}

/// The graceful loop ends with `None`, again and again.
pub async fn graceful_loop_ends<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let handle = consumer.shutdown_handle();
    send_all(&producer, numbered("m", 3)).await;
    let mut seen = Vec::new();
    let serving = async {
        while let Some(delivery) = consumer.receive_graceful().await {
            seen.push(text(&delivery));
            ack(delivery).await;
            if seen.len() == 3 {
                let handle = handle.clone();
                drop(tokio::spawn(async move { handle.shutdown().await }));
            }
        }
    };
    within(SOON, "the end of the loop", serving).await;
    assert_eq!(sorted(seen), numbered("m", 3));
    assert!(within(SOON, "the end once more", consumer.receive_graceful()).await.is_none());
    Ok(())
}

/// Every way to receive says that it is over; nothing is delivered any more.
pub async fn nothing_is_delivered_afterwards<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    within(SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    send_all(&producer, numbered("m", 3)).await;
    for _ in 0..2 {
        assert_eq!(
            within(SOON, "receive", consumer.receive()).await.unwrap_err().kind,
            ErrorKind::ShuttingDown
        );
        let batch = within(SOON, "receive_batch", consumer.receive_batch(9)).await;
        assert_eq!(batch.unwrap_err().kind, ErrorKind::ShuttingDown);
        let one = within(SOON, "try_receive", consumer.try_receive()).await;
        assert_eq!(one.unwrap_err().kind, ErrorKind::ShuttingDown);
        assert!(within(SOON, "receive_graceful", consumer.receive_graceful()).await.is_none());
    }
    Ok(())
}

/// What is in flight is waited for; not longer.
pub async fn waits_for_what_is_in_flight<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let handle = consumer.shutdown_handle();
    assert_eq!(handle.in_flight(), 1);
    let stopping = tokio::spawn(async move { handle.shutdown().await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!stopping.is_finished(), "did not wait for the delivery in flight");
    ack(delivery).await;
    within(SOON, "shutdown after the last ack", stopping).await.unwrap();
    Ok(())
}

/// A handler may nack while the consumer stops.
pub async fn nack_while_stopping<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let handle = consumer.shutdown_handle();
    let stopping = tokio::spawn(async move { handle.shutdown().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    within(SOON, "nack", delivery.nack()).await.unwrap();
    within(SOON, "shutdown", stopping).await.unwrap();
    let again = receive(&mut cx.consumer(&setup).await).await;
    cx.assert_failed_once(&again);
    ack(again).await;
    Ok(())
}

/// The drain timeout bounds the wait; what is still out stays valid.
pub async fn drain_timeout_bounds_the_wait<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let drain = Duration::from_millis(400);
    let (producer, mut consumer) = cx.builder(&setup).drain_timeout(drain).build_pair().await.unwrap();
    send_all(&producer, ["acked", "nacked"]).await;
    let mut held = vec![receive(&mut consumer).await, receive(&mut consumer).await];
    held.sort_by_key(text);
    let start = Instant::now();
    // A driver may take 5 s to close.
    within(drain + SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    assert!(start.elapsed() >= drain, "returned after {:?}", start.elapsed());
    drop(consumer);
    within(SOON, "nack after shutdown", held.remove(1).nack()).await.unwrap();
    ack(held.remove(0)).await;
    let mut next = cx.consumer(&setup).await;
    assert_eq!(take(&mut next, 1).await, ["nacked"]);
    nothing_for(Duration::from_millis(200), &mut next).await;
    Ok(())
}

/// Any number of times, from any number of tasks.
pub async fn is_idempotent<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let calls = (0..10).map(|_| {
        let handle = consumer.shutdown_handle();
        tokio::spawn(async move { handle.shutdown().await })
    });
    let calls = join_all(calls);
    tokio::time::sleep(Duration::from_millis(50)).await;
    ack(delivery).await;
    for call in within(SOON, "ten shutdowns", calls).await {
        call.unwrap();
    }
    within(SOON, "one more", consumer.shutdown_handle().shutdown()).await;
    drop(consumer);
    Ok(())
}

/// The handle outlives its consumer.
pub async fn after_the_consumer_is_gone<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (_producer, consumer) = cx.pair().await;
    let handle = consumer.shutdown_handle();
    drop(consumer);
    within(SOON, "shutdown", handle.shutdown()).await;
    Ok(())
}

/// A dropped call can be made again.
pub async fn dropped_call_can_be_repeated<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let handle = consumer.shutdown_handle();
    assert!(tokio::time::timeout(Duration::from_millis(50), handle.shutdown()).await.is_err());
    assert_eq!(consumer.receive().await.unwrap_err().kind, ErrorKind::ShuttingDown);
    ack(delivery).await;
    within(SOON, "the second call", handle.shutdown()).await;
    Ok(())
}

/// A handler that panicked does not hold it up.
pub async fn panicked_handler_does_not_hold_it_up<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let handler = tokio::spawn(async move {
        let _held = delivery;
        std::panic::resume_unwind(Box::new("the handler gives up"));
    });
    assert!(handler.await.is_err());
    within(SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    Ok(())
}

/// What was fetched and not handed out goes to the next consumer, long before any lease.
pub async fn buffered_messages_go_back<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut first) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 100)).await;
    let taken = take(&mut first, 1).await;
    within(SOON, "shutdown", first.shutdown_handle().shutdown()).await;
    assert!(within(SOON, "the end", first.receive_graceful()).await.is_none());
    let mut second = cx.consumer(&setup).await;
    let mut all = take(&mut second, 99).await;
    all.extend(taken);
    assert_eq!(sorted(all), sorted(numbered("m", 100)));
    Ok(())
}

/// … and has not counted as an attempt.
pub async fn given_back_is_not_counted<H: Harness>(cx: &Ctx<H>) -> Outcome {
    cx.harness().returns_uncounted()?;
    cx.capabilities()
        .require(buqueue_core::Feature::DeliveryCount)
        .map_err(|error| Excluded::new(error.message().to_owned()))?;
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("m", 50)).await;
    for _ in 0..3 {
        let mut consumer = cx.consumer(&setup).await;
        take(&mut consumer, 1).await;
        within(SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    }
    let mut consumer = cx.consumer(&setup).await;
    for _ in 0..47 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.delivery_count(), 1, "{delivery:?}");
        ack(delivery).await;
    }
    Ok(())
}

/// One consumer stops, the others go on.
pub async fn stops_one_of_many<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, first) = cx.pair_on(&setup).await;
    let mut second = cx.consumer(&setup).await;
    within(SOON, "shutdown", first.shutdown_handle().shutdown()).await;
    send_all(&producer, numbered("m", 5)).await;
    assert_eq!(sorted(take(&mut second, 5).await), numbered("m", 5));
    Ok(())
}

/// Stopped under load: every message is handled by it or by its successor, none by both.
pub async fn under_load_loses_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut first) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 400)).await;
    let handle = first.shutdown_handle();
    let serving = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(delivery) = first.receive_graceful().await {
            seen.push(text(&delivery));
            ack(delivery).await;
        }
        seen
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    within(SOON, "shutdown", handle.shutdown()).await;
    let mut seen = within(SOON, "the end of the loop", serving).await.unwrap();
    let mut second = cx.consumer(&setup).await;
    seen.extend(take(&mut second, 400 - seen.len()).await);
    assert_eq!(sorted(seen), sorted(numbered("m", 400)), "each message once");
    nothing_for(Duration::from_millis(200), &mut second).await;
    Ok(())
}

/// A broker that has fallen silent does not hold up a shutdown.
pub async fn silent_broker_does_not_hold_it_up<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.setup();
    let builder = cx.builder(&setup.via(proxy.addr())).drain_timeout(Duration::from_secs(1));
    let (producer, mut consumer) = builder.build_pair().await.unwrap();
    send_all(&producer, numbered("m", 20)).await;
    let held = receive(&mut consumer).await;
    proxy.stall();
    within(2 * SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    proxy.resume();
    drop(held);
    Ok(())
}

/// A producer can be closed, with all it has sent.
pub async fn producer_closes<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 10)).await;
    within(SOON, "close", producer.close()).await.unwrap();
    within(SOON, "close again", producer.close()).await.unwrap();
    assert_eq!(sorted(take(&mut consumer, 10).await), numbered("m", 10));
    Ok(())
}
