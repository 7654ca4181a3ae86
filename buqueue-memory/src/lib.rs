//! The in-memory backend of buqueue: the readable reference of the contract, for tests and small programs.
//!
//! | buqueue | in memory |
//! |---|---|
//! | queue | a name inside a [`MemoryBroker`]; cloning a [`MemoryConfig`] shares the broker |
//! | routing key, headers, deduplication id | kept with the message |
//! | lease | per delivery, from hand-over; default 30 s |
//! | `nack` | back to the head of the queue, at once; a consumer first hands out what it has at hand |
//! | `nack_after`, `send_at` | kept by the queue until due, to the millisecond; any horizon |
//! | `deduplication_id` | remembered for at least the window, at most twice as long; default 5 min |
//! | capacity | `send` waits while the queue is full; default 1 048 576 messages |
//!
//! The runtime needs tokio's time driver (`enable_time`). Time comes from tokio's clock, so a test that pauses time drives schedules, leases and timeouts.
//!
//! There is no background task and no task per message: whoever waits for messages also watches the clock, and looks
//! at least twice a second.
//!
//! What `queue_stats` counts: as ready what a consumer that asks now is given, so also what has become due and messages
//! whose lease has run out; as in flight what is leased, with the little that a busy consumer takes ahead; as scheduled
//! what is not due. One short lock, under which nothing is moved.
//!
//! Not promised: anything after the process ends. A queue has one group of consumers, which share its messages.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buqueue_core::BuqueueError> {
//! use buqueue_core::Message;
//! use buqueue_memory::{MemoryBackend, MemoryConfig};
//!
//! let (producer, mut consumer) = MemoryBackend::builder(MemoryConfig::default()).build_pair().await?;
//! producer.send(Message::new("hello")).await?;
//! let delivery = consumer.receive().await?;
//! assert_eq!(delivery.payload(), "hello");
//! delivery.ack().await?;
//! # Ok(()) }
//! ```
//!
//! As a URL ([`MemoryConfig::from_url`]): `memory://orders?capacity=1000`.
//!
//! # Production checklist
//!
//! Not for production, where a message must not be lost. For tests, and for work inside one process that may be done
//! again.
//!
//! * The end of the process loses everything: what waits, what is scheduled, what was handed out, dead letters, remembered
//!   deduplication ids. So does dropping the last producer, consumer and config of a broker.
//! * Another process sees nothing of it: [`MemoryConfig::from_url`] and files give each call a broker of its own, in one
//!   process too.
//! * [`MemoryConfig::capacity`] (1 048 576 messages by default) is what bounds the memory, by number and not by bytes;
//!   `send` waits while the queue is full, for ever where nobody receives. Dead letter queues have a capacity as well:
//!   read them.
//! * [`MemoryConfig::lease`] (30 s by default): above the longest time a handler takes, as on a broker.
//! * A [dead letter queue](buqueue_core::QueueBuilder::dead_letter_queue): without one a message that fails is tried for
//!   ever.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod broker;
mod config;
mod consumer;
mod dedup;
mod lease;
mod producer;
mod queue;
mod schedule;
mod slot;
mod waiting;

pub use backend::MemoryBackend;
pub use broker::MemoryBroker;
pub use config::MemoryConfig;
pub use consumer::MemoryConsumer;
pub use producer::MemoryProducer;
