//! The user's configuration, and what the builder adds to it.

use std::fmt;
use std::time::Duration;

use buqueue_core::{BuqueueError, ErrorKind, QueueBuilder, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::KafkaBackend;

/// The client's limit.
const LONGEST_SESSION: Duration = Duration::from_secs(60 * 60);
/// The longest name of a topic.
const LONGEST_TOPIC: usize = 249;

/// Which brokers, which topic, and how this service reads it.
///
/// With the feature `serde` it can be read from a file, where durations are as in `30s` or `1h30m`. It cannot be written: it
/// holds credentials, and what can be written gets logged.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Some of the brokers, as `host:port`, at least one; the client learns of the others from them. Default:
    /// `127.0.0.1:9092`.
    pub brokers: Vec<String>,
    /// The topic: up to 235 letters, digits, `.`, `_` and `-`. Created when it does not exist. Default: `buqueue`.
    pub topic: String,
    /// The consumer group. Instances of one service use the same name and share the partitions; different services use
    /// different names and each get every message. A group for each topic is best: members of one group wait for each other
    /// whenever one comes or goes, also where they read different topics. Of letters, digits, `.`, `_` and `-`, and with the
    /// topic 234 bytes at most, because the topic of its retries is named after both. Default: `buqueue`.
    pub group_id: String,
    /// Where a group begins that has not read the topic yet. Default: `Latest`, fixed when the consumer is built, so that
    /// what is sent after that is received also when the consumer restarts before it has read anything.
    pub offset_reset: OffsetReset,
    /// How producers compress. Default: not at all.
    pub compression: CompressionType,
    /// How many partitions topics get that are created, which is how many consumers of a group work at the same time; topics
    /// for retries get a quarter of that. Of no meaning for those that exist. At least 1. Default: 12.
    pub partitions: i32,
    /// How many copies topics get that are created. At least 1, and no more than there are brokers. Default: as the brokers
    /// say (`default.replication.factor`).
    pub replication_factor: Option<u16>,
    /// Encryption and credentials. Default: none.
    pub security: KafkaSecurity,
}

impl Default for KafkaConfig {
    /// The topic and the group `buqueue` on the local broker.
    fn default() -> Self {
        Self {
            brokers: vec!["127.0.0.1:9092".to_owned()],
            topic: "buqueue".to_owned(),
            group_id: "buqueue".to_owned(),
            offset_reset: OffsetReset::default(),
            compression: CompressionType::default(),
            partitions: 12,
            replication_factor: None,
            security: KafkaSecurity::default(),
        }
    }
}

/// Without credentials.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("topic", &self.topic)
            .field("group_id", &self.group_id)
            .field("offset_reset", &self.offset_reset)
            .field("compression", &self.compression)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication_factor)
            .field("security", &self.security)
            .finish()
    }
}

/// Where a group begins that has not read the topic yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum OffsetReset {
    /// With the first message that is there.
    Earliest,
    /// With the next message that is sent.
    #[default]
    Latest,
}

/// How producers compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum CompressionType {
    /// Not at all.
    #[default]
    None,
    /// gzip: small, and slow.
    Gzip,
    /// Snappy: a good balance.
    Snappy,
    /// LZ4: the fastest.
    Lz4,
    /// Zstandard: the smallest for its speed.
    Zstd,
}

impl CompressionType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Encryption and credentials.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KafkaSecurity {
    /// Encrypts the connection. Default: not.
    pub tls: Option<KafkaTls>,
    /// Who the client is, when the brokers ask for it by SASL. Default: nobody.
    pub sasl: Option<KafkaSasl>,
}

/// Encryption.
#[derive(Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct KafkaTls {
    /// The file of the authorities that the brokers' certificates must come from, PEM, in place of the system's. Read for
    /// each client that the queue makes, some of them later: for schedules, counts, and topics that are made again. It must
    /// stay readable. Default: the system's.
    pub ca_file: Option<String>,
    /// The files of the certificate that this client shows brokers that ask for one (`ssl.client.auth`), followed by those
    /// that lead to its authority, and of its key, which is not encrypted, PEM. Read as [`ca_file`](Self::ca_file) is.
    /// Default: none.
    pub certificate_and_key_files: Option<(String, String)>,
}

impl fmt::Debug for KafkaTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaTls").field("ca_file", &self.ca_file).finish_non_exhaustive()
    }
}

/// A user and password by SASL.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSasl {
    /// How the password is shown to the brokers.
    pub mechanism: SaslMechanism,
    /// The user. Must not be empty.
    pub username: String,
    /// The password. Must not be empty.
    pub password: String,
}

impl fmt::Debug for KafkaSasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSasl").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

