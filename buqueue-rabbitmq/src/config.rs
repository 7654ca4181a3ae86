//! The user's configuration, and what the builder adds to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use buqueue_core::tls::TlsFiles;
use buqueue_core::{BuqueueError, ErrorKind, QueueBuilder, Result};
use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::RabbitMqBackend;

/// Names and keys of AMQP 0-9-1 are *short strings*.
pub(crate) const SHORT_MAX: usize = 255;

/// Which broker, which queue, and how it is reached.
///
/// With the feature `serde` it can be read from a file, where durations are as in `30s` or `1h30m`. It cannot be written: it
/// holds credentials, and what can be written gets logged.
#[derive(Clone, PartialEq, Eq)]
pub struct RabbitMqConfig {
    /// Where the broker is: `amqp://user:password@host:port/vhost`, or `amqps://…` over TLS. The vhost `/` is written
    /// `%2F`. One host, which is none of IPv6. `amqps://host/vhost?auth_mechanism=external` logs in by the certificate that
    /// [`client_certificate`](RabbitMqBuilderExt::client_certificate) shows. Default:
    /// `amqp://guest:guest@127.0.0.1:5672/%2F`.
    pub url: String,
    /// The queue that is consumed; and, without an exchange, published to. Declared when it does not exist; compared
    /// when it does. Up to 255 bytes, not beginning with `amq.`. Default: `buqueue`.
    pub queue: String,
    /// Quorum queues are replicated, and the broker counts their deliveries. On classic queues buqueue counts, at the
    /// cost of one more publish for every failed attempt. Default: [`QueueType::Quorum`].
    pub queue_type: QueueType,
    /// Whether the queue survives a restart of the broker. Quorum queues always do, whatever is said here. Default: yes.
    pub durable: bool,
    /// The exchange that is published to, and how the queue is bound to it; `None` publishes to the queue itself. Default:
    /// `None`.
    pub exchange: Option<ExchangeConfig>,
    /// How long connecting may take until it fails with `ConnectionLost`. At least 1 ms. Default: 10 s.
    pub connection_timeout: Duration,
    /// The most messages that a consumer holds unsettled. It works up to that while its handlers are fast. At least 1.
    /// Default: 200.
    pub prefetch_count: u16,
}

impl Default for RabbitMqConfig {
    /// The quorum queue `buqueue` on the local broker, without an exchange; 10 s to connect, at most 200 messages
    /// unsettled.
    fn default() -> Self {
        Self {
            url: "amqp://guest:guest@127.0.0.1:5672/%2F".to_owned(),
            queue: "buqueue".to_owned(),
            queue_type: QueueType::Quorum,
            durable: true,
            exchange: None,
            connection_timeout: Duration::from_secs(10),
            prefetch_count: 200,
        }
    }
}

/// User and password in the URL are not shown.
impl fmt::Debug for RabbitMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqConfig")
            .field("url", &redact(&self.url))
            .field("queue", &self.queue)
            .field("queue_type", &self.queue_type)
            .field("durable", &self.durable)
            .field("exchange", &self.exchange)
            .field("connection_timeout", &self.connection_timeout)
            .field("prefetch_count", &self.prefetch_count)
            .finish()
    }
}

/// How the broker keeps a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum QueueType {
    /// On one node.
    Classic,
    /// Replicated by consensus.
    #[default]
    Quorum,
}

impl QueueType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }
}

/// The exchange, and how the queue is bound to it.
///
/// The struct is closed: it has exactly these fields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
pub struct ExchangeConfig {
    /// The exchange's name, up to 255 bytes, not beginning with `amq.`. Declared when it does not exist; compared when it
    /// does.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Which messages come to the queue: a pattern for `Topic`, the very key for `Direct`; of no meaning for `Fanout`.
    /// For `Headers`, pairs as in `x-match=any,region=eu`; `x-match` is `all` where it is not given. Up to 255 bytes.
    pub binding_key: String,
    /// Whether the exchange survives a restart of the broker.
    pub durable: bool,
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum ExchangeKind {
    /// By the very key.
    Direct,
    /// By a pattern: `*` is one word, `#` any number of them.
    Topic,
    /// To all queues that are bound.
    Fanout,
    /// By headers.
    Headers,
}

impl ExchangeKind {
    pub(crate) fn native(self) -> lapin::ExchangeKind {
        match self {
            Self::Direct => lapin::ExchangeKind::Direct,
            Self::Topic => lapin::ExchangeKind::Topic,
            Self::Fanout => lapin::ExchangeKind::Fanout,
            Self::Headers => lapin::ExchangeKind::Headers,
        }
    }
}

/// [`RabbitMqConfig`] and what [`RabbitMqBuilderExt`] adds to it.
#[derive(Clone)]
pub struct RabbitMqOptions {
    pub(crate) config: RabbitMqConfig,
    pub(crate) request_timeout: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) tls: TlsFiles,
    pub(crate) max_payload: usize,
    pub(crate) delay_prefix: String,
}

