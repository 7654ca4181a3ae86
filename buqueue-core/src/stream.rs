//! A consumer as a stream.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use crate::{
    Backoff, Capabilities, Delivery, ErrorKind, QueueConsumer, QueueMonitor, Result, ShutdownHandle,
};

/// The messages of a consumer as a [`Stream`]; made by `into_stream()`.
///
/// Ends after a shutdown. After an error item (always one that does not pass by itself) the next item comes no
/// sooner than after a back-off, so that a loop that skips errors does not spin. May be dropped, or exhausted by
/// `take`, while its deliveries are alive.
#[must_use = "streams do nothing unless polled"]
pub struct DeliveryStream {
    state: State,
    backoff: Backoff,
    /// How long to wait before the next receive, after an error item.
    pause: Option<Duration>,
    shutdown: ShutdownHandle,
}

type BoxedConsumer = Box<dyn QueueConsumer>;
type Receiving = Pin<Box<dyn Future<Output = (BoxedConsumer, Result<Delivery>)> + Send>>;

enum State {
    Idle(BoxedConsumer),
    Receiving(Receiving),
    Ended,
}

impl DeliveryStream {
    pub(crate) fn new(consumer: impl QueueConsumer) -> Self {
        let shutdown = consumer.shutdown_handle();
        Self { state: State::Idle(Box::new(consumer)), backoff: Backoff::default(), pause: None, shutdown }
    }

    /// A handle that stops the consumer; the stream then ends.
    #[must_use]
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.shutdown.clone()
    }

    /// A handle that counts what lies in the queue, from anywhere.
    #[must_use]
    pub fn monitor(&self) -> QueueMonitor {
        self.shutdown.monitor()
    }

    /// What the backend can do, unless the stream is waiting or has ended.
    #[must_use]
    pub fn capabilities(&self) -> Option<&Capabilities> {
        match &self.state {
            State::Idle(consumer) => Some(consumer.capabilities()),
            State::Receiving(_) | State::Ended => None,
        }
    }

    fn finish(&mut self, consumer: BoxedConsumer, outcome: Result<Delivery>) -> Option<Result<Delivery>> {
        match &outcome {
            // The consumer is dropped with its connections; deliveries keep what they need.
            Err(error) if error.kind == ErrorKind::ShuttingDown => {
                self.state = State::Ended;
                return None;
            }
            Err(_) => self.pause = Some(self.backoff.next_delay()),
            Ok(_) => self.backoff.reset(),
        }
        self.state = State::Idle(consumer);
        Some(outcome)
    }
}

impl Stream for DeliveryStream {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Idle(mut consumer) => {
                    let pause = self.pause.take();
                    let ready = if pause.is_none() { consumer.receive().into_ready().ok() } else { None };
                    if let Some(outcome) = ready {
                        return Poll::Ready(self.finish(consumer, outcome));
                    }
                    self.state = State::Receiving(Box::pin(receive(consumer, pause)));
                }
                State::Receiving(mut receiving) => match receiving.as_mut().poll(context) {
                    Poll::Ready((consumer, outcome)) => return Poll::Ready(self.finish(consumer, outcome)),
                    Poll::Pending => {
                        self.state = State::Receiving(receiving);
                        return Poll::Pending;
                    }
                },
            }
        }
    }
}

async fn receive(mut consumer: BoxedConsumer, pause: Option<Duration>) -> (BoxedConsumer, Result<Delivery>) {
    if let Some(pause) = pause {
        let shutdown = consumer.shutdown_handle();
        // A shutdown during the pause shows in the receive below.
        let _stopped = shutdown.shared.until_stopped(tokio::time::sleep(pause)).await;
    }
    let outcome = consumer.receive().await;
    (consumer, outcome)
}

impl fmt::Debug for DeliveryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryStream")
            .field("receiving", &matches!(self.state, State::Receiving(_)))
            .field("ended", &matches!(self.state, State::Ended))
            .finish_non_exhaustive()
    }
}
