//! What only RabbitMQ has: exchanges, permissions, and the level queues.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says so"
)]

use std::time::{Duration, Instant};

use buqueue_core::{Delivery, ErrorKind, Message};
use buqueue_rabbitmq::{ExchangeConfig, ExchangeKind, RabbitMqBackend, RabbitMqBuilderExt, RabbitMqConfig};
use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where a broker is; without it the test is skipped loudly, or fails where brokers are required.
fn server(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        assert_ne!(std::env::var("BUQUEUE_TEST_REQUIRE").as_deref(), Ok("1"), "{variable} is not set");
        println!("SKIPPED: {variable} is not set");
    }
    url
}

fn unique(name: &str) -> String {
    format!("t-{name}-{}-{}", std::process::id(), Utc::now().timestamp_micros())
}

fn config(url: &str, queue: &str) -> RabbitMqConfig {
    RabbitMqConfig { url: url.to_owned(), queue: unique(queue), ..RabbitMqConfig::default() }
}

fn bound(url: &str, exchange: &str, kind: ExchangeKind, binding_key: &str) -> RabbitMqConfig {
    let exchange = ExchangeConfig {
        name: exchange.to_owned(),
        kind,
        binding_key: binding_key.to_owned(),
        durable: true,
    };
    RabbitMqConfig { exchange: Some(exchange), ..config(url, "bound") }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap()
}

