//! What bad input is answered with: one row of the table, one test. Each row states the kind and the words that name
//! the field or the fact. Run with `--nocapture` to read the table.
#![cfg(all(feature = "memory", feature = "redis"))]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says so"
)]

use std::time::Duration;

use buqueue::memory::{MemoryBackend, MemoryConfig};
use buqueue::prelude::*;
use buqueue::redis::{RedisBackend, RedisBuilderExt, RedisConfig};
use chrono::Utc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

type Answer = Result<(), BuqueueError>;

/// The server a row needs; without it the row is skipped loudly, or fails where brokers are required.
fn server(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        assert_ne!(std::env::var("BUQUEUE_TEST_REQUIRE").as_deref(), Ok("1"), "{variable} is not set");
        println!("SKIPPED: {variable} is not set");
    }
    url
}

fn redis(url: impl Into<String>, row: &str) -> RedisConfig {
    let stream = format!("bad-input-{row}-{}-{}", std::process::id(), Utc::now().timestamp_micros());
    RedisConfig { url: url.into(), stream, group: "g".to_owned(), ..Default::default() }
}

/// A config that is checked before any connection is made.
fn unconnected() -> RedisConfig {
    redis("redis://127.0.0.1:1", "unconnected")
}

async fn build_redis(config: RedisConfig) -> Option<Answer> {
    Some(
        RedisBackend::builder(config).connection_timeout(Duration::from_secs(2)).build_pair().await.map(drop),
    )
}

async fn build_memory(config: MemoryConfig, dlq: Option<DlqConfig>) -> Option<Answer> {
    let builder = MemoryBackend::builder(config);
    let builder = match dlq {
        Some(dlq) => builder.dead_letter_queue(dlq),
        None => builder,
    };
    Some(builder.build_pair().await.map(drop))
}

/// Sends in memory and on Redis: the answers are alike, and the connection stays usable.
async fn send(row: &str, message: Message) -> Option<Answer> {
    let producer = MemoryBackend::builder(MemoryConfig::default()).build_producer().await.unwrap();
    let answer = producer.send(message.clone()).await.map(drop);
    if let Some(url) = server("BUQUEUE_TEST_REDIS") {
        let producer = RedisBackend::builder(redis(url, row)).build_producer().await.unwrap();
        let other = producer.send(message).await.map(drop);
        let kind = |answer: &Answer| answer.as_ref().err().map(|error| error.kind.clone());
        assert_eq!(kind(&answer), kind(&other), "the same fault has the same kind on every backend");
        producer.send(Message::new("good")).await.unwrap();
    }
    Some(answer)
}

/// What another program may do to the server.
async fn command(url: &str, words: &[&str]) {
    let mut connection = TcpStream::connect(url.trim_start_matches("redis://")).await.unwrap();
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut reply = [0; 512];
    let read = connection.read(&mut reply).await.unwrap();
    assert!(read > 0 && reply[0] != b'-', "{}", String::from_utf8_lossy(&reply[..read]));
}

macro_rules! rows {
    ($($name:ident: $kind:pat, $words:literal, $answer:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let answer: Option<Answer> = $answer.await;
            let Some(answer) = answer else { return };
            let error = answer.expect_err("bad input is refused");
            println!("| {} | {:?} | {error} |", stringify!($name).replace('_', " "), error.kind);
            assert!(matches!(error.kind, $kind), "{error:?}");
            let text = error.to_string();
            for word in $words.split(" & ") {
                assert!(text.contains(word), "{text:?} does not say {word:?}");
            }
            assert!(!text.contains("canary") && !format!("{error:?}").contains("canary"), "a secret shows");
        }
    )*};
}

