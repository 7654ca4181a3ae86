//! What lies in a queue, and in its relay, as SQS counts it. Reads, and changes nothing.

use std::collections::HashMap;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use buqueue_core::{BuqueueError, ErrorKind, QueueStats, Result};
use futures_util::join;

use crate::connection::Link;
use crate::schedule::Scheduler;
use crate::topology;

/// Counts what lies in the queue of this configuration.
pub(crate) async fn count(scheduler: &Scheduler) -> Result<QueueStats> {
    let (target, relay) = join!(contents(&scheduler.target.link), contents(&scheduler.relay.link));
    let target = target?;
    let relayed = match relay {
        // Whatever is in there is to come, also what a forwarder holds at this moment.
        Ok(Contents { visible, hidden, delayed }) => Some(visible + hidden + delayed),
        // Nothing was ever scheduled so far ahead.
        Err(error) if error.kind == ErrorKind::NotFound => Some(0),
        // The relay is nothing for these credentials.
        Err(error) if error.kind == ErrorKind::AuthenticationFailed => None,
        Err(error) => return Err(error),
    };
    let stats = QueueStats::of_ready(target.visible).with_in_flight(target.hidden);
    Ok(match relayed {
        Some(relayed) => stats.with_scheduled(target.delayed + relayed),
        None => stats,
    })
}

/// What SQS says about a queue.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    visible: u64,
    hidden: u64,
    delayed: u64,
}

impl Contents {
    fn read(attributes: &HashMap<Attribute, String>) -> Result<Self> {
        let number = |name: Attribute| {
            attributes.get(&name).and_then(|text| text.parse().ok()).ok_or_else(|| {
                let message = format!("no number {}", name.as_str());
                let kind = ErrorKind::BackendSpecific { code: "answer".to_owned(), message };
                BuqueueError::new(kind, "GetQueueAttributes")
            })
        };
        Ok(Self {
            visible: number(Attribute::ApproximateNumberOfMessages)?,
            hidden: number(Attribute::ApproximateNumberOfMessagesNotVisible)?,
            delayed: number(Attribute::ApproximateNumberOfMessagesDelayed)?,
        })
    }
}

async fn contents(link: &Link) -> Result<Contents> {
    let names = [
        Attribute::ApproximateNumberOfMessages,
        Attribute::ApproximateNumberOfMessagesNotVisible,
        Attribute::ApproximateNumberOfMessagesDelayed,
    ];
    Contents::read(&topology::attributes(link, &names).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqs_says_is_read() {
        let mut attributes = HashMap::from([
            (Attribute::ApproximateNumberOfMessages, "5".to_owned()),
            (Attribute::ApproximateNumberOfMessagesNotVisible, "2".to_owned()),
            (Attribute::ApproximateNumberOfMessagesDelayed, "0".to_owned()),
        ]);
        let read = Contents::read(&attributes).unwrap();
        assert_eq!(read, Contents { visible: 5, hidden: 2, delayed: 0 });
        attributes.remove(&Attribute::ApproximateNumberOfMessages);
        assert!(Contents::read(&attributes).is_err());
    }
}
