//! The task that asks the server for messages and keeps what came until it is taken.
//!
//! One subscription takes what the server sends; a *pull* asks it for so many messages (ADR-13, ADR-37). A pull waits at
//! the server for a short time first, and longer when nothing comes. A short one just ends; a long one is cancelled when
//! nobody waits here any more, by leaving its subscription, so that no message comes to a consumer that does not look.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::{Message, StatusCode, Subscriber};
use buqueue_core::{BuqueueError, ErrorKind, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::config::NatsOptions;
use crate::connection::State as LinkState;
use crate::consumer::Shared;
use crate::convert::{self, Info, Subjects};
use crate::lease::{Held, Session};
use crate::topology::{self, Standing};

/// How long pulls wait at the server that find nothing, one after the other; the last time for all that follow.
const WAITS: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(30)];
/// A pull that waits no longer than that is not cancelled.
const SHORT: Duration = Duration::from_secs(1);
/// How often the server says that a long one still waits.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A pull is given up when this much time passes without a word.
const SILENCE: Duration = Duration::from_secs(5);
/// A look that is not answered is given up.
const LOOK_SILENCE: Duration = Duration::from_secs(3);
/// Who waits again so soon after a cancelled call finds the pull still there.
const GRACE: Duration = Duration::from_millis(100);
/// A consumer that takes at least so often is fast, and reads ahead.
const FAST: Duration = Duration::from_millis(100);
const READ_AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// How long closing waits for what is on its way.
const DRAIN: Duration = Duration::from_secs(2);

/// A request for messages that the server works on.
#[derive(Debug)]
struct Pull {
    number: u64,
    left: usize,
    /// How long it waits at the server.
    waits: Duration,
    /// Looks that its end answers.
    looks: u64,
    heard: Instant,
    until: Instant,
    /// When the last message came by it.
    brought: Option<Instant>,
}

impl Pull {
    /// Whether it ends soon by itself.
    fn is_short(&self) -> bool {
        self.waits <= SHORT
    }

    /// When it may be left: what is on its way then would be lost until its lease ends.
    fn quiet_at(&self, now: Instant) -> Instant {
        self.brought.map_or(now, |brought| brought + GRACE)
    }

    /// When it is given up.
    fn silent_at(&self) -> Instant {
        self.heard + self.waits.min(HEARTBEAT) + LOOK_SILENCE
    }
}

/// Asks, and takes what comes.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    options: NatsOptions,
    subjects: Subjects,
    /// Which stream it is; and everything up to here was settled when this consumer was built.
    created: i128,
    floor: u64,
    next_subject: String,
    inbox: String,
    messages: Subscriber,
    /// Subscriptions that were left, the oldest first, with what is still on its way. Each ends by itself.
    leaving: Vec<Subscriber>,
    pulls: u64,
    /// The pull that waits.
    waiting: Option<Pull>,
    /// The one that takes what is there now: for a look, or to read ahead. Beside one that waits, which comes first.
    prompt: Option<Pull>,
    /// How many pulls in a row have waited for nothing.
    empty: usize,
    /// The durable was restored, and nothing has come since.
    restored: bool,
    /// How many had been taken when reading ahead found nothing.
    nothing_ahead_at: u64,
    /// The call of `fetch` after which the last failure was reported; the next one tries again.
    failed_at_call: Option<u64>,
    average_size: usize,
    /// How many messages to hold ready; grows while the consumer is fast.
    ahead: usize,
    /// How many had been taken when it grew last.
    grown_at: u64,
    link: watch::Receiver<LinkState>,
}

enum Step {
    Stop,
    Pull { batch: usize, waits: Duration, looks: u64 },
    Leave,
    Check,
    Wait { until: Option<Instant> },
}

impl Reader {
    pub(crate) async fn start(
        shared: Arc<Shared>,
        options: NatsOptions,
        standing: Standing,
        floor: u64,
    ) -> Result<Self> {
        let session = shared.session();
        let (inbox, messages) = subscribe(session).await?;
        let link = session.link.state();
        let config = &options.config;
        let next_subject =
            format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", config.jetstream.stream_name, config.durable_consumer);
        let subjects = Subjects::new(&config.jetstream);
        Ok(Self {
            shared,
            subjects,
            created: standing.created,
            floor,
            next_subject,
            inbox,
            messages,
            leaving: Vec::new(),
            pulls: 0,
            waiting: None,
            prompt: None,
            empty: 0,
            restored: false,
            nothing_ahead_at: u64::MAX,
            failed_at_call: None,
            average_size: 0,
            ahead: 1,
            grown_at: 0,
            link,
            options,
        })
    }

