//! What is known of a message beside its content. It stands in the name of its file; this is pure code.

use std::fmt;
use std::time::Duration;

use buqueue_core::unique_id;
use chrono::{DateTime, Utc};

/// A point in time, in microseconds since 1970. Zero where there is none.
pub(crate) type Micros = u64;

/// All there is to say of a message. Sorts as messages are received.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    /// Where it stands in the queue, and when it becomes visible: when it was sent, or is due.
    pub(crate) place: Micros,
    /// Stays the same.
    pub(crate) id: String,
    /// How often it was taken.
    pub(crate) attempts: u32,
    /// When its first failure ended, or zero.
    pub(crate) first_failed: Micros,
    /// When the lease of who has it ends, or zero.
    pub(crate) leased_until: Micros,
}

impl State {
    pub(crate) fn new(place: Micros) -> Self {
        Self { place, id: unique_id(), attempts: 0, first_failed: 0, leased_until: 0 }
    }

    /// Reads a name; `None` for one that [`Display`](fmt::Display) would not have written.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('.');
        let state = Self {
            place: micros(parts.next()?)?,
            id: parts.next()?.to_owned(),
            attempts: parts.next()?.parse().ok()?,
            first_failed: micros(parts.next()?)?,
            leased_until: micros(parts.next()?)?,
        };
        (state.to_string() == name).then_some(state)
    }

    /// Whether a consumer may take it, when all names were read after `now`.
    ///
    /// Strictly: while names are read, others are added, and one may be seen when an older one was not. What was added
    /// meanwhile has a place that is not before `now`, and is left for the next time; so the order is kept.
    pub(crate) fn is_visible(&self, now: Micros) -> bool {
        self.place < now && self.leased_until < now
    }

    pub(crate) fn taken(&self, now: Micros, lease: Duration) -> Self {
        // A lease is still written there when it ran out; that was a failure.
        let first_failed = if self.first_failed == 0 { self.leased_until } else { self.first_failed };
        let attempts = self.attempts.saturating_add(1);
        Self { attempts, first_failed, leased_until: after(now, lease), ..self.clone() }
    }

    /// Failed: back where it was, or to the place that the delay gives it.
    pub(crate) fn failed(&self, now: Micros, delay: Duration) -> Self {
        let place = if delay.is_zero() { self.place } else { after(now, delay) };
        let first_failed = if self.first_failed == 0 { now } else { self.first_failed };
        Self { place, first_failed, leased_until: 0, ..self.clone() }
    }

    /// Nobody has seen it: as if it had not been taken.
    pub(crate) fn released(&self) -> Self {
        Self { attempts: self.attempts.saturating_sub(1), leased_until: 0, ..self.clone() }
    }

    pub(crate) fn extended(&self, now: Micros, by: Duration) -> Self {
        Self { leased_until: after(now, by), ..self.clone() }
    }
}

/// The name of the file.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, id, attempts, first_failed, leased_until } = self;
        write!(f, "{place:016x}.{id}.{attempts}.{first_failed:x}.{leased_until:x}")
    }
}

fn micros(text: &str) -> Option<Micros> {
    Micros::from_str_radix(text, 16).ok()
}

pub(crate) fn now() -> Micros {
    Micros::try_from(Utc::now().timestamp_micros()).unwrap_or_default()
}

/// Rounded up, so that nothing is early; the end of time where it lies beyond that.
fn after(now: Micros, delay: Duration) -> Micros {
    let delay = Micros::try_from(delay.as_nanos().div_ceil(1000)).unwrap_or(Micros::MAX);
    now.saturating_add(delay)
}

/// Rounded up, so that nothing is early; what lies before 1970 has long been due.
pub(crate) fn due(at: DateTime<Utc>) -> Micros {
    let rest = u64::from(!at.timestamp_subsec_nanos().is_multiple_of(1000));
    Micros::try_from(at.timestamp_micros()).map_or(0, |micros| micros + rest)
}

pub(crate) fn time(at: Micros) -> Option<DateTime<Utc>> {
    i64::try_from(at).ok().filter(|at| *at > 0).and_then(DateTime::from_timestamp_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_micros(100);

    #[test]
    fn a_name_says_the_whole_state() {
        let state = State::new(0x1234).taken(1000, LEASE).failed(1050, Duration::ZERO).taken(1060, LEASE);
        assert_eq!(State::parse(&state.to_string()), Some(state));
    }

    #[test]
    fn names_of_others_are_told_apart() {
        for name in
            ["", "order.json", "1.id.0.0.0", "0000000000000001.id.00.0.0", "0000000000000001.id.0.0.0.x"]
        {
            assert_eq!(State::parse(name), None, "{name:?}");
        }
        assert!(State::parse("0000000000000001.id.0.0.0").is_some());
    }

    #[test]
    fn each_way_to_fail_is_counted_and_the_first_time_stays() {
        let new = State::new(10);
        assert!(new.is_visible(11) && !new.is_visible(10));
        let taken = new.taken(1000, LEASE);
        assert_eq!((taken.attempts, taken.first_failed, taken.leased_until), (1, 0, 1100));
        assert!(!taken.is_visible(1100) && taken.is_visible(1101));
        let expired = taken.taken(1200, LEASE);
        assert_eq!((expired.attempts, expired.first_failed), (2, 1100));
        let delayed = expired.failed(1250, LEASE);
        assert_eq!((delayed.attempts, delayed.first_failed, delayed.place), (2, 1100, 1350));
        assert!(!delayed.is_visible(1350) && delayed.is_visible(1351));
    }

    #[test]
    fn what_nobody_saw_is_not_counted() {
        let new = State::new(10);
        assert_eq!(new.taken(1000, LEASE).released(), new);
    }

    #[test]
    fn the_end_of_time_is_reached_and_not_passed() {
        let held = State::new(10).taken(1000, LEASE).extended(1000, Duration::MAX);
        assert_eq!(held.leased_until, Micros::MAX);
        assert_eq!(State::parse(&held.to_string()), Some(held));
        assert!(due(DateTime::<Utc>::MAX_UTC) > due(Utc::now()));
        assert_eq!(due(DateTime::<Utc>::MIN_UTC), 0);
    }
}
