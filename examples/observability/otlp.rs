//! Spans on their way to a collector, by OTLP over plain HTTP.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use tokio::runtime::Handle;

use crate::Result;

/// Where to is read from `OTEL_EXPORTER_OTLP_ENDPOINT`, by the exporter itself.
pub(crate) fn exporter() -> Result<SpanExporter> {
    let hyper = HyperClient::with_default_connector(Duration::from_secs(5), None);
    let client = Client { hyper, runtime: Handle::try_current()? };
    Ok(SpanExporter::builder().with_http().with_http_client(client).build()?)
}

/// The exporter runs on a thread of its own, where a client of tokio finds no runtime: its requests are made on the
/// application's.
#[derive(Debug)]
struct Client {
    hyper: HyperClient,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let hyper = self.hyper.clone();
        self.runtime.spawn(async move { hyper.send_bytes(request).await }).await?
    }
}
