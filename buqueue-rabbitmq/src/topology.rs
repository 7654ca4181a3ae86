//! What is declared at the broker: queues, exchanges and bindings, or compared with what is there.

use std::fmt;

use buqueue_core::{BuqueueError, ErrorKind, Result};
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection};

use crate::config::{ExchangeKind, QueueType, RabbitMqOptions, binding_arguments, short};
use crate::delay::{self, Delays};
use crate::error;

/// An argument of a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Argument {
    name: &'static str,
    owned: Option<String>,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    Number(i64),
}

impl Argument {
    pub(crate) fn text(name: &'static str, value: &str) -> Self {
        Self { name, owned: None, value: Value::Text(value.to_owned()) }
    }

    pub(crate) fn number(name: &'static str, value: i64) -> Self {
        Self { name, owned: None, value: Value::Number(value) }
    }

    fn named(name: String, value: String) -> Self {
        Self { name: "", owned: Some(name), value: Value::Text(value) }
    }

    fn name(&self) -> &str {
        self.owned.as_deref().unwrap_or(self.name)
    }
}

/// One thing to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Queue { name: String, durable: bool, arguments: Vec<Argument> },
    Exchange { name: String, kind: lapin::ExchangeKind, durable: bool, arguments: Vec<Argument> },
    Bind { queue: String, exchange: String, key: String, arguments: Vec<Argument> },
    BindExchange { destination: String, source: String, key: String },
}

impl Part {
    pub(crate) fn queue(name: &str, durable: bool, arguments: Vec<Argument>) -> Self {
        Self::Queue { name: name.to_owned(), durable, arguments }
    }

    pub(crate) fn exchange(
        name: &str,
        kind: lapin::ExchangeKind,
        durable: bool,
        arguments: Vec<Argument>,
    ) -> Self {
        Self::Exchange { name: name.to_owned(), kind, durable, arguments }
    }

    pub(crate) fn bind(queue: &str, exchange: &str, key: &str, arguments: Vec<Argument>) -> Self {
        Self::Bind { queue: queue.to_owned(), exchange: exchange.to_owned(), key: key.to_owned(), arguments }
    }

    pub(crate) fn bind_exchange(destination: &str, source: &str, key: &str) -> Self {
        Self::BindExchange {
            destination: destination.to_owned(),
            source: source.to_owned(),
            key: key.to_owned(),
        }
    }

    /// Declares it on a channel that an error closes.
    async fn declare(&self, channel: &Channel) -> std::result::Result<(), Failure> {
        match self {
            Self::Queue { name, durable, arguments } => {
                let options = QueueDeclareOptions { durable: *durable, ..QueueDeclareOptions::default() };
                channel.queue_declare(short(name)?, options, table(arguments)?).await?;
            }
            Self::Exchange { name, kind, durable, arguments } => {
                let options =
                    ExchangeDeclareOptions { durable: *durable, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(short(name)?, kind.clone(), options, table(arguments)?).await?;
            }
            Self::Bind { queue, exchange, key, arguments } => {
                let options = QueueBindOptions::default();
                channel
                    .queue_bind(short(queue)?, short(exchange)?, short(key)?, options, table(arguments)?)
                    .await?;
            }
            Self::BindExchange { destination, source, key } => {
                let options = ExchangeBindOptions::default();
                let (destination, source) = (short(destination)?, short(source)?);
                channel
                    .exchange_bind(destination, source, short(key)?, options, FieldTable::default())
                    .await?;
            }
        }
        Ok(())
    }

    /// Whether it is there. Bindings cannot be asked for.
    async fn is_there(&self, connection: &Connection) -> Result<bool> {
        let open = |error| error::convert("a channel", error);
        let asked = match self {
            Self::Queue { name, .. } => {
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                let channel = connection.create_channel().await.map_err(open)?;
                channel.queue_declare(short(name)?, options, FieldTable::default()).await.map(drop)
            }
            Self::Exchange { name, kind, .. } => {
                let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
                let channel = connection.create_channel().await.map_err(open)?;
                channel.exchange_declare(short(name)?, kind.clone(), options, FieldTable::default()).await
            }
            Self::Bind { .. } | Self::BindExchange { .. } => Ok(()),
        };
        match asked {
            Ok(()) => Ok(true),
            Err(error) => match error::classify(&error) {
                ErrorKind::NotFound => Ok(false),
                _ => Err(error::convert("verifying what is declared", error)),
            },
        }
    }
}

/// As an operator would read it.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments = match self {
            Self::Queue { name, durable, arguments } => {
                write!(f, "queue {name:?} durable={durable}")?;
                arguments.as_slice()
            }
            Self::Exchange { name, kind, durable, arguments } => {
                write!(f, "exchange {name:?} type={} durable={durable}", kind_name(kind))?;
                arguments.as_slice()
            }
            Self::Bind { queue, exchange, key, arguments } => {
                write!(f, "binding {exchange:?} -> queue {queue:?} key={key:?}")?;
                arguments.as_slice()
            }
            Self::BindExchange { destination, source, key } => {
                write!(f, "binding {source:?} -> exchange {destination:?} key={key:?}")?;
                &[]
            }
        };
        for argument in arguments {
            match &argument.value {
                Value::Text(value) => write!(f, " {}={value}", argument.name())?,
                Value::Number(value) => write!(f, " {}={value}", argument.name())?,
            }
        }
        Ok(())
    }
}

