//! Real brokers on this machine, for tests and benchmarks.
//!
//! Every broker is had in the first of these ways that works: an endpoint that the caller gives in
//! an environment variable; a container, where a Docker engine answers; native processes, taken from
//! the package registries into `.brokers/` and started on ports of the project's own.
//!
//! What runs is recorded in `.brokers/run/NAME/`, so that `up` can be repeated and `down` ends
//! nothing but what `up` started.

mod certificates;
mod java;
mod kafka;
mod nats;
mod net;
mod packages;
mod rabbitmq;
mod redis;
mod sqs;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Result, bail};
use crate::process::{Run, Service, in_ci, note, output, retry_for, say, succeeds_within};

pub const ARGUMENTS: &str = "VERB [NAME…]";
pub const ABOUT: &str =
    "    up [NAME…]            start brokers and wait until they answer; prints one line each
    down [--wipe] [NAME…] end what `up` started; --wipe removes its data too
    status [NAME…]        what runs, and where
    restart NAME…         kill -9 and start again on the same data; NAME/PROCESS for one process of it
    kill NAME/PROCESS…    kill -9 one process and leave it down; `up` brings it back
    env                   `export VARIABLE=endpoint` lines for the brokers that are up
    prove [NAME…]         a message there and back through each broker's ordinary client

    NAME is one of redis, nats, rabbitmq, kafka, sqs (all five where none is given), or one more
    set-up: redis-auth, redis-tls, redis-sentinel, redis-cluster (redis-all is every Redis), nats-auth,
    the older servers nats-2.10 and nats-2.9, the newer rabbitmq-4.0 and rabbitmq-4.3 (as root),
    sqs-localstack, the other emulator, and kafka-cluster, three nodes.
    BUQUEUE_TEST_REDIS, _NATS, _RABBITMQ, _KAFKA or _SQS makes that endpoint be used as it is.
";

/// How long a broker may take to answer after its processes were started.
const READY: Duration = Duration::from_secs(90);

/// How long to wait for a port: one that connections have just used can stay blocked for a minute. Ours lie below
/// those that the system gives to outgoing connections.
const PORT_FREE: Duration = Duration::from_secs(70);

/// One environment variable that tells the tests where a broker is.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub variable: &'static str,
    pub value: String,
}

/// What one broker needs to know about itself; the order of the ways to get it is the same for all.
trait Broker: Sync {
    fn name(&self) -> &'static str;

    /// Whether `up` without a name starts it.
    fn is_default(&self) -> bool {
        true
    }

    /// Whether `docker-compose.yml` has a service of this name.
    fn in_compose(&self) -> bool {
        true
    }

    /// How many of its endpoints its container has too: the first ones. The others need certificates, or more ports.
    fn contained(&self) -> usize {
        1
    }

    /// Where it listens when this command started it. The first one names the broker.
    fn endpoints(&self, run: &Run) -> Vec<Endpoint>;

    /// Gets the programs, unless they are there.
    fn install(&self, cache: &Path) -> Result<()>;

    /// Its processes, in the order of their start, with their configuration written.
    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>>;

    /// Called after each of the processes was started.
    fn started(&self, _run: &Run, _service: &str) -> Result<()> {
        Ok(())
    }

    /// Called once when all processes were started, to join them.
    fn join(&self, _cache: &Path, _run: &Run) -> Result<()> {
        Ok(())
    }

    /// Asks, by the broker's own protocol, whether it is ready; tells its version.
    fn probe(&self, cache: &Path, endpoints: &[Endpoint]) -> Result<String>;

    /// Sends a message and receives it, and tells how that went, line by line.
    fn prove(&self, cache: &Path, endpoints: &[Endpoint]) -> Result<Vec<String>>;
}

const BROKERS: &[&dyn Broker] = &[
    &redis::PLAIN,
    &nats::NATS,
    &rabbitmq::RABBITMQ,
    &kafka::KAFKA,
    &sqs::SQS,
    &redis::AUTH,
    &redis::TLS,
    &redis::SENTINEL,
    &redis::CLUSTER,
    &nats::NATS_AUTH,
    &nats::NATS_2_10,
    &nats::NATS_2_9,
    &rabbitmq::RABBITMQ_4_0,
    &rabbitmq::RABBITMQ_4_3,
    &sqs::LOCALSTACK,
    &kafka::CLUSTER,
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Environment,
    Docker,
    Native,
}

