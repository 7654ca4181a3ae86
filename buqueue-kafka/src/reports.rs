//! What is known of schedules that cannot be sent on: why brokers refuse records, what concerns all of them, and what was told.

use std::sync::{Arc, Mutex};

use buqueue_core::ErrorKind;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use crate::error;
use crate::session::lock;
use crate::watch::Work;

/// Why a record of the transaction was refused, if it was.
pub(crate) type Reported = Arc<Mutex<Option<ErrorKind>>>;

/// Learns why records cannot be sent to where they are due.
pub(crate) struct Reports(pub(crate) Reported);

impl ClientContext for Reports {
    fn error(&self, _error: KafkaError, _reason: &str) {}
    fn log(&self, _level: RDKafkaLogLevel, _fac: &str, _message: &str) {}
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        // The others of the batch are told that they were thrown away with it.
        if let Err((error, _)) = result
            && let Some(kind) = permanent(error)
        {
            lock(&self.0).get_or_insert(kind);
        }
    }
}

/// Why the record itself cannot be accepted, now or later.
pub(crate) fn permanent(error: &KafkaError) -> Option<ErrorKind> {
    let kind = error::classify(error.rdkafka_error_code()?);
    let permanent = matches!(
        kind,
        ErrorKind::PayloadTooLarge
            | ErrorKind::InvalidMessage
            | ErrorKind::InvalidConfig
            | ErrorKind::NotFound
            | ErrorKind::AuthenticationFailed
    );
    permanent.then_some(kind)
}

/// Nothing can be sent on, whatever it is.
pub(crate) fn is_of_all(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        )
    )
}

/// What is told of what fails.
pub(crate) struct Works {
    pub(crate) whole: Work,
    pub(crate) transactions: Work,
    pub(crate) records: Work,
    pub(crate) trims: Arc<Work>,
}

impl Default for Works {
    fn default() -> Self {
        Self {
            whole: Work::new("sending on schedules"),
            transactions: Work::new("a transaction that sends on schedules"),
            records: Work::new("sending on a scheduled message"),
            trims: Arc::new(Work::new("deleting what was sent on")),
        }
    }
}
