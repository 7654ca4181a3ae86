//! The task that consumes, and keeps what came until it is taken.
//!
//! The broker pushes messages, as many as the prefetch allows. Those that wait here are counted as failed when this
//! process dies, although no handler saw them; so the prefetch is earned: it begins with what is asked for, doubles
//! while the consumer is fast, and begins anew when something failed.
//!
//! A prefetch belongs to a subscription and cannot be changed. It grows by further subscriptions on the same channel,
//! whose deliveries are put back into the order of their tags. To cancel one is done only when the broker can have
//! nothing on its way: what is, it takes for a failed attempt.

use std::collections::{BTreeMap, HashSet};
use std::future::{pending, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend as _};
use buqueue_core::{BuqueueError, ErrorKind, Result, unique_id};
use futures_util::future::join_all;
use futures_util::stream::{SelectAll, once};
use futures_util::{Stream, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::RabbitMqBackend;
use crate::config::{QueueType, RabbitMqOptions, short};
use crate::connection::Connector;
use crate::convert;
use crate::error;
use crate::lease::{CLOSING, Delivered, Epoch, Held, Session};
use crate::topology;

/// A consumer that nobody has polled for this long stops taking messages from others.
const IDLE: Duration = Duration::from_millis(200);
/// Who waits this long for nothing subscribes anew.
const SILENCE: Duration = Duration::from_secs(5);
/// Messages that were read ahead and that nobody has taken for this long are for others.
const HELD: Duration = Duration::from_secs(10);
/// A prompt look waits this long for a message that the broker has.
const LOOK: Duration = Duration::from_millis(60);

/// A message that could not be counted is given back this much later, to be counted then.
const RECOUNT_PAUSE: Duration = Duration::from_secs(1);

type Deliveries = Pin<Box<dyn Stream<Item = Option<lapin::Result<Delivery>>> + Send + Sync>>;

/// The subscriptions of one channel.
#[derive(Default)]
struct Subscriptions {
    /// Each ends with a `None`.
    streams: SelectAll<Deliveries>,
    tags: Vec<ShortString>,
    /// How many messages all of them together may hold.
    granted: usize,
    since: Option<Instant>,
    /// When the broker last gave a sign of them.
    heard: Option<Instant>,
    /// Deliveries since the prefetch grew last.
    delivered: usize,
    /// Something failed: begin anew when that can be done.
    failed: bool,
    /// The tag of the next delivery, less one; and what came before its turn.
    seen: u64,
    early: BTreeMap<u64, Delivery>,
}

impl Subscriptions {
    fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }
}

/// Consumes.
pub(crate) struct Reader {
    session: Arc<Session>,
    connector: Connector,
    epoch: Option<Arc<Epoch>>,
    subscriptions: Subscriptions,
    /// What a classic queue has delivered again, on its way back into the queue with its count.
    recounts: JoinSet<(String, Result<()>)>,
    /// The ids of those; and copies that came before their original was acked. A handler that dies with such a copy
    /// would bring back both.
    recounting: HashSet<String>,
    copies: Vec<Held>,
    failed_at_call: Option<u64>,
    /// There has been a connection, and all that was declared.
    built: bool,
    /// It was told that the session is over.
    lost: bool,
}

enum Step {
    Stop,
    Connect,
    Subscribe { prefetch: usize },
    Cancel,
    GiveBack,
    Look { looks: u64 },
    Renew,
    Wait { until: Option<Instant> },
}

impl Reader {
    pub(crate) async fn start(session: Arc<Session>, connector: Connector) -> Result<Self> {
        let mut reader = Self {
            session,
            connector,
            epoch: None,
            subscriptions: Subscriptions::default(),
            recounts: JoinSet::new(),
            recounting: HashSet::new(),
            copies: Vec::new(),
            failed_at_call: None,
            built: false,
            lost: false,
        };
        reader.connect().await?;
        reader.built = true;
        Ok(reader)
    }

    fn options(&self) -> &RabbitMqOptions {
        &self.connector.options
    }

    fn most(&self) -> usize {
        usize::from(self.options().config.prefetch_count)
    }

