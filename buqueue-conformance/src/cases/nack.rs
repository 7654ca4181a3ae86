//! Failed attempts: promises 19 to 22.

use std::collections::BTreeSet;
use std::time::Duration;

use buqueue_core::{Delivery, Message};
use chrono::Utc;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::support::{
    LATE, SOON, TICK, ack, hold, nack, nothing_for, numbered, receive, receive_within, send, send_all,
    sorted, take, text, within,
};
use crate::{Ctx, Harness, Outcome};

/// Nacked: there again at once, counted, with the time of the failure.
pub async fn visible_at_once<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let first = receive(&mut consumer).await;
    assert_eq!((first.delivery_count(), first.first_failed_at()), (1, None));
    let before = Utc::now();
    let nacked = Instant::now();
    nack(first).await;
    let second = receive(&mut consumer).await;
    assert!(nacked.elapsed() < LATE, "came back after {:?}", nacked.elapsed());
    assert_eq!(second.delivery_count(), 2);
    let failed = second.first_failed_at().expect("a failed message knows since when");
    // The broker's clock may tick in milliseconds, or seconds.
    let (earliest, latest) =
        (before - chrono::TimeDelta::seconds(2), Utc::now() + chrono::TimeDelta::seconds(2));
    assert!((earliest..=latest).contains(&failed), "{failed} is not between {earliest} and {latest}");
    ack(second).await;
    Ok(())
}

/// A redelivery is the same message.
pub async fn keeps_the_message<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let message = Message::new(vec![0, 255, 10])
        .with_header("x", "ü\n")
        .with_routing_key("k")
        .with_deduplication_id("d");
    send(&producer, message).await;
    let first = receive(&mut consumer).await;
    let original = first.message().clone();
    nack(first).await;
    let second = receive(&mut consumer).await;
    assert!(*second.message() == original, "{second:?} is not {original:?}");
    second.nack_after(Duration::from_millis(50)).await.unwrap();
    let third = receive(&mut consumer).await;
    assert!(*third.message() == original, "{third:?} is not {original:?}");
    ack(third).await;
    Ok(())
}

/// Another consumer of the queue may get it.
pub async fn visible_to_others<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    nack(receive(&mut consumer).await).await;
    drop(consumer);
    let again = receive(&mut cx.consumer(&setup).await).await;
    cx.assert_failed_once(&again);
    ack(again).await;
    Ok(())
}

/// The count goes on as long as the message fails.
pub async fn count_grows<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let mut first_failed_at = None;
    for count in 1..=12 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.delivery_count(), count);
        if count == 2 {
            first_failed_at = delivery.first_failed_at();
            assert!(first_failed_at.is_some());
        }
        assert_eq!(delivery.first_failed_at(), first_failed_at, "the first failure stays the first");
        nack(delivery).await;
    }
    ack(receive(&mut consumer).await).await;
    Ok(())
}

/// The time of the first failure is neither that of the receive nor that of a later failure.
pub async fn first_failure_is_remembered<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const APART: Duration = Duration::from_millis(1200);
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let first = receive(&mut consumer).await;
    tokio::time::sleep(APART).await;
    let before = Utc::now();
    nack(first).await;
    let after = Utc::now();
    let second = receive(&mut consumer).await;
    let first_failed_at = second.first_failed_at().expect("the first failure");
    // A broker may count in whole seconds.
    let second_and_more = chrono::TimeDelta::milliseconds(1100);
    let failed = before - second_and_more..after + second_and_more;
    assert!(failed.contains(&first_failed_at), "{first_failed_at} is not within {failed:?}");
    tokio::time::sleep(APART).await;
    nack(second).await;
    let third = receive(&mut consumer).await;
    assert_eq!(third.first_failed_at(), Some(first_failed_at));
    ack(third).await;
    Ok(())
}

