//! Messages that are due later. Up to a quarter of an hour a standard queue delays them by itself. What is due later than
//! that, and whatever is due later on a FIFO queue, waits in a standard queue beside it, the relay, and is sent on from
//! there by running consumers: again and again to the relay, and at last to the queue.
//!
//! SQS counts in seconds. A message says how many milliseconds it has to wait; it is visible in the second before, and
//! whoever receives it too early keeps it for the rest.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::Backend as _;
use buqueue_core::{
    Backoff, BuqueueError, Coalescer, Complaints, ErrorKind, Message, MessageId, Result, unique_id,
};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::SqsBackend;
use crate::config::{QueueUrl, SqsOptions};
use crate::convert::{Beside, Incoming, Outgoing, Story, Wait};
use crate::error;
use crate::lease::Session;
use crate::reader::receive;
use crate::sender::{BATCH, Sender};
use crate::settle::Settler;
use crate::telling::Forwarded;
use crate::topology::{self, Standing};

/// How far ahead a schedule reaches.
pub(crate) const HORIZON: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// How long a forwarder hides what it works on: one that dies holds it up for so long, and one whose request takes longer
/// may send it on twice.
const HIDDEN: Duration = Duration::from_secs(6);
/// What has waited so long here is left for the next.
const TOO_LATE: Duration = Duration::from_secs(3);
/// After that it is tried again to send on what could not be sent.
const RETRY: Duration = Duration::from_secs(1);
/// How often a standard queue's consumer looks whether there is a relay by now. Before a message is due that goes through
/// it, the longest delay has passed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How many that are sent one by one are gathered: eight requests side by side.
const MOST_GATHERED: usize = 80;
/// How many are sent on at the same time.
const MOST_MOVING: usize = 200;

/// Sends what is due now, and what is due later; ten with a request where they come together.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    pub(crate) target: Sender,
    pub(crate) relay: Sender,
    to_target: Coalescer<Outgoing, MessageId>,
    to_relay: Coalescer<Outgoing, MessageId>,
}

impl Scheduler {
    pub(crate) fn new(target: Sender, standing: Standing) -> Result<Self> {
        let mut options = SqsOptions { max_receive_count: None, ..target.options.clone() };
        options.config.queue_url = target.link.queue.relay();
        options.config.fair_queues = false;
        let link = target.link.to(QueueUrl::parse(&options.config.queue_url)?);
        let relay = Sender::new(link, &options, standing);
        let (to_target, to_relay) = (gathering(&target), gathering(&relay));
        Ok(Self { target, relay, to_target, to_relay })
    }

    /// Sends a message that is due now. It is handed over by the call.
    pub(crate) fn send(&self, outgoing: Outgoing) -> impl Future<Output = Result<MessageId>> + Send + use<> {
        self.to_target.submit(outgoing)
    }

    /// Sends a message that is due then.
    pub(crate) async fn send_at(
        &self,
        message: &Message,
        due: DateTime<Utc>,
        story: Story,
    ) -> Result<MessageId> {
        let left = millis_until(due);
        let schedule = self.target.manner.fifo.then(unique_id);
        let beside = Beside { story, wait: None, schedule };
        // What would be too large at its last step is refused at the first.
        let last = self.last_step(message, &beside)?;
        if left == 0 {
            return self.to_target.submit(last).await;
        }
        match self.step(left) {
            Step::Relay { delay } => {
                let outgoing = self.relay_step(message, &beside, Wait::FromSent(left), delay)?;
                self.to_relay.submit(outgoing).await
            }
            Step::Target { delay } => {
                let outgoing = self.target_step(message, &beside, Wait::FromSent(left), delay)?;
                self.to_target.submit(outgoing).await
            }
        }
    }

    /// Where a message goes next that has so many milliseconds to wait.
    fn step(&self, left: u64) -> Step {
        let longest = u64::try_from(self.target.options.longest_delay.as_millis()).unwrap_or(u64::MAX);
        let delay = left.min(longest) / 1000;
        if self.target.manner.fifo || left > longest { Step::Relay { delay } } else { Step::Target { delay } }
    }

