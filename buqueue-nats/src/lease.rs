//! What settles deliveries: the session that a consumer and its deliveries share, and the lease on one message.

use std::fmt;
use std::future::ready;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::Subject;
use async_nats::header::HeaderMap;
use buqueue_core::driver::{Backend as _, Lease};
use buqueue_core::{
    BuqueueError, Complaints, ErrorKind, FirstFailures, Message, MessageId, QueueFuture, Result,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::unconstrained;
use tokio::time::Instant;

use crate::NatsBackend;
use crate::config::NatsOptions;
use crate::connection::Link;
use crate::convert::Info;
use crate::error;
use crate::requests::{Began, Requests, Silence, poll_once};

const ACK: &[u8] = b"+ACK";
const NAK: &[u8] = b"-NAK";
const WPI: &[u8] = b"+WPI";
/// How long a settle is waited for that was repeated on a new connection.
const SECOND_TRY: Duration = Duration::from_secs(2);
/// How soon a renewal that failed is asked for again, at most.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
/// The server counts in nanoseconds, in 63 bits.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// What a consumer and its deliveries share. Outlives the consumer.
pub(crate) struct Session {
    pub(crate) link: Link,
    requests: Requests,
    pub(crate) ack_wait: Duration,
    plain: bool,
    failures: FirstFailures<u64>,
    queue: String,
    /// Of all leases together: with the connection, the renewals of all of them fail.
    renewing: Mutex<Complaints>,
    runtime: Handle,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("ack_wait", &self.ack_wait).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(link: Link, options: &NatsOptions) -> Self {
        Self {
            requests: Requests::new(&link, options.request_timeout),
            link,
            ack_wait: options.config.ack_wait,
            plain: options.plain_acks,
            failures: FirstFailures::default(),
            queue: options.config.jetstream.stream_name.clone(),
            renewing: Mutex::new(Complaints::new(NatsBackend::NAME, "renewing a lease")),
            runtime: Handle::current(),
        }
    }

    /// The lease as it is measured here. The server's begins before the message arrives, and a settle takes its time
    /// on the way; one that would come too late there would take the message from who has it then.
    fn own_lease(&self) -> Duration {
        self.ack_wait - (self.ack_wait / 20).min(Duration::from_millis(250))
    }

    /// The time of the first failure, which is now unless it is known already.
    pub(crate) fn first_failure(&self, sequence: u64) -> DateTime<Utc> {
        self.failures.of(&sequence)
    }

    /// Settles, and waits for the server's word unless that is not wanted.
    pub(crate) async fn settle(&self, reply: Subject, verb: Bytes) -> Result<()> {
        if self.plain { self.tell(reply, verb).await } else { self.confirmed(reply, verb).await }
    }

    /// Settles, and waits for the server's word.
    async fn confirmed(&self, reply: Subject, verb: Bytes) -> Result<()> {
        let asking = self.requests.ask(reply.clone(), HeaderMap::new(), verb.clone());
        self.settled(self.requests.begin(), asking, reply, verb).await
    }

    /// Begins to settle at once, so that settles that are awaited one after the other are on their way together.
    fn begin(&self, reply: Subject, verb: Bytes) -> QueueFuture<'_, Result<()>> {
        // Without a runtime there are no timers; then it begins when it is polled in one.
        if Handle::try_current().is_err() {
            return QueueFuture::pending(self.settle(reply, verb));
        }
        // Nothing here is stopped by the task's budget: what is not begun now is begun when it is awaited.
        if self.plain {
            // Mostly there is room in front of the connection; where there is not, nothing was sent.
            let publishing = self.link.client.publish(reply.clone(), verb.clone());
            return match unconstrained(publishing).now_or_never() {
                Some(published) => QueueFuture::ready(published.map_err(error::publishing)),
                None => QueueFuture::pending(self.tell(reply, verb)),
            };
        }
        let began = self.requests.begin();
        let mut asking = Box::pin(self.requests.ask(reply.clone(), HeaderMap::new(), verb.clone()));
        match unconstrained(asking.as_mut()).now_or_never() {
            Some(answer) => QueueFuture::pending(self.settled(began, ready(answer), reply, verb)),
            None => QueueFuture::pending(self.settled(began, asking, reply, verb)),
        }
    }

    /// Waits for the server's word. What a broken connection has left open is asked once more: an ack twice is harmless,
    /// and a nack of which both arrive costs the message an attempt at worst.
    async fn settled(
        &self,
        began: Began,
        asking: impl Future<Output = std::result::Result<async_nats::Message, Silence>>,
        reply: Subject,
        verb: Bytes,
    ) -> Result<()> {
        match self.requests.in_time(began, asking).await.and_then(|answer| answer) {
            Ok(_) => return Ok(()),
            Err(Silence::Lost) => {}
            Err(silence) => return Err(unsettled(silence)),
        }
        // The server does not answer when it has heard of it, or when it has restarted since; so this does not wait
        // for long.
        let again = self.requests.begin().within(SECOND_TRY).no_later_than(began);
        let asking = self.requests.ask(reply, HeaderMap::new(), verb);
        match self.requests.in_time(again, asking).await.and_then(|answer| answer) {
            Ok(_) => Ok(()),
            Err(Silence::Late) => Err(error::lost()),
            Err(silence) => Err(unsettled(silence)),
        }
    }

    /// Settles without an answer.
    async fn tell(&self, reply: Subject, verb: Bytes) -> Result<()> {
        let mut publishing = pin!(self.link.client.publish(reply, verb));
        // Mostly there is room in front of the connection, and no need of a timer.
        let published = match poll_once(publishing.as_mut()).await {
            Some(published) => published,
            None => match tokio::time::timeout_at(self.requests.begin().deadline(), publishing).await {
                Ok(published) => published,
                Err(_) => return Err(error::timed_out("settling")),
            },
        };
        published.map_err(error::publishing)
    }
}

