//! The one place that looks outwards: events, spans and instruments.
//!
//! Everything that core and the drivers do and an operator may want to see goes through here, and nowhere else are the
//! features `tracing` and `metrics` known. With both off every type here is empty, every function does nothing, and all
//! of it disappears.

use chrono::{DateTime, SecondsFormat, Utc};

use crate::driver::Activity;
use crate::{BuqueueError, ErrorKind, Message, MessageId, QueueStats, Result};

#[cfg(feature = "tracing")]
mod propagation;

#[cfg(feature = "tracing")]
mod trace;
#[cfg(not(feature = "tracing"))]
#[path = "no_trace.rs"]
mod trace;

#[cfg(feature = "metrics")]
mod metrics;
#[cfg(not(feature = "metrics"))]
#[path = "no_metrics.rs"]
mod metrics;

pub(crate) use metrics::Started;
pub(crate) use trace::{Processing, Receiving};

/// When a scheduled message is due. Written by `send_at` where the feature `metrics` is on, read to tell how late it came.
pub(crate) const DELIVER_AT: &str = "buqueue-deliver-at";

pub(crate) fn due_time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Whether anything is measured here.
pub(crate) const MEASURED: bool = cfg!(feature = "metrics");

macro_rules! event {
    ($level:ident, $($field:tt)*) => {{
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "buqueue", $($field)*);
    }};
}

/// What is done with a message, or with several, as spans and instruments name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(feature = "tracing", feature = "metrics")),
    expect(dead_code, reason = "who names spans and instruments names these two as well")
)]
pub(crate) enum Operation {
    Create,
    Send,
    SendAt,
    SendBatch,
    Receive,
    Process,
    Ack,
    Nack,
    NackAfter,
    DeadLetter,
}

impl Operation {
    #[cfg(any(feature = "tracing", feature = "metrics"))]
    const ALL: [Self; 10] = [
        Self::Create,
        Self::Send,
        Self::SendAt,
        Self::SendBatch,
        Self::Receive,
        Self::Process,
        Self::Ack,
        Self::Nack,
        Self::NackAfter,
        Self::DeadLetter,
    ];

    /// `messaging.operation.name`, and the call's name in errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Send => "send",
            Self::SendAt => "send_at",
            Self::SendBatch => "send_batch",
            Self::Receive => "receive",
            Self::Process => "process",
            Self::Ack => "ack",
            Self::Nack => "nack",
            Self::NackAfter => "nack_after",
            Self::DeadLetter => "dead_letter",
        }
    }

    /// `messaging.operation.type`.
    #[cfg(any(feature = "tracing", feature = "metrics"))]
    const fn kind(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Send | Self::SendAt | Self::SendBatch => "send",
            Self::Receive => "receive",
            Self::Process => "process",
            Self::Ack | Self::Nack | Self::NackAfter | Self::DeadLetter => "settle",
        }
    }

    /// `error.type` of a message whose processing ended with this settle; `None`: it succeeded.
    #[cfg(any(feature = "tracing", feature = "metrics"))]
    const fn failure(self) -> Option<&'static str> {
        match self {
            Self::Nack | Self::NackAfter => Some("nack"),
            Self::DeadLetter => Some("dead_letter"),
            _ => None,
        }
    }
}

/// `error.type`: few values, and none of them text of the broker.
fn error_type(error: &BuqueueError) -> &'static str {
    match error.kind {
        ErrorKind::ConnectionLost => "connection_lost",
        ErrorKind::Timeout => "timeout",
        ErrorKind::Throttled => "throttled",
        ErrorKind::AuthenticationFailed => "authentication_failed",
        ErrorKind::NotFound => "not_found",
        ErrorKind::PayloadTooLarge => "payload_too_large",
        ErrorKind::Serialization => "serialization",
        ErrorKind::InvalidConfig => "invalid_config",
        ErrorKind::InvalidMessage => "invalid_message",
        ErrorKind::LeaseExpired => "lease_expired",
        ErrorKind::ShuttingDown => "shutting_down",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::PartialBatch { .. } => "partial_batch",
        ErrorKind::BackendSpecific { .. } => "backend_specific",
    }
}

