//! The Redis backend beside the raw client and its peers: one server, short rounds in alternating order, medians of
//! per-round ratios.
//!
//! `redis [--quick] [--only=CONTENDER] [send|single|concurrent|consume|end-to-end|delivered|peers|commands|backlog]…`
//!
//! `--only=OurAckAll` runs one contender over and over, for a profiler.
//!
//! The server is `BUQUEUE_TEST_REDIS`. Every contender gets a fresh stream in every round; all keys have the prefix
//! `bench:` and are deleted. Absolute rates say little; the figures of one peer hold for the settings below.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use buqueue_bench::work::{BATCH, PATIENCE, batches, number, payload, plain, with_headers};
use buqueue_bench::{Sample, Tally, at_least, at_most, measure, median, percentile, table};
use buqueue_core::{Consumer, Delivery, Message, Producer};
use buqueue_redis::{RedisBackend, RedisConfig};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo as _, Pipeline, Value};
use tokio::sync::mpsc;

const GROUP: &str = "bench";

/// The server, and how much work a round is.
struct Bench {
    url: String,
    client: Client,
    prefix: String,
    serial: AtomicUsize,
    rounds: usize,
    /// Messages a round for the fast contenders.
    many: usize,
    /// For those that take a round trip a message.
    few: usize,
}

impl Bench {
    fn key(&self) -> String {
        format!("{}:{}", self.prefix, self.serial.fetch_add(1, Ordering::Relaxed))
    }

    async fn connect(&self) -> MultiplexedConnection {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        self.client.get_multiplexed_async_connection_with_config(&config).await.expect("connect")
    }

    fn config(&self, key: &str) -> RedisConfig {
        RedisConfig {
            url: self.url.clone(),
            stream: key.to_owned(),
            group: GROUP.to_owned(),
            consumer: "one".to_owned(),
            ..RedisConfig::default()
        }
    }

    async fn producer(&self, key: &str) -> Producer<RedisBackend> {
        RedisBackend::builder(self.config(key)).build_producer().await.expect("producer")
    }

    async fn consumer(&self, key: &str) -> Consumer<RedisBackend> {
        RedisBackend::builder(self.config(key)).build_consumer().await.expect("consumer")
    }

    /// A group, and `messages` in its stream.
    async fn fill(&self, con: &mut MultiplexedConnection, key: &str, from: u64, messages: usize) {
        for start in (0..messages).step_by(1000) {
            let mut pipe = Pipeline::with_capacity(1000);
            for at in start..messages.min(start + 1000) {
                pipe.add_command(raw::xadd(key, &plain(from + at as u64)));
            }
            let count = pipe.len();
            con.req_packed_commands(&pipe, 0, count).await.expect("XADD");
        }
    }

    async fn group(&self, con: &mut MultiplexedConnection, key: &str) {
        let mut cmd = redis::cmd("XGROUP");
        cmd.arg("CREATE").arg(key).arg(GROUP).arg("0").arg("MKSTREAM");
        cmd.query_async::<()>(con).await.expect("XGROUP CREATE");
    }

    async fn expect_len(&self, con: &mut MultiplexedConnection, key: &str, expected: usize) {
        let len: usize = redis::cmd("XLEN").arg(key).query_async(con).await.expect("XLEN");
        assert_eq!(len, expected, "entries left in the stream");
    }

    async fn delete(&self, con: &mut MultiplexedConnection, key: &str) {
        let mut cmd = redis::cmd("DEL");
        cmd.arg(key);
        for suffix in [":retry:bench", ":delayed:bench", ":holds:bench", ":schedule", ":broken"] {
            cmd.arg(format!("{{{key}}}{suffix}"));
        }
        cmd.query_async::<()>(con).await.expect("DEL");
    }

    /// Deletes what a peer or an interrupted round left behind.
    async fn sweep(&self) {
        let mut con = self.connect().await;
        let mut cursor = 0_u64;
        loop {
            let mut cmd = redis::cmd("SCAN");
            cmd.arg(cursor).arg("MATCH").arg(format!("*{}:*", self.prefix)).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) = cmd.query_async(&mut con).await.expect("SCAN");
            if !keys.is_empty() {
                redis::cmd("DEL").arg(keys).query_async::<()>(&mut con).await.expect("DEL");
            }
            cursor = next;
            if cursor == 0 {
                return;
            }
        }
    }
}

mod raw {
    //! The client by hand: no more work than the server needs, replies taken apart by hand.

    use super::*;

    pub fn xadd(key: &str, message: &Message) -> Cmd {
        let mut cmd = Cmd::with_capacity(9, message.payload().len() + key.len() + 64);
        cmd.arg("XADD").arg(key).arg("*").arg(b"p").arg(&message.payload()[..]);
        if let Some(routing_key) = message.routing_key() {
            cmd.arg(b"k").arg(routing_key);
        }
        if !message.headers().is_empty() {
            let mut headers = Vec::with_capacity(message.headers().byte_len() + 2 * message.headers().len());
            for text in message.headers().iter().flat_map(|(name, value)| [name, value]) {
                headers.push(u8::try_from(text.len()).expect("short headers"));
                headers.extend_from_slice(text.as_bytes());
            }
            cmd.arg(b"h").arg(headers);
        }
        cmd
    }

    fn added(reply: &Value) {
        assert!(matches!(reply, Value::BulkString(_)), "no id: {reply:?}");
    }

    pub async fn send(con: &mut MultiplexedConnection, key: &str, message: &Message) {
        added(&con.req_packed_command(&xadd(key, message)).await.expect("XADD"));
    }

    pub async fn send_batch(con: &mut MultiplexedConnection, key: &str, messages: Vec<Message>) {
        let mut pipe = Pipeline::with_capacity(messages.len());
        for message in &messages {
            pipe.add_command(xadd(key, message));
        }
        let replies = con.req_packed_commands(&pipe, 0, messages.len()).await.expect("XADD");
        assert_eq!(replies.len(), messages.len());
        replies.iter().for_each(added);
    }

    /// Ids and payloads.
    #[derive(Default)]
    pub struct Page {
        pub ids: Vec<Vec<u8>>,
        pub payloads: Vec<Vec<u8>>,
    }

