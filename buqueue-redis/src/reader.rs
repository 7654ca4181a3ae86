//! The reader: one task per consumer, with a connection of its own, that reads what is asked for into a buffer.
//!
//! It reads on demand. An entry that was read counts as an attempt when the process dies, and no other consumer gets
//! it, so it reads ahead only while the buffer drains fast. Receiving takes from the buffer and is cancel-safe that
//! way; what nobody takes goes back.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, ErrorKind};
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::connection::{Connector, Link};
use crate::convert::{self, Entry, Id, Source};
use crate::error;
use crate::lease::{Held, Session};
use crate::reclaim::{self, Cursors};
use crate::scripts;

/// A blocking read is never longer, so that a dead connection is noticed.
const BLOCK_MAX: Duration = Duration::from_secs(2);
/// Where the server does not let us end a blocking read, it is short.
const BLOCK_SHORT: Duration = Duration::from_millis(250);
/// How much later than the server's own limit the answer may come, at least.
const GRACE: Duration = Duration::from_secs(3);
/// And at most, over a slow network.
const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// How long a connection may take to answer that it lives, when another one was found dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// The server's clock ticks in milliseconds, and it looks at it once for several commands.
const TICK: Duration = Duration::from_millis(50);
/// Patience that was not needed for this long goes back to what it was.
const RELAX: Duration = Duration::from_secs(120);
/// What one read of each stream may bring, as far as the sizes of the entries before tell.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// What the first read asks for, when nothing is known about sizes.
const FIRST_READ: usize = 8;
/// What an entry has besides its payload and headers.
const ENTRY_BYTES: usize = 64;
/// Entries that one script gives back.
const RELEASED_PER_CALL: usize = 500;
/// A receiver that is back within this time finds its read still waiting.
const WITHDRAWN: Duration = Duration::from_millis(100);
/// Entries that nobody takes go back after this time at the latest.
const STALE: Duration = Duration::from_secs(1);
/// How much time reading ahead may cover.
const AHEAD: Duration = Duration::from_millis(100);
/// A consumer that needs longer for a message gets nothing ahead.
const SLOW: Duration = Duration::from_millis(20);
/// A consumer that has earned this much is read ahead for even while it asks for nothing.
const PROVEN: usize = 8;
/// Passes of one prompt look over a long pending list.
const LOOK_PASSES: usize = 10;

/// What the consumer, its reader and its maintenance share.
#[derive(Debug)]
pub(crate) struct Shared {
    session: Arc<Session>,
    state: Mutex<State>,
    read_count: usize,
    stale_after: Duration,
    wake_reader: Notify,
    wake_fetch: Notify,
    closing: watch::Sender<bool>,
    finished: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    buffer: VecDeque<Held>,
    /// How many messages a receiver waits for.
    demand: usize,
    /// Prompt looks asked for and done.
    looks_asked: u64,
    looks_done: u64,
    failure: Option<BuqueueError>,
    /// How many entries are read beyond the demand.
    ahead: usize,
    /// When the buffer was filled last, and with how many.
    filled: Option<(Instant, usize)>,
    /// The reader waits at the server.
    blocked: bool,
    /// The buffer has just run empty under a fast consumer: read on while it works.
    read_on: bool,
}

impl Shared {
    pub(crate) fn new(session: Arc<Session>, read_count: usize) -> Self {
        let stale_after = STALE.min(session.pending_timeout / 4);
        Self {
            session,
            state: Mutex::default(),
            read_count,
            stale_after,
            wake_reader: Notify::new(),
            wake_fetch: Notify::new(),
            closing: watch::Sender::new(false),
            finished: watch::Sender::new(false),
        }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `max` entries from the buffer.
    pub(crate) fn take(&self, max: usize) -> Vec<Held> {
        let mut state = self.state();
        if state.buffer.is_empty() {
            return Vec::new();
        }
        let count = max.min(state.buffer.len());
        // What waited here for the whole lease (the process was suspended) belongs to somebody else by now.
        let lease = self.session.pending_timeout;
        let taken = {
            let now = Instant::now();
            let mut taken = Vec::with_capacity(count);
            taken.extend(
                state
                    .buffer
                    .drain(..count)
                    .filter(|held| now.saturating_duration_since(held.read_at) < lease),
            );
            taken
        };
        if state.buffer.is_empty() && state.ahead >= PROVEN {
            state.read_on = true;
            drop(state);
            self.wake_reader.notify_one();
        }
        taken
    }

    /// Asks for up to `max` messages until the demand is dropped. `look`: one prompt look, no waiting.
    pub(crate) fn demand(&self, max: usize, look: bool) -> Demand<'_> {
        let mut state = self.state();
        state.failure = None;
        state.demand = max;
        state.pace(self.read_count);
        let mut ticket = 0;
        if look {
            state.looks_asked += 1;
            ticket = state.looks_asked;
        }
        drop(state);
        self.wake_reader.notify_one();
        Demand { shared: self, ticket }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closing.borrow()
    }

