//! RabbitMQ keeps the contract, on quorum queues and on classic ones.
//!
//! Needs a broker: `BUQUEUE_TEST_RABBITMQ=amqp://guest:guest@127.0.0.1:5672/%2F`. The cases that restart it call the
//! program in `BUQUEUE_XTASK`, or `cargo xtask`, with the name of the set-up in `BUQUEUE_TEST_RABBITMQ_SETUP`
//! (`rabbitmq`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use buqueue_conformance::{Counts, Excluded, Foreign, Harness, Held, Hook, Setup, Skip, unless_long};
use buqueue_core::QueueBuilder;
use buqueue_rabbitmq::{QueueType, RabbitMqBackend, RabbitMqBuilderExt, RabbitMqConfig};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

/// How long an answer may take where nothing breaks, and only the machine is slow.
const SLOW: Duration = Duration::from_secs(10);

/// One broker, and quorum queues.
struct Quorum(Broker);
/// The same broker, and classic queues.
struct Classic(Broker);

struct Broker {
    url: String,
    /// In the case that this was found for.
    restarted: AtomicBool,
}

impl Broker {
    fn find() -> Result<Self, Skip> {
        let url = std::env::var("BUQUEUE_TEST_RABBITMQ")
            .map_err(|_| Skip::new("BUQUEUE_TEST_RABBITMQ is not set"))?;
        Ok(Self { url, restarted: AtomicBool::new(false) })
    }

    /// The URL with another host, user or password.
    fn url(&self, credentials: &str, host: Option<SocketAddr>) -> String {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
        let (own, vhost) = rest.split_once('/').unwrap_or((rest, "%2F"));
        let host = host.map_or_else(|| own.to_owned(), |host| host.to_string());
        format!("amqp://{credentials}@{host}/{vhost}")
    }

    fn config(&self, setup: &Setup, queue_type: QueueType) -> RabbitMqConfig {
        let url = if setup.via.is_some() { self.url("guest:guest", setup.via) } else { self.url.clone() };
        RabbitMqConfig { url, queue: setup.queue.clone(), queue_type, ..RabbitMqConfig::default() }
    }

    fn addr(&self) -> Hook<SocketAddr> {
        let url = self.url("x", None);
        let authority = url.rsplit('@').next().and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let mut addresses = authority.to_socket_addrs().map_err(|error| Excluded::new(error.to_string()))?;
        addresses.next().ok_or_else(|| Excluded::new("the endpoint has no address"))
    }