    pub async fn read(con: &mut MultiplexedConnection, key: &str, count: usize) -> Page {
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP").arg(GROUP).arg("one").arg("COUNT").arg(count).arg("BLOCK").arg(2000);
        cmd.arg("STREAMS").arg(key).arg(">");
        let reply = con.req_packed_command(&cmd).await.expect("XREADGROUP");
        let Value::Array(mut streams) = reply else { return Page::default() };
        let Some(Value::Array(mut stream)) = streams.pop() else { panic!("no stream") };
        let Some(Value::Array(entries)) = stream.pop() else { panic!("no entries") };
        let mut page =
            Page { ids: Vec::with_capacity(entries.len()), payloads: Vec::with_capacity(entries.len()) };
        for entry in entries {
            let Value::Array(mut entry) = entry else { panic!("no entry") };
            let (Some(Value::Array(mut fields)), Some(Value::BulkString(id))) = (entry.pop(), entry.pop())
            else {
                panic!("no entry")
            };
            let Some(Value::BulkString(payload)) = fields.pop() else { panic!("no payload") };
            page.ids.push(id);
            page.payloads.push(payload);
        }
        page
    }

    pub async fn ack(con: &mut MultiplexedConnection, key: &str, ids: &[Vec<u8>]) {
        let mut pipe = Pipeline::with_capacity(2);
        pipe.cmd("XACK").arg(key).arg(GROUP).arg(ids);
        pipe.cmd("XDEL").arg(key).arg(ids);
        let replies = con.req_packed_commands(&pipe, 0, 2).await.expect("XACK, XDEL");
        let count = Value::Int(i64::try_from(ids.len()).expect("a batch"));
        assert_eq!(replies, [count.clone(), count], "acked and deleted");
    }
}

mod peers {
    //! What the peers need to be driven.

    use super::*;

    pub type Omni = omniqueue::backends::RedisBackend;

    pub fn omniqueue(bench: &Bench, key: &str) -> omniqueue::backends::RedisConfig {
        omniqueue::backends::RedisConfig {
            dsn: bench.url.clone(),
            max_connections: 16,
            reinsert_on_nack: false,
            queue_key: key.to_owned(),
            // Empty: no task that polls for delayed messages.
            delayed_queue_key: String::new(),
            delayed_lock_key: String::new(),
            consumer_group: GROUP.to_owned(),
            consumer_name: "one".to_owned(),
            payload_key: "payload".to_owned(),
            ack_deadline_ms: 60_000,
            dlq_config: None,
            sentinel_config: None,
        }
    }

    /// A flowd payload with one field, as lean as its trait allows.
    pub struct Job(pub Vec<u8>);

    impl flowd::Job for Job {
        fn try_to_pairs(self) -> Result<Vec<(String, Value)>, String> {
            Ok(vec![("p".to_owned(), Value::BulkString(self.0))])
        }

        fn try_from_pairs(pairs: &[(String, Value)]) -> Result<Self, String> {
            match pairs {
                [(_, Value::BulkString(payload))] => Ok(Self(payload.clone())),
                _ => Err("no payload".to_owned()),
            }
        }

        fn fields() -> &'static [&'static str] {
            &["p"]
        }
    }

    /// A flowd queue; what its worker gets goes to `tally`.
    macro_rules! flowd_queue {
        ($bench:expr, $key:expr, $tally:expr) => {{
            let tally: Arc<Mutex<Arc<Tally>>> = Arc::new(Mutex::new($tally));
            let worker = move |job: peers::Job| {
                let tally = Arc::clone(&tally);
                async move {
                    tally.lock().expect("tally").note(number(&job.0));
                    Ok::<(), String>(())
                }
            };
            let (con, reading) = ($bench.connect().await, $bench.connect().await);
            let builder = flowd::task::QueueBuilder::new($key, GROUP, "one", worker, con, reading);
            let queue = flowd::task::Queue::new(builder.block_timeout(100).max_concurrent_tasks(100));
            queue.init().await.expect("flowd");
            queue
        }};
    }
    pub(crate) use flowd_queue;

    pub fn tasks(messages: usize) -> Vec<Vec<flowd::task::Task<Job>>> {
        batches(messages, |number| flowd::task::Task { id: "*".to_owned(), payload: Job(payload(number)) })
    }

    pub async fn rsmq(bench: &Bench, name: &str) -> rsmq_async::Rsmq {
        use rsmq_async::RsmqConnection as _;
        let ns = format!("{}:rsmq", bench.prefix);
        let mut rsmq = rsmq_async::Rsmq::new_with_connection(bench.connect().await, false, Some(&ns))
            .await
            .expect("rsmq");
        rsmq.create_queue(name, Some(Duration::from_secs(60)), None, Some(-1)).await.expect("rsmq queue");
        rsmq
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

/// One way to do one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    RawSend,
    OurSend,
    RawSendHeaders,
    OurSendHeaders,
    RawCallers,
    OurCallers,
    OmniCallers,
    RawReceive,
    RawReceiveAhead,
    OurAckAll,
    OurJoinAll,
    OurStream,
    RawOneByOne,
    OurOneByOne,
    RawEndToEnd,
    OurEndToEnd,
    OmniEndToEnd,
    OmniSend,
    OmniReceive,
    OmniReceiveConcurrent,
    FlowdSend,
    FlowdReceive,
    RsmqSend,
    RsmqReceive,
    ShoveSend,
}

const ALL: [Contender; 25] = [
    RawSend,
    OurSend,
    RawSendHeaders,
    OurSendHeaders,
    RawCallers,
    OurCallers,
    OmniCallers,
    RawReceive,
    RawReceiveAhead,
    OurAckAll,
    OurJoinAll,
    OurStream,
    RawOneByOne,
    OurOneByOne,
    RawEndToEnd,
    OurEndToEnd,
    OmniEndToEnd,
    OmniSend,
    OmniReceive,
    OmniReceiveConcurrent,
    FlowdSend,
    FlowdReceive,
    RsmqSend,
    RsmqReceive,
    ShoveSend,
];

