//! Deduplication: promise 10.

use std::time::Duration;

use buqueue_core::Message;
use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;

use crate::support::{SOON, ack, look, nothing_for, receive, send, send_all, sorted, take, within};
use crate::{Ctx, Excluded, Harness, Outcome};

const QUIET: Duration = Duration::from_millis(300);

fn with_id(text: &str, id: &str) -> Message {
    Message::new(text.to_owned()).with_deduplication_id(id)
}

/// Twice `Ok`, once delivered: the first.
pub async fn same_id_is_delivered_once<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, with_id("first", "a")).await;
    send(&producer, with_id("second", "a")).await;
    assert_eq!(take(&mut consumer, 1).await, ["first"]);
    nothing_for(QUIET, &mut consumer).await;
    Ok(())
}

/// The id is remembered after the message was acked.
pub async fn remembered_after_the_ack<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, with_id("m", "a")).await;
    assert_eq!(take(&mut consumer, 1).await, ["m"]);
    send(&producer, with_id("late", "a")).await;
    nothing_for(QUIET, &mut consumer).await;
    Ok(())
}

/// Different ids, and none at all, are different messages.
pub async fn different_ids_are_different<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for message in [with_id("a", "1"), with_id("a", "2"), Message::new("a"), Message::new("a")] {
        send(&producer, message).await;
    }
    assert_eq!(take(&mut consumer, 4).await, ["a", "a", "a", "a"]);
    Ok(())
}

/// An id belongs to its queue.
pub async fn ids_belong_to_their_queue<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (one, mut from_one) = cx.pair().await;
    let (two, mut from_two) = cx.pair().await;
    send(&one, with_id("one", "a")).await;
    send(&two, with_id("two", "a")).await;
    assert_eq!(take(&mut from_one, 1).await, ["one"]);
    assert_eq!(take(&mut from_two, 1).await, ["two"]);
    Ok(())
}

/// Inside one batch, and between a batch and a send.
pub async fn within_a_batch<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, [with_id("a", "1"), with_id("b", "2"), with_id("a again", "1"), with_id("c", "3")])
        .await;
    send(&producer, with_id("b again", "2")).await;
    send_all(&producer, [with_id("c again", "3"), with_id("d", "4")]).await;
    assert_eq!(sorted(take(&mut consumer, 4).await), ["a", "b", "c", "d"]);
    nothing_for(QUIET, &mut consumer).await;
    Ok(())
}

/// Schedules, too.
pub async fn schedules_as_well<H: Harness>(cx: &Ctx<H>) -> Outcome {
    cx.capabilities()
        .require(buqueue_core::Feature::ScheduledDelivery)
        .map_err(|error| Excluded::new(error.message().to_owned()))?;
    let (producer, mut consumer) = cx.pair().await;
    let at = Utc::now() + TimeDelta::milliseconds(300);
    producer.send_at(with_id("m", "a"), at).await.unwrap();
    producer.send_at(with_id("m again", "a"), at).await.unwrap();
    send(&producer, with_id("m now", "a")).await;
    // Once; where schedules wait elsewhere, what is sent meanwhile may be the one.
    assert_ne!(take(&mut consumer, 1).await, ["m again"]);
    nothing_for(QUIET, &mut consumer).await;
    Ok(())
}

/// Fifty at once, from two producers: one.
pub async fn concurrent_duplicates<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    let other = cx.producer(&setup).await;
    let sends = (0..50).map(|n| {
        let producer = if n % 2 == 0 { producer.clone() } else { other.clone() };
        tokio::spawn(async move { producer.send(with_id("m", "a")).await.map(drop) })
    });
    for sent in within(SOON, "50 sends", join_all(sends)).await {
        sent.unwrap().unwrap();
    }
    assert_eq!(take(&mut consumer, 1).await, ["m"]);
    nothing_for(QUIET, &mut consumer).await;
    Ok(())
}

/// A redelivery is no duplicate.
pub async fn redelivery_is_no_duplicate<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, with_id("m", "a")).await;
    for count in 1..=3 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.delivery_count(), count);
        delivery.nack_after(Duration::from_millis(10)).await.unwrap();
    }
    ack(receive(&mut consumer).await).await;
    Ok(())
}

/// When the window has passed, the id is free again.
pub async fn window_ends<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let Some(window) = cx.harness().deduplication_window() else {
        return Err(Excluded::new("the harness cannot choose the deduplication window"));
    };
    let setup = cx.setup().deduplication_window(window);
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, with_id("m", "a")).await;
    send(&producer, with_id("m", "a")).await;
    assert_eq!(take(&mut consumer, 1).await, ["m"]);
    // A backend may remember longer than it has to; not for ever.
    crate::support::eventually(4 * window + SOON, "the id is free again", async || {
        send(&producer, with_id("m", "a")).await;
        tokio::time::sleep(window / 4).await;
        match look(&mut consumer).await {
            None => false,
            Some(delivery) => {
                ack(delivery).await;
                true
            }
        }
    })
    .await;
    Ok(())
}
