//! What settles deliveries: the session that a consumer and its deliveries share, and the lease on what one fetch
//! brought.
//!
//! Who holds a message is decided by the group's pending list alone. A lease that runs out is taken out of that
//! list, and so is everything that was settled: an id that is pending is ours, and one that is not is lost.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use buqueue_core::driver::Lease;
use buqueue_core::{BuqueueError, Coalescer, ErrorKind, Message, MessageId, QueueFuture, Result};
use redis::{Cmd, RedisResult, Value};
use tokio::runtime::Handle;

use crate::connection::Commands;
use crate::convert::{self, Entry, Id, Source};
use crate::error;
use crate::keys::Keys;
use crate::reclaim::Moved;
use crate::scripts::{self, Lua};

/// Acks that one script call carries; Lua's stack holds a few thousand.
const ACKS_PER_CALL: usize = 1000;

/// What a consumer and its deliveries share. Outlives the consumer.
pub(crate) struct Session {
    pub(crate) commands: Arc<Commands>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) group: Arc<str>,
    pub(crate) consumer: String,
    pub(crate) pending_timeout: Duration,
    pub(crate) moved: Moved,
    acks: Coalescer<Acks, ()>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("keys", &self.keys)
            .field("group", &self.group)
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}

/// One entry to settle.
#[derive(Debug, Clone, Copy)]
struct ToSettle {
    source: Source,
    id: Id,
    /// The lease was extended: the holds may have it.
    extended: bool,
    /// When the lease ends that was not extended.
    until: Instant,
}

impl ToSettle {
    /// Until when the lease lasts, as far as it is known here.
    fn known_end(self) -> Option<Instant> {
        (!self.extended).then_some(self.until)
    }
}

/// A repeated settle finds that the message is not ours: as long as the lease lasts, that was the first one's work.
fn was_done_before(end: Option<Instant>) -> bool {
    end.is_none_or(|end| Instant::now() < end)
}

/// What one caller acks together.
#[derive(Debug)]
enum Acks {
    One(ToSettle),
    Many(Vec<ToSettle>),
}

impl Acks {
    fn all(&self) -> &[ToSettle] {
        match self {
            Self::One(ack) => std::slice::from_ref(ack),
            Self::Many(acks) => acks,
        }
    }
}

impl Session {
    pub(crate) fn new(
        commands: Arc<Commands>,
        keys: Keys,
        group: &str,
        consumer: &str,
        pending_timeout: Duration,
    ) -> Self {
        let (keys, group) = (Arc::new(keys), Arc::<str>::from(group));
        let flusher = Arc::new(Flusher {
            commands: Arc::clone(&commands),
            keys: Arc::clone(&keys),
            group: Arc::clone(&group),
        });
        let acks = Coalescer::spawn(ACKS_PER_CALL, move |items| {
            let flusher = Arc::clone(&flusher);
            async move { flusher.flush(items).await }
        });
        let (consumer, moved) = (consumer.to_owned(), Moved::default());
        Self { commands, keys, group, consumer, pending_timeout, moved, acks }
    }

