//! The NATS JetStream backend of buqueue.

mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod delay;
mod error;
mod lease;
mod producer;
mod reader;
mod requests;
mod subject;
mod topology;

pub use backend::NatsBackend;
pub use config::{
    AckPolicy, DeliverPolicy, DiscardPolicy, JetStreamConfig, NatsBuilderExt, NatsConfig, NatsOptions,
    RetentionPolicy, StorageType,
};
pub use consumer::NatsConsumer;
pub use producer::NatsProducer;
