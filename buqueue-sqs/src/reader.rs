//! The task that asks SQS for messages and keeps what came until it is taken.
//!
//! A request that waits at SQS is never dropped: what it brings would be hidden until its lease ends. So it is the task's,
//! and not the caller's, and it waits for a short time only.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::MessageSystemAttributeName as System;
use buqueue_core::{BuqueueError, ErrorKind, Result};
use chrono::Utc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::connection::Link;
use crate::convert::Incoming;
use crate::error;
use crate::lease::{Held, Session};
use crate::sender::BATCH;
use crate::topology;

/// How long requests wait that find nothing, one after the other, before they wait as long as the configuration says:
/// a consumer that has just begun, or is busy, can be stopped soon.
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// The most requests that wait at the same time.
const MOST_POLLS: usize = 8;
/// The most messages that are received ahead of who takes them one by one. On a FIFO queue less, because they go back
/// when one before them fails.
const MOST_AHEAD: usize = 40;
const MOST_AHEAD_FIFO: usize = 10;
/// A scheduled message is visible so long before it is due, at most: a second, and what clocks are apart.
const EARLIEST: Duration = Duration::from_millis(1500);
/// The most that are kept because they came too early.
const MOST_EARLY: usize = 1000;
/// A consumer that takes at least so often is fast, and receives ahead.
const FAST: Duration = Duration::from_millis(200);
/// What nobody wants for so long is given back.
const UNWANTED: Duration = Duration::from_secs(2);
/// How long closing waits for requests that wait at SQS.
const CLOSE: Duration = Duration::from_millis(1500);

/// What a request has brought.
struct Polled {
    asked: usize,
    waited: bool,
    /// Looks that it answers.
    looks: Option<u64>,
    answer: Result<Vec<Incoming>>,
    /// When it came: the lease runs since.
    at: Instant,
}

/// Asks, and takes what comes.
pub(crate) struct Reader {
    session: Arc<Session>,
    polls: JoinSet<Polled>,
    /// How many messages they ask for together.
    asked: usize,
    /// The looks that are being answered.
    looking: Option<u64>,
    /// What is on its way back.
    returning: JoinSet<()>,
    /// The last answer did not come in time: it may have been too long.
    cautious: bool,
    /// How many may wait at the same time.
    width: usize,
    /// How many in a row have brought nothing.
    empty: usize,
    ahead: usize,
    /// How many had been taken when that grew last, and when receiving ahead found nothing.
    grown_at: u64,
    nothing_ahead_at: u64,
    /// The call after which the last failure was reported; the next one tries again.
    failed_at_call: Option<u64>,
    /// Scheduled messages that came within the second before they are due.
    early: Vec<Held>,
}

