//! The Kafka backend beside the raw client: one broker, short rounds in alternating order, medians of per-round ratios.
//!
//! `kafka [--quick] [--deep] [send|single|consume|end-to-end|delivered]…`
//!
//! The broker is `BUQUEUE_TEST_KAFKA`. Every contender gets a fresh topic of four partitions in every round; it is deleted
//! afterwards. The raw client is set up as buqueue sets it up: idempotent, acknowledged by all replicas, without lingering.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buqueue_bench::contest::Contest;
use buqueue_bench::work::{self, Acks, Arguments, BATCH, batches, number, plain, with_headers};
use buqueue_bench::{Sample, Tally, at_least, at_most, measure};
use buqueue_core::{Consumer, Message, Producer};
use buqueue_kafka::{KafkaBackend, KafkaBuilderExt as _, KafkaConfig};
use futures_util::future::join_all;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset};

const GROUP: &str = "bench";
const PARTITIONS: i32 = 4;
/// Sent before the measurement begins, where one is sent after the other: a connection is slow at first.
const WARM: usize = 500;
/// How many are on their way at once when a topic is filled.
const DEEP_WINDOW: usize = 5000;

struct Bench {
    brokers: String,
    arguments: Arguments,
    serial: AtomicUsize,
    admin: AdminClient<DefaultClientContext>,
}

impl Bench {
    fn name(&self) -> String {
        format!("bench-{}-{}", std::process::id(), self.serial.fetch_add(1, Ordering::Relaxed))
    }

    fn config(&self, topic: &str) -> KafkaConfig {
        KafkaConfig {
            brokers: self.brokers.split(',').map(str::to_owned).collect(),
            topic: topic.to_owned(),
            // Members of one group wait for each other, whatever they read.
            group_id: format!("{GROUP}-{topic}"),
            partitions: PARTITIONS,
            ..KafkaConfig::default()
        }
    }

    async fn producer(&self, topic: &str) -> Producer<KafkaBackend> {
        KafkaBackend::builder(self.config(topic)).build_producer().await.expect("producer")
    }

    async fn consumer(&self, topic: &str) -> Consumer<KafkaBackend> {
        let builder = KafkaBackend::builder(self.config(topic));
        builder.max_in_flight(2000).build_consumer().await.expect("consumer")
    }

    /// A fresh topic, as buqueue declares it: the raw client works on the very same.
    async fn topic(&self) -> String {
        let name = self.name();
        drop(self.producer(&name).await);
        name
    }

    fn raw(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers).set("log_level", "0");
        client
    }

    fn raw_producer(&self) -> FutureProducer {
        let mut settings = self.raw();
        settings.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "0");
        settings.create().expect("producer")
    }

    /// Joined, and in possession of all partitions.
    async fn raw_consumer(&self, topic: &str) -> StreamConsumer {
        let mut settings = self.raw();
        settings
            .set("group.id", format!("{GROUP}-raw-{topic}"))
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "500")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "200");
        let consumer: StreamConsumer = settings.create().expect("consumer");
        consumer.subscribe(&[topic]).expect("subscribe");
        consumer
    }

    async fn fill(&self, topic: &str, messages: usize) {
        let producer = self.raw_producer();
        let all: Vec<Message> = (0..messages as u64).map(plain).collect();
        for batch in all.chunks(DEEP_WINDOW) {
            raw_window(&producer, topic, batch).await;
        }
    }

    async fn delete(&self, topic: &str) {
        let names = [
            topic.to_owned(),
            format!("{topic}-{GROUP}-{topic}-buqueue-retry"),
            format!("{topic}-buqueue-delay"),
        ];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // Not every contender has had all of them.
        let deleted = self.admin.delete_topics(&names, &AdminOptions::new()).await.expect("delete");
        assert!(deleted.iter().any(Result::is_ok), "nothing was deleted");
    }
}

fn raw_publish(producer: &FutureProducer, topic: &str, message: &Message) -> DeliveryFuture {
    let mut record = FutureRecord::<str, [u8]>::to(topic).payload(message.payload());
    record.key = message.routing_key();
    if !message.headers().is_empty() {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers().len());
        for (key, value) in message.headers().iter() {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        record.headers = Some(headers);
    }
    producer.send_result(record).map_err(|(error, _)| error).expect("send")
}

