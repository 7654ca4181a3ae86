//! The user's configuration, and what the builder adds to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use async_nats::jetstream::{consumer, stream};
use buqueue_core::tls::TlsFiles;
use buqueue_core::{BuqueueError, ErrorKind, QueueBuilder, Result};

use crate::NatsBackend;
use crate::subject;

/// The server's default `max_payload`, and the least that a message of ours is promised to fit.
const SERVER_MAX_PAYLOAD: usize = 1024 * 1024;

/// Which servers, which stream, and how this service reads it.
///
/// The struct is closed: it has exactly these fields. Further options are on [`NatsBuilderExt`].
///
/// With the feature `serde` it can be read from a file, where durations are as in `30s` or `1h30m`. It cannot be written: it
/// holds credentials, and what can be written gets logged.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsConfig {
    /// Where the servers are: one URL, or several separated by commas. `nats://host:port`, `tls://host:port`; a user
    /// and password, or a token, go before the host: `nats://user:password@host`, `nats://token@host`. Default:
    /// `nats://127.0.0.1:4222`.
    pub url: String,
    /// A credentials file (`.creds`), for servers that work with accounts and JWTs. Default: none.
    pub credentials_file: Option<String>,
    /// The stream. Created when it does not exist; compared field by field when it does.
    pub jetstream: JetStreamConfig,
    /// The durable consumer. Instances of one service use the same name and share the messages; different services use
    /// different names and each get every message (not on a work queue stream, which has one). Created when it does
    /// not exist; compared when it does. A name as that of a stream. Default: `buqueue`.
    pub durable_consumer: String,
    /// Where to begin when the durable consumer is created; of no meaning when it exists already. A work queue stream
    /// begins with everything that nobody has processed, whatever is said here: the server takes nothing else. Default:
    /// [`DeliverPolicy::New`].
    pub deliver_policy: DeliverPolicy,
    /// Must be [`AckPolicy::Explicit`], which is the default.
    pub ack_policy: AckPolicy,
    /// The lease: a message that is not settled this long after it was delivered is delivered again. Set it well above
    /// the longest time a handler needs. At least 100 ms. Default: 30 s.
    pub ack_wait: Duration,
    /// How many messages all consumers of the durable together may hold unsettled, those that wait for the end of
    /// `nack_after` included; -1 means unlimited. At least 1, or -1. Default: 1000.
    pub max_ack_pending: i64,
}

impl Default for NatsConfig {
    /// The stream and the durable `buqueue` on the local server, a lease of 30 s, at most 1000 in flight.
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            credentials_file: None,
            jetstream: JetStreamConfig::default(),
            durable_consumer: "buqueue".to_owned(),
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 1000,
        }
    }
}

/// What stands before the `@` in the URL is not shown.
impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfig")
            .field("url", &redact(&self.url))
            .field("credentials_file", &self.credentials_file)
            .field("jetstream", &self.jetstream)
            .field("durable_consumer", &self.durable_consumer)
            .field("deliver_policy", &self.deliver_policy)
            .field("ack_policy", &self.ack_policy)
            .field("ack_wait", &self.ack_wait)
            .field("max_ack_pending", &self.max_ack_pending)
            .finish()
    }
}

