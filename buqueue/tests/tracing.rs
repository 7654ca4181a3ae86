//! Trace context under the subscribers and propagators that applications have. The suite has the rest, on every backend.
#![cfg(all(feature = "tracing", feature = "memory"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::future::Future;
use std::sync::LazyLock;

use buqueue::memory::{MemoryBackend, MemoryConfig};
use buqueue::{Consumer, Delivery, Message, Producer};
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    FutureExt as _, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    TracerProvider as _,
};
use opentelemetry::{Context, global};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::instrument::WithSubscriber as _;
use tracing::{Dispatch, Instrument as _, info_span};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt as _;

/// Writes and reads its own header, as B3 or Jaeger do.
#[derive(Debug)]
struct Own;

const OWN: &str = "X-Own-Trace";

impl TextMapPropagator for Own {
    fn inject_context(&self, cx: &Context, injector: &mut dyn Injector) {
        let span = cx.span().span_context().clone();
        if span.is_valid() {
            injector.set(OWN, format!("{}:{}", span.trace_id(), span.span_id()));
        }
    }

    fn extract_with_context(&self, cx: &Context, extractor: &dyn Extractor) -> Context {
        // In another spelling: header names of other systems are not case-sensitive.
        let Some((trace, span)) = extractor.get("x-own-trace").and_then(|value| value.split_once(':')) else {
            return cx.clone();
        };
        let (trace, span) = (TraceId::from_hex(trace).unwrap(), SpanId::from_hex(span).unwrap());
        let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE);
        cx.with_remote_span_context(context)
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&[])
    }
}

async fn pair(queue: &str) -> (Producer<MemoryBackend>, Consumer<MemoryBackend>) {
    static PROPAGATOR: LazyLock<()> = LazyLock::new(|| global::set_text_map_propagator(Own));
    LazyLock::force(&PROPAGATOR);
    let config = MemoryConfig { queue: queue.to_owned(), ..MemoryConfig::default() };
    MemoryBackend::builder(config).build_pair().await.unwrap()
}

/// Runs `work` with a subscriber that exports the spans of these targets.
async fn exported<T>(
    work: impl Future<Output = T>,
    wanted: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> (T, Vec<SpanData>) {
    // See the suite: with a single subscriber `tracing` asks whichever thread comes by first.
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));
    LazyLock::force(&SECOND);
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let layer = layer.with_filter(FilterFn::new(move |metadata| wanted(metadata.target())));
    let output = work.with_subscriber(tracing_subscriber::registry().with(layer)).await;
    (output, exporter.get_finished_spans().unwrap())
}

fn traceparent(span: &SpanData) -> String {
    let context = &span.span_context;
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
}

#[tokio::test]
async fn the_applications_propagator_has_its_say() {
    let (producer, mut consumer) = pair("propagator").await;
    let (headers, spans) = exported(
        async {
            producer.send(Message::new("ours")).await.unwrap();
            let ours = consumer.receive().await.unwrap();
            let headers = ours.headers().clone();
            ours.ack().await.unwrap();
            let trace = "11111111111111111111111111111111:2222222222222222";
            producer.send(Message::new("foreign").with_header(OWN, trace)).await.unwrap();
            consumer.receive().await.unwrap().ack().await.unwrap();
            headers
        },
        |_| true,
    )
    .await;
    let sent = spans.iter().find(|span| span.name == "send propagator").unwrap();
    assert_eq!(headers.get("traceparent"), Some(&*traceparent(sent)));
    let (trace, id) = (sent.span_context.trace_id(), sent.span_context.span_id());
    assert_eq!(headers.get(OWN), Some(&*format!("{trace}:{id}")));
    let foreign = spans.iter().rfind(|span| span.name == "process propagator").unwrap();
    assert_eq!(foreign.span_context.trace_id().to_string(), "11111111111111111111111111111111");
    assert_eq!(foreign.parent_span_id.to_string(), "2222222222222222");
}

