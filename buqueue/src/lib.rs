#![doc = include_str!("../README.md")]
//!
//! # Guides
//!
//! [Migrating to buqueue](https://github.com/buqueue/buqueue/blob/main/guides/migrating.md), from omniqueue, rdkafka, async-nats,
//! aws-sdk-sqs, lapin and redis. What to configure before production is in the crate documentation of each backend, under
//! *Production checklist*.
#![cfg_attr(docsrs, feature(doc_cfg))]

// What an application meets. The tools of backends stay in core; of the seam `Backend` is what generic code names.
pub use buqueue_core::{
    BuqueueError, Capabilities, Consumer, ConsumerStats, Delivery, DeliveryStream, DlqConfig, Dynamic,
    ErrorKind, Feature, Headers, Limits, Message, MessageBuilder, MessageId, Producer, QueueBuilder,
    QueueConsumer, QueueFuture, QueueMonitor, QueueProducer, QueueStats, RESERVED_PREFIX, Result,
    ShutdownHandle, Static, Support, driver,
};

mod connect;
pub mod prelude;

pub use connect::{AnyBuilder, connect};

/// The guide, compiled.
#[cfg(all(doctest, feature = "tracing", feature = "metrics"))]
#[doc = include_str!("../OBSERVING.md")]
mod observing {}

/// The in-memory backend, for tests and small programs (feature `memory`).
#[cfg(feature = "memory")]
pub mod memory {
    pub use buqueue_memory::*;
}

/// The Kafka backend (feature `kafka`).
#[cfg(feature = "kafka")]
pub mod kafka {
    pub use buqueue_kafka::*;
}

/// The NATS JetStream backend (feature `nats`).
#[cfg(feature = "nats")]
pub mod nats {
    pub use buqueue_nats::*;
}

/// The RabbitMQ backend (feature `rabbitmq`).
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq {
    pub use buqueue_rabbitmq::*;
}

/// The Redis Streams backend (feature `redis`).
#[cfg(feature = "redis")]
pub mod redis {
    pub use buqueue_redis::*;
}

/// The AWS SQS backend (feature `sqs`).
#[cfg(feature = "sqs")]
pub mod sqs {
    pub use buqueue_sqs::*;
}
