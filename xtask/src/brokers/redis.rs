//! Redis, alone, with a password, with TLS, behind Sentinel and as a Cluster.
//!
//! With TLS there are four processes: a server that anybody may come to; and a server, a sentinel of it and a cluster of one
//! node that ask for a certificate.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::certificates;
use super::net::{Address, Resp, connect};
use super::packages::Unpacked;
use super::{Broker, Endpoint};
use crate::error::{Context, Result, bail};
use crate::process::{Run, Service, find_program, output, output_with_input, retry_for};

pub struct Redis {
    setup: Setup,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    Plain,
    Auth,
    Tls,
    Sentinel,
    Cluster,
}

pub const PLAIN: Redis = Redis { setup: Setup::Plain };
pub const AUTH: Redis = Redis { setup: Setup::Auth };
pub const TLS: Redis = Redis { setup: Setup::Tls };
pub const SENTINEL: Redis = Redis { setup: Setup::Sentinel };
pub const CLUSTER: Redis = Redis { setup: Setup::Cluster };

const PORT: u16 = 16379;
const TLS_PORT: u16 = 16380;
const AUTH_PORT: u16 = 16381;
const MUTUAL_PORT: u16 = 16382;
const MUTUAL_SENTINEL_PORT: u16 = 16383;
const MUTUAL_NODE_PORT: u16 = 16384;
const PRIMARY_PORT: u16 = 16390;
const REPLICA_PORT: u16 = 16391;
const SENTINELS: [(&str, u16); 3] = [("sentinel-1", 16392), ("sentinel-2", 16393), ("sentinel-3", 16394)];
const NODES: [(&str, u16); 3] = [("node-1", 16400), ("node-2", 16401), ("node-3", 16402)];
const SERVICE: &str = "buqueue-primary";
const CA: &str = "BUQUEUE_TEST_REDIS_TLS_CA";
const CLIENT_CERT: &str = "BUQUEUE_TEST_REDIS_TLS_CLIENT_CERT";
const CLIENT_KEY: &str = "BUQUEUE_TEST_REDIS_TLS_CLIENT_KEY";
const MUTUAL_SENTINEL: &str = "BUQUEUE_TEST_REDIS_MTLS_SENTINEL";
const MUTUAL_CLUSTER: &str = "BUQUEUE_TEST_REDIS_MTLS_CLUSTER";
const PASSWORD: &str = "s3cret";

