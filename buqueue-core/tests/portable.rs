//! The portable layer over a scripted driver: what a real broker shows only now and then, shown every time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buqueue_core::driver::{Backend, Consumer, Control, Lease, Producer, Received};
use buqueue_core::{
    BuqueueError, Capabilities, Delivery, DlqConfig, ErrorKind, Message, MessageId, QueueBuilder,
    QueueConsumer, QueueFuture, QueueProducer, Result,
};
use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// What the driver is told to do, and what was done to it.
#[derive(Debug, Default)]
struct Script {
    fetches: Mutex<VecDeque<Fetch>>,
    fetch_calls: AtomicUsize,
    arrived: Notify,
    sent: Mutex<Vec<(String, Message)>>,
    refuse_sends: AtomicUsize,
    /// How many milliseconds a send takes.
    slow_sends: AtomicUsize,
    /// How many milliseconds the answer to an ack or a release takes, which are done at once.
    slow_settles: AtomicUsize,
    settled: Mutex<Vec<String>>,
    closed: AtomicUsize,
}

impl Script {
    fn arrive(&self, messages: impl IntoIterator<Item = (Message, u32)>) {
        self.fetches.lock().unwrap().push_back(Ok(messages.into_iter().collect()));
        self.arrived.notify_one();
    }

    fn fail(&self, kind: ErrorKind) {
        self.fetches.lock().unwrap().push_back(Err(BuqueueError::new(kind, "as scripted")));
        self.arrived.notify_one();
    }

    fn settled(&self) -> Vec<String> {
        self.settled.lock().unwrap().clone()
    }

    fn dead(&self) -> Vec<Message> {
        self.sent
            .lock()
            .unwrap()
            .iter()
            .filter(|(to, _)| to == "dead")
            .map(|(_, message)| message.clone())
            .collect()
    }
}

/// Messages with their delivery counts, or an error.
type Fetch = Result<Vec<(Message, u32)>>;

enum Scripted {}

#[derive(Debug, Clone)]
struct Config {
    queue: String,
    script: Arc<Script>,
}

#[derive(Debug)]
struct Half(Config);

impl Backend for Scripted {
    const NAME: &'static str = "scripted";
    type Config = Config;
    type Producer = Half;
    type Consumer = Half;

    fn capabilities(_: &Config) -> Capabilities {
        Capabilities::native("scripted")
    }

    fn destination(config: &Config) -> String {
        config.queue.clone()
    }

    fn redirect(config: &Config, destination: &str) -> Config {
        Config { queue: destination.to_owned(), script: Arc::clone(&config.script) }
    }

    async fn connect_producer(config: &Config) -> Result<Half> {
        Ok(Half(config.clone()))
    }

    async fn connect_consumer(config: &Config) -> Result<Half> {
        Ok(Half(config.clone()))
    }
}

impl Producer for Half {
    async fn send(&self, message: Message) -> Result<MessageId> {
        let refuse = &self.0.script.refuse_sends;
        if refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(BuqueueError::new(ErrorKind::ConnectionLost, "as scripted"));
        }
        // How long the answer takes.
        let slow = u64::try_from(self.0.script.slow_sends.load(Ordering::SeqCst)).unwrap();
        // The broker has the message before its answer is back.
        self.0.script.sent.lock().unwrap().push((self.0.queue.clone(), message));
        tokio::time::sleep(Duration::from_millis(slow)).await;
        Ok(MessageId::from("sent"))
    }

    async fn send_at(&self, message: Message, _: DateTime<Utc>) -> Result<MessageId> {
        self.send(message).await
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        let mut outcomes = Vec::new();
        for message in messages {
            outcomes.push(self.send(message).await);
        }
        outcomes
    }
}

