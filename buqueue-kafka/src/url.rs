//! The configuration as one URL.

use buqueue_core::Result;
use buqueue_core::url::{UrlParts, UrlQuery};

use crate::config::{
    CompressionType, KafkaConfig, KafkaSasl, KafkaSecurity, KafkaTls, OffsetReset, SaslMechanism,
    check_brokers, invalid,
};

const OFFSET_RESETS: &[(&str, OffsetReset)] =
    &[("earliest", OffsetReset::Earliest), ("latest", OffsetReset::Latest)];

const COMPRESSIONS: &[(&str, CompressionType)] = &[
    ("none", CompressionType::None),
    ("gzip", CompressionType::Gzip),
    ("snappy", CompressionType::Snappy),
    ("lz4", CompressionType::Lz4),
    ("zstd", CompressionType::Zstd),
];

const MECHANISMS: &[(&str, Option<SaslMechanism>)] = &[
    ("plain", Some(SaslMechanism::Plain)),
    ("scram_sha256", Some(SaslMechanism::ScramSha256)),
    ("scram_sha512", Some(SaslMechanism::ScramSha512)),
];

const CA_FILE: &str = "security.tls.ca_file";
const CLIENT_FILES: &str = "security.tls.certificate_and_key_files";
const MECHANISM: &str = "security.sasl.mechanism";

impl KafkaConfig {
    /// Reads `kafka://broker:port,broker:port/topic`, with the other fields in its query:
    /// `kafka://one:9092,two:9092/orders?group_id=workers&partitions=3`.
    ///
    /// User and password stand before the brokers, and the query has the mechanism:
    /// `kafka://user:password@one:9092/orders?security.tls=true&security.sasl.mechanism=scram_sha512`. Encryption is
    /// `security.tls=true`, or `security.tls.ca_file=/ca.pem`, or
    /// `security.tls.certificate_and_key_files=/certificate.pem,/key.pem`. What is not there is as in
    /// [`default`](Self::default).
    ///
    /// # Errors
    /// [`InvalidConfig`](buqueue_core::ErrorKind::InvalidConfig), with `url` or the field at fault. What the values say is
    /// checked when the queue is built.
    pub fn from_url(url: &str) -> Result<Self> {
        let (parts, mut query) = UrlParts::parse(url, &["kafka"])?;
        if parts.hosts().is_empty() {
            return Err(invalid("brokers: are missing in the URL, as in kafka://one:9092,two:9092/orders"));
        }
        let brokers: Vec<String> = parts.hosts().split(',').map(str::to_owned).collect();
        check_brokers(&brokers)?;
        let mut config =
            Self { brokers, topic: parts.name("topic", "kafka://host:9092/orders")?, ..Self::default() };
        query.set("group_id", &mut config.group_id)?;
        query.choose("offset_reset", &mut config.offset_reset, OFFSET_RESETS)?;
        query.choose("compression", &mut config.compression, COMPRESSIONS)?;
        query.set("partitions", &mut config.partitions)?;
        query.set("replication_factor", &mut config.replication_factor)?;
        config.security = KafkaSecurity { tls: tls(&mut query)?, sasl: sasl(&parts, &mut query)? };
        query.finish()?;
        Ok(config)
    }
}

fn tls(query: &mut UrlQuery<'_>) -> Result<Option<KafkaTls>> {
    // A file is enough to ask for it, and not to be taken for a wish when it is refused.
    let with_files = query.has(CA_FILE) || query.has(CLIENT_FILES);
    let mut wanted = with_files;
    query.set("security.tls", &mut wanted)?;
    if with_files && !wanted {
        return Err(invalid("security.tls: is false, and there are files for it"));
    }
    let mut tls = KafkaTls::default();
    query.set(CA_FILE, &mut tls.ca_file)?;
    let mut files = None::<Vec<String>>;
    query.set(CLIENT_FILES, &mut files)?;
    tls.certificate_and_key_files = match files.as_deref() {
        None => None,
        Some([certificate, key]) => Some((certificate.clone(), key.clone())),
        Some(_) => return Err(invalid(format!("{CLIENT_FILES}: must be two files with a comma between"))),
    };
    Ok(wanted.then_some(tls))
}

fn sasl(parts: &UrlParts<'_>, query: &mut UrlQuery<'_>) -> Result<Option<KafkaSasl>> {
    let mut mechanism = None;
    query.choose(MECHANISM, &mut mechanism, MECHANISMS)?;
    match (parts.credentials()?, mechanism) {
        (None, None) => Ok(None),
        (Some((username, password)), Some(mechanism)) => {
            Ok(Some(KafkaSasl { mechanism, username, password }))
        }
        (Some(_), None) => {
            Err(invalid(format!("{MECHANISM}: is missing in the URL, as in kafka://…?{MECHANISM}=plain")))
        }
        (None, Some(_)) => {
            Err(invalid("url: has no user and password, as in kafka://user:password@host:9092"))
        }
    }
}

#[cfg(test)]
mod tests {
    use buqueue_core::ErrorKind;

    use super::*;

