//! Dead letters: promises 25 to 29.

use std::sync::atomic::Ordering;
use std::time::Duration;

use buqueue_core::{Delivery, DlqConfig, ErrorKind, Message};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;

use crate::support::{
    SOON, ack, hold, look, nack, nothing_for, numbered, receive, receive_within, send, send_all, sorted,
    take, text, within,
};
use crate::{ConsumerOf, Ctx, FailingDlq, Harness, Outcome};

const QUIET: Duration = Duration::from_millis(300);

const ADDED: [&str; 6] = [
    "buqueue-dlq-reason",
    "buqueue-dlq-source",
    "buqueue-dlq-attempts",
    "buqueue-dlq-first-failed-at",
    "buqueue-dlq-died-at",
    "buqueue-dlq-deaths",
];

fn message() -> Message {
    Message::new(vec![0, 255, b'p'])
        .with_header("x", "grüße\n")
        .with_header("empty", "")
        .with_routing_key("orders.placed")
        .with_deduplication_id("order-99")
}

/// Nacks what comes next, `times` times.
async fn fail<H: Harness>(consumer: &mut ConsumerOf<H>, times: u32) {
    for attempt in 1..=times {
        let delivery = receive(consumer).await;
        assert_eq!(delivery.delivery_count(), attempt);
        nack(delivery).await;
    }
}

fn time(delivery: &Delivery, header: &str) -> DateTime<Utc> {
    let text = delivery.header(header).unwrap_or_else(|| panic!("no header {header}"));
    DateTime::parse_from_rfc3339(text).unwrap_or_else(|error| panic!("{header} {text:?}: {error}")).to_utc()
}

/// So many failures and no more: then it is there, and here no longer.
pub async fn moves_after_max_receive_count<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 3).await;
    send(&producer, "poison").await;
    fail::<H>(&mut consumer, 3).await;
    assert_eq!(take(&mut dead, 1).await, ["poison"]);
    nothing_for(QUIET, &mut consumer).await;
    assert_eq!(consumer.stats().dead_lettered, 1);
    assert_eq!(consumer.stats().in_flight, 0);
    Ok(())
}

/// One failure less, and it stays.
pub async fn stays_below_max_receive_count<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 3).await;
    send(&producer, "m").await;
    fail::<H>(&mut consumer, 2).await;
    let third = receive(&mut consumer).await;
    assert_eq!(third.delivery_count(), 3);
    ack(third).await;
    nothing_for(QUIET, &mut dead).await;
    assert_eq!(consumer.stats().dead_lettered, 0);
    Ok(())
}

/// A single attempt.
pub async fn max_receive_count_of_one<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 1).await;
    send(&producer, "once").await;
    fail::<H>(&mut consumer, 1).await;
    assert_eq!(take(&mut dead, 1).await, ["once"]);
    nothing_for(QUIET, &mut consumer).await;
    Ok(())
}

/// A delay on the last attempt has no next attempt to delay.
pub async fn nack_after_on_the_last_attempt<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    send(&producer, "m").await;
    fail::<H>(&mut consumer, 1).await;
    receive(&mut consumer).await.nack_after(Duration::from_secs(600)).await.unwrap();
    assert_eq!(take(&mut dead, 1).await, ["m"]);
    Ok(())
}

