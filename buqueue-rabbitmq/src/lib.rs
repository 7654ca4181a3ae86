//! The RabbitMQ backend of buqueue, over AMQP 0-9-1.
//!
//! ```no_run
//! use buqueue_core::Message;
//! use buqueue_rabbitmq::{ExchangeConfig, ExchangeKind, RabbitMqBackend, RabbitMqConfig};
//!
//! # async fn run() -> buqueue_core::Result<()> {
//! let config = RabbitMqConfig {
//!     url: "amqp://guest:guest@localhost:5672/%2F".to_owned(),
//!     queue: "order-events".to_owned(),
//!     exchange: Some(ExchangeConfig {
//!         name: "domain-events".to_owned(),
//!         kind: ExchangeKind::Topic,
//!         binding_key: "orders.#".to_owned(),
//!         durable: true,
//!     }),
//!     ..RabbitMqConfig::default()
//! };
//! let (producer, mut consumer) = RabbitMqBackend::builder(config).build_pair().await?;
//! producer.send(Message::new("hello").with_routing_key("orders.placed")).await?;
//! consumer.receive().await?.ack().await?;
//! # Ok(()) }
//! ```
//!
//! As a URL ([`RabbitMqConfig::from_url`]): `amqps://user:password@host:5671/vhost?queue=orders`.
//!
//! # How buqueue's words map
//!
//! | buqueue | RabbitMQ |
//! |---|---|
//! | queue | [`RabbitMqConfig::queue`], quorum by default |
//! | routing key | with an exchange: the AMQP routing key (none: the empty key); without: a header |
//! | deduplication id | a header; the broker has no deduplication |
//! | message id | the property `message-id`, given by the sender |
//! | `send` | persistent, `mandatory`, and confirmed, on a channel that it has for itself; what no queue takes is `NotFound` |
//! | `ack` | `basic.ack`; acks made together go as one frame where the order of the tags allows |
//! | `nack`, dropped delivery | quorum: `basic.reject` with requeue; classic: a confirmed copy with the count, then the ack |
//! | `nack_after` | a confirmed copy into the level queues, then the ack |
//! | delivery count | quorum: `x-delivery-count` and what buqueue counted before; classic: a header |
//! | `extend_visibility` | `Ok`: there is no time limit but the broker's `consumer_timeout` (30 minutes by default) |
//! | `send_at` | into the level queues, by this machine's clock |
//! | dead letter queue | another queue |
//!
//! Quorum queues are declared with `x-delivery-limit = 1000000000`: brokers from 4.0 on would drop a message that was
//! delivered 20 times, and the verdict is buqueue's. (`-1` means no limit on 4.x, and makes 3.10 drop a message at its
//! first failure.) A queue that was declared otherwise is a clash, told with both values.
//!
//! # Delays without a plugin
//!
//! The delay in milliseconds is written in bits, and there is one quorum queue a bit: a message waits 2ⁿ ms in the
//! queue of each bit that is set, and the broker moves it on (at-least-once dead-lettering). All messages of a queue wait
//! equally long, so none is held up by another. Queues are declared when a delay first needs them, up to its highest
//! bit: 11 for a second, 23 for an hour, 33 for a month, 36 for a year; and one for orphans.
//!
//! What is due for a queue that was deleted meanwhile goes to `<prefix>.delay.orphans`, where it can be looked at and sent
//! on by hand; it holds up nobody. A scheduled message lies in the level queue of its highest bit, where the broker's own
//! tools can get or purge it.
//!
//! A broker that starts while a message is due may find no exchange yet to bring it to (seen on 3.10.8), and messages for
//! a queue that is deleted in the very moment in which they are due may get no answer (seen on 3.10.8 and 4.0.5). The
//! broker then holds up that level for `dead_letter_worker_publisher_confirm_timeout`: three minutes, unless its
//! `advanced.config` says less. Five seconds do no harm.
//!
//! With a topic or direct exchange, a scheduled message comes to the queues that buqueue consumers have bound to that
//! exchange, by the same binding keys; with a fanout or headers exchange, to all queues that are bound.
//!
//! # What `queue_stats` counts
//!
//! Ready: what the queue can still give to a consumer, as the broker answers a passive declaration, for which no permission
//! is needed. What consumers hold, read ahead or not, is in no number, and neither are the messages that wait in the level
//! queues, which all queues of a prefix share: AMQP tells neither, so `in_flight` and `scheduled` are `None`. The broker may
//! take a quorum queue that has no leader for empty. A consumer's monitor asks on a second connection, made when it is first
//! needed. A queue that was deleted is `NotFound`, until a send or a consumer declares it again.
//!
//! # Production checklist
//!
//! On the broker:
//!
//! * A cluster of three nodes, and [`QueueType::Quorum`], the default: a message is confirmed when most of the nodes have
//!   it. The queues for delays and orphans are quorum queues in any case. A classic queue lies on one node, and is gone
//!   while that is.
//! * [`RabbitMqConfig::url`] names one host: a load balancer or a name of DNS in front of the nodes, so that a node that
//!   is down keeps nobody from connecting.
//! * No policy sets `delivery-limit` on these queues: the broker takes the lower of it and the limit that they are
//!   declared with, and drops a message before buqueue's `max_receive_count` is reached.
//! * No policy sets `message-ttl` or `expires` on the queue and the dead letter queue: what is older is deleted, processed
//!   or not.
//! * `max-length` and `max-length-bytes` by policy only together with `overflow: reject-publish`: a full queue then
//!   refuses sends as `Throttled`; the default, `drop-head`, deletes what nobody has processed.
//! * No policy matches `buqueue.delay.*` ([`delay_prefix`](RabbitMqBuilderExt::delay_prefix)): a shorter time makes
//!   schedules early, a limit of length refuses them. Patterns like `.*` do match.
//! * Alarms of memory and disk (`vm_memory_high_watermark`, `disk_free_limit`) are watched: while one is on, the broker
//!   blocks whoever publishes, sends are `Throttled`, and so are `nack_after` and dead letters, which are copies.
//! * `consumer_timeout` (30 minutes by default): longer than the longest handler. After it the broker closes the channel,
//!   and all that the consumer holds comes again.
//! * `max_message_size` of the broker is at least [`max_payload`](RabbitMqBuilderExt::max_payload).
//! * `dead_letter_worker_publisher_confirm_timeout` 5000 in `advanced.config`, as under
//!   [Delays](#delays-without-a-plugin).
//! * `<prefix>.delay.orphans` is watched: what lies there was due for a queue that is gone, and nobody reads it.
//! * A user for each service with permissions as below, in a vhost of their own, and `amqps://`; never `guest`.
//!
//! In the configuration:
//!
//! * [`RabbitMqConfig::durable`] stays `true` where the queue is classic; so does [`ExchangeConfig::durable`].
//! * [`heartbeat`](RabbitMqBuilderExt::heartbeat) (4 s by default): a peer that is silent for longer is given up. More
//!   where a network stands still for longer than that.
//! * [`request_timeout`](RabbitMqBuilderExt::request_timeout) (5 s by default): longer than the broker takes to
//!   confirm under load; what is not confirmed in time is an error, and may be in the queue all the same.
//! * Over `amqps://`: [`root_certificates`](RabbitMqBuilderExt::root_certificates) where the broker's certificate comes from
//!   an authority of your own, and [`client_certificate`](RabbitMqBuilderExt::client_certificate) where the broker asks for
//!   one; with `?auth_mechanism=external` in the URL and `rabbitmq_auth_mechanism_ssl` on the broker, it logs in in place of
//!   a password. The files are read for each connection: one that is replaced counts from the next one on, and while
//!   one cannot be used, what it held before does, which nothing tells of.
//! * [`RabbitMqConfig::prefetch_count`] (200 by default): at least as many as handlers run at the same time. What a
//!   process that dies has read ahead has used up an attempt.
//! * [`delay_prefix`](RabbitMqBuilderExt::delay_prefix): one for each application that schedules much; all that share it
//!   share its level queues. The same for senders and consumers of a queue.
//! * An exchange keeps nothing: the queue must be bound before the first send, or sends are `NotFound`. Consumers, and
//!   senders with the same configuration, declare and bind it.
//! * A [dead letter queue](buqueue_core::QueueBuilder::dead_letter_queue): without one a message that fails is tried for
//!   ever, since the queue's own limit is out of reach.
//! * Clocks are right where `send_at` is called: the time left is reckoned there.
//!
//! # Permissions
//!
//! *Write* on the exchange that is published to, which without an [`ExchangeConfig`], for dead letters and for a message
//! that failed on a classic queue is the default one, `amq.default`; for schedules and `nack_after` on `<prefix>.delay.*`.
//! *Read* on the queue to receive. To count and to look whether a queue is there needs none.
//!
//! To declare: *configure* on the queue, the dead letter queue, the exchange and `<prefix>.delay.*`; *write* on the queues
//! and the exchanges that are bound to; *read* on the exchanges that are bound from, and, for dead-lettering and the
//! alternate exchange among the delays, *read* and *write* on `<prefix>.delay.*`. Senders and consumers both declare,
//! schedules and `nack_after` declare level queues when they first need them.
//!
//! For the queue `orders`, the exchange `domain-events` and the dead letter queue `orders-dead`, in the vhost `shop`:
//!
//! ```sh
//! # May declare: configure, write, read.
//! rabbitmqctl set_permissions -p shop orders-service \
//!     '^(orders|orders-dead|domain-events|buqueue\.delay\..*)$' \
//!     '^(orders|domain-events|buqueue\.delay\..*|amq\.default)$' \
//!     '^(orders|domain-events|buqueue\.delay\..*)$'
//! # May not: an operator has declared everything.
//! rabbitmqctl set_permissions -p shop orders-service \
//!     '^$' '^(domain-events|buqueue\.delay\..*|amq\.default)$' '^orders$'
//! ```
//!
//! Where the application may not declare, what exists is used; what is missing is told in one error that lists every
//! queue, exchange and binding with its arguments. Write on `amq.default` is write on every queue of the vhost. Topic
//! permissions, where a user has some, must allow all keys on `<prefix>.delay.*`.
//!
//! # Limits
//!
//! Payloads up to [`RabbitMqBuilderExt::max_payload`]; headers up to 100 KiB together; AMQP routing keys up to 255 bytes, of
//! which a scheduled message with an exchange can use 147. Schedules reach 2³⁷ ms, more than four years.
//!
//! # Not promised
//!
//! * A broker counts what is given back or was sent to a consumer that died as a failed attempt, also when no handler
//!   saw it. The prefetch therefore begins at what is asked for, grows while the consumer is fast up to
//!   [`RabbitMqConfig::prefetch_count`], and begins anew after a failure.
//! * On classic queues a message that failed goes to the end of the queue.
//! * An ack is written to the live channel of its delivery; AMQP has no answer to it. A quorum queue forgets acks that
//!   are on their way to it when their channel closes (3.10.8), so a channel stays open for half a second after many.
//!   A process that ends by itself in that time brings those messages back.
//! * Messages that were read ahead and that nobody takes for 10 s are given back, which counts as an attempt.
//! * Bindings cannot be verified over AMQP.
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
mod publisher;
mod reader;
mod topology;
mod url;

pub use backend::RabbitMqBackend;
pub use config::{
    ExchangeConfig, ExchangeKind, QueueType, RabbitMqBuilderExt, RabbitMqConfig, RabbitMqOptions,
};
pub use consumer::RabbitMqConsumer;
pub use producer::RabbitMqProducer;