    pub(crate) async fn run(mut self) {
        loop {
            match self.step() {
                Step::Stop => break,
                Step::Pull { batch, waits, looks } => self.ask(batch, waits, looks).await,
                Step::Leave => self.leave().await,
                Step::Check => self.check().await,
                Step::Wait { until } => self.wait(until).await,
            }
            self.give_back_what_is_stale().await;
        }
        self.finish().await;
        self.shared.mailbox().finish();
    }

    /// What is to be done now.
    fn step(&mut self) -> Step {
        let now = Instant::now();
        let wishes = self.shared.mailbox().wishes();
        if wishes.closed {
            return Step::Stop;
        }
        let link_is_up = self.link.borrow().up;
        let silent = |pull: &Option<Pull>| pull.as_ref().is_some_and(|pull| now >= pull.silent_at());
        let is_over = |pull: &Option<Pull>| pull.as_ref().is_some_and(|pull| now >= pull.until);
        let nobody_answers = silent(&self.waiting) || silent(&self.prompt);
        if silent(&self.waiting) || is_over(&self.waiting) {
            self.waiting = None;
        }
        if silent(&self.prompt) || is_over(&self.prompt) {
            self.end_prompt();
        }
        if nobody_answers && link_is_up {
            return Step::Check;
        }
        let fast = wishes.last_take.is_some_and(|taken| now.duration_since(taken) < FAST);
        let tried = self.failed_at_call == Some(wishes.calls);
        // A look waits for its answer, and for nothing that comes later.
        let demand = if wishes.call_looks { 0 } else { wishes.demand };
        if link_is_up && !tried && self.prompt.is_none() {
            let target = wishes.demand.max(if fast { self.ahead } else { 1 });
            let batch = target.saturating_sub(wishes.ready).max(1);
            let (looks, low) = (wishes.looks, wishes.ready <= self.ahead / 2);
            // A look is answered by the server at once, also while an older pull waits.
            if wishes.is_looking() {
                return Step::Pull { batch, waits: Duration::ZERO, looks };
            }
            if self.waiting.is_none() && demand > wishes.ready {
                let waits = WAITS[self.empty.min(WAITS.len() - 1)];
                return Step::Pull { batch, waits, looks };
            }
            // Where there was nothing it is not asked for again and again.
            if self.waiting.is_none()
                && fast
                && self.ahead > 1
                && low
                && wishes.taken != self.nothing_ahead_at
            {
                return Step::Pull { batch, waits: Duration::ZERO, looks };
            }
        }
        let pulls = self.waiting.iter().chain(&self.prompt);
        let mut until = pulls.map(|pull| pull.until.min(pull.silent_at())).min();
        // Nobody waits any more for what the pull would bring.
        if let Some(pull) = self.waiting.as_ref().filter(|pull| wishes.demand == 0 && !pull.is_short()) {
            match wishes.demand_ended.map(|ended| ended + GRACE).max(Some(pull.quiet_at(now))) {
                Some(graced) if now < graced => until = Some(until.map_or(graced, |until| until.min(graced))),
                _ if self.prompt.is_none() => return Step::Leave,
                // It ends at once.
                _ => {}
            }
        }
        if let Some(oldest) = self.shared.mailbox().first(|held| held.received_at) {
            let stale = oldest + self.shared.stale_after();
            until = Some(until.map_or(stale, |until| until.min(stale)));
        }
        Step::Wait { until }
    }

