//! The user's configuration, what the builder adds to it, and the URL.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use buqueue_core::tls::TlsFiles;
use buqueue_core::{BuqueueError, ErrorKind, QueueBuilder, Result};

use crate::RedisBackend;

/// Redis takes no string larger than this.
const PROTO_MAX_BULK_LEN: usize = 512 * 1024 * 1024;
/// What the other fields of an entry may need of it.
const MARGIN: usize = 1024 * 1024;
/// What one read may ask for.
const READ_COUNT_MAX: usize = 10_000;

/// Where the stream is, and how it is read.
///
/// The struct is closed: it has exactly these fields. Further options are on [`RedisBuilderExt`].
///
/// With the feature `serde` it can be read from a file, where durations are as in `30s` or `1h30m`. It cannot be written: it
/// holds credentials, and what can be written gets logged.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Where the server is:
    ///
    /// * `redis://[[user]:password@]host[:port][/db]`
    /// * `rediss://…`, the same over TLS
    /// * `redis+sentinel://[[user]:password@]host:port[,host:port…]/service[/db]`; `rediss+sentinel://…` over TLS.
    ///   Sentinels that have a password of their own take it as `?sentinel_password=…`.
    /// * `redis+unix:///path`
    ///
    /// Default: `redis://127.0.0.1:6379`.
    pub url: String,
    /// The key of the stream, not empty. Created when it does not exist. Default: `buqueue`.
    pub stream: String,
    /// The consumer group: its members share the messages, and every group gets every message. Created when it
    /// does not exist, at the beginning of the stream; what the groups before it have all finished is deleted and
    /// does not come to it. A group that is no longer used keeps entries from being deleted: destroy it with
    /// `XGROUP DESTROY`. Not empty. Default: `buqueue`.
    pub group: String,
    /// The name of this consumer in the group; give every running instance its own. Not empty. Default: the host and the
    /// process, `HOSTNAME-pid`.
    pub consumer: String,
    /// The most entries that one read asks for, and hence the largest batch; up to 10 000. Of large messages a read
    /// asks for fewer, about 4 MiB. At least 1. Default: 100.
    pub read_count: usize,
    /// How long one read waits at the server, in milliseconds. Receiving waits for as long as it takes whatever is set
    /// here; 0 stands for 2000, and more than that is treated as 2000, so that a dead connection is noticed. Default: 2000.
    pub block_ms: u64,
    /// The lease: a message that is not settled this long after it was read goes to somebody else. Set it well
    /// above the longest time a handler needs. At least 10 ms. Default: 60 s.
    pub pending_timeout: Duration,
}

impl Default for RedisConfig {
    /// `buqueue` on the local server; the consumer is named after the host and the process.
    fn default() -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "buqueue".to_owned());
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            stream: "buqueue".to_owned(),
            group: "buqueue".to_owned(),
            consumer: format!("{host}-{}", std::process::id()),
            read_count: 100,
            block_ms: 2000,
            pending_timeout: Duration::from_secs(60),
        }
    }
}

/// The password in the URL is not shown.
impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("url", &redact(&self.url))
            .field("stream", &self.stream)
            .field("group", &self.group)
            .field("consumer", &self.consumer)
            .field("read_count", &self.read_count)
            .field("block_ms", &self.block_ms)
            .field("pending_timeout", &self.pending_timeout)
            .finish()
    }
}

/// [`RedisConfig`] and what [`RedisBuilderExt`] adds to it.
#[derive(Clone)]
pub struct RedisOptions {
    pub(crate) config: RedisConfig,
    pub(crate) connection_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) deduplication_window: Duration,
    pub(crate) cluster_nodes: Vec<String>,
    pub(crate) tls: TlsFiles,
    pub(crate) max_payload: usize,
}

impl RedisOptions {
    pub(crate) fn new(config: RedisConfig) -> Self {
        Self {
            config,
            connection_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
            deduplication_window: Duration::from_secs(5 * 60),
            cluster_nodes: Vec::new(),
            tls: TlsFiles::default(),
            max_payload: PROTO_MAX_BULK_LEN - MARGIN,
        }
    }

