//! NATS JetStream.

use std::time::Duration;

use buqueue::nats::{AckPolicy, JetStreamConfig, NatsBackend, NatsBuilderExt, NatsConfig};
use buqueue::prelude::*;

use super::{Answer, server, unique};

pub(crate) fn nats(url: impl Into<String>, row: &str) -> NatsConfig {
    let stream_name = unique(row);
    NatsConfig {
        url: url.into(),
        jetstream: JetStreamConfig {
            subjects: vec![format!("{stream_name}.>")],
            stream_name,
            ..Default::default()
        },
        durable_consumer: "worker".to_owned(),
        ..Default::default()
    }
}

/// A config that is checked before any connection is made.
fn unconnected(change: impl FnOnce(&mut NatsConfig)) -> NatsConfig {
    let mut config = nats("nats://127.0.0.1:1", "unconnected");
    change(&mut config);
    config
}

async fn build_within(limit: Duration, config: NatsConfig) -> Option<Answer> {
    Some(NatsBackend::builder(config).connection_timeout(limit).build_pair().await.map(drop))
}

async fn build(config: NatsConfig) -> Option<Answer> {
    build_within(Duration::from_secs(20), config).await
}

/// Where nobody answers, which takes as long as it may.
async fn build_in_vain(config: NatsConfig) -> Option<Answer> {
    build_within(Duration::from_secs(2), config).await
}

/// Builds once as it should be, and once more with a change that clashes.
async fn clash(row: &str, change: impl FnOnce(&mut NatsConfig)) -> Option<Answer> {
    let mut config = nats(server("BUQUEUE_TEST_NATS")?, row);
    let _open = NatsBackend::builder(config.clone()).build_pair().await.unwrap();
    change(&mut config);
    build(config).await
}

rows! {
    unreachable_server: ErrorKind::ConnectionLost, "nats build", build_in_vain(unconnected(|_| {}));
    unknown_host: ErrorKind::ConnectionLost, "nats build",
        build_in_vain(unconnected(|config| config.url = "nats://no-such-host.invalid:4222".to_owned()));
    wrong_password: ErrorKind::AuthenticationFailed, "nats build", async {
        let url = server("BUQUEUE_TEST_NATS_AUTH")?;
        build(nats(format!("nats://user:canary@{}", url.rsplit('@').next()?), "password")).await
    };
    missing_password: ErrorKind::AuthenticationFailed, "nats build", async {
        let url = server("BUQUEUE_TEST_NATS_AUTH")?;
        build(nats(format!("nats://{}", url.rsplit('@').next()?), "no-password")).await
    };
    wrong_token: ErrorKind::AuthenticationFailed, "nats build", async {
        let url = server("BUQUEUE_TEST_NATS_TOKEN")?;
        build(nats(format!("nats://canary@{}", url.rsplit('@').next()?), "token")).await
    };
    no_permission_to_create: ErrorKind::AuthenticationFailed, "nats build", async {
        build(nats(server("BUQUEUE_TEST_NATS_LIMITED")?, "limited")).await
    };
    missing_credentials_file: ErrorKind::InvalidConfig, "credentials_file",
        build(unconnected(|config| config.credentials_file = Some("/no/such/file.creds".to_owned())));
    empty_url: ErrorKind::InvalidConfig, "url", build(unconnected(|config| config.url.clear()));
    unknown_url_scheme: ErrorKind::InvalidConfig, "url",
        build(unconnected(|config| config.url = "http://127.0.0.1:4222".to_owned()));
    empty_stream_name: ErrorKind::InvalidConfig, "stream_name",
        build(unconnected(|config| config.jetstream.stream_name.clear()));
    stream_name_with_a_dot: ErrorKind::InvalidConfig, "stream_name",
        build(unconnected(|config| config.jetstream.stream_name = "orders.eu".to_owned()));
    no_subjects: ErrorKind::InvalidConfig, "subjects",
        build(unconnected(|config| config.jetstream.subjects.clear()));
    subject_with_a_space: ErrorKind::InvalidConfig, "subjects",
        build(unconnected(|config| config.jetstream.subjects = vec!["orders eu.>".to_owned()]));
    empty_durable: ErrorKind::InvalidConfig, "durable_consumer",
        build(unconnected(|config| config.durable_consumer.clear()));
    durable_with_a_dot: ErrorKind::InvalidConfig, "durable_consumer",
        build(unconnected(|config| config.durable_consumer = "a.b".to_owned()));
    no_acks: ErrorKind::InvalidConfig, "ack_policy & Explicit",
        build(unconnected(|config| config.ack_policy = AckPolicy::None));
    zero_ack_wait: ErrorKind::InvalidConfig, "ack_wait",
        build(unconnected(|config| config.ack_wait = Duration::ZERO));
    zero_max_ack_pending: ErrorKind::InvalidConfig, "max_ack_pending",
        build(unconnected(|config| config.max_ack_pending = 0));
    zero_replicas: ErrorKind::InvalidConfig, "num_replicas",
        build(unconnected(|config| config.jetstream.num_replicas = 0));
    stream_with_other_subjects: ErrorKind::InvalidConfig, "subjects & other.>", {
        clash("subjects", |config| config.jetstream.subjects = vec![format!("{}-other.>", unique("x"))])
    };
    stream_with_another_age: ErrorKind::InvalidConfig, "max_age",
        clash("age", |config| config.jetstream.max_age = Duration::from_secs(3600));
    durable_with_another_ack_wait: ErrorKind::InvalidConfig, "ack_wait",
        clash("ack-wait", |config| config.ack_wait = Duration::from_secs(7));
    subjects_of_another_stream: ErrorKind::InvalidConfig, "subjects",
        clash("overlap", |config| config.jetstream.stream_name = unique("overlapping"));
    payload_over_the_servers_limit: ErrorKind::PayloadTooLarge, "payload & bytes & limit", async {
        let config = nats(server("BUQUEUE_TEST_NATS")?, "large");
        let producer = NatsBackend::builder(config).build_producer().await.unwrap();
        let answer = producer.send(Message::new(vec![b'x'; 2 * 1024 * 1024])).await.map(drop);
        producer.send(Message::new("good")).await.unwrap();
        Some(answer)
    };
}

/// What the wire cannot carry as it is travels in another form, and arrives as it was sent.
#[tokio::test]
async fn a_line_break_in_a_header_and_a_key_with_spaces_arrive() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let (producer, mut consumer) = NatsBackend::builder(nats(url, "odd")).build_pair().await.unwrap();
    let message = Message::new("odd")
        .with_header("note", "two\r\nlines")
        .with_header("Nats-Rollup", "all")
        .with_routing_key("no subject: ü");
    producer.send(message).await.unwrap();
    let delivery = consumer.receive().await.unwrap();
    assert_eq!(delivery.header("note"), Some("two\r\nlines"));
    assert_eq!(delivery.header("Nats-Rollup"), Some("all"));
    assert_eq!(delivery.routing_key(), Some("no subject: ü"));
    delivery.ack().await.unwrap();
}
