//! Everything that must hold before a change lands, and the summary of what was seen.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::api;
use crate::backends;
use crate::brokers::{self, Endpoint};
use crate::error::{Context, Error, Result, bail};
use crate::examples;
use crate::package;
use crate::process::{find_program, in_ci, note, say, succeeds_within};
use crate::story;
use crate::weight;
use crate::workspace::{cargo, root};

pub const ARGUMENTS: &str = "[--runs N] [--conformance] [--broker NAME [--version V]] [FILTER]";
pub const ABOUT: &str =
    "    Brings up what the tests need and runs everything: formatting, lints, tests, doctests, docs, the
    public API, the packages, the dependency tree, the quickstart, the examples. Ends with the cases passed and
    excluded per backend.

    --conformance   only the conformance suite of each backend
    --broker NAME   only the backend of that broker: its conformance suite and its own tests
    --version V     on that version of the broker, where there is a set-up NAME-V
    --runs N        the tests N times over, to find what fails now and then
    FILTER          only tests whose name contains it, as in `cargo test`

    A broker that cannot be had is skipped loudly; with CI set in the environment it is a failure.
";

/// The brokers that tests use, each its own set-up.
const BROKERS: &[&str] = &[
    "redis",
    "redis-auth",
    "redis-tls",
    "redis-sentinel",
    "redis-cluster",
    "nats",
    "nats-auth",
    "rabbitmq",
    "sqs",
    "kafka",
];

/// Versions that some tests need beside the broker itself, and not in its place.
const BESIDE: &[&str] = &["kafka-cluster"];

/// The packages with a conformance suite.
const BACKENDS: &[&str] =
    &["buqueue-kafka", "buqueue-memory", "buqueue-nats", "buqueue-rabbitmq", "buqueue-redis", "buqueue-sqs"];

