//! The configuration as one URL.

use buqueue_core::Result;
use buqueue_core::url::{UrlParts, UrlQuery};

use crate::config::{ExchangeConfig, ExchangeKind, QueueType, RabbitMqConfig, invalid, parse};

const QUEUE_TYPES: &[(&str, QueueType)] = &[("classic", QueueType::Classic), ("quorum", QueueType::Quorum)];

const EXCHANGE_KINDS: &[(&str, Option<ExchangeKind>)] = &[
    ("direct", Some(ExchangeKind::Direct)),
    ("topic", Some(ExchangeKind::Topic)),
    ("fanout", Some(ExchangeKind::Fanout)),
    ("headers", Some(ExchangeKind::Headers)),
];

/// Parameters that the client reads in its own URL.
const OWN: &[&str] = &["heartbeat", "channel_max", "frame_max", "auth_mechanism"];

impl RabbitMqConfig {
    /// Reads a [`url`](Self::url) with the other fields in its query:
    /// `amqps://user:password@host:5671/vhost?queue=orders&connection_timeout=5s`.
    ///
    /// What stands before the `?` is handed to the client as it is, and so are its parameters `heartbeat` (in seconds),
    /// `channel_max`, `frame_max` and `auth_mechanism` (`external` logs in by
    /// [`client_certificate`](crate::RabbitMqBuilderExt::client_certificate)). Without a path the vhost is `/`; with an empty
    /// one, `host/?…`, it is the empty name. `queue` must be there. An exchange is
    /// `exchange.name=events&exchange.kind=topic&exchange.binding_key=orders.%23`, and `exchange.durable=false` where it
    /// shall not survive. What is not there is as in [`default`](Self::default). The options of
    /// [`RabbitMqBuilderExt`](crate::RabbitMqBuilderExt) are not in the URL.
    ///
    /// # Errors
    /// [`InvalidConfig`](buqueue_core::ErrorKind::InvalidConfig), with `url` or the field at fault. What the values say is
    /// checked when the queue is built.
    pub fn from_url(url: &str) -> Result<Self> {
        let (parts, mut query) = UrlParts::parse(url, &["amqp", "amqps"])?;
        let mut config = Self::default();
        query.require("queue", &mut config.queue, "amqp://host:5672/vhost?queue=orders")?;
        query.choose("queue_type", &mut config.queue_type, QUEUE_TYPES)?;
        query.set("durable", &mut config.durable)?;
        query.set("connection_timeout", &mut config.connection_timeout)?;
        query.set("prefetch_count", &mut config.prefetch_count)?;
        config.exchange = exchange(&mut query)?;
        config.url = format!("{}{}", parts.base(), query.keep(OWN));
        query.finish()?;
        parse(&config.url)?;
        Ok(config)
    }
}