rows! {
    unreachable_server: ErrorKind::ConnectionLost, "redis build",
        build_redis(redis("redis://127.0.0.1:1", "unreachable"));
    unknown_host: ErrorKind::ConnectionLost, "redis build",
        build_redis(redis("redis://no-such-host.invalid:6379", "host"));
    unreachable_sentinel: ErrorKind::ConnectionLost, "redis build",
        build_redis(redis("redis+sentinel://127.0.0.1:1/primary", "sentinel"));
    wrong_password: ErrorKind::AuthenticationFailed, "redis build", async {
        let url = server("BUQUEUE_TEST_REDIS_AUTH")?;
        build_redis(redis(format!("redis://:canary@{}", url.rsplit('@').next()?), "password")).await
    };
    missing_password: ErrorKind::AuthenticationFailed, "redis build", async {
        let url = server("BUQUEUE_TEST_REDIS_AUTH")?;
        build_redis(redis(format!("redis://{}", url.rsplit('@').next()?), "no-password")).await
    };
    wrong_type_at_the_stream_key: ErrorKind::InvalidConfig, "stream", async {
        let url = server("BUQUEUE_TEST_REDIS")?;
        let config = redis(url.clone(), "wrongtype");
        command(&url, &["SET", &config.stream, "text"]).await;
        build_redis(config).await
    };
    broken_url: ErrorKind::InvalidConfig, "url", build_redis(redis("not a url canary", "url"));
    unknown_url_scheme: ErrorKind::InvalidConfig, "url", build_redis(redis("http://127.0.0.1:6379", "scheme"));
    sentinel_url_without_a_service: ErrorKind::InvalidConfig, "url",
        build_redis(redis("redis+sentinel://127.0.0.1:26379", "service"));
    database_that_is_no_number: ErrorKind::InvalidConfig, "url",
        build_redis(redis("redis://127.0.0.1:6379/orders", "database"));
    empty_stream: ErrorKind::InvalidConfig, "stream & must not be empty",
        build_redis(RedisConfig { stream: String::new(), ..unconnected() });
    empty_group: ErrorKind::InvalidConfig, "group & must not be empty",
        build_redis(RedisConfig { group: String::new(), ..unconnected() });
    empty_consumer: ErrorKind::InvalidConfig, "consumer & must not be empty",
        build_redis(RedisConfig { consumer: String::new(), ..unconnected() });
    zero_read_count: ErrorKind::InvalidConfig, "read_count & is 0",
        build_redis(RedisConfig { read_count: 0, ..unconnected() });
    zero_pending_timeout: ErrorKind::InvalidConfig, "pending_timeout",
        build_redis(RedisConfig { pending_timeout: Duration::ZERO, ..unconnected() });
    payload_over_the_limit: ErrorKind::PayloadTooLarge, "payload & 1025 bytes & limit is 1024 bytes", async {
        let url = server("BUQUEUE_TEST_REDIS")?;
        let builder = RedisBackend::builder(redis(url, "large")).max_payload(1024);
        let producer = builder.build_producer().await.unwrap();
        let answer = producer.send(Message::new(vec![b'x'; 1025])).await.map(drop);
        producer.send(Message::new("good")).await.unwrap();
        Some(answer)
    };
    header_name_over_the_limit: ErrorKind::InvalidMessage, "header name & 255 bytes",
        send("long", Message::new("").with_header("n".repeat(256), "canary"));
    header_name_with_a_space: ErrorKind::InvalidMessage, "header name & visible ASCII",
        send("space", Message::new("").with_header("no good", "canary"));
    empty_header_name: ErrorKind::InvalidMessage, "header name",
        send("empty", Message::new("").with_header("", "canary"));
    reserved_header: ErrorKind::InvalidMessage, "buqueue-dlq-reason & reserved",
        send("reserved", Message::new("").with_header("buqueue-dlq-reason", "canary"));
    zero_batch: ErrorKind::InvalidConfig, "max & at least 1", async {
        let mut consumer = MemoryBackend::builder(MemoryConfig::default()).build_consumer().await.unwrap();
        Some(consumer.receive_batch(0).await.map(drop))
    };
    payload_that_is_no_json: ErrorKind::Serialization, "payload from JSON & line 1 column", async {
        Some(Message::new("canary").payload_json::<Vec<u8>>().map(drop))
    };
    value_that_json_cannot_hold: ErrorKind::Serialization, "payload to JSON", async {
        let keyed_by_a_list: std::collections::BTreeMap<Vec<u8>, u8> = [(vec![1], 1)].into();
        Some(Message::from_json(&keyed_by_a_list).map(drop))
    };
    dead_letter_queue_is_the_queue_itself: ErrorKind::InvalidConfig,
        "dead_letter_queue.destination & must differ",
        build_memory(
            MemoryConfig::default(),
            Some(DlqConfig { destination: "queue".to_owned(), max_receive_count: 3 }),
        );
    no_attempts_allowed: ErrorKind::InvalidConfig, "dead_letter_queue.max_receive_count & at least 1",
        build_memory(
            MemoryConfig::default(),
            Some(DlqConfig { destination: "dead".to_owned(), max_receive_count: 0 }),
        );
    dead_letter_without_a_queue: ErrorKind::Unsupported, "no dead letter queue", async {
        let (producer, mut consumer) =
            MemoryBackend::builder(MemoryConfig::default()).build_pair().await.unwrap();
        producer.send(Message::new("")).await.unwrap();
        Some(consumer.receive().await.unwrap().dead_letter("canary").await)
    };
    empty_memory_queue_name: ErrorKind::InvalidConfig, "queue & must not be empty",
        build_memory(MemoryConfig { queue: String::new(), ..Default::default() }, None);
    zero_capacity: ErrorKind::InvalidConfig, "capacity & at least 1",
        build_memory(MemoryConfig { capacity: 0, ..Default::default() }, None);
    zero_lease: ErrorKind::InvalidConfig, "lease & 1 ms",
        build_memory(MemoryConfig { lease: Duration::ZERO, ..Default::default() }, None);
    clash_with_an_existing_queue: ErrorKind::InvalidConfig, "capacity & asked for 7 & has 1048576", async {
        let config = MemoryConfig::default();
        let _open = MemoryBackend::builder(config.clone()).build_producer().await.unwrap();
        build_memory(MemoryConfig { capacity: 7, ..config }, None).await
    };
}

/// A foreign entry is no error: it becomes a delivery with what could be read, and blocks nobody.
#[tokio::test]
async fn a_foreign_entry_is_delivered_and_blocks_nobody() {
    let Some(url) = server("BUQUEUE_TEST_REDIS") else { return };
    let config = redis(url.clone(), "foreign");
    let (producer, mut consumer) = RedisBackend::builder(config.clone()).build_pair().await.unwrap();
    command(&url, &["XADD", &config.stream, "*", "surprise", "text", "surprise", "again"]).await;
    producer.send(Message::new("good")).await.unwrap();
    consumer.receive().await.unwrap().ack().await.unwrap();
    let good = consumer.receive().await.unwrap();
    assert_eq!(good.payload(), "good");
    good.ack().await.unwrap();
}