const CALLERS: usize = 64;

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::RawSend => "raw, XADD pipe of 100",
            Self::OurSend => "buqueue send_batch(100)",
            Self::RawSendHeaders => "raw, XADD pipe of 100, key + 3 headers",
            Self::OurSendHeaders => "buqueue send_batch(100), key + 3 headers",
            Self::RawCallers => "raw, 64 tasks on one connection",
            Self::OurCallers => "buqueue send, 64 tasks on one producer",
            Self::OmniCallers => "omniqueue send_raw, 64 tasks",
            Self::RawReceive => "raw, XREADGROUP 100, XACK + XDEL of 100",
            Self::RawReceiveAhead => "raw, the same, next page read while acking",
            Self::OurAckAll => "buqueue receive_batch(100), ack_all",
            Self::OurJoinAll => "buqueue receive_batch(100), join_all of 100 acks",
            Self::OurStream => "buqueue into_stream, for_each_concurrent(100)",
            Self::RawOneByOne => "raw, XREADGROUP 1, XACK + XDEL",
            Self::OurOneByOne => "buqueue receive, ack",
            Self::RawEndToEnd => "raw, producer beside consumer",
            Self::OurEndToEnd => "buqueue, producer beside consumer",
            Self::OmniEndToEnd => "omniqueue, producer beside consumer",
            Self::OmniSend => "omniqueue 0.3 send_raw_batch(100)",
            Self::OmniReceive => "omniqueue 0.3 receive_all(100), ack each",
            Self::OmniReceiveConcurrent => "omniqueue 0.3 receive_all(100), 100 acks at once",
            Self::FlowdSend => "flowd 0.3 enqueue_bulk(100)",
            Self::FlowdReceive => "flowd 0.3 worker, concurrency 100, acks and never deletes",
            Self::RsmqSend => "rsmq_async 18 send_message_batch(100)",
            Self::RsmqReceive => "rsmq_async 18 receive_message_batch(100), delete each",
            Self::ShoveSend => "shove 0.16 publish_batch(100)",
        }
    }

    /// Runs once on a fresh stream, and checks that all that was sent arrived.
    async fn run(self, bench: &Bench) -> Option<Sample> {
        let key = bench.key();
        let mut con = bench.connect().await;
        let sample = match self {
            Self::RawSend | Self::RawSendHeaders => {
                let make = if self == Self::RawSend { plain } else { with_headers };
                let work = batches(bench.many, make);
                let mut own = bench.connect().await;
                let sample = measure(bench.many, async {
                    for batch in work {
                        raw::send_batch(&mut own, &key, batch).await;
                    }
                })
                .await;
                bench.expect_len(&mut con, &key, bench.many).await;
                Some(sample)
            }
            Self::OurSend | Self::OurSendHeaders => {
                let make = if self == Self::OurSend { plain } else { with_headers };
                let work = batches(bench.many, make);
                let producer = bench.producer(&key).await;
                let sample = measure(bench.many, async {
                    for batch in work {
                        assert_eq!(producer.send_batch(batch).await.expect("send_batch").len(), BATCH);
                    }
                })
                .await;
                bench.expect_len(&mut con, &key, bench.many).await;
                Some(sample)
            }
            Self::RawCallers | Self::OurCallers | Self::OmniCallers => {
                let sample = self.callers(bench, &key, &mut con).await;
                bench.expect_len(&mut con, &key, sample.messages).await;
                Some(sample)
            }
            Self::RawReceive | Self::RawReceiveAhead | Self::RawOneByOne => {
                let messages = if self == Self::RawOneByOne { bench.few } else { bench.many };
                bench.group(&mut con, &key).await;
                bench.fill(&mut con, &key, 0, messages).await;
                let sample = self.raw_receive(bench, &key, messages).await;
                bench.expect_len(&mut con, &key, 0).await;
                sample
            }
            Self::OurAckAll | Self::OurJoinAll | Self::OurStream | Self::OurOneByOne => {
                let messages = if self == Self::OurOneByOne { bench.few } else { bench.many };
                bench.group(&mut con, &key).await;
                bench.fill(&mut con, &key, 0, messages).await;
                let sample = self.our_receive(bench, &key, messages).await;
                bench.expect_len(&mut con, &key, 0).await;
                sample
            }
            Self::RawEndToEnd | Self::OurEndToEnd | Self::OmniEndToEnd => {
                let sample = self.end_to_end(bench, &key, &mut con).await;
                bench.expect_len(&mut con, &key, 0).await;
                sample
            }
            _ => self.peer(bench, &key, &mut con).await,
        };
        bench.delete(&mut con, &key).await;
        sample
    }

    async fn callers(self, bench: &Bench, key: &str, con: &mut MultiplexedConnection) -> Sample {
        let messages = if self == Self::OmniCallers { bench.few } else { bench.many / 2 };
        let each = messages.div_ceil(CALLERS);
        let shares: Vec<std::ops::Range<u64>> =
            (0..CALLERS).map(|caller| (caller * each) as u64..((caller + 1) * each) as u64).collect();
        macro_rules! spawn_all {
            (|$share:ident| $task:expr) => {
                measure(each * CALLERS, async {
                    let tasks: Vec<_> = shares.into_iter().map(|$share| tokio::spawn($task)).collect();
                    for task in tasks {
                        task.await.expect("a caller failed");
                    }
                })
                .await
            };
        }
        match self {
            Self::RawCallers => {
                let own = bench.connect().await;
                spawn_all!(|share| {
                    let (mut own, key) = (own.clone(), key.to_owned());
                    async move {
                        for number in share {
                            raw::send(&mut own, &key, &plain(number)).await;
                        }
                    }
                })
            }
            Self::OurCallers => {
                let producer = bench.producer(key).await;
                spawn_all!(|share| {
                    let producer = producer.clone();
                    async move {
                        for number in share {
                            producer.send(plain(number)).await.expect("send");
                        }
                    }
                })
            }
            _ => {
                bench.group(con, key).await;
                let producer = peers::Omni::builder(peers::omniqueue(bench, key)).build_producer().await;
                let producer = Arc::new(producer.expect("omniqueue"));
                spawn_all!(|share| {
                    let producer = Arc::clone(&producer);
                    async move {
                        for number in share {
                            producer.send_raw(&payload(number)).await.expect("send");
                        }
                    }
                })
            }
        }
    }

    async fn raw_receive(self, bench: &Bench, key: &str, messages: usize) -> Option<Sample> {
        let tally = Arc::new(Tally::default());
        let mut own = bench.connect().await;
        let mut reading = bench.connect().await;
        let count = if self == Self::RawOneByOne { 1 } else { BATCH };
        let sample = measure(messages, async {
            let mut done = 0;
            if self == Self::RawReceiveAhead {
                let mut page = raw::read(&mut reading, key, count).await;
                while done < messages {
                    page.payloads.iter().for_each(|payload| tally.note(number(payload)));
                    done += page.ids.len();
                    let next = async {
                        if done < messages {
                            raw::read(&mut reading, key, count).await
                        } else {
                            raw::Page::default()
                        }
                    };
                    page = tokio::join!(next, raw::ack(&mut own, key, &page.ids)).0;
                }
            }
            while done < messages {
                let page = raw::read(&mut own, key, count).await;
                page.payloads.iter().for_each(|payload| tally.note(number(payload)));
                raw::ack(&mut own, key, &page.ids).await;
                done += page.ids.len();
            }
        })
        .await;
        settled(&[tally], messages, sample).await
    }

    async fn our_receive(self, bench: &Bench, key: &str, messages: usize) -> Option<Sample> {
        let tally = Arc::new(Tally::default());
        let mut consumer = bench.consumer(key).await;
        let shutdown = consumer.shutdown_handle();
        let sample = measure(messages, async {
            let mut done = 0;
            match self {
                Self::OurAckAll => {
                    while done < messages {
                        let batch = consumer.receive_batch(BATCH).await.expect("receive_batch");
                        batch.iter().for_each(|delivery| tally.note(number(delivery.payload())));
                        done += batch.len();
                        Delivery::ack_all(batch).await.expect("ack_all");
                    }
                }
                Self::OurJoinAll => {
                    while done < messages {
                        let batch = consumer.receive_batch(BATCH).await.expect("receive_batch");
                        batch.iter().for_each(|delivery| tally.note(number(delivery.payload())));
                        done += batch.len();
                        for ack in join_all(batch.into_iter().map(Delivery::ack)).await {
                            ack.expect("ack");
                        }
                    }
                }
                Self::OurStream => {
                    let deliveries = consumer.into_stream().take(messages);
                    let each = deliveries.for_each_concurrent(BATCH, |delivery| {
                        let delivery = delivery.expect("receive");
                        tally.note(number(delivery.payload()));
                        async { delivery.ack().await.expect("ack") }
                    });
                    each.await;
                }
                _ => {
                    while done < messages {
                        let delivery = consumer.receive().await.expect("receive");
                        tally.note(number(delivery.payload()));
                        delivery.ack().await.expect("ack");
                        done += 1;
                    }
                }
            }
        })
        .await;
        shutdown.shutdown().await;
        settled(&[tally], messages, sample).await
    }

    /// A task that sends batch after batch, and one that receives and acks.
    async fn end_to_end(self, bench: &Bench, key: &str, con: &mut MultiplexedConnection) -> Option<Sample> {
        let messages = if self == Self::OmniEndToEnd { bench.few } else { bench.many };
        let tally = Arc::new(Tally::default());
        let noted = Arc::clone(&tally);
        macro_rules! race {
            (produce: $produce:expr, consume: $consume:expr) => {
                measure(messages, async {
                    let (consumer, producer) = (tokio::spawn($consume), tokio::spawn($produce));
                    producer.await.expect("the producer failed");
                    consumer.await.expect("the consumer failed");
                })
                .await
            };
        }
        bench.group(con, key).await;
        let sample = match self {
            Self::RawEndToEnd => {
                let (mut sending, mut own) = (bench.connect().await, bench.connect().await);
                let (to, from) = (key.to_owned(), key.to_owned());
                let work = batches(messages, plain);
                race!(
                    produce: async move {
                        for batch in work {
                            raw::send_batch(&mut sending, &to, batch).await;
                        }
                    },
                    consume: async move {
                        let mut done = 0;
                        while done < messages {
                            let page = raw::read(&mut own, &from, BATCH).await;
                            page.payloads.iter().for_each(|payload| noted.note(number(payload)));
                            raw::ack(&mut own, &from, &page.ids).await;
                            done += page.ids.len();
                        }
                    }
                )
            }
            Self::OurEndToEnd => {
                let (producer, mut consumer) = (bench.producer(key).await, bench.consumer(key).await);
                let shutdown = consumer.shutdown_handle();
                let work = batches(messages, plain);
                let sample = race!(
                    produce: async move {
                        for batch in work {
                            producer.send_batch(batch).await.expect("send_batch");
                        }
                    },
                    consume: async move {
                        let mut done = 0;
                        while done < messages {
                            let batch = consumer.receive_batch(BATCH).await.expect("receive_batch");
                            batch.iter().for_each(|delivery| noted.note(number(delivery.payload())));
                            done += batch.len();
                            Delivery::ack_all(batch).await.expect("ack_all");
                        }
                    }
                );
                shutdown.shutdown().await;
                sample
            }
            _ => {
                use omniqueue::QueueProducer as _;
                let pair = peers::Omni::builder(peers::omniqueue(bench, key)).build_pair().await;
                let (producer, consumer) = pair.expect("omniqueue");
                let work = batches(messages, payload);
                race!(
                    produce: async move {
                        for batch in work {
                            producer.send_raw_batch(batch.iter().map(Shared)).await.expect("send");
                        }
                    },
                    consume: omniqueue_receive(consumer, messages, noted, false)
                )
            }
        };
        settled(&[tally], messages, sample).await
    }

    async fn peer(self, bench: &Bench, key: &str, con: &mut MultiplexedConnection) -> Option<Sample> {
        let (many, few) = (bench.many, bench.few);
        let tally = Arc::new(Tally::default());
        match self {
            Self::OmniSend => {
                use omniqueue::QueueProducer as _;
                bench.group(con, key).await;
                let producer = peers::Omni::builder(peers::omniqueue(bench, key)).build_producer().await;
                let producer = producer.expect("omniqueue");
                let work = batches(few, payload);
                let sample = measure(few, async {
                    for batch in work {
                        producer.send_raw_batch(batch.iter().map(Shared)).await.expect("send");
                    }
                })
                .await;
                bench.expect_len(con, key, few).await;
                Some(sample)
            }
            Self::OmniReceive | Self::OmniReceiveConcurrent => {
                bench.group(con, key).await;
                let mut pipe = Pipeline::with_capacity(few);
                for number in 0..few as u64 {
                    pipe.cmd("XADD").arg(key).arg("*").arg("payload").arg(payload(number));
                    pipe.arg("num_receives").arg("0");
                }
                con.req_packed_commands(&pipe, 0, few).await.expect("XADD");
                let consumer = peers::Omni::builder(peers::omniqueue(bench, key)).build_consumer().await;
                let consumer = consumer.expect("omniqueue");
                let at_once = self == Self::OmniReceiveConcurrent;
                let receive = omniqueue_receive(consumer, few, Arc::clone(&tally), at_once);
                let sample = measure(few, receive).await;
                bench.expect_len(con, key, 0).await;
                settled(&[tally], few, sample).await
            }
            Self::FlowdSend => {
                let mut queue = peers::flowd_queue!(bench, key, tally);
                let work = peers::tasks(many);
                let sample = measure(many, async {
                    for batch in work {
                        queue.enqueue_bulk(batch).await.expect("enqueue_bulk");
                    }
                })
                .await;
                bench.expect_len(con, key, many).await;
                Some(sample)
            }
            Self::FlowdReceive => {
                let queue = peers::flowd_queue!(bench, key, Arc::clone(&tally));
                bench.fill(con, key, 0, many).await;
                let tallies = [tally];
                let (mut missing, mut handle) = (0, None);
                let sample = measure(many, async {
                    handle = Some(queue.run());
                    missing = Tally::settle(&tallies, many, PATIENCE).await;
                })
                .await;
                if let Some(handle) = handle {
                    handle.shutdown().await;
                }
                (missing == 0).then_some(sample)
            }
            Self::RsmqSend | Self::RsmqReceive => {
                use rsmq_async::RsmqConnection as _;
                let name = format!("q{}", bench.serial.fetch_add(1, Ordering::Relaxed));
                let mut rsmq = peers::rsmq(bench, &name).await;
                let messages = if self == Self::RsmqSend { many } else { few };
                let work = batches(messages, payload);
                let sent = measure(messages, async {
                    for batch in work {
                        rsmq.send_message_batch(&name, batch, None).await.expect("send_message_batch");
                    }
                })
                .await;
                let sample = if self == Self::RsmqSend {
                    let left = rsmq.get_queue_attributes(&name).await.expect("rsmq").msgs;
                    assert_eq!(left, messages as u64);
                    Some(sent)
                } else {
                    let mut missing = messages;
                    let sample = measure(messages, async {
                        while missing > 0 {
                            let batch =
                                rsmq.receive_message_batch::<Vec<u8>>(&name, None, 100).await.expect("rsmq");
                            if batch.is_empty() {
                                return;
                            }
                            missing -= batch.len();
                            for message in batch {
                                tally.note(number(&message.message));
                                assert!(rsmq.delete_message(&name, &message.id).await.expect("delete"));
                            }
                        }
                    })
                    .await;
                    if missing == 0 { settled(&[tally], messages, sample).await } else { None }
                };
                rsmq.delete_queue(&name).await.expect("rsmq");
                sample
            }
            Self::ShoveSend => {
                use shove::redis::{RedisConfig, RedisMode};
                let queue = peers::SHOVE_QUEUE.get_or_init(|| format!("{}:shove", bench.prefix));
                let config = RedisConfig::new(RedisMode::Standalone { url: bench.url.clone() });
                let broker = shove::Broker::<shove::Redis>::new(config).await.expect("shove");
                let publisher = broker.publisher().await.expect("shove");
                let work = batches(few, payload);
                let sample = measure(few, async {
                    for batch in &work {
                        publisher.publish_batch::<peers::ShoveTopic>(batch).await.expect("publish_batch");
                    }
                })
                .await;
                bench.expect_len(con, queue, few).await;
                bench.delete(con, queue).await;
                Some(sample)
            }
            _ => unreachable!("{self:?} is no peer"),
        }
    }
}

