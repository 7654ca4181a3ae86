//! What waits in one partition of the delay topic, and what of it may go. No I/O.
//!
//! A record goes when it is due, whatever is in front of it: what is done behind others is told in the metadata of the commit,
//! as consumers do. That has its limits, so of many, or large ones, the first move on to a lower level when they have waited as
//! long as their level does, which nobody in front of a record that is due has not.

use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::Position;
use crate::tracker::{Read, Tracker};

/// Among so many, from the first one on, any may go: those that stay fit into the metadata of a commit.
const WINDOW: usize = 500;
/// Of so many the first ones move on before they are due.
const MANY: usize = 300;
/// How many are kept ready, and how many bytes of them.
const READY: usize = 2000;
const READY_BYTES: usize = 4 << 20;

/// The records of one partition; times are milliseconds since 1970.
#[derive(Debug)]
pub(crate) struct Backlog<T> {
    tracker: Tracker,
    records: BTreeMap<i64, Entry<T>>,
    /// When each is due, and its offset.
    due: BTreeSet<(i64, i64)>,
    bytes: usize,
}

/// A record.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) offset: i64,
    pub(crate) due: i64,
    /// When it has waited as long as its level does.
    pub(crate) moves_at: i64,
    pub(crate) bytes: usize,
    pub(crate) record: T,
}

impl<T> Backlog<T> {
    /// From what is committed.
    pub(crate) fn new(committed: &Position) -> Self {
        Self { tracker: Tracker::new(committed), records: BTreeMap::new(), due: BTreeSet::new(), bytes: 0 }
    }

    /// A record was read; it waits, unless it is done.
    pub(crate) fn push(&mut self, entry: Entry<T>) {
        if self.tracker.read(entry.offset) != Read::Done {
            self.insert(entry);
        }
    }

    /// It could not go.
    pub(crate) fn put_back(&mut self, entry: Entry<T>) {
        self.insert(entry);
    }

    fn insert(&mut self, entry: Entry<T>) {
        self.due.insert((entry.due, entry.offset));
        self.bytes += entry.bytes;
        self.records.insert(entry.offset, entry);
    }

    /// When the next one goes.
    pub(crate) fn next(&self) -> Option<i64> {
        let due = self.first_due().map(|(due, _)| due);
        let moves_at = self.records.first_key_value().map(|(_, first)| first.moves_at);
        due.into_iter().chain(moves_at.filter(|_| self.are_many())).min()
    }

