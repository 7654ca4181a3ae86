//! Delayed messages where the server has no schedules, or would drop them: a stream of their own, whose consumers hand
//! each message back to the server until it is due, and then publish it.

use std::time::Duration;

use async_nats::Message;
use async_nats::header::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use buqueue_core::driver::{Activity, Backend as _};
use buqueue_core::{Backoff, BuqueueError, Complaints, ErrorKind, Result};
use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use crate::NatsBackend;
use crate::config::NatsOptions;
use crate::connection::Link;
use crate::convert::{self, Info};
use crate::requests::Requests;
use crate::telling::tell;
use crate::topology::{self, MOVER};

const BATCH: usize = 200;
/// Short: server 2.9 now and then forgets a pull without a word, and what is due is late by as much.
const EXPIRES: Duration = Duration::from_secs(2);
/// One that cannot be published is tried again after this; it holds up nobody.
const RETRY: Duration = Duration::from_secs(10);
/// The longest time that one hand-over asks the server to wait.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Runs until its consumer aborts it.
pub(crate) async fn move_what_is_due(link: Link, options: NatsOptions) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut told = Told::new(options.config.jetstream.stream_name.clone());
    loop {
        // What goes wrong here mostly shows in the consumer's own calls, which use the same connection.
        let moved = moving(&link, &options, &mut backoff, &mut told).await;
        told.tell_moved();
        if let Err(error) = moved {
            told.looking.tell(&told.queue, &error);
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// What became of a message that was looked at.
enum Placed {
    /// It is due later, or somebody else's.
    Waits,
    Moved,
    Failed(BuqueueError),
}

/// What is told of the mover's work.
struct Told {
    queue: String,
    looking: Complaints,
    publishing: Complaints,
    /// Moved and not told yet.
    moved: usize,
}

impl Told {
    fn new(queue: String) -> Self {
        let about = |what| Complaints::new(NatsBackend::NAME, what);
        Self {
            queue,
            looking: about("looking for delayed messages that are due"),
            publishing: about("publishing a delayed message that is due"),
            moved: 0,
        }
    }

    fn note(&mut self, placed: Placed) {
        match placed {
            Placed::Waits => {}
            Placed::Moved => self.moved += 1,
            Placed::Failed(error) => {
                self.publishing.tell(&self.queue, &error);
            }
        }
    }

    fn tell_moved(&mut self) {
        let moved = std::mem::take(&mut self.moved);
        if moved > 0 {
            tell(&self.queue, Activity::Forwarded(moved));
        }
    }
}

/// Moves until something fails.
async fn moving(link: &Link, options: &NatsOptions, backoff: &mut Backoff, told: &mut Told) -> Result<()> {
    topology::ensure_stream(link, &options.config).await?;
    let requests = Requests::new(link, options.request_timeout);
    let inbox = link.client.new_inbox();
    let closed = || BuqueueError::new(ErrorKind::ConnectionLost, "the connection is closed");
    let mut messages = link.client.subscribe(inbox.clone()).await.map_err(|_| closed())?;
    let stream = topology::delay_stream(&options.config.jetstream.stream_name);
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{MOVER}");
    let config = pull::BatchConfig { batch: BATCH, expires: Some(EXPIRES), ..Default::default() };
    let request = Bytes::from(serde_json::to_vec(&config).unwrap_or_default());
    let mut state = link.state();
    let mut moves = FuturesUnordered::new();
    loop {
        // As many as one pull brings, and no more: the server gives what waits here for too long to others.
        while moves.len() >= BATCH {
            moves.next().await.into_iter().for_each(|placed| told.note(placed));
        }
        // At most as often as a pull ends.
        told.tell_moved();
        state.mark_unchanged();
        link.client
            .publish_with_reply(next.clone(), inbox.clone(), request.clone())
            .await
            .map_err(crate::error::publishing)?;
        let mut left = BATCH;
        while left > 0 {
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { return Err(closed()) };
                    match message.status {
                        None => {
                            left -= 1;
                            backoff.reset();
                            moves.push(place(link, &requests, &stream, message));
                        }
                        Some(async_nats::StatusCode::TIMEOUT) => break,
                        Some(_) => return Err(closed()),
                    }
                }
                Some(placed) = moves.next(), if !moves.is_empty() => told.note(placed),
                changed = state.changed() => {
                    // The server has forgotten the pull.
                    changed.map_err(|_| closed())?;
                    break;
                }
                () = tokio::time::sleep(EXPIRES + Duration::from_millis(500)), if moves.is_empty() => break,
            }
        }
    }
}

/// Publishes what is due, and hands everything else back until it is. What fails is delivered here again.
async fn place(link: &Link, requests: &Requests, stream: &str, message: Message) -> Placed {
    let Some(reply) = message.reply.clone() else { return Placed::Waits };
    let answer = |verb: String| async {
        drop(timeout(RETRY, link.client.publish(reply.clone(), Bytes::from(verb))).await);
    };
    let later = |delay: Duration| answer(format!("-NAK {{\"delay\": {}}}", delay.as_nanos()));
    let (Some((outgoing, due)), Some(info)) = (convert::delayed(&message), Info::parse(&reply)) else {
        // Somebody else's: it stays, for a human to look at.
        later(LONGEST).await;
        return Placed::Waits;
    };
    if let Ok(wait) = (due - Utc::now()).to_std()
        && !wait.is_zero()
    {
        later(wait.min(LONGEST)).await;
        return Placed::Waits;
    }
    // A mover that dies here leaves the message to another, and the server drops the second copy by this id.
    let outgoing = outgoing.or_msg_id(&format!("{stream}:{}", info.stream_sequence));
    match publish(requests, outgoing).await {
        Ok(()) => {
            let began = requests.begin();
            let asking = requests.ask(reply.clone(), HeaderMap::new(), Bytes::from_static(b"+ACK"));
            let _comes_again_if_unheard = requests.in_time(began, asking).await;
            Placed::Moved
        }
        Err(error) => {
            later(RETRY).await;
            Placed::Failed(error)
        }
    }
}

async fn publish(requests: &Requests, outgoing: convert::Outgoing) -> Result<()> {
    let began = requests.begin();
    let asking = requests.ask(outgoing.subject, outgoing.headers, outgoing.payload);
    let answer = requests.in_time(began, asking).await.and_then(|answer| answer);
    let answer = answer.map_err(|silence| silence.into_error("a delayed message"))?;
    match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
        Ok(Response::Ok(_)) => Ok(()),
        Ok(Response::Err { error }) => Err(crate::error::refused("a delayed message", &error)),
        Err(error) => Err(crate::error::lost().with_source(error)),
    }
}
