//! The sending half.

use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use buqueue_core::driver;
use buqueue_core::{BuqueueError, ErrorKind, Message, MessageId, QueueStats, Result};
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::maybe_done;
use tokio::sync::RwLock;
use tokio::task::unconstrained;

use crate::config::NatsOptions;
use crate::connection::Link;
use crate::convert::{self, Outgoing, Subjects};
use crate::error;
use crate::requests::{Requests, Silence, poll_once};
use crate::stats;
use crate::subject;
use crate::topology::{self, Scheduling};

/// How many messages may be on their way unanswered.
const WINDOW: usize = 1000;

/// Publishes to a stream.
#[derive(Debug)]
pub struct NatsProducer {
    link: Link,
    requests: Requests,
    options: NatsOptions,
    subjects: Subjects,
    scheduling: RwLock<Scheduling>,
}

impl NatsProducer {
    pub(crate) fn new(link: Link, options: &NatsOptions, scheduling: Scheduling) -> Self {
        let requests = Requests::new(&link, options.request_timeout);
        let subjects = Subjects::new(&options.config.jetstream);
        let scheduling = RwLock::new(scheduling);
        Self { link, requests, options: options.clone(), subjects, scheduling }
    }

    /// The most that a message may take with its headers.
    fn limit(&self) -> usize {
        let own = usize::try_from(self.options.config.jetstream.max_message_size).unwrap_or(usize::MAX);
        self.link.client.max_payload().min(own)
    }

    /// What the message takes in bytes is known here, and what the server takes too.
    fn check_size(&self, outgoing: &Outgoing) -> Result<()> {
        let (size, limit) = (outgoing.size(), self.limit());
        if size > limit {
            let fact = format!("payload and headers: {size} bytes, the limit is {limit} bytes");
            return Err(BuqueueError::new(ErrorKind::PayloadTooLarge, fact));
        }
        Ok(())
    }

    /// Handed over at the first poll.
    async fn ask(&self, outgoing: Outgoing) -> std::result::Result<async_nats::Message, Silence> {
        self.check_size(&outgoing).map_err(Silence::Refused)?;
        self.requests.ask(outgoing.subject, outgoing.headers, outgoing.payload).await
    }

    /// Publishes, and declares what is missing when the server says that no stream takes the subject.
    async fn publish(&self, build: impl Fn() -> Outgoing) -> Result<MessageId> {
        for declared in [false, true] {
            let began = self.requests.begin();
            let answer = self.requests.in_time(began, self.ask(build())).await.and_then(|answer| answer);
            match outcome(answer)? {
                Some(id) => return Ok(id),
                None if declared => break,
                None => self.declare().await?,
            }
        }
        Err(untaken(&build()))
    }

    /// All at once, in order. `None`: there is no stream for the subject.
    async fn send_part(&self, part: &[&Message]) -> Vec<Result<Option<MessageId>>> {
        let mut asking: Vec<_> = (part.iter())
            // Written out while the one before is already on its way.
            .map(|message| async { outcome(self.ask(Outgoing::new(message, &self.subjects)).await) })
            .map(|asking| Box::pin(maybe_done(asking)))
            .collect();
        let gathering = async {
            for asked in &mut asking {
                poll_once(asked.as_mut()).await;
            }
            for asked in &mut asking {
                asked.await;
            }
        };
        // The task's budget would let others in between.
        let cut = self.requests.in_time(self.requests.begin(), unconstrained(gathering)).await.err();
        let unanswered = || match cut {
            Some(Silence::Late) => Silence::Late,
            _ => Silence::Lost,
        };
        let outcomes = asking.iter_mut().map(|asked| {
            // It may have been answered, and nobody has looked.
            let _looked = asked.as_mut().now_or_never();
            asked.as_mut().take_output().unwrap_or_else(|| outcome(Err(unanswered())))
        });
        outcomes.collect()
    }

    async fn declare(&self) -> Result<()> {
        let standing = topology::ensure_stream(&self.link, &self.options.config).await?;
        *self.scheduling.write().await = standing.scheduling;
        Ok(())
    }
}

fn untaken(outgoing: &Outgoing) -> BuqueueError {
    let fact = format!("no stream takes the subject {:?}", outgoing.subject.as_str());
    BuqueueError::new(ErrorKind::NotFound, fact)
}

/// `None`: there is no stream for the subject.
fn outcome(answer: std::result::Result<async_nats::Message, Silence>) -> Result<Option<MessageId>> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(Silence::NoResponders) => return Ok(None),
        Err(silence) => return Err(silence.into_error("send")),
    };
    match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
        // A duplicate has the id of the first.
        Ok(Response::Ok(ack)) => Ok(Some(ack.sequence.into())),
        Ok(Response::Err { error }) => Err(error::refused("send", &error)),
        Err(error) => Err(error::unreadable("the answer to a send", error)),
    }
}

impl driver::Producer for NatsProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        self.publish(|| Outgoing::new(&message, &self.subjects)).await
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        if deliver_at <= Utc::now() {
            return self.send(message).await;
        }
        let stream = &self.options.config.jetstream.stream_name;
        let scheduling = self.scheduling.read().await.clone();
        match scheduling {
            Scheduling::Native => {
                // One schedule a subject.
                let name =
                    subject::schedules(stream).replace('>', &self.link.client.new_inbox().replace('.', "_"));
                self.publish(|| Outgoing::new(&message, &self.subjects).schedule(name.clone(), deliver_at))
                    .await
            }
            Scheduling::Delayed => {
                let name = subject::delayed(stream);
                self.publish(|| Outgoing::new(&message, &self.subjects).delay(name.clone(), deliver_at)).await
            }
            Scheduling::Unavailable(why) => {
                let fact = format!(
                    "schedules need a server of 2.12 or the stream {:?}: {why}",
                    topology::delay_stream(stream)
                );
                Err(BuqueueError::new(ErrorKind::Unsupported, fact))
            }
        }
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        let mut outcomes = Vec::with_capacity(messages.len());
        for part in messages.chunks(WINDOW) {
            let part: Vec<&Message> = part.iter().collect();
            let mut sent = self.send_part(&part).await;
            // The stream is gone; those messages were taken by nobody. Declared once and sent once more.
            let unsent: Vec<usize> = (0..sent.len()).filter(|at| matches!(sent[*at], Ok(None))).collect();
            if !unsent.is_empty() && self.declare().await.is_ok() {
                let again: Vec<&Message> = unsent.iter().map(|at| part[*at]).collect();
                for (at, outcome) in unsent.into_iter().zip(self.send_part(&again).await) {
                    sent[at] = outcome;
                }
            }
            outcomes.extend(sent.into_iter().zip(part).map(|(outcome, message)| match outcome {
                Ok(Some(id)) => Ok(id),
                Ok(None) => Err(untaken(&Outgoing::new(message, &self.subjects))),
                Err(error) => Err(error),
            }));
        }
        outcomes
    }

    fn header_room(&self, message: &Message) -> usize {
        convert::header_room(message, &self.subjects, self.limit())
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        stats::count(&self.link, &self.options.config).await
    }

    async fn close(&self) -> Result<()> {
        // What was dropped unawaited is still in the client's queue.
        match tokio::time::timeout(self.options.request_timeout, self.link.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| error::lost().with_source(error)),
            Err(_) => Err(error::timed_out("close")),
        }
    }
}
