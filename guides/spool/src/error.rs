//! Errors of the file system by their meaning, and the way onto threads that may block.

use std::io;

use buqueue_core::{BuqueueError, ErrorKind, Result};

/// For `map_err`: says what was tried, and classifies why it failed.
pub(crate) fn while_trying(what: &'static str) -> impl Fn(io::Error) -> BuqueueError {
    move |error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::AuthenticationFailed
            }
            // Room may be made without anybody touching this program.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Throttled,
            io::ErrorKind::TimedOut => ErrorKind::Timeout,
            kind => ErrorKind::BackendSpecific {
                code: error.raw_os_error().map_or_else(|| format!("{kind:?}"), |code| code.to_string()),
                message: error.to_string(),
            },
        };
        BuqueueError::new(kind, format!("cannot {what}")).with_source(error)
    }
}

pub(crate) fn expired() -> BuqueueError {
    BuqueueError::new(ErrorKind::LeaseExpired, "the file is gone or has another name")
}

/// Does what may block on a thread for that. Begins with the first poll, and then goes on to its end even when the
/// future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        // The runtime ended before the work began, or the work panicked.
        let kind = ErrorKind::BackendSpecific { code: "runtime".to_owned(), message: error.to_string() };
        Err(BuqueueError::new(kind, "not done").with_source(error))
    })
}
