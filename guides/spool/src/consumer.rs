use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend, Consumer, Control, Received};
use buqueue_core::{Backoff, QueueFuture, QueueStats, Result};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::error::blocking;
use crate::lease::SpoolLease;
use crate::spool::{Entry, Spool};
use crate::{SpoolBackend, SpoolConfig};

/// How many names are remembered of one look, and how many messages one look takes.
const LOOK_MAX: usize = 500;

/// With so many bytes in the hand, a look takes no more.
const HAND_BYTES: usize = 16 << 20;

/// How long what is taken first waits for more.
const GATHER_MAX: Duration = Duration::from_millis(100);

/// How soon a waiting consumer looks again; from then on more and more rarely.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Receives from one queue.
#[derive(Debug)]
pub struct SpoolConsumer {
    hand: Arc<Hand>,
    poll_interval: Duration,
}

impl SpoolConsumer {
    pub(crate) fn new(spool: Arc<Spool>, config: &SpoolConfig) -> Self {
        let hand = Hand { spool, lease: config.lease, inside: Mutex::default() };
        Self { hand: Arc::new(hand), poll_interval: config.poll_interval }
    }
}

impl Consumer for SpoolConsumer {
    fn fetch_ready(&mut self, max: NonZeroUsize, out: &mut Vec<Received>) -> Result<()> {
        self.hand.hand_out(max.get(), out);
        Ok(())
    }

    async fn fetch(&mut self, max: NonZeroUsize, wait: Duration, out: &mut Vec<Received>) -> Result<()> {
        let deadline = Instant::now() + wait;
        let mut pauses = Backoff::new(FIRST_PAUSE, self.poll_interval);
        loop {
            let hand = Arc::clone(&self.hand);
            // Dropped here, the look goes on, and what it takes stays in the hand for the next fetch.
            let found = blocking(move || hand.look(max.get())).await?;
            self.hand.hand_out(max.get(), out);
            let left = deadline.saturating_duration_since(Instant::now());
            if !out.is_empty() || (!found && left.is_zero()) {
                return Ok(());
            }
            sleep(pauses.next_delay().min(left)).await;
        }
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(SpoolControl { hand: Arc::clone(&self.hand) })
    }
}

/// What a consumer shares with the looks that it has begun, and with its control.
#[derive(Debug)]
struct Hand {
    spool: Arc<Spool>,
    lease: Duration,
    /// Held while a look is under way, and so never waited for outside a blocking thread.
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    closed: bool,
    /// Messages that could be taken when the names were last read.
    visible: BTreeSet<Entry>,
    /// Taken, and not yet handed out.
    taken: VecDeque<SpoolLease>,
}

impl Hand {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `max` messages into the hand, unless there are some; tells whether there are some now.
    fn look(&self, max: usize) -> Result<bool> {
        let mut reclaimed = 0;
        let outcome = self.take(max.min(LOOK_MAX), &mut reclaimed);
        if reclaimed > 0 {
            driver::tell(SpoolBackend::NAME, &self.spool.queue, Activity::Reclaimed(reclaimed));
        }
        outcome
    }

    fn take(&self, max: usize, reclaimed: &mut usize) -> Result<bool> {
        let mut inside = self.lock();
        while inside.taken.front().is_some_and(|lease| !lease.is_fresh())
            && let Some(lease) = inside.taken.pop_front()
        {
            // It comes before what is visible here.
            inside.visible.clear();
            lease.give_back()?;
        }
        // What was taken first waits for the rest, and its lease runs.
        let enough = Instant::now() + GATHER_MAX.min(self.lease / 10);
        let mut bytes: usize = inside.taken.iter().map(SpoolLease::size).sum();
        while !inside.closed
            && inside.taken.len() < max
            && (inside.taken.is_empty() || (bytes < HAND_BYTES && Instant::now() < enough))
        {
            if inside.visible.is_empty() && inside.taken.is_empty() {
                inside.visible = self.spool.visible(LOOK_MAX)?;
            }
            let Some(entry) = inside.visible.pop_first() else { break };
            if let Some(lease) = SpoolLease::take(&self.spool, &entry, self.lease)? {
                *reclaimed += usize::from(entry.state.leased_until > 0);
                bytes += lease.size();
                inside.taken.push_back(lease);
            }
        }
        Ok(!inside.taken.is_empty())
    }