    /// Takes one that may go now.
    pub(crate) fn pop(&mut self, now: i64) -> Option<Entry<T>> {
        let due = self.first_due().filter(|(due, _)| *due <= now).map(|(_, offset)| offset);
        let offset = match due {
            Some(offset) => offset,
            None if self.are_many() => {
                let (offset, _) =
                    self.records.first_key_value().filter(|(_, first)| first.moves_at <= now)?;
                *offset
            }
            None => return None,
        };
        let entry = self.records.remove(&offset)?;
        self.due.remove(&(entry.due, offset));
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// What waits.
    pub(crate) fn records(&self) -> impl Iterator<Item = &T> {
        self.records.values().map(|entry| &entry.record)
    }

    fn first_due(&self) -> Option<(i64, i64)> {
        let last = self.records.keys().nth(WINDOW).copied().unwrap_or(i64::MAX);
        self.due.iter().find(|(_, offset)| *offset < last).copied()
    }

    /// Before no more are kept ready, or nobody would make room for who is due behind them.
    fn are_many(&self) -> bool {
        self.records.len() >= MANY || self.bytes > READY_BYTES / 2
    }

    /// What is to be committed when these have gone.
    pub(crate) fn position_after(&self, gone: impl IntoIterator<Item = i64>) -> Position {
        let mut after = self.tracker.clone();
        for offset in gone {
            after.finish(offset);
        }
        after.position()
    }

    /// They have gone.
    pub(crate) fn finish(&mut self, offset: i64) {
        self.tracker.finish(offset);
    }

    /// Everything below has gone.
    pub(crate) fn done_to(&self) -> i64 {
        self.tracker.position().next
    }

    pub(crate) fn is_full(&self) -> bool {
        self.records.len() >= READY || self.bytes >= READY_BYTES
    }

    pub(crate) fn has_room(&self) -> bool {
        self.records.len() <= READY / 2 && self.bytes <= READY_BYTES / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog() -> Backlog<()> {
        Backlog::new(&Position::default())
    }

    fn entry(offset: i64, due: i64, moves_at: i64) -> Entry<()> {
        Entry { offset, due, moves_at, bytes: 1, record: () }
    }

    #[test]
    fn what_is_due_passes_what_is_not() {
        let mut backlog = backlog();
        for (offset, due) in [(0, 30), (1, 10), (2, 20)] {
            backlog.push(entry(offset, due, 5));
        }
        assert_eq!(backlog.next(), Some(10));
        assert!(backlog.pop(9).is_none());
        assert_eq!(backlog.pop(25).unwrap().offset, 1);
        assert_eq!(backlog.pop(25).unwrap().offset, 2);
        assert!(backlog.pop(25).is_none());
        let position = backlog.position_after([1, 2]);
        assert_eq!((position.next, position.read_to), (0, 3));
        // Whoever reads on from there finds the first only.
        let mut successor = Backlog::new(&position);
        for offset in 0..3 {
            successor.push(entry(offset, 0, 0));
        }
        assert_eq!(successor.pop(0).unwrap().offset, 0);
        assert!(successor.pop(0).is_none());
    }

    #[test]
    fn what_could_not_go_is_there_again() {
        let mut backlog = backlog();
        backlog.push(entry(0, 10, 5));
        let taken = backlog.pop(10).unwrap();
        assert_eq!(backlog.next(), None);
        backlog.put_back(taken);
        assert_eq!(backlog.pop(10).unwrap().offset, 0);
        backlog.finish(0);
        assert_eq!(backlog.done_to(), 1);
    }

    #[test]
    fn of_many_the_first_move_on() {
        let mut backlog = backlog();
        let many = i64::try_from(MANY).unwrap();
        for offset in 0..many {
            backlog.push(entry(offset, 1000 + offset, 100 + offset));
        }
        assert_eq!(backlog.next(), Some(100));
        assert_eq!(backlog.pop(101).unwrap().offset, 0);
        // They are not many any more.
        assert_eq!(backlog.next(), Some(1001));
        assert!(backlog.pop(101).is_none());
    }

    /// Whatever waits, nothing goes early, everything goes when it is due, and the metadata has room.
    #[test]
    fn at_random_everything_goes_in_time() {
        let mut at_random = crate::random::below(0x9e37_79b9_7f4a_7c15);
        let mut below = |limit: i64| i64::try_from(at_random(limit.unsigned_abs())).unwrap();
        for round in 0..8 {
            // Small ones, and such that forty are all that are kept ready.
            let bytes = if round % 2 == 0 { 1 } else { READY_BYTES / 40 };
            let span = 100;
            let count = 100 + 300 * round;
            let mut backlog = backlog();
            let (mut read, mut gone) = (0, 0);
            // Appended one a millisecond, each due within four times what the level waits.
            let log: Vec<i64> = (0..count).map(|at| at + span + below(3 * span)).collect();
            for now in 0..count + 4 * span {
                while read < count && read <= now && !backlog.is_full() {
                    let due = log[usize::try_from(read).unwrap()];
                    backlog.push(Entry { bytes, ..entry(read, due, read + span) });
                    read += 1;
                }
                while let Some(entry) = backlog.pop(now) {
                    assert!(entry.due <= now || entry.moves_at <= now);
                    assert!(entry.due >= now || entry.moves_at >= now, "{} late", now - entry.due);
                    let position = backlog.position_after([entry.offset]);
                    assert!(position.encode().len() <= crate::metadata::MAX_CHARS);
                    backlog.finish(entry.offset);
                    gone += 1;
                }
            }
            assert_eq!(gone, count);
            assert_eq!(backlog.done_to(), count);
        }
    }
}
