//! NATS with JetStream, new enough (2.12) for scheduled messages.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::certificates;
use super::net::{Address, connect, json_text};
use super::packages::Unpacked;
use super::{Broker, Endpoint, installing};
use crate::error::{Context, Error, Result, bail};
use crate::process::{Run, Service, find_program, output};

pub struct Nats {
    name: &'static str,
    port: u16,
    monitor_port: u16,
    setup: Setup,
}

enum Setup {
    /// New enough for scheduled messages.
    Current,
    /// Of an older suite, without them.
    Older { suite: &'static str },
    /// The current one, with users; with a token; with TLS; with accounts; and with TLS that asks for a certificate.
    Auth,
}

pub const NATS: Nats = Nats { name: "nats", port: 14222, monitor_port: 18222, setup: Setup::Current };
pub const NATS_2_10: Nats =
    Nats { name: "nats-2.10", port: 14322, monitor_port: 18322, setup: Setup::Older { suite: "trixie" } };
pub const NATS_2_9: Nats =
    Nats { name: "nats-2.9", port: 14323, monitor_port: 18323, setup: Setup::Older { suite: "bookworm" } };
pub const NATS_AUTH: Nats = Nats { name: "nats-auth", port: 14422, monitor_port: 18422, setup: Setup::Auth };

const OLDEST: (u32, u32) = (2, 12);
/// Whoever knows the token.
const TOKEN: &str = "authorization { token: token }\n";
/// One who may do everything, and one who may not create.
const USERS: &str = r#"authorization {
  users: [
    { user: user, password: password },
    { user: limited, password: password, permissions: {
        publish: { deny: ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>", "$JS.API.CONSUMER.DURABLE.CREATE.>", "$JS.API.CONSUMER.CREATE.>"] }
    } }
  ]
}
"#;
/// Users who show a JWT that their account has signed.
const ACCOUNTS: &str = include_str!("nats-accounts/accounts.conf");
const CREDENTIALS: &str = include_str!("nats-accounts/user.creds");
/// For machines that are no Debian but have Go.
const MODULE: &str = "github.com/nats-io/nats-server/v2@v2.12.0";

impl Broker for Nats {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_default(&self) -> bool {
        matches!(self.setup, Setup::Current)
    }

    fn in_compose(&self) -> bool {
        self.is_default()
    }

    fn endpoints(&self, run: &Run) -> Vec<Endpoint> {
        let endpoint = |variable, start: &str, at: u16| Endpoint {
            variable,
            value: format!("{start}127.0.0.1:{}", self.port + at),
        };
        let file = |variable, name| Endpoint { variable, value: run.path(name).display().to_string() };
        match self.setup {
            Setup::Current | Setup::Older { .. } => vec![endpoint("BUQUEUE_TEST_NATS", "nats://", 0)],
            Setup::Auth => vec![
                endpoint("BUQUEUE_TEST_NATS_AUTH", "nats://user:password@", 0),
                endpoint("BUQUEUE_TEST_NATS_LIMITED", "nats://limited:password@", 0),
                endpoint("BUQUEUE_TEST_NATS_TOKEN", "nats://token@", 1),
                endpoint("BUQUEUE_TEST_NATS_TLS", "tls://", 2),
                file("BUQUEUE_TEST_NATS_TLS_CA", "ca.crt"),
                endpoint("BUQUEUE_TEST_NATS_CREDS", "nats://", 3),
                file("BUQUEUE_TEST_NATS_CREDS_FILE", "user.creds"),
                endpoint("BUQUEUE_TEST_NATS_MTLS", "tls://", 4),
                file("BUQUEUE_TEST_NATS_TLS_CLIENT_CERT", "client.crt"),
                file("BUQUEUE_TEST_NATS_TLS_CLIENT_KEY", "client.key"),
            ],
        }
    }

    fn install(&self, cache: &Path) -> Result<()> {
        if let Setup::Older { suite } = self.setup {
            return Unpacked::of_suite(cache, self.name, suite, &["nats-server"]).map(drop);
        }
        if server(cache).is_some() {
            return Ok(());
        }
        // The testing suite's package needs nothing but a C library that any Debian of today has.
        let Err(error) =
            Unpacked::of_suite(cache, "nats", "forky", &["nats-server"]).and_then(|_| check(cache))
        else {
            return Ok(());
        };
        if find_program("go").is_none() {
            return Err(error);
        }
        installing(MODULE);
        let folder = cache.join("go");
        fs::create_dir_all(&folder)?;
        output(Command::new("go").args(["install", MODULE]).env("GOBIN", &folder))?;
        check(cache)
    }

