//! Receiving: promises 11, 13 and 17.

use std::collections::BTreeSet;
use std::time::Duration;

use buqueue_core::{Delivery, ErrorKind, Message};
use tokio::time::Instant;

use crate::support::{
    LATE, SOON, ack, eventually, look, nack, nothing_for, numbered, receive, receive_within, send, send_all,
    sorted, take, text, within,
};
use crate::{Ctx, Foreign, Harness, Outcome, Setup};

/// What should be prompt.
const PROMPT: Duration = Duration::from_secs(1);

/// Nothing there: `None`, at once, each time.
pub async fn try_receive_on_empty_is_prompt<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    // The fastest of five: any of them may have met a machine, or a broker, that does something else.
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let found = look(&mut consumer).await;
        assert!(found.is_none(), "{found:?}");
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < PROMPT, "{fastest:?}");
    send(&producer, "m").await;
    assert_eq!(take(&mut consumer, 1).await, ["m"]);
    Ok(())
}

/// A message that is there is found without waiting for it.
pub async fn try_receive_finds_a_message<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(delivery) = look(&mut consumer).await {
            ack(delivery).await;
            return Ok(());
        }
        assert!(Instant::now() < deadline, "try_receive does not find the message");
    }
}

/// A nacked message is found, too.
pub async fn try_receive_finds_a_nacked_message<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    nack(receive(&mut consumer).await).await;
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(delivery) = look(&mut consumer).await {
            assert_eq!(delivery.delivery_count(), 2);
            ack(delivery).await;
            return Ok(());
        }
        assert!(Instant::now() < deadline, "try_receive does not find the message");
    }
}

/// A waiting consumer wakes when a message is sent.
pub async fn receive_wakes_on_send<H: Harness>(cx: &Ctx<H>) -> Outcome {
    wakes_after(cx, Duration::from_millis(300)).await
}

/// Also after it has waited longer than a client's usual response timeout.
pub async fn receive_outlasts_idleness<H: Harness>(cx: &Ctx<H>) -> Outcome {
    wakes_after(cx, Duration::from_secs(3)).await
}

async fn wakes_after<H: Harness>(cx: &Ctx<H>, idle: Duration) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let waiting = tokio::spawn(async move {
        let delivery = receive_within(idle + SOON, &mut consumer).await;
        (Instant::now(), delivery, consumer)
    });
    tokio::time::sleep(idle).await;
    assert!(!waiting.is_finished(), "an empty queue gave something");
    let sent = Instant::now();
    send(&producer, "wake").await;
    let (received, delivery, _consumer) = waiting.await.unwrap();
    assert_eq!(text(&delivery), "wake");
    assert!(received - sent < LATE, "woke after {:?}", received - sent);
    ack(delivery).await;
    Ok(())
}

/// A batch of at most nothing is an error, not a hang.
pub async fn receive_batch_of_zero_is_an_error<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let error = within(SOON, "receive_batch(0)", consumer.receive_batch(0)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig);
    send(&producer, "m").await;
    assert_eq!(take(&mut consumer, 1).await, ["m"]);
    Ok(())
}

/// One message is a batch; nobody waits for more.
pub async fn receive_batch_does_not_wait_for_more<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "only").await;
    let batch = within(LATE, "receive_batch with one there", consumer.receive_batch(100)).await.unwrap();
    assert_eq!(batch.iter().map(text).collect::<Vec<_>>(), ["only"]);
    Delivery::ack_all(batch).await.unwrap();
    Ok(())
}

/// No batch is larger than asked for, none is empty, and together they are everything.
pub async fn receive_batch_keeps_to_its_bounds<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 50)).await;
    let mut received = Vec::new();
    while received.len() < 50 {
        let batch = within(SOON, "receive_batch", consumer.receive_batch(7)).await.unwrap();
        assert!((1..=7).contains(&batch.len()), "a batch of {}", batch.len());
        received.extend(batch.iter().map(text));
        Delivery::ack_all(batch).await.unwrap();
    }
    assert_eq!(sorted(received), sorted(numbered("m", 50)));
    Ok(())
}

/// A bound without meaning does no harm.
pub async fn receive_batch_of_everything<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 5)).await;
    let mut received = Vec::new();
    while received.len() < 5 {
        let batch = within(SOON, "receive_batch", consumer.receive_batch(usize::MAX)).await.unwrap();
        received.extend(batch.iter().map(text));
        Delivery::ack_all(batch).await.unwrap();
    }
    assert_eq!(sorted(received), numbered("m", 5));
    Ok(())
}

