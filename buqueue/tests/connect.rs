//! A queue by its URL, and the same configuration from a file. No broker is needed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use buqueue::prelude::*;

/// Refused, told by the field, and without the secret.
fn refused(url: &str, beginning: &str) -> BuqueueError {
    let error = buqueue::connect(url).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig);
    assert!(error.message().starts_with(beginning), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    error
}

const SCHEMES: &[(&str, bool, &str)] = &[
    ("memory", cfg!(feature = "memory"), "memory"),
    ("kafka", cfg!(feature = "kafka"), "kafka"),
    ("nats", cfg!(feature = "nats"), "nats"),
    ("tls", cfg!(feature = "nats"), "nats"),
    ("amqp", cfg!(feature = "rabbitmq"), "rabbitmq"),
    ("amqps", cfg!(feature = "rabbitmq"), "rabbitmq"),
    ("redis", cfg!(feature = "redis"), "redis"),
    ("rediss", cfg!(feature = "redis"), "redis"),
    ("redis+sentinel", cfg!(feature = "redis"), "redis"),
    ("rediss+sentinel", cfg!(feature = "redis"), "redis"),
    ("redis+unix", cfg!(feature = "redis"), "redis"),
    ("valkey", cfg!(feature = "redis"), "redis"),
    ("valkeys", cfg!(feature = "redis"), "redis"),
    ("sqs", cfg!(feature = "sqs"), "sqs"),
    ("sqs+http", cfg!(feature = "sqs"), "sqs"),
];

/// Every URL of the documentation is one.
#[cfg(all(
    feature = "kafka",
    feature = "memory",
    feature = "nats",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqs"
))]
#[test]
fn the_urls_of_the_documentation_are_taken() {
    let documented =
        [include_str!("../README.md"), include_str!("../src/connect.rs")].map(|text| -> Vec<&str> {
            let schemes = ["memory", "kafka", "nats", "amqp", "redis", "sqs", "sqs+http"];
            let is_whole = |url: &&str| {
                let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
                schemes.contains(&scheme) && !url.ends_with("://") && !url.contains('…')
            };
            let rows = text.lines().filter(|line| line.trim_start_matches("/// ").starts_with('|'));
            rows.flat_map(|row| row.split('`')).filter(is_whole).collect()
        });
    assert!(documented.iter().all(|urls| urls.len() >= 6), "{documented:?}");
    for url in documented.into_iter().flatten() {
        if let Err(error) = buqueue::connect(url) {
            panic!("{url}: {error}");
        }
    }
}

#[test]
fn unknown_schemes_list_the_known_ones() {
    for (url, beginning) in [
        ("mqtt://user:canary@host", "url: unknown scheme; known are memory://"),
        ("canary://host", "url: unknown scheme"),
        ("", "url: must begin with one of memory://"),
        ("canary", "url: must begin with one of"),
    ] {
        let error = refused(url, beginning);
        for (scheme, _, _) in SCHEMES {
            assert!(error.message().contains(&format!("{scheme}://")), "{error}");
        }
    }
}

#[test]
fn what_is_not_compiled_in_names_its_feature() {
    for (scheme, compiled_in, feature) in SCHEMES {
        let url = format!("{scheme}://user:canary@host:1/x?no-such-key=1");
        if *compiled_in {
            // Whatever is wrong with it: its backend has looked at it.
            let error = buqueue::connect(&url).unwrap_err();
            assert!(!error.message().contains("needs the feature"), "{error}");
        } else {
            refused(&url, &format!("url: {scheme}:// needs the feature {feature:?}"));
        }
    }
}

#[cfg(feature = "memory")]
mod memory {
    use std::time::Duration;

    use buqueue::memory::{MemoryBackend, MemoryConfig};
    use buqueue::{AnyBuilder, Feature};

    use super::*;

    #[tokio::test]
    async fn a_message_goes_through_a_queue_that_a_url_names() {
        let dlq = DlqConfig { destination: "dead".to_owned(), max_receive_count: 1 };
        let builder = buqueue::connect("memory://orders?capacity=10&lease=1m")
            .unwrap()
            .dead_letter_queue(dlq)
            .drain_timeout(Duration::from_secs(1));
        let text = format!("{builder:?}");
        assert!(text.contains("orders") && text.contains("dead") && text.contains("1s"), "{text}");
        let (producer, mut consumer) = builder.build_pair().await.unwrap();
        producer.send(Message::new("hello")).await.unwrap();
        let delivery = consumer.receive().await.unwrap();
        assert_eq!(delivery.payload(), "hello");
        delivery.ack().await.unwrap();
        // The dead letter queue is there.
        producer.send(Message::new("bad")).await.unwrap();
        consumer.receive().await.unwrap().dead_letter("bad").await.unwrap();
        assert!(consumer.try_receive().await.unwrap().is_none());
        consumer.shutdown_handle().shutdown().await;
    }

