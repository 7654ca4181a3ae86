//! The messages, and what a program does with them by buqueue, whatever the broker.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::Backend;
use buqueue_core::{Consumer, Delivery, Message, Producer};
use futures_util::future::join_all;

use crate::Tally;

pub const PAYLOAD: usize = 100;
pub const BATCH: usize = 100;
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Text, because one peer carries nothing else.
#[must_use]
pub fn payload(number: u64) -> Vec<u8> {
    let mut payload = format!("{number:020}").into_bytes();
    payload.resize(PAYLOAD, b'x');
    payload
}

#[must_use]
pub fn number(payload: &[u8]) -> u64 {
    std::str::from_utf8(&payload[..20])
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("a payload carries its number")
}

/// `messages` of them in batches.
pub fn batches<T>(messages: usize, make: impl Fn(u64) -> T) -> Vec<Vec<T>> {
    let all: Vec<u64> = (0..messages as u64).collect();
    all.chunks(BATCH).map(|chunk| chunk.iter().map(|&number| make(number)).collect()).collect()
}

#[must_use]
pub fn plain(number: u64) -> Message {
    Message::new(payload(number))
}

#[must_use]
pub fn with_headers(number: u64) -> Message {
    plain(number)
        .with_routing_key("orders.created.eu")
        .with_header("content-type", "application/json")
        .with_header("trace-id", "4bf92f3577b34da6a3ce929d0e0e4736")
        .with_header("tenant", "customer-1042")
}

pub async fn send_batches<B: Backend>(producer: &Producer<B>, work: Vec<Vec<Message>>) {
    for batch in work {
        producer.send_batch(batch).await.expect("send_batch");
    }
}

pub async fn send_each<B: Backend>(producer: &Producer<B>, messages: usize) {
    for number in 0..messages as u64 {
        producer.send(plain(number)).await.expect("send");
    }
}

/// `callers` tasks that share one producer.
pub async fn send_from_many<B: Backend>(producer: &Arc<Producer<B>>, messages: usize, callers: u64)
where
    Producer<B>: Send + Sync + 'static,
{
    let tasks = (0..callers).map(|caller| {
        let producer = Arc::clone(producer);
        tokio::spawn(async move {
            for number in (caller..messages as u64).step_by(usize::try_from(callers).expect("few")) {
                producer.send(plain(number)).await.expect("send");
            }
        })
    });
    for task in join_all(tasks).await {
        task.expect("a caller");
    }
}

/// How a batch is acked.
#[derive(Debug, Clone, Copy)]
pub enum Acks {
    /// With one call.
    All,
    /// With a call each, all of them awaited together.
    Together,
    /// One after the other.
    Each,
}

/// Receives batches and acks them, until `messages` are done.
pub async fn receive<B: Backend>(consumer: &mut Consumer<B>, messages: usize, acks: Acks, tally: &Tally) {
    let mut done = 0;
    while done < messages {
        let batch = consumer.receive_batch(BATCH).await.expect("receive_batch");
        done += batch.len();
        batch.iter().for_each(|delivery| tally.note(number(delivery.payload())));
        match acks {
            Acks::All => drop(Delivery::ack_all(batch).await.expect("ack_all")),
            Acks::Together => {
                for acked in join_all(batch.into_iter().map(Delivery::ack)).await {
                    acked.expect("ack");
                }
            }
            Acks::Each => {
                for delivery in batch {
                    delivery.ack().await.expect("ack");
                }
            }
        }
    }
}

/// Nothing is missing, and nothing came twice.
pub async fn complete(tally: Arc<Tally>, messages: usize) {
    let missing = Tally::settle(&[tally], messages, PATIENCE).await;
    assert_eq!(missing, 0, "messages are missing");
}

/// `--quick`, `--deep` (twenty times as many messages for the fast contenders), and the sections that were chosen.
pub struct Arguments {
    pub rounds: usize,
    /// Messages a round for the fast contenders.
    pub many: usize,
    /// For those that take a round trip a message.
    pub few: usize,
    chosen: Vec<String>,
}

impl Arguments {
    #[must_use]
    pub fn read() -> Self {
        let (options, chosen): (Vec<_>, Vec<_>) =
            std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
        let quick = options.iter().any(|option| option == "--quick");
        let deep = options.iter().any(|option| option == "--deep");
        let (rounds, many, few) = if quick { (7, 10_000, 2_000) } else { (21, 20_000, 4_000) };
        let many = if deep { many * 20 } else { many };
        Self { rounds, many, few, chosen }
    }

    #[must_use]
    pub fn wants(&self, section: &str) -> bool {
        self.chosen.is_empty() || self.chosen.iter().any(|chosen| chosen == section)
    }
}
