//! The sending half.

use std::time::Duration;

use buqueue_core::{Message, MessageId, Result, driver};
use chrono::{DateTime, Utc};

use crate::config::KafkaOptions;
use crate::convert::Story;
use crate::later::Later;
use crate::publisher::{Publisher, To};

/// Sends to a topic.
#[derive(Debug)]
pub struct KafkaProducer {
    publisher: Publisher,
    options: KafkaOptions,
    later: Later,
}

impl KafkaProducer {
    pub(crate) fn new(publisher: Publisher, options: &KafkaOptions) -> Self {
        let later = Later::new(publisher.clone(), options);
        Self { publisher, options: options.clone(), later }
    }

    fn to(&self) -> To<'_> {
        To { topic: &self.options.config.topic, partition: None }
    }
}

impl driver::Producer for KafkaProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        self.publisher.send(self.to(), &message, Story::default(), None).await
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        let left = (deliver_at - Utc::now()).to_std().unwrap_or(Duration::ZERO);
        if left.is_zero() {
            return self.send(message).await;
        }
        // Not before the last part of its millisecond.
        let due = deliver_at.timestamp_millis().saturating_add(1);
        self.later.send(&message, Story::default(), &self.options.config.topic, due).await
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        self.publisher.send_all(self.to(), &messages).await
    }

    async fn close(&self) -> Result<()> {
        self.publisher.flush().await
    }
}
