//! When messages failed for the first time, for brokers that do not keep it.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};

/// How many are remembered.
const MOST: usize = 10_000;

/// Remembers, in this process, when messages failed for the first time: the ten thousand that failed last.
///
/// Of a message that failed elsewhere, or too long ago, the time is when it was first known here that it has.
#[derive(Debug)]
pub struct FirstFailures<K> {
    known: Mutex<Known<K>>,
}

#[derive(Debug)]
struct Known<K> {
    times: HashMap<K, DateTime<Utc>>,
    order: VecDeque<K>,
}

impl<K> Default for FirstFailures<K> {
    fn default() -> Self {
        Self { known: Mutex::new(Known { times: HashMap::new(), order: VecDeque::new() }) }
    }
}

impl<K: Hash + Eq + Clone> FirstFailures<K> {
    /// The time of the first failure, which is now unless it is known already.
    pub fn of(&self, message: &K) -> DateTime<Utc> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(time) = known.times.get(message) {
            return *time;
        }
        let now = Utc::now();
        known.times.insert(message.clone(), now);
        known.order.push_back(message.clone());
        if known.order.len() > MOST
            && let Some(oldest) = known.order.pop_front()
        {
            known.times.remove(&oldest);
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_stays_and_the_oldest_go() {
        let failures = FirstFailures::default();
        let first = failures.of(&0);
        assert_eq!(failures.of(&0), first);
        for message in 1..=MOST {
            failures.of(&message);
        }
        assert_eq!(failures.known.lock().unwrap().times.len(), MOST);
        assert!(!failures.known.lock().unwrap().times.contains_key(&0));
    }
}
