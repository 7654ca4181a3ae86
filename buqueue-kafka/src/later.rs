//! Records that are to wait: put into the delay topic, which is created with the first of them.

use std::time::Duration;

use buqueue_core::{ErrorKind, Message, MessageId, Result};
use chrono::Utc;
use rdkafka::error::KafkaResult;
use tokio::sync::OnceCell;

use crate::config::KafkaOptions;
use crate::convert::{Delayed, Story};
use crate::levels;
use crate::publisher::{Publisher, To};
use crate::topology::Topology;

/// Sends to the delay topic.
#[derive(Debug)]
pub(crate) struct Later {
    publisher: Publisher,
    options: KafkaOptions,
    /// The topic, once it is known to be there.
    topic: OnceCell<String>,
}

impl Later {
    pub(crate) fn new(publisher: Publisher, options: &KafkaOptions) -> Self {
        Self { publisher, options: options.clone(), topic: OnceCell::new() }
    }

    /// The first offset of a partition of any topic, and the next. Blocks.
    pub(crate) fn range_of(&self, topic: &str, partition: i32) -> KafkaResult<(i64, i64)> {
        self.publisher.range_of(topic, partition)
    }

    /// Sends a message that goes to `target` at `due`, in milliseconds since 1970.
    pub(crate) async fn send(
        &self,
        message: &Message,
        story: Story,
        target: &str,
        due: i64,
    ) -> Result<MessageId> {
        let topic = self.topic.get_or_try_init(|| async {
            Topology::new(&self.options)?.ensure_delay_topic().await?;
            Ok(self.options.delay_topic())
        });
        let topic = topic.await?;
        let left = u64::try_from(due.saturating_sub(Utc::now().timestamp_millis())).unwrap_or(0);
        let to = To { topic, partition: Some(levels::level(Duration::from_millis(left))) };
        let delayed = Delayed { due, target: target.to_owned() };
        match self.publisher.send(to, message, story, Some(&delayed)).await {
            // Somebody has deleted it.
            Err(error) if error.kind == ErrorKind::NotFound => {
                Topology::new(&self.options)?.ensure_delay_topic().await?;
                self.publisher.find(topic).await?;
                self.publisher.send(to, message, story, Some(&delayed)).await
            }
            sent => sent,
        }
    }
}
