//! RabbitMQ with its management API.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::certificates;
use super::net::{Address, connect, http, json_text};
use super::packages::Unpacked;
use super::{Broker, Endpoint};
use crate::error::{Context, Result, bail};
use crate::process::{Run, Service, find_program};

pub struct RabbitMq {
    name: &'static str,
    /// Where the AMQP port lies; those of management, distribution and the port mapper follow it.
    port: u16,
    /// The suite of a newer version, which runs in a root of its own; `None`: the system's.
    suite: Option<&'static str>,
}

pub const RABBITMQ: RabbitMq = RabbitMq { name: "rabbitmq", port: 17672, suite: None };
pub const RABBITMQ_4_0: RabbitMq = RabbitMq { name: "rabbitmq-4.0", port: 17772, suite: Some("trixie") };
pub const RABBITMQ_4_3: RabbitMq = RabbitMq { name: "rabbitmq-4.3", port: 17872, suite: Some("forky") };

impl RabbitMq {
    fn management_port(&self) -> u16 {
        self.port + 1
    }

    fn distribution_port(&self) -> u16 {
        self.port + 2
    }

    /// The Erlang port mapper's: with one of our own, other Erlang programs of this machine are none of our business.
    fn epmd_port(&self) -> u16 {
        self.port + 3
    }

    /// The system's own version has one more port, for AMQP over TLS.
    fn tls_port(&self) -> Option<u16> {
        self.suite.is_none().then_some(self.port + 4)
    }
}

impl Broker for RabbitMq {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_default(&self) -> bool {
        self.suite.is_none()
    }

    fn in_compose(&self) -> bool {
        self.suite.is_none()
    }

    /// Its management too.
    fn contained(&self) -> usize {
        2
    }