    /// Checks what can be checked without the server. `consuming`: the fields of a consumer matter too.
    pub(crate) fn validate(&self, consuming: bool) -> Result<Endpoint> {
        let config = &self.config;
        let endpoint = Endpoint::parse(&config.url)?;
        for (field, value) in
            [("stream", &config.stream), ("group", &config.group), ("consumer", &config.consumer)]
        {
            if value.is_empty() && (consuming || field == "stream") {
                return Err(invalid(format!("{field}: must not be empty")));
            }
        }
        if consuming && !(1..=READ_COUNT_MAX).contains(&config.read_count) {
            let fact =
                format!("read_count: must be between 1 and {READ_COUNT_MAX}, is {}", config.read_count);
            return Err(invalid(fact));
        }
        if consuming && config.pending_timeout < Duration::from_millis(10) {
            let fact = format!("pending_timeout: must be at least 10 ms, is {:?}", config.pending_timeout);
            return Err(invalid(fact));
        }
        for (field, value) in [
            ("connection_timeout", self.connection_timeout),
            ("request_timeout", self.request_timeout),
            ("deduplication_window", self.deduplication_window),
        ] {
            if value < Duration::from_millis(1) {
                return Err(invalid(format!("{field}: must be at least 1 ms, is {value:?}")));
            }
        }
        if self.max_payload > PROTO_MAX_BULK_LEN {
            let fact =
                format!("max_payload: the server's limit is {PROTO_MAX_BULK_LEN}, is {}", self.max_payload);
            return Err(invalid(fact));
        }
        if !self.cluster_nodes.is_empty() {
            if !matches!(endpoint, Endpoint::Single(_)) {
                return Err(invalid("cluster_nodes: a cluster is not reached through sentinels"));
            }
            let base = crate::keys::base(&config.stream);
            if crate::keys::hash_tag(&base) != crate::keys::hash_tag(&config.stream) {
                return Err(invalid(format!(
                    "stream: {:?} has braces that are no hash tag, which a cluster cannot keep together",
                    config.stream
                )));
            }
        }
        self.tls.need_tls(self.is_tls(&endpoint), "rediss://")?;
        Ok(endpoint)
    }

    /// Whether all that is connected to speaks TLS. The nodes of a cluster may say so themselves.
    pub(crate) fn is_tls(&self, endpoint: &Endpoint) -> bool {
        let nodes = &self.cluster_nodes;
        endpoint.is_tls() || (!nodes.is_empty() && nodes.iter().all(|node| says_tls(node)))
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("config", &self.config)
            .field("connection_timeout", &self.connection_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("deduplication_window", &self.deduplication_window)
            .field("cluster_nodes", &self.cluster_nodes.iter().map(|url| redact(url)).collect::<Vec<_>>())
            .field("tls", &self.tls)
            .field("max_payload", &self.max_payload)
            .finish()
    }
}

/// The options beyond [`RedisConfig`].
pub trait RedisBuilderExt {
    /// How long `build_*` may take to reach the server until it fails with `ConnectionLost`. At least 1 ms. Default: 10 s.
    #[must_use]
    fn connection_timeout(self, timeout: Duration) -> Self;

    /// How long one command may take until what needs it fails with `Timeout`. At least 1 ms. Default: 5 s.
    #[must_use]
    fn request_timeout(self, timeout: Duration) -> Self;

    /// For how long a deduplication id is remembered. At least 1 ms. Default: 5 min.
    #[must_use]
    fn deduplication_window(self, window: Duration) -> Self;

    /// Connects to a cluster through these nodes, given as URLs or as `host:port`. Credentials are those of the config's
    /// URL; where it has some, those in the nodes' own URLs do not count. Default: none, the server is no cluster.
    #[must_use]
    fn cluster_nodes(self, nodes: Vec<String>) -> Self;

    /// A PEM file with the authorities that a server's certificate must come from, in place of the system's. Read once,
    /// when the queue is built. Without `rediss://`, and where the file cannot be read or holds no certificate, building
    /// fails with `InvalidConfig`. Default: the system's.
    #[must_use]
    fn root_certificates(self, file: impl Into<PathBuf>) -> Self;

    /// PEM files with the certificate that this client shows a server that asks for one (`tls-auth-clients`), followed by
    /// those that lead to its authority, and with its key, which is not encrypted. Also shown to sentinels. Read once, when
    /// the queue is built, and `InvalidConfig` as with [`root_certificates`](Self::root_certificates). Default: none.
    #[must_use]
    fn client_certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self;

    /// The largest payload that is sent, in bytes. Default: 1 MiB below the server's default limit of 512 MiB; set
    /// it where `proto-max-bulk-len` is lower. At most 512 MiB; a larger payload is `PayloadTooLarge`.
    #[must_use]
    fn max_payload(self, bytes: usize) -> Self;
}

impl<D> RedisBuilderExt for QueueBuilder<RedisBackend, D> {
    fn connection_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.connection_timeout = timeout)
    }

    fn request_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.request_timeout = timeout)
    }

    fn deduplication_window(self, window: Duration) -> Self {
        self.configure(|options| options.deduplication_window = window)
    }

    fn cluster_nodes(self, nodes: Vec<String>) -> Self {
        self.configure(|options| options.cluster_nodes = nodes)
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
}

