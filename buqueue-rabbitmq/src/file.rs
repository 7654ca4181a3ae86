//! Configurations in a file.
//!
//! The fields stand here once more, and the compiler compares them: on a public struct, serde would make a public function that
//! quotes a URL, with its password, where it stands in place of the fields.

use std::time::Duration;

use crate::config::{ExchangeConfig, QueueType, RabbitMqConfig};

#[derive(serde::Deserialize)]
#[serde(remote = "RabbitMqConfig", default = "RabbitMqConfig::default", deny_unknown_fields)]
struct Fields {
    url: String,
    queue: String,
    queue_type: QueueType,
    durable: bool,
    exchange: Option<ExchangeConfig>,
    #[serde(with = "buqueue_core::duration")]
    connection_timeout: Duration,
    prefetch_count: u16,
}

buqueue_core::__deserialize_map_only!(RabbitMqConfig, Fields);
