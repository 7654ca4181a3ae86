//! Processes that are killed: promises 5, 9, 12, 19, 20 and 26.

use std::collections::BTreeSet;
use std::time::Duration;

use buqueue_core::Message;
use chrono::{TimeDelta, Utc};

use crate::support::{
    LATE, SOON, ack, eventually, look, nothing_for, numbered, receive, receive_within, send, send_all, text,
    within,
};
use crate::worker::Job;
use crate::{Ctx, Harness, Outcome};

const HOLD: Job = Job::Hold { max_receive_count: None };

/// `kill -9` inside a handler: the message comes back, counted.
pub async fn killed_handler_redelivers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, consumer) = cx.pair_on(&setup).await;
    drop(consumer);
    send(&producer, "m").await;
    for count in 1..=2 {
        let mut worker = cx.worker(&setup, HOLD);
        assert_eq!(worker.says().await, format!("holding {count}"));
        worker.kill().await;
    }
    let mut consumer = cx.consumer(&setup).await;
    let delivery = receive_within(setup.lease + SOON, &mut consumer).await;
    assert_eq!(delivery.delivery_count(), 3);
    assert!(delivery.first_failed_at().is_some());
    ack(delivery).await;
    Ok(())
}

/// A handler that kills its process every time: dead after its attempts, and not seen once more.
pub async fn poison_by_crash<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    drop(consumer);
    send(&producer, Message::new("poison").with_header("x", "v")).await;
    let mut first = cx.worker(&setup, Job::Abort { max_receive_count: Some(2) });
    assert!(!first.ended().await.success());
    let mut second = cx.worker(&setup, Job::Hold { max_receive_count: Some(2) });
    assert_eq!(second.says().await, "holding 2");
    second.kill().await;
    // The next process passes the verdict before its user sees the message.
    let mut consumer = cx.builder_with_dlq(&setup, 2).build_consumer().await.unwrap();
    let letter = tokio::select! {
        seen = consumer.receive() => panic!("handed out once more: {seen:?}"),
        letter = receive_within(setup.lease + SOON, &mut dead) => letter,
    };
    assert_eq!(text(&letter), "poison");
    assert_eq!(letter.header("x"), Some("v"));
    assert_eq!(letter.header("buqueue-dlq-attempts"), Some("2"));
    ack(letter).await;
    nothing_for(Duration::from_millis(200), &mut consumer).await;
    Ok(())
}

/// A killed producer loses nothing that was confirmed.
pub async fn killed_producer_loses_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut consumer = cx.consumer(&setup).await;
    let mut worker = cx.worker(&setup, Job::Send { prefix: "m".to_owned() });
    let mut confirmed = BTreeSet::new();
    while confirmed.len() < 50 {
        let said = worker.says().await;
        confirmed.insert(said.strip_prefix("confirmed ").expect(&said).to_owned());
    }
    worker.kill().await;
    while let Some(said) = worker.next().await {
        confirmed.insert(said.strip_prefix("confirmed ").expect(&said).to_owned());
    }
    while !confirmed.is_empty() {
        let delivery = receive(&mut consumer).await;
        confirmed.remove(&text(&delivery));
        ack(delivery).await;
    }
    Ok(())
}

/// Fifty processes, each killed while its handler holds a message; every message is handled in the end.
pub async fn fifty_kills_lose_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    // Where the next one waits for that, fifty times.
    let setup = cx.setup().lease(Duration::from_secs(1));
    let (producer, consumer) = cx.pair_on(&setup).await;
    drop(consumer);
    let mut open: BTreeSet<String> = numbered("m", 60).into_iter().collect();
    send_all(&producer, numbered("m", 60)).await;
    for _ in 0..50 {
        let mut worker = cx.worker(&setup, HOLD);
        let said = worker.says().await;
        assert!(said.starts_with("holding "), "{said}");
        worker.kill().await;
    }
    let mut consumer = cx.consumer(&setup).await;
    eventually(setup.lease + 2 * SOON, "every message is handled", async || {
        while let Some(delivery) = look(&mut consumer).await {
            open.remove(&text(&delivery));
            // So short a lease may run out on a slow machine.
            drop(within(SOON, "ack", delivery.ack()).await);
        }
        open.is_empty()
    })
    .await;
    Ok(())
}