impl Broker for Redis {
    fn name(&self) -> &'static str {
        match self.setup {
            Setup::Plain => "redis",
            Setup::Auth => "redis-auth",
            Setup::Tls => "redis-tls",
            Setup::Sentinel => "redis-sentinel",
            Setup::Cluster => "redis-cluster",
        }
    }

    fn is_default(&self) -> bool {
        self.setup == Setup::Plain
    }

    fn in_compose(&self) -> bool {
        // The others announce addresses or need certificates: not worth bending into containers.
        self.setup == Setup::Plain
    }

    fn endpoints(&self, run: &Run) -> Vec<Endpoint> {
        let endpoint = |variable, value| Endpoint { variable, value };
        match self.setup {
            Setup::Plain => vec![endpoint("BUQUEUE_TEST_REDIS", format!("redis://127.0.0.1:{PORT}"))],
            Setup::Auth => {
                vec![endpoint(
                    "BUQUEUE_TEST_REDIS_AUTH",
                    format!("redis://:{PASSWORD}@127.0.0.1:{AUTH_PORT}"),
                )]
            }
            Setup::Tls => vec![
                endpoint("BUQUEUE_TEST_REDIS_TLS", format!("rediss://127.0.0.1:{TLS_PORT}")),
                endpoint(CA, run.path("ca.crt").display().to_string()),
                endpoint(CLIENT_CERT, run.path("client.crt").display().to_string()),
                endpoint(CLIENT_KEY, run.path("client.key").display().to_string()),
                endpoint("BUQUEUE_TEST_REDIS_MTLS", format!("rediss://127.0.0.1:{MUTUAL_PORT}")),
                endpoint(
                    MUTUAL_SENTINEL,
                    format!("rediss+sentinel://127.0.0.1:{MUTUAL_SENTINEL_PORT}/{SERVICE}"),
                ),
                endpoint(MUTUAL_CLUSTER, format!("rediss://127.0.0.1:{MUTUAL_NODE_PORT}")),
            ],
            Setup::Sentinel => {
                let port = SENTINELS[0].1;
                vec![endpoint(
                    "BUQUEUE_TEST_REDIS_SENTINEL",
                    format!("redis+sentinel://127.0.0.1:{port}/{SERVICE}"),
                )]
            }
            Setup::Cluster => {
                let nodes = NODES.map(|(_, port)| format!("127.0.0.1:{port}")).join(",");
                vec![endpoint("BUQUEUE_TEST_REDIS_CLUSTER", format!("redis://{nodes}"))]
            }
        }
    }

    fn install(&self, cache: &Path) -> Result<()> {
        if find_program("redis-server").is_none() || find_program("redis-cli").is_none() {
            Unpacked::of_system(cache, "redis", &["redis-server", "redis-tools"])?;
        }
        Ok(())
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        let server = |name: &'static str, config: PathBuf, port: u16| -> Result<Service> {
            let mut command = program(cache, "redis-server")?;
            command.arg(config).current_dir(&run.dir);
            Ok(Service { name, command, ports: vec![port] })
        };
        match self.setup {
            Setup::Plain => {
                let config = run.write("redis.conf", &config(run, "data", PORT)?)?;
                Ok(vec![server("redis", config, PORT)?])
            }
            Setup::Auth => {
                // `buqueue` may do all that the password alone may; `reader` exists to be refused.
                let text = config(run, "data", AUTH_PORT)?
                    + &format!(
                        "requirepass {PASSWORD}\n\
                         user buqueue on >{PASSWORD} ~* &* +@all\n\
                         user reader on >{PASSWORD} ~* &* -@all +@read +@connection\n"
                    );
                Ok(vec![server("redis", run.write("redis.conf", &text)?, AUTH_PORT)?])
            }
            Setup::Tls => {
                certificates::make(run)?;
                let file = |name| run.path(name).display().to_string();
                let tls = |port: u16, asks: &str| {
                    format!(
                        "tls-port {port}\ntls-auth-clients {asks}\n\
                         tls-cert-file \"{}\"\ntls-key-file \"{}\"\ntls-ca-cert-file \"{}\"\n",
                        file("server.crt"),
                        file("server.key"),
                        file("ca.crt")
                    )
                };
                let open = config(run, "data", 0)? + &tls(TLS_PORT, "no");
                let mutual = config(run, "data-mutual", 0)? + &tls(MUTUAL_PORT, "yes");
                let node = config(run, "data-mutual-node", 0)?
                    + &tls(MUTUAL_NODE_PORT, "yes")
                    + "cluster-enabled yes\ntls-cluster yes\ncluster-announce-ip 127.0.0.1\n";
                // It asks the server as a client of it. There is no replica that it could turn to.
                let sentinel = format!(
                    "bind 127.0.0.1\nport 0\ndir \"{}\"\n{}tls-replication yes\n\
                     tls-client-cert-file \"{}\"\ntls-client-key-file \"{}\"\n\
                     sentinel monitor {SERVICE} 127.0.0.1 {MUTUAL_PORT} 1\n",
                    run.folder("data-mutual-sentinel")?.display(),
                    tls(MUTUAL_SENTINEL_PORT, "yes"),
                    file("client.crt"),
                    file("client.key")
                );
                let sentinel = run.write_once("mutual-sentinel.conf", &sentinel)?;
                let mut sentinel = server("mutual-sentinel", sentinel, MUTUAL_SENTINEL_PORT)?;
                sentinel.command.arg("--sentinel");
                Ok(vec![
                    server("redis", run.write("redis.conf", &open)?, TLS_PORT)?,
                    server("mutual", run.write("mutual.conf", &mutual)?, MUTUAL_PORT)?,
                    server("mutual-node", run.write("mutual-node.conf", &node)?, MUTUAL_NODE_PORT)?,
                    sentinel,
                ])
            }
            Setup::Sentinel => {
                // Sentinels rewrite these files on a failover: they are the state, and stay.
                let primary = run.write_once("primary.conf", &config(run, "primary", PRIMARY_PORT)?)?;
                let replica =
                    config(run, "replica", REPLICA_PORT)? + &format!("replicaof 127.0.0.1 {PRIMARY_PORT}\n");
                let replica = run.write_once("replica.conf", &replica)?;
                let mut services = vec![
                    server("primary", primary, PRIMARY_PORT)?,
                    server("replica", replica, REPLICA_PORT)?,
                ];
                for (name, port) in SENTINELS {
                    let text = format!(
                        "bind 127.0.0.1\nport {port}\ndir \"{}\"\n\
                         sentinel monitor {SERVICE} 127.0.0.1 {PRIMARY_PORT} 2\n\
                         sentinel down-after-milliseconds {SERVICE} 1000\n\
                         sentinel failover-timeout {SERVICE} 5000\n",
                        run.folder(name)?.display()
                    );
                    let mut service = server(name, run.write_once(&format!("{name}.conf"), &text)?, port)?;
                    service.command.arg("--sentinel");
                    services.push(service);
                }
                Ok(services)
            }
            Setup::Cluster => NODES
                .into_iter()
                .map(|(name, port)| {
                    let text = config(run, name, port)? + "cluster-enabled yes\ncluster-node-timeout 2000\n";
                    server(name, run.write(&format!("{name}.conf"), &text)?, port)
                })
                .collect(),
        }
    }

    fn started(&self, run: &Run, service: &str) -> Result<()> {
        // A replica in step before the first sentinel ever looks saves the ten seconds until it looks again.
        if self.setup == Setup::Sentinel && service == "replica" && !run.path("replica-known").exists() {
            in_step(PRIMARY_PORT);
            run.write("replica-known", "")?;
        }
        Ok(())
    }

    fn join(&self, cache: &Path, run: &Run) -> Result<()> {
        if self.setup == Setup::Sentinel {
            // After a failover the old primary is made a replica only after a while.
            if let Ok((_, port)) = primary(&Address::parse(&self.endpoints(run)[0].value, 0)?) {
                in_step(port);
            }
        }
        if self.setup == Setup::Tls {
            let endpoints = self.endpoints(run);
            let Some(node) = named(&endpoints, MUTUAL_CLUSTER) else { bail!("no endpoint of a cluster") };
            // Without an answer the program ends well all the same.
            let answer = |question: &str, expected: &str| {
                let said = self.client(cache, node, &endpoints, &format!("{question}\n"))?;
                if !said.contains(expected) {
                    bail!("{} says {} to {question}", node.value, said.trim());
                }
                Ok(said)
            };
            return retry_for(Duration::from_secs(10), || {
                // Alone it has nobody to share its slots with. A started-again one knows them from its own file.
                if answer("CLUSTER INFO", "cluster_state:")?.contains("cluster_slots_assigned:0\r") {
                    answer("CLUSTER ADDSLOTSRANGE 0 16383", "OK")?;
                }
                Ok(())
            });
        }
        if self.setup != Setup::Cluster {
            return Ok(());
        }
        let info = retry_for(Duration::from_secs(10), || {
            for (_, port) in &NODES[1..] {
                Resp::connect("127.0.0.1", *port)?.call(&["PING"])?;
            }
            Resp::connect("127.0.0.1", NODES[0].1)?.call(&["CLUSTER", "INFO"])
        })?;
        // A started-again cluster knows itself from its own files.
        if info.contains("cluster_known_nodes:1\r") {
            let nodes = NODES.map(|(_, port)| format!("127.0.0.1:{port}"));
            output(
                program(cache, "redis-cli")?.args(["--cluster", "create"]).args(nodes).arg("--cluster-yes"),
            )?;
        }
        Ok(())
    }

    fn probe(&self, cache: &Path, endpoints: &[Endpoint]) -> Result<String> {
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        let address = Address::parse(&endpoint.value, 6379)?;
        let (host, port) = address.first()?;
        match self.setup {
            // Somebody else's endpoint, and no client at hand that speaks TLS.
            Setup::Tls if program(cache, "redis-cli").is_err() => {
                connect(host, port).map(|_| "(tls)".to_owned())
            }
            Setup::Tls => {
                for (variable, question, answer) in [
                    ("BUQUEUE_TEST_REDIS_MTLS", "PING", "PONG"),
                    (MUTUAL_SENTINEL, "INFO sentinel", "status=ok"),
                    (MUTUAL_CLUSTER, "CLUSTER INFO", "cluster_state:ok"),
                ] {
                    let Some(endpoint) = named(endpoints, variable) else { continue };
                    let said = self.client(cache, endpoint, endpoints, &format!("{question}\n"))?;
                    if !said.contains(answer) {
                        bail!("{} says {}", endpoint.value, said.trim());
                    }
                }
                version(&self.client(cache, endpoint, endpoints, "INFO server\n")?)
            }
            Setup::Plain | Setup::Auth => {
                let mut redis = Resp::connect(host, port)?;
                if let Some(password) = &address.password {
                    redis.call(&["AUTH", address.user.as_deref().unwrap_or("default"), password])?;
                }
                // While it loads its data, Redis answers everything else with an error.
                if redis.call(&["PING"])? != "PONG" {
                    bail!("no PONG");
                }
                version(&redis.call(&["INFO", "server"])?)
            }
            Setup::Sentinel => {
                let mut found = String::new();
                for (host, port) in &address.hosts {
                    let mut sentinel = Resp::connect(host, *port)?;
                    let info = sentinel.call(&["INFO", "sentinel"])?;
                    // Ready for a failover too: everyone is known to everyone.
                    if !info.contains("status=ok") || info.contains("slaves=0") {
                        bail!("{host}:{port} says {}", info.trim());
                    }
                    let quorum = sentinel.call(&["SENTINEL", "CKQUORUM", &address.path])?;
                    if !quorum.starts_with("OK 3") {
                        bail!("{host}:{port} says {quorum}");
                    }
                    found = version(&sentinel.call(&["INFO", "server"])?)?;
                }
                let (host, port) = primary(&address)?;
                Resp::connect(&host, port)?.call(&["PING"])?;
                Ok(found)
            }
            Setup::Cluster => {
                let mut found = String::new();
                for (host, port) in &address.hosts {
                    let mut node = Resp::connect(host, *port)?;
                    let info = node.call(&["CLUSTER", "INFO"])?;
                    if !info.contains("cluster_state:ok") || info.contains("cluster_known_nodes:1\r") {
                        bail!("{host}:{port} says {}", info.lines().next().unwrap_or_default());
                    }
                    found = version(&node.call(&["INFO", "server"])?)?;
                }
                Ok(found)
            }
        }
    }

    fn prove(&self, cache: &Path, endpoints: &[Endpoint]) -> Result<Vec<String>> {
        let key = "buqueue:prove";
        let body = format!("hello from {}", self.name());
        let script = [
            format!("DEL {key}"),
            format!("XGROUP CREATE {key} group $ MKSTREAM"),
            format!("XADD {key} * body \"{body}\""),
            format!("XREADGROUP GROUP group reader COUNT 1 STREAMS {key} >"),
            format!("DEL {key}"),
        ];
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        let answer = self.client(cache, endpoint, endpoints, &(script.join("\n") + "\n"))?;
        if !answer.lines().any(|line| line.contains(&body)) {
            bail!("the message did not come back: {answer}");
        }
        let mut lines = vec![format!("redis-cli {}", script[2])];
        lines.extend(answer.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("-> {line}")));
        Ok(lines)
    }
}