/// A connection of another program.
async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Which of two queues a message comes to, sent now and scheduled.
async fn routed(kind: ExchangeKind, keys: [&str; 2], message: Message, expected: [bool; 2]) {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    let exchange = unique("exchange");
    let mut consumers = Vec::new();
    let mut configs = Vec::new();
    for key in keys {
        let config = bound(&url, &exchange, kind, key);
        consumers.push(RabbitMqBackend::builder(config.clone()).build_consumer().await.unwrap());
        configs.push(config);
    }
    let producer = RabbitMqBackend::builder(configs[0].clone()).build_producer().await.unwrap();
    producer.send(message.clone()).await.unwrap();
    producer.send_at(message.clone(), Utc::now() + TimeDelta::milliseconds(300)).await.unwrap();
    for (consumer, expected) in consumers.iter_mut().zip(expected) {
        if expected {
            for _ in 0..2 {
                let delivery = within(consumer.receive()).await.unwrap();
                assert_eq!(delivery.routing_key(), message.routing_key());
                delivery.ack().await.unwrap();
            }
        }
    }
    for consumer in &mut consumers {
        assert!(consumer.try_receive().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn direct_exchanges_route_by_the_key() {
    let message = Message::new("m").with_routing_key("eu.orders");
    routed(ExchangeKind::Direct, ["eu.orders", "orders"], message, [true, false]).await;
}

#[tokio::test]
async fn topic_exchanges_route_by_a_pattern() {
    let message = Message::new("m").with_routing_key("orders.eu.placed");
    routed(ExchangeKind::Topic, ["orders.#", "*.us.*"], message, [true, false]).await;
}

#[tokio::test]
async fn fanout_exchanges_route_to_all() {
    let message = Message::new("m").with_routing_key("anything");
    routed(ExchangeKind::Fanout, ["", "ignored"], message, [true, true]).await;
}

#[tokio::test]
async fn headers_exchanges_route_by_headers() {
    let message = Message::new("m").with_header("region", "eu").with_header("kind", "order");
    let keys = ["region=eu,kind=order", "x-match=any,region=us,kind=refund"];
    routed(ExchangeKind::Headers, keys, message, [true, false]).await;
}

/// A message that no queue takes is an error, and the connection stays usable.
#[tokio::test]
async fn unroutable_is_an_error() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    let config = bound(&url, &unique("exchange"), ExchangeKind::Topic, "orders.#");
    let producer = RabbitMqBackend::builder(config).build_producer().await.unwrap();
    let error = producer.send(Message::new("m").with_routing_key("invoices")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    let batch = vec![
        Message::new("1").with_routing_key("orders.1"),
        Message::new("2").with_routing_key("invoices"),
        Message::new("3").with_routing_key("orders.3"),
    ];
    let error = producer.send_batch(batch).await.unwrap_err();
    let outcomes: Vec<bool> = error.outcomes().iter().map(Result::is_ok).collect();
    assert_eq!(outcomes, [true, false, true]);
}

/// Among messages that arrive, in a batch and at the same time, each that does not is told as such.
#[tokio::test]
async fn what_no_queue_takes_is_told_of_the_right_message() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    let config = bound(&url, &unique("exchange"), ExchangeKind::Direct, "bound");
    let (producer, mut consumer) = RabbitMqBackend::builder(config).build_pair().await.unwrap();
    let message = |number: usize| {
        let key = if number % 3 == 1 { "nowhere" } else { "bound" };
        Message::new(number.to_string()).with_routing_key(key)
    };
    let check = |number: usize, outcome: Result<(), &ErrorKind>| match number % 3 {
        1 => assert_eq!(outcome, Err(&ErrorKind::NotFound), "{number}"),
        _ => assert_eq!(outcome, Ok(()), "{number}"),
    };
    // Together in a batch, and each by itself at the same time.
    let error = within(producer.send_batch((0..90).map(message).collect())).await.unwrap_err();
    for (number, outcome) in error.outcomes().iter().enumerate() {
        check(number, outcome.as_ref().map(drop).map_err(|error| &error.kind));
    }
    let alone = within(join_all((90..180).map(|number| producer.send(message(number))))).await;
    for (number, outcome) in (90..180).zip(&alone) {
        check(number, outcome.as_ref().map(drop).map_err(|error| &error.kind));
    }
    let mut received = Vec::new();
    while received.len() < 120 {
        let delivery = within(consumer.receive()).await.unwrap();
        received.push(delivery.payload_json::<usize>().unwrap());
        delivery.ack().await.unwrap();
    }
    received.sort_unstable();
    assert_eq!(received, (0..180).filter(|number| number % 3 != 1).collect::<Vec<_>>());
    assert!(tokio::time::timeout(Duration::from_millis(200), consumer.receive()).await.is_err(), "twice");
}

/// All that may be unsettled is in handlers, and somebody waits: he gets the next when one is settled.
#[tokio::test]
async fn a_full_consumer_goes_on_when_one_is_settled() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    let config = RabbitMqConfig { prefetch_count: 1, ..config(&url, "full") };
    let (producer, mut consumer) = RabbitMqBackend::builder(config).build_pair().await.unwrap();
    producer.send_batch(vec![Message::new("1"), Message::new("2")]).await.unwrap();
    let first = within(consumer.receive()).await.unwrap();
    let second = tokio::spawn(async move { consumer.receive().await.unwrap().payload().clone() });
    // Long enough for the reader to have nothing more to do.
    tokio::time::sleep(Duration::from_millis(500)).await;
    first.ack().await.unwrap();
    assert_eq!(within(second).await.unwrap(), "2");
}

/// Asks the management interface.
async fn manage(request: &str, body: &str) {
    let url = std::env::var("BUQUEUE_TEST_RABBITMQ_MANAGEMENT").unwrap();
    let host = url.rsplit(['@', '/']).find(|part| !part.is_empty()).unwrap().to_owned();
    let mut connection = TcpStream::connect(&host).await.unwrap();
    let length = body.len();
    // `guest:guest`.
    let request = format!(
        "{request} HTTP/1.0\r\nhost: {host}\r\nauthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await.unwrap();
    assert!(reply.contains(" 20"), "{reply}");
}

/// One who may not declare uses what is there, and is told everything that is missing where it is not.
#[tokio::test]
async fn a_locked_down_broker_is_verified() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    if server("BUQUEUE_TEST_RABBITMQ_MANAGEMENT").is_none() {
        return;
    }
    let user = unique("user");
    manage(&format!("PUT /api/users/{user}"), r#"{"password":"secret","tags":""}"#).await;
    let permissions = r#"{"configure":"^$","write":".*","read":".*"}"#;
    manage(&format!("PUT /api/permissions/%2F/{user}"), permissions).await;
    let host = url.rsplit('@').next().unwrap();
    let open = bound(&url, &unique("exchange"), ExchangeKind::Topic, "orders.#");
    let limited = RabbitMqConfig { url: format!("amqp://{user}:secret@{host}"), ..open.clone() };

    let error = RabbitMqBackend::builder(limited.clone()).build_pair().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error}");
    let text = error.to_string();
    for word in [
        &open.queue,
        &open.exchange.as_ref().unwrap().name,
        "x-queue-type=quorum",
        "x-delivery-limit",
        "binding",
        "orders.#",
        "type=topic",
    ] {
        assert!(text.contains(word), "{text} does not say {word}");
    }
    assert!(!text.contains("secret"));

    RabbitMqBackend::builder(open).build_pair().await.unwrap();
    let (producer, mut consumer) = RabbitMqBackend::builder(limited).build_pair().await.unwrap();
    producer.send(Message::new("m").with_routing_key("orders.1")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
    manage(&format!("DELETE /api/users/{user}"), "").await;
}

/// A schedule thirty days out lies in the queue of its highest bit, where the broker's own means take it away.
#[tokio::test]
async fn a_far_schedule_is_seen_and_cancelled() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    let prefix = unique("far");
    let builder = RabbitMqBackend::builder(config(&url, "far")).delay_prefix(&prefix);
    let producer = builder.build_producer().await.unwrap();
    producer.send_at(Message::new("far"), Utc::now() + TimeDelta::days(30)).await.unwrap();
    // 2^31 ms are 24.9 days.
    let level = ShortString::try_new(format!("{prefix}.delay.level-31")).unwrap();
    let (_connection, channel) = channel(&url).await;
    let found = channel.basic_get(level.clone(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert_eq!(found.delivery.data, b"far");
    found.delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(level, passive, FieldTable::default()).await.unwrap();
    assert_eq!(queue.message_count(), 0);
}

/// What delays cost: the queues that are declared, and how long that takes once.
#[tokio::test]
async fn the_levels_cost_what_the_docs_say() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    for (name, delay, queues) in [
        ("a second", TimeDelta::milliseconds(1000), 10),
        ("an hour", TimeDelta::hours(1), 22),
        ("30 days", TimeDelta::days(30), 32),
        ("a year", TimeDelta::days(365), 35),
    ] {
        let prefix = unique("cost");
        let builder = RabbitMqBackend::builder(config(&url, "cost")).delay_prefix(&prefix);
        let producer = builder.build_producer().await.unwrap();
        let begin = Instant::now();
        producer.send_at(Message::new("m"), Utc::now() + delay).await.unwrap();
        let (first, begin) = (begin.elapsed(), Instant::now());
        producer.send_at(Message::new("m"), Utc::now() + delay).await.unwrap();
        println!("measured {name}: {queues} level queues, first {first:?}, then {:?}", begin.elapsed());
        let (_connection, channel) = channel(&url).await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let highest = ShortString::try_new(format!("{prefix}.delay.level-{:02}", queues - 1)).unwrap();
        channel.queue_declare(highest, passive, FieldTable::default()).await.unwrap();
        let above = ShortString::try_new(format!("{prefix}.delay.level-{queues:02}")).unwrap();
        assert!(channel.queue_declare(above, passive, FieldTable::default()).await.is_err());
    }
}

/// A handler may send on what it received, several times: what the broker wrote about its way is not sent with it.
#[tokio::test]
async fn a_message_may_be_delayed_again_and_again() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    let (producer, mut consumer) =
        RabbitMqBackend::builder(config(&url, "again")).build_pair().await.unwrap();
    let soon = || Utc::now() + TimeDelta::milliseconds(30);
    producer.send_at(Message::new("m").with_header("kept", "yes"), soon()).await.unwrap();
    for _ in 0..4 {
        let delivery = within(consumer.receive()).await.unwrap();
        assert_eq!(delivery.headers().iter().map(|(name, _)| name).collect::<Vec<_>>(), ["kept"]);
        let again = Message::new(delivery.payload().clone()).with_headers(delivery.headers().clone());
        producer.send_at(again, soon()).await.unwrap();
        delivery.ack().await.unwrap();
    }
}

/// TLS is used where the URL says so, and a certificate of an unknown authority is refused.
#[tokio::test]
async fn tls_is_used_and_the_authority_is_checked() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ_TLS") else { return };
    let Some(authority) = server("BUQUEUE_TEST_RABBITMQ_TLS_CA") else { return };
    let trusting = RabbitMqBackend::builder(config(&url, "tls")).root_certificates(authority);
    let (producer, mut consumer) = trusting.build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
    let error = within(RabbitMqBackend::builder(config(&url, "tls")).build_producer()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
}

/// The certificate is who logs in: without one there is nobody.
#[tokio::test]
async fn a_client_certificate_logs_in() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ_MTLS") else { return };
    let Some(authority) = server("BUQUEUE_TEST_RABBITMQ_TLS_CA") else { return };
    let Some(certificate) = server("BUQUEUE_TEST_RABBITMQ_TLS_CLIENT_CERT") else { return };
    let Some(key) = server("BUQUEUE_TEST_RABBITMQ_TLS_CLIENT_KEY") else { return };
    // As the user says it, in one URL.
    let url = format!("{url}&queue={}", unique("mtls"));
    let config = RabbitMqConfig::from_url(&url).unwrap();
    let unknown = || RabbitMqBackend::builder(config.clone()).root_certificates(&authority);
    let known = unknown().client_certificate(&certificate, &key);
    let (producer, mut consumer) = known.build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
    let error = within(unknown().build_producer()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
    // Files that do not belong together, and no key.
    for (certificate, key) in [(&authority, &key), (&certificate, &certificate)] {
        let wrong = unknown().client_certificate(certificate, key);
        let error = within(wrong.build_producer()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
        assert!(error.message().starts_with("client_certificate: "), "{error}");
    }
}

/// A certificate that the broker does not take is told from a connection that breaks.
#[tokio::test]
async fn a_client_certificate_that_is_refused_is_told() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ_MTLS") else { return };
    let Some(authority) = server("BUQUEUE_TEST_RABBITMQ_TLS_CA") else { return };
    let file = |name: &str| std::path::Path::new(&authority).with_file_name(name);
    let config = RabbitMqConfig::from_url(&format!("{url}&queue={}", unique("refused"))).unwrap();
    let builder = || {
        let builder = RabbitMqBackend::builder(config.clone()).root_certificates(&authority);
        builder.client_certificate(file("stranger.crt"), file("stranger.key"))
    };
    // The alert comes after the handshake: now and then nothing but a closed connection is seen.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut error = within(builder().build_producer()).await.unwrap_err();
    while error.kind == ErrorKind::ConnectionLost && Instant::now() < deadline {
        error = within(builder().build_producer()).await.unwrap_err();
    }
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
    assert!(error.message().starts_with("client_certificate: "), "{error}");
}

/// What has taken the place of a file counts from the next connection on; what is of no use does not.
#[tokio::test]
async fn a_certificate_that_was_replaced_counts_for_the_next_connection() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ_TLS") else { return };
    let Some(authority) = server("BUQUEUE_TEST_RABBITMQ_TLS_CA") else { return };
    let authority = std::path::Path::new(&authority);
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("replaced.pem"));
    let put = |other: &std::path::Path| std::fs::copy(other, &file).map(drop).unwrap();
    // What it counts with is a connection that is not there before.
    let monitor = async || {
        put(authority);
        let builder = RabbitMqBackend::builder(config(&url, "replaced")).root_certificates(&file);
        builder.build_consumer().await.unwrap().monitor()
    };
    let spared = monitor().await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(within(spared.queue_stats()).await.unwrap().ready, 0);
    let misled = monitor().await;
    // A certificate, of no authority.
    put(&authority.with_file_name("server.crt"));
    let error = within(misled.queue_stats()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
    put(authority);
    assert_eq!(within(misled.queue_stats()).await.unwrap().ready, 0);
}