    pub(crate) async fn closing(&self) {
        drop(self.closing.subscribe().wait_for(|closing| *closing).await);
    }

    /// Tells the reader and the maintenance to end.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
        self.wake_reader.notify_one();
        self.wake_fetch.notify_one();
    }

    /// Waits until the reader has given back what it had.
    pub(crate) async fn finished(&self) {
        drop(self.finished.subscribe().wait_for(|finished| *finished).await);
    }

    fn fill(&self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut state = self.state();
        let now = Instant::now();
        state.filled = Some((now, entries.len()));
        state.buffer.extend(entries.into_iter().map(|entry| Held::new(entry, now)));
        drop(state);
        self.wake_fetch.notify_one();
    }

    fn put_failure(&self, failure: BuqueueError) {
        self.state().failure = Some(failure);
        self.wake_fetch.notify_one();
    }
}

impl State {
    /// Learns from how long the last read lasted how far to read ahead.
    fn pace(&mut self, read_count: usize) {
        let Some((at, count)) = self.filled.take() else { return };
        let each = at.elapsed() / u32::try_from(count).unwrap_or(u32::MAX).max(1);
        if each > SLOW {
            self.ahead = 0;
            return;
        }
        let covered = AHEAD.as_nanos() / each.as_nanos().max(1);
        let covered = usize::try_from(covered).unwrap_or(usize::MAX);
        self.ahead = (self.ahead * 2).max(1).min(covered).min(read_count);
    }
}

/// A receiver that waits. Dropping it withdraws the demand.
#[derive(Debug)]
pub(crate) struct Demand<'a> {
    shared: &'a Shared,
    ticket: u64,
}

impl Demand<'_> {
    /// Waits until something happens: entries, a failure, the end.
    pub(crate) async fn woken(&self) {
        self.shared.wake_fetch.notified().await;
    }

    pub(crate) fn take_failure(&self) -> Option<BuqueueError> {
        self.shared.state().failure.take()
    }

    /// The look is over, or the consumer is.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_closed() || (self.ticket > 0 && self.shared.state().looks_done >= self.ticket)
    }
}

impl Drop for Demand<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.demand = 0;
        let blocked = state.blocked;
        drop(state);
        if blocked {
            self.shared.wake_reader.notify_one();
        }
    }
}

/// Whether the group's retry stream has something, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heat {
    /// Not as far as is known: wait on both streams.
    Cold,
    /// Messages that were given back unread: they come first, to keep the order.
    Released,
    /// Messages that have failed: in turn with the stream, so that they cannot starve it.
    Failed { stream_next: bool },
}

enum Task {
    Stop,
    Idle { stale_at: Option<Instant> },
    Look { ticket: u64, want: usize },
    Read { want: usize, count: usize },
    ReadOn { count: usize },
}

/// The task that reads.
#[derive(Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    link: Option<ReaderLink>,
    block: Duration,
    heat: Heat,
    cursors: Cursors,
    /// The group was gone at the last read too.
    group_was_gone: bool,
    pace: Pace,
    /// The last read, while its reply has not come.
    unanswered: Option<Request>,
    /// The last id that came from the stream, and from the retry stream.
    seen: (Id, Id),
}

/// How much a read asks for, and how long its transfer may take.
#[derive(Debug)]
struct Pace {
    /// As many entries as came in time before, or twice as many.
    most: usize,
    /// The size of an entry, in bytes: quick to grow, slow to shrink.
    size: usize,
    /// How much later than the server's own limit the answer may come.
    patience: Duration,
    usual_patience: Duration,
    grown_at: Option<Instant>,
    /// A read was too slow, and none has brought entries since.
    was_too_slow: bool,
}