    fn relay_step(&self, message: &Message, beside: &Beside, wait: Wait, delay: u64) -> Result<Outgoing> {
        let outgoing = self.relay.outgoing(message, &Beside { wait: Some(wait), ..beside.clone() })?;
        Ok(outgoing.delayed(delay))
    }

    fn target_step(&self, message: &Message, beside: &Beside, wait: Wait, delay: u64) -> Result<Outgoing> {
        let outgoing =
            self.target.outgoing(message, &Beside { wait: Some(wait), schedule: None, ..beside.clone() })?;
        Ok(outgoing.delayed(delay))
    }

    /// What is due now. A queue's own delay is not for it.
    fn last_step(&self, message: &Message, beside: &Beside) -> Result<Outgoing> {
        let outgoing = self.target.outgoing(message, &Beside { wait: None, ..beside.clone() })?;
        Ok(if self.target.manner.fifo { outgoing } else { outgoing.delayed(0) })
    }

    /// Creates the relay if that may be needed soon.
    async fn prepare(&self) -> Result<()> {
        let mut options = self.relay.options.clone();
        // A standard queue may never need one.
        options.config.create_queue &= self.target.manner.fifo;
        topology::ensure_queue(&self.relay.link, &options).await.map(drop)
    }
}

/// While some are on their way, the next gather.
fn gathering(sender: &Sender) -> Coalescer<Outgoing, MessageId> {
    let sender = Arc::new(sender.clone());
    Coalescer::spawn(MOST_GATHERED, move |items: Vec<Outgoing>| {
        let sender = Arc::clone(&sender);
        async move { sender.send_all(items.into_iter().map(Ok).collect()).await }
    })
}

/// Where a message goes next, and after how many seconds it is visible there.
enum Step {
    Relay { delay: u64 },
    Target { delay: u64 },
}

/// Rounded up, and a bit more, because two times are compared that SQS has rounded down.
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
    let mut closing = forwarder.session.closing();
    let mut work = Work::new();
    loop {
        work.tell(forwarder.queue());
        let failed = tokio::select! {
            // A closed session says so until its end.
            _ = closing.wait_for(|closing| *closing) => break,
            error = forwarder.run(&mut work, &mut backoff) => error,
        };
        let pause = match failed.kind {
            // Most have none.
            ErrorKind::NotFound if !forwarder.scheduler().target.manner.fifo => {
                LOOK_AGAIN.min(forwarder.scheduler().target.options.longest_delay)
            }
            _ => {
                work.looking.tell(forwarder.queue(), &failed);
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = closing.wait_for(|closing| *closing) => break,
        }
    }
    // What is under way is brought to its end; whoever closes waits for that.
    while let Some(moved) = work.moving.join_next().await {
        work.note(forwarder.queue(), moved.ok());
    }
    work.forwarded.tell_all(forwarder.queue());
    forwarder.session.forwarded();
    // A request that waits is not dropped: what it brings would be hidden.
    while let Some(received) = work.receiving.join_next().await {
        let waiting = received.into_iter().flatten().flatten();
        let back = waiting.map(|incoming| forwarder.settler.hide(incoming.receipt, Duration::ZERO));
        // What cannot be given back is visible when its time is over.
        let _visible_later = join_all(back).await.iter().all(Result::is_ok);
    }
}

/// What a forwarder has begun. Outlives a run that is cut off.
struct Work {
    /// The one request that waits for messages.
    receiving: JoinSet<Result<Vec<Incoming>>>,
    moving: JoinSet<Moved>,
    forwarded: Forwarded,
    looking: Complaints,
    sending: Complaints,
}

/// What became of a message that waited in the relay.
enum Moved {
    ToTarget,
    /// It waits there again.
    InRelay,
    Failed(BuqueueError),
}

impl Work {
    fn new() -> Self {
        let about = |what| Complaints::new(SqsBackend::NAME, what);
        Self {
            receiving: JoinSet::new(),
            moving: JoinSet::new(),
            forwarded: Forwarded::default(),
            looking: about("looking for schedules in the relay queue"),
            sending: about("sending on a schedule"),
        }
    }

    /// Notes what has ended, and tells of it when it is time.
    fn tell(&mut self, queue: &str) {
        while let Some(moved) = self.moving.try_join_next() {
            self.note(queue, moved.ok());
        }
        self.forwarded.tell(queue);
    }

