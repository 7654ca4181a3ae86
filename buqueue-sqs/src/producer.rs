//! The sending half.

use buqueue_core::{Message, MessageId, QueueStats, Result, driver};
use chrono::{DateTime, Utc};

use crate::convert::{Beside, Story};
use crate::schedule::Scheduler;
use crate::stats;

/// Sends to a queue.
#[derive(Debug)]
pub struct SqsProducer {
    scheduler: Scheduler,
}

impl SqsProducer {
    pub(crate) fn new(scheduler: Scheduler) -> Self {
        Self { scheduler }
    }
}

impl driver::Producer for SqsProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        let target = &self.scheduler.target;
        self.scheduler.send(target.outgoing(&message, &Beside::default())?).await
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        self.scheduler.send_at(&message, deliver_at, Story::default()).await
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        let target = &self.scheduler.target;
        let outgoing = messages.iter().map(|message| target.outgoing(message, &Beside::default()));
        target.send_all(outgoing.collect()).await
    }

    fn header_room(&self, message: &Message) -> usize {
        self.scheduler.target.header_room(message)
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        stats::count(&self.scheduler).await
    }
}
