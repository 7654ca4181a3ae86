//! RabbitMQ.

use std::time::Duration;

use buqueue::prelude::*;
use buqueue::rabbitmq::{
    ExchangeConfig, ExchangeKind, QueueType, RabbitMqBackend, RabbitMqBuilderExt, RabbitMqConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Answer, server, unique};

pub(crate) fn rabbitmq(url: impl Into<String>, row: &str) -> RabbitMqConfig {
    RabbitMqConfig { url: url.into(), queue: unique(row), ..Default::default() }
}

/// A config that is checked before any connection is made.
fn unconnected(change: impl FnOnce(&mut RabbitMqConfig)) -> RabbitMqConfig {
    let mut config = rabbitmq("amqp://127.0.0.1:1", "unconnected");
    config.connection_timeout = Duration::from_secs(2);
    change(&mut config);
    config
}

fn exchange(kind: ExchangeKind, binding_key: &str) -> ExchangeConfig {
    ExchangeConfig { name: unique("exchange"), kind, binding_key: binding_key.to_owned(), durable: true }
}

async fn build(config: RabbitMqConfig) -> Option<Answer> {
    Some(RabbitMqBackend::builder(config).build_pair().await.map(drop))
}

/// Builds once as it should be, and once more with a change that clashes.
async fn clash(
    row: &str,
    prepare: impl FnOnce(&mut RabbitMqConfig),
    change: impl FnOnce(&mut RabbitMqConfig),
) -> Option<Answer> {
    let mut config = rabbitmq(server("BUQUEUE_TEST_RABBITMQ")?, row);
    prepare(&mut config);
    let _open = RabbitMqBackend::builder(config.clone()).build_pair().await.unwrap();
    change(&mut config);
    build(config).await
}

async fn send(prepare: impl FnOnce(&mut RabbitMqConfig), message: Message) -> Option<Answer> {
    let mut config = rabbitmq(server("BUQUEUE_TEST_RABBITMQ")?, "send");
    prepare(&mut config);
    let producer = RabbitMqBackend::builder(config).max_payload(1024).build_producer().await.unwrap();
    let answer = producer.send(message).await.map(drop);
    // The same once more: the connection is still usable.
    Some(answer.and(producer.send(Message::new("good")).await.map(drop)))
}

/// The server's address with other credentials or another vhost.
fn with(url: &str, user: &str, vhost: &str) -> Option<String> {
    let host = url.rsplit('@').next()?.split('/').next()?;
    Some(format!("amqp://{user}@{host}/{vhost}"))
}

/// Calls the management interface as an operator would.
async fn manage(request: &str, body: &str) -> Option<()> {
    let url = server("BUQUEUE_TEST_RABBITMQ_MANAGEMENT")?;
    let host = url.rsplit(['@', '/']).find(|part| !part.is_empty()).unwrap_or_default().to_owned();
    let mut connection = TcpStream::connect(&host).await.unwrap();
    // `guest:guest`.
    let head = format!("{request} HTTP/1.0\r\nhost: {host}\r\nauthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n");
    let length = body.len();
    let rest = format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
    connection.write_all((head + &rest).as_bytes()).await.unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 2") || reply.starts_with("HTTP/1.0 2"), "{reply}");
    Some(())
}

rows! {
    unreachable_server: ErrorKind::ConnectionLost, "rabbitmq build", build(unconnected(|_| {}));
    unknown_host: ErrorKind::ConnectionLost, "rabbitmq build",
        build(unconnected(|config| config.url = "amqp://no-such-host.invalid:5672".to_owned()));
    wrong_password: ErrorKind::AuthenticationFailed, "rabbitmq build", async {
        let url = server("BUQUEUE_TEST_RABBITMQ")?;
        build(rabbitmq(with(&url, "guest:canary", "%2F")?, "password")).await
    };
    wrong_vhost: ErrorKind::InvalidConfig, "vhost & nowhere", async {
        let url = server("BUQUEUE_TEST_RABBITMQ")?;
        build(rabbitmq(with(&url, "guest:guest", "nowhere")?, "vhost")).await
    };
    missing_permission: ErrorKind::AuthenticationFailed, "rabbitmq build & declare", async {
        let url = server("BUQUEUE_TEST_RABBITMQ")?;
        let user = unique("user");
        manage(&format!("PUT /api/users/{user}"), r#"{"password":"canary","tags":""}"#).await?;
        let permissions = r#"{"configure":"^$","write":".*","read":".*"}"#;
        manage(&format!("PUT /api/permissions/%2F/{user}"), permissions).await?;
        let answer = build(rabbitmq(with(&url, &format!("{user}:canary"), "%2F")?, "permission")).await;
        manage(&format!("DELETE /api/users/{user}"), "").await?;
        answer
    };
    broken_url: ErrorKind::InvalidConfig, "url",
        build(unconnected(|config| config.url = "not a url canary".to_owned()));
    unknown_url_scheme: ErrorKind::InvalidConfig, "url",
        build(unconnected(|config| config.url = "http://127.0.0.1:5672".to_owned()));
    empty_queue: ErrorKind::InvalidConfig, "queue & must not be empty",
        build(unconnected(|config| config.queue.clear()));
    queue_name_over_255_bytes: ErrorKind::InvalidConfig, "queue & 255",
        build(unconnected(|config| config.queue = "q".repeat(256)));
    zero_prefetch: ErrorKind::InvalidConfig, "prefetch_count",
        build(unconnected(|config| config.prefetch_count = 0));
    zero_connection_timeout: ErrorKind::InvalidConfig, "connection_timeout",
        build(unconnected(|config| config.connection_timeout = Duration::ZERO));
    empty_exchange_name: ErrorKind::InvalidConfig, "exchange & must not be empty",
        build(unconnected(|config| {
            config.exchange = Some(ExchangeConfig { name: String::new(), ..exchange(ExchangeKind::Topic, "#") });
        }));
    queue_of_another_type: ErrorKind::InvalidConfig, "x-queue-type & quorum & classic",
        clash("type", |_| {}, |config| config.queue_type = QueueType::Classic);
    queue_of_another_durability: ErrorKind::InvalidConfig, "durable & true & false",
        clash("durable", |config| config.queue_type = QueueType::Classic, |config| config.durable = false);
    exchange_of_another_kind: ErrorKind::InvalidConfig, "type & topic & direct",
        clash("kind", |config| config.exchange = Some(exchange(ExchangeKind::Topic, "#")), |config| {
            if let Some(exchange) = &mut config.exchange {
                exchange.kind = ExchangeKind::Direct;
            }
        });
    key_that_reaches_no_queue: ErrorKind::NotFound, "rabbitmq send & exchange",
        send(
            |config| config.exchange = Some(exchange(ExchangeKind::Direct, "here")),
            Message::new("").with_routing_key("elsewhere"),
        );
    routing_key_over_255_bytes: ErrorKind::InvalidMessage, "routing_key & 255 bytes",
        send(
            |config| config.exchange = Some(exchange(ExchangeKind::Fanout, "")),
            Message::new("").with_routing_key("k".repeat(256)),
        );
    payload_over_the_limit: ErrorKind::PayloadTooLarge, "payload & 1025 bytes & limit is 1024 bytes",
        send(|_| {}, Message::new(vec![b'x'; 1025]));
}