/// How a password is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum SaslMechanism {
    /// As it is; use it with TLS only.
    Plain,
    /// As a proof that it is known, by SHA-256.
    ScramSha256,
    /// As a proof that it is known, by SHA-512.
    ScramSha512,
}

/// [`KafkaConfig`], and what the builder adds to it.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    pub(crate) config: KafkaConfig,
    pub(crate) connection_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) session_timeout: Duration,
    pub(crate) response_timeout: Duration,
}

/// What can be said beyond [`KafkaConfig`].
pub trait KafkaBuilderExt: Sized {
    /// How long building waits for a broker until it fails with `ConnectionLost`. At least 100 ms. Default: 10 s.
    #[must_use]
    fn connection_timeout(self, timeout: Duration) -> Self;

    /// How long a message may take to be accepted, with all repetitions, until the send fails with `Timeout`; and how long
    /// `queue_stats` may take. At least 100 ms. Default: 10 s.
    #[must_use]
    fn request_timeout(self, timeout: Duration) -> Self;

    /// How many messages a consumer may hold that are not settled, those that are ready for the next call included. At
    /// least 1. Default: 1000. Behind them it reads ahead, 10 000 messages or 8 MiB at most.
    #[must_use]
    fn max_in_flight(self, messages: usize) -> Self;

    /// How long a consumer that was killed keeps its partitions from the others. From 100 ms to 1 h, and within what the
    /// brokers allow. Default: 6 s, the least that they allow by default (`group.min.session.timeout.ms`).
    #[must_use]
    fn session_timeout(self, timeout: Duration) -> Self;

    /// How long a broker may take to answer, and its answer to arrive, until the connection is taken for dead and made anew.
    /// Default: 4 s. At least 1.2 s.
    #[must_use]
    fn response_timeout(self, timeout: Duration) -> Self;
}

impl<Dispatch> KafkaBuilderExt for QueueBuilder<KafkaBackend, Dispatch> {
    fn connection_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.connection_timeout = timeout)
    }

    fn request_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.request_timeout = timeout)
    }

    fn max_in_flight(self, messages: usize) -> Self {
        self.configure(|options| options.max_in_flight = messages)
    }

    fn session_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.session_timeout = timeout)
    }

    fn response_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.response_timeout = timeout)
    }
}

impl KafkaOptions {
    pub(crate) fn new(config: KafkaConfig) -> Self {
        Self {
            config,
            connection_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            max_in_flight: 1000,
            session_timeout: Duration::from_secs(6),
            response_timeout: Duration::from_secs(4),
        }
    }

    /// Where failed messages of the group wait to be tried again.
    pub(crate) fn retry_topic(&self) -> String {
        format!("{}-{}-buqueue-retry", self.config.topic, self.config.group_id)
    }

    /// Where messages wait until they are due.
    pub(crate) fn delay_topic(&self) -> String {
        format!("{}-buqueue-delay", self.config.topic)
    }

    /// Checks all that can be checked without a broker.
    pub(crate) fn validate(&self, consuming: bool) -> Result<()> {
        let config = &self.config;
        check_brokers(&config.brokers)?;
        let is_name =
            |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        let topic = &config.topic;
        if topic.is_empty() || !is_name(topic) || matches!(topic.as_str(), "." | "..") {
            return Err(invalid(format!(
                "topic: must be of letters, digits, `.`, `_` and `-`, is {topic:?}"
            )));
        }
        if self.delay_topic().len() > LONGEST_TOPIC {
            return Err(invalid(format!(
                "topic: must be of {} bytes at most",
                LONGEST_TOPIC - "-buqueue-delay".len()
            )));
        }
        if consuming {
            if config.group_id.is_empty() || !is_name(&config.group_id) {
                let fact =
                    "group_id: must be of letters, digits, `.`, `_` and `-`: topics are named after it";
                return Err(invalid(format!("{fact}, is {:?}", config.group_id)));
            }
            if self.retry_topic().len() > LONGEST_TOPIC {
                return Err(invalid(
                    "group_id: the topic for its retries would have a name of over 249 bytes",
                ));
            }
        }
        if config.partitions < 1 {
            return Err(invalid(format!("partitions: must be at least 1, is {}", config.partitions)));
        }
        if config.replication_factor == Some(0) {
            return Err(invalid("replication_factor: must be at least 1"));
        }
        if let Some(sasl) = &config.security.sasl
            && (sasl.username.is_empty() || sasl.password.is_empty())
        {
            return Err(invalid("security.sasl: must have a username and a password"));
        }
        for (field, timeout) in [
            ("connection_timeout", self.connection_timeout),
            ("request_timeout", self.request_timeout),
            ("session_timeout", self.session_timeout),
        ] {
            if timeout < Duration::from_millis(100) {
                return Err(invalid(format!("{field}: must be at least 100 ms, is {timeout:?}")));
            }
        }
        if self.session_timeout > LONGEST_SESSION {
            return Err(invalid(format!(
                "session_timeout: must be at most {LONGEST_SESSION:?}, is {:?}",
                self.session_timeout
            )));
        }
        // The client wants a second more than what a fetch waits at the broker.
        if self.response_timeout < Duration::from_millis(1200) {
            return Err(invalid(format!(
                "response_timeout: must be at least 1.2 s, is {:?}",
                self.response_timeout
            )));
        }
        if self.max_in_flight == 0 {
            return Err(invalid("max_in_flight: must be at least 1"));
        }
        Ok(())
    }