pub fn command(arguments: &[String]) -> Result<()> {
    let mut runs = 1;
    let mut conformance = false;
    let mut filter = None;
    let (mut broker, mut version) = (None, None);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--runs" => {
                let count = arguments.next().and_then(|count| count.parse().ok()).filter(|count| *count > 0);
                runs = count.ok_or_else(|| Error::new("--runs takes a number of at least 1"))?;
            }
            "--conformance" => conformance = true,
            "--broker" => {
                broker = Some(arguments.next().cloned().ok_or_else(|| Error::new("--broker takes a name"))?)
            }
            "--version" => {
                version = Some(arguments.next().cloned().ok_or_else(|| Error::new("--version takes one"))?)
            }
            other if other.starts_with('-') => bail!("unknown option `{other}`"),
            other => filter = Some(other.to_owned()),
        }
    }
    let set_ups = set_ups(broker.as_deref(), version.as_deref())?;
    let everything = !conformance && filter.is_none() && broker.is_none();
    let mut report = Report::default();
    let mut environment = brokers_up(&mut report, &set_ups)?;
    if broker.is_some() {
        environment.push(Endpoint { variable: "BUQUEUE_TEST_ALL", value: "1".to_owned() });
    }
    if everything {
        report.step("formatting", cargo(&["fmt", "--all", "--check"]))?;
        report.step(
            "lints",
            cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
        )?;
        // All features are on in the rest of the run, and what is left without them is nowhere else.
        for feature in ["", "serde", "tls", "tracing", "metrics"] {
            let name = if feature.is_empty() { "no feature" } else { feature };
            report.step(
                &format!("core with {name}"),
                cargo(&["clippy", "-p", "buqueue-core", "--features", feature, "--", "-D", "warnings"]),
            )?;
            report.step(
                &format!("core with {name}, tests"),
                cargo(&["test", "-p", "buqueue-core", "--features", feature, "--quiet"]),
            )?;
        }
    }
    for run in 1..=runs {
        let mut test = cargo(&["test", "--no-fail-fast"]);
        if let Some(broker) = &broker {
            test.args(["-p", &format!("buqueue-{broker}")]);
            if conformance {
                test.args(["--test", "conformance"]);
            }
        } else if conformance {
            test.args(BACKENDS.iter().flat_map(|backend| ["-p", backend])).args(["--test", "conformance"]);
        } else {
            test.args(["--workspace", "--all-features"]);
        }
        test.envs(environment.iter().map(|endpoint| (endpoint.variable, &endpoint.value)));
        if let Some(filter) = &filter {
            test.arg(filter);
        }
        // Cases mostly wait, so more of them than there are cores run well side by side.
        test.args(["--", "--nocapture", "--test-threads=6"]);
        let name = if runs > 1 { format!("tests, run {run} of {runs}") } else { "tests".to_owned() };
        report.tests(&name, test)?;
        // Else one that crashed is seen by refused connections only.
        for ended in brokers::ended(&set_ups)? {
            report.check("brokers", Err(Error::new(ended)));
        }
    }
    if everything {
        let mut docs = cargo(&["doc", "--workspace", "--all-features", "--no-deps", "--quiet"]);
        docs.env("RUSTDOCFLAGS", "-D warnings");
        report.step("docs", docs)?;
        match api::unreadable() {
            Ok(Some(why)) => report.skipped.push(format!("public API: {why}")),
            Ok(None) => match api::unavailable() {
                Some(why) if !in_ci() => report.skipped.push(format!("public API: {why}")),
                _ => report.timed("public API", api::compare),
            },
            Err(error) => report.check("public API", Err(error)),
        }
        // To build each from its package takes minutes; that they can be made is seen at once. What is not
        // committed yet counts, and nothing but what the build has fetched is needed.
        report.timed("packages", || {
            let options = ["--no-verify", "--allow-dirty", "--offline"].map(str::to_owned);
            package::command(&options).map(|()| String::new())
        });
        report.check("dependency tree", dependency_tree());
        // Nothing is left to do, where the tests were built.
        report.timed("examples", || examples::build().map(|()| String::new()));
        let known = story::on_memory();
        for backend in backends::BACKENDS.iter().filter(|backend| backend.is_at(&environment)) {
            if let Ok(known) = &known {
                report.check(
                    &format!("quickstart on {}", backend.name),
                    story::told_as(backend, known, &environment),
                );
            }
        }
        report.check("quickstart on memory", known.map(|_| String::new()));
        let examples = examples::all();
        // The quickstart was told above, word for word.
        let is_left = |run: &&examples::Run| run.example != "quickstart" && run.is_at(&environment);
        let examples: Vec<_> = examples.iter().filter(is_left).collect();
        for (run, outcome) in examples.iter().zip(examples::run(&examples, &environment)) {
            report.steps.push((run.name(), outcome.took, outcome.told));
        }
        if find_program("cargo-deny").is_none() {
            report.skipped.push("cargo-deny: not installed".to_owned());
        } else {
            let mut deny = cargo(&["deny", "check"]);
            // Far from a network that has it, the rest is checked all the same.
            if !succeeds_within(&mut cargo(&["deny", "fetch", "db"]), Duration::from_secs(60)) {
                report.skipped.push("cargo-deny, advisories: their database cannot be fetched".to_owned());
                deny.args(["bans", "licenses", "sources"]);
            }
            report.step("cargo-deny", deny)?;
        }
        if find_program("typos").is_none() {
            report.skipped.push("typos: not installed".to_owned());
        } else {
            let mut typos = Command::new("typos");
            typos.current_dir(root());
            report.step("typos", typos)?;
        }
    }
    report.finish()
}

/// The set-ups that are needed: all, or those of one broker, of the version that is asked for.
fn set_ups(broker: Option<&str>, version: Option<&str>) -> Result<Vec<String>> {
    let Some(broker) = broker else {
        if version.is_some() {
            bail!("--version needs --broker");
        }
        return Ok(BROKERS.iter().map(|name| (*name).to_owned()).collect());
    };
    if !BROKERS.contains(&broker) || !BACKENDS.contains(&format!("buqueue-{broker}").as_str()) {
        let known: Vec<&str> = backends::BACKENDS.iter().map(|backend| backend.name).collect();
        bail!("--broker: must be one of {}", known.join(", "));
    }
    let own = version.map_or_else(|| broker.to_owned(), |version| format!("{broker}-{version}"));
    if !brokers::names().contains(&own.as_str()) {
        let prefix = format!("{broker}-");
        // Others are no versions but what the tests need besides.
        let known: Vec<&str> = (brokers::names().into_iter())
            .filter(|name| !BROKERS.contains(name))
            .filter_map(|name| name.strip_prefix(&prefix))
            .collect();
        bail!("--version: there is no set-up {own}; known are {}", known.join(", "));
    }
    let extras =
        BROKERS.iter().filter(|name| name.strip_prefix(broker).is_some_and(|rest| rest.starts_with('-')));
    let mut set_ups: Vec<String> = extras.map(|name| (*name).to_owned()).collect();
    set_ups.retain(|name| *name != own);
    if BESIDE.contains(&own.as_str()) {
        set_ups.insert(0, broker.to_owned());
        set_ups.push(own);
    } else {
        set_ups.insert(0, own);
    }
    Ok(set_ups)
}

