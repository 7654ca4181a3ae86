use std::sync::Arc;

use buqueue_core::driver::Producer;
use buqueue_core::{Message, MessageId, QueueStats, Result};
use chrono::{DateTime, Utc};

use crate::queue::{Queue, Sent};

/// Sends to one in-memory queue.
#[derive(Debug)]
pub struct MemoryProducer {
    queue: Arc<Queue>,
}

impl MemoryProducer {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        Self { queue }
    }
}

impl Producer for MemoryProducer {
    #[inline]
    fn send_ready(&self, message: Message) -> std::result::Result<Result<MessageId>, Message> {
        match self.queue.try_send(message) {
            Sent::Ok(id) => Ok(Ok(id)),
            Sent::Full(message) => Err(message),
        }
    }

    async fn send(&self, mut message: Message) -> Result<MessageId> {
        loop {
            match self.queue.try_send(message) {
                Sent::Ok(id) => {
                    // There may be space for the next producer, too.
                    self.queue.wake_producer();
                    return Ok(id);
                }
                Sent::Full(back) => message = back,
            }
            self.queue.space().await;
        }
    }

    async fn send_at(&self, mut message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        let due = self.queue.due(deliver_at);
        loop {
            match self.queue.try_schedule(message, due) {
                Sent::Ok(id) => {
                    self.queue.wake_producer();
                    return Ok(id);
                }
                Sent::Full(back) => message = back,
            }
            self.queue.space().await;
        }
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        let mut ids = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter();
        loop {
            self.queue.try_send_many(&mut messages, &mut ids);
            if messages.len() == 0 {
                self.queue.wake_producer();
                return ids.into_iter().map(Ok).collect();
            }
            self.queue.space().await;
        }
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        Ok(self.queue.stats())
    }
}
