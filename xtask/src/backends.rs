//! The backends, as their tests and examples are told where their brokers are.

use crate::brokers::Endpoint;
use crate::error::{Result, bail};

/// A backend's name and set-up, the variable that tells tests where its broker is, the one that tells its own examples, and
/// what makes a URL of the place.
pub struct Backend {
    pub name: &'static str,
    variable: &'static str,
    pub address: &'static str,
    url: (&'static str, &'static str),
}

const fn backend(
    name: &'static str,
    variable: &'static str,
    address: &'static str,
    url: (&'static str, &'static str),
) -> Backend {
    Backend { name, variable, address, url }
}

/// Those that need a broker.
pub const BACKENDS: &[Backend] = &[
    backend("kafka", "BUQUEUE_TEST_KAFKA", "KAFKA_BROKERS", ("kafka://", "")),
    backend("redis", "BUQUEUE_TEST_REDIS", "REDIS_URL", ("", "")),
    backend("nats", "BUQUEUE_TEST_NATS", "NATS_URL", ("", "")),
    backend("rabbitmq", "BUQUEUE_TEST_RABBITMQ", "AMQP_URL", ("", "")),
    backend("sqs", "BUQUEUE_TEST_SQS", "SQS_ENDPOINT", ("sqs+", "/000000000000")),
];

pub const MEMORY: &str = "memory";

impl Backend {
    /// Whether one of these is its broker.
    pub fn is_at(&self, endpoints: &[Endpoint]) -> bool {
        endpoints.iter().any(|endpoint| endpoint.variable == self.variable)
    }

    /// Where its broker is, as the tests are told.
    pub fn endpoint<'a>(&self, endpoints: &'a [Endpoint]) -> Result<&'a str> {
        match endpoints.iter().find(|endpoint| endpoint.variable == self.variable) {
            Some(endpoint) => Ok(&endpoint.value),
            None => bail!("{} has no address", self.name),
        }
    }

    /// The same as a URL.
    pub fn url(&self, endpoints: &[Endpoint]) -> Result<String> {
        Ok(format!("{}{}{}", self.url.0, self.endpoint(endpoints)?, self.url.1))
    }

    /// What its client looks for in the environment. The emulators of SQS take any.
    pub fn credentials(&self) -> impl Iterator<Item = (&'static str, String)> + use<> {
        let variables: &[&str] =
            if self.name == "sqs" { &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] } else { &[] };
        variables.iter().map(|variable| (*variable, "test".to_owned()))
    }
}
