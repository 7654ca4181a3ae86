//! The quickstart on every backend: one program, and the same words.

use crate::brokers::{self, Endpoint};
use crate::error::{Error, Result, bail};
use crate::examples;
use crate::process::{output_within, say};

pub const ARGUMENTS: &str = "[BACKEND…]";
pub const ABOUT: &str = "    Starts the brokers, runs the quickstart on each backend, prints its story once, and says where it was told
    in other words. Without names on all six.
";

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

pub fn command(arguments: &[String]) -> Result<()> {
    let known = || std::iter::once(MEMORY).chain(BACKENDS.iter().map(|backend| backend.name));
    if let Some(unknown) = arguments.iter().find(|name| !known().any(|known| known == name.as_str())) {
        bail!("no backend {unknown:?}; known are {}", known().collect::<Vec<_>>().join(", "));
    }
    examples::build()?;
    let first = on_memory()?;
    print!("{first}");
    say(&format!("told by {MEMORY}"));
    for backend in BACKENDS {
        if !arguments.is_empty() && !arguments.iter().any(|name| name == backend.name) {
            continue;
        }
        let endpoints = brokers::up(&[backend.name])?;
        let told = backend.told_as(&first, &endpoints)?;
        say(&format!("told by {}: {told}", backend.name));
    }
    Ok(())
}

/// The story, which needs no broker there.
pub fn on_memory() -> Result<String> {
    tell(&mut examples::program("quickstart")?)
}

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

    /// Tells the story there, which must be the one that is known.
    pub fn told_as(&self, known: &str, endpoints: &[Endpoint]) -> Result<String> {
        let mut quickstart = examples::program("quickstart")?;
        quickstart.env("BROKER_URL", self.url(endpoints)?).envs(self.credentials());
        let told = tell(&mut quickstart)?;
        if let Some((here, there)) = known.lines().zip(told.lines()).find(|(here, there)| here != there) {
            return Err(Error::new(format!("{there:?} instead of {here:?}")));
        }
        if known.lines().count() != told.lines().count() {
            bail!("{} lines instead of {}", told.lines().count(), known.lines().count());
        }
        Ok("word for word".to_owned())
    }
}

/// Without its first line, which names the backend.
fn tell(quickstart: &mut std::process::Command) -> Result<String> {
    let told = output_within(quickstart, examples::LIMIT)?;
    Ok(told.split_once('\n').map_or_else(String::new, |(_, story)| story.to_owned()))
}
