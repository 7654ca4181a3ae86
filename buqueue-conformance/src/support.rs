//! The words that cases are written in: bounded waits, drains, and the ledger of what was sent and received.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use buqueue_core::{BuqueueError, Delivery, Message, QueueConsumer, QueueProducer};
use tokio::time::{Instant, timeout};

/// How long a case waits for what should come at once. Generous, and never slept through.
pub const SOON: Duration = Duration::from_secs(10);

/// How late a schedule or a delayed retry may be: the second that is promised, and nine for a machine that does much
/// else and a broker that runs many cases at once. What is forgotten until a lease or a reconnect finds it again is not
/// told from a slow machine by a limit: the case `endurance::thousand_schedules` looks at the median, and prints what it
/// measured.
pub const LATE: Duration = Duration::from_secs(10);

/// How early a relative delay may seem to end when the broker's clock ticks in milliseconds.
pub const TICK: Duration = Duration::from_millis(2);

/// Waits for `future`, for `limit` at most.
///
/// # Panics
/// With `what` and the caller's line when time runs out.
#[track_caller]
pub fn within<F: Future>(limit: Duration, what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match timeout(limit, future).await {
            Ok(output) => output,
            Err(_) => panic!("{what}: not within {limit:?} ({caller})"),
        }
    }
}