/// A read that was sent.
#[derive(Debug, Clone, Copy)]
struct Request {
    at: Instant,
    count: usize,
    timed_out: bool,
}

impl Pace {
    fn new(read_count: usize, usual_patience: Duration) -> Self {
        let most = FIRST_READ.min(read_count);
        Self { most, size: 0, patience: usual_patience, usual_patience, grown_at: None, was_too_slow: false }
    }

    /// What one read may ask for.
    fn most(&self) -> usize {
        self.most.min(READ_BYTES / self.size.max(1)).max(1)
    }

    /// A read has brought entries, `size` bytes each, `after` this time.
    fn arrived(&mut self, size: usize, after: Duration, read_count: usize) {
        self.size = size.max(usize::midpoint(self.size, size));
        if after < self.patience / 2 {
            self.most = (self.most * 2).min(read_count);
        }
        self.was_too_slow = false;
        self.answered();
    }

    fn answered(&mut self) {
        if self.grown_at.is_some_and(|at| at.elapsed() > RELAX) {
            self.patience = self.usual_patience;
            self.grown_at = None;
        }
    }

    /// Entries were on their way when the time was up. The first time the connection may have died under them, and who
    /// is patient with the dead finds out late.
    fn too_slow(&mut self) {
        if !std::mem::replace(&mut self.was_too_slow, true) {
            return;
        }
        self.patience = (self.patience * 2).min(PATIENCE_MAX).max(self.usual_patience);
        self.grown_at = Some(Instant::now());
    }
}

struct ReaderLink {
    link: Link,
    /// The breaks of the command connection when this one was last known to live.
    breaks: u64,
    /// The server's name for this connection, by which a blocking read is ended.
    client_id: Option<i64>,
}

