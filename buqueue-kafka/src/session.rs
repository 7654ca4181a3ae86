//! What the reader, the consumer and its deliveries share: who owns which partition, and what became of its records.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, ErrorKind, FirstFailures, Mailbox, Message};
use chrono::{DateTime, Utc};
use tokio::runtime::Handle;

use crate::config::KafkaOptions;
use crate::convert::Story;
use crate::later::Later;
use crate::metadata::Position;
use crate::tracker::{Read, Tracker};

/// Which of the two topics of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Topic {
    Main,
    Retry,
}

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) topic: Topic,
    pub(crate) partition: i32,
}

/// A record, and the time of ownership in which it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) slot: Slot,
    pub(crate) epoch: u64,
    pub(crate) offset: i64,
}

/// A message that was read.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) message: Message,
    pub(crate) place: Place,
    pub(crate) story: Story,
    /// Attempts that this record has behind it, beside those that its story tells of.
    pub(crate) attempts: u32,
    /// Whether it may be what killed the last one who handled it.
    pub(crate) suspect: bool,
}

impl Held {
    pub(crate) fn delivery_count(&self) -> u32 {
        self.story.failures.saturating_add(self.attempts).saturating_add(1)
    }
}

#[derive(Debug)]
struct Owned {
    epoch: u64,
    tracker: Tracker,
    /// There is something to commit.
    dirty: bool,
}

#[derive(Debug, Default)]
struct State {
    owned: HashMap<Slot, Owned>,
    epochs: u64,
    /// Read, and not yet cleared for somebody to handle.
    waiting: VecDeque<Held>,
    /// Since when a suspect waits to be alone.
    suspect_since: Option<Instant>,
    /// A suspect is out alone, since then.
    suspect_out: Option<(Place, Instant)>,
}

impl State {
    fn is_back(&mut self, place: Place) {
        if self.suspect_out.is_some_and(|(out, _)| out == place) {
            self.suspect_out = None;
        }
    }
}

