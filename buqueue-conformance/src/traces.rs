//! What an application exports when it traces: spans kept in memory, by the code of one case alone.

use std::future::Future;
use std::sync::LazyLock;

use buqueue_core::Delivery;
use opentelemetry::trace::{SpanId, TraceId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::Dispatch;
use tracing::instrument::WithSubscriber as _;
use tracing_subscriber::layer::SubscriberExt as _;

/// Runs `work` with a subscriber that exports all its spans, and returns them in the order in which they ended.
///
/// Only what `work` does itself is seen, not the tasks that it spawns; other cases beside it are not.
pub(crate) async fn traced<T>(work: impl Future<Output = T>) -> (T, Spans) {
    // `tracing` asks a single subscriber on the thread that comes by first whether a span is wanted, and remembers the
    // answer for all. That thread may be another case's, which has none; so there are always two.
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("conformance"));
    LazyLock::force(&SECOND);
    let output = work.with_subscriber(tracing_subscriber::registry().with(layer)).await;
    let spans =
        exporter.get_finished_spans().unwrap_or_else(|error| panic!("the exporter has no spans: {error}"));
    drop(provider);
    (output, Spans(spans))
}

/// Spans that have ended.
#[derive(Debug)]
pub(crate) struct Spans(pub(crate) Vec<SpanData>);

impl Spans {
    /// All spans whose name begins with this operation, in the order in which they ended.
    pub(crate) fn of(&self, operation: &str) -> Vec<&SpanData> {
        let is_named = |span: &&SpanData| span.name.split(' ').next() == Some(operation);
        self.0.iter().filter(is_named).collect()
    }

    /// The one span of this operation.
    #[track_caller]
    pub(crate) fn one(&self, operation: &str) -> &SpanData {
        let spans = self.of(operation);
        assert_eq!(spans.len(), 1, "spans of {operation}; there are\n{}", self.tree());
        spans[0]
    }

    /// What there is, a line each, for failures.
    pub(crate) fn tree(&self) -> String {
        let line = |span: &SpanData| {
            let (trace, id) = (span.span_context.trace_id(), span.span_context.span_id());
            format!("{} {trace} {id} parent {}\n", span.name, span.parent_span_id)
        };
        self.0.iter().map(line).collect()
    }
}

/// An attribute as text.
pub(crate) fn attribute(span: &SpanData, name: &str) -> Option<String> {
    span.attributes.iter().find(|pair| pair.key.as_str() == name).map(|pair| pair.value.to_string())
}

/// Where a span is in its trace.
pub(crate) fn place(span: &SpanData) -> (TraceId, SpanId) {
    (span.span_context.trace_id(), span.span_context.span_id())
}

/// Whether `span` is a child of `parent`.
pub(crate) fn is_child(span: &SpanData, parent: &SpanData) -> bool {
    (span.span_context.trace_id(), span.parent_span_id) == place(parent)
}

/// Whether `span` links to `other`.
pub(crate) fn links_to(span: &SpanData, other: &SpanData) -> bool {
    let (trace, id) = place(other);
    span.links.iter().any(|link| (link.span_context.trace_id(), link.span_context.span_id()) == (trace, id))
}

/// The place that a delivery's message says it comes from.
pub(crate) fn carried(delivery: &Delivery) -> Option<String> {
    let parent = delivery.header("traceparent")?;
    Some(parent.split('-').skip(1).take(2).collect::<Vec<_>>().join("-"))
}
