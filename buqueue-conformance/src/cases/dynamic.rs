//! Trait objects: promise 4.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::{Delivery, ErrorKind, Message, QueueConsumer, QueueProducer};
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::Instant;

use crate::support::{SOON, ack, nack, numbered, receive, send, send_all, sorted, take, text, within};
use crate::{Ctx, Harness, Outcome};

async fn pair<H: Harness>(cx: &Ctx<H>) -> (Box<dyn QueueProducer>, Box<dyn QueueConsumer>) {
    cx.builder(&cx.setup()).make_dynamic().build_pair().await.unwrap()
}

/// A dynamic pair sends and receives in every way.
pub async fn pair_works<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = pair(cx).await;
    let found = within(SOON, "try_receive", consumer.try_receive()).await.unwrap();
    assert!(found.is_none());
    send(&*producer, "one").await;
    send_all(&*producer, ["two", "three"]).await;
    producer.send_at(Message::new("four"), chrono::Utc::now()).await.map(drop).or_else(unsupported).unwrap();
    let four = usize::from(cx.capabilities().require(buqueue_core::Feature::ScheduledDelivery).is_ok());
    let first = receive(&mut *consumer).await;
    let mut seen = vec![text(&first)];
    ack(first).await;
    seen.extend(take(&mut *consumer, 2 + four).await);
    let expected = if four == 1 { vec!["four", "one", "three", "two"] } else { vec!["one", "three", "two"] };
    assert_eq!(sorted(seen), expected);
    assert_eq!(producer.capabilities(), consumer.capabilities());
    assert_eq!(*producer.capabilities(), cx.capabilities());
    Ok(())
}

fn unsupported(error: buqueue_core::BuqueueError) -> buqueue_core::Result<()> {
    if error.kind == ErrorKind::Unsupported { Ok(()) } else { Err(error) }
}

/// The halves can be built apart.
pub async fn halves_work<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut consumer = cx.builder(&setup).make_dynamic().build_consumer().await.unwrap();
    let producer = cx.builder(&setup).make_dynamic().build_producer().await.unwrap();
    send(&*producer, "m").await;
    assert_eq!(take(&mut *consumer, 1).await, ["m"]);
    Ok(())
}

/// The dead letter queue is kept.
pub async fn keeps_the_dead_letter_queue<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut dead = cx.builder(&setup.dlq()).make_dynamic().build_consumer().await.unwrap();
    let built = cx.builder_with_dlq(&setup, 2).make_dynamic().build_pair().await;
    let (producer, mut consumer) = built.unwrap();
    send(&*producer, "m").await;
    for count in 1..=2 {
        let delivery = receive(&mut *consumer).await;
        assert_eq!(delivery.delivery_count(), count);
        nack(delivery).await;
    }
    let letter = receive(&mut *dead).await;
    within(SOON, "redrive", letter.redrive(&*producer)).await.unwrap();
    assert_eq!(take(&mut *consumer, 1).await, ["m"]);
    Ok(())
}

/// The drain timeout is kept.
pub async fn keeps_the_drain_timeout<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let drain = Duration::from_millis(300);
    let builder = cx.builder(&cx.setup()).drain_timeout(drain).make_dynamic();
    let (producer, mut consumer) = builder.build_pair().await.unwrap();
    send(&*producer, "m").await;
    let held = receive(&mut *consumer).await;
    let start = Instant::now();
    within(drain + SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    assert!(start.elapsed() >= drain);
    ack(held).await;
    assert!(within(SOON, "the end", consumer.receive_graceful()).await.is_none());
    Ok(())
}

/// A boxed consumer becomes a stream.
pub async fn becomes_a_stream<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, consumer) = pair(cx).await;
    send_all(&*producer, numbered("m", 5)).await;
    let stream = consumer.into_stream();
    let deliveries: Vec<Delivery> = within(SOON, "five items", stream.take(5).try_collect()).await.unwrap();
    assert_eq!(sorted(deliveries.iter().map(text).collect()), numbered("m", 5));
    within(SOON, "ack_all", Delivery::ack_all(deliveries)).await.unwrap();
    Ok(())
}

/// Producers can be shared behind an `Arc`, and used from generic code.
pub async fn shared_behind_an_arc<H: Harness>(cx: &Ctx<H>) -> Outcome {
    async fn generic(producer: impl QueueProducer, text: &'static str) {
        producer.send(Message::new(text)).await.unwrap();
    }
    let (producer, mut consumer) = pair(cx).await;
    let shared: Arc<dyn QueueProducer> = Arc::from(producer);
    let clone = Arc::clone(&shared);
    tokio::spawn(async move { generic(clone, "from a task").await }).await.unwrap();
    generic(shared, "from here").await;
    assert_eq!(sorted(take(&mut *consumer, 2).await), ["from a task", "from here"]);
    Ok(())
}

/// Every future of the public traits and types may move between threads.
pub async fn futures_are_send<H: Harness>(cx: &Ctx<H>) -> Outcome {
    fn moves<T: Send>(future: T) -> T {
        future
    }
    let (producer, mut consumer) = moves(cx.builder(&cx.setup()).build_pair()).await.unwrap();
    moves(producer.send(Message::new("m"))).await.unwrap();
    moves(producer.send_batch(vec![Message::new("m")])).await.unwrap();
    drop(moves(producer.send_at(Message::new("m"), chrono::Utc::now())));
    let first = within(SOON, "receive", moves(consumer.receive())).await.unwrap();
    moves(first.extend_visibility(Duration::from_secs(1))).await.unwrap();
    moves(first.ack()).await.unwrap();
    let batch = within(SOON, "receive_batch", moves(consumer.receive_batch(1))).await.unwrap();
    moves(Delivery::ack_all(batch)).await.unwrap();
    drop(moves(consumer.try_receive()));
    drop(moves(consumer.receive_graceful()));
    within(SOON, "shutdown", moves(consumer.shutdown_handle().shutdown())).await;
    moves(producer.close()).await.unwrap();
    Ok(())
}
