//! The one place that looks outwards: events now, spans and metrics with them later.
//!
//! With the feature `tracing` off every function here is empty and disappears.

use crate::BuqueueError;
use crate::driver::Activity;

macro_rules! event {
    ($level:ident, $($field:tt)*) => {{
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "buqueue", $($field)*);
    }};
}

/// A delivery was dropped without being settled.
pub(crate) fn abandoned(backend: &'static str, source: &str) {
    event!(warn, backend, source, "delivery dropped unsettled; it will be redelivered");
    let _ = (backend, source);
}

/// A message moved to the dead letter queue.
pub(crate) fn dead_lettered(backend: &'static str, source: &str, attempts: u32) {
    event!(warn, backend, source, attempts, "message moved to the dead letter queue");
    let _ = (backend, source, attempts);
}

/// The dead letter queue refused a message; the original stays in its queue.
pub(crate) fn dead_letter_failed(backend: &'static str, source: &str, error: &BuqueueError) {
    event!(error, backend, source, %error, "dead letter could not be published; the message stays in its queue");
    let _ = (backend, source, error);
}

/// A dead letter is out, and its original could not be acked: it may be buried again.
pub(crate) fn dead_letter_not_acked(backend: &'static str, source: &str, error: &BuqueueError) {
    event!(warn, backend, source, %error, "dead letter published; its original could not be acked");
    let _ = (backend, source, error);
}

/// A receive failed in a way that may pass; it is tried again.
pub(crate) fn receive_failed(backend: &'static str, source: &str, error: &BuqueueError, failures: u32) {
    event!(warn, backend, source, %error, failures, "receive failed; trying again");
    let _ = (backend, source, error, failures);
}

/// A consumer ended, and what was still in flight when its time was up.
pub(crate) fn stopped(backend: &'static str, source: &str, in_flight: usize) {
    event!(info, backend, source, in_flight, "consumer stopped");
    let _ = (backend, source, in_flight);
}

/// Closing, or giving back what was fetched, failed; the lease's time limit will do it.
pub(crate) fn close_failed(backend: &'static str, source: &str, error: &BuqueueError) {
    event!(warn, backend, source, %error, "closing failed; leases will run out by themselves");
    let _ = (backend, source, error);
}

/// Something that a driver did by itself.
pub(crate) fn activity(backend: &'static str, source: &str, activity: Activity<'_>) {
    #[cfg(feature = "tracing")]
    match activity {
        Activity::Disconnected(error) => event!(warn, backend, source, %error, "connection lost"),
        Activity::Reconnected => event!(info, backend, source, "connected again"),
        Activity::Forwarded(messages) => {
            event!(debug, backend, source, messages, "scheduled messages moved to their queue");
        }
        Activity::Reclaimed(messages) => {
            event!(info, backend, source, messages, "messages of others taken over")
        }
        Activity::Failed(what, error) => event!(warn, backend, source, %error, "{what} failed; trying again"),
    }
    let _ = (backend, source, activity);
}