/// Asks until the answer is yes.
///
/// # Panics
/// With `what` when the answer is still no after `limit`.
#[track_caller]
pub fn eventually(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + limit;
        loop {
            // One answer may take all the time there is, and be the last before a yes.
            let in_time = Instant::now() < deadline;
            if ask().await {
                return;
            }
            assert!(in_time, "{what}: not within {limit:?} ({caller})");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The next delivery, which must come soon.
#[track_caller]
pub fn receive<C: QueueConsumer + ?Sized>(consumer: &mut C) -> impl Future<Output = Delivery> {
    receive_within(SOON, consumer)
}

/// The next delivery, which must come within `limit`.
#[track_caller]
pub fn receive_within<C: QueueConsumer + ?Sized>(
    limit: Duration,
    consumer: &mut C,
) -> impl Future<Output = Delivery> {
    let caller = Location::caller();
    let receiving = within(limit, "receive", consumer.receive());
    async move { receiving.await.unwrap_or_else(|error| panic!("receive: {error:?} ({caller})")) }
}

/// What is visible now. An error that passes by itself is nothing visible: this call does not wait for that.
#[track_caller]
pub fn look<C: QueueConsumer + ?Sized>(consumer: &mut C) -> impl Future<Output = Option<Delivery>> {
    let caller = Location::caller();
    // A broker that does not answer ends a look by itself.
    let looking = within(2 * SOON, "try_receive", consumer.try_receive());
    async move {
        looking.await.unwrap_or_else(|error| {
            assert!(error.is_transient(), "try_receive: {error:?} ({caller})");
            None
        })
    }
}

/// Waits for `time` and expects that nothing is received.
#[track_caller]
pub fn nothing_for<C: QueueConsumer + ?Sized>(time: Duration, consumer: &mut C) -> impl Future<Output = ()> {
    let caller = Location::caller();
    let receiving = consumer.receive();
    async move {
        match timeout(time, receiving).await {
            Err(_) => {}
            Ok(Ok(delivery)) => panic!("received what should not be there: {delivery:?} ({caller})"),
            Ok(Err(error)) => panic!("receive: {error:?} ({caller})"),
        }
    }
}

/// Receives and acks exactly `count` messages and returns their payloads as text, in order of arrival.
#[track_caller]
pub fn take<C: QueueConsumer + ?Sized>(consumer: &mut C, count: usize) -> impl Future<Output = Vec<String>> {
    let caller = Location::caller();
    async move {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let what = format!("receive_batch, {} of {count} received, asked at {caller}", taken.len());
            let batch = within(SOON, &what, consumer.receive_batch(count - taken.len())).await;
            let batch = batch.unwrap_or_else(|error| panic!("receive_batch: {error:?} ({caller})"));
            taken.extend(batch.iter().map(text));
            let acked = within(SOON, "ack_all", Delivery::ack_all(batch)).await;
            acked.unwrap_or_else(|error| panic!("ack_all: {error:?} ({caller})"));
        }
        taken
    }
}

/// Receives exactly `count` messages, and settles none.
#[track_caller]
pub fn hold<C: QueueConsumer + ?Sized>(
    consumer: &mut C,
    count: usize,
) -> impl Future<Output = Vec<Delivery>> {
    let caller = Location::caller();
    async move {
        let mut held = Vec::with_capacity(count);
        while held.len() < count {
            let what = format!("receive_batch, {} of {count} received, asked at {caller}", held.len());
            let batch = within(SOON, &what, consumer.receive_batch(count - held.len())).await;
            held.extend(batch.unwrap_or_else(|error| panic!("receive_batch: {error:?} ({caller})")));
        }
        held
    }
}

/// Acks, soon and without error.
#[track_caller]
pub fn ack(delivery: Delivery) -> impl Future<Output = ()> {
    let caller = Location::caller();
    let acking = within(SOON, "ack", delivery.ack());
    async move { acking.await.unwrap_or_else(|error| panic!("ack: {error:?} ({caller})")) }
}

/// Nacks, soon and without error.
#[track_caller]
pub fn nack(delivery: Delivery) -> impl Future<Output = ()> {
    let caller = Location::caller();
    let nacking = within(SOON, "nack", delivery.nack());
    async move { nacking.await.unwrap_or_else(|error| panic!("nack: {error:?} ({caller})")) }
}

/// Sends, soon and without error.
#[track_caller]
pub fn send<P: QueueProducer + ?Sized>(
    producer: &P,
    message: impl Into<Outgoing>,
) -> impl Future<Output = String> {
    let caller = Location::caller();
    let sending = within(SOON, "send", producer.send(message.into().0));
    async move { sending.await.unwrap_or_else(|error| panic!("send: {error:?} ({caller})")).to_string() }
}

/// Sends many, soon and without error.
#[track_caller]
pub fn send_all<P: QueueProducer + ?Sized>(
    producer: &P,
    messages: impl IntoIterator<Item = impl Into<Outgoing>>,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    let messages: Vec<Message> = messages.into_iter().map(|message| message.into().0).collect();
    let count = messages.len();
    let sending = within(4 * SOON, "send_batch", producer.send_batch(messages));
    async move {
        let ids = sending.await.unwrap_or_else(|error| panic!("send_batch: {error:?} ({caller})"));
        assert_eq!(ids.len(), count, "one id a message ({caller})");
    }
}

/// Sends until the broker has confirmed, through errors that pass by themselves.
///
/// # Panics
/// When there is no confirmation within `limit`, or an error that does not pass by itself.
#[track_caller]
pub fn send_until_confirmed<P: QueueProducer + ?Sized>(
    limit: Duration,
    producer: &P,
    payload: &str,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    let payload = payload.to_owned();
    let retrying = async move {
        loop {
            match producer.send(Message::new(payload.clone())).await {
                Ok(_) => return,
                Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => panic!("send: {error:?} ({caller})"),
            }
        }
    };
    within(limit, "send until confirmed", retrying)
}

/// A message, or the text of one.
#[derive(Debug)]
pub struct Outgoing(Message);

impl From<Message> for Outgoing {
    fn from(message: Message) -> Self {
        Self(message)
    }
}

impl From<&str> for Outgoing {
    fn from(text: &str) -> Self {
        Self(Message::new(text.to_owned()))
    }
}

impl From<String> for Outgoing {
    fn from(text: String) -> Self {
        Self(Message::new(text))
    }
}

/// The payload as text.
#[must_use]
pub fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.payload()).into_owned()
}

/// `prefix-0`, `prefix-1`, …
#[must_use]
pub fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// Sorted, for comparison where order is not promised.
#[must_use]
pub fn sorted(mut items: Vec<String>) -> Vec<String> {
    items.sort_unstable();
    items
}

/// Polls a future until it has been pending `polls` times, then drops it: `None`.
///
/// Growing `polls` from 1 drops the future at every await it has.
pub fn dropped_after<F: Future>(polls: u32, future: F) -> impl Future<Output = Option<F::Output>> {
    DroppedAfter { left: polls, future: Box::pin(future) }
}

