//! As much of each wire protocol as it takes to ask "are you ready?", on the standard library alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::error::{Context, Error, Result, bail};

const PATIENCE: Duration = Duration::from_secs(5);

/// An endpoint taken apart: `scheme://user:password@host:port,host:port/path`.
#[derive(Debug, Default)]
pub struct Address {
    pub user: Option<String>,
    pub password: Option<String>,
    pub hosts: Vec<(String, u16)>,
    pub path: String,
}

impl Address {
    /// `port` is for endpoints that leave it out.
    pub fn parse(endpoint: &str, port: u16) -> Result<Self> {
        let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let mut address = Self { path: path.to_owned(), ..Self::default() };
        if let Some(credentials) = credentials {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            address.user = Some(user.to_owned()).filter(|user| !user.is_empty());
            address.password = Some(password.to_owned()).filter(|password| !password.is_empty());
        }
        for host in hosts.split(',') {
            let (host, port) = match host.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().context(|| format!("the port of {endpoint}"))?),
                None => (host, port),
            };
            address.hosts.push((host.trim_matches(['[', ']']).to_owned(), port));
        }
        Ok(address)
    }

    pub fn first(&self) -> Result<(&str, u16)> {
        self.hosts.first().map(|(host, port)| (host.as_str(), *port)).ok_or_else(|| Error::new("no host"))
    }
}

/// Connects with a time limit on the connection and on every later read and write.
pub fn connect(host: &str, port: u16) -> Result<TcpStream> {
    let mut last = Error::new(format!("{host} has no address"));
    for address in (host, port).to_socket_addrs().context(|| format!("{host}:{port}"))? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = Error::new(format!("{host}:{port}: {error}")),
        }
    }
    Err(last)
}

/// A connection that speaks RESP2.
pub struct Resp {
    stream: BufReader<TcpStream>,
}

impl Resp {
    pub fn connect(host: &str, port: u16) -> Result<Self> {
        Ok(Self { stream: BufReader::new(connect(host, port)?) })
    }

    /// Sends a command and returns its reply as text, one line for each element.
    pub fn call(&mut self, command: &[&str]) -> Result<String> {
        let mut request = format!("*{}\r\n", command.len());
        for part in command {
            request.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut lines = Vec::new();
        self.reply(&mut lines)?;
        Ok(lines.join("\n"))
    }

    fn reply(&mut self, lines: &mut Vec<String>) -> Result<()> {
        let mut header = String::new();
        if self.stream.read_line(&mut header)? == 0 {
            bail!("the connection was closed");
        }
        let header = header.trim_end();
        let rest = header.get(1..).unwrap_or_default();
        match header.chars().next() {
            Some('+' | ':') => lines.push(rest.to_owned()),
            Some('-') => bail!("{rest}"),
            Some('$') => {
                if let Ok(length) = rest.parse::<usize>() {
                    let mut bytes = vec![0; length + 2];
                    self.stream.read_exact(&mut bytes)?;
                    bytes.truncate(length);
                    lines.push(String::from_utf8_lossy(&bytes).into_owned());
                } else {
                    lines.push("(nil)".to_owned());
                }
            }
            Some('*') => {
                for _ in 0..rest.parse::<usize>().unwrap_or(0) {
                    self.reply(lines)?;
                }
            }
            _ => bail!("not a RESP reply: {header}"),
        }
        Ok(())
    }
}

/// One HTTP request; returns the status and the body.
pub fn http(
    address: &Address,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<(u16, String)> {
    let (host, port) = address.first()?;
    let mut stream = connect(host, port)?;
    // Version 1.0: the answer ends with the connection, never in chunks.
    let mut request =
        format!("{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if let (Some(user), Some(password)) = (&address.user, &address.password) {
        request.push_str(&format!(
            "Authorization: Basic {}\r\n",
            base64(format!("{user}:{password}").as_bytes())
        ));
    }
    request.push_str("\r\n");
    request.push_str(body);
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let answer = String::from_utf8_lossy(&bytes);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("not an HTTP answer: {answer}") };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let Some(status) = status else { bail!("not an HTTP answer: {head}") };
    Ok((status, body.to_owned()))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_usize, |group, byte| group << 8 | usize::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            text.push(if place <= chunk.len() {
                char::from(LETTERS[group >> (18 - 6 * place) & 63])
            } else {
                '='
            });
        }
    }
    text
}

/// The text of a field in a JSON answer: enough for the flat answers that brokers give.
pub fn json_text<'a>(json: &'a str, field: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{field}\""))?;
    rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_taken_apart() -> Result<()> {
        let address = Address::parse("redis://:s3cret@127.0.0.1:16381", 6379)?;
        assert_eq!(address.user, None);
        assert_eq!(address.password.as_deref(), Some("s3cret"));
        assert_eq!(address.first()?, ("127.0.0.1", 16381));

        let address = Address::parse("amqp://guest:guest@rabbit/%2f", 5672)?;
        assert_eq!(address.user.as_deref(), Some("guest"));
        assert_eq!(address.hosts, [("rabbit".to_owned(), 5672)]);
        assert_eq!(address.path, "%2f");

        let address = Address::parse("one:1,two:2", 9092)?;
        assert_eq!(address.hosts, [("one".to_owned(), 1), ("two".to_owned(), 2)]);

        assert_eq!(Address::parse("http://[::1]:19324", 80)?.first()?, ("::1", 19324));
        assert!(Address::parse("nats://host:port", 4222).is_err());
        Ok(())
    }

    #[test]
    fn base64_pads_to_groups_of_four() {
        let encoded: Vec<String> =
            ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())).to_vec();
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }

    #[test]
    fn a_field_of_a_json_answer_is_found() {
        let json = r#"{"size": 3, "version" : "2.12.0", "name":"x"}"#;
        assert_eq!(json_text(json, "version"), Some("2.12.0"));
        assert_eq!(json_text(json, "name"), Some("x"));
        assert_eq!(json_text(json, "size"), None);
        assert_eq!(json_text(json, "missing"), None);
    }
}