/// A message that was delivered, and until when it is ours.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) message: Message,
    reply: Subject,
    pub(crate) info: Info,
    pub(crate) received_at: Instant,
}

impl Held {
    pub(crate) fn new(message: Message, reply: Subject, info: Info, received_at: Instant) -> Self {
        Self { message, reply, info, received_at }
    }

    /// Gives it back at once.
    pub(crate) async fn give_back(&self, session: &Session) -> Result<()> {
        session.settle(self.reply.clone(), Bytes::from_static(NAK)).await
    }
}

/// The lease on one message.
pub(crate) struct Delivered {
    session: Arc<Session>,
    held: Held,
    until: Mutex<Until>,
    own: Weak<Delivered>,
}

#[derive(Debug, Clone, Copy)]
struct Until {
    /// What the holder was promised.
    promised: Instant,
    /// What the server has confirmed. Ends a moment before it gives the message to somebody else.
    confirmed: Instant,
    /// A task asks the server again and again, until what it has confirmed reaches beyond the promise.
    renewing: bool,
    /// Nothing asks for a renewal from now on.
    settled: bool,
}

impl Until {
    fn lease(self) -> Instant {
        self.promised.min(self.confirmed)
    }
}

impl Delivered {
    pub(crate) fn new(session: Arc<Session>, held: Held) -> Arc<Self> {
        let lease = held.received_at + session.own_lease();
        Arc::new_cyclic(|own| Self {
            session,
            held,
            until: Mutex::new(Until { promised: lease, confirmed: lease, renewing: false, settled: false }),
            own: own.clone(),
        })
    }

    /// Nothing is renewed from now on, also when the lease has run out.
    fn end(&self) -> Result<()> {
        let mut until = lock(&self.until);
        until.settled = true;
        if Instant::now() < until.lease() { Ok(()) } else { Err(expired("its lease ran out")) }
    }

