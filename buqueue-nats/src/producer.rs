//! The sending half.

use async_nats::StatusCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use buqueue_core::driver;
use buqueue_core::{BuqueueError, ErrorKind, Message, MessageId, Result};
use chrono::{DateTime, Utc};
use tokio::sync::RwLock;
use tokio::time::Instant;

use crate::config::NatsOptions;
use crate::connection::Link;
use crate::convert::{Outgoing, Subjects};
use crate::error;
use crate::requests::{Asked, Requests, Silence};
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
    pub(crate) async fn start(link: Link, options: &NatsOptions, scheduling: Scheduling) -> Result<Self> {
        let requests = Requests::start(&link, options.request_timeout).await?;
        let subjects = Subjects::new(&options.config.jetstream);
        let scheduling = RwLock::new(scheduling);
        Ok(Self { link, requests, options: options.clone(), subjects, scheduling })
    }

    /// What the message takes in bytes is known here, and what the server takes too.
    fn check_size(&self, outgoing: &Outgoing) -> Result<()> {
        let server = self.link.client.max_payload();
        let own = usize::try_from(self.options.config.jetstream.max_message_size).unwrap_or(usize::MAX);
        let (size, limit) = (outgoing.size(), server.min(own));
        if size > limit {
            let fact = format!("payload and headers: {size} bytes, the limit is {limit} bytes");
            return Err(BuqueueError::new(ErrorKind::PayloadTooLarge, fact));
        }
        Ok(())
    }

    async fn hand_over(&self, outgoing: Outgoing, deadline: Instant) -> Result<Asked> {
        self.check_size(&outgoing)?;
        self.requests.ask(outgoing.subject, outgoing.headers, outgoing.payload, deadline).await
    }

    /// Publishes, and declares what is missing when the server says that no stream takes the subject.
    async fn publish(&self, build: impl Fn() -> Outgoing) -> Result<MessageId> {
        for declared in [false, true] {
            let deadline = self.requests.deadline();
            let answer = self.hand_over(build(), deadline).await?.answer(deadline).await;
            match outcome(answer)? {
                Some(id) => return Ok(id),
                None if declared => break,
                None => self.declare().await?,
            }
        }
        let fact = format!("no stream takes the subject {:?}", build().subject);
        Err(BuqueueError::new(ErrorKind::NotFound, fact))
    }

    async fn declare(&self) -> Result<()> {
        let scheduling = topology::ensure_stream(&self.link, &self.options.config).await?;
        *self.scheduling.write().await = scheduling;
        Ok(())
    }
}

/// `None`: there is no stream for the subject.
fn outcome(answer: std::result::Result<async_nats::Message, Silence>) -> Result<Option<MessageId>> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(Silence::Lost) => return Err(error::lost()),
        Err(Silence::Late) => return Err(error::timed_out("send")),
    };
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Ok(None);
    }
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
            let deadline = self.requests.deadline();
            let mut asked = Vec::with_capacity(part.len());
            for message in part {
                asked.push(self.hand_over(Outgoing::new(message, &self.subjects), deadline).await);
            }
            let at = outcomes.len();
            // The last first: when it is answered, those before it are, and one wake was enough for all.
            for (asked, message) in asked.into_iter().zip(part).rev() {
                let answered = match asked {
                    Ok(asked) => outcome(asked.answer(deadline).await),
                    Err(error) => Err(error),
                };
                outcomes.push(match answered {
                    Ok(Some(id)) => Ok(id),
                    // The stream is gone; the message was taken by nobody.
                    Ok(None) => self.publish(|| Outgoing::new(message, &self.subjects)).await,
                    Err(error) => Err(error),
                });
            }
            outcomes[at..].reverse();
        }
        outcomes
    }

    async fn close(&self) -> Result<()> {
        // What was dropped unawaited is still in the client's queue.
        match tokio::time::timeout(self.options.request_timeout, self.link.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| error::lost().with_source(error)),
            Err(_) => Err(error::timed_out("close")),
        }
    }
}
