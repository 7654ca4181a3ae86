//! The NATS backend beside the raw client and a peer: one server, short rounds in alternating order, medians of
//! per-round ratios.
//!
//! `nats [--quick] [--deep] [send|single|consume|end-to-end|delivered|peers]…`
//!
//! The server is `BUQUEUE_TEST_NATS`. Every contender gets a fresh work queue stream in every round, kept in memory, so
//! that the disk is not what is measured; it is deleted afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::jetstream::consumer::{self, AckPolicy, PullConsumer};
use async_nats::jetstream::{self, AckKind, Context};
use buqueue_bench::contest::Contest;
use buqueue_bench::work::{self, Acks, Arguments, BATCH, batches, number, payload, plain, with_headers};
use buqueue_bench::{Sample, Tally, at_least, at_most, measure};
use buqueue_core::{Consumer, Message, Producer};
use buqueue_nats::{DeliverPolicy, JetStreamConfig, NatsBackend, NatsBuilderExt as _, NatsConfig};
use futures_util::StreamExt as _;
use futures_util::future::join_all;

const DURABLE: &str = "bench";
const PENDING: i64 = 1000;
/// Sent before the measurement begins, where one is sent after the other: a connection is slow at first.
const WARM: usize = 500;

struct Bench {
    url: String,
    arguments: Arguments,
    serial: AtomicUsize,
    context: Context,
}

impl Bench {
    /// A fresh stream, as buqueue declares it: the raw client works on the very same.
    async fn stream(&self) -> String {
        let name = self.name();
        drop(self.producer(&name).await);
        name
    }

