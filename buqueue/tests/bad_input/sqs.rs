//! AWS SQS.

use std::time::Duration;

use buqueue::QueueBuilder;
use buqueue::prelude::*;
use buqueue::sqs::aws_sdk_sqs::config::Credentials;
use buqueue::sqs::{SqsBackend, SqsBuilderExt, SqsConfig, VisibilityTimeout};

use super::{Answer, server, unique};

/// A config that is checked before any connection is made.
fn unconnected(change: impl FnOnce(&mut SqsConfig)) -> SqsConfig {
    let mut config =
        SqsConfig { queue_url: "http://127.0.0.1:1/000000000000/orders".to_owned(), ..SqsConfig::default() };
    change(&mut config);
    config
}

fn queue(row: &str) -> Option<SqsConfig> {
    let endpoint = server("BUQUEUE_TEST_SQS")?;
    let queue_url = format!("{}/000000000000/{}", endpoint.trim_end_matches('/'), unique(row));
    Some(unconnected(|config| config.queue_url = queue_url))
}

fn builder(config: SqsConfig) -> QueueBuilder<SqsBackend> {
    SqsBackend::builder(config)
        .credentials_provider(Credentials::new("test", "canary", None, None, "tests"))
        .connection_timeout(Duration::from_secs(20))
}

async fn build(config: SqsConfig) -> Option<Answer> {
    Some(builder(config).build_pair().await.map(drop))
}

/// Where nobody answers, which takes as long as it may.
async fn build_in_vain(config: SqsConfig) -> Option<Answer> {
    Some(builder(config).connection_timeout(Duration::from_secs(3)).build_pair().await.map(drop))
}

async fn send(message: Message) -> Option<Answer> {
    let producer = builder(queue("send")?).build_producer().await.ok()?;
    let answer = producer.send(message).await.map(drop);
    // The same once more: the connection is still usable.
    Some(answer.and(producer.send(Message::new("good")).await.map(drop)))
}

rows! {
    unreachable_server: ErrorKind::ConnectionLost, "aws_sqs build", build_in_vain(unconnected(|_| {}));
    unknown_host: ErrorKind::ConnectionLost, "aws_sqs build",
        build_in_vain(unconnected(|config| config.queue_url = "http://no-such-host.invalid/1/orders".to_owned()));
    empty_url: ErrorKind::InvalidConfig, "queue_url & whole URL",
        build(unconnected(|config| config.queue_url.clear()));
    name_for_url: ErrorKind::InvalidConfig, "queue_url & whole URL",
        build(unconnected(|config| config.queue_url = "orders".to_owned()));
    credentials_in_the_url: ErrorKind::InvalidConfig, "queue_url & credentials",
        build(unconnected(|config| config.queue_url = "http://user:canary@h/1/orders".to_owned()));
    credentials_in_the_endpoint: ErrorKind::InvalidConfig, "endpoint_url & credentials",
        build(unconnected(|config| config.endpoint_url = Some("http://user:canary@h".to_owned())));
    queue_name_over_80_bytes: ErrorKind::InvalidConfig, "queue_url & 80",
        build(unconnected(|config| config.queue_url.push_str(&"x".repeat(80))));
    region_of_another_queue: ErrorKind::InvalidConfig, "region & us-east-1 & eu-west-1",
        build(unconnected(|config| {
            config.queue_url = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders".to_owned();
        }));
    zero_visibility_timeout: ErrorKind::InvalidConfig, "visibility_timeout & 43200",
        build(unconnected(|config| config.visibility_timeout = VisibilityTimeout::Seconds(0)));
    wait_time_over_20_seconds: ErrorKind::InvalidConfig, "wait_time & 20 s",
        build(unconnected(|config| config.wait_time = Duration::from_secs(21)));
    missing_queue: ErrorKind::NotFound, "queue_url & there is no queue", async {
        let mut config = queue("missing")?;
        config.create_queue = false;
        build(config).await
    };
    queue_of_another_account: ErrorKind::NotFound, "999999999999", async {
        let mut config = queue("account")?;
        config.queue_url = config.queue_url.replace("000000000000", "999999999999");
        build(config).await
    };
    dead_letters_to_the_queue_itself: ErrorKind::InvalidConfig, "dead_letter_queue.destination & differ", async {
        let dlq = DlqConfig { destination: "orders".to_owned(), max_receive_count: 3 };
        Some(builder(unconnected(|_| {})).dead_letter_queue(dlq).build_pair().await.map(drop))
    };
    payload_over_the_limit: ErrorKind::PayloadTooLarge, "1048577 & limit", send(Message::new(vec![b'x'; 1 << 20 | 1]));
    headers_over_the_limit: ErrorKind::PayloadTooLarge, "1048576",
        send(Message::new("m").with_header("large", "x".repeat(1 << 20)));
    reserved_header: ErrorKind::InvalidMessage, "buqueue-", send(Message::new("m").with_header("buqueue-x", "canary"));
    header_name_with_a_space: ErrorKind::InvalidMessage, "visible ASCII",
        send(Message::new("m").with_header("a b", "canary"));
}