/// Nack, drop and expired lease are all attempts.
pub async fn every_cause_counts<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    nack(receive(&mut consumer).await).await;
    let second = receive(&mut consumer).await;
    assert_eq!(second.delivery_count(), 2, "after a nack");
    drop(second);
    let third = receive(&mut consumer).await;
    assert_eq!(third.delivery_count(), 3, "after a drop");
    let fourth = receive_within(setup.lease + SOON, &mut consumer).await;
    assert_eq!(fourth.delivery_count(), 4, "after an expired lease");
    fourth.nack_after(Duration::from_millis(10)).await.unwrap();
    let fifth = receive(&mut consumer).await;
    assert_eq!(fifth.delivery_count(), 5, "after a delayed nack");
    ack(fifth).await;
    drop(third);
    Ok(())
}

/// Each message has a count of its own.
pub async fn counts_do_not_mix<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "fails").await;
    nack(receive(&mut consumer).await).await;
    send(&producer, "fresh").await;
    for _ in 0..2 {
        let delivery = receive(&mut consumer).await;
        let expected = if text(&delivery) == "fails" { 2 } else { 1 };
        assert_eq!(delivery.delivery_count(), expected);
        ack(delivery).await;
    }
    Ok(())
}

/// The delay is kept: not shorter, and hardly longer.
pub async fn delay_is_kept<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for delay in [700, 150, 1].map(Duration::from_millis) {
        send(&producer, "m").await;
        let delivery = receive(&mut consumer).await;
        let nacked = Instant::now();
        within(SOON, "nack_after", delivery.nack_after(delay)).await.unwrap();
        let again = receive(&mut consumer).await;
        let took = nacked.elapsed();
        assert!(took + TICK >= delay, "came back after {took:?} instead of {delay:?}");
        assert!(took <= delay + LATE, "came back after {took:?} instead of {delay:?}");
        assert_eq!(again.delivery_count(), 2);
        ack(again).await;
    }
    Ok(())
}

/// A delay longer than the lease is kept, too.
pub async fn delay_may_exceed_the_lease<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delay = setup.lease + Duration::from_millis(500);
    let delivery = receive(&mut consumer).await;
    let nacked = Instant::now();
    delivery.nack_after(delay).await.unwrap();
    let again = receive_within(delay + SOON, &mut consumer).await;
    let took = nacked.elapsed();
    assert!(took + TICK >= delay && took <= delay + LATE, "came back after {took:?} instead of {delay:?}");
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// The delay is the broker's: the consumer that asked for it may go.
pub async fn delay_outlives_its_consumer<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delay = Duration::from_millis(600);
    let delivery = receive(&mut consumer).await;
    let nacked = Instant::now();
    delivery.nack_after(delay).await.unwrap();
    drop((producer, consumer));
    let again = receive(&mut cx.consumer(&setup).await).await;
    let took = nacked.elapsed();
    assert!(took + TICK >= delay, "came back after {took:?} instead of {delay:?}");
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// Who waits holds nobody up.
pub async fn delayed_message_lets_others_pass<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "delayed").await;
    receive(&mut consumer).await.nack_after(Duration::from_secs(1)).await.unwrap();
    send_all(&producer, numbered("m", 5)).await;
    let start = Instant::now();
    assert_eq!(sorted(take(&mut consumer, 5).await), numbered("m", 5));
    assert!(start.elapsed() < LATE);
    assert_eq!(take(&mut consumer, 1).await, ["delayed"]);
    Ok(())
}

/// Different delays end in their own time.
pub async fn delays_end_in_their_order<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, ["a", "b", "c"]).await;
    let mut held = Vec::new();
    while held.len() < 3 {
        held.push(receive(&mut consumer).await);
    }
    // Together, and so far apart that a slow one does not change the order.
    let nacks = held.into_iter().map(|delivery| {
        let delay = match text(&delivery).as_str() {
            "a" => 4500,
            "b" => 500,
            _ => 2500,
        };
        delivery.nack_after(Duration::from_millis(delay))
    });
    for nacked in within(SOON, "nack_after", join_all(nacks)).await {
        nacked.unwrap();
    }
    assert_eq!(take(&mut consumer, 3).await, ["b", "c", "a"]);
    Ok(())
}

/// A delay without end is granted or refused, without a panic, and the queue goes on.
pub async fn absurd_delay_is_harmless<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let granted = within(SOON, "nack_after", delivery.nack_after(Duration::MAX)).await;
    send(&producer, "next").await;
    if granted.is_ok() {
        assert_eq!(take(&mut consumer, 1).await, ["next"]);
    } else {
        let delivery = receive(&mut consumer).await;
        ack(delivery).await;
    }
    Ok(())
}

