//! Apache Kafka, one node that is its own controller.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use super::java::{java, libraries};
use super::net::{Address, connect};
use super::{Broker, Endpoint};
use crate::error::{Result, bail};
use crate::process::{Run, Service, output, output_with_input};

pub struct Kafka;

pub const KAFKA: Kafka = Kafka;

const POM: &str = include_str!("../../assets/kafka/pom.xml");
const LOGGING: &str = include_str!("../../assets/kafka/log4j2.properties");
const ENDPOINT: &str = "127.0.0.1:19092";
const PORT: u16 = 19092;
const CONTROLLER_PORT: u16 = 19093;
/// Any identity will do for a cluster that nothing else will ever join.
const CLUSTER: &str = "YnVxdWV1ZS1rYWZrYS0wMQ";

impl Broker for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn endpoints(&self, _run: &Run) -> Vec<Endpoint> {
        vec![Endpoint { variable: "BUQUEUE_TEST_KAFKA", value: ENDPOINT.to_owned() }]
    }

    fn install(&self, cache: &Path) -> Result<()> {
        libraries(cache, self.name(), POM).map(drop)
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        let libs = libraries(cache, self.name(), POM)?;
        let data = run.folder("data")?;
        let config = run.write("server.properties", &config(&data))?;
        let logging = run.write("log4j2.properties", LOGGING)?;
        if !data.join("meta.properties").exists() {
            output(
                java(&libs)
                    .args([
                        "-XX:TieredStopAtLevel=1",
                        "kafka.tools.StorageTool",
                        "format",
                        "-t",
                        CLUSTER,
                        "-c",
                    ])
                    .arg(&config),
            )?;
        }
        let mut command = java(&libs);
        command
            .args(["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC"])
            .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
            .arg("kafka.Kafka")
            .arg(config)
            .current_dir(&run.dir);
        Ok(vec![Service { name: "kafka", command, ports: vec![PORT, CONTROLLER_PORT] }])
    }

    fn probe(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<String> {
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        let brokers = brokers(&Address::parse(&endpoint.value, 9092)?)?;
        // A broker that the controller has not let in yet is in nobody's metadata.
        if brokers < 1 {
            bail!("no broker is registered");
        }
        // The protocol does not tell the release; of our own broker it is known.
        let version = POM.split_once("<kafka.version>").and_then(|(_, rest)| rest.split('<').next());
        Ok(version.filter(|_| endpoint.value == ENDPOINT).unwrap_or("(kafka)").to_owned())
    }

    fn prove(&self, cache: &Path, endpoints: &[Endpoint]) -> Result<Vec<String>> {
        let Some(Endpoint { value: endpoint, .. }) = endpoints.first() else { bail!("no endpoint") };
        // The client tools are the same jars; the broker that they talk to may be any.
        let libs = libraries(cache, self.name(), POM)?;
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

/// One node holds every replica of everything. The session is short because after a `kill -9` the
/// controller lets the broker in again only when the session of the dead one has run out.
fn config(data: &Path) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{CONTROLLER_PORT}
listeners=PLAINTEXT://127.0.0.1:{PORT},CONTROLLER://127.0.0.1:{CONTROLLER_PORT}
advertised.listeners=PLAINTEXT://127.0.0.1:{PORT}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
num.partitions=3
offsets.topic.num.partitions=3
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
",
        data.display()
    )
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
