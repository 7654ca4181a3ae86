//! What lies in a stream, as the server counts it. Reads, and changes nothing.

use async_nats::jetstream::stream;
use buqueue_core::{ErrorKind, QueueStats, Result};
use serde_json::{Value, json};

use crate::config::{NatsConfig, check_name};
use crate::connection::Link;
use crate::error::{self, code};
use crate::subject;
use crate::topology::{consumer_info, delay_stream, scheduling_is_on};

/// A place behind the last subject that any stream has: the server counts the subjects then, and lists none.
const BEHIND_ALL: i32 = i32::MAX;

/// Counts what the durable of this configuration has before it.
pub(crate) async fn count(link: &Link, config: &NatsConfig) -> Result<QueueStats> {
    let name = &config.jetstream.stream_name;
    let durable = async {
        // A producer need not name one; the server would not know what is asked.
        if check_name("durable_consumer", &config.durable_consumer).is_err() {
            return Ok(None);
        }
        consumer_info(link, name, &config.durable_consumer).await
    };
    let (stream, durable) = tokio::try_join!(contents(link, name, name), durable)?;
    let stream = stream.ok_or_else(|| error::no_stream(name))?;
    let (ready, in_flight) = match durable {
        Some(durable) => (durable.num_pending, u64::try_from(durable.num_ack_pending).unwrap_or(u64::MAX)),
        // Nobody has begun to read.
        None => (stream.messages.saturating_sub(stream.schedules), 0),
    };
    let stats = QueueStats::of_ready(ready).with_in_flight(in_flight);
    if stream.keeps_schedules {
        return Ok(stats.with_scheduled(stream.schedules));
    }
    Ok(match delayed(link, name).await? {
        Some(delayed) => stats.with_scheduled(delayed),
        None => stats,
    })
}

/// How many lie in the stream beside it; `None` where there is none, or it is nothing for this user.
async fn delayed(link: &Link, name: &str) -> Result<Option<u64>> {
    match contents(link, &delay_stream(name), name).await {
        Ok(stream) => Ok(stream.map(|stream| stream.messages)),
        Err(error) if error.kind == ErrorKind::AuthenticationFailed => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the server says about a stream.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    /// All that it keeps, schedules included.
    messages: u64,
    schedules: u64,
    /// Whether the server's own schedules lie in it.
    keeps_schedules: bool,
}

impl Contents {
    fn read(mut answer: Value) -> serde_json::Result<Self> {
        let config = answer.get_mut("config").map_or(Value::Null, Value::take);
        let number = |at: &str| answer.pointer(at).and_then(Value::as_u64).unwrap_or(0);
        Ok(Self {
            messages: number("/state/messages"),
            // Each has a subject of its own.
            schedules: number("/total"),
            keeps_schedules: scheduling_is_on(&serde_json::from_value::<stream::Config>(config)?),
        })
    }
}

/// Asks for one stream, and for the schedules in it that are messages for `queue`. `None`: there is no such stream.
async fn contents(link: &Link, name: &str, queue: &str) -> Result<Option<Contents>> {
    let request = json!({ "subjects_filter": subject::schedules(queue), "offset": BEHIND_ALL });
    match link.api::<Value>(&format!("STREAM.INFO.{name}"), Some(request)).await? {
        Ok(answer) => Contents::read(answer)
            .map(Some)
            .map_err(|error| error::unreadable(&format!("stream {name:?}"), error)),
        Err(error) if error.error_code().0 == code::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(error::refused(&format!("stream {name:?}"), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_server_is_read() {
        let config = |subjects: Value, on: bool| {
            json!({
                "name": "orders", "subjects": subjects, "retention": "workqueue", "max_consumers": -1,
                "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1,
                "discard": "old", "storage": "file", "num_replicas": 1, "duplicate_window": 120_000_000_000_u64,
                "allow_msg_schedules": on, "allow_msg_ttl": on,
            })
        };
        let native = json!({
            "total": 3, "offset": 3, "limit": 100_000, "state": { "messages": 10 },
            "config": config(json!(["orders.>", "_buqueue.schedule.orders.>"]), true),
        });
        let read = Contents::read(native).unwrap();
        assert_eq!(read, Contents { messages: 10, schedules: 3, keeps_schedules: true });
        // Servers leave the total out, or say zero, where no subject matches.
        let old = json!({ "state": { "messages": 2 }, "config": config(json!(["orders.>"]), false) });
        let read = Contents::read(old).unwrap();
        assert_eq!(read, Contents { messages: 2, schedules: 0, keeps_schedules: false });
        assert!(Contents::read(json!({})).is_err());
    }
}