/// A payload by reference, as omniqueue's batch takes it.
struct Shared<'a>(&'a Vec<u8>);

impl AsRef<Vec<u8>> for Shared<'_> {
    fn as_ref(&self) -> &Vec<u8> {
        self.0
    }
}

async fn omniqueue_receive(
    mut consumer: omniqueue::backends::RedisConsumer<omniqueue::backends::redis::RedisConnectionManager>,
    messages: usize,
    tally: Arc<Tally>,
    at_once: bool,
) {
    let mut done = 0;
    while done < messages {
        let batch = consumer.receive_all(BATCH, Duration::from_secs(2)).await.expect("receive_all");
        done += batch.len();
        for delivery in &batch {
            tally.note(number(delivery.borrow_payload().expect("payload")));
        }
        if at_once {
            for ack in join_all(batch.into_iter().map(omniqueue::Delivery::ack)).await {
                ack.map_err(|(error, _)| error).expect("ack");
            }
        } else {
            for delivery in batch {
                delivery.ack().await.map_err(|(error, _)| error).expect("ack");
            }
        }
    }
}

/// The sample, if all came.
async fn settled(tallies: &[Arc<Tally>], sent: usize, sample: Sample) -> Option<Sample> {
    let missing = Tally::settle(tallies, sent, PATIENCE).await;
    if missing > 0 {
        eprintln!("    {missing} of {sent} messages never came");
    }
    (missing == 0).then_some(sample)
}