#[tokio::test]
async fn without_our_spans_the_applications_own_is_carried() {
    let (producer, mut consumer) = pair("filtered").await;
    let (parent, spans) = exported(
        async {
            producer.send(Message::new("m")).instrument(info_span!("request")).await.unwrap();
            let delivery = consumer.receive().await.unwrap();
            let parent = delivery.header("traceparent").map(str::to_owned);
            delivery.ack().await.unwrap();
            parent
        },
        |target| !target.starts_with("buqueue"),
    )
    .await;
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(names, ["request"]);
    assert_eq!(parent, Some(traceparent(&spans[0])));
}

#[tokio::test]
async fn without_spans_of_creation_a_batch_carries_that_of_its_send() {
    let (producer, mut consumer) = pair("uncreated").await;
    let (parents, spans) = exported(
        async {
            producer.send_batch(vec![Message::new("1"), Message::new("2")]).await.unwrap();
            let mut parents = Vec::new();
            for _ in 0..2 {
                let delivery = consumer.receive().await.unwrap();
                parents.extend(delivery.header("traceparent").map(str::to_owned));
                delivery.ack().await.unwrap();
            }
            parents
        },
        |target| target != "buqueue::create",
    )
    .await;
    let sent = spans.iter().find(|span| span.name == "send_batch uncreated").unwrap();
    assert_eq!(parents, [traceparent(sent), traceparent(sent)]);
}

#[tokio::test]
async fn a_context_without_tracing_is_carried_as_well() {
    let (producer, mut consumer) = pair("otel-alone").await;
    let (trace, span) = (TraceId::from(7_u128), SpanId::from(9_u64));
    let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE);
    let cx = Context::new().with_remote_span_context(context);
    producer.send(Message::new("m")).with_context(cx).await.unwrap();
    let delivery = consumer.receive().await.unwrap();
    assert_eq!(delivery.header("traceparent"), Some(&*format!("00-{trace}-{span}-01")));
    delivery.ack().await.unwrap();
}

#[tokio::test]
async fn a_subscriber_that_exports_nothing_adds_nothing() {
    let (producer, mut consumer) = pair("logged").await;
    let work = async {
        producer.send(Message::new("m")).await.unwrap();
        let delivery = consumer.receive().await.unwrap();
        assert!(delivery.headers().is_empty(), "{:?}", delivery.headers());
        async {}.instrument(delivery.span().clone()).await;
        delivery.nack().await.unwrap();
        drop(consumer.receive().await.unwrap());
    };
    work.with_subscriber(tracing_subscriber::registry()).await;
}

/// A worker that has no subscriber receives, and whoever has one settles.
#[tokio::test]
async fn received_without_a_subscriber_and_settled_with_one() {
    let (producer, mut consumer) = pair("without-with").await;
    producer.send(Message::new("a")).await.unwrap();
    // Somebody listens somewhere, so that spans are made at all.
    let elsewhere = Dispatch::new(tracing_subscriber::registry());
    let delivery = consumer.receive().with_subscriber(Dispatch::none()).await.unwrap();
    delivery.ack().with_subscriber(elsewhere).await.unwrap();
}

#[tokio::test]
async fn received_under_one_subscriber_and_settled_under_another() {
    let (producer, mut consumer) = pair("one-another").await;
    let [one, another] = [(); 2].map(|()| Dispatch::new(tracing_subscriber::registry()));
    for _ in 0..4 {
        producer.send(Message::new("a")).await.unwrap();
    }
    consumer
        .receive()
        .with_subscriber(one.clone())
        .await
        .unwrap()
        .ack()
        .with_subscriber(another.clone())
        .await
        .unwrap();
    let delivery = consumer.receive().with_subscriber(one.clone()).await.unwrap();
    delivery.nack().with_subscriber(another.clone()).await.unwrap();
    let delivery = consumer.receive().with_subscriber(one.clone()).await.unwrap();
    Delivery::instrument(&delivery, async {}).with_subscriber(another.clone()).await;
    async { drop(delivery) }.with_subscriber(another.clone()).await;
    let batch = consumer.receive_batch(9).with_subscriber(one).await.unwrap();
    Delivery::ack_all(batch).with_subscriber(another).await.unwrap();
}
