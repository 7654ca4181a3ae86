//! What became of the records of one partition since it was assigned. No I/O.
//!
//! Kafka remembers one offset a partition: everything below it is done. Records that are done above it are told apart from
//! those that are not by the metadata of the commit, which also says how often each of the latter has been tried. So a
//! restart neither brings a flood of what was done already, nor forgets that a record kills whoever handles it.
//!
//! Only offsets that were read count. A log has gaps, where records were compacted away and where transactions ended.

use std::collections::{BTreeMap, VecDeque};

use crate::metadata::{self, Position};

/// The records of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tracker {
    /// Read, in order, from the first that is not done. Those that are done behind it stay for a while.
    read: VecDeque<Record>,
    /// How many of `read` are done.
    done: usize,
    /// Where reading goes on.
    next: i64,
    /// From there on nothing was handed out. It is no news for a commit: it would be read again as it was.
    touched_to: i64,
    /// How many of those that are not done a commit tells of.
    told: usize,
    /// What the last owner left undone, and has not been read here yet.
    inherited: BTreeMap<i64, u32>,
    /// Everything below that is in nobody's inheritance was done by the last owner.
    inherited_to: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    offset: i64,
    /// Attempts that have ended, or that a crash has ended.
    attempts: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waits,
    /// A handler has it, or may have it.
    Started,
    Done,
}