impl How {
    fn as_str(self) -> &'static str {
        match self {
            Self::Environment => "env",
            Self::Docker => "docker",
            Self::Native => "native",
        }
    }
}

/// A broker that answers.
struct Live {
    how: How,
    version: String,
    endpoints: Vec<Endpoint>,
}

/// The folders that this command works in.
struct Workspace {
    root: PathBuf,
    cache: PathBuf,
}

impl Workspace {
    fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_path_buf();
        let cache = root.join(".brokers");
        fs::create_dir_all(&cache).context(|| format!("cannot create {}", cache.display()))?;
        Ok(Self { root, cache })
    }

    fn run(&self, broker: &dyn Broker) -> Run {
        Run::new(self.cache.join("run").join(broker.name()))
    }

    /// Keeps two commands from changing the same processes; held until dropped.
    fn lock(&self) -> Result<File> {
        let path = self.cache.join("lock");
        let file = File::create(&path).context(|| format!("cannot create {}", path.display()))?;
        file.lock().context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    fn compose(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["compose", "-f"]).arg(self.root.join("docker-compose.yml")).args(arguments);
        command
    }
}

/// What is known of those of the named brokers that were started here and have ended since, by themselves.
pub fn ended(names: &[String]) -> Result<Vec<String>> {
    let workspace = Workspace::find()?;
    let _lock = workspace.lock()?;
    let named = BROKERS.iter().filter(|broker| names.iter().any(|name| *name == broker.name()));
    let dead = named.filter_map(|broker| {
        let run = workspace.run(*broker);
        let services = run.ended();
        (!services.is_empty())
            .then(|| format!("{} ended: {}{}", broker.name(), services.join(", "), run.log_tails()))
    });
    Ok(dead.collect())
}

/// `cargo xtask brokers …`
pub fn command(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some((verb, names)) = arguments.split_first() else {
        bail!("which verb?\n\nbrokers {ARGUMENTS}\n{ABOUT}")
    };
    match *verb {
        "up" => up(names).map(drop),
        "down" => down(names),
        "status" => status(names),
        "restart" => restart(names),
        "kill" => kill(names),
        "env" => env(names),
        "prove" => prove(names),
        _ => bail!("unknown verb `{verb}`\n\nbrokers {ARGUMENTS}\n{ABOUT}"),
    }
}

/// The names of all set-ups.
pub fn names() -> Vec<&'static str> {
    BROKERS.iter().map(|broker| broker.name()).collect()
}

/// Brings the named brokers up (the default set where none is named) and returns where they are.
pub fn up(names: &[&str]) -> Result<Vec<Endpoint>> {
    let brokers = select(names)?;
    let workspace = Workspace::find()?;
    let _lock = workspace.lock()?;
    // Package managers lock their own state: installing goes one by one, starting in parallel.
    let mut prepared = Vec::new();
    let mut errors = Vec::new();
    for broker in brokers {
        let begin = Instant::now();
        match prepare(&workspace, broker) {
            Ok(plan) => prepared.push((broker, plan, begin.elapsed())),
            Err(error) => errors.push(format!("{}: {error}", broker.name())),
        }
    }
    let mut endpoints = Vec::new();
    thread::scope(|scope| {
        let workspace = &workspace;
        let threads: Vec<_> = prepared
            .into_iter()
            .map(|(broker, plan, prepared)| {
                let thread = scope.spawn(move || {
                    let begin = Instant::now();
                    let live = match plan {
                        Plan::Found(live) => live,
                        Plan::Docker => start_container(workspace, broker)?,
                        Plan::Native => start_processes(workspace, broker)?,
                    };
                    print_live(broker, &live, Some(prepared + begin.elapsed()));
                    Ok::<_, crate::error::Error>(live.endpoints)
                });
                (broker, thread)
            })
            .collect();
        for (broker, thread) in threads {
            match thread.join() {
                Ok(Ok(found)) => endpoints.extend(found),
                Ok(Err(error)) => errors.push(format!("{}: {error}", broker.name())),
                Err(_) => errors.push(format!("{}: the start panicked", broker.name())),
            }
        }
    });
    if !errors.is_empty() {
        bail!("{}", errors.join("\nerror: "));
    }
    Ok(endpoints)
}