async fn raw_window(producer: &FutureProducer, topic: &str, batch: &[Message]) {
    let sent: Vec<DeliveryFuture> =
        batch.iter().map(|message| raw_publish(producer, topic, message)).collect();
    for accepted in sent {
        accepted.await.expect("accepted").map_err(|(error, _)| error).expect("accepted");
    }
}

const RAW_WINDOW: &str = "rdkafka, window of 100";
const OURS: &str = "buqueue send_batch(100)";

async fn raw_send(bench: &Bench, make: fn(u64) -> Message) -> Sample {
    let (topic, many) = (bench.topic().await, bench.arguments.many);
    let (producer, work) = (bench.raw_producer(), batches(many, make));
    raw_window(&producer, &topic, &batches(BATCH, make)[0]).await;
    let sample = measure(many, async {
        for batch in &work {
            raw_window(&producer, &topic, batch).await;
        }
    })
    .await;
    bench.delete(&topic).await;
    sample
}

async fn our_send(bench: &Bench, make: fn(u64) -> Message) -> Sample {
    let (topic, many) = (bench.name(), bench.arguments.many);
    let producer = bench.producer(&topic).await;
    work::send_batches(&producer, batches(BATCH, make)).await;
    let work = batches(many, make);
    let sample = measure(many, work::send_batches(&producer, work)).await;
    bench.delete(&topic).await;
    sample
}

async fn send(bench: &Bench) {
    let results = Contest::new("Send in batches of 100")
        .with(RAW_WINDOW, || raw_send(bench, plain))
        .with(OURS, || our_send(bench, plain))
        .run(bench.arguments.rounds)
        .await;
    at_least("A14 send_batch / window", results.rate(OURS, RAW_WINDOW), 0.95);
    at_most("A1 send_batch, client CPU", results.cpu(OURS, RAW_WINDOW), 1.15);
    let results = Contest::new("Send in batches of 100, routing key and three headers")
        .with(RAW_WINDOW, || raw_send(bench, with_headers))
        .with(OURS, || our_send(bench, with_headers))
        .run(bench.arguments.rounds)
        .await;
    at_least("A14 send_batch, key + 3 headers", results.rate(OURS, RAW_WINDOW), 0.95);
    at_most("A1 send_batch, key + 3 headers, client CPU", results.cpu(OURS, RAW_WINDOW), 1.15);
}

