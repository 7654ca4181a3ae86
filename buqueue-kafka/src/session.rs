//! What the reader, the consumer and its deliveries share: who owns which partition, and what became of its records.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, ErrorKind, FirstFailures, Mailbox, Message};
use chrono::{DateTime, Utc};
use tokio::runtime::Handle;

use crate::config::KafkaOptions;
use crate::convert::{Incoming, Story};
use crate::delay::Forwarding;
use crate::later::Later;
use crate::metadata::Position;
use crate::stats::Stats;
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

impl Slot {
    /// None is before it.
    const FIRST: Self = Self { topic: Topic::Main, partition: i32::MIN };
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
    /// The commit under way tells of it.
    in_commit: bool,
    /// Something is committed.
    recorded: bool,
    /// Read, and not yet cleared for somebody to handle.
    waiting: VecDeque<Held>,
}

#[derive(Debug, Default)]
struct State {
    owned: BTreeMap<Slot, Owned>,
    epochs: u64,
    /// How much waits.
    ahead: Ahead,
    /// Whose turn it is.
    turn: Option<Slot>,
    /// To be handed out when the commit is made that tells of them.
    started: Vec<Held>,
    /// Whether a commit is under way.
    committing: bool,
    /// Since when a suspect waits to be alone.
    suspect_since: Option<Instant>,
    /// A suspect is out alone, since then.
    suspect_out: Option<(Place, Instant)>,
    /// One of them has taken so long that the others are treated as any, until partitions come again.
    trusting: bool,
}

/// What was read, and waits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ahead {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// About what a message takes that waits.
pub(crate) fn weight(message: &Message) -> usize {
    /// Beside its payload and its headers.
    const BESIDE: usize = 256;
    message.payload().len() + message.headers().byte_len() + BESIDE
}

impl Ahead {
    fn add(&mut self, held: &Held) {
        self.records += 1;
        self.bytes += weight(&held.message);
    }

    fn remove(&mut self, held: &Held) {
        self.records -= 1;
        self.bytes -= weight(&held.message);
    }
}

impl State {
    /// Others have waited long enough.
    fn trust(&mut self) {
        self.trusting = true;
        self.suspect_since = None;
        self.suspect_out = None;
        let waiting = self.owned.values_mut().flat_map(|owned| &mut owned.waiting);
        waiting.for_each(|held| held.suspect = false);
    }

    /// The partitions of which something waits, the one whose turn it is first.
    fn in_turn(&self) -> Vec<Slot> {
        let after = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
        let up_to = self.turn.map_or(Bound::Excluded(Slot::FIRST), Bound::Included);
        let turns =
            self.owned.range((after, Bound::Unbounded)).chain(self.owned.range((Bound::Unbounded, up_to)));
        turns.filter(|(_, owned)| !owned.waiting.is_empty()).map(|(slot, _)| *slot).collect()
    }

    /// Starts up to so many of one partition; whether there may be others beside them.
    fn start_of(&mut self, slot: Slot, most: usize, alone: bool) -> bool {
        let Some(mut room) = self.owned.get(&slot).map(|owned| owned.tracker.room()) else { return true };
        for _ in 0..most {
            let Some(owned) = self.owned.get(&slot) else { return true };
            let Some(first) = owned.waiting.front() else { return true };
            let told = owned.tracker.tells_of(first.place.offset);
            if room == 0 && !told {
                return true;
            }
            if first.suspect && !(alone && self.started.is_empty()) {
                let since = *self.suspect_since.get_or_insert_with(Instant::now);
                if since.elapsed() < GRACE {
                    return false;
                }
                self.trust();
            }
            let Some(owned) = self.owned.get_mut(&slot) else { return true };
            let Some(held) = owned.waiting.pop_front() else { return true };
            owned.tracker.start(held.place.offset);
            owned.dirty = true;
            room -= usize::from(!told);
            self.ahead.remove(&held);
            let suspect = held.suspect;
            if suspect {
                self.suspect_since = None;
                self.suspect_out = Some((held.place, Instant::now()));
            }
            self.started.push(held);
            if suspect {
                return false;
            }
        }
        true
    }

    /// It waits, in front of the others.
    fn wait_first(&mut self, held: Held) {
        if let Some(owned) = self.owned.get_mut(&held.place.slot) {
            self.ahead.add(&held);
            owned.waiting.push_front(held);
        }
    }

    fn is_back(&mut self, place: Place) {
        if self.suspect_out.is_some_and(|(out, _)| out == place) {
            self.suspect_out = None;
        }
    }
}

