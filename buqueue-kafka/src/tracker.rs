//! What became of the records of one partition since it was assigned. No I/O.
//!
//! Kafka remembers one offset a partition: everything below it is done. Records that are done above it are told apart from
//! those that are not by the metadata of the commit, which also says how often each of the latter has been tried. So a
//! restart neither brings a flood of what was done already, nor forgets that a record kills whoever handles it.
//!
//! Only offsets that were read count. A log has gaps, where records were compacted away and where transactions ended.

use std::collections::BTreeMap;

use crate::metadata::Position;

/// The records of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tracker {
    /// Read, and not done.
    open: BTreeMap<i64, Open>,
    /// Where reading goes on.
    next: i64,
    /// From there on nothing was handed out. It is no news for a commit: it would be read again as it was.
    touched_to: i64,
    /// How many of `open` a commit tells of.
    told: usize,
    /// What the last owner left undone, and has not been read here yet.
    inherited: BTreeMap<i64, u32>,
    /// Everything below that is in nobody's inheritance was done by the last owner.
    inherited_to: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    /// Attempts that have ended, or that a crash has ended.
    attempts: u32,
    /// Whether a handler has it, or may have it.
    started: bool,
}

/// What is to be done with a record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// It is to be handled; so many attempts were made before.
    Open { attempts: u32 },
    /// It is done already, by the last owner or because it was read before.
    Done,
}

impl Tracker {
    /// From what is committed.
    pub(crate) fn new(committed: &Position) -> Self {
        Self {
            open: BTreeMap::new(),
            next: committed.next,
            touched_to: committed.next,
            told: 0,
            inherited: committed.open.clone(),
            inherited_to: committed.read_to.max(committed.next),
        }
    }

    /// A record was read.
    pub(crate) fn read(&mut self, offset: i64) -> Read {
        if offset < self.next {
            // Read again after the connection broke.
            return Read::Done;
        }
        // What was passed over does not exist any more.
        self.inherited = self.inherited.split_off(&offset);
        self.next = offset + 1;
        let attempts = match self.inherited.remove(&offset) {
            Some(attempts) => attempts,
            None if offset < self.inherited_to => return Read::Done,
            None => 0,
        };
        self.open.insert(offset, Open { attempts, started: false });
        self.told += usize::from(offset < self.known_to());
        Read::Open { attempts }
    }

    /// A handler is going to have it: should the process die from now on, that was an attempt.
    pub(crate) fn start(&mut self, offset: i64) {
        if let Some(open) = self.open.get_mut(&offset) {
            open.started = true;
            self.touch(offset);
        }
    }

    /// The attempt has failed, and the record is to be handled again.
    pub(crate) fn fail(&mut self, offset: i64) -> bool {
        match self.open.get_mut(&offset) {
            Some(open) => {
                *open = Open { attempts: open.attempts.saturating_add(1), started: false };
                self.touch(offset);
                true
            }
            None => false,
        }
    }

    /// Where reading goes on.
    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    /// It comes back unseen.
    pub(crate) fn unstart(&mut self, offset: i64) {
        if let Some(open) = self.open.get_mut(&offset) {
            open.started = false;
        }
    }

    /// It is done, or its copy is accepted elsewhere. Whether it was open.
    pub(crate) fn finish(&mut self, offset: i64) -> bool {
        self.touch(offset);
        let was_open = self.open.remove(&offset).is_some();
        self.told -= usize::from(was_open);
        was_open
    }

    /// How many more may be started, so that what a commit tells has room in it.
    pub(crate) fn room(&self) -> usize {
        // So many always fit, and as many more.
        const FEW: usize = 150;
        // Asked for less often than each one, and leaving room for them.
        const SOME: usize = 32;
        if self.told + self.inherited.len() < FEW {
            FEW
        } else if self.position().has_room() {
            SOME
        } else {
            0
        }
    }

    /// Whether a commit tells of it already: to start it again takes no more room.
    pub(crate) fn tells_of(&self, offset: i64) -> bool {
        offset < self.known_to()
    }

    /// What was handed out, or was known before, ends here.
    fn known_to(&self) -> i64 {
        self.touched_to.max(self.inherited_to)
    }

    fn touch(&mut self, offset: i64) {
        let from = self.known_to();
        self.touched_to = self.touched_to.max(offset + 1);
        self.told += self.open.range(from..self.known_to()).count();
    }

