//! What only Redis has: its key types, its groups, its deployments, its keys beside the stream.
//!
//! Each test says which server it needs by the variable that it reads, and is skipped, loudly, where that is not
//! set; `BUQUEUE_TEST_REQUIRE=1` makes it fail instead.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests fail and talk as tests do"
)]

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, Consumer, Delivery, DlqConfig, ErrorKind, Message, Producer, QueueBuilder};
use buqueue_redis::{RedisBackend, RedisBuilderExt, RedisConfig};
use chrono::Utc;
use redis::Value;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// The endpoint, or `None` and a word about it.
fn endpoint(variable: &str) -> Option<String> {
    let endpoint = std::env::var(variable).ok();
    if endpoint.is_none() {
        assert!(
            std::env::var_os("BUQUEUE_TEST_REQUIRE").is_none_or(|value| value != "1"),
            "BUQUEUE_TEST_REQUIRE is set, and {variable} is not"
        );
        println!("skipped, because {variable} is not set");
    }
    endpoint
}

fn config(url: &str) -> RedisConfig {
    RedisConfig {
        url: url.to_owned(),
        stream: support::unique("test"),
        group: "workers".to_owned(),
        consumer: support::unique("consumer"),
        ..RedisConfig::default()
    }
}

fn another(config: &RedisConfig) -> RedisConfig {
    RedisConfig { consumer: support::unique("consumer"), ..config.clone() }
}

async fn pair(config: &RedisConfig) -> (Producer<RedisBackend>, Consumer<RedisBackend>) {
    RedisBackend::builder(config.clone()).build_pair().await.unwrap()
}

async fn consumer(config: &RedisConfig) -> Consumer<RedisBackend> {
    RedisBackend::builder(config.clone()).build_consumer().await.unwrap()
}

async fn receive(consumer: &mut Consumer<RedisBackend>) -> Delivery {
    timeout(SOON, consumer.receive()).await.expect("a message in time").unwrap()
}

async fn nothing_within(consumer: &mut Consumer<RedisBackend>, wait: Duration) {
    if let Ok(received) = timeout(wait, consumer.receive()).await {
        panic!("received {received:?}");
    }
}

async fn query(url: &str, words: &[&[u8]]) -> Value {
    let mut cmd = redis::Cmd::new();
    for word in words {
        cmd.arg(*word);
    }
    support::query(url, &cmd).await
}

async fn length(url: &str, key: &str) -> i64 {
    match query(url, &[b"XLEN", key.as_bytes()]).await {
        Value::Int(length) => length,
        other => panic!("{other:?}"),
    }
}

async fn until(what: &str, mut met: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !met().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn foreign_entries_with_duplicate_and_binary_field_names_block_nothing() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let (producer, mut consumer) = pair(&config).await;
    let stream = config.stream.as_bytes();
    query(&url, &[b"XADD", stream, b"*", b"\xff\xfe", b"raw", b"ok", b"v", b"\xff\xfe", b"x"]).await;
    query(&url, &[b"XADD", stream, b"*", b"twice", b"1", b"twice", b"2", b"payload", b"body"]).await;
    producer.send(Message::new("ours")).await.unwrap();

    let first = receive(&mut consumer).await;
    assert_eq!((first.payload().as_ref(), first.header("ok")), (b"raw".as_slice(), Some("v")));
    let second = receive(&mut consumer).await;
    assert_eq!((second.payload().as_ref(), second.header("twice")), (b"body".as_slice(), Some("1")));
    // A foreign entry is retried as it was.
    second.nack().await.unwrap();
    first.ack().await.unwrap();
    let mut again = Vec::new();
    for _ in 0..2 {
        let delivery = receive(&mut consumer).await;
        again.push((delivery.payload().to_vec(), delivery.delivery_count(), delivery.headers().len()));
        delivery.ack().await.unwrap();
    }
    again.sort();
    assert_eq!(again, [(b"body".to_vec(), 2, 1), (b"ours".to_vec(), 1, 0)]);
}

#[tokio::test]
async fn a_key_of_another_type_is_named_with_both_types() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    query(&url, &[b"SET", config.stream.as_bytes(), b"x"]).await;
    let producer = RedisBackend::builder(config.clone()).build_producer().await.unwrap_err();
    let consumer = RedisBackend::builder(config.clone()).build_consumer().await.unwrap_err();
    for error in [producer, consumer] {
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
        for word in [config.stream.as_str(), "stream", "string"] {
            assert!(error.message().contains(word), "{error}");
        }
    }
    query(&url, &[b"DEL", config.stream.as_bytes()]).await;
    // And later, under a running producer.
    let producer = RedisBackend::builder(config.clone()).build_producer().await.unwrap();
    query(&url, &[b"SET", config.stream.as_bytes(), b"x"]).await;
    let error = producer.send(Message::new("x")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig);
    assert!(error.message().contains(&config.stream), "{error}");
    query(&url, &[b"DEL", config.stream.as_bytes()]).await;
}

