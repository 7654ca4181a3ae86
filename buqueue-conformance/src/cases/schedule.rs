//! Schedules: promise 9.

use std::time::Duration;

use buqueue_core::{ErrorKind, Message};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use tokio::task::JoinSet;

use crate::support::{
    LATE, Numbers, SOON, ack, look, nack, nothing_for, numbered, receive, receive_within, send, send_all,
    sorted, take, text, within,
};
use crate::{Ctx, Excluded, Harness, Outcome, ProducerOf};

fn soon(milliseconds: i64) -> DateTime<Utc> {
    Utc::now() + TimeDelta::milliseconds(milliseconds)
}

async fn schedule<H: Harness>(producer: &ProducerOf<H>, message: impl Into<Scheduled>, at: DateTime<Utc>) {
    let sending = producer.send_at(message.into().0, at);
    let id = within(SOON, "send_at", sending).await.unwrap();
    assert!(!id.to_string().is_empty());
}

/// Not a tick early, hardly late.
#[track_caller]
fn assert_in_time(at: DateTime<Utc>) {
    let now = Utc::now();
    assert!(now >= at, "{} early", at - now);
    assert!((now - at).to_std().is_ok_and(|late| late <= LATE), "{} late", now - at);
}

struct Scheduled(Message);

impl From<Message> for Scheduled {
    fn from(message: Message) -> Self {
        Self(message)
    }
}

impl From<&str> for Scheduled {
    fn from(text: &str) -> Self {
        Self(Message::new(text.to_owned()))
    }
}

/// A waiting consumer gets it when it is due, as new.
pub async fn never_early_and_hardly_late<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    // Times between milliseconds must not be rounded down.
    for at in [soon(900), soon(1000) + TimeDelta::nanoseconds(999_999)] {
        let at = at.max(soon(300));
        schedule::<H>(&producer, "m", at).await;
        let delivery = receive(&mut consumer).await;
        assert_in_time(at);
        assert_eq!((delivery.delivery_count(), delivery.first_failed_at()), (1, None));
        ack(delivery).await;
    }
    Ok(())
}

/// A consumer that comes when it is due gets it, too.
pub async fn try_receive_finds_what_is_due<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let at = soon(400);
    schedule::<H>(&producer, "m", at).await;
    crate::support::eventually(SOON, "try_receive finds the schedule", async || {
        let Some(delivery) = look(&mut consumer).await else { return false };
        assert_in_time(at);
        ack(delivery).await;
        true
    })
    .await;
    Ok(())
}

/// The past, however far, is now.
pub async fn past_means_now<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for at in [Utc::now(), soon(-5000), DateTime::UNIX_EPOCH, DateTime::<Utc>::MIN_UTC] {
        schedule::<H>(&producer, "m", at).await;
        let delivery = receive_within(LATE, &mut consumer).await;
        ack(delivery).await;
    }
    Ok(())
}

/// Due time decides, not the order of sending.
pub async fn in_order_of_time<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let now = Utc::now();
    for (name, ahead) in [("c", 4500), ("a", 1500), ("b", 3000)] {
        schedule::<H>(&producer, name, now + TimeDelta::milliseconds(ahead)).await;
    }
    assert_eq!(take(&mut consumer, 3).await, ["a", "b", "c"]);
    Ok(())
}

/// Headers, key and deduplication id are kept.
pub async fn keeps_the_message<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let message = Message::new(vec![0, 255, 10])
        .with_header("x", "ü\n")
        .with_header("empty", "")
        .with_routing_key("k")
        .with_deduplication_id("d");
    schedule::<H>(&producer, message.clone(), soon(200)).await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.payload(), message.payload());
    assert_eq!((delivery.header("x"), delivery.header("empty")), (Some("ü\n"), Some("")));
    assert_eq!((delivery.routing_key(), delivery.deduplication_id()), (Some("k"), Some("d")));
    assert!(!delivery.headers().iter().any(|(name, _)| name.starts_with("buqueue-")), "{delivery:?}");
    ack(delivery).await;
    Ok(())
}

/// Empty and large payloads can wait as well.
pub async fn keeps_any_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let size = cx.capabilities().limits().payload_bytes.unwrap_or(200 << 10).min(200 << 10);
    schedule::<H>(&producer, Message::new(""), soon(100)).await;
    let delivery = receive(&mut consumer).await;
    assert!(delivery.payload().is_empty());
    ack(delivery).await;
    schedule::<H>(&producer, Message::new(vec![0xff; size]), soon(100)).await;
    let delivery = receive(&mut consumer).await;
    assert!(*delivery.payload() == vec![0xff; size]);
    ack(delivery).await;
    Ok(())
}

