//! The sending half.

use std::sync::Arc;

use buqueue_core::driver;
use buqueue_core::{BuqueueError, Message, MessageId, Result};
use chrono::{DateTime, Utc};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout_at};

use crate::convert::{self, Story};
use crate::error;
use crate::publisher::{Live, Publisher, Taken};

/// How many messages may be on their way unconfirmed.
const WINDOW: usize = 1000;
/// And how many bytes of payload: the client copies them.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;

/// Publishes to a queue or an exchange.
#[derive(Debug)]
pub struct RabbitMqProducer {
    pub(crate) publisher: Publisher,
    pub(crate) timeout: std::time::Duration,
}

impl RabbitMqProducer {
    /// All at once: the client's writer takes what is there with one write, where it would take a write for each that
    /// is waited for.
    async fn send_part(&self, part: &[Message]) -> Vec<Result<MessageId>> {
        let deadline = Instant::now() + self.timeout;
        // Before the first is begun: what had to wait for a connection would be overtaken.
        let live = match self.publisher.live().await {
            Ok(live) => live,
            Err(error) => {
                let (kind, fact) = (error.kind.clone(), error.message().to_owned());
                let others = (1..part.len()).map(|_| Err(BuqueueError::new(kind.clone(), fact.clone())));
                return std::iter::once(Err(error)).chain(others).collect();
            }
        };
        let ids: Vec<String> = part.iter().map(|_| convert::fresh_id()).collect();
        let mut sending: FuturesUnordered<_> = (part.iter().zip(&ids).enumerate())
            .map(|(at, (message, id))| {
                let live = &live;
                async move {
                    let route = self.publisher.route(message)?;
                    self.publisher.publish_on(live, message, id, &route, Story::default()).await
                }
                .map(move |outcome| (at, outcome))
            })
            .collect();
        let mut taken: Vec<Option<Result<Taken>>> = part.iter().map(|_| None).collect();
        let all = async {
            while let Some((at, outcome)) = sending.next().await {
                taken[at] = Some(outcome);
            }
        };
        // Those that are done by then are.
        let in_time = timeout_at(deadline, all).await.is_ok();
        drop(sending);
        let late = if in_time { None } else { Some(self.publisher.late(&live)) };
        let mut outcomes = Vec::with_capacity(part.len());
        for ((message, id), taken) in part.iter().zip(ids).zip(taken) {
            let outcome = match taken {
                Some(Ok(Taken::Yes)) => Ok(()),
                Some(Ok(Taken::ByNoQueue)) => self.send_again(&live, message, &id).await,
                Some(Err(error)) => Err(error),
                None => Err(late.as_ref().map_or_else(
                    || error::timed_out("publish"),
                    |late| BuqueueError::new(late.kind.clone(), late.message()),
                )),
            };
            outcomes.push(outcome.map(|()| id.into()));
        }
        outcomes
    }

    /// Nobody has it: declared again and published once more, alone.
    async fn send_again(&self, live: &Arc<Live>, message: &Message, id: &str) -> Result<()> {
        let route = self.publisher.route(message)?;
        self.publisher.redeclare(live).await?;
        self.publisher.publish(message, id, &route, Story::default()).await
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
        let mut rest = messages.as_slice();
        while !rest.is_empty() {
            let (part, others) = rest.split_at(window(rest));
            outcomes.append(&mut self.send_part(part).await);
            rest = others;
        }
        outcomes
    }

    async fn close(&self) -> Result<()> {
        self.publisher.close().await
    }
}

/// How many of these are sent at once; one at least.
fn window(messages: &[Message]) -> usize {
    let mut bytes = 0;
    let fitting = messages.iter().take(WINDOW).take_while(|message| {
        bytes += message.payload().len();
        bytes <= WINDOW_BYTES
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_bounded_by_count_and_by_bytes() {
        assert_eq!(window(&vec![Message::new("small"); 2500]), WINDOW);
        assert_eq!(window(&vec![Message::new(vec![0; 5 << 20]); 10]), 3);
        assert_eq!(window(&[Message::new(vec![0; 20 << 20]), Message::new("small")]), 1);
    }
}