    async fn ask(&mut self, batch: usize, waits: Duration, looks: u64) {
        let most = READ_AHEAD_BYTES / self.average_size.max(1);
        let demand = self.shared.mailbox().wishes().demand.max(1);
        let batch = batch.min(most.max(demand)).min(self.options.read_ahead.max(demand));
        self.pulls += 1;
        let config = pull::BatchConfig {
            batch,
            expires: (!waits.is_zero()).then_some(waits),
            no_wait: waits.is_zero(),
            // The server has none that is longer than half of the whole.
            idle_heartbeat: if waits > SHORT { HEARTBEAT } else { Duration::ZERO },
            ..Default::default()
        };
        let request = serde_json::to_vec(&config).unwrap_or_default();
        let reply = format!("{}.{}", self.inbox, self.pulls);
        let client = &self.shared.session().link.client;
        let publishing = client.publish_with_reply(self.next_subject.clone(), reply, Bytes::from(request));
        let now = Instant::now();
        match timeout(SILENCE, publishing).await {
            Ok(Ok(())) => {
                let pull = Pull {
                    number: self.pulls,
                    left: batch,
                    waits,
                    looks,
                    heard: now,
                    until: now + waits + LOOK_SILENCE,
                    brought: None,
                };
                if waits.is_zero() {
                    self.prompt = Some(pull);
                } else {
                    self.waiting = Some(pull);
                }
            }
            Ok(Err(error)) => self.fail(crate::error::publishing(error)),
            Err(_) => self.fail(crate::error::timed_out("the connection")),
        }
    }

    async fn wait(&mut self, until: Option<Instant>) {
        let late = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        // Whole: with the budget used up in the middle of it, something would seem not to be there.
        let arriving = unconstrained(poll_fn(|cx| poll_arrivals(&mut self.messages, &mut self.leaving, cx)));
        tokio::select! {
            arrivals = arriving => {
                self.take_in(arrivals.messages).await;
                if arrivals.closed {
                    // The client is closed for good.
                    self.fail(BuqueueError::new(ErrorKind::ConnectionLost, "the connection is closed"));
                    self.shared.mailbox().changed().await;
                }
            },
            () = self.shared.mailbox().changed() => {}
            () = late => {}
            changed = self.link.changed() => {
                if changed.is_ok() {
                    // What was asked for on the connection before is forgotten by the server.
                    self.forget();
                } else {
                    self.shared.mailbox().changed().await;
                }
            }
        }
    }

    /// Each with whether it came on the subscription of the pull there is now.
    async fn take_in(&mut self, arrived: Vec<(Message, bool)>) {
        let now = Instant::now();
        let mut taken = Vec::with_capacity(arrived.len());
        for (message, current) in arrived {
            match message.status {
                None => taken.extend(self.open(message, current, now)),
                Some(status) => {
                    self.hand_over(&mut taken);
                    self.status(status, &message).await;
                }
            }
        }
        self.hand_over(&mut taken);
    }

    /// To the consumer. A pull that they fill has ended.
    fn hand_over(&mut self, taken: &mut Vec<Held>) {
        if taken.is_empty() {
            return;
        }
        self.shared.mailbox().push_all(taken.drain(..));
        let is_filled = |pull: &Option<Pull>| pull.as_ref().is_some_and(|pull| pull.left == 0);
        if is_filled(&self.waiting) {
            self.grow();
            self.waiting = None;
        }
        if is_filled(&self.prompt) {
            self.grow();
            self.end_prompt();
        }
    }

    /// What the server says is no message, and neither is what nobody can settle.
    fn open(&mut self, message: Message, current: bool, now: Instant) -> Option<Held> {
        if message.status.is_some() {
            return None;
        }
        let reply = message.reply.clone()?;
        let info = Info::parse(&reply)?;
        // A message does not say which pull has brought it; the server answers the older one first.
        let pull = self.waiting.as_mut().or(self.prompt.as_mut());
        if let Some(pull) = pull.filter(|_| current) {
            (pull.heard, pull.brought) = (now, Some(now));
            pull.left = pull.left.saturating_sub(1);
        }
        self.restored = false;
        self.empty = 0;
        self.average_size = (self.average_size * 7 + message.length.max(message.payload.len())) / 8;
        if info.delivered > 1 {
            // What fails may kill its process, and blame what was read ahead.
            self.ahead = 1;
        }
        Some(Held::new(convert::incoming(message, &self.subjects), reply, info, now))
    }