impl fmt::Debug for RabbitMqOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqOptions")
            .field("config", &self.config)
            .field("request_timeout", &self.request_timeout)
            .field("heartbeat", &self.heartbeat)
            .field("tls", &self.tls)
            .field("max_payload", &self.max_payload)
            .field("delay_prefix", &self.delay_prefix)
            .finish()
    }
}

impl RabbitMqOptions {
    pub(crate) fn new(config: RabbitMqConfig) -> Self {
        Self {
            config,
            request_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(4),
            tls: TlsFiles::default(),
            max_payload: 16 * 1024 * 1024,
            delay_prefix: "buqueue".to_owned(),
        }
    }

    /// Whether the queue outlives the broker.
    pub(crate) fn is_durable(&self) -> bool {
        self.config.durable || self.config.queue_type == QueueType::Quorum
    }

    /// Checks what can be checked without the broker.
    pub(crate) fn validate(&self) -> Result<AMQPUri> {
        let config = &self.config;
        let mut uri = parse(&config.url)?;
        check_name("queue", &config.queue)?;
        check_name("delay_prefix", &self.delay_prefix)?;
        if self.delay_prefix.len() > 100 {
            return Err(invalid("delay_prefix: must be at most 100 bytes"));
        }
        if let Some(exchange) = &config.exchange {
            check_name("exchange.name", &exchange.name)?;
            check_short("exchange.binding_key", &exchange.binding_key)?;
            if exchange.kind == ExchangeKind::Headers {
                binding_arguments(&exchange.binding_key)?;
            }
        }
        if config.prefetch_count == 0 {
            return Err(invalid("prefetch_count: must be at least 1, is 0"));
        }
        for (field, value) in
            [("connection_timeout", config.connection_timeout), ("request_timeout", self.request_timeout)]
        {
            if value < Duration::from_millis(1) {
                return Err(invalid(format!("{field}: must be at least 1 ms, is {value:?}")));
            }
        }
        let heartbeat = u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX);
        if heartbeat == 0 {
            return Err(invalid(format!("heartbeat: must be at least 1 s, is {:?}", self.heartbeat)));
        }
        uri.query.heartbeat.get_or_insert(heartbeat);
        self.tls.need_tls(Self::is_tls(&uri), "amqps://")?;
        Ok(uri)
    }

    pub(crate) fn is_tls(uri: &AMQPUri) -> bool {
        uri.scheme == AMQPScheme::AMQPS
    }
}

pub(crate) fn parse(url: &str) -> Result<AMQPUri> {
    // The client takes both for `localhost`, and shows the password to whatever listens there.
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or(host);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if host.starts_with('[') || host.is_empty() || host.starts_with(':') {
        return Err(invalid("url: must name a host; the client knows no address of IPv6"));
    }
    // Neither the URL nor the parser's words: they may hold a password.
    url.parse().map_err(|_| invalid("url: is no amqp:// or amqps:// URL"))
}

/// The pairs of a headers binding; `x-match` first.
pub(crate) fn binding_arguments(binding_key: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = vec![("x-match".to_owned(), "all".to_owned())];
    for pair in binding_key.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            let fact = format!("exchange.binding_key: {pair:?} is no name=value");
            return Err(invalid(fact));
        };
        match name.trim() {
            "x-match" if matches!(value, "all" | "any" | "all-with-x" | "any-with-x") => {
                value.clone_into(&mut pairs[0].1);
            }
            "x-match" => {
                return Err(invalid(format!(
                    "exchange.binding_key: x-match must be all or any, is {value:?}"
                )));
            }
            name => pairs.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(pairs)
}

/// Options of the RabbitMQ backend beyond [`RabbitMqConfig`], for its builder.
pub trait RabbitMqBuilderExt: Sized {
    /// How long the broker may take to confirm a message or to answer a request until that fails with `Timeout`. At least
    /// 1 ms. Default: 5 s.
    #[must_use]
    fn request_timeout(self, timeout: Duration) -> Self;

