//! The maintenance of a running consumer: it moves schedules and delayed retries that are due, takes back what was
//! not settled in time, and trims what every group is done with.
//!
//! Every consumer does this. Each step is one atomic script, so they do not get in one another's way.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use buqueue_core::Backoff;
use redis::{Cmd, RedisResult, Value};
use tokio::time::{Instant, sleep};

use crate::convert;
use crate::error;
use crate::lease::{Session, millis_up};
use crate::reader::Shared;
use crate::scripts;

/// A schedule that somebody else has added is noticed within this time.
const INTERVAL: Duration = Duration::from_millis(200);
const TRIM_INTERVAL: Duration = Duration::from_secs(5);
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
    let cursor = |at: usize| {
        let text = fields.get(at).and_then(convert::bytes).and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.unwrap_or("0-0").to_owned()
    };
    Ok(Pass {
        next_due: u64::try_from(number(0)).ok().map(Duration::from_millis),
        more: number(1) == 1,
        cursors: Cursors(cursor(2), cursor(3)),
        group_gone: number(4) == 1,
    })
}

/// Runs until the consumer is closed.
pub(crate) async fn maintain(shared: &Shared) {
    let session = shared.session();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut cursors = Cursors::default();
    let mut trim_at = Instant::now() + jittered(TRIM_INTERVAL);
    while !shared.is_closed() {
        let pause = match passes(session, &mut cursors).await {
            Ok(next_due) => {
                backoff.reset();
                next_due.unwrap_or(INTERVAL).clamp(Duration::from_millis(1), jittered(INTERVAL))
            }
            Err(_) => backoff.next_delay(),
        };
        if Instant::now() >= trim_at {
            // Failing is no harm: the next one deletes as much.
            drop(
                session
                    .commands
                    .eval(&scripts::TRIM, |cmd| {
                        cmd.arg(1).arg(&session.keys.stream);
                    })
                    .await,
            );
            trim_at = Instant::now() + jittered(TRIM_INTERVAL);
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.closing() => {}
        }
    }
}

async fn passes(session: &Session, cursors: &mut Cursors) -> RedisResult<Option<Duration>> {
    for _ in 0..PASSES {
        let reply =
            session.commands.eval(&scripts::MAINTAIN, |cmd| write_pass(cmd, session, cursors)).await?;
        let pass = read_pass(reply)?;
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