#[tokio::test]
async fn wrong_and_missing_passwords_are_refused_without_being_shown() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS_AUTH") else { return };
    let (_, host) = url.rsplit_once('@').unwrap();
    for wrong in [
        format!("redis://:canary@{host}"),
        format!("redis://nobody:canary@{host}"),
        format!("redis://{host}"),
    ] {
        let builder = RedisBackend::builder(config(&wrong));
        assert!(!format!("{builder:?}").contains("canary"));
        let error = builder.build_producer().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
        assert!(!format!("{error:?} {error}").contains("canary"));
    }
    let (producer, mut consumer) = pair(&config(&url)).await;
    producer.send(Message::new("x")).await.unwrap();
    receive(&mut consumer).await.ack().await.unwrap();
}

#[tokio::test]
async fn an_unreachable_server_is_a_lost_connection_in_time() {
    // Reserved for documentation: packets go nowhere, or are refused.
    let builder = RedisBackend::builder(config("redis://192.0.2.1:6379"));
    let begin = Instant::now();
    let error = builder.connection_timeout(Duration::from_millis(300)).build_producer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ConnectionLost, "{error:?}");
    // The default is ten seconds.
    assert!(begin.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_flushed_database_is_built_up_again() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    // A database of its own, so that flushing it hurts nobody else.
    let url = format!("{url}/15");
    let (producer, mut consumer) = pair(&config(&url)).await;
    producer.send(Message::new("before")).await.unwrap();
    let held = receive(&mut consumer).await;
    let waiting = tokio::spawn(async move { (receive(&mut consumer).await, consumer) });
    // The consumer waits at the server when the database is flushed.
    tokio::time::sleep(Duration::from_millis(100)).await;
    query(&url, &[b"FLUSHDB"]).await;
    producer.send(Message::new("after")).await.unwrap();
    let (delivery, _consumer) = waiting.await.unwrap();
    assert_eq!(delivery.payload().as_ref(), b"after");
    delivery.ack().await.unwrap();
    assert_eq!(held.ack().await.unwrap_err().kind, ErrorKind::LeaseExpired);
}

#[tokio::test]
async fn a_destroyed_group_is_created_again_and_nothing_unsettled_is_lost() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let (producer, mut consumer) = pair(&config).await;
    for payload in ["a", "b"] {
        producer.send(Message::new(payload)).await.unwrap();
    }
    receive(&mut consumer).await.ack().await.unwrap();
    let held = receive(&mut consumer).await;
    query(&url, &[b"XGROUP", b"DESTROY", config.stream.as_bytes(), b"workers"]).await;
    producer.send(Message::new("c")).await.unwrap();
    for expected in ["b", "c"] {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.payload().as_ref(), expected.as_bytes());
        delivery.ack().await.unwrap();
    }
    assert_eq!(held.ack().await.unwrap_err().kind, ErrorKind::LeaseExpired);
}

#[tokio::test]
async fn acknowledged_entries_are_deleted() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let (producer, mut consumer) = pair(&config).await;
    let total = 100_000;
    let sending = tokio::spawn(async move {
        for _ in 0..total / 1000 {
            producer.send_batch(vec![Message::new("x"); 1000]).await.unwrap();
        }
    });
    let mut received = 0;
    while received < total {
        let batch = timeout(SOON, consumer.receive_batch(100)).await.unwrap().unwrap();
        received += batch.len();
        Delivery::ack_all(batch).await.unwrap();
    }
    sending.await.unwrap();
    assert_eq!(length(&url, &config.stream).await, 0);
    query(&url, &[b"DEL", config.stream.as_bytes()]).await;
}

#[tokio::test]
async fn entries_stay_until_the_slowest_group_is_done_and_go_then() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let slow = RedisConfig { group: "slow".to_owned(), ..another(&config) };
    let (producer, mut fast) = pair(&config).await;
    let mut slow = consumer(&slow).await;
    for number in 0..20 {
        producer.send(Message::new(number.to_string())).await.unwrap();
    }
    let mut acked = 0;
    while acked < 20 {
        let delivery = receive(&mut fast).await;
        // Also on the way over the retry stream.
        if delivery.payload().as_ref() == b"7" && delivery.delivery_count() == 1 {
            delivery.nack().await.unwrap();
        } else {
            delivery.ack().await.unwrap();
            acked += 1;
        }
    }
    for number in 0..20 {
        let delivery = receive(&mut slow).await;
        assert_eq!(
            (delivery.payload().as_ref(), delivery.delivery_count()),
            (number.to_string().as_bytes(), 1)
        );
        delivery.ack().await.unwrap();
    }
    until("the stream is trimmed", async || length(&url, &config.stream).await <= 1).await;
}

