use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use buqueue_core::driver::{Closer, Consumer, Received};
use buqueue_core::{QueueFuture, Result};
use tokio::time::{Sleep, sleep_until};

use crate::lease::{Chunk, millis_up};
use crate::queue::{Block, Queue, State, Waiting};

/// Receives from one in-memory queue.
pub struct MemoryConsumer {
    queue: Arc<Queue>,
    id: u64,
    lease_ms: u64,
    /// What this consumer hands out from.
    current: Option<Arc<Chunk>>,
    /// Whether `current` had messages left when it was last looked at under the lock; the queue counts these.
    ahead: bool,
    /// Whether this consumer is among those that the queue counts as waiting.
    waiting: bool,
    /// An empty block, to be given back to the queue under the next lock.
    spare: Option<Block>,
    timer: Option<Pin<Box<Sleep>>>,
    closed: Arc<Closed>,
}

#[derive(Debug)]
struct Closed {
    queue: Arc<Queue>,
    consumer: u64,
    flag: AtomicBool,
}

impl MemoryConsumer {
    pub(crate) fn new(queue: Arc<Queue>, lease: Duration) -> Self {
        let id = queue.new_consumer();
        let closed =
            Arc::new(Closed { queue: Arc::clone(&queue), consumer: id, flag: AtomicBool::new(false) });
        Self {
            queue,
            id,
            lease_ms: millis_up(lease),
            current: None,
            ahead: false,
            waiting: false,
            spare: None,
            timer: None,
            closed,
        }
    }

    /// Hands out from the chunk at hand.
    fn take_current(&self, max: usize, now: u64, out: &mut Vec<Received>) {
        let Some(chunk) = &self.current else { return };
        while out.len() < max
            && let Some(received) = chunk.hand_out(now)
        {
            out.push(received);
        }
    }

    /// Hands out from the queue, once the chunk at hand is used up. Where there is nothing, tells when to look
    /// again, if it is for this consumer to watch the clock. `woken`: a wake brought us here.
    fn take_from_queue(&mut self, max: usize, now: u64, out: &mut Vec<Received>, woken: bool) -> Option<u64> {
        let queue = Arc::clone(&self.queue);
        let mut state = queue.lock();
        if woken {
            state.wake_taken();
        }
        if let Some(spare) = self.spare.take() {
            state.recycle(spare);
        }
        if self.is_closed() {
            // The wake, if there was one, is another consumer's.
            queue.wake_consumer(state);
            return None;
        }
        state.advance(&queue, now);
        while out.len() < max && state.ready() > 0 {
            // Ahead of need only while nobody else waits; else a fair share.
            let waiting =
                queue.consumers_waiting.load(Ordering::Relaxed).saturating_sub(usize::from(self.waiting));
            let need = max - out.len();
            let want = if waiting == 0 {
                need.max(queue.chunk_max())
            } else {
                need.min((state.ready() / (waiting + 1)).max(1))
            };
            let Some(block) = state.take(want) else { break };
            self.leave_current(&mut state);
            let place = state.place();
            let chunk = self.renew(block, place);
            state.watch(Arc::clone(&chunk), now.saturating_add(self.lease_ms));
            self.take_current(max, now, out);
            self.ahead = chunk.has_unread();
            state.leased_ahead += usize::from(self.ahead);
            if waiting > 0 {
                break;
            }
        }
        if out.is_empty() {
            // The queue is empty, but another consumer may have leased ahead.
            while out.len() < max
                && let Some(received) = state.unread_chunk().and_then(|chunk| chunk.hand_out(now))
            {
                out.push(received);
            }
        }
        let alarm = if out.is_empty() { queue.arm(&state) } else { None };
        queue.wake_consumer(state);
        if !out.is_empty() {
            queue.wake_producer();
        }
        alarm
    }

    /// Nothing more is handed out from the chunk at hand; it lives on in its deliveries.
    fn leave_current(&mut self, state: &mut State) {
        if std::mem::take(&mut self.ahead) {
            state.leased_ahead -= 1;
        }
        if let Some(chunk) = &self.current
            && chunk.close(1)
        {
            state.forget(chunk);
        }
    }

    /// A chunk for the block: the last one again if all its deliveries are gone, else a new one.
    fn renew(&mut self, block: Block, place: usize) -> Arc<Chunk> {
        if let Some(mut chunk) = self.current.take()
            && let Some(unique) = Arc::get_mut(&mut chunk)
        {
            let mut settled = unique.renew(block, place);
            settled.clear();
            self.spare = Some(settled);
            self.current = Some(Arc::clone(&chunk));
            return chunk;
        }
        let chunk = Arc::new(Chunk::new(Arc::clone(&self.queue), block, place, self.id, self.lease_ms));
        self.current = Some(Arc::clone(&chunk));
        chunk
    }

    /// Waits for a wake until `at`; tells whether it was a wake.
    ///
    /// The timer stays set across calls: waking too early costs one look, setting it costs more than a message.
    async fn woken_before(&mut self, at: u64) -> bool {
        let at = self.queue.instant(at);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.is_elapsed() || timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        let mut woken = pin!(self.queue.woken());
        poll_fn(|context| {
            if woken.as_mut().poll(context).is_ready() {
                return Poll::Ready(true);
            }
            timer.as_mut().poll(context).map(|()| false)
        })
        .await
    }

    fn is_closed(&self) -> bool {
        self.closed.flag.load(Ordering::Relaxed)
    }
}

impl Consumer for MemoryConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        let unread = self.current.as_ref().is_some_and(|chunk| chunk.has_unread());
        if unread || self.queue.is_ready() {
            let now = self.queue.now();
            self.take_current(max.get(), now, out);
            if out.len() < max.get() {
                self.take_from_queue(max.get(), now, out, false);
            }
        }
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let max = max.get();
        let queue = Arc::clone(&self.queue);
        let mut now = queue.now();
        let give_up = now.saturating_add(millis_up(wait));
        let mut woken = false;
        loop {
            let _waiting = Waiting::enter(&queue.consumers_waiting);
            self.waiting = true;
            self.take_current(max, now, out);
            // Looked at after the wait is announced, so that no wake is missed.
            let alarm = self.take_from_queue(max, now, out, woken);
            self.waiting = false;
            let alarm = Alarm { queue: &queue, at: alarm };
            if !out.is_empty() || self.is_closed() || now >= give_up {
                return Ok(());
            }
            woken = self.woken_before(alarm.at.unwrap_or(give_up).min(give_up)).await;
            drop(alarm);
            now = queue.now();
        }
    }

    fn closer(&self) -> Arc<dyn Closer> {
        Arc::clone(&self.closed) as _
    }
}

impl Closer for Closed {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        self.flag.store(true, Ordering::Relaxed);
        self.queue.return_unread(self.consumer);
        QueueFuture::ready(Ok(()))
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.closed.flag.store(true, Ordering::Relaxed);
        self.queue.return_unread(self.id);
        let queue = Arc::clone(&self.queue);
        self.leave_current(&mut queue.lock());
    }
}

/// One waiting consumer's promise to wake when the queue next changes by itself. One promise is enough for all, so
/// a thousand waiting consumers do not wake together for one schedule.
struct Alarm<'a> {
    queue: &'a Queue,
    at: Option<u64>,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.queue.disarm(at);
        }
    }
}

impl fmt::Debug for MemoryConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConsumer").field("queue", &self.queue).finish_non_exhaustive()
    }
}
