//! What a task that reads from a broker hands to the consumer that it reads for.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::{BuqueueError, Result};

/// How long a prompt look may take when the broker does not answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// A buffer between a reader task and the one consumer it reads for: messages go one way, and what is wanted goes the
/// other. That is what makes `fetch` cancel-safe: a dropped call leaves what came in the buffer.
///
/// The reader bounds what it puts in by what the [`Wishes`] say.
pub struct Mailbox<T> {
    state: Mutex<State<T>>,
    /// For the reader: somebody wants something else than before.
    wanted: Notify,
    /// For the consumer: something came, or happened.
    arrived: Notify,
    finished: watch::Sender<bool>,
}

struct State<T> {
    ready: VecDeque<T>,
    failure: Option<BuqueueError>,
    wishes: Wishes,
}

/// What is wanted of the reader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wishes {
    /// Messages that wait to be taken.
    pub ready: usize,
    /// How many messages a call waits for; zero when nobody does.
    pub demand: usize,
    /// When somebody last ceased to wait.
    pub demand_ended: Option<Instant>,
    /// The number of prompt looks asked for so far.
    pub looks: u64,
    /// How many of them are answered.
    pub looked: u64,
    /// The last call is such a look: when that is answered, it waits for nothing more.
    pub call_looks: bool,
    /// Calls so far: what failed for one may be tried again for the next.
    pub calls: u64,
    /// Nothing more is wanted.
    pub closed: bool,
    /// When messages were last taken.
    pub last_take: Option<Instant>,
    /// Messages taken so far.
    pub taken: u64,
}

impl Wishes {
    /// Whether a prompt look waits for its answer.
    #[must_use]
    pub fn is_looking(&self) -> bool {
        self.looks > self.looked
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        let state = State { ready: VecDeque::new(), failure: None, wishes: Wishes::default() };
        let (finished, _) = watch::channel(false);
        Self { state: Mutex::new(state), wanted: Notify::new(), arrived: Notify::new(), finished }
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("wishes", &self.wishes()).finish_non_exhaustive()
    }
}

/// The consumer's side.
impl<T> Mailbox<T> {
    /// Takes up to `max` of what is ready, as long as the first is `fresh` now; tells how many.
    pub fn take(&self, max: usize, fresh: impl Fn(&T, Instant) -> bool, out: &mut Vec<T>) -> usize {
        let mut state = self.lock();
        if state.wishes.closed || state.ready.is_empty() {
            return 0;
        }
        let now = Instant::now();
        let count = state.ready.iter().take(max).take_while(|item| fresh(item, now)).count();
        if count > 0 {
            out.extend(state.ready.drain(..count));
            state.wishes.last_take = Some(now);
            // Who waited has something now.
            state.wishes.demand = 0;
            state.wishes.taken += u64::try_from(count).unwrap_or(u64::MAX);
            drop(state);
            self.wanted.notify_one();
        }
        count
    }

    /// Waits until there is something, for about `wait`; not at all, but for one look at the broker, when that is zero.
    ///
    /// Cancel-safe: a dropped call takes nothing.
    ///
    /// # Errors
    /// What the reader reported with [`fail`](Self::fail).
    pub async fn fetch(
        &self,
        max: usize,
        wait: Duration,
        fresh: impl Fn(&T, Instant) -> bool,
        out: &mut Vec<T>,
    ) -> Result<()> {
        if self.take(max, &fresh, out) > 0 {
            return Ok(());
        }
        let demand = self.demand(max, wait.is_zero());
        let deadline = Instant::now() + if wait.is_zero() { LOOK_TIMEOUT } else { wait };
        loop {
            // The end first: what comes in after it is for the next call.
            let over = demand.is_over();
            if self.take(max, &fresh, out) > 0 {
                return Ok(());
            }
            let failure = self.lock().failure.take();
            match failure {
                Some(failure) => return Err(failure),
                None if over => return Ok(()),
                None => {}
            }
            if timeout_at(deadline, self.arrived.notified()).await.is_err() {
                self.take(max, &fresh, out);
                return Ok(());
            }
        }
    }

    /// Ends it; the reader gives back what is left and then says [`finish`](Self::finish).
    pub fn close(&self) {
        self.lock().wishes.closed = true;
        self.wanted.notify_one();
        self.arrived.notify_one();
    }

    /// Waits until the reader is done.
    pub async fn finished(&self) {
        let mut finished = self.finished.subscribe();
        // The sender is here: it cannot be gone.
        let _always_ok = finished.wait_for(|finished| *finished).await.is_ok();
    }

    fn demand(&self, max: usize, look: bool) -> Demand<'_, T> {
        let mut state = self.lock();
        state.failure = None;
        let wishes = &mut state.wishes;
        wishes.calls += 1;
        wishes.demand = max;
        wishes.looks += u64::from(look);
        wishes.call_looks = look;
        let look = look.then_some(wishes.looks);
        drop(state);
        self.wanted.notify_one();
        Demand { mailbox: self, look }
    }
}

