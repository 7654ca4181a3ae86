use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;

use buqueue_core::Message;
use chrono::{DateTime, Utc};

/// One message, from send to ack. It is built in a block and never leaves it until it is settled.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) message: Message,
    /// `None` until an attempt has failed.
    pub(crate) failures: Option<Box<Failures>>,
    pub(crate) id: u64,
    /// The lease's state; see `lease.rs`. Unused while the message waits.
    pub(crate) state: AtomicU64,
}

#[derive(Debug, Clone)]
pub(crate) struct Failures {
    pub(crate) count: u32,
    pub(crate) first_at: DateTime<Utc>,
}

impl Slot {
    #[inline]
    pub(crate) fn new(message: Message, id: u64) -> Self {
        Self { message, failures: None, id, state: AtomicU64::new(0) }
    }

    /// The same message for another attempt. The copy shares the payload.
    pub(crate) fn again(&self, failures: Option<Box<Failures>>) -> Self {
        Self { message: self.message.clone(), failures, id: self.id, state: AtomicU64::new(0) }
    }

    /// The failures including one that became known now.
    pub(crate) fn failed(&self, now: DateTime<Utc>) -> Option<Box<Failures>> {
        let failures = match &self.failures {
            Some(failures) => Failures { count: failures.count.saturating_add(1), ..**failures },
            None => Failures { count: 1, first_at: now },
        };
        Some(Box::new(failures))
    }
}

pub(crate) type Block = VecDeque<Slot>;