impl Reader {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            polls: JoinSet::new(),
            asked: 0,
            looking: None,
            returning: JoinSet::new(),
            cautious: false,
            width: 1,
            empty: 0,
            ahead: 1,
            grown_at: 0,
            nothing_ahead_at: u64::MAX,
            failed_at_call: None,
            early: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        while !self.session.mailbox.wishes().closed {
            self.hand_over_what_is_due();
            self.give_back_what_is_unwanted();
            while self.returning.try_join_next().is_some() {}
            self.ask();
            let until = self.next_moment();
            let moment = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            let session = Arc::clone(&self.session);
            tokio::select! {
                Some(polled) = self.polls.join_next() => match polled {
                    Ok(polled) => self.take_in(polled),
                    // Only with its runtime, or by a fault of the client.
                    Err(_) => self.begin_anew(),
                },
                () = session.mailbox.changed() => {}
                () = moment => {}
            }
        }
        self.finish().await;
    }

    /// Starts as many requests as are wanted.
    fn ask(&mut self) {
        let wishes = self.session.mailbox.wishes();
        if self.failed_at_call == Some(wishes.calls) {
            return;
        }
        if wishes.is_looking() && self.looking.is_none() {
            self.looking = Some(wishes.looks);
            self.poll(wishes.demand.clamp(1, BATCH), Duration::ZERO, Some(wishes.looks));
        }
        // They are due within a second.
        if self.early.len() >= MOST_EARLY {
            return;
        }
        let fast = wishes.last_take.is_some_and(|taken| taken.elapsed() < FAST);
        let target = wishes.demand.max(if fast && self.ahead > 1 { self.ahead } else { 0 });
        if !fast {
            self.width = 1;
        }
        // A look is the demand that it answers.
        let demand = if wishes.is_looking() { 0 } else { wishes.demand };
        // Where there was nothing it is not asked for again and again.
        if demand == 0 && (wishes.is_looking() || wishes.taken == self.nothing_ahead_at) {
            return;
        }
        let wait = self.session.scheduler.target.options.config.wait_time;
        let wait = WAITS.get(self.empty).map_or(wait, |first| wait.min(*first));
        let wait = if demand == 0 { Duration::ZERO } else { wait };
        while self.polls.len() < self.width {
            let missing = target.saturating_sub(wishes.ready + self.asked);
            if missing == 0 {
                break;
            }
            // Where schedules come early there may be more of them, in front of what is wanted now.
            let early = (1..=MOST_AHEAD).contains(&self.early.len());
            let asked = if early { BATCH } else { missing.min(BATCH) };
            self.poll(asked, wait, None);
        }
    }

    fn poll(&mut self, asked: usize, wait: Duration, looks: Option<u64>) {
        let asked = if self.cautious { 1 } else { asked };
        let session = Arc::clone(&self.session);
        self.asked += asked;
        self.polls.spawn(async move {
            let target = &session.scheduler.target;
            let (visibility, patience) = (session.visibility.as_secs(), target.options.patience());
            let answer = match receive(&target.link, asked, wait, visibility, patience).await {
                Err(error) if error.kind == ErrorKind::NotFound && target.options.config.create_queue => {
                    let restored = topology::ensure_queue(&target.link, &target.options).await;
                    // Core waits a moment before it asks again.
                    Err(restored.err().unwrap_or_else(|| topology::not_yet(error)))
                }
                answer => answer,
            };
            Polled { asked, waited: !wait.is_zero(), looks, answer, at: Instant::now() }
        });
    }

    fn take_in(&mut self, polled: Polled) {
        self.asked = self.asked.saturating_sub(polled.asked);
        match polled.answer {
            Ok(messages) => {
                let brought = messages.len();
                self.cautious = false;
                self.keep(messages, polled.at);
                self.adjust(brought, polled.asked, polled.waited);
            }
            Err(error) => self.failed(error),
        }
        if let Some(looks) = polled.looks {
            self.looking = None;
            self.session.mailbox.answer(looks);
        }
    }

    fn begin_anew(&mut self) {
        // Those that wait still bring what they bring.
        self.asked = 0;
        if let Some(looks) = self.looking.take() {
            self.session.mailbox.answer(looks);
        }
    }

    /// Hands over what is due, and keeps what is not.
    fn keep(&mut self, messages: Vec<Incoming>, received_at: Instant) {
        let today = Utc::now() - received_at.elapsed();
        let mut due = Vec::with_capacity(messages.len());
        for incoming in messages {
            let wait = Duration::from_millis(self.session.clock.wait_left(&incoming, today));
            // The queue itself has delayed it until the second before. One that comes sooner was moved here by somebody
            // to whom its schedule was nothing.
            let wait = if wait > EARLIEST { Duration::ZERO } else { wait };
            let held = Held {
                message: incoming.message,
                id: incoming.id,
                receipt: incoming.receipt,
                group: incoming.group,
                receives: incoming.receives,
                story: incoming.beside.story,
                received_at,
                due: received_at + wait,
            };
            if wait.is_zero() { due.push(held) } else { self.early.push(held) }
        }
        if !due.is_empty() {
            self.session.mailbox.push_all(due);
        }
    }

    fn adjust(&mut self, brought: usize, asked: usize, waited: bool) {
        let wishes = self.session.mailbox.wishes();
        if brought == 0 {
            self.width = 1;
            if waited {
                self.empty += 1;
            } else {
                self.nothing_ahead_at = wishes.taken;
            }
            return;
        }
        self.empty = 0;
        if brought == asked {
            self.width = (self.width + 1).min(MOST_POLLS);
            let most = if self.session.scheduler.target.manner.fifo { MOST_AHEAD_FIFO } else { MOST_AHEAD };
            let fast = wishes.last_take.is_some_and(|taken| taken.elapsed() < FAST);
            if fast && wishes.taken >= self.grown_at.saturating_add(self.ahead as u64) {
                self.ahead = (self.ahead * 2).min(most);
                self.grown_at = wishes.taken;
            }
        }
    }

    fn failed(&mut self, error: BuqueueError) {
        self.width = 1;
        self.cautious = error.kind == ErrorKind::Timeout;
        self.failed_at_call = Some(self.session.mailbox.wishes().calls);
        self.session.mailbox.fail(error);
    }

    fn hand_over_what_is_due(&mut self) {
        let now = Instant::now();
        if self.early.iter().all(|held| held.due > now) {
            return;
        }
        let (mut due, early): (Vec<_>, Vec<_>) = self.early.drain(..).partition(|held| held.due <= now);
        self.early = early;
        due.sort_by_key(|held| held.due);
        self.session.mailbox.push_all(due);
    }

    /// When there is something to do again, should nothing happen.
    fn next_moment(&self) -> Option<Instant> {
        let due = self.early.iter().map(|held| held.due).min();
        let wishes = self.session.mailbox.wishes();
        let unwanted = self.session.mailbox.first(|held| held.received_at).map(|received| {
            let stale = received + self.session.stale_after();
            let wanted = wishes.last_take.max(wishes.demand_ended).max(Some(received));
            if wishes.demand == 0 {
                wanted.map_or(stale, |wanted| stale.min(wanted + UNWANTED))
            } else {
                stale
            }
        });
        match (due, unwanted) {
            (Some(due), Some(unwanted)) => Some(due.min(unwanted)),
            (due, unwanted) => due.or(unwanted),
        }
    }

    fn give_back_what_is_unwanted(&mut self) {
        let wishes = self.session.mailbox.wishes();
        let (now, limit) = (Instant::now(), self.session.stale_after());
        let unwanted = wishes.demand == 0
            && [wishes.last_take, wishes.demand_ended]
                .into_iter()
                .flatten()
                .all(|wanted| now >= wanted + UNWANTED);
        let back = self.session.mailbox.take_back(|held| {
            let age = now.saturating_duration_since(held.received_at);
            age >= limit || (unwanted && age >= UNWANTED)
        });
        if !back.is_empty() {
            self.ahead = 1;
            let session = Arc::clone(&self.session);
            self.returning.spawn(async move { session.give_back(back).await });
        }
    }

    /// Gives everything back. What requests bring that still wait is given back when they end.
    async fn finish(mut self) {
        let mut left = self.session.mailbox.take_back(|_| true);
        left.append(&mut self.early);
        self.session.give_back(left).await;
        while self.returning.join_next().await.is_some() {}
        let closed_at = Instant::now();
        let mut finished = false;
        while !self.polls.is_empty() {
            let patience =
                async { if finished { pending().await } else { sleep_until(closed_at + CLOSE).await } };
            tokio::select! {
                Some(polled) = self.polls.join_next() => {
                    if let Ok(Polled { answer: Ok(messages), .. }) = polled {
                        self.keep(messages, Instant::now());
                        let mut late = self.session.mailbox.take_back(|_| true);
                        late.append(&mut self.early);
                        self.session.give_back(late).await;
                    }
                }
                () = patience => {
                    self.session.mailbox.finish();
                    finished = true;
                }
            }
        }
        self.session.mailbox.finish();
    }
}

