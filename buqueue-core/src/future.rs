//! The future behind the object-safe traits.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::Message;

/// What the object-safe traits return: a result that is there already, or a boxed future.
///
/// Calls that need not wait (an in-memory send, a buffered delivery) cost no allocation this way. Implementors of
/// [`QueueProducer`](crate::QueueProducer) and [`QueueConsumer`](crate::QueueConsumer) normally write
/// `QueueFuture::pending(async move { … })`.
#[must_use = "futures do nothing unless polled"]
pub struct QueueFuture<'a, T>(State<'a, T>);

enum State<'a, T> {
    Ready(Option<T>),
    Pending(Pin<Box<dyn Future<Output = T> + Send + 'a>>),
    /// Not begun: a receive that is never polled takes no message.
    Receive(Option<&'a mut (dyn Begin<T> + 'a)>),
    /// Not begun: a send that is never polled sends nothing.
    Send(Option<(&'a (dyn BeginSend<T> + 'a), Message)>),
}

/// A receiving call that begins with the first poll.
pub(crate) trait Begin<T>: Send {
    fn begin(&mut self) -> QueueFuture<'_, T>;
}

/// A sending call that begins with the first poll.
pub(crate) trait BeginSend<T>: Sync {
    fn begin(&self, message: Message) -> QueueFuture<'_, T>;
}

impl<'a, T> QueueFuture<'a, T> {
    /// A result that is there already.
    pub fn ready(value: T) -> Self {
        Self(State::Ready(Some(value)))
    }

    /// A result to wait for.
    pub fn pending(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self(State::Pending(Box::pin(future)))
    }

    pub(crate) fn receive(call: &'a mut (dyn Begin<T> + 'a)) -> Self {
        Self(State::Receive(Some(call)))
    }

    pub(crate) fn send(call: &'a (dyn BeginSend<T> + 'a), message: Message) -> Self {
        Self(State::Send(Some((call, message))))
    }

    /// Begins the call: the result if it is there already, else the future back, not yet polled.
    ///
    /// # Errors
    /// The future itself, when there is something to wait for.
    pub fn into_ready(mut self) -> Result<T, Self> {
        self.begin();
        match self.0 {
            State::Ready(Some(value)) => Ok(value),
            state => Err(Self(state)),
        }
    }

    fn begin(&mut self) {
        let begun = match &mut self.0 {
            State::Receive(call) => call.take().map(|call| call.begin()),
            State::Send(call) => call.take().map(|(call, message)| call.begin(message)),
            State::Ready(_) | State::Pending(_) => None,
        };
        if let Some(begun) = begun {
            self.0 = begun.0;
        }
    }
}

impl<T: Unpin> Future for QueueFuture<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.begin();
        match &mut self.0 {
            // Polled again after completion: a bug of the caller, which pending forever would hide.
            State::Ready(value) => {
                Poll::Ready(value.take().unwrap_or_else(|| panic!("polled after completion")))
            }
            State::Pending(future) => future.as_mut().poll(context),
            // `begin` leaves neither behind.
            State::Receive(_) | State::Send(_) => Poll::Pending,
        }
    }
}

impl<T> fmt::Debug for QueueFuture<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Ready(_) => "QueueFuture::Ready",
            State::Pending(_) => "QueueFuture::Pending",
            State::Receive(_) | State::Send(_) => "QueueFuture::NotBegun",
        })
    }
}