async fn single(bench: &Bench) {
    const RAW: &str = "rdkafka, one awaited";
    const OURS: &str = "buqueue send";
    const RAW_MANY: &str = "rdkafka, 64 tasks on one producer";
    const OUR_MANY: &str = "buqueue, 64 tasks on one producer";
    let few = bench.arguments.few;
    let results = Contest::new("Send one by one")
        .with(RAW, || async move {
            let (topic, producer) = (bench.topic().await, bench.raw_producer());
            for number in 0..WARM as u64 {
                raw_window(&producer, &topic, &[plain(number)]).await;
            }
            let sample = measure(few, async {
                for number in 0..few as u64 {
                    raw_window(&producer, &topic, &[plain(number)]).await;
                }
            })
            .await;
            bench.delete(&topic).await;
            sample
        })
        .with(OURS, || async move {
            let topic = bench.name();
            let producer = bench.producer(&topic).await;
            work::send_each(&producer, WARM).await;
            let sample = measure(few, work::send_each(&producer, few)).await;
            bench.delete(&topic).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_most("A3 one awaited send, time", 1.0 / results.rate(OURS, RAW), 1.1);
    let many = bench.arguments.many;
    let results = Contest::new("Send from 64 tasks")
        .with(RAW_MANY, || async move {
            let (topic, producer) = (bench.topic().await, bench.raw_producer());
            raw_window(&producer, &topic, &batches(BATCH, plain)[0]).await;
            let sample = measure(many, async {
                let tasks = (0..64).map(|caller| {
                    let (producer, topic) = (producer.clone(), topic.clone());
                    tokio::spawn(async move {
                        for number in (caller..many as u64).step_by(64) {
                            raw_window(&producer, &topic, &[plain(number)]).await;
                        }
                    })
                });
                for task in join_all(tasks).await {
                    task.expect("a caller");
                }
            })
            .await;
            bench.delete(&topic).await;
            sample
        })
        .with(OUR_MANY, || async move {
            let topic = bench.name();
            let producer = Arc::new(bench.producer(&topic).await);
            work::send_batches(&producer, batches(BATCH, plain)).await;
            let sample = measure(many, work::send_from_many(&producer, many, 64)).await;
            bench.delete(&topic).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_least("A4 64 callers", results.rate(OUR_MANY, RAW_MANY), 0.9);
}

/// Each stored when it is done, in order; the client commits twice a second.
async fn raw_receive(consumer: &StreamConsumer, topic: &str, messages: usize, tally: &Tally) {
    for _ in 0..messages {
        let record = consumer.recv().await.expect("a record");
        tally.note(number(record.payload().expect("a payload")));
        consumer.store_offset(topic, record.partition(), record.offset()).expect("store");
    }
}

async fn raw_consume(bench: &Bench) -> Sample {
    let (topic, many) = (bench.topic().await, bench.arguments.many);
    let (consumer, tally) = (bench.raw_consumer(&topic).await, Arc::new(Tally::default()));
    // The group is joined, and all is well, when one has come.
    bench.fill(&topic, 1).await;
    consumer.recv().await.expect("a record");
    fill_from_one(bench, &topic, many).await;
    let sample = measure(many, raw_receive(&consumer, &topic, many, &tally)).await;
    work::complete(tally, many).await;
    consumer.commit_consumer_state(CommitMode::Sync).expect("commit");
    drop(consumer);
    bench.delete(&topic).await;
    sample
}

/// What the tally expects, behind the one that was there first.
async fn fill_from_one(bench: &Bench, topic: &str, messages: usize) {
    bench.fill(topic, messages).await;
    // Until the client has it ready, the broker's share of the work is done for both alike.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

async fn our_consume(bench: &Bench, acks: Acks) -> Sample {
    let (topic, many) = (bench.name(), bench.arguments.many);
    drop(bench.producer(&topic).await);
    let mut consumer = bench.consumer(&topic).await;
    bench.fill(&topic, 1).await;
    consumer.receive().await.expect("a message").ack().await.expect("ack");
    fill_from_one(bench, &topic, many).await;
    let tally = Arc::new(Tally::default());
    let sample = measure(many, work::receive(&mut consumer, many, acks, &tally)).await;
    work::complete(tally, many).await;
    consumer.shutdown_handle().shutdown().await;
    drop(consumer);
    bench.delete(&topic).await;
    sample
}

async fn consume(bench: &Bench) {
    const RAW: &str = "rdkafka recv(), store_offset, commit each 500 ms";
    const OUR_ALL: &str = "buqueue receive_batch(100) + ack_all";
    const OUR_TOGETHER: &str = "buqueue receive_batch(100) + 100 acks joined";
    let results = Contest::new("Receive and ack")
        .with(RAW, || raw_consume(bench))
        .with(OUR_ALL, || our_consume(bench, Acks::All))
        .with(OUR_TOGETHER, || our_consume(bench, Acks::Together))
        .run(bench.arguments.rounds)
        .await;
    at_least("A14 receive and ack", results.rate(OUR_ALL, RAW), 0.95);
    at_least("A5 100 acks at once / ack_all", results.rate(OUR_TOGETHER, OUR_ALL), 0.8);
    at_most("A1 receive and ack, client CPU", results.cpu(OUR_ALL, RAW), 1.15);
}

async fn end_to_end(bench: &Bench) {
    const RAW: &str = "rdkafka, window of 100, recv(), store_offset";
    const OURS: &str = "buqueue";
    let many = bench.arguments.many;
    let results = Contest::new("End to end")
        .with(RAW, || async move {
            let topic = bench.topic().await;
            let (consumer, producer) = (bench.raw_consumer(&topic).await, bench.raw_producer());
            raw_window(&producer, &topic, &[plain(0)]).await;
            consumer.recv().await.expect("a record");
            let (work, tally) = (batches(many, plain), Arc::new(Tally::default()));
            let sample = measure(many, async {
                let to = topic.clone();
                let producing = tokio::spawn(async move {
                    for batch in &work {
                        raw_window(&producer, &to, batch).await;
                    }
                });
                raw_receive(&consumer, &topic, many, &tally).await;
                producing.await.expect("producer");
            })
            .await;
            work::complete(tally, many).await;
            drop(consumer);
            bench.delete(&topic).await;
            sample
        })
        .with(OURS, || async move {
            let topic = bench.name();
            let (producer, mut consumer) = (bench.producer(&topic).await, bench.consumer(&topic).await);
            producer.send(plain(0)).await.expect("send");
            consumer.receive().await.expect("a message").ack().await.expect("ack");
            let (work, tally) = (batches(many, plain), Arc::new(Tally::default()));
            let sample = measure(many, async {
                let producing = tokio::spawn(async move { work::send_batches(&producer, work).await });
                work::receive(&mut consumer, many, Acks::All, &tally).await;
                producing.await.expect("producer");
            })
            .await;
            work::complete(tally, many).await;
            consumer.shutdown_handle().shutdown().await;
            drop(consumer);
            bench.delete(&topic).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_least("A6 end to end", results.rate(OURS, RAW), 0.9);
}

/// One message in flight: sent and accepted, received and done, then the next. The raw client commits each, which is what
/// buqueue does before it hands out a message.
async fn delivered(bench: &Bench) {
    const RAW: &str = "rdkafka, commit of each";
    const OURS: &str = "buqueue";
    let few = bench.arguments.few / 2;
    let results = Contest::new("Send until delivered and done, one in flight")
        .with(RAW, || async move {
            let topic = bench.topic().await;
            let (consumer, producer) = (bench.raw_consumer(&topic).await, bench.raw_producer());
            raw_window(&producer, &topic, &[plain(0)]).await;
            consumer.recv().await.expect("a record");
            let sample = measure(few, async {
                for sent in 0..few as u64 {
                    raw_window(&producer, &topic, &[plain(sent)]).await;
                    let record = consumer.recv().await.expect("a record");
                    assert_eq!(number(record.payload().expect("a payload")), sent);
                    let mut next = rdkafka::TopicPartitionList::new();
                    let after = Offset::Offset(record.offset() + 1);
                    next.add_partition_offset(&topic, record.partition(), after).expect("list");
                    consumer.commit(&next, CommitMode::Sync).expect("commit");
                }
            })
            .await;
            drop(consumer);
            bench.delete(&topic).await;
            sample
        })
        .with(OURS, || async move {
            let topic = bench.name();
            let (producer, mut consumer) = (bench.producer(&topic).await, bench.consumer(&topic).await);
            producer.send(plain(0)).await.expect("send");
            consumer.receive().await.expect("a message").ack().await.expect("ack");
            let sample = measure(few, async {
                for sent in 0..few as u64 {
                    producer.send(plain(sent)).await.expect("send");
                    let delivery = consumer.receive().await.expect("receive");
                    assert_eq!(number(delivery.payload()), sent);
                    delivery.ack().await.expect("ack");
                }
            })
            .await;
            consumer.shutdown_handle().shutdown().await;
            drop(consumer);
            bench.delete(&topic).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_most("A3 send until delivered and done, time", 1.0 / results.rate(OURS, RAW), 1.1);
}

fn main() {
    let brokers = std::env::var("BUQUEUE_TEST_KAFKA").expect("BUQUEUE_TEST_KAFKA, a broker");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let _entered = runtime.enter();
    let admin = ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("admin");
    let bench = Arc::new(Bench { arguments: Arguments::read(), serial: AtomicUsize::new(0), admin, brokers });
    // On a worker, as an application's tasks are; the thread that blocks on the runtime is none.
    macro_rules! section {
        ($name:literal, $section:ident) => {
            if bench.arguments.wants($name) {
                let bench = Arc::clone(&bench);
                runtime.block_on(async {
                    tokio::spawn(async move { $section(&bench).await }).await.expect($name)
                });
            }
        };
    }
    section!("send", send);
    section!("single", single);
    section!("consume", consume);
    section!("end-to-end", end_to_end);
    section!("delivered", delivered);
}