/// What the contenders of a section did, round by round.
struct Results {
    contenders: Vec<Contender>,
    rounds: Vec<Vec<Option<Sample>>>,
}

impl Results {
    /// Lets all contenders run in every round, in rotating order, and prints the table.
    async fn of(bench: &Bench, title: &str, rounds: usize, contenders: &[Contender]) -> Self {
        let count = contenders.len();
        let mut results = Self { contenders: contenders.to_vec(), rounds: Vec::new() };
        // The first round warms up.
        for round in 0..=rounds {
            let mut samples = vec![None; count];
            for turn in 0..count {
                let at = (turn + round) % count;
                samples[at] = contenders[at].run(bench).await;
            }
            if round > 0 {
                results.rounds.push(samples);
            }
        }
        let names: Vec<&str> = contenders.iter().map(|contender| contender.name()).collect();
        table(&format!("### {title}, {rounds} rounds"), &names, &results.rounds);
        println!();
        results
    }

    /// The median of per-round ratios; NaN where there is none.
    fn pairs(&self, a: Contender, b: Contender, of: fn(&Sample) -> f64) -> f64 {
        let at = |wanted| self.contenders.iter().position(|&contender| contender == wanted);
        let (Some(a), Some(b)) = (at(a), at(b)) else { return f64::NAN };
        median(
            self.rounds
                .iter()
                .filter_map(|round| Some(of(round[a].as_ref()?) / of(round[b].as_ref()?)))
                .collect(),
        )
    }

