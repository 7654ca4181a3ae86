//! The sending half.

use buqueue_core::driver;
use buqueue_core::{Message, MessageId, QueueStats, Result, unique_id};
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::convert::{self, Story};
use crate::publisher::{Due, Parcel, Publisher, Taken, for_all, unroutable};
use crate::{delay, error};

/// How many messages may be on their way unconfirmed.
const WINDOW: usize = 1000;
/// And how many bytes of payload: the client copies them.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;

/// What a frame has to hold beside the headers: other properties, what buqueue notes about failures, what the broker
/// writes down at each delay level, and the few bytes that each header has more than its name and its value.
const BESIDE_HEADERS: usize = 28 * 1024;

/// Publishes to a queue or an exchange.
#[derive(Debug)]
pub struct RabbitMqProducer {
    pub(crate) publisher: Publisher,
}

impl RabbitMqProducer {
    async fn send_part(&self, part: &[Message]) -> Vec<Result<MessageId>> {
        let ids: Vec<String> = part.iter().map(|_| unique_id()).collect();
        let mut outcomes: Vec<Option<Result<Taken>>> = part.iter().map(|_| None).collect();
        for declared in [false, true] {
            let (mut parcels, mut places) = (Vec::with_capacity(part.len()), Vec::with_capacity(part.len()));
            for (at, outcome) in outcomes.iter_mut().enumerate() {
                if !matches!(outcome, None | Some(Ok(Taken::ByNoQueue))) {
                    continue;
                }
                let (message, id) = (&part[at], ids[at].as_str());
                match self.publisher.route(message) {
                    Ok(route) => {
                        parcels.push(Parcel { message, id, route, story: Story::default() });
                        places.push(at);
                    }
                    Err(error) => *outcome = Some(Err(error)),
                }
            }
            if parcels.is_empty() {
                break;
            }
            let sent = match self.publisher.live().await {
                // Nobody has these: declared again, and published once more.
                Ok(live) if declared => match self.publisher.redeclare(&live).await {
                    Ok(()) => self.publisher.publish_on(&live, &parcels).await,
                    Err(error) => for_all(parcels.len(), error),
                },
                Ok(live) => self.publisher.publish_on(&live, &parcels).await,
                Err(error) => for_all(parcels.len(), error),
            };
            for (at, outcome) in places.into_iter().zip(sent) {
                outcomes[at] = Some(outcome);
            }
        }
        (outcomes.into_iter().zip(ids).zip(part))
            .map(|((outcome, id), message)| match outcome {
                Some(Ok(Taken::Yes)) => Ok(id.into()),
                Some(Ok(Taken::ByNoQueue)) => Err(unroutable(&self.publisher.route(message)?)),
                Some(Err(error)) => Err(error),
                None => Err(error::lost("publish")),
            })
            .collect()
    }
}

impl driver::Producer for RabbitMqProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        let (id, route) = (unique_id(), self.publisher.route(&message)?);
        self.publisher.publish(&message, &id, &route, Story::default()).await?;
        Ok(id.into())
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        // One that has passed is not positive.
        let Ok(delay) = (deliver_at - Utc::now()).to_std() else { return self.send(message).await };
        let id = unique_id();
        let due = Due::At(Instant::now() + delay.min(delay::LONGEST));
        let route = self.publisher.route_later(&message, due).await?;
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

    fn header_room(&self, message: &Message) -> usize {
        let frame = self.publisher.frame_bytes();
        // Of a small frame not all: most messages need little beside their headers.
        let room = frame - BESIDE_HEADERS.min(frame / 4);
        room.saturating_sub(convert::table_bytes(message))
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        self.publisher.queue_stats().await
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