    fn services(&self, cache: &Path, run: &Run) -> Result<Vec<Service>> {
        let program = match self.setup {
            Setup::Older { .. } => {
                Unpacked::find(cache, self.name).map(|unpacked| unpacked.path("usr/sbin/nats-server"))
            }
            Setup::Current | Setup::Auth => server(cache),
        };
        let Some(program) = program else { bail!("no nats-server") };
        let service = |name: &'static str, at: u16, users: &str| -> Result<Service> {
            let (port, monitor_port) = (self.port + at, self.monitor_port + at);
            let config = format!(
                "listen: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor_port}\nserver_name: {}-{at}\n\
                 jetstream {{ store_dir: \"{}\" }}\n{users}",
                self.name,
                run.folder(&format!("data-{name}"))?.display()
            );
            let mut command = Command::new(&program);
            command.arg("--config").arg(run.write(&format!("{name}.conf"), &config)?).current_dir(&run.dir);
            Ok(Service { name, command, ports: vec![port, monitor_port] })
        };
        match self.setup {
            Setup::Auth => {
                certificates::make(run)?;
                run.write("user.creds", CREDENTIALS)?;
                let file = |name| run.path(name).display().to_string();
                let tls = |more: &str| {
                    let (certificate, key) = (file("server.crt"), file("server.key"));
                    format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\"{more} }}\n")
                };
                let asking = format!(", ca_file: \"{}\", verify: true", file("ca.crt"));
                Ok(vec![
                    service("users", 0, USERS)?,
                    service("token", 1, TOKEN)?,
                    service("tls", 2, &tls(""))?,
                    service("accounts", 3, ACCOUNTS)?,
                    service("mutual", 4, &tls(&asking))?,
                ])
            }
            Setup::Current | Setup::Older { .. } => Ok(vec![service("nats", 0, "")?]),
        }
    }

    fn probe(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<String> {
        let mut client = Client::connect(endpoints)?;
        // The port opens before JetStream has read its data.
        client.api("INFO", "")?;
        Ok(client.version)
    }

    fn prove(&self, _cache: &Path, endpoints: &[Endpoint]) -> Result<Vec<String>> {
        let mut client = Client::connect(endpoints)?;
        let stream = "BUQUEUE_PROVE";
        let mut lines = Vec::new();
        let _ = client.api(&format!("STREAM.DELETE.{stream}"), "");
        client.api(
            &format!("STREAM.CREATE.{stream}"),
            &format!(
                "{{\"name\":\"{stream}\",\"subjects\":[\"buqueue.prove.>\"],\"storage\":\"file\",\
                 \"allow_msg_schedules\":true,\"allow_msg_ttl\":true}}"
            ),
        )?;
        client.api(
            &format!("CONSUMER.CREATE.{stream}.reader"),
            &format!(
                "{{\"stream_name\":\"{stream}\",\"config\":{{\"name\":\"reader\",\"durable_name\":\"reader\",\
                 \"ack_policy\":\"explicit\",\"filter_subjects\":[\"buqueue.prove.now\",\"buqueue.prove.later\"]}}}}"
            ),
        )?;
        let published = client.request("buqueue.prove.now", &[], "hello from nats")?;
        lines.push(format!("published to buqueue.prove.now, stream says {}", published.body));
        let received = client.next(stream)?;
        lines.push(format!("received on {}: {}", received.subject, received.body));
        if received.body != "hello from nats" {
            bail!("another message came back: {}", received.body);
        }
        client.publish(&received.reply, &[], "+ACK")?;

        if matches!(self.setup, Setup::Older { .. }) {
            client.api(&format!("STREAM.DELETE.{stream}"), "")?;
            return Ok(lines);
        }
        let due = SystemTime::now() + Duration::from_secs(1);
        let begin = Instant::now();
        let at = format!("@at {}", rfc3339(due));
        let headers = [("Nats-Schedule", at.as_str()), ("Nats-Schedule-Target", "buqueue.prove.later")];
        let published = client.request("buqueue.prove.schedule", &headers, "hello from the future")?;
        lines.push(format!("scheduled {at}, stream says {}", published.body));
        let received = client.next(stream)?;
        let waited = begin.elapsed();
        lines.push(format!(
            "received on {} after {:.3} s: {}",
            received.subject,
            waited.as_secs_f64(),
            received.body
        ));
        if received.subject != "buqueue.prove.later" || waited < Duration::from_millis(900) {
            bail!("the schedule was not kept: {}", lines.join("; "));
        }
        client.publish(&received.reply, &[], "+ACK")?;
        client.api(&format!("STREAM.DELETE.{stream}"), "")?;
        Ok(lines)
    }
}

/// The first server on this machine that is new enough.
fn server(cache: &Path) -> Option<PathBuf> {
    let unpacked = Unpacked::find(cache, "nats").map(|unpacked| unpacked.path("usr/sbin/nats-server"));
    [find_program("nats-server"), unpacked, Some(cache.join("go/nats-server"))]
        .into_iter()
        .flatten()
        .find(|program| program.is_file() && version_of(program).is_some_and(|version| version >= OLDEST))
}

fn check(cache: &Path) -> Result<()> {
    server(cache)
        .map(drop)
        .ok_or_else(|| Error::new("the nats-server that was found is too old or does not run"))
}

