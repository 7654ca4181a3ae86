//! The lease on one message: the ownership of its partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use buqueue_core::driver::{Detail, Lease};
use buqueue_core::{Message, MessageId, QueueFuture, Result};
use chrono::Utc;

use crate::convert::Story;
use crate::error;
use crate::levels::HORIZON;
use crate::session::{Held, Session};

/// A message that is handed out.
pub(crate) struct Delivered {
    session: Arc<Session>,
    held: Held,
    settled: AtomicBool,
}

impl Delivered {
    pub(crate) fn new(session: Arc<Session>, held: Held) -> Self {
        Self { session, held, settled: AtomicBool::new(false) }
    }

    /// Once.
    fn settled(&self) {
        if !self.settled.swap(true, Ordering::AcqRel) {
            self.session.came_back();
        }
    }

    /// In the place of [`settled`](Self::settled): it counts as handed out until this is dropped.
    fn settled_later(&self) -> Option<HandedOut> {
        let is_first = !self.settled.swap(true, Ordering::AcqRel);
        is_first.then(|| HandedOut(Arc::clone(&self.session)))
    }

    fn again(&self, counted: bool) -> Result<()> {
        let outcome = self.session.again(&self.held, counted);
        self.settled();
        outcome
    }

    /// A copy waits, and when it is accepted the original is done.
    async fn later(&self, after: Duration) -> Result<()> {
        let (session, held, handed_out) =
            (Arc::clone(&self.session), self.held.clone(), self.settled_later());
        // Once begun it is brought to its end, or there would be two of it.
        let moving = self.session.runtime.spawn(async move {
            // A consumer that closes waits for it, whether somebody else does or not.
            let _handed_out = handed_out;
            session.check(held.place)?;
            let story = Story {
                failures: held.delivery_count(),
                first_failed_at: Some(session.first_failure(&held)),
            };
            let after = i64::try_from(after.min(HORIZON).as_millis()).unwrap_or(i64::MAX);
            let due = Utc::now().timestamp_millis().saturating_add(after).saturating_add(1);
            let sent = session.later.send(&held.message, story, &session.options.retry_topic(), due).await;
            if let Err(error) = sent {
                // It comes back at once, rather than never, also where nobody waits for this any more.
                let _lost_with_its_partition = session.again(&held, true).is_err();
                session.wake();
                return Err(error);
            }
            session.finish(held.place)
        });
        match moving.await {
            Ok(moved) => moved,
            // Its runtime has ended, and nothing was begun, or nobody knows how far it came: better twice than never.
            Err(_) => self.session.again(&self.held, true).and(Err(error::lost("nack_after"))),
        }
    }
}

impl Lease for Delivered {
    fn message(&self, _index: u32) -> &Message {
        &self.held.message
    }

    fn message_id(&self, _index: u32) -> MessageId {
        format!("{}-{}", self.held.place.slot.partition, self.held.place.offset).into()
    }

    fn details(&self, _index: u32, tell: &mut dyn FnMut(&'static str, Detail<'_>)) {
        let place = self.held.place;
        tell("messaging.destination.partition.id", Detail::Text(&place.slot.partition.to_string()));
        tell("messaging.kafka.offset", Detail::Number(place.offset));
    }

    fn ack(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        let outcome = self.session.finish(self.held.place);
        self.settled();
        QueueFuture::ready(outcome)
    }

    fn nack(&self, _index: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        self.session.first_failure(&self.held);
        if after.is_zero() {
            return QueueFuture::ready(self.again(true));
        }
        QueueFuture::pending(self.later(after))
    }

    fn release(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        QueueFuture::ready(self.again(false))
    }

    fn extend(&self, _index: u32, _by: Duration) -> QueueFuture<'_, Result<()>> {
        QueueFuture::ready(self.session.check(self.held.place))
    }

    fn abandon(&self, _index: u32) {
        self.session.first_failure(&self.held);
        let _lost_with_its_partition = self.again(true).is_err();
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        self.settled();
    }
}

/// A message that is out of the consumer's hands, and not settled.
struct HandedOut(Arc<Session>);

impl Drop for HandedOut {
    fn drop(&mut self) {
        self.0.came_back();
    }
}
