//! A shop: HTTP takes orders and enqueues them, a worker ships what was ordered.
//!
//! Both are in one process here; `main` puts them together, and could as well start only one of them. Neither knows which
//! broker it is: `api` has a [`QueueProducer`](buqueue::QueueProducer), `worker` a [`QueueConsumer`](buqueue::QueueConsumer), and
//! their tests use the in-memory backend.

use serde::{Deserialize, Serialize};

pub mod api;
pub mod worker;

/// What travels through the queue.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Order {
    /// Chosen by the client. Whoever ships recognises by it what comes a second time.
    pub id: String,
    /// What is to be shipped.
    pub item: String,
}