/// How long others are kept from a record that may kill its handler.
const GRACE: Duration = Duration::from_secs(5);

/// How many are read ahead, of each partition, of those that are handed out, and how many bytes of all.
const READ_AHEAD: usize = 2000;
const READ_AHEAD_BYTES: usize = 8 << 20;

/// See the module.
pub(crate) struct Session {
    pub(crate) options: KafkaOptions,
    pub(crate) later: Later,
    pub(crate) stats: Stats,
    pub(crate) mailbox: Mailbox<Held>,
    pub(crate) runtime: Handle,
    state: Mutex<State>,
    failures: FirstFailures<(Slot, i64)>,
    /// Handed out, and not settled.
    out: AtomicUsize,
    closing: AtomicBool,
    /// What sends on schedules ends with the consumer.
    forwarding: OnceLock<Forwarding>,
    /// The reader cannot go on before something is settled.
    waits_for_settles: AtomicBool,
    /// There is something to do for the reader.
    work: AtomicBool,
    asleep: Mutex<()>,
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
        let stats = Stats::new(&options);
        Self {
            options,
            later,
            stats,
            mailbox: Mailbox::default(),
            runtime: Handle::current(),
            state: Mutex::default(),
            failures: FirstFailures::default(),
            out: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            forwarding: OnceLock::new(),
            waits_for_settles: AtomicBool::new(false),
            work: AtomicBool::new(false),
            asleep: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// There is something to do for the reader.
    pub(crate) fn wake(&self) {
        if !self.work.swap(true, Ordering::AcqRel) {
            // Not between its look and its sleep.
            drop(lock(&self.asleep));
            self.wake.notify_one();
        }
    }

    /// Waits until there is something to do, for so long at most.
    pub(crate) fn sleep(&self, limit: Duration) {
        let asleep = lock(&self.asleep);
        let idle = |(): &mut ()| !self.work.load(Ordering::Acquire);
        drop(self.wake.wait_timeout_while(asleep, limit, idle).unwrap_or_else(PoisonError::into_inner));
        self.work.swap(false, Ordering::AcqRel);
    }

    /// Whether the reader is to be woken when something is settled.
    pub(crate) fn waits_for_settles(&self, waits: bool) {
        self.waits_for_settles.store(waits, Ordering::SeqCst);
    }

    pub(crate) fn forwards_by(&self, forwarding: Forwarding) {
        // Once, when it is built.
        let _set = self.forwarding.set(forwarding);
    }

    /// Waits until everything is committed and nothing is sent on any more, for so long at most.
    pub(crate) async fn quiet(&self, limit: Duration) {
        let until = tokio::time::Instant::now() + limit;
        while self.is_dirty() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(forwarding) = self.forwarding.get() {
            forwarding.ended(until.saturating_duration_since(tokio::time::Instant::now())).await;
        }
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        if let Some(forwarding) = self.forwarding.get() {
            forwarding.stop();
        }
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
        state.trusting = false;
        state.suspect_since = None;
        // Where a group begins is written down at once.
        let owned = Owned {
            epoch: state.epochs,
            tracker: Tracker::new(committed),
            dirty: fresh,
            in_commit: false,
            recorded: !fresh,
            waiting: VecDeque::new(),
        };
        state.owned.insert(slot, owned);
    }

    /// A partition goes to somebody else, with what is to be committed of it. Late settles find it gone.
    pub(crate) fn disown(&self, slot: Slot) -> Option<Position> {
        let mut state = lock(&self.state);
        let owned = state.owned.remove(&slot)?;
        owned.waiting.iter().for_each(|held| state.ahead.remove(held));
        if state.suspect_out.is_some_and(|(out, _)| out.slot == slot) {
            state.suspect_out = None;
        }
        // What was not handed out yet, and what lies in the mailbox, was not seen by anybody.
        let mut tracker = owned.tracker;
        for held in state.started.extract_if(.., |held| held.place.slot == slot) {
            tracker.unstart(held.place.offset);
        }
        drop(state);
        for held in self.mailbox.take_out(|held| held.place.slot == slot) {
            tracker.unstart(held.place.offset);
        }
        Some(tracker.position())
    }

    /// Records of a partition were read: they wait now, unless they are done already.
    pub(crate) fn read(&self, slot: Slot, records: impl IntoIterator<Item = (i64, Incoming)>) {
        let state = &mut *lock(&self.state);
        let Some(owned) = state.owned.get_mut(&slot) else { return };
        for (offset, Incoming { message, story, .. }) in records {
            match owned.tracker.read(offset) {
                Read::Done => owned.dirty = true,
                Read::Open { attempts } => {
                    let place = Place { slot, epoch: owned.epoch, offset };
                    let suspect = attempts > 0 && !state.trusting;
                    let held = Held { message, place, story, attempts, suspect };
                    state.ahead.add(&held);
                    owned.waiting.push_back(held);
                }
            }
        }
    }

    /// How much more may wait of a partition; one record of each at least, so that none keeps another from being read.
    pub(crate) fn room(&self, slot: Slot) -> Option<Ahead> {
        let state = lock(&self.state);
        let waiting = &state.owned.get(&slot)?.waiting;
        let records = READ_AHEAD.saturating_sub(waiting.len());
        let bytes = READ_AHEAD_BYTES.saturating_sub(state.ahead.bytes);
        let bytes = bytes.max(usize::from(waiting.is_empty()));
        (records > 0 && bytes > 0).then_some(Ahead { records, bytes })
    }

    /// How much was read ahead.
    pub(crate) fn ahead(&self) -> Ahead {
        lock(&self.state).ahead
    }

    pub(crate) fn slots(&self) -> Vec<Slot> {
        lock(&self.state).owned.keys().copied().collect()
    }

    /// The partitions of which something is committed.
    pub(crate) fn recorded(&self) -> Vec<Slot> {
        let state = lock(&self.state);
        state.owned.iter().filter(|(_, owned)| owned.recorded).map(|(slot, _)| *slot).collect()
    }

    pub(crate) fn next(&self, slot: Slot) -> Option<i64> {
        lock(&self.state).owned.get(&slot).map(|owned| owned.tracker.next())
    }

    /// Notes that up to so many are to be handed out next, once a commit has told of it; whether there are any. Partitions
    /// take turns. What may kill its handler is handled alone, so that nothing else is blamed.
    pub(crate) fn start(&self, most: usize, alone: bool) -> bool {
        let state = &mut *lock(&self.state);
        if let Some((_, since)) = state.suspect_out {
            if since.elapsed() < GRACE {
                return false;
            }
            // A handler that takes for ever holds up nobody else.
            state.trust();
        }
        loop {
            let before = state.started.len();
            for slot in state.in_turn() {
                let free = most.saturating_sub(state.started.len());
                if free == 0 || !state.start_of(slot, free, alone) {
                    return !state.started.is_empty();
                }
                state.turn = Some(slot);
            }
            if state.started.len() == before {
                return before > 0;
            }
        }
    }

    /// Nobody is to have what was started.
    pub(crate) fn unstart_all(&self) {
        let started = std::mem::take(&mut lock(&self.state).started);
        self.unstart(started);
    }

    /// The commit is made, and what it told of can be handed out; or it is not, and nothing is.
    pub(crate) fn committed(&self, made: bool) {
        let mut state = lock(&self.state);
        state.committing = false;
        let started = std::mem::take(&mut state.started);
        for owned in state.owned.values_mut() {
            owned.dirty |= !made;
            owned.recorded |= std::mem::take(&mut owned.in_commit) && made;
        }
        drop(state);
        if !made {
            self.unstart(started);
        } else if !started.is_empty() {
            self.mailbox.push_all(started);
        }
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
                state.wait_first(held);
            }
        }
    }

    /// What is to be committed, of those partitions where there is something new; [`committed`](Self::committed) follows.
    pub(crate) fn to_commit(&self) -> Vec<(Slot, Position)> {
        let mut state = lock(&self.state);
        state.committing = true;
        let dirty = state.owned.iter_mut().filter(|(_, owned)| owned.dirty);
        dirty
            .map(|(slot, owned)| {
                (owned.dirty, owned.in_commit) = (false, true);
                (*slot, owned.tracker.position())
            })
            .collect()
    }

    /// Whether something is not committed.
    pub(crate) fn is_dirty(&self) -> bool {
        let state = lock(&self.state);
        state.committing || state.owned.values().any(|owned| owned.dirty)
    }

    // What belongs to deliveries.

    /// One is handed out. Counted before it is no longer among those that are ready, so that the reader sees it in one place
    /// or in both; always true.
    pub(crate) fn hands_out(&self) -> bool {
        self.out.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// One that was handed out is settled.
    pub(crate) fn came_back(&self) {
        self.out.fetch_sub(1, Ordering::SeqCst);
        if self.waits_for_settles.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// How many are handed out, and not settled.
    pub(crate) fn out(&self) -> usize {
        self.out.load(Ordering::SeqCst)
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
        state.wait_first(held);
        state.is_back(place);
        drop(state);
        self.wake();
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
