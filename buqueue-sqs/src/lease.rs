//! What settles deliveries: the session that a consumer and its deliveries share, and the lease on one message.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use buqueue_core::driver::{Detail, Lease};
use buqueue_core::{
    BuqueueError, ErrorKind, FirstFailures, Mailbox, Message, MessageId, QueueFuture, Result,
};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::LONGEST_VISIBILITY;
use crate::convert::{Clock, Story};
use crate::error;
use crate::schedule::{HORIZON, Scheduler};
use crate::settle::{Settled, Settler, seconds_up};

/// SQS counts its twelve hours from the receive, which is a moment earlier than we know of it.
const SPARE: Duration = Duration::from_secs(5);
/// A delay that is longer may end up to a second late.
const EXACT: Duration = Duration::from_secs(60);
/// A visibility that ends so soon is not ended by a request.
const HARDLY: Duration = Duration::from_millis(100);
/// Such a request is on its way so long before, at least: one that came too late would meet the message with whoever has
/// received it next, and some take the old receipt for the new one.
const SAFE: Duration = Duration::from_millis(500);

/// How often messages were given back that nobody has seen: SQS counts them, we do not.
#[derive(Debug, Default)]
struct Returns {
    counts: HashMap<String, u32>,
    order: VecDeque<String>,
}

impl Returns {
    const MOST: usize = 10_000;

    fn add(&mut self, id: &str) {
        if let Some(count) = self.counts.get_mut(id) {
            *count += 1;
            return;
        }
        self.counts.insert(id.to_owned(), 1);
        self.order.push_back(id.to_owned());
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
    }
}

/// What a consumer and its deliveries share. Outlives the consumer.
pub(crate) struct Session {
    pub(crate) scheduler: Scheduler,
    pub(crate) settler: Settler,
    pub(crate) mailbox: Mailbox<Held>,
    /// The lease.
    pub(crate) visibility: Duration,
    pub(crate) clock: Clock,
    closing: watch::Sender<bool>,
    /// Nothing is being sent on any more.
    forwarded: watch::Sender<bool>,
    failures: FirstFailures<String>,
    returns: Mutex<Returns>,
    runtime: Handle,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("visibility", &self.visibility).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(scheduler: Scheduler, visibility: Duration) -> Self {
        Self {
            settler: Settler::new(&scheduler.target.link),
            scheduler,
            mailbox: Mailbox::default(),
            visibility,
            clock: Clock::default(),
            closing: watch::channel(false).0,
            forwarded: watch::channel(false).0,
            failures: FirstFailures::default(),
            returns: Mutex::default(),
            runtime: Handle::current(),
        }
    }

    /// Ends the reader and what sends on schedules.
    pub(crate) fn close(&self) {
        self.mailbox.close();
        self.closing.send_replace(true);
    }

    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Nothing is being sent on any more.
    pub(crate) fn forwarded(&self) {
        self.forwarded.send_replace(true);
    }

    /// Waits until everything that was begun has ended, but for requests that wait at SQS.
    pub(crate) async fn ended(&self) {
        self.mailbox.finished().await;
        let mut forwarded = self.forwarded.subscribe();
        // The sender is here: it cannot be gone.
        let _always_ok = forwarded.wait_for(|forwarded| *forwarded).await.is_ok();
    }

    /// How old a message may be when it is handed out, so that there is time left to handle it.
    pub(crate) fn stale_after(&self) -> Duration {
        self.visibility / 2
    }

    /// The lease as it is measured here: that of SQS begins before the message arrives, and a settle takes its time on
    /// the way.
    fn own_lease(&self) -> Duration {
        self.visibility - (self.visibility / 20).min(Duration::from_millis(250))
    }

    /// The attempts of a message, this one included.
    pub(crate) fn attempts(&self, held: &Held) -> u32 {
        let unseen = lock(&self.returns).counts.get(&held.id).copied().unwrap_or(0);
        held.receives.saturating_sub(unseen).max(1).saturating_add(held.story.failures)
    }

    /// The time of the first failure, which is now unless it is known already.
    pub(crate) fn first_failure(&self, held: &Held) -> DateTime<Utc> {
        held.story.first_failed_at.unwrap_or_else(|| self.failures.of(&held.id))
    }

    /// Gives back what nobody has seen.
    pub(crate) async fn give_back(&self, unseen: Vec<Held>) {
        let returning = unseen.into_iter().map(|held| {
            lock(&self.returns).add(&held.id);
            self.settler.hide(held.receipt, Duration::ZERO)
        });
        // What cannot be given back comes back with its lease.
        let _comes_with_its_lease = join_all(returning).await.iter().all(Result::is_ok);
    }

    /// A message has failed: those behind it, in its group, must not be handed out before it.
    async fn give_back_group(&self, group: Option<&str>) {
        let Some(group) = group.filter(|_| self.scheduler.target.manner.fifo) else { return };
        let behind = self.mailbox.take_out(|held| held.group.as_deref() == Some(group));
        if !behind.is_empty() {
            self.give_back(behind).await;
        }
    }
}

