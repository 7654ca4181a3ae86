//! The configuration as one URL.

use buqueue_core::Result;
use buqueue_core::url::UrlParts;

use crate::config::{
    AckPolicy, DeliverPolicy, DiscardPolicy, JetStreamConfig, NatsConfig, RetentionPolicy, StorageType,
    check_name, invalid, servers,
};

const DELIVER_POLICIES: &[(&str, DeliverPolicy)] =
    &[("new", DeliverPolicy::New), ("all", DeliverPolicy::All), ("last", DeliverPolicy::Last)];

const ACK_POLICIES: &[(&str, AckPolicy)] = &[("explicit", AckPolicy::Explicit), ("none", AckPolicy::None)];

const STORAGES: &[(&str, StorageType)] = &[("file", StorageType::File), ("memory", StorageType::Memory)];

const RETENTIONS: &[(&str, RetentionPolicy)] = &[
    ("limits", RetentionPolicy::Limits),
    ("work_queue", RetentionPolicy::WorkQueue),
    ("interest", RetentionPolicy::Interest),
];

const DISCARDS: &[(&str, DiscardPolicy)] = &[("new", DiscardPolicy::New), ("old", DiscardPolicy::Old)];

impl NatsConfig {
    /// Reads `nats://host:port/STREAM` or `tls://…`, with the other fields and those of [`JetStreamConfig`] in its query:
    /// `nats://host:4222/ORDERS?durable_consumer=workers&subjects=orders.>,returns&max_age=7d`.
    ///
    /// Of several servers, `nats://one:4222,two:4222/ORDERS`, all have the scheme and the credentials of the first. What is
    /// not there is as in [`default`](Self::default); but the subjects are `STREAM.>` then, so that no two streams want the
    /// same. The options of [`NatsBuilderExt`](crate::NatsBuilderExt) are not in the URL.
    ///
    /// # Errors
    /// [`InvalidConfig`](buqueue_core::ErrorKind::InvalidConfig), with `url` or the field at fault. What the values say is
    /// checked when the queue is built.
    pub fn from_url(url: &str) -> Result<Self> {
        let (parts, mut query) = UrlParts::parse(url, &["nats", "tls"])?;
        let url = addresses(&parts)?;
        let stream_name = parts.name("stream_name", "nats://host:4222/ORDERS")?;
        check_name("stream_name", &stream_name)?;
        let subjects = vec![format!("{stream_name}.>")];
        let mut config = Self {
            url,
            jetstream: JetStreamConfig { stream_name, subjects, ..JetStreamConfig::default() },
            ..Self::default()
        };
        query.set("credentials_file", &mut config.credentials_file)?;
        query.set("durable_consumer", &mut config.durable_consumer)?;
        query.choose("deliver_policy", &mut config.deliver_policy, DELIVER_POLICIES)?;
        query.choose("ack_policy", &mut config.ack_policy, ACK_POLICIES)?;
        query.set("ack_wait", &mut config.ack_wait)?;
        query.set("max_ack_pending", &mut config.max_ack_pending)?;
        let stream = &mut config.jetstream;
        query.set("subjects", &mut stream.subjects)?;
        query.choose("storage", &mut stream.storage, STORAGES)?;
        query.set("max_age", &mut stream.max_age)?;
        query.choose("retention", &mut stream.retention, RETENTIONS)?;
        query.set("max_messages", &mut stream.max_messages)?;
        query.set("max_bytes", &mut stream.max_bytes)?;
        query.set("max_message_size", &mut stream.max_message_size)?;
        query.set("num_replicas", &mut stream.num_replicas)?;
        query.set("duplicate_window", &mut stream.duplicate_window)?;
        query.choose("discard", &mut stream.discard, DISCARDS)?;
        query.finish()?;
        Ok(config)
    }
}

