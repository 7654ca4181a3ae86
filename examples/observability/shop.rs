//! Orders are placed, fulfilled and billed, and not all of it goes well. What goes wrong is the same in every run.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use buqueue::prelude::*;
use buqueue::{QueueMonitor, RESERVED_PREFIX};
use buqueue_examples::Broker;
use chrono::Utc;
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::Result;
use crate::books::Books;
use crate::exposition;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: u64,
    cents: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Invoice {
    order: u64,
    cents: u64,
}

/// What happens to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    GoesWell,
    /// The first attempt fails, the second does not.
    FailsOnce,
    /// Every attempt fails.
    Poison,
    /// The first attempt ends without a word.
    Forgotten,
    /// There is nothing to be paid, and trying again would not help.
    Worthless,
}

/// The first few, so that each run has seen all; then by chance, and the same chance each time.
fn fate(order: u64) -> Fate {
    match (order, chance(order, 0) % 100) {
        (1, _) => Fate::GoesWell,
        (2, _) => Fate::FailsOnce,
        (3, _) => Fate::Poison,
        (4, _) => Fate::Forgotten,
        (5, _) => Fate::Worthless,
        (_, 0..75) => Fate::GoesWell,
        (_, 75..90) => Fate::FailsOnce,
        (_, 90..94) => Fate::Poison,
        (_, 94..97) => Fate::Forgotten,
        _ => Fate::Worthless,
    }
}

/// A number that looks like chance, by the finalizer of splitmix64.
fn chance(order: u64, attempt: u32) -> u64 {
    let mut bits = order.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(attempt));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Why an order was not fulfilled.
#[derive(Debug)]
enum Trouble {
    /// Another attempt may help.
    Passing(String),
    /// None will.
    Lasting(&'static str),
    /// The worker has lost its thread.
    Forgotten,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing(why) => f.write_str(why),
            Self::Lasting(why) => f.write_str(why),
            Self::Forgotten => f.write_str("left half done"),
        }
    }
}

/// How many attempts an order has.
const ATTEMPTS: u32 = 3;

/// Before the second attempt; twice as long before the third.
const RETRY: Duration = Duration::from_millis(200);

/// How many orders are worked on at a time.
const WORKERS: usize = 8;

/// How often the queues are counted.
const REPORT: Duration = Duration::from_millis(500);

/// How long the last orders may take. Longer than the lease of what was forgotten, where only that brings it back.
const PATIENCE: Duration = Duration::from_secs(120);

/// What everybody in the shop shares.
#[derive(Clone)]
pub(crate) struct Shop(Arc<Inner>);

struct Inner {
    orders: Box<dyn QueueProducer>,
    invoices: Box<dyn QueueProducer>,
    monitor: QueueMonitor,
    prefix: String,
    books: Mutex<Books>,
}

/// Where orders and invoices come out.
pub(crate) struct Outlets {
    orders: Box<dyn QueueConsumer>,
    invoices: Box<dyn QueueConsumer>,
}

impl Shop {
    pub(crate) async fn open(broker: &Broker) -> Result<(Self, Outlets)> {
        let dlq = DlqConfig { destination: broker.name("orders-dead"), max_receive_count: ATTEMPTS };
        let (orders, orders_out) = broker.open("orders", Some(dlq)).await?;
        let (invoices, invoices_out) = broker.open("invoices", None).await?;
        let inner = Inner {
            orders,
            invoices,
            monitor: orders_out.monitor(),
            prefix: broker.name(""),
            books: Mutex::default(),
        };
        Ok((Self(Arc::new(inner)), Outlets { orders: orders_out, invoices: invoices_out }))
    }

    /// Places an order every `pace` until it is `enough`, and returns when all are settled and counted.
    pub(crate) async fn run(
        &self,
        outlets: Outlets,
        pace: Duration,
        enough: impl Future<Output = ()>,
        registry: &Registry,
    ) -> Result<()> {
        let Outlets { orders, invoices } = outlets;
        for monitor in [orders.monitor(), invoices.monitor()] {
            // Ends with its consumer.
            tokio::spawn(async move { monitor.report(REPORT).await });
        }
        let closing = [orders.shutdown_handle(), invoices.shutdown_handle()];
        let day = async {
            self.place_orders(pace, enough).await?;
            self.until_settled(registry).await?;
            for consumer in closing {
                consumer.shutdown().await;
            }
            Ok(())
        };
        tokio::try_join!(day, self.fulfil_orders(orders), self.print_invoices(invoices))?;
        Ok(())
    }

    pub(crate) fn books(&self) -> Books {
        self.open_books().clone()
    }

    /// Counts the orders that wait.
    pub(crate) fn monitor(&self) -> &QueueMonitor {
        &self.0.monitor
    }

