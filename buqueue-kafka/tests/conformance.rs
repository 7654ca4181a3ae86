//! Kafka keeps the contract.
//!
//! Needs a broker: `BUQUEUE_TEST_KAFKA=127.0.0.1:19092`. A broker tells its clients where to connect; for the cases with a
//! proxy it has further listeners, `BUQUEUE_TEST_KAFKA_PROXIED=19101-19116:20`: at each of these ports it sends its clients
//! to the port that is 20 above. The cases that restart it call the program in `BUQUEUE_XTASK`, or
//! `cargo xtask`, with the name of the set-up in `BUQUEUE_TEST_KAFKA_SETUP` (`kafka`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use buqueue_conformance::{Counts, Excluded, Foreign, Harness, Held, Hook, Setup, Skip};
use buqueue_core::QueueBuilder;
use buqueue_kafka::{KafkaBackend, KafkaBuilderExt, KafkaConfig, OffsetReset};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

struct Broker {
    address: String,
    /// The listener that this case has for itself, once it has asked for one.
    proxied: OnceLock<Result<Listener, &'static str>>,
}

/// A listener of the broker that sends its clients through a proxy; nobody else's until dropped.
struct Listener {
    port: u16,
    distance: u16,
}

/// The ports of the listeners that are in use, and the one that was taken last.
static LISTENERS: Mutex<(BTreeSet<u16>, u16)> = Mutex::new((BTreeSet::new(), 0));

impl Listener {
    fn take() -> Result<Self, &'static str> {
        let text = std::env::var("BUQUEUE_TEST_KAFKA_PROXIED")
            .map_err(|_| "the broker has no listeners for proxies: BUQUEUE_TEST_KAFKA_PROXIED is not set")?;
        let (ports, distance) = text.split_once(':').unwrap();
        let (first, last) = ports.split_once('-').unwrap();
        let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
        let mut listeners = LISTENERS.lock().unwrap();
        let (taken, latest) = &mut *listeners;
        // In turn, so that stragglers of an earlier case do not meet the next one's proxy.
        let free = |port: &u16| !taken.contains(port);
        let port = ((*latest + 1).max(first)..=last).find(free).or_else(|| (first..=last).find(free));
        let port = port.unwrap_or_else(|| panic!("there are more cases at a time than listeners"));
        taken.insert(port);
        *latest = port;
        Ok(Self { port, distance: distance.parse().unwrap() })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        LISTENERS.lock().unwrap().0.remove(&self.port);
    }
}

impl Broker {
    fn config(&self, setup: &Setup) -> KafkaConfig {
        KafkaConfig {
            brokers: vec![setup.via.map_or_else(|| self.address.clone(), |proxy| proxy.to_string())],
            topic: setup.queue.clone(),
            // Members of one group wait for each other also where they read different topics.
            group_id: format!("{}-{}", setup.queue, setup.group),
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
        Ok(Self { address, proxied: OnceLock::new() })
    }

    fn builder(&self, setup: &Setup) -> QueueBuilder<KafkaBackend> {
        // The harness' lease is how long who is gone is waited for.
        let builder = KafkaBackend::builder(self.config(setup))
            .session_timeout(setup.lease.min(Duration::from_secs(6)));
        if setup.via.is_some() {
            // What a proxy holds up is noticed soon.
            return builder.response_timeout(Duration::from_millis(1500));
        }
        // A broker that has just started takes long for its first groups on a loaded machine.
        builder.connection_timeout(Duration::from_secs(30)).response_timeout(Duration::from_secs(10))
    }

    fn broker_addr(&self) -> Hook<SocketAddr> {
        let listener = self.proxied.get_or_init(Listener::take).as_ref();
        let listener = listener.map_err(|why| Excluded::new(*why))?;
        Ok((Ipv4Addr::LOCALHOST, listener.port).into())
    }

    fn proxy_addr(&self) -> Option<SocketAddr> {
        let listener = self.proxied.get()?.as_ref().ok()?;
        Some((Ipv4Addr::LOCALHOST, listener.port + listener.distance).into())
    }

    /// Brokers know what is committed and where partitions end: neither who holds what, nor when it is due.
    fn counts(&self) -> Counts {
        Counts { held: Held::AmongReady, scheduled: false }
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

    /// A broker takes milliseconds for each of its partitions when it starts, and there are hundreds of cases.
    async fn clean_up(&self, queue: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let (admin, names) = tokio::task::spawn_blocking(move || {
            let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(3));
            let names: Vec<String> = metadata
                .map(|found| found.topics().iter().map(|topic| topic.name().to_owned()).collect())
                .unwrap_or_default();
            (admin, names)
        })
        .await
        .unwrap();
        let is_ours = |name: &&str| {
            name.strip_prefix(queue).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let ours: Vec<&str> = names.iter().map(String::as_str).filter(is_ours).collect();
        if !ours.is_empty() {
            // What is left only makes the broker slower.
            let _tried = admin.delete_topics(&ours, &AdminOptions::new()).await.is_ok();
        }
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
