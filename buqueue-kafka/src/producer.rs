//! The sending half.

use std::time::Duration;

use buqueue_core::{Message, MessageId, Result, driver};
use chrono::{DateTime, Utc};
use tokio::sync::OnceCell;

use crate::config::KafkaOptions;
use crate::convert::{Delayed, Story};
use crate::levels;
use crate::publisher::{Publisher, To};
use crate::topology::Topology;

/// Sends to a topic.
#[derive(Debug)]
pub struct KafkaProducer {
    publisher: Publisher,
    options: KafkaOptions,
    /// The topic where messages wait, once it is known to be there.
    delays: OnceCell<()>,
}

impl KafkaProducer {
    pub(crate) fn new(publisher: Publisher, options: &KafkaOptions) -> Self {
        Self { publisher, options: options.clone(), delays: OnceCell::new() }
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
        self.delays
            .get_or_try_init(|| async { Topology::new(&self.options)?.ensure_delay_topic().await })
            .await?;
        // Not before the last part of its millisecond.
        let delayed =
            Delayed { due: deliver_at.timestamp_millis() + 1, target: self.options.config.topic.clone() };
        let topic = self.options.delay_topic();
        let to = To { topic: &topic, partition: Some(levels::level(left)) };
        self.publisher.send(to, &message, Story::default(), Some(&delayed)).await
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        self.publisher.send_all(self.to(), &messages).await
    }

    async fn close(&self) -> Result<()> {
        self.publisher.flush().await
    }
}