    pub(crate) async fn run(mut self) {
        loop {
            let done = match self.step() {
                Step::Stop => break,
                Step::Connect => self.connect().await,
                Step::Subscribe { prefetch } => self.subscribe(prefetch).await,
                Step::Cancel => self.cancel().await,
                Step::GiveBack => self.give_back().await,
                Step::Look { looks } => self.look(looks).await,
                Step::Renew => self.renew().await,
                Step::Wait { until } => self.wait(until).await,
            };
            if let Err(error) = done {
                self.fail(error);
            }
        }
        self.finish().await;
        self.session.mailbox.finish();
    }

    /// What is to be done now.
    fn step(&mut self) -> Step {
        let wishes = self.session.mailbox.wishes();
        if wishes.closed {
            return Step::Stop;
        }
        if self.failed_at_call == Some(wishes.calls) {
            return Step::Wait { until: None };
        }
        let wanted = wishes.demand > wishes.ready || wishes.is_looking();
        let Some(epoch) = self.epoch.as_ref().filter(|epoch| epoch.is_alive()) else {
            // What came on the channel before can no longer be settled.
            let broken = self.epoch.is_some();
            return if wanted || broken { Step::Connect } else { Step::Wait { until: None } };
        };
        let (most, now) = (self.most(), Instant::now());
        let subscriptions = &self.subscriptions;
        let granted = subscriptions.granted;
        let touched = wishes.demand_ended.max(wishes.last_take).max(subscriptions.since);
        let idle = wishes.demand == 0 && !wishes.is_looking();
        let mut until = None;
        if idle && wishes.ready > 0 {
            let give_back_at = touched.max(subscriptions.heard).unwrap_or(now) + HELD;
            if now >= give_back_at {
                return Step::GiveBack;
            }
            until = Some(give_back_at);
        }
        if subscriptions.is_empty() {
            // Those in handlers do not count: they came by subscriptions that are cancelled. Where they are as many as
            // may be, the next is for when one of them is settled.
            let unsettled = if wanted { epoch.unsettled_or_wake(most) } else { epoch.unsettled() };
            return match (wanted && unsettled < most, wishes.is_looking()) {
                (true, _) => Step::Subscribe { prefetch: wishes.demand.clamp(1, most - unsettled) },
                (false, true) => Step::Look { looks: wishes.looks },
                (false, false) => Step::Wait { until },
            };
        }
        let unsettled = epoch.unsettled();
        // All that may be on its way has come: nothing is taken for a failed attempt by cancelling.
        let quiet = unsettled >= granted;
        if subscriptions.failed && quiet && granted > 1 {
            return Step::Cancel;
        }
        let stalled = wanted && quiet;
        let earned = wanted && !subscriptions.failed && subscriptions.delivered >= 2 * granted;
        if (stalled || earned) && granted < most {
            return Step::Subscribe { prefetch: granted.min(most - granted) };
        }
        if wishes.is_looking() {
            return Step::Look { looks: wishes.looks };
        }
        if idle && wishes.ready == 0 {
            let idle_at = touched.unwrap_or(now) + IDLE;
            return if now >= idle_at { Step::Cancel } else { Step::Wait { until: Some(idle_at) } };
        }
        if !wanted {
            return Step::Wait { until };
        }
        match subscriptions.heard.map(|heard| heard + SILENCE) {
            Some(silent_at) if !quiet && now >= silent_at => Step::Renew,
            Some(silent_at) if !quiet => Step::Wait { until: Some(silent_at) },
            _ => Step::Wait { until: None },
        }
    }

