//! Publishing with confirms, over a connection that is made again when it broke.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use buqueue_core::{BuqueueError, ErrorKind, Message, Result};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use tokio::time::timeout;

use crate::config::{ExchangeKind, RabbitMqOptions, SHORT_MAX, short};
use crate::connection::Connector;
use crate::convert::{self, Story};
use crate::delay::{self, Delays};
use crate::error;
use crate::topology::{self, Part};

/// Publishes, and declares what is needed for it.
#[derive(Debug)]
pub(crate) struct Publisher {
    connector: Connector,
    delays: Delays,
    current: RwLock<Option<Arc<Live>>>,
    /// Held while connecting, so that only one does. An async lock: connecting is nothing but waiting.
    connecting: tokio::sync::Mutex<()>,
}

/// A connection with a channel in confirm mode.
#[derive(Debug)]
pub(crate) struct Live {
    connection: Connection,
    channel: Channel,
    /// Up to which level delays are declared, and which destinations what is due can come out to.
    delays: Mutex<Declared>,
}

#[derive(Debug, Default)]
struct Declared {
    levels: Option<usize>,
    outlets: HashSet<String>,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    exchange: String,
    key: String,
    /// The message's own key is not the AMQP routing key.
    key_beside: bool,
}

impl Publisher {
    pub(crate) fn new(connector: Connector) -> Self {
        let delays = Delays::new(&connector.options);
        Self { connector, delays, current: RwLock::default(), connecting: tokio::sync::Mutex::default() }
    }

    fn options(&self) -> &RabbitMqOptions {
        &self.connector.options
    }

    fn timeout(&self) -> Duration {
        self.options().operation_timeout
    }