#[tokio::test]
async fn a_lease_that_runs_out_moves_and_the_late_settle_is_told() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = RedisConfig { pending_timeout: Duration::from_secs(3), ..config(&url) };
    let (producer, mut first) = pair(&config).await;
    let mut second = consumer(&another(&config)).await;
    producer.send(Message::new("x")).await.unwrap();
    let late = receive(&mut first).await;
    let again = receive(&mut second).await;
    assert_eq!(again.delivery_count(), 2);
    assert!(again.first_failed_at().is_some());
    assert_eq!(late.extend_visibility(SOON).await.unwrap_err().kind, ErrorKind::LeaseExpired);
    assert_eq!(late.ack().await.unwrap_err().kind, ErrorKind::LeaseExpired);
    let first_failed_at = again.first_failed_at();
    let third = receive(&mut first).await;
    assert_eq!((third.delivery_count(), third.first_failed_at()), (3, first_failed_at));
    assert_eq!(again.nack().await.unwrap_err().kind, ErrorKind::LeaseExpired);
    third.ack().await.unwrap();
    assert_eq!(length(&url, &config.stream).await, 0);
}

#[tokio::test]
async fn a_lease_is_extended_beyond_the_pending_timeout() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = RedisConfig { pending_timeout: Duration::from_secs(3), ..config(&url) };
    let (producer, mut first) = pair(&config).await;
    let mut second = consumer(&another(&config)).await;
    producer.send(Message::new("x")).await.unwrap();
    let begin = Instant::now();
    let held = receive(&mut first).await;
    held.extend_visibility(Duration::from_secs(6)).await.unwrap();
    let again = receive(&mut second).await;
    let after = begin.elapsed();
    assert!(after >= Duration::from_secs(6), "{after:?}");
    // Far beyond the wait, which is longer than the pending timeout.
    again.extend_visibility(Duration::from_secs(20)).await.unwrap();
    nothing_within(&mut first, Duration::from_secs(4)).await;
    again.ack().await.unwrap();
    drop(held);
}

#[tokio::test]
async fn a_schedule_that_cannot_be_read_holds_nothing_up() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let schedule = format!("{{{}}}:schedule", config.stream);
    query(&url, &[b"ZADD", schedule.as_bytes(), b"1", b"\xc1 not what buqueue writes"]).await;
    query(&url, &[b"ZADD", schedule.as_bytes(), b"2", b""]).await;
    let (producer, mut consumer) = pair(&config).await;
    let at = Utc::now() + chrono::TimeDelta::milliseconds(300);
    producer.send_at(Message::new("x").with_header("h", "v").with_routing_key("k"), at).await.unwrap();
    let delivery = receive(&mut consumer).await;
    assert!(Utc::now() >= at);
    assert_eq!((delivery.header("h"), delivery.routing_key()), (Some("v"), Some("k")));
    delivery.ack().await.unwrap();
    let broken = format!("{{{}}}:broken", config.stream);
    assert_eq!(query(&url, &[b"LLEN", broken.as_bytes()]).await, Value::Int(2));
    query(&url, &[b"DEL", broken.as_bytes()]).await;
}

#[tokio::test]
async fn a_cancelled_receive_hides_nothing_from_a_prompt_look() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let (producer, mut consumer) = pair(&config(&url)).await;
    let mut looks = Vec::new();
    for round in 0..20 {
        nothing_within(&mut consumer, Duration::from_millis(20)).await;
        producer.send(Message::new(round.to_string())).await.unwrap();
        let begin = Instant::now();
        let delivery = consumer.try_receive().await.unwrap().expect("the message is visible");
        looks.push(begin.elapsed());
        assert_eq!(
            (delivery.payload().as_ref(), delivery.delivery_count()),
            (round.to_string().as_bytes(), 1)
        );
        delivery.ack().await.unwrap();
    }
    assert!(consumer.try_receive().await.unwrap().is_none());
    looks.sort();
    // A loaded machine may hold up some of them.
    assert!(looks[10] < Duration::from_millis(500) && looks[19] < SOON, "{looks:?}");
}