    /// A connection of another program.
    async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    async fn restart(&self) -> Hook<()> {
        let program = std::env::var("BUQUEUE_XTASK");
        let setup = std::env::var("BUQUEUE_TEST_RABBITMQ_SETUP").unwrap_or_else(|_| "rabbitmq".to_owned());
        let mut command = match &program {
            Ok(program) => tokio::process::Command::new(program),
            Err(_) => {
                let mut cargo = tokio::process::Command::new(env!("CARGO"));
                cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
                cargo
            }
        };
        // A quorum queue that was declared a moment before the broker is killed is lost with everything in it.
        if !self.restarted.swap(true, Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        // Given an endpoint, it would take the broker for somebody else's.
        let output =
            command.args(["brokers", "restart", &setup]).env_remove("BUQUEUE_TEST_RABBITMQ").output().await;
        let output = output.unwrap_or_else(|error| panic!("cannot restart the broker: {error}"));
        assert!(output.status.success(), "restart: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
        let (_connection, channel) = self.channel().await;
        let queue = ShortString::try_new(setup.queue.clone()).unwrap();
        channel.queue_delete(queue, QueueDeleteOptions::default()).await.unwrap();
        Ok(())
    }

    async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
        let mut table = FieldTable::default();
        let properties = match foreign {
            Foreign::Plain => BasicProperties::default(),
            Foreign::Malformed => {
                table.insert("buqueue-amqp-failures".into(), AMQPValue::Boolean(true));
                table.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
                table.insert("nothing".into(), AMQPValue::Void);
                BasicProperties::default().with_headers(table)
            }
            Foreign::BinaryHeader => {
                table.insert("bin".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
                BasicProperties::default().with_headers(table)
            }
            Foreign::DuplicateHeader => {
                let twice = vec![AMQPValue::LongString("1".into()), AMQPValue::LongString("2".into())];
                table.insert("twice".into(), AMQPValue::FieldArray(twice.into()));
                BasicProperties::default().with_headers(table)
            }
            other => return Err(Excluded::new(format!("no message is known for {other:?}"))),
        };
        let payload: &[u8] = if foreign == Foreign::Malformed { b"\xff\0" } else { b"foreign" };
        let (_connection, channel) = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let queue = ShortString::try_new(setup.queue.clone()).unwrap();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = channel.basic_publish("".into(), queue, options, payload, properties).await.unwrap();
        assert!(confirm.await.unwrap().is_ack());
        Ok(())
    }

    async fn stored(&self, setup: &Setup) -> Hook<u64> {
        let (_connection, channel) = self.channel().await;
        let queue = ShortString::try_new(setup.queue.clone()).unwrap();
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(queue, options, FieldTable::default()).await.unwrap();
        Ok(queue.message_count().into())
    }
}

fn invalid(config: &RabbitMqConfig) -> Vec<(QueueBuilder<RabbitMqBackend>, &'static str)> {
    let with = |change: fn(&mut RabbitMqConfig)| {
        let mut config = config.clone();
        change(&mut config);
        RabbitMqBackend::builder(config)
    };
    vec![
        (with(|config| config.url.clear()), "url"),
        (with(|config| config.url = "http://localhost".to_owned()), "url"),
        (with(|config| config.queue.clear()), "queue"),
        (with(|config| config.queue = "amq.mine".to_owned()), "queue"),
        (with(|config| config.queue = "q".repeat(256)), "queue"),
        (with(|config| config.prefetch_count = 0), "prefetch_count"),
        (with(|config| config.connection_timeout = Duration::ZERO), "connection_timeout"),
    ]
}

macro_rules! harness {
    ($harness:ty, $name:literal, $queue_type:expr, $other:expr) => {
        impl Harness for $harness {
            type Backend = RabbitMqBackend;

            fn name() -> &'static str {
                $name
            }

            async fn connect() -> Result<Self, Skip> {
                Ok(Self(Broker::find()?))
            }

            fn builder(&self, setup: &Setup) -> QueueBuilder<RabbitMqBackend> {
                // A limit that a test can reach.
                let builder = RabbitMqBackend::builder(self.0.config(setup, $queue_type));
                let builder = builder.max_payload(4 * 1024 * 1024);
                // What a proxy holds up is noticed soon.
                if setup.via.is_some() { builder } else { builder.request_timeout(SLOW) }
            }

            fn keeps(&self, case: &str) -> Hook<()> {
                if $queue_type == QueueType::Quorum { Ok(()) } else { unless_long(case) }
            }

            fn broker_addr(&self) -> Hook<SocketAddr> {
                self.0.addr()
            }

            async fn restart_broker(&self) -> Hook<()> {
                self.0.restart().await
            }

            async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
                self.0.delete_queue(setup).await
            }

            async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
                self.0.inject(setup, foreign).await
            }

            async fn stored(&self, setup: &Setup) -> Hook<u64> {
                self.0.stored(setup).await
            }

            fn wrong_credentials(&self, setup: &Setup) -> Hook<(QueueBuilder<RabbitMqBackend>, String)> {
                let secret = "wrong-canary";
                let url = self.0.url(&format!("guest:{secret}"), None);
                let config = RabbitMqConfig { url, ..self.0.config(setup, $queue_type) };
                Ok((RabbitMqBackend::builder(config), secret.to_owned()))
            }

            fn clashing(&self, setup: &Setup) -> Hook<QueueBuilder<RabbitMqBackend>> {
                Ok(RabbitMqBackend::builder(self.0.config(setup, $other)))
            }

            fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<RabbitMqBackend>, &'static str)> {
                invalid(&self.0.config(setup, $queue_type))
            }

            fn counts(&self) -> Counts {
                // AMQP tells only what waits, and the queues for delays are shared with other queues.
                Counts { held: Held::Nowhere, scheduled: false }
            }

            fn returns_uncounted(&self) -> Hook<()> {
                Err(Excluded::new("the broker counts what is given back"))
            }
        }
    };
}

harness!(Quorum, "rabbitmq", QueueType::Quorum, QueueType::Classic);
harness!(Classic, "rabbitmq-classic", QueueType::Classic, QueueType::Quorum);

mod quorum {
    buqueue_conformance::conformance_tests!(crate::Quorum);
}
mod classic {
    buqueue_conformance::conformance_tests!(crate::Classic);
}
