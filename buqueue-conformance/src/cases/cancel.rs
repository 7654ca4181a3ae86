//! Futures that are dropped midway: promise 12.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use buqueue_core::{Delivery, ErrorKind, Feature, Message};
use tokio::time::{Instant, timeout};

use crate::support::{
    SOON, ack, dropped_after, eventually, hold, look, nothing_for, numbered, receive, send, send_all, sorted,
    take, text, within,
};
use crate::{ConsumerOf, Ctx, Harness, Outcome};

/// How many messages flow while futures are dropped.
const FLOW: usize = 120;

/// Messages flow; `attempt` receives with a future that is mostly dropped; in the end everything has arrived.
async fn flow<H, A>(cx: &Ctx<H>, mut attempt: A) -> Outcome
where
    H: Harness,
    A: AsyncFnMut(&mut ConsumerOf<H>, u32) -> Vec<Delivery>,
{
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    let sending = tokio::spawn(async move {
        for text in numbered("m", FLOW) {
            send(&producer, text).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + setup.lease + 2 * SOON;
    for round in 0.. {
        for delivery in attempt(&mut consumer, round).await {
            seen.insert(text(&delivery));
            ack(delivery).await;
        }
        if seen.len() == FLOW {
            break;
        }
        assert!(Instant::now() < deadline, "{} of {FLOW} received after {round} rounds", seen.len());
    }
    sending.await.unwrap();
    assert_eq!(consumer.stats().in_flight, 0);
    nothing_for(Duration::from_millis(200), &mut consumer).await;
    Ok(())
}

/// Drops `future` after some polls, or when no poll comes.
async fn mostly_dropped<F: Future>(round: u32, future: F) -> Option<F::Output> {
    let dropped = dropped_after(round % 9 + 1, future);
    timeout(Duration::from_millis(30), dropped).await.ok().flatten()
}

/// `receive` is dropped at every await it has.
pub async fn receive_at_every_await<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let attempt = async |consumer: &mut ConsumerOf<H>, round| {
        mostly_dropped(round, consumer.receive()).await.map(Result::unwrap).into_iter().collect()
    };
    flow(cx, attempt).await
}

/// `receive_batch` likewise.
pub async fn receive_batch_at_every_await<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let attempt = async |consumer: &mut ConsumerOf<H>, round| {
        mostly_dropped(round, consumer.receive_batch(5)).await.map(Result::unwrap).unwrap_or_default()
    };
    flow(cx, attempt).await
}

/// `try_receive` likewise.
pub async fn try_receive_at_every_await<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let attempt = async |consumer: &mut ConsumerOf<H>, round| {
        tokio::task::yield_now().await;
        mostly_dropped(round, look(consumer)).await.flatten().into_iter().collect()
    };
    flow(cx, attempt).await
}

/// `receive_graceful` likewise.
pub async fn receive_graceful_at_every_await<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let attempt = async |consumer: &mut ConsumerOf<H>, round| {
        mostly_dropped(round, consumer.receive_graceful()).await.flatten().into_iter().collect()
    };
    flow(cx, attempt).await
}

/// `receive` under timeouts of a few milliseconds.
pub async fn receive_under_timeouts<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let attempt = async |consumer: &mut ConsumerOf<H>, round: u32| {
        let limit = Duration::from_millis(u64::from(round % 6));
        timeout(limit, consumer.receive()).await.map(Result::unwrap).into_iter().collect()
    };
    flow(cx, attempt).await
}

/// `receive` in a select that prefers something else.
pub async fn receive_in_a_select<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let attempt = async |consumer: &mut ConsumerOf<H>, _| {
        tokio::select! {
            biased;
            _ = ticks.tick() => Vec::new(),
            delivery = consumer.receive() => vec![delivery.unwrap()],
        }
    };
    flow(cx, attempt).await
}

/// A dropped ack has happened or has not: the message is gone, or comes back.
pub async fn ack_midway<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 20)).await;
    let mut acked = BTreeSet::new();
    for polls in 0..20 {
        let delivery = receive(&mut consumer).await;
        let payload = text(&delivery);
        assert!(!acked.contains(&payload), "{payload} was acked");
        if let Some(Ok(())) = dropped_after(polls % 4 + 1, delivery.ack()).await {
            acked.insert(payload);
        }
    }
    assert_eq!(consumer.stats().in_flight, 0);
    // What was not acked comes back, by its lease at the latest, and can be acked then.
    while let Ok(again) = timeout(setup.lease + Duration::from_secs(1), consumer.receive()).await {
        let again = again.unwrap();
        assert!(acked.insert(text(&again)), "{again:?} was acked");
        ack(again).await;
    }
    send(&producer, "after").await;
    assert_eq!(take(&mut consumer, 1).await, ["after"]);
    Ok(())
}

