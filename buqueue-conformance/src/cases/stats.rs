//! What lies in a queue: promise 34, as far as the broker tells.

use std::time::Duration;

use buqueue_core::{Message, QueueProducer, QueueStats};
use chrono::Utc;
use tokio::time::Instant;

use crate::support::{SOON, ack, eventually, nack, numbered, receive, send, send_all, take, within};
use crate::{Ctx, Harness, Held, Outcome, ProducerOf};

/// Counts until it is as it should be.
async fn until(
    what: &str,
    mut count: impl AsyncFnMut() -> QueueStats,
    expected: impl Fn(QueueStats) -> bool,
) {
    let deadline = Instant::now() + SOON;
    loop {
        let stats = count().await;
        if expected(stats) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: the last of {SOON:?} is {stats:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the producer counts as it should, and insists on each number that the harness promises.
async fn counted<H: Harness>(
    cx: &Ctx<H>,
    producer: &ProducerOf<H>,
    what: &str,
    expected: impl Fn(QueueStats) -> bool,
) {
    let told = cx.harness().counts();
    until(
        what,
        async || {
            let stats = within(SOON, "queue_stats", producer.queue_stats()).await.expect("queue_stats");
            assert_eq!(stats.in_flight.is_some(), told.held == Held::Apart, "{stats:?}");
            assert_eq!(stats.scheduled.is_some(), told.scheduled, "{stats:?}");
            stats
        },
        expected,
    )
    .await;
}

/// What waits, what is held, what is to come, and nothing when all is done.
pub async fn ready_in_flight_and_scheduled<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let told = cx.harness().counts();
    let (none, one) = ((told.held == Held::Apart).then_some(0), told.scheduled.then_some(1));
    counted(cx, &producer, "an empty queue", |stats| {
        (stats.ready, stats.in_flight, stats.scheduled) == (0, none, told.scheduled.then_some(0))
    })
    .await;
    send_all(&producer, numbered("m", 5)).await;
    if told.scheduled {
        let at = Utc::now() + Duration::from_secs(3600);
        within(SOON, "send_at", producer.send_at(Message::new("later"), at)).await.expect("send_at");
    }
    let held = |stats: QueueStats| stats.in_flight.unwrap_or(0);
    // A consumer may read ahead, and what it reads ahead is held.
    counted(cx, &producer, "five", |stats| stats.ready + held(stats) == 5 && stats.scheduled == one).await;
    let first = receive(&mut consumer).await;
    counted(cx, &producer, "five, one of them held", |stats| {
        let as_told = match told.held {
            Held::Apart => held(stats) > 0 && stats.ready + held(stats) == 5,
            Held::AmongReady => stats.ready == 5,
            Held::Nowhere => stats.ready < 5,
        };
        as_told && stats.scheduled == one
    })
    .await;
    ack(first).await;
    take(&mut consumer, 4).await;
    counted(cx, &producer, "nothing but what is scheduled", |stats| {
        (stats.ready, stats.in_flight, stats.scheduled) == (0, none, one)
    })
    .await;
    Ok(())
}

/// From the consumer's monitor: while the consumer is a stream, and after it is gone.
pub async fn told_by_the_monitor<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, consumer) = cx.pair_on(&setup).await;
    let monitor = consumer.monitor();
    send_all(&producer, numbered("m", 3)).await;
    let stream = consumer.into_stream();
    let asking = eventually(SOON, "3 in the queue", async || {
        let stats = within(SOON, "stats", monitor.queue_stats()).await.expect("stats");
        stats.ready + stats.in_flight.unwrap_or(0) == 3
    });
    asking.await;
    drop(stream);
    let after = within(SOON, "queue_stats", monitor.queue_stats()).await.expect("queue_stats");
    assert_eq!(after.ready + after.in_flight.unwrap_or(0), 3, "the consumer is gone");
    let of_none = within(SOON, "dead_letter_stats", monitor.dead_letter_stats()).await;
    assert_eq!(of_none.expect("dead_letter_stats"), None, "there is no dead letter queue");
    Ok(())
}

/// The depth of the dead letter queue.
pub async fn dead_letters_are_counted<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let built = cx.builder_with_dlq(&setup, 1).build_pair().await;
    let (producer, mut consumer) = built.expect("build_pair");
    let monitor = consumer.monitor();
    for text in ["one", "two"] {
        send(&producer, text).await;
        nack(receive(&mut consumer).await).await;
    }
    let count = async || {
        let stats = within(SOON, "dead_letter_stats", monitor.dead_letter_stats()).await;
        stats.expect("dead_letter_stats").expect("the consumer has a dead letter queue")
    };
    until("2 dead letters", count, |stats| stats.ready == 2).await;
    let mut dead = cx.consumer(&setup.dlq()).await;
    take(&mut dead, 2).await;
    // Whoever reads them may do so in a group of its own, which counts for itself.
    let letters = cx.producer(&setup.dlq()).await;
    counted(cx, &letters, "no dead letters", |stats| stats.ready + stats.in_flight.unwrap_or(0) == 0).await;
    Ok(())
}

/// A connection that says nothing more ends in an error or in an answer, in time, and the counts come back.
pub async fn a_silent_connection_ends_in_time<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.setup().via(proxy.addr());
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("m", 2)).await;
    proxy.half_open();
    let asked = within(4 * SOON, "queue_stats on a silent connection", producer.queue_stats()).await;
    match asked {
        Ok(stats) => assert_eq!(stats.ready + stats.in_flight.unwrap_or(0), 2),
        Err(error) => assert!(error.is_transient(), "{error:?}"),
    }
    two_again(&producer).await;
    Ok(())
}

/// A broker that cannot be reached is an error that passes by itself, and does.
pub async fn an_unreachable_broker_is_an_error<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.setup().via(proxy.addr());
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("m", 2)).await;
    proxy.refuse(true);
    proxy.cut();
    let asked = within(4 * SOON, "queue_stats without a broker", producer.queue_stats()).await;
    let error = asked.expect_err("there is no broker");
    assert!(error.is_transient(), "{error:?}");
    proxy.refuse(false);
    two_again(&producer).await;
    Ok(())
}

async fn two_again(producer: &impl QueueProducer) {
    let asking = eventually(4 * SOON, "2 in the queue", async || {
        let stats = within(4 * SOON, "queue_stats", producer.queue_stats()).await;
        stats.is_ok_and(|stats| stats.ready + stats.in_flight.unwrap_or(0) == 2)
    });
    asking.await;
}