/// The stream: the log that keeps the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct JetStreamConfig {
    /// The stream's name, unique in the account: no spaces, no `.`, `*`, `>`, `/`, `\`. Default: `buqueue`.
    pub stream_name: String,
    /// Which subjects the stream captures. A message whose routing key is one of them is published under it; any other
    /// goes to the first of these, with each wildcard replaced by `_` (`orders.>` makes `orders._`), and its key
    /// travels in a header. At least one. Default: `buqueue.>`.
    pub subjects: Vec<String>,
    /// Where the server keeps the messages. Default: [`StorageType::File`].
    pub storage: StorageType,
    /// Messages older than this are deleted, processed or not; zero keeps them for ever. At least 100 ms, or zero. Default:
    /// 7 days.
    #[cfg_attr(feature = "serde", serde(with = "buqueue_core::duration"))]
    pub max_age: Duration,
    /// When messages are deleted. Default: [`RetentionPolicy::WorkQueue`].
    pub retention: RetentionPolicy,
    /// The most messages in the stream; -1 means no limit. At least 1, or -1. Default: -1.
    pub max_messages: i64,
    /// The most bytes in the stream; -1 means no limit. At least 1, or -1. Default: -1.
    pub max_bytes: i64,
    /// The largest message in bytes, headers included; -1 means the server's own limit. At least 1, or -1. Default: -1.
    pub max_message_size: i32,
    /// On how many servers of a cluster the stream lies: 1 to 5. A server that is no cluster has one, whatever is said.
    /// Default: 1.
    pub num_replicas: usize,
    /// How long the stream remembers deduplication ids. Capped at `max_age`. At least 100 ms. Default: 2 minutes.
    #[cfg_attr(feature = "serde", serde(with = "buqueue_core::duration"))]
    pub duplicate_window: Duration,
    /// What a full stream does; of no meaning without `max_messages` or `max_bytes`. The server has no schedules in a
    /// stream that is limited and refuses: `send_at` then goes by a second stream. Default: [`DiscardPolicy::New`].
    pub discard: DiscardPolicy,
}

impl Default for JetStreamConfig {
    /// The work queue `buqueue` with the subjects `buqueue.>`, in files, for 7 days, without limits.
    fn default() -> Self {
        Self {
            stream_name: "buqueue".to_owned(),
            subjects: vec!["buqueue.>".to_owned()],
            storage: StorageType::File,
            max_age: Duration::from_secs(7 * 24 * 60 * 60),
            retention: RetentionPolicy::WorkQueue,
            max_messages: -1,
            max_bytes: -1,
            max_message_size: -1,
            num_replicas: 1,
            duplicate_window: Duration::from_secs(2 * 60),
            discard: DiscardPolicy::New,
        }
    }
}

/// Where the server keeps the messages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum StorageType {
    /// In files: they survive a restart of the server.
    #[default]
    File,
    /// In memory: lost with the server.
    Memory,
}

/// When messages of a stream are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RetentionPolicy {
    /// When the limits of size, age or number are reached: a log that several durables read.
    Limits,
    /// When the one durable has acked them.
    #[default]
    WorkQueue,
    /// When all durables that exist have acked them; what no durable is there for is not kept at all.
    Interest,
}

/// What a full stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum DiscardPolicy {
    /// Refuses new messages (`Throttled`), and loses none.
    #[default]
    New,
    /// Deletes the oldest messages, processed or not.
    Old,
}

/// Where a durable consumer begins when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum DeliverPolicy {
    /// With what is sent after it was created.
    #[default]
    New,
    /// With the oldest message of the stream.
    All,
    /// With the newest message of the stream.
    Last,
}

/// Who says that a message is processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum AckPolicy {
    /// Each message is acked.
    #[default]
    Explicit,
    /// Nobody: the server forgets what it has delivered. Not supported.
    None,
}

/// [`NatsConfig`] and what [`NatsBuilderExt`] adds to it.
#[derive(Clone)]
pub struct NatsOptions {
    pub(crate) config: NatsConfig,
    pub(crate) connection_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) tls: TlsFiles,
    pub(crate) plain_acks: bool,
    pub(crate) read_ahead: usize,
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("config", &self.config)
            .field("connection_timeout", &self.connection_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("tls", &self.tls)
            .field("plain_acks", &self.plain_acks)
            .field("read_ahead", &self.read_ahead)
            .finish()
    }
}

impl NatsOptions {
    pub(crate) fn new(config: NatsConfig) -> Self {
        Self {
            config,
            connection_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
            tls: TlsFiles::default(),
            plain_acks: false,
            read_ahead: 500,
        }
    }