    fn rate(&self, a: Contender, b: Contender) -> f64 {
        self.pairs(a, b, Sample::rate)
    }

    fn cpu(&self, a: Contender, b: Contender) -> f64 {
        self.pairs(a, b, Sample::cpu_ns)
    }
}

use Contender::*;

async fn send(bench: &Bench) {
    let results = Results::of(bench, "Send in batches", bench.rounds, &[RawSend, OurSend]).await;
    at_least("A1 send_batch", results.rate(OurSend, RawSend), 0.95);
    at_most("A1 send_batch, client CPU", results.cpu(OurSend, RawSend), 1.15);
    let contenders = [RawSendHeaders, OurSendHeaders];
    let results =
        Results::of(bench, "Send in batches, routing key and three headers", bench.rounds, &contenders).await;
    at_least("A1 send_batch, key + 3 headers", results.rate(OurSendHeaders, RawSendHeaders), 0.95);
    at_most("A1 send_batch, key + 3 headers, client CPU", results.cpu(OurSendHeaders, RawSendHeaders), 1.15);
}

/// Times of operations in blocks that alternate: the table, and the median of the ratios of the blocks' medians.
struct Blocks([Vec<Vec<u64>>; 2]);

impl Blocks {
    fn ratio(&self, permille: usize) -> f64 {
        let [raw, ours] = &self.0;
        let of = |block: &Vec<u64>| percentile(block.clone(), permille) as f64;
        median(raw.iter().zip(ours).map(|(raw, ours)| of(ours) / of(raw)).collect())
    }

    fn print(&self, title: &str) {
        println!("\n### {title}\n| contender | p50 µs | p99 µs |\n|---|---|---|");
        for (name, blocks) in ["raw", "buqueue"].iter().zip(&self.0) {
            let all = blocks.concat();
            let us = |permille| percentile(all.clone(), permille) as f64 / 1e3;
            println!("| {name} | {:.0} | {:.0} |", us(500), us(990));
        }
        println!();
    }
}

const BLOCK: u64 = 200;

fn nanos(since: Instant, until: Instant) -> u64 {
    u64::try_from((until - since).as_nanos()).unwrap_or(u64::MAX)
}

async fn single(bench: &Bench) {
    let (raw_key, our_key) = (bench.key(), bench.key());
    let mut con = bench.connect().await;
    let producer = bench.producer(&our_key).await;
    let mut blocks = Blocks(Default::default());
    for round in 0..=bench.rounds {
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let mut times = Vec::new();
            for number in 0..BLOCK {
                let message = plain(number);
                let start = Instant::now();
                if which == 0 {
                    raw::send(&mut con, &raw_key, &message).await;
                } else {
                    producer.send(message).await.expect("send");
                }
                times.push(nanos(start, Instant::now()));
            }
            if round > 0 {
                blocks.0[which].push(times);
            }
        }
    }
    let sent = (bench.rounds + 1) * usize::try_from(BLOCK).expect("small");
    for key in [raw_key, our_key] {
        bench.expect_len(&mut con, &key, sent).await;
        bench.delete(&mut con, &key).await;
    }
    blocks.print(&format!("One awaited send after another, {} blocks of {BLOCK}", bench.rounds));
    at_most("A3 send, p50", blocks.ratio(500), 1.1);
}

async fn concurrent(bench: &Bench) {
    let contenders = [RawCallers, OurCallers];
    let results = Results::of(bench, "64 tasks, each awaiting its sends", bench.rounds, &contenders).await;
    at_least("A4 send from 64 tasks", results.rate(OurCallers, RawCallers), 0.9);
}

async fn consume(bench: &Bench) {
    let contenders = [RawReceive, OurAckAll, RawReceiveAhead, OurJoinAll, OurStream];
    let results = Results::of(bench, "Receive and ack", bench.rounds, &contenders).await;
    at_least("A1 receive_batch, ack_all", results.rate(OurAckAll, RawReceive), 0.95);
    at_most("A1 receive_batch, ack_all, client CPU", results.cpu(OurAckAll, RawReceive), 1.15);
    at_least("A5 100 acks at once / raw batched acks", results.rate(OurJoinAll, RawReceive), 0.8);
    at_least("A5 100 acks at once / ack_all", results.rate(OurJoinAll, OurAckAll), 0.8);
    at_least("A5 for_each_concurrent(100) / raw batched acks", results.rate(OurStream, RawReceive), 0.8);
    at_least("A5 for_each_concurrent(100) / ack_all", results.rate(OurStream, OurAckAll), 0.8);
    let contenders = [RawOneByOne, OurOneByOne];
    Results::of(bench, "Receive and ack one by one", bench.rounds.min(21), &contenders).await;
}

async fn end_to_end(bench: &Bench) {
    let contenders = [RawEndToEnd, OurEndToEnd];
    let results = Results::of(bench, "End to end, batches of 100", bench.rounds, &contenders).await;
    at_least("A6 end to end", results.rate(OurEndToEnd, RawEndToEnd), 0.9);
}