/// Payload, headers, key and deduplication id are the message's; the rest is its story.
pub async fn keeps_the_message_and_tells_its_story<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    let before = Utc::now() - chrono::TimeDelta::seconds(2);
    send(&producer, message()).await;
    fail::<H>(&mut consumer, 2).await;
    let letter = receive(&mut dead).await;
    let after = Utc::now() + chrono::TimeDelta::seconds(2);
    assert_eq!(letter.payload(), message().payload());
    assert_eq!(letter.routing_key(), Some("orders.placed"));
    assert_eq!(letter.deduplication_id(), Some("order-99"));
    assert_eq!((letter.header("x"), letter.header("empty")), (Some("grüße\n"), Some("")));
    assert!(letter.header("buqueue-dlq-reason").is_some_and(|reason| !reason.is_empty()));
    let source = letter.header("buqueue-dlq-source").unwrap_or_default();
    assert!(source.contains(&setup.queue), "{source:?} does not name {:?}", setup.queue);
    assert_eq!(letter.header("buqueue-dlq-attempts"), Some("2"));
    assert_eq!(letter.header("buqueue-dlq-deaths"), Some("1"));
    let (failed, died) = (time(&letter, "buqueue-dlq-first-failed-at"), time(&letter, "buqueue-dlq-died-at"));
    assert!(before <= failed && failed <= died && died <= after, "{before} {failed} {died} {after}");
    assert_eq!(letter.delivery_count(), 2, "the original's count");
    let first_failed_at = letter.first_failed_at().expect("the original's first failure");
    assert!((first_failed_at - failed).abs() < chrono::TimeDelta::seconds(1));
    ack(letter).await;
    Ok(())
}

/// When the dead letter itself fails, it counts its own attempts.
pub async fn letter_counts_its_own_failures<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 5).await;
    send(&producer, "m").await;
    fail::<H>(&mut consumer, 5).await;
    let letter = receive(&mut dead).await;
    assert_eq!(letter.delivery_count(), 5);
    nack(letter).await;
    let letter = receive(&mut dead).await;
    assert_eq!(letter.delivery_count(), 2);
    ack(letter).await;
    Ok(())
}

/// Given up at once, with the reason.
pub async fn dead_letter_moves_at_once<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 10).await;
    send(&producer, message()).await;
    within(SOON, "dead_letter", receive(&mut consumer).await.dead_letter("unknown schema")).await.unwrap();
    let letter = receive(&mut dead).await;
    assert_eq!(letter.header("buqueue-dlq-reason"), Some("unknown schema"));
    assert_eq!(letter.header("buqueue-dlq-attempts"), Some("1"));
    assert_eq!(letter.payload(), message().payload());
    ack(letter).await;
    nothing_for(QUIET, &mut consumer).await;
    assert_eq!(consumer.stats().dead_lettered, 1);
    Ok(())
}

/// A reason may be any text; a very long one is cut, not refused.
pub async fn any_reason_will_do<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 10).await;
    let stack_trace = "at größe::f\n".repeat(100_000);
    for reason in ["", "two\nlines\0", &stack_trace] {
        send(&producer, "m").await;
        within(SOON, "dead_letter", receive(&mut consumer).await.dead_letter(reason)).await.unwrap();
        let letter = receive(&mut dead).await;
        let arrived = letter.header("buqueue-dlq-reason").expect("the reason");
        assert!(reason.starts_with(arrived) && arrived.len() >= reason.len().min(1000), "{arrived:?}");
        ack(letter).await;
    }
    Ok(())
}

/// Without a dead letter queue it is an error, and the message comes back.
pub async fn dead_letter_without_a_queue<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "m").await;
    let error =
        within(SOON, "dead_letter", receive(&mut consumer).await.dead_letter("no")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    let again = receive(&mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    ack(again).await;
    Ok(())
}

/// Handlers that drop the message every time do not see it for ever.
pub async fn poison_by_drop<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    send(&producer, "poison").await;
    for attempt in 1..=2 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.delivery_count(), attempt);
        drop(delivery);
    }
    dies_unseen::<H>(&mut consumer, &mut dead, SOON, "2").await;
    Ok(())
}

/// Nor do handlers that never end.
pub async fn poison_by_lease<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    send(&producer, "poison").await;
    let mut held = Vec::new();
    for attempt in 1..=2 {
        let delivery = receive_within(setup.lease + SOON, &mut consumer).await;
        assert_eq!(delivery.delivery_count(), attempt);
        held.push(delivery);
    }
    dies_unseen::<H>(&mut consumer, &mut dead, setup.lease + SOON, "2").await;
    Ok(())
}

