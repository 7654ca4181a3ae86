//! SQS keeps the contract.
//!
//! Needs an emulator: `BUQUEUE_TEST_SQS=http://127.0.0.1:19324`; FIFO queues are tested at another one only,
//! `BUQUEUE_TEST_SQS_FIFO`, and excluded without it. The cases that restart it call the program in `BUQUEUE_XTASK`, or
//! `cargo xtask`, with the name of the set-up in `BUQUEUE_TEST_SQS_SETUP` (`sqs`) or `BUQUEUE_TEST_SQS_FIFO_SETUP`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use buqueue_conformance::{Excluded, Foreign, Harness, Hook, Setup, Skip};
use buqueue_core::QueueBuilder;
use buqueue_sqs::{SqsBackend, SqsBuilderExt, SqsConfig, VisibilityTimeout};

use crate::support::{ACCOUNT, REGION, client, credentials};

/// One service, and standard queues.
struct Standard(Service);
/// The same service, and FIFO queues.
struct Fifo(Service);

const LOCALSTACK: &str = "sqs-localstack";

struct Service {
    endpoint: String,
    /// Which emulator it is.
    set_up: String,
    /// Whether FIFO queues have one of their own.
    own: bool,
    suffix: &'static str,
}

impl Service {
    fn find(suffix: &'static str) -> Result<Self, Skip> {
        let own = |variable: &str| std::env::var(variable).ok().filter(|_| !suffix.is_empty());
        let fifo = own("BUQUEUE_TEST_SQS_FIFO");
        let has_own = fifo.is_some();
        let endpoint = match fifo {
            Some(endpoint) => endpoint,
            None => {
                std::env::var("BUQUEUE_TEST_SQS").map_err(|_| Skip::new("BUQUEUE_TEST_SQS is not set"))?
            }
        };
        let set_up = own("BUQUEUE_TEST_SQS_FIFO_SETUP")
            .or_else(|| std::env::var("BUQUEUE_TEST_SQS_SETUP").ok())
            .unwrap_or_else(|| "sqs".to_owned());
        Ok(Self { endpoint: endpoint.trim_end_matches('/').to_owned(), set_up, own: has_own, suffix })
    }

    fn url(&self, setup: &Setup) -> String {
        let endpoint = setup.via.map_or(self.endpoint.clone(), |proxy| format!("http://{proxy}"));
        format!("{endpoint}/{ACCOUNT}/{}{}", setup.queue, self.suffix)
    }

    fn config(&self, setup: &Setup) -> SqsConfig {
        SqsConfig {
            queue_url: self.url(setup),
            region: REGION.to_owned(),
            visibility_timeout: VisibilityTimeout::Seconds(u32::try_from(setup.lease.as_secs()).unwrap()),
            ..SqsConfig::default()
        }
    }

    fn builder(&self, config: SqsConfig) -> QueueBuilder<SqsBackend> {
        SqsBackend::builder(config).credentials_provider(credentials())
    }

    fn broker_addr(&self) -> Hook<SocketAddr> {
        let authority = self.endpoint.trim_start_matches("http://");
        let mut addresses = authority.to_socket_addrs().map_err(|error| Excluded::new(error.to_string()))?;
        addresses.next().ok_or_else(|| Excluded::new("the endpoint has no address"))
    }