/// A message that was received, and until when it is ours.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) message: Message,
    pub(crate) id: String,
    pub(crate) receipt: String,
    pub(crate) group: Option<String>,
    pub(crate) receives: u32,
    pub(crate) story: Story,
    pub(crate) received_at: Instant,
    /// Before that it is not to be seen.
    pub(crate) due: Instant,
}

/// The lease on one message.
pub(crate) struct Delivered {
    session: Arc<Session>,
    held: Held,
    until: Mutex<Until>,
}

/// How long the message is ours. An extension is carried out although nobody waits for it any more, or has had no answer;
/// until it is known what became of it there are two times.
#[derive(Debug, Clone, Copy)]
struct Until {
    /// Before that, nobody else can have it.
    surely: Instant,
    /// After that, somebody else may have it, and nothing is asked of SQS in its name.
    perhaps: Instant,
    /// How many extensions were begun.
    extensions: u32,
}

/// An extension that was begun, and how it was before.
struct Extension {
    end: Instant,
    before: Until,
}

impl Until {
    fn begin(&mut self, end: Instant) -> Extension {
        let before = *self;
        self.surely = self.surely.min(end);
        self.perhaps = self.perhaps.max(end);
        self.extensions += 1;
        Extension { end, before }
    }

    /// What SQS has said of it. Another that was begun since leaves it open.
    fn end(&mut self, extension: &Extension, outcome: &Result<Settled>) {
        if self.extensions != extension.before.extensions + 1 {
            return;
        }
        (self.surely, self.perhaps) = match outcome {
            Ok(Settled::Done) => (extension.end, extension.end),
            // Nobody knows.
            Err(error) if matches!(error.kind, ErrorKind::Timeout | ErrorKind::ConnectionLost) => return,
            Err(error) if error.kind != ErrorKind::LeaseExpired => {
                (extension.before.surely, extension.before.perhaps)
            }
            // It is ours no longer.
            Ok(Settled::ByTheFirstOrNot) | Err(_) => {
                let now = Instant::now();
                (self.surely.min(now), self.perhaps.min(now))
            }
        };
    }
}

impl Delivered {
    pub(crate) fn new(session: Arc<Session>, held: Held) -> Self {
        // Ends a moment before SQS gives the message to somebody else.
        let end = held.received_at + session.own_lease();
        let until = Mutex::new(Until { surely: end, perhaps: end, extensions: 0 });
        Self { session, held, until }
    }

    fn expired(&self) -> Option<BuqueueError> {
        (Instant::now() >= lock(&self.until).perhaps).then(|| expired("its visibility timeout ran out"))
    }

    /// The most that SQS still grants of the twelve hours since the receive.
    fn grantable(&self) -> Duration {
        LONGEST_VISIBILITY.saturating_sub(self.held.received_at.elapsed() + SPARE)
    }

    fn receipt(&self) -> String {
        self.held.receipt.clone()
    }

    /// The message is out of our hands. Nobody else can have it while the lease is ours, so it is the first request that
    /// its repetition has found done.
    async fn settled_by(&self, settling: impl Future<Output = Result<Settled>>) -> Result<()> {
        match settling.await? {
            Settled::ByTheFirstOrNot if Instant::now() >= lock(&self.until).surely => {
                Err(expired("its receipt no longer counts"))
            }
            Settled::Done | Settled::ByTheFirstOrNot => Ok(()),
        }
    }

    /// Hides it for the delay, which SQS keeps.
    async fn hide(&self, after: Duration) -> Result<()> {
        let asked_at = Instant::now();
        // SQS counts in seconds. Should this process die, it is up to a second late, or half a second more.
        let mut hidden = Duration::from_secs(seconds_up(after));
        let ends_early = after <= EXACT && hidden > after + HARDLY;
        if ends_early && hidden < after + SAFE {
            hidden += Duration::from_secs(1);
        }
        self.settled_by(self.session.settler.hide(self.receipt(), hidden)).await?;
        if ends_early {
            let (settler, receipt) = (self.session.settler.clone(), self.receipt());
            // Ends with the delay.
            self.session.runtime.spawn(async move {
                tokio::time::sleep_until(asked_at + after).await;
                if asked_at.elapsed() + SAFE / 2 < hidden {
                    let _late_at_worst = settler.hide(receipt, Duration::ZERO).await.is_err();
                }
            });
        }
        Ok(())
    }

    /// Longer than SQS hides a message: a copy waits, and then the original is deleted.
    async fn send_later(&self, after: Duration) -> Result<()> {
        let Held { message, story, receipt, .. } = &self.held;
        let due = chrono::TimeDelta::from_std(after.min(HORIZON))
            .map_or(DateTime::<Utc>::MAX_UTC, |after| Utc::now() + after);
        let attempts = self.session.attempts(&self.held);
        let story = Story {
            failures: attempts,
            first_failed_at: Some(
                story.first_failed_at.unwrap_or_else(|| self.session.first_failure(&self.held)),
            ),
        };
        let (session, message, receipt) = (Arc::clone(&self.session), message.clone(), receipt.clone());
        // Once begun it is brought to its end, or there would be two of it.
        let moving = self.session.runtime.spawn(async move {
            session.scheduler.send_at(&message, due, story).await?;
            session.settler.delete(receipt).await
        });
        let moved = async { moving.await.unwrap_or_else(|_| Err(error::unanswered("nack_after"))) };
        self.settled_by(moved).await
    }

