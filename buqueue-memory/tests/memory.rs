//! What only the in-memory backend has: consumers that share a clock, wake each other and take from each other.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::Duration;

use buqueue_core::{Consumer, Delivery, ErrorKind, Message, Producer, QueueProducer};
use buqueue_memory::{MemoryBackend, MemoryConfig};
use bytes::Bytes;
use chrono::Utc;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};

type Pair = (Producer<MemoryBackend>, Consumer<MemoryBackend>);

const SOON: Duration = Duration::from_secs(10);

async fn pair(config: &MemoryConfig) -> Pair {
    MemoryBackend::builder(config.clone()).build_pair().await.unwrap()
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn number(delivery: &Delivery) -> u32 {
    u32::from_be_bytes(delivery.payload()[..].try_into().unwrap())
}

/// Tokio gives a task a budget of operations between two turns, and timers refuse to be polled without. A consumer
/// that starts to wait with its budget used up must still wake.
#[tokio::test]
async fn a_wait_that_begins_without_budget_ends_in_time() {
    let (producer, mut consumer) = pair(&MemoryConfig::default()).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1000);
    for operations in 120..135 {
        let due = Utc::now() + Duration::from_millis(30);
        producer.send_at(Message::new("later"), due).await.unwrap();
        tokio::task::yield_now().await;
        for _ in 0..operations {
            sender.send(()).await.unwrap();
        }
        timeout(SOON, consumer.receive()).await.unwrap().unwrap().ack().await.unwrap();
        while receiver.try_recv().is_ok() {}
    }
}

/// A stream that was polled once and is held has taken a place among those who wait, and perhaps a wake.
#[tokio::test]
async fn a_held_stream_holds_up_neither_messages_nor_schedules() {
    let config = MemoryConfig::default();
    let (producer, held) = pair(&config).await;
    let mut held = held.into_stream();
    let once = futures_core::Stream::poll_next(Pin::new(&mut held), &mut Context::from_waker(Waker::noop()));
    assert!(once.is_pending());
    let mut consumer = MemoryBackend::builder(config).build_consumer().await.unwrap();
    let receiving = tokio::spawn(async move {
        for _ in 0..2 {
            consumer.receive().await.unwrap().ack().await.unwrap();
        }
    });
    sleep(Duration::from_millis(20)).await;
    producer.send(Message::new("now")).await.unwrap();
    producer.send_at(Message::new("later"), Utc::now() + Duration::from_millis(300)).await.unwrap();
    timeout(SOON, receiving).await.unwrap().unwrap();
    drop(held);
}

