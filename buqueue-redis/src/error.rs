//! From the client's errors to buqueue's kinds.

use std::io;

use buqueue_core::tls;
use buqueue_core::{BuqueueError, ErrorKind};
use redis::{ErrorKind as Native, RedisError, ServerErrorKind};

/// What an error of the client means.
pub(crate) fn classify(error: &RedisError) -> ErrorKind {
    if error.is_timeout() {
        return ErrorKind::Timeout;
    }
    match error.kind() {
        Native::AuthenticationFailed => ErrorKind::AuthenticationFailed,
        Native::InvalidClientConfig | Native::EmptySentinelList | Native::RESP3NotSupported => {
            ErrorKind::InvalidConfig
        }
        Native::Io => refusal(error).map_or(ErrorKind::ConnectionLost, |(kind, _)| kind),
        Native::ClusterConnectionNotFound
        | Native::MasterNameNotFoundBySentinel
        | Native::NoValidReplicasFoundBySentinel
        // The stream of replies is out of step; only a new connection helps.
        | Native::Parse => ErrorKind::ConnectionLost,
        Native::Server(kind) => match kind {
            ServerErrorKind::BusyLoading | ServerErrorKind::TryAgain => ErrorKind::Throttled,
            ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask => ErrorKind::ConnectionLost,
            ServerErrorKind::NoPerm => ErrorKind::AuthenticationFailed,
            _ => by_code(error),
        },
        _ => by_code(error),
    }
}

fn by_code(error: &RedisError) -> ErrorKind {
    match error.code() {
        Some("WRONGPASS" | "NOAUTH" | "NOPERM" | "DENIED") => ErrorKind::AuthenticationFailed,
        Some("WRONGTYPE") => ErrorKind::InvalidConfig,
        Some("OOM" | "BUSY" | "LOADING" | "TRYAGAIN" | "NOREPLICAS" | "MISCONF" | "NOGOODSLAVE") => {
            ErrorKind::Throttled
        }
        Some("CLUSTERDOWN" | "MASTERDOWN" | "READONLY" | "UNBLOCKED") => ErrorKind::ConnectionLost,
        Some("NOGROUP") => ErrorKind::NotFound,
        _ if words(error).contains("max number of clients") => ErrorKind::Throttled,
        _ if words(error).contains("invalid password") || words(error).contains("AUTH") => {
            ErrorKind::AuthenticationFailed
        }
        // What a user may not do in a script; 7.2 has a code for it.
        _ if words(error).contains("The user executing the script")
            || words(error).contains("ACL failure in script") =>
        {
            ErrorKind::AuthenticationFailed
        }
        _ if words(error).contains("invalid bulk length") => ErrorKind::PayloadTooLarge,
        code => {
            ErrorKind::BackendSpecific { code: code.unwrap_or("client").to_owned(), message: words(error) }
        }
    }
}

/// The client's error as buqueue's, with what was being done to which key.
pub(crate) fn convert(error: &RedisError, key: &str) -> BuqueueError {
    if let Some((kind, fact)) = refusal(error) {
        return BuqueueError::new(kind, fact).with_source(error.clone());
    }
    let kind = classify(error);
    let message = match (&kind, error.code()) {
        (ErrorKind::InvalidConfig, Some("WRONGTYPE")) => {
            format!("stream: the key {key:?}, or one of its companions, holds another type of value")
        }
        (ErrorKind::BackendSpecific { .. }, _) => String::new(),
        // All that the client itself refuses comes from the URL.
        (ErrorKind::InvalidConfig, None) => format!("url: {}", words(error)),
        (_, Some(code)) => format!("{code} {}", words(error)).trim_end().to_owned(),
        (_, None) => words(error),
    };
    let converted = BuqueueError::new(kind, message);
    // A server that does not know a command quotes its arguments, and those may be payload.
    if error.to_string().contains(QUOTED) { converted } else { converted.with_source(error.clone()) }
}

const QUOTED: &str = "with args beginning with";

fn words(error: &RedisError) -> String {
    let words = match error.detail() {
        Some(detail) if error.kind() != Native::Io => detail.to_owned(),
        _ => error.to_string(),
    };
    words.split(QUOTED).next().unwrap_or_default().trim_end().to_owned()
}

