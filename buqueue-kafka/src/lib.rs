//! The Kafka backend of buqueue.

mod backend;
mod config;
mod consumer;
mod convert;
mod delay;
mod error;
mod later;
mod lease;
mod levels;
mod metadata;
mod producer;
mod publisher;
mod reader;
mod session;
mod topology;
mod tracker;

pub use backend::KafkaBackend;
pub use config::{
    CompressionType, KafkaBuilderExt, KafkaConfig, KafkaOptions, KafkaSasl, KafkaSecurity, KafkaTls,
    OffsetReset, SaslMechanism,
};
pub use consumer::KafkaConsumer;
pub use producer::KafkaProducer;