#[tokio::test]
async fn what_was_read_ahead_goes_back_uncounted_and_in_order() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let (producer, mut first) = pair(&config).await;
    let numbers =
        |from: usize, to: usize| (from..to).map(|n| Message::new(n.to_string())).collect::<Vec<_>>();
    producer.send_batch(numbers(0, 300)).await.unwrap();
    // Fast enough to be read ahead for, then stalled.
    for number in 0..100 {
        let delivery = receive(&mut first).await;
        assert_eq!(delivery.payload().as_ref(), number.to_string().as_bytes());
        delivery.ack().await.unwrap();
    }
    let held = receive(&mut first).await;
    // Another consumer gets all the others, although the first has some of them in its buffer.
    let mut second = consumer(&another(&config)).await;
    let mut others = Vec::new();
    while others.len() < 199 {
        let delivery = receive(&mut second).await;
        assert_eq!(delivery.delivery_count(), 1);
        others.push(String::from_utf8(delivery.payload().to_vec()).unwrap().parse::<usize>().unwrap());
        delivery.ack().await.unwrap();
    }
    others.sort_unstable();
    assert_eq!(others, (101..300).collect::<Vec<_>>());
    held.ack().await.unwrap();

    // And to one consumer alone they come in order.
    drop(second);
    producer.send_batch(numbers(0, 200)).await.unwrap();
    for number in 0..200 {
        if number == 100 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        let delivery = receive(&mut first).await;
        assert_eq!(
            (delivery.payload().as_ref(), delivery.delivery_count()),
            (number.to_string().as_bytes(), 1)
        );
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_always_fails_does_not_starve_the_stream() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let (producer, mut consumer) = pair(&config(&url)).await;
    producer.send(Message::new("poison")).await.unwrap();
    for _ in 0..20 {
        producer.send(Message::new("good")).await.unwrap();
    }
    let (mut good, mut poison) = (0, 0);
    while good < 20 {
        let delivery = receive(&mut consumer).await;
        if delivery.payload().as_ref() == b"good" {
            good += 1;
            delivery.ack().await.unwrap();
        } else {
            poison += 1;
            assert_eq!(delivery.delivery_count(), poison);
            delivery.nack().await.unwrap();
        }
        assert!(poison < 100, "{good} good ones after {poison} attempts");
    }
}

#[tokio::test]
async fn a_closed_consumer_leaves_the_group() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let (producer, mut consumer) = pair(&config).await;
    producer.send(Message::new("x")).await.unwrap();
    receive(&mut consumer).await.ack().await.unwrap();
    consumer.shutdown_handle().shutdown().await;
    let consumers =
        query(&url, &[b"XINFO", b"CONSUMERS", config.stream.as_bytes(), config.group.as_bytes()]).await;
    assert_eq!(consumers, Value::Array(Vec::new()));
}

async fn whole_story(build: impl Fn(RedisConfig) -> QueueBuilder<RedisBackend>, config: RedisConfig) {
    let dead_stream = format!("{{{}}}:dead", config.stream);
    whole_story_with(build, config, dead_stream).await;
}

async fn whole_story_with(
    build: impl Fn(RedisConfig) -> QueueBuilder<RedisBackend>,
    config: RedisConfig,
    dead_stream: String,
) {
    let dead_config = RedisConfig { stream: dead_stream.clone(), ..another(&config) };
    let dlq = DlqConfig { destination: dead_stream, max_receive_count: 3 };
    let mut dead = build(dead_config).build_consumer().await.unwrap();
    let (producer, mut consumer) = build(config).dead_letter_queue(dlq).build_pair().await.unwrap();
    let once = || Message::new("once").with_deduplication_id("id");
    let first = producer.send(once()).await.unwrap();
    assert_eq!(producer.send(once()).await.unwrap(), first);
    producer
        .send_batch(vec![once(), Message::new("a").with_header("h", "v"), Message::new("b")])
        .await
        .unwrap();
    producer.send_at(Message::new("later"), Utc::now() + chrono::TimeDelta::milliseconds(300)).await.unwrap();
    let (ready, held, later) = counted(&producer).await;
    assert_eq!(ready + held + later, 4, "{ready} {held} {later}");
    let mut seen = Vec::new();
    while seen.len() < 7 {
        let delivery = receive(&mut consumer).await;
        let payload = String::from_utf8(delivery.payload().to_vec()).unwrap();
        seen.push(format!("{payload}{}", delivery.delivery_count()));
        match (payload.as_str(), delivery.delivery_count()) {
            ("a", 1) => delivery.nack_after(Duration::from_millis(100)).await.unwrap(),
            ("a" | "b", 1 | 2) => delivery.nack().await.unwrap(),
            ("a", _) => delivery.nack().await.unwrap(),
            _ => delivery.ack().await.unwrap(),
        }
        if seen.last().is_some_and(|last| last == "a3") {
            let letter = receive(&mut dead).await;
            assert_eq!((letter.payload().as_ref(), letter.header("h")), (b"a".as_slice(), Some("v")));
            assert_eq!(letter.delivery_count(), 3);
            letter.ack().await.unwrap();
        }
    }
    assert!(consumer.try_receive().await.unwrap().is_none() || seen.len() < 8);
    seen.sort();
    assert!(seen.contains(&"once1".to_owned()) && seen.contains(&"b3".to_owned()), "{seen:?}");
    consumer.shutdown_handle().shutdown().await;
}