/// Starts the brokers, one after the other, so that one that cannot be had does not hide the others.
fn brokers_up(report: &mut Report, set_ups: &[String]) -> Result<Vec<Endpoint>> {
    let required = in_ci();
    let mut environment = Vec::new();
    for name in set_ups {
        match brokers::up(&[name]) {
            Ok(endpoints) => {
                // The tests restart it by this name.
                let set_up = endpoints.first().and_then(|endpoint| match endpoint.variable {
                    "BUQUEUE_TEST_KAFKA" => Some("BUQUEUE_TEST_KAFKA_SETUP"),
                    "BUQUEUE_TEST_NATS" => Some("BUQUEUE_TEST_NATS_SETUP"),
                    "BUQUEUE_TEST_RABBITMQ" => Some("BUQUEUE_TEST_RABBITMQ_SETUP"),
                    "BUQUEUE_TEST_SQS" => Some("BUQUEUE_TEST_SQS_SETUP"),
                    "BUQUEUE_TEST_SQS_FIFO" => Some("BUQUEUE_TEST_SQS_FIFO_SETUP"),
                    _ => None,
                });
                environment.extend(set_up.map(|variable| Endpoint { variable, value: name.clone() }));
                environment.extend(endpoints);
                // Asked for as the version, it serves both kinds of queue.
                if name == "sqs-localstack" && set_ups.first() == Some(name) {
                    let both = environment.iter().filter_map(|endpoint| {
                        let variable = match endpoint.variable {
                            "BUQUEUE_TEST_SQS_FIFO" => "BUQUEUE_TEST_SQS",
                            "BUQUEUE_TEST_SQS_FIFO_SETUP" => "BUQUEUE_TEST_SQS_SETUP",
                            _ => return None,
                        };
                        Some(Endpoint { variable, value: endpoint.value.clone() })
                    });
                    let both: Vec<Endpoint> = both.collect();
                    environment.extend(both);
                }
            }
            Err(error) if required => {
                return Err(error).context(|| format!("{name} cannot be had, and CI is set"));
            }
            Err(error) => {
                note(&format!("SKIPPING every test that needs {name}: {error}"));
                report.skipped.push(format!("{name}: cannot be had"));
            }
        }
    }
    if required {
        environment.push(Endpoint { variable: "BUQUEUE_TEST_REQUIRE", value: "1".to_owned() });
    }
    let own = std::env::current_exe()?.display().to_string();
    environment.push(Endpoint { variable: "BUQUEUE_XTASK", value: own });
    Ok(environment)
}

/// No backend pulls another's client, and the plain facade pulls next to nothing.
fn dependency_tree() -> Result<String> {
    let crates = |features: &str| -> Result<Vec<String>> {
        Ok(weight::crates(features, "normal")?.into_iter().map(|(name, _)| name).collect())
    };
    let memory = crates("memory")?;
    for foreign in ["redis", "syn", "tracing", "opentelemetry", "tracing-opentelemetry"] {
        if memory.iter().any(|name| name == foreign) {
            bail!("feature memory pulls {foreign}");
        }
    }
    if memory.len() > 16 {
        bail!("feature memory pulls {} crates, the limit is 16: {memory:?}", memory.len());
    }
    const CLIENTS: &[(&str, &str)] = &[
        ("redis", "redis"),
        ("nats", "async-nats"),
        ("rabbitmq", "lapin"),
        ("kafka", "rdkafka"),
        ("sqs", "aws-sdk-sqs"),
    ];
    let mut counts = vec![format!("memory {} crates", memory.len())];
    for (feature, own) in CLIENTS {
        let tree = crates(feature)?;
        let observing = [("", "opentelemetry"), ("", "tracing-opentelemetry")];
        for (_, foreign) in CLIENTS.iter().filter(|(_, client)| client != own).chain(&observing) {
            if tree.iter().any(|name| name == foreign) {
                bail!("feature {feature} pulls {foreign}");
            }
        }
        counts.push(format!("{feature} {}", tree.len()));
    }
    Ok(format!("{}, our own included", counts.join(", ")))
}

/// A line of the list of failures at the end of a test run.
fn is_test_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
}

#[derive(Default)]
struct Counts {
    passed: usize,
    excluded: BTreeMap<String, String>,
    skipped: usize,
}

#[derive(Default)]
struct Report {
    steps: Vec<(String, Duration, Result<String>)>,
    backends: BTreeMap<String, Counts>,
    failed: Vec<String>,
    skipped: Vec<String>,
    tests_passed: usize,
    tests_failed: usize,
}

