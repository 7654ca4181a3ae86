//! One error type for every backend.

use std::error::Error as StdError;
use std::fmt;

use crate::MessageId;

/// The result of every fallible call in buqueue.
pub type Result<T, E = BuqueueError> = std::result::Result<T, E>;

/// What went wrong, by meaning. The same fault has the same kind on every backend.
///
/// [`is_transient`](Self::is_transient) tells whether trying again later can help.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker cannot be reached, or the connection broke before the answer came. Whether the broker carried
    /// out the request is unknown.
    ConnectionLost,
    /// The broker did not answer in time. Whether it carried out the request is unknown.
    Timeout,
    /// The broker refuses work for now: rate limit, memory alarm, full queue, loading.
    Throttled,
    /// The credentials are wrong, expired or lack a permission.
    AuthenticationFailed,
    /// The queue, topic, stream or exchange does not exist and may not be created, or nothing is bound to the route.
    NotFound,
    /// The message is larger than the broker takes. The message never fits, however often it is sent.
    PayloadTooLarge,
    /// A payload could not be encoded or decoded.
    Serialization,
    /// The configuration, or an argument, is wrong, or clashes with what exists on the broker.
    InvalidConfig,
    /// The message cannot be carried: a reserved or malformed header, a key the broker cannot hold.
    InvalidMessage,
    /// The delivery is no longer ours: its lease ran out or its channel closed, and the broker may have handed the
    /// message to somebody else.
    LeaseExpired,
    /// The consumer has been shut down.
    ShuttingDown,
    /// The backend, or this configuration of it, cannot do what was asked.
    Unsupported,
    /// Some messages of a batch failed; [`BuqueueError::outcomes`] has each one's own outcome.
    PartialBatch {
        /// How many messages failed.
        failed: usize,
        /// How many messages the batch had.
        total: usize,
    },
    /// A fault that buqueue does not classify.
    BackendSpecific {
        /// The broker's own code.
        code: String,
        /// The broker's own words.
        message: String,
    },
}

impl ErrorKind {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        // Exhaustive on purpose: a new kind must be classified.
        match self {
            Self::ConnectionLost | Self::Timeout | Self::Throttled => true,
            Self::AuthenticationFailed
            | Self::NotFound
            | Self::PayloadTooLarge
            | Self::Serialization
            | Self::InvalidConfig
            | Self::InvalidMessage
            | Self::LeaseExpired
            | Self::ShuttingDown
            | Self::Unsupported
            | Self::PartialBatch { .. }
            | Self::BackendSpecific { .. } => false,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectionLost => f.write_str("connection lost"),
            Self::Timeout => f.write_str("timed out"),
            Self::Throttled => f.write_str("throttled"),
            Self::AuthenticationFailed => f.write_str("authentication failed"),
            Self::NotFound => f.write_str("not found"),
            Self::PayloadTooLarge => f.write_str("payload too large"),
            Self::Serialization => f.write_str("serialization failed"),
            Self::InvalidConfig => f.write_str("invalid configuration"),
            Self::InvalidMessage => f.write_str("invalid message"),
            Self::LeaseExpired => f.write_str("lease expired"),
            Self::ShuttingDown => f.write_str("shutting down"),
            Self::Unsupported => f.write_str("unsupported"),
            Self::PartialBatch { failed, total } => {
                write!(f, "{failed} of {total} messages of the batch failed")
            }
            Self::BackendSpecific { code, message } => write!(f, "{code}: {message}"),
        }
    }
}

/// The error of every buqueue call: a [`kind`](Self::kind), where it happened, and what lies beneath.
///
/// `Display` prints this level only; walk [`source`](StdError::source) for the client's own error. Neither ever
/// contains a payload, a header value or a credential.
#[non_exhaustive]
pub struct BuqueueError {
    /// What went wrong.
    pub kind: ErrorKind,
    // Boxed, so that a `Result` on the hot path stays small.
    detail: Box<Detail>,
}

#[derive(Default)]
struct Detail {
    backend: &'static str,
    operation: &'static str,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    outcomes: Vec<Result<MessageId>>,
}