enum Plan {
    Found(Live),
    Docker,
    Native,
}

/// Decides how to get a broker, and gets its programs where they are needed.
fn prepare(workspace: &Workspace, broker: &dyn Broker) -> Result<Plan> {
    let run = workspace.run(broker);
    let given = given(broker);
    if let Some(endpoint) = given.first() {
        // After `eval "$(cargo xtask brokers env)"` the variable names our own broker, up or not.
        let own = broker.endpoints(&run).first().is_some_and(|own| own.value == endpoint.value);
        if !own {
            let version = retry_for(Duration::from_secs(3), || broker.probe(&workspace.cache, &given))
                .context(|| format!("{}={} does not answer", endpoint.variable, endpoint.value))?;
            return Ok(Plan::Found(Live { how: How::Environment, version, endpoints: given }));
        }
    }
    // Where nothing may be skipped, a container that lacks some of the endpoints does not do.
    let will_do = broker.in_compose() && (!in_ci() || broker.contained() >= broker.endpoints(&run).len());
    // What was once started natively stays so, even if a Docker engine answers by now.
    if run.running().is_empty() && will_do && docker_answers() {
        return Ok(Plan::Docker);
    }
    broker.install(&workspace.cache)?;
    Ok(Plan::Native)
}

/// The endpoints that the caller gave in the environment; none unless the broker's own one is among them.
fn given(broker: &dyn Broker) -> Vec<Endpoint> {
    let mut given = Vec::new();
    for own in broker.endpoints(&Run::new(PathBuf::new())) {
        match std::env::var(own.variable) {
            Ok(value) if !value.is_empty() => given.push(Endpoint { variable: own.variable, value }),
            _ if given.is_empty() => return given,
            _ => {}
        }
    }
    given
}

fn docker_answers() -> bool {
    static ANSWERS: OnceLock<bool> = OnceLock::new();
    *ANSWERS.get_or_init(|| {
        // The engine, and the plugin: there are machines with only one of them.
        [&["info"][..], &["compose", "version"]]
            .into_iter()
            .all(|arguments| succeeds_within(Command::new("docker").args(arguments), Duration::from_secs(5)))
    })
}

/// The file that remembers that `up` started a container, so that `down` knows to end it.
const CONTAINER: &str = "container";

fn start_container(workspace: &Workspace, broker: &dyn Broker) -> Result<Live> {
    let run = workspace.run(broker);
    run.create()?;
    run.write(CONTAINER, "")?;
    output(&mut workspace.compose(&["up", "--detach", "--wait", broker.name()]))?;
    let mut endpoints = broker.endpoints(&run);
    endpoints.truncate(broker.contained());
    let version = retry_for(READY, || broker.probe(&workspace.cache, &endpoints))?;
    Ok(Live { how: How::Docker, version, endpoints })
}