    /// Puts pending entries of one stream back, in order. `counts`: the attempt has failed, else it never was one.
    /// Tells which were still ours; where a first try may have done it, all of them, `until` their lease ends.
    pub(crate) async fn again(
        &self,
        source: Source,
        ids: &[Id],
        counts: bool,
        after: Duration,
        until: Option<Instant>,
    ) -> Result<Vec<bool>> {
        let ids: Vec<String> = ids.iter().map(|&id| text(id)).collect();
        let keys = &self.keys;
        let delay = millis_up(after);
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(5).arg(keys.of(source)).arg(&keys.retry).arg(&keys.delayed).arg(&keys.holds);
            cmd.arg(&keys.broken);
            cmd.arg(&*self.group).arg(flag(source == Source::Retry)).arg(flag(counts)).arg(delay).arg(&ids);
        };
        let (reply, tried_before) =
            settle(&self.commands, &scripts::AGAIN, arguments).await.map_err(|error| self.fail(&error))?;
        let Value::Array(outcomes) = reply else { return Err(self.fail(&error::unexpected("EVALSHA"))) };
        let done_before = tried_before && was_done_before(until);
        Ok(outcomes.iter().map(|outcome| done_before || convert::number(outcome) == Some(1)).collect())
    }

    async fn nack(&self, entry: ToSettle, counts: bool, after: Duration) -> Result<()> {
        match self.again(entry.source, &[entry.id], counts, after, entry.known_end()).await?.first() {
            Some(true) => Ok(()),
            _ => Err(lost(entry.id)),
        }
    }

    async fn extend(&self, source: Source, id: Id, by: Duration) -> Result<()> {
        let keys = &self.keys;
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(2).arg(keys.of(source)).arg(&keys.holds);
            cmd.arg(&*self.group).arg(text(id)).arg(millis_up(by)).arg(millis_up(self.pending_timeout));
            cmd.arg(if source == Source::Retry { "r" } else { "m" });
        };
        let reply =
            settle(&self.commands, &scripts::EXTEND, arguments).await.map_err(|error| self.fail(&error))?.0;
        if convert::number(&reply) == Some(1) { Ok(()) } else { Err(lost(id)) }
    }

    pub(crate) fn fail(&self, error: &redis::RedisError) -> BuqueueError {
        if error::is_group_gone(error) {
            let fact = format!("the group {:?} of {:?} is gone", self.group, self.keys.stream);
            return BuqueueError::new(ErrorKind::LeaseExpired, fact).with_source(error.clone());
        }
        error::convert(error, &self.keys.stream)
    }
}

/// Runs a settling script; when the connection breaks under it, once more. Also tells whether it may have been sent
/// before: what is then no longer pending was settled by the first try.
async fn settle(commands: &Commands, lua: &Lua, arguments: impl Fn(&mut Cmd)) -> RedisResult<(Value, bool)> {
    match commands.eval_told(lua, &arguments).await {
        (Err(error), sent) if error::classify(&error) == ErrorKind::ConnectionLost => {
            commands.eval(lua, &arguments).await.map(|reply| (reply, sent))
        }
        (outcome, _) => outcome.map(|reply| (reply, false)),
    }
}

/// Carries the acks of a session.
struct Flusher {
    commands: Arc<Commands>,
    keys: Arc<Keys>,
    group: Arc<str>,
}

impl Flusher {
    /// One outcome an item; an item is done when all its ids are.
    async fn flush(&self, items: Vec<Acks>) -> Vec<Result<()>> {
        let mut outcomes: Vec<Result<()>> = Vec::with_capacity(items.len());
        outcomes.resize_with(items.len(), || Ok(()));
        let mut all: Vec<(usize, ToSettle)> = Vec::with_capacity(items.len());
        for (item, acks) in items.iter().enumerate() {
            all.extend(acks.all().iter().map(|&ack| (item, ack)));
        }
        let Some(&(_, first)) = all.first() else { return outcomes };
        if all.iter().all(|(_, ack)| ack.source == first.source && ack.extended == first.extended) {
            self.ack_alike(&all, &mut outcomes).await;
            return outcomes;
        }
        for source in [Source::Stream, Source::Retry] {
            for extended in [false, true] {
                let alike = all.iter().filter(|(_, ack)| ack.source == source && ack.extended == extended);
                let alike: Vec<(usize, ToSettle)> = alike.copied().collect();
                self.ack_alike(&alike, &mut outcomes).await;
            }
        }
        outcomes
    }

    /// Acks what is of one stream, and extended or not.
    async fn ack_alike(&self, alike: &[(usize, ToSettle)], outcomes: &mut [Result<()>]) {
        for part in alike.chunks(ACKS_PER_CALL) {
            self.ack(part, outcomes).await;
        }
    }

    async fn ack(&self, part: &[(usize, ToSettle)], outcomes: &mut [Result<()>]) {
        let Some(&(_, ToSettle { source, extended, .. })) = part.first() else { return };
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(2).arg(self.keys.of(source)).arg(&self.keys.holds).arg(&*self.group);
            cmd.arg(flag(source == Source::Stream)).arg(flag(extended));
            let mut buffer = [0; 41];
            for &(_, ack) in part {
                cmd.arg(digits(&mut buffer, ack.id));
            }
        };
        let (reply, tried_before) = match settle(&self.commands, &scripts::ACK, arguments).await {
            Ok(outcome) => outcome,
            Err(error) => {
                for &(item, _) in part {
                    outcomes[item] = Err(error::convert(&error, &self.keys.stream));
                }
                return;
            }
        };
        if matches!(reply, Value::Int(_)) {
            return;
        }
        let each = if let Value::Array(each) = &reply { each.as_slice() } else { &[] };
        for (at, &(item, ack)) in part.iter().enumerate() {
            let is_done = each.get(at).and_then(convert::number) == Some(1);
            if !(is_done || tried_before && was_done_before(ack.known_end())) {
                outcomes[item] = Err(lost(ack.id));
            }
        }
    }
}