/// `error.type` of a delivery that was dropped unsettled.
#[cfg(any(feature = "tracing", feature = "metrics"))]
const ABANDONED: &str = "abandoned";

/// One queue as a producer or a consumer sees it: what all its events, spans and instruments say alike.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) backend: &'static str,
    /// The queue, as the backend addresses it; spans and instruments may have a shorter name for it.
    pub(crate) destination: Box<str>,
    spans: trace::Spans,
    meter: metrics::Meter,
}

impl Scope {
    pub(crate) fn new(backend: &'static str, destination: String, name: &str, group: Option<&str>) -> Self {
        let spans = trace::Spans::new(backend, name, group);
        let meter = metrics::Meter::new(backend, name, group);
        Self { backend, destination: destination.into_boxed_str(), spans, meter }
    }

    /// One message is about to be sent. What travels with it is added by [`Sending::equip`].
    #[inline]
    pub(crate) fn begin_send(&self, operation: Operation) -> Sending<'_> {
        let span = self.spans.send(operation, None);
        Sending { scope: self, operation, count: 1, span, started: self.meter.start(), open: true }
    }

    /// `count` messages are about to be sent together.
    pub(crate) fn begin_batch(&self, count: usize) -> Sending<'_> {
        let span = self.spans.send(Operation::SendBatch, Some(count));
        let operation = Operation::SendBatch;
        Sending { scope: self, operation, count, span, started: self.meter.start(), open: true }
    }

    /// The driver is about to be asked for messages.
    #[inline]
    pub(crate) fn begin_fetch(&self) -> Started {
        self.meter.start()
    }

    /// The driver has answered. A fetch that found nothing is no operation.
    pub(crate) fn fetched(&self, started: &Started, outcome: &Result<()>, count: usize) {
        if count > 0 || outcome.is_err() {
            self.meter.operation(Operation::Receive, started, outcome.as_ref().err().map(error_type));
        }
    }

    /// Messages are about to be handed out by one call.
    #[inline]
    pub(crate) fn begin_receive(&self) -> Receiving {
        self.spans.receive()
    }

    /// So many messages were handed out by one call.
    #[inline]
    pub(crate) fn received(&self, receiving: &Receiving, count: usize, batch: bool) {
        if batch {
            receiving.counted(count);
        }
        self.meter.consumed(count);
        self.meter.in_flight(count, true);
    }

    /// So many deliveries were settled or dropped.
    #[inline]
    pub(crate) fn left(&self, count: usize) {
        self.meter.in_flight(count, false);
    }

    /// The user is about to have this message: attempt `delivery_count`.
    #[inline]
    pub(crate) fn process(
        &self,
        receiving: &Receiving,
        received: &crate::driver::Received,
        delivery_count: u32,
    ) -> Processing {
        let due = received.lease.message(received.index).deliver_at();
        self.meter.delivered(due, received.delivery_count);
        self.spans.process(receiving, received, delivery_count)
    }

    /// A delivery is about to be settled: its processing ends here.
    #[inline]
    pub(crate) fn settle(
        &self,
        operation: Operation,
        processing: &Processing,
        since: &Started,
    ) -> Settling<'_> {
        let settling = self.begin_settle(operation, processing);
        // One look at the clock: what ends the processing begins the settle.
        self.ended(operation, processing, since, &settling.started);
        settling
    }

    /// As [`settle`](Self::settle), where it is open yet how the processing will have ended.
    #[inline]
    pub(crate) fn begin_settle(&self, operation: Operation, processing: &Processing) -> Settling<'_> {
        self.settling(operation, self.spans.settle(operation, processing))
    }

    /// Many deliveries are about to be acked together; each has ended by [`ended`](Self::ended).
    pub(crate) fn settle_many<'a>(
        &self,
        processings: impl ExactSizeIterator<Item = &'a Processing>,
    ) -> Settling<'_> {
        self.settling(Operation::Ack, self.spans.settle_many(processings))
    }

    /// A message that the user does not see is about to be moved to the dead letter queue.
    pub(crate) fn begin_burial(&self, message: &Message) -> Settling<'_> {
        self.settling(Operation::DeadLetter, self.spans.bury(message))
    }

    #[inline]
    fn settling(&self, operation: Operation, span: trace::Span) -> Settling<'_> {
        Settling { scope: self, operation, span, started: self.meter.start(), open: true }
    }

    /// The processing of a message ended in a settle that began at `until`.
    #[inline]
    pub(crate) fn ended(
        &self,
        operation: Operation,
        processing: &Processing,
        since: &Started,
        until: &Started,
    ) {
        self.meter.processed(since, until, operation.outcome());
        processing.ended(operation.outcome());
    }

    /// A delivery was dropped without being settled.
    pub(crate) fn abandoned(&self, processing: &Processing, since: &Started) {
        processing.ended(Outcome::Abandoned);
        self.meter.processed(since, &self.meter.start(), Outcome::Abandoned);
        self.meter.abandoned();
        processing.within(|| {
            event!(
                warn,
                backend = self.backend,
                source = &*self.destination,
                "delivery dropped unsettled; it will be redelivered"
            );
        });
    }

    /// A message moved to the dead letter queue.
    pub(crate) fn dead_lettered(&self, attempts: u32) {
        self.meter.dead_lettered();
        event!(
            warn,
            backend = self.backend,
            source = &*self.destination,
            attempts,
            "message moved to the dead letter queue"
        );
        let _ = attempts;
    }

    /// The dead letter queue refused a message; the original stays in its queue.
    pub(crate) fn dead_letter_failed(&self, error: &BuqueueError) {
        event!(
            error,
            backend = self.backend,
            source = &*self.destination,
            %error,
            "dead letter could not be published; the message stays in its queue"
        );
        let _ = error;
    }

    /// A dead letter is out, and its original could not be acked: it may be buried again.
    pub(crate) fn dead_letter_not_acked(&self, error: &BuqueueError) {
        event!(
            warn,
            backend = self.backend,
            source = &*self.destination,
            %error,
            "dead letter published; its original could not be acked"
        );
        let _ = error;
    }

    /// A receive failed in a way that may pass; it is tried again.
    pub(crate) fn receive_failed(&self, error: &BuqueueError, failures: u32) {
        event!(
            warn,
            backend = self.backend,
            source = &*self.destination,
            %error,
            failures,
            "receive failed; trying again"
        );
        let _ = (error, failures);
    }

    /// A receive that had failed works again.
    pub(crate) fn receive_recovered(&self, failures: u32) {
        self.meter.reconnected();
        event!(info, backend = self.backend, source = &*self.destination, failures, "receiving again");
        let _ = failures;
    }

    /// A consumer ended, and what was still in flight when its time was up.
    pub(crate) fn stopped(&self, in_flight: usize) {
        event!(info, backend = self.backend, source = &*self.destination, in_flight, "consumer stopped");
        let _ = in_flight;
    }

    /// Closing, or giving back what was fetched, failed; the lease's time limit will do it.
    pub(crate) fn close_failed(&self, error: &BuqueueError) {
        event!(
            warn,
            backend = self.backend,
            source = &*self.destination,
            %error,
            "closing failed; leases will run out by themselves"
        );
        let _ = error;
    }

    /// What lies in the queue.
    pub(crate) fn counted(&self, queue: &QueueStats) {
        self.meter.depth(queue);
    }

    /// What lies in its dead letter queue.
    pub(crate) fn dead_letters_counted(&self, dead_letters: &QueueStats) {
        self.meter.dead_letter_depth(dead_letters);
    }

    /// A queue could not be counted, as it could before.
    pub(crate) fn count_failed(&self, which: &'static str, error: &BuqueueError) {
        event!(
            warn,
            backend = self.backend,
            source = &*self.destination,
            which,
            %error,
            "the queue could not be counted"
        );
        let _ = (which, error);
    }
}

