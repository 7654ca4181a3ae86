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
//! # Production checklist
//!
//! On the server:
//!
//! * `appendonly yes`, and on a disk that outlives the machine: without it a restart loses the stream, the schedules and
//!   who holds what. Snapshots (`save`) alone lose what came since the last one.
//! * `appendfsync always` where a confirmed message must survive a crash; `everysec` loses a second, and up to two while
//!   the disk is slow. `no` leaves it to the system.
//! * `maxmemory` set, and `maxmemory-policy noeviction`: any other policy may evict a queue as a whole. At the limit sends
//!   fail as `Throttled`, and lose nothing.
//! * Memory for all that waits, with room beside: messages, schedules, retries, dead letters and deduplication ids all lie
//!   there. Watch [`queue_stats`](buqueue_core::Producer::queue_stats); nothing expires by itself but deduplication ids.
//! * A replica, and Sentinel (`redis+sentinel://…`) or Cluster to fail over. Replication is asynchronous: a failover loses
//!   what was confirmed and not replicated. buqueue does not wait for replicas.
//! * `min-replicas-to-write 1` with `min-replicas-max-lag 10`: a server that has lost its replicas refuses writes, as
//!   `Throttled`, in place of taking what a failover would lose.
//! * Cluster: all keys of a queue share one slot, so one queue is as fast as one node; more queues spread. Braces in a
//!   stream's name must be a hash tag.
//! * `timeout 0` and `tcp-keepalive 300`, the defaults: buqueue finds dead connections itself, and one that the server
//!   closes for being idle is only made anew.
//! * `proto-max-bulk-len` is above [`max_payload`](RedisBuilderExt::max_payload).
//! * Nothing else trims, deletes, claims or renames these keys: no `XTRIM`, `XDEL`, `XCLAIM`, `XAUTOCLAIM`, no `MAXLEN` of
//!   others who write to the stream, no `FLUSHDB`. No expiry on the keys.
//! * No groups that nobody uses: one keeps every entry from being deleted until `XGROUP DESTROY` removes it.
//! * `{stream}:broken` is empty: what lies there nobody reads.
//! * An ACL for each service, as below, and `rediss://`.
//!
//! In the configuration:
//!
//! * [`RedisConfig::pending_timeout`] (60 s by default): well above the longest time a handler takes, and the same in all
//!   consumers of the group. What takes longer goes to somebody else as well, unless it calls `extend_visibility`.
//! * [`RedisConfig::group`] is created, at the beginning of the stream, before the groups beside it have acked what it is
//!   to get: what all the others have done is deleted.
//! * [`RedisConfig::consumer`] differs between running instances; the default does, where host and process do.
//! * [`request_timeout`](RedisBuilderExt::request_timeout) (5 s by default): longer than the largest message takes to cross
//!   the network. A server that is gone without a word is noticed after it.
//! * Over `rediss://`: [`root_certificates`](RedisBuilderExt::root_certificates) where the server's certificate comes from an
//!   authority of your own, and [`client_certificate`](RedisBuilderExt::client_certificate) where the server asks for one.
//!   Both are read when the queue is built: build it anew before they expire.
//! * [`deduplication_window`](RedisBuilderExt::deduplication_window) (5 minutes by default): longer than a sender goes on
//!   trying; each id takes a key of memory for so long.
//! * A consumer of the group always runs: it is consumers that send on what is due, take back what was not settled in
//!   time, and delete what every group is done with.
//! * A [dead letter queue](buqueue_core::QueueBuilder::dead_letter_queue): without one a message that fails is tried for
//!   ever.
//!
//! # Permissions
//!
//! On the stream and [its keys](#keys), and on those of the dead letter stream. To send: `XADD TYPE`, for schedules
//! `ZADD`, with deduplication ids `GET SET`. To receive: `XREADGROUP XADD XACK XDEL XRANGE XPENDING XCLAIM XGROUP XINFO
//! XTRIM ZADD ZREM ZSCORE ZRANGE ZRANGEBYSCORE ZREMRANGEBYSCORE RPUSH EXISTS TYPE`. For `queue_stats` `XLEN ZCOUNT EXISTS
//! XINFO XRANGE`. Besides, all need `EVAL EVALSHA TIME PING`, and consumers `CLIENT|ID CLIENT|UNBLOCK`: where these are
//! not allowed, reads wait in short turns instead. `SELECT` for another database than 0. Through sentinels `ROLE` (or
//! `INFO`) on the server, and `SENTINEL ROLE` at the sentinels; in a cluster `CLUSTER|SLOTS ASKING`. `CLIENT|SETINFO` is
//! tried, and its refusal passed over.
//!
//! For the stream `orders` and the dead letter stream `orders-dead`, a service that sends and receives:
//!
//! ```sh
//! redis-cli ACL SETUSER shop on '>secret' resetchannels -@all \
//!     resetkeys '~orders' '~{orders}:*' '~orders-dead' '~{orders-dead}:*' \
//!     +xadd +xreadgroup +xack +xdel +xrange +xlen +xpending +xclaim +xgroup +xinfo +xtrim \
//!     +zadd +zrem +zscore +zcount +zrange +zrangebyscore +zremrangebyscore +rpush +get +set +exists +type \
//!     +eval +evalsha +time +ping +select '+client|id' '+client|unblock'
//! ```
//!
//! With sentinels add `+role`, in a cluster `'+cluster|slots' +asking`. Who only sends, and does not count:
//!
//! ```sh
//! redis-cli ACL SETUSER sender on '>secret' resetchannels -@all resetkeys '~orders' '~{orders}:*' \
//!     +xadd +zadd +get +set +type +eval +evalsha +time +ping +select
//! ```
//!
//! # Limits
//!
//! Payloads up to 511 MiB ([`RedisBuilderExt::max_payload`]); everything is held in the server's memory. A message must
//! cross the network within [`RedisBuilderExt::request_timeout`] when it is sent; when it is received, within the
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
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod error;
#[cfg(feature = "serde")]
mod file;
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
