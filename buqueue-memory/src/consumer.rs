use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend as _, Consumer, Control, Received};
use buqueue_core::{QueueFuture, QueueStats, Result};
use tokio::runtime::{self, Handle};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::MemoryBackend;
use crate::lease::{Chunk, lease_end, millis_up};
use crate::queue::{BLOCK_BYTES, LOOK_AGAIN, Queue, State};
use crate::slot::Block;

/// Receives from one in-memory queue.
pub struct MemoryConsumer {
    queue: Arc<Queue>,
    hand: Hand,
    alarm: Option<Alarm>,
    closed: Arc<Closed>,
}

/// What a consumer holds and hands out from.
struct Hand {
    /// Where this consumer waits; also tells its chunks from those of others.
    seat: usize,
    lease_ms: u64,
    current: Option<Arc<Chunk>>,
    /// Whether `current` had messages left when it was last looked at under the lock; the queue counts these.
    ahead: bool,
    /// An empty block, to be given back to the queue under the next lock.
    spare: Option<Block>,
    /// Leases that were found to have run out, to be told of after the lock.
    reclaimed: usize,
    /// To be dropped after the lock: a payload's drop may run the user's code.
    garbage: Garbage,
}

#[derive(Default)]
struct Garbage {
    blocks: Vec<Block>,
    chunks: Vec<Arc<Chunk>>,
}

#[derive(Debug)]
struct Closed {
    queue: Arc<Queue>,
    seat: usize,
    flag: AtomicBool,
}

impl MemoryConsumer {
    pub(crate) fn new(queue: Arc<Queue>, lease: Duration) -> Self {
        let seat = queue.lock().take_seat();
        let closed = Arc::new(Closed { queue: Arc::clone(&queue), seat, flag: AtomicBool::new(false) });
        let hand = Hand {
            seat,
            lease_ms: millis_up(lease),
            current: None,
            ahead: false,
            spare: None,
            reclaimed: 0,
            garbage: Garbage::default(),
        };
        Self { queue, hand, alarm: None, closed }
    }
}

impl Hand {
    #[inline]
    fn has_unread(&self) -> bool {
        self.current.as_ref().is_some_and(|chunk| chunk.has_unread())
    }

    /// Hands out from the chunk at hand.
    #[inline]
    fn take_current(&self, max: usize, now: u64, out: &mut Vec<Received>) {
        let Some(chunk) = &self.current else { return };
        while out.len() < max
            && let Some(received) = chunk.hand_out(now, self.lease_ms)
        {
            out.push(received);
        }
    }

    /// Hands out from the queue, once the chunk at hand is used up.
    fn take_from_queue(
        &mut self,
        queue: &Arc<Queue>,
        state: &mut State,
        max: usize,
        now: u64,
        out: &mut Vec<Received>,
    ) {
        if let Some(spare) = self.spare.take() {
            state.recycle(spare);
        }
        self.reclaimed += state.advance(queue, now);
        while out.len() < max && state.ready() > 0 {
            // Ahead of need only while nobody else waits; else a fair share.
            let waiting = state.waiting();
            let need = max - out.len();
            let want = if waiting == 0 {
                need.max(queue.chunk_max())
            } else {
                need.min((state.ready() / (waiting + 1)).max(1))
            };
            let Some(block) = state.take(want) else { break };
            self.leave_current(state);
            self.renew(queue, block);
            let place = state.place();
            if let Some(chunk) = &mut self.current {
                // Unique: nobody has seen it yet.
                if let Some(unique) = Arc::get_mut(chunk) {
                    unique.take_place(place, now);
                }
                state.watch(Arc::clone(chunk), lease_end(now, self.lease_ms));
            }
            self.take_current(max, now, out);
            self.ahead = self.has_unread();
            state.leased_ahead += usize::from(self.ahead);
            if waiting > 0 {
                break;
            }
        }
        if out.is_empty() {
            // The queue is empty, but another consumer may have leased ahead.
            while out.len() < max
                && let Some(received) =
                    state.unread_chunk().and_then(|chunk| chunk.hand_out(now, self.lease_ms))
            {
                out.push(received);
            }
            if !out.is_empty() {
                state.lease_given(lease_end(now, self.lease_ms));
            }
        }
    }

    /// Nothing more is handed out from the chunk at hand; it lives on in its deliveries.
    fn leave_current(&mut self, state: &mut State) {
        if std::mem::take(&mut self.ahead) {
            state.leased_ahead -= 1;
        }
        if let Some(chunk) = &self.current {
            state.leave(chunk);
        }
    }

    /// Makes the block the chunk at hand: in the last one again if all its deliveries are gone, else in a new one.
    fn renew(&mut self, queue: &Arc<Queue>, block: Block) {
        if let Some(unique) = self.current.as_mut().and_then(Arc::get_mut) {
            self.garbage.blocks.push(unique.renew(block));
        } else {
            let chunk = Chunk::new(Arc::clone(queue), block, self.seat, self.lease_ms);
            self.garbage.chunks.extend(self.current.replace(Arc::new(chunk)));
        }
    }

    /// Lets go of a chunk that is used up and large, rather than keep its payloads while waiting.
    fn let_go(&mut self, state: &mut State) {
        if self.current.as_ref().is_some_and(|chunk| chunk.bytes > BLOCK_BYTES && !chunk.has_unread()) {
            self.leave_current(state);
            self.garbage.chunks.extend(self.current.take());
        }
    }