    /// The largest payload that is certain to fit.
    pub(crate) fn max_payload(&self) -> usize {
        usize::try_from(self.config.jetstream.max_message_size)
            .map_or(SERVER_MAX_PAYLOAD, |size| size.min(SERVER_MAX_PAYLOAD))
    }

    /// Checks what can be checked without the server. `consuming`: the fields of a consumer matter too.
    pub(crate) fn validate(&self, consuming: bool) -> Result<Vec<ServerAddr>> {
        let servers = servers(&self.config.url)?;
        self.config.jetstream.validate()?;
        for (field, value) in
            [("connection_timeout", self.connection_timeout), ("request_timeout", self.request_timeout)]
        {
            if value < Duration::from_millis(1) {
                return Err(invalid(format!("{field}: must be at least 1 ms, is {value:?}")));
            }
        }
        if consuming {
            self.validate_consumer()?;
        }
        self.tls.need_tls(servers.iter().all(ServerAddr::tls_required), "tls://, for each server")?;
        Ok(servers)
    }

    fn validate_consumer(&self) -> Result<()> {
        let config = &self.config;
        check_name("durable_consumer", &config.durable_consumer)?;
        if config.ack_policy != AckPolicy::Explicit {
            let fact = format!("ack_policy: must be Explicit, is {:?}", config.ack_policy);
            return Err(invalid(fact));
        }
        if config.ack_wait < Duration::from_millis(100) {
            return Err(invalid(format!("ack_wait: must be at least 100 ms, is {:?}", config.ack_wait)));
        }
        if config.max_ack_pending < 1 && config.max_ack_pending != -1 {
            let fact = format!("max_ack_pending: must be at least 1, or -1, is {}", config.max_ack_pending);
            return Err(invalid(fact));
        }
        if self.read_ahead == 0 {
            return Err(invalid("read_ahead: must be at least 1, is 0"));
        }
        Ok(())
    }
}

impl JetStreamConfig {
    fn validate(&self) -> Result<()> {
        check_name("stream_name", &self.stream_name)?;
        if self.subjects.is_empty() {
            return Err(invalid("subjects: must not be empty"));
        }
        for pattern in &self.subjects {
            if !subject::is_pattern(pattern) {
                return Err(invalid(format!("subjects: {pattern:?} is no subject")));
            }
            if subject::overlaps(pattern, &subject::schedules(&self.stream_name))
                || subject::overlaps(pattern, &subject::delayed(&self.stream_name))
            {
                let fact =
                    format!("subjects: {pattern:?} covers subjects that buqueue keeps its schedules in");
                return Err(invalid(fact));
            }
        }
        for (field, value) in [("max_messages", self.max_messages), ("max_bytes", self.max_bytes)] {
            if value < 1 && value != -1 {
                return Err(invalid(format!("{field}: must be at least 1, or -1, is {value}")));
            }
        }
        if self.max_message_size < 1 && self.max_message_size != -1 {
            let fact = format!("max_message_size: must be at least 1, or -1, is {}", self.max_message_size);
            return Err(invalid(fact));
        }
        if !(1..=5).contains(&self.num_replicas) {
            return Err(invalid(format!("num_replicas: must be 1 to 5, is {}", self.num_replicas)));
        }
        for (field, value, least) in [
            ("max_age", self.max_age, Duration::from_millis(100)),
            ("duplicate_window", self.duplicate_window, Duration::from_millis(100)),
        ] {
            // The server takes no shorter ones; zero means no limit of age.
            if value < least && (field != "max_age" || !value.is_zero()) {
                return Err(invalid(format!("{field}: must be at least {least:?}, is {value:?}")));
            }
        }
        Ok(())
    }

    fn is_limited(&self) -> bool {
        self.max_messages != -1 || self.max_bytes != -1
    }