impl Consumer for Half {
    async fn fetch(&mut self, _: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let script = Arc::clone(&self.0.script);
        script.fetch_calls.fetch_add(1, Ordering::SeqCst);
        let until = Instant::now() + wait;
        loop {
            let next = script.fetches.lock().unwrap().pop_front();
            match next {
                Some(Ok(messages)) => {
                    for (message, delivery_count) in messages {
                        let lease = Arc::new(One { message, script: Arc::clone(&script) });
                        out.push(Received { lease, index: 0, delivery_count, first_failed_at: None });
                    }
                    return Ok(());
                }
                Some(Err(error)) => return Err(error),
                None if wait.is_zero() => return Ok(()),
                None => {
                    if tokio::time::timeout_at(until, script.arrived.notified()).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(Half(self.0.clone()))
    }
}

impl Control for Half {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        self.0.script.closed.fetch_add(1, Ordering::SeqCst);
        QueueFuture::ready(Ok(()))
    }
}

struct One {
    message: Message,
    script: Arc<Script>,
}

impl One {
    fn note(&self, what: &str) -> QueueFuture<'_, Result<()>> {
        let payload = String::from_utf8_lossy(self.message.payload());
        self.script.settled.lock().unwrap().push(format!("{what} {payload}"));
        QueueFuture::ready(Ok(()))
    }

    /// Begun by the first poll.
    fn note_slowly(&self, what: &'static str) -> QueueFuture<'_, Result<()>> {
        let slow = u64::try_from(self.script.slow_settles.load(Ordering::SeqCst)).unwrap();
        if slow == 0 {
            return self.note(what);
        }
        QueueFuture::pending(async move {
            let outcome = self.note(what).await;
            tokio::time::sleep(Duration::from_millis(slow)).await;
            outcome
        })
    }
}

impl Lease for One {
    fn message(&self, _: u32) -> &Message {
        &self.message
    }

    fn message_id(&self, _: u32) -> MessageId {
        MessageId::from("one")
    }

    fn ack(&self, _: u32) -> QueueFuture<'_, Result<()>> {
        self.note_slowly("ack")
    }

    fn nack(&self, _: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        self.note(&format!("nack({})", after.as_millis()))
    }

    fn release(&self, _: u32) -> QueueFuture<'_, Result<()>> {
        self.note_slowly("release")
    }

    fn extend(&self, _: u32, _: Duration) -> QueueFuture<'_, Result<()>> {
        self.note("extend")
    }

    fn abandon(&self, _: u32) {
        drop(self.note("abandon"));
    }
}

fn builder(script: &Arc<Script>) -> QueueBuilder<Scripted> {
    QueueBuilder::new(Config { queue: "main".to_owned(), script: Arc::clone(script) })
}

fn with_dlq(script: &Arc<Script>, max_receive_count: u32) -> QueueBuilder<Scripted> {
    builder(script).dead_letter_queue(DlqConfig { destination: "dead".to_owned(), max_receive_count })
}

fn one(payload: &'static str) -> (Message, u32) {
    (Message::new(payload), 1)
}