impl Record {
    fn is_open(&self) -> bool {
        self.state != State::Done
    }
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
            read: VecDeque::new(),
            done: 0,
            next: committed.next,
            touched_to: committed.next,
            told: 0,
            inherited: committed.open.iter().copied().collect(),
            inherited_to: committed.read_to.max(committed.next),
        }
    }

    /// A record was read.
    pub(crate) fn read(&mut self, offset: i64) -> Read {
        if offset < self.next {
            // Read again after the connection broke.
            return Read::Done;
        }
        self.next = offset + 1;
        if !self.inherited.is_empty() {
            // What was passed over does not exist any more.
            self.inherited = self.inherited.split_off(&offset);
        }
        let attempts = match self.inherited.remove(&offset) {
            Some(attempts) => attempts,
            None if offset < self.inherited_to => return Read::Done,
            None => 0,
        };
        self.read.push_back(Record { offset, attempts, state: State::Waits });
        self.told += usize::from(offset < self.known_to());
        Read::Open { attempts }
    }

    /// A handler is going to have it: should the process die from now on, that was an attempt.
    pub(crate) fn start(&mut self, offset: i64) {
        if let Some(record) = self.open(offset) {
            record.state = State::Started;
            self.touch(offset);
        }
    }

    /// The attempt has failed, and the record is to be handled again.
    pub(crate) fn fail(&mut self, offset: i64) -> bool {
        match self.open(offset) {
            Some(record) => {
                record.attempts = record.attempts.saturating_add(1);
                record.state = State::Waits;
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
        if let Some(record) = self.open(offset) {
            record.state = State::Waits;
        }
    }

    /// It is done, or its copy is accepted elsewhere. Whether it was open.
    pub(crate) fn finish(&mut self, offset: i64) -> bool {
        self.touch(offset);
        let Some(record) = self.open(offset) else { return false };
        record.state = State::Done;
        self.told -= 1;
        self.done += 1;
        while self.read.front().is_some_and(|record| !record.is_open()) {
            self.read.pop_front();
            self.done -= 1;
        }
        // One that is never done must not keep all that are done behind it.
        if self.done > KEPT && self.done > self.read.len() / 2 {
            self.read.retain(Record::is_open);
            self.done = 0;
        }
        true
    }

    /// How many more may be started, so that what a commit tells has room in it.
    pub(crate) fn room(&self) -> usize {
        // So many always fit, and as many more.
        const FEW: usize = 150;
        // Asked for less often than each one, and leaving room for them.
        const SOME: usize = 32;
        let many = self.told + self.inherited.len();
        if many < FEW {
            return FEW;
        }
        let first = self.read.front().map(|record| record.offset);
        let first = first.or_else(|| self.inherited.keys().next().copied());
        let span = first.map_or(0, |first| self.known_to().saturating_sub(first));
        match metadata::room(many, u64::try_from(span).unwrap_or(0)) {
            0 if self.position().has_room() => SOME,
            room => room,
        }
    }

    /// Whether a commit tells of it already: to start it again takes no more room.
    pub(crate) fn tells_of(&self, offset: i64) -> bool {
        offset < self.known_to()
    }

    /// What is to be committed.
    pub(crate) fn position(&self) -> Position {
        let known_to = self.known_to();
        let told = self.read.iter().take_while(|record| record.offset < known_to);
        let told = told.filter(|record| record.is_open()).map(|record| {
            let begun = u32::from(record.state == State::Started);
            (record.offset, record.attempts.saturating_add(begun))
        });
        // What is inherited was not read yet: it is behind all that was.
        let inherited = self.inherited.iter().map(|(offset, attempts)| (*offset, *attempts));
        let open: Vec<(i64, u32)> = told.chain(inherited).collect();
        // The first that was read is open.
        let first = self.read.front().map(|record| record.offset);
        let first = first.or_else(|| open.first().map(|(offset, _)| *offset));
        let next = first.unwrap_or_else(|| self.next.max(self.inherited_to));
        Position { next, read_to: known_to.max(next), open }
    }

    /// What was handed out, or was known before, ends here.
    fn known_to(&self) -> i64 {
        self.touched_to.max(self.inherited_to)
    }

    fn touch(&mut self, offset: i64) {
        let from = self.known_to();
        self.touched_to = self.touched_to.max(offset + 1);
        if offset < from {
            return;
        }
        let first = self.find(from).unwrap_or_else(|behind| behind);
        let told = self.read.iter().skip(first).take_while(|record| record.offset <= offset);
        self.told += told.filter(|record| record.is_open()).count();
    }

    fn open(&mut self, offset: i64) -> Option<&mut Record> {
        let at = self.find(offset).ok()?;
        self.read.get_mut(at).filter(|record| record.is_open())
    }

    /// Where it stands, or would stand.
    fn find(&self, offset: i64) -> Result<usize, usize> {
        let Some(first) = self.read.front() else { return Err(0) };
        // There, where no record is missing.
        let guess = usize::try_from(offset.saturating_sub(first.offset)).unwrap_or(0);
        match self.read.get(guess) {
            Some(record) if record.offset == offset => Ok(guess),
            _ => self.read.binary_search_by_key(&offset, |record| record.offset),
        }
    }
}

/// So many that are done may stand behind one that is not.
const KEPT: usize = 1000;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn fresh(next: i64) -> Tracker {
        Tracker::new(&Position { next, read_to: next, open: Vec::new() })
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
        assert_eq!(position.open, [(11, 0)]);
        for offset in [11, 13, 14] {
            assert!(tracker.finish(offset));
        }
        assert_eq!(tracker.position(), Position { next: 15, read_to: 15, open: Vec::new() });
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
        assert!(tracker.position().open.contains(&(1, 2)));
    }

    #[test]
    fn one_that_is_never_done_does_not_keep_the_others() {
        let mut tracker = fresh(0);
        for offset in 0..100_000 {
            tracker.read(offset);
            if offset > 0 {
                tracker.start(offset);
                assert!(tracker.finish(offset));
            }
            assert!(tracker.read.len() < 2 * KEPT + 10, "{}", tracker.read.len());
        }
        assert_eq!(tracker.position(), Position { next: 0, read_to: 100_000, open: vec![(0, 0)] });
        assert!(tracker.finish(0));
        assert!(tracker.read.is_empty());
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
        assert_eq!(tracker.position(), Position { next: 4, read_to: 4, open: Vec::new() });
        // And all that the last owner knew of.
        let mut tracker = Tracker::new(&Position { next: 5, read_to: 8, open: vec![(5, 1), (7, 2)] });
        assert_eq!(tracker.read(100), Read::Open { attempts: 0 });
        assert_eq!(tracker.position(), Position { next: 100, read_to: 100, open: Vec::new() });
    }

    /// Whatever happens, in whatever order: nothing that is not done is passed over, and nothing that is done comes again.
    #[test]
    fn at_random_nothing_is_lost_and_nothing_comes_twice() {
        let mut below = crate::random::below(0x2545_f491_4f6c_dd1d);
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
                    let undone: Vec<_> = tracker.read.iter().filter(|record| record.is_open()).collect();
                    assert_eq!(undone.len(), open.len());
                    assert_eq!(tracker.done, tracker.read.len() - undone.len());
                    let told = undone.iter().filter(|record| record.offset < tracker.known_to());
                    assert_eq!(tracker.told, told.count());
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
