//! What a message costs in memory, from `send` to `ack`: `observe nobody|spans|metrics|both`.
//!
//! Built with the feature `on` or without it; `cargo xtask bench observe` does both, and runs them in turn.

use std::time::Instant;

use buqueue_core::Message;
use buqueue_memory::{MemoryBackend, MemoryConfig};

const MESSAGES: u32 = 100_000;
/// Few enough to stay in the caches, many enough to tell a send from a receive by the clock.
const STEP: u32 = 100;

fn main() {
    let listener = std::env::args().nth(1).unwrap_or_else(|| "nobody".to_owned());
    let _listening = listen(&listener);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let (send, receive) = runtime.block_on(async {
        let pair = MemoryBackend::builder(MemoryConfig::default()).build_pair().await;
        let (producer, mut consumer) = pair.expect("the memory backend");
        let message = Message::new("payload");
        let (mut send, mut receive) = (0, 0);
        for step in 0..=MESSAGES / STEP {
            let started = Instant::now();
            for _ in 0..STEP {
                producer.send(message.clone()).await.expect("send");
            }
            let sent = Instant::now();
            for _ in 0..STEP {
                consumer.receive().await.expect("receive").ack().await.expect("ack");
            }
            // The first step warms up.
            if step > 0 {
                send += (sent - started).as_nanos();
                receive += sent.elapsed().as_nanos();
            }
        }
        (send, receive)
    });
    println!("{} {}", send / u128::from(MESSAGES), receive / u128::from(MESSAGES));
}

#[cfg(not(feature = "on"))]
fn listen(listener: &str) {
    assert_eq!(listener, "nobody", "without the feature there is nothing to listen to");
}

/// Exports to nowhere: what is measured is the library and the SDK, not an exporter.
#[cfg(feature = "on")]
fn listen(listener: &str) -> impl Sized {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::metrics::SdkMeterProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    assert!(matches!(listener, "nobody" | "spans" | "metrics" | "both"), "{listener}");
    let spans = matches!(listener, "spans" | "both").then(|| {
        let provider = SdkTracerProvider::builder().with_batch_exporter(nowhere::Spans).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
        provider
    });
    let metrics = matches!(listener, "metrics" | "both").then(|| {
        let provider = SdkMeterProvider::builder().with_periodic_exporter(nowhere::Metrics).build();
        opentelemetry::global::set_meter_provider(provider.clone());
        provider
    });
    (spans, metrics)
}

#[cfg(feature = "on")]
mod nowhere {
    use std::time::Duration;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::metrics::Temporality;
    use opentelemetry_sdk::metrics::data::ResourceMetrics;
    use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
    use opentelemetry_sdk::trace::{SpanData, SpanExporter};

    #[derive(Debug)]
    pub struct Spans;

    impl SpanExporter for Spans {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Ok(())
        }
    }

    pub struct Metrics;

    impl PushMetricExporter for Metrics {
        async fn export(&self, _: &ResourceMetrics) -> OTelSdkResult {
            Ok(())
        }
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
        fn temporality(&self) -> Temporality {
            Temporality::Cumulative
        }
    }
}
