//! The Redis Streams backend of buqueue: streams with consumer groups, never Pub/Sub.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use buqueue_core::Message;
//! use buqueue_redis::{RedisBackend, RedisConfig};
//!
//! # async fn run() -> buqueue_core::Result<()> {
//! let config = RedisConfig {
//!     url: "redis://localhost:6379".to_owned(),
//!     stream: "orders".to_owned(),
//!     group: "billing".to_owned(),
//!     pending_timeout: Duration::from_secs(60),
//!     ..RedisConfig::default()
//! };
//! let (producer, mut consumer) = RedisBackend::builder(config).build_pair().await?;
//! producer.send(Message::new("hello")).await?;
//! consumer.receive().await?.ack().await?;
//! # Ok(()) }
//! ```
//!
//! As a URL ([`RedisConfig::from_url`]): `rediss://user:password@host:6379/0?stream=orders&group=billing`.
//!
//! Tested with Redis 7.0; needs the commands of 6.2, which Valkey has too. One server, sentinels, or a cluster ([`RedisBuilderExt::cluster_nodes`]).
//!
//! # How buqueue's words map
//!
//! | buqueue | Redis |
//! |---|---|
//! | queue | the stream [`RedisConfig::stream`]; one entry a message |
//! | payload, routing key, deduplication id, headers | the fields `p`, `k`, `d`, `h`; all headers in one field |
//! | message id | the entry's id (of a scheduled message: a name of its own until it is due) |
//! | consumer group, created at the beginning of the stream | `XGROUP CREATE … 0 MKSTREAM` |
//! | `receive` | `XREADGROUP` on a connection of its own, as far ahead as the consumer is fast, about 4 MiB at once |
//! | `ack` | `XACK`, and `XDEL` when no other group needs the entry; concurrent acks share one call |
//! | `nack`, dropped delivery, expired lease | to the group's retry stream, with the count, in one script |
//! | `nack_after` | to a sorted set, and from there to the retry stream when it is due |
//! | `extend_visibility` | resets the idle time; beyond the pending timeout it is noted in a sorted set |
//! | `send_at` | to a sorted set, and from there to the stream when it is due |
//! | deduplication | a key for each id, with an expiry ([`RedisBuilderExt::deduplication_window`]) |
//! | dead letter queue | another stream |
//!
//! With several groups, entries are deleted when the slowest group is done with them: a group that nobody uses any
//! more stops that, and one that is created later does not get what is deleted.
//!
//! # Keys
//!
//! Beside `stream` there are `{stream}:retry:group`, `{stream}:delayed:group`, `{stream}:holds:group`,
//! `{stream}:schedule`, `{stream}:dedup:id` and `{stream}:broken`. The braces are a hash tag: in a cluster all of
//! them share the stream's slot. A stream whose name has a hash tag keeps it, and the others are
//! `a{b}c:bq:retry:group` and so on.
//!
//! `{stream}:broken` is a list for a human to look at: what is unreadable in a sorted set, and entries of others with
//! more than 3900 fields, packed, once they failed: no script can write them again.
//!
//! # What `queue_stats` counts
//!
//! What lies before [`RedisConfig::group`], also when that group was not created yet; a producer counts for the group in
//! its own configuration. Ready: entries of the stream and of the group's retry stream that it was not given, and what is
//! due and waits for a running consumer to move it. In flight: what is pending, read ahead or not, until somebody takes it
//! back after its lease. Scheduled: what `send_at` (for all groups) and `nack_after` (of this one) have put away.
//!
//! One script that only reads. It takes longer only where a server before 7.0, or one where others have deleted entries,
//! does not know how far one of several groups lags; it then looks at a thousand entries or a megabyte, and if there are
//! more, what other groups still need is counted too.
//!
//! # Permissions
//!
//! On these keys: `XADD XREADGROUP XACK XDEL XRANGE XPENDING XCLAIM XGROUP XINFO XTRIM ZADD ZREM ZSCORE
//! ZRANGE ZRANGEBYSCORE ZREMRANGEBYSCORE RPUSH GET SET EXISTS TYPE`, and for `queue_stats` `XLEN ZCOUNT`; besides `EVAL EVALSHA TIME PING CLIENT|ID
//! CLIENT|UNBLOCK`. Where `CLIENT UNBLOCK` is not allowed, reads wait in short turns instead.
//!
//! # Limits
//!
//! Payloads up to 511 MiB ([`RedisBuilderExt::max_payload`]); everything is held in the server's memory. A message must
//! cross the network within [`RedisBuilderExt::command_timeout`] when it is sent; when it is received, within the
//! same or, after failing at that, up to a minute. Both are part of its lease. Schedules reach as far as a date does.
//!
//! # Not promised
//!
//! * Redis loses what it has not written: set `appendonly yes`, and `appendfsync always` where a second matters. With
//!   `everysec` it answers before it writes while the disk is slow, for up to two seconds: then also a Redis that is
//!   killed, on a machine that goes on, loses what it confirmed. A failover to a replica loses what was not replicated.
//! * `maxmemory-policy` must be `noeviction`; any other may evict a queue.
//! * A second program that calls `XCLAIM`, `XAUTOCLAIM`, `XDEL` or `XTRIM` on these streams takes messages away.
//! * A message that a process had read ahead when it was killed has used up an attempt, although no handler saw it.
//!   buqueue reads ahead only while the consumer is fast, and never what has failed before.

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
mod stats;
mod url;

pub use backend::RedisBackend;
pub use config::{RedisBuilderExt, RedisConfig, RedisOptions};
pub use consumer::RedisConsumer;
pub use producer::RedisProducer;