/// The consumer keeps receiving, is handed nothing, and the letter arrives.
async fn dies_unseen<H: Harness>(
    consumer: &mut ConsumerOf<H>,
    dead: &mut ConsumerOf<H>,
    limit: Duration,
    attempts: &str,
) {
    let letter = tokio::select! {
        seen = consumer.receive() => panic!("handed out once more: {seen:?}"),
        letter = receive_within(limit, dead) => letter,
    };
    assert_eq!(letter.header("buqueue-dlq-attempts"), Some(attempts));
    ack(letter).await;
    nothing_for(QUIET, consumer).await;
    assert_eq!(consumer.stats().dead_lettered, 1);
}

/// `try_receive` and `receive_batch` pass the verdict as well.
pub async fn verdict_in_every_way_to_receive<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 1).await;
    send(&producer, "by try_receive").await;
    drop(receive(&mut consumer).await);
    crate::support::eventually(SOON, "a dead letter by try_receive", async || {
        let seen = look(&mut consumer).await;
        assert!(seen.is_none(), "handed out once more: {seen:?}");
        consumer.stats().dead_lettered == 1
    })
    .await;
    assert_eq!(take(&mut dead, 1).await, ["by try_receive"]);

    send(&producer, "by receive_batch").await;
    drop(receive(&mut consumer).await);
    let letters = tokio::select! {
        seen = consumer.receive_batch(10) => panic!("handed out once more: {seen:?}"),
        letters = take(&mut dead, 1) => letters,
    };
    assert_eq!(letters, ["by receive_batch"]);
    Ok(())
}

/// Good messages pass between the dying ones.
pub async fn neighbours_pass<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    let all = (0..30).map(|n| if n % 3 == 0 { format!("bad-{n}") } else { format!("good-{n}") });
    let all: Vec<String> = all.collect();
    send_all(&producer, all.clone()).await;
    let mut good = Vec::new();
    let mut failures = 0;
    while good.len() < 20 || failures < 20 {
        let delivery = receive(&mut consumer).await;
        if text(&delivery).starts_with("bad") {
            failures += 1;
            nack(delivery).await;
        } else {
            good.push(text(&delivery));
            ack(delivery).await;
        }
    }
    let of = |prefix: &str| sorted(all.iter().filter(|text| text.starts_with(prefix)).cloned().collect());
    assert_eq!(sorted(good), of("good"));
    assert_eq!(sorted(take(&mut dead, 10).await), of("bad"));
    nothing_for(QUIET, &mut consumer).await;
    Ok(())
}

/// Many die at once, each moves once.
pub async fn many_die_at_once<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 1).await;
    send_all(&producer, numbered("m", 50)).await;
    let held = hold(&mut consumer, 50).await;
    for nacked in within(SOON, "50 nacks", join_all(held.into_iter().map(Delivery::nack))).await {
        nacked.unwrap();
    }
    assert_eq!(sorted(take(&mut dead, 50).await), sorted(numbered("m", 50)));
    nothing_for(QUIET, &mut consumer).await;
    nothing_for(QUIET, &mut dead).await;
    Ok(())
}

/// Sent back by a redrive: the same message, as new.
pub async fn redrive_sends_it_back<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 1).await;
    send(&producer, message()).await;
    fail::<H>(&mut consumer, 1).await;
    let letter = receive(&mut dead).await;
    within(SOON, "redrive", letter.redrive(&producer)).await.unwrap();
    let again = receive(&mut consumer).await;
    assert_eq!((again.delivery_count(), again.first_failed_at()), (1, None));
    assert_eq!(again.payload(), message().payload());
    assert_eq!(again.routing_key(), Some("orders.placed"));
    assert_eq!(again.deduplication_id(), Some("order-99"));
    assert_eq!((again.header("x"), again.header("empty")), (Some("grüße\n"), Some("")));
    for added in &ADDED[..5] {
        assert_eq!(again.header(added), None, "{added} has stayed");
    }
    ack(again).await;
    nothing_for(QUIET, &mut dead).await;
    Ok(())
}

