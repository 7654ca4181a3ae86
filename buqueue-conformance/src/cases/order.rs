//! Order: promise 16.

use std::collections::BTreeMap;

use buqueue_core::{Delivery, Message};

use crate::support::{SOON, ack, nack, receive, send, send_all, take, text, within};
use crate::{Ctx, Harness, Outcome};

const KEYS: usize = 16;
const EACH: usize = 50;

fn message(key: usize, number: usize) -> Message {
    Message::new(format!("{key} {number}")).with_routing_key(format!("key-{key}"))
}

/// Notes a message; it must be the next of its key.
fn note(next: &mut BTreeMap<String, usize>, delivery: &Delivery) {
    let text = text(delivery);
    let (key, number) = text.split_once(' ').unwrap();
    let expected = next.entry(key.to_owned()).or_default();
    assert_eq!(number.parse(), Ok(*expected), "key {key}");
    *expected += 1;
}

/// Sixteen keys, fifty messages each, sent one by one.
pub async fn per_key<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for number in 0..EACH {
        for key in 0..KEYS {
            send(&producer, message(key, number)).await;
        }
    }
    let mut next = BTreeMap::new();
    for _ in 0..KEYS * EACH {
        let delivery = receive(&mut consumer).await;
        note(&mut next, &delivery);
        ack(delivery).await;
    }
    Ok(())
}

/// Sent and received in batches.
pub async fn per_key_in_batches<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    for half in 0..2 {
        let numbers = half * EACH / 2..(half + 1) * EACH / 2;
        send_all(&producer, numbers.flat_map(|number| (0..KEYS).map(move |key| message(key, number)))).await;
    }
    let mut next = BTreeMap::new();
    while next.values().sum::<usize>() < KEYS * EACH {
        let batch = within(SOON, "receive_batch", consumer.receive_batch(33)).await.unwrap();
        batch.iter().for_each(|delivery| note(&mut next, delivery));
        within(SOON, "ack_all", Delivery::ack_all(batch)).await.unwrap();
    }
    Ok(())
}

/// Acked out of order, received in order.
pub async fn acks_do_not_matter<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send_all(&producer, (0..40).map(|number| message(0, number))).await;
    let mut next = BTreeMap::new();
    let mut held: Vec<Delivery> = Vec::new();
    for _ in 0..40 {
        let delivery = receive(&mut consumer).await;
        note(&mut next, &delivery);
        held.push(delivery);
        if held.len() == 4 {
            while let Some(delivery) = held.pop() {
                ack(delivery).await;
            }
        }
    }
    Ok(())
}

/// A message in flight, or failing, of one key holds up no other key.
pub async fn one_key_does_not_hold_up_others<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, message(0, 0)).await;
    let held = receive(&mut consumer).await;
    send_all(&producer, (1..KEYS).map(|key| message(key, 0))).await;
    assert_eq!(take(&mut consumer, KEYS - 1).await.len(), KEYS - 1);
    nack(held).await;
    assert_eq!(take(&mut consumer, 1).await, ["0 0"]);
    Ok(())
}
