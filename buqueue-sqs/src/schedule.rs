//! Messages that are due later. Up to a quarter of an hour a standard queue delays them by itself. What is due later than
//! that, and whatever is due later on a FIFO queue, waits in a standard queue beside it, the relay, and is sent on from
//! there by running consumers: again and again to the relay, and at last to the queue.
//!
//! SQS counts in seconds. A message says how many milliseconds it has to wait; it is visible in the second before, and
//! whoever receives it too early keeps it for the rest.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::{Backoff, Coalescer, ErrorKind, Message, MessageId, Result, unique_id};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio::task::JoinSet;

use crate::config::{QueueUrl, SqsOptions};
use crate::convert::{Beside, Incoming, Outgoing, Story};
use crate::lease::{Session, Settler};
use crate::reader::receive;
use crate::sender::{BATCH, Sender};
use crate::topology::{self, Standing};

/// How far ahead a schedule reaches.
pub(crate) const HORIZON: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// How long a forwarder hides what it works on; one that dies holds it up for so long.
const HIDDEN: Duration = Duration::from_secs(8);
/// How often it is looked whether there is a relay by now. Before a message is due that goes through it on a standard
/// queue, the longest delay has passed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How many are sent on at the same time.
const MOST_MOVING: usize = 200;

/// Sends what is due later.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    pub(crate) target: Sender,
    relay: Sender,
}

impl Scheduler {
    pub(crate) fn new(target: Sender, standing: Standing) -> Result<Self> {
        let mut options = SqsOptions { max_receive_count: None, ..target.options.clone() };
        options.config.queue_url = target.link.queue.relay();
        options.config.fair_queues = false;
        let link = target.link.to(QueueUrl::parse(&options.config.queue_url)?);
        Ok(Self { relay: Sender::new(link, &options, standing), target })
    }

    /// Sends a message that is due then.
    pub(crate) async fn send_at(
        &self,
        message: &Message,
        due: DateTime<Utc>,
        story: Story,
    ) -> Result<MessageId> {
        let left = millis_until(due);
        if left == 0 {
            return self
                .target
                .send(&self.target.outgoing(message, &Beside { story, ..Beside::default() })?)
                .await;
        }
        let beside = Beside { story, wait: None, schedule: self.target.manner.fifo.then(unique_id) };
        let (outgoing, to) = self.step(message, beside, left)?;
        to.send(&outgoing).await
    }

    /// The next step of a message that has so long to wait, and the queue that it leads to.
    fn step(&self, message: &Message, beside: Beside, left: u64) -> Result<(Outgoing, &Sender)> {
        let longest = u64::try_from(self.target.options.longest_delay.as_millis()).unwrap_or(u64::MAX);
        let to = if self.target.manner.fifo || left > longest { &self.relay } else { &self.target };
        // What the queue does by itself, no copy says.
        let schedule = beside.schedule.filter(|_| to.link.queue.whole != self.target.link.queue.whole);
        let outgoing = to.outgoing(message, &Beside { wait: Some(left), schedule, ..beside })?;
        Ok((outgoing.delayed(left.min(longest) / 1000), to))
    }

    /// Creates the relay if that may be needed soon.
    async fn prepare(&self) -> Result<()> {
        let mut options = self.relay.options.clone();
        // A standard queue may never need one.
        options.config.create_queue &= self.target.manner.fifo;
        topology::ensure_queue(&self.relay.link, &options).await.map(drop)
    }
}

/// Rounded up, and one more, because the service's clock ticks in milliseconds.
fn millis_until(due: DateTime<Utc>) -> u64 {
    let Ok(left) = (due - Utc::now()).to_std() else { return 0 };
    if left.is_zero() {
        return 0;
    }
    u64::try_from(left.min(HORIZON).as_millis()).unwrap_or(u64::MAX).saturating_add(2)
}

