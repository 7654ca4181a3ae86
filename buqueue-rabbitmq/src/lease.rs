//! What settles deliveries: the session that a consumer and its deliveries share, the channel that they came on, and
//! the lease on one message.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use buqueue_core::driver::{Detail, Lease};
use buqueue_core::{
    BuqueueError, Coalescer, ErrorKind, FirstFailures, Mailbox, Message, MessageId, QueueFuture, Result,
};
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::{Channel, Connection};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::QueueType;
use crate::convert::Story;
use crate::publisher::{Due, Publisher};

/// Settles that go to the connection together.
const SETTLES_AT_ONCE: usize = 1000;
/// How long a consumer may take to end.
pub(crate) const CLOSING: Duration = Duration::from_secs(2);

/// A quorum queue (seen on 3.10.8) forgets acks that are on their way to it when their channel closes; so a channel
/// stays open this long after a burst of them.
const LINGER: Duration = Duration::from_millis(500);
/// So many the broker has handed on to the queue at once (`quorum_commands_soft_limit` is 32).
const HANDED_ON: usize = 16;

/// What a consumer, its reader and its deliveries share. Outlives the consumer.
pub(crate) struct Session {
    /// From the reader to the consumer.
    pub(crate) mailbox: Mailbox<Held>,
    pub(crate) publisher: Publisher,
    pub(crate) queue_type: QueueType,
    failures: FirstFailures<String>,
    runtime: Handle,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("queue_type", &self.queue_type).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(publisher: Publisher, queue_type: QueueType) -> Self {
        Self {
            mailbox: Mailbox::default(),
            publisher,
            queue_type,
            failures: FirstFailures::default(),
            runtime: Handle::current(),
        }
    }

    /// A consumer that is closed takes nothing more from the queue: what is given back while it is still ending would
    /// come to it again, unseen and counted.
    async fn ended_if_closed(&self) {
        if self.mailbox.wishes().closed {
            // Should it not end in time, an attempt more is counted.
            drop(timeout(CLOSING, self.mailbox.finished()).await);
        }
    }
}

/// One settle on its way to the channel.
#[derive(Debug, Clone, Copy)]
enum Settle {
    Ack(u64),
    Requeue(u64),
}

/// A channel that is consumed from. Its deliveries can be settled on it alone.
pub(crate) struct Epoch {
    pub(crate) channel: Channel,
    // Closes when nobody needs the channel any more.
    pub(crate) connection: Arc<Connection>,
    /// Delivered on this channel and not settled.
    outstanding: Arc<Mutex<BTreeSet<u64>>>,
    count: Arc<Count>,
    burst: Arc<Burst>,
    settles: Coalescer<Settle, ()>,
    runtime: Handle,
}

/// How many are not settled, and who waits for one to be.
#[derive(Debug, Default)]
struct Count {
    unsettled: AtomicUsize,
    awaited: AtomicBool,
    freed: Notify,
}

/// The settles that may still be on their way from the channel to the queue.
#[derive(Debug, Default)]
struct Burst(Mutex<Option<(usize, Instant)>>);

impl Burst {
    fn note(&self, frames: usize) {
        let (mut burst, now) = (lock(&self.0), Instant::now());
        let before =
            burst.filter(|(_, last)| now.duration_since(*last) < LINGER).map_or(0, |(count, _)| count);
        *burst = Some((before + frames, now));
    }

    /// When the channel may be closed; `None`: at once.
    fn over_at(&self) -> Option<Instant> {
        let (count, last) = (*lock(&self.0))?;
        Some(last + LINGER).filter(|over| count > HANDED_ON && *over > Instant::now())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").field("channel", &self.channel.id()).finish_non_exhaustive()
    }
}

impl Epoch {
    pub(crate) fn new(connection: Arc<Connection>, channel: Channel, limit: Duration) -> Self {
        let outstanding = Arc::new(Mutex::new(BTreeSet::new()));
        let count = Arc::new(Count::default());
        let burst = Arc::new(Burst::default());
        let worker = Worker {
            channel: channel.clone(),
            outstanding: Arc::clone(&outstanding),
            count: Arc::clone(&count),
            burst: Arc::clone(&burst),
            limit,
        };
        let worker = Arc::new(worker);
        let settles = Coalescer::spawn(SETTLES_AT_ONCE, move |items| {
            let worker = Arc::clone(&worker);
            async move { worker.flush(items).await }
        });
        Self { channel, connection, outstanding, count, burst, settles, runtime: Handle::current() }
    }

    /// A delivery has come. In the order of their tags.
    pub(crate) fn delivered(&self, tag: u64) {
        lock(&self.outstanding).insert(tag);
        self.count.unsettled.fetch_add(1, Ordering::SeqCst);
    }