/// What has ended a handshake for good.
fn refusal(error: &RedisError) -> Option<(ErrorKind, String)> {
    (error.kind() == Native::Io).then(|| tls::refusal(&error.to_string())).flatten()
}

/// An answer that did not come in time.
pub(crate) fn timed_out() -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()
}

/// A server that was not reached in time.
pub(crate) fn unreachable() -> RedisError {
    io::Error::new(io::ErrorKind::NotConnected, "the server was not reached in time").into()
}

/// A reply of a shape that the command does not have.
pub(crate) fn unexpected(command: &'static str) -> RedisError {
    RedisError::from((Native::UnexpectedReturnType, command))
}

/// Whether the connection must not be used again.
pub(crate) fn breaks_connection(error: &RedisError) -> bool {
    match error.kind() {
        Native::Io | Native::Parse | Native::AuthenticationFailed => true,
        // A demoted primary: the next connection goes to the new one.
        Native::Server(kind) => matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown),
        _ => matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "UNBLOCKED" | "NOAUTH")),
    }
}

/// Whether the group, or the key it lives in, is gone.
pub(crate) fn is_group_gone(error: &RedisError) -> bool {
    error.code() == Some("NOGROUP")
        || (error.code() == Some("UNBLOCKED") && words(error).contains("no longer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> RedisError {
        let reply = format!("-{text}\r\n");
        redis::parse_redis_value(reply.as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn server_errors_have_their_kind() {
        use ErrorKind::{AuthenticationFailed, ConnectionLost, InvalidConfig, NotFound, Throttled};
        for (text, kind) in [
            ("WRONGPASS invalid username-password pair", AuthenticationFailed),
            ("NOAUTH Authentication required.", AuthenticationFailed),
            ("NOPERM this user has no permissions", AuthenticationFailed),
            ("WRONGTYPE Operation against a key", InvalidConfig),
            ("ERR ACL failure in script: User x has no permissions to run", AuthenticationFailed),
            ("ERR The user executing the script can't run this command", AuthenticationFailed),
            ("OOM command not allowed when used memory > 'maxmemory'.", Throttled),
            ("LOADING Redis is loading the dataset in memory", Throttled),
            ("BUSY Redis is busy running a script.", Throttled),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Throttled),
            ("ERR max number of clients reached", Throttled),
            ("NOREPLICAS Not enough good replicas to write.", Throttled),
            ("MISCONF Errors writing to the AOF file", Throttled),
            ("CLUSTERDOWN The cluster is down", ConnectionLost),
            ("MASTERDOWN Link with MASTER is down", ConnectionLost),
            ("READONLY You can't write against a read only replica.", ConnectionLost),
            ("NOGROUP No such key", NotFound),
            ("ERR Protocol error: invalid bulk length", ErrorKind::PayloadTooLarge),
        ] {
            assert_eq!(classify(&server(text)), kind, "{text}");
        }
        assert_eq!(
            classify(&server("ERR something else")),
            ErrorKind::BackendSpecific { code: "ERR".into(), message: "something else".into() }
        );
    }

    #[test]
    fn client_errors_have_their_kind() {
        let io = |kind: io::ErrorKind| RedisError::from(io::Error::from(kind));
        for (error, kind) in [
            (timed_out(), ErrorKind::Timeout),
            (unreachable(), ErrorKind::ConnectionLost),
            (io(io::ErrorKind::BrokenPipe), ErrorKind::ConnectionLost),
            (io(io::ErrorKind::ConnectionRefused), ErrorKind::ConnectionLost),
            (io(io::ErrorKind::UnexpectedEof), ErrorKind::ConnectionLost),
            ((Native::AuthenticationFailed, "x").into(), ErrorKind::AuthenticationFailed),
            ((Native::InvalidClientConfig, "x").into(), ErrorKind::InvalidConfig),
            ((Native::MasterNameNotFoundBySentinel, "x").into(), ErrorKind::ConnectionLost),
        ] {
            assert_eq!(classify(&error), kind, "{error}");
        }
    }

    #[test]
    fn quoted_arguments_are_cut_off() {
        let error = server("ERR unknown command 'XADD', with args beginning with: 'orders' 'canary'");
        let converted = convert(&error, "orders");
        assert!(!format!("{converted:?} {converted}").contains("canary"), "{converted:?}");
    }
}
