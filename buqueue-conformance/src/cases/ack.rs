//! Acks, leases, and what comes too late: promises 18, 23 and 24.

use std::time::Duration;

use buqueue_core::{Delivery, ErrorKind};
use futures_util::future::join_all;

use crate::support::{
    SOON, ack, hold, nothing_for, numbered, receive, receive_within, send, send_all, sorted, take, text,
    within,
};
use crate::{Ctx, Harness, Outcome};

/// Acked is acked: not after the lease, and not for another consumer.
pub async fn acked_is_gone<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 5)).await;
    take(&mut consumer, 5).await;
    nothing_for(setup.lease + Duration::from_millis(500), &mut consumer).await;
    drop(consumer);
    nothing_for(Duration::from_millis(300), &mut cx.consumer(&setup).await).await;
    Ok(())
}

/// Many at once, each of them.
pub async fn ack_all_acks_each<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 60)).await;
    let held = hold(&mut consumer, 60).await;
    within(SOON, "ack_all", Delivery::ack_all(held)).await.unwrap();
    assert_eq!(consumer.stats().in_flight, 0);
    nothing_for(setup.lease + Duration::from_millis(500), &mut consumer).await;
    Ok(())
}

/// Nothing to ack is no error.
pub async fn ack_all_of_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (_producer, _consumer) = cx.pair().await;
    within(SOON, "ack_all", Delivery::ack_all([])).await.unwrap();
    Ok(())
}

/// Acks from many tasks at once.
pub async fn concurrent_acks<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send_all(&producer, numbered("m", 100)).await;
    let mut acks = Vec::new();
    while acks.len() < 100 {
        let delivery = receive(&mut consumer).await;
        acks.push(tokio::spawn(delivery.ack()));
    }
    for acked in within(SOON, "100 acks side by side", join_all(acks)).await {
        acked.unwrap().unwrap();
    }
    nothing_for(setup.lease + Duration::from_millis(500), &mut consumer).await;
    Ok(())
}

/// One of several in flight is acked; only the others come back.
pub async fn acks_one_of_many<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 4)).await;
    let mut held = hold(&mut consumer, 4).await;
    let kept: Vec<String> = [0, 1, 3].map(|index| text(&held[index])).into();
    let acked = held.remove(2);
    ack(acked).await;
    drop(held);
    assert_eq!(sorted(take(&mut consumer, 3).await), sorted(kept));
    nothing_for(Duration::from_millis(300), &mut consumer).await;
    Ok(())
}

/// A delivery can be acked when its consumer is gone.
pub async fn ack_after_the_consumer_is_dropped<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    drop(consumer);
    ack(delivery).await;
    let mut next = cx.consumer(&setup).await;
    nothing_for(setup.lease + Duration::from_millis(500), &mut next).await;
    Ok(())
}

/// … and nacked.
pub async fn nack_after_the_consumer_is_dropped<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    drop(consumer);
    within(SOON, "nack", delivery.nack()).await.unwrap();
    let again = receive(&mut cx.consumer(&setup).await).await;
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// A delivery may be read by several threads and settled by another than the one that received it.
pub async fn delivery_is_send_and_sync<H: Harness>(cx: &Ctx<H>) -> Outcome {
    fn send_and_sync<T: Send + Sync + 'static>(_: &T) {}
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    send_and_sync(&delivery);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(text(&delivery), "m"));
        }
    });
    tokio::spawn(async move { ack(delivery).await }).await.unwrap();
    Ok(())
}

/// The lease ran out and the message went to somebody else: a late ack says so, and disturbs nobody.
pub async fn late_ack_is_lease_expired<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let late = receive(&mut consumer).await;
    let again = receive_within(setup.lease + SOON, &mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    let error = within(SOON, "the late ack", late.ack()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::LeaseExpired);
    ack(again).await;
    nothing_for(setup.lease + Duration::from_millis(300), &mut consumer).await;
    Ok(())
}

/// A late nack says so, and does not take the message from who has it now.
pub async fn late_nack_is_lease_expired<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let late = receive(&mut consumer).await;
    let again = receive_within(setup.lease + SOON, &mut consumer).await;
    let error = within(SOON, "the late nack", late.nack()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::LeaseExpired);
    // What is looked for is the late nack's work, and not that of the lease.
    within(SOON, "extend_visibility", again.extend_visibility(SOON)).await.unwrap();
    nothing_for(setup.lease / 3, &mut consumer).await;
    ack(again).await;
    Ok(())
}

/// A late extension says so.
pub async fn late_extend_is_lease_expired<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let late = receive(&mut consumer).await;
    let again = receive_within(setup.lease + SOON, &mut consumer).await;
    let error = within(SOON, "the late extension", late.extend_visibility(setup.lease)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::LeaseExpired);
    ack(again).await;
    drop(late);
    nothing_for(setup.lease + Duration::from_millis(300), &mut consumer).await;
    Ok(())
}

/// A late drop takes nothing from who has the message now.
pub async fn late_drop_disturbs_nobody<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let late = receive(&mut consumer).await;
    let again = receive_within(setup.lease + SOON, &mut consumer).await;
    drop(late);
    // What is looked for is the late drop's work, and not that of the lease.
    within(SOON, "extend_visibility", again.extend_visibility(SOON)).await.unwrap();
    nothing_for(setup.lease / 3, &mut consumer).await;
    ack(again).await;
    nothing_for(setup.lease + Duration::from_millis(300), &mut consumer).await;
    Ok(())
}

/// A handler that keeps extending keeps its message.
pub async fn extend_keeps_it_away<H: Harness>(cx: &Ctx<H>) -> Outcome {
    // Two thirds of it are what a machine that does much else may take for an extension.
    let setup = cx.setup().lease(Duration::from_secs(6));
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    for _ in 0..4 {
        within(SOON, "extend_visibility", delivery.extend_visibility(setup.lease)).await.unwrap();
        nothing_for(setup.lease / 3, &mut consumer).await;
    }
    ack(delivery).await;
    nothing_for(Duration::from_millis(300), &mut consumer).await;
    Ok(())
}

/// One extension may be longer than the lease itself.
pub async fn extend_reaches_beyond_the_lease<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    within(SOON, "extend_visibility", delivery.extend_visibility(4 * setup.lease)).await.unwrap();
    nothing_for(2 * setup.lease, &mut consumer).await;
    ack(delivery).await;
    Ok(())
}

/// When the extension ends, the message comes back.
pub async fn extend_ends<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    within(SOON, "extend_visibility", delivery.extend_visibility(setup.lease)).await.unwrap();
    let again = receive_within(setup.lease + SOON, &mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    drop(delivery);
    Ok(())
}

/// An extension without end is granted or refused, without a panic.
pub async fn absurd_extension_is_harmless<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    let _granted = within(SOON, "extend_visibility", delivery.extend_visibility(Duration::MAX)).await;
    ack(delivery).await;
    Ok(())
}

/// Where there is no lease, an extension is `Ok`; where there is one, too.
pub async fn extend_is_ok_everywhere<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let delivery = receive(&mut consumer).await;
    within(SOON, "extend_visibility", delivery.extend_visibility(Duration::from_secs(5))).await.unwrap();
    ack(delivery).await;
    Ok(())
}
