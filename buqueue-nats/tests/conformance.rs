//! NATS JetStream keeps the contract.
//!
//! Needs a server: `BUQUEUE_TEST_NATS=nats://127.0.0.1:4222`. The cases that restart it call the program in
//! `BUQUEUE_XTASK`, or `cargo xtask`, with the name of the set-up in `BUQUEUE_TEST_NATS_SETUP` (`nats`); those about
//! credentials use the server in `BUQUEUE_TEST_NATS_AUTH`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use async_nats::HeaderMap;
use buqueue_conformance::{Excluded, Foreign, Harness, Hook, Setup, Skip, unless_long};
use buqueue_core::QueueBuilder;
use buqueue_nats::{
    AckPolicy, DeliverPolicy, JetStreamConfig, NatsBackend, NatsConfig, RetentionPolicy, StorageType,
};

use crate::support::delay_stream;

/// One server, and work queue streams.
struct WorkQueue(Server);
/// The same server, and streams that several durables read.
struct Log(Server);

struct Server {
    url: String,
}

impl Server {
    fn find() -> Result<Self, Skip> {
        let url =
            std::env::var("BUQUEUE_TEST_NATS").map_err(|_| Skip::new("BUQUEUE_TEST_NATS is not set"))?;
        Ok(Self { url })
    }

    fn config(&self, setup: &Setup, retention: RetentionPolicy) -> NatsConfig {
        NatsConfig {
            url: setup.via.map_or(self.url.clone(), |proxy| format!("nats://{proxy}")),
            jetstream: JetStreamConfig {
                stream_name: setup.queue.clone(),
                subjects: vec![format!("{}.>", setup.queue)],
                retention,
                duplicate_window: setup.deduplication_window.unwrap_or(Duration::from_secs(120)),
                ..JetStreamConfig::default()
            },
            durable_consumer: setup.group.clone(),
            deliver_policy: DeliverPolicy::All,
            ack_wait: setup.lease,
            ..NatsConfig::default()
        }
    }

    fn broker_addr(&self) -> Hook<SocketAddr> {
        let authority = self.url.trim_start_matches("nats://").trim_end_matches('/');
        let mut addresses = authority.to_socket_addrs().map_err(|error| Excluded::new(error.to_string()))?;
        addresses.next().ok_or_else(|| Excluded::new("the endpoint has no address"))
    }

    async fn restart(&self) -> Hook<()> {
        let program = std::env::var("BUQUEUE_XTASK");
        let setup = std::env::var("BUQUEUE_TEST_NATS_SETUP").unwrap_or_else(|_| "nats".to_owned());
        let mut command = match &program {
            Ok(program) => tokio::process::Command::new(program),
            Err(_) => {
                let mut cargo = tokio::process::Command::new(env!("CARGO"));
                cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
                cargo
            }
        };
        // Given an endpoint, it would take the server for somebody else's.
        let output =
            command.args(["brokers", "restart", &setup]).env_remove("BUQUEUE_TEST_NATS").output().await;
        let output = output.unwrap_or_else(|error| panic!("cannot restart the broker: {error}"));
        assert!(output.status.success(), "restart: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
        let jetstream = support::jetstream(&self.url).await;
        let subject = format!("{}.foreign", setup.queue);
        let mut headers = HeaderMap::new();
        let payload = match foreign {
            Foreign::Plain => "foreign",
            // Nothing at all but a subject.
            Foreign::Malformed => "",
            Foreign::DuplicateHeader => {
                headers.append("twice", "1");
                headers.append("twice", "2");
                "foreign"
            }
            Foreign::BinaryHeader => {
                return Err(Excluded::new(
                    "the client closes its connection on a header that is not UTF-8 (async-nats 0.51)",
                ));
            }
            other => return Err(Excluded::new(format!("no message is known for {other:?}"))),
        };
        jetstream.publish_with_headers(subject, headers, payload.into()).await.unwrap().await.unwrap();
        Ok(())
    }

    async fn stored(&self, setup: &Setup) -> Hook<u64> {
        let jetstream = support::jetstream(&self.url).await;
        let mut count = 0;
        for name in [setup.queue.clone(), delay_stream(&setup.queue)] {
            if let Ok(stream) = jetstream.get_stream(name).await {
                count += stream.cached_info().state.messages;
            }
        }
        Ok(count)
    }

    async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
        let jetstream = support::jetstream(&self.url).await;
        jetstream.delete_stream(&setup.queue).await.unwrap();
        // Only where the server has no schedules.
        drop(jetstream.delete_stream(delay_stream(&setup.queue)).await);
        Ok(())
    }

