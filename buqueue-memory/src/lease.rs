use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buqueue_core::driver::{Lease, Received};
use buqueue_core::{BuqueueError, ErrorKind, Message, MessageId, QueueFuture, Result};

use crate::queue::Queue;
use crate::slot::{Block, Failures, Slot};

/// A block of messages that one consumer has taken off the queue.
///
/// Messages are handed out by advancing `cursor`, by the consumer itself or by another one that finds the queue
/// empty; what lies unread for a while goes back, so that leasing ahead starves nobody. An ack touches the slot's own
/// state; only the last of a chunk takes the lock.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) queue: Arc<Queue>,
    pub(crate) slots: Block,
    /// Index of the next message to hand out.
    cursor: AtomicUsize,
    /// Messages not yet settled, and one for the consumer while it hands out from here.
    open: AtomicUsize,
    /// Where the queue's state keeps this chunk.
    pub(crate) place: usize,
    pub(crate) consumer: usize,
    lease_ms: u64,
    /// When the block was taken.
    taken_at: u64,
    /// Payload bytes, which live as long as the chunk.
    pub(crate) bytes: usize,
}

// A slot's state: the end of its lease in the upper 62 bits, one of these in the lower two.
const WAITING: u64 = 0;
const LEASED: u64 = 1;
const SETTLED: u64 = 2;
const EXPIRED: u64 = 3;
const TAG: u64 = 3;

fn leased_until(end: u64) -> u64 {
    end << 2 | LEASED
}

/// Times are whole milliseconds, rounded down; a lease that starts within one ends after the last of it.
pub(crate) fn lease_end(now: u64, lease_ms: u64) -> u64 {
    now.saturating_add(lease_ms).saturating_add(1).min(u64::MAX >> 2)
}

/// What was leased ahead and not handed out for so long goes back to the queue when somebody else asks.
const STALE_MS: u64 = 100;

fn bytes(slots: &Block) -> usize {
    slots.iter().map(|slot| slot.message.payload().len()).sum()
}

impl Chunk {
    pub(crate) fn new(queue: Arc<Queue>, slots: Block, consumer: usize, lease_ms: u64) -> Self {
        let (open, cursor) = (AtomicUsize::new(slots.len() + 1), AtomicUsize::new(0));
        let bytes = bytes(&slots);
        Self { queue, slots, cursor, open, place: 0, consumer, lease_ms, taken_at: 0, bytes }
    }

    /// Makes a finished chunk a new one and returns its old, settled block.
    pub(crate) fn renew(&mut self, slots: Block) -> Block {
        *self.open.get_mut() = slots.len() + 1;
        *self.cursor.get_mut() = 0;
        self.bytes = bytes(&slots);
        std::mem::replace(&mut self.slots, slots)
    }

    /// Where the queue keeps it, and since when.
    pub(crate) fn take_place(&mut self, place: usize, now: u64) {
        self.place = place;
        self.taken_at = now;
    }

    /// Whether messages have been lying unread for longer than a busy consumer needs for them.
    pub(crate) fn is_stale(&self, now: u64) -> bool {
        self.has_unread() && now >= self.taken_at.saturating_add(STALE_MS)
    }

    #[inline]
    pub(crate) fn has_unread(&self) -> bool {
        self.cursor.load(Ordering::Relaxed) < self.slots.len()
    }

    /// Hands out the next message; its lease, as long as its taker's are, starts now.
    #[inline]
    pub(crate) fn hand_out(self: &Arc<Self>, now: u64, lease_ms: u64) -> Option<Received> {
        if !self.has_unread() {
            return None;
        }
        let index = self.cursor.fetch_add(1, Ordering::Relaxed);
        let slot = self.slots.get(index)?;
        slot.state.store(leased_until(lease_end(now, lease_ms)), Ordering::Release);
        let (delivery_count, first_failed_at) = match slot.failures.as_deref() {
            None => (1, None),
            Some(Failures { count, first_at }) => (count.saturating_add(1), Some(*first_at)),
        };
        // A block has at most BLOCK slots.
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let lease: Arc<dyn Lease> = Arc::clone(self) as _;
        Some(Received { lease, index, delivery_count, first_failed_at })
    }

    /// Takes everything that was not handed out, so that nobody hands it out any more.
    pub(crate) fn take_unread(&self) -> Range<usize> {
        let len = self.slots.len();
        self.cursor.swap(len, Ordering::Relaxed).min(len)..len
    }

    /// Counts settled messages off; true when nothing is left open.
    #[inline]
    pub(crate) fn close(&self, count: usize) -> bool {
        count > 0 && self.open.fetch_sub(count, Ordering::AcqRel) == count
    }

