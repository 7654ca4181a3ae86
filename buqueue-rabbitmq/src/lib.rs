//! The RabbitMQ backend of buqueue.

mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod delay;
mod error;
mod lease;
mod producer;
mod publisher;
mod reader;
mod topology;

pub use backend::RabbitMqBackend;
pub use config::{
    ExchangeConfig, ExchangeKind, QueueType, RabbitMqBuilderExt, RabbitMqConfig, RabbitMqOptions,
};
pub use consumer::RabbitMqConsumer;
pub use producer::RabbitMqProducer;