fn kind_name(kind: &lapin::ExchangeKind) -> &str {
    match kind {
        lapin::ExchangeKind::Direct => "direct",
        lapin::ExchangeKind::Fanout => "fanout",
        lapin::ExchangeKind::Headers => "headers",
        lapin::ExchangeKind::Topic => "topic",
        lapin::ExchangeKind::Custom(name) => name,
    }
}

fn table(arguments: &[Argument]) -> Result<FieldTable> {
    let mut table = FieldTable::default();
    for argument in arguments {
        let value = match &argument.value {
            Value::Text(value) => AMQPValue::LongString(LongString::from(value.as_str())),
            Value::Number(value) => AMQPValue::LongLongInt(*value),
        };
        table.insert(short(argument.name())?, value);
    }
    Ok(table)
}

/// How many messages wait in the queue; an error when it is not there. On a channel of its own, which that error closes.
pub(crate) async fn waiting(connection: &Connection, queue: &str) -> Result<u64> {
    let open = |error| error::convert("a channel", error);
    let channel = connection.create_channel().await.map_err(open)?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(short(queue)?, options, FieldTable::default()).await;
    let queue = asked.map_err(|error| error::convert("the queue", error))?;
    drop(channel.close(200, short("asked")?).await);
    Ok(queue.message_count().into())
}

enum Failure {
    Broker(lapin::Error),
    Own(BuqueueError),
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        Self::Broker(error)
    }
}

impl From<BuqueueError> for Failure {
    fn from(error: BuqueueError) -> Self {
        Self::Own(error)
    }
}

/// A limit that is none. Brokers from 4.0 on drop a message that was delivered 20 times where nothing is said, and -1,
/// which means no limit there, makes 3.10 drop it at the first failure.
const DELIVERY_LIMIT: i64 = 1_000_000_000;

/// The queue and the exchange that the configuration names.
fn own(options: &RabbitMqOptions) -> Result<Vec<Part>> {
    let config = &options.config;
    let mut arguments = vec![Argument::text("x-queue-type", config.queue_type.as_str())];
    if config.queue_type == QueueType::Quorum {
        // The verdict is buqueue's.
        arguments.push(Argument::number("x-delivery-limit", DELIVERY_LIMIT));
    }
    let mut parts = vec![Part::queue(&config.queue, options.is_durable(), arguments)];
    let Some(exchange) = &config.exchange else { return Ok(parts) };
    let kind = exchange.kind.native();
    parts.insert(0, Part::exchange(&exchange.name, kind, exchange.durable, Vec::new()));
    let (key, arguments) = match exchange.kind {
        ExchangeKind::Headers => {
            let pairs = binding_arguments(&exchange.binding_key)?;
            ("", pairs.into_iter().map(|(name, value)| Argument::named(name, value)).collect())
        }
        _ => (exchange.binding_key.as_str(), Vec::new()),
    };
    parts.push(Part::bind(&config.queue, &exchange.name, key, arguments));
    // What was scheduled comes out as if it was sent then.
    let delays = Delays::new(options);
    let token = delay::token('e', &exchange.name);
    parts.extend(delays.outlet());
    parts.push(match exchange.kind {
        // By the key that follows the token.
        ExchangeKind::Topic | ExchangeKind::Direct => {
            let rest = if key.is_empty() { String::new() } else { format!(".{key}") };
            Part::bind(&config.queue, &delays.due(), &Delays::outlet_key(&token, &rest), Vec::new())
        }
        // These do not look at the key.
        ExchangeKind::Fanout | ExchangeKind::Headers => {
            Part::bind_exchange(&exchange.name, &delays.due(), &Delays::outlet_key(&token, ".#"))
        }
    });
    Ok(parts)
}

/// Declares the queue and the exchange, or compares them with what is there.
pub(crate) async fn declare_own(connection: &Connection, options: &RabbitMqOptions) -> Result<()> {
    declare(connection, &own(options)?).await
}

/// Declares, or verifies what may not be declared.
pub(crate) async fn declare(connection: &Connection, parts: &[Part]) -> Result<()> {
    match run(connection, parts).await? {
        Ok(()) => Ok(()),
        Err((part, error)) => refused(connection, parts, &part, error).await,
    }
}

/// Declares on a channel of its own; the first that is refused, and why.
async fn run(
    connection: &Connection,
    parts: &[Part],
) -> Result<std::result::Result<(), (Part, lapin::Error)>> {
    let channel = connection
        .create_channel()
        .await
        .map_err(|error| error::convert("a channel to declare on", error))?;
    for part in parts {
        match part.declare(&channel).await {
            Ok(()) => {}
            Err(Failure::Broker(error)) => return Ok(Err((part.clone(), error))),
            Err(Failure::Own(error)) => return Err(error),
        }
    }
    // It has done its work; that it cannot be closed is somebody else's trouble.
    drop(channel.close(200, short("declared")?).await);
    Ok(Ok(()))
}

/// A broker that does not let us declare may have everything already.
async fn refused(connection: &Connection, parts: &[Part], part: &Part, error: lapin::Error) -> Result<()> {
    let forbidden = matches!(error.kind(), lapin::ErrorKind::ProtocolError(error)
        if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED));
    if !forbidden {
        return Err(error::convert(&format!("declare {part}"), error));
    }
    for part in parts {
        if !part.is_there(connection).await? {
            let list: Vec<String> = parts.iter().map(ToString::to_string).collect();
            let fact = format!(
                "no permission to declare, and {part} is missing; have an operator declare: {}",
                list.join("; ")
            );
            return Err(BuqueueError::new(ErrorKind::AuthenticationFailed, fact).with_source(error));
        }
    }
    Ok(())
}
