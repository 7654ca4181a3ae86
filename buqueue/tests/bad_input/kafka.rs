//! Kafka.

use std::time::Duration;

use buqueue::QueueBuilder;
use buqueue::kafka::{
    KafkaBackend, KafkaBuilderExt, KafkaConfig, KafkaSasl, KafkaSecurity, KafkaTls, SaslMechanism,
};
use buqueue::prelude::*;

use super::{Answer, server, unique};

/// A config that is checked before any connection is made.
fn unconnected(change: impl FnOnce(&mut KafkaConfig)) -> KafkaConfig {
    let mut config = KafkaConfig { brokers: vec!["127.0.0.1:1".to_owned()], ..KafkaConfig::default() };
    change(&mut config);
    config
}

fn topic(row: &str) -> Option<KafkaConfig> {
    let broker = server("BUQUEUE_TEST_KAFKA")?;
    Some(unconnected(|config| {
        config.brokers = vec![broker];
        config.topic = unique(row);
        config.partitions = 1;
    }))
}

fn builder(config: KafkaConfig) -> QueueBuilder<KafkaBackend> {
    // A broker that has just started takes long for its first groups on a loaded machine.
    KafkaBackend::builder(config).connection_timeout(Duration::from_secs(30))
}

async fn build(config: KafkaConfig) -> Option<Answer> {
    Some(builder(config).build_pair().await.map(drop))
}

/// Where nobody answers, which takes as long as it may.
async fn build_in_vain(config: KafkaConfig) -> Option<Answer> {
    Some(builder(config).connection_timeout(Duration::from_secs(3)).build_pair().await.map(drop))
}

/// `user:password@host:port`, with another password.
async fn password(mechanism: SaslMechanism) -> Option<Answer> {
    let server = server("BUQUEUE_TEST_KAFKA_SASL")?;
    let (credentials, broker) = server.split_once('@')?;
    let username = credentials.split(':').next()?.to_owned();
    let sasl = KafkaSasl { mechanism, username, password: "canary".to_owned() };
    build(unconnected(|config| {
        config.brokers = vec![broker.to_owned()];
        config.security = KafkaSecurity { tls: None, sasl: Some(sasl) };
    }))
    .await
}

rows! {
    unreachable_broker: ErrorKind::ConnectionLost, "kafka build", build_in_vain(unconnected(|_| {}));
    unknown_host: ErrorKind::ConnectionLost, "kafka build",
        build_in_vain(unconnected(|config| config.brokers = vec!["no-such-host.invalid:9092".to_owned()]));
    wrong_password_plain: ErrorKind::AuthenticationFailed, "kafka build", password(SaslMechanism::Plain);
    wrong_password_scram: ErrorKind::AuthenticationFailed, "kafka build", password(SaslMechanism::ScramSha512);
    unknown_authority: ErrorKind::InvalidConfig, "kafka build & certificate", async {
        let broker = server("BUQUEUE_TEST_KAFKA_TLS")?;
        build(unconnected(|config| {
            config.brokers = vec![broker];
            config.security = KafkaSecurity { tls: Some(KafkaTls::default()), sasl: None };
        })).await
    };
    missing_authority_file: ErrorKind::InvalidConfig, "security.tls.ca_file", build(unconnected(|config| {
        let tls = KafkaTls { ca_file: Some("/no/such/file.pem".to_owned()), ..KafkaTls::default() };
        config.security = KafkaSecurity { tls: Some(tls), sasl: None };
    }));
    no_brokers: ErrorKind::InvalidConfig, "brokers & at least one",
        build(unconnected(|config| config.brokers.clear()));
    broker_without_a_port: ErrorKind::InvalidConfig, "brokers & host:port",
        build(unconnected(|config| config.brokers = vec!["localhost".to_owned()]));
    broker_as_url: ErrorKind::InvalidConfig, "brokers & host:port",
        build(unconnected(|config| config.brokers = vec!["kafka://localhost:9092".to_owned()]));
    empty_topic: ErrorKind::InvalidConfig, "topic", build(unconnected(|config| config.topic.clear()));
    topic_with_a_space: ErrorKind::InvalidConfig, "topic & a b",
        build(unconnected(|config| config.topic = "a b".to_owned()));
    topic_over_249_bytes: ErrorKind::InvalidConfig, "topic & bytes",
        build(unconnected(|config| config.topic = "x".repeat(240)));
    empty_group: ErrorKind::InvalidConfig, "group_id", build(unconnected(|config| config.group_id.clear()));
    zero_partitions: ErrorKind::InvalidConfig, "partitions", build(unconnected(|config| config.partitions = 0));
    zero_copies: ErrorKind::InvalidConfig, "replication_factor",
        build(unconnected(|config| config.replication_factor = Some(0)));
    more_copies_than_brokers: ErrorKind::InvalidConfig, "replication", async {
        let mut config = topic("copies")?;
        config.replication_factor = Some(7);
        build(config).await
    };
    empty_password: ErrorKind::InvalidConfig, "security.sasl & password", build(unconnected(|config| {
        let (username, password) = ("user".to_owned(), String::new());
        let sasl = KafkaSasl { mechanism: SaslMechanism::Plain, username, password };
        config.security = KafkaSecurity { tls: None, sasl: Some(sasl) };
    }));
    zero_session_timeout: ErrorKind::InvalidConfig, "session_timeout",
        async { Some(builder(unconnected(|_| {})).session_timeout(Duration::ZERO).build_pair().await.map(drop)) };
    session_timeout_beyond_the_brokers: ErrorKind::InvalidConfig, "session_timeout", async {
        let timeout = Duration::from_secs(100_000);
        Some(builder(topic("session")?).session_timeout(timeout).build_pair().await.map(drop))
    };
    payload_over_the_limit: ErrorKind::PayloadTooLarge, "payload & bytes & limit", async {
        let producer = builder(topic("large")?).build_producer().await.unwrap();
        let answer = producer.send(Message::new(vec![b'x'; 2 * 1024 * 1024])).await.map(drop);
        producer.send(Message::new("good")).await.unwrap();
        Some(answer)
    };
    payload_over_the_brokers_limit: ErrorKind::PayloadTooLarge, "kafka send", async {
        let producer = builder(topic("headers")?).build_producer().await.unwrap();
        let message = Message::new(vec![b'x'; 999_000]).with_header("large", "x".repeat(200_000));
        let answer = producer.send(message).await.map(drop);
        producer.send(Message::new("good")).await.unwrap();
        Some(answer)
    };
    line_break_in_a_group: ErrorKind::InvalidConfig, "group_id",
        build(unconnected(|config| config.group_id = "a\nb".to_owned()));
}
