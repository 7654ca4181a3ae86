//! The text that Prometheus reads: served, and read back.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use prometheus::{Registry, TextEncoder};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::Result;

const DEFAULT: &str = "127.0.0.1:9464";

/// The address of `METRICS_ADDR`, or else the default one. Of these two only the default may be replaced by another,
/// with a note that it was.
pub(crate) async fn listen() -> Result<(TcpListener, &'static str)> {
    if let Ok(address) = std::env::var("METRICS_ADDR") {
        let listener = TcpListener::bind(&address).await;
        return Ok((listener.map_err(|error| format!("METRICS_ADDR: {address:?}: {error}"))?, ""));
    }
    match TcpListener::bind(DEFAULT).await {
        Ok(listener) => Ok((listener, "")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            Ok((TcpListener::bind("127.0.0.1:0").await?, " (another port, as 9464 is taken)"))
        }
        Err(error) => Err(format!("{DEFAULT}: {error}").into()),
    }
}

/// Answers until it is dropped. One path and one method need no framework.
pub(crate) async fn serve(listener: TcpListener, registry: Registry) {
    loop {
        // What fails here fails again at once, as for want of file descriptors.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let registry = registry.clone();
        // Nobody is left to be told when the other side is gone.
        tokio::spawn(async move { timeout(Duration::from_secs(5), answer(stream, &registry)).await });
    }
}

async fn answer(mut stream: TcpStream, registry: &Registry) -> Result<()> {
    // To the empty line, or a client that still writes sees its connection reset.
    let mut request = BufReader::new((&mut stream).take(8 * 1024));
    let mut first = String::new();
    request.read_line(&mut first).await?;
    let mut line = String::new();
    while request.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let (status, body) = match first.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", path] if path.split('?').next() == Some("/metrics") => ("200 OK", text(registry)?),
        _ => ("404 Not Found", "see /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len(),
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// All there is now.
pub(crate) fn text(registry: &Registry) -> Result<String> {
    Ok(TextEncoder::new().encode_to_string(&registry.gather())?)
}

/// One line of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

pub(crate) fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, mut rest) = series.split_once('{').unwrap_or((series, ""));
    let mut labels = BTreeMap::new();
    // No value here has a quotation mark in it, which would be escaped.
    while let Some((label, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"')?;
        labels.insert(label.trim_start_matches(',').to_owned(), value.to_owned());
        rest = after;
    }
    Some(Sample { name: name.to_owned(), labels, value: value.parse().ok()? })
}

/// The sum of all samples of this name whose labels `fit`.
pub(crate) fn sum(samples: &[Sample], name: &str, fit: impl Fn(&Sample) -> bool) -> u64 {
    let sum: f64 =
        samples.iter().filter(|sample| sample.name == name && fit(sample)).map(|sample| sample.value).sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what is cast is a count")]
    let count = if sum < 0.0 { u64::MAX } else { sum.round() as u64 };
    count
}
