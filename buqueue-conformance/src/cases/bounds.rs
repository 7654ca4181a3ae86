//! What must not grow: promise 15.

use std::time::Duration;

use buqueue_core::{Delivery, Message};
use tokio::time::Instant;

use crate::support::{SOON, ack, numbered, receive, send_all, within};
use crate::worker::Job;
use crate::{Ctx, Harness, Outcome};

/// After that no more messages are sent than are needed.
const ENOUGH: Duration = Duration::from_secs(15);

/// What a broker may still keep of so many: it need not drop each at once.
fn few(sent: usize) -> u64 {
    u64::try_from(sent / 2).unwrap_or(u64::MAX).min(10_000)
}

/// Messages pile up at the broker, not in the process of a slow handler.
pub async fn slow_handler_does_not_grow<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    let mut worker = cx.worker(&setup, Job::Grow);
    assert_eq!(worker.says().await, "ready");
    // 50 MB.
    for _ in 0..10 {
        send_all(&producer, (0..500).map(|_| Message::new(vec![7; 10_000]))).await;
    }
    let said = worker.says().await;
    let grown: u64 = said.strip_prefix("grown ").expect(&said).parse().unwrap();
    assert!(grown < 40 << 20, "grown by {} MiB", grown >> 20);
    worker.kill().await;
    Ok(())
}

/// What is acknowledged is dropped by the broker in the end.
pub async fn acknowledged_messages_are_dropped<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const ROUND: usize = 2500;
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    cx.harness().stored(&setup).await?;
    let (start, mut sent) = (Instant::now(), 0);
    // A broker that takes ten messages with a request takes its time; a tenth of the number shows it as well.
    while sent < 40 * ROUND && (sent < ROUND || start.elapsed() < ENOUGH) {
        send_all(&producer, (0..ROUND).map(|_| Message::new("m"))).await;
        sent += ROUND;
        let mut received = 0;
        while received < ROUND {
            let batch = within(SOON, "receive_batch", consumer.receive_batch(ROUND)).await.unwrap();
            received += batch.len();
            within(SOON, "ack_all", Delivery::ack_all(batch)).await.unwrap();
        }
    }
    crate::support::eventually(SOON, &format!("few records after {sent} acked messages"), async || {
        cx.harness().stored(&setup).await.unwrap_or_default() <= few(sent)
    })
    .await;
    Ok(())
}

/// One message that is never settled does not keep all later ones.
pub async fn one_unsettled_message_keeps_no_others<H: Harness>(cx: &Ctx<H>) -> Outcome {
    // Held longer than anything here takes.
    let setup = cx.setup().lease(Duration::from_secs(120));
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    cx.harness().stored(&setup).await?;
    send_all(&producer, numbered("held", 1)).await;
    let held = receive(&mut consumer).await;
    let (start, mut sent) = (Instant::now(), 0);
    while sent < 20_000 && (sent < 2_000 || start.elapsed() < ENOUGH) {
        send_all(&producer, numbered("m", 2000)).await;
        crate::support::take(&mut consumer, 2000).await;
        sent += 2000;
    }
    crate::support::eventually(SOON, &format!("few records after {sent} acked messages"), async || {
        cx.harness().stored(&setup).await.unwrap_or_default() <= few(sent)
    })
    .await;
    ack(held).await;
    Ok(())
}

/// Building and dropping consumers leaves nothing behind that grows.
pub async fn many_short_lived_consumers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    for round in 0..30 {
        let mut consumer = cx.consumer(&setup).await;
        send_all(&producer, numbered(&round.to_string(), 2)).await;
        ack(receive(&mut consumer).await).await;
        let second = receive(&mut consumer).await;
        ack(second).await;
    }
    Ok(())
}