impl Redis {
    /// Feeds commands to `redis-cli`, for one of the endpoints.
    fn client(
        &self,
        cache: &Path,
        endpoint: &Endpoint,
        endpoints: &[Endpoint],
        input: &str,
    ) -> Result<String> {
        let address = Address::parse(&endpoint.value, 6379)?;
        let (mut host, mut port) = address.first().map(|(host, port)| (host.to_owned(), port))?;
        let mut command = program(cache, "redis-cli")?;
        match self.setup {
            Setup::Tls => {
                command.arg("--tls");
                for (option, variable) in [("--cacert", CA), ("--cert", CLIENT_CERT), ("--key", CLIENT_KEY)] {
                    command.args(
                        named(endpoints, variable).map(|file| [option, &file.value]).into_iter().flatten(),
                    );
                }
            }
            Setup::Sentinel => (host, port) = primary(&address)?,
            Setup::Cluster => {
                command.arg("-c");
            }
            Setup::Plain | Setup::Auth => {}
        }
        command.args(["-h", &host, "-p", &port.to_string()]);
        if let Some(password) = &address.password {
            // By environment: a password among the arguments makes redis-cli warn.
            command.env("REDISCLI_AUTH", password);
        }
        if let Some(user) = &address.user {
            command.args(["--user", user]);
        }
        output_with_input(&mut command, input)
    }
}

