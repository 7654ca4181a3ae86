//! Questions to the server: many at a time, each with its answer, a reason why there is none, or the end of patience.
//!
//! The client correlates answers in the task that reads its connection, but it does not tell when that connection has
//! broken, and does not ask again: whoever waits would wait in vain.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::header::HeaderMap;
use async_nats::{Client, Message, Request, Subject};
use buqueue_core::{BuqueueError, ErrorKind};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::connection::{Link, State};
use crate::error;

/// Asks.
pub(crate) struct Requests {
    client: Client,
    state: watch::Receiver<State>,
    timeout: Duration,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// When something was asked: in which state of the connection, and until when an answer is in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    asked_in: State,
    deadline: Instant,
}

impl Began {
    /// With less patience.
    pub(crate) fn within(self, limit: Duration) -> Self {
        Self { deadline: self.deadline.min(Instant::now() + limit), ..self }
    }

    /// With no more patience than what was asked before.
    pub(crate) fn no_later_than(self, before: Self) -> Self {
        Self { deadline: self.deadline.min(before.deadline), ..self }
    }

    pub(crate) fn deadline(self) -> Instant {
        self.deadline
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Silence {
    /// The connection broke.
    Lost,
    /// It took too long.
    Late,
    /// Nobody takes the subject.
    NoResponders,
    /// The client does not send it.
    Refused(BuqueueError),
}

impl Silence {
    /// As an error; `what` was asked for.
    pub(crate) fn into_error(self, what: &str) -> BuqueueError {
        match self {
            Self::Lost => error::lost(),
            Self::Late => error::timed_out(what),
            Self::NoResponders => BuqueueError::new(ErrorKind::NotFound, format!("{what}: nobody answers")),
            Self::Refused(error) => error,
        }
    }
}

impl Requests {
    pub(crate) fn new(link: &Link, timeout: Duration) -> Self {
        Self { client: link.client.clone(), state: link.state(), timeout }
    }

    /// For what is asked now.
    pub(crate) fn begin(&self) -> Began {
        Began { asked_in: *self.state.borrow(), deadline: Instant::now() + self.timeout }
    }

    /// Hands a question to the connection at the first poll, behind those that were handed over before; the server's
    /// answer. Waits for ever, but for [`in_time`](Self::in_time).
    pub(crate) async fn ask(
        &self,
        subject: Subject,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Message, Silence> {
        let request = Request::new().payload(payload).timeout(None);
        let request = if headers.is_empty() { request } else { request.headers(headers) };
        self.client.send_request(subject, request).await.map_err(silence)
    }

    /// Waits for answers to what `asking` has asked since `began`, as long as they can come.
    pub(crate) async fn in_time<F: Future>(&self, began: Began, asking: F) -> Result<F::Output, Silence> {
        let mut state = self.state.clone();
        let mut asking = pin!(asking);
        // Mostly there is no answer yet, and never one later than this without a wait.
        if let Some(answered) = poll_once(asking.as_mut()).await {
            return Ok(answered);
        }
        tokio::select! {
            biased;
            answered = asking => Ok(answered),
            () = lost(&mut state, began.asked_in) => Err(Silence::Lost),
            () = sleep_until(began.deadline) => Err(Silence::Late),
        }
    }
}

/// Waits until the server cannot answer any more what was asked in that state of the connection. What was asked on a
/// connection that breaks is not answered; what was asked while there was none is asked on the next one.
async fn lost(state: &mut watch::Receiver<State>, asked_in: State) {
    let asked_on = if asked_in.up { asked_in.epoch } else { asked_in.epoch + 1 };
    let broken = |state: &State| state.epoch > asked_on || (state.epoch == asked_on && !state.up);
    // A client that has ended does not answer either.
    let _ended = state.wait_for(broken).await.is_err();
}

fn silence(error: RequestError) -> Silence {
    let (kind, fact) = match error.kind() {
        RequestErrorKind::NoResponders => return Silence::NoResponders,
        RequestErrorKind::TimedOut => return Silence::Late,
        RequestErrorKind::Other => return Silence::Lost,
        RequestErrorKind::InvalidSubject => (ErrorKind::InvalidMessage, "routing_key: is no subject"),
        RequestErrorKind::MaxPayloadExceeded => {
            (ErrorKind::PayloadTooLarge, "payload and headers: more bytes than the server's max_payload")
        }
    };
    Silence::Refused(BuqueueError::new(kind, fact).with_source(error))
}

/// What the future is ready with, if it is; otherwise it is polled on by who awaits it next.
pub(crate) async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn an_answer_is_lost_with_the_connection_it_was_asked_on() {
        let state = |up, epoch| State { up, epoch };
        for (asked_in, then, is_lost) in [
            (state(true, 1), state(true, 1), false),
            (state(true, 1), state(false, 1), true),
            (state(true, 1), state(true, 2), true),
            (state(false, 1), state(false, 1), false),
            (state(false, 1), state(true, 2), false),
            (state(false, 1), state(false, 2), true),
            (state(false, 1), state(true, 3), true),
            (state(false, 0), state(true, 1), false),
        ] {
            let (_sender, mut receiver) = watch::channel(then);
            let lost = lost(&mut receiver, asked_in).now_or_never().is_some();
            assert_eq!(lost, is_lost, "asked in {asked_in:?}, then {then:?}");
        }
    }
}