    /// What is to be committed.
    pub(crate) fn position(&self) -> Position {
        let known_to = self.known_to();
        let told = self.open.range(..known_to);
        let mut open: BTreeMap<i64, u32> = told
            .map(|(offset, open)| (*offset, open.attempts.saturating_add(u32::from(open.started))))
            .collect();
        open.extend(self.inherited.iter().map(|(offset, attempts)| (*offset, *attempts)));
        let first = open.keys().next().or_else(|| self.open.keys().next());
        let next = first.copied().unwrap_or_else(|| self.next.max(self.inherited_to));
        Position { next, read_to: known_to.max(next), open }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn fresh(next: i64) -> Tracker {
        Tracker::new(&Position { next, read_to: next, open: BTreeMap::new() })
    }

    #[test]
    fn the_watermark_is_the_first_that_is_not_done() {
        let mut tracker = fresh(10);
        for offset in 10..15 {
            assert_eq!(tracker.read(offset), Read::Open { attempts: 0 });
        }
        assert!(tracker.finish(12));
        assert!(tracker.finish(10));
        assert!(!tracker.finish(10), "once");
        let position = tracker.position();
        // What lies behind was touched by nobody.
        assert_eq!((position.next, position.read_to), (11, 13));
        assert_eq!(position.open.keys().copied().collect::<Vec<_>>(), [11]);
        for offset in [11, 13, 14] {
            assert!(tracker.finish(offset));
        }
        assert_eq!(tracker.position(), Position { next: 15, read_to: 15, open: BTreeMap::new() });
    }

    #[test]
    fn gaps_hold_nothing_up() {
        let mut tracker = fresh(0);
        for offset in [3, 7, 100] {
            tracker.read(offset);
            assert_eq!(tracker.position().next, 3);
        }
        for (done, next) in [(3, 7), (100, 7), (7, 101)] {
            tracker.finish(done);
            assert_eq!(tracker.position().next, next);
        }
    }

    #[test]
    fn what_was_started_has_been_tried() {
        let mut tracker = fresh(0);
        tracker.read(0);
        tracker.read(1);
        tracker.start(1);
        // The process dies.
        let mut tracker = Tracker::new(&tracker.position());
        assert_eq!(tracker.read(0), Read::Open { attempts: 0 });
        assert_eq!(tracker.read(1), Read::Open { attempts: 1 });
        tracker.start(1);
        let mut tracker = Tracker::new(&tracker.position());
        tracker.read(0);
        assert_eq!(tracker.read(1), Read::Open { attempts: 2 });
        tracker.start(1);
        tracker.unstart(1);
        assert_eq!(tracker.position().open[&1], 2);
    }

    #[test]
    fn records_that_are_gone_are_forgotten() {
        let mut tracker = fresh(0);
        for offset in 0..4 {
            tracker.read(offset);
        }
        tracker.finish(3);
        let mut tracker = Tracker::new(&tracker.position());
        // The topic was compacted: 0 and 1 are no more.
        assert_eq!(tracker.read(2), Read::Open { attempts: 0 });
        assert_eq!(tracker.position().next, 2);
        assert_eq!(tracker.read(3), Read::Done);
        tracker.finish(2);
        assert_eq!(tracker.position(), Position { next: 4, read_to: 4, open: BTreeMap::new() });
    }

    /// Whatever happens, in whatever order: nothing that is not done is passed over, and nothing that is done comes again.
    #[test]
    fn at_random_nothing_is_lost_and_nothing_comes_twice() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        for _ in 0..300 {
            // A log with gaps.
            let log: Vec<i64> = (0..200).filter(|_| below(4) > 0).collect();
            let mut done = BTreeSet::new();
            let mut committed = Position::default();
            while done.len() < log.len() {
                let mut tracker = Tracker::new(&committed);
                let mut open = Vec::new();
                let start = log.partition_point(|offset| *offset < committed.next);
                for &offset in &log[start..] {
                    match tracker.read(offset) {
                        Read::Open { .. } => {
                            assert!(!done.contains(&offset), "{offset} was done");
                            open.push(offset);
                        }
                        Read::Done => assert!(done.contains(&offset), "{offset} was not done"),
                    }
                    while !open.is_empty() && below(3) == 0 {
                        let at = usize::try_from(below(open.len() as u64)).unwrap();
                        let offset = open.swap_remove(at);
                        assert!(tracker.finish(offset));
                        done.insert(offset);
                    }
                    assert_eq!(tracker.open.len(), open.len());
                    assert_eq!(tracker.told, tracker.open.range(..tracker.known_to()).count());
                    let position = tracker.position();
                    assert!(log.iter().all(|offset| *offset >= position.next || done.contains(offset)));
                    // Now and then the process dies, a moment after a commit.
                    if below(20) == 0 {
                        break;
                    }
                }
                committed = tracker.position();
                assert_eq!(Position::decode(committed.next, &committed.encode()), committed);
            }
        }
    }
}
