//! What no repetition changes: a password that is refused, a certificate that is not trusted. The client would go on trying,
//! and say no more than that nobody has answered.

use std::sync::{Arc, Mutex};

use buqueue_core::{BuqueueError, ErrorKind};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use tokio::sync::Notify;

use crate::error;
use crate::session::lock;

/// Keeps the last refusal of a client; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Refusals(Arc<Kept>);

#[derive(Default)]
struct Kept {
    last: Mutex<Option<BuqueueError>>,
    refused: Notify,
}

impl Refusals {
    /// The last refusal, once.
    pub(crate) fn take(&self) -> Option<BuqueueError> {
        lock(&self.0.last).take()
    }

    /// Waits until the brokers refuse the client.
    pub(crate) async fn refused(&self) -> BuqueueError {
        loop {
            let refused = self.0.refused.notified();
            if let Some(error) = self.take() {
                return error;
            }
            refused.await;
        }
    }
}

impl ClientContext for Refusals {
    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let (kind, fact) = match error::of_certificate(reason) {
            Some(fact) => (ErrorKind::AuthenticationFailed, fact),
            None => (error::classify(code), reason.to_owned()),
        };
        if matches!(kind, ErrorKind::AuthenticationFailed | ErrorKind::InvalidConfig) {
            *lock(&self.0.last) = Some(BuqueueError::new(kind, fact).with_source(error));
            self.0.refused.notify_one();
        }
    }

    fn log(&self, _level: RDKafkaLogLevel, _fac: &str, _message: &str) {}
}

impl ConsumerContext for Refusals {}
