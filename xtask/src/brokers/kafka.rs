//! Apache Kafka: one node that is its own controller, with listeners for tests of faults, TLS and SASL; and a cluster
//! of three.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use super::certificates;
use super::java::{java, libraries};
use super::net::{Address, connect};
use super::{Broker, Endpoint};
use crate::error::{Result, bail};
use crate::process::{Run, Service, output, output_with_input};

pub struct Kafka {
    setup: Setup,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    One,
    Cluster,
}

pub const KAFKA: Kafka = Kafka { setup: Setup::One };
pub const CLUSTER: Kafka = Kafka { setup: Setup::Cluster };

/// One process: its name, its number, and where it and its controller listen.
type Node = (&'static str, u16, u16, u16);

const ONE: [Node; 1] = [("kafka", 1, PORT, 19093)];
const THREE: [Node; 3] =
    [("node-1", 1, 19151, 19154), ("node-2", 2, 19152, 19155), ("node-3", 3, 19153, 19156)];

const POM: &str = include_str!("../../assets/kafka/pom.xml");
const LOGGING: &str = include_str!("../../assets/kafka/log4j2.properties");
const PORT: u16 = 19092;
const TLS_PORT: u16 = 19094;
const SASL_PORT: u16 = 19095;
/// TLS, and asks for a certificate.
const MUTUAL_PORT: u16 = 19096;
/// A broker tells its clients where to connect. Behind each of these ports it says [`PROXY_DISTANCE`] more: whoever
/// puts a proxy there has the clients for himself.
const PROXIED_PORTS: std::ops::Range<u16> = 19101..19117;
const PROXY_DISTANCE: u16 = 20;
/// Any identity will do for a cluster that nothing else will ever join.
const CLUSTER_ID: &str = "YnVxdWV1ZS1rYWZrYS0wMQ";
const USER: &str = "buqueue";
const PASSWORD: &str = "s3cret";

impl Broker for Kafka {
    fn name(&self) -> &'static str {
        match self.setup {
            Setup::One => "kafka",
            Setup::Cluster => "kafka-cluster",
        }
    }

    fn is_default(&self) -> bool {
        self.setup == Setup::One
    }

    fn in_compose(&self) -> bool {
        self.setup == Setup::One
    }

    fn endpoints(&self, run: &Run) -> Vec<Endpoint> {
        let endpoint = |variable, value| Endpoint { variable, value };
        match self.setup {
            Setup::One => vec![
                endpoint("BUQUEUE_TEST_KAFKA", format!("127.0.0.1:{PORT}")),
                endpoint(
                    "BUQUEUE_TEST_KAFKA_PROXIED",
                    format!("{}-{}:{PROXY_DISTANCE}", PROXIED_PORTS.start, PROXIED_PORTS.end - 1),
                ),
                endpoint("BUQUEUE_TEST_KAFKA_TLS", format!("localhost:{TLS_PORT}")),
                endpoint("BUQUEUE_TEST_KAFKA_TLS_CA", run.path("ca.crt").display().to_string()),
                endpoint("BUQUEUE_TEST_KAFKA_SASL", format!("{USER}:{PASSWORD}@127.0.0.1:{SASL_PORT}")),
                endpoint("BUQUEUE_TEST_KAFKA_MTLS", format!("localhost:{MUTUAL_PORT}")),
                endpoint("BUQUEUE_TEST_KAFKA_TLS_CLIENT_CERT", run.path("client.crt").display().to_string()),
                endpoint("BUQUEUE_TEST_KAFKA_TLS_CLIENT_KEY", run.path("client.key").display().to_string()),
            ],
            Setup::Cluster => {
                let nodes = THREE.map(|(_, _, port, _)| format!("127.0.0.1:{port}")).join(",");
                vec![endpoint("BUQUEUE_TEST_KAFKA_CLUSTER", nodes)]
            }
        }
    }

    fn install(&self, cache: &Path) -> Result<()> {
        libraries(cache, "kafka", POM).map(drop)
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        let libs = libraries(cache, "kafka", POM)?;
        let nodes = self.nodes();
        let logging = run.write("log4j2.properties", LOGGING)?;
        if self.setup == Setup::One {
            certificates::make(run)?;
        }
        let voters: Vec<String> =
            nodes.iter().map(|(_, id, _, controller)| format!("{id}@127.0.0.1:{controller}")).collect();
        let mut services = Vec::new();
        for node in nodes {
            let (name, _, port, controller) = *node;
            let data = run.folder(&format!("data-{name}"))?;
            let mut text = config(node, &voters.join(","), nodes.len(), &data);
            let mut ports = vec![port, controller];
            match self.setup {
                Setup::One => {
                    text.push_str(&more_listeners(run)?);
                    ports.extend([TLS_PORT, SASL_PORT, MUTUAL_PORT]);
                    ports.extend(PROXIED_PORTS);
                }
                Setup::Cluster => text.push_str(&format!(
                    "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n"
                )),
            }
            let config = run.write(&format!("{name}.properties"), &text)?;
            if !data.join("meta.properties").exists() {
                let mut format = java(&libs);
                format.args([
                    "-XX:TieredStopAtLevel=1",
                    "kafka.tools.StorageTool",
                    "format",
                    "-t",
                    CLUSTER_ID,
                ]);
                for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                    format.arg("--add-scram").arg(format!("{mechanism}=[name={USER},password={PASSWORD}]"));
                }
                output(format.arg("-c").arg(&config))?;
            }
            let mut command = java(&libs);
            command
                .args(["-Xms512m", "-Xmx1536m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
                .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
                .arg("kafka.Kafka")
                .arg(config)
                .current_dir(run.folder(&format!("run-{name}"))?);
            services.push(Service { name, command, ports });
        }
        Ok(services)
    }

    fn probe(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<String> {
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        let brokers = brokers(&Address::parse(&endpoint.value, 9092)?)?;
        // A broker that the controller has not let in yet is in nobody's metadata.
        let wanted = if endpoint.variable == "BUQUEUE_TEST_KAFKA" { 1 } else { self.nodes().len() };
        if usize::try_from(brokers).unwrap_or(0) < wanted {
            bail!("{brokers} of {wanted} brokers are registered");
        }
        // The protocol does not tell the release; of our own brokers it is known.
        let version = POM.split_once("<kafka.version>").and_then(|(_, rest)| rest.split('<').next());
        let ours = self.nodes().iter().any(|(_, _, port, _)| endpoint.value.ends_with(&format!(":{port}")));
        Ok(version.filter(|_| ours).unwrap_or("(kafka)").to_owned())
    }

    fn prove(&self, cache: &Path, endpoints: &[Endpoint]) -> Result<Vec<String>> {
        let Some(Endpoint { value: endpoint, .. }) = endpoints.first() else { bail!("no endpoint") };
        // The client tools are the same jars; the broker that they talk to may be any.
        let libs = libraries(cache, "kafka", POM)?;
        let tool = |class: &str, arguments: &[&str]| -> Command {
            let mut command = java(&libs);
            command.args(["-XX:TieredStopAtLevel=1", class, "--bootstrap-server", endpoint]).args(arguments);
            command
        };
        let topics = "org.apache.kafka.tools.TopicCommand";
        let topic = "buqueue-prove";
        let body = "hello from kafka";
        let _ = output(&mut tool(topics, &["--delete", "--if-exists", "--topic", topic]));
        let created = output(&mut tool(
            topics,
            &["--create", "--topic", topic, "--partitions", "3", "--replication-factor", "1"],
        ))?;
        output_with_input(
            &mut tool("org.apache.kafka.tools.ConsoleProducer", &["--topic", topic]),
            &format!("{body}\n"),
        )?;
        let received = output(&mut tool(
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            &[
                "--topic",
                topic,
                "--group",
                "buqueue-prove",
                "--from-beginning",
                "--max-messages",
                "1",
                "--timeout-ms",
                "20000",
            ],
        ))?;
        output(&mut tool(topics, &["--delete", "--topic", topic]))?;
        if received.trim() != body {
            bail!("the message did not come back: {received}");
        }
        Ok(vec![
            format!("kafka-topics: {}", created.trim()),
            format!("kafka-console-producer sent: {body}"),
            format!("kafka-console-consumer received: {}", received.trim()),
        ])
    }
}

impl Kafka {
    fn nodes(&self) -> &'static [Node] {
        match self.setup {
            Setup::One => &ONE,
            Setup::Cluster => &THREE,
        }
    }
}

/// What every node is told. The session is short because after a `kill -9` the controller lets the broker in again only
/// when the session of the dead one has run out.
fn config((_, id, port, _): &Node, voters: &str, nodes: usize, data: &Path) -> String {
    let (copies, in_sync) = (nodes, nodes.div_ceil(2));
    format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
num.partitions=3
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.num.partitions=3
offsets.topic.replication.factor={copies}
transaction.state.log.num.partitions=3
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=3
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
group.min.session.timeout.ms=500
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.backoff.ms=500
num.recovery.threads.per.data.dir=8
log.segment.delete.delay.ms=1000
",
        data.display()
    )
}

