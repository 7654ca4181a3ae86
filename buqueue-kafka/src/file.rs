//! Configurations in a file.
//!
//! The fields stand here once more, and the compiler compares them: on a public struct, serde would make a public function that
//! quotes a URL, with its password, where it stands in place of the fields.

use crate::config::{
    CompressionType, KafkaConfig, KafkaSasl, KafkaSecurity, KafkaTls, OffsetReset, SaslMechanism,
};

#[derive(serde::Deserialize)]
#[serde(remote = "KafkaConfig", default = "KafkaConfig::default", deny_unknown_fields)]
struct ConfigFields {
    brokers: Vec<String>,
    topic: String,
    group_id: String,
    offset_reset: OffsetReset,
    compression: CompressionType,
    partitions: i32,
    replication_factor: Option<u16>,
    security: KafkaSecurity,
}

buqueue_core::__deserialize_map_only!(KafkaConfig, ConfigFields);

#[derive(serde::Deserialize)]
#[serde(remote = "KafkaSecurity", default = "KafkaSecurity::default", deny_unknown_fields)]
struct SecurityFields {
    tls: Option<KafkaTls>,
    sasl: Option<KafkaSasl>,
}

buqueue_core::__deserialize_map_only!(KafkaSecurity, SecurityFields);

#[derive(serde::Deserialize)]
#[serde(remote = "KafkaSasl", deny_unknown_fields)]
struct SaslFields {
    mechanism: SaslMechanism,
    username: String,
    #[serde(deserialize_with = "buqueue_core::secret::deserialize")]
    password: String,
}

buqueue_core::__deserialize_map_only!(KafkaSasl, SaslFields);
