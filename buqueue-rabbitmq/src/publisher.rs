//! Publishing with confirms, over a connection that is made again when it broke.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend as _};
use buqueue_core::{BuqueueError, ErrorKind, Message, QueueStats, Result};
use futures_util::FutureExt;
use futures_util::future::maybe_done;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::RabbitMqBackend;
use crate::config::{ExchangeKind, RabbitMqOptions, SHORT_MAX, short};
use crate::connection::Connector;
use crate::convert::{self, Story};
use crate::delay::{self, Delays};
use crate::error;
use crate::topology::{self, Part};

/// How many sends, and batches, are on their way at a time; others wait their turn.
const LANES: usize = 128;
/// The broker's default for a frame.
const FRAME_MAX: u32 = 128 * 1024;
/// How often it is looked whether a blocked connection is free again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(50);

/// Publishes, and declares what is needed for it.
#[derive(Debug)]
pub(crate) struct Publisher {
    connector: Connector,
    delays: Delays,
    current: RwLock<Option<Arc<Live>>>,
    /// Attempts to connect so far.
    attempts: AtomicU64,
    /// Held while connecting, so that only one does; how the last attempt failed, for those who waited for it. An
    /// async lock: connecting is nothing but waiting.
    connecting: tokio::sync::Mutex<Option<(ErrorKind, String)>>,
    /// Beside a consumer, whose own connection is what the log hears of.
    quiet: bool,
    /// It was told that the connection is lost.
    lost: AtomicBool,
    /// As agreed with the broker.
    frame_max: AtomicU32,
    /// Counts where nothing is sent. An async lock, as above.
    counting: tokio::sync::Mutex<Option<Connection>>,
}

/// A connection, and the channels to publish on.
#[derive(Debug)]
pub(crate) struct Live {
    connection: Connection,
    /// Channels in confirm mode that nobody uses now.
    idle: Mutex<Vec<Channel>>,
    lanes: Semaphore,
    /// Up to which level delays are declared, and which destinations what is due can come out to.
    delays: Mutex<Declared>,
}

/// A channel in confirm mode that one caller has for himself.
///
/// The client (lapin 4.12) hands a message that was returned to whichever confirm comes next. So it takes all confirms
/// of a channel to tell which messages no queue took; with others on it, such a message would pass for a sent one.
struct Lane<'a> {
    live: &'a Live,
    channel: Channel,
    _turn: SemaphorePermit<'a>,
}

impl Lane<'_> {
    /// For the next one. What is not put back is closed: something may still be on its way on it.
    fn put_back(self) {
        if self.channel.status().connected() {
            self.live.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.channel);
        }
    }
}

#[derive(Debug, Default)]
struct Declared {
    levels: Option<usize>,
    outlets: HashSet<String>,
}

/// What is published.
#[derive(Debug)]
pub(crate) struct Parcel<'a> {
    pub(crate) message: &'a Message,
    pub(crate) id: &'a str,
    pub(crate) route: Route,
    pub(crate) story: Story,
}

/// When a message is to come out of the level queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Then, however long it takes to send it.
    At(Instant),
    /// So long after it was sent.
    After(Duration),
}

impl Due {
    fn millis_left(self) -> u64 {
        delay::millis_up(match self {
            Self::At(due) => due.saturating_duration_since(Instant::now()),
            Self::After(delay) => delay,
        })
    }
}

/// What the broker did with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Yes,
    ByNoQueue,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    exchange: String,
    key: String,
    /// The message's own key is not the AMQP routing key.
    key_beside: bool,
    /// Through the level queues: when it is due, and where it then goes.
    later: Option<(Due, String)>,
}

impl Publisher {
    pub(crate) fn new(connector: Connector) -> Self {
        let delays = Delays::new(&connector.options);
        Self {
            connector,
            delays,
            current: RwLock::default(),
            attempts: AtomicU64::new(0),
            connecting: tokio::sync::Mutex::default(),
            quiet: false,
            lost: AtomicBool::new(false),
            frame_max: AtomicU32::new(FRAME_MAX),
            counting: tokio::sync::Mutex::default(),
        }
    }

