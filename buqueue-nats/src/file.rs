//! Configurations in a file.
//!
//! The fields stand here once more, and the compiler compares them: on a public struct, serde would make a public function that
//! quotes a URL, with its password, where it stands in place of the fields.

use std::time::Duration;

use crate::config::{AckPolicy, DeliverPolicy, JetStreamConfig, NatsConfig};

#[derive(serde::Deserialize)]
#[serde(remote = "NatsConfig", default = "NatsConfig::default", deny_unknown_fields)]
struct Fields {
    url: String,
    credentials_file: Option<String>,
    jetstream: JetStreamConfig,
    durable_consumer: String,
    deliver_policy: DeliverPolicy,
    ack_policy: AckPolicy,
    #[serde(with = "buqueue_core::duration")]
    ack_wait: Duration,
    max_ack_pending: i64,
}

buqueue_core::__deserialize_map_only!(NatsConfig, Fields);
