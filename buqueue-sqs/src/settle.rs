//! Settling: deletes and changes of visibility, ten with a request where they come together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::{BoxError, BuildError};
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

/// What SQS has said of a settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Done,
    /// The request was repeated, mostly because the answer to the first one did not come, and the answer is that the
    /// receipt no longer counts: because of the first one, or because somebody else has the message.
    ByTheFirstOrNot,
}

/// Settles messages of one queue.
#[derive(Debug, Clone)]
pub(crate) struct Settler {
    delete: Coalescer<String, Settled>,
    hide: Coalescer<(String, i32), Settled>,
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
                async move { hide_all(&link, &changes).await }
            }),
        }
    }

    pub(crate) fn delete(&self, receipt: String) -> impl Future<Output = Result<Settled>> + Send + use<> {
        self.delete.submit(receipt)
    }

    /// Hides it for so long from now, rounded up to seconds; not at all: zero.
    pub(crate) fn hide(
        &self,
        receipt: String,
        time: Duration,
    ) -> impl Future<Output = Result<Settled>> + Send + use<> {
        let seconds = i32::try_from(seconds_up(time)).unwrap_or(i32::MAX);
        self.hide.submit((receipt, seconds))
    }
}

pub(crate) fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// All at the same time; the outcomes in their order.
async fn in_order<F: Future<Output = Vec<Result<Settled>>>>(
    parts: impl Iterator<Item = F>,
) -> Vec<Result<Settled>> {
    join_all(parts).await.into_iter().flatten().collect()
}

/// Counts how often the SDK sends one request.
#[derive(Debug, Clone, Default)]
struct Attempts(Arc<AtomicU32>);

impl Attempts {
    fn were_many(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 1
    }
}

impl Intercept for Attempts {
    fn name(&self) -> &'static str {
        "buqueue attempts"
    }

    fn read_before_attempt(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _bag: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What SQS says of the entries of a request: the ids of those that it has carried out, and the others.
struct Answer {
    done: Vec<String>,
    failed: Vec<BatchResultErrorEntry>,
}

async fn delete(link: &Link, receipts: &[String]) -> Vec<Result<Settled>> {
    let what = "DeleteMessageBatch";
    let entry = |id: String, receipt: &String| {
        DeleteMessageBatchRequestEntry::builder().id(id).receipt_handle(receipt).build()
    };
    settle(what, receipts, entry, async |entries, attempts| {
        let asking =
            link.client.delete_message_batch().queue_url(&link.queue.whole).set_entries(Some(entries));
        let answer = asking
            .customize()
            .interceptor(attempts)
            .send()
            .await
            .map_err(|error| error::from_sdk(what, error))?;
        let done = answer.successful.into_iter().map(|entry| entry.id).collect();
        Ok(Answer { done, failed: answer.failed })
    })
    .await
}

/// The last change of each message. What is sent together is carried out in any order, and an extension whose caller has
/// left would hide what was given back after it.
async fn hide_all(link: &Link, changes: &[(String, i32)]) -> Vec<Result<Settled>> {
    let (kept, place_of_each) = last_of_each(changes);
    let outcomes = in_order(kept.chunks(BATCH).map(|part| hide(link, part))).await;
    let of = |place: usize| outcomes[place].as_ref().copied().map_err(BuqueueError::again);
    place_of_each.into_iter().map(of).collect()
}

/// The last change of each message, and where among these the one of each change is.
fn last_of_each(changes: &[(String, i32)]) -> (Vec<&(String, i32)>, Vec<usize>) {
    let mut kept: Vec<&(String, i32)> = Vec::with_capacity(changes.len());
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(changes.len());
    let mut place_of_each = Vec::with_capacity(changes.len());
    for change in changes {
        let place = *places.entry(&change.0).or_insert(kept.len());
        match kept.get_mut(place) {
            Some(earlier) => *earlier = change,
            None => kept.push(change),
        }
        place_of_each.push(place);
    }
    (kept, place_of_each)
}

async fn hide(link: &Link, changes: &[&(String, i32)]) -> Vec<Result<Settled>> {
    let what = "ChangeMessageVisibilityBatch";
    let entry = |id: String, (receipt, seconds): &&(String, i32)| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id).receipt_handle(receipt);
        entry.visibility_timeout(*seconds).build()
    };
    settle(what, changes, entry, async |entries, attempts| {
        let asking = link.client.change_message_visibility_batch().queue_url(&link.queue.whole);
        let asking = asking.set_entries(Some(entries)).customize().interceptor(attempts);
        let answer = asking.send().await.map_err(|error| error::from_sdk(what, error))?;
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
    ask: impl AsyncFnOnce(Vec<E>, Attempts) -> Result<Answer>,
) -> Vec<Result<Settled>> {
    let entries = items.iter().enumerate().map(|(at, item)| entry(at.to_string(), item));
    let attempts = Attempts::default();
    let asked = match entries.collect::<std::result::Result<_, _>>() {
        Ok(entries) => ask(entries, attempts.clone()).await,
        Err(error) => Err(convert::incomplete(error)),
    };
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => {
            let error = gone(error);
            return items.iter().map(|_| Err(error.again())).collect();
        }
    };
    let mut outcomes: Vec<Result<Settled>> = items.iter().map(|_| Err(error::unanswered(what))).collect();
    let done = answer.done.iter().map(|id| (id.as_str(), Ok(Settled::Done)));
    let failed = answer.failed.iter().map(|entry| {
        let error = error::from_entry(what, entry);
        let open = attempts.were_many() && error.kind == ErrorKind::LeaseExpired;
        (entry.id(), if open { Ok(Settled::ByTheFirstOrNot) } else { Err(gone(error)) })
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_change_of_each_message_counts() {
        let changes: Vec<(String, i32)> = [("a", 60), ("b", 0), ("a", 0), ("c", 5), ("b", 7)]
            .map(|(receipt, time)| (receipt.into(), time))
            .into();
        let (kept, place_of_each) = last_of_each(&changes);
        let kept: Vec<(&str, i32)> = kept.iter().map(|(receipt, time)| (receipt.as_str(), *time)).collect();
        assert_eq!(kept, [("a", 0), ("b", 7), ("c", 5)]);
        assert_eq!(place_of_each, [0, 1, 0, 2, 1]);
    }
}
