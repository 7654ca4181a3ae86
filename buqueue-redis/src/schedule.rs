//! `send_at`: the sorted set of what is to be sent later.
//!
//! The sending side only puts messages there, scored with their time. Every running consumer moves what is due, in
//! one atomic script by the server's clock; see [`reclaim`](crate::reclaim).

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use buqueue_core::Message;
use chrono::{DateTime, Utc};
use redis::{RedisResult, Value};

use crate::connection::Commands;
use crate::convert;
use crate::keys::Keys;
use crate::scripts;

/// Sends now when `deliver_at` has passed at the server, else puts the message into the schedule. The id.
pub(crate) async fn send_at(
    commands: &Commands,
    keys: &Keys,
    message: &Message,
    deliver_at: DateTime<Utc>,
    window: Duration,
) -> RedisResult<Value> {
    let dedup = message.broker_deduplication_id().map(|id| keys.dedup(id));
    let due = due_millis(deliver_at);
    // Sorts by the order of sending among messages that are due together, as far as one process is concerned.
    let id = format!("{due}-{}", unique());
    commands
        .eval(&scripts::SEND_AT, |cmd| {
            cmd.arg(if dedup.is_some() { 3 } else { 2 }).arg(&keys.stream).arg(&keys.schedule);
            if let Some(dedup) = &dedup {
                cmd.arg(dedup);
            }
            cmd.arg(due).arg(&id).arg(crate::lease::millis_up(window));
            convert::write_fields(cmd, message);
        })
        .await
}

/// Rounded up: never early.
fn due_millis(at: DateTime<Utc>) -> i64 {
    let millis = at.timestamp_millis();
    let whole = DateTime::from_timestamp_millis(millis).is_some_and(|whole| whole >= at);
    if whole { millis } else { millis + 1 }
}

fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // The standard hasher is seeded at random for each process and each call.
    format!("{count:010x}{:016x}", RandomState::new().hash_one(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up() {
        let at = |nanos| due_millis(DateTime::from_timestamp(1, nanos).unwrap());
        assert_eq!((at(0), at(1), at(999_999), at(1_000_000)), (1000, 1001, 1001, 1001));
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 1000);
    }
}
