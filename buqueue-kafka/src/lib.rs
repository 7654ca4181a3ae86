//! The Kafka backend of buqueue.
mod levels;
mod metadata;
mod tracker;