#[tokio::test]
async fn one_server_tells_the_whole_story() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    whole_story(RedisBackend::builder, config(&url)).await;
    // The newer protocol has other shapes of reply.
    whole_story(RedisBackend::builder, config(&format!("{url}/?protocol=resp3"))).await;
}

#[tokio::test]
async fn tls_is_used_and_the_authority_is_checked() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS_TLS") else { return };
    let Some(file) = endpoint("BUQUEUE_TEST_REDIS_TLS_CA") else { return };
    whole_story(|config| RedisBackend::builder(config).root_certificates(&file), config(&url)).await;
    let error = RedisBackend::builder(config(&url)).build_producer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
}

/// The authority, and the client's certificate and key, of the servers that ask for one.
fn files() -> Option<[String; 3]> {
    let file = |name| endpoint(&format!("BUQUEUE_TEST_REDIS_TLS_{name}"));
    Some([file("CA")?, file("CLIENT_CERT")?, file("CLIENT_KEY")?])
}

/// What building fails at. An alert comes after the handshake: now and then nothing but a closed connection is seen.
async fn refusal(builder: impl Fn() -> QueueBuilder<RedisBackend>) -> BuqueueError {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let error = builder().build_producer().await.unwrap_err();
        if error.kind != ErrorKind::ConnectionLost || Instant::now() > deadline {
            return error;
        }
    }
}

/// Who shows his certificate is let in, and who has none is told so.
async fn a_certificate_is_asked_for(config: RedisConfig, cluster_nodes: Vec<String>) {
    let Some([authority, certificate, key]) = files() else { return };
    let trusting = |config| {
        RedisBackend::builder(config).root_certificates(&authority).cluster_nodes(cluster_nodes.clone())
    };
    let known = |config| trusting(config).client_certificate(&certificate, &key);
    whole_story(known, config.clone()).await;
    let unknown = || trusting(config.clone()).connection_timeout(Duration::from_secs(5));
    let file = |name: &str| std::path::Path::new(&authority).with_file_name(name);
    let stranger = || unknown().client_certificate(file("stranger.crt"), file("stranger.key"));
    for error in [refusal(unknown).await, refusal(stranger).await] {
        assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
        assert!(error.message().starts_with("client_certificate: "), "{error}");
    }
    // Files that do not belong together, and no key.
    for (certificate, key) in [(&authority, &key), (&certificate, &certificate)] {
        let error = unknown().client_certificate(certificate, key).build_producer().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
        assert!(error.message().starts_with("client_certificate: "), "{error}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS_MTLS") else { return };
    a_certificate_is_asked_for(config(&url), Vec::new()).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_sentinels_and_to_the_primary() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS_MTLS_SENTINEL") else { return };
    a_certificate_is_asked_for(config(&url), Vec::new()).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_nodes_of_a_cluster() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS_MTLS_CLUSTER") else { return };
    let node = url.trim_start_matches("rediss://").to_owned();
    a_certificate_is_asked_for(config(&url), vec![node]).await;
}

/// A file of no use is told by its option, before anything is connected, and nothing of what it says.
#[tokio::test]
async fn a_file_without_a_certificate_is_told_by_its_option() {
    let broken = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(support::unique("broken.pem"));
    std::fs::write(&broken, "-----BEGIN CERTIFICATE canary\n").unwrap();
    let none = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for file in ["/nowhere/file.pem", none, broken.to_str().unwrap()] {
        let over = |scheme: &str| RedisBackend::builder(config(&format!("{scheme}://127.0.0.1:1")));
        for (builder, option) in [
            (over("rediss").root_certificates(file), "root_certificates"),
            (over("rediss").client_certificate(file, file), "client_certificate"),
        ] {
            let error = builder.build_producer().await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
            assert!(error.message().starts_with(&format!("{option}: {file:?} ")), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}

/// Without TLS nobody would look at certificates.
#[tokio::test]
async fn certificates_without_tls_are_refused() {
    let plain = || RedisBackend::builder(config("redis://127.0.0.1:1"));
    for (builder, option) in [
        (plain().root_certificates("ca.pem"), "root_certificates: "),
        (plain().client_certificate("client.pem", "key.pem"), "client_certificate: "),
    ] {
        let error = builder.build_producer().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
        assert!(error.message().starts_with(option) && error.message().contains("rediss://"), "{error}");
    }
}

#[tokio::test]
async fn the_primary_is_found_through_sentinels() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS_SENTINEL") else { return };
    whole_story(RedisBackend::builder, config(&url)).await;
    let (known, _) = url.rsplit_once('/').unwrap();
    let error = RedisBackend::builder(config(&format!("{known}/nobody"))).build_producer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ConnectionLost, "{error:?}");
}

#[tokio::test]
async fn a_cluster_is_used_with_and_without_hash_tags() {
    let Some(nodes) = endpoint("BUQUEUE_TEST_REDIS_CLUSTER") else { return };
    let nodes: Vec<String> = nodes.trim_start_matches("redis://").split(',').map(str::to_owned).collect();
    let url = format!("redis://{}", nodes[0]);
    let build = |config| RedisBackend::builder(config).cluster_nodes(nodes.clone());
    for stream in [support::unique("test"), format!("{{{}}}:orders", support::unique("test"))] {
        whole_story(build, RedisConfig { stream, ..config(&url) }).await;
    }
    let config = RedisConfig { stream: "a}b".to_owned(), ..config(&url) };
    let error =
        build(RedisConfig { stream: "{}ab".to_owned(), ..config }).build_producer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
}

/// An entry with more fields than a script can write.
async fn add_wide(url: &str, stream: &str) {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(stream).arg("*");
    for number in 0..4100 {
        cmd.arg(format!("f{number}")).arg("v");
    }
    support::query(url, &cmd).await;
}

#[tokio::test]
async fn an_entry_too_wide_to_be_retried_is_parked_and_holds_nothing_up() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = RedisConfig { pending_timeout: Duration::from_secs(2), ..config(&url) };
    let (producer, mut consumer) = pair(&config).await;
    add_wide(&url, &config.stream).await;
    receive(&mut consumer).await.nack_after(Duration::from_millis(50)).await.unwrap();
    producer.send(Message::new("later")).await.unwrap();
    receive(&mut consumer).await.nack_after(Duration::from_millis(300)).await.unwrap();
    let later = receive(&mut consumer).await;
    assert_eq!(later.payload().as_ref(), b"later");
    later.ack().await.unwrap();
    // And by a lease that runs out, together with another.
    add_wide(&url, &config.stream).await;
    producer.send(Message::new("held")).await.unwrap();
    for _ in 0..2 {
        std::mem::forget(receive(&mut consumer).await);
    }
    until("both leases have run out", async || length(&url, &config.stream).await == 0).await;
    let broken = format!("{{{}}}:broken", config.stream);
    assert_eq!(query(&url, &[b"LLEN", broken.as_bytes()]).await, Value::Int(2));
    query(&url, &[b"DEL", broken.as_bytes()]).await;
}

#[tokio::test]
async fn a_schedule_with_a_hole_holds_nothing_up() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let (producer, mut consumer) = pair(&config).await;
    let schedule = format!("{{{}}}:schedule", config.stream);
    // A list of a unique string, `p`, nil, `k` and `v`.
    query(&url, &[b"ZADD", schedule.as_bytes(), b"1", b"\x95\xa1i\xa1p\xc0\xa1k\xa1v"]).await;
    let at = Utc::now() + chrono::TimeDelta::milliseconds(200);
    producer.send_at(Message::new("x"), at).await.unwrap();
    receive(&mut consumer).await.ack().await.unwrap();
    query(&url, &[b"DEL", format!("{{{}}}:broken", config.stream).as_bytes()]).await;
}