    /// For a consumer, which tells of its connection itself.
    pub(crate) fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    fn options(&self) -> &RabbitMqOptions {
        &self.connector.options
    }

    fn timeout(&self) -> Duration {
        self.options().request_timeout
    }

    /// The connection, made again when it broke.
    pub(crate) async fn live(&self) -> Result<Arc<Live>> {
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let before = self.attempts.load(Ordering::Acquire);
        // As long as one attempt takes: to connect, and to declare.
        let limit = self.options().config.connection_timeout * 2;
        let Ok(mut last_failure) = timeout(limit, self.connecting.lock()).await else {
            return Err(error::timed_out("connecting"));
        };
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        // Somebody else has just tried; his answer is ours.
        if let Some((kind, fact)) = &*last_failure
            && self.attempts.load(Ordering::Acquire) != before
        {
            return Err(BuqueueError::new(kind.clone(), fact.clone()));
        }
        if self.current.write().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            // It has died unnoticed.
            self.tell_lost(&error::lost("publish"));
        }
        let attempt = self.connect().await;
        let first = self.attempts.fetch_add(1, Ordering::AcqRel) == 0;
        match attempt {
            Ok(live) => {
                *last_failure = None;
                self.frame_max.store(live.connection.configuration().frame_max(), Ordering::Relaxed);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&live));
                if self.lost.swap(false, Ordering::Relaxed) {
                    self.tell(Activity::Reconnected);
                }
                Ok(live)
            }
            Err(error) => {
                // A queue that was there may be on a node that is down.
                let error = if first { error } else { error::passing("declaring", error) };
                *last_failure = Some((error.kind.clone(), error.message().to_owned()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Arc<Live>> {
        let connection = self.connector.connect().await?;
        let preparing = async {
            topology::declare_own(&connection, self.options()).await?;
            channel_to_publish_on(&connection).await
        };
        let channel = match timeout(self.options().config.connection_timeout, preparing).await {
            Ok(prepared) => prepared?,
            Err(_) => return Err(error::timed_out("declaring")),
        };
        let idle = Mutex::new(vec![channel]);
        Ok(Arc::new(Live { connection, idle, lanes: Semaphore::new(LANES), delays: Mutex::default() }))
    }

    fn usable(&self) -> Option<Arc<Live>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|live| live.connection.status().connected()).cloned()
    }

    /// Does not use this connection again, because of this error.
    fn give_up(&self, live: &Arc<Live>, error: BuqueueError) -> BuqueueError {
        let given_up = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            current.take_if(|current| Arc::ptr_eq(current, live))
        };
        if given_up.is_some() {
            self.tell_lost(&error);
        }
        error
    }

    fn tell_lost(&self, error: &BuqueueError) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            self.tell(Activity::Disconnected(error));
        }
    }

    fn tell(&self, activity: Activity<'_>) {
        if !self.quiet {
            driver::tell(RabbitMqBackend::NAME, &self.options().config.queue, activity);
        }
    }

    /// Counts what waits in the queue. AMQP tells no more: not what is in flight, and delays are shared with others.
    ///
    /// On the connection of the sends where there is one; else on one of its own, because whoever only asks declares nothing.
    pub(crate) async fn queue_stats(&self) -> Result<QueueStats> {
        let queue = &self.options().config.queue;
        if let Some(live) = self.usable() {
            match timeout(self.timeout(), topology::waiting(&live.connection, queue)).await {
                Ok(Ok(waiting)) => return Ok(QueueStats::of_ready(waiting)),
                Ok(Err(error)) if error.kind != ErrorKind::ConnectionLost => return Err(error),
                // Whether the connection is of use any longer is for the sends to say.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        let asking = async {
            let mut own = self.counting.lock().await;
            // Put back when it has answered: given up midway it is closed.
            let connection = match own.take().filter(|connection| connection.status().connected()) {
                Some(connection) => connection,
                None => self.connector.connect().await?,
            };
            let waiting = topology::waiting(&connection, queue).await?;
            *own = Some(connection);
            Ok(QueueStats::of_ready(waiting))
        };
        let limit = self.options().config.connection_timeout + self.timeout();
        timeout(limit, asking).await.unwrap_or_else(|_| Err(error::timed_out("queue_stats")))
    }

    /// What fits into one frame, as was agreed with the broker last.
    pub(crate) fn frame_bytes(&self) -> usize {
        usize::try_from(self.frame_max.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// Where a message goes that is sent now.
    pub(crate) fn route(&self, message: &Message) -> Result<Route> {
        let config = &self.options().config;
        Ok(match &config.exchange {
            None => {
                Route { exchange: String::new(), key: config.queue.clone(), key_beside: true, later: None }
            }
            Some(exchange) => Route {
                exchange: exchange.name.clone(),
                key: fitting_key(message.routing_key().unwrap_or_default())?,
                key_beside: false,
                later: None,
            },
        })
    }

    /// Straight to the queue, whatever exchange there is: a copy of what came from it.
    pub(crate) fn route_to_queue(&self) -> Route {
        let key = self.options().config.queue.clone();
        Route { exchange: String::new(), key, key_beside: true, later: None }
    }

    /// As [`route`](Self::route), for a message that is due then. What is needed for it is declared.
    pub(crate) async fn route_later(&self, message: &Message, due: Due) -> Result<Route> {
        let config = &self.options().config;
        match &config.exchange {
            None => self.route_to_queue_later(due).await,
            Some(exchange) => {
                let mut destination = delay::token('e', &exchange.name);
                let by_key = matches!(exchange.kind, ExchangeKind::Topic | ExchangeKind::Direct);
                if let Some(key) = message.routing_key().filter(|key| by_key && !key.is_empty()) {
                    destination.push('.');
                    destination.push_str(key);
                }
                // The outlet is the binding of each queue, declared with it.
                self.later(&destination, due, None).await
            }
        }
    }

    /// Straight to the queue, when it is due.
    pub(crate) async fn route_to_queue_later(&self, due: Due) -> Result<Route> {
        let queue = &self.options().config.queue;
        let token = delay::token('q', queue);
        let outlet = Part::bind(queue, &self.delays.due(), &Delays::outlet_key(&token, ""), Vec::new());
        self.later(&token, due, Some(outlet)).await
    }

    async fn later(&self, destination: &str, due: Due, outlet: Option<Part>) -> Result<Route> {
        // The length of the key does not depend on the delay.
        fitting_key(&self.delays.route(due.millis_left(), destination).1)?;
        let live = self.live().await?;
        let millis = due.millis_left();
        let level = delay::highest_level(millis);
        let needed = {
            let declared = live.delays.lock().unwrap_or_else(PoisonError::into_inner);
            let mut parts =
                if declared.levels >= Some(level) { Vec::new() } else { self.delays.levels(millis) };
            if outlet.is_some() && !declared.outlets.contains(destination) {
                parts.extend(outlet);
            }
            parts
        };
        if !needed.is_empty() {
            // Many queues: each takes the broker some ten milliseconds.
            let limit = self.timeout() * 6;
            match timeout(limit, topology::declare(&live.connection, &needed)).await {
                Ok(declared) => declared?,
                Err(_) => {
                    return Err(self.give_up(&live, error::timed_out("declaring the queues for delays")));
                }
            }
            {
                let mut declared = live.delays.lock().unwrap_or_else(PoisonError::into_inner);
                declared.levels = declared.levels.max(Some(level));
                declared.outlets.insert(destination.to_owned());
            }
        }
        Ok(self.route_through_levels(due, destination))
    }

    /// With what is left of the delay now.
    fn route_through_levels(&self, due: Due, destination: &str) -> Route {
        let (exchange, key) = self.delays.route(due.millis_left(), destination);
        Route { exchange, key, key_beside: true, later: Some((due, destination.to_owned())) }
    }

    /// Publishes and waits for the confirm. What no queue takes is declared again, and published once more.
    pub(crate) async fn publish(
        &self,
        message: &Message,
        id: &str,
        route: &Route,
        story: Story,
    ) -> Result<()> {
        for declared in [false, true] {
            let live = self.live().await?;
            // Less may be left than when the route was made; the levels for it are there.
            let route = match &route.later {
                Some((due, destination)) => self.route_through_levels(*due, destination),
                None => route.clone(),
            };
            let parcel = [Parcel { message, id, route, story }];
            match self.publish_on(&live, &parcel).await.pop() {
                Some(Ok(Taken::Yes)) => return Ok(()),
                Some(Ok(Taken::ByNoQueue)) if declared => break,
                // Nobody has it: the queue was deleted, and with it what routed to it.
                Some(Ok(Taken::ByNoQueue)) => self.redeclare(&live).await?,
                Some(Err(error)) => return Err(error),
                None => return Err(error::lost("publish")),
            }
        }
        Err(unroutable(route))
    }

    /// Declares again what others may have deleted.
    pub(crate) async fn redeclare(&self, live: &Arc<Live>) -> Result<()> {
        *live.delays.lock().unwrap_or_else(PoisonError::into_inner) = Declared::default();
        match timeout(self.timeout(), topology::declare_own(&live.connection, self.options())).await {
            Ok(declared) => declared,
            Err(_) => Err(error::timed_out("declaring")),
        }
    }

    /// Publishes all at once, in order, on a channel of their own; what became of each.
    pub(crate) async fn publish_on(&self, live: &Arc<Live>, parcels: &[Parcel<'_>]) -> Vec<Result<Taken>> {
        let deadline = Instant::now() + self.timeout();
        let lane = match timeout_at(deadline, self.lane(live)).await {
            Ok(Ok(lane)) => lane,
            Ok(Err(error)) => return for_all(parcels.len(), error),
            Err(_) => return for_all(parcels.len(), self.late(live)),
        };
        // Begun together: the client's writer takes what is there with one write, where it would take a write for each
        // that is waited for. Each is written at its first poll, which is in order.
        let mut sending: Vec<_> =
            parcels.iter().map(|parcel| Box::pin(maybe_done(write(&lane.channel, parcel)))).collect();
        let all = async {
            for sent in &mut sending {
                poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx))).await.is_ready();
            }
            // The last first: when it is confirmed, those before it mostly are, and one wake was enough for all.
            for sent in sending.iter_mut().rev() {
                sent.await;
            }
        };
        let in_time = timeout_at(deadline, all).await.is_ok();
        let confirms: Vec<Option<Written>> = (sending.iter_mut())
            .map(|sent| {
                // It may have been confirmed, and nobody has looked.
                let _looked = sent.as_mut().now_or_never();
                sent.as_mut().take_output()
            })
            .collect();
        drop(sending);
        let complete = confirms.iter().all(|confirm| matches!(confirm, Some(Ok(_))));
        if complete {
            lane.put_back();
        }
        self.verdicts(live, parcels, confirms, complete, in_time)
    }

    fn verdicts(
        &self,
        live: &Arc<Live>,
        parcels: &[Parcel<'_>],
        confirms: Vec<Option<Written>>,
        complete: bool,
        in_time: bool,
    ) -> Vec<Result<Taken>> {
        let returned: Vec<Option<String>> = (confirms.iter().flatten().flatten())
            .filter_map(|confirm| match confirm {
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => Some(returned),
                _ => None,
            })
            .map(|returned| returned.properties.message_id().as_ref().map(|id| id.as_str().to_owned()))
            .collect();
        let known: HashSet<&str> = returned.iter().flatten().map(String::as_str).collect();
        // Of a lone message it is clear which one came back, also where its id is no property.
        let lone = parcels.len() == 1 && !returned.is_empty();
        let late = (!in_time).then(|| self.late(live));
        let uncertain = || match &late {
            Some(late) => BuqueueError::new(late.kind.clone(), late.message()),
            None => error::lost("publish"),
        };
        (parcels.iter().zip(confirms))
            .map(|(parcel, confirm)| match confirm {
                Some(Ok(_)) if lone || known.contains(parcel.id) => Ok(Taken::ByNoQueue),
                // Another one's return came with it: its own may not have come yet.
                Some(Ok(Confirmation::Ack(Some(_)))) if !complete => Err(uncertain()),
                Some(Ok(Confirmation::Ack(_))) => Ok(Taken::Yes),
                Some(Ok(Confirmation::Nack(_))) => {
                    let fact = "the queue refuses: it is full, or has no leader";
                    Err(BuqueueError::new(ErrorKind::Throttled, fact))
                }
                Some(Ok(Confirmation::NotRequested)) => {
                    Err(self.give_up(live, error::lost("the channel has no confirms")))
                }
                Some(Err(NotWritten::Own(error))) => Err(error),
                Some(Err(NotWritten::Client(error))) => Err(self.broken(live, error)),
                None => Err(uncertain()),
            })
            .collect()
    }

    /// A channel for one caller, as soon as there is one and the broker lets publishers through. What is handed to a
    /// client whose connection is blocked stays in its memory.
    async fn lane<'a>(&self, live: &'a Live) -> Result<Lane<'a>> {
        while live.connection.status().blocked() {
            sleep(BLOCKED_PAUSE).await;
        }
        let turn = live.lanes.acquire().await.map_err(|_| error::lost("publish"))?;
        let idle = live.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => channel_to_publish_on(&live.connection).await?,
        };
        Ok(Lane { live, channel, _turn: turn })
    }

    fn broken(&self, live: &Arc<Live>, error: lapin::Error) -> BuqueueError {
        let error = match error::classify(&error) {
            // An exchange that was deleted closes the channel, and all that was on its way with it. The next
            // connection declares it again.
            ErrorKind::NotFound => error::lost("publish").with_source(error),
            _ => error::convert("publish", error),
        };
        self.give_up(live, error)
    }

    /// The error of what has taken too long on this connection.
    fn late(&self, live: &Arc<Live>) -> BuqueueError {
        if live.connection.status().blocked() {
            return error::blocked();
        }
        self.give_up(live, error::timed_out("publish"))
    }

    /// Flushes and closes.
    pub(crate) async fn close(&self) -> Result<()> {
        let live = self.current.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(live) = live else { return Ok(()) };
        let closing = async {
            // Those who still publish finish first.
            let all = u32::try_from(LANES).unwrap_or(u32::MAX);
            let _turns = live.lanes.acquire_many(all).await;
            live.connection.close(200, "closed".into()).await
        };
        match timeout(self.timeout(), closing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error::convert("close", error)),
            Err(_) => Err(error::timed_out("close")),
        }
    }
}