    fn endpoints(&self, run: &Run) -> Vec<Endpoint> {
        let mut endpoints = vec![
            Endpoint {
                variable: "BUQUEUE_TEST_RABBITMQ",
                value: format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port),
            },
            Endpoint {
                variable: "BUQUEUE_TEST_RABBITMQ_MANAGEMENT",
                value: format!("http://guest:guest@127.0.0.1:{}", self.management_port()),
            },
        ];
        if let Some(port) = self.tls_port() {
            endpoints.push(Endpoint {
                variable: "BUQUEUE_TEST_RABBITMQ_TLS",
                value: format!("amqps://guest:guest@127.0.0.1:{port}/%2f"),
            });
            endpoints.push(Endpoint {
                variable: "BUQUEUE_TEST_RABBITMQ_MTLS",
                value: format!("amqps://127.0.0.1:{port}/%2f?auth_mechanism=external"),
            });
            for (variable, name) in [
                ("BUQUEUE_TEST_RABBITMQ_TLS_CA", "ca.crt"),
                ("BUQUEUE_TEST_RABBITMQ_TLS_CLIENT_CERT", "client.crt"),
                ("BUQUEUE_TEST_RABBITMQ_TLS_CLIENT_KEY", "client.key"),
            ] {
                endpoints.push(Endpoint { variable, value: run.path(name).display().to_string() });
            }
        }
        endpoints
    }

    fn install(&self, cache: &Path) -> Result<()> {
        if let Some(suite) = self.suite {
            Unpacked::root_of_suite(cache, self.name, suite, &["rabbitmq-server"])?;
        } else if installed().is_none() {
            Unpacked::of_system(cache, "rabbitmq", &["rabbitmq-server"])?;
        }
        Ok(())
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        // What the server reads and writes lies in its own root, where it has one.
        let root =
            self.suite.and_then(|_| Unpacked::find(cache, self.name)).map(|unpacked| unpacked.path(""));
        let inside = Run::new(match &root {
            Some(root) => root.join("var/tmp/buqueue"),
            None => run.dir.clone(),
        });
        if root.is_some() && !run.path("kept").exists() {
            // The record of a run that was wiped takes its data with it.
            let _ = fs::remove_dir_all(&inside.dir);
            run.write("kept", "")?;
        }
        inside.create()?;
        let mut config = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\n\
             management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\n",
            self.port,
            self.management_port()
        );
        let mut plugins = "rabbitmq_management".to_owned();
        if let Some(port) = self.tls_port() {
            certificates::make(run)?;
            let file = |name| run.path(name).display().to_string();
            // Who shows a certificate may log in by it; the others by a password.
            config.push_str(&format!(
                "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
                 ssl_options.cacertfile = {}\nssl_options.verify = verify_peer\n\
                 ssl_options.fail_if_no_peer_cert = false\nssl_cert_login_from = common_name\n\
                 auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = AMQPLAIN\nauth_mechanisms.3 = EXTERNAL\n\
                 load_definitions = {}\n",
                file("server.crt"),
                file("server.key"),
                file("ca.crt"),
                run.write("definitions.json", &definitions())?.display()
            ));
            plugins.push_str(",rabbitmq_auth_mechanism_ssl");
        }
        inside.write("rabbitmq.conf", &config)?;
        inside.write("enabled_plugins", &format!("[{plugins}].\n"))?;
        // A dead letter whose exchange was not there yet while the broker started is tried again after this; the
        // default is three minutes.
        inside.write(
            "advanced.config",
            "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].\n",
        )?;
        let seen = |path: PathBuf| match &root {
            Some(root) => Path::new("/").join(path.strip_prefix(root).unwrap_or(&path)),
            None => path,
        };
        let environment = |command: &mut Command| -> Result<()> {
            command
                .current_dir(&inside.dir)
                .env("HOME", seen(inside.dir.clone()))
                .env("LANG", "C.UTF-8")
                .env("RABBITMQ_NODENAME", "buqueue@localhost")
                .env("RABBITMQ_CONFIG_FILE", seen(inside.path("rabbitmq")))
                .env("RABBITMQ_ADVANCED_CONFIG_FILE", seen(inside.path("advanced.config")))
                .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", seen(inside.path("enabled_plugins")))
                .env("RABBITMQ_MNESIA_BASE", seen(inside.folder("data")?))
                .env("RABBITMQ_LOG_BASE", seen(inside.folder("log")?))
                .env("RABBITMQ_LOGS", "-")
                .env("RABBITMQ_PID_FILE", seen(inside.path("beam")))
                .env("RABBITMQ_DIST_PORT", self.distribution_port().to_string())
                .env("ERL_EPMD_ADDRESS", "127.0.0.1")
                .env("ERL_EPMD_PORT", self.epmd_port().to_string())
                .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
                // The script then becomes the server, instead of waiting for it as its parent:
                // the pid that is remembered, signalled and killed is the server's.
                .env("RUNNING_UNDER_SYSTEMD", "true");
            Ok(())
        };
        let (mut mapper, mut server) = match installed().filter(|_| root.is_none()) {
            _ if root.is_some() => {
                let entering = |program: &str| {
                    // The server reads `/proc`. In a mount namespace of its own, which ends with it; every step
                    // becomes the next, so that the pid stays.
                    let mut command = Command::new("unshare");
                    command.args(["--mount", "/bin/sh", "-c"]);
                    command.arg("mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"");
                    command.args(root.iter()).arg(program);
                    // The system's own may have folders that are not there.
                    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
                    command
                };
                (entering("/usr/bin/epmd"), entering("/usr/lib/rabbitmq/bin/rabbitmq-server"))
            }
            Some(server) => {
                (Command::new(find_program("epmd").unwrap_or("epmd".into())), Command::new(server))
            }
            None => unpacked(cache)?,
        };
        environment(&mut mapper)?;
        environment(&mut server)?;
        Ok(vec![
            // The server would start one by itself, as a daemon that outlives it and that nobody remembers.
            Service { name: "epmd", command: mapper, ports: vec![self.epmd_port()] },
            Service {
                name: "rabbitmq",
                command: server,
                ports: [self.port, self.management_port(), self.distribution_port()]
                    .into_iter()
                    .chain(self.tls_port())
                    .collect(),
            },
        ])
    }

    fn probe(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<String> {
        let [endpoint, others @ ..] = endpoints else { bail!("no endpoint") };
        let version = greeting(&Address::parse(&endpoint.value, 5672)?)?;
        if let Some(management) = others.first() {
            let (status, body) =
                http(&Address::parse(&management.value, 15672)?, "GET", "/api/overview", &[], "")?;
            if status != 200 {
                bail!("the management API says {status}: {body}");
            }
        }
        Ok(version)
    }

    fn prove(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<Vec<String>> {
        let Some(management) = endpoints.get(1) else { bail!("BUQUEUE_TEST_RABBITMQ_MANAGEMENT is not set") };
        let address = Address::parse(&management.value, 15672)?;
        let mut lines = Vec::new();
        let mut call = |method: &str, path: &str, body: &str| -> Result<String> {
            let (status, answer) =
                http(&address, method, path, &[("Content-Type", "application/json")], body)?;
            lines.push(format!("{method} {path} {body} -> {status} {answer}"));
            if status >= 300 {
                bail!("{method} {path} says {status}: {answer}");
            }
            Ok(answer)
        };
        let queue = "/api/queues/%2f/buqueue-prove";
        let body = "hello from rabbitmq";
        call("PUT", queue, "{\"durable\":true,\"arguments\":{\"x-queue-type\":\"quorum\"}}")?;
        call(
            "POST",
            "/api/exchanges/%2f/amq.default/publish",
            &format!(
                "{{\"routing_key\":\"buqueue-prove\",\"payload\":\"{body}\",\"payload_encoding\":\"string\",\
                 \"properties\":{{\"delivery_mode\":2}}}}"
            ),
        )?;
        let got = call(
            "POST",
            &format!("{queue}/get"),
            "{\"count\":1,\"ackmode\":\"ack_requeue_false\",\"encoding\":\"auto\"}",
        )?;
        call("DELETE", queue, "")?;
        if json_text(&got, "payload") != Some(body) {
            bail!("the message did not come back: {got}");
        }
        Ok(lines)
    }
}

/// The users: who is there by default, as nobody is where others are given; and the one that the client's certificate names.
fn definitions() -> String {
    let client = certificates::CLIENT;
    let permission =
        |user: &str| format!(r#"{{"user":"{user}","vhost":"/","configure":".*","write":".*","read":".*"}}"#);
    format!(
        r#"{{"vhosts":[{{"name":"/"}}],"users":[{{"name":"guest","password":"guest","tags":"administrator"}},{{"name":"{client}","password_hash":"","tags":""}}],"permissions":[{},{}]}}"#,
        permission("guest"),
        permission(client)
    )
}

/// The system's own server, by a script that does not change to another user as Debian's wrapper does.
fn installed() -> Option<PathBuf> {
    let debian = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server");
    if debian.is_file() { Some(debian) } else { find_program("rabbitmq-server") }
}

fn unpacked(cache: &Path) -> Result<(Command, Command)> {
    let Some(unpacked) = Unpacked::find(cache, "rabbitmq") else { bail!("no rabbitmq-server") };
    // Erlang's launcher knows only where its package would have been installed.
    let erlang = unpacked.path("usr/lib/erlang");
    let launcher = erlang.join("bin/erl");
    let text = fs::read_to_string(&launcher).context(|| format!("cannot read {}", launcher.display()))?;
    let corrected: String = text
        .lines()
        .map(|line| match line.split_once("ROOTDIR=/") {
            Some((before, _)) => format!("{before}ROOTDIR={}\n", erlang.display()),
            None => format!("{line}\n"),
        })
        .collect();
    if corrected != text {
        fs::write(&launcher, corrected)?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(erlang.join("bin")).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(folders).context(|| "the PATH".to_owned())?;
    let command = |program: &str| {
        let mut command = Command::new(unpacked.path(program));
        unpacked.libraries(&mut command);
        command.env("PATH", &path);
        command
    };
    Ok((command("usr/lib/erlang/bin/epmd"), command("usr/lib/rabbitmq/bin/rabbitmq-server")))
}

/// Opens an AMQP 0-9-1 connection as far as the server's greeting, and takes the version from that.
fn greeting(address: &Address) -> Result<String> {
    let (host, port) = address.first()?;
    let mut stream = connect(host, port)?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let mut header = [0; 7];
    stream.read_exact(&mut header)?;
    let length = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
    if header[0] != 1 || length > 65_536 {
        bail!("no AMQP 0-9-1 greeting");
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload)?;
    // A table entry: the length and text of the name, an S, the length and text of the value.
    let name = b"\x07versionS";
    let Some(at) = payload.windows(name.len()).position(|window| window == name) else {
        return Ok("(amqp)".to_owned());
    };
    let value = &payload[at + name.len()..];
    let [_, _, _, length, text @ ..] = value else { bail!("the greeting is cut short") };
    Ok(String::from_utf8_lossy(text.get(..usize::from(*length)).unwrap_or_default()).into_owned())
}
