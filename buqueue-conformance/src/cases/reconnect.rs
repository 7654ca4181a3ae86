//! Connections that break: promise 14.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buqueue_core::{Delivery, ErrorKind, Message, QueueConsumer};
use chrono::{TimeDelta, Utc};
use tokio::time::Instant;

use crate::support::{
    Ledger, SOON, ack, hold, nothing_for, numbered, receive, receive_within, send, send_all,
    send_until_confirmed, text, within,
};
use crate::{ConsumerOf, Ctx, Harness, Outcome};

/// Progress within 10 s of the broker's return, and room for a loaded machine.
const RECOVERY: Duration = Duration::from_secs(13);

/// Receives and acks until `payload` comes. An ack may fail while connections break; the message comes again then.
async fn until<H: Harness>(limit: Duration, consumer: &mut ConsumerOf<H>, payload: &str) {
    let receiving = async {
        loop {
            let delivery = consumer.receive().await.unwrap_or_else(|error| panic!("receive: {error:?}"));
            let found = text(&delivery) == payload;
            if delivery.ack().await.is_ok() && found {
                return;
            }
        }
    };
    within(limit, &format!("receive {payload:?}"), receiving).await;
}

/// The connection closes under a waiting consumer.
pub async fn idle_consumer_after_a_cut<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let producer = cx.producer(&setup).await;
    let mut consumer = cx.consumer(&setup.via(proxy.addr())).await;
    let waiting = tokio::spawn(async move {
        until::<H>(2 * RECOVERY, &mut consumer, "after").await;
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.cut();
    send(&producer, "after").await;
    within(RECOVERY, "progress after the cut", waiting).await.unwrap();
    Ok(())
}

/// The connection closes between two calls.
pub async fn busy_consumer_after_a_cut<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let producer = cx.producer(&setup).await;
    let mut consumer = cx.consumer(&setup.via(proxy.addr())).await;
    for round in 0..3 {
        send(&producer, format!("m-{round}")).await;
        until::<H>(RECOVERY, &mut consumer, &format!("m-{round}")).await;
        proxy.cut();
    }
    Ok(())
}

/// The connection closes under a producer.
pub async fn producer_after_a_cut<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let mut consumer = cx.consumer(&setup).await;
    let producer = cx.producer(&setup.via(proxy.addr())).await;
    for round in 0..3 {
        let payload = format!("m-{round}");
        send_until_confirmed(RECOVERY, &producer, &payload).await;
        until::<H>(RECOVERY, &mut consumer, &payload).await;
        proxy.cut();
    }
    Ok(())
}

/// A send over a dead connection is an error that passes, not a hang and not `Ok`.
pub async fn send_without_a_broker_is_told<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.setup();
    let producer = cx.producer(&setup.via(proxy.addr())).await;
    send(&producer, "before").await;
    proxy.refuse(true);
    proxy.cut();
    let error = within(4 * SOON, "the error", producer.send(Message::new("during"))).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::ConnectionLost | ErrorKind::Timeout), "{error:?}");
    assert!(error.is_transient());
    proxy.refuse(false);
    send_until_confirmed(RECOVERY, &producer, "after").await;
    Ok(())
}

/// The broker is away for a while; meanwhile the consumer does not hammer it.
pub async fn broker_away_and_back<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let producer = cx.producer(&setup).await;
    let mut consumer = cx.consumer(&setup.via(proxy.addr())).await;
    let waiting = tokio::spawn(async move {
        until::<H>(3 * RECOVERY, &mut consumer, "after").await;
    });
    proxy.refuse(true);
    proxy.cut();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tries = proxy.refused();
    assert!(tries <= 100, "{tries} connections in three seconds");
    assert!(!waiting.is_finished());
    proxy.refuse(false);
    send(&producer, "after").await;
    within(RECOVERY, "progress after the return", waiting).await.unwrap();
    Ok(())
}

/// The peer vanishes without a word, under a waiting consumer.
pub async fn idle_consumer_half_open<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let producer = cx.producer(&setup).await;
    let mut consumer = cx.consumer(&setup.via(proxy.addr())).await;
    let waiting = tokio::spawn(async move {
        until::<H>(3 * RECOVERY, &mut consumer, "after").await;
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.half_open();
    send(&producer, "after").await;
    within(RECOVERY + setup.lease, "progress after the silence", waiting).await.unwrap();
    Ok(())
}

/// … and under a busy one.
pub async fn busy_consumer_half_open<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let producer = cx.producer(&setup).await;
    let mut consumer = cx.consumer(&setup.via(proxy.addr())).await;
    send(&producer, "before").await;
    until::<H>(RECOVERY, &mut consumer, "before").await;
    proxy.half_open();
    send(&producer, "after").await;
    until::<H>(RECOVERY + setup.lease, &mut consumer, "after").await;
    Ok(())
}