    /// `None`: it ended with its runtime, or by a fault of the client.
    fn note(&mut self, queue: &str, moved: Option<Moved>) {
        match moved {
            Some(Moved::ToTarget) => self.forwarded.add(),
            Some(Moved::Failed(error)) => self.sending.tell(queue, &error),
            Some(Moved::InRelay) | None => {}
        }
    }
}

struct Forwarder {
    session: Arc<Session>,
    settler: Settler,
}

impl Forwarder {
    fn new(session: Arc<Session>) -> Self {
        Self { settler: Settler::new(&session.scheduler.relay.link), session }
    }

    fn scheduler(&self) -> &Scheduler {
        &self.session.scheduler
    }

    /// For which queue it works.
    fn queue(&self) -> &str {
        &self.scheduler().target.link.queue.whole
    }

    /// Until something fails; why.
    async fn run(self: &Arc<Self>, work: &mut Work, backoff: &mut Backoff) -> BuqueueError {
        if let Err(error) = self.scheduler().prepare().await {
            return error;
        }
        let options = &self.scheduler().target.options;
        let (wait, patience) = (options.config.wait_time, options.patience());
        loop {
            while work.moving.len() >= MOST_MOVING {
                let moved = work.moving.join_next().await;
                work.note(self.queue(), moved.and_then(std::result::Result::ok));
            }
            work.tell(self.queue());
            if work.receiving.is_empty() {
                let link = self.scheduler().relay.link.clone();
                work.receiving
                    .spawn(async move { receive(&link, BATCH, wait, HIDDEN.as_secs(), patience).await });
            }
            let waiting = match work.receiving.join_next().await {
                Some(Ok(Ok(waiting))) => waiting,
                Some(Ok(Err(error))) => return error,
                // Only with its runtime, or by a fault of the client.
                Some(Err(_)) | None => return error::unanswered("ReceiveMessage"),
            };
            backoff.reset();
            for incoming in waiting {
                let own = Arc::clone(self);
                work.moving.spawn(async move { own.send_on(incoming).await });
            }
        }
    }

    /// One step further.
    async fn send_on(&self, incoming: Incoming) -> Moved {
        let (scheduler, received_at) = (self.scheduler(), Instant::now());
        let mut left = self.session.clock.wait_left(&incoming, Utc::now());
        if scheduler.target.manner.fifo && left < 1000 {
            tokio::time::sleep(Duration::from_millis(left)).await;
            left = 0;
        }
        // By the clock of SQS, so that the time of the steps themselves is not added.
        let wait = incoming.due().map_or(Wait::FromSent(left), Wait::Until);
        let Incoming { message, beside, receipt, .. } = incoming;
        let message = message.as_travelling();
        let (made, moved) = if left == 0 {
            let made = scheduler.last_step(&message, &beside);
            (made.map(|outgoing| (outgoing, &scheduler.to_target)), Moved::ToTarget)
        } else {
            match scheduler.step(left) {
                Step::Relay { delay } => {
                    let made = scheduler.relay_step(&message, &beside, wait, delay);
                    (made.map(|outgoing| (outgoing, &scheduler.to_relay)), Moved::InRelay)
                }
                Step::Target { delay } => {
                    let made = scheduler.target_step(&message, &beside, wait, delay);
                    (made.map(|outgoing| (outgoing, &scheduler.to_target)), Moved::ToTarget)
                }
            }
        };
        let sent = match made {
            Ok(_) if received_at.elapsed() > TOO_LATE => return Moved::InRelay,
            Ok((outgoing, to)) => to.submit(outgoing).await,
            Err(error) => Err(error),
        };
        // Should this fail, it comes again when its time is over: a copy of what was sent on, which a FIFO queue drops by
        // its id within five minutes.
        match sent {
            Ok(_) => {
                let _comes_again_at_worst = self.settler.delete(receipt).await.is_err();
                moved
            }
            Err(error) => {
                let _comes_again_anyway = self.settler.hide(receipt, RETRY).await.is_err();
                Moved::Failed(error)
            }
        }
    }
}
