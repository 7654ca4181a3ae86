//! The in-memory backend beside channels and peers: interleaved rounds in rotating order, ratios of medians.
//!
//! `memory [--quick] [throughput|latency|depth|heap|schedule|consumers|overhead]…`

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use buqueue_bench::{
    Counting, Sample, Tally, allocations, count_allocations, live_bytes, measure, median, table,
};
use buqueue_core::{Delivery, Message, QueueConsumer, QueueProducer};
use buqueue_memory::{MemoryBackend, MemoryConfig};
use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PAYLOAD: usize = 100;
const BATCH: usize = 100;

fn payload(number: u64) -> Vec<u8> {
    let mut payload = vec![0; PAYLOAD];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

fn number(payload: &[u8]) -> u64 {
    payload[..8].try_into().map(u64::from_le_bytes).expect("a payload carries its number")
}

#[derive(Clone, Copy)]
struct Shape {
    producers: usize,
    consumers: usize,
    batch: usize,
    messages: usize,
}

impl Shape {
    /// The numbers that one producer sends.
    fn share(self, producer: usize) -> std::ops::Range<u64> {
        let each = self.messages / self.producers;
        (producer * each) as u64..((producer + 1) * each) as u64
    }
}

macro_rules! run {
    ($shape:expr, $tally:ident, produce: |$share:ident, $p:ident| $produce:expr, consume: |$c:ident| $consume:expr) => {{
        let shape: Shape = $shape;
        let tallies: Vec<Arc<Tally>> = (0..shape.consumers).map(|_| Arc::default()).collect();
        let mut missing = 0;
        let sample = measure(shape.messages, async {
            let mut consumers = Vec::new();
            for $c in 0..shape.consumers {
                let $tally = Arc::clone(&tallies[$c]);
                consumers.push(tokio::spawn($consume));
            }
            let mut producers = Vec::new();
            for $p in 0..shape.producers {
                let $share = shape.share($p);
                producers.push(tokio::spawn($produce));
            }
            for producer in producers {
                producer.await.expect("a producer failed");
            }
            missing = Tally::settle(&tallies, shape.messages, Duration::from_secs(20)).await;
            for consumer in consumers {
                consumer.abort();
                drop(consumer.await);
            }
        })
        .await;
        if missing > 0 {
            eprintln!("    {missing} of {} messages never came", shape.messages);
            None
        } else {
            Some(sample)
        }
    }};
}

async fn mpsc_bounded(shape: Shape) -> Option<Sample> {
    let (sender, receiver) = mpsc::channel::<Bytes>(1024);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    run!(shape, tally,
        produce: |share, _p| {
            let sender = sender.clone();
            async move {
                if shape.batch == 1 {
                    for i in share {
                        sender.send(Bytes::from(payload(i))).await.expect("open");
                    }
                } else {
                    let all: Vec<u64> = share.collect();
                    for chunk in all.chunks(shape.batch) {
                        let mut permits = sender.reserve_many(chunk.len()).await.expect("open");
                        for &i in chunk {
                            permits.next().expect("reserved").send(Bytes::from(payload(i)));
                        }
                    }
                }
            }
        },
        consume: |_c| {
            let receiver = Arc::clone(&receiver);
            async move {
                if shape.consumers == 1 {
                    let mut own = receiver.lock().await.take().expect("one consumer");
                    if shape.batch == 1 {
                        while let Some(message) = own.recv().await {
                            tally.note(number(&message));
                        }
                    } else {
                        let mut batch = Vec::with_capacity(shape.batch);
                        while own.recv_many(&mut batch, shape.batch).await > 0 {
                            for message in batch.drain(..) {
                                tally.note(number(&message));
                            }
                        }
                    }
                } else {
                    let mut batch = Vec::with_capacity(shape.batch);
                    loop {
                        let count = receiver.lock().await.as_mut().expect("shared").recv_many(&mut batch, shape.batch).await;
                        if count == 0 { return; }
                        for message in batch.drain(..) {
                            tally.note(number(&message));
                        }
                    }
                }
            }
        }
    )
}

async fn mpsc_unbounded(shape: Shape) -> Option<Sample> {
    let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
    let receiver = Arc::new(Mutex::new(receiver));
    run!(shape, tally,
        produce: |share, _p| {
            let sender = sender.clone();
            async move {
                for i in share {
                    sender.send(Bytes::from(payload(i))).expect("open");
                    if i % 256 == 0 { tokio::task::yield_now().await; }
                }
            }
        },
        consume: |_c| {
            let receiver = Arc::clone(&receiver);
            async move {
                let mut batch = Vec::with_capacity(shape.batch);
                loop {
                    let count = receiver.lock().await.recv_many(&mut batch, shape.batch).await;
                    if count == 0 { return; }
                    for message in batch.drain(..) {
                        tally.note(number(&message));
                    }
                }
            }
        }
    )
}

async fn omniqueue(shape: Shape) -> Option<Sample> {
    let (producer, consumer) =
        omniqueue::backends::InMemoryBackend::builder().build_pair().await.expect("in memory");
    let producer = Arc::new(producer);
    let consumer = Arc::new(Mutex::new(consumer));
    run!(shape, tally,
        produce: |share, _p| {
            let producer = Arc::clone(&producer);
            async move {
                for i in share {
                    producer.send_raw(&payload(i)).await.expect("open");
                }
            }
        },
        consume: |_c| {
            let consumer = Arc::clone(&consumer);
            async move {
                loop {
                    if shape.batch == 1 {
                        let delivery = consumer.lock().await.receive().await.expect("open");
                        tally.note(number(delivery.borrow_payload().expect("payload")));
                        delivery.ack().await.map_err(|(error, _)| error).expect("ack");
                    } else {
                        let batch = consumer.lock().await.receive_all(shape.batch, Duration::from_secs(20)).await.expect("open");
                        for delivery in batch {
                            tally.note(number(delivery.borrow_payload().expect("payload")));
                            delivery.ack().await.map_err(|(error, _)| error).expect("ack");
                        }
                    }
                }
            }
        }
    )
}

async fn memq(shape: Shape) -> Option<Sample> {
    use tokio_memq::{AsyncMessagePublisher, ConsumptionMode, MessageQueue, MessageSubscriber, TopicOptions};
    let queue = MessageQueue::new();
    let options = TopicOptions { max_messages: Some(4_000_000), ..TopicOptions::default() };
    let mut subscribers = Vec::new();
    for c in 0..shape.consumers {
        let subscriber = queue
            .subscriber_group_with_options(
                "bench".to_owned(),
                options.clone(),
                format!("consumer-{c}"),
                ConsumptionMode::Earliest,
            )
            .await
            .expect("subscriber");
        subscribers.push(Some(subscriber));
    }
    run!(shape, tally,
        produce: |share, _p| {
            let publisher = queue.publisher("bench".to_owned());
            async move {
                if shape.batch == 1 {
                    for i in share {
                        publisher.publish(payload(i)).await.expect("publish");
                    }
                } else {
                    let all: Vec<u64> = share.collect();
                    for chunk in all.chunks(shape.batch) {
                        publisher.publish_batch(chunk.iter().map(|&i| payload(i)).collect()).await.expect("publish");
                    }
                }
            }
        },
        consume: |c| {
            let subscriber = subscribers[c].take().expect("one each");
            async move {
                loop {
                    let message = subscriber.recv().await.expect("open");
                    tally.note(number(&message.deserialize::<Vec<u8>>().expect("payload")));
                }
            }
        }
    )
}

fn ours_config(shape: Shape) -> MemoryConfig {
    // The channel's capacity for a fair hand-over; the chunk a consumer leases ahead follows from it.
    let _ = shape;
    MemoryConfig { capacity: 1024, ..MemoryConfig::default() }
}

async fn ours(shape: Shape, ack_all: bool) -> Option<Sample> {
    let config = ours_config(shape);
    let producer = MemoryBackend::builder(config.clone()).build_producer().await.expect("memory");
    let mut consumers = Vec::new();
    for _ in 0..shape.consumers {
        consumers.push(Some(MemoryBackend::builder(config.clone()).build_consumer().await.expect("memory")));
    }
    run!(shape, tally,
        produce: |share, _p| {
            let producer = producer.clone();
            async move {
                if shape.batch == 1 {
                    for i in share {
                        producer.send(Message::new(payload(i))).await.expect("send");
                    }
                } else {
                    let all: Vec<u64> = share.collect();
                    for chunk in all.chunks(shape.batch) {
                        producer.send_batch(chunk.iter().map(|&i| Message::new(payload(i))).collect()).await.expect("send");
                    }
                }
            }
        },
        consume: |c| {
            let mut consumer = consumers[c].take().expect("one each");
            async move {
                loop {
                    if shape.batch == 1 {
                        let delivery = consumer.receive().await.expect("receive");
                        tally.note(number(delivery.payload()));
                        delivery.ack().await.expect("ack");
                    } else {
                        let batch = consumer.receive_batch(shape.batch).await.expect("receive");
                        for delivery in &batch {
                            tally.note(number(delivery.payload()));
                        }
                        if ack_all {
                            Delivery::ack_all(batch).await.expect("ack");
                        } else {
                            for delivery in batch {
                                delivery.ack().await.expect("ack");
                            }
                        }
                    }
                }
            }
        }
    )
}

async fn ours_dynamic(shape: Shape) -> Option<Sample> {
    let config = ours_config(shape);
    let producer: Arc<dyn QueueProducer> = Arc::from(
        MemoryBackend::builder(config.clone()).make_dynamic().build_producer().await.expect("memory"),
    );
    let mut consumers: Vec<Option<Box<dyn QueueConsumer>>> = Vec::new();
    for _ in 0..shape.consumers {
        consumers.push(Some(
            MemoryBackend::builder(config.clone()).make_dynamic().build_consumer().await.expect("memory"),
        ));
    }
    run!(shape, tally,
        produce: |share, _p| {
            let producer = Arc::clone(&producer);
            async move {
                if shape.batch == 1 {
                    for i in share {
                        producer.send(Message::new(payload(i))).await.expect("send");
                    }
                } else {
                    let all: Vec<u64> = share.collect();
                    for chunk in all.chunks(shape.batch) {
                        producer.send_batch(chunk.iter().map(|&i| Message::new(payload(i))).collect()).await.expect("send");
                    }
                }
            }
        },
        consume: |c| {
            let mut consumer = consumers[c].take().expect("one each");
            async move {
                loop {
                    if shape.batch == 1 {
                        let delivery = consumer.receive().await.expect("receive");
                        tally.note(number(delivery.payload()));
                        delivery.ack().await.expect("ack");
                    } else {
                        let batch = consumer.receive_batch(shape.batch).await.expect("receive");
                        for delivery in &batch {
                            tally.note(number(delivery.payload()));
                        }
                        Delivery::ack_all(batch).await.expect("ack");
                    }
                }
            }
        }
    )
}

const NAMES: [&str; 7] = [
    "tokio mpsc bounded(1024)",
    "tokio mpsc unbounded",
    "omniqueue 0.3 +ack",
    "tokio-memq 1.0 group, no ack",
    "buqueue +ack",
    "buqueue +ack_all",
    "buqueue dyn +ack",
];

async fn throughput(rounds: usize, messages: usize, producers: usize, consumers: usize, batch: usize) {
    let shape = Shape { producers, consumers, batch, messages };
    let mut results = Vec::new();
    for round in 0..rounds {
        let mut samples: Vec<Option<Sample>> = vec![None; NAMES.len()];
        for turn in 0..NAMES.len() {
            let contender = (turn + round) % NAMES.len();
            samples[contender] = match contender {
                0 => mpsc_bounded(shape).await,
                1 => mpsc_unbounded(shape).await,
                2 => omniqueue(shape).await,
                // An order slower and it waits for what it lost: fewer messages, fewer rounds, one pair of tasks.
                3 if round < 3 && producers == 1 => memq(Shape { messages: messages / 10, ..shape }).await,
                4 => ours(shape, false).await,
                5 if batch > 1 => ours(shape, true).await,
                6 => ours_dynamic(shape).await,
                _ => None,
            };
        }
        results.push(samples);
    }
    let how = if batch == 1 { "one by one".to_owned() } else { format!("batch {batch}") };
    table(
        &format!("### {producers}P+{consumers}C {how}, {messages} messages, {rounds} rounds"),
        &NAMES,
        &results,
    );
    let pairs = |a: usize, b: usize| {
        median(results.iter().filter_map(|round| Some(round[a]?.rate() / round[b]?.rate())).collect())
    };
    println!(
        "buqueue / omniqueue {:.2} · buqueue / tokio-memq {:.1} · dyn / static {:.2}",
        pairs(4, 2),
        pairs(4, 3),
        if batch > 1 { pairs(6, 5) } else { pairs(6, 4) }
    );
}

/// Half a round trip with one message in flight.
async fn latency(turns: usize) {
    println!("\n### Ping-pong, half round trip, {turns} turns");
    println!("| contender | p50 ns | p99 ns |");
    println!("|---|---|---|");
    let percentiles = |mut times: Vec<u64>| {
        times.sort_unstable();
        (times[times.len() / 2] / 2, times[times.len() * 99 / 100] / 2)
    };
    for round in 0..3 {
        let (ping, mut pinged) = mpsc::channel::<Bytes>(16);
        let (pong, mut ponged) = mpsc::channel::<Bytes>(16);
        let echo = tokio::spawn(async move {
            while let Some(message) = pinged.recv().await {
                if pong.send(message).await.is_err() {
                    return;
                }
            }
        });
        let mut times = Vec::with_capacity(turns);
        for i in 0..turns {
            let start = Instant::now();
            ping.send(Bytes::from(payload(i as u64))).await.expect("open");
            black_box(ponged.recv().await);
            times.push(start.elapsed().as_nanos() as u64);
        }
        echo.abort();
        let (p50, p99) = percentiles(times);
        println!("| tokio mpsc, round {round} | {p50} | {p99} |");

        let (ping, mut pinged) =
            MemoryBackend::builder(MemoryConfig::default()).build_pair().await.expect("memory");
        let (pong, mut ponged) =
            MemoryBackend::builder(MemoryConfig::default()).build_pair().await.expect("memory");
        let echo = tokio::spawn(async move {
            loop {
                let delivery = pinged.receive().await.expect("receive");
                let message = delivery.message().clone();
                delivery.ack().await.expect("ack");
                pong.send(message).await.expect("send");
            }
        });
        let mut times = Vec::with_capacity(turns);
        for i in 0..turns {
            let start = Instant::now();
            ping.send(Message::new(payload(i as u64))).await.expect("send");
            ponged.receive().await.expect("receive").ack().await.expect("ack");
            times.push(start.elapsed().as_nanos() as u64);
        }
        echo.abort();
        let (p50, p99) = percentiles(times);
        println!("| buqueue +ack, round {round} | {p50} | {p99} |");
    }
}

/// What one send+receive+ack costs with a standing queue in front of it.
async fn depth(rounds: usize) {
    println!("\n### Cost of one cycle by standing depth, one task");
    println!("| depth | CPU ns | allocations beyond the payload |");
    println!("|---|---|---|");
    for depth in [10, 10_000, 1_000_000] {
        let config = MemoryConfig { capacity: depth + 1000, ..MemoryConfig::default() };
        let (producer, mut consumer) = MemoryBackend::builder(config).build_pair().await.expect("memory");
        for i in 0..depth {
            producer.send(Message::new(payload(i as u64))).await.expect("send");
        }
        let mut costs = Vec::new();
        let mut allocated = Vec::new();
        for _ in 0..rounds {
            let cycles = 100_000;
            count_allocations(false);
            let sample = measure(cycles, async {
                for i in 0..cycles {
                    producer.send(Message::new(payload(i as u64))).await.expect("send");
                    consumer.receive().await.expect("receive").ack().await.expect("ack");
                }
            })
            .await;
            costs.push(sample.cpu_ns());
            count_allocations(true);
            let before = allocations();
            for i in 0..cycles {
                producer.send(Message::new(payload(i as u64))).await.expect("send");
                consumer.receive().await.expect("receive").ack().await.expect("ack");
            }
            allocated.push((allocations() - before) as f64 / cycles as f64 - 1.0);
            count_allocations(false);
        }
        println!("| {depth} | {:.0} | {:.3} |", median(costs), median(allocated));
    }
    let (producer, mut consumer) =
        MemoryBackend::builder(MemoryConfig::default()).build_pair().await.expect("memory");
    count_allocations(true);
    let before = allocations();
    let bursts = 1000;
    for _ in 0..bursts {
        for i in 0..100 {
            producer.send(Message::new(payload(i))).await.expect("send");
        }
        for _ in 0..100 {
            consumer.receive().await.expect("receive").ack().await.expect("ack");
        }
    }
    println!(
        "in bursts of 100: {:.3} allocations per message beyond the payload",
        (allocations() - before) as f64 / (bursts * 100) as f64 - 1.0
    );
    count_allocations(false);
}

async fn heap(messages: usize) {
    println!("\n### Heap per message over its payload of {PAYLOAD} B");
    let config = MemoryConfig { capacity: messages * 2, ..MemoryConfig::default() };
    let (producer, mut consumer) = MemoryBackend::builder(config).build_pair().await.expect("memory");
    let over = |before: isize, count: usize| (live_bytes() - before) as f64 / count as f64 - PAYLOAD as f64;
    count_allocations(true);
    let before = live_bytes();
    for i in 0..messages {
        producer.send(Message::new(payload(i as u64))).await.expect("send");
    }
    println!("queued: {:.0} B", over(before, messages));
    let mut held = Vec::with_capacity(messages);
    for _ in 0..messages {
        held.push(consumer.receive().await.expect("receive"));
    }
    println!("in flight, with the delivery handle: {:.0} B", over(before, messages));
    for delivery in held {
        delivery.ack().await.expect("ack");
    }
    let (producer, consumer) =
        MemoryBackend::builder(MemoryConfig { capacity: messages * 2, ..MemoryConfig::default() })
            .build_pair()
            .await
            .expect("memory");
    let before = live_bytes();
    let now = chrono::Utc::now();
    for i in 0..messages {
        let at = now + Duration::from_secs(600) + Duration::from_micros((i as u64 * 7919) % 3_600_000_000);
        producer.send_at(Message::new(payload(i as u64)), at).await.expect("send_at");
    }
    println!("scheduled over an hour: {:.0} B", over(before, messages));
    drop(consumer);
    let (producer, _consumer) =
        MemoryBackend::builder(MemoryConfig { capacity: messages * 2, ..MemoryConfig::default() })
            .build_pair()
            .await
            .expect("memory");
    let before = live_bytes();
    for i in 0..messages {
        let message = Message::new(payload(i as u64))
            .with_routing_key("orders.placed")
            .with_header("content-type", "application/json")
            .with_header("schema-version", "3")
            .with_header("source-service", "checkout");
        producer.send(message).await.expect("send");
    }
    println!("queued with a key and three headers: {:.0} B", over(before, messages));
    count_allocations(false);
}

async fn schedule(messages: usize) {
    println!("\n### {messages} scheduled messages");
    let config =
        MemoryConfig { capacity: messages * 2, lease: Duration::from_secs(3600), ..MemoryConfig::default() };
    let (producer, mut consumer) = MemoryBackend::builder(config.clone()).build_pair().await.expect("memory");
    let due = chrono::Utc::now() + Duration::from_secs(3);
    let insert = measure(messages, async {
        for i in 0..messages {
            let at = due - Duration::from_micros((i as u64 * 7919) % 1_000_000);
            producer.send_at(Message::new(payload(i as u64)), at).await.expect("send_at");
        }
    })
    .await;
    tokio::time::sleep((due - chrono::Utc::now()).to_std().unwrap_or_default() + Duration::from_millis(5))
        .await;
    let release = measure(messages, async {
        let mut left = messages;
        while left > 0 {
            let batch = consumer.receive_batch(1000.min(left)).await.expect("receive");
            left -= batch.len();
            Delivery::ack_all(batch).await.expect("ack");
        }
    })
    .await;
    println!(
        "insert {:.0} ns, release + receive + ack {:.0} ns CPU each; all due at once, last ack after {:?}",
        insert.cpu_ns(),
        release.cpu_ns(),
        release.wall
    );

    let (producer, mut consumer) =
        MemoryBackend::builder(MemoryConfig::default()).build_pair().await.expect("memory");
    let start = chrono::Utc::now() + Duration::from_millis(500);
    let count = 20_000u64;
    for i in 0..count {
        let at = start + Duration::from_micros(i * 100);
        producer
            .send_at(Message::new(at.timestamp_micros().to_le_bytes().to_vec()), at)
            .await
            .expect("send_at");
    }
    let mut late = Vec::new();
    for _ in 0..count {
        let delivery = consumer.receive().await.expect("receive");
        let due = i64::from_le_bytes(delivery.payload()[..8].try_into().expect("a time"));
        late.push(chrono::Utc::now().timestamp_micros() - due);
        delivery.ack().await.expect("ack");
    }
    late.sort_unstable();
    let at = |share: usize| late[late.len() * share / 1000] as f64 / 1000.0;
    println!(
        "lateness of {count} at 10 k/s: early {}, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        late.iter().filter(|late| **late < 0).count(),
        at(500),
        at(990),
        late[late.len() - 1] as f64 / 1000.0
    );
}

async fn consumers(rounds: usize, messages: usize) {
    println!("\n### One producer, 1 to 1000 consumers, one by one");
    let mut best: f64 = 0.0;
    for consumers in [1, 10, 100, 1000] {
        let mut rates = Vec::new();
        let mut channel = Vec::new();
        for _ in 0..rounds {
            let shape = Shape { producers: 1, consumers, batch: 1, messages };
            rates.extend(ours(shape, false).await.map(|sample| sample.rate()));
            channel.extend(mpsc_bounded(shape).await.map(|sample| sample.rate()));
        }
        let rate = median(rates) / 1e6;
        println!(
            "{consumers} consumers: {rate:.2} M msg/s ({:.2} of the best so far); tokio mpsc behind a Mutex {:.2} M",
            rate / best.max(rate),
            median(channel) / 1e6
        );
        best = best.max(rate);
    }
}

mod overhead {
    //! Core alone: a driver that does nothing.

    use super::*;
    use buqueue_core::driver::{Backend, Control, Consumer, Lease, Producer, Received};
    use buqueue_core::{Capabilities, MessageId, QueueBuilder, QueueFuture, Result};
    use std::num::NonZeroUsize;

    #[derive(Debug)]
    struct Nothing(Message);
    #[derive(Debug)]
    struct NoOp(Arc<Nothing>);
    enum NoOpBackend {}

    impl Backend for NoOpBackend {
        const NAME: &'static str = "noop";
        type Config = ();
        type Producer = NoOp;
        type Consumer = NoOp;
        fn capabilities((): &()) -> Capabilities {
            Capabilities::native("noop")
        }
        fn destination((): &()) -> String {
            "noop".to_owned()
        }
        fn redirect((): &(), _: &str) {}
        async fn connect_producer((): &()) -> Result<NoOp> {
            Ok(NoOp(Arc::new(Nothing(Message::new("payload")))))
        }
        async fn connect_consumer((): &()) -> Result<NoOp> {
            Ok(NoOp(Arc::new(Nothing(Message::new("payload")))))
        }
    }

    impl Producer for NoOp {
        fn send_ready(&self, message: Message) -> std::result::Result<Result<MessageId>, Message> {
            black_box(message);
            Ok(Ok(MessageId::from(1)))
        }
        async fn send(&self, _: Message) -> Result<MessageId> {
            Ok(MessageId::from(1))
        }
        async fn send_at(&self, _: Message, _: chrono::DateTime<chrono::Utc>) -> Result<MessageId> {
            Ok(MessageId::from(1))
        }
        async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
            messages.iter().map(|_| Ok(MessageId::from(1))).collect()
        }
    }

    impl Consumer for NoOp {
        fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
            for _ in 0..max.get() {
                let lease: Arc<dyn Lease> = Arc::clone(&self.0) as _;
                out.push(Received { lease, index: 0, delivery_count: 1, first_failed_at: None });
            }
            Ok(())
        }
        async fn fetch(&mut self, max: NonZeroUsize, _: Duration, out: &mut Vec<Received>) -> Result<()> {
            self.fetch_ready(max, out)
        }
        fn control(&self) -> Arc<dyn Control> {
            Arc::clone(&self.0) as _
        }
    }

    impl Control for Nothing {
        fn close(&self) -> QueueFuture<'_, Result<()>> {
            QueueFuture::ready(Ok(()))
        }
    }

    impl Lease for Nothing {
        fn message(&self, _: u32) -> &Message {
            &self.0
        }
        fn message_id(&self, _: u32) -> MessageId {
            MessageId::from(1)
        }
        fn ack(&self, _: u32) -> QueueFuture<'_, Result<()>> {
            QueueFuture::ready(Ok(()))
        }
        fn nack(&self, _: u32, _: Duration) -> QueueFuture<'_, Result<()>> {
            QueueFuture::ready(Ok(()))
        }
        fn extend(&self, _: u32, _: Duration) -> QueueFuture<'_, Result<()>> {
            QueueFuture::ready(Ok(()))
        }
        fn abandon(&self, _: u32) {}
    }

    pub async fn run(rounds: usize) {
        println!("\n### Core over a driver that does nothing");
        let cycles = 500_000;
        let (producer, mut consumer) = QueueBuilder::<NoOpBackend>::new(()).build_pair().await.expect("noop");
        let (dyn_producer, mut dyn_consumer) =
            QueueBuilder::<NoOpBackend>::new(()).make_dynamic().build_pair().await.expect("noop");
        let message = Message::new(Bytes::from_static(b"payload"));
        let mut results: [Vec<f64>; 4] = Default::default();
        let mut counts = [0.0; 4];
        for _ in 0..rounds {
            for (which, result) in results.iter_mut().enumerate() {
                count_allocations(false);
                for counting in [false, true] {
                    count_allocations(counting);
                    let before = allocations();
                    let sample = measure(cycles, async {
                        for _ in 0..cycles {
                            match which {
                                0 => drop(producer.send(message.clone()).await.expect("send")),
                                1 => drop(dyn_producer.send(message.clone()).await.expect("send")),
                                2 => consumer.receive().await.expect("receive").ack().await.expect("ack"),
                                _ => dyn_consumer.receive().await.expect("receive").ack().await.expect("ack"),
                            }
                        }
                    })
                    .await;
                    if counting {
                        counts[which] = (allocations() - before) as f64 / cycles as f64;
                    } else {
                        result.push(sample.cpu_ns());
                    }
                }
                count_allocations(false);
            }
        }
        for (name, (result, count)) in
            ["send static", "send dyn", "receive + ack static", "receive + ack dyn"]
                .iter()
                .zip(results.into_iter().zip(counts))
        {
            println!("{name}: {:.0} ns, {count:.2} allocations", median(result));
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let chosen: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with("--")).collect();
    let on = |name: &str| chosen.is_empty() || chosen.contains(&name);
    let (rounds, messages) = if quick { (5, 100_000) } else { (21, 200_000) };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        // On a worker, as an application's tasks are; the thread that blocks on the runtime is none.
        if on("throughput") {
            for (producers, consumers, batch) in [(1, 1, 1), (1, 1, BATCH), (4, 4, 1), (4, 4, BATCH)] {
                tokio::spawn(throughput(rounds, messages, producers, consumers, batch)).await.expect("bench");
            }
        }
        if on("latency") {
            tokio::spawn(latency(if quick { 20_000 } else { 50_000 })).await.expect("bench");
        }
        if on("depth") {
            tokio::spawn(depth(rounds.min(7))).await.expect("bench");
        }
        if on("heap") {
            tokio::spawn(heap(if quick { 100_000 } else { 1_000_000 })).await.expect("bench");
        }
        if on("schedule") {
            tokio::spawn(schedule(if quick { 100_000 } else { 1_000_000 })).await.expect("bench");
        }
        if on("consumers") {
            tokio::spawn(consumers(rounds.min(5), messages)).await.expect("bench");
        }
        if on("overhead") {
            tokio::spawn(overhead::run(rounds)).await.expect("bench");
        }
    });
}