    /// A pull was filled: when what the last ones brought has been taken, the next may bring more.
    fn grow(&mut self) {
        let wishes = self.shared.mailbox().wishes();
        let taken = usize::try_from(wishes.taken - self.grown_at).unwrap_or(usize::MAX);
        if taken >= self.ahead {
            self.ahead = (self.ahead * 2).max(wishes.demand).min(self.options.read_ahead);
            self.grown_at = wishes.taken;
        }
    }

    /// What the server says about a pull.
    async fn status(&mut self, status: StatusCode, message: &Message) {
        let number = message.subject.rsplit('.').next().and_then(|token| token.parse::<u64>().ok());
        let wishes = self.shared.mailbox().wishes();
        let mut pulls = self.waiting.iter_mut().chain(&mut self.prompt);
        let Some(pull) = pulls.find(|pull| Some(pull.number) == number) else { return };
        pull.heard = Instant::now();
        let waits = !pull.waits.is_zero();
        // Nothing is restored for a consumer that ends: somebody may have deleted it on purpose.
        if wishes.closed && status != StatusCode::IDLE_HEARTBEAT {
            return self.end(waits);
        }
        match status {
            StatusCode::IDLE_HEARTBEAT => {}
            StatusCode::NOT_FOUND | StatusCode::TIMEOUT => {
                if waits {
                    // What nobody waited for says nothing.
                    let in_vain = pull.brought.is_none() && wishes.demand > 0;
                    self.empty = if in_vain { self.empty + 1 } else { 0 };
                }
                self.nothing_ahead_at = wishes.taken;
                self.end(waits);
            }
            StatusCode::NO_RESPONDERS => self.restore().await,
            _ => {
                let words = message.description.as_deref().unwrap_or_default().to_ascii_lowercase();
                if words.contains("deleted") {
                    self.restore().await;
                } else if words.contains("push based") || words.contains("exceeded maxrequest") {
                    let fact = format!("durable_consumer: the server says {words:?}");
                    self.fail(BuqueueError::new(ErrorKind::InvalidConfig, fact));
                } else if words.contains("shutdown") || words.contains("leadership") {
                    // Another server takes over; asking it at once is what it expects.
                    self.forget();
                    self.fail(BuqueueError::new(ErrorKind::ConnectionLost, words));
                } else {
                    // As full as it may be (pending acks, waiting pulls): the next call asks again.
                    self.fail(BuqueueError::new(ErrorKind::Throttled, words));
                }
            }
        }
    }

    /// Nobody answers. Servers before 2.10 do not say that there is no such durable.
    async fn check(&mut self) {
        let mut link = self.link.clone();
        tokio::select! {
            () = self.restore() => {}
            // It was the connection; the next step asks on the new one.
            _ = link.changed() => {}
        }
    }