/// The same for a producer that waits for space.
#[tokio::test]
async fn a_held_send_does_not_hold_up_another() {
    let (producer, mut consumer) = pair(&MemoryConfig { capacity: 1, ..MemoryConfig::default() }).await;
    producer.send(Message::new("full")).await.unwrap();
    let mut held = pin!(producer.send(Message::new("held")));
    assert!(held.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let other = producer.clone();
    let sending = tokio::spawn(async move { other.send(Message::new("other")).await.unwrap() });
    tokio::task::yield_now().await;
    consumer.receive().await.unwrap().ack().await.unwrap();
    timeout(SOON, sending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_full_queue_makes_senders_wait_and_lets_them_go_on() {
    let (producer, mut consumer) = pair(&MemoryConfig { capacity: 4, ..MemoryConfig::default() }).await;
    for _ in 0..4 {
        producer.send(Message::new("")).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(30), producer.send(Message::new(""))).await.is_err());
    let batch =
        tokio::spawn(async move { producer.send_batch(vec![Message::new(""); 20]).await.unwrap().len() });
    for _ in 0..24 {
        timeout(SOON, consumer.receive()).await.unwrap().unwrap().ack().await.unwrap();
    }
    assert_eq!(batch.await.unwrap(), 20);
    assert!(consumer.try_receive().await.unwrap().is_none());
}

/// The lease of a delivery is that of the consumer that has it, also where it came out of another's hand.
#[tokio::test(start_paused = true)]
async fn a_message_taken_from_another_consumer_has_the_takers_lease() {
    let short = MemoryConfig { lease: Duration::from_millis(50), ..MemoryConfig::default() };
    let (producer, mut one) = pair(&short).await;
    let long = MemoryConfig { lease: Duration::from_secs(60), ..short };
    let mut other = MemoryBackend::builder(long).build_consumer().await.unwrap();
    producer.send_batch(vec![Message::new(""); 2]).await.unwrap();
    let first = one.receive().await.unwrap();
    let second = other.receive().await.unwrap();
    sleep(Duration::from_millis(120)).await;
    assert_eq!(one.receive().await.unwrap().delivery_count(), 2, "the short lease has ended");
    assert_eq!(first.ack().await.unwrap_err().kind, ErrorKind::LeaseExpired);
    second.ack().await.unwrap();
}

/// What a busy consumer took ahead goes to others before what is younger, once it has been lying for a while.
#[tokio::test(start_paused = true)]
async fn messages_taken_ahead_are_not_left_behind() {
    let config = MemoryConfig::default();
    let (producer, mut busy) = pair(&config).await;
    let mut other = MemoryBackend::builder(config).build_consumer().await.unwrap();
    for i in 0..64_u32 {
        producer.send(Message::new(i.to_be_bytes().to_vec())).await.unwrap();
    }
    let held = busy.receive().await.unwrap();
    sleep(Duration::from_millis(200)).await;
    for i in 64..100_u32 {
        producer.send(Message::new(i.to_be_bytes().to_vec())).await.unwrap();
    }
    for expected in 1..100 {
        let delivery = other.receive().await.unwrap();
        assert_eq!((number(&delivery), delivery.delivery_count()), (expected, 1));
        delivery.ack().await.unwrap();
    }
    held.ack().await.unwrap();
}

/// What a stopped consumer took ahead goes back in order, and has not been an attempt.
#[tokio::test(start_paused = true)]
async fn messages_taken_ahead_go_back_in_order() {
    let config = MemoryConfig::default();
    let (producer, mut stopped) = pair(&config).await;
    for i in 0..100_u32 {
        producer.send(Message::new(i.to_be_bytes().to_vec())).await.unwrap();
    }
    stopped.receive().await.unwrap().ack().await.unwrap();
    stopped.shutdown_handle().shutdown().await;
    let mut next = MemoryBackend::builder(config).build_consumer().await.unwrap();
    for expected in 1..100 {
        let delivery = next.receive().await.unwrap();
        assert_eq!((number(&delivery), delivery.delivery_count()), (expected, 1));
        delivery.ack().await.unwrap();
    }
}

/// A payload may run code of its owner when it is dropped, and that code may use the queue.
#[test]
fn a_payload_that_sends_when_it_is_dropped_does_not_lock_up() {
    struct Sends(Producer<MemoryBackend>);
    impl AsRef<[u8]> for Sends {
        fn as_ref(&self) -> &[u8] {
            b"payload"
        }
    }
    impl Drop for Sends {
        fn drop(&mut self) {
            let sent = QueueProducer::send(&self.0, Message::new("from a drop")).into_ready();
            assert!(sent.is_ok());
        }
    }
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        current_thread().block_on(async {
            let (producer, mut consumer) = pair(&MemoryConfig::default()).await;
            producer.send(Message::new(Bytes::from_owner(Sends(producer.clone())))).await.unwrap();
            for _ in 0..2 {
                consumer.receive().await.unwrap().ack().await.unwrap();
                producer.send(Message::new("next")).await.unwrap();
            }
            done.send(()).unwrap();
        });
    });
    finished.recv_timeout(Duration::from_secs(10)).unwrap();
}

/// A consumer may be made on one runtime and used on another.
#[test]
fn a_consumer_moves_to_another_runtime() {
    let first = current_thread();
    let (producer, mut consumer) = first.block_on(async {
        let (producer, mut consumer) = pair(&MemoryConfig::default()).await;
        // It waits once here, and sets its timer.
        assert!(timeout(Duration::from_millis(10), consumer.receive()).await.is_err());
        (producer, consumer)
    });
    drop(first);
    current_thread().block_on(async {
        let start = Instant::now();
        producer.send_at(Message::new("later"), Utc::now() + Duration::from_millis(50)).await.unwrap();
        timeout(SOON, consumer.receive()).await.unwrap().unwrap().ack().await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(49));
    });
}

/// What nobody has looked at since is counted as it is now, and counting moves nothing.
#[tokio::test(start_paused = true)]
async fn what_has_become_due_or_lost_its_lease_is_ready() {
    let config = MemoryConfig { lease: Duration::from_secs(10), ..MemoryConfig::default() };
    let (producer, mut consumer) = pair(&config).await;
    let counted = async || {
        let stats = producer.queue_stats().await.unwrap();
        (stats.ready, stats.in_flight.unwrap(), stats.scheduled.unwrap())
    };
    producer.send_batch((0..5).map(|_| Message::new("m")).collect()).await.unwrap();
    for seconds in [5, 3600] {
        producer.send_at(Message::new("later"), Utc::now() + Duration::from_secs(seconds)).await.unwrap();
    }
    assert_eq!(counted().await, (5, 0, 2));
    let first = consumer.receive().await.unwrap();
    // The other four were taken ahead.
    assert_eq!(counted().await, (0, 5, 2));
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(counted().await, (1, 5, 1));
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(counted().await, (2, 4, 1));
    assert_eq!(first.ack().await.map_err(|error| error.kind), Ok(()), "nobody has taken it");
    assert_eq!(counted().await, (1, 4, 1));
    let monitor = consumer.monitor();
    consumer.receive().await.unwrap().nack_after(Duration::from_secs(1)).await.unwrap();
    drop(consumer);
    assert_eq!(counted().await, (4, 0, 2));
    assert_eq!(monitor.queue_stats().await.unwrap(), producer.queue_stats().await.unwrap());
}