    /// Drops what was put aside, and tells what was found; without the lock.
    fn sweep(&mut self, queue: &Queue) {
        let reclaimed = std::mem::take(&mut self.reclaimed);
        if reclaimed > 0 {
            driver::tell(MemoryBackend::NAME, queue.name(), Activity::Reclaimed(reclaimed));
        }
        for mut block in self.garbage.blocks.drain(..) {
            block.clear();
            self.spare = Some(block);
        }
        self.garbage.chunks.clear();
    }
}

impl Consumer for MemoryConsumer {
    #[inline]
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        let max = max.get();
        if !self.hand.has_unread() && !self.queue.is_ready() {
            return Ok(());
        }
        let now = self.queue.now();
        self.hand.take_current(max, now, out);
        if out.len() < max {
            let mut state = self.queue.lock();
            if !self.closed.is_set() {
                self.hand.take_from_queue(&self.queue, &mut state, max, now, out);
            }
            let free = self.queue.free(&state);
            self.queue.wake_consumer(state);
            self.queue.wake_producer_for(free);
            self.hand.sweep(&self.queue);
        }
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let mut turn = Turn { consumer: self, waiting: false, wait, give_up: None };
        poll_fn(|context| turn.poll(context, max.get(), out)).await;
        Ok(())
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.closed) as _
    }
}

/// One fetch. However it ends, the consumer's seat is free of it, and a wake it did not use goes to the next.
struct Turn<'a> {
    consumer: &'a mut MemoryConsumer,
    waiting: bool,
    wait: Duration,
    give_up: Option<u64>,
}

impl Turn<'_> {
    fn poll(&mut self, context: &mut Context<'_>, max: usize, out: &mut Vec<Received>) -> Poll<()> {
        let MemoryConsumer { queue, hand, alarm, closed } = &mut *self.consumer;
        loop {
            let now = queue.now();
            let give_up = *self.give_up.get_or_insert_with(|| now.saturating_add(millis_up(self.wait)));
            let mut state = queue.lock();
            if std::mem::take(&mut self.waiting) {
                state.stop_waiting(hand.seat);
            }
            let closed = closed.is_set();
            if !closed {
                hand.take_current(max, now, out);
                hand.take_from_queue(queue, &mut state, max, now, out);
            }
            if !out.is_empty() || closed || now >= give_up {
                let free = queue.free(&state);
                queue.wake_consumer(state);
                queue.wake_producer_for(free);
                hand.sweep(queue);
                return Poll::Ready(());
            }
            hand.let_go(&mut state);
            let watch = state.wait(hand.seat, context.waker());
            self.waiting = true;
            queue.wake_consumer(state);
            hand.sweep(queue);
            let again = now.saturating_add(millis_up(LOOK_AGAIN));
            let at = queue.instant(watch.unwrap_or(again).min(again).min(give_up));
            if Alarm::poll(alarm, at, context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.waiting {
            let queue = &self.consumer.queue;
            let mut state = queue.lock();
            state.stop_waiting(self.consumer.hand.seat);
            queue.wake_consumer(state);
        }
    }
}

/// A timer that stays set across fetches: waking too early costs one look, setting it costs more than a message.
struct Alarm {
    timer: Pin<Box<Sleep>>,
    /// Whom the timer wakes.
    waker: Waker,
    /// Whose timer it is: a consumer may move to another runtime.
    runtime: runtime::Id,
}

impl Alarm {
    /// Ready when `at` has come.
    fn poll(alarm: &mut Option<Self>, at: Instant, context: &mut Context<'_>) -> Poll<()> {
        let runtime = Handle::current().id();
        if let Some(alarm) = alarm.as_mut().filter(|alarm| alarm.runtime == runtime) {
            if alarm.timer.is_elapsed() || alarm.timer.deadline() > at {
                alarm.timer.as_mut().reset(at);
            } else if alarm.waker.will_wake(context.waker()) {
                return Poll::Pending;
            }
            alarm.waker.clone_from(context.waker());
            return poll_timer(alarm.timer.as_mut(), context);
        }
        let mut timer = Box::pin(sleep_until(at));
        let outcome = poll_timer(timer.as_mut(), context);
        *alarm = Some(Self { timer, waker: context.waker().clone(), runtime });
        outcome
    }
}

/// Outside tokio's budget for a task: with the budget used up a timer would not note whom to wake.
fn poll_timer(timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(timer)).poll(context)
}

impl Closed {
    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Once: afterwards the seat may be another consumer's.
    fn close_now(&self) {
        if !self.flag.swap(true, Ordering::Relaxed) {
            self.queue.return_unread(self.seat);
        }
    }
}

impl Control for Closed {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        self.close_now();
        QueueFuture::ready(Ok(()))
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        QueueFuture::ready(Ok(self.queue.stats()))
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.closed.close_now();
        let mut state = self.queue.lock();
        self.hand.leave_current(&mut state);
        let waker = state.free_seat(self.hand.seat);
        drop(state);
        // After the lock: a waker may hold its task, and the task anything.
        drop(waker);
    }
}

impl fmt::Debug for MemoryConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConsumer").field("queue", &self.queue).finish_non_exhaustive()
    }
}