#[tokio::test]
async fn acks_that_share_a_call_have_outcomes_of_their_own() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let (producer, mut consumer) = pair(&config).await;
    producer.send_batch(vec![Message::new("x"); 3]).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(receive(&mut consumer).await);
    }
    let lost = held[1].message_id().to_string();
    query(&url, &[b"XACK", config.stream.as_bytes(), b"workers", lost.as_bytes()]).await;
    let acks: Vec<_> = held.into_iter().map(|delivery| tokio::spawn(delivery.ack())).collect();
    let mut outcomes = Vec::new();
    for ack in acks {
        outcomes.push(ack.await.unwrap().map_err(|error| error.kind));
    }
    assert_eq!(outcomes, [Ok(()), Err(ErrorKind::LeaseExpired), Ok(())]);
}

#[tokio::test]
async fn what_is_given_back_several_times_stays_in_order() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let (producer, mut consumer) = pair(&config(&url)).await;
    let messages = (0..300).map(|number| Message::new(number.to_string())).collect::<Vec<_>>();
    producer.send_batch(messages).await.unwrap();
    for number in 0..300 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(
            (delivery.payload().as_ref(), delivery.delivery_count()),
            (number.to_string().as_bytes(), 1)
        );
        delivery.ack().await.unwrap();
        if [75, 150, 160, 170].contains(&number) {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    }
}

