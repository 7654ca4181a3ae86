//! The sending half.

use buqueue_core::driver;
use buqueue_core::{Message, MessageId, Result};
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::convert::{self, Story};
use crate::publisher::{Publisher, Taken};

/// How many messages may be on their way unconfirmed.
const WINDOW: usize = 1000;

/// Publishes to a queue or an exchange.
#[derive(Debug)]
pub struct RabbitMqProducer {
    pub(crate) publisher: Publisher,
    pub(crate) timeout: std::time::Duration,
}

impl RabbitMqProducer {
    async fn send_part(&self, part: &[Message], outcomes: &mut Vec<Result<MessageId>>) {
        let deadline = Instant::now() + self.timeout;
        let mut handed_over = Vec::with_capacity(part.len());
        for message in part {
            let id = convert::fresh_id();
            let handing = async {
                let (live, route) = (self.publisher.live().await?, self.publisher.route(message)?);
                let properties = convert::properties(message, &id, route.is_key_beside(), Story::default());
                let confirm = self.publisher.hand_over(&live, message, &route, properties, deadline).await?;
                Ok((live, route, confirm))
            };
            handed_over.push((handing.await, id));
        }
        for ((handed, id), message) in handed_over.into_iter().zip(part) {
            let outcome = async {
                let (live, route, confirm) = handed?;
                match self.publisher.confirmed(&live, confirm, deadline).await? {
                    Taken::Yes => Ok(()),
                    // Nobody has it: declared again and published once more, alone.
                    Taken::ByNoQueue => {
                        self.publisher.redeclare(&live).await?;
                        self.publisher.publish(message, &id, &route, Story::default()).await
                    }
                }
            };
            outcomes.push(outcome.await.map(|()| id.into()));
        }
    }
}

impl driver::Producer for RabbitMqProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        let (id, route) = (convert::fresh_id(), self.publisher.route(&message)?);
        self.publisher.publish(&message, &id, &route, Story::default()).await?;
        Ok(id.into())
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        // One that has passed is not positive.
        let Ok(delay) = (deliver_at - Utc::now()).to_std() else { return self.send(message).await };
        let id = convert::fresh_id();
        let route = self.publisher.route_later(&message, delay).await?;
        self.publisher.publish(&message, &id, &route, Story::default()).await?;
        Ok(id.into())
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        let mut outcomes = Vec::with_capacity(messages.len());
        for part in messages.chunks(WINDOW) {
            self.send_part(part, &mut outcomes).await;
        }
        outcomes
    }

    async fn close(&self) -> Result<()> {
        self.publisher.close().await
    }
}