/// Asks once, for up to ten messages.
pub(crate) async fn receive(
    link: &Link,
    count: usize,
    wait: Duration,
    visibility: u64,
    patience: Duration,
) -> Result<Vec<Incoming>> {
    let number = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
    let asking = link
        .poller
        .receive_message()
        .queue_url(&link.queue.whole)
        .max_number_of_messages(i32::try_from(count.clamp(1, BATCH)).unwrap_or(1))
        .wait_time_seconds(number(wait.as_secs()))
        .visibility_timeout(number(visibility))
        .message_attribute_names("All")
        .message_system_attribute_names(System::ApproximateReceiveCount)
        .message_system_attribute_names(System::ApproximateFirstReceiveTimestamp)
        .message_system_attribute_names(System::SentTimestamp)
        .message_system_attribute_names(System::MessageGroupId)
        .message_system_attribute_names(System::MessageDeduplicationId);
    let what = "ReceiveMessage";
    let answer = match timeout(wait + patience, asking.send()).await {
        Ok(answered) => answered.map_err(|error| error::from_sdk(what, error))?,
        Err(_) => {
            let fact = format!("{what}: no answer within {:?}", wait + patience);
            return Err(BuqueueError::new(ErrorKind::Timeout, fact));
        }
    };
    Ok(answer.messages.into_iter().flatten().filter_map(Incoming::read).collect())
}