/// Where the URL points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// One server, or a cluster's first; the client reads this URL itself.
    Single(String),
    Sentinel(Sentinels),
}

impl Endpoint {
    pub(crate) fn is_tls(&self) -> bool {
        match self {
            Self::Single(url) => says_tls(url),
            Self::Sentinel(sentinels) => sentinels.tls,
        }
    }
}

fn says_tls(url: &str) -> bool {
    url.starts_with("rediss:") || url.starts_with("valkeys:")
}

/// What a sentinel URL says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sentinels {
    pub(crate) tls: bool,
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) service: String,
    pub(crate) db: i64,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) sentinel_username: Option<String>,
    pub(crate) sentinel_password: Option<String>,
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels")
            .field("hosts", &self.hosts)
            .field("service", &self.service)
            .field("db", &self.db)
            .finish_non_exhaustive()
    }
}

const SENTINEL_PORT: u16 = 26379;
pub(crate) const SCHEMES: [&str; 7] =
    ["redis", "rediss", "valkey", "valkeys", "redis+unix", "redis+sentinel", "rediss+sentinel"];

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(invalid("url: must start with a scheme, as in redis://host:6379"));
        };
        if !SCHEMES.contains(&scheme) {
            return Err(invalid(format!("url: the scheme must be one of {SCHEMES:?}, is {scheme:?}")));
        }
        if !scheme.ends_with("+sentinel") {
            // The client's own text would quote the URL, and the password in it.
            return match redis::parse_redis_url(url) {
                Some(_) => Ok(Self::Single(url.to_owned())),
                None => Err(invalid("url: not a valid URL")),
            };
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (username, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (service, db) = path.split_once('/').unwrap_or((path, ""));
        if service.is_empty() {
            return Err(invalid(
                "url: a sentinel URL must name its service, as in redis+sentinel://host/service",
            ));
        }
        let db = if db.is_empty() { Ok(0) } else { db.parse() };
        let mut sentinels = Sentinels {
            tls: scheme.starts_with("rediss"),
            hosts: hosts.split(',').map(host_and_port).collect::<Result<_>>()?,
            service: decode(service)?,
            db: db.map_err(|_| invalid("url: the database must be a number"))?,
            username: some(decode(username)?),
            password: some(decode(password)?),
            sentinel_username: None,
            sentinel_password: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sentinel_username" => sentinels.sentinel_username = some(decode(value)?),
                "sentinel_password" => sentinels.sentinel_password = some(decode(value)?),
                _ => return Err(invalid(format!("url: unknown parameter {name:?}"))),
            }
        }
        Ok(Self::Sentinel(sentinels))
    }
}

fn host_and_port(text: &str) -> Result<(String, u16)> {
    // `[::1]:26379` has colons of its own.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().map_err(|_| invalid("url: the port of a sentinel must be a number"))?;
            (host, port)
        }
        _ => (text, SENTINEL_PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(invalid("url: a sentinel has no host"));
    }
    Ok((host.to_owned(), port))
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String> {
    let malformed = || invalid("url: malformed percent-encoding");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or_else(malformed);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| malformed())?);
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

/// The URL without its password and without its query, which may hold another.
pub(crate) fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "<not a URL>".to_owned() };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if query.contains('@') {
        // A password with a question mark in it.
        return format!("{scheme}://<redacted>");
    }
    // The password may hold any character, also a slash or an `@`: all up to the last `@` is taken for it.
    match rest.rsplit_once('@') {
        Some((credentials, rest)) => {
            let user = credentials.split_once(':').map_or("", |(user, _)| user);
            format!("{scheme}://{user}:<redacted>@{rest}")
        }
        None => format!("{scheme}://{rest}"),
    }
}

