//! The examples, each on the broker it is for, and those that take any on every backend.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::backends::{BACKENDS, Backend, MEMORY};
use crate::brokers::{self, Endpoint};
use crate::error::{Context, Error, Result, bail};
use crate::process::{note, output_within, say};
use crate::workspace::{self, cargo};

pub const ARGUMENTS: &str = "[NAME…]";
pub const ABOUT: &str = "    Starts the brokers, runs each example on the backend it is for, and those that take any on all six. Each asserts what
    it says; printed are its command and its last line.
";

/// Those that take any backend.
const PORTABLE: &[&str] = &["dlq_redrive", "graceful_shutdown", "quickstart", "scheduled_delivery"];

/// The others, by the backend that they begin with.
const OWN: &[&str] = &[
    "kafka_consumer_group",
    "kafka_send_receive",
    "nats_jetstream_fanout",
    "nats_jetstream_workqueue",
    "rabbitmq_direct",
    "rabbitmq_topic_exchange",
    "redis_streams",
    "sqs_fifo_ordering",
    "sqs_standard",
];

/// Longer than any takes; a message that is lost lets an example wait for ever.
pub const LIMIT: Duration = Duration::from_secs(180);

/// One example on one backend; none is the memory of its process.
pub struct Run {
    pub example: &'static str,
    pub backend: Option<&'static Backend>,
}

pub fn command(arguments: &[String]) -> Result<()> {
    let known = || PORTABLE.iter().chain(OWN);
    if let Some(unknown) = arguments.iter().find(|name| !known().any(|known| known == name)) {
        bail!("no example {unknown:?}; known are {}", known().copied().collect::<Vec<_>>().join(", "));
    }
    let mut runs = all();
    runs.retain(|run| arguments.is_empty() || arguments.iter().any(|name| name == run.example));
    let names: BTreeSet<&str> = runs.iter().filter_map(|run| Some(run.backend?.name)).collect();
    build()?;
    let endpoints = brokers::up(&Vec::from_iter(names))?;
    let outcomes = run(&runs.iter().collect::<Vec<_>>(), &endpoints);
    let mut failed = 0;
    for (run, outcome) in runs.iter().zip(outcomes) {
        let told = outcome.told.unwrap_or_else(|error| {
            failed += 1;
            format!("FAILED: {error}")
        });
        say(&format!("{}\n    {told}", run.command(&endpoints)?));
    }
    if failed > 0 {
        bail!("{failed} of {} runs failed", runs.len());
    }
    let examples: BTreeSet<&str> = runs.iter().map(|run| run.example).collect();
    say(&format!("{} runs of {} examples: each did what it says", runs.len(), examples.len()));
    Ok(())
}

/// What came of a run: the last line that was printed.
pub struct Outcome {
    pub took: Duration,
    pub told: Result<String>,
}

/// Runs several at a time: they mostly wait.
pub fn run(runs: &[&Run], endpoints: &[Endpoint]) -> Vec<Outcome> {
    let side_by_side = |runs: &[&Run]| -> Vec<Outcome> {
        thread::scope(|scope| {
            let threads: Vec<_> = runs.iter().map(|run| scope.spawn(|| run.outcome(endpoints))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Outcome::lost())).collect()
        })
    };
    runs.chunks(6).flat_map(side_by_side).collect()
}

impl Outcome {
    fn lost() -> Self {
        Self { took: Duration::ZERO, told: Err(Error::new("nobody knows what came of it")) }
    }
}

/// Builds all of them just as the tests are built, with every feature of the whole workspace: with those of one package
/// every client would be built anew.
pub fn build() -> Result<()> {
    let mut build = cargo(&["build", "--quiet", "--workspace", "--all-features", "--examples"]);
    build.env_remove("CARGO_BUILD_TARGET");
    let status = build.status().context(|| format!("cannot start {build:?}"))?;
    if status.success() { Ok(()) } else { bail!("the examples cannot be built: {status}") }
}