    /// What every client of librdkafka is told.
    pub(crate) fn client(&self) -> ClientConfig {
        let config = &self.config;
        let mut client = ClientConfig::new();
        client
            .set("client.id", "buqueue")
            .set("bootstrap.servers", config.brokers.join(","))
            .set("socket.timeout.ms", self.response_timeout.as_millis().to_string())
            .set("socket.connection.setup.timeout.ms", "3000")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.fast.interval.ms", "100")
            // A topic that the brokers do not know is not waited for: it was declared.
            .set("topic.metadata.propagation.max.ms", "2000")
            // It is said to the client in more than one way, and this is the one that counts.
            .set_log_level(RDKafkaLogLevel::Emerg);
        let KafkaSecurity { tls, sasl } = &config.security;
        let protocol = match (tls.is_some(), sasl.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if let Some(tls) = tls {
            if let Some(file) = &tls.ca_file {
                client.set("ssl.ca.location", file);
            }
            if let Some((certificate, key)) = &tls.certificate_and_key_files {
                client.set("ssl.certificate.location", certificate).set("ssl.key.location", key);
            }
        }
        if let Some(sasl) = sasl {
            let mechanism = match sasl.mechanism {
                SaslMechanism::Plain => "PLAIN",
                SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            client
                .set("sasl.mechanism", mechanism)
                .set("sasl.username", &sasl.username)
                .set("sasl.password", &sasl.password);
        }
        client
    }

    /// What a producer is told beside that.
    pub(crate) fn producer(&self) -> ClientConfig {
        let mut producer = self.client();
        producer
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The brokers' own limit counts; theirs is 1 MiB by default, for the whole record.
            .set("message.max.bytes", "100000000")
            // Nothing waits for company: what is sent together is together already.
            .set("linger.ms", "0")
            .set("message.timeout.ms", self.request_timeout.as_millis().to_string())
            .set("compression.type", self.config.compression.as_str());
        producer
    }
}

pub(crate) fn invalid(fact: impl Into<String>) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

/// Not shown: what was meant as a user and a password may have lost its `@`.
pub(crate) fn check_brokers(brokers: &[String]) -> Result<()> {
    let is_host = |host: &str| !host.is_empty() && (!host.contains(':') || host.starts_with('['));
    let is_broker = |broker: &String| {
        broker.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok())
            && !broker.contains([',', ' ', '/', '@'])
    };
    if brokers.is_empty() {
        return Err(invalid("brokers: must name at least one, as in \"localhost:9092\""));
    }
    match brokers.iter().position(|broker| !is_broker(broker)) {
        Some(at) => Err(invalid(format!("brokers: must be host:port each, number {} is not", at + 1))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_at_fault_is_named() {
        let with = |change: fn(&mut KafkaConfig)| {
            let mut config = KafkaConfig::default();
            change(&mut config);
            KafkaOptions::new(config).validate(true)
        };
        assert!(with(|_| {}).is_ok());
        type Change = fn(&mut KafkaConfig);
        let cases: [(Change, &str); 9] = [
            (|config| config.brokers.clear(), "brokers"),
            (|config| config.brokers = vec!["localhost".to_owned()], "brokers"),
            (|config| config.brokers = vec!["kafka://localhost:9092".to_owned()], "brokers"),
            (|config| config.topic.clear(), "topic"),
            (|config| config.topic = "a b".to_owned(), "topic"),
            (|config| config.topic = "x".repeat(240), "topic"),
            (|config| config.group_id.clear(), "group_id"),
            (|config| config.partitions = 0, "partitions"),
            (|config| config.replication_factor = Some(0), "replication_factor"),
        ];
        for (change, field) in cases {
            let error = with(change).unwrap_err();
            assert!(error.kind == ErrorKind::InvalidConfig && error.message().starts_with(field), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_password() {
        let sasl = KafkaSasl {
            mechanism: SaslMechanism::Plain,
            username: "user".to_owned(),
            password: "canary".to_owned(),
        };
        let security = KafkaSecurity { tls: None, sasl: Some(sasl) };
        let options = KafkaOptions::new(KafkaConfig { security, ..KafkaConfig::default() });
        assert!(!format!("{options:?}").contains("canary"));
    }
}