impl Report {
    /// Runs one command; a failure is noted, and the rest is run all the same.
    fn step(&mut self, name: &str, mut command: Command) -> Result<()> {
        note(&format!("== {name}"));
        let start = Instant::now();
        let status = command.status().context(|| format!("{name}: cannot start {command:?}"))?;
        let outcome = if status.success() { Ok(String::new()) } else { Err(Error::new(status.to_string())) };
        self.steps.push((name.to_owned(), start.elapsed(), outcome));
        Ok(())
    }

    /// As [`Report::check`], of what takes its time.
    fn timed(&mut self, name: &str, run: impl FnOnce() -> Result<String>) {
        note(&format!("== {name}"));
        let start = Instant::now();
        let outcome = run();
        self.steps.push((name.to_owned(), start.elapsed(), outcome));
    }

    fn check(&mut self, name: &str, outcome: Result<String>) {
        note(&format!("== {name}"));
        self.steps.push((name.to_owned(), Duration::ZERO, outcome));
    }

    /// Runs the tests, passes their output on, and counts.
    fn tests(&mut self, name: &str, mut command: Command) -> Result<()> {
        note(&format!("== {name}"));
        let start = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().context(|| "cargo test".to_owned())?;
        let Some(output) = child.stdout.take() else { bail!("cargo test has no output") };
        let reader = thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).inspect(|line| say(line)).collect()
        });
        let lines: Vec<String> = reader.join().map_err(|_| Error::new("cannot read the tests' output"))?;
        let status = child.wait()?;
        let (mut passed, mut failed) = (0, 0);
        for line in &lines {
            self.case(line);
            if let Some(result) = line.trim().strip_prefix("test result: ") {
                let number = |word: &str| {
                    let before = result.split(word).next()?;
                    before.split_whitespace().last()?.parse::<usize>().ok()
                };
                passed += number("passed").unwrap_or(0);
                failed += number("failed").unwrap_or(0);
            } else if let Some(test) = line.strip_prefix("    ").filter(|rest| is_test_name(rest)) {
                self.failed.push(test.to_owned());
            }
        }
        self.tests_passed += passed;
        self.tests_failed += failed;
        let outcome = if status.success() {
            Ok(format!("{passed} passed"))
        } else {
            Err(Error::new(format!("{failed} failed, {passed} passed")))
        };
        self.steps.push((name.to_owned(), start.elapsed(), outcome));
        Ok(())
    }

    /// `conformance <backend> <group>::<name>: passed`, or `excluded, because …`, or `skipped, because …`. The test
    /// runner may have begun the line.
    fn case(&mut self, line: &str) {
        let Some((_, case)) = line.split_once("conformance ") else { return };
        let Some((place, verdict)) = case.split_once(": ") else { return };
        let Some((backend, name)) = place.split_once(' ') else { return };
        let counts = self.backends.entry(backend.to_owned()).or_default();
        if verdict == "passed" {
            counts.passed += 1;
        } else if let Some(why) = verdict.strip_prefix("excluded, because ") {
            counts.excluded.insert(name.to_owned(), why.to_owned());
        } else if verdict.starts_with("skipped") {
            counts.skipped += 1;
        }
    }

    fn finish(mut self) -> Result<()> {
        say("\n== summary");
        for (name, took, outcome) in &self.steps {
            let seconds = took.as_secs_f64();
            match outcome {
                Ok(fact) if fact.is_empty() => say(&format!("ok      {seconds:6.1} s  {name}")),
                Ok(fact) => say(&format!("ok      {seconds:6.1} s  {name}: {fact}")),
                Err(error) => say(&format!("FAILED  {seconds:6.1} s  {name}: {error}")),
            }
        }
        for (backend, counts) in &self.backends {
            say(&format!(
                "conformance {backend}: {} cases passed, {} excluded, {} skipped",
                counts.passed,
                counts.excluded.len(),
                counts.skipped
            ));
            for (case, why) in &counts.excluded {
                say(&format!("    excluded {case}: {why}"));
            }
        }
        for what in &self.skipped {
            say(&format!("SKIPPED {what}"));
        }
        self.failed.sort();
        self.failed.dedup();
        for test in &self.failed {
            say(&format!("FAILED  {test}"));
        }
        let failed = self.steps.iter().filter(|(_, _, outcome)| outcome.is_err()).count();
        // Alone on its line and last, for whoever reads only that.
        say(&format!("{} passed, {} failed", self.tests_passed, self.tests_failed));
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.steps.len());
        }
        Ok(())
    }
}