/// From the call of `send` until a consumer that was waiting at the server has the message; one in flight.
async fn delivered(bench: &Bench) {
    let (raw_key, our_key) = (bench.key(), bench.key());
    let mut con = bench.connect().await;
    bench.group(&mut con, &raw_key).await;
    let (raw_arrived, mut raw_arrivals) = mpsc::channel::<(u64, Instant)>(1);
    let (our_arrived, mut our_arrivals) = mpsc::channel::<(u64, Instant)>(1);
    let raw_consumer = tokio::spawn({
        let (mut own, key) = (bench.connect().await, raw_key.clone());
        async move {
            loop {
                let page = raw::read(&mut own, &key, 1).await;
                let at = Instant::now();
                if let Some(payload) = page.payloads.first() {
                    raw::ack(&mut own, &key, &page.ids).await;
                    raw_arrived.send((number(payload), at)).await.expect("open");
                }
            }
        }
    });
    let producer = bench.producer(&our_key).await;
    let mut consumer = bench.consumer(&our_key).await;
    let shutdown = consumer.shutdown_handle();
    let our_consumer = tokio::spawn(async move {
        while let Some(delivery) = consumer.receive_graceful().await {
            let at = Instant::now();
            let number = number(delivery.payload());
            delivery.ack().await.expect("ack");
            our_arrived.send((number, at)).await.expect("open");
        }
    });
    let mut blocks = Blocks(Default::default());
    for round in 0..=bench.rounds {
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let mut times = Vec::new();
            for number in 0..BLOCK {
                let message = plain(number);
                // Long enough for the consumer's read to wait at the server again.
                tokio::time::sleep(Duration::from_micros(500)).await;
                let start = Instant::now();
                let arrived = if which == 0 {
                    raw::send(&mut con, &raw_key, &message).await;
                    raw_arrivals.recv().await
                } else {
                    producer.send(message).await.expect("send");
                    our_arrivals.recv().await
                };
                let (arrived, at) = arrived.expect("open");
                assert_eq!(arrived, number, "delivered is not what was sent");
                times.push(nanos(start, at));
            }
            if round > 0 {
                blocks.0[which].push(times);
            }
        }
    }
    shutdown.shutdown().await;
    our_consumer.await.expect("the consumer failed");
    raw_consumer.abort();
    drop(raw_consumer.await);
    for key in [raw_key, our_key] {
        bench.delete(&mut con, &key).await;
    }
    blocks.print(&format!("Send until delivered, {} blocks of {BLOCK}", bench.rounds));
    at_most("A3 send until delivered, p50", blocks.ratio(500), 1.1);
    println!("send until delivered, p99: {:.2} of raw", blocks.ratio(990));
}

async fn peers(bench: &Bench) {
    let rounds = bench.rounds.min(11);
    let contenders = [OurSend, OmniSend, FlowdSend, RsmqSend, ShoveSend];
    let results = Results::of(bench, "Peers: send in batches", rounds, &contenders).await;
    at_least("A7 send_batch / omniqueue", results.rate(OurSend, OmniSend), 25.0);
    at_least("A8 send_batch / flowd", results.rate(OurSend, FlowdSend), 1.0);
    at_least("A8 send_batch / rsmq_async", results.rate(OurSend, RsmqSend), 1.8);
    at_least("A8 send_batch / shove", results.rate(OurSend, ShoveSend), 20.0);
    let results = Results::of(bench, "Peers: send from 64 tasks", rounds, &[OurCallers, OmniCallers]).await;
    at_least("A7 send from 64 tasks / omniqueue", results.rate(OurCallers, OmniCallers), 5.0);
    let contenders = [OurAckAll, OurJoinAll, OmniReceive, OmniReceiveConcurrent, FlowdReceive, RsmqReceive];
    let results = Results::of(bench, "Peers: receive and ack", rounds, &contenders).await;
    at_least("A7 receive and ack / omniqueue", results.rate(OurAckAll, OmniReceive), 25.0);
    at_least("A7 100 acks at once / omniqueue's", results.rate(OurJoinAll, OmniReceiveConcurrent), 6.0);
    at_least("A8 receive and ack / flowd", results.rate(OurAckAll, FlowdReceive), 1.6);
    at_least("A8 receive and ack / rsmq_async", results.rate(OurAckAll, RsmqReceive), 15.0);
    let results = Results::of(bench, "Peers: end to end", rounds, &[OurEndToEnd, OmniEndToEnd]).await;
    at_least("A7 end to end / omniqueue", results.rate(OurEndToEnd, OmniEndToEnd), 10.0);
}