#[tokio::test]
async fn what_a_group_that_was_set_back_has_yet_to_read_is_kept() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let stream = config.stream.as_bytes();
    let (producer, mut consumer) = pair(&config).await;
    query(&url, &[b"XGROUP", b"CREATE", stream, b"replay", b"0"]).await;
    let mut last = String::new();
    for number in 0..5 {
        last = producer.send(Message::new(number.to_string())).await.unwrap().to_string();
        receive(&mut consumer).await.ack().await.unwrap();
    }
    // The other group has its last one pending, and starts over.
    query(&url, &[b"XGROUP", b"SETID", stream, b"replay", b"0"]).await;
    query(&url, &[b"XCLAIM", stream, b"replay", b"x", b"0", last.as_bytes(), b"FORCE"]).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(length(&url, &config.stream).await, 5);
}

/// A way to the server that brings so many bytes a second; ends with the test.
fn slow_way(url: &str, rate: usize) -> String {
    let server = url.trim_start_matches("redis://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pump = |mut from: TcpStream, mut to: TcpStream, rate: usize| {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
            std::thread::sleep(
                Duration::from_secs(1) * u32::try_from(read).unwrap() / u32::try_from(rate).unwrap(),
            );
        }
        drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
    };
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(&server).unwrap();
            let (reading, writing) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || pump(client, server, 1 << 30));
            std::thread::spawn(move || pump(reading, writing, rate));
        }
    });
    format!("redis://{address}")
}

#[tokio::test]
async fn a_slow_network_brings_a_large_message_at_the_first_attempt() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let direct = config(&url);
    let producer = RedisBackend::builder(direct.clone()).build_producer().await.unwrap();
    // It needs longer than the first read waits.
    let slow = RedisConfig { url: slow_way(&url, 100_000), ..direct.clone() };
    producer.send(Message::new(vec![7; 550_000])).await.unwrap();
    let builder = RedisBackend::builder(slow).request_timeout(Duration::from_secs(2));
    let mut consumer = builder.build_consumer().await.unwrap();
    let begin = Instant::now();
    let delivery = timeout(SOON * 3, consumer.receive()).await.expect("in time").unwrap();
    assert_eq!((delivery.payload().len(), delivery.delivery_count()), (550_000, 1));
    assert!(begin.elapsed() > Duration::from_secs(8), "the first read was not given up");
    delivery.ack().await.unwrap();
    assert_eq!(length(&url, &direct.stream).await, 0);
}

#[tokio::test]
async fn a_group_that_is_destroyed_all_the_time_is_not_created_in_a_loop() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let mut consumer = consumer(&config).await;
    let mut destroy = redis::cmd("XGROUP");
    destroy.arg("DESTROY").arg(&config.stream).arg("workers");
    let client = redis::Client::open(url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let waiting = tokio::spawn(async move { consumer.receive().await.map(drop) });
    let (end, mut created) = (Instant::now() + Duration::from_secs(2), 0_u64);
    while Instant::now() < end {
        let gone: u64 = destroy.query_async(&mut connection).await.unwrap();
        created += gone;
    }
    waiting.abort();
    assert!(created < 100, "created {created} times");
}

async fn counted(producer: &Producer<RedisBackend>) -> (u64, u64, u64) {
    let stats = timeout(SOON, producer.queue_stats()).await.expect("in time").unwrap();
    (stats.ready, stats.in_flight.unwrap(), stats.scheduled.unwrap())
}

#[tokio::test]
async fn each_group_counts_what_lies_before_it() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let config = config(&url);
    let other = RedisConfig { group: "other".to_owned(), ..another(&config) };
    let producer = RedisBackend::builder(config.clone()).build_producer().await.unwrap();
    assert_eq!(counted(&producer).await, (0, 0, 0));
    producer.send_batch(vec![Message::new("x"); 6]).await.unwrap();
    // For a group that nobody has created, and counting does not.
    assert_eq!(counted(&producer).await, (6, 0, 0));
    let groups = query(&url, &[b"XINFO", b"GROUPS", config.stream.as_bytes()]).await;
    assert_eq!(groups, Value::Array(Vec::new()));
    let mut consumer = consumer(&config).await;
    let (waiting, _idle) = pair(&other).await;
    let mut held = Vec::new();
    while held.len() < 6 {
        held.push(receive(&mut consumer).await);
    }
    assert_eq!((counted(&producer).await, counted(&waiting).await), ((0, 6, 0), (6, 0, 0)));
    held.pop().unwrap().ack().await.unwrap();
    held.pop().unwrap().nack_after(Duration::from_secs(3600)).await.unwrap();
    assert_eq!((counted(&producer).await, counted(&waiting).await), ((0, 4, 1), (6, 0, 0)));
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    producer.send(Message::new("x")).await.unwrap();
    assert_eq!((counted(&producer).await, counted(&waiting).await), ((1, 0, 1), (7, 0, 0)));
}