    async fn restart(&self) -> Hook<()> {
        if self.set_up == LOCALSTACK {
            return Err(Excluded::new("LocalStack keeps everything in memory: a restart loses the queues"));
        }
        let program = std::env::var("BUQUEUE_XTASK");
        let mut command = match &program {
            Ok(program) => tokio::process::Command::new(program),
            Err(_) => {
                let mut cargo = tokio::process::Command::new(env!("CARGO"));
                cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
                cargo
            }
        };
        // Given an endpoint, it would take the service for somebody else's.
        let output =
            command.args(["brokers", "restart", &self.set_up]).env_remove("BUQUEUE_TEST_SQS").output().await;
        let output = output.unwrap_or_else(|error| panic!("cannot restart the broker: {error}"));
        assert!(output.status.success(), "restart: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
        let mut sending =
            client(&self.endpoint).send_message().queue_url(self.url(setup)).message_body("foreign");
        if !self.suffix.is_empty() {
            sending = sending.message_group_id("foreign").message_deduplication_id(&setup.queue);
        }
        sending = match foreign {
            Foreign::Plain => sending,
            // The place of our own fields, with something else in it.
            Foreign::Malformed => {
                let text = MessageAttributeValue::builder().data_type("String").string_value("[1").build();
                sending.message_attributes("buqueue", text.unwrap())
            }
            Foreign::BinaryHeader => {
                let bytes = MessageAttributeValue::builder()
                    .data_type("Binary")
                    .binary_value(Blob::new([0xff, 0xfe]))
                    .build();
                sending.message_attributes("bytes", bytes.unwrap())
            }
            Foreign::DuplicateHeader => {
                return Err(Excluded::new("SQS refuses two attributes of one name"));
            }
            other => return Err(Excluded::new(format!("no message is known for {other:?}"))),
        };
        sending.send().await.unwrap();
        Ok(())
    }

    async fn stored(&self, setup: &Setup) -> Hook<u64> {
        let answer = client(&self.endpoint)
            .get_queue_attributes()
            .queue_url(self.url(setup))
            .attribute_names(QueueAttributeName::All)
            .send()
            .await
            .unwrap();
        let attributes = answer.attributes.unwrap_or_default();
        let count = |name| attributes.get(&name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        Ok(count(QueueAttributeName::ApproximateNumberOfMessages)
            + count(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)
            + count(QueueAttributeName::ApproximateNumberOfMessagesDelayed))
    }

    async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
        client(&self.endpoint).delete_queue().queue_url(self.url(setup)).send().await.unwrap();
        Ok(())
    }

    fn keeps(&self, case: &str) -> Hook<()> {
        let fifo = !self.suffix.is_empty();
        if fifo && !self.own {
            return Err(Excluded::new(
                "FIFO queues are tested by `cargo xtask test --broker sqs --version localstack`, and in tests/sqs.rs",
            ));
        }
        match case {
            "stream::take_some" if fifo => {
                Err(Excluded::new("SQS hands out no more of a group while some of it is in flight"))
            }
            "order::acks_do_not_matter" if fifo => {
                Err(Excluded::new("SQS hands out no more of a group while some of it is in flight"))
            }
            "dedup::schedules_as_well" if fifo => {
                Err(Excluded::new("SQS deduplicates a scheduled message when it is due, not when it is sent"))
            }
            "ack::extend_keeps_it_away" | "cancel::extended_unawares"
                if fifo && self.set_up == LOCALSTACK =>
            {
                Err(Excluded::new(
                    "LocalStack measures a FIFO queue's receipts from the receive, and forgets that they were extended",
                ))
            }
            _ => Ok(()),
        }
    }

    fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<SqsBackend>, &'static str)> {
        let config = self.config(setup);
        let with = |change: fn(&mut SqsConfig)| {
            let mut config = config.clone();
            change(&mut config);
            self.builder(config)
        };
        vec![
            (with(|config| config.queue_url.clear()), "queue_url"),
            (with(|config| config.queue_url = "orders".to_owned()), "queue_url"),
            (with(|config| config.queue_url = "ftp://host/1/orders".to_owned()), "queue_url"),
            (with(|config| config.queue_url.push_str(".b")), "queue_url"),
            (with(|config| config.queue_url.push_str(&"x".repeat(80))), "queue_url"),
            (with(|config| config.region.clear()), "region"),
            (with(|config| config.region = "us east".to_owned()), "region"),
            (
                with(|config| {
                    config.queue_url = "https://sqs.eu-west-1.amazonaws.com/1/orders".to_owned();
                }),
                "region",
            ),
            (with(|config| config.visibility_timeout = VisibilityTimeout::Seconds(0)), "visibility_timeout"),
            (
                with(|config| config.visibility_timeout = VisibilityTimeout::Seconds(43_201)),
                "visibility_timeout",
            ),
            (with(|config| config.endpoint_url = Some("localhost".to_owned())), "endpoint_url"),
            (with(|config| config.wait_time = Duration::ZERO), "wait_time"),
            (with(|config| config.wait_time = Duration::from_secs(21)), "wait_time"),
            (self.builder(config.clone()).longest_delay(Duration::from_secs(901)), "longest_delay"),
            (self.builder(config.clone()).request_timeout(Duration::ZERO), "request_timeout"),
        ]
    }
}

macro_rules! harness {
    ($harness:ty, $name:literal, $suffix:literal) => {
        impl Harness for $harness {
            type Backend = SqsBackend;

            fn name() -> &'static str {
                $name
            }

            async fn connect() -> Result<Self, Skip> {
                Ok(Self(Service::find($suffix)?))
            }

            fn builder(&self, setup: &Setup) -> QueueBuilder<SqsBackend> {
                self.0.builder(self.0.config(setup))
            }

            fn lease(&self) -> Duration {
                Duration::from_secs(3)
            }

            fn broker_addr(&self) -> Hook<SocketAddr> {
                self.0.broker_addr()
            }

            async fn restart_broker(&self) -> Hook<()> {
                self.0.restart().await
            }

            async fn delete_group(&self, _setup: &Setup) -> Hook<()> {
                Err(Excluded::new("SQS has no groups"))
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

            fn wrong_credentials(&self, _setup: &Setup) -> Hook<(QueueBuilder<SqsBackend>, String)> {
                Err(Excluded::new("the emulator takes any credentials"))
            }

            fn clashing(&self, _setup: &Setup) -> Hook<QueueBuilder<SqsBackend>> {
                Err(Excluded::new(
                    "what a queue is stands in its name, and leases are said with each receive",
                ))
            }

            fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<SqsBackend>, &'static str)> {
                self.0.invalid(setup)
            }

            fn keeps(&self, case: &str) -> Hook<()> {
                self.0.keeps(case)
            }

            fn returns_uncounted(&self) -> Hook<()> {
                Err(Excluded::new("SQS counts every receive, also of what comes back untouched"))
            }
        }
    };
}

harness!(Standard, "sqs", "");
harness!(Fifo, "sqs-fifo", ".fifo");

mod standard {
    buqueue_conformance::conformance_tests!(crate::Standard);
}
mod fifo {
    buqueue_conformance::conformance_tests!(crate::Fifo);
}