/// The three ways to receive can be mixed.
pub async fn ways_to_receive_can_be_mixed<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 30)).await;
    let mut received = BTreeSet::new();
    let deadline = Instant::now() + 4 * SOON;
    while received.len() < 30 {
        assert!(Instant::now() < deadline, "{} of 30 received", received.len());
        for delivery in within(SOON, "receive_batch", consumer.receive_batch(3)).await.unwrap() {
            received.insert(text(&delivery));
            ack(delivery).await;
        }
        if let Some(delivery) = look(&mut consumer).await {
            received.insert(text(&delivery));
            ack(delivery).await;
        }
        if received.len() < 30 {
            let delivery = receive(&mut consumer).await;
            received.insert(text(&delivery));
            ack(delivery).await;
        }
    }
    Ok(())
}

/// Many messages in flight at once, settled in any order.
pub async fn many_in_flight<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, numbered("m", 50)).await;
    let mut held = Vec::new();
    while held.len() < 50 {
        held.push(receive(&mut consumer).await);
    }
    assert_eq!(consumer.stats().in_flight, 50);
    assert_eq!(sorted(held.iter().map(text).collect()), sorted(numbered("m", 50)));
    while let Some(delivery) = held.pop() {
        ack(delivery).await;
    }
    assert_eq!(consumer.stats().in_flight, 0);
    Ok(())
}

/// Consumers of one queue share its messages: all of them, each once.
pub async fn consumers_share<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut consumers = [cx.consumer(&setup).await, cx.consumer(&setup).await, cx.consumer(&setup).await];
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("m", 150)).await;
    let mut received = Vec::new();
    let deadline = Instant::now() + 4 * SOON;
    while received.len() < 150 {
        assert!(Instant::now() < deadline, "{} of 150 received", received.len());
        for consumer in &mut consumers {
            if let Some(delivery) = look(consumer).await {
                assert_eq!(delivery.delivery_count(), 1);
                received.push(text(&delivery));
                ack(delivery).await;
            }
        }
    }
    assert_eq!(sorted(received), sorted(numbered("m", 150)), "each message once");
    for consumer in &mut consumers {
        nothing_for(Duration::from_millis(100), consumer).await;
    }
    Ok(())
}

/// A record that buqueue did not write is a delivery, and its neighbours come through.
pub async fn malformed_record_blocks_nobody<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "before").await;
    cx.harness().inject(&setup, Foreign::Malformed).await?;
    send(&producer, "after").await;
    let mut received = Vec::new();
    for _ in 0..3 {
        let delivery = receive(&mut consumer).await;
        received.push(text(&delivery));
        ack(delivery).await;
    }
    assert!(
        received.contains(&"before".to_owned()) && received.contains(&"after".to_owned()),
        "{received:?}"
    );
    nothing_for(Duration::from_millis(200), &mut consumer).await;
    Ok(())
}

/// Another program's message is received as it is.
pub async fn foreign_message_is_read<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let delivery = foreign(cx, Foreign::Plain).await?;
    assert_eq!(text(&delivery), "foreign");
    assert_eq!(delivery.delivery_count(), 1);
    ack(delivery).await;
    Ok(())
}

/// A header that is no text does not fail the read.
pub async fn binary_header_is_read<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let delivery = foreign(cx, Foreign::BinaryHeader).await?;
    assert_eq!(text(&delivery), "foreign");
    ack(delivery).await;
    Ok(())
}

/// A header that comes twice does not fail the read.
pub async fn duplicate_header_is_read<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let delivery = foreign(cx, Foreign::DuplicateHeader).await?;
    assert_eq!(text(&delivery), "foreign");
    assert!(delivery.header("twice").is_some());
    ack(delivery).await;
    Ok(())
}

async fn foreign<H: Harness>(cx: &Ctx<H>, kind: Foreign) -> crate::Hook<Delivery> {
    let setup = cx.setup();
    let (_producer, mut consumer) = cx.pair_on(&setup).await;
    cx.harness().inject(&setup, kind).await?;
    Ok(receive(&mut consumer).await)
}

/// A foreign record that fails takes the same way as any message: counted, then dead.
pub async fn malformed_record_can_die<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (_producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    cx.harness().inject(&setup, Foreign::Malformed).await?;
    for attempt in 1..=2 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.delivery_count(), attempt);
        nack(delivery).await;
    }
    let letter = receive(&mut dead).await;
    assert_eq!(letter.header("buqueue-dlq-attempts"), Some("2"));
    ack(letter).await;
    Ok(())
}

/// A message passes through two consumers, one after the other.
pub async fn consumer_may_leave_and_return<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup: Setup = cx.setup();
    let producer = cx.producer(&setup).await;
    for round in 0..5 {
        let mut consumer = cx.consumer(&setup).await;
        send_all(&producer, [Message::new(format!("a-{round}")), Message::new(format!("b-{round}"))]).await;
        let mut both = Vec::new();
        eventually(SOON, "two messages a round", async || {
            if let Some(delivery) = look(&mut consumer).await {
                both.push(text(&delivery));
                ack(delivery).await;
            }
            both.len() == 2
        })
        .await;
        assert_eq!(sorted(both), [format!("a-{round}"), format!("b-{round}")]);
    }
    Ok(())
}
