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
//! # Permissions
//!
//! Where the application may not declare, what exists is used; what is missing is told in one error that lists every
//! queue, exchange and binding with its arguments.
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
mod url;

pub use backend::RabbitMqBackend;
pub use config::{
    ExchangeConfig, ExchangeKind, QueueType, RabbitMqBuilderExt, RabbitMqConfig, RabbitMqOptions,
};
pub use consumer::RabbitMqConsumer;
pub use producer::RabbitMqProducer;
