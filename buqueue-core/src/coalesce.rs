//! Gathering calls while one is on the wire.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

use crate::{BuqueueError, ErrorKind, Result};

/// Turns calls made one by one, concurrently, into batches: while one batch is on the wire the next gathers.
///
/// There is no timer. A lone call goes out at once; under load the batches grow by themselves. An item handed to
/// [`submit`](Self::submit) is carried out even when the caller stops waiting.
///
/// The queue in front of the wire is unbounded as a channel and bounded by its use: by the deliveries in flight where
/// settles are gathered, and by the callers that wait where sends are. Callers that stop waiting and call again can fill
/// it while the broker does not answer.
#[derive(Debug)]
pub struct Coalescer<T, R> {
    sender: mpsc::UnboundedSender<Item<T, R>>,
}

type Item<T, R> = (T, oneshot::Sender<Result<R>>);

impl<T, R> Clone for Coalescer<T, R> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

impl<T: Send + 'static, R: Send + 'static> Coalescer<T, R> {
    /// Starts the worker on the current runtime. `flush` carries out up to `max` items and answers each, in order.
    ///
    /// The worker ends, after what was submitted, when the last clone of the handle is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime, as `tokio::spawn` does; backends call it from `connect_*`.
    pub fn spawn<F, Fut>(max: usize, mut flush: F) -> Self
    where
        F: FnMut(Vec<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<Result<R>>> + Send,
    {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Item<T, R>>();
        // Owned by its senders: it ends when the last of them is dropped.
        tokio::spawn(async move {
            let mut gathered = Vec::new();
            while receiver.recv_many(&mut gathered, max.max(1)).await > 0 {
                let (items, replies): (Vec<T>, Vec<_>) = gathered.drain(..).unzip();
                let mut outcomes = flush(items).await.into_iter();
                for reply in replies {
                    let outcome = outcomes.next().unwrap_or_else(|| Err(lost()));
                    // The caller may have stopped waiting.
                    drop(reply.send(outcome));
                }
            }
        });
        Self { sender }
    }

    /// Hands over an item and waits for its outcome.
    ///
    /// The item is handed over by the call, not by the first poll: dropping the future does not take it back.
    ///
    /// # Errors
    /// What `flush` answered for the item; [`ConnectionLost`](ErrorKind::ConnectionLost) when the worker is gone
    /// with its runtime.
    pub fn submit(&self, item: T) -> impl Future<Output = Result<R>> + Send + use<T, R> {
        let (reply, outcome) = oneshot::channel();
        let submitted = self.sender.send((item, reply)).is_ok();
        async move {
            if !submitted {
                return Err(lost());
            }
            outcome.await.unwrap_or_else(|_| Err(lost()))
        }
    }
}

fn lost() -> BuqueueError {
    BuqueueError::new(ErrorKind::ConnectionLost, "the connection's worker has ended")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn gathers_while_busy_and_answers_each_in_order() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sizes);
        let coalescer = Coalescer::spawn(10, move |items: Vec<u32>| {
            seen.lock().unwrap().push(items.len());
            async move {
                tokio::task::yield_now().await;
                items.into_iter().map(|item| Ok(item * 2)).collect()
            }
        });
        let waiting: Vec<_> = (0..25).map(|item| coalescer.submit(item)).collect();
        for (item, outcome) in (0..25).zip(waiting) {
            assert_eq!(outcome.await.unwrap(), item * 2);
        }
        assert_eq!(*sizes.lock().unwrap(), [10, 10, 5]);
    }

    #[tokio::test]
    async fn a_dropped_wait_does_not_take_the_item_back() {
        let (done, mut carried_out) = mpsc::unbounded_channel();
        let coalescer = Coalescer::spawn(10, move |items: Vec<u32>| {
            for item in &items {
                done.send(*item).unwrap();
            }
            async move { items.into_iter().map(Ok).collect::<Vec<Result<u32>>>() }
        });
        drop(coalescer.submit(7));
        drop(coalescer);
        assert_eq!(carried_out.recv().await, Some(7));
        assert_eq!(carried_out.recv().await, None);
    }
}
