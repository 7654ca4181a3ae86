mod stats;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use buqueue_core::{Message, MessageId};
use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::dedup::Dedup;
use crate::lease::Chunk;
use crate::schedule::Schedule;
use crate::slot::{Block, Slot};
use crate::waiting::Waiting;

/// Messages wait in blocks, and a busy consumer leases a whole block under one short lock.
pub(crate) const BLOCK: usize = 64;
/// A block takes no message that would bring its payloads over this; a larger one has a block of its own. A block's
/// payloads are freed together, so it bounds what an unsettled message keeps alive beside itself.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;
/// Messages that return to the head share a block only when they are this small.
const SMALL_BYTES: usize = BLOCK_BYTES / BLOCK;
/// One more consumer is woken for so many messages that wait.
const WAKE_STEP: usize = 8;
/// Nobody waits for longer without a look: a task that was woken in its place may never be polled.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often, at most, unread messages of idle consumers are looked for.
const STALE_LOOK_MS: u64 = 50;
/// Empty blocks kept for reuse.
const SPARES: usize = 32;

/// One queue, shared by its producers, its consumers and the leases they hold.
///
/// Time is milliseconds since the queue was made, by tokio's clock.
pub(crate) struct Queue {
    name: String,
    state: Padded<Mutex<State>>,
    started: Instant,
    started_at: DateTime<Utc>,
    capacity: usize,
    deduplication_window: Duration,
    /// Wakes one waiting producer.
    space: Notify,
    /// Whether messages are ready, for a look without the lock.
    ready_hint: AtomicBool,
    producers_waiting: AtomicUsize,
}

/// Keeps what everybody writes apart from what everybody only reads: a consumer reads the clock's origin for each
/// message, and would otherwise wait for the cache line that a producer has just locked.
#[repr(align(128))]
struct Padded<T>(T);

/// What the lock guards. No method of it waits.
pub(crate) struct State {
    blocks: VecDeque<Block>,
    /// How many messages are in `blocks`.
    ready: usize,
    /// Payload bytes in the last block.
    tail_bytes: usize,
    spares: Vec<Block>,
    schedule: Schedule,
    dedup: Dedup,
    next_id: u64,
    /// Every chunk that has an unsettled message; a chunk knows its place.
    chunks: Vec<Option<Arc<Chunk>>>,
    free_places: Vec<usize>,
    /// How many of them a consumer still hands out from.
    at_hand: usize,
    /// No lease ends before this.
    next_lease_end: u64,
    /// One seat a consumer; a free seat is used again.
    seats: Vec<Seat>,
    free_seats: Vec<usize>,
    /// The seats of the consumers that wait, longest first.
    waiters: VecDeque<usize>,
    /// Consumers that were woken and have not looked yet.
    wakes_pending: usize,
    /// Unread messages of idle consumers are not looked for before this.
    next_stale_look: u64,
    /// One waiting consumer wakes by itself at this time, so that not all of them need to.
    armed: Option<Armed>,
    /// How many consumers may have messages leased ahead, for others to take.
    pub(crate) leased_ahead: usize,
}

#[derive(Default)]
struct Seat {
    waker: Option<Waker>,
    /// In `waiters`.
    queued: bool,
}

struct Armed {
    at: u64,
    seat: usize,
}

/// What the queue answers to a send.
pub(crate) enum Sent {
    Ok(MessageId),
    Full(Message),
}