    /// Whether a label of a metric means this queue. On SQS it is the whole URL.
    pub(crate) fn is(&self, label: &str, queue: &str) -> bool {
        let name = label.rsplit('/').next().unwrap_or(label);
        name.strip_prefix(self.0.prefix.as_str()) == Some(queue)
    }

    fn open_books(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn place_orders(&self, pace: Duration, enough: impl Future<Output = ()>) -> Result<()> {
        let mut enough = pin!(enough);
        let mut pace = interval(pace);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = 1;
        for turn in 1_u64.. {
            tokio::select! {
                () = &mut enough => break,
                _ = pace.tick() => {}
            }
            let count = if turn % 20 == 12 { 5 } else { 1 };
            let orders: Vec<Order> = (next..next + count).map(order).collect();
            next += count;
            match turn % 20 {
                8 => self.place_for_later(&orders[0]).await?,
                12 => self.place_many(&orders).await?,
                18 => self.place_wrongly(&orders[0]).await?,
                _ => self.place(&orders[0]).await?,
            }
        }
        Ok(())
    }

    /// What happens because of this order happens below this span.
    #[tracing::instrument(name = "place order", skip_all, fields(order = order.id))]
    async fn place(&self, order: &Order) -> Result<()> {
        self.promise(order);
        let message = message(order)?;
        self.until_taken(async || self.0.orders.send(message.clone()).await).await?;
        Ok(())
    }

    #[tracing::instrument(name = "place order for later", skip_all, fields(order = order.id))]
    async fn place_for_later(&self, order: &Order) -> Result<()> {
        self.promise(order);
        self.open_books().scheduled += 1;
        let message = message(order)?;
        let due = Utc::now() + Duration::from_secs(1);
        self.until_taken(async || self.0.orders.send_at(message.clone(), due).await).await?;
        Ok(())
    }

    #[tracing::instrument(name = "place orders", skip_all, fields(orders = orders.len()))]
    async fn place_many(&self, orders: &[Order]) -> Result<()> {
        let mut messages = Vec::with_capacity(orders.len());
        for order in orders {
            self.promise(order);
            messages.push(message(order)?);
        }
        self.until_taken(async || self.0.orders.send_batch(messages.clone()).await).await?;
        Ok(())
    }

    /// Headers of this prefix are the queue's own: the order is refused before it is sent.
    #[tracing::instrument(name = "place order wrongly", skip_all, fields(order = order.id))]
    async fn place_wrongly(&self, order: &Order) -> Result<()> {
        let message = message(order)?.with_header(format!("{RESERVED_PREFIX}mine"), "1");
        match self.0.orders.send(message).await {
            Err(error) if error.kind == ErrorKind::InvalidMessage => {
                self.open_books().refused += 1;
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Err("an order with a reserved header was taken".into()),
        }
    }

    /// Noted before it is sent, or it may be fulfilled before it is noted.
    fn promise(&self, order: &Order) {
        let mut books = self.open_books();
        books.placed += 1;
        books.open.insert(order.id);
    }

    /// Sends again what failed only for now. The deduplication id makes that harmless where the broker knows it.
    async fn until_taken<T>(
        &self,
        send: impl AsyncFn() -> Result<T, BuqueueError>,
    ) -> Result<T, BuqueueError> {
        loop {
            match send().await {
                Err(error) if error.is_transient() => {
                    self.open_books().troubles += 1;
                    sleep(RETRY).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn fulfil_orders(&self, mut consumer: Box<dyn QueueConsumer>) -> Result<()> {
        let mut workers = JoinSet::new();
        loop {
            while workers.len() >= WORKERS {
                if let Some(done) = workers.join_next().await {
                    done??;
                }
            }
            match consumer.receive().await {
                Ok(delivery) => {
                    workers.spawn(self.clone().work(delivery));
                }
                Err(error) if error.kind == ErrorKind::ShuttingDown => break,
                Err(error) => return Err(error.into()),
            }
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn work(self, delivery: Delivery) -> Result<()> {
        let order: Order = delivery.payload_json()?;
        let attempt = delivery.delivery_count();
        // In the span of the delivery, and so in the trace of the order.
        let outcome = delivery.instrument(self.fulfil(&order, attempt)).await;
        let settled = match outcome {
            Ok(()) => {
                self.settle(&order, |books| books.processed += 1);
                delivery.ack().await
            }
            Err(Trouble::Passing(_)) if attempt < ATTEMPTS => {
                self.open_books().retried += 1;
                delivery.nack_after(RETRY * attempt).await
            }
            Err(Trouble::Passing(_)) => {
                // The last attempt: this nack moves it to the dead letter queue.
                self.settle(&order, |books| books.dead += 1);
                delivery.nack().await
            }
            Err(Trouble::Lasting(reason)) => {
                self.settle(&order, |books| books.dead += 1);
                delivery.dead_letter(reason).await
            }
            Err(Trouble::Forgotten) => {
                self.open_books().forgotten += 1;
                drop(delivery);
                Ok(())
            }
        };
        self.bear(settled)
    }

    fn settle(&self, order: &Order, how: impl FnOnce(&mut Books)) {
        let mut books = self.open_books();
        how(&mut books);
        books.settle(order.id);
    }

    /// A settle that failed brings the message back, sooner or later; the shop goes on.
    fn bear(&self, settled: Result<(), BuqueueError>) -> Result<()> {
        match settled {
            Err(error) if error.is_transient() || error.kind == ErrorKind::LeaseExpired => {
                self.open_books().troubles += 1;
                Ok(())
            }
            settled => Ok(settled?),
        }
    }

    #[tracing::instrument(name = "fulfil order", skip_all, err)]
    async fn fulfil(&self, order: &Order, attempt: u32) -> Result<(), Trouble> {
        check(order).await?;
        charge(order, attempt).await?;
        self.bill(order).await.map_err(|error| {
            let mut books = self.open_books();
            books.troubles += 1;
            books.unbilled.remove(&order.id);
            Trouble::Passing(error.to_string())
        })
    }

    /// The answer to an order is a message of its own, on another queue.
    #[tracing::instrument(name = "bill", skip_all)]
    async fn bill(&self, order: &Order) -> Result<(), BuqueueError> {
        self.open_books().unbilled.insert(order.id);
        let invoice = Invoice { order: order.id, cents: order.cents };
        let message = Message::from_json_with_key(&invoice, "invoices.due")?
            .with_deduplication_id(format!("invoice-{}", order.id));
        self.0.invoices.send(message).await?;
        Ok(())
    }

    async fn print_invoices(&self, mut consumer: Box<dyn QueueConsumer>) -> Result<()> {
        loop {
            let batch = match consumer.receive_batch(10).await {
                Ok(batch) => batch,
                Err(error) if error.kind == ErrorKind::ShuttingDown => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for delivery in &batch {
                let invoice: Invoice = delivery.payload_json()?;
                delivery.instrument(self.print(&invoice)).await;
            }
            self.bear(Delivery::ack_all(batch).await)?;
        }
    }

    #[tracing::instrument(name = "print invoice", skip_all)]
    async fn print(&self, invoice: &Invoice) {
        sleep(Duration::from_millis(1 + invoice.cents % 5)).await;
        let mut books = self.open_books();
        books.invoices += 1;
        books.unbilled.remove(&invoice.order);
    }

    /// Until every order is processed or dead, and the reports of the queues say so too.
    async fn until_settled(&self, registry: &Registry) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let books = self.books();
            if books.is_settled() && (books.troubles > 0 || self.is_counted(&books, registry)?) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let Books { open, unbilled, .. } = &books;
                let text =
                    format!("after {PATIENCE:?}: orders {open:?} are open, {unbilled:?} have no invoice");
                return Err(format!("{text}; {books}").into());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn is_counted(&self, books: &Books, registry: &Registry) -> Result<bool> {
        let samples = exposition::parse(&exposition::text(registry)?);
        let waiting = exposition::sum(&samples, "buqueue_queue_messages", |_| true);
        let dead = exposition::sum(&samples, "buqueue_queue_dead_letters", |_| true);
        Ok(waiting == 0 && dead == books.dead)
    }
}

fn order(id: u64) -> Order {
    let cents = if fate(id) == Fate::Worthless { 0 } else { 100 + chance(id, 0) % 10_000 };
    Order { id, cents }
}

fn message(order: &Order) -> Result<Message, BuqueueError> {
    Ok(Message::from_json_with_key(order, "orders.placed")?
        .with_deduplication_id(format!("order-{}", order.id)))
}

#[tracing::instrument(name = "check stock", skip_all)]
async fn check(order: &Order) -> Result<(), Trouble> {
    sleep(Duration::from_millis(1 + order.id % 3)).await;
    if order.cents == 0 { Err(Trouble::Lasting("an order of nothing")) } else { Ok(()) }
}

#[tracing::instrument(name = "charge card", skip_all, err)]
async fn charge(order: &Order, attempt: u32) -> Result<(), Trouble> {
    let slow = if chance(order.id, attempt).is_multiple_of(20) { 200 } else { 0 };
    sleep(Duration::from_millis(5 + chance(order.id, attempt) % 50 + slow)).await;
    match (fate(order.id), attempt) {
        (Fate::FailsOnce, 1) => Err(Trouble::Passing("the bank does not answer".to_owned())),
        (Fate::Poison, _) => Err(Trouble::Passing("no such card".to_owned())),
        (Fate::Forgotten, 1) => Err(Trouble::Forgotten),
        _ => Ok(()),
    }
}