/// A scheduled message fails and comes back like any other.
pub async fn can_fail_and_die<H: Harness>(cx: &Ctx<H>) -> Outcome {
    cx.capabilities()
        .require(buqueue_core::Feature::DeadLetters)
        .map_err(|error| Excluded::new(error.message().to_owned()))?;
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    schedule::<H>(&producer, "m", soon(100)).await;
    for count in 1..=2 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.delivery_count(), count);
        nack(delivery).await;
    }
    assert_eq!(take(&mut dead, 1).await, ["m"]);
    Ok(())
}

/// The schedule does not need who sent it.
pub async fn survives_its_producer<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let at = soon(500);
    schedule::<H>(&producer, "m", at).await;
    drop(producer);
    let delivery = receive(&mut consumer).await;
    assert_in_time(at);
    ack(delivery).await;
    Ok(())
}

/// … nor any consumer that was there in the meantime.
pub async fn survives_its_consumers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut first) = cx.pair_on(&setup).await;
    let at = soon(4000);
    schedule::<H>(&producer, "m", at).await;
    // A broker that took its time to accept it leaves less of it.
    let early = (at - Utc::now()).to_std().unwrap_or_default() / 2;
    nothing_for(early.min(Duration::from_millis(100)), &mut first).await;
    drop((producer, first));
    let mut second = cx.consumer(&setup).await;
    let delivery = receive(&mut second).await;
    assert!(Utc::now() >= at);
    ack(delivery).await;
    Ok(())
}

/// Due while nobody consumes: there when somebody comes.
pub async fn due_while_nobody_is_there<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    schedule::<H>(&producer, "m", soon(100)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut consumer = cx.consumer(&setup).await;
    let delivery = receive_within(LATE + LATE, &mut consumer).await;
    ack(delivery).await;
    Ok(())
}

/// A schedule survives the broker's restart.
pub async fn survives_a_broker_restart<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let at = soon(2500);
    schedule::<H>(&producer, "m", at).await;
    cx.harness().restart_broker().await?;
    let delivery = receive_within(2 * SOON, &mut consumer).await;
    assert!(Utc::now() >= at);
    ack(delivery).await;
    Ok(())
}

/// A year ahead is accepted, waits, and holds up nobody.
pub async fn a_year_ahead_holds_up_nobody<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    schedule::<H>(&producer, "next year", Utc::now() + TimeDelta::days(365)).await;
    schedule::<H>(&producer, "tomorrow", Utc::now() + TimeDelta::days(1)).await;
    send(&producer, "now").await;
    assert_eq!(take(&mut consumer, 1).await, ["now"]);
    schedule::<H>(&producer, "soon", soon(300)).await;
    assert_eq!(take(&mut consumer, 1).await, ["soon"]);
    nothing_for(Duration::from_millis(700), &mut consumer).await;
    Ok(())
}

/// Beyond the horizon is an error by kind, before any I/O; the horizon is a year at least.
pub async fn beyond_the_horizon<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let Some(horizon) = cx.capabilities().limits().schedule_horizon else {
        return Err(Excluded::new("the backend states no horizon"));
    };
    assert!(horizon >= Duration::from_secs(365 * 24 * 3600), "a horizon of {horizon:?}");
    let (producer, mut consumer) = cx.pair().await;
    let Some(at) = TimeDelta::from_std(horizon)
        .ok()
        .and_then(|horizon| Utc::now().checked_add_signed(horizon)?.checked_add_signed(TimeDelta::days(1)))
    else {
        return Err(Excluded::new("the horizon lies beyond what a time can say"));
    };
    let error = within(SOON, "send_at", producer.send_at(Message::new("m"), at)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    send(&producer, "usable").await;
    assert_eq!(take(&mut consumer, 1).await, ["usable"]);
    Ok(())
}

/// The last time there is: accepted or refused, without a panic, and the queue goes on.
pub async fn the_end_of_time_is_harmless<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for at in [
        DateTime::<Utc>::MAX_UTC,
        Utc::now() + TimeDelta::days(365 * 290),
        Utc::now() + TimeDelta::days(365 * 600),
    ] {
        let _accepted = within(SOON, "send_at", producer.send_at(Message::new("never"), at)).await;
    }
    send(&producer, "now").await;
    schedule::<H>(&producer, "soon", soon(200)).await;
    assert_eq!(take(&mut consumer, 2).await, ["now", "soon"]);
    nothing_for(Duration::from_millis(300), &mut consumer).await;
    Ok(())
}

