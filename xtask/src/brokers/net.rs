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

    pub fn connect(&self) -> Result<TcpStream> {
        let (host, port) = self.first()?;
        connect(host, port)
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