/// The last entry that the group was given is gone, and one before it is not: the server tells no lag then.
#[tokio::test]
async fn acks_out_of_order_do_not_disturb_the_count() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    let (producer, mut consumer) = pair(&config(&url)).await;
    producer.send_batch(vec![Message::new("x"); 3]).await.unwrap();
    let (first, second) = (receive(&mut consumer).await, receive(&mut consumer).await);
    let third = receive(&mut consumer).await;
    third.ack().await.unwrap();
    assert_eq!(counted(&producer).await, (0, 2, 0));
    producer.send(Message::new("x")).await.unwrap();
    assert_eq!(counted(&producer).await, (1, 2, 0));
    first.nack().await.unwrap();
    assert_eq!(counted(&producer).await, (2, 1, 0));
    second.ack().await.unwrap();
    consumer.shutdown_handle().shutdown().await;
    assert_eq!(counted(&producer).await, (2, 0, 0));
}

/// Makes the user that the documentation of the crate makes, for streams of another name, and gives the URL to be it.
async fn documented_user(url: &str, user: &str, stream: &str) -> (String, String) {
    let docs = include_str!("../src/lib.rs");
    let (_, acl) = docs.split_once(&format!("redis-cli ACL SETUSER {user} ")).unwrap();
    let mut more = true;
    let lines = acl.lines().take_while(|line| std::mem::replace(&mut more, line.ends_with('\\')));
    let rules = lines.flat_map(str::split_whitespace).filter(|word| !["//!", "\\"].contains(word));
    let name = support::unique(user);
    let mut cmd = redis::cmd("ACL");
    cmd.arg("SETUSER").arg(&name);
    for rule in rules {
        cmd.arg(rule.trim_matches('\'').replace("orders", stream));
    }
    support::query(url, &cmd).await;
    (url.replacen("://", &format!("://{name}:secret@"), 1), name)
}

/// What the server has refused to a user.
async fn refused(url: &str, user: &str) -> Vec<String> {
    let log = query(url, &[b"ACL", b"LOG"]).await;
    let log: Vec<HashMap<String, String>> = redis::from_redis_value(log).unwrap();
    let mine = log.iter().filter(|entry| entry["username"] == user);
    mine.map(|entry| format!("{} {} {}", entry["context"], entry["reason"], entry["object"])).collect()
}

#[tokio::test]
async fn the_documented_permissions_are_enough() {
    let Some(url) = endpoint("BUQUEUE_TEST_REDIS") else { return };
    // Another database than the first, which takes a command more.
    let url = format!("{url}/3");
    let stream = support::unique("test");
    let (shop_url, shop) = documented_user(&url, "shop", &stream).await;
    let (sender_url, sender) = documented_user(&url, "sender", &stream).await;
    let patient = RedisConfig { stream: stream.clone(), ..config(&shop_url) };
    let config = RedisConfig { pending_timeout: Duration::from_secs(3), ..patient.clone() };

    // Two groups; a lease that is extended, one that runs out, an entry that is parked; then all the rest.
    let sender_config = RedisConfig { url: sender_url, ..config.clone() };
    let producer = RedisBackend::builder(sender_config).build_producer().await.unwrap();
    let mut consumer = consumer(&config).await;
    let other = RedisConfig { group: "other".to_owned(), ..another(&config) };
    let mut other = RedisBackend::builder(other).build_consumer().await.unwrap();
    producer.send(Message::new("x").with_deduplication_id("x")).await.unwrap();
    let at = Utc::now() + chrono::TimeDelta::milliseconds(300);
    producer.send_at(Message::new("y").with_deduplication_id("y"), at).await.unwrap();
    let held = receive(&mut consumer).await;
    held.extend_visibility(SOON * 3).await.unwrap();
    let late = receive(&mut other).await;
    receive(&mut consumer).await.ack().await.unwrap();
    for _ in 0..2 {
        receive(&mut other).await.ack().await.unwrap();
    }
    assert_eq!(late.ack().await.unwrap_err().kind, ErrorKind::LeaseExpired);
    nothing_within(&mut consumer, Duration::from_secs(4)).await;
    held.ack().await.unwrap();
    add_wide(&url, &stream).await;
    receive(&mut consumer).await.nack().await.unwrap();
    receive(&mut other).await.ack().await.unwrap();
    until("the stream is trimmed", async || length(&url, &stream).await <= 1).await;
    for consumer in [consumer, other] {
        consumer.shutdown_handle().shutdown().await;
    }
    whole_story_with(RedisBackend::builder, patient, format!("{stream}-dead")).await;

    for user in [shop, sender] {
        let refused = refused(&url, &user).await;
        assert!(refused.iter().all(|refused| refused.ends_with(" client|setinfo")), "{refused:?}");
        query(&url, &[b"ACL", b"DELUSER", user.as_bytes()]).await;
    }
}