fn named<'a>(endpoints: &'a [Endpoint], variable: &str) -> Option<&'a Endpoint> {
    endpoints.iter().find(|endpoint| endpoint.variable == variable)
}

/// Waits, as long as is reasonable, until the primary has a replica that follows it.
fn in_step(primary: u16) {
    let mut connection = None;
    let _ = retry_for(Duration::from_secs(15), || {
        // One connection for all the asking: each would block a port for a minute.
        if connection.is_none() {
            connection = Some(Resp::connect("127.0.0.1", primary)?);
        }
        let Some(redis) = &mut connection else { bail!("no connection") };
        let info = redis.call(&["INFO", "replication"])?;
        if info.contains("state=online") { Ok(()) } else { bail!("no replica is in step") }
    });
}

/// Where the sentinels say that the primary is.
fn primary(address: &Address) -> Result<(String, u16)> {
    let (host, port) = address.first()?;
    let answer = Resp::connect(host, port)?.call(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &address.path])?;
    let Some((host, port)) = answer.split_once('\n') else { bail!("no primary: {answer}") };
    Ok((host.to_owned(), port.parse().context(|| format!("the primary's port {port}"))?))
}

fn version(info: &str) -> Result<String> {
    match info.lines().find_map(|line| line.trim().strip_prefix("redis_version:")) {
        Some(version) => Ok(version.to_owned()),
        None => bail!("no version in {info}"),
    }
}

fn program(cache: &Path, name: &str) -> Result<Command> {
    if let Some(found) = find_program(name) {
        return Ok(Command::new(found));
    }
    let Some(unpacked) = Unpacked::find(cache, "redis") else { bail!("{name} is not on this machine") };
    let mut command = Command::new(unpacked.path("usr/bin").join(name));
    unpacked.libraries(&mut command);
    Ok(command)
}

/// What all servers share: durable as a queue has to be, and never losing messages to eviction.
fn config(run: &Run, data: &str, port: u16) -> Result<String> {
    Ok(format!(
        "bind 127.0.0.1\nport {port}\ndir \"{}\"\nsave \"\"\nappendonly yes\nappendfsync always\n\
         maxmemory-policy noeviction\nrepl-diskless-sync-delay 0\n",
        run.folder(data)?.display()
    ))
}
