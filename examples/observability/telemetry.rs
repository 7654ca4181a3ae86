//! What an application sets up to see through its queues: a subscriber with a layer of OpenTelemetry, and a meter provider.

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use prometheus::Registry;
use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::Result;

pub(crate) struct Telemetry {
    pub(crate) spans: Kept,
    pub(crate) registry: Registry,
    tracer: SdkTracerProvider,
    meter: SdkMeterProvider,
}

impl Telemetry {
    /// For the whole process, once.
    pub(crate) fn install() -> Result<Self> {
        let resource = Resource::builder().with_service_name("shop").build();

        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // One library measures here: a label that is always the same says nothing.
            .scope_info_enabled(false)
            .build()?;
        let meter = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(reader).build();
        global::set_meter_provider(meter.clone());

        let spans = Kept::default();
        let tracer = SdkTracerProvider::builder().with_resource(resource).with_simple_exporter(spans.clone());
        // A test has nobody who collects.
        #[cfg(all(feature = "otlp", not(test)))]
        let tracer = tracer.with_batch_exporter(crate::otlp::exporter()?);
        let tracer = tracer.build();

        // The queue's spans and the application's own. Clients of brokers have spans as well.
        let exported =
            Targets::new().with_target("buqueue", Level::INFO).with_target("observability", Level::INFO);
        let traces = tracing_opentelemetry::layer()
            .with_tracer(tracer.tracer("shop"))
            // Where in the code a span was made is of no interest here.
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(exported);
        // What goes wrong in the shop is seen in the traces.
        let logged: Targets = match std::env::var("RUST_LOG") {
            Ok(targets) => targets.parse()?,
            Err(_) => Targets::new().with_default(Level::WARN).with_target("observability", None),
        };
        let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(logged);
        tracing_subscriber::registry().with(traces).with(logs).try_init()?;
        Ok(Self { spans, registry, tracer, meter })
    }

    /// Exports what has not been yet.
    pub(crate) fn shut_down(self) -> Result<()> {
        self.tracer.shutdown()?;
        self.meter.shutdown()?;
        Ok(())
    }
}

/// The first spans that ended: enough for the orders that are shown, and an end to it when the shop stays open.
const SPANS: usize = 10_000;

/// An exporter that keeps what it is given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl Kept {
    pub(crate) fn all(&self) -> Vec<SpanData> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SPANS.saturating_sub(kept.len());
        kept.extend(batch.into_iter().take(room));
        Ok(())
    }
}