    /// How many messages are not settled, and one more while a consumer hands out from here.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many leases have run out that nobody has ended yet.
    pub(crate) fn overdue(&self, now: u64) -> usize {
        let handed_out = self.slots.iter().take(self.cursor.load(Ordering::Relaxed));
        let states = handed_out.map(|slot| slot.state.load(Ordering::Relaxed));
        states.filter(|state| state & TAG == LEASED && state >> 2 <= now).count()
    }

    /// Ends the leases that ran out and tells when the next one may.
    pub(crate) fn end_leases(&self, now: u64, mut ended: impl FnMut(&Slot)) -> u64 {
        let mut next = u64::MAX;
        for slot in self.slots.iter().take(self.cursor.load(Ordering::Relaxed)) {
            let state = slot.state.load(Ordering::Acquire);
            let end = state >> 2;
            match state & TAG {
                LEASED if end <= now => {
                    if slot
                        .state
                        .compare_exchange(state, EXPIRED, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                    {
                        ended(slot);
                    } else {
                        // Settled or extended this moment.
                        next = next.min(now + 1);
                    }
                }
                LEASED => next = next.min(end),
                // Being handed out this moment.
                WAITING => next = next.min(now.saturating_add(self.lease_ms)),
                _ => {}
            }
        }
        if self.has_unread() {
            next = next.min(now.saturating_add(self.lease_ms));
        }
        next
    }

    #[inline]
    fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    /// Ends the lease in favour of its holder; `LeaseExpired` when time was faster.
    #[inline]
    fn settle(&self, index: u32) -> Result<&Slot> {
        let slot = self.slot(index);
        let mut state = slot.state.load(Ordering::Acquire);
        while state & TAG == LEASED {
            match slot.state.compare_exchange_weak(state, SETTLED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(slot),
                Err(changed) => state = changed,
            }
        }
        Err(BuqueueError::new(
            ErrorKind::LeaseExpired,
            "the lease ran out and the message is somebody else's",
        ))
    }

    /// Counts one settled message off, and the chunk with the last one.
    #[inline]
    fn settled(&self) {
        if self.close(1) {
            self.queue.lock().forget(self);
        }
    }

    fn nack_now(&self, index: u32, after: Duration) -> Result<()> {
        let slot = self.settle(index)?;
        let now = self.queue.now();
        let again = slot.again(slot.failed(self.queue.wall(now)));
        if after.is_zero() {
            self.queue.put_back(again);
        } else {
            self.queue.put_back_later(again, now.saturating_add(millis_up(after)).saturating_add(1));
        }
        self.settled();
        Ok(())
    }

    fn release_now(&self, index: u32) -> Result<()> {
        let slot = self.settle(index)?;
        self.queue.put_back(slot.again(slot.failures.clone()));
        self.settled();
        Ok(())
    }

    fn extend_now(&self, index: u32, by: Duration) -> Result<()> {
        let end = lease_end(self.queue.now(), millis_up(by));
        let slot = self.slot(index);
        let mut state = slot.state.load(Ordering::Acquire);
        while state & TAG == LEASED {
            let extended = leased_until(end);
            match slot.state.compare_exchange_weak(state, extended, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.queue.lease_ends(end);
                    return Ok(());
                }
                Err(changed) => state = changed,
            }
        }
        Err(BuqueueError::new(
            ErrorKind::LeaseExpired,
            "the lease ran out and the message is somebody else's",
        ))
    }
}

/// Milliseconds, rounded up: never early.
pub(crate) fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl Lease for Chunk {
    fn message(&self, index: u32) -> &Message {
        &self.slot(index).message
    }

    fn message_id(&self, index: u32) -> MessageId {
        MessageId::from(self.slot(index).id)
    }

    fn ack(&self, index: u32) -> QueueFuture<'_, Result<()>> {
        let outcome = self.settle(index).map(drop);
        if outcome.is_ok() {
            self.settled();
        }
        QueueFuture::ready(outcome)
    }

    fn nack(&self, index: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        QueueFuture::ready(self.nack_now(index, after))
    }

    fn release(&self, index: u32) -> QueueFuture<'_, Result<()>> {
        QueueFuture::ready(self.release_now(index))
    }

    fn extend(&self, index: u32, by: Duration) -> QueueFuture<'_, Result<()>> {
        QueueFuture::ready(self.extend_now(index, by))
    }

    fn abandon(&self, index: u32) {
        // An error means that the lease has brought the message back already.
        drop(self.nack_now(index, Duration::ZERO));
    }

    fn ack_many<'a>(&'a self, indexes: &'a [u32]) -> QueueFuture<'a, Result<()>> {
        let mut first_failure = Ok(());
        let mut count = 0;
        for &index in indexes {
            match self.settle(index) {
                Ok(_) => count += 1,
                Err(error) => first_failure = first_failure.and(Err(error)),
            }
        }
        if self.close(count) {
            self.queue.lock().forget(self);
        }
        QueueFuture::ready(first_failure)
    }
}