    #[tokio::test]
    async fn each_url_is_a_queue_of_its_own_and_a_config_can_be_shared() {
        let connect = || buqueue::connect("memory://orders").unwrap();
        let producer = connect().build_producer().await.unwrap();
        producer.send(Message::new("lost on the other")).await.unwrap();
        let mut consumer = connect().build_consumer().await.unwrap();
        assert!(consumer.try_receive().await.unwrap().is_none());

        let config = MemoryConfig::from_url("memory://orders").unwrap();
        let builder = || AnyBuilder::from(MemoryBackend::builder(config.clone()));
        let producer = builder().build_producer().await.unwrap();
        producer.send(Message::new("shared")).await.unwrap();
        let mut consumer = builder().build_consumer().await.unwrap();
        consumer.receive().await.unwrap().ack().await.unwrap();
    }

    #[test]
    fn capabilities_are_those_of_the_configuration() {
        let capabilities = |url: &str| buqueue::connect(url).unwrap().capabilities();
        assert!(capabilities("memory://orders").require(Feature::Deduplication).is_ok());
        let without = capabilities("memory://orders?deduplication_window=0s");
        assert!(without.require(Feature::Deduplication).is_err());
    }

    #[tokio::test]
    async fn what_a_value_says_is_checked_when_it_is_built() {
        let error = buqueue::connect("memory://orders?capacity=0").unwrap().build_pair().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
        assert!(error.message().starts_with("capacity: "), "{error}");
    }
}

#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "redis", feature = "sqs"))]
#[test]
fn every_backend_is_found_and_shows_no_secret() {
    for (url, backend, destination) in [
        ("redis://:canary@host?stream=orders", "redis", "orders"),
        ("redis+sentinel://:canary@a,b/svc?stream=orders&sentinel_password=canary", "redis", "orders"),
        ("kafka://u:canary@h:9092/orders?security.sasl.mechanism=plain", "kafka", "orders"),
        ("nats://u:canary@h:4222/ORDERS", "nats", "ORDERS"),
        ("tls://canary@h:4222/ORDERS", "nats", "ORDERS"),
        ("amqps://u:canary@h/v?queue=orders", "rabbitmq", "orders"),
        ("sqs://sqs.eu-west-1.amazonaws.com/1/orders", "aws_sqs", "eu-west-1.amazonaws.com/1/orders"),
        ("sqs+http://127.0.0.1:4566/1/orders", "aws_sqs", "http://127.0.0.1:4566/1/orders"),
    ] {
        let builder = buqueue::connect(url).unwrap();
        assert_eq!(builder.capabilities().backend(), backend);
        let text = format!("{builder:?}");
        assert!(text.contains(destination) && !text.contains("canary"), "{text}");
    }
}

#[cfg(all(
    feature = "kafka",
    feature = "memory",
    feature = "nats",
    feature = "rabbitmq",
    feature = "redis",
    feature = "serde",
    feature = "sqs"
))]
mod files {
    use std::fmt::Debug;