#[tokio::test(start_paused = true)]
async fn transient_errors_back_off_and_pass() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    for _ in 0..20 {
        script.fail(ErrorKind::ConnectionLost);
    }
    script.arrive([one("a")]);
    let start = Instant::now();
    let delivery = consumer.receive().await.unwrap();
    assert_eq!(delivery.payload(), "a");
    // Twenty failures: 50 ms doubling to 5 s, at least half of each.
    assert!(start.elapsed() > Duration::from_secs(30), "{:?}", start.elapsed());
    delivery.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_surface_at_once() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.fail(ErrorKind::AuthenticationFailed);
    let error = consumer.receive().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed);
    assert_eq!((error.backend(), error.operation()), ("scripted", "receive"));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_ends_a_graceful_loop_and_is_remembered() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).make_dynamic().build_consumer().await.unwrap();
    script.fail(ErrorKind::InvalidConfig);
    assert!(consumer.receive_graceful().await.is_none());
    assert_eq!(script.closed.load(Ordering::SeqCst), 1);
    assert_eq!(consumer.receive().await.unwrap_err().kind, ErrorKind::InvalidConfig);
    assert_eq!(consumer.receive().await.unwrap_err().kind, ErrorKind::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_stream_backs_off_after_an_error_item() {
    let script = Arc::new(Script::default());
    let mut stream = builder(&script).build_consumer().await.unwrap().into_stream();
    for _ in 0..5 {
        script.fail(ErrorKind::AuthenticationFailed);
    }
    let start = Instant::now();
    for _ in 0..5 {
        assert!(next(&mut stream).await.unwrap().is_err());
    }
    assert!(start.elapsed() > Duration::from_millis(300), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_empty_handed_driver_does_not_hold_the_thread() {
    // Fetches that come back at once and empty: the consumer must let others run, and must see the stop.
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    let shutdown = consumer.shutdown_handle();
    for _ in 0..10_000 {
        script.arrive([]);
    }
    let receiving = tokio::spawn(async move { consumer.receive().await.map(drop) });
    tokio::task::yield_now().await;
    shutdown.shutdown().await;
    let error = receiving.await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::ShuttingDown);
    assert!(script.fetch_calls.load(Ordering::SeqCst) < 10_000);
}

#[tokio::test(start_paused = true)]
async fn exhausted_messages_never_reach_user_code() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 3).build_consumer().await.unwrap();
    script.arrive([(Message::new("poison").with_header("h", "v"), 4), one("good")]);
    let delivery = consumer.receive().await.unwrap();
    assert_eq!(delivery.payload(), "good");
    delivery.ack().await.unwrap();
    script.arrive([one("next")]);
    consumer.receive().await.unwrap().ack().await.unwrap();
    let dead = script.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].header("h"), dead[0].header("buqueue-dlq-attempts")), (Some("v"), Some("3")));
    assert!(script.settled().contains(&"ack poison".to_owned()));
    assert_eq!(consumer.stats().dead_lettered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failing_dead_letter_queue_holds_nobody_up_and_loses_nothing() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 1).build_consumer().await.unwrap();
    script.refuse_sends.store(2, Ordering::SeqCst);
    script.arrive([(Message::new("poison"), 2)]);
    script.arrive([one("good")]);
    assert_eq!(consumer.receive().await.unwrap().payload(), "good");
    assert_eq!(script.settled()[1], "nack(1000) poison", "kept in its queue, for later");
    script.arrive([one("failing")]);
    let error = consumer.receive().await.unwrap().nack().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ConnectionLost);
    assert!(script.settled().contains(&"nack(1000) failing".to_owned()));
    assert!(script.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_receive_does_not_publish_a_dead_letter_twice() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 1).build_consumer().await.unwrap();
    script.slow_sends.store(100, Ordering::SeqCst);
    script.arrive([(Message::new("poison"), 2)]);
    for _ in 0..20 {
        // Each try is given up long before the dead letter queue answers.
        assert!(timeout(Duration::from_millis(9), consumer.receive()).await.is_err());
    }
    script.arrive([one("good")]);
    consumer.receive().await.unwrap().ack().await.unwrap();
    assert_eq!(script.dead().len(), 1);
    assert_eq!(script.settled(), ["extend poison", "ack poison", "ack good"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_dropped_while_it_is_acked_is_settled_once() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 1).build_consumer().await.unwrap();
    script.slow_settles.store(1000, Ordering::SeqCst);
    script.arrive([(Message::new("poison"), 2)]);
    while script.settled().len() < 2 {
        assert!(timeout(Duration::from_millis(9), consumer.receive()).await.is_err());
    }
    drop(consumer);
    assert_eq!(script.settled(), ["extend poison", "ack poison"]);
    assert_eq!(script.dead().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nacks_become_dead_letters_at_the_limit() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 2).build_consumer().await.unwrap();
    script.arrive([(Message::new("a"), 1)]);
    script.arrive([(Message::new("a"), 2)]);
    consumer.receive().await.unwrap().nack_after(Duration::from_millis(70)).await.unwrap();
    consumer.receive().await.unwrap().nack_after(Duration::from_millis(70)).await.unwrap();
    assert_eq!(script.settled(), ["nack(70) a", "extend a", "ack a"]);
    assert_eq!(script.dead().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn dead_letter_without_a_queue_is_unsupported_and_keeps_the_message() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.arrive([one("a")]);
    let error = consumer.receive().await.unwrap().dead_letter("no").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert_eq!(script.settled(), ["nack(0) a"]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_what_is_in_flight_and_not_longer_than_it_may() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).drain_timeout(Duration::from_secs(7)).build_consumer().await.unwrap();
    script.arrive([one("a")]);
    script.arrive([one("b")]);
    let first = consumer.receive().await.unwrap();
    let held = consumer.receive().await.unwrap();
    let shutdown = consumer.shutdown_handle();
    let start = Instant::now();
    let waiting = tokio::spawn(async move { shutdown.shutdown().await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    first.ack().await.unwrap();
    assert!(!waiting.is_finished());
    waiting.await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(7));
    assert_eq!(script.closed.load(Ordering::SeqCst), 1);
    held.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_need_a_poll() {
    let script = Arc::new(Script::default());
    let mut stream = builder(&script).build_consumer().await.unwrap().into_stream();
    let shutdown = stream.shutdown_handle();
    // Half a fetch is held in the stream.
    assert!(timeout(Duration::from_millis(10), next(&mut stream)).await.is_err());
    shutdown.shutdown().await;
    shutdown.shutdown().await;
    assert!(shutdown.is_shutting_down());
    assert!(next(&mut stream).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_is_given_back() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.arrive([one("a"), one("b"), one("c")]);
    // The driver brought more than was asked for; one is handed out, two wait in the consumer.
    let delivery = consumer.receive().await.unwrap();
    delivery.ack().await.unwrap();
    let shutdown = consumer.shutdown_handle();
    let stopping = tokio::spawn(async move { shutdown.shutdown().await });
    tokio::task::yield_now().await;
    assert!(consumer.receive_graceful().await.is_none());
    stopping.await.unwrap();
    let mut settled = script.settled();
    settled.sort();
    assert_eq!(settled, ["ack a", "release b", "release c"]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_consumer_gives_back_what_it_holds() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.arrive([one("a"), one("b")]);
    let delivery = consumer.receive().await.unwrap();
    drop(consumer);
    assert_eq!(script.settled(), ["release b"], "it was no attempt");
    delivery.ack().await.unwrap();
    assert_eq!(script.settled(), ["release b", "ack a"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_given_back_is_given_back_once() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.arrive([one("a"), one("b"), one("c")]);
    consumer.receive().await.unwrap().ack().await.unwrap();
    script.slow_settles.store(1000, Ordering::SeqCst);
    let shutdown = consumer.shutdown_handle();
    let stopping = tokio::spawn(async move { shutdown.shutdown().await });
    tokio::task::yield_now().await;
    assert!(timeout(Duration::from_millis(9), consumer.receive_graceful()).await.is_err());
    drop(consumer);
    stopping.await.unwrap();
    // The rest goes back in the background.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut settled = script.settled();
    settled.sort();
    assert_eq!(settled, ["ack a", "release b", "release c"]);
}

#[tokio::test(start_paused = true)]
async fn dropped_deliveries_are_abandoned_counted_and_leave_the_flight() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.arrive([one("a")]);
    let delivery = consumer.receive().await.unwrap();
    assert_eq!(consumer.stats().in_flight, 1);
    let panicked = tokio::spawn(async move {
        let _held = delivery;
        panic!("a handler that fails badly");
    });
    assert!(panicked.await.is_err());
    assert_eq!(script.settled(), ["abandon a"]);
    let stats = consumer.stats();
    assert_eq!((stats.in_flight, stats.abandoned), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_settle_that_is_never_polled_does_not_settle() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.arrive([one("a")]);
    drop(consumer.receive().await.unwrap().ack());
    assert_eq!(script.settled(), ["abandon a"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_with_invalid_messages_sends_the_others_and_tells_which() {
    let script = Arc::new(Script::default());
    let producer = builder(&script).build_producer().await.unwrap();
    let messages = vec![
        Message::new("a"),
        Message::new("b").with_header("no good", ""),
        Message::new("c"),
        Message::new("d").with_header("buqueue-mine", ""),
    ];
    let error = producer.send_batch(messages).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PartialBatch { failed: 2, total: 4 });
    let ok: Vec<bool> = error.outcomes().iter().map(Result::is_ok).collect();
    assert_eq!(ok, [true, false, true, false]);
    assert!(!error.is_transient());
    let sent: Vec<_> =
        script.sent.lock().unwrap().iter().map(|(_, message)| message.payload().clone()).collect();
    assert_eq!(sent, ["a", "c"]);
    assert!(producer.send_batch(Vec::new()).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn static_and_dynamic_behave_alike() {
    let script = Arc::new(Script::default());
    let (producer, mut consumer) = with_dlq(&script, 1).make_dynamic().build_pair().await.unwrap();
    producer.send(Message::new("sent")).await.unwrap();
    script.arrive([one("a")]);
    consumer.receive().await.unwrap().nack().await.unwrap();
    assert_eq!(script.dead().len(), 1, "the dead letter queue survives make_dynamic");
    assert!(consumer.try_receive().await.unwrap().is_none());
    assert_eq!(consumer.receive_batch(0).await.unwrap_err().kind, ErrorKind::InvalidConfig);
    script.arrive([one("b")]);
    let mut stream = consumer.into_stream();
    next(&mut stream).await.unwrap().unwrap().ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ack_all_acks_every_run_of_leases() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).build_consumer().await.unwrap();
    script.arrive([one("a"), one("b"), one("c")]);
    let batch = consumer.receive_batch(10).await.unwrap();
    assert_eq!(batch.len(), 3);
    Delivery::ack_all(batch).await.unwrap();
    assert_eq!(script.settled(), ["ack a", "ack b", "ack c"]);
    assert_eq!(consumer.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_polled_does_nothing() {
    let script = Arc::new(Script::default());
    let (producer, mut consumer) = builder(&script).make_dynamic().build_pair().await.unwrap();
    script.arrive([one("a"), one("b")]);
    consumer.receive().await.unwrap().ack().await.unwrap();
    // "b" waits in the consumer and could be handed out at once.
    drop(consumer.receive());
    drop(consumer.receive_graceful());
    drop(producer.send(Message::new("unsent")));
    assert!(script.sent.lock().unwrap().is_empty());
    assert_eq!(script.settled(), ["ack a"]);
    assert_eq!(consumer.receive().await.unwrap().payload(), "b");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_leave_while_messages_keep_coming() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 1).build_consumer().await.unwrap();
    script.slow_sends.store(5, Ordering::SeqCst);
    script.arrive([(Message::new("poison"), 2)]);
    for _ in 0..50 {
        script.arrive([one("good")]);
    }
    for handled in 0..50 {
        consumer.receive().await.unwrap().ack().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(handled < 20 || script.dead().len() == 1, "one dead letter, and not only when all is quiet");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_queue_that_hangs_holds_up_neither_receiving_nor_stopping() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 1).build_consumer().await.unwrap();
    script.slow_sends.store(1_000_000_000, Ordering::SeqCst);
    script.arrive([(Message::new("poison"), 2)]);
    assert!(consumer.try_receive().await.unwrap().is_none());
    script.arrive([one("a"), one("b")]);
    consumer.receive().await.unwrap().ack().await.unwrap();
    let shutdown = consumer.shutdown_handle();
    let start = Instant::now();
    let stopping = tokio::spawn(async move { shutdown.shutdown().await });
    tokio::task::yield_now().await;
    assert!(consumer.receive_graceful().await.is_none());
    stopping.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(script.settled().contains(&"release b".to_owned()), "{:?}", script.settled());
    drop(consumer);
    assert!(script.settled().contains(&"abandon poison".to_owned()), "{:?}", script.settled());
}

#[tokio::test(start_paused = true)]
async fn more_dead_letters_than_can_wait_do_not_pile_up() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 1).build_consumer().await.unwrap();
    script.slow_sends.store(1_000_000_000, Ordering::SeqCst);
    for _ in 0..1000 {
        script.arrive([(Message::new("poison"), 2)]);
    }
    assert!(timeout(Duration::from_secs(60), consumer.receive()).await.is_err());
    assert!(script.fetch_calls.load(Ordering::SeqCst) < 200);
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_end_is_no_panic() {
    let script = Arc::new(Script::default());
    let mut consumer = builder(&script).drain_timeout(Duration::MAX).build_consumer().await.unwrap();
    script.arrive([one("a")]);
    let delivery = consumer.receive().await.unwrap();
    let shutdown = consumer.shutdown_handle();
    let stopping = tokio::spawn(async move { shutdown.shutdown().await });
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    assert!(!stopping.is_finished());
    delivery.ack().await.unwrap();
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_and_a_message_in_one_moment_lose_nothing() {
    let script = Arc::new(Script::default());
    let mut consumer = with_dlq(&script, 1).build_consumer().await.unwrap();
    script.arrive([one("held")]);
    let held = consumer.receive().await.unwrap();
    let shutdown = consumer.shutdown_handle();
    let receiving = tokio::spawn(async move {
        let outcome = consumer.receive().await.map(drop);
        (consumer, outcome)
    });
    tokio::task::yield_now().await;
    let stopping = tokio::spawn(async move { shutdown.shutdown().await });
    script.arrive([one("late")]);
    let (consumer, outcome) = receiving.await.unwrap();
    if outcome.is_err() {
        drop(consumer);
        assert!(!script.settled().iter().any(|what| what.contains("abandon") || what.contains("nack")));
    }
    held.ack().await.unwrap();
    stopping.await.unwrap();
}

#[test]
fn everything_public_can_cross_threads() {
    fn sendable<T: Send>(_: &T) {}
    fn shared<T: Send + Sync>() {}
    shared::<Delivery>();
    shared::<Box<dyn QueueProducer>>();
    fn futures(mut consumer: buqueue_core::Consumer<Scripted>, producer: &buqueue_core::Producer<Scripted>) {
        sendable(&producer.send(Message::default()));
        sendable(&producer.send_at(Message::default(), Utc::now()));
        sendable(&producer.send_batch(Vec::new()));
        sendable(&consumer.receive());
        sendable(&consumer.receive_batch(1));
        sendable(&consumer.try_receive());
        sendable(&consumer.receive_graceful());
        sendable(&consumer.shutdown_handle().shutdown());
        sendable(&consumer.into_stream());
    }
    let _ = futures;
}

async fn next(stream: &mut buqueue_core::DeliveryStream) -> Option<Result<Delivery>> {
    use futures_core::Stream;
    use std::pin::Pin;
    std::future::poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}
