use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use crate::slot::Slot;

/// One second, in the milliseconds that times are counted in.
const BUCKET_MS: u64 = 1000;

/// Messages that are not yet due, in order of their time.
///
/// Far ones lie unsorted in buckets of one second, which makes insertion an append; a bucket is sorted once, when
/// its second begins. What is scheduled into a second that has begun goes through a small heap.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    far: BTreeMap<u64, Vec<Scheduled>>,
    /// The bucket that has begun, latest first, so that the next one due is popped off its end.
    near: Vec<Scheduled>,
    late: BinaryHeap<Scheduled>,
    /// Buckets before this one have begun.
    begun: u64,
    len: usize,
}

#[derive(Debug)]
struct Scheduled {
    due: u64,
    slot: Slot,
}

impl Schedule {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many are due and were not popped yet.
    pub(crate) fn overdue(&self, now: u64) -> usize {
        let is_due = |scheduled: &&Scheduled| scheduled.due <= now;
        // The latest comes first.
        let near = self.near.len() - self.near.partition_point(|scheduled| scheduled.due > now);
        let far = self.far.range(..=now / BUCKET_MS).map(|(bucket, scheduled)| {
            // Only the second that is now has to be looked through.
            if *bucket < now / BUCKET_MS { scheduled.len() } else { scheduled.iter().filter(is_due).count() }
        });
        near + self.late.iter().filter(is_due).count() + far.sum::<usize>()
    }

    pub(crate) fn insert(&mut self, due: u64, slot: Slot) {
        self.len += 1;
        let bucket = due / BUCKET_MS;
        if bucket < self.begun {
            self.late.push(Scheduled { due, slot });
        } else {
            self.far.entry(bucket).or_default().push(Scheduled { due, slot });
        }
    }

    /// When to look again: the time of the next message, or the second in which it lies.
    pub(crate) fn next_look(&self) -> Option<u64> {
        let near = self.next_begun();
        let far = self.far.keys().next().map(|bucket| bucket * BUCKET_MS);
        match (near, far) {
            (Some(near), Some(far)) => Some(near.min(far)),
            (near, far) => near.or(far),
        }
    }

    /// The next message that is due.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<Slot> {
        loop {
            if self.next_begun().is_some_and(|due| due <= now) {
                let near = self.near.last();
                let late = self.late.peek();
                // The heap's order is reversed: the greater is the earlier.
                let scheduled =
                    if near.is_some() && near >= late { self.near.pop() } else { self.late.pop() };
                self.len -= 1;
                return scheduled.map(|scheduled| scheduled.slot);
            }
            if !self.begin_next_bucket(now) {
                return None;
            }
        }
    }

    fn next_begun(&self) -> Option<u64> {
        match (self.near.last(), self.late.peek()) {
            (Some(near), Some(late)) => Some(near.due.min(late.due)),
            (near, late) => near.or(late).map(|scheduled| scheduled.due),
        }
    }

    fn begin_next_bucket(&mut self, now: u64) -> bool {
        let Some(entry) = self.far.first_entry().filter(|entry| entry.key() * BUCKET_MS <= now) else {
            return false;
        };
        self.begun = entry.key() + 1;
        let mut bucket = entry.remove();
        if self.near.is_empty() {
            bucket.sort_unstable();
            self.near = bucket;
        } else {
            self.late.extend(bucket);
        }
        true
    }
}

/// Earlier is greater, as the heap wants it; equal times keep the order of sending.
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.slot.id).cmp(&(self.due, self.slot.id))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

#[cfg(test)]
mod tests {
    use buqueue_core::Message;

    use super::*;

    fn slot(id: u64) -> Slot {
        Slot::new(Message::default(), id)
    }

    #[test]
    fn pops_in_order_and_never_early() {
        let mut schedule = Schedule::default();
        // A fixed, scrambled order over ten seconds.
        let dues: Vec<u64> = (0..2000).map(|i| (i * 7919) % 10_000).collect();
        let (first, second) = dues.split_at(1000);
        for (id, &due) in (0..).zip(first) {
            schedule.insert(due, slot(id));
        }
        let mut popped = Vec::new();
        for now in 0..=10_000 {
            if now == 3_500 {
                for (id, &due) in (1000..).zip(second) {
                    schedule.insert(due, slot(id));
                }
            }
            let (overdue, before) = (schedule.overdue(now), popped.len());
            while let Some(slot) = schedule.pop_due(now) {
                let due = dues[usize::try_from(slot.id).unwrap()];
                assert!(due <= now);
                assert!(due == now || now == 3_500, "due {due} popped at {now}");
                popped.push(slot.id);
            }
            assert_eq!((popped.len() - before, schedule.overdue(now)), (overdue, 0));
        }
        assert_eq!(popped.len(), 2000);
        assert_eq!((schedule.len(), schedule.next_look()), (0, None));
    }

    #[test]
    fn equal_times_keep_the_order_of_sending() {
        let mut schedule = Schedule::default();
        for id in 0..100 {
            schedule.insert(1234, slot(id));
        }
        let ids: Vec<u64> = std::iter::from_fn(|| schedule.pop_due(1234)).map(|slot| slot.id).collect();
        assert_eq!(ids, (0..100).collect::<Vec<_>>());
    }
}