    /// How many deliveries are not settled.
    pub(crate) fn unsettled(&self) -> usize {
        self.count.unsettled.load(Ordering::SeqCst)
    }

    /// The same; where there are `most`, [`freed`](Self::freed) tells when one is settled.
    pub(crate) fn unsettled_or_wake(&self, most: usize) -> usize {
        if self.unsettled() >= most {
            self.count.awaited.store(true, Ordering::SeqCst);
        }
        // One that was settled in between has told nobody.
        self.unsettled()
    }

    pub(crate) async fn freed(&self) {
        self.count.freed.notified().await;
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.channel.status().connected()
    }

    /// Waits until what was settled has reached the queue, so that the channel may be closed.
    pub(crate) async fn reached_the_queue(&self) {
        if let Some(over) = self.burst.over_at() {
            sleep_until(over).await;
        }
    }

    fn settle(&self, settle: Settle) -> impl Future<Output = Result<()>> + Send + use<> {
        self.settles.submit(settle)
    }

    pub(crate) fn ack(&self, tag: u64) -> impl Future<Output = Result<()>> + Send + use<> {
        self.settle(Settle::Ack(tag))
    }

    pub(crate) fn requeue(&self, tag: u64) -> impl Future<Output = Result<()>> + Send + use<> {
        self.settle(Settle::Requeue(tag))
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        if let Some(over) = self.burst.over_at() {
            let (channel, connection) = (self.channel.clone(), Arc::clone(&self.connection));
            self.runtime.spawn(async move {
                sleep_until(over).await;
                drop((channel, connection));
            });
        }
    }
}

/// Writes settles to the channel, one after the other.
struct Worker {
    channel: Channel,
    outstanding: Arc<Mutex<BTreeSet<u64>>>,
    count: Arc<Count>,
    burst: Arc<Burst>,
    limit: Duration,
}

impl Worker {
    async fn flush(&self, items: Vec<Settle>) -> Vec<Result<()>> {
        self.count.unsettled.fetch_sub(items.len(), Ordering::SeqCst);
        if self.count.awaited.swap(false, Ordering::SeqCst) {
            self.count.freed.notify_one();
        }
        let written = match timeout(self.limit, self.write(&items)).await {
            Ok(Ok(())) if self.channel.status().connected() => true,
            // The broker gives to others what was not settled on a channel that is gone.
            _ => false,
        };
        items.iter().map(|_| if written { Ok(()) } else { Err(expired()) }).collect()
    }

    /// Acks what can be acked with one frame with one: all deliveries up to a tag, when nothing below it is open.
    async fn write(&self, items: &[Settle]) -> lapin::Result<()> {
        let (together, single, requeued) = self.sort(items);
        self.burst.note(usize::from(together.is_some()) + single.len() + requeued.len());
        // All at once: the client's writer takes what is there with one write.
        let requeuing = requeued.into_iter().map(|tag| {
            // Not `basic.nack`: from 4.3 on the broker does not count that as a failed attempt.
            self.channel.basic_reject(tag, BasicRejectOptions { requeue: true }).boxed()
        });
        let multiple = together.map(|(tag, count)| (tag, count > 1));
        let acking = multiple.into_iter().chain(single.into_iter().map(|tag| (tag, false)));
        let acking =
            acking.map(|(tag, multiple)| self.channel.basic_ack(tag, BasicAckOptions { multiple }).boxed());
        try_join_all(requeuing.chain(acking)).await?;
        Ok(())
    }

    fn sort(&self, items: &[Settle]) -> (Option<(u64, usize)>, Vec<u64>, Vec<u64>) {
        let (mut acks, mut requeued) = (Vec::with_capacity(items.len()), Vec::new());
        let mut outstanding = lock(&self.outstanding);
        for item in items {
            match *item {
                Settle::Ack(tag) => {
                    outstanding.remove(&tag);
                    acks.push(tag);
                }
                Settle::Requeue(tag) => {
                    outstanding.remove(&tag);
                    requeued.push(tag);
                }
            }
        }
        let lowest_open = outstanding.first().copied().unwrap_or(u64::MAX);
        drop(outstanding);
        acks.sort_unstable();
        let single = acks.split_off(acks.partition_point(|tag| *tag < lowest_open));
        (acks.last().map(|tag| (*tag, acks.len())), single, requeued)
    }
}

/// A message that was delivered.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) message: Message,
    pub(crate) id: String,
    pub(crate) story: Story,
    pub(crate) tag: u64,
    pub(crate) epoch: Arc<Epoch>,
}

/// The lease on one message.
pub(crate) struct Delivered {
    session: Arc<Session>,
    held: Held,
    own: Weak<Self>,
}

impl Delivered {
    pub(crate) fn new(session: Arc<Session>, held: Held) -> Arc<Self> {
        Arc::new_cyclic(|own| Self { session, held, own: own.clone() })
    }

