//! Redis Streams.

use std::time::Duration;

use buqueue::prelude::*;
use buqueue::redis::{RedisBackend, RedisBuilderExt, RedisConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Answer, server, unique};

pub(crate) fn redis(url: impl Into<String>, row: &str) -> RedisConfig {
    RedisConfig { url: url.into(), stream: unique(row), group: "g".to_owned(), ..Default::default() }
}

/// A config that is checked before any connection is made.
fn unconnected() -> RedisConfig {
    redis("redis://127.0.0.1:1", "unconnected")
}

async fn build_within(limit: Duration, config: RedisConfig) -> Option<Answer> {
    Some(RedisBackend::builder(config).connection_timeout(limit).build_pair().await.map(drop))
}

async fn build_redis(config: RedisConfig) -> Option<Answer> {
    build_within(Duration::from_secs(20), config).await
}

/// Where nobody answers, which takes as long as it may.
async fn build_in_vain(config: RedisConfig) -> Option<Answer> {
    build_within(Duration::from_secs(2), config).await
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

rows! {
    unreachable_server: ErrorKind::ConnectionLost, "redis build",
        build_in_vain(redis("redis://127.0.0.1:1", "unreachable"));
    unknown_host: ErrorKind::ConnectionLost, "redis build",
        build_in_vain(redis("redis://no-such-host.invalid:6379", "host"));
    unreachable_sentinel: ErrorKind::ConnectionLost, "redis build",
        build_in_vain(redis("redis+sentinel://127.0.0.1:1/primary", "sentinel"));
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
