//! Spans by the OpenTelemetry conventions for messaging, made with `tracing`; an application that has a layer of
//! `tracing-opentelemetry` exports them.
//!
//! Source: <https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>, v1.44 (development).

use std::fmt;
use std::future::Future;

use opentelemetry::Context;
use opentelemetry::baggage::{BaggageExt as _, KeyValueMetadata};
use opentelemetry::trace::TraceContextExt as _;
use tracing::dispatcher::with_default;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::propagation::{extract, inject, is_carried};
use super::{Operation, Outcome};
use crate::driver::{Detail, Received};
use crate::{Delivery, Message, MessageId};

/// What the spans of one queue say alike.
pub(crate) struct Spans {
    system: &'static str,
    destination: Box<str>,
    group: Option<Box<str>>,
    /// `{operation} {destination}`, by operation.
    names: [Box<str>; Operation::ALL.len()],
}

/// A target is what an application filters by, and must be a constant: hence a macro.
macro_rules! span {
    ($target:literal, $kind:literal, $spans:expr, $operation:expr $(, [$($parent:tt)*])? $(, { $($fields:tt)* })?) => {
        info_span!(
            target: $target,
            $($($parent)*,)?
            "message",
            otel.name = &*$spans.names[$operation as usize],
            otel.kind = $kind,
            otel.status_code = Empty,
            messaging.system = $spans.system,
            messaging.operation.name = $operation.name(),
            messaging.operation.type = $operation.kind(),
            messaging.destination.name = &*$spans.destination,
            messaging.message.id = Empty,
            messaging.batch.message_count = Empty,
            error.type = Empty,
            $($($fields)*)?
        )
    };
}

impl Spans {
    pub(super) fn new(system: &'static str, destination: &str, group: Option<&str>) -> Self {
        let names = Operation::ALL.map(|operation| format!("{} {destination}", operation.name()).into());
        Self { system, destination: destination.into(), group: group.map(Into::into), names }
    }

    fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// The span of a send; of a batch it is the client's call, and each message has a span of its own.
    #[inline]
    pub(super) fn send(&self, operation: Operation, count: Option<usize>) -> Span {
        let span = match count {
            None => span!("buqueue::send", "producer", self, operation),
            Some(_) => span!("buqueue::send", "client", self, operation),
        };
        if let Some(count) = count {
            span.record("messaging.batch.message_count", number(count));
        }
        Span(span)
    }

    /// The creation of one message of a batch: what its consumer's span will be a child of.
    pub(super) fn create(&self, send: &Span, message: &mut Message, room: &impl Fn(&Message) -> usize) {
        if send.0.is_disabled() && is_alone() {
            return;
        }
        if send.links_to_carried(message) {
            return;
        }
        let create = span!("buqueue::create", "producer", self, Operation::Create);
        let own = create.context().span().span_context().clone();
        if own.is_valid() {
            send.0.add_link(own);
            inject(&context_of(&create), message, room);
        } else {
            inject(&context_of(&send.0), message, room);
        }
    }

    /// The span of a call that hands messages out. It begins when they are there: how long a consumer waited for them is
    /// no work of anybody's.
    #[inline]
    pub(super) fn receive(&self) -> Receiving {
        Receiving(span!("buqueue::receive", "client", self, Operation::Receive, {
            messaging.consumer.group.name = self.group()
        }))
    }

    /// The span of a message from here until it is settled: a child of the span that sent it.
    #[inline]
    pub(super) fn process(&self, receiving: &Receiving, received: &Received, attempt: u32) -> Processing {
        let span = span!("buqueue::process", "consumer", self, Operation::Process, [parent: None], {
            messaging.consumer.group.name = self.group(),
            messaging.destination.partition.id = Empty,
            messaging.kafka.offset = Empty,
            messaging.rabbitmq.destination.routing_key = Empty,
            messaging.rabbitmq.message.delivery_tag = Empty,
            aws.sqs.queue.url = Empty,
            buqueue.delivery_count = i64::from(attempt)
        });
        if span.is_disabled() && receiving.0.is_disabled() {
            return Processing(span);
        }
        let Received { lease, index, .. } = received;
        let headers = lease.message(*index).headers();
        if is_carried(headers) {
            let cx = extract(headers);
            receiving.0.add_link(cx.span().span_context().clone());
            // Without a layer of OpenTelemetry there is nobody to be told.
            let _told = span.set_parent(cx);
        }
        if !receiving.0.is_disabled() {
            span.add_link(receiving.0.context().span().span_context().clone());
        }
        span.record("messaging.message.id", display(lease.message_id(*index)));
        lease.details(*index, &mut |name, detail| match detail {
            Detail::Text(text) => {
                span.record(name, text);
            }
            Detail::Number(number) => {
                span.record(name, number);
            }
        });
        Processing(span)
    }

    #[inline]
    pub(super) fn settle(&self, operation: Operation, processing: &Processing) -> Span {
        let under_processing = processing.0.with_subscriber(|(_, subscriber)| {
            // It may have been received under another subscriber than this thread's, which knows nothing of the parent, and
            // panics.
            with_default(subscriber, || {
                span!("buqueue::settle", "client", self, operation, [parent: &processing.0], {
                    messaging.consumer.group.name = self.group()
                })
            })
        });
        Span(under_processing.unwrap_or_else(|| {
            span!("buqueue::settle", "client", self, operation, {
                messaging.consumer.group.name = self.group()
            })
        }))
    }

