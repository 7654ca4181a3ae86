//! The maintenance of a running consumer: it moves schedules and delayed retries that are due, takes back what was
//! not settled in time, and trims what every group is done with.
//!
//! Every consumer does this. Each step is one atomic script, so they do not get in one another's way.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buqueue_core::Backoff;
use buqueue_core::driver::{self, Activity, Backend as _};
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::time::{Instant, sleep};

use crate::RedisBackend;
use crate::convert;
use crate::error;
use crate::lease::{Session, millis_up};
use crate::reader::Shared;
use crate::scripts;

/// A schedule that somebody else has added is noticed within this time.
const INTERVAL: Duration = Duration::from_millis(200);
const TRIM_INTERVAL: Duration = Duration::from_secs(5);
/// What was moved is told of this often at most.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Passes in a row that found more to do, before others get a turn.
const PASSES: usize = 10;

/// Where the next pass over each pending list starts.
#[derive(Debug, Clone)]
pub(crate) struct Cursors(String, String);

impl Default for Cursors {
    fn default() -> Self {
        Self("0-0".to_owned(), "0-0".to_owned())
    }
}

/// What one pass found.
pub(crate) struct Pass {
    /// When the next schedule or delayed retry is due.
    pub(crate) next_due: Option<Duration>,
    pub(crate) more: bool,
    pub(crate) cursors: Cursors,
    pub(crate) group_gone: bool,
    forwarded: usize,
    reclaimed: usize,
}

/// What was moved since it was told of last.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    forwarded: AtomicUsize,
    reclaimed: AtomicUsize,
}

impl Moved {
    pub(crate) fn note(&self, pass: &Pass) {
        self.forwarded.fetch_add(pass.forwarded, Ordering::Relaxed);
        self.reclaimed.fetch_add(pass.reclaimed, Ordering::Relaxed);
    }

    fn tell(&self, stream: &str) {
        let forwarded = self.forwarded.swap(0, Ordering::Relaxed);
        if forwarded > 0 {
            driver::tell(RedisBackend::NAME, stream, Activity::Forwarded(forwarded));
        }
        let reclaimed = self.reclaimed.swap(0, Ordering::Relaxed);
        if reclaimed > 0 {
            driver::tell(RedisBackend::NAME, stream, Activity::Reclaimed(reclaimed));
        }
    }
}

/// One of the works of the maintenance, of whose failure is told when it begins.
struct Work {
    what: &'static str,
    failing: bool,
}

impl Work {
    fn new(what: &'static str) -> Self {
        Self { what, failing: false }
    }

    fn failed(&mut self, stream: &str, error: &RedisError) {
        // A connection that breaks is told of where it is made.
        if !error::breaks_connection(error) && !std::mem::replace(&mut self.failing, true) {
            let error = error::convert(error, stream);
            driver::tell(RedisBackend::NAME, stream, Activity::Failed(self.what, &error));
        }
    }

    fn done(&mut self) {
        self.failing = false;
    }
}

/// Writes the arguments of a pass.
pub(crate) fn write_pass(cmd: &mut Cmd, session: &Session, cursors: &Cursors) {
    let keys = &session.keys;
    cmd.arg(6).arg(&keys.stream).arg(&keys.retry).arg(&keys.schedule).arg(&keys.delayed).arg(&keys.holds);
    cmd.arg(&keys.broken).arg(&*session.group).arg(millis_up(session.pending_timeout));
    cmd.arg(&cursors.0).arg(&cursors.1);
}

/// Reads the reply of a pass.
pub(crate) fn read_pass(reply: Value) -> RedisResult<Pass> {
    let Value::Array(fields) = reply.extract_error()? else { return Err(error::unexpected("EVALSHA")) };
    let number = |at: usize| fields.get(at).and_then(convert::number).unwrap_or(0);
    let count = |at: usize| usize::try_from(number(at)).unwrap_or(0);
    let cursor = |at: usize| {
        let text = fields.get(at).and_then(convert::bytes).and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.unwrap_or("0-0").to_owned()
    };
    Ok(Pass {
        next_due: u64::try_from(number(0)).ok().map(Duration::from_millis),
        more: number(1) == 1,
        cursors: Cursors(cursor(2), cursor(3)),
        group_gone: number(4) == 1,
        forwarded: count(5),
        reclaimed: count(6),
    })
}

/// Runs until the consumer is closed.
pub(crate) async fn maintain(shared: &Shared) {
    let session = shared.session();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut cursors = Cursors::default();
    let mut trim_at = Instant::now() + jittered(TRIM_INTERVAL);
    let mut tell_at = Instant::now();
    let stream = &session.keys.stream;
    let mut moving = Work::new("moving what is due, and what was not settled in time,");
    let mut trimming = Work::new("deleting what every group is done with");
    while !shared.is_closed() {
        let pause = match passes(session, &mut cursors).await {
            Ok(next_due) => {
                backoff.reset();
                moving.done();
                next_due.unwrap_or(INTERVAL).clamp(Duration::from_millis(1), jittered(INTERVAL))
            }
            Err(error) => {
                moving.failed(stream, &error);
                backoff.next_delay()
            }
        };
        if Instant::now() >= tell_at {
            session.moved.tell(stream);
            tell_at = Instant::now() + TELL_INTERVAL;
        }
        if Instant::now() >= trim_at {
            let arguments = |cmd: &mut Cmd| {
                cmd.arg(1).arg(stream);
            };
            match session.commands.eval(&scripts::TRIM, arguments).await {
                Ok(_) => trimming.done(),
                // No harm: the next one deletes as much.
                Err(error) => trimming.failed(stream, &error),
            }
            trim_at = Instant::now() + jittered(TRIM_INTERVAL);
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.closing() => {}
        }
    }
    session.moved.tell(stream);
}

async fn passes(session: &Session, cursors: &mut Cursors) -> RedisResult<Option<Duration>> {
    for _ in 0..PASSES {
        let reply =
            session.commands.eval(&scripts::MAINTAIN, |cmd| write_pass(cmd, session, cursors)).await?;
        let pass = read_pass(reply)?;
        session.moved.note(&pass);
        *cursors = pass.cursors;
        if pass.group_gone {
            crate::backend::create_groups(&session.commands, &session.keys, &session.group).await?;
        }
        if !pass.more {
            return Ok(pass.next_due);
        }
    }
    Ok(Some(Duration::ZERO))
}

/// Three quarters to the whole of it, so that many consumers do not come at once.
fn jittered(interval: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 256;
    interval * 3 / 4 + interval * u32::try_from(random).unwrap_or(0) / 1024
}
