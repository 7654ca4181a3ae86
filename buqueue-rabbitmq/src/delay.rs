//! Delays without a plugin: the delay in bits, one queue a bit. No I/O.
//!
//! A level queue *n* holds every message for 2ⁿ ms, all for the same time, so that none waits behind another that is due
//! later; then the broker moves it on to the next lower level whose bit is set. The routing key says which: one word a
//! bit, the highest first, and a last word for the destination.

use std::time::Duration;

use crate::config::RabbitMqOptions;
use crate::topology::{Argument, Part};

/// 2³⁷ ms are more than four years.
pub(crate) const LEVELS: usize = 37;
/// The longest delay.
pub(crate) const LONGEST: Duration = Duration::from_millis((1 << LEVELS) - 1);

/// The names of an application's queues and exchanges for delays.
#[derive(Debug, Clone)]
pub(crate) struct Delays {
    prefix: String,
}

impl Delays {
    pub(crate) fn new(options: &RabbitMqOptions) -> Self {
        Self { prefix: options.delay_prefix.clone() }
    }

    /// The exchange and the queue of a level have one name.
    fn level(&self, level: usize) -> String {
        format!("{}.delay.level-{level:02}", self.prefix)
    }

    /// Where what is due comes out.
    pub(crate) fn due(&self) -> String {
        format!("{}.delay.due", self.prefix)
    }

    /// Where what is due ends whose destination is gone. Without it the broker tries for ever, and 32 of those hold
    /// up a whole level.
    pub(crate) fn orphans(&self) -> String {
        format!("{}.delay.orphans", self.prefix)
    }

    /// Where to publish a message with a delay of so many milliseconds, and with which key.
    pub(crate) fn route(&self, millis: u64, destination: &str) -> (String, String) {
        let highest = highest_level(millis);
        let mut key = String::with_capacity(2 * LEVELS + destination.len());
        for level in (0..LEVELS).rev() {
            key.push(if millis >> level & 1 == 1 { '1' } else { '0' });
            key.push('.');
        }
        key.push_str(destination);
        (self.level(highest), key)
    }

    /// What is needed for what is due to come out.
    pub(crate) fn outlet(&self) -> Vec<Part> {
        vec![
            Part::exchange(&self.orphans(), lapin::ExchangeKind::Fanout, true, Vec::new()),
            Part::queue(&self.orphans(), true, vec![Argument::text("x-queue-type", "quorum")]),
            Part::bind(&self.orphans(), &self.orphans(), "", Vec::new()),
            Part::exchange(
                &self.due(),
                lapin::ExchangeKind::Topic,
                true,
                vec![Argument::text("alternate-exchange", &self.orphans())],
            ),
        ]
    }

    /// What is needed for delays up to so many milliseconds, the lowest level first.
    pub(crate) fn levels(&self, millis: u64) -> Vec<Part> {
        let mut parts = self.outlet();
        for level in 0..=highest_level(millis) {
            let own = self.level(level);
            let next = if level == 0 { self.due() } else { self.level(level - 1) };
            let stars = "*.".repeat(LEVELS - 1 - level);
            parts.push(Part::exchange(&own, lapin::ExchangeKind::Topic, true, Vec::new()));
            parts.push(Part::queue(
                &own,
                true,
                vec![
                    Argument::text("x-queue-type", "quorum"),
                    // At least once, which the broker does only for queues that refuse when they are full.
                    Argument::text("x-dead-letter-strategy", "at-least-once"),
                    Argument::text("x-overflow", "reject-publish"),
                    Argument::number("x-message-ttl", 1 << level),
                    Argument::text("x-dead-letter-exchange", &next),
                ],
            ));
            parts.push(Part::bind(&own, &own, &format!("{stars}1.#"), Vec::new()));
            parts.push(Part::bind_exchange(&next, &own, &format!("{stars}0.#")));
        }
        parts
    }

    /// The pattern by which what is due for `destination` comes out; `rest` is what follows it.
    pub(crate) fn outlet_key(destination: &str, rest: &str) -> String {
        format!("{}{destination}{rest}", "*.".repeat(LEVELS))
    }
}

/// The level that the highest bit of a delay stands for; zero is rounded up to one millisecond.
pub(crate) fn highest_level(millis: u64) -> usize {
    let highest = u64::BITS - 1 - millis.max(1).leading_zeros();
    usize::try_from(highest).unwrap_or(LEVELS - 1).min(LEVELS - 1)
}

/// Whole milliseconds, rounded up, so that nothing is early; at most the longest delay.
pub(crate) fn millis_up(delay: Duration) -> u64 {
    let millis = delay.as_nanos().div_ceil(1_000_000).max(1);
    u64::try_from(millis).unwrap_or(u64::MAX).min((1 << LEVELS) - 1)
}

/// One word that stands for a name, whatever is in it. The same in every process and version: FNV-1a, twice.
pub(crate) fn token(kind: char, name: &str) -> String {
    let hash = |basis: u64| {
        name.bytes().fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    format!("{kind}{:016x}{:016x}", hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RabbitMqConfig;

    fn delays() -> Delays {
        Delays::new(&RabbitMqOptions::new(RabbitMqConfig::default()))
    }

    #[test]
    fn delays_are_never_shortened() {
        for (delay, millis) in [
            (Duration::ZERO, 1),
            (Duration::from_nanos(1), 1),
            (Duration::from_micros(1001), 2),
            (Duration::from_millis(5), 5),
            (LONGEST, (1 << LEVELS) - 1),
            (Duration::MAX, (1 << LEVELS) - 1),
        ] {
            assert_eq!(millis_up(delay), millis, "{delay:?}");
        }
    }

    /// Follows a message through the exchanges, as the broker would, and adds up how long it waits.
    #[test]
    fn the_levels_add_up_to_the_delay() {
        for millis in [1, 2, 3, 1000, 1023, 1024, 86_400_000, (1 << LEVELS) - 1] {
            let (mut exchange, key) = delays().route(millis, "token");
            let words: Vec<&str> = key.split('.').collect();
            assert_eq!(words.len(), LEVELS + 1);
            let (mut waited, mut queues) = (0, 0);
            while exchange != delays().due() {
                let level = (0..LEVELS).find(|&level| delays().level(level) == exchange).unwrap();
                if words[LEVELS - 1 - level] == "1" {
                    waited += 1_u64 << level;
                    queues += 1;
                }
                exchange = if level == 0 { delays().due() } else { delays().level(level - 1) };
            }
            assert_eq!(waited, millis);
            assert_eq!(queues, millis.count_ones());
        }
    }

    #[test]
    fn levels_are_declared_up_to_the_one_that_is_needed() {
        let queues = |millis| {
            let parts = delays().levels(millis);
            parts.iter().filter(|part| matches!(part, Part::Queue { .. })).count()
        };
        assert_eq!((queues(1), queues(1000), queues(86_400_000)), (2, 11, 28));
    }

    #[test]
    fn keys_are_short_strings_and_tokens_one_word() {
        let (_, key) = delays().route(u64::MAX, &token('q', "a queue.with #words*"));
        assert!(key.len() <= 110, "{}", key.len());
        assert_eq!(key.split('.').count(), LEVELS + 1);
        assert_ne!(token('q', "a"), token('q', "b"));
    }
}