/// Consumers are killed one after the other; each message is handled in the end.
pub async fn killed_consumers_lose_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, consumer) = cx.pair_on(&setup).await;
    drop(consumer);
    send_all(&producer, numbered("m", 300)).await;
    let mut open: BTreeSet<String> = numbered("m", 300).into_iter().collect();
    for _ in 0..3 {
        let mut worker = cx.worker(&setup, Job::Handle);
        for _ in 0..30 {
            let said = worker.says().await;
            open.remove(said.strip_prefix("handled ").expect(&said));
        }
        worker.kill().await;
        while let Some(said) = worker.next().await {
            open.remove(said.strip_prefix("handled ").expect(&said));
        }
    }
    let mut consumer = cx.consumer(&setup).await;
    eventually(setup.lease + 2 * SOON, "the rest is handled", async || {
        while let Some(delivery) = look(&mut consumer).await {
            open.remove(&text(&delivery));
            ack(delivery).await;
        }
        open.is_empty()
    })
    .await;
    Ok(())
}

/// A consumer is killed while it waits; what comes next is not lost with it.
pub async fn killed_while_waiting<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let producer = cx.producer(&setup).await;
    let mut worker = cx.worker(&setup, Job::Wait);
    assert_eq!(worker.says().await, "waiting");
    worker.kill().await;
    send_all(&producer, numbered("m", 5)).await;
    let mut consumer = cx.consumer(&setup).await;
    let mut open: BTreeSet<String> = numbered("m", 5).into_iter().collect();
    while !open.is_empty() {
        let delivery = receive_within(setup.lease + SOON, &mut consumer).await;
        open.remove(&text(&delivery));
        ack(delivery).await;
    }
    Ok(())
}

/// The sender of a schedule is killed.
pub async fn schedule_survives_a_killed_producer<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut consumer = cx.consumer(&setup).await;
    let at = Utc::now() + TimeDelta::milliseconds(2500);
    let mut worker = cx.worker(&setup, Job::Schedule { payload: "m".to_owned(), at: at.timestamp_millis() });
    assert_eq!(worker.says().await, "scheduled");
    worker.kill().await;
    let delivery = receive(&mut consumer).await;
    let now = Utc::now();
    assert!(now.timestamp_millis() >= at.timestamp_millis());
    assert!((now - at).to_std().unwrap_or_default() <= LATE, "{} late", now - at);
    ack(delivery).await;
    Ok(())
}

/// The only consumer is killed while a schedule waits.
pub async fn schedule_survives_a_killed_consumer<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let mut worker = cx.worker(&setup, Job::Wait);
    assert_eq!(worker.says().await, "waiting");
    let producer = cx.producer(&setup).await;
    let at = Utc::now() + TimeDelta::milliseconds(800);
    producer.send_at(Message::new("m"), at).await.unwrap();
    worker.kill().await;
    let mut consumer = cx.consumer(&setup).await;
    let delivery = receive_within(setup.lease + SOON, &mut consumer).await;
    assert!(Utc::now() >= at);
    ack(delivery).await;
    Ok(())
}

/// The process that asked for a delay is killed; the delay is the broker's.
pub async fn delayed_retry_survives_a_killed_consumer<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, consumer) = cx.pair_on(&setup).await;
    drop(consumer);
    send(&producer, "m").await;
    let before = tokio::time::Instant::now();
    let delay = Duration::from_millis(1500);
    let mut worker = cx.worker(&setup, Job::NackAfter { delay: 1500 });
    assert_eq!(worker.says().await, "nacked");
    worker.kill().await;
    let mut consumer = cx.consumer(&setup).await;
    let again = receive(&mut consumer).await;
    assert!(before.elapsed() >= delay);
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// Two processes share a queue.
pub async fn processes_share<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    let (mut one, mut two) = (cx.worker(&setup, Job::Handle), cx.worker(&setup, Job::Handle));
    send_all(&producer, numbered("m", 100)).await;
    let mut open: BTreeSet<String> = numbered("m", 100).into_iter().collect();
    while !open.is_empty() {
        let said = tokio::select! {
            said = one.says() => said,
            said = two.says() => said,
        };
        let payload = said.strip_prefix("handled ").expect(&said);
        assert!(open.remove(payload), "{payload} was handled twice");
    }
    one.kill().await;
    two.kill().await;
    Ok(())
}