impl Keys {
    pub(crate) fn of(&self, source: Source) -> &str {
        match source {
            Source::Stream => &self.stream,
            Source::Retry => &self.retry,
        }
    }
}

/// An entry that was read, and when.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) entry: Entry,
    pub(crate) read_at: Instant,
    extended: AtomicBool,
}

impl Held {
    pub(crate) fn new(entry: Entry, read_at: Instant) -> Self {
        Self { entry, read_at, extended: AtomicBool::new(false) }
    }
}

/// The lease on what one fetch handed out.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) session: Arc<Session>,
    pub(crate) entries: Vec<Held>,
}

impl Batch {
    fn held(&self, index: u32) -> &Held {
        // Core hands back the indexes that it was given.
        &self.entries[index as usize]
    }

    fn to_settle(&self, index: u32) -> ToSettle {
        let held = self.held(index);
        ToSettle {
            source: held.entry.source,
            id: held.entry.id,
            extended: held.extended.load(Ordering::Relaxed),
            until: held.read_at + self.session.pending_timeout,
        }
    }
}

impl Lease for Batch {
    fn message(&self, index: u32) -> &Message {
        &self.held(index).entry.message
    }

    fn message_id(&self, index: u32) -> MessageId {
        self.held(index).entry.first_id.into()
    }

    fn ack(&self, index: u32) -> QueueFuture<'_, Result<()>> {
        QueueFuture::pending(self.session.acks.submit(Acks::One(self.to_settle(index))))
    }

    fn ack_many<'a>(&'a self, indexes: &'a [u32]) -> QueueFuture<'a, Result<()>> {
        let acks = indexes.iter().map(|&index| self.to_settle(index)).collect();
        QueueFuture::pending(self.session.acks.submit(Acks::Many(acks)))
    }

    fn nack(&self, index: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        QueueFuture::pending(self.session.nack(self.to_settle(index), true, after))
    }

    fn release(&self, index: u32) -> QueueFuture<'_, Result<()>> {
        QueueFuture::pending(self.session.nack(self.to_settle(index), false, Duration::ZERO))
    }

    fn extend(&self, index: u32, by: Duration) -> QueueFuture<'_, Result<()>> {
        let held = self.held(index);
        held.extended.store(true, Ordering::Relaxed);
        QueueFuture::pending(self.session.extend(held.entry.source, held.entry.id, by))
    }

    fn abandon(&self, index: u32) {
        // Without a runtime the pending timeout brings the message back.
        let Ok(runtime) = Handle::try_current() else { return };
        let (session, held) = (Arc::clone(&self.session), self.to_settle(index));
        runtime.spawn(async move {
            // If this fails, the pending timeout does it.
            drop(session.nack(held, true, Duration::ZERO).await);
        });
    }
}

fn lost(id: Id) -> BuqueueError {
    let fact = format!("{} is no longer pending: its lease ran out", text(id));
    BuqueueError::new(ErrorKind::LeaseExpired, fact)
}

/// The text of an id, written from the end of the buffer.
fn digits(buffer: &mut [u8; 41], (high, low): Id) -> &[u8] {
    let mut at = buffer.len();
    for (mut number, last) in [(low, false), (high, true)] {
        loop {
            at -= 1;
            buffer[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        if !last {
            at -= 1;
            buffer[at] = b'-';
        }
    }
    &buffer[at..]
}

fn text((high, low): Id) -> String {
    format!("{high}-{low}")
}

fn flag(flag: bool) -> &'static str {
    if flag { "1" } else { "0" }
}

/// Whole milliseconds, rounded up: never early.
pub(crate) fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).min(1 << 52)
}