/// A redriven message dies again and is not swallowed as a duplicate, deduplication id or not.
pub async fn redriven_message_can_die_again<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    send(&producer, message()).await;
    for deaths in ["1", "2", "3"] {
        fail::<H>(&mut consumer, 2).await;
        let letter = receive(&mut dead).await;
        assert_eq!(letter.header("buqueue-dlq-deaths"), Some(deaths));
        assert_eq!(letter.deduplication_id(), Some("order-99"));
        within(SOON, "redrive", letter.redrive(&producer)).await.unwrap();
    }
    ack(receive(&mut consumer).await).await;
    nothing_for(QUIET, &mut dead).await;
    Ok(())
}

/// The dead letter queue takes nothing for a while: the message stays where it was, and moves in the end.
pub async fn failing_publish_leaves_the_original<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut dead = cx.consumer(&setup.dlq()).await;
    let (builder, failures) = FailingDlq::<H::Backend>::builder(cx.config(&setup), 2);
    let dlq = DlqConfig { destination: setup.dlq().queue, max_receive_count: 1 };
    let (producer, mut consumer) = builder.dead_letter_queue(dlq).build_pair().await.unwrap();
    send(&producer, message()).await;
    let delivery = receive(&mut consumer).await;
    let error = within(SOON, "nack", delivery.nack()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Throttled, "the publish's own error");
    assert_eq!(consumer.stats().dead_lettered, 0);
    // The one failure that is left meets the verdict before the next attempt.
    let letter = tokio::select! {
        seen = consumer.receive() => panic!("handed out beyond its attempts: {seen:?}"),
        letter = receive_within(2 * SOON, &mut dead) => letter,
    };
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    assert_eq!(letter.payload(), message().payload());
    ack(letter).await;
    nothing_for(QUIET, &mut consumer).await;
    nothing_for(QUIET, &mut dead).await;
    Ok(())
}

/// The same for `dead_letter`: the error is told, the message comes back.
pub async fn failing_dead_letter_comes_back<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut dead = cx.consumer(&setup.dlq()).await;
    let (builder, _failures) = FailingDlq::<H::Backend>::builder(cx.config(&setup), 1);
    let dlq = DlqConfig { destination: setup.dlq().queue, max_receive_count: 5 };
    let (producer, mut consumer) = builder.dead_letter_queue(dlq).build_pair().await.unwrap();
    send(&producer, "m").await;
    let error = receive(&mut consumer).await.dead_letter("first").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Throttled);
    let again = receive(&mut consumer).await;
    assert_eq!(again.delivery_count(), 2);
    again.dead_letter("second").await.unwrap();
    let letter = receive(&mut dead).await;
    assert_eq!(letter.header("buqueue-dlq-reason"), Some("second"));
    ack(letter).await;
    Ok(())
}

/// Nobody has made the dead letter queue before.
pub async fn destination_is_created<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer) = cx.builder_with_dlq(&setup, 1).build_pair().await.unwrap();
    send(&producer, "m").await;
    fail::<H>(&mut consumer, 1).await;
    assert_eq!(take(&mut cx.consumer(&setup.dlq()).await, 1).await, ["m"]);
    Ok(())
}

/// A dead letter queue is an ordinary queue and can have one of its own.
pub async fn dead_letters_can_die<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (setup, morgue) = (cx.setup(), cx.setup());
    let (producer, mut consumer) = cx.builder_with_dlq(&setup, 1).build_pair().await.unwrap();
    let dlq = DlqConfig { destination: morgue.queue.clone(), max_receive_count: 3 };
    let mut dead = cx.builder(&setup.dlq()).dead_letter_queue(dlq).build_consumer().await.unwrap();
    let mut deader = cx.consumer(&morgue).await;
    send(&producer, "m").await;
    fail::<H>(&mut consumer, 1).await;
    for count in 1..=3 {
        let letter = receive(&mut dead).await;
        assert_eq!(letter.delivery_count(), count);
        nack(letter).await;
    }
    let letter = receive(&mut deader).await;
    assert_eq!(letter.header("buqueue-dlq-deaths"), Some("2"));
    ack(letter).await;
    Ok(())
}