fn start_processes(workspace: &Workspace, broker: &dyn Broker) -> Result<Live> {
    let run = workspace.run(broker);
    run.create()?;
    let begin = Instant::now();
    let mut told = false;
    loop {
        let error = match start_once(workspace, broker, &run) {
            Ok(live) => return Ok(live),
            Err(error) => error,
        };
        if begin.elapsed() > PORT_FREE || !run.a_port_was_taken() {
            return Err(crate::error::Error::new(format!("{error}{}", run.log_tails())));
        }
        if !told {
            note(&format!("{}: waiting for a port that a connection has just used …", broker.name()));
            told = true;
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Starts those of a broker's processes that do not run, and waits until it answers.
fn start_once(workspace: &Workspace, broker: &dyn Broker, run: &Run) -> Result<Live> {
    let cache = &workspace.cache;
    let services = broker.services(cache, run)?;
    let names: Vec<&str> = services.iter().map(|service| service.name).collect();
    for service in services {
        let name = service.name;
        run.start(service)?;
        broker.started(run, name)?;
    }
    broker.join(cache, run)?;
    let endpoints = broker.endpoints(run);
    let begin = Instant::now();
    loop {
        let answer = broker.probe(cache, &endpoints);
        // Also when it answers: one of several processes may be missing without being missed.
        if let Some(dead) = names.iter().find(|name| !run.is_running(name)) {
            bail!("its process `{dead}` ended");
        }
        match answer {
            Ok(version) => return Ok(Live { how: How::Native, version, endpoints }),
            Err(error) if begin.elapsed() > READY => {
                bail!("not ready after {} s: {error}", READY.as_secs())
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn down(names: &[&str]) -> Result<()> {
    let wipe = names.contains(&"--wipe");
    let names: Vec<&str> = names.iter().copied().filter(|name| *name != "--wipe").collect();
    let workspace = Workspace::find()?;
    let _lock = workspace.lock()?;
    // Without a name everything that was started goes, not only the default set.
    let brokers = if names.is_empty() { BROKERS.to_vec() } else { select(&names)? };
    let mut errors = Vec::new();
    thread::scope(|scope| {
        let workspace = &workspace;
        let threads: Vec<_> = brokers
            .into_iter()
            .map(|broker| (broker, scope.spawn(move || end(workspace, broker, wipe))))
            .collect();
        for (broker, thread) in threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => errors.push(format!("{}: {error}", broker.name())),
                Err(_) => errors.push(format!("{}: the end panicked", broker.name())),
            }
        }
    });
    if !errors.is_empty() {
        bail!("{}", errors.join("\nerror: "));
    }
    Ok(())
}

fn end(workspace: &Workspace, broker: &dyn Broker, wipe: bool) -> Result<()> {
    let run = workspace.run(broker);
    let mut ended = run.running();
    // Backwards by name: sentinels go before the servers that they would declare dead,
    // and RabbitMQ before the port mapper that it says goodbye to.
    ended.reverse();
    for service in &ended {
        run.stop(service, false)?;
    }
    if run.path(CONTAINER).exists() {
        // As with processes, the data stays unless it is to go.
        let arguments: &[&str] = if wipe { &["rm", "--stop", "--force", "--volumes"] } else { &["stop"] };
        output(workspace.compose(arguments).arg(broker.name()))?;
        fs::remove_file(run.path(CONTAINER))?;
        ended.push("container".to_owned());
    }
    if wipe && run.dir.exists() {
        fs::remove_dir_all(&run.dir).context(|| format!("cannot remove {}", run.dir.display()))?;
    }
    if !ended.is_empty() {
        say(&format!("{:<15} down ({})", broker.name(), ended.join(", ")));
    }
    Ok(())
}

fn status(names: &[&str]) -> Result<()> {
    let workspace = Workspace::find()?;
    for broker in select(names)? {
        // An extra set-up that nobody asked for by name is worth a line only when it is up.
        match live(&workspace, broker) {
            Some(live) => print_live(broker, &live, None),
            None => {
                let run = workspace.run(broker);
                let running = run.running();
                let state = if running.is_empty() {
                    "down".to_owned()
                } else {
                    format!("started, does not answer (runs: {})", running.join(", "))
                };
                say(&format!("{:<15} {state}", broker.name()));
            }
        }
    }
    if names.is_empty() {
        for broker in BROKERS.iter().copied().filter(|broker| !broker.is_default()) {
            if let Some(live) = live(&workspace, broker) {
                print_live(broker, &live, None);
            }
        }
    }
    Ok(())
}

/// The broker as it is now, if it answers.
fn live(workspace: &Workspace, broker: &dyn Broker) -> Option<Live> {
    let run = workspace.run(broker);
    let own = broker.endpoints(&run);
    let given = given(broker);
    let (how, endpoints) = match given.first() {
        Some(endpoint) if own.first().is_none_or(|own| own.value != endpoint.value) => {
            (How::Environment, given)
        }
        _ if !run.running().is_empty() => (How::Native, own),
        _ if run.path(CONTAINER).exists() => {
            (How::Docker, own.into_iter().take(broker.contained()).collect())
        }
        _ if !given.is_empty() => (How::Environment, given),
        _ => return None,
    };
    let version = broker.probe(&workspace.cache, &endpoints).ok()?;
    Some(Live { how, version, endpoints })
}

/// Splits `NAME/PROCESS`.
fn target(name: &str) -> Result<(&'static dyn Broker, Option<&str>)> {
    let (name, process) = match name.split_once('/') {
        Some((name, process)) => (name, Some(process)),
        None => (name, None),
    };
    match select(&[name])?[..] {
        [broker] => Ok((broker, process)),
        _ => bail!("`{name}` is more than one broker"),
    }
}

fn kill(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        bail!("kill what? NAME or NAME/PROCESS");
    }
    let workspace = Workspace::find()?;
    let _lock = workspace.lock()?;
    for name in names {
        let (broker, process) = target(name)?;
        kill_hard(&workspace, broker, process)?;
        say(&format!("{name:<15} killed"));
    }
    Ok(())
}

fn kill_hard(workspace: &Workspace, broker: &dyn Broker, process: Option<&str>) -> Result<()> {
    let run = workspace.run(broker);
    let running = run.running();
    if running.is_empty() && run.path(CONTAINER).exists() {
        output(&mut workspace.compose(&["kill", "--signal", "KILL", broker.name()]))?;
        return Ok(());
    }
    if running.is_empty() {
        bail!("{} was not started by this command, or is down", broker.name());
    }
    if let Some(process) = process.filter(|process| !running.iter().any(|name| name == process)) {
        bail!("{} has no running process `{process}`; it has {}", broker.name(), running.join(", "));
    }
    for service in running.iter().filter(|name| process.is_none_or(|process| process == *name)) {
        run.stop(service, true)?;
    }
    Ok(())
}

fn restart(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        bail!("restart what? NAME or NAME/PROCESS");
    }
    let workspace = Workspace::find()?;
    let _lock = workspace.lock()?;
    for name in names {
        let begin = Instant::now();
        let (broker, process) = target(name)?;
        kill_hard(&workspace, broker, process)?;
        let live = if workspace.run(broker).path(CONTAINER).exists() {
            start_container(&workspace, broker)?
        } else {
            start_processes(&workspace, broker)?
        };
        print_live(broker, &live, Some(begin.elapsed()));
    }
    Ok(())
}

fn env(names: &[&str]) -> Result<()> {
    let workspace = Workspace::find()?;
    let brokers = if names.is_empty() { BROKERS.to_vec() } else { select(names)? };
    for broker in brokers {
        for endpoint in live(&workspace, broker).into_iter().flat_map(|live| live.endpoints) {
            say(&format!("export {}='{}'", endpoint.variable, endpoint.value));
        }
    }
    Ok(())
}

fn prove(names: &[&str]) -> Result<()> {
    let workspace = Workspace::find()?;
    for broker in select(names)? {
        let Some(live) = live(&workspace, broker) else { bail!("{} is not up", broker.name()) };
        print_live(broker, &live, None);
        for line in broker.prove(&workspace.cache, &live.endpoints).context(|| broker.name().to_owned())? {
            say(&format!("    {line}"));
        }
    }
    Ok(())
}

/// The named brokers, each once, in the table's order; the default set where none is named.
fn select(names: &[&str]) -> Result<Vec<&'static dyn Broker>> {
    let mut wanted = BTreeSet::new();
    for name in names {
        let before = wanted.len();
        wanted.extend(BROKERS.iter().map(|broker| broker.name()).filter(|known| {
            known == name || (*name == "redis-all" && known.starts_with("redis")) || *name == "all"
        }));
        if wanted.len() == before && !wanted.contains(name) {
            let known: Vec<&str> = BROKERS.iter().map(|broker| broker.name()).collect();
            bail!("unknown broker `{name}`; known are {}, redis-all and all", known.join(", "));
        }
    }
    let chosen = |broker: &&&'static dyn Broker| {
        if names.is_empty() { broker.is_default() } else { wanted.contains(broker.name()) }
    };
    Ok(BROKERS.iter().filter(chosen).copied().collect())
}

fn print_live(broker: &dyn Broker, live: &Live, took: Option<Duration>) {
    let endpoint = live.endpoints.first().map_or("", |endpoint| endpoint.value.as_str());
    let took = took.map_or(String::new(), |took| format!("  {:.1} s", took.as_secs_f64()));
    say(&format!("{:<15} {:<10} {:<7} {endpoint}{took}", broker.name(), live.version, live.how.as_str()));
}

/// Tells on standard error that something long has begun.
fn installing(what: &str) {
    note(&format!("installing {what} …"));
}