    /// The stream as the server is asked for it, without what buqueue adds.
    pub(crate) fn to_native(&self) -> stream::Config {
        let capped = !self.max_age.is_zero() && self.max_age < self.duplicate_window;
        stream::Config {
            name: self.stream_name.clone(),
            subjects: self.subjects.clone(),
            storage: match self.storage {
                StorageType::File => stream::StorageType::File,
                StorageType::Memory => stream::StorageType::Memory,
            },
            retention: match self.retention {
                RetentionPolicy::Limits => stream::RetentionPolicy::Limits,
                RetentionPolicy::WorkQueue => stream::RetentionPolicy::WorkQueue,
                RetentionPolicy::Interest => stream::RetentionPolicy::Interest,
            },
            discard: match self.discard {
                // Nothing is discarded where there is no limit, and the server has no schedules beside `New`.
                DiscardPolicy::New if self.is_limited() => stream::DiscardPolicy::New,
                DiscardPolicy::New => stream::DiscardPolicy::Old,
                DiscardPolicy::Old => stream::DiscardPolicy::Old,
            },
            max_age: self.max_age,
            max_messages: self.max_messages,
            max_messages_per_subject: -1,
            max_bytes: self.max_bytes,
            max_message_size: self.max_message_size,
            max_consumers: -1,
            num_replicas: self.num_replicas,
            duplicate_window: if capped { self.max_age } else { self.duplicate_window },
            ..stream::Config::default()
        }
    }
}

impl NatsConfig {
    /// Where a durable that does not exist begins.
    pub(crate) fn start(&self) -> consumer::DeliverPolicy {
        match self.deliver_policy {
            // The server refuses anything else there.
            _ if self.jetstream.retention == RetentionPolicy::WorkQueue => consumer::DeliverPolicy::All,
            DeliverPolicy::New => consumer::DeliverPolicy::New,
            DeliverPolicy::All => consumer::DeliverPolicy::All,
            DeliverPolicy::Last => consumer::DeliverPolicy::Last,
        }
    }
}

/// Options of the NATS backend beyond [`NatsConfig`], for its builder.
pub trait NatsBuilderExt: Sized {
    /// How long connecting may take until it fails with `ConnectionLost`. At least 1 ms. Default: 10 s.
    #[must_use]
    fn connection_timeout(self, timeout: Duration) -> Self;

    /// How long the server may take to answer a request (a send, an ack, a look at the queue) until that fails with
    /// `Timeout`. At least 1 ms. Default: 5 s.
    #[must_use]
    fn request_timeout(self, timeout: Duration) -> Self;

    /// A PEM file with the authorities that a server's certificate must come from, in place of the system's. Read anew for
    /// each connection, so that what takes its place counts from the next one on. Where not all servers are `tls://`, and
    /// where the file cannot be read or holds no certificate, building fails with `InvalidConfig`. Default: the system's.
    #[must_use]
    fn root_certificates(self, file: impl Into<PathBuf>) -> Self;

    /// PEM files with the certificate that this client shows a server that asks for one (`verify`), followed by those that
    /// lead to its authority, and with its key, which is not encrypted. Read anew for each connection, and `InvalidConfig`
    /// as with [`root_certificates`](Self::root_certificates). Default: none.
    #[must_use]
    fn client_certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self;

    /// Settles without waiting for the server's answer. Faster, and `ack()` is `Ok` when it was handed to the
    /// connection: what a broken connection swallows comes again. Default: confirmed.
    #[must_use]
    fn plain_acks(self) -> Self;

    /// The most messages that a fast consumer reads ahead of its handler; about 4 MiB in any case. At least 1. Default: 500.
    #[must_use]
    fn read_ahead(self, messages: usize) -> Self;
}

