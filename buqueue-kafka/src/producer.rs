//! The sending half.

use std::time::Duration;

use buqueue_core::{ErrorKind, Message, MessageId, QueueStats, Result, driver};
use chrono::{DateTime, Utc};

use crate::config::KafkaOptions;
use crate::convert::{self, LARGEST, Story};
use crate::later::Later;
use crate::publisher::{Publisher, To};
use crate::stats::Stats;
use crate::topology::Topology;

/// Sends to a topic.
#[derive(Debug)]
pub struct KafkaProducer {
    publisher: Publisher,
    options: KafkaOptions,
    later: Later,
    stats: Stats,
    /// What the topic takes, and those take that its messages go through on their way: they have Kafka's default.
    largest: usize,
}

impl KafkaProducer {
    pub(crate) fn new(publisher: Publisher, options: &KafkaOptions, largest: Option<usize>) -> Self {
        let later = Later::new(publisher.clone(), options);
        Self {
            publisher,
            options: options.clone(),
            later,
            stats: Stats::new(options),
            largest: largest.map_or(LARGEST, |own| own.min(LARGEST)),
        }
    }

    fn to(&self) -> To<'_> {
        To { topic: &self.options.config.topic, partition: None }
    }

    /// Somebody has deleted the topic.
    async fn declare(&self) -> Result<()> {
        Topology::new(&self.options)?.ensure_topic().await?;
        self.publisher.find(&self.options.config.topic).await
    }
}

impl driver::Producer for KafkaProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        let sent = self.publisher.send(self.to(), &message, Story::default(), None).await;
        if !is_missing(&sent) {
            return sent;
        }
        self.declare().await?;
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
        let mut outcomes = self.publisher.send_all(self.to(), &messages).await;
        let missing: Vec<usize> = (0..outcomes.len()).filter(|at| is_missing(&outcomes[*at])).collect();
        if missing.is_empty() || self.declare().await.is_err() {
            return outcomes;
        }
        let again: Vec<Message> = missing.iter().map(|at| messages[*at].clone()).collect();
        let sent = self.publisher.send_all(self.to(), &again).await;
        for (at, outcome) in missing.into_iter().zip(sent) {
            outcomes[at] = outcome;
        }
        outcomes
    }

    fn header_room(&self, message: &Message) -> usize {
        convert::header_room(message, self.largest)
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        self.stats.count().await
    }

    async fn close(&self) -> Result<()> {
        self.publisher.flush().await
    }
}

fn is_missing(sent: &Result<MessageId>) -> bool {
    sent.as_ref().is_err_and(|error| error.kind == ErrorKind::NotFound)
}