    #[test]
    fn a_url_says_every_field() {
        let url = "kafka://us%65r:p%40%2Css@one:9092,[::1]:9093/orders?group_id=workers&offset_reset=earliest\
                   &compression=zstd&partitions=3&replication_factor=2&security.tls.ca_file=/ca.pem\
                   &security.tls.certificate_and_key_files=/c.pem,/k.pem&security.sasl.mechanism=scram_sha512";
        let expected = KafkaConfig {
            brokers: vec!["one:9092".to_owned(), "[::1]:9093".to_owned()],
            topic: "orders".to_owned(),
            group_id: "workers".to_owned(),
            offset_reset: OffsetReset::Earliest,
            compression: CompressionType::Zstd,
            partitions: 3,
            replication_factor: Some(2),
            security: KafkaSecurity {
                tls: Some(KafkaTls {
                    ca_file: Some("/ca.pem".to_owned()),
                    certificate_and_key_files: Some(("/c.pem".to_owned(), "/k.pem".to_owned())),
                }),
                sasl: Some(KafkaSasl {
                    mechanism: SaslMechanism::ScramSha512,
                    username: "user".to_owned(),
                    password: "p@,ss".to_owned(),
                }),
            },
        };
        assert_eq!(KafkaConfig::from_url(url).unwrap(), expected);
        let expected = KafkaConfig {
            brokers: vec!["host:9092".to_owned()],
            topic: "orders".to_owned(),
            ..KafkaConfig::default()
        };
        assert_eq!(KafkaConfig::from_url("kafka://host:9092/orders").unwrap(), expected);
    }

    #[test]
    fn encryption_needs_no_file() {
        let tls = |url: &str| KafkaConfig::from_url(url).unwrap().security.tls;
        assert_eq!(tls("kafka://h:1/t?security.tls=true"), Some(KafkaTls::default()));
        assert_eq!(tls("kafka://h:1/t?security.tls=false"), None);
    }

    #[test]
    fn every_choice_has_its_name() {
        for (name, value) in OFFSET_RESETS {
            let url = format!("kafka://h:1/t?offset_reset={name}");
            assert_eq!(KafkaConfig::from_url(&url).unwrap().offset_reset, *value);
        }
        for (name, value) in COMPRESSIONS {
            let url = format!("kafka://h:1/t?compression={name}");
            assert_eq!(KafkaConfig::from_url(&url).unwrap().compression, *value);
            assert_eq!(value.as_str(), *name);
        }
        for (name, value) in MECHANISMS {
            let url = format!("kafka://u:p@h:1/t?security.sasl.mechanism={name}");
            let sasl = KafkaConfig::from_url(&url).unwrap().security.sasl;
            assert_eq!(sasl.map(|sasl| sasl.mechanism), *value);
        }
    }

    #[test]
    fn wrong_urls_name_the_fault_and_no_secret() {
        let plain = "security.sasl.mechanism=plain";
        for (url, beginning) in [
            ("redis://u:canary@h:1/t", "url: must begin with kafka://"),
            ("kafka://u:can/ary@h:1/canary", "url: has an `@`"),
            ("kafka:///orders", "brokers: are missing"),
            ("kafka://u:canary@/orders", "brokers: are missing"),
            ("kafka://u:canary@h:1", "topic: is missing"),
            ("kafka://u:canary@h:1/%zz", "topic: has a `%`"),
            ("kafka://u:canary@h:1/t", "security.sasl.mechanism: is missing"),
            (&format!("kafka://u:canary%zz@h:1/t?{plain}"), "url: the credentials"),
            (&format!("kafka://h:1/t?{plain}"), "url: has no user and password"),
            ("kafka://h:1/t?security.sasl.mechanism=no", "security.sasl.mechanism: must be one of plain"),
            ("kafka://h:1/t?group_id=%zz", "group_id: has a `%`"),
            ("kafka://h:1/t?offset_reset=no", "offset_reset: must be one of earliest, latest"),
            ("kafka://h:1/t?compression=no", "compression: must be one of none"),
            ("kafka://h:1/t?partitions=no", "partitions: must be a whole number"),
            ("kafka://h:1/t?replication_factor=-1", "replication_factor: must be a whole number"),
            ("kafka://h:1/t?security.tls=yes", "security.tls: must be true or false"),
            ("kafka://h:1/t?security.tls=false&security.tls.ca_file=/x", "security.tls: is false"),
            ("kafka://h:1/t?security.tls.ca_file=%zz", "security.tls.ca_file: has a `%`"),
            (
                "kafka://h:1/t?security.tls.certificate_and_key_files=/x",
                "security.tls.certificate_and_key_files: must be two",
            ),
            ("kafka://h:1/t?partitions=1&partitions=2", "url: the key \"partitions\" is there twice"),
            (
                &format!("kafka://u:canary@h:1/t?{plain}&password=canary"),
                "url: unknown key \"password\"; known are group_id, offset_reset, compression, partitions, \
                 replication_factor, security.tls, security.tls.ca_file, \
                 security.tls.certificate_and_key_files, security.sasl.mechanism",
            ),
        ] {
            let error = KafkaConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(beginning), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