/// An example that is built.
pub fn program(name: &str) -> Result<Command> {
    let path = workspace::target()?.join("debug/examples").join(name);
    if !path.exists() {
        bail!("{} is not there; cargo puts it elsewhere where `build.target` is configured", path.display());
    }
    Ok(Command::new(path))
}

/// Every example on every backend that it takes.
pub fn all() -> Vec<Run> {
    let everywhere = || std::iter::once(None).chain(BACKENDS.iter().map(Some));
    let portable = PORTABLE.iter().flat_map(|example| everywhere().map(|backend| Run { example, backend }));
    let own = OWN.iter().map(|example| Run {
        example,
        backend: BACKENDS.iter().find(|backend| example.starts_with(backend.name)),
    });
    portable.chain(own).collect()
}

impl Run {
    /// What it is called in a report.
    pub fn name(&self) -> String {
        format!("example {} on {}", self.example, self.backend.map_or(MEMORY, |backend| backend.name))
    }

    /// Whether its broker is one of these.
    pub fn is_at(&self, endpoints: &[Endpoint]) -> bool {
        self.backend.is_none_or(|backend| backend.is_at(endpoints))
    }

    fn outcome(&self, endpoints: &[Endpoint]) -> Outcome {
        note(&format!("== {}", self.name()));
        let start = Instant::now();
        let told = self.told(endpoints);
        Outcome { took: start.elapsed(), told }
    }

    /// Runs it; its last line.
    fn told(&self, endpoints: &[Endpoint]) -> Result<String> {
        last_line(program(self.example)?.envs(self.environment(endpoints)?), LIMIT)
    }

    /// As a user would run it.
    fn command(&self, endpoints: &[Endpoint]) -> Result<String> {
        let mut command = String::new();
        for (variable, value) in self.environment(endpoints)? {
            command.push_str(&format!("{variable}={value} "));
        }
        command.push_str("cargo run ");
        if let Some(backend) = self.backend {
            command.push_str(&format!("--features {} ", backend.name));
        }
        Ok(format!("{command}--example {}", self.example))
    }

    fn environment(&self, endpoints: &[Endpoint]) -> Result<Vec<(&'static str, String)>> {
        let Some(backend) = self.backend else { return Ok(Vec::new()) };
        let place = if PORTABLE.contains(&self.example) {
            ("BROKER_URL", backend.url(endpoints)?)
        } else {
            (backend.address, backend.endpoint(endpoints)?.to_owned())
        };
        Ok(std::iter::once(place).chain(backend.credentials()).collect())
    }
}

/// The last line of what a program prints, which must end well.
fn last_line(program: &mut Command, limit: Duration) -> Result<String> {
    let said = output_within(program, limit)?;
    let last = said.lines().last().unwrap_or_default();
    if !last.starts_with('✓') {
        bail!("its last line is {last:?}");
    }
    Ok(last.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::workspace::root;

    #[test]
    fn every_example_is_run() -> Result<()> {
        let runs = all();
        for entry in fs::read_dir(root().join("examples"))? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            let Some(name) = file.strip_suffix(".rs") else { continue };
            assert!(runs.iter().any(|run| run.example == name), "{name} is not run");
        }
        assert!(OWN.iter().all(|name| runs.iter().any(|run| run.example == *name && run.backend.is_some())));
        Ok(())
    }

    #[test]
    fn a_program_that_fails_or_says_nothing_is_told() {
        let print = |text: &str| last_line(Command::new("printf").arg(text), LIMIT);
        assert_eq!(print("one\n✓ two\n").ok().as_deref(), Some("✓ two"));
        assert!(print("✓ one\ntwo\n").is_err());
        assert!(last_line(&mut Command::new("false"), LIMIT).is_err());
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_told() {
        // Until one is long enough for a shell to start on a loaded machine.
        let told = [300, 3_000, 20_000].map(Duration::from_millis).into_iter().any(|limit| {
            let mut hangs = Command::new("sh");
            let told = last_line(hangs.args(["-c", "echo so far; exec sleep 600"]), limit);
            // The command itself is told, too.
            told.is_err_and(|error| error.to_string().ends_with("after \"so far\""))
        });
        assert!(told);
    }
}