impl<Dispatch> NatsBuilderExt for QueueBuilder<NatsBackend, Dispatch> {
    fn connection_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.connection_timeout = timeout)
    }

    fn request_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.request_timeout = timeout)
    }

    fn root_certificates(self, file: impl Into<PathBuf>) -> Self {
        self.configure(|options| options.tls.root_certificates = Some(file.into()))
    }

    fn client_certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.configure(|options| options.tls.client_certificate = Some((certificate.into(), key.into())))
    }

    fn plain_acks(self) -> Self {
        self.configure(|options| options.plain_acks = true)
    }

    fn read_ahead(self, messages: usize) -> Self {
        self.configure(|options| options.read_ahead = messages)
    }
}

/// Names of streams and durables become part of subjects and of file names.
pub(crate) fn check_name(field: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(invalid(format!("{field}: must not be empty")));
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    if name.len() > 255 || name.contains(forbidden) {
        let fact =
            format!("{field}: {name:?} must be at most 255 bytes without spaces, '.', '*', '>', '/', '\\'");
        return Err(invalid(fact));
    }
    Ok(())
}

pub(crate) fn servers(url: &str) -> Result<Vec<ServerAddr>> {
    if url.trim().is_empty() {
        return Err(invalid("url: must not be empty"));
    }
    url.split(',')
        .map(|server| {
            let server = server.trim();
            // Neither the URL nor the parser's words: they may hold a password.
            let address = server.parse::<ServerAddr>().map_err(|_| invalid("url: is no server address"))?;
            match server.split_once("://") {
                None | Some(("nats" | "tls", _)) => Ok(address),
                Some(_) => Err(invalid("url: the scheme must be nats or tls")),
            }
        })
        .collect()
}

fn redact(url: &str) -> String {
    if servers(url).is_err() {
        // Whatever it is, a password may be anywhere in it.
        return "…".to_owned();
    }
    let servers: Vec<String> = url
        .split(',')
        .map(|server| {
            let (scheme, rest) = server.split_once("://").unwrap_or(("", server));
            let separator = if scheme.is_empty() { "" } else { "://" };
            match rest.rsplit_once('@') {
                Some((_, host)) => format!("{scheme}{separator}…@{host}"),
                None => format!("{scheme}{separator}{rest}"),
            }
        })
        .collect();
    servers.join(",")
}

pub(crate) fn invalid(fact: impl Into<String>) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let config = NatsConfig {
            url: "nats://user:canary@one:4222,tls://canary@two,three:1".to_owned(),
            ..NatsConfig::default()
        };
        let text = format!("{config:?}");
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("nats://…@one:4222,tls://…@two,three:1"), "{text}");
        let error = servers("nats://user:canary@[").unwrap_err();
        assert!(!format!("{error:?}").contains("canary"));
    }

    #[test]
    fn certificates_are_for_urls_that_say_tls() {
        for (url, is_tls) in [
            ("tls://one", true),
            ("tls://one:1, tls://token@two", true),
            ("nats://one", false),
            ("one", false),
            ("tls://one,nats://two", false),
            ("tls://one,two", false),
        ] {
            let mut options = NatsOptions::new(NatsConfig { url: url.to_owned(), ..NatsConfig::default() });
            assert!(options.validate(true).is_ok(), "{url}");
            options.tls.root_certificates = Some("ca.pem".into());
            let validated = options.validate(true).map(drop).map_err(|error| error.kind);
            assert_eq!(validated, if is_tls { Ok(()) } else { Err(ErrorKind::InvalidConfig) }, "{url}");
        }
    }

    #[test]
    fn names_that_the_server_refuses_are_refused() {
        for name in ["", "a b", "a.b", "a*", "a>", "a/b", "a\\b", "a\tb", &"a".repeat(256)] {
            assert!(check_name("stream_name", name).is_err(), "{name:?}");
        }
        for name in ["ORDER_EVENTS", "orders-1", "bestellungen-ü"] {
            assert!(check_name("stream_name", name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn the_duplicate_window_fits_into_the_age() {
        let config = JetStreamConfig { max_age: Duration::from_secs(5), ..JetStreamConfig::default() };
        assert_eq!(config.to_native().duplicate_window, Duration::from_secs(5));
    }
}
