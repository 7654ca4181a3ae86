//! Where a delayed record waits: in the partition of the delay topic whose records all wait equally long. No I/O.
//!
//! Level 0 waits for what is left, a quarter of a second at most; each next one waits four times as long as the one before.
//! A record goes to the highest level that does not wait too long, and leaves it when it is due, or before, where many wait,
//! for the highest that does not wait too long for the rest: three times to the same one at most. All records of a level wait
//! equally long, so whoever is in front of one that is due may leave.

use std::time::Duration;

/// How far ahead a schedule reaches.
pub(crate) const HORIZON: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// How long the records of level 1 wait.
const SHORTEST: Duration = Duration::from_millis(256);
/// The highest waits for more than half a year.
pub(crate) const LEVELS: i32 = 15;

/// How long the records of a level wait; level 0 waits for the rest of each.
pub(crate) fn span(level: i32) -> Duration {
    match u32::try_from(level) {
        Ok(0) | Err(_) => Duration::ZERO,
        Ok(level) => SHORTEST * 4_u32.pow((level - 1).min(14)),
    }
}

/// The level for a record that has so long to wait.
pub(crate) fn level(left: Duration) -> i32 {
    (1..LEVELS).rev().find(|level| span(*level) <= left).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_reach_beyond_half_a_year() {
        assert!(span(LEVELS - 1) > Duration::from_secs(190 * 24 * 60 * 60));
        for level in 2..LEVELS {
            assert_eq!(span(level), span(level - 1) * 4);
        }
    }

    #[test]
    fn nobody_waits_too_long_and_everybody_arrives() {
        let day = Duration::from_secs(24 * 60 * 60);
        for left in [
            Duration::ZERO,
            Duration::from_millis(1),
            SHORTEST,
            Duration::from_secs(30),
            day,
            365 * day,
            5000 * day,
        ] {
            let (mut rest, mut hops) = (left, 0);
            while level(rest) > 0 {
                let waits = span(level(rest));
                assert!(waits <= rest, "{left:?}");
                rest -= waits;
                hops += 1;
            }
            assert!(rest < SHORTEST, "{left:?}");
            // Three times at each level, and at the highest for what is beyond it.
            assert!(hops <= 3 * 14 + left.as_secs() / span(LEVELS - 1).as_secs(), "{left:?}: {hops}");
        }
    }
}
