//! The worker: ships what is ordered, several orders at a time, until it is told to stop.

use std::future::Future;
use std::time::Duration;

use buqueue::prelude::*;
use futures_util::TryStreamExt;
use tracing::Instrument;

use crate::Order;

/// How many orders are shipped at the same time.
const CONCURRENCY: usize = 8;

/// Who ships.
pub trait Warehouse: Send + Sync {
    /// Ships an order. Every message is delivered at least once, so one of the same id may come again: it is not to be
    /// shipped twice.
    ///
    /// # Errors
    /// It may work later.
    fn ship(&self, order: &Order) -> impl Future<Output = Result<(), Failed>> + Send;
}

/// Why an order was not shipped.
#[derive(Debug)]
pub struct Failed(pub String);

/// Works until the consumer is shut down; by then nothing is in flight any more.
///
/// # Errors
/// What ends a consumer for good: credentials that were withdrawn, say. The process should end, so that whoever watches it
/// sees that nobody ships. Orders that are being shipped in that moment are given up, and come again.
pub async fn run(consumer: Box<dyn QueueConsumer>, warehouse: impl Warehouse) -> Result<(), BuqueueError> {
    let orders = consumer.into_stream();
    orders
        .try_for_each_concurrent(CONCURRENCY, async |delivery| {
            // The span goes on from where the order was placed.
            let span = delivery.span().clone();
            if let Err(error) = process(delivery, &warehouse).instrument(span).await {
                // It was not settled: it comes again. Its lease may have run out, or the connection broke.
                tracing::warn!(%error, "an order was not settled");
            }
            Ok(())
        })
        .await
}

async fn process(delivery: Delivery, warehouse: &impl Warehouse) -> Result<(), BuqueueError> {
    let order: Order = match delivery.payload_json() {
        Ok(order) => order,
        // Trying again would not help. A person looks at it in the dead letter queue.
        Err(error) => return delivery.dead_letter(&format!("not an order: {error}")).await,
    };
    match warehouse.ship(&order).await {
        Ok(()) => delivery.ack().await,
        Err(Failed(reason)) => {
            let attempt = delivery.delivery_count();
            let delay = retry_after(attempt);
            tracing::info!(id = order.id, attempt, reason, ?delay, "not shipped");
            delivery.nack_after(delay).await
        }
    }
}

/// A second, two, four, … up to a minute.
fn retry_after(attempt: u32) -> Duration {
    Duration::from_secs(1_u64.checked_shl(attempt.saturating_sub(1)).unwrap_or(u64::MAX).clamp(1, 60))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use buqueue::memory::{MemoryBackend, MemoryConfig};

    use super::*;

    /// Refuses the first few times.
    #[derive(Debug, Default)]
    struct Stub {
        refusals: Mutex<u32>,
        shipped: Mutex<Vec<String>>,
    }

    impl Warehouse for &Stub {
        async fn ship(&self, order: &Order) -> Result<(), Failed> {
            let mut refusals = self.refusals.lock().unwrap();
            if *refusals > 0 {
                *refusals -= 1;
                return Err(Failed("closed".to_owned()));
            }
            self.shipped.lock().unwrap().push(order.id.clone());
            Ok(())
        }
    }

    struct Shop {
        producer: Box<dyn QueueProducer>,
        consumer: Box<dyn QueueConsumer>,
        dead: Box<dyn QueueConsumer>,
    }

    async fn shop() -> Shop {
        let orders = MemoryConfig { queue: "orders".to_owned(), ..Default::default() };
        let dead = MemoryConfig { queue: "orders-dead".to_owned(), ..orders.clone() };
        let dlq = DlqConfig { destination: dead.queue.clone(), max_receive_count: 3 };
        let builder = MemoryBackend::builder(orders).dead_letter_queue(dlq).make_dynamic();
        let (producer, consumer) = builder.build_pair().await.unwrap();
        let dead = MemoryBackend::builder(dead).make_dynamic().build_consumer().await.unwrap();
        Shop { producer, consumer, dead }
    }

    fn order(id: &str) -> Message {
        Message::from_json(&Order { id: id.to_owned(), item: "lamp".to_owned() }).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_is_tried_again_later() {
        let Shop { producer, consumer, dead: _dead } = shop().await;
        let warehouse = Stub { refusals: Mutex::new(2), ..Default::default() };
        producer.send(order("o-1")).await.unwrap();

        let shutdown = consumer.shutdown_handle();
        let queue = consumer.monitor();
        let ship = run(consumer, &warehouse);
        let stop = async {
            while warehouse.shipped.lock().unwrap().is_empty()
                || queue.queue_stats().await.unwrap().in_flight > Some(0)
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            shutdown.shutdown().await;
        };
        let (ended, ()) = tokio::join!(ship, stop);
        ended.unwrap();
        assert_eq!(*warehouse.shipped.lock().unwrap(), ["o-1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_three_times_or_is_no_order_is_put_aside() {
        let Shop { producer, consumer, mut dead } = shop().await;
        let warehouse = Stub { refusals: Mutex::new(3), ..Default::default() };
        producer.send(order("o-1")).await.unwrap();
        producer.send(Message::new("what?")).await.unwrap();

        let shutdown = consumer.shutdown_handle();
        let stop = async {
            let unreadable = dead.receive().await.unwrap();
            assert_eq!(unreadable.payload(), "what?");
            assert!(unreadable.header("buqueue-dlq-reason").unwrap().starts_with("not an order"));
            let refused = dead.receive().await.unwrap();
            assert_eq!(
                (refused.payload_json::<Order>().unwrap().id.as_str(), refused.delivery_count()),
                ("o-1", 3)
            );
            shutdown.shutdown().await;
        };
        let (ended, ()) = tokio::join!(run(consumer, &warehouse), stop);
        ended.unwrap();
        assert!(warehouse.shipped.lock().unwrap().is_empty());
    }

    #[test]
    fn delays_double_up_to_a_minute() {
        let seconds: Vec<u64> = [1, 2, 3, 6, 7, 64, 65, u32::MAX].map(|n| retry_after(n).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 32, 60, 60, 60, 60]);
    }
}
