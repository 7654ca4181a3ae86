//! The contract of buqueue, and everything that is the same on every broker.
//!
//! Three rooms:
//!
//! * **For applications:** [`Message`], [`Delivery`], [`QueueProducer`], [`QueueConsumer`], [`Producer`],
//!   [`Consumer`], [`DeliveryStream`], [`ShutdownHandle`], [`DlqConfig`], [`BuqueueError`].
//! * **For backend authors:** [`driver`], the seam a broker's adapter implements, and the tools it may use:
//!   [`Backoff`], [`Coalescer`], [`Complaints`], [`Mailbox`], [`FirstFailures`], [`percent`], and [`url`], [`duration`], [`secret`] and
//!   (with the feature `tls`) `tls` for configurations. The guide [Write your own backend] builds a small one, step by step.
//! * **Between the two**, private: validation, the dead letter verdict, in-flight accounting, shutdown and
//!   streams, each written once.
//!
//! Applications normally depend on the facade crate `buqueue`, which re-exports this one.
//!
//! [Write your own backend]: https://github.com/buqueue/buqueue/blob/main/guides/own-backend.md
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod builder;
mod burial;
mod capability;
mod coalesce;
mod complaints;
mod consumer;
mod delivery;
mod dlq;
pub mod driver;
pub mod duration;
mod error;
mod failures;
mod future;
mod headers;
mod mailbox;
mod message;
mod observe;
pub mod percent;
mod producer;
pub mod secret;
mod shutdown;
mod stats;
mod stream;
#[cfg(feature = "tls")]
pub mod tls;
mod unique;
pub mod url;

pub use backoff::Backoff;
pub use builder::{Dynamic, QueueBuilder, Static};
pub use capability::{Capabilities, Feature, Limits, Support};
pub use coalesce::Coalescer;
pub use complaints::Complaints;
pub use consumer::{Consumer, ConsumerStats, QueueConsumer};
pub use delivery::Delivery;
pub use dlq::DlqConfig;
pub use error::{BuqueueError, ErrorKind, Result};
pub use failures::FirstFailures;
pub use future::QueueFuture;
pub use headers::{Headers, RESERVED_PREFIX};
pub use mailbox::{Mailbox, Wishes};
pub use message::{Message, MessageBuilder, MessageId};
pub use producer::{Producer, QueueProducer};
pub use shutdown::ShutdownHandle;
pub use stats::{QueueMonitor, QueueStats};
pub use stream::DeliveryStream;
pub use unique::unique_id;