/// The servers as the config's field takes them.
fn addresses(parts: &UrlParts<'_>) -> Result<String> {
    let credentials = parts.user_info();
    if parts.hosts().split(',').any(str::is_empty) {
        return Err(invalid("url: has no server, or one without a name, as in nats://host:4222/ORDERS"));
    }
    let scheme = parts.scheme();
    let address = |host: &str| match credentials {
        Some(credentials) => format!("{scheme}://{credentials}@{host}"),
        None => format!("{scheme}://{host}"),
    };
    let addresses = parts.hosts().split(',').map(address).collect::<Vec<_>>().join(",");
    servers(&addresses)?;
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use buqueue_core::ErrorKind;

    use super::*;

    #[test]
    fn a_url_says_every_field() {
        let url = "tls://user:p%40ss@one:4222,two/ORDERS?credentials_file=/x.creds&durable_consumer=workers\
                   &deliver_policy=all&ack_policy=none&ack_wait=1m&max_ack_pending=-1&subjects=orders.>,x.*.y\
                   &storage=memory&max_age=7d&retention=limits&max_messages=1&max_bytes=2&max_message_size=3\
                   &num_replicas=4&duplicate_window=5s&discard=old";
        let expected = NatsConfig {
            url: "tls://user:p%40ss@one:4222,tls://user:p%40ss@two".to_owned(),
            credentials_file: Some("/x.creds".to_owned()),
            jetstream: JetStreamConfig {
                stream_name: "ORDERS".to_owned(),
                subjects: vec!["orders.>".to_owned(), "x.*.y".to_owned()],
                storage: StorageType::Memory,
                max_age: Duration::from_secs(7 * 24 * 3600),
                retention: RetentionPolicy::Limits,
                max_messages: 1,
                max_bytes: 2,
                max_message_size: 3,
                num_replicas: 4,
                duplicate_window: Duration::from_secs(5),
                discard: DiscardPolicy::Old,
            },
            durable_consumer: "workers".to_owned(),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            ack_wait: Duration::from_secs(60),
            max_ack_pending: -1,
        };
        assert_eq!(NatsConfig::from_url(url).unwrap(), expected);
        let expected = NatsConfig {
            url: "nats://host:4222".to_owned(),
            jetstream: JetStreamConfig {
                stream_name: "ORDERS".to_owned(),
                subjects: vec!["ORDERS.>".to_owned()],
                ..JetStreamConfig::default()
            },
            ..NatsConfig::default()
        };
        assert_eq!(NatsConfig::from_url("nats://host:4222/ORDERS").unwrap(), expected);
    }

    #[test]
    fn every_choice_has_its_name() {
        let read = |key: &str, name: &str| NatsConfig::from_url(&format!("nats://h/S?{key}={name}")).unwrap();
        for (name, value) in DELIVER_POLICIES {
            assert_eq!(read("deliver_policy", name).deliver_policy, *value);
        }
        for (name, value) in ACK_POLICIES {
            assert_eq!(read("ack_policy", name).ack_policy, *value);
        }
        for (name, value) in STORAGES {
            assert_eq!(read("storage", name).jetstream.storage, *value);
        }
        for (name, value) in RETENTIONS {
            assert_eq!(read("retention", name).jetstream.retention, *value);
        }
        for (name, value) in DISCARDS {
            assert_eq!(read("discard", name).jetstream.discard, *value);
        }
    }

    #[test]
    fn wrong_urls_name_the_fault_and_no_secret() {
        for (url, beginning) in [
            ("http://u:canary@h/S", "url: must begin with nats:// or tls://"),
            ("nats://u:can/ary@h/S", "url: has an `@`"),
            ("nats://u:canary,x@h/S", "url: the user or the password has a `#`"),
            ("nats://u:canary@h,u:canary@i/S", "url: the user or the password has a `#`"),
            ("nats://u:canary@h:port/S", "url: is no server address"),
            ("nats:///S", "url: has no server"),
            ("nats://u:canary@h,/S", "url: has no server"),
            ("nats://u:canary@h", "stream_name: is missing"),
            ("nats://h/%zz", "stream_name: has a `%`"),
            ("nats://h,nats://i/S", "stream_name: "),
            ("nats://h/S?credentials_file=%zz", "credentials_file: has a `%`"),
            ("nats://h/S?durable_consumer=%zz", "durable_consumer: has a `%`"),
            ("nats://h/S?deliver_policy=no", "deliver_policy: must be one of new, all, last"),
            ("nats://h/S?ack_policy=no", "ack_policy: must be one of explicit, none"),
            ("nats://h/S?ack_wait=30", "ack_wait: must be a duration"),
            ("nats://h/S?max_ack_pending=no", "max_ack_pending: must be a whole number"),
            ("nats://h/S?subjects=a,%zz", "subjects: has a `%`"),
            ("nats://h/S?storage=no", "storage: must be one of file, memory"),
            ("nats://h/S?max_age=7", "max_age: must be a duration"),
            ("nats://h/S?retention=no", "retention: must be one of limits, work_queue, interest"),
            ("nats://h/S?max_messages=no", "max_messages: must be a whole number"),
            ("nats://h/S?max_bytes=no", "max_bytes: must be a whole number"),
            ("nats://h/S?max_message_size=no", "max_message_size: must be a whole number"),
            ("nats://h/S?num_replicas=-1", "num_replicas: must be a whole number"),
            ("nats://h/S?duplicate_window=no", "duplicate_window: must be a duration"),
            ("nats://h/S?discard=no", "discard: must be one of new, old"),
            ("nats://h/S?storage=file&storage=memory", "url: the key \"storage\" is there twice"),
            (
                "nats://u:canary@h/S?stream_name=canary",
                "url: unknown key \"stream_name\"; known are credentials_file",
            ),
        ] {
            let error = NatsConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(beginning), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