/// How long others are kept from a record that may kill its handler.
const GRACE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Session {
    pub(crate) options: KafkaOptions,
    pub(crate) later: Later,
    pub(crate) mailbox: Mailbox<Held>,
    pub(crate) runtime: Handle,
    state: Mutex<State>,
    failures: FirstFailures<(Slot, i64)>,
    /// Handed out, and not settled.
    out: AtomicUsize,
    closing: AtomicBool,
    work: Mutex<bool>,
    wake: Condvar,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("out", &self.out)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(options: KafkaOptions, later: Later) -> Self {
        Self {
            options,
            later,
            mailbox: Mailbox::default(),
            runtime: Handle::current(),
            state: Mutex::default(),
            failures: FirstFailures::default(),
            out: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            work: Mutex::new(false),
            wake: Condvar::new(),
        }
    }

    /// There is something to do for the reader.
    pub(crate) fn wake(&self) {
        *lock(&self.work) = true;
        self.wake.notify_one();
    }

    /// Waits until there is something to do, for so long at most.
    pub(crate) fn sleep(&self, limit: Duration) {
        let work = lock(&self.work);
        let waited = self.wake.wait_timeout_while(work, limit, |work| !*work);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.mailbox.close();
        self.wake();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    // What belongs to the reader.

    /// A partition was assigned, with what is committed of it.
    pub(crate) fn own(&self, slot: Slot, committed: &Position, fresh: bool) {
        let mut state = lock(&self.state);
        state.epochs += 1;
        // Where a group begins is written down at once.
        let owned = Owned { epoch: state.epochs, tracker: Tracker::new(committed), dirty: fresh };
        state.owned.insert(slot, owned);
    }

    /// A partition goes to somebody else, with what is to be committed of it. Late settles find it gone.
    pub(crate) fn disown(&self, slot: Slot) -> Option<Position> {
        let mut state = lock(&self.state);
        let owned = state.owned.remove(&slot)?;
        state.waiting.retain(|held| held.place.slot != slot);
        if state.suspect_out.is_some_and(|(out, _)| out.slot == slot) {
            state.suspect_out = None;
        }
        drop(state);
        // What lies in the mailbox was not seen by anybody.
        let mut tracker = owned.tracker;
        for held in self.mailbox.take_out(|held| held.place.slot == slot) {
            tracker.unstart(held.place.offset);
        }
        Some(tracker.position())
    }

    /// A record was read: it waits now, unless it is done already.
    pub(crate) fn read(&self, slot: Slot, offset: i64, message: impl FnOnce() -> (Message, Story)) {
        let mut state = lock(&self.state);
        let Some(owned) = state.owned.get_mut(&slot) else { return };
        match owned.tracker.read(offset) {
            Read::Done => owned.dirty = true,
            Read::Open { attempts } => {
                let place = Place { slot, epoch: owned.epoch, offset };
                let (message, story) = message();
                state.waiting.push_back(Held { message, place, story, attempts, suspect: attempts > 0 });
            }
        }
    }

    /// How many records are read and not done.
    pub(crate) fn unfinished(&self) -> usize {
        lock(&self.state).owned.values().map(|owned| owned.tracker.len()).sum()
    }

    /// Whether there is room for what more is read, in what a commit can tell.
    pub(crate) fn has_room(&self, slot: Slot) -> bool {
        lock(&self.state).owned.get(&slot).is_none_or(|owned| owned.tracker.position().has_room())
    }

    pub(crate) fn slots(&self) -> Vec<Slot> {
        lock(&self.state).owned.keys().copied().collect()
    }

    pub(crate) fn next(&self, slot: Slot) -> Option<i64> {
        lock(&self.state).owned.get(&slot).map(|owned| owned.tracker.next())
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !lock(&self.state).waiting.is_empty()
    }

    /// Takes up to so many that are to be handled next, and notes that they are. What may kill its handler is handled alone,
    /// so that nothing else is blamed.
    pub(crate) fn start(&self, most: usize, alone: bool) -> Vec<Held> {
        let mut state = lock(&self.state);
        let mut started = Vec::new();
        if state.suspect_out.is_some_and(|(_, since)| since.elapsed() < GRACE) {
            return started;
        }
        while started.len() < most {
            let Some(held) = state.waiting.front() else { break };
            if held.suspect && !(alone && started.is_empty()) {
                // What is out is waited for, but a handler that takes for ever holds up nobody else.
                let since = *state.suspect_since.get_or_insert_with(Instant::now);
                if !started.is_empty() || since.elapsed() < GRACE {
                    break;
                }
            }
            let Some(held) = state.waiting.pop_front() else { break };
            if held.suspect {
                state.suspect_since = None;
                state.suspect_out = Some((held.place, Instant::now()));
            }
            if let Some(owned) = state.owned.get_mut(&held.place.slot) {
                owned.tracker.start(held.place.offset);
                owned.dirty = true;
            }
            let last = held.suspect;
            started.push(held);
            if last {
                break;
            }
        }
        started
    }

    /// They could not be handed out, or nobody has seen them.
    pub(crate) fn unstart(&self, unseen: Vec<Held>) {
        let mut state = lock(&self.state);
        for held in unseen.into_iter().rev() {
            if let Some(owned) =
                state.owned.get_mut(&held.place.slot).filter(|owned| owned.epoch == held.place.epoch)
            {
                owned.tracker.unstart(held.place.offset);
                owned.dirty = true;
                state.is_back(held.place);
                state.waiting.push_front(held);
            }
        }
    }

    /// What is to be committed, of those partitions where there is something new.
    pub(crate) fn to_commit(&self) -> Vec<(Slot, Position)> {
        let mut state = lock(&self.state);
        let dirty = state.owned.iter_mut().filter(|(_, owned)| owned.dirty);
        dirty
            .map(|(slot, owned)| {
                owned.dirty = false;
                (*slot, owned.tracker.position())
            })
            .collect()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        lock(&self.state).owned.values().any(|owned| owned.dirty)
    }

    /// That could not be committed.
    pub(crate) fn commit_again(&self) {
        lock(&self.state).owned.values_mut().for_each(|owned| owned.dirty = true);
    }

    // What belongs to deliveries.

    pub(crate) fn handed_out(&self, count: usize) {
        self.out.fetch_add(count, Ordering::AcqRel);
    }

    /// One that was handed out is settled.
    pub(crate) fn came_back(&self) {
        self.out.fetch_sub(1, Ordering::AcqRel);
        self.wake();
    }

    pub(crate) fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire) > 0
    }

    pub(crate) fn first_failure(&self, held: &Held) -> DateTime<Utc> {
        held.story.first_failed_at.unwrap_or_else(|| self.failures.of(&(held.place.slot, held.place.offset)))
    }

    /// Whether the record is still ours.
    pub(crate) fn check(&self, place: Place) -> Result<(), BuqueueError> {
        match lock(&self.state).owned.get(&place.slot) {
            Some(owned) if owned.epoch == place.epoch => Ok(()),
            _ => Err(lost()),
        }
    }

    /// The record is done, or its copy is accepted elsewhere.
    pub(crate) fn finish(&self, place: Place) -> Result<(), BuqueueError> {
        let mut state = lock(&self.state);
        let owned =
            state.owned.get_mut(&place.slot).filter(|owned| owned.epoch == place.epoch).ok_or_else(lost)?;
        owned.dirty |= owned.tracker.finish(place.offset);
        state.is_back(place);
        Ok(())
    }

    /// The record is to be handled again, at once.
    pub(crate) fn again(&self, held: &Held, counted: bool) -> Result<(), BuqueueError> {
        let mut state = lock(&self.state);
        let place = held.place;
        let owned =
            state.owned.get_mut(&place.slot).filter(|owned| owned.epoch == place.epoch).ok_or_else(lost)?;
        owned.dirty = true;
        let mut held = Held { suspect: false, ..held.clone() };
        if counted {
            held.attempts = held.attempts.saturating_add(1);
            owned.tracker.fail(place.offset);
        } else {
            owned.tracker.unstart(place.offset);
        }
        state.waiting.push_front(held);
        state.is_back(place);
        Ok(())
    }
}

fn lost() -> BuqueueError {
    BuqueueError::new(ErrorKind::LeaseExpired, "its partition has gone to another consumer")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
