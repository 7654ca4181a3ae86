//! Kafka keeps the contract.
//!
//! Needs a broker: `BUQUEUE_TEST_KAFKA=127.0.0.1:19092`. The cases that restart it call the program in `BUQUEUE_XTASK`, or
//! `cargo xtask`, with the name of the set-up in `BUQUEUE_TEST_KAFKA_SETUP` (`kafka`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::SocketAddr;
use std::time::Duration;

use buqueue_conformance::{Excluded, Foreign, Harness, Hook, Setup, Skip};
use buqueue_core::QueueBuilder;
use buqueue_kafka::{KafkaBackend, KafkaConfig, OffsetReset};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

struct Broker {
    address: String,
}

impl Broker {
    fn config(&self, setup: &Setup) -> KafkaConfig {
        KafkaConfig {
            brokers: vec![self.address.clone()],
            topic: setup.queue.clone(),
            group_id: setup.group.clone(),
            offset_reset: OffsetReset::Earliest,
            partitions: 3,
            ..KafkaConfig::default()
        }
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        client
    }
}

impl Harness for Broker {
    type Backend = KafkaBackend;

    async fn connect() -> Result<Self, Skip> {
        let address =
            std::env::var("BUQUEUE_TEST_KAFKA").map_err(|_| Skip::new("BUQUEUE_TEST_KAFKA is not set"))?;
        Ok(Self { address })
    }

    fn builder(&self, setup: &Setup) -> QueueBuilder<KafkaBackend> {
        KafkaBackend::builder(self.config(setup))
    }

    fn broker_addr(&self) -> Hook<SocketAddr> {
        Err(Excluded::new("the client connects to the address that the broker says, and passes a proxy by"))
    }

    async fn restart_broker(&self) -> Hook<()> {
        let program = std::env::var("BUQUEUE_XTASK");
        let setup = std::env::var("BUQUEUE_TEST_KAFKA_SETUP").unwrap_or_else(|_| "kafka".to_owned());
        let mut command = match &program {
            Ok(program) => tokio::process::Command::new(program),
            Err(_) => {
                let mut cargo = tokio::process::Command::new(env!("CARGO"));
                cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
                cargo
            }
        };
        // Given an endpoint, it would take the broker for somebody else's.
        let output =
            command.args(["brokers", "restart", &setup]).env_remove("BUQUEUE_TEST_KAFKA").output().await;
        let output = output.unwrap_or_else(|error| panic!("cannot restart the broker: {error}"));
        assert!(output.status.success(), "restart: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        admin.delete_topics(&[&setup.queue], &AdminOptions::new()).await.unwrap();
        Ok(())
    }

    async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
        let producer: FutureProducer = self.client().create().unwrap();
        let mut record = FutureRecord::<[u8], str>::to(&setup.queue).payload("foreign");
        match foreign {
            Foreign::Plain => {}
            Foreign::Malformed => {
                record.payload = None;
                record.key = Some(&[0xff, 0xfe]);
            }
            Foreign::BinaryHeader => {
                let header = Header { key: "bytes", value: Some(&[0xff_u8, 0xfe]) };
                record.headers = Some(OwnedHeaders::new().insert(header));
            }
            Foreign::DuplicateHeader => {
                let header = |value| Header { key: "twice", value: Some(value) };
                record.headers = Some(OwnedHeaders::new().insert(header("1")).insert(header("2")));
            }
            other => return Err(Excluded::new(format!("no record is known for {other:?}"))),
        }
        producer.send(record, Duration::from_secs(5)).await.unwrap();
        Ok(())
    }

    fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<KafkaBackend>, &'static str)> {
        let config = self.config(setup);
        let with = |change: fn(&mut KafkaConfig)| {
            let mut config = config.clone();
            change(&mut config);
            KafkaBackend::builder(config)
        };
        vec![
            (with(|config| config.brokers.clear()), "brokers"),
            (with(|config| config.brokers = vec!["nowhere".to_owned()]), "brokers"),
            (with(|config| config.topic.clear()), "topic"),
            (with(|config| config.topic = "a b".to_owned()), "topic"),
            (with(|config| config.group_id.clear()), "group_id"),
            (with(|config| config.partitions = 0), "partitions"),
            (with(|config| config.replication_factor = Some(0)), "replication_factor"),
        ]
    }
}

buqueue_conformance::conformance_tests!(Broker);
