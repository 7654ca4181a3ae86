//! Every client in one binary, each over TLS: they bring different implementations, and some a default of the whole process.

#![cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "redis", feature = "sqs"))]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says so"
)]

use std::time::Duration;

use buqueue::QueueBuilder;
use buqueue::driver::Backend;
use buqueue::kafka::{KafkaBackend, KafkaBuilderExt, KafkaConfig, KafkaSecurity, KafkaTls};
use buqueue::nats::{JetStreamConfig, NatsBackend, NatsBuilderExt, NatsConfig};
use buqueue::prelude::*;
use buqueue::rabbitmq::{RabbitMqBackend, RabbitMqBuilderExt, RabbitMqConfig};
use buqueue::redis::{RedisBackend, RedisBuilderExt, RedisConfig};
use buqueue::sqs::aws_sdk_sqs::config::Credentials;
use buqueue::sqs::{SqsBackend, SqsBuilderExt, SqsConfig};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// Where a server is, and the file with its authority's certificate.
fn server(backend: &str) -> Option<(String, String)> {
    let variable = format!("BUQUEUE_TEST_{backend}_TLS");
    let found = std::env::var(&variable).ok().zip(std::env::var(format!("{variable}_CA")).ok());
    if found.is_none() {
        assert_ne!(std::env::var("BUQUEUE_TEST_REQUIRE").as_deref(), Ok("1"), "{variable} is not set");
        println!("SKIPPED: {variable} is not set");
    }
    found
}

/// There and back.
async fn over<B: Backend>(builder: QueueBuilder<B>) {
    let (producer, mut consumer) = builder.build_pair().await.unwrap();
    producer.send(Message::new("over TLS")).await.unwrap();
    let receiving = tokio::time::timeout(Duration::from_secs(40), consumer.receive());
    let delivery = receiving.await.unwrap().unwrap();
    assert_eq!(delivery.payload(), "over TLS");
    delivery.ack().await.unwrap();
}

#[tokio::test]
async fn every_client_speaks_tls_in_one_binary() {
    let name = format!("tls-{}-{}", std::process::id(), chrono::Utc::now().timestamp_micros());
    if let Some((url, authority)) = server("NATS") {
        let jetstream = JetStreamConfig {
            stream_name: name.clone(),
            subjects: vec![format!("{name}.>")],
            ..JetStreamConfig::default()
        };
        let config = NatsConfig { url, jetstream, ..NatsConfig::default() };
        over(NatsBackend::builder(config).root_certificates(&authority)).await;
    }
    if let Some((brokers, authority)) = server("KAFKA") {
        let tls = Some(KafkaTls { ca_file: Some(authority), ..KafkaTls::default() });
        let config = KafkaConfig {
            brokers: brokers.split(',').map(str::to_owned).collect(),
            topic: name.clone(),
            group_id: name.clone(),
            security: KafkaSecurity { tls, sasl: None },
            ..KafkaConfig::default()
        };
        // A broker that has just started takes long for its first groups on a loaded machine.
        over(KafkaBackend::builder(config).connection_timeout(Duration::from_secs(30))).await;
    }
    if let Some((url, authority)) = server("RABBITMQ") {
        let config = RabbitMqConfig { url, queue: name.clone(), ..RabbitMqConfig::default() };
        over(RabbitMqBackend::builder(config).root_certificates(authority)).await;
    }
    if let Some((url, authority)) = server("REDIS") {
        let config = RedisConfig { url, stream: name.clone(), ..RedisConfig::default() };
        over(RedisBackend::builder(config).root_certificates(authority)).await;
    }
    sqs_greets().await;
}

/// The emulators have no certificate that anybody would trust: it is enough that the client begins to speak TLS, which it
/// could not without an implementation.
async fn sqs_greets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let queue_url = format!("https://{}/000000000000/orders", listener.local_addr().unwrap());
    let builder = SqsBackend::builder(SqsConfig { queue_url, ..SqsConfig::default() })
        .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
        .connection_timeout(Duration::from_secs(10));
    // The listener ends with it: whoever tries again is refused at once.
    let greeted = async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut record = [0; 6];
        connection.read_exact(&mut record).await.unwrap();
        record
    };
    let (record, built) = tokio::join!(greeted, builder.build_producer());
    // A handshake record of TLS 1.0 to 1.3, with a greeting in it.
    assert_eq!((record[0], record[1], record[5]), (22, 3, 1), "{record:?}");
    assert_eq!(built.map(drop).unwrap_err().kind, ErrorKind::ConnectionLost);
}
