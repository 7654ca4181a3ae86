//! From the client's and the broker's errors to buqueue's kinds.

use buqueue_core::tls;
use buqueue_core::{BuqueueError, ErrorKind};
use lapin::ErrorKind as Native;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// What an error of the client means.
pub(crate) fn classify(error: &lapin::Error) -> ErrorKind {
    match error.kind() {
        Native::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => ErrorKind::AuthenticationFailed,
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => ErrorKind::NotFound,
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                if error.get_message().as_str().contains("larger than") =>
            {
                ErrorKind::PayloadTooLarge
            }
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => ErrorKind::InvalidConfig,
            AMQPErrorKind::Soft(AMQPSoftError::CONTENTTOOLARGE) => ErrorKind::PayloadTooLarge,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED | AMQPHardError::INVALIDPATH) => {
                ErrorKind::InvalidConfig
            }
            AMQPErrorKind::Hard(AMQPHardError::RESOURCEERROR) => ErrorKind::Throttled,
            AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR) => {
                ErrorKind::ConnectionLost
            }
            _ => ErrorKind::BackendSpecific {
                code: error.get_id().to_string(),
                message: error.get_message().to_string(),
            },
        },
        Native::InvalidProtocolVersion(_) | Native::AuthProviderError(_) => ErrorKind::InvalidConfig,
        _ => ErrorKind::ConnectionLost,
    }
}

/// The client's error as buqueue's, with what was being done.
pub(crate) fn convert(what: &str, error: lapin::Error) -> BuqueueError {
    let kind = classify(&error);
    let fact = match (&kind, error.kind()) {
        (ErrorKind::BackendSpecific { .. }, _) => what.to_owned(),
        (_, Native::ProtocolError(error)) => format!("{what}: {}", error.get_message()),
        _ => format!("{what}: {error}"),
    };
    BuqueueError::new(kind, fact).with_source(error)
}

/// The error of what worked before: what is not found now may be on a node that is down.
pub(crate) fn passing(what: &str, error: BuqueueError) -> BuqueueError {
    if error.kind == ErrorKind::NotFound { lost(what).with_source(error) } else { error }
}

/// What connecting failed at.
pub(crate) fn connecting(error: lapin::Error, vhost: &str) -> BuqueueError {
    let text = error.to_string();
    if let (Native::IOError(_), Some((kind, fact))) = (error.kind(), tls::refusal(&text)) {
        return BuqueueError::new(kind, fact).with_source(error);
    }
    match (classify(&error), error.kind()) {
        (ErrorKind::InvalidConfig, Native::ProtocolError(_)) => BuqueueError::new(
            ErrorKind::InvalidConfig,
            format!("url: the vhost {vhost:?} is not to be had: {text}"),
        ),
        (kind, Native::IOError(_)) if text.contains("certificate") => {
            debug_assert_eq!(kind, ErrorKind::ConnectionLost);
            BuqueueError::new(ErrorKind::InvalidConfig, format!("url: {text}"))
        }
        (kind, _) => BuqueueError::new(kind, text),
    }
    .with_source(error)
}

/// An error that a broken connection explains as well: what was asked may have been done.
pub(crate) fn lost(what: &str) -> BuqueueError {
    BuqueueError::new(ErrorKind::ConnectionLost, format!("{what}: the connection broke"))
}

pub(crate) fn timed_out(what: &str) -> BuqueueError {
    BuqueueError::new(ErrorKind::Timeout, format!("{what}: the broker did not answer in time"))
}

pub(crate) fn blocked() -> BuqueueError {
    let fact = "the broker has blocked publishers: it is short of memory or disk";
    BuqueueError::new(ErrorKind::Throttled, fact)
}