/// The listeners of the single node: plain, with TLS, with TLS that asks for a certificate, with SASL, and those that send
/// their clients through a proxy. Of two lines with the same name the last one counts.
fn more_listeners(run: &Run) -> Result<String> {
    let (_, _, _, controller) = ONE[0];
    let key = std::fs::read_to_string(run.path("server.key"))?;
    let certificate = std::fs::read_to_string(run.path("server.crt"))?;
    let store = run.write("server.pem", &format!("{key}{certificate}"))?.display().to_string();
    let (mut listeners, mut advertised) = (String::new(), String::new());
    let mut protocols = "CONTROLLER:PLAINTEXT".to_owned();
    for (name, protocol, host, port) in [
        ("PLAINTEXT", "PLAINTEXT", "127.0.0.1", PORT),
        ("TLS", "SSL", "localhost", TLS_PORT),
        ("MUTUAL", "SSL", "localhost", MUTUAL_PORT),
        ("SASL", "SASL_PLAINTEXT", "127.0.0.1", SASL_PORT),
    ] {
        listeners.push_str(&format!("{name}://127.0.0.1:{port},"));
        advertised.push_str(&format!("{name}://{host}:{port},"));
        protocols.push_str(&format!(",{name}:{protocol}"));
    }
    for port in PROXIED_PORTS {
        listeners.push_str(&format!("PROXIED{port}://127.0.0.1:{port},"));
        advertised.push_str(&format!("PROXIED{port}://127.0.0.1:{},", port + PROXY_DISTANCE));
        protocols.push_str(&format!(",PROXIED{port}:PLAINTEXT"));
    }
    let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required";
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    Ok(format!(
        "listeners={listeners}CONTROLLER://127.0.0.1:{controller}
advertised.listeners={}
listener.security.protocol.map={protocols}
listener.name.tls.ssl.keystore.type=PEM
listener.name.tls.ssl.keystore.location={store}
listener.name.mutual.ssl.keystore.type=PEM
listener.name.mutual.ssl.keystore.location={store}
listener.name.mutual.ssl.truststore.type=PEM
listener.name.mutual.ssl.truststore.location={}
listener.name.mutual.ssl.client.auth=required
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl.plain.sasl.jaas.config={plain} user_{USER}=\"{PASSWORD}\";
listener.name.sasl.scram-sha-256.sasl.jaas.config={scram}
listener.name.sasl.scram-sha-512.sasl.jaas.config={scram}
",
        advertised.trim_end_matches(','),
        run.path("ca.crt").display()
    ))
}

/// Asks for the cluster's metadata and returns how many brokers it has.
fn brokers(address: &Address) -> Result<i32> {
    let (host, port) = address.first()?;
    let mut stream = connect(host, port)?;
    // Metadata, version 1, correlation 1, no client name, no topics.
    let request: [u8; 14] = [0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0];
    stream.write_all(&14_u32.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let word = |at: usize| i32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if word(4) != 1 {
        bail!("not an answer to the request");
    }
    Ok(word(8))
}
