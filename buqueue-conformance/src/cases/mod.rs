//! The cases, by group. Each is named in the list of `list.rs`, with the promise that it keeps.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a case that cannot go on has failed")]

pub mod ack;
pub mod batch;
pub mod bounds;
pub mod build;
pub mod cancel;
pub mod dedup;
pub mod dlq;
pub mod dynamic;
pub mod endurance;
pub mod errors;
pub mod groups;
pub mod headers;
pub mod nack;
pub mod order;
pub mod process;
pub mod receive;
pub mod reconnect;
pub mod schedule;
pub mod send;
pub mod shutdown;
pub mod stats;
pub mod stream;
pub mod trace;
