//! The SQS backend beside the raw client: one service, short rounds in alternating order, medians of per-round ratios,
//! and what a message costs in requests.
//!
//! `sqs [--quick] [--deep] [send|single|consume|requests]…`
//!
//! The service is `BUQUEUE_TEST_SQS`, an emulator: what it does itself takes most of the time. Every contender gets a fresh
//! standard queue in every round, which is deleted afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, SendMessageBatchRequestEntry};
use buqueue_bench::contest::Contest;
use buqueue_bench::work::{self, Acks, Arguments, BATCH, batches, number, payload, plain};
use buqueue_bench::{Sample, Tally, at_least, at_most, measure};
use buqueue_core::{Consumer, Producer};
use buqueue_sqs::{SqsBackend, SqsBuilderExt as _, SqsConfig};
use futures_util::future::join_all;

const ACCOUNT: &str = "000000000000";
/// The most messages of one request.
const TEN: usize = 10;
/// Sent before the measurement begins, where one is sent after the other: a connection is slow at first.
const WARM: usize = 100;

/// Counts what goes over the wire.
#[derive(Debug, Clone, Default)]
struct Requests(Arc<AtomicUsize>);

impl Intercept for Requests {
    fn name(&self) -> &'static str {
        "requests"
    }

    fn read_before_transmit(
        &self,
        _context: &aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Bench {
    endpoint: String,
    arguments: Arguments,
    serial: AtomicUsize,
    client: Client,
    requests: Requests,
}

impl Bench {
    fn url(&self) -> String {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("{}/{ACCOUNT}/bench-{}-{number}", self.endpoint, std::process::id())
    }

    fn builder(&self, url: &str) -> buqueue_core::QueueBuilder<SqsBackend> {
        let config = SqsConfig { queue_url: url.to_owned(), ..SqsConfig::default() };
        // The very same client, so that both have the same connections and the same count.
        SqsBackend::builder(config).client(self.client.clone())
    }

    async fn producer(&self, url: &str) -> Producer<SqsBackend> {
        self.builder(url).build_producer().await.expect("producer")
    }

    async fn consumer(&self, url: &str) -> Consumer<SqsBackend> {
        self.builder(url).build_consumer().await.expect("consumer")
    }

    /// A fresh queue, as buqueue declares it.
    async fn queue(&self) -> String {
        let url = self.url();
        drop(self.producer(&url).await);
        url
    }

    async fn delete(&self, url: &str) {
        self.client.delete_queue().queue_url(url).send().await.expect("delete");
    }

    fn counted(&self) -> usize {
        self.requests.0.swap(0, Ordering::Relaxed)
    }
}

fn text(number: u64) -> String {
    String::from_utf8(payload(number)).expect("text")
}

/// A hundred messages in ten requests at the same time.
async fn raw_hundred(client: &Client, url: &str, batch: &[String]) {
    let sending = batch.chunks(TEN).map(|ten| {
        let entries = ten.iter().enumerate().map(|(at, body)| {
            SendMessageBatchRequestEntry::builder()
                .id(at.to_string())
                .message_body(body)
                .build()
                .expect("entry")
        });
        client.send_message_batch().queue_url(url).set_entries(Some(entries.collect())).send()
    });
    for sent in join_all(sending).await {
        assert!(sent.expect("send").failed().is_empty());
    }
}

async fn raw_send(bench: &Bench) -> Sample {
    let (url, many) = (bench.queue().await, bench.arguments.few);
    let work = batches(many, text);
    let sample = measure(many, async {
        for batch in &work {
            raw_hundred(&bench.client, &url, batch).await;
        }
    })
    .await;
    bench.delete(&url).await;
    sample
}

async fn our_send(bench: &Bench) -> Sample {
    let (url, many) = (bench.queue().await, bench.arguments.few);
    let producer = bench.producer(&url).await;
    let sample = measure(many, work::send_batches(&producer, batches(many, plain))).await;
    bench.delete(&url).await;
    sample
}

async fn send(bench: &Bench) {
    const RAW: &str = "aws-sdk-sqs, 10 batches of 10 joined";
    const OURS: &str = "buqueue send_batch(100)";
    let results = Contest::new("Send in batches of 100")
        .with(RAW, || raw_send(bench))
        .with(OURS, || our_send(bench))
        .run(bench.arguments.rounds)
        .await;
    at_least("A1 send_batch / joined batches", results.rate(OURS, RAW), 0.95);
    at_most("A1 send_batch, client CPU", results.cpu(OURS, RAW), 1.15);
}

async fn single(bench: &Bench) {
    const RAW: &str = "aws-sdk-sqs, send_message";
    const OURS: &str = "buqueue send";
    let few = bench.arguments.few / 4;
    let results = Contest::new("Send one by one")
        .with(RAW, || async move {
            let url = bench.queue().await;
            let send = async |count: usize| {
                for number in 0..count as u64 {
                    let sending = bench.client.send_message().queue_url(&url).message_body(text(number));
                    sending.send().await.expect("send");
                }
            };
            send(WARM).await;
            let sample = measure(few, send(few)).await;
            bench.delete(&url).await;
            sample
        })
        .with(OURS, || async move {
            let url = bench.queue().await;
            let producer = bench.producer(&url).await;
            work::send_each(&producer, WARM).await;
            let sample = measure(few, work::send_each(&producer, few)).await;
            bench.delete(&url).await;
            sample
        })
        .run(bench.arguments.rounds)
        .await;
    at_most("A3 one awaited send, time", 1.0 / results.rate(OURS, RAW), 1.1);
}

async fn fill(bench: &Bench, url: &str, messages: usize) {
    for batch in batches(messages, text) {
        raw_hundred(&bench.client, url, &batch).await;
    }
}

/// Eight receives at the same time, each of which deletes what it has brought.
async fn raw_receive(bench: &Bench, url: &str, messages: usize, tally: &Tally) {
    let done = AtomicUsize::new(0);
    let workers = (0..8).map(|_| async {
        while done.load(Ordering::Relaxed) < messages {
            let receiving = bench.client.receive_message().queue_url(url).max_number_of_messages(10);
            let received = receiving.wait_time_seconds(1).send().await.expect("receive");
            let entries: Vec<_> = received
                .messages()
                .iter()
                .enumerate()
                .map(|(at, message)| {
                    tally.note(number(message.body().expect("a body").as_bytes()));
                    let entry = DeleteMessageBatchRequestEntry::builder().id(at.to_string());
                    entry
                        .set_receipt_handle(message.receipt_handle().map(str::to_owned))
                        .build()
                        .expect("entry")
                })
                .collect();
            if !entries.is_empty() {
                let count = entries.len();
                let deleting = bench.client.delete_message_batch().queue_url(url).set_entries(Some(entries));
                assert!(deleting.send().await.expect("delete").failed().is_empty());
                done.fetch_add(count, Ordering::Relaxed);
            }
        }
    });
    join_all(workers).await;
}

async fn raw_consume(bench: &Bench) -> Sample {
    let (url, many) = (bench.queue().await, bench.arguments.few);
    fill(bench, &url, many).await;
    let tally = Arc::new(Tally::default());
    let sample = measure(many, raw_receive(bench, &url, many, &tally)).await;
    work::complete(tally, many).await;
    bench.delete(&url).await;
    sample
}

async fn our_consume(bench: &Bench, acks: Acks) -> Sample {
    let (url, many) = (bench.queue().await, bench.arguments.few);
    fill(bench, &url, many).await;
    let mut consumer = bench.consumer(&url).await;
    let tally = Arc::new(Tally::default());
    let sample = measure(many, work::receive(&mut consumer, many, acks, &tally)).await;
    work::complete(tally, many).await;
    consumer.shutdown_handle().shutdown().await;
    bench.delete(&url).await;
    sample
}

async fn consume(bench: &Bench) {
    const RAW: &str = "aws-sdk-sqs, 8 tasks: receive 10, delete 10";
    const OUR_ALL: &str = "buqueue receive_batch(100) + ack_all";
    const OUR_TOGETHER: &str = "buqueue receive_batch(100) + 100 acks joined";
    let results = Contest::new("Receive and ack")
        .with(RAW, || raw_consume(bench))
        .with(OUR_ALL, || our_consume(bench, Acks::All))
        .with(OUR_TOGETHER, || our_consume(bench, Acks::Together))
        .run(bench.arguments.rounds)
        .await;
    at_least("A1 receive and ack / raw", results.rate(OUR_ALL, RAW), 0.95);
    at_most("A1 receive and ack, client CPU", results.cpu(OUR_ALL, RAW), 1.15);
    at_least("A5 joined acks / ack_all", results.rate(OUR_TOGETHER, OUR_ALL), 0.8);
}

/// What a message costs, from one end to the other, in tens.
async fn requests(bench: &Bench) {
    let (url, many) = (bench.queue().await, bench.arguments.few);
    let producer = bench.producer(&url).await;
    let mut consumer = bench.consumer(&url).await;
    bench.counted();
    work::send_batches(&producer, batches(many, plain)).await;
    let sent = bench.counted();
    let tally = Arc::new(Tally::default());
    work::receive(&mut consumer, many, Acks::Together, &tally).await;
    let received = bench.counted();
    work::complete(tally, many).await;
    let of = |count: usize| count as f64 / many as f64;
    println!(
        "\nRequests for {many} messages in batches of {BATCH}: {sent} to send, {received} to receive and ack"
    );
    at_most("A13 requests per message", of(sent + received), 0.30);
    drop(consumer);
    bench.delete(&url).await;
}

fn main() {
    let endpoint = std::env::var("BUQUEUE_TEST_SQS").expect("BUQUEUE_TEST_SQS, the URL of an emulator");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let _entered = runtime.enter();
    let counting = Requests::default();
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "bench"))
        .endpoint_url(&endpoint)
        .interceptor(counting.clone());
    let bench = Arc::new(Bench {
        arguments: Arguments::read(),
        serial: AtomicUsize::new(0),
        client: Client::from_conf(config.build()),
        requests: counting,
        endpoint,
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
    section!("requests", requests);
}