/// Nobody settles: the lease runs out, the message comes back.
pub async fn expired_lease_redelivers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let received = Instant::now();
    let held = receive(&mut consumer).await;
    let again = receive_within(setup.lease + SOON, &mut consumer).await;
    let took = received.elapsed();
    assert!(took + TICK >= setup.lease, "came back after {took:?}, the lease is {:?}", setup.lease);
    assert_eq!((text(&again).as_str(), again.delivery_count()), ("m", 2));
    assert!(again.first_failed_at().is_some());
    ack(again).await;
    drop(held);
    Ok(())
}

/// … also to a consumer that did not have it before.
pub async fn expired_lease_goes_to_others<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut first) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let held = receive(&mut first).await;
    let mut second = cx.consumer(&setup).await;
    let again = receive_within(setup.lease + SOON, &mut second).await;
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    drop(held);
    Ok(())
}

/// Many leases run out together, and none is forgotten.
pub async fn many_expired_leases_redeliver<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 300)).await;
    // Some may come back before all of them were here.
    let (mut held, mut seen) = (Vec::new(), BTreeSet::new());
    while seen.len() < 300 {
        let batch = within(SOON, "receive_batch", consumer.receive_batch(300)).await.unwrap();
        seen.extend(batch.iter().map(text));
        held.extend(batch);
    }
    let mut again = BTreeSet::new();
    while again.len() < 300 {
        let batch = within(setup.lease + SOON, "redelivery", consumer.receive_batch(300)).await.unwrap();
        for delivery in &batch {
            assert!(delivery.delivery_count() >= 2, "{delivery:?}");
        }
        again.extend(batch.iter().map(text));
        within(SOON, "ack_all", Delivery::ack_all(batch)).await.unwrap();
    }
    assert_eq!(again, seen);
    drop(held);
    Ok(())
}

/// Dropped without a word: back soon, long before the lease, and counted.
pub async fn dropped_comes_back_soon<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    drop(receive(&mut consumer).await);
    let again = receive(&mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    assert!(again.first_failed_at().is_some());
    assert_eq!(consumer.stats().abandoned, 1);
    ack(again).await;
    assert_eq!((consumer.stats().abandoned, consumer.stats().in_flight), (1, 0));
    Ok(())
}

/// A whole batch is dropped, and comes back whole.
pub async fn dropped_batch_comes_back<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 20)).await;
    let held = hold(&mut consumer, 20).await;
    drop(held);
    assert_eq!(sorted(take(&mut consumer, 20).await), sorted(numbered("m", 20)));
    assert_eq!(consumer.stats().abandoned, 20);
    Ok(())
}

/// A thread without a runtime may drop a delivery; at the latest the lease brings it back.
pub async fn dropped_outside_a_runtime<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    std::thread::spawn(move || drop(delivery)).join().expect("dropping does not panic");
    let again = receive_within(setup.lease + SOON, &mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// A handler panics with the delivery in its hands.
pub async fn panicked_handler_redelivers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let handler = tokio::spawn(async move {
        let _held = delivery;
        std::panic::resume_unwind(Box::new("the handler gives up"));
    });
    assert!(handler.await.unwrap_err().is_panic());
    let again = receive(&mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// A handler's task is aborted.
pub async fn aborted_handler_redelivers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let handler = tokio::spawn(async move {
        let _held = delivery;
        std::future::pending::<()>().await;
    });
    handler.abort();
    assert!(handler.await.unwrap_err().is_cancelled());
    let again = receive(&mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// A settle that is never awaited is a drop.
pub async fn unpolled_ack_redelivers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    drop(receive(&mut consumer).await.ack());
    let again = receive(&mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    drop(again.nack_after(Duration::from_secs(3600)));
    let again = receive(&mut consumer).await;
    assert_eq!(again.delivery_count(), 3);
    ack(again).await;
    nothing_for(Duration::from_millis(200), &mut consumer).await;
    Ok(())
}