impl std::fmt::Debug for ReaderLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReaderLink").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Reader {
    /// Connects the reader. `block_ms` as the user has set it.
    pub(crate) async fn connect(
        shared: Arc<Shared>,
        connector: Arc<Connector>,
        block_ms: u64,
    ) -> RedisResult<Self> {
        let block = match block_ms {
            0 => BLOCK_MAX,
            ms => Duration::from_millis(ms).min(BLOCK_MAX),
        };
        let (heat, cursors) = (Heat::Released, Cursors::default());
        let pace = Pace::new(shared.read_count, GRACE.max(shared.session.commands.timeout()));
        let mut reader = Self {
            shared,
            connector,
            link: None,
            block,
            heat,
            cursors,
            group_was_gone: false,
            pace,
            unanswered: None,
            seen: ((0, 0), (0, 0)),
        };
        let link = reader.connector.connect().await?;
        reader.link = Some(reader.name(link).await);
        Ok(reader)
    }

    async fn name(&self, mut link: Link) -> ReaderLink {
        let breaks = self.shared.session.commands.breaks();
        let client_id = if self.connector.is_cluster() {
            None
        } else {
            let id = timeout(GRACE, link.query(redis::cmd("CLIENT").arg("ID"))).await;
            id.ok().and_then(Result::ok).as_ref().and_then(convert::number)
        };
        ReaderLink { link, breaks, client_id }
    }

    /// Reads until the consumer is closed, then gives back what nobody took.
    pub(crate) async fn run(mut self) {
        loop {
            match self.next_task() {
                Task::Stop => break,
                Task::Idle { stale_at } => self.idle(stale_at).await,
                Task::Look { ticket, want } => {
                    let outcome = self.look(want).await;
                    self.conclude(outcome);
                    self.shared.state().looks_done = ticket;
                    self.shared.wake_fetch.notify_one();
                }
                Task::Read { want, count } => {
                    let outcome = self.read(want, count).await;
                    self.conclude(outcome);
                }
                Task::ReadOn { count } => {
                    // Nobody waits for it: a failure is found again by the next who does.
                    if let Err(error) = self.read_on(count).await
                        && error::breaks_connection(&error)
                    {
                        self.disconnect();
                    }
                }
            }
        }
        let left: Vec<Held> = self.shared.state().buffer.drain(..).collect();
        self.release(left.iter().map(|held| (held.entry.source, held.entry.id)).collect()).await;
        let session = &self.shared.session;
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(2).arg(&session.keys.stream).arg(&session.keys.retry);
            cmd.arg(&*session.group).arg(&session.consumer);
        };
        // Only tidiness: a consumer that stays registered does no harm.
        drop(session.commands.eval(&scripts::LEAVE, arguments).await);
        self.shared.finished.send_replace(true);
    }

    fn next_task(&self) -> Task {
        if self.shared.is_closed() {
            return Task::Stop;
        }
        let mut state = self.shared.state();
        let read_on = std::mem::take(&mut state.read_on);
        if state.looks_asked > state.looks_done {
            let want = state.demand.clamp(1, self.pace.most());
            return Task::Look { ticket: state.looks_asked, want };
        }
        if state.demand > 0 && state.buffer.is_empty() && state.failure.is_none() {
            let most = self.pace.most();
            return Task::Read {
                want: state.demand.min(most),
                count: state.demand.saturating_add(state.ahead).min(most),
            };
        }
        // What was given back or has failed is for those who ask.
        if read_on && state.buffer.is_empty() && self.heat == Heat::Cold && self.link.is_some() {
            return Task::ReadOn { count: state.ahead.min(self.pace.most()).max(1) };
        }
        Task::Idle { stale_at: state.buffer.front().map(|held| held.read_at + self.shared.stale_after) }
    }

    /// Waits for something to do; entries that nobody takes go back.
    async fn idle(&mut self, stale_at: Option<Instant>) {
        let woken = self.shared.wake_reader.notified();
        let Some(stale_at) = stale_at else { return woken.await };
        tokio::select! {
            () = woken => return,
            () = sleep(stale_at.saturating_duration_since(Instant::now())) => {}
        }
        let stale: Vec<(Source, Id)> = {
            let mut state = self.shared.state();
            if state.demand > 0
                || state.buffer.front().is_none_or(|held| held.read_at.elapsed() < self.shared.stale_after)
            {
                return;
            }
            state.ahead = 0;
            state.filled = None;
            // All of them: those behind would overtake.
            state.buffer.drain(..).map(|held| (held.entry.source, held.entry.id)).collect()
        };
        self.release(stale).await;
        // And before all that was not read yet.
        self.heat = Heat::Released;
    }

    /// Makes a failure known, and drops a connection that is of no more use.
    fn conclude(&mut self, outcome: RedisResult<()>) {
        let Err(error) = outcome else { return };
        if error::breaks_connection(&error) {
            self.disconnect();
        }
        let failure = if error::is_group_gone(&error) {
            let session = &self.shared.session;
            let fact = format!("the group {:?} of {:?} is gone", session.group, session.keys.stream);
            BuqueueError::new(ErrorKind::Throttled, format!("{fact} and being created again"))
                .with_source(error)
        } else {
            error::convert(&error, &self.shared.session.keys.stream)
        };
        self.shared.put_failure(failure);
    }

    fn disconnect(&mut self) {
        self.link = None;
        if self.unanswered.is_some_and(|request| request.timed_out) {
            // It goes the same way, and may be as dead; what waits for it there is not disturbed.
            self.shared.session.commands.reset();
            self.pace.most = 1;
            let mut state = self.shared.state();
            state.ahead = 0;
            state.filled = None;
        }
    }

    /// One prompt look: what is due is moved first, so that it is found too.
    async fn look(&mut self, want: usize) -> RedisResult<()> {
        self.ensure_link().await?;
        let deadline = self.pace.patience;
        for pass in 1..=LOOK_PASSES {
            let session = Arc::clone(&self.shared.session);
            let mut pipeline = Pipeline::with_capacity(2);
            let mut maintain = scripts::MAINTAIN.by_hash();
            reclaim::write_pass(&mut maintain, &session, &self.cursors);
            pipeline.add_command(maintain);
            pipeline.add_command(self.read_both(want, None));
            let Some(reader) = &mut self.link else { return Err(error::unreachable()) };
            self.unanswered = Some(Request::new(want));
            let request = reader.link.query_all(&pipeline);
            let replies = timeout(deadline, request).await.unwrap_or_else(|_| Err(error::timed_out()));
            let replies = self.answered(replies)?;
            let mut replies = replies.into_iter();
            let (maintained, read) = (replies.next().unwrap_or_default(), replies.next().unwrap_or_default());
            let maintained = match maintained.extract_error() {
                // Nothing was moved by this pass; sent as text, the script is known to the next one.
                Err(error) if error.code() == Some("NOSCRIPT") => {
                    let mut cmd = scripts::MAINTAIN.by_text();
                    reclaim::write_pass(&mut cmd, &session, &self.cursors);
                    let Some(reader) = &mut self.link else { return Err(error::unreachable()) };
                    let request = reader.link.query(&cmd);
                    let reply = timeout(deadline, request).await.unwrap_or_else(|_| Err(error::timed_out()));
                    if self.accept(read.extract_error(), want, want).await? {
                        return Ok(());
                    }
                    let maintained = reclaim::read_pass(reply?)?;
                    session.moved.note(&maintained);
                    self.cursors = maintained.cursors;
                    continue;
                }
                maintained => maintained.and_then(reclaim::read_pass),
            };
            let found = self.accept(read.extract_error(), want, want).await?;
            let maintained = maintained?;
            session.moved.note(&maintained);
            self.cursors = maintained.cursors;
            if found || self.has_entries() || !maintained.more || pass == LOOK_PASSES {
                return Ok(());
            }
        }
        Ok(())
    }

    fn has_entries(&self) -> bool {
        !self.shared.state().buffer.is_empty()
    }

    /// Waits for entries: `want` are asked for, `count` at most are taken.
    async fn read(&mut self, want: usize, count: usize) -> RedisResult<()> {
        self.ensure_link().await?;
        match self.heat {
            Heat::Cold => {}
            Heat::Released => {
                // Never ahead: what is given back again would go behind what is still there.
                if self.read_now(Source::Retry, want, want).await? {
                    return Ok(());
                }
            }
            Heat::Failed { stream_next } => {
                self.heat = Heat::Failed { stream_next: !stream_next };
                if stream_next && self.read_now(Source::Stream, want, count).await? {
                    return Ok(());
                }
                if self.read_now(Source::Retry, want, want).await? {
                    return Ok(());
                }
            }
        }
        self.heat = Heat::Cold;
        let reply = self.read_blocking(count).await;
        self.accept(reply, want, count).await?;
        Ok(())
    }

    /// Reads what is there for a fast consumer that has not asked yet.
    async fn read_on(&mut self, count: usize) -> RedisResult<()> {
        let cmd = self.read_both(count, None);
        let reply = self.query(&cmd, count).await;
        // What has failed before is not for somebody who did not ask.
        self.accept(reply, 0, count).await?;
        Ok(())
    }

    async fn read_now(&mut self, source: Source, want: usize, count: usize) -> RedisResult<bool> {
        let session = Arc::clone(&self.shared.session);
        let mut cmd = self.read_command(count, None);
        cmd.arg(if source == Source::Retry { &session.keys.retry } else { &session.keys.stream }).arg(">");
        let reply = self.query(&cmd, count).await;
        let heat = self.heat;
        let found = self.accept(reply, want, count).await?;
        if source == Source::Stream {
            // Reading the stream alone says nothing about the retry stream.
            self.heat = heat;
        }
        Ok(found)
    }

    fn read_command(&self, count: usize, block: Option<Duration>) -> Cmd {
        let session = &self.shared.session;
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP").arg(&*session.group).arg(&session.consumer).arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(crate::lease::millis_up(block));
        }
        cmd.arg("STREAMS");
        cmd
    }

    fn read_both(&self, count: usize, block: Option<Duration>) -> Cmd {
        let mut cmd = self.read_command(count, block);
        cmd.arg(&self.shared.session.keys.retry).arg(&self.shared.session.keys.stream).arg(">").arg(">");
        cmd
    }

    /// Sends a read that does not wait at the server.
    async fn query(&mut self, cmd: &Cmd, count: usize) -> RedisResult<Value> {
        let Some(reader) = &mut self.link else { return Err(error::unreachable()) };
        self.unanswered = Some(Request::new(count));
        let request = timeout(self.pace.patience, reader.link.query(cmd));
        let reply = request.await.unwrap_or_else(|_| Err(error::timed_out()));
        self.answered(reply)
    }

    /// Notes how a read has ended.
    fn answered<T>(&mut self, reply: RedisResult<T>) -> RedisResult<T> {
        match &reply {
            Err(error) if error::breaks_connection(error) => {
                if let Some(request) = &mut self.unanswered {
                    request.timed_out = error.is_timeout();
                }
            }
            Err(_) => self.unanswered = None,
            Ok(_) => self.pace.answered(),
        }
        reply
    }

    async fn read_blocking(&mut self, count: usize) -> RedisResult<Value> {
        let can_end = self.link.as_ref().is_some_and(|reader| reader.client_id.is_some());
        let block = if can_end { self.block } else { self.block.min(BLOCK_SHORT) };
        let cmd = self.read_both(count, Some(block));
        let deadline = block + self.pace.patience;
        let Some(reader) = &mut self.link else { return Err(error::unreachable()) };
        self.unanswered = Some(Request::new(count));
        self.shared.state().blocked = true;
        let outcome = {
            let mut request = pin!(timeout(deadline, reader.link.query(&cmd)));
            let mut outcome = None;
            while outcome.is_none() {
                tokio::select! {
                    biased;
                    reply = &mut request => outcome = Some(reply),
                    () = unwanted(&self.shared) => {
                        let unblocked = unblock(&self.shared, reader.client_id).await;
                        // The request may not have been at the server yet: then once more.
                        let wait = if unblocked { Duration::from_millis(20) } else { deadline };
                        if let Ok(reply) = timeout(wait, &mut request).await {
                            outcome = Some(reply);
                        } else if !unblocked {
                            outcome = Some(Ok(Err(error::timed_out())));
                        }
                        if !unblocked {
                            reader.client_id = None;
                        }
                    }
                }
            }
            outcome
        };
        self.shared.state().blocked = false;
        let reply = outcome.unwrap_or(Ok(Ok(Value::Nil))).unwrap_or_else(|_| Err(error::timed_out()));
        self.answered(reply)
    }

    /// Takes a reply apart: what is wanted goes into the buffer, what is too much goes back. Whether there was any.
    async fn accept(&mut self, reply: RedisResult<Value>, want: usize, count: usize) -> RedisResult<bool> {
        let reply = match reply {
            Err(error) if error::is_group_gone(&error) => return self.restore_group(error).await,
            reply => reply?,
        };
        self.group_was_gone = false;
        let request = self.unanswered.take();
        let (retry, stream) = convert::read_entries(reply, &self.shared.session.keys.retry)?;
        if retry.is_empty() && stream.is_empty() {
            return Ok(false);
        }
        if let Some(last) = stream.last() {
            self.seen.0 = last.id;
        }
        if let Some(last) = retry.last() {
            self.seen.1 = last.id;
        }
        let bytes: usize = retry.iter().chain(&stream).map(size).sum();
        let after = request.map_or(Duration::ZERO, |request| request.at.elapsed());
        self.pace.arrived(bytes / (retry.len() + stream.len()), after, self.shared.read_count);
        if !retry.is_empty() {
            let all_failed = retry.iter().all(|entry| entry.attempts > 0);
            self.heat = match self.heat {
                failed @ Heat::Failed { .. } if all_failed => failed,
                _ if all_failed => Heat::Failed { stream_next: true },
                _ => Heat::Released,
            };
        }
        let (keep, excess) = sort_out(retry, stream, want, count);
        self.shared.fill(keep);
        self.release(excess).await;
        Ok(true)
    }

    async fn restore_group(&mut self, error: RedisError) -> RedisResult<bool> {
        let session = &self.shared.session;
        crate::backend::create_groups(&session.commands, &session.keys, &session.group).await?;
        // Gone once is repaired on the spot; gone twice in a row is left to core's back-off.
        if !std::mem::replace(&mut self.group_was_gone, true) {
            return Ok(false);
        }
        // The two connections may lead to different servers.
        session.commands.reset();
        self.link = None;
        Err(error)
    }

    /// Gives entries back unread, in order. What cannot be given back comes when its lease runs out.
    async fn release(&self, entries: Vec<(Source, Id)>) {
        for run in entries.chunk_by(|(a, _), (b, _)| a == b) {
            for part in run.chunks(RELEASED_PER_CALL) {
                let ids: Vec<Id> = part.iter().map(|&(_, id)| id).collect();
                drop(self.shared.session.again(part[0].0, &ids, false, Duration::ZERO, None).await);
            }
        }
    }

    /// Gives back, uncounted, what the server has sent on a connection that broke before it was here.
    async fn recover(&mut self, request: Request) -> RedisResult<()> {
        let mut lost = Vec::new();
        for source in [Source::Retry, Source::Stream] {
            let session = &self.shared.session;
            let seen = if source == Source::Retry { self.seen.1 } else { self.seen.0 };
            let mut cmd = redis::cmd("XPENDING");
            cmd.arg(session.keys.of(source)).arg(&*session.group).arg(format!("({}-{}", seen.0, seen.1));
            cmd.arg("+").arg(request.count).arg(&session.consumer);
            let Some(reader) = &mut self.link else { return Err(error::unreachable()) };
            let reply = timeout(GRACE, reader.link.query(&cmd)).await;
            let Value::Array(rows) = reply.unwrap_or_else(|_| Err(error::timed_out()))? else { continue };
            for row in rows {
                let Value::Array(row) = row else { continue };
                let id = row.first().and_then(convert::bytes).and_then(convert::parse_id);
                // An older one is of a consumer that had the same name before.
                let idle = row.get(2).and_then(convert::number).and_then(|idle| u64::try_from(idle).ok());
                if let (Some(id), Some(idle)) = (id, idle)
                    && Duration::from_millis(idle) <= request.at.elapsed() + TICK
                {
                    lost.push((source, id));
                }
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        if request.timed_out {
            self.pace.too_slow();
        }
        self.release(lost).await;
        Ok(())
    }

    async fn ensure_link(&mut self) -> RedisResult<()> {
        let breaks = self.shared.session.commands.breaks();
        if let Some(reader) = self.link.as_mut().filter(|reader| reader.breaks != breaks) {
            // Cheaper than to find out by a read that is not answered.
            let answer = timeout(SIGN_OF_LIFE, reader.link.query(&redis::cmd("PING"))).await;
            reader.breaks = breaks;
            if !matches!(answer, Ok(Ok(_))) {
                self.disconnect();
            }
        }
        if self.link.is_none() {
            let link = self.connector.reconnect().await?;
            self.link = Some(self.name(link).await);
            self.heat = Heat::Released;
            if let Some(request) = self.unanswered.take() {
                // What cannot be given back comes when its lease runs out.
                drop(self.recover(request).await);
            }
        }
        Ok(())
    }
}

impl Request {
    fn new(count: usize) -> Self {
        Self { at: Instant::now(), count, timed_out: false }
    }
}

fn size(entry: &Entry) -> usize {
    entry.message.payload().len() + entry.message.headers().byte_len() + ENTRY_BYTES
}

/// Waits until the blocking read should end early: nobody wants it, or somebody wants another.
async fn unwanted(shared: &Shared) {
    loop {
        let withdrawn = {
            let state = shared.state();
            if state.looks_asked > state.looks_done || shared.is_closed() {
                return;
            }
            state.demand == 0
        };
        if withdrawn {
            tokio::select! {
                () = sleep(WITHDRAWN) => return,
                () = shared.wake_reader.notified() => {}
            }
        } else {
            shared.wake_reader.notified().await;
        }
    }
}

/// Ends the blocking read at the server; false where that is not possible.
async fn unblock(shared: &Shared, client_id: Option<i64>) -> bool {
    let Some(id) = client_id else { return false };
    shared.session.commands.query(redis::cmd("CLIENT").arg("UNBLOCK").arg(id)).await.is_ok()
}

/// Sorts what was read into what is kept and what goes back.
fn sort_out(
    retry: Vec<Entry>,
    stream: Vec<Entry>,
    want: usize,
    count: usize,
) -> (Vec<Entry>, Vec<(Source, Id)>) {
    if retry.is_empty() && stream.len() <= count {
        return (stream, Vec::new());
    }
    // More of the retry stream may be waiting, and it comes before the stream.
    let retry_is_full = retry.len() >= count;
    let mut keep = Vec::with_capacity(retry.len() + stream.len());
    let mut excess = Vec::new();
    for entry in retry {
        // What has failed before is never read ahead.
        if keep.len() < want || entry.attempts == 0 {
            keep.push(entry);
        } else {
            excess.push((entry.source, entry.id));
        }
    }
    for entry in stream {
        if keep.len() < count && !retry_is_full {
            keep.push(entry);
        } else {
            excess.push((entry.source, entry.id));
        }
    }
    (keep, excess)
}

#[cfg(test)]
mod tests {
    use buqueue_core::Message;

    use super::*;

    fn entries(source: Source, attempts: u32, ids: std::ops::Range<u64>) -> Vec<Entry> {
        let entry = |id| Entry {
            source,
            id: (id, 0),
            first_id: (id, 0),
            message: Message::new(""),
            attempts,
            first_failed_at: None,
        };
        ids.map(entry).collect()
    }

    fn sorted(retry: Vec<Entry>, stream: Vec<Entry>, want: usize, count: usize) -> (Vec<u64>, Vec<u64>) {
        let (keep, excess) = sort_out(retry, stream, want, count);
        (keep.iter().map(|entry| entry.id.0).collect(), excess.iter().map(|(_, id)| id.0).collect())
    }

    #[test]
    fn what_failed_is_not_read_ahead_and_nothing_overtakes() {
        let retry = |attempts, ids| entries(Source::Retry, attempts, ids);
        let stream = |ids| entries(Source::Stream, 0, ids);
        assert_eq!(sorted(retry(1, 0..0), stream(0..3), 1, 3), (vec![0, 1, 2], vec![]));
        // One too many, because each stream is counted by itself.
        assert_eq!(sorted(retry(1, 0..1), stream(10..11), 1, 1), (vec![0], vec![10]));
        assert_eq!(sorted(retry(1, 0..3), stream(10..11), 1, 4), (vec![0, 10], vec![1, 2]));
        // Given back unread: may be read ahead, and the stream waits while more may be there.
        assert_eq!(sorted(retry(0, 0..3), stream(10..13), 1, 3), (vec![0, 1, 2], vec![10, 11, 12]));
        assert_eq!(sorted(retry(0, 0..2), stream(10..13), 1, 3), (vec![0, 1, 10], vec![11, 12]));
    }

    #[test]
    fn reads_ahead_only_while_the_buffer_drains_fast() {
        let mut state = State::default();
        let mut read = |since: Duration, count| {
            state.filled = Instant::now().checked_sub(since).map(|at| (at, count));
            state.pace(100);
            state.ahead
        };
        let fast = Duration::from_micros(100);
        let ahead: Vec<usize> = (0..9).map(|_| read(fast, 1)).collect();
        assert_eq!(ahead, [1, 2, 4, 8, 16, 32, 64, 100, 100]);
        // 10 ms a message: as many as 100 ms cover.
        assert!(read(Duration::from_millis(100), 10) <= 10);
        assert_eq!(read(Duration::from_secs(1), 10), 0);
        assert_eq!(read(fast, 1), 1);
    }

    #[test]
    fn large_and_slow_entries_are_read_few_at_a_time_and_patiently() {
        let usual = Duration::from_secs(5);
        let mut pace = Pace::new(100, usual);
        assert_eq!(pace.most(), FIRST_READ);
        for _ in 0..4 {
            pace.arrived(100, Duration::from_millis(1), 100);
        }
        assert_eq!(pace.most(), 100);
        pace.arrived(1024 * 1024, Duration::from_secs(1), 100);
        assert_eq!(pace.most(), 4);
        pace.most = 1;
        pace.too_slow();
        assert_eq!(pace.patience, usual, "the connection may have died");
        pace.arrived(1024 * 1024, Duration::from_secs(4), 100);
        pace.too_slow();
        assert_eq!(pace.patience, usual, "another one may have died");
        pace.answered();
        pace.too_slow();
        assert_eq!((pace.most(), pace.patience), (1, usual * 2));
        for _ in 0..4 {
            pace.too_slow();
        }
        // It came, but a second one with it would have been too late.
        pace.arrived(1024 * 1024, Duration::from_secs(40), 100);
        assert_eq!((pace.most(), pace.patience), (1, PATIENCE_MAX));
        for _ in 0..20 {
            pace.arrived(100, Duration::from_millis(1), 100);
        }
        assert_eq!(pace.most(), 100);
    }
}
