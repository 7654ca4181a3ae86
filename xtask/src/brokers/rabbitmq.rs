//! RabbitMQ with its management API.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::net::{Address, connect, http, json_text};
use super::packages::Unpacked;
use super::{Broker, Endpoint};
use crate::error::{Context, Result, bail};
use crate::process::{Run, Service, find_program};

pub struct RabbitMq;

pub const RABBITMQ: RabbitMq = RabbitMq;

const PORT: u16 = 17672;
const MANAGEMENT_PORT: u16 = 17673;
const DISTRIBUTION_PORT: u16 = 17674;
/// The Erlang port mapper's: with one of our own, other Erlang programs of this machine are none of our business.
const EPMD_PORT: u16 = 17675;

impl Broker for RabbitMq {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn endpoints(&self, _run: &Run) -> Vec<Endpoint> {
        vec![
            Endpoint {
                variable: "BUQUEUE_TEST_RABBITMQ",
                value: format!("amqp://guest:guest@127.0.0.1:{PORT}/%2f"),
            },
            Endpoint {
                variable: "BUQUEUE_TEST_RABBITMQ_MANAGEMENT",
                value: format!("http://guest:guest@127.0.0.1:{MANAGEMENT_PORT}"),
            },
        ]
    }

    fn install(&self, cache: &Path) -> Result<()> {
        if installed().is_none() {
            Unpacked::of_system(cache, "rabbitmq", &["rabbitmq-server"])?;
        }
        Ok(())
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{PORT}\n\
             management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {MANAGEMENT_PORT}\n"
        );
        run.write("rabbitmq.conf", &config)?;
        run.write("enabled_plugins", "[rabbitmq_management].\n")?;
        let environment = |command: &mut Command| -> Result<()> {
            command
                .current_dir(&run.dir)
                .env("HOME", &run.dir)
                .env("LANG", "C.UTF-8")
                .env("RABBITMQ_NODENAME", "buqueue@localhost")
                .env("RABBITMQ_CONFIG_FILE", run.path("rabbitmq"))
                .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", run.path("enabled_plugins"))
                .env("RABBITMQ_MNESIA_BASE", run.folder("data")?)
                .env("RABBITMQ_LOG_BASE", run.folder("log")?)
                .env("RABBITMQ_LOGS", "-")
                .env("RABBITMQ_PID_FILE", run.path("beam"))
                .env("RABBITMQ_DIST_PORT", DISTRIBUTION_PORT.to_string())
                .env("ERL_EPMD_ADDRESS", "127.0.0.1")
                .env("ERL_EPMD_PORT", EPMD_PORT.to_string())
                .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
                // The script then becomes the server, instead of waiting for it as its parent:
                // the pid that is remembered, signalled and killed is the server's.
                .env("RUNNING_UNDER_SYSTEMD", "true");
            Ok(())
        };
        let (mut mapper, mut server) = match installed() {
            Some(server) => {
                (Command::new(find_program("epmd").unwrap_or("epmd".into())), Command::new(server))
            }
            None => unpacked(cache)?,
        };
        environment(&mut mapper)?;
        environment(&mut server)?;
        Ok(vec![
            // The server would start one by itself, as a daemon that outlives it and that nobody remembers.
            Service { name: "epmd", command: mapper, ports: vec![EPMD_PORT] },
            Service {
                name: "rabbitmq",
                command: server,
                ports: vec![PORT, MANAGEMENT_PORT, DISTRIBUTION_PORT],
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
