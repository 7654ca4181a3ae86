//! What a backend can do, as data.

use std::time::Duration;

use crate::{BuqueueError, ErrorKind, Result};

/// A promise of the contract that a backend keeps natively, emulates, or cannot keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// `send_batch` costs fewer round trips than its messages.
    BatchSend,
    /// `send_at`: messages that become visible later.
    ScheduledDelivery,
    /// `nack_after`: a crash-safe delay before the next attempt.
    DelayedRetry,
    /// Messages that failed too often move to another queue.
    DeadLetters,
    /// `delivery_count` grows with every redelivery, whatever its cause.
    DeliveryCount,
    /// A second send with the same deduplication id, within the window, is delivered once.
    Deduplication,
    /// One consumer gets the messages of one routing key in the order they were sent, while nothing is nacked.
    OrderPerKey,
    /// Several groups each get every message.
    Groups,
    /// A delivery that is not settled in time goes to somebody else.
    Lease,
    /// A settle that comes when the message went to somebody else, because the lease ran out or the connection was lost, is
    /// answered with `LeaseExpired`.
    DetectsLateSettle,
    /// Queues outlive the process, and several processes share one.
    SharedBetweenProcesses,
    /// Messages outlive a restart of the broker.
    SurvivesBrokerRestart,
}

impl Feature {
    /// Every feature, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::BatchSend,
        Self::ScheduledDelivery,
        Self::DelayedRetry,
        Self::DeadLetters,
        Self::DeliveryCount,
        Self::Deduplication,
        Self::OrderPerKey,
        Self::Groups,
        Self::Lease,
        Self::DetectsLateSettle,
        Self::SharedBetweenProcesses,
        Self::SurvivesBrokerRestart,
    ];
}

/// How a backend keeps a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// The broker does it.
    Native,
    /// buqueue does it with the same semantics; the text says how.
    Emulated(&'static str),
    /// It cannot be had; the text says why.
    Unsupported(&'static str),
}

impl Support {
    /// Whether the promise is kept, natively or not.
    #[must_use]
    pub fn is_supported(self) -> bool {
        !matches!(self, Self::Unsupported(_))
    }
}

/// Limits that are known before any I/O. `None`: no limit, or known to the broker only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload, in bytes.
    pub payload_bytes: Option<usize>,
    /// All header names and values together, in bytes.
    pub header_bytes: Option<usize>,
    /// The longest routing key, in bytes.
    pub routing_key_bytes: Option<usize>,
    /// The longest deduplication id, in bytes.
    pub deduplication_id_bytes: Option<usize>,
    /// How far ahead `send_at` reaches.
    pub schedule_horizon: Option<Duration>,
}

/// What a backend, in a given configuration, can do. Read it with [`support`](Self::support) or insist with
/// [`require`](Self::require).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    backend: &'static str,
    limits: Limits,
    // Whatever is not listed is native.
    exceptions: Vec<(Feature, Support)>,
}

impl Capabilities {
    /// Everything native, nothing limited; a backend then states its exceptions.
    #[must_use]
    pub fn native(backend: &'static str) -> Self {
        Self { backend, limits: Limits::default(), exceptions: Vec::new() }
    }

    /// States that a feature is emulated, and how.
    #[must_use]
    pub fn emulated(self, feature: Feature, how: &'static str) -> Self {
        self.except(feature, Support::Emulated(how))
    }

    /// States that a feature cannot be had, and why.
    #[must_use]
    pub fn unsupported(self, feature: Feature, why: &'static str) -> Self {
        self.except(feature, Support::Unsupported(why))
    }

    /// States the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How the backend keeps one promise.
    #[must_use]
    pub fn support(&self, feature: Feature) -> Support {
        self.exceptions.iter().find(|(of, _)| *of == feature).map_or(Support::Native, |(_, support)| *support)
    }

    /// The limits that are known before any I/O.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The backend's name.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Insists on a feature, to fail at start-up and not in production.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) with the reason.
    pub fn require(&self, feature: Feature) -> Result<()> {
        match self.support(feature) {
            Support::Native | Support::Emulated(_) => Ok(()),
            Support::Unsupported(why) => {
                Err(BuqueueError::new(ErrorKind::Unsupported, format!("{feature:?}: {why}"))
                    .at(self.backend, "require"))
            }
        }
    }

    fn except(mut self, feature: Feature, support: Support) -> Self {
        self.exceptions.retain(|(of, _)| *of != feature);
        self.exceptions.push((feature, support));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_carry_their_reason() {
        let capabilities = Capabilities::native("x")
            .emulated(Feature::ScheduledDelivery, "a sorted set")
            .unsupported(Feature::Groups, "one group a queue");
        assert_eq!(capabilities.support(Feature::BatchSend), Support::Native);
        assert!(capabilities.require(Feature::ScheduledDelivery).is_ok());
        let error = capabilities.require(Feature::Groups).unwrap_err();
        assert_eq!(error.to_string(), "x require: unsupported: Groups: one group a queue");
    }
}