/// Two hundred times at random: each once, none early, none late.
pub async fn two_hundred_at_random<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let seed = Utc::now().timestamp_micros().unsigned_abs();
    let mut numbers = Numbers::new(seed);
    let start = Utc::now();
    let times: Vec<DateTime<Utc>> = (0..200)
        .map(|_| start + TimeDelta::microseconds(i64::try_from(numbers.below(4_000_000)).unwrap()))
        .collect();
    let sending = times.iter().enumerate().map(|(n, at)| producer.send_at(Message::new(n.to_string()), *at));
    for sent in within(SOON, "200 schedules", join_all(sending)).await {
        sent.unwrap();
    }
    let accepted = Utc::now();
    // On the side, so that a slow ack makes nothing late.
    let mut acks = JoinSet::new();
    let mut received = Vec::new();
    for _ in 0..200 {
        let delivery = receive(&mut consumer).await;
        let now = Utc::now();
        let at = times[delivery.payload_json::<usize>().unwrap()];
        assert!(now >= at, "{} early (seed {seed})", at - now);
        // What was due before it was accepted cannot be in time.
        let late = (now - at.max(accepted)).to_std().unwrap_or_default();
        assert!(late <= LATE, "{late:?} late (seed {seed})");
        received.push(text(&delivery));
        acks.spawn(ack(delivery));
    }
    within(SOON, "200 acks", acks.join_all()).await;
    assert_eq!(sorted(received), sorted((0..200).map(|n: u32| n.to_string()).collect()));
    nothing_for(Duration::from_millis(200), &mut consumer).await;
    Ok(())
}

/// Many at the same moment, all of them.
pub async fn many_at_the_same_moment<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let at = soon(800);
    let sending = numbered("m", 300).into_iter().map(|text| producer.send_at(Message::new(text), at));
    for sent in within(SOON, "300 schedules", join_all(sending)).await {
        sent.unwrap();
    }
    assert_eq!(sorted(take(&mut consumer, 300).await), sorted(numbered("m", 300)));
    assert!(Utc::now() >= at);
    Ok(())
}

/// Messages for now pass those that wait.
pub async fn interleaved_with_immediate_ones<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    // Far enough for a slow machine to take the ten before that.
    let at = soon(6000);
    let sending = (0..10).map(async |number| {
        schedule::<H>(&producer, format!("later-{number}").as_str(), at).await;
        send(&producer, format!("now-{number}")).await;
    });
    within(SOON, "20 messages", join_all(sending)).await;
    let now = take(&mut consumer, 10).await;
    assert_eq!(sorted(now), numbered("now", 10));
    send_all(&producer, ["extra"]).await;
    let mut rest = take(&mut consumer, 11).await;
    assert!(Utc::now() >= at);
    rest.retain(|text| text != "extra");
    assert_eq!(sorted(rest), numbered("later", 10));
    Ok(())
}

/// Two consumers wait; each schedule goes to one of them.
pub async fn consumers_share_schedules<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    let (mut one, mut two) = (cx.consumer(&setup).await, cx.consumer(&setup).await);
    let at = soon(500);
    for text in numbered("m", 40) {
        schedule::<H>(&producer, text.as_str(), at).await;
    }
    let mut received = Vec::new();
    while received.len() < 40 {
        let delivery = within(SOON, "a schedule", async {
            tokio::select! {
                delivery = one.receive() => delivery,
                delivery = two.receive() => delivery,
            }
        });
        let delivery = delivery.await.unwrap();
        received.push(text(&delivery));
        ack(delivery).await;
    }
    assert_eq!(sorted(received), sorted(numbered("m", 40)));
    nothing_for(Duration::from_millis(200), &mut one).await;
    nothing_for(Duration::from_millis(200), &mut two).await;
    Ok(())
}

/// A reserved header, a bad name and a payload too large are refused here, too.
pub async fn is_validated_like_a_send<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let message = Message::new("m").with_header("buqueue-x", "v");
    let error = producer.send_at(message, soon(100)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidMessage);
    nothing_for(Duration::from_millis(400), &mut consumer).await;
    Ok(())
}
