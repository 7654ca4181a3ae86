use std::collections::HashMap;
use std::time::Duration;

use buqueue_core::MessageId;

/// The deduplication ids of at least the last window, at most the last two.
///
/// Two generations rotate, so forgetting an id costs no bookkeeping while it is remembered.
#[derive(Debug)]
pub(crate) struct Dedup {
    window_ms: u64,
    young: HashMap<Box<str>, u64>,
    old: HashMap<Box<str>, u64>,
    rotates_at: u64,
}

impl Dedup {
    pub(crate) fn new(window: Duration) -> Self {
        Self {
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
            young: HashMap::new(),
            old: HashMap::new(),
            rotates_at: 0,
        }
    }

    /// The message that was sent with this id, if it is remembered.
    pub(crate) fn seen(&mut self, id: &str, now: u64) -> Option<MessageId> {
        self.rotate(now);
        self.young.get(id).or_else(|| self.old.get(id)).map(|&number| MessageId::from(number))
    }

    /// Remembers an id that was not seen.
    pub(crate) fn remember(&mut self, id: &str, number: u64, now: u64) {
        if self.window_ms == 0 {
            return;
        }
        self.rotate(now);
        self.young.insert(id.into(), number);
    }

    fn rotate(&mut self, now: u64) {
        if now < self.rotates_at {
            return;
        }
        let both = now >= self.rotates_at.saturating_add(self.window_ms);
        self.old = std::mem::take(&mut self.young);
        if both {
            self.old = HashMap::new();
        }
        self.rotates_at = if both { now } else { self.rotates_at }.saturating_add(self.window_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_for_the_window_and_forgets_after_two() {
        let mut dedup = Dedup::new(Duration::from_millis(100));
        for start in [0, 30, 99, 1000, 5050] {
            assert_eq!(dedup.seen("a", start), None, "at {start}");
            dedup.remember("a", start, start);
            assert_eq!(dedup.seen("a", start + 99), Some(MessageId::from(start)));
            assert_eq!(dedup.seen("a", start + 301), None);
            dedup = Dedup::new(Duration::from_millis(100));
        }
    }

    #[test]
    fn a_window_of_zero_remembers_nothing() {
        let mut dedup = Dedup::new(Duration::ZERO);
        dedup.remember("a", 1, 5);
        assert_eq!(dedup.seen("a", 5), None);
    }
}