    use buqueue::kafka::KafkaConfig;
    use buqueue::memory::MemoryConfig;
    use buqueue::nats::NatsConfig;
    use buqueue::prelude::*;
    use buqueue::rabbitmq::RabbitMqConfig;
    use buqueue::redis::RedisConfig;
    use buqueue::sqs::SqsConfig;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    fn read<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
        // From text: a deserializer of values has other ways.
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())
    }

    /// A file and a URL say the same; nothing has to be said; and what nobody knows is refused.
    fn holds<T: DeserializeOwned + Default + Debug + PartialEq>(
        mut file: Value,
        url: Result<T, BuqueueError>,
        fields: &[&str],
    ) {
        assert_eq!(read::<T>(&file).unwrap(), url.unwrap());
        assert_eq!(read::<T>(&json!({})).unwrap(), T::default());
        file["canary"] = json!("secret");
        let error = read::<T>(&file).unwrap_err();
        assert!(error.contains("unknown field `canary`") && !error.contains("secret"), "{error}");
        for field in fields {
            assert!(error.contains(&format!("`{field}`")), "{field} is not listed: {error}");
        }
    }

    /// What belongs somewhere else may be a URL with a password in it.
    #[test]
    fn a_string_in_place_of_fields_is_not_shown() {
        let url = json!("scheme://user:canary@host");
        let security = json!({ "security": url });
        let sasl = json!({ "security": { "sasl": url } });
        for error in [
            read::<KafkaConfig>(&url).unwrap_err(),
            read::<KafkaConfig>(&security).unwrap_err(),
            read::<KafkaConfig>(&sasl).unwrap_err(),
            read::<NatsConfig>(&url).unwrap_err(),
            read::<RabbitMqConfig>(&url).unwrap_err(),
            read::<RedisConfig>(&url).unwrap_err(),
            read::<SqsConfig>(&url).unwrap_err(),
        ] {
            assert!(error.contains("must be the fields of") && !error.contains("canary"), "{error}");
        }
    }

    /// By the name of the type, where a function of its own would come before the trait's.
    #[test]
    fn nor_where_it_is_read_by_name() {
        use serde::Deserialize;

        let url = json!("amqp://user:canary@host");
        for error in [
            KafkaConfig::deserialize(&url).unwrap_err(),
            buqueue::kafka::KafkaSecurity::deserialize(&url).unwrap_err(),
            buqueue::kafka::KafkaSasl::deserialize(&url).unwrap_err(),
            NatsConfig::deserialize(&url).unwrap_err(),
            RabbitMqConfig::deserialize(&url).unwrap_err(),
            RedisConfig::deserialize(&url).unwrap_err(),
            SqsConfig::deserialize(&url).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains("must be the fields of") && !error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn memory() {
        let file =
            json!({ "queue": "orders", "capacity": 7, "lease": "1m30s", "deduplication_window": "0s" });
        let read = read::<MemoryConfig>(&file).unwrap();
        let url =
            MemoryConfig::from_url("memory://orders?capacity=7&lease=90s&deduplication_window=0s").unwrap();
        // Brokers are never the same, and cannot be named.
        assert_ne!(read, url);
        assert_eq!(MemoryConfig { broker: url.broker.clone(), ..read }, url);
        for file in [json!({ "broker": "orders" }), json!({ "canary": 1 })] {
            assert!(super::files::read::<MemoryConfig>(&file).unwrap_err().contains("unknown field"));
        }
    }

    #[test]
    fn kafka() {
        let sasl = json!({ "mechanism": "scram_sha256", "username": "u", "password": "p" });
        let tls = json!({ "ca_file": "/ca.pem", "certificate_and_key_files": ["/c.pem", "/k.pem"] });
        holds(
            json!({
                "brokers": ["h1:9092", "h2:9092"],
                "topic": "orders",
                "group_id": "workers",
                "offset_reset": "earliest",
                "compression": "lz4",
                "partitions": 3,
                "replication_factor": 2,
                "security": { "tls": tls, "sasl": sasl },
            }),
            KafkaConfig::from_url(
                "kafka://u:p@h1:9092,h2:9092/orders?group_id=workers&offset_reset=earliest&compression=lz4\
                 &partitions=3&replication_factor=2&security.tls.ca_file=/ca.pem\
                 &security.tls.certificate_and_key_files=/c.pem,/k.pem&security.sasl.mechanism=scram_sha256",
            ),
            &["brokers", "topic", "group_id", "offset_reset", "compression", "partitions", "security"],
        );
        // A password of digits, without its quotes.
        let sasl = json!({ "mechanism": "plain", "username": "u", "password": 4711 });
        let error = read::<KafkaConfig>(&json!({ "security": { "sasl": sasl } })).unwrap_err();
        assert!(error.contains("must be a string") && !error.contains("4711"), "{error}");
    }

    #[test]
    fn nats() {
        holds(
            json!({
                "url": "tls://u:p@host:4222",
                "credentials_file": "/x.creds",
                "jetstream": {
                    "stream_name": "ORDERS",
                    "subjects": ["orders.>", "x.y"],
                    "storage": "memory",
                    "max_age": "7d",
                    "retention": "work_queue",
                    "max_messages": 1,
                    "max_bytes": 2,
                    "max_message_size": 3,
                    "num_replicas": 4,
                    "duplicate_window": "5s",
                    "discard": "old",
                },
                "durable_consumer": "workers",
                "deliver_policy": "last",
                "ack_policy": "explicit",
                "ack_wait": "1m",
                "max_ack_pending": -1,
            }),
            NatsConfig::from_url(
                "tls://u:p@host:4222/ORDERS?credentials_file=/x.creds&subjects=orders.>,x.y&storage=memory\
                 &max_age=7d&retention=work_queue&max_messages=1&max_bytes=2&max_message_size=3&num_replicas=4\
                 &duplicate_window=5s&discard=old&durable_consumer=workers&deliver_policy=last\
                 &ack_policy=explicit&ack_wait=1m&max_ack_pending=-1",
            ),
            &["url", "jetstream", "durable_consumer", "ack_wait"],
        );
        let error = read::<NatsConfig>(&json!({ "jetstream": { "canary": 1 } })).unwrap_err();
        assert!(error.contains("unknown field `canary`"), "{error}");
    }

    #[test]
    fn rabbitmq() {
        let exchange =
            json!({ "name": "events", "kind": "topic", "binding_key": "orders.#", "durable": false });
        holds(
            json!({
                "url": "amqp://u:p@host:5672/%2F",
                "queue": "orders",
                "queue_type": "classic",
                "durable": false,
                "exchange": exchange,
                "connection_timeout": "5s",
                "prefetch_count": 7,
            }),
            RabbitMqConfig::from_url(
                "amqp://u:p@host:5672/%2F?queue=orders&queue_type=classic&durable=false&connection_timeout=5s\
                 &prefetch_count=7&exchange.name=events&exchange.kind=topic&exchange.binding_key=orders.#\
                 &exchange.durable=false",
            ),
            &["url", "queue", "exchange", "prefetch_count"],
        );
        let error = read::<RabbitMqConfig>(&json!({ "exchange": { "kind": "Topic" } })).unwrap_err();
        assert!(error.contains("`topic`"), "{error}");
    }

    #[test]
    fn redis() {
        holds(
            json!({
                "url": "rediss://u:p@host:6379/0",
                "stream": "orders",
                "group": "workers",
                "consumer": "one",
                "read_count": 7,
                "block_ms": 500,
                "pending_timeout": "5m",
            }),
            RedisConfig::from_url(
                "rediss://u:p@host:6379/0?stream=orders&group=workers&consumer=one&read_count=7&block_ms=500\
                 &pending_timeout=5m",
            ),
            &["url", "stream", "group", "pending_timeout"],
        );
        let error = read::<RedisConfig>(&json!({ "pending_timeout": 60 })).unwrap_err();
        assert!(error.contains("a duration as in \"30s\""), "{error}");
    }

    #[test]
    fn sqs() {
        holds(
            json!({
                "queue_url": "https://sqs.eu-west-1.amazonaws.com/123456789012/orders",
                "region": "eu-west-1",
                "visibility_timeout": "5m",
                "endpoint_url": "http://127.0.0.1:4566",
                "wait_time": "20s",
                "fair_queues": true,
                "create_queue": false,
            }),
            SqsConfig::from_url(
                "sqs://sqs.eu-west-1.amazonaws.com/123456789012/orders?visibility_timeout=300s\
                 &endpoint_url=http://127.0.0.1:4566&wait_time=20s&fair_queues=true&create_queue=false",
            ),
            &["queue_url", "region", "visibility_timeout", "wait_time"],
        );
        let queue_default = read::<SqsConfig>(&json!({ "visibility_timeout": "queue_default" })).unwrap();
        let url = "sqs://h/1/orders?visibility_timeout=queue_default";
        assert_eq!(queue_default.visibility_timeout, SqsConfig::from_url(url).unwrap().visibility_timeout);
        let error = read::<SqsConfig>(&json!({ "visibility_timeout": "1500ms" })).unwrap_err();
        assert!(error.contains("visibility_timeout: must be queue_default"), "{error}");
    }

    #[test]
    fn dead_letters() {
        let file = json!({ "destination": "dead", "max_receive_count": 3 });
        let expected = DlqConfig { destination: "dead".to_owned(), max_receive_count: 3 };
        assert_eq!(read::<DlqConfig>(&file).unwrap(), expected);
        assert!(
            read::<DlqConfig>(&json!({ "destination": "dead" })).unwrap_err().contains("max_receive_count")
        );
        let file = json!({ "destination": "dead", "max_receive_count": 3, "canary": 1 });
        assert!(read::<DlqConfig>(&file).unwrap_err().contains("unknown field `canary`"));
    }
}