    /// Deletes it, after it was found to hold so many messages.
    async fn delete(&self, name: &str, expected: usize) {
        let mut stream = self.context.get_stream(name).await.expect("stream");
        // Plain acks may still be on their way.
        for _ in 0..100 {
            if stream.info().await.expect("info").state.messages == expected as u64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(stream.info().await.expect("info").state.messages, expected as u64, "messages left");
        self.context.delete_stream(name).await.expect("delete");
    }

    fn config(&self, name: &str) -> NatsConfig {
        let jetstream = JetStreamConfig {
            stream_name: name.to_owned(),
            subjects: vec![format!("{name}.>")],
            storage: buqueue_nats::StorageType::Memory,
            max_age: Duration::ZERO,
            ..JetStreamConfig::default()
        };
        NatsConfig {
            url: self.url.clone(),
            jetstream,
            durable_consumer: DURABLE.to_owned(),
            deliver_policy: DeliverPolicy::All,
            max_ack_pending: PENDING,
            ..NatsConfig::default()
        }
    }

    fn name(&self) -> String {
        format!("bench-{}-{}", std::process::id(), self.serial.fetch_add(1, Ordering::Relaxed))
    }

    async fn producer(&self, name: &str) -> Producer<NatsBackend> {
        NatsBackend::builder(self.config(name)).build_producer().await.expect("producer")
    }

    async fn consumer(&self, name: &str, plain: bool) -> Consumer<NatsBackend> {
        let builder = NatsBackend::builder(self.config(name));
        let builder = if plain { builder.plain_acks() } else { builder };
        builder.build_consumer().await.expect("consumer")
    }

    async fn raw_consumer(&self, name: &str) -> PullConsumer {
        let stream = self.context.get_stream(name).await.expect("stream");
        let config = consumer::pull::Config {
            durable_name: Some(DURABLE.to_owned()),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: PENDING,
            // As buqueue's, which leaves out the schedules in the stream.
            filter_subject: format!("{name}.>"),
            ..Default::default()
        };
        stream.create_consumer(config).await.expect("consumer")
    }

    async fn fill(&self, name: &str, messages: usize) {
        for batch in batches(messages, plain).chunks(10) {
            raw_window(&self.context, name, &batch.concat()).await;
        }
    }
}

/// The headers buqueue sends for the same message.
fn headers(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(key) = message.routing_key() {
        headers.insert("Buqueue-Key", key);
    }
    for (name, value) in message.headers().iter() {
        headers.insert(name, value);
    }
    headers
}

async fn raw_publish(
    context: &Context,
    name: &str,
    message: &Message,
) -> jetstream::context::PublishAckFuture {
    let (subject, payload) = (format!("{name}._"), message.payload().clone());
    let published = if message.headers().is_empty() {
        context.publish(subject, payload).await
    } else {
        context.publish_with_headers(subject, headers(message), payload).await
    };
    published.expect("publish")
}

async fn raw_window(context: &Context, name: &str, batch: &[Message]) {
    let mut acks = Vec::with_capacity(batch.len());
    for message in batch {
        acks.push(raw_publish(context, name, message).await);
    }
    for ack in acks {
        ack.await.expect("ack");
    }
}

async fn raw_send(bench: &Bench, make: fn(u64) -> Message) -> Sample {
    let (name, many) = (bench.stream().await, bench.arguments.many);
    let work = batches(many, make);
    let sample = measure(many, async {
        for batch in &work {
            raw_window(&bench.context, &name, batch).await;
        }
    })
    .await;
    bench.delete(&name, many).await;
    sample
}

async fn our_send(bench: &Bench, make: fn(u64) -> Message) -> Sample {
    let (name, many) = (bench.name(), bench.arguments.many);
    let producer = bench.producer(&name).await;
    let work = batches(many, make);
    let sample = measure(many, work::send_batches(&producer, work)).await;
    bench.delete(&name, many).await;
    sample
}

const RAW_WINDOW: &str = "async-nats, window of 100 acks";
const OURS: &str = "buqueue send_batch(100)";

async fn send(bench: &Bench) {
    let results = Contest::new("Send in batches of 100")
        .with(RAW_WINDOW, || raw_send(bench, plain))
        .with(OURS, || our_send(bench, plain))
        .run(bench.arguments.rounds)
        .await;
    at_least("A10 send_batch / window", results.rate(OURS, RAW_WINDOW), 0.95);
    at_most("A1 send_batch, client CPU", results.cpu(OURS, RAW_WINDOW), 1.15);
    let results = Contest::new("Send in batches of 100, routing key and three headers")
        .with(RAW_WINDOW, || raw_send(bench, with_headers))
        .with(OURS, || our_send(bench, with_headers))
        .run(bench.arguments.rounds)
        .await;
    at_least("A1 send_batch, key + 3 headers", results.rate(OURS, RAW_WINDOW), 0.95);
    at_most("A1 send_batch, key + 3 headers, client CPU", results.cpu(OURS, RAW_WINDOW), 1.15);
}

async fn single(bench: &Bench) {
    const RAW: &str = "async-nats, publish and its ack";
    const OURS: &str = "buqueue send";
    const RAW_MANY: &str = "async-nats, 64 tasks on one client";
    const OUR_MANY: &str = "buqueue, 64 tasks on one producer";
    let few = bench.arguments.few;
    let results = Contest::new("Send one by one")
        .with(RAW, || async move {
            let name = bench.stream().await;
            for number in 0..WARM as u64 {
                raw_publish(&bench.context, &name, &plain(number)).await.await.expect("ack");
            }
            let sample = measure(few, async {
                for number in 0..few as u64 {
                    raw_publish(&bench.context, &name, &plain(number)).await.await.expect("ack");
                }
            })
            .await;
            bench.delete(&name, few + WARM).await;
            sample
        })
        .with(OURS, || async move {
            let name = bench.name();
            let producer = bench.producer(&name).await;
            work::send_each(&producer, WARM).await;
            let sample = measure(few, work::send_each(&producer, few)).await;
            bench.delete(&name, few + WARM).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_most("A3 one awaited send, time", 1.0 / results.rate(OURS, RAW), 1.1);
    let many = bench.arguments.many;
    let results = Contest::new("Send from 64 tasks")
        .with(RAW_MANY, || async move {
            let name = bench.stream().await;
            let sample = measure(many, async {
                let tasks = (0..64).map(|caller| {
                    let (context, name) = (bench.context.clone(), name.clone());
                    tokio::spawn(async move {
                        for number in (caller..many as u64).step_by(64) {
                            raw_publish(&context, &name, &plain(number)).await.await.expect("ack");
                        }
                    })
                });
                for task in join_all(tasks).await {
                    task.expect("a caller");
                }
            })
            .await;
            bench.delete(&name, many).await;
            sample
        })
        .with(OUR_MANY, || async move {
            let name = bench.name();
            let producer = Arc::new(bench.producer(&name).await);
            let sample = measure(many, work::send_from_many(&producer, many, 64)).await;
            bench.delete(&name, many).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_least("A4 64 callers", results.rate(OUR_MANY, RAW_MANY), 0.9);
}

/// Messages of one pull after the other, without acks the server answers.
async fn raw_plain(consumer: &PullConsumer, messages: usize, tally: &Tally) {
    let stream = consumer.stream().max_messages_per_batch(1000).messages();
    let mut stream = stream.await.expect("messages");
    for _ in 0..messages {
        let message = stream.next().await.expect("open").expect("a message");
        tally.note(number(&message.payload));
        message.ack().await.expect("ack");
    }
}

/// Batches whose acks the server answers.
async fn raw_confirmed(consumer: &PullConsumer, messages: usize, tally: &Tally) {
    let mut done = 0;
    while done < messages {
        let fetched = consumer.fetch().max_messages(BATCH).messages().await.expect("fetch");
        let batch: Vec<_> = fetched.map(|message| message.expect("a message")).collect().await;
        done += batch.len();
        let acks = batch.iter().map(|message| {
            tally.note(number(&message.payload));
            message.double_ack_with(AckKind::Ack)
        });
        for acked in join_all(acks).await {
            acked.expect("ack");
        }
    }
}

async fn raw_consume(bench: &Bench, confirmed: bool) -> Sample {
    let (name, many) = (bench.stream().await, bench.arguments.many);
    bench.fill(&name, many).await;
    let (consumer, tally) = (bench.raw_consumer(&name).await, Arc::new(Tally::default()));
    let sample = measure(many, async {
        if confirmed {
            raw_confirmed(&consumer, many, &tally).await;
        } else {
            raw_plain(&consumer, many, &tally).await;
        }
    })
    .await;
    work::complete(tally, many).await;
    bench.delete(&name, 0).await;
    sample
}

async fn our_consume(bench: &Bench, plain: bool, acks: Acks, messages: usize) -> Sample {
    let name = bench.name();
    // Declares the stream.
    drop(bench.producer(&name).await);
    bench.fill(&name, messages).await;
    let mut consumer = bench.consumer(&name, plain).await;
    let tally = Arc::new(Tally::default());
    let sample = measure(messages, work::receive(&mut consumer, messages, acks, &tally)).await;
    work::complete(tally, messages).await;
    consumer.shutdown_handle().shutdown().await;
    bench.delete(&name, 0).await;
    sample
}

async fn consume(bench: &Bench) {
    const RAW: &str = "async-nats stream(), ack of each";
    const OUR_PLAIN: &str = "buqueue plain_acks, receive_batch(100) + ack_all";
    const RAW_CONFIRMED: &str = "async-nats fetch(100), 100 double acks joined";
    const OUR_ALL: &str = "buqueue receive_batch(100) + ack_all";
    const OUR_TOGETHER: &str = "buqueue receive_batch(100) + 100 acks joined";
    let many = bench.arguments.many;
    let results = Contest::new("Receive and ack, acks not answered")
        .with(RAW, || raw_consume(bench, false))
        .with(OUR_PLAIN, || our_consume(bench, true, Acks::All, many))
        .run(bench.arguments.rounds)
        .await;
    at_least("A10 plain acks", results.rate(OUR_PLAIN, RAW), 0.95);
    at_most("A1 plain acks, client CPU", results.cpu(OUR_PLAIN, RAW), 1.15);
    let results = Contest::new("Receive and ack, each ack answered by the server")
        .with(RAW_CONFIRMED, || raw_consume(bench, true))
        .with(OUR_ALL, || our_consume(bench, false, Acks::All, many))
        .with(OUR_TOGETHER, || our_consume(bench, false, Acks::Together, many))
        .run(bench.arguments.rounds)
        .await;
    at_least("A10 confirmed acks", results.rate(OUR_ALL, RAW_CONFIRMED), 0.9);
    at_least("A5 100 acks at once / ack_all", results.rate(OUR_TOGETHER, OUR_ALL), 0.8);
    at_most("A1 confirmed acks, client CPU", results.cpu(OUR_ALL, RAW_CONFIRMED), 1.15);
}

async fn our_end_to_end(bench: &Bench, plain_acks: bool) -> Sample {
    let (name, many) = (bench.name(), bench.arguments.many);
    let (producer, mut consumer) = (bench.producer(&name).await, bench.consumer(&name, plain_acks).await);
    let (work, tally) = (batches(many, plain), Arc::new(Tally::default()));
    let sample = measure(many, async {
        let producing = tokio::spawn(async move { work::send_batches(&producer, work).await });
        work::receive(&mut consumer, many, Acks::All, &tally).await;
        producing.await.expect("producer");
    })
    .await;
    work::complete(tally, many).await;
    consumer.shutdown_handle().shutdown().await;
    bench.delete(&name, 0).await;
    sample
}

async fn end_to_end(bench: &Bench) {
    const RAW: &str = "async-nats, window of 100, stream(), ack of each";
    const OUR_PLAIN: &str = "buqueue, plain_acks";
    const OURS: &str = "buqueue";
    let many = bench.arguments.many;
    let results = Contest::new("End to end")
        .with(RAW, || async move {
            let name = bench.stream().await;
            let consumer = bench.raw_consumer(&name).await;
            let (work, tally) = (batches(many, plain), Arc::new(Tally::default()));
            let sample = measure(many, async {
                let (context, to) = (bench.context.clone(), name.clone());
                let producing = tokio::spawn(async move {
                    for batch in &work {
                        raw_window(&context, &to, batch).await;
                    }
                });
                raw_plain(&consumer, many, &tally).await;
                producing.await.expect("producer");
            })
            .await;
            work::complete(tally, many).await;
            bench.delete(&name, 0).await;
            sample
        })
        .with(OUR_PLAIN, || our_end_to_end(bench, true))
        .with(OURS, || our_end_to_end(bench, false))
        .run(bench.arguments.rounds)
        .await;
    at_least("A6 end to end, plain acks", results.rate(OUR_PLAIN, RAW), 0.9);
}

/// One message in flight: sent and confirmed, received and acked, then the next.
async fn delivered(bench: &Bench) {
    const RAW: &str = "async-nats, double ack";
    const OURS: &str = "buqueue";
    let few = bench.arguments.few / 2;
    let results = Contest::new("Send until delivered and acked, one in flight")
        .with(RAW, || async move {
            let name = bench.stream().await;
            let consumer = bench.raw_consumer(&name).await;
            let mut messages =
                consumer.stream().max_messages_per_batch(1000).messages().await.expect("messages");
            let sample = measure(few, async {
                for sent in 0..few as u64 {
                    raw_publish(&bench.context, &name, &plain(sent)).await.await.expect("ack");
                    let message = messages.next().await.expect("open").expect("a message");
                    assert_eq!(number(&message.payload), sent);
                    message.double_ack().await.expect("ack");
                }
            })
            .await;
            bench.delete(&name, 0).await;
            sample
        })
        .with(OURS, || async move {
            let name = bench.name();
            let (producer, mut consumer) = (bench.producer(&name).await, bench.consumer(&name, false).await);
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
            bench.delete(&name, 0).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_most("A3 send until delivered and acked, time", 1.0 / results.rate(OURS, RAW), 1.1);
}

mod peers {
    use std::sync::OnceLock;

    /// shove fixes the stream's name in the type.
    pub struct ShoveTopic;

    pub static SHOVE_QUEUE: OnceLock<String> = OnceLock::new();

    impl shove::Topic for ShoveTopic {
        type Message = Vec<u8>;
        type Codec = shove::RawBytesCodec;

        fn topology() -> &'static shove::QueueTopology {
            static TOPOLOGY: OnceLock<shove::QueueTopology> = OnceLock::new();
            let queue = SHOVE_QUEUE.get().expect("set before");
            TOPOLOGY.get_or_init(|| shove::TopologyBuilder::new(queue.clone()).build())
        }
    }
}

async fn shove_send(bench: &Bench) -> Sample {
    let name = peers::SHOVE_QUEUE.get_or_init(|| format!("bench-{}-shove", std::process::id()));
    let broker = shove::Broker::<shove::Nats>::new(shove::nats::NatsConfig::new(&bench.url)).await;
    let broker = broker.expect("shove");
    broker.topology().declare::<peers::ShoveTopic>().await.expect("shove");
    let publisher = broker.publisher().await.expect("shove");
    let few = bench.arguments.few;
    let work = batches(few, payload);
    let sample = measure(few, async {
        for batch in &work {
            publisher.publish_batch::<peers::ShoveTopic>(batch).await.expect("publish_batch");
        }
    })
    .await;
    bench.context.delete_stream(name).await.expect("delete");
    sample
}

async fn peers(bench: &Bench) {
    const SHOVE: &str = "shove 0.16 publish_batch(100), in files";
    let rounds = bench.arguments.rounds.min(11);
    let results = Contest::new("Peers: send")
        .with(OURS, || our_send(bench, plain))
        .with(SHOVE, || shove_send(bench))
        .run(rounds)
        .await;
    at_least("send_batch(100) / shove", results.rate(OURS, SHOVE), 1.0);
}

fn main() {
    let url = std::env::var("BUQUEUE_TEST_NATS").expect("BUQUEUE_TEST_NATS, the URL of a server");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let client = runtime.block_on(async_nats::connect(&url)).expect("connect");
    // The context spawns a task.
    let _entered = runtime.enter();
    let bench = Arc::new(Bench {
        arguments: Arguments::read(),
        serial: AtomicUsize::new(0),
        context: jetstream::new(client),
        url,
    });
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
    section!("peers", peers);
}