    async fn connect(&mut self) -> Result<()> {
        self.subscriptions = Subscriptions::default();
        // Deliveries of the channel before are the broker's again.
        drop(self.session.mailbox.take_back(|held| !held.epoch.is_alive()));
        self.copies.retain(|held| held.epoch.is_alive());
        if self.epoch.take().is_some() {
            self.tell_lost(&error::lost("consume"));
        }
        let connection = self.connector.connect().await?;
        let limit = self.options().config.connection_timeout;
        let preparing = async {
            let declared = topology::declare_own(&connection, self.options()).await;
            // What was there may be on a node that is down.
            declared.map_err(|e| if self.built { error::passing("declaring", e) } else { e })?;
            let channel = connection.create_channel().await;
            channel.map_err(|error| error::convert("a channel to consume on", error))
        };
        let channel = match timeout(limit, preparing).await {
            Ok(prepared) => prepared?,
            Err(_) => return Err(error::timed_out("declaring")),
        };
        self.epoch =
            Some(Arc::new(Epoch::new(Arc::new(connection), channel, self.options().request_timeout)));
        if std::mem::take(&mut self.lost) {
            self.tell(Activity::Reconnected);
        }
        Ok(())
    }

    async fn subscribe(&mut self, prefetch: usize) -> Result<()> {
        let Some(epoch) = self.epoch.clone() else { return Ok(()) };
        let queue = short(&self.options().config.queue)?;
        let count = u16::try_from(prefetch).unwrap_or(u16::MAX);
        let subscribing = async {
            epoch.channel.basic_qos(count, BasicQosOptions::default()).await?;
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            epoch.channel.basic_consume(queue, "".into(), options, arguments).await
        };
        match timeout(self.options().request_timeout, subscribing).await {
            Ok(Ok(stream)) => {
                let subscriptions = &mut self.subscriptions;
                subscriptions.tags.push(stream.tag());
                subscriptions.streams.push(Box::pin(stream.map(Some).chain(once(ready(None)))));
                subscriptions.granted += prefetch;
                subscriptions.delivered = 0;
                subscriptions.since = Some(Instant::now());
                subscriptions.heard = subscriptions.since;
                Ok(())
            }
            Ok(Err(error)) => Err(self.broken("consume", error)),
            Err(_) => Err(self.mute("consume")),
        }
    }

