//! Settling: deletes and changes of visibility, ten with a request where they come together.

use std::time::Duration;

use aws_sdk_sqs::error::BuildError;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
};
use buqueue_core::{BuqueueError, Coalescer, ErrorKind, Result};
use futures_util::future::join_all;

use crate::connection::Link;
use crate::lease::expired;
use crate::sender::BATCH;
use crate::{convert, error};

/// How many settles are gathered while others are on their way: ten requests side by side.
const GATHERED: usize = 10 * BATCH;
/// Settles messages of one queue.
#[derive(Debug, Clone)]
pub(crate) struct Settler {
    delete: Coalescer<String, ()>,
    hide: Coalescer<(String, i32), ()>,
}

impl Settler {
    pub(crate) fn new(link: &Link) -> Self {
        let (deleting, hiding) = (link.clone(), link.clone());
        Self {
            delete: Coalescer::spawn(GATHERED, move |receipts: Vec<String>| {
                let link = deleting.clone();
                async move { in_order(receipts.chunks(BATCH).map(|part| delete(&link, part))).await }
            }),
            hide: Coalescer::spawn(GATHERED, move |changes: Vec<(String, i32)>| {
                let link = hiding.clone();
                async move { in_order(changes.chunks(BATCH).map(|part| hide(&link, part))).await }
            }),
        }
    }

    pub(crate) fn delete(&self, receipt: String) -> impl Future<Output = Result<()>> + Send + use<> {
        self.delete.submit(receipt)
    }

    /// Hides it for so long from now, rounded up to seconds; not at all: zero.
    pub(crate) fn hide(
        &self,
        receipt: String,
        time: Duration,
    ) -> impl Future<Output = Result<()>> + Send + use<> {
        let seconds = i32::try_from(seconds_up(time)).unwrap_or(i32::MAX);
        self.hide.submit((receipt, seconds))
    }
}

pub(crate) fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// All at the same time; the outcomes in their order.
async fn in_order<F: Future<Output = Vec<Result<()>>>>(parts: impl Iterator<Item = F>) -> Vec<Result<()>> {
    join_all(parts).await.into_iter().flatten().collect()
}

/// What SQS says of the entries of a request: the ids of those that it has carried out, and the others.
struct Answer {
    done: Vec<String>,
    failed: Vec<BatchResultErrorEntry>,
}

async fn delete(link: &Link, receipts: &[String]) -> Vec<Result<()>> {
    let what = "DeleteMessageBatch";
    let entry = |id: String, receipt: &String| {
        DeleteMessageBatchRequestEntry::builder().id(id).receipt_handle(receipt).build()
    };
    settle(what, receipts, entry, async |entries| {
        let asking =
            link.client.delete_message_batch().queue_url(&link.queue.whole).set_entries(Some(entries));
        let answer = asking.send().await.map_err(|error| error::from_sdk(what, error))?;
        let done = answer.successful.into_iter().map(|entry| entry.id).collect();
        Ok(Answer { done, failed: answer.failed })
    })
    .await
}

async fn hide(link: &Link, changes: &[(String, i32)]) -> Vec<Result<()>> {
    let what = "ChangeMessageVisibilityBatch";
    let entry = |id: String, (receipt, seconds): &(String, i32)| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id).receipt_handle(receipt);
        entry.visibility_timeout(*seconds).build()
    };
    settle(what, changes, entry, async |entries| {
        let asking = link.client.change_message_visibility_batch().queue_url(&link.queue.whole);
        let answer =
            asking.set_entries(Some(entries)).send().await.map_err(|error| error::from_sdk(what, error))?;
        let done = answer.successful.into_iter().map(|entry| entry.id).collect();
        Ok(Answer { done, failed: answer.failed })
    })
    .await
}

/// One request for ten items at most; what became of each.
async fn settle<T, E>(
    what: &str,
    items: &[T],
    entry: impl Fn(String, &T) -> std::result::Result<E, BuildError>,
    ask: impl AsyncFnOnce(Vec<E>) -> Result<Answer>,
) -> Vec<Result<()>> {
    let entries = items.iter().enumerate().map(|(at, item)| entry(at.to_string(), item));
    let asked = match entries.collect::<std::result::Result<_, _>>() {
        Ok(entries) => ask(entries).await,
        Err(error) => Err(convert::incomplete(error)),
    };
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => {
            let error = gone(error);
            return items.iter().map(|_| Err(error.again())).collect();
        }
    };
    let mut outcomes: Vec<Result<()>> = items.iter().map(|_| Err(error::unanswered(what))).collect();
    let done = answer.done.iter().map(|id| (id.as_str(), Ok(())));
    let failed = answer.failed.iter().map(|entry| (entry.id(), Err(gone(error::from_entry(what, entry)))));
    for (id, outcome) in done.chain(failed) {
        if let Some(place) = id.parse::<usize>().ok().and_then(|at| outcomes.get_mut(at)) {
            *place = outcome;
        }
    }
    outcomes
}

/// With the queue, its messages are gone, and ours with them.
fn gone(error: BuqueueError) -> BuqueueError {
    if error.kind == ErrorKind::NotFound { expired("the queue is gone") } else { error }
}