/// Calls by command, and `reads` and `writes` of sockets, since the server's start.
async fn statistics(con: &mut MultiplexedConnection) -> BTreeMap<String, f64> {
    let mut statistics = BTreeMap::new();
    let commands: String = redis::cmd("INFO").arg("commandstats").query_async(con).await.expect("INFO");
    for line in commands.lines() {
        let Some((name, rest)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls="))
        else {
            continue;
        };
        let calls = rest.split(',').next().and_then(|calls| calls.parse().ok());
        statistics.insert(name.to_owned(), calls.unwrap_or(0.0));
    }
    let sockets: String = redis::cmd("INFO").arg("stats").query_async(con).await.expect("INFO");
    for line in sockets.lines() {
        if let Some(writes) = line.strip_prefix("total_writes_processed:") {
            statistics.insert("writes".to_owned(), writes.trim().parse().unwrap_or(0.0));
        }
    }
    statistics
}

/// The server's own count of what one operation costs it. Exact only while nobody else uses the server.
async fn commands(bench: &Bench) {
    println!("\n### Commands for one operation, as the server counts them");
    let mut con = bench.connect().await;
    let clients: String = redis::cmd("INFO").arg("clients").query_async(&mut con).await.expect("INFO");
    if !clients.lines().any(|line| line.trim() == "connected_clients:1") {
        println!("(others are connected: their commands are counted too)");
    }
    let key = bench.key();
    let (producer, mut consumer) = (bench.producer(&key).await, bench.consumer(&key).await);
    let times = 100;
    println!("| operation | replies written | commands, scripts' own among them |\n|---|---|---|");
    // Short, so that the server reads a batch at once.
    let batch = |_| (0..BATCH).map(|number| Message::new(format!("{number:020}"))).collect::<Vec<_>>();
    let mut pings = 0.0;
    let mut send_batch = (0.0, 0.0);
    let mut receive = 0.0;
    for operation in
        ["send", "send_batch(100)", "receive_batch(100), ack_all", "receive_batch(100), 100 acks at once"]
    {
        // Filled and warmed up before counting starts.
        if operation.starts_with("receive") {
            for at in 0..times + 10 {
                producer.send_batch(batch(at)).await.expect("send_batch");
            }
        }
        let mut before = BTreeMap::new();
        for time in 0..times + 5 {
            if time == 5 {
                before = statistics(&mut con).await;
            }
            match operation {
                "send" => drop(producer.send(Message::new(format!("{time:020}"))).await.expect("send")),
                "send_batch(100)" => drop(producer.send_batch(batch(time)).await.expect("send_batch")),
                "receive_batch(100), ack_all" => {
                    let batch = consumer.receive_batch(BATCH).await.expect("receive_batch");
                    Delivery::ack_all(batch).await.expect("ack_all");
                }
                _ => {
                    let batch = consumer.receive_batch(BATCH).await.expect("receive_batch");
                    for ack in join_all(batch.into_iter().map(Delivery::ack)).await {
                        ack.expect("ack");
                    }
                }
            }
        }
        let mut after = statistics(&mut con).await;
        for (name, count) in &mut after {
            *count -= before.get(name).copied().unwrap_or(0.0);
        }
        let per = |name: &str, but: f64| (after.get(name).copied().unwrap_or(0.0) - but) / f64::from(times);
        // Two replies to INFO lie in between.
        let written = per("writes", 2.0);
        let list: Vec<String> = after
            .keys()
            .filter(|name| !["writes", "info"].contains(&name.as_str()))
            .filter(|name| per(name, 0.0) > 0.0)
            .map(|name| format!("{} {:.2}", name.to_uppercase().replace('|', " "), per(name, 0.0)))
            .collect();
        println!("| {operation} | {written:.2} | {} |", list.join(", "));
        pings += per("ping", 0.0);
        match operation {
            "send_batch(100)" => send_batch = (per("xadd", 0.0), written),
            "receive_batch(100), ack_all" => receive = written,
            _ => {}
        }
        drained(&mut consumer).await;
    }
    consumer.shutdown_handle().shutdown().await;
    bench.delete(&mut con, &key).await;
    println!();
    at_most("A9 send_batch(100), XADD", send_batch.0, 100.0);
    at_most("A9 send_batch(100), round trips", send_batch.1, 1.1);
    at_most("A9 receive_batch(100) and ack_all, round trips", receive, 2.2);
    at_most("A9 PING", pings, 0.0);
}

async fn drained(consumer: &mut Consumer<RedisBackend>) {
    while let Ok(batch) =
        tokio::time::timeout(Duration::from_millis(100), consumer.receive_batch(BATCH)).await
    {
        Delivery::ack_all(batch.expect("receive_batch")).await.expect("ack_all");
    }
}

/// What receiving costs before a standing backlog, which is filled up again between the blocks.
async fn backlog(bench: &Bench) {
    const STEP: usize = 2000;
    let depths = [1000, 200_000];
    let mut con = bench.connect().await;
    let mut queues = Vec::new();
    for depth in depths {
        let key = bench.key();
        let consumer = bench.consumer(&key).await;
        bench.fill(&mut con, &key, 0, depth).await;
        queues.push((key, consumer, depth as u64, Tally::default()));
    }
    let mut rounds = Vec::new();
    for round in 0..=bench.rounds {
        let mut samples = vec![None; 2];
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let (key, consumer, next, tally) = &mut queues[which];
            bench.fill(&mut con, key, *next, STEP).await;
            *next += STEP as u64;
            let sample = measure(STEP, async {
                let mut done = 0;
                while done < STEP {
                    let batch = consumer.receive_batch(BATCH.min(STEP - done)).await.expect("receive_batch");
                    done += batch.len();
                    batch.iter().for_each(|delivery| tally.note(number(delivery.payload())));
                    Delivery::ack_all(batch).await.expect("ack_all");
                }
            })
            .await;
            samples[which] = Some(sample);
        }
        if round > 0 {
            rounds.push(samples);
        }
    }
    table(
        &format!("### Receive and ack before a backlog, {} rounds", bench.rounds),
        &["of 1000", "of 200 000"],
        &rounds,
    );
    println!();
    for (key, mut consumer, sent, tally) in queues {
        while tally.count.load(Ordering::Relaxed) < usize::try_from(sent).expect("small") {
            let batch = consumer.receive_batch(BATCH).await.expect("receive_batch");
            batch.iter().for_each(|delivery| tally.note(number(delivery.payload())));
            Delivery::ack_all(batch).await.expect("ack_all");
        }
        let missing =
            Tally::settle(&[Arc::new(tally)], usize::try_from(sent).expect("small"), PATIENCE).await;
        assert_eq!(missing, 0);
        bench.expect_len(&mut con, &key, 0).await;
        consumer.shutdown_handle().shutdown().await;
        bench.delete(&mut con, &key).await;
    }
    let ratios = rounds.iter().filter_map(|round| Some(round[0]?.rate() / round[1]?.rate())).collect();
    at_most("A9 rate before 1000 / before 200 000", median(ratios), 1.1);
}

/// One contender over and over.
async fn only(bench: &Bench, contender: Contender) {
    for _ in 0..bench.rounds {
        let sample = contender.run(bench).await.expect("it did not finish");
        println!("{}: {:.0}/s, {:.0} ns of CPU", contender.name(), sample.rate(), sample.cpu_ns());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let chosen: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with("--")).collect();
    let url = std::env::var("BUQUEUE_TEST_REDIS").expect("BUQUEUE_TEST_REDIS, the URL of a server");
    // Without delay, as buqueue connects.
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    let info = url.as_str().into_connection_info().expect("a URL").set_tcp_settings(tcp);
    let (rounds, many, few) = if quick { (7, 10_000, 1_000) } else { (41, 20_000, 2_000) };
    let bench = Arc::new(Bench {
        client: Client::open(info).expect("a URL"),
        url,
        prefix: format!("bench:{}", std::process::id()),
        serial: AtomicUsize::new(0),
        rounds,
        many,
        few,
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    // On a worker, as an application's tasks are; the thread that blocks on the runtime is none.
    macro_rules! section {
        ($name:literal, $section:ident) => {
            if chosen.is_empty() || chosen.contains(&$name) {
                let bench = Arc::clone(&bench);
                runtime.block_on(async {
                    tokio::spawn(async move { $section(&bench).await }).await.expect($name)
                });
            }
        };
    }
    if let Some(name) = arguments.iter().find_map(|argument| argument.strip_prefix("--only=")) {
        let found = ALL.into_iter().find(|contender| format!("{contender:?}") == name);
        let contender = found.unwrap_or_else(|| panic!("--only: one of {ALL:?}"));
        runtime.block_on(async {
            tokio::spawn(async move { only(&bench, contender).await }).await.expect("only")
        });
        return;
    }
    section!("send", send);
    section!("single", single);
    section!("concurrent", concurrent);
    section!("consume", consume);
    section!("end-to-end", end_to_end);
    section!("delivered", delivered);
    section!("peers", peers);
    section!("commands", commands);
    section!("backlog", backlog);
    runtime.block_on(bench.sweep());
}