impl Queue {
    pub(crate) fn new(name: String, capacity: usize, deduplication_window: Duration) -> Self {
        Self {
            name,
            state: Padded(Mutex::new(State {
                blocks: VecDeque::new(),
                ready: 0,
                tail_bytes: 0,
                spares: Vec::new(),
                schedule: Schedule::default(),
                dedup: Dedup::new(deduplication_window),
                next_id: 1,
                chunks: Vec::new(),
                free_places: Vec::new(),
                at_hand: 0,
                next_lease_end: u64::MAX,
                seats: Vec::new(),
                free_seats: Vec::new(),
                waiters: VecDeque::new(),
                wakes_pending: 0,
                next_stale_look: 0,
                armed: None,
                leased_ahead: 0,
            })),
            started: Instant::now(),
            started_at: Utc::now(),
            capacity,
            deduplication_window,
            space: Notify::new(),
            ready_hint: AtomicBool::new(false),
            producers_waiting: AtomicUsize::new(0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn deduplication_window(&self) -> Duration {
        self.deduplication_window
    }

    /// The largest chunk a consumer leases ahead of need: small beside the capacity, so that a full queue stays full.
    pub(crate) fn chunk_max(&self) -> usize {
        (self.capacity / 16).clamp(1, BLOCK)
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing of the user's runs under the lock, payloads are dropped after it, and the state is whole between
        // statements.
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        let elapsed = Instant::now() - self.started;
        // Cheaper than `as_millis`, which is 128 bits wide, and enough for half a billion years.
        elapsed.as_secs().saturating_mul(1000) + u64::from(elapsed.subsec_millis())
    }

    pub(crate) fn instant(&self, time: u64) -> Instant {
        self.started + Duration::from_millis(time)
    }

    /// Wall-clock time that moves with tokio's clock.
    pub(crate) fn wall(&self, time: u64) -> DateTime<Utc> {
        self.started_at + Duration::from_millis(time)
    }

    /// When a wall-clock time comes, rounded up: never early.
    pub(crate) fn due(&self, at: DateTime<Utc>) -> u64 {
        let ahead = (at - Utc::now()).to_std().unwrap_or_default();
        let due = (Instant::now() - self.started) + ahead;
        u64::try_from(due.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Takes the message unless the queue is full.
    #[inline]
    pub(crate) fn try_send(&self, message: Message) -> Sent {
        // The clock is read only for what needs it.
        let now = message.broker_deduplication_id().map(|_| self.now());
        let mut state = self.lock();
        if let (Some(id), Some(now)) = (message.broker_deduplication_id(), now)
            && let Some(first) = state.dedup.seen(id, now)
        {
            drop(state);
            return Sent::Ok(first);
        }
        if state.len() >= self.capacity {
            return Sent::Full(message);
        }
        let id = state.push_new(message, now);
        self.wake_consumer(state);
        Sent::Ok(MessageId::from(id))
    }

    /// Takes messages off the front of `messages` until the queue is full.
    pub(crate) fn try_send_many(&self, messages: &mut std::vec::IntoIter<Message>, ids: &mut Vec<MessageId>) {
        let now = self.now();
        let mut duplicates = Vec::new();
        let mut state = self.lock();
        while state.len() < self.capacity {
            let Some(message) = messages.next() else { break };
            if let Some(first) = message.broker_deduplication_id().and_then(|id| state.dedup.seen(id, now)) {
                ids.push(first);
                duplicates.push(message);
            } else {
                ids.push(MessageId::from(state.push_new(message, Some(now))));
            }
        }
        self.wake_consumer(state);
        // After the lock: dropping a payload may run the user's code.
        drop(duplicates);
    }

    /// Takes the message for later unless the queue is full.
    pub(crate) fn try_schedule(&self, message: Message, due: u64) -> Sent {
        let now = self.now();
        let mut state = self.lock();
        if let Some(first) = message.broker_deduplication_id().and_then(|id| state.dedup.seen(id, now)) {
            drop(state);
            return Sent::Ok(first);
        }
        if state.len() >= self.capacity {
            return Sent::Full(message);
        }
        let id = if due <= now {
            state.push_new(message, Some(now))
        } else {
            let id = state.number(&message, Some(now));
            state.schedule.insert(due, Slot::new(message.into_stored(), id));
            id
        };
        self.wake_consumer(state);
        Sent::Ok(MessageId::from(id))
    }

    /// Waits until there may be space. Wakes are passed on by whoever finds more space than it needs.
    pub(crate) async fn space(&self) {
        let _waiting = Waiting::enter(&self.producers_waiting);
        let space = self.space.notified();
        // Looked at after the wait is announced, so that no wake is missed.
        if self.lock().len() < self.capacity {
            return;
        }
        // A producer that was woken and is not polled must not keep the others waiting for ever.
        drop(tokio::time::timeout(LOOK_AGAIN, space).await);
    }

    /// Tells a waiting producer that there may be space.
    #[inline]
    pub(crate) fn wake_producer(&self) {
        if self.producers_waiting.load(Ordering::SeqCst) > 0 {
            self.space.notify_one();
        }
    }

    /// Tells a waiting producer that there is space, once a quarter of the queue is free: waking it for each message
    /// costs more than the messages. It looks by itself before long.
    #[inline]
    pub(crate) fn wake_producer_for(&self, free: usize) {
        if free > self.capacity / 4 {
            self.wake_producer();
        }
    }

    /// How many more messages may wait.
    #[inline]
    pub(crate) fn free(&self, state: &State) -> usize {
        self.capacity.saturating_sub(state.len())
    }

    /// Releases the lock and wakes a waiting consumer if there is something for one: a message, or an earlier time to
    /// wake at.
    #[inline]
    pub(crate) fn wake_consumer(&self, mut state: MutexGuard<'_, State>) {
        self.ready_hint.store(state.ready > 0, Ordering::Relaxed);
        let waker = state.next_wake();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether a look at the queue is likely to find a message.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.ready_hint.load(Ordering::Relaxed)
    }

    /// Puts a message that was handed out back to the head of the queue.
    pub(crate) fn put_back(&self, slot: Slot) {
        let mut state = self.lock();
        state.push_front(slot);
        self.wake_consumer(state);
    }

    /// Keeps a failed message away until `due`.
    pub(crate) fn put_back_later(&self, slot: Slot, due: u64) {
        let mut state = self.lock();
        state.schedule.insert(due, slot);
        self.wake_consumer(state);
    }

    /// A lease now ends at `end`, perhaps earlier than it did.
    pub(crate) fn lease_ends(&self, end: u64) {
        let mut state = self.lock();
        state.next_lease_end = state.next_lease_end.min(end);
        self.wake_consumer(state);
    }

    /// Hands what a consumer leased and did not hand out back to the queue, in order.
    pub(crate) fn return_unread(&self, consumer: usize) {
        let mut state = self.lock();
        let chunks: Vec<_> =
            state.chunks.iter().flatten().filter(|chunk| chunk.consumer == consumer).cloned().collect();
        for chunk in chunks.iter().rev() {
            state.take_back(chunk);
        }
        self.wake_consumer(state);
        // After the lock: the last holder of a chunk drops payloads.
        drop(chunks);
    }
}

impl State {
    /// Messages that count against the capacity.
    fn len(&self) -> usize {
        self.ready + self.schedule.len()
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    /// Numbers a message and remembers its deduplication id.
    #[inline]
    fn number(&mut self, message: &Message, now: Option<u64>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if let (Some(dedup), Some(now)) = (message.broker_deduplication_id(), now) {
            self.dedup.remember(dedup, id, now);
        }
        id
    }

    #[inline]
    fn push_new(&mut self, message: Message, now: Option<u64>) -> u64 {
        let id = self.number(&message, now);
        self.push_back(Slot::new(message.into_stored(), id));
        id
    }

    #[inline]
    fn push_back(&mut self, slot: Slot) {
        self.ready += 1;
        let bytes = slot.message.payload().len();
        if self.tail_bytes + bytes <= BLOCK_BYTES
            && let Some(tail) = self.blocks.back_mut().filter(|tail| tail.len() < BLOCK)
        {
            self.tail_bytes += bytes;
            tail.push_back(slot);
            return;
        }
        let mut block = self.spares.pop().unwrap_or_else(|| Block::with_capacity(BLOCK));
        block.push_back(slot);
        self.tail_bytes = bytes;
        self.blocks.push_back(block);
    }

    fn push_front(&mut self, slot: Slot) {
        self.ready += 1;
        let is_small = |slot: &Slot| slot.message.payload().len() <= SMALL_BYTES;
        if is_small(&slot)
            && let Some(head) = self.blocks.front_mut().filter(|head| head.len() < BLOCK)
            && head.front().is_some_and(is_small)
        {
            if self.blocks.len() == 1 {
                self.tail_bytes += slot.message.payload().len();
            }
            if let Some(head) = self.blocks.front_mut() {
                head.push_front(slot);
            }
            return;
        }
        let mut block = self.spares.pop().unwrap_or_else(|| Block::with_capacity(BLOCK));
        if self.blocks.is_empty() {
            self.tail_bytes = slot.message.payload().len();
        }
        block.push_front(slot);
        self.blocks.push_front(block);
    }

    /// Puts what a consumer leased ahead and did not hand out back to the head of the queue, in order.
    fn take_back(&mut self, chunk: &Chunk) {
        let unread = chunk.take_unread();
        let count = unread.len();
        for index in unread.rev() {
            let slot = &chunk.slots[index];
            self.push_front(slot.again(slot.failures.clone()));
        }
        if chunk.close(count) {
            self.forget(chunk);
        }
    }

    /// Takes up to `max` messages off the head of the queue.
    pub(crate) fn take(&mut self, max: usize) -> Option<Block> {
        let head = self.blocks.front_mut()?;
        let block = if head.len() <= max {
            self.blocks.pop_front()?
        } else {
            let mut block = self.spares.pop().unwrap_or_else(|| Block::with_capacity(max.min(BLOCK)));
            block.extend(head.drain(..max));
            block
        };
        self.ready -= block.len();
        if self.blocks.is_empty() {
            self.tail_bytes = 0;
        }
        Some(block)
    }

    /// Keeps an empty block for reuse.
    pub(crate) fn recycle(&mut self, block: Block) {
        if self.spares.len() < SPARES {
            self.spares.push(block);
        }
    }

    /// The next time at which the queue changes by itself.
    pub(crate) fn next_look(&self) -> u64 {
        self.schedule.next_look().unwrap_or(u64::MAX).min(self.next_lease_end)
    }

    /// Does what is due: scheduled messages become ready, leases that ran out give their message back. How many did.
    pub(crate) fn advance(&mut self, queue: &Queue, now: u64) -> usize {
        let mut ended = 0;
        while let Some(slot) = self.schedule.pop_due(now) {
            self.push_back(slot);
        }
        if now >= self.next_lease_end {
            ended = self.end_leases(queue, now);
        }
        if self.leased_ahead > 0 && now >= self.next_stale_look {
            self.next_stale_look = now + STALE_LOOK_MS;
            for place in 0..self.chunks.len() {
                if let Some(chunk) = self.chunks[place].clone()
                    && chunk.is_stale(now)
                {
                    self.take_back(&chunk);
                }
            }
        }
        ended
    }

    fn end_leases(&mut self, queue: &Queue, now: u64) -> usize {
        self.next_lease_end = u64::MAX;
        let mut ended = Vec::new();
        for place in 0..self.chunks.len() {
            let Some(chunk) = self.chunks[place].clone() else { continue };
            let before = ended.len();
            let next = chunk.end_leases(now, |slot| {
                ended.push(slot.again(slot.failed(queue.wall(now))));
            });
            self.next_lease_end = self.next_lease_end.min(next);
            if chunk.close(ended.len() - before) {
                self.forget(&chunk);
            }
        }
        let count = ended.len();
        for slot in ended.into_iter().rev() {
            self.push_front(slot);
        }
        count
    }

    /// Finds the place that a new chunk will have.
    pub(crate) fn place(&mut self) -> usize {
        self.free_places.pop().unwrap_or_else(|| {
            self.chunks.push(None);
            self.chunks.len() - 1
        })
    }

    /// A lease that ends at `end` was given.
    pub(crate) fn lease_given(&mut self, end: u64) {
        self.next_lease_end = self.next_lease_end.min(end);
    }

    /// Keeps watch over a chunk that its consumer hands out from, and whose first lease ends at `end`.
    pub(crate) fn watch(&mut self, chunk: Arc<Chunk>, end: u64) {
        self.at_hand += 1;
        self.next_lease_end = self.next_lease_end.min(end);
        let place = chunk.place;
        self.chunks[place] = Some(chunk);
    }

    /// The consumer hands out from the chunk no more.
    pub(crate) fn leave(&mut self, chunk: &Chunk) {
        self.at_hand -= 1;
        if chunk.close(1) {
            self.forget(chunk);
        }
    }

    /// Nothing of the chunk is left to settle.
    pub(crate) fn forget(&mut self, chunk: &Chunk) {
        self.chunks[chunk.place] = None;
        self.free_places.push(chunk.place);
    }

    /// A chunk of any consumer from which a message can still be handed out.
    pub(crate) fn unread_chunk(&self) -> Option<&Arc<Chunk>> {
        if self.leased_ahead == 0 {
            return None;
        }
        self.chunks.iter().flatten().find(|chunk| chunk.has_unread())
    }

    /// A place to wait, for the life of a consumer.
    pub(crate) fn take_seat(&mut self) -> usize {
        self.free_seats.pop().unwrap_or_else(|| {
            self.seats.push(Seat::default());
            self.seats.len() - 1
        })
    }

    /// The consumer is gone; the waker it left, to be dropped after the lock.
    pub(crate) fn free_seat(&mut self, seat: usize) -> Option<Waker> {
        self.free_seats.push(seat);
        std::mem::take(&mut self.seats[seat]).waker
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// The consumer waits from now on; tells when it has to wake by itself, if it is for it to watch the clock.
    pub(crate) fn wait(&mut self, seat: usize, waker: &Waker) -> Option<u64> {
        match &mut self.seats[seat].waker {
            Some(registered) => registered.clone_from(waker),
            registered => *registered = Some(waker.clone()),
        }
        self.seats[seat].queued = true;
        self.waiters.push_back(seat);
        let at = self.next_look();
        let earlier = at < self.armed.as_ref().map_or(u64::MAX, |armed| armed.at);
        earlier.then(|| {
            self.armed = Some(Armed { at, seat });
            at
        })
    }

    /// The consumer waits no longer: it was woken, or its time came, or it gave up.
    pub(crate) fn stop_waiting(&mut self, seat: usize) {
        if std::mem::take(&mut self.seats[seat].queued) {
            self.waiters.retain(|waiter| *waiter != seat);
        } else {
            self.wakes_pending = self.wakes_pending.saturating_sub(1);
        }
        if self.armed.as_ref().is_some_and(|armed| armed.seat == seat) {
            self.armed = None;
        }
    }

    /// The waker of the consumer that has to look now.
    #[inline]
    fn next_wake(&mut self) -> Option<Waker> {
        // A few at a time: whoever looks wakes the next. One alone would not do, since it may not get to run.
        if self.waiters.is_empty() || self.wakes_pending > self.ready / WAKE_STEP {
            return None;
        }
        let armed = self.armed.as_ref().map_or(u64::MAX, |armed| armed.at);
        if self.ready == 0 && self.next_look() >= armed {
            return None;
        }
        let seat = self.waiters.pop_front()?;
        self.seats[seat].queued = false;
        self.wakes_pending += 1;
        self.seats[seat].waker.take()
    }
}
