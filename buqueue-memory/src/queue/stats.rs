//! What lies in the queue, counted; nothing is moved for it.

use std::fmt;

use buqueue_core::QueueStats;

use super::{Queue, State};

impl Queue {
    pub(crate) fn stats(&self) -> QueueStats {
        let now = self.now();
        self.lock().stats(now)
    }
}

impl State {
    fn stats(&self, now: u64) -> QueueStats {
        let due = self.schedule.overdue(now);
        let open: usize = self.chunks.iter().flatten().map(|chunk| chunk.open()).sum();
        // Nobody has looked since these leases ran out; whoever asks for a message gets it.
        let lost = if now < self.next_lease_end {
            0
        } else {
            self.chunks.iter().flatten().map(|chunk| chunk.overdue(now)).sum()
        };
        let in_flight = open.saturating_sub(self.at_hand + lost);
        QueueStats::of_ready(wide(self.ready + due + lost))
            .with_in_flight(wide(in_flight))
            .with_scheduled(wide(self.schedule.len() - due))
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.name)
            .field("stats", &self.stats())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