/// … and under a producer.
pub async fn producer_half_open<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let mut consumer = cx.consumer(&setup).await;
    let producer = cx.producer(&setup.via(proxy.addr())).await;
    send(&producer, "before").await;
    proxy.half_open();
    send_until_confirmed(RECOVERY, &producer, "after").await;
    until::<H>(RECOVERY, &mut consumer, "after").await;
    Ok(())
}

/// The network stands still for a second and goes on.
pub async fn stall_and_resume<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup.via(proxy.addr())).await;
    send(&producer, "before").await;
    until::<H>(RECOVERY, &mut consumer, "before").await;
    proxy.stall();
    let waiting = tokio::spawn(async move {
        until::<H>(2 * RECOVERY, &mut consumer, "during").await;
    });
    let sending = tokio::spawn(async move { send_until_confirmed(2 * RECOVERY, &producer, "during").await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.resume();
    within(RECOVERY, "the send", sending).await.unwrap();
    within(RECOVERY, "progress after the stall", waiting).await.unwrap();
    Ok(())
}

/// A long way to the broker: slower, not different.
pub async fn slow_network<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.setup();
    let (producer, mut consumer) = cx.pair_on(&setup.via(proxy.addr())).await;
    proxy.delay(Duration::from_millis(60));
    send_all(&producer, numbered("m", 20)).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 20 {
        let batch = within(SOON, "receive_batch", consumer.receive_batch(20)).await.unwrap();
        for delivery in &batch {
            assert_eq!(delivery.delivery_count(), 1);
            assert!(seen.insert(text(delivery)));
        }
        within(SOON, "ack_all", Delivery::ack_all(batch)).await.unwrap();
    }
    Ok(())
}

/// Cut again and again under load: what was confirmed is received.
pub async fn cuts_under_load<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup.via(proxy.addr())).await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let sending = tokio::spawn({
        let ledger = Arc::clone(&ledger);
        async move {
            for payload in numbered("m", 250) {
                ledger.lock().unwrap().attempted(&payload);
                let sent = producer.send(Message::new(payload.clone())).await;
                ledger.lock().unwrap().outcome(&payload, &sent);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let cutting = async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.cut();
        }
    };
    tokio::join!(cutting, drain(&ledger, &mut consumer, || sending.is_finished()));
    within(SOON, "250 sends", sending).await.unwrap();
    let account = ledger.lock().unwrap().check();
    assert!(account.confirmed >= 25, "{account}");
    Ok(())
}

/// Receives until all is sent, everything confirmed has come, and nothing new has for two seconds.
async fn drain<C: QueueConsumer>(ledger: &Mutex<Ledger>, consumer: &mut C, all_sent: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        // Asked before the silence: what is sent during it must not end it.
        let all_sent = all_sent();
        match tokio::time::timeout(Duration::from_secs(2), consumer.receive()).await {
            Ok(delivery) => {
                let delivery = delivery.unwrap_or_else(|error| panic!("receive: {error:?}"));
                ledger.lock().unwrap().received(&text(&delivery));
                // An ack that fails brings the message again; the ledger counts that as a duplicate.
                drop(delivery.ack().await);
            }
            Err(_) if all_sent && ledger.lock().unwrap().is_complete() => return,
            Err(_) => {}
        }
        let account = || ledger.lock().unwrap().account();
        assert!(Instant::now() < deadline, "all is sent: {all_sent}; {}", account());
    }
}

/// Cut inside a batch: each outcome is true.
pub async fn cut_during_a_batch<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let mut consumer = cx.consumer(&setup).await;
    let producer = cx.producer(&setup.via(proxy.addr())).await;
    let ledger = Mutex::new(Ledger::default());
    for round in 0..4 {
        let payloads = numbered(&format!("m-{round}"), 400);
        let messages: Vec<Message> = payloads
            .iter()
            .map(|payload| Message::new(payload.clone()).with_header("ballast", "b".repeat(500)))
            .collect();
        let cutting = async {
            tokio::time::sleep(Duration::from_millis(2 * round)).await;
            proxy.cut();
        };
        let sending = within(4 * SOON, "send_batch", producer.send_batch(messages));
        let (sent, ()) = tokio::join!(sending, cutting);
        let mut ledger = ledger.lock().unwrap();
        match sent {
            Ok(_) => payloads.iter().for_each(|payload| ledger.confirmed(payload)),
            Err(error) => {
                assert!(matches!(error.kind, ErrorKind::PartialBatch { .. }), "{error:?}");
                assert_eq!(error.outcomes().len(), payloads.len());
                for (payload, outcome) in payloads.iter().zip(error.outcomes()) {
                    ledger.outcome(payload, outcome);
                }
            }
        }
    }
    drain(&ledger, &mut consumer, || true).await;
    ledger.lock().unwrap().check();
    Ok(())
}

