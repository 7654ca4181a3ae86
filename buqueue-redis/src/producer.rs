//! The sending half.

use std::time::Duration;

use buqueue_core::{BuqueueError, ErrorKind, Message, MessageId, QueueStats, Result, driver};
use chrono::{DateTime, Utc};
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};

use crate::connection::Commands;
use crate::keys::Keys;
use crate::{convert, error, lease, schedule, scripts, stats};

/// How much one round trip of a batch carries.
const PIPELINE_MESSAGES: usize = 500;
const PIPELINE_BYTES: usize = 1024 * 1024;

/// Sends to a stream.
#[derive(Debug)]
pub struct RedisProducer {
    pub(crate) commands: Commands,
    pub(crate) keys: Keys,
    /// Whose messages are counted.
    pub(crate) group: String,
    pub(crate) window: Duration,
}

impl RedisProducer {
    fn add(&self, message: &Message) -> Cmd {
        let mut cmd = Cmd::with_capacity(9, message.payload().len() + self.keys.stream.len() + 64);
        cmd.arg("XADD").arg(&self.keys.stream).arg("*");
        convert::write_fields(&mut cmd, message);
        cmd
    }

    fn add_once(&self, cmd: &mut Cmd, message: &Message, id: &str) {
        cmd.arg(2).arg(&self.keys.stream).arg(self.keys.dedup(id)).arg(lease::millis_up(self.window));
        convert::write_fields(cmd, message);
    }

    fn id(&self, reply: RedisResult<Value>) -> Result<MessageId> {
        let reply = reply.and_then(Value::extract_error).map_err(|error| self.fail(&error))?;
        let text = convert::bytes(&reply).unwrap_or_default();
        match (convert::parse_id(text), std::str::from_utf8(text)) {
            (Some(id), _) => Ok(id.into()),
            (None, Ok(text)) if !text.is_empty() => Ok(text.into()),
            _ => Err(self.fail(&error::unexpected("XADD"))),
        }
    }

    fn fail(&self, error: &RedisError) -> BuqueueError {
        error::convert(error, &self.keys.stream)
    }

    async fn send_once(&self, message: &Message, id: &str) -> Result<MessageId> {
        let arguments = |cmd: &mut Cmd| self.add_once(cmd, message, id);
        self.id(self.commands.eval(&scripts::SEND_ONCE, arguments).await)
    }

    async fn send_part(&self, part: &[Message]) -> RedisResult<Vec<Value>> {
        let mut pipeline = Pipeline::with_capacity(part.len());
        let mut known = false;
        for message in part {
            match message.broker_deduplication_id() {
                None => pipeline.add_command(self.add(message)),
                Some(id) => {
                    // The first brings the script along; the others need its hash only.
                    let lua = &scripts::SEND_ONCE;
                    let mut cmd = if known { lua.by_hash() } else { lua.by_text() };
                    known = true;
                    self.add_once(&mut cmd, message, id);
                    pipeline.add_command(cmd)
                }
            };
        }
        self.commands.query_all(&pipeline).await
    }
}

impl driver::Producer for RedisProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        match message.broker_deduplication_id() {
            None => self.id(self.commands.query(&self.add(&message)).await),
            Some(id) => self.send_once(&message, id).await,
        }
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        self.id(schedule::send_at(&self.commands, &self.keys, &message, deliver_at, self.window).await)
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut rest = messages.as_slice();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(part_len(rest));
            rest = after;
            match self.send_part(part).await {
                Ok(replies) => {
                    for (message, reply) in part.iter().zip(replies) {
                        let reply = reply.extract_error();
                        outcomes.push(match (message.broker_deduplication_id(), reply) {
                            // The server has forgotten its scripts half-way.
                            (Some(id), Err(error)) if error.code() == Some("NOSCRIPT") => {
                                self.send_once(message, id).await
                            }
                            (_, reply) => self.id(reply),
                        });
                    }
                    let missing =
                        || Err(BuqueueError::new(ErrorKind::ConnectionLost, "the server left out a reply"));
                    outcomes.resize_with(messages.len() - rest.len(), missing);
                }
                Err(error) => {
                    outcomes.extend(part.iter().map(|_| Err(self.fail(&error))));
                    // Sending the later ones would turn the order around when the user sends the failed ones again.
                    outcomes.extend(rest.iter().map(|_| {
                        let kind = error::classify(&error);
                        Err(BuqueueError::new(kind, "not sent: an earlier part of the batch failed"))
                    }));
                    break;
                }
            }
        }
        outcomes
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        stats::count(&self.commands, &self.keys, &self.group).await
    }
}

/// How many messages of the rest go into the next round trip. At least one.
fn part_len(rest: &[Message]) -> usize {
    let mut bytes = 0;
    let fitting = rest.iter().take(PIPELINE_MESSAGES).take_while(|message| {
        bytes += message.payload().len() + message.headers().byte_len();
        bytes <= PIPELINE_BYTES
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_split_by_count_and_by_bytes() {
        let small = vec![Message::new("x"); PIPELINE_MESSAGES + 1];
        assert_eq!(part_len(&small), PIPELINE_MESSAGES);
        let large = vec![Message::new(vec![0; PIPELINE_BYTES / 2]); 3];
        assert_eq!(part_len(&large), 2);
        let huge = vec![Message::new(vec![0; PIPELINE_BYTES + 1]); 2];
        assert_eq!(part_len(&huge), 1);
    }
}