/// How the processing of a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Settled(Operation),
    Abandoned,
}

impl Operation {
    const fn outcome(self) -> Outcome {
        Outcome::Settled(self)
    }
}

#[cfg(any(feature = "tracing", feature = "metrics"))]
impl Outcome {
    const fn failure(self) -> Option<&'static str> {
        match self {
            Self::Settled(operation) => operation.failure(),
            Self::Abandoned => Some(ABANDONED),
        }
    }
}

/// `error.type` of what was given up by its caller.
const CANCELLED: &str = "cancelled";

/// A send that is under way. Dropped before its end, it was given up, and it is open how it ended.
#[derive(Debug)]
pub(crate) struct Sending<'a> {
    scope: &'a Scope,
    operation: Operation,
    /// How many messages.
    count: usize,
    span: trace::Span,
    started: Started,
    open: bool,
}

impl Sending<'_> {
    /// Gives the message what travels with it, as far as there is `room` for more headers: the trace context, and the
    /// time at which it is due.
    #[inline]
    pub(crate) fn equip(
        &self,
        message: &mut Message,
        deliver_at: Option<DateTime<Utc>>,
        room: impl Fn(&Message) -> usize,
    ) {
        match self.operation {
            Operation::SendBatch => self.scope.spans.create(&self.span, message, &room),
            _ => self.span.inject(message, &room),
        }
        if MEASURED && let Some(at) = deliver_at {
            // A time that has passed means now.
            let at = due_time(at.max(Utc::now()));
            if DELIVER_AT.len() + at.len() <= room(message) {
                message.set_header(DELIVER_AT, &at);
            }
        }
    }

    /// The send of one message has ended.
    #[inline]
    pub(crate) fn end(mut self, outcome: &Result<MessageId>) {
        self.open = false;
        match outcome {
            Ok(id) => self.span.sent(id),
            Err(error) => self.span.failed(error_type(error)),
        }
        let failure = outcome.as_ref().err().map(error_type);
        self.scope.meter.sent(1, failure);
        self.scope.meter.operation(self.operation, &self.started, failure);
    }

    /// The send of a batch has ended.
    pub(crate) fn end_batch(mut self, outcomes: &[Result<MessageId>]) {
        self.open = false;
        let sent = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        if sent > 0 {
            self.scope.meter.sent(sent, None);
        }
        let mut first_failure = None;
        for failure in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).map(error_type) {
            self.scope.meter.sent(1, Some(failure));
            first_failure = first_failure.or(Some(failure));
        }
        if let Some(failure) = first_failure {
            self.span.failed(failure);
        }
        self.scope.meter.operation(self.operation, &self.started, first_failure);
    }
}