    fn give_back(&self) -> QueueFuture<'_, Result<()>> {
        if let Some(error) = self.expired() {
            return QueueFuture::ready(Err(error));
        }
        // Begun by the first poll, and not twice when it is dropped before.
        QueueFuture::pending(async {
            lock(&self.session.returns).add(&self.held.id);
            self.settled_by(self.session.settler.hide(self.receipt(), Duration::ZERO)).await
        })
    }
}

impl Lease for Delivered {
    fn message(&self, _index: u32) -> &Message {
        &self.held.message
    }

    fn message_id(&self, _index: u32) -> MessageId {
        self.held.id.clone().into()
    }

    fn details(&self, _index: u32, tell: &mut dyn FnMut(&'static str, Detail<'_>)) {
        tell("aws.sqs.queue.url", Detail::Text(&self.session.scheduler.target.link.queue.whole));
    }

    fn ack(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        if let Some(error) = self.expired() {
            return QueueFuture::ready(Err(error));
        }
        QueueFuture::pending(self.settled_by(self.session.settler.delete(self.receipt())))
    }

    fn nack(&self, _index: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        if let Some(error) = self.expired() {
            return QueueFuture::ready(Err(error));
        }
        self.session.first_failure(&self.held);
        QueueFuture::pending(async move {
            let failing = async {
                if after > self.grantable() { self.send_later(after).await } else { self.hide(after).await }
            };
            let (failed, ()) =
                futures_util::join!(failing, self.session.give_back_group(self.held.group.as_deref()));
            failed
        })
    }

    fn release(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        self.give_back()
    }

    fn extend(&self, _index: u32, by: Duration) -> QueueFuture<'_, Result<()>> {
        if let Some(error) = self.expired() {
            return QueueFuture::ready(Err(error));
        }
        if by > self.grantable() {
            let fact =
                format!("extend_visibility by {by:?}: SQS hides a message for 12 hours since its receive");
            return QueueFuture::ready(Err(BuqueueError::new(ErrorKind::Unsupported, fact)));
        }
        QueueFuture::pending(async move {
            let (extension, hiding) = {
                // In the order in which SQS hears of them.
                let mut until = lock(&self.until);
                let extension = until.begin(Instant::now() + by);
                // Not less than a second, or it would be given back.
                (extension, self.session.settler.hide(self.receipt(), by.max(Duration::from_secs(1))))
            };
            let outcome = hiding.await;
            lock(&self.until).end(&extension, &outcome);
            match outcome? {
                Settled::Done => Ok(()),
                Settled::ByTheFirstOrNot => Err(expired("its receipt no longer counts")),
            }
        })
    }

    fn abandon(&self, _index: u32) {
        if self.expired().is_some() {
            return;
        }
        self.session.first_failure(&self.held);
        let (session, receipt, group) = (Arc::clone(&self.session), self.receipt(), self.held.group.clone());
        // Should it not arrive, the lease ends in time.
        self.session.runtime.spawn(async move {
            futures_util::join!(
                session.settler.hide(receipt, Duration::ZERO),
                session.give_back_group(group.as_deref())
            )
        });
    }
}

pub(crate) fn expired(fact: &'static str) -> BuqueueError {
    BuqueueError::new(ErrorKind::LeaseExpired, fact)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_leaves_two_ends_until_it_is_answered() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let ends = |until: &Until| (until.surely, until.perhaps);
        let refused = |kind| Err(BuqueueError::new(kind, "as told"));
        let mut until = Until { surely: at(30), perhaps: at(30), extensions: 0 };
        let long = until.begin(at(60));
        assert_eq!(ends(&until), (at(30), at(60)));
        let short = until.begin(at(5));
        assert_eq!(ends(&until), (at(5), at(60)));
        until.end(&long, &Ok(Settled::Done));
        assert_eq!(ends(&until), (at(5), at(60)), "another is under way");
        until.end(&short, &Ok(Settled::Done));
        assert_eq!(ends(&until), (at(5), at(5)));
        let throttled = until.begin(at(60));
        until.end(&throttled, &refused(ErrorKind::Throttled));
        assert_eq!(ends(&until), (at(5), at(5)), "it was not carried out");
        let unanswered = until.begin(at(60));
        until.end(&unanswered, &refused(ErrorKind::Timeout));
        assert_eq!(ends(&until), (at(5), at(60)));
        let late = until.begin(at(90));
        until.end(&late, &refused(ErrorKind::LeaseExpired));
        assert!(until.surely <= Instant::now() && until.perhaps <= Instant::now());
    }
}
