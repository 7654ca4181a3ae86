//! Questions to the server, many at a time over one subscription.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Client, Message, Subject};
use buqueue_core::{BuqueueError, ErrorKind, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::connection::Link;
use crate::error;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Message>>>>;

/// Asks and correlates the answers. The task that reads them ends with it.
pub(crate) struct Requests {
    client: Client,
    inbox: String,
    next: AtomicU64,
    waiting: Waiting,
    timeout: Duration,
    _reader: JoinSet<()>,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

impl Requests {
    pub(crate) async fn start(link: &Link, timeout: Duration) -> Result<Self> {
        let client = link.client.clone();
        let inbox = client.new_inbox();
        let subscribed = client.subscribe(format!("{inbox}.*")).await;
        let mut answers = subscribed.map_err(|error| {
            BuqueueError::new(ErrorKind::ConnectionLost, "the connection is closed").with_source(error)
        })?;
        let waiting = Waiting::default();
        let mut reader = JoinSet::new();
        let (known, mut state) = (Arc::clone(&waiting), link.state());
        reader.spawn(async move {
            loop {
                tokio::select! {
                    answer = answers.next() => {
                        let Some(answer) = answer else { return };
                        let number = answer.subject.rsplit('.').next().and_then(|token| token.parse().ok());
                        let asked = number.and_then(|number: u64| lock(&known).remove(&number));
                        if let Some(asked) = asked {
                            // Who asked may have stopped waiting.
                            drop(asked.send(answer));
                        }
                    }
                    changed = state.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        // What was asked on the connection that broke is not answered any more. A question that is
                        // still in the client's queue is asked all the same; nobody waits for its answer.
                        if !state.borrow_and_update().up {
                            lock(&known).clear();
                        }
                    }
                }
            }
        });
        Ok(Self { client, inbox, next: AtomicU64::new(0), waiting, timeout, _reader: reader })
    }

    /// When an answer to what is asked now is late.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Hands a question to the connection. The answer is waited for with [`Asked::answer`].
    pub(crate) async fn ask(
        &self,
        subject: Subject,
        headers: HeaderMap,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Asked> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).insert(number, answer);
        // Forgets the question when it cannot be asked, or nobody waits any more.
        let asked = Asked { number, answered, waiting: Arc::clone(&self.waiting) };
        let reply = format!("{}.{number}", self.inbox);
        let publishing = async {
            if headers.is_empty() {
                self.client.publish_with_reply(subject, reply, payload).await
            } else {
                self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        };
        let mut publishing = pin!(publishing);
        // The queue in front of the connection may be full while it is down. Mostly it is not, and no timer is needed.
        let published = match poll_once(publishing.as_mut()).await {
            Some(published) => published,
            None => match timeout_at(deadline, publishing).await {
                Ok(published) => published,
                Err(_) => return Err(error::timed_out("the connection")),
            },
        };
        published.map_err(error::publishing)?;
        Ok(asked)
    }
}

/// What the future is ready with, if it is; otherwise it is polled on by who awaits it next.
pub(crate) async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A question that was asked.
pub(crate) struct Asked {
    number: u64,
    answered: oneshot::Receiver<Message>,
    waiting: Waiting,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// The connection broke.
    Lost,
    /// It took too long.
    Late,
}

impl Asked {
    pub(crate) async fn answer(mut self, deadline: Instant) -> Result<Message, Silence> {
        match timeout_at(deadline, &mut self.answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Silence::Lost),
            Err(_) => Err(Silence::Late),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // Answered ones are no longer there.
        if matches!(self.answered.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            lock(&self.waiting).remove(&self.number);
        }
    }
}

/// Nothing that panics runs under this lock.
fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
