//! The RabbitMQ backend beside the raw client and its peers: one broker, short rounds in alternating order, medians of
//! per-round ratios.
//!
//! `rabbitmq [--quick] [--deep] [send|single|consume|end-to-end|delivered|peers]…`
//!
//! The broker is `BUQUEUE_TEST_RABBITMQ`. Every contender gets a fresh quorum queue in every round, which is deleted
//! afterwards. The raw client sends the same properties, confirms and `mandatory` as buqueue does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buqueue_bench::contest::Contest;
use buqueue_bench::work::{self, Acks, Arguments, BATCH, batches, number, payload, plain, with_headers};
use buqueue_bench::{Sample, Tally, at_least, at_most, measure};
use buqueue_core::{Consumer, Message, Producer};
use buqueue_rabbitmq::{QueueType, RabbitMqBackend, RabbitMqConfig};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

const PREFETCH: u16 = 1000;

struct Bench {
    url: String,
    arguments: Arguments,
    serial: AtomicUsize,
    connection: Connection,
    queue_type: QueueType,
}

impl Bench {
    /// A fresh queue.
    async fn queue(&self) -> String {
        let name = format!("bench-{}-{}", std::process::id(), self.serial.fetch_add(1, Ordering::Relaxed));
        let mut arguments = FieldTable::default();
        if self.queue_type == QueueType::Quorum {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
            // As buqueue declares it.
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(1_000_000_000));
        }
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let channel = self.channel().await;
        channel.queue_declare(name.as_str().into(), options, arguments).await.expect("declare");
        name
    }

    async fn channel(&self) -> Channel {
        let channel = self.connection.create_channel().await.expect("channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        channel
    }

    /// Deletes the queue, after it was found to hold so many messages.
    async fn delete(&self, queue: &str, expected: usize) {
        let channel = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let mut left = 0;
        // Acks are not answered: they may still be on their way.
        for _ in 0..100 {
            let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
            left = usize::try_from(declared.expect("the queue").message_count()).expect("small");
            if left == expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(left, expected, "messages left in the queue");
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("delete");
    }

    fn config(&self, queue: &str) -> RabbitMqConfig {
        RabbitMqConfig {
            url: self.url.clone(),
            queue: queue.to_owned(),
            queue_type: self.queue_type,
            prefetch_count: PREFETCH,
            ..RabbitMqConfig::default()
        }
    }

    async fn producer(&self, queue: &str) -> Producer<RabbitMqBackend> {
        RabbitMqBackend::builder(self.config(queue)).build_producer().await.expect("producer")
    }

    async fn consumer(&self, queue: &str) -> Consumer<RabbitMqBackend> {
        RabbitMqBackend::builder(self.config(queue)).build_consumer().await.expect("consumer")
    }

    async fn fill(&self, queue: &str, messages: usize) {
        let channel = self.channel().await;
        for batch in batches(messages, plain).chunks(10) {
            raw_joined(&channel, queue, &batch.concat()).await;
        }
    }
}

fn properties(message: &Message) -> BasicProperties {
    let id = format!("bench-{}", number(message.payload()));
    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.as_str().into());
    let mut table = FieldTable::default();
    let key = message.routing_key().map(|key| ("buqueue-amqp-key", key));
    for (name, value) in key.into_iter().chain(message.headers().iter()) {
        table.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    if table.inner().is_empty() { properties } else { properties.with_headers(table) }
}

const MANDATORY: BasicPublishOptions = BasicPublishOptions { mandatory: true, immediate: false };

async fn raw_publish(channel: &Channel, queue: &str, message: &Message) -> lapin::PublisherConfirm {
    let (payload, properties) = (message.payload(), properties(message));
    let published = channel.basic_publish("".into(), queue.into(), MANDATORY, payload, properties).await;
    published.expect("publish")
}

fn confirmed(confirmation: lapin::Result<Confirmation>) {
    assert!(matches!(confirmation, Ok(Confirmation::Ack(None))), "{confirmation:?}");
}

/// The fastest way: all publishes polled together.
async fn raw_joined(channel: &Channel, queue: &str, batch: &[Message]) {
    let sending = batch.iter().map(|message| async { raw_publish(channel, queue, message).await.await });
    join_all(sending).await.into_iter().for_each(confirmed);
}

/// The usual way: each publish awaited, then the confirms.
async fn raw_usual(channel: &Channel, queue: &str, batch: &[Message]) {
    let mut confirms = Vec::with_capacity(batch.len());
    for message in batch {
        confirms.push(raw_publish(channel, queue, message).await);
    }
    for confirm in confirms {
        confirmed(confirm.await);
    }
}

async fn raw_send(bench: &Bench, usual: bool, make: fn(u64) -> Message) -> Sample {
    let (queue, channel, many) = (bench.queue().await, bench.channel().await, bench.arguments.many);
    let work = batches(many, make);
    let sample = measure(many, async {
        for batch in &work {
            if usual {
                raw_usual(&channel, &queue, batch).await;
            } else {
                raw_joined(&channel, &queue, batch).await;
            }
        }
    })
    .await;
    bench.delete(&queue, many).await;
    sample
}

async fn our_send(bench: &Bench, batch: usize, make: fn(u64) -> Message) -> Sample {
    let (queue, many) = (bench.queue().await, bench.arguments.many);
    let producer = bench.producer(&queue).await;
    let all: Vec<Message> = (0..many as u64).map(make).collect();
    let work = all.chunks(batch).map(<[Message]>::to_vec).collect();
    let sample = measure(many, work::send_batches(&producer, work)).await;
    bench.delete(&queue, many).await;
    sample
}

const RAW_JOINED: &str = "lapin, 100 publishes joined";
const RAW_USUAL: &str = "lapin, each publish awaited, then the confirms";
const OURS: &str = "buqueue send_batch(100)";

async fn send(bench: &Bench) {
    let results = Contest::new("Send in batches of 100")
        .with(RAW_JOINED, || raw_send(bench, false, plain))
        .with(RAW_USUAL, || raw_send(bench, true, plain))
        .with(OURS, || our_send(bench, BATCH, plain))
        .run(bench.arguments.rounds)
        .await;
    at_least("A11 send_batch / joined", results.rate(OURS, RAW_JOINED), 0.95);
    at_least("A11 send_batch / await then confirm", results.rate(OURS, RAW_USUAL), 1.4);
    at_most("A1 send_batch, client CPU", results.cpu(OURS, RAW_JOINED), 1.15);
    let results = Contest::new("Send in batches of 100, routing key and three headers")
        .with(RAW_JOINED, || raw_send(bench, false, with_headers))
        .with(OURS, || our_send(bench, BATCH, with_headers))
        .run(bench.arguments.rounds)
        .await;
    at_least("A1 send_batch, key + 3 headers", results.rate(OURS, RAW_JOINED), 0.95);
    at_most("A1 send_batch, key + 3 headers, client CPU", results.cpu(OURS, RAW_JOINED), 1.15);
}

async fn single(bench: &Bench) {
    const RAW: &str = "lapin, publish and confirm";
    const OURS: &str = "buqueue send";
    const RAW_MANY: &str = "lapin, 64 tasks on one channel";
    const OUR_MANY: &str = "buqueue, 64 tasks on one producer";
    let few = bench.arguments.few;
    let results = Contest::new("Send one by one")
        .with(RAW, || async move {
            let (queue, channel) = (bench.queue().await, bench.channel().await);
            let sample = measure(few, async {
                for number in 0..few as u64 {
                    confirmed(raw_publish(&channel, &queue, &plain(number)).await.await);
                }
            })
            .await;
            bench.delete(&queue, few).await;
            sample
        })
        .with(OURS, || async move {
            let queue = bench.queue().await;
            let producer = bench.producer(&queue).await;
            let sample = measure(few, work::send_each(&producer, few)).await;
            bench.delete(&queue, few).await;
            sample
        })
        .run(bench.arguments.rounds.min(21))
        .await;
    at_most("A3 one awaited send, time", 1.0 / results.rate(OURS, RAW), 1.1);
    let many = bench.arguments.many;
    let results = Contest::new("Send from 64 tasks")
        .with(RAW_MANY, || async move {
            let (queue, channel) = (bench.queue().await, bench.channel().await);
            let sample = measure(many, async {
                let tasks = (0..64).map(|caller| {
                    let (channel, queue) = (channel.clone(), queue.clone());
                    tokio::spawn(async move {
                        for number in (caller..many as u64).step_by(64) {
                            confirmed(raw_publish(&channel, &queue, &plain(number)).await.await);
                        }
                    })
                });
                for task in join_all(tasks).await {
                    task.expect("a caller");
                }
            })
            .await;
            bench.delete(&queue, many).await;
            sample
        })
        .with(OUR_MANY, || async move {
            let queue = bench.queue().await;
            let producer = Arc::new(bench.producer(&queue).await);
            let sample = measure(many, work::send_from_many(&producer, many, 64)).await;
            bench.delete(&queue, many).await;
            sample
        })
        .run(bench.arguments.rounds.min(21))
        .await;
    at_least("A4 64 callers", results.rate(OUR_MANY, RAW_MANY), 0.9);
}

/// Receives and acks by hand until `messages` are done.
async fn raw_receive(channel: &Channel, queue: &str, messages: usize, acks: Acks, tally: &Tally) {
    let prefetch = if matches!(acks, Acks::Each) { 1 } else { PREFETCH };
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.expect("qos");
    let consuming =
        channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consuming.await.expect("consume");
    let mut open = Vec::with_capacity(BATCH);
    let ack = |tag, multiple| channel.basic_ack(tag, BasicAckOptions { multiple });
    for done in 1..=messages {
        let delivery = consumer.next().await.expect("open").expect("a delivery");
        tally.note(number(&delivery.data));
        match acks {
            Acks::Each => ack(delivery.delivery_tag, false).await.expect("ack"),
            Acks::All if done % BATCH == 0 || done == messages => {
                ack(delivery.delivery_tag, true).await.expect("ack");
            }
            Acks::All => {}
            Acks::Together => {
                open.push(delivery.delivery_tag);
                if open.len() == BATCH || done == messages {
                    for acked in join_all(open.drain(..).map(|tag| ack(tag, false))).await {
                        acked.expect("ack");
                    }
                }
            }
        }
    }
}

async fn raw_consume(bench: &Bench, acks: Acks, messages: usize) -> Sample {
    let (queue, channel) = (bench.queue().await, bench.channel().await);
    bench.fill(&queue, messages).await;
    let tally = Arc::new(Tally::default());
    let sample = measure(messages, raw_receive(&channel, &queue, messages, acks, &tally)).await;
    work::complete(tally, messages).await;
    bench.delete(&queue, 0).await;
    // Not at once: a quorum queue forgets acks that are on their way when the channel closes.
    channel.close(200, "done".into()).await.expect("close");
    sample
}

async fn our_consume(bench: &Bench, acks: Acks, messages: usize) -> Sample {
    let queue = bench.queue().await;
    bench.fill(&queue, messages).await;
    let mut consumer = bench.consumer(&queue).await;
    let tally = Arc::new(Tally::default());
    let sample = measure(messages, work::receive(&mut consumer, messages, acks, &tally)).await;
    work::complete(tally, messages).await;
    consumer.shutdown_handle().shutdown().await;
    bench.delete(&queue, 0).await;
    sample
}

const RAW_MULTIPLE: &str = "lapin, prefetch 1000, one ack for 100";
const RAW_TOGETHER: &str = "lapin, prefetch 1000, 100 acks joined";
const OUR_ALL: &str = "buqueue receive_batch(100) + ack_all";
const OUR_TOGETHER: &str = "buqueue receive_batch(100) + 100 acks joined";
const OUR_EACH: &str = "buqueue receive_batch(100) + each ack awaited";

async fn consume(bench: &Bench) {
    let many = bench.arguments.many;
    let results = Contest::new("Receive and ack")
        .with(RAW_MULTIPLE, || raw_consume(bench, Acks::All, many))
        .with(RAW_TOGETHER, || raw_consume(bench, Acks::Together, many))
        .with(OUR_ALL, || our_consume(bench, Acks::All, many))
        .with(OUR_TOGETHER, || our_consume(bench, Acks::Together, many))
        .with(OUR_EACH, || our_consume(bench, Acks::Each, many))
        .run(bench.arguments.rounds)
        .await;
    at_least("A12 receive + ack_all / one ack for 100", results.rate(OUR_ALL, RAW_MULTIPLE), 0.95);
    at_most("A1 receive + ack_all, client CPU", results.cpu(OUR_ALL, RAW_MULTIPLE), 1.15);
    at_least("A5 100 acks at once / ack_all", results.rate(OUR_TOGETHER, OUR_ALL), 0.8);
    at_least("100 acks at once / raw's", results.rate(OUR_TOGETHER, RAW_TOGETHER), 1.0);
}

async fn end_to_end(bench: &Bench) {
    const RAW: &str = "lapin, window 100 and one ack for 100";
    const OURS: &str = "buqueue send_batch(100), receive_batch(100) + ack_all";
    let many = bench.arguments.many;
    let results = Contest::new("End to end")
        .with(RAW, || async move {
            let queue = bench.queue().await;
            let (sending, receiving) = (bench.channel().await, bench.channel().await);
            let (work, tally) = (batches(many, plain), Arc::new(Tally::default()));
            let sample = measure(many, async {
                let to = queue.clone();
                let producing = tokio::spawn(async move {
                    for batch in &work {
                        raw_joined(&sending, &to, batch).await;
                    }
                });
                raw_receive(&receiving, &queue, many, Acks::All, &tally).await;
                producing.await.expect("producer");
            })
            .await;
            work::complete(tally, many).await;
            bench.delete(&queue, 0).await;
            sample
        })
        .with(OURS, || async move {
            let queue = bench.queue().await;
            let (producer, mut consumer) = (bench.producer(&queue).await, bench.consumer(&queue).await);
            let (work, tally) = (batches(many, plain), Arc::new(Tally::default()));
            let sample = measure(many, async {
                let producing = tokio::spawn(async move { work::send_batches(&producer, work).await });
                work::receive(&mut consumer, many, Acks::All, &tally).await;
                producing.await.expect("producer");
            })
            .await;
            work::complete(tally, many).await;
            consumer.shutdown_handle().shutdown().await;
            bench.delete(&queue, 0).await;
            sample
        })
        .run(bench.arguments.rounds.min(21))
        .await;
    at_least("A6 end to end", results.rate(OURS, RAW), 0.9);
}

/// One message in flight: sent and confirmed, received and acked, then the next.
async fn delivered(bench: &Bench) {
    const RAW: &str = "lapin";
    const OURS: &str = "buqueue";
    let few = bench.arguments.few / 2;
    let results = Contest::new("Send until delivered and acked, one in flight")
        .with(RAW, || async move {
            let queue = bench.queue().await;
            let (sending, receiving) = (bench.channel().await, bench.channel().await);
            receiving.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("qos");
            let options = BasicConsumeOptions::default();
            let consuming =
                receiving.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
            let mut consumer = consuming.await.expect("consume");
            let sample = measure(few, async {
                for sent in 0..few as u64 {
                    confirmed(raw_publish(&sending, &queue, &plain(sent)).await.await);
                    let delivery = consumer.next().await.expect("open").expect("a delivery");
                    assert_eq!(number(&delivery.data), sent);
                    delivery.acker.ack(BasicAckOptions::default()).await.expect("ack");
                }
            })
            .await;
            receiving.close(200, "done".into()).await.expect("close");
            bench.delete(&queue, 0).await;
            sample
        })
        .with(OURS, || async move {
            let queue = bench.queue().await;
            let (producer, mut consumer) = (bench.producer(&queue).await, bench.consumer(&queue).await);
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
            bench.delete(&queue, 0).await;
            sample
        })
        .run(bench.arguments.rounds.min(21))
        .await;
    at_most("A3 send until delivered and acked, time", 1.0 / results.rate(OURS, RAW), 1.1);
}

mod peers {
    use std::sync::OnceLock;

    use omniqueue::backends::RabbitMqBackend;
    use omniqueue::backends::rabbitmq::{
        BasicConsumeOptions, BasicProperties, BasicPublishOptions, ConnectionProperties, FieldTable,
        RabbitMqConfig, RabbitMqConsumer, RabbitMqProducer,
    };

    use super::Bench;

    pub async fn omniqueue(bench: &Bench, queue: &str) -> (RabbitMqProducer, RabbitMqConsumer) {
        let config = RabbitMqConfig {
            uri: bench.url.clone(),
            connection_properties: ConnectionProperties::default(),
            publish_exchange: String::new(),
            publish_routing_key: queue.to_owned(),
            publish_options: BasicPublishOptions::default(),
            publish_properties: BasicProperties::default().with_delivery_mode(2),
            consume_queue: queue.to_owned(),
            consumer_tag: "bench".to_owned(),
            consume_options: BasicConsumeOptions::default(),
            consume_arguments: FieldTable::default(),
            consume_prefetch_count: Some(super::PREFETCH),
            requeue_on_nack: true,
        };
        RabbitMqBackend::builder(config).build_pair().await.expect("omniqueue")
    }

    /// shove fixes the queue's name in the type.
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

async fn omni_send(bench: &Bench) -> Sample {
    let (queue, many) = (bench.queue().await, bench.arguments.many);
    let (producer, consumer) = peers::omniqueue(bench, &queue).await;
    let work: Vec<Vec<u8>> = (0..many as u64).map(payload).collect();
    let sample = measure(many, async {
        for payload in &work {
            producer.send_raw(payload).await.expect("send");
        }
    })
    .await;
    drop((producer, consumer));
    let channel = bench.channel().await;
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("delete");
    sample
}

async fn omni_receive(bench: &Bench, together: bool) -> Sample {
    let (queue, few) = (bench.queue().await, bench.arguments.few);
    bench.fill(&queue, few).await;
    let (producer, mut consumer) = peers::omniqueue(bench, &queue).await;
    let tally = Arc::new(Tally::default());
    let sample = measure(few, async {
        let mut done = 0;
        while done < few {
            let most = if together { BATCH } else { 1 };
            let batch = consumer.receive_all(most, Duration::from_secs(10)).await.expect("receive_all");
            done += batch.len();
            let acks = batch.into_iter().map(|mut delivery| {
                tally.note(number(&delivery.take_payload().expect("a payload")));
                delivery.ack()
            });
            for acked in join_all(acks).await {
                acked.map_err(|(error, _)| error).expect("ack");
            }
        }
    })
    .await;
    work::complete(tally, few).await;
    drop((producer, consumer));
    bench.delete(&queue, 0).await;
    sample
}

async fn shove_send(bench: &Bench) -> Sample {
    let name = peers::SHOVE_QUEUE.get_or_init(|| format!("bench-{}-shove", std::process::id()));
    let config = shove::rabbitmq::RabbitMqConfig::new(&bench.url);
    let broker = shove::Broker::<shove::RabbitMq>::new(config).await.expect("shove");
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
    bench.delete(name, few).await;
    sample
}

async fn peers(bench: &Bench) {
    const OURS_1000: &str = "buqueue send_batch(1000)";
    const OMNI: &str = "omniqueue 0.3 send_raw, no confirms";
    const SHOVE: &str = "shove 0.16 publish_batch(100)";
    const OMNI_ONE: &str = "omniqueue 0.3 receive + ack";
    const OMNI_TOGETHER: &str = "omniqueue 0.3 receive_all(100) + acks joined";
    let (rounds, many) = (bench.arguments.rounds.min(11), bench.arguments.many);
    let results = Contest::new("Peers: send")
        .with(OURS, || our_send(bench, BATCH, plain))
        .with(OURS_1000, || our_send(bench, 1000, plain))
        .with(OMNI, || omni_send(bench))
        .with(SHOVE, || shove_send(bench))
        .run(rounds)
        .await;
    at_least("A11 send_batch(1000) / omniqueue's unconfirmed", results.rate(OURS_1000, OMNI), 0.75);
    at_least("send_batch(100) / shove", results.rate(OURS, SHOVE), 1.0);
    let results = Contest::new("Peers: receive and ack")
        .with(OUR_ALL, || our_consume(bench, Acks::All, many))
        .with(OUR_TOGETHER, || our_consume(bench, Acks::Together, many))
        .with(OMNI_ONE, || omni_receive(bench, false))
        .with(OMNI_TOGETHER, || omni_receive(bench, true))
        .run(rounds)
        .await;
    at_least("A12 receive + ack_all / omniqueue", results.rate(OUR_ALL, OMNI_ONE), 4.5);
    at_least("100 acks at once / omniqueue's", results.rate(OUR_TOGETHER, OMNI_TOGETHER), 4.5);
}

fn main() {
    let url = std::env::var("BUQUEUE_TEST_RABBITMQ").expect("BUQUEUE_TEST_RABBITMQ, the URL of a broker");
    let classic = std::env::var_os("BUQUEUE_BENCH_CLASSIC").is_some();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let connecting = Connection::connect(&url, ConnectionProperties::default());
    let bench = Arc::new(Bench {
        arguments: Arguments::read(),
        serial: AtomicUsize::new(0),
        connection: runtime.block_on(connecting).expect("connect"),
        queue_type: if classic { QueueType::Classic } else { QueueType::Quorum },
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