    /// The stream or the durable is gone; or JetStream is, for a moment.
    async fn restore(&mut self) {
        let link = self.shared.session().link.clone();
        let restored = async {
            let standing = topology::ensure_stream(&link, &self.options.config).await?;
            if standing.created != self.created {
                // Another stream: what was settled in the one before says nothing about it.
                (self.created, self.floor) = (standing.created, 0);
            }
            topology::ensure_consumer(&link, &self.options, &standing.scheduling, Some(self.floor)).await
        };
        match restored.await {
            // Once is repaired on the spot; twice without a message in between is left to core's back-off.
            Ok(_) if std::mem::replace(&mut self.restored, true) => {
                let fact = "the durable consumer is there and does not answer";
                self.fail(BuqueueError::new(ErrorKind::ConnectionLost, fact));
            }
            Ok(_) => self.forget(),
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: BuqueueError) {
        self.waiting = None;
        self.end_prompt();
        self.failed_at_call = Some(self.shared.mailbox().wishes().calls);
        self.shared.mailbox().fail(error);
    }

    /// The pull that waits, or the prompt one, is answered in full.
    fn end(&mut self, waits: bool) {
        if waits { self.waiting = None } else { self.end_prompt() }
    }

    fn end_prompt(&mut self) {
        if let Some(pull) = self.prompt.take() {
            self.shared.mailbox().answer(pull.looks);
        }
    }

    /// Nobody works on the pulls any more; looks are to be asked again.
    fn forget(&mut self) {
        (self.waiting, self.prompt) = (None, None);
    }

    /// Cancels the pull that waits: the server drops it when nobody listens.
    ///
    /// What is on its way at that moment may be forgotten by the client (async-nats 0.51 drops a drained subscription
    /// with its next command) and comes again when its lease ends. So this is done only where a caller has waited in vain
    /// for more than a second, and nothing has come by the pull for a while.
    async fn leave(&mut self) {
        (self.waiting, self.empty) = (None, 0);
        match subscribe(self.shared.session()).await {
            Ok((inbox, messages)) => {
                let mut left = std::mem::replace(&mut self.messages, messages);
                self.inbox = inbox;
                if left.drain().await.is_ok() {
                    self.leaving.push(left);
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Gives back what nobody takes while there is still time for others.
    async fn give_back_what_is_stale(&mut self) {
        let limit = self.shared.stale_after();
        let stale = self.shared.mailbox().take_back(|held| held.received_at.elapsed() >= limit);
        if !stale.is_empty() {
            self.ahead = 1;
        }
        self.give_back(stale).await;
    }

    async fn give_back(&self, held: Vec<Held>) {
        let session = self.shared.session();
        // What cannot be given back comes back with its lease.
        let given = join_all(held.iter().map(|held| held.give_back(session)));
        drop(timeout(DRAIN, given).await);
    }

    /// Takes what is still on its way, and gives everything back.
    async fn finish(&mut self) {
        // What a short pull brings until it ends would be forgotten; see `leave`.
        if let Some(pull) = self.waiting.as_ref().filter(|pull| pull.is_short()) {
            let deadline = (pull.until - LOOK_SILENCE + GRACE).min(Instant::now() + SHORT);
            let ending = async {
                while self.waiting.is_some() && Instant::now() < deadline {
                    self.wait(Some(deadline)).await;
                }
            };
            // A client that is closed for good says nothing more.
            drop(timeout_at(deadline + GRACE, ending).await);
        }
        let mut late = Vec::new();
        if self.messages.drain().await.is_ok() {
            let draining = async {
                let subscriptions = std::mem::take(&mut self.leaving);
                for mut left in subscriptions {
                    while let Some(message) = left.next().await {
                        late.extend(self.open(message, false, Instant::now()));
                    }
                }
                while let Some(message) = self.messages.next().await {
                    late.extend(self.open(message, false, Instant::now()));
                }
            };
            drop(timeout(DRAIN / 2, draining).await);
        }
        let mut left = self.shared.mailbox().take_back(|_| true);
        left.append(&mut late);
        self.give_back(left).await;
    }
}

/// What has come, in the order in which the server sent it.
struct Arrivals {
    /// Each with whether it came on the current subscription.
    messages: Vec<(Message, bool)>,
    /// Nothing will come any more.
    closed: bool,
}

/// Takes all that is there.
///
/// What the server sent on a subscription that was left, it sent before anything on the next one. So when something is
/// found on the newest, all that belongs before it is there; it is looked for afterwards, and goes first.
fn poll_arrivals(
    current: &mut Subscriber,
    leaving: &mut Vec<Subscriber>,
    cx: &mut Context<'_>,
) -> Poll<Arrivals> {
    fn take(from: &mut Subscriber, cx: &mut Context<'_>, current: bool) -> (Vec<(Message, bool)>, bool) {
        let mut taken = Vec::new();
        loop {
            match from.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => taken.push((message, current)),
                Poll::Ready(None) => return (taken, true),
                Poll::Pending => return (taken, false),
            }
        }
    }
    let (mut messages, closed) = take(current, cx, true);
    for at in (0..leaving.len()).rev() {
        let (mut earlier, ended) = take(&mut leaving[at], cx, false);
        if ended {
            leaving.remove(at);
        }
        if !earlier.is_empty() {
            earlier.append(&mut messages);
            messages = earlier;
        }
    }
    if messages.is_empty() && !closed { Poll::Pending } else { Poll::Ready(Arrivals { messages, closed }) }
}

async fn subscribe(session: &Session) -> Result<(String, Subscriber)> {
    let client = &session.link.client;
    let inbox = client.new_inbox();
    let messages = client.subscribe(format!("{inbox}.*")).await.map_err(|error| {
        BuqueueError::new(ErrorKind::ConnectionLost, "the connection is closed").with_source(error)
    })?;
    Ok((inbox, messages))
}