    /// Hands out what is in the hand. Not while a look is under way: what that takes is there for the next call.
    fn hand_out(&self, max: usize, out: &mut Vec<Received>) {
        let mut inside = match self.inside.try_lock() {
            Ok(inside) => inside,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // One may have lain here longer than its lease, after a fetch that was dropped. The next look gives it back.
        while out.len() < max
            && inside.taken.front().is_some_and(SpoolLease::is_fresh)
            && let Some(lease) = inside.taken.pop_front()
        {
            out.push(lease.into_received());
        }
    }

    fn close(&self) -> Result<()> {
        let mut inside = self.lock();
        inside.closed = true;
        inside.visible.clear();
        let mut first_failure = Ok(());
        for lease in inside.taken.drain(..) {
            first_failure = first_failure.and(lease.give_back());
        }
        first_failure
    }
}

#[derive(Debug)]
struct SpoolControl {
    hand: Arc<Hand>,
}

impl Control for SpoolControl {
    fn close(&self) -> QueueFuture<'_, Result<()>> {
        let hand = Arc::clone(&self.hand);
        QueueFuture::pending(blocking(move || hand.close()))
    }

    fn queue_stats(&self) -> QueueFuture<'_, Result<QueueStats>> {
        let spool = Arc::clone(&self.hand.spool);
        QueueFuture::pending(blocking(move || spool.stats()))
    }
}

/// What is in the hand goes back at once where there is a runtime, else when its lease ends.
impl Drop for SpoolConsumer {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let hand = Arc::clone(&self.hand);
        drop(runtime.spawn_blocking(move || {
            hand.close().unwrap_or_else(|error| hand.spool.complain(&error));
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, thread};

    use buqueue_core::unique_id;

    use super::*;

    /// A directory of its own, and a hand on its queue, in which there are messages.
    fn hand(lease: Duration, messages: &[&[u8]]) -> (SpoolConfig, Hand) {
        let directory = env::temp_dir().join(unique_id());
        fs::create_dir(&directory).unwrap();
        let config = SpoolConfig { directory, queue: "orders".to_owned(), lease, ..SpoolConfig::default() };
        let spool = Arc::new(Spool::open(&config).unwrap());
        for content in messages {
            spool.submit(&spool.draft(content).unwrap(), 0).unwrap();
        }
        thread::sleep(Duration::from_millis(1));
        (config, Hand { spool, lease, inside: Mutex::default() })
    }

    /// The payload and the count of each.
    fn handed_out(hand: &Hand) -> Vec<(Vec<u8>, u32)> {
        let mut out = Vec::new();
        hand.hand_out(10, &mut out);
        let told =
            |received: &Received| (received.lease.message(0).payload().to_vec(), received.delivery_count);
        out.iter().map(told).collect()
    }

    #[test]
    fn what_lay_in_the_hand_for_a_lease_goes_back_uncounted_and_comes_first() {
        let (config, mut hand) = hand(Duration::from_millis(20), &[b"one", b"two"]);
        assert!(hand.look(1).unwrap());
        while hand.lock().taken[0].is_fresh() {
            thread::yield_now();
        }
        assert_eq!(handed_out(&hand), []);
        hand.lease = Duration::from_secs(30);
        assert!(hand.look(1).unwrap());
        assert_eq!(handed_out(&hand), [(b"one".to_vec(), 1)]);
        fs::remove_dir_all(config.directory).unwrap();
    }

    #[test]
    fn a_look_takes_no_more_when_there_are_many_bytes_in_the_hand() {
        let large = vec![0; HAND_BYTES];
        let (config, hand) = hand(Duration::from_secs(30), &[&large, b"two"]);
        assert!(hand.look(10).unwrap());
        assert_eq!(hand.lock().taken.len(), 1);
        assert!(hand.look(10).unwrap());
        assert_eq!(handed_out(&hand), [(large, 1)]);
        assert!(hand.look(10).unwrap());
        assert_eq!(handed_out(&hand), [(b"two".to_vec(), 1)]);
        fs::remove_dir_all(config.directory).unwrap();
    }
}
