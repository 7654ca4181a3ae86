//! Configurations in a file.
//!
//! The fields stand here once more, and the compiler compares them: on a public struct, serde would make a public function that
//! quotes a URL, with its password, where it stands in place of the fields.

use std::time::Duration;

use crate::config::RedisConfig;

#[derive(serde::Deserialize)]
#[serde(remote = "RedisConfig", default = "RedisConfig::default", deny_unknown_fields)]
struct Fields {
    url: String,
    stream: String,
    group: String,
    consumer: String,
    read_count: usize,
    block_ms: u64,
    #[serde(with = "buqueue_core::duration")]
    pending_timeout: Duration,
}

buqueue_core::__deserialize_map_only!(RedisConfig, Fields);
