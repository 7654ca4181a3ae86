//! Configurations in a file.
//!
//! The fields stand here once more, and the compiler compares them: on a public struct, serde would make a public function that
//! quotes a URL, with its password, where it stands in place of the fields.

use std::time::Duration;

use crate::config::{SqsConfig, VisibilityTimeout};

#[derive(serde::Deserialize)]
#[serde(remote = "SqsConfig", default = "SqsConfig::default", deny_unknown_fields)]
struct Fields {
    queue_url: String,
    region: String,
    visibility_timeout: VisibilityTimeout,
    endpoint_url: Option<String>,
    #[serde(with = "buqueue_core::duration")]
    wait_time: Duration,
    fair_queues: bool,
    create_queue: bool,
}

buqueue_core::__deserialize_map_only!(SqsConfig, Fields);