fn exchange(query: &mut UrlQuery<'_>) -> Result<Option<ExchangeConfig>> {
    let (mut name, mut kind, mut binding_key, mut durable) = (None, None, None::<String>, None);
    query.set("exchange.name", &mut name)?;
    query.choose("exchange.kind", &mut kind, EXCHANGE_KINDS)?;
    query.set("exchange.binding_key", &mut binding_key)?;
    query.set("exchange.durable", &mut durable)?;
    match (name, kind) {
        (Some(name), Some(kind)) => Ok(Some(ExchangeConfig {
            name,
            kind,
            binding_key: binding_key.unwrap_or_default(),
            durable: durable.unwrap_or(true),
        })),
        (Some(_), None) => Err(invalid("exchange.kind: is missing in the URL, as in ?exchange.kind=topic")),
        (None, None) if binding_key.is_none() && durable.is_none() => Ok(None),
        (None, _) => Err(invalid("exchange.name: is missing in the URL, as in ?exchange.name=events")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use buqueue_core::ErrorKind;
    use lapin::uri::SASLMechanism;

    use super::*;

    #[test]
    fn a_url_says_every_field() {
        let url = "amqps://user:p%40ss@host:5671/%2F?queue=orders&queue_type=classic&durable=false\
                   &connection_timeout=5s&prefetch_count=7&exchange.name=events&exchange.kind=topic\
                   &exchange.binding_key=orders.%23&exchange.durable=false";
        let expected = RabbitMqConfig {
            url: "amqps://user:p%40ss@host:5671/%2F".to_owned(),
            queue: "orders".to_owned(),
            queue_type: QueueType::Classic,
            durable: false,
            exchange: Some(ExchangeConfig {
                name: "events".to_owned(),
                kind: ExchangeKind::Topic,
                binding_key: "orders.#".to_owned(),
                durable: false,
            }),
            connection_timeout: Duration::from_secs(5),
            prefetch_count: 7,
        };
        assert_eq!(RabbitMqConfig::from_url(url).unwrap(), expected);
        let expected = RabbitMqConfig {
            url: "amqp://host".to_owned(),
            queue: "orders".to_owned(),
            ..RabbitMqConfig::default()
        };
        assert_eq!(RabbitMqConfig::from_url("amqp://host?queue=orders").unwrap(), expected);
    }

    #[test]
    fn the_clients_own_parameters_stay_in_its_url() {
        let url = "amqp://h/v?frame_max=1&queue=q&heartbeat=9&auth_mechanism=plain&channel_max=2";
        let config = RabbitMqConfig::from_url(url).unwrap();
        assert_eq!(config.url, "amqp://h/v?heartbeat=9&channel_max=2&frame_max=1&auth_mechanism=plain");
        assert_eq!(parse(&config.url).unwrap().query.heartbeat, Some(9));
        let config = RabbitMqConfig::from_url("amqps://h/v?queue=q&auth_mechanism=external").unwrap();
        assert_eq!(config.url, "amqps://h/v?auth_mechanism=external");
        assert_eq!(parse(&config.url).unwrap().query.auth_mechanism, Some(SASLMechanism::External));
    }

    #[test]
    fn every_choice_has_its_name() {
        for (name, value) in QUEUE_TYPES {
            let url = format!("amqp://h?queue=q&queue_type={name}");
            assert_eq!(RabbitMqConfig::from_url(&url).unwrap().queue_type, *value);
            assert_eq!(value.as_str(), *name);
        }
        for (name, value) in EXCHANGE_KINDS {
            let url = format!("amqp://h?queue=q&exchange.name=e&exchange.kind={name}");
            let exchange = RabbitMqConfig::from_url(&url).unwrap().exchange.unwrap();
            assert_eq!((Some(exchange.kind), exchange.binding_key.as_str()), (*value, ""));
            assert!(exchange.durable);
        }
    }

    #[test]
    fn wrong_urls_name_the_fault_and_no_secret() {
        for (url, beginning) in [
            ("http://u:canary@h", "url: must begin with amqp:// or amqps://"),
            ("amqp://u:can/ary@h/v?queue=q", "url: has an `@`"),
            ("amqp://u:canary@h:port/v?queue=q", "url: is no amqp://"),
            ("amqp://u:canary@h?queue=q&heartbeat=soon", "url: is no amqp://"),
            ("amqp://u:canary@h/v", "queue: is missing"),
            ("amqp://h?queue=%zz", "queue: has a `%`"),
            ("amqp://h?queue=q&queue_type=no", "queue_type: must be one of classic, quorum"),
            ("amqp://h?queue=q&durable=yes", "durable: must be true or false"),
            ("amqp://h?queue=q&connection_timeout=5", "connection_timeout: must be a duration"),
            ("amqp://h?queue=q&prefetch_count=70000", "prefetch_count: must be a whole number"),
            ("amqp://h?queue=q&exchange.kind=no", "exchange.kind: must be one of direct, topic"),
            ("amqp://h?queue=q&exchange.name=e", "exchange.kind: is missing"),
            ("amqp://h?queue=q&exchange.kind=topic", "exchange.name: is missing"),
            ("amqp://h?queue=q&exchange.binding_key=x", "exchange.name: is missing"),
            ("amqp://h?queue=q&exchange.durable=true", "exchange.name: is missing"),
            ("amqp://h?queue=q&exchange.durable=1", "exchange.durable: must be true or false"),
            ("amqp://h?queue=q&exchange.name=%zz", "exchange.name: has a `%`"),
            ("amqp://h?queue=q&exchange.binding_key=%zz", "exchange.binding_key: has a `%`"),
            ("amqp://h?queue=q&queue=r", "url: the key \"queue\" is there twice"),
            (
                "amqp://u:canary@h?queue=q&url=canary",
                "url: unknown key \"url\"; known are queue, queue_type, durable, connection_timeout, \
                 prefetch_count, exchange.name, exchange.kind, exchange.binding_key, exchange.durable, heartbeat",
            ),
        ] {
            let error = RabbitMqConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(beginning), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