    pub(super) fn settle_many<'a>(&self, processings: impl ExactSizeIterator<Item = &'a Processing>) -> Span {
        let span = span!("buqueue::settle", "client", self, Operation::Ack, {
            messaging.consumer.group.name = self.group()
        });
        if !span.is_disabled() {
            span.record("messaging.batch.message_count", number(processings.len()));
            for processing in processings {
                span.add_link(processing.0.context().span().span_context().clone());
            }
        }
        Span(span)
    }

    /// The span of a dead letter that nobody saw again: a child of the span that sent it.
    pub(super) fn bury(&self, message: &Message) -> Span {
        let span = span!("buqueue::settle", "client", self, Operation::DeadLetter, [parent: None], {
            messaging.consumer.group.name = self.group()
        });
        if !span.is_disabled() && is_carried(message.headers()) {
            let _told = span.set_parent(extract(message.headers()));
        }
        Span(span)
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").field("system", &self.system).finish_non_exhaustive()
    }
}

/// The span of a send or of a settle.
#[derive(Debug)]
pub(crate) struct Span(tracing::Span);

impl Span {
    /// The context of this span, or of what is around it where this one is filtered out, travels with the message.
    #[inline]
    pub(super) fn inject(&self, message: &mut Message, room: &impl Fn(&Message) -> usize) {
        if (self.0.is_disabled() && is_alone()) || self.links_to_carried(message) {
            return;
        }
        inject(&context_of(&self.0), message, room);
    }

    /// A message that was created elsewhere keeps its context, and this span links to it.
    fn links_to_carried(&self, message: &Message) -> bool {
        if !is_carried(message.headers()) {
            return false;
        }
        let carried = extract(message.headers()).span().span_context().clone();
        let is_valid = carried.is_valid();
        self.0.add_link(carried);
        is_valid
    }

    #[inline]
    pub(super) fn sent(&self, id: &MessageId) {
        if !self.0.is_disabled() {
            self.0.record("messaging.message.id", display(id));
        }
    }

    pub(super) fn failed(&self, error_type: &'static str) {
        fail(&self.0, error_type);
    }

    pub(super) fn within(&self, event: impl FnOnce()) {
        self.0.in_scope(event);
    }
}

/// The span of a call that hands messages out.
#[derive(Debug)]
pub(crate) struct Receiving(tracing::Span);

impl Receiving {
    pub(super) fn counted(&self, count: usize) {
        self.0.record("messaging.batch.message_count", number(count));
    }
}

/// The span of a message while its user has it.
#[derive(Debug)]
pub(crate) struct Processing(tracing::Span);

impl Processing {
    #[inline]
    pub(super) fn ended(&self, outcome: Outcome) {
        if let Some(failure) = outcome.failure() {
            fail(&self.0, failure);
        }
    }

    /// What is told in there belongs to this span.
    pub(crate) fn within(&self, event: impl FnOnce()) {
        self.0.in_scope(event);
    }

    pub(crate) fn instrument<F: Future>(&self, future: F) -> tracing::instrument::Instrumented<F> {
        future.instrument(self.0.clone())
    }
}

/// A span that was entered ends, for the layer of OpenTelemetry, when it was left last. This one is to end when its
/// delivery does.
impl Drop for Processing {
    #[inline]
    fn drop(&mut self) {
        if !self.0.is_disabled() {
            self.0.in_scope(|| {});
        }
    }
}

// The module has it already; documentation of crates that re-export this looks for it here.
#[cfg(feature = "tracing")]
impl Delivery {
    /// The span of this message, open from its receipt until it is settled; a child of the span that sent it.
    ///
    /// Only with the feature `tracing`. Do not hold it entered across an await: use [`instrument`](Self::instrument).
    #[must_use]
    pub fn span(&self) -> &tracing::Span {
        &self.processing.0
    }
}

fn fail(span: &tracing::Span, error_type: &'static str) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", error_type);
    }
}

/// Numbers of another type would be exported as text.
fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Whether there is neither a span nor baggage around here.
fn is_alone() -> bool {
    tracing::Span::current().is_none()
        && Context::map_current(|cx| !cx.has_active_span() && cx.baggage().is_empty())
}

/// The context of `span`, or of what is around it where it is filtered out; and all baggage, of which what was attached
/// last counts.
fn context_of(span: &tracing::Span) -> Context {
    let around = Context::current();
    let own = [span.context(), around.clone(), tracing::Span::current().context()];
    let Some(own) = own.into_iter().find(|cx| cx.span().span_context().is_valid()) else { return around };
    if around.baggage().is_empty() {
        return own;
    }
    let members = own.baggage().iter().chain(around.baggage());
    let baggage: Vec<_> = members
        .map(|(key, (value, metadata))| KeyValueMetadata::new(key.clone(), value.clone(), metadata.clone()))
        .collect();
    own.with_baggage(baggage)
}