type Written = std::result::Result<Confirmation, NotWritten>;

enum NotWritten {
    Own(BuqueueError),
    Client(lapin::Error),
}

async fn write(channel: &Channel, parcel: &Parcel<'_>) -> Written {
    let properties = convert::properties(parcel.message, parcel.id, parcel.route.key_beside, parcel.story);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let exchange = short(&parcel.route.exchange).map_err(NotWritten::Own)?;
    let key = short(&parcel.route.key).map_err(NotWritten::Own)?;
    let publishing = channel.basic_publish(exchange, key, options, parcel.message.payload(), properties);
    publishing.await.map_err(NotWritten::Client)?.await.map_err(NotWritten::Client)
}

async fn channel_to_publish_on(connection: &Connection) -> Result<Channel> {
    let opening = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    };
    opening.await.map_err(|error| error::convert("a channel to publish on", error))
}

/// The same error for each.
pub(crate) fn for_all<T>(count: usize, error: BuqueueError) -> Vec<Result<T>> {
    let (kind, fact) = (error.kind.clone(), error.message().to_owned());
    let others = (1..count).map(|_| Err(BuqueueError::new(kind.clone(), fact.clone())));
    std::iter::once(Err(error)).chain(others).take(count).collect()
}

pub(crate) fn unroutable(route: &Route) -> BuqueueError {
    let fact = format!("no queue is bound to exchange {:?} for this routing key", route.exchange);
    BuqueueError::new(ErrorKind::NotFound, fact)
}

fn fitting_key(key: &str) -> Result<String> {
    if key.len() > SHORT_MAX {
        let fact = format!("routing_key: {} bytes, the limit is {SHORT_MAX} bytes", key.len());
        return Err(BuqueueError::new(ErrorKind::InvalidMessage, fact));
    }
    Ok(key.to_owned())
}