    fn failing(&self, after: Duration) -> impl Future<Output = Result<()>> + Send + use<> {
        // Whoever calls this holds it.
        let own = self.own.upgrade();
        async move {
            match own {
                Some(own) => own.fail(after).await,
                None => Err(expired()),
            }
        }
    }

    /// When it failed first, if it has.
    pub(crate) fn first_failed_at(session: &Session, held: &Held) -> Option<DateTime<Utc>> {
        let failed = held.story.failures > 0;
        failed.then(|| held.story.first_failed_at.unwrap_or_else(|| session.failures.of(&held.id)))
    }

    /// The story of the copy that takes its place.
    fn next_story(&self) -> Story {
        let first_failed_at = Self::first_failed_at(&self.session, &self.held);
        Story {
            failures: self.held.story.failures.saturating_add(1),
            first_failed_at: Some(first_failed_at.unwrap_or_else(|| self.session.failures.of(&self.held.id))),
        }
    }

    /// Makes it visible again after a while, counted. Carried to its end even when nobody waits for it.
    async fn fail(self: Arc<Self>, after: Duration) -> Result<()> {
        let held = &self.held;
        if !held.epoch.is_alive() {
            return Err(expired());
        }
        if after.is_zero() && self.session.queue_type == QueueType::Quorum {
            self.session.failures.of(&held.id);
            return self.requeue().await;
        }
        let runtime = self.session.runtime.clone();
        let replacing = runtime.spawn(async move {
            self.session.ended_if_closed().await;
            let replaced = self.replace(after).await;
            if replaced.is_err() {
                // Otherwise it would stay ours for as long as the channel lives.
                drop(self.held.epoch.requeue(self.held.tag).await);
            }
            replaced
        });
        replacing.await.unwrap_or_else(|_| Err(expired()))
    }

    /// Gives it back. Carried to its end even when nobody waits for it, as the wait for a consumer that is closing may be
    /// given up.
    async fn requeue(self: Arc<Self>) -> Result<()> {
        if !self.session.mailbox.wishes().closed {
            return self.held.epoch.requeue(self.held.tag).await;
        }
        let runtime = self.session.runtime.clone();
        let requeuing = runtime.spawn(async move {
            self.session.ended_if_closed().await;
            self.held.epoch.requeue(self.held.tag).await
        });
        requeuing.await.unwrap_or_else(|_| Err(expired()))
    }

    /// Puts a copy with the count into the queue, at once.
    pub(crate) async fn recount(&self) -> Result<()> {
        if !self.held.epoch.is_alive() {
            return Err(expired());
        }
        self.replace(Duration::ZERO).await
    }

    /// Publishes a copy with the count, and then acks the original.
    async fn replace(&self, after: Duration) -> Result<()> {
        let (held, publisher) = (&self.held, &self.session.publisher);
        let due = Due::After(after.min(crate::delay::LONGEST));
        let route = if after.is_zero() {
            publisher.route_to_queue()
        } else {
            publisher.route_to_queue_later(due).await?
        };
        publisher.publish(&held.message, &held.id, &route, self.next_story()).await?;
        held.epoch.ack(held.tag).await
    }
}

impl Lease for Delivered {
    fn message(&self, _index: u32) -> &Message {
        &self.held.message
    }

    fn message_id(&self, _index: u32) -> MessageId {
        self.held.id.as_str().into()
    }

    fn details(&self, _index: u32, tell: &mut dyn FnMut(&'static str, Detail<'_>)) {
        if let Some(key) = self.held.message.routing_key() {
            tell("messaging.rabbitmq.destination.routing_key", Detail::Text(key));
        }
        if let Ok(tag) = i64::try_from(self.held.tag) {
            tell("messaging.rabbitmq.message.delivery_tag", Detail::Number(tag));
        }
    }

    fn ack(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        QueueFuture::pending(self.held.epoch.ack(self.held.tag))
    }

    fn nack(&self, _index: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        QueueFuture::pending(self.failing(after))
    }

    fn release(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        // Whoever calls this holds it.
        let own = self.own.upgrade();
        QueueFuture::pending(async move {
            match own {
                Some(own) => own.requeue().await,
                None => Err(expired()),
            }
        })
    }

    fn extend(&self, _index: u32, _by: Duration) -> QueueFuture<'_, Result<()>> {
        // There is no time limit but that of the channel.
        QueueFuture::ready(if self.held.epoch.is_alive() { Ok(()) } else { Err(expired()) })
    }

    fn abandon(&self, _index: u32) {
        // Should it fail, the channel is gone, and the broker gives it to others by itself.
        self.session.runtime.spawn(self.failing(Duration::ZERO));
    }
}

fn expired() -> BuqueueError {
    BuqueueError::new(ErrorKind::LeaseExpired, "the channel that it was delivered on is closed")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
