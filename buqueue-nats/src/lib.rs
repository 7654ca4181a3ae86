//! The NATS backend of buqueue: JetStream only, never Core NATS, which has no acks and no storage.
//!
//! ```no_run
//! use buqueue_core::Message;
//! use buqueue_nats::{JetStreamConfig, NatsBackend, NatsConfig};
//!
//! # async fn run() -> buqueue_core::Result<()> {
//! let config = NatsConfig {
//!     url: "nats://localhost:4222".to_owned(),
//!     jetstream: JetStreamConfig {
//!         stream_name: "ORDER_EVENTS".to_owned(),
//!         subjects: vec!["orders.>".to_owned()],
//!         ..JetStreamConfig::default()
//!     },
//!     durable_consumer: "order-processor".to_owned(),
//!     ..NatsConfig::default()
//! };
//! let (producer, mut consumer) = NatsBackend::builder(config).build_pair().await?;
//! producer.send(Message::new("hello").with_routing_key("orders.placed")).await?;
//! consumer.receive().await?.ack().await?;
//! # Ok(()) }
//! ```
//!
//! As a URL ([`NatsConfig::from_url`]): `nats://host:4222/ORDERS?durable_consumer=billing&subjects=orders.>`.
//!
//! # How buqueue's words map
//!
//! | buqueue | JetStream |
//! |---|---|
//! | queue | the stream [`JetStreamConfig::stream_name`] |
//! | consumer group | the durable consumer, pulled from |
//! | routing key | the subject, where the stream's subjects cover it; else a header, and the subject of messages without a key |
//! | a message without a key | the first of the stream's subjects, each wildcard replaced by `_`: `orders.>` makes `orders._` |
//! | deduplication id | `Nats-Msg-Id`, within [`JetStreamConfig::duplicate_window`] |
//! | message id | the sequence in the stream (of a scheduled message: that of the schedule) |
//! | `ack` | `+ACK`, answered by the server ([`NatsBuilderExt::plain_acks`]: not answered) |
//! | `nack`, `nack_after` | `-NAK`, with a delay that the server keeps |
//! | `extend_visibility` | `+WPI`, repeated from this process where more than one `ack_wait` is asked for |
//! | delivery count | the server's `num_delivered` |
//! | `send_at` | a schedule of the server (`Nats-Schedule`, 2.12 and later) in the stream; see below |
//! | dead letter queue | another stream, with the subjects `name.>` |
//!
//! The server's own `max_deliver` stays unlimited: at that limit it would keep the message for ever, unseen. The
//! verdict is buqueue's, before a handler sees the message.
//!
//! # Schedules
//!
//! On servers from 2.12 on, a schedule is a message under `_buqueue.schedule.<stream>.…`, which is added to the
//! stream's subjects and lies outside every consumer's filter. Deleting that message, or purging its subject, cancels
//! it. It is exempt from `max_age` (`Nats-TTL: never`). Server 2.15.1 releases schedules some 130 ms late, 250 ms at
//! most.
//!
//! On older servers, on interest streams (which drop what nobody is interested in), and on streams that are limited and
//! refuse when full ([`DiscardPolicy::New`], which the server does not allow beside schedules), a second stream
//! `<stream>_buqueue_delay` keeps them, by the clocks of the consumers' machines. Running consumers of the stream hand each message back to the server until it
//! is due, and then publish it with an id by which the server drops a second copy.
//!
//! # What `queue_stats` counts
//!
//! *Ready*: what the durable has not been sent yet (`num_pending`); as long as there is no durable of that name, all that
//! the stream keeps for consumers, whatever [`NatsConfig::deliver_policy`] says. *In flight*: what it was sent and has not
//! acked (`num_ack_pending`). The server leaves a message there until it is delivered again, so those that failed, wait for
//! the end of `nack_after` or for that of a lease, are in flight too. *Scheduled*: the schedules of `send_at` in the stream,
//! or what lies in `<stream>_buqueue_delay`; `None` where there is neither. Two requests, side by side; three where the server has no
//! schedules of its own. Where many schedules wait, the server walks over all of them for it.
//!
//! # Production checklist
//!
//! On the servers:
//!
//! * Three servers in a cluster, and [`JetStreamConfig::num_replicas`] 3: the default, 1, is one copy. On a server that is
//!   no cluster it becomes 1 whatever is said. All names in [`NatsConfig::url`], so that one that is down keeps nobody
//!   from starting.
//! * [`JetStreamConfig::storage`] stays [`StorageType::File`]: `Memory` is lost with its server.
//! * `jetstream { sync_interval: always }` where what was confirmed must survive that all replicas lose power; the default
//!   is two minutes, and much faster.
//! * Servers from 2.12 on, which keep schedules themselves; before, one consumer of the stream must run for anything to
//!   become due.
//! * Limits of the account: room on disk for `num_replicas` copies of what waits, a stream for the queue and one for its
//!   dead letters, one more for each of them where `<stream>_buqueue_delay` is used, and a consumer for each durable. A
//!   full account refuses sends as `Throttled`, and dead letters stay where they are.
//! * `max_payload` of the server is 1 MiB or more: what is promised to fit counts on that.
//! * Permissions for each service, as below, and `tls://`.
//! * Nobody edits the stream or the durable beside the configuration: they are compared field by field when a service
//!   starts, and one that differs is `InvalidConfig`. Change both together.
//!
//! In the configuration:
//!
//! * [`NatsConfig::ack_wait`]: well above the longest time a handler takes (30 s by default). What takes longer is
//!   delivered to somebody else as well, unless it calls `extend_visibility`.
//! * [`NatsConfig::max_ack_pending`] (1000 by default): above the handlers of all instances together, with what they read
//!   ahead and with all that waits for the end of `nack_after`. The server counts those too, and delivers nothing more to
//!   anybody while so many are pending.
//! * [`JetStreamConfig::max_age`] (7 days by default): longer than the consumers may ever be behind, or zero. What is
//!   older is deleted, processed or not.
//! * [`JetStreamConfig::discard`] stays [`DiscardPolicy::New`] where `max_messages` or `max_bytes` is set: a full stream
//!   refuses sends as `Throttled`; with `Old` it deletes what nobody has processed. Alarm before it is full.
//! * The dead letter stream has the settings of the queue's: retention, `max_age`, limits. Dead letters that nobody looks
//!   at in `max_age` are deleted. On an interest stream they are dropped at once while no durable is there for them:
//!   create it first.
//! * [`RetentionPolicy::Interest`] keeps only what a durable is there for: each durable exists before the first send.
//! * [`NatsConfig::deliver_policy`] is [`DeliverPolicy::All`] where a new durable must not miss what is in the stream
//!   already; a work queue begins with all of it anyway.
//! * A durable that somebody else has made, or buqueue before the server kept schedules, has the stream's subjects as its
//!   filter; building a consumer with another one is `InvalidConfig`. Without one it is given the schedules that wait in
//!   the stream, at once.
//! * Over `tls://`: [`root_certificates`](NatsBuilderExt::root_certificates) where the servers' certificates come from an
//!   authority of your own, and [`client_certificate`](NatsBuilderExt::client_certificate) where the servers ask for one.
//!   The files are read for each connection: one that is replaced counts from the next one on.
//! * [`JetStreamConfig::duplicate_window`] (2 minutes by default): longer than a sender goes on trying.
//! * [`plain_acks`](NatsBuilderExt::plain_acks) stays off where a message that comes again costs more than the answer to
//!   an ack.
//! * A [dead letter queue](buqueue_core::QueueBuilder::dead_letter_queue): without one a message that fails is tried for
//!   ever, and the server has no limit of its own here.
//! * Clocks are synchronised, also between senders and servers: a schedule is a time.
//!
//! # Permissions
//!
//! All: to subscribe to `_INBOX.>`, where answers and messages come, and to publish to `$JS.API.STREAM.INFO.<stream>`.
//!
//! To send: to publish to the stream's subjects, for schedules to `_buqueue.schedule.<stream>.>`. To receive: to publish
//! to `$JS.API.CONSUMER.INFO.<stream>.<durable>`, `$JS.API.CONSUMER.MSG.NEXT.<stream>.<durable>` and
//! `$JS.ACK.<stream>.<durable>.>`; with a dead letter queue also to `<dead letter stream>.>` and
//! `$JS.API.STREAM.INFO.<dead letter stream>`.
//!
//! Where `<stream>_buqueue_delay` keeps the schedules, all need `$JS.API.STREAM.INFO.<stream>_buqueue_delay` and
//! `$JS.API.CONSUMER.INFO.<stream>_buqueue_delay.mover`; senders `_buqueue.delay.<stream>`; consumers the stream's own
//! subjects, `$JS.API.CONSUMER.MSG.NEXT.<stream>_buqueue_delay.mover` and `$JS.ACK.<stream>_buqueue_delay.mover.>`.
//!
//! To count: the `STREAM.INFO` and `CONSUMER.INFO` of above, also for senders; for the dead letters
//! `$JS.API.CONSUMER.INFO.<dead letter stream>.<durable>`. To create what is not there: `$JS.API.STREAM.CREATE.<stream>`
//! and `$JS.API.CONSUMER.DURABLE.CREATE.<stream>.<durable>`, likewise for the dead letter stream and for the delay stream
//! with its `mover`; `$JS.API.STREAM.UPDATE.<stream>` to switch schedules on in a stream that was there before: who may not,
//! and starts before somebody has, cannot schedule until it is built again. What is there already needs no right to create.
//! The delay stream of the dead letter stream is asked for too where there may be one, and a refusal passed over.
//!
//! For the stream `ORDERS` with the subjects `orders.>`, the durable `billing` and the dead letter stream `ORDERS_DEAD`,
//! on servers from 2.12 on:
//!
//! ```text
//! authorization {
//!   users: [
//!     { user: shop, password: $SHOP_PASSWORD, permissions: {
//!       publish: { allow: [
//!         "orders.>", "_buqueue.schedule.ORDERS.>", "$JS.API.STREAM.INFO.ORDERS",
//!         # Where it counts what the durable has before it.
//!         "$JS.API.CONSUMER.INFO.ORDERS.billing"
//!       ] }
//!       subscribe: { allow: ["_INBOX.>"] }
//!     } }
//!     { user: billing, password: $BILLING_PASSWORD, permissions: {
//!       publish: { allow: [
//!         "$JS.API.STREAM.INFO.ORDERS", "$JS.API.CONSUMER.INFO.ORDERS.billing",
//!         "$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing", "$JS.ACK.ORDERS.billing.>",
//!         "ORDERS_DEAD.>", "$JS.API.STREAM.INFO.ORDERS_DEAD", "$JS.API.CONSUMER.INFO.ORDERS_DEAD.billing",
//!         # Where streams and durables are to be created.
//!         "$JS.API.STREAM.CREATE.ORDERS", "$JS.API.STREAM.CREATE.ORDERS_DEAD",
//!         "$JS.API.STREAM.UPDATE.ORDERS", "$JS.API.STREAM.UPDATE.ORDERS_DEAD",
//!         "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.billing"
//!       ] }
//!       subscribe: { allow: ["_INBOX.>"] }
//!     } }
//!   ]
//! }
//! ```
//!
//! # Limits
//!
//! A message with its headers must fit into the server's `max_payload` (1 MiB by default) and the stream's
//! `max_message_size`. Headers beyond JetStream's 64 KiB travel before the payload. Schedules reach a hundred years.
//!
//! # Not promised
//!
//! * The server counts every delivery, so a message that was read ahead and given back has used up an attempt.
//!   buqueue reads ahead only while the consumer is fast, and not what has failed before.
//! * A receive that is given up may leave its request at the server for up to a second: a message that comes then is kept
//!   for the next receive of this consumer, and given back after three quarters of `ack_wait`. A request that waits for
//!   longer is cancelled instead; a message on its way in that very moment comes again when its lease ends.
//! * The server takes a late ack silently. buqueue measures the lease from the arrival of the message and refuses to
//!   settle once 95 % of it are over (at most 250 ms before its end).
//! * A message that the server sends in the moment in which a consumer ceases to wait may be forgotten by the client
//!   (async-nats 0.51) and comes again when its lease ends, with an attempt more.
//! * When a durable of a `Limits` stream is deleted behind its consumers, it is created again where it stood when they
//!   were built: what came since comes again.
//! * A foreign message with a header that is not UTF-8 breaks the client's connection each time it is delivered
//!   (async-nats 0.51).
//! * JetStream answers before the disk has the message (`sync_interval`, two minutes by default): a machine that loses
//!   power loses them. One replica is one copy.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod delay;
mod error;
#[cfg(feature = "serde")]
mod file;
mod lease;
mod producer;
mod reader;
mod requests;
mod stats;
mod subject;
mod telling;
mod topology;
mod url;

pub use backend::NatsBackend;
pub use config::{
    AckPolicy, DeliverPolicy, DiscardPolicy, JetStreamConfig, NatsBuilderExt, NatsConfig, NatsOptions,
    RetentionPolicy, StorageType,
};
pub use consumer::NatsConsumer;
pub use producer::NatsProducer;
