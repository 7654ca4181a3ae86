//! SQS, by ElasticMQ, which keeps its queues through a crash, and by LocalStack, which is stricter.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::java::{java, libraries};
use super::net::{Address, http, json_text};
use super::packages::install_in_system;
use super::{Broker, Endpoint, installing};
use crate::error::{Error, Result, bail};
use crate::process::{Run, Service, output};

pub struct Sqs {
    emulator: Emulator,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Emulator {
    ElasticMq,
    LocalStack,
}

pub const SQS: Sqs = Sqs { emulator: Emulator::ElasticMq };
pub const LOCALSTACK: Sqs = Sqs { emulator: Emulator::LocalStack };

const POM: &str = include_str!("../../assets/elasticmq/pom.xml");
const CONFIG: &str = include_str!("../../assets/elasticmq/elasticmq.conf");
const LIBRARIES: &str = "elasticmq";
const PORT: u16 = 19324;

/// All that LocalStack needs, with the versions that were tried together. The last free one for Python 3.11 and later.
const REQUIREMENTS: &str = include_str!("../../assets/localstack/requirements.txt");
const START: &str = include_str!("../../assets/localstack/start.py");
const LOCALSTACK_PORT: u16 = 19325;

impl Sqs {
    fn port(&self) -> u16 {
        match self.emulator {
            Emulator::ElasticMq => PORT,
            Emulator::LocalStack => LOCALSTACK_PORT,
        }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// The version that is installed; the protocol does not tell it.
    fn version(&self) -> Option<&'static str> {
        match self.emulator {
            Emulator::ElasticMq => POM.rsplit_once("<version>").and_then(|(_, rest)| rest.split('<').next()),
            Emulator::LocalStack => {
                REQUIREMENTS.lines().find_map(|line| line.strip_prefix("localstack-core=="))
            }
        }
    }
}

impl Broker for Sqs {
    fn name(&self) -> &'static str {
        match self.emulator {
            Emulator::ElasticMq => "sqs",
            Emulator::LocalStack => "sqs-localstack",
        }
    }

    fn is_default(&self) -> bool {
        self.emulator == Emulator::ElasticMq
    }

    fn in_compose(&self) -> bool {
        self.emulator == Emulator::ElasticMq
    }

    fn endpoints(&self, _run: &Run) -> Vec<Endpoint> {
        // ElasticMQ is too slow for the whole suite on FIFO queues.
        let variable = match self.emulator {
            Emulator::ElasticMq => "BUQUEUE_TEST_SQS",
            Emulator::LocalStack => "BUQUEUE_TEST_SQS_FIFO",
        };
        vec![Endpoint { variable, value: self.endpoint() }]
    }

    fn install(&self, cache: &Path) -> Result<()> {
        match self.emulator {
            Emulator::ElasticMq => libraries(cache, LIBRARIES, POM).map(drop),
            Emulator::LocalStack => python(cache).map(drop),
        }
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        let command = match self.emulator {
            Emulator::ElasticMq => {
                let mut command = java(&libraries(cache, LIBRARIES, POM)?);
                command
                    .args(["-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
                    .arg(format!("-Dconfig.file={}", run.write("elasticmq.conf", CONFIG)?.display()))
                    .arg("org.elasticmq.server.Main")
                    .env("ELASTICMQ_STORE", run.folder("data")?.join("store"))
                    .current_dir(&run.dir);
                command
            }
            Emulator::LocalStack => {
                let home = run.folder("home")?;
                let mut command = Command::new(python(cache)?);
                command
                    .arg(run.write("start.py", START)?)
                    .env("GATEWAY_LISTEN", format!("127.0.0.1:{LOCALSTACK_PORT}"))
                    .env("FILESYSTEM_ROOT", home.join("fs"))
                    .env("HOME", &home)
                    .envs([
                        ("SERVICES", "sqs"),
                        ("STRICT_SERVICE_LOADING", "1"),
                        ("EAGER_SERVICE_LOADING", "1"),
                    ])
                    .envs([("DISABLE_EVENTS", "1"), ("SKIP_SSL_CERT_DOWNLOAD", "1"), ("DNS_ADDRESS", "0")])
                    .current_dir(&home);
                command
            }
        };
        Ok(vec![Service { name: "sqs", command, ports: vec![self.port()] }])
    }

    fn probe(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<String> {
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        call(&Address::parse(&endpoint.value, 80)?, "ListQueues", "{}")?;
        // The protocol does not tell who answers; of our own server it is known.
        Ok(self.version().filter(|_| endpoint.value == self.endpoint()).unwrap_or("(sqs)").to_owned())
    }

    fn prove(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<Vec<String>> {
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        let address = Address::parse(&endpoint.value, 80)?;
        let mut lines = Vec::new();
        let mut show = |action: &str, body: &str| -> Result<String> {
            let answer = call(&address, action, body)?;
            lines.push(format!("{action} {body} -> {answer}"));
            Ok(answer)
        };
        let text = "hello from sqs";
        let created = show("CreateQueue", "{\"QueueName\":\"buqueue-prove\"}")?;
        let url = field(&created, "QueueUrl")?;
        show("SendMessage", &format!("{{\"QueueUrl\":\"{url}\",\"MessageBody\":\"{text}\"}}"))?;
        let received = show("ReceiveMessage", &format!("{{\"QueueUrl\":\"{url}\",\"WaitTimeSeconds\":2}}"))?;
        let body = field(&received, "Body")?;
        let handle = field(&received, "ReceiptHandle")?;
        show("DeleteMessage", &format!("{{\"QueueUrl\":\"{url}\",\"ReceiptHandle\":\"{handle}\"}}"))?;
        show("DeleteQueue", &format!("{{\"QueueUrl\":\"{url}\"}}"))?;
        if body != text {
            bail!("another message came back: {body}");
        }
        Ok(lines)
    }
}

/// The interpreter of a virtual environment with LocalStack in it.
fn python(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("localstack");
    let python = folder.join("bin/python");
    // The requirements themselves mark completeness: other ones in it mean another environment.
    let done = folder.join("requirements.txt");
    if fs::read_to_string(&done).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(python);
    }
    installing("localstack");
    let create = || output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    if create().is_err() {
        install_in_system(&["python3-venv"])?;
        create()?;
    }
    let wanted = folder.join("wanted.txt");
    fs::write(&wanted, REQUIREMENTS)?;
    let install = || {
        output(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
                .arg(&wanted),
        )
    };
    install().or_else(|_| install())?;
    fs::rename(&wanted, &done)?;
    Ok(python)
}

fn field<'a>(json: &'a str, name: &str) -> Result<&'a str> {
    json_text(json, name).ok_or_else(|| Error::new(format!("no {name} in {json}")))
}

/// One call of the JSON protocol. The emulators take any signature, so any key will do.
fn call(address: &Address, action: &str, body: &str) -> Result<String> {
    let target = format!("AmazonSQS.{action}");
    let headers = [
        ("Content-Type", "application/x-amz-json-1.0"),
        ("X-Amz-Target", target.as_str()),
        (
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0",
        ),
    ];
    let (status, answer) = http(address, "POST", "/", &headers, body)?;
    if status != 200 {
        bail!("{action} says {status}: {answer}");
    }
    Ok(answer)
}