impl Drop for Sending<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.open {
            self.span.failed(CANCELLED);
            self.scope.meter.sent(self.count, Some(CANCELLED));
            self.scope.meter.operation(self.operation, &self.started, Some(CANCELLED));
        }
    }
}

/// A settle that is under way. Dropped before its end, it was given up.
#[derive(Debug)]
pub(crate) struct Settling<'a> {
    scope: &'a Scope,
    operation: Operation,
    span: trace::Span,
    started: Started,
    open: bool,
}

impl Settling<'_> {
    /// The settle has ended, and its span with it.
    #[inline]
    pub(crate) fn end<T>(self, outcome: &Result<T>) {
        self.end_with(outcome.as_ref().err());
    }

    /// As [`end`](Self::end), with the error of what was settled together.
    #[inline]
    pub(crate) fn end_with(mut self, error: Option<&BuqueueError>) {
        self.open = false;
        let failure = error.map(error_type);
        if let Some(failure) = failure {
            self.span.failed(failure);
        }
        self.scope.meter.operation(self.operation, &self.started, failure);
    }

    /// What is told in there belongs to this span.
    pub(crate) fn within(&self, event: impl FnOnce()) {
        self.span.within(event);
    }
}

impl Drop for Settling<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.open {
            self.span.failed(CANCELLED);
            self.scope.meter.operation(self.operation, &self.started, Some(CANCELLED));
        }
    }
}

/// Something that a driver did by itself.
pub(crate) fn activity(backend: &'static str, source: &str, activity: Activity<'_>) {
    metrics::activity(backend, source, activity);
    #[cfg(feature = "tracing")]
    match activity {
        Activity::Disconnected(error) => event!(warn, backend, source, %error, "connection lost"),
        Activity::Reconnected => event!(info, backend, source, "connected again"),
        Activity::Forwarded(messages) => {
            event!(debug, backend, source, messages, "messages that were due moved to their queue");
        }
        Activity::Reclaimed(messages) => {
            event!(info, backend, source, messages, "messages of others taken over")
        }
        Activity::Failed(what, error) => event!(warn, backend, source, %error, "{what} failed; trying again"),
    }
}