/// A dropped nack: the message comes back either way, once.
pub async fn nack_midway<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 10)).await;
    let held = hold(&mut consumer, 10).await;
    for (polls, delivery) in (1..).zip(held) {
        let _open = dropped_after(polls % 4 + 1, delivery.nack()).await;
    }
    let mut again = Vec::new();
    while again.len() < 10 {
        let delivery = crate::support::receive_within(setup.lease + SOON, &mut consumer).await;
        assert_eq!(delivery.delivery_count(), 2);
        again.push(text(&delivery));
        ack(delivery).await;
    }
    assert_eq!(sorted(again), sorted(numbered("m", 10)));
    nothing_for(Duration::from_millis(200), &mut consumer).await;
    Ok(())
}

/// A dropped extension does not outlive what is said of the message afterwards, however the two make their way.
pub async fn extend_midway<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const COUNT: usize = 20;
    let can_wait = cx.capabilities().support(Feature::DelayedRetry).is_supported();
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", COUNT)).await;
    for round in 0..6 {
        let held = hold(&mut consumer, COUNT).await;
        assert_eq!(sorted(held.iter().map(text).collect()), sorted(numbered("m", COUNT)));
        let mut nacks = Vec::new();
        for (at, delivery) in held.into_iter().enumerate() {
            // Far beyond what the next round waits for.
            let extending = delivery.extend_visibility(30 * SOON);
            let _open = dropped_after(round / 2 + 1, extending).await;
            match at % 3 {
                0 => drop(delivery),
                1 if can_wait => nacks.push(tokio::spawn(delivery.nack_after(Duration::from_millis(20)))),
                _ => nacks.push(tokio::spawn(delivery.nack())),
            }
        }
        for nack in nacks {
            within(SOON, "nack", nack).await.unwrap().unwrap();
        }
    }
    assert_eq!(sorted(take(&mut consumer, COUNT).await), sorted(numbered("m", COUNT)));
    Ok(())
}

/// A lease that was extended by a call that was dropped has not ended when it would have without: what settles the
/// message then is no settle that comes too late.
pub async fn extended_unawares<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 10)).await;
    let held = hold(&mut consumer, 10).await;
    for (polls, delivery) in (0..).zip(&held) {
        let _open = dropped_after(polls % 3 + 1, delivery.extend_visibility(30 * SOON)).await;
    }
    let mut seen = BTreeSet::new();
    // What was not extended comes back in this time, or soon after.
    let end_of_lease = Instant::now() + setup.lease + Duration::from_millis(200);
    while let Ok(again) = tokio::time::timeout_at(end_of_lease, consumer.receive()).await {
        let again = again.unwrap();
        seen.insert(text(&again));
        ack(again).await;
    }
    for (at, delivery) in held.into_iter().enumerate() {
        if at % 2 == 0 {
            // Too late where it was not extended, or where that cannot be told.
            let outcome = within(SOON, "nack", delivery.nack()).await;
            assert!(
                outcome.as_ref().map_or_else(|e| e.kind == ErrorKind::LeaseExpired, |()| true),
                "{outcome:?}"
            );
        }
    }
    eventually(setup.lease + SOON, "all of them", async || {
        while let Some(again) = look(&mut consumer).await {
            seen.insert(text(&again));
            ack(again).await;
        }
        seen.len() == 10
    })
    .await;
    Ok(())
}

/// A dropped `dead_letter`: the message is dead, or comes back; it is never lost.
pub async fn dead_letter_midway<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 20).await;
    send_all(&producer, numbered("m", 12)).await;
    let held = hold(&mut consumer, 12).await;
    for (polls, delivery) in (1..).zip(held) {
        let _open = dropped_after(polls % 6 + 1, delivery.dead_letter("dropped midway")).await;
    }
    let mut somewhere = BTreeSet::new();
    eventually(setup.lease + SOON, "each message in one queue or the other", async || {
        for queue in [&mut consumer, &mut dead] {
            while let Some(delivery) = look(queue).await {
                somewhere.insert(text(&delivery));
                ack(delivery).await;
            }
        }
        somewhere.len() == 12
    })
    .await;
    Ok(())
}

/// A build that is dropped midway spoils nothing.
pub async fn build_midway<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    for polls in 1..=10 {
        drop(dropped_after(polls, cx.builder(&setup).build_pair()).await);
    }
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, Message::new("m")).await;
    assert_eq!(take(&mut consumer, 1).await, ["m"]);
    Ok(())
}