fn version_of(program: &Path) -> Option<(u32, u32)> {
    let text = output(Command::new(program).arg("--version")).ok()?;
    let mut numbers = text.trim().rsplit_once('v')?.1.split('.').map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

struct Message {
    subject: String,
    reply: String,
    body: String,
}

/// A connection that speaks the NATS text protocol.
struct Client {
    stream: BufReader<TcpStream>,
    version: String,
}

const INBOX: &str = "_INBOX.buqueue.xtask";

impl Client {
    fn connect(endpoints: &[Endpoint]) -> Result<Self> {
        let Some(endpoint) = endpoints.first() else { bail!("no endpoint") };
        let address = Address::parse(&endpoint.value, 4222)?;
        let (host, port) = address.first()?;
        let mut stream = BufReader::new(connect(host, port)?);
        let mut info = String::new();
        stream.read_line(&mut info)?;
        let Some(version) = json_text(&info, "version").filter(|_| info.starts_with("INFO ")) else {
            bail!("no NATS server: {info}")
        };
        let mut client = Self { version: version.to_owned(), stream };
        let credentials = match (&address.user, &address.password) {
            (Some(user), Some(password)) => format!(",\"user\":\"{user}\",\"pass\":\"{password}\""),
            (Some(token), None) => format!(",\"auth_token\":\"{token}\""),
            _ => String::new(),
        };
        client.write(&format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"lang\":\"rust\",\"version\":\"0\"\
             {credentials}}}\r\nSUB {INBOX} 1\r\n"
        ))?;
        Ok(client)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.stream.get_mut().write_all(text.as_bytes())?;
        Ok(())
    }

    fn publish(&mut self, subject: &str, headers: &[(&str, &str)], body: &str) -> Result<()> {
        self.send(subject, "", headers, body)
    }

    fn send(&mut self, subject: &str, reply: &str, headers: &[(&str, &str)], body: &str) -> Result<()> {
        if headers.is_empty() {
            return self.write(&format!("PUB {subject} {reply} {}\r\n{body}\r\n", body.len()));
        }
        let mut head = String::from("NATS/1.0\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let total = head.len() + body.len();
        self.write(&format!("HPUB {subject} {reply} {} {total}\r\n{head}{body}\r\n", head.len()))
    }

    /// Publishes and waits for the answer.
    fn request(&mut self, subject: &str, headers: &[(&str, &str)], body: &str) -> Result<Message> {
        self.send(subject, INBOX, headers, body)?;
        let answer = self.receive()?;
        if answer.body.contains("\"error\":") {
            bail!("{subject}: {}", answer.body);
        }
        Ok(answer)
    }

    fn api(&mut self, call: &str, body: &str) -> Result<Message> {
        self.request(&format!("$JS.API.{call}"), &[], body)
    }

    fn next(&mut self, stream: &str) -> Result<Message> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.reader");
        self.send(&subject, INBOX, &[], "{\"batch\":1,\"expires\":4000000000}")?;
        self.receive()
    }

    fn receive(&mut self) -> Result<Message> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).context(|| "no answer".to_owned())? == 0 {
                bail!("the connection was closed");
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["PING"] => self.write("PONG\r\n")?,
                ["-ERR", ..] => bail!("{}", line.trim()),
                ["MSG", subject, _, ref rest @ ..] => {
                    let (reply, sizes) = if rest.len() > 1 { (rest[0], &rest[1..]) } else { ("", rest) };
                    return self.message(subject, reply, "0", sizes.first().copied().unwrap_or_default());
                }
                ["HMSG", subject, _, ref rest @ ..] => {
                    let (reply, sizes) = if rest.len() > 2 { (rest[0], &rest[1..]) } else { ("", rest) };
                    let [head, total] = sizes[..] else { bail!("not a message: {line}") };
                    return self.message(subject, reply, head, total);
                }
                _ => {}
            }
        }
    }

    fn message(&mut self, subject: &str, reply: &str, head: &str, total: &str) -> Result<Message> {
        let head: usize = head.parse().context(|| "the size of a message's headers".to_owned())?;
        let total: usize = total.parse().context(|| "the size of a message".to_owned())?;
        let mut bytes = vec![0; total + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(total);
        let headers = String::from_utf8_lossy(&bytes[..head]).into_owned();
        // A status instead of a message: nobody listens, or nothing came in time.
        if let Some(status) = headers.lines().next().and_then(|line| line.strip_prefix("NATS/1.0 ")) {
            bail!("{status}");
        }
        let body = String::from_utf8_lossy(&bytes[head..]).into_owned();
        Ok(Message { subject: subject.to_owned(), reply: reply.to_owned(), body })
    }
}

/// A time as NATS wants it, such as `2030-01-31T12:00:00.123Z`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    // Days since the first of March of the year 0, where leap days come last in their year.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_calendar_dates() {
        let at = |seconds, millis: u32| rfc3339(UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.001Z");
        assert_eq!(at(1_735_689_599, 999), "2024-12-31T23:59:59.999Z");
        assert_eq!(at(1_740_787_200, 0), "2025-03-01T00:00:00.000Z");
    }
}