    /// How long a peer may be silent until the connection is given up, in whole seconds; a value in the URL goes
    /// before it. At least 1 s. Default: 4 s.
    #[must_use]
    fn heartbeat(self, heartbeat: Duration) -> Self;

    /// A PEM file with the authorities that the broker's certificate must come from, *beside* the system's: unlike on the
    /// other backends it does not keep those out, and where the system has none at all building fails with `InvalidConfig`.
    /// So it does without `amqps://`, and where the file cannot be read or holds no certificate. The file is read anew for
    /// each connection, so that what takes its place counts from the next one on; while it cannot be used then, what it held
    /// before is. Default: none.
    #[must_use]
    fn root_certificates(self, file: impl Into<PathBuf>) -> Self;

    /// PEM files with the certificate that this client shows a broker that asks for one, followed by those that lead to its
    /// authority, and with its key, which is not encrypted. Read anew for each connection, and `InvalidConfig` as with
    /// [`root_certificates`](Self::root_certificates). It is also who logs in where the URL says
    /// `?auth_mechanism=external`. Default: none.
    #[must_use]
    fn client_certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self;

    /// The largest payload that is sent, in bytes; a larger one is `PayloadTooLarge`. Brokers up to 3.x take 128 MiB by
    /// default, 4.x take 16 MiB (`max_message_size`). Default: 16 MiB.
    #[must_use]
    fn max_payload(self, bytes: usize) -> Self;

    /// The name that the queues and exchanges for delays begin with. Applications that share it share their level
    /// queues; one per application keeps them apart. From 1 to 100 bytes. Default: `buqueue`.
    #[must_use]
    fn delay_prefix(self, prefix: impl Into<String>) -> Self;
}

impl<Dispatch> RabbitMqBuilderExt for QueueBuilder<RabbitMqBackend, Dispatch> {
    fn request_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.request_timeout = timeout)
    }

    fn heartbeat(self, heartbeat: Duration) -> Self {
        self.configure(|options| options.heartbeat = heartbeat)
    }

    fn root_certificates(self, file: impl Into<PathBuf>) -> Self {
        self.configure(|options| options.tls.root_certificates = Some(file.into()))
    }

    fn client_certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.configure(|options| options.tls.client_certificate = Some((certificate.into(), key.into())))
    }

    fn max_payload(self, bytes: usize) -> Self {
        self.configure(|options| options.max_payload = bytes)
    }

    fn delay_prefix(self, prefix: impl Into<String>) -> Self {
        self.configure(|options| options.delay_prefix = prefix.into())
    }
}

fn check_name(field: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(invalid(format!("{field}: must not be empty")));
    }
    if name.starts_with("amq.") {
        return Err(invalid(format!("{field}: names that begin with \"amq.\" are the broker's")));
    }
    check_short(field, name)
}

fn check_short(field: &str, text: &str) -> Result<()> {
    if text.len() > SHORT_MAX {
        let fact = format!("{field}: {} bytes, the limit is {SHORT_MAX} bytes", text.len());
        return Err(invalid(fact));
    }
    Ok(())
}

/// Text that was checked to be short. The client's own conversion panics.
pub(crate) fn short(text: &str) -> Result<ShortString> {
    ShortString::try_new(text)
        .map_err(|_| invalid(format!("{} bytes, the limit is {SHORT_MAX} bytes", text.len())))
}

fn redact(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://…@{host}"),
            // One without its `@` may have a password for a port.
            None if parse(url).is_err() => format!("{scheme}://…"),
            None => url.to_owned(),
        },
        // Whatever it is, it is no URL.
        None => "…".to_owned(),
    }
}

pub(crate) fn invalid(fact: impl Into<String>) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let url = "amqp://user:canary@host:1/%2F".to_owned();
        let text = format!("{:?}", RabbitMqConfig { url, ..RabbitMqConfig::default() });
        assert!(!text.contains("canary") && text.contains("amqp://…@host:1/%2F"), "{text}");
        let options =
            RabbitMqOptions::new(RabbitMqConfig { url: "canary".into(), ..RabbitMqConfig::default() });
        assert!(!format!("{:?}", options.validate().unwrap_err()).contains("canary"));
    }

    #[test]
    fn headers_bindings_are_pairs() {
        let pairs = binding_arguments("x-match=any, region=eu,kind=order").unwrap();
        let expected = [("x-match", "any"), ("region", "eu"), ("kind", "order")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(binding_arguments("region").is_err());
        assert!(binding_arguments("x-match=some").is_err());
    }
}