/// A delivery in flight while the connection breaks: its ack holds, or it comes back.
pub async fn in_flight_across_a_cut<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup.via(proxy.addr())).await;
    send_all(&producer, numbered("m", 10)).await;
    let held = hold(&mut consumer, 10).await;
    proxy.cut();
    let mut open = BTreeSet::new();
    for delivery in held {
        let payload = text(&delivery);
        if within(RECOVERY, "ack", delivery.ack()).await.is_err() {
            open.insert(payload);
        }
    }
    // What came back was open, or its `Ok` was written to a channel that had gone (then it says so by kind).
    let native = cx.capabilities().require(buqueue_core::Feature::DetectsLateSettle).is_ok();
    let quiet = setup.lease + Duration::from_secs(1);
    while let Ok(delivery) = tokio::time::timeout(quiet, consumer.receive()).await {
        let delivery = delivery.unwrap();
        let payload = text(&delivery);
        assert!(open.remove(&payload) || !native, "{payload} was acked and came back");
        ack(delivery).await;
    }
    Ok(())
}

/// A delayed message waits through a cut, and is not early.
pub async fn schedule_across_a_cut<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup.via(proxy.addr())).await;
    let at = Utc::now() + TimeDelta::milliseconds(1200);
    producer.send_at(Message::new("m"), at).await.unwrap();
    proxy.cut();
    let delivery = receive_within(RECOVERY, &mut consumer).await;
    assert!(Utc::now() >= at);
    drop(delivery.ack().await);
    Ok(())
}

/// The broker restarts under a waiting consumer.
pub async fn idle_consumer_after_a_restart<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "before").await;
    let waiting = tokio::spawn(async move {
        until::<H>(4 * RECOVERY, &mut consumer, "after").await;
    });
    cx.harness().restart_broker().await?;
    send_until_confirmed(RECOVERY, &producer, "after").await;
    within(RECOVERY, "progress after the restart", waiting).await.unwrap();
    Ok(())
}

/// The broker restarts under load: what was confirmed is received.
pub async fn restart_under_load<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let sending = tokio::spawn({
        let ledger = Arc::clone(&ledger);
        async move {
            for payload in numbered("m", 300) {
                ledger.lock().unwrap().attempted(&payload);
                let sent = producer.send(Message::new(payload.clone())).await;
                ledger.lock().unwrap().outcome(&payload, &sent);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    cx.harness().restart_broker().await?;
    drain(&ledger, &mut consumer, || sending.is_finished()).await;
    within(SOON, "300 sends", sending).await.unwrap();
    let account = ledger.lock().unwrap().check();
    assert!(account.confirmed > 50, "{account}");
    Ok(())
}

/// Somebody deletes the consumer group; the consumer goes on.
pub async fn deleted_group_recovers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "before").await;
    until::<H>(RECOVERY, &mut consumer, "before").await;
    cx.harness().delete_group(&setup).await?;
    send(&producer, "after").await;
    until::<H>(RECOVERY, &mut consumer, "after").await;
    Ok(())
}

/// … also while it waits.
pub async fn deleted_group_recovers_while_waiting<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    let waiting = tokio::spawn(async move {
        until::<H>(2 * RECOVERY, &mut consumer, "after").await;
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    cx.harness().delete_group(&setup).await?;
    send(&producer, "after").await;
    within(RECOVERY, "progress after the deletion", waiting).await.unwrap();
    Ok(())
}

/// Somebody deletes the whole queue; producer and consumer declare it again.
pub async fn deleted_queue_recovers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.leased();
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    send(&producer, "before").await;
    let delivery = receive(&mut consumer).await;
    ack(delivery).await;
    cx.harness().delete_queue(&setup).await?;
    let waiting = tokio::spawn(async move {
        until::<H>(2 * RECOVERY, &mut consumer, "after").await;
        nothing_for(Duration::from_millis(200), &mut consumer).await;
    });
    send_until_confirmed(RECOVERY, &producer, "after").await;
    within(RECOVERY, "progress after the deletion", waiting).await.unwrap();
    Ok(())
}