pub(crate) fn invalid(fact: impl Into<String>) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinels(url: &str) -> Sentinels {
        match Endpoint::parse(url).unwrap() {
            Endpoint::Sentinel(sentinels) => sentinels,
            Endpoint::Single(_) => panic!("{url} is no sentinel URL"),
        }
    }

    #[test]
    fn sentinel_urls_are_parsed() {
        let plain = sentinels("redis+sentinel://h:1/svc");
        assert_eq!((plain.hosts, plain.service.as_str(), plain.db), (vec![("h".to_owned(), 1)], "svc", 0));
        assert!(!plain.tls && plain.password.is_none());

        let full = sentinels("rediss+sentinel://u:p%40ss@a:1,[::1]:2,c/svc/3?sentinel_password=s");
        assert!(full.tls);
        assert_eq!(full.hosts, [("a".to_owned(), 1), ("::1".to_owned(), 2), ("c".to_owned(), SENTINEL_PORT)]);
        assert_eq!((full.username.as_deref(), full.password.as_deref()), (Some("u"), Some("p@ss")));
        assert_eq!((full.sentinel_password.as_deref(), full.db), (Some("s"), 3));

        assert_eq!(sentinels("redis+sentinel://:p@h/svc").password.as_deref(), Some("p"));
    }

    #[test]
    fn wrong_urls_name_the_field_and_keep_the_secret() {
        for url in [
            "localhost:6379",
            "http://localhost",
            "redis://:canary@host:notaport/",
            "redis+sentinel://:canary@host:1",
            "redis+sentinel://:canary@host:x/svc",
            "redis+sentinel://:canary%zz@host/svc",
            "redis+sentinel://h/svc/canary",
            "redis+sentinel:///svc",
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig, "{url}");
            assert!(error.message().starts_with("url: "), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn debug_hides_passwords() {
        for url in [
            "redis://:canary@host/0",
            "redis://user:can/ary@canary@host/0",
            "redis://canary@host",
            "redis://:canary?canary@host",
            "redis://u@x:canary?canary@host",
            "redis+sentinel://:canary@a:1,b:2/svc?sentinel_password=canary",
        ] {
            let config = RedisConfig { url: url.to_owned(), ..RedisConfig::default() };
            let options = RedisOptions { cluster_nodes: vec![url.to_owned()], ..RedisOptions::new(config) };
            assert!(!format!("{options:?}").contains("canary"), "{options:?}");
        }
        assert_eq!(redact("redis://u:p@h:1/2"), "redis://u:<redacted>@h:1/2");
    }

    #[test]
    fn certificates_are_for_urls_that_say_tls() {
        let nodes = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect::<Vec<_>>();
        for (url, cluster_nodes, is_tls) in [
            ("redis://h", nodes(&[]), false),
            ("valkey://h", nodes(&[]), false),
            ("redis+unix:///run/x.sock", nodes(&[]), false),
            ("redis+sentinel://h/svc", nodes(&[]), false),
            ("redis://h", nodes(&["a:1", "rediss://b:1"]), false),
            ("redis://h", nodes(&["redis://a:1"]), false),
            ("rediss://h", nodes(&[]), true),
            ("valkeys://h", nodes(&[]), true),
            ("rediss+sentinel://h/svc", nodes(&[]), true),
            ("rediss://h", nodes(&["a:1", "b:1"]), true),
            ("redis://h", nodes(&["rediss://a:1", "valkeys://b:1"]), true),
        ] {
            let config = RedisConfig { url: url.to_owned(), ..RedisConfig::default() };
            let mut options = RedisOptions { cluster_nodes, ..RedisOptions::new(config) };
            assert!(options.validate(true).is_ok(), "{url}");
            options.tls.root_certificates = Some("ca.pem".into());
            let validated = options.validate(true).map(drop).map_err(|error| error.kind);
            assert_eq!(validated, if is_tls { Ok(()) } else { Err(ErrorKind::InvalidConfig) }, "{url}");
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Change = fn(&mut RedisOptions);
        let changes: [(&str, Change); 11] = [
            ("url", |o| o.config.url.clear()),
            ("stream", |o| o.config.stream.clear()),
            ("group", |o| o.config.group.clear()),
            ("consumer", |o| o.config.consumer.clear()),
            ("read_count", |o| o.config.read_count = 0),
            ("read_count", |o| o.config.read_count = READ_COUNT_MAX + 1),
            ("pending_timeout", |o| o.config.pending_timeout = Duration::ZERO),
            ("connection_timeout", |o| o.connection_timeout = Duration::ZERO),
            ("request_timeout", |o| o.request_timeout = Duration::ZERO),
            ("deduplication_window", |o| o.deduplication_window = Duration::ZERO),
            ("max_payload", |o| o.max_payload = usize::MAX),
        ];
        for (field, change) in changes {
            let mut options = RedisOptions::new(RedisConfig::default());
            assert!(options.validate(true).is_ok());
            change(&mut options);
            let error = options.validate(true).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(&format!("{field}: ")), "{error}");
        }
    }
}
