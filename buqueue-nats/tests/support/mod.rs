//! What the tests of this crate share.

use async_nats::jetstream::{self, Context};

/// A connection of another program.
pub(crate) async fn jetstream(url: &str) -> Context {
    jetstream::new(async_nats::connect(url).await.unwrap())
}

/// Where a stream's delayed messages lie, on servers without schedules.
pub(crate) fn delay_stream(stream: &str) -> String {
    format!("{stream}_buqueue_delay")
}
