//! Redis Streams, for buqueue.
mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod error;
mod keys;
mod lease;
mod producer;
mod reader;
mod reclaim;
mod schedule;
mod scripts;

pub use backend::RedisBackend;
pub use config::{RedisBuilderExt, RedisConfig, RedisOptions};
pub use consumer::RedisConsumer;
pub use producer::RedisProducer;
