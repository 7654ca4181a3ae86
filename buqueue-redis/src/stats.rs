//! How much lies before a group: one script that only reads.

use buqueue_core::{QueueStats, Result};
use redis::{RedisError, Value};

use crate::connection::Commands;
use crate::keys::Keys;
use crate::{convert, error, scripts};

/// Counts. Neither the stream nor the group needs to be there, and none is created.
pub(crate) async fn count(commands: &Commands, keys: &Keys, group: &str) -> Result<QueueStats> {
    let reply = commands
        .eval(&scripts::STATS, |cmd| {
            cmd.arg(4).arg(&keys.stream).arg(&keys.retry).arg(&keys.schedule).arg(&keys.delayed).arg(group);
        })
        .await;
    let fail = |error: &RedisError| error::convert(error, &keys.stream);
    let reply = reply.map_err(|error| fail(&error))?;
    read(&reply).ok_or_else(|| fail(&error::unexpected("EVALSHA")))
}

fn read(reply: &Value) -> Option<QueueStats> {
    let Value::Array(counts) = reply else { return None };
    let mut counts = counts.iter().map(|count| u64::try_from(convert::number(count)?).ok());
    let mut next = || counts.next().flatten();
    Some(QueueStats::of_ready(next()?).with_in_flight(next()?).with_scheduled(next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_of_another_shape_is_no_count() {
        let reply = |counts: &[i64]| Value::Array(counts.iter().copied().map(Value::Int).collect());
        let stats = QueueStats::of_ready(3).with_in_flight(2).with_scheduled(1);
        assert_eq!(read(&reply(&[3, 2, 1])), Some(stats));
        for wrong in [reply(&[3, 2]), reply(&[-1, 0, 0]), Value::Nil] {
            assert_eq!(read(&wrong), None, "{wrong:?}");
        }
    }
}