    fn settle(&self, verb: Bytes) -> QueueFuture<'_, Result<()>> {
        if let Err(error) = self.end() {
            return QueueFuture::ready(Err(error));
        }
        self.session.begin(self.held.reply.clone(), verb)
    }

    fn failed(&self, after: Duration) -> QueueFuture<'_, Result<()>> {
        self.session.first_failure(self.held.info.stream_sequence);
        let verb = if after.is_zero() {
            Bytes::from_static(NAK)
        } else {
            // Never early: the server takes whole nanoseconds.
            Bytes::from(format!("-NAK {{\"delay\": {}}}", after.min(LONGEST).as_nanos()))
        };
        self.settle(verb)
    }

    /// Restarts the server's lease again and again until what was promised, as long as somebody holds the delivery.
    fn renew(&self) {
        let (own, session) = (self.own.clone(), Arc::clone(&self.session));
        let every = session.ack_wait / 3;
        // Owned by the delivery: it ends with it.
        self.session.runtime.spawn(async move {
            let mut pause = every;
            loop {
                tokio::time::sleep(pause).await;
                let Some(delivered) = own.upgrade() else { return };
                let asked_at = Instant::now();
                let Some(asking) = delivered.ask_for_more() else { return };
                let renewed = asking.await;
                if !delivered.goes_on_renewing(asked_at, renewed.is_ok()) {
                    return;
                }
                pause = every;
                if let Err(error) = renewed {
                    lock(&session.renewing).tell(&session.queue, &error);
                    pause = every.min(RENEW_AGAIN);
                }
            }
        });
    }

    /// Has asked the server to restart its lease, and waits for the answer; unless the delivery is settled, or the lease
    /// has ended: then it would be somebody else's. One that came after a nack would put the server's lease in the place
    /// of the delay.
    fn ask_for_more(&self) -> Option<impl Future<Output = Result<()>> + '_> {
        let requests = &self.session.requests;
        let began = requests.begin();
        let mut asking =
            Box::pin(requests.ask(self.held.reply.clone(), HeaderMap::new(), Bytes::from_static(WPI)));
        // Handed to the connection, or standing in line for it, before a settle is, or not at all.
        let mut until = lock(&self.until);
        if until.settled || Instant::now() >= until.confirmed {
            // An extension that is under way begins anew.
            until.renewing = false;
            return None;
        }
        let answer = unconstrained(asking.as_mut()).now_or_never();
        drop(until);
        Some(async move {
            let answer = match answer {
                Some(answer) => answer,
                None => requests.in_time(began, asking).await.and_then(|answer| answer),
            };
            answer.map(drop).map_err(unsettled)
        })
    }

    /// Notes how a renewal went, and whether there is another. One that failed is made up for by the next, as long as
    /// there is a lease to renew.
    fn goes_on_renewing(&self, asked_at: Instant, renewed: bool) -> bool {
        let mut until = lock(&self.until);
        let lasts = until.confirmed > Instant::now();
        // An answer that comes later may be that to somebody else's lease.
        if renewed && lasts {
            until.confirmed = until.confirmed.max(asked_at + self.session.own_lease());
        }
        until.renewing = lasts && until.confirmed < until.promised;
        until.renewing
    }
}

impl Lease for Delivered {
    fn message(&self, _index: u32) -> &Message {
        &self.held.message
    }

    fn message_id(&self, _index: u32) -> MessageId {
        self.held.info.stream_sequence.into()
    }

    fn ack(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        self.settle(Bytes::from_static(ACK))
    }

    fn nack(&self, _index: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        self.failed(after)
    }

    fn release(&self, _index: u32) -> QueueFuture<'_, Result<()>> {
        QueueFuture::pending(async { self.settle(Bytes::from_static(NAK)).await })
    }

    fn extend(&self, _index: u32, by: Duration) -> QueueFuture<'_, Result<()>> {
        if Instant::now() >= lock(&self.until).lease() {
            return QueueFuture::ready(Err(expired("its lease ran out")));
        }
        QueueFuture::pending(async move {
            // The server's begins after this.
            let asked_at = Instant::now();
            self.session.settle(self.held.reply.clone(), Bytes::from_static(WPI)).await?;
            let by = by.min(LONGEST);
            let mut until = lock(&self.until);
            if Instant::now() >= until.lease() {
                // It may be somebody else's lease that was restarted.
                return Err(expired("its lease ran out"));
            }
            // The server restarts the whole of its lease; a shorter one cannot be asked for.
            until.confirmed = asked_at + self.session.own_lease();
            until.promised = until.confirmed.max(asked_at + by);
            if until.promised > until.confirmed && !until.renewing {
                until.renewing = true;
                drop(until);
                self.renew();
            }
            Ok(())
        })
    }

    fn abandon(&self, _index: u32) {
        if self.end().is_err() {
            return;
        }
        self.session.first_failure(self.held.info.stream_sequence);
        let (session, reply) = (Arc::clone(&self.session), self.held.reply.clone());
        // Should it not arrive, the lease ends in time.
        self.session.runtime.spawn(async move { session.settle(reply, Bytes::from_static(NAK)).await });
    }
}

fn unsettled(silence: Silence) -> BuqueueError {
    match silence {
        Silence::NoResponders => expired("the durable consumer is gone"),
        silence => silence.into_error("settling"),
    }
}

fn expired(fact: &'static str) -> BuqueueError {
    BuqueueError::new(ErrorKind::LeaseExpired, fact)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