/// Sends on what waits in the relay, until the consumer that it belongs to is closed.
pub(crate) async fn forward(session: Arc<Session>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let forwarder = Arc::new(Forwarder::new(session));
    let mut moving = JoinSet::new();
    while !forwarder.is_closed() {
        // What goes wrong here shows in the consumer's own calls, which ask the same service.
        let pause = match forwarder.run(&mut moving, &mut backoff).await {
            Ok(()) => break,
            Err(error) if error.kind == ErrorKind::NotFound => {
                LOOK_AGAIN.min(forwarder.scheduler().target.options.longest_delay)
            }
            Err(_) => backoff.next_delay(),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = forwarder.session.mailbox.finished() => {}
        }
    }
    while moving.join_next().await.is_some() {}
}

struct Forwarder {
    session: Arc<Session>,
    to_relay: Coalescer<Outgoing, MessageId>,
    to_target: Coalescer<Outgoing, MessageId>,
    settler: Settler,
}

impl Forwarder {
    fn new(session: Arc<Session>) -> Self {
        let scheduler = &session.scheduler;
        let coalescer = |sender: &Sender| {
            let sender = Arc::new(sender.clone());
            Coalescer::spawn(MOST_MOVING, move |items: Vec<Outgoing>| {
                let sender = Arc::clone(&sender);
                async move { sender.send_all(items.into_iter().map(Ok).collect()).await }
            })
        };
        Self {
            to_relay: coalescer(&scheduler.relay),
            to_target: coalescer(&scheduler.target),
            settler: Settler::new(&scheduler.relay.link),
            session,
        }
    }

    fn scheduler(&self) -> &Scheduler {
        &self.session.scheduler
    }

    fn is_closed(&self) -> bool {
        self.session.mailbox.wishes().closed
    }

    /// Until something fails, or the consumer is closed. A request that waits is not dropped: what it brings would be
    /// hidden.
    async fn run(self: &Arc<Self>, moving: &mut JoinSet<()>, backoff: &mut Backoff) -> Result<()> {
        self.scheduler().prepare().await?;
        let wait = self.scheduler().target.options.config.wait_time;
        loop {
            while moving.len() >= MOST_MOVING {
                moving.join_next().await;
            }
            let waiting = receive(&self.scheduler().relay.link, BATCH, wait, Some(HIDDEN.as_secs())).await?;
            if self.is_closed() {
                let back =
                    waiting.into_iter().map(|incoming| self.settler.hide(incoming.receipt, Duration::ZERO));
                // What cannot be given back is visible when its time is over.
                let _visible_later = join_all(back).await.iter().all(Result::is_ok);
                return Ok(());
            }
            backoff.reset();
            while moving.try_join_next().is_some() {}
            for incoming in waiting {
                let own = Arc::clone(self);
                moving.spawn(async move { own.send_on(incoming).await });
            }
        }
    }

    /// One step further. What fails is visible again when its time is over.
    async fn send_on(&self, incoming: Incoming) {
        let mut left = incoming.wait_left(Utc::now());
        if self.scheduler().target.manner.fifo && left < 1000 {
            tokio::time::sleep(Duration::from_millis(left)).await;
            left = 0;
        }
        let Incoming { message, beside, receipt, .. } = incoming;
        let sent = if left == 0 {
            let beside = Beside { wait: None, ..beside };
            match self.scheduler().target.outgoing(&message, &beside) {
                Ok(outgoing) => self.to_target.submit(outgoing).await,
                Err(error) => Err(error),
            }
        } else {
            match self.scheduler().step(&message, beside, left) {
                Ok((outgoing, to)) if to.link.queue.whole == self.scheduler().relay.link.queue.whole => {
                    self.to_relay.submit(outgoing).await
                }
                Ok((outgoing, _)) => self.to_target.submit(outgoing).await,
                Err(error) => Err(error),
            }
        };
        if sent.is_ok() {
            // Should this fail, a copy follows: on FIFO queues SQS drops it by its id, within five minutes.
            let _twice_at_worst = self.settler.delete(receipt).await.is_err();
        }
    }
}
