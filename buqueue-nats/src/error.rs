//! From the client's and the server's errors to buqueue's kinds.

use async_nats::jetstream;
use async_nats::{ConnectError, ConnectErrorKind, client};
use buqueue_core::tls;
use buqueue_core::{BuqueueError, ErrorKind};

/// Error codes of the server, as in its `errors.json`.
pub(crate) mod code {
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10014;
    pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(crate) const CONSUMER_EXISTS: u64 = 10148;
    pub(crate) const NO_REPLICAS_WITHOUT_A_CLUSTER: u64 = 10074;
}

/// What an answer of the server means.
pub(crate) fn classify(error: &jetstream::Error) -> ErrorKind {
    match error.error_code().0 {
        code::STREAM_NOT_FOUND | code::CONSUMER_NOT_FOUND | 10060 => ErrorKind::NotFound,
        // Message, header, and the stream's own limit of size.
        10054 | 10097 => ErrorKind::PayloadTooLarge,
        // Full streams, accounts and servers; too many requests; no leader at the moment.
        10002 | 10008 | 10009 | 10023 | 10028 | 10047 | 10077 | 10122 | 10167 | 10202 => ErrorKind::Throttled,
        // Clashes: names, overlapping subjects, what may not be changed, what a work queue does not allow, replicas.
        10052
        | code::STREAM_NAME_IN_USE
        | 10065
        | code::NO_REPLICAS_WITHOUT_A_CLUSTER
        | 10084
        | 10099
        | 10100
        | 10101
        | code::CONSUMER_EXISTS => ErrorKind::InvalidConfig,
        10035 | 10039 | 10076 => ErrorKind::Unsupported,
        _ => {
            ErrorKind::BackendSpecific { code: error.error_code().0.to_string(), message: error.to_string() }
        }
    }
}

/// The server's answer as an error about `what`.
pub(crate) fn refused(what: &str, error: &jetstream::Error) -> BuqueueError {
    let kind = classify(error);
    let words = error.to_string();
    let fact = match kind {
        ErrorKind::BackendSpecific { .. } => what.to_owned(),
        _ => format!("{what}: {words}"),
    };
    BuqueueError::new(kind, fact)
}

pub(crate) fn connecting(error: ConnectError) -> BuqueueError {
    if let Some((kind, fact)) = tls::refusal(&error.to_string()) {
        return BuqueueError::new(kind, fact).with_source(error);
    }
    let kind = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            ErrorKind::AuthenticationFailed
        }
        ConnectErrorKind::ServerParse => ErrorKind::InvalidConfig,
        ConnectErrorKind::Tls => ErrorKind::InvalidConfig,
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => ErrorKind::ConnectionLost,
    };
    let fact = match error.kind() {
        ConnectErrorKind::Tls => "url: TLS could not be set up".to_owned(),
        ConnectErrorKind::ServerParse => "url: is no server address".to_owned(),
        other => other.to_string(),
    };
    BuqueueError::new(kind, fact).with_source(error)
}

/// The connection's own refusal to take a message.
pub(crate) fn publishing(error: client::PublishError) -> BuqueueError {
    let (kind, fact) = match error.kind() {
        client::PublishErrorKind::MaxPayloadExceeded => {
            (ErrorKind::PayloadTooLarge, "payload and headers: more bytes than the server's max_payload")
        }
        client::PublishErrorKind::InvalidSubject => (ErrorKind::InvalidMessage, "routing_key: is no subject"),
        client::PublishErrorKind::Send => (ErrorKind::ConnectionLost, "the connection is closed"),
    };
    BuqueueError::new(kind, fact).with_source(error)
}

/// No answer to a request; `what` names it.
pub(crate) fn requesting(what: &str, error: client::RequestError) -> BuqueueError {
    use client::RequestErrorKind as Native;
    let kind = match error.kind() {
        Native::TimedOut => ErrorKind::Timeout,
        // The server is there, and JetStream is not: it starts, or there is none.
        Native::NoResponders | Native::Other => ErrorKind::ConnectionLost,
        Native::MaxPayloadExceeded => ErrorKind::PayloadTooLarge,
        Native::InvalidSubject => ErrorKind::InvalidConfig,
    };
    BuqueueError::new(kind, format!("{what}: {}", error.kind())).with_source(error)
}

/// An answer of a shape that the question does not have.
pub(crate) fn unreadable(what: &str, error: serde_json::Error) -> BuqueueError {
    let kind = ErrorKind::BackendSpecific { code: "answer".to_owned(), message: "cannot be read".to_owned() };
    BuqueueError::new(kind, what).with_source(error)
}

pub(crate) fn no_stream(name: &str) -> BuqueueError {
    BuqueueError::new(ErrorKind::NotFound, format!("stream_name: there is no stream {name:?}"))
}

/// The client connects again by itself.
pub(crate) fn broken() -> BuqueueError {
    BuqueueError::new(ErrorKind::ConnectionLost, "the connection to the server broke")
}

pub(crate) fn lost() -> BuqueueError {
    BuqueueError::new(ErrorKind::ConnectionLost, "the connection broke before the server answered")
}

pub(crate) fn timed_out(what: &str) -> BuqueueError {
    BuqueueError::new(ErrorKind::Timeout, format!("{what}: the server did not answer in time"))
}