struct DroppedAfter<F> {
    left: u32,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for DroppedAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// A small generator of repeatable numbers; a case prints its seed when it fails.
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What was sent and what was received, in the spirit of Jepsen's total-queue checker: everything confirmed must
/// come out, nothing may come out that was never attempted, and repetitions are counted.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<String, Entry>,
    /// Confirmed and not received yet.
    open: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    attempted: bool,
    confirmed: bool,
    received: u32,
}

/// The ledger's sums.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Confirmed by the broker.
    pub confirmed: usize,
    /// Confirmed and never received.
    pub lost: Vec<String>,
    /// Received and never sent.
    pub unexpected: Vec<String>,
    /// Received more than once.
    pub duplicated: usize,
    /// Not confirmed, and received all the same.
    pub recovered: usize,
}

impl Ledger {
    /// A send was tried; its outcome is open.
    pub fn attempted(&mut self, payload: &str) {
        self.entry(payload).attempted = true;
    }

    /// A send was confirmed.
    pub fn confirmed(&mut self, payload: &str) {
        let entry = self.entry(payload);
        entry.attempted = true;
        let opened = !entry.confirmed && entry.received == 0;
        entry.confirmed = true;
        self.open += usize::from(opened);
    }

    /// Notes the outcome of a send.
    pub fn outcome<T>(&mut self, payload: &str, outcome: &Result<T, BuqueueError>) {
        self.attempted(payload);
        if outcome.is_ok() {
            self.confirmed(payload);
        }
    }

    /// A message was received, and its ack succeeded or not.
    pub fn received(&mut self, payload: &str) {
        let entry = self.entry(payload);
        entry.received += 1;
        let closed = entry.confirmed && entry.received == 1;
        self.open -= usize::from(closed);
    }

    /// Whether everything that was confirmed has been received.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.open == 0
    }

    /// The sums.
    #[must_use]
    pub fn account(&self) -> Account {
        let mut account = Account::default();
        for (payload, entry) in &self.entries {
            account.confirmed += usize::from(entry.confirmed);
            account.duplicated += usize::from(entry.received > 1);
            account.recovered += usize::from(entry.attempted && !entry.confirmed && entry.received > 0);
            if entry.confirmed && entry.received == 0 {
                account.lost.push(payload.clone());
            }
            if !entry.attempted && entry.received > 0 {
                account.unexpected.push(payload.clone());
            }
        }
        account
    }

    /// Nothing confirmed is lost, and nothing came from nowhere.
    ///
    /// # Panics
    /// With the account, when that is not so.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "called for its panic")]
    pub fn check(&self) -> Account {
        let account = self.account();
        assert!(account.lost.is_empty() && account.unexpected.is_empty(), "{account}");
        account
    }

    fn entry(&mut self, payload: &str) -> &mut Entry {
        self.entries.entry(payload.to_owned()).or_default()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { confirmed, lost, unexpected, duplicated, recovered } = self;
        write!(f, "{confirmed} confirmed, {} lost, {} unexpected", lost.len(), unexpected.len())?;
        write!(f, ", {duplicated} duplicated, {recovered} recovered")?;
        for (what, payloads) in [("lost", lost), ("unexpected", unexpected)] {
            if !payloads.is_empty() {
                write!(f, "; {what}: {:?}", &payloads[..payloads.len().min(10)])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_tells_lost_from_open() {
        let mut ledger = Ledger::default();
        ledger.confirmed("kept");
        ledger.confirmed("gone");
        ledger.attempted("open");
        ledger.attempted("recovered");
        for payload in ["kept", "kept", "recovered", "alien"] {
            ledger.received(payload);
        }
        assert!(!ledger.is_complete());
        assert_eq!(
            ledger.account(),
            Account {
                confirmed: 2,
                lost: vec!["gone".to_owned()],
                unexpected: vec!["alien".to_owned()],
                duplicated: 1,
                recovered: 1,
            }
        );
    }

    #[tokio::test]
    async fn a_future_is_dropped_after_so_many_polls() {
        let three_awaits = || async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(dropped_after(3, three_awaits()).await, None);
        assert_eq!(dropped_after(4, three_awaits()).await, Some(()));
    }
}