    /// Ends the subscriptions; what the broker has sent before it heard of that still comes.
    async fn cancel(&mut self) -> Result<()> {
        let Some(epoch) = self.epoch.clone() else { return Ok(()) };
        let tags = std::mem::take(&mut self.subscriptions.tags);
        let cancelling = async {
            for tag in tags {
                epoch.channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
            }
            Ok(())
        };
        let cancelled = timeout(self.connector.options.request_timeout, cancelling).await;
        match cancelled {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.broken("cancel", error)),
            Err(_) => return Err(self.mute("cancel")),
        }
        let limit = self.connector.options.request_timeout;
        let draining = async {
            while let Some(delivery) = self.subscriptions.streams.next().await {
                if let Some(Ok(delivery)) = delivery {
                    self.take_in(delivery);
                }
            }
        };
        if timeout(limit, draining).await.is_err() {
            return Err(self.mute("cancel"));
        }
        let subscriptions = &mut self.subscriptions;
        (subscriptions.granted, subscriptions.delivered, subscriptions.failed) = (0, 0, false);
        Ok(())
    }

    /// Subscribes anew, on a channel of its own.
    ///
    /// A quorum queue that is deleted and declared again within milliseconds (seen on 3.10.8) keeps a subscription that
    /// never brings anything: the channel is not told, and takes what comes for what it had before.
    async fn renew(&mut self) -> Result<()> {
        let Some(epoch) = self.epoch.clone() else { return Ok(()) };
        let limit = self.connector.options.request_timeout;
        let looking = topology::waiting(&epoch.connection, &self.connector.options.config.queue);
        match timeout(limit, looking).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind == ErrorKind::NotFound => {
                return Err(self.lost("consume: the queue was deleted").with_source(error));
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(self.mute("consume")),
        }
        let before = epoch.unsettled();
        self.cancel().await?;
        if epoch.unsettled() > before {
            // Something has come after all.
            return Ok(());
        }
        match timeout(limit, epoch.connection.create_channel()).await {
            Ok(Ok(channel)) => {
                // The one before stays open for those that came by it, and until their acks have reached the queue.
                self.subscriptions = Subscriptions::default();
                self.epoch = Some(Arc::new(Epoch::new(Arc::clone(&epoch.connection), channel, limit)));
                Ok(())
            }
            Ok(Err(error)) => Err(error::convert("a channel to consume on", error)),
            Err(_) => Err(self.mute("consume")),
        }
    }

    /// Gives back what was read ahead and is not taken.
    async fn give_back(&mut self) -> Result<()> {
        if !self.subscriptions.is_empty() {
            self.cancel().await?;
        }
        let left = self.session.mailbox.take_back(|_| true);
        for given in join_all(left.iter().map(|held| held.epoch.requeue(held.tag))).await {
            // On a channel that is gone they are the broker's already.
            drop(given);
        }
        Ok(())
    }

    fn lost(&mut self, what: &str) -> BuqueueError {
        self.epoch = None;
        self.subscriptions = Subscriptions::default();
        error::lost(what)
    }

    /// The channel does not answer. What it may still bring would be nobody's, so it is closed.
    fn mute(&mut self, what: &str) -> BuqueueError {
        self.subscriptions = Subscriptions::default();
        if let Some(epoch) = self.epoch.take() {
            let limit = self.connector.options.request_timeout;
            tokio::spawn(async move {
                drop(timeout(limit, epoch.channel.close(200, "no answer".into())).await);
            });
        }
        error::timed_out(what)
    }

    /// The channel is gone. When the queue is, it is declared with the next one.
    fn broken(&mut self, what: &str, error: lapin::Error) -> BuqueueError {
        let lost = self.lost(what);
        match error::classify(&error) {
            ErrorKind::NotFound => lost.with_source(error),
            _ => error::convert(what, error),
        }
    }

    /// Waits a moment for what the broker has: with a subscription it comes by itself.
    async fn look(&mut self, looks: u64) -> Result<()> {
        let until = Instant::now() + LOOK;
        let mut done = Ok(());
        while !self.subscriptions.is_empty()
            && self.session.mailbox.wishes().ready == 0
            && Instant::now() < until
        {
            done = self.wait(Some(until)).await;
            if done.is_err() || self.session.mailbox.wishes().closed {
                break;
            }
        }
        if done.is_ok() {
            self.session.mailbox.answer(looks);
        }
        done
    }

    async fn wait(&mut self, until: Option<Instant>) -> Result<()> {
        let late = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        let next = async {
            match self.subscriptions.streams.next().await {
                Some(delivery) => delivery,
                None => pending().await,
            }
        };
        let epoch = self.epoch.clone();
        let freed = async {
            match &epoch {
                Some(epoch) => epoch.freed().await,
                None => pending().await,
            }
        };
        let recounted = async {
            match self.recounts.join_next().await {
                Some(recounted) => recounted,
                None => pending().await,
            }
        };
        tokio::select! {
            delivery = next => match delivery {
                Some(Ok(delivery)) => {
                    self.take_in(delivery);
                    Ok(())
                }
                Some(Err(error)) => Err(self.broken("consume", error)),
                // Not by us: the queue was deleted, or has no leader.
                None => Err(self.lost("consume")),
            },
            recounted = recounted => self.recounted(recounted),
            () = self.session.mailbox.changed() => Ok(()),
            () = freed => Ok(()),
            () = late => Ok(()),
        }
    }

    /// Takes deliveries in the order of their tags, whichever subscription they came by.
    fn take_in(&mut self, delivery: Delivery) {
        self.subscriptions.early.insert(delivery.delivery_tag, delivery);
        while let Some(next) = self.subscriptions.early.remove(&(self.subscriptions.seen + 1)) {
            self.subscriptions.seen += 1;
            self.take_in_next(next);
        }
    }

    fn take_in_next(&mut self, delivery: Delivery) {
        let Some(epoch) = self.epoch.clone() else { return };
        epoch.delivered(delivery.delivery_tag);
        let config = &self.options().config;
        // The AMQP routing key is the message's, unless it only names the queue.
        let own_exchange = config.exchange.as_ref().is_some_and(|own| own.name == delivery.exchange.as_str());
        let key = Some(delivery.routing_key.as_str()).filter(|key| {
            !key.is_empty() && (own_exchange || (delivery.exchange.as_str() != "" && !is_delay_key(key)))
        });
        let incoming = convert::incoming(&delivery.properties, delivery.data, key);
        let held = Held {
            message: incoming.message,
            // One of a foreign message lasts as long as the delivery.
            id: incoming.id.unwrap_or_else(unique_id),
            story: incoming.story,
            tag: delivery.delivery_tag,
            epoch,
        };
        if delivery.redelivered && config.queue_type == QueueType::Classic {
            self.recounting.insert(held.id.clone());
            self.recounts.spawn(recount(Arc::clone(&self.session), held));
            return;
        }
        if self.recounting.contains(&held.id) {
            self.copies.push(held);
            return;
        }
        self.hand_over(held);
    }

    fn hand_over(&mut self, held: Held) {
        let failed = held.story.failures > 0;
        self.subscriptions.heard = Some(Instant::now());
        self.subscriptions.delivered += 1;
        self.subscriptions.failed |= failed;
        self.session.mailbox.push(held);
    }

    /// One is counted: its copy may be handled.
    fn recounted(&mut self, recounted: std::result::Result<(String, Result<()>), JoinError>) -> Result<()> {
        let (ready, outcome) = match recounted {
            Ok((id, outcome)) => {
                self.recounting.remove(&id);
                (self.copies.extract_if(.., |held| held.id == id).collect::<Vec<_>>(), outcome)
            }
            // It panicked, and does not say which: its original comes back with the channel's end.
            Err(_) => (std::mem::take(&mut self.copies), Ok(())),
        };
        for held in ready {
            self.hand_over(held);
        }
        outcome
    }

    fn tell_lost(&mut self, error: &BuqueueError) {
        if self.built && !std::mem::replace(&mut self.lost, true) {
            self.tell(Activity::Disconnected(error));
        }
    }

    fn tell(&self, activity: Activity<'_>) {
        driver::tell(RabbitMqBackend::NAME, &self.options().config.queue, activity);
    }

    fn fail(&mut self, error: BuqueueError) {
        if self.epoch.is_none() {
            self.tell_lost(&error);
        }
        let mailbox = &self.session.mailbox;
        self.failed_at_call = Some(mailbox.wishes().calls);
        mailbox.fail(error);
    }

    /// Takes what is still on its way, and gives everything back.
    async fn finish(&mut self) {
        let cancelling = async {
            drop(self.cancel().await);
            while self.recounts.join_next().await.is_some() {}
        };
        // What is on its way after that comes back with the channel's end.
        drop(timeout(CLOSING, cancelling).await);
        let mut left = self.session.mailbox.take_back(|_| true);
        left.append(&mut self.copies);
        // Handed over by the call: it is done also when nobody waits any more.
        let given_back: Vec<_> = left.iter().map(|held| held.epoch.requeue(held.tag)).collect();
        drop(timeout(CLOSING, join_all(given_back)).await);
        if let Some(epoch) = &self.epoch {
            epoch.reached_the_queue().await;
        }
    }
}

/// A classic queue says that an attempt failed, and not how many did: a copy with the count takes its place, before
/// anybody sees it. After a restart of the broker that may be the whole queue, so it is done for many at a time.
async fn recount(session: Arc<Session>, held: Held) -> (String, Result<()>) {
    let (id, epoch, tag) = (held.id.clone(), Arc::clone(&held.epoch), held.tag);
    let outcome = match Delivered::new(session, held).recount().await {
        // The broker has it again.
        Err(error) if error.kind == ErrorKind::LeaseExpired => Ok(()),
        Err(error) => {
            tokio::spawn(async move {
                sleep(RECOUNT_PAUSE).await;
                // On a channel that is gone there is nothing to give back.
                drop(epoch.requeue(tag).await);
            });
            Err(error)
        }
        counted => counted,
    };
    (id, outcome)
}

/// Keys of the delay levels begin with a bit.
fn is_delay_key(key: &str) -> bool {
    key.len() > 2 * crate::delay::LEVELS
        && key.split('.').take(crate::delay::LEVELS).all(|word| matches!(word, "0" | "1"))
}