/// A file of no use is told by its option, before anything is connected, and nothing of what it says.
#[tokio::test]
async fn a_file_without_a_certificate_is_told_by_its_option() {
    let broken = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("broken.pem"));
    std::fs::write(&broken, "-----BEGIN CERTIFICATE canary\n").unwrap();
    let none = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for file in ["/nowhere/file.pem", none, broken.to_str().unwrap()] {
        let encrypted = || RabbitMqBackend::builder(config("amqps://127.0.0.1:1", "file"));
        for (builder, option) in [
            (encrypted().root_certificates(file), "root_certificates"),
            (encrypted().client_certificate(file, file), "client_certificate"),
        ] {
            let error = within(builder.build_producer()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
            assert!(error.message().starts_with(&format!("{option}: {file:?} ")), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}

/// Without TLS nobody would look at certificates.
#[tokio::test]
async fn certificates_without_tls_are_refused() {
    let plain = || RabbitMqBackend::builder(config("amqp://127.0.0.1:1", "plain"));
    for (builder, option) in [
        (plain().root_certificates("ca.pem"), "root_certificates: "),
        (plain().client_certificate("client.pem", "key.pem"), "client_certificate: "),
    ] {
        let error = builder.build_producer().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
        assert!(error.message().starts_with(option) && error.message().contains("amqps://"), "{error}");
    }
}

/// Acks that are on their way to a quorum queue when their channel closes are forgotten by the broker.
#[tokio::test]
async fn acks_are_kept_that_came_just_before_the_end() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    for round in 0..2 {
        let config = RabbitMqConfig { prefetch_count: 1000, ..config(&url, "acks") };
        let producer = RabbitMqBackend::builder(config.clone()).build_producer().await.unwrap();
        let messages = (0..1000).map(|number| Message::new(number.to_string())).collect();
        within(producer.send_batch(messages)).await.unwrap();
        let mut consumer = RabbitMqBackend::builder(config.clone()).build_consumer().await.unwrap();
        let mut deliveries = Vec::new();
        while deliveries.len() < 1000 {
            deliveries.extend(within(consumer.receive_batch(1000)).await.unwrap());
        }
        let (connection, channel) = channel(&url).await;
        // By then a consumer that does not ask is no longer subscribed: ending it only closes its channel.
        tokio::time::sleep(Duration::from_millis(500)).await;
        // While the first is open, each of the others takes a frame of its own.
        let first = deliveries.remove(0);
        for acked in within(join_all(deliveries.into_iter().map(Delivery::ack))).await {
            acked.unwrap();
        }
        first.ack().await.unwrap();
        if round % 2 == 0 {
            within(consumer.shutdown_handle().shutdown()).await;
        }
        drop(consumer);
        // What is forgotten is ready again once the channel is closed.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(within(without_consumers(&channel, &config.queue)).await, 0, "acked messages came back");
        connection.close(200, "done".into()).await.unwrap();
    }
}

/// Waits until nobody is subscribed; how many messages are ready then.
async fn without_consumers(channel: &Channel, queue: &str) -> u32 {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    loop {
        let queue = channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap();
        if queue.consumer_count() == 0 {
            return queue.message_count();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_waits_is_counted_and_a_queue_that_is_gone_is_not_found() {
    let Some(url) = server("BUQUEUE_TEST_RABBITMQ") else { return };
    let config = config(&url, "counted");
    let pair = RabbitMqBackend::builder(config.clone()).build_pair().await;
    let (producer, mut consumer) = pair.unwrap();
    for _ in 0..3 {
        producer.send(Message::new("m")).await.unwrap();
    }
    let held = within(consumer.receive()).await.unwrap();
    let monitor = consumer.monitor();
    drop(consumer);
    // It is never asked while the queue is there.
    let unused = RabbitMqBackend::builder(config.clone()).build_consumer().await.unwrap().monitor();
    let deadline = Instant::now() + Duration::from_secs(10);
    // One is held, and what was read ahead comes back.
    while within(producer.queue_stats()).await.unwrap().ready != 2 {
        assert!(Instant::now() < deadline, "{:?}", within(producer.queue_stats()).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let stats = within(monitor.queue_stats()).await.unwrap();
    assert_eq!((stats.ready, stats.in_flight, stats.scheduled), (2, None, None));
    held.ack().await.unwrap();
    let (_connection, channel) = channel(&url).await;
    let queue = ShortString::try_new(config.queue).unwrap();
    channel.queue_delete(queue, QueueDeleteOptions::default()).await.unwrap();
    // Not by the producer's connection, nor by one that was never asked: to count declares nothing.
    for gone in [within(unused.queue_stats()).await, within(monitor.queue_stats()).await] {
        assert_eq!(gone.unwrap_err().kind, ErrorKind::NotFound);
    }
    let gone = within(producer.queue_stats()).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound, "{gone}");
    // The connection is as good as before.
    producer.send(Message::new("m")).await.unwrap();
    assert!(within(producer.queue_stats()).await.is_ok());
}
