//! SQS, by ElasticMQ.

use std::path::Path;

use super::java::{java, libraries};
use super::net::{Address, http, json_text};
use super::{Broker, Endpoint};
use crate::error::{Error, Result, bail};
use crate::process::{Run, Service};

pub struct Sqs;

pub const SQS: Sqs = Sqs;

const POM: &str = include_str!("../../assets/elasticmq/pom.xml");
const CONFIG: &str = include_str!("../../assets/elasticmq/elasticmq.conf");
const LIBRARIES: &str = "elasticmq";
const ENDPOINT: &str = "http://127.0.0.1:19324";
const PORT: u16 = 19324;

impl Broker for Sqs {
    fn name(&self) -> &'static str {
        "sqs"
    }

    fn endpoints(&self, _run: &Run) -> Vec<Endpoint> {
        vec![Endpoint { variable: "BUQUEUE_TEST_SQS", value: ENDPOINT.to_owned() }]
    }

    fn install(&self, cache: &Path) -> Result<()> {
        libraries(cache, LIBRARIES, POM).map(drop)
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        let mut command = java(&libraries(cache, LIBRARIES, POM)?);
        command
            .args(["-Xmx256m", "-XX:+UseSerialGC"])
            .arg(format!("-Dconfig.file={}", run.write("elasticmq.conf", CONFIG)?.display()))
            .arg("org.elasticmq.server.Main")
            .env("ELASTICMQ_STORE", run.folder("data")?.join("store"))
            .current_dir(&run.dir);
        Ok(vec![Service { name: "sqs", command, ports: vec![PORT] }])
    }

    fn probe(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<String> {
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        call(&Address::parse(&endpoint.value, 80)?, "ListQueues", "{}")?;
        // The protocol does not tell who answers; of our own server it is known.
        let version = POM.rsplit_once("<version>").and_then(|(_, rest)| rest.split('<').next());
        Ok(version.filter(|_| endpoint.value == ENDPOINT).unwrap_or("(sqs)").to_owned())
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