impl BuqueueError {
    /// An error of the given kind with a message that names the field or the fact at fault: lower case, no full stop.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, detail: Box::new(Detail { message: message.into(), ..Detail::default() }) }
    }

    /// One error for a batch of which at least one message failed.
    #[must_use]
    pub fn partial_batch(outcomes: Vec<Result<MessageId>>) -> Self {
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        let first = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
        let message = first.map(|error| format!("the first failure: {error}")).unwrap_or_default();
        let kind = ErrorKind::PartialBatch { failed, total: outcomes.len() };
        Self { kind, detail: Box::new(Detail { message, outcomes, ..Detail::default() }) }
    }

    /// Keeps the client's own error as the source.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.detail.source = Some(source.into());
        self
    }

    /// The same once more, for another message that shares its fate: without the client's own error, which cannot be
    /// copied.
    #[must_use]
    pub fn again(&self) -> Self {
        let Detail { backend, operation, message, .. } = &*self.detail;
        let detail = Detail { backend, operation, message: message.clone(), ..Detail::default() };
        Self { kind: self.kind.clone(), detail: Box::new(detail) }
    }

    /// Names the backend and the operation, unless an inner call has named them already.
    #[must_use]
    pub fn at(mut self, backend: &'static str, operation: &'static str) -> Self {
        if self.detail.backend.is_empty() {
            self.detail.backend = backend;
        }
        if self.detail.operation.is_empty() {
            self.detail.operation = operation;
        }
        self
    }

    /// Whether the same call may succeed later without anybody changing anything.
    ///
    /// A partial batch is transient when every failure in it is.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.kind {
            ErrorKind::PartialBatch { .. } => self
                .detail
                .outcomes
                .iter()
                .filter_map(|outcome| outcome.as_ref().err())
                .all(Self::is_transient),
            _ => self.kind.is_transient(),
        }
    }

    /// The backend's name (`"redis"`, `"memory"`, …), or `""` where the error arose before one was involved.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.detail.backend
    }

    /// The operation that failed (`"send"`, `"receive"`, `"ack"`, …).
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.detail.operation
    }

    /// What happened, in words: the field or the fact at fault.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.detail.message
    }

    /// Each message's own outcome, in the order of the batch; empty unless the kind is
    /// [`PartialBatch`](ErrorKind::PartialBatch).
    pub fn outcomes(&self) -> &[Result<MessageId>] {
        &self.detail.outcomes
    }
}

impl fmt::Display for BuqueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.detail.backend, self.detail.operation) {
            ("", "") => {}
            (backend, "") => write!(f, "{backend}: ")?,
            ("", operation) => write!(f, "{operation}: ")?,
            (backend, operation) => write!(f, "{backend} {operation}: ")?,
        }
        write!(f, "{}", self.kind)?;
        if !self.detail.message.is_empty() {
            write!(f, ": {}", self.detail.message)?;
        }
        Ok(())
    }
}

impl fmt::Debug for BuqueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("BuqueueError");
        out.field("kind", &self.kind)
            .field("backend", &self.detail.backend)
            .field("operation", &self.detail.operation)
            .field("message", &self.detail.message)
            .field("source", &self.detail.source);
        if !self.detail.outcomes.is_empty() {
            out.field("outcomes", &self.detail.outcomes);
        }
        out.finish()
    }
}

impl StdError for BuqueueError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.detail.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_small_and_sendable() {
        fn sendable<T: Send + Sync + 'static>() {}
        sendable::<BuqueueError>();
        assert!(size_of::<BuqueueError>() < 128);
    }

    #[test]
    fn kind_can_be_moved_out_by_a_pattern() {
        let error = BuqueueError::new(
            ErrorKind::BackendSpecific { code: "WRONGTYPE".into(), message: "not a stream".into() },
            "",
        );
        let BuqueueError { kind: ErrorKind::BackendSpecific { code, message }, .. } = error else {
            panic!("another kind");
        };
        assert_eq!((code.as_str(), message.as_str()), ("WRONGTYPE", "not a stream"));
    }

    #[test]
    fn partial_batch_is_transient_only_when_every_failure_is() {
        let lost = || Err(BuqueueError::new(ErrorKind::ConnectionLost, "gone"));
        let big = || Err(BuqueueError::new(ErrorKind::PayloadTooLarge, "9 bytes, the limit is 8"));
        assert!(BuqueueError::partial_batch(vec![Ok(MessageId::from(1)), lost()]).is_transient());
        assert!(!BuqueueError::partial_batch(vec![big(), lost()]).is_transient());
    }

    #[test]
    fn display_names_place_kind_and_fact() {
        let error =
            BuqueueError::new(ErrorKind::InvalidConfig, "stream: must not be empty").at("redis", "build");
        assert_eq!(error.to_string(), "redis build: invalid configuration: stream: must not be empty");
    }
}