/// The reader's side.
impl<T> Mailbox<T> {
    /// What is wanted now.
    #[must_use]
    pub fn wishes(&self) -> Wishes {
        let state = self.lock();
        Wishes { ready: state.ready.len(), ..state.wishes }
    }

    /// Waits until something else may be wanted than before.
    pub async fn changed(&self) {
        self.wanted.notified().await;
    }

    /// Hands a message over.
    pub fn push(&self, item: T) {
        self.lock().ready.push_back(item);
        self.arrived.notify_one();
    }

    /// Hands several messages over.
    pub fn push_all(&self, items: impl IntoIterator<Item = T>) {
        self.lock().ready.extend(items);
        self.arrived.notify_one();
    }

    /// Answers all looks up to this number.
    pub fn answer(&self, looks: u64) {
        let mut state = self.lock();
        state.wishes.looked = state.wishes.looked.max(looks);
        drop(state);
        self.arrived.notify_one();
    }

    /// Reports a failure to who waits; the number of the call is [`Wishes::calls`].
    pub fn fail(&self, error: BuqueueError) {
        self.lock().failure = Some(error);
        self.arrived.notify_one();
    }

    /// Takes back what is ready, as long as the first is one of those.
    pub fn take_back(&self, which: impl Fn(&T) -> bool) -> Vec<T> {
        let mut state = self.lock();
        let count = state.ready.iter().take_while(|item| which(item)).count();
        state.ready.drain(..count).collect()
    }

    /// Takes back all that are one of those, wherever they stand.
    pub fn take_out(&self, which: impl Fn(&T) -> bool) -> Vec<T> {
        let mut state = self.lock();
        let (out, rest) = state.ready.drain(..).partition(|item| which(item));
        state.ready = rest;
        out.into()
    }

    /// Looks at the first that is ready.
    pub fn first<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.lock().ready.front().map(look)
    }

    /// The reader is done, and everything given back.
    pub fn finish(&self) {
        self.finished.send_replace(true);
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The closures that run under this lock do not panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits, until this is dropped.
struct Demand<'a, T> {
    mailbox: &'a Mailbox<T>,
    look: Option<u64>,
}

impl<T> Demand<'_, T> {
    /// Whether there is nothing more to wait for.
    fn is_over(&self) -> bool {
        let state = self.mailbox.lock();
        state.wishes.closed || self.look.is_some_and(|look| state.wishes.looked >= look)
    }
}

impl<T> Drop for Demand<'_, T> {
    fn drop(&mut self) {
        let mut state = self.mailbox.lock();
        state.wishes.demand = 0;
        state.wishes.demand_ended = Some(Instant::now());
        drop(state);
        self.mailbox.wanted.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ErrorKind;

    const ANY: fn(&u32, Instant) -> bool = |_, _| true;

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_takes_nothing() {
        let mailbox = Arc::new(Mailbox::default());
        let mut out = Vec::new();
        let fetching = mailbox.fetch(1, Duration::from_secs(5), ANY, &mut out);
        assert!(tokio::time::timeout(Duration::from_secs(1), fetching).await.is_err());
        assert_eq!(mailbox.wishes().demand, 0);
        mailbox.push(7);
        mailbox.fetch(1, Duration::from_secs(5), ANY, &mut out).await.unwrap();
        assert_eq!(out, [7]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_ends_with_its_answer() {
        let mailbox = Arc::new(Mailbox::<u32>::default());
        let reader = Arc::clone(&mailbox);
        let answering = tokio::spawn(async move {
            while !reader.wishes().is_looking() {
                reader.changed().await;
            }
            reader.answer(reader.wishes().looks);
        });
        let mut out = Vec::new();
        let before = Instant::now();
        mailbox.fetch(1, Duration::ZERO, ANY, &mut out).await.unwrap();
        assert!(out.is_empty() && before.elapsed() < LOOK_TIMEOUT);
        answering.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_reaches_who_waits_and_nobody_later() {
        let mailbox = Arc::new(Mailbox::<u32>::default());
        mailbox.fail(BuqueueError::new(ErrorKind::ConnectionLost, "before"));
        let mut out = Vec::new();
        mailbox.fetch(1, Duration::from_millis(10), ANY, &mut out).await.unwrap();
        let reader = Arc::clone(&mailbox);
        tokio::spawn(async move { reader.fail(BuqueueError::new(ErrorKind::ConnectionLost, "now")) });
        let error = mailbox.fetch(1, Duration::from_secs(5), ANY, &mut out).await.unwrap_err();
        assert_eq!(error.message(), "now");
    }

    #[tokio::test(start_paused = true)]
    async fn closing_wakes_who_waits() {
        let mailbox = Arc::new(Mailbox::default());
        mailbox.push(1);
        let closer = Arc::clone(&mailbox);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            closer.close();
        });
        let mut out = Vec::new();
        mailbox.fetch(1, Duration::from_secs(60), |_, _| false, &mut out).await.unwrap();
        assert!(out.is_empty());
        assert_eq!(mailbox.take_back(|_| true), [1]);
        mailbox.finish();
        mailbox.finished().await;
    }
}