    fn wrong_credentials(&self, config: NatsConfig) -> Hook<(QueueBuilder<NatsBackend>, String)> {
        let url = std::env::var("BUQUEUE_TEST_NATS_AUTH")
            .map_err(|_| Excluded::new("BUQUEUE_TEST_NATS_AUTH is not set"))?;
        let host = url.rsplit('@').next().unwrap_or_default();
        let secret = "wrong-canary";
        let config = NatsConfig { url: format!("nats://user:{secret}@{host}"), ..config };
        Ok((NatsBackend::builder(config), secret.to_owned()))
    }
}

fn invalid(config: &NatsConfig) -> Vec<(QueueBuilder<NatsBackend>, &'static str)> {
    let with = |change: fn(&mut NatsConfig)| {
        let mut config = config.clone();
        change(&mut config);
        NatsBackend::builder(config)
    };
    vec![
        (with(|config| config.url.clear()), "url"),
        (with(|config| config.url = "http://localhost".to_owned()), "url"),
        (with(|config| config.credentials_file = Some("/no/such/file".to_owned())), "credentials_file"),
        (with(|config| config.durable_consumer.clear()), "durable_consumer"),
        (with(|config| config.durable_consumer = "a.b".to_owned()), "durable_consumer"),
        (with(|config| config.ack_policy = AckPolicy::None), "ack_policy"),
        (with(|config| config.ack_wait = Duration::ZERO), "ack_wait"),
        (with(|config| config.max_ack_pending = 0), "max_ack_pending"),
        (with(|config| config.jetstream.stream_name = "a.b".to_owned()), "stream_name"),
        (with(|config| config.jetstream.subjects.clear()), "subjects"),
        (with(|config| config.jetstream.subjects = vec!["a b".to_owned()]), "subjects"),
        (with(|config| config.jetstream.subjects = vec![">".to_owned()]), "subjects"),
        (with(|config| config.jetstream.max_messages = 0), "max_messages"),
        (with(|config| config.jetstream.max_bytes = -2), "max_bytes"),
        (with(|config| config.jetstream.max_message_size = 0), "max_message_size"),
        (with(|config| config.jetstream.num_replicas = 0), "num_replicas"),
        (with(|config| config.jetstream.max_age = Duration::from_millis(1)), "max_age"),
        (with(|config| config.jetstream.duplicate_window = Duration::ZERO), "duplicate_window"),
    ]
}

macro_rules! harness {
    ($harness:ty, $name:literal, $retention:expr) => {
        impl Harness for $harness {
            type Backend = NatsBackend;

            fn name() -> &'static str {
                $name
            }

            async fn connect() -> Result<Self, Skip> {
                Ok(Self(Server::find()?))
            }

            fn builder(&self, setup: &Setup) -> QueueBuilder<NatsBackend> {
                NatsBackend::builder(self.0.config(setup, $retention))
            }

            fn keeps(&self, case: &str) -> Hook<()> {
                if $retention == RetentionPolicy::WorkQueue { Ok(()) } else { unless_long(case) }
            }

            fn deduplication_window(&self) -> Option<Duration> {
                Some(Duration::from_millis(500))
            }

            fn broker_addr(&self) -> Hook<SocketAddr> {
                self.0.broker_addr()
            }

            async fn restart_broker(&self) -> Hook<()> {
                self.0.restart().await
            }

            async fn delete_group(&self, setup: &Setup) -> Hook<()> {
                let stream = support::jetstream(&self.0.url).await.get_stream(&setup.queue).await.unwrap();
                stream.delete_consumer(&setup.group).await.unwrap();
                Ok(())
            }

            async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
                self.0.delete_queue(setup).await
            }

            async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
                self.0.inject(setup, foreign).await
            }

            async fn stored(&self, setup: &Setup) -> Hook<u64> {
                if $retention == RetentionPolicy::Limits {
                    return Err(Excluded::new(
                        "a log keeps what is acknowledged until its limits are reached",
                    ));
                }
                self.0.stored(setup).await
            }

            fn wrong_credentials(&self, setup: &Setup) -> Hook<(QueueBuilder<NatsBackend>, String)> {
                self.0.wrong_credentials(self.0.config(setup, $retention))
            }

            fn clashing(&self, setup: &Setup) -> Hook<QueueBuilder<NatsBackend>> {
                let mut config = self.0.config(setup, $retention);
                config.jetstream.storage = StorageType::Memory;
                Ok(NatsBackend::builder(config))
            }

            fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<NatsBackend>, &'static str)> {
                invalid(&self.0.config(setup, $retention))
            }

            fn returns_uncounted(&self) -> Hook<()> {
                Err(Excluded::new("the server counts every delivery, also those that come back untouched"))
            }
        }
    };
}

harness!(WorkQueue, "nats", RetentionPolicy::WorkQueue);
harness!(Log, "nats-log", RetentionPolicy::Limits);

mod work_queue {
    buqueue_conformance::conformance_tests!(crate::WorkQueue);
}
mod log {
    buqueue_conformance::conformance_tests!(crate::Log);
}