    /// The connection, made again when it broke.
    pub(crate) async fn live(&self) -> Result<Arc<Live>> {
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let _only_one = self.connecting.lock().await;
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let connection = self.connector.connect().await?;
        let preparing = async {
            topology::declare_own(&connection, self.options()).await?;
            let opened = async {
                let channel = connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                Ok(channel)
            };
            opened.await.map_err(|error| error::convert("a channel to publish on", error))
        };
        let channel = match timeout(self.options().config.connection_timeout, preparing).await {
            Ok(prepared) => prepared?,
            Err(_) => return Err(error::timed_out("declaring")),
        };
        let live = Arc::new(Live { connection, channel, delays: Mutex::default() });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&live));
        Ok(live)
    }

    fn usable(&self) -> Option<Arc<Live>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|live| live.channel.status().connected()).cloned()
    }

    /// Does not use this connection again.
    fn give_up(&self, live: &Arc<Live>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, live)) {
            *current = None;
        }
    }

    /// Where a message goes that is sent now.
    pub(crate) fn route(&self, message: &Message) -> Result<Route> {
        let config = &self.options().config;
        Ok(match &config.exchange {
            None => Route { exchange: String::new(), key: config.queue.clone(), key_beside: true },
            Some(exchange) => Route {
                exchange: exchange.name.clone(),
                key: fitting_key(message.routing_key().unwrap_or_default())?,
                key_beside: false,
            },
        })
    }

    /// Straight to the queue, whatever exchange there is: a copy of what came from it.
    pub(crate) fn route_to_queue(&self) -> Route {
        let key = self.options().config.queue.clone();
        Route { exchange: String::new(), key, key_beside: true }
    }

    /// As [`route`](Self::route), after a delay. What is needed for it is declared.
    pub(crate) async fn route_later(&self, message: &Message, delay: Duration) -> Result<Route> {
        let config = &self.options().config;
        match &config.exchange {
            None => self.route_to_queue_later(delay).await,
            Some(exchange) => {
                let mut destination = delay::token('e', &exchange.name);
                let by_key = matches!(exchange.kind, ExchangeKind::Topic | ExchangeKind::Direct);
                if let Some(key) = message.routing_key().filter(|key| by_key && !key.is_empty()) {
                    destination.push('.');
                    destination.push_str(key);
                }
                // The outlet is the binding of each queue, declared with it.
                self.later(&destination, delay, None).await
            }
        }
    }

    /// Straight to the queue, after a delay.
    pub(crate) async fn route_to_queue_later(&self, delay: Duration) -> Result<Route> {
        let queue = &self.options().config.queue;
        let token = delay::token('q', queue);
        let outlet = Part::bind(queue, &self.delays.due(), &Delays::outlet_key(&token, ""), Vec::new());
        self.later(&token, delay, Some(outlet)).await
    }

    async fn later(&self, destination: &str, delay: Duration, outlet: Option<Part>) -> Result<Route> {
        let millis = delay::millis_up(delay);
        let (exchange, key) = self.delays.route(millis, destination);
        let key = fitting_key(&key)?;
        let live = self.live().await?;
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
                    self.give_up(&live);
                    return Err(error::timed_out("declaring the queues for delays"));
                }
            }
            let mut declared = live.delays.lock().unwrap_or_else(PoisonError::into_inner);
            declared.levels = declared.levels.max(Some(level));
            declared.outlets.insert(destination.to_owned());
        }
        Ok(Route { exchange, key, key_beside: true })
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
            let publishing = self.publish_on(&live, message, id, route, story);
            let Ok(taken) = timeout(self.timeout(), publishing).await else { return Err(self.late(&live)) };
            match taken? {
                Taken::Yes => return Ok(()),
                Taken::ByNoQueue if declared => break,
                // Nobody has it: the queue was deleted, and with it what routed to it.
                Taken::ByNoQueue => self.redeclare(&live).await?,
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

    /// Publishes on this connection, and says what became of it. Written to it at the first poll, so that those who
    /// begin several keep their order.
    pub(crate) async fn publish_on(
        &self,
        live: &Arc<Live>,
        message: &Message,
        id: &str,
        route: &Route,
        story: Story,
    ) -> Result<Taken> {
        let properties = convert::properties(message, id, route.key_beside, story);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = (short(&route.exchange)?, short(&route.key)?);
        let publishing = live.channel.basic_publish(exchange, key, options, message.payload(), properties);
        let confirm = publishing.await.map_err(|error| self.broken(live, error))?;
        match confirm.await {
            Ok(Confirmation::Ack(None)) => Ok(Taken::Yes),
            // Acked and returned: the broker has taken it to nowhere.
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => Ok(Taken::ByNoQueue),
            Ok(Confirmation::Nack(None)) => {
                let fact = "the queue refuses: it is full, or has no leader";
                Err(BuqueueError::new(ErrorKind::Throttled, fact))
            }
            Ok(Confirmation::NotRequested) => {
                self.give_up(live);
                Err(error::lost("the channel has no confirms"))
            }
            Err(error) => Err(self.broken(live, error)),
        }
    }

    fn broken(&self, live: &Arc<Live>, error: lapin::Error) -> BuqueueError {
        self.give_up(live);
        match error::classify(&error) {
            // An exchange that was deleted closes the channel, and all that was on its way with it. The next
            // connection declares it again.
            ErrorKind::NotFound => error::lost("publish").with_source(error),
            _ => error::convert("publish", error),
        }
    }

    /// The error of what has taken too long on this connection.
    pub(crate) fn late(&self, live: &Arc<Live>) -> BuqueueError {
        if live.connection.status().blocked() {
            return error::blocked();
        }
        self.give_up(live);
        error::timed_out("publish")
    }

    /// Flushes and closes.
    pub(crate) async fn close(&self) -> Result<()> {
        let live = self.current.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(live) = live else { return Ok(()) };
        let closing = async {
            // What was handed over and not awaited is confirmed before the channel closes.
            live.channel.wait_for_confirms().await?;
            live.connection.close(200, "closed".into()).await
        };
        match timeout(self.timeout(), closing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error::convert("close", error)),
            Err(_) => Err(error::timed_out("close")),
        }
    }
}

/// What the broker did with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Yes,
    ByNoQueue,
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
