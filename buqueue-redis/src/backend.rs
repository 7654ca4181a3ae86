//! Connecting: validation, the consumer group, and what can be promised.

use std::sync::Arc;

use buqueue_core::{BuqueueError, Capabilities, ErrorKind, Feature, Limits, QueueBuilder, Result, driver};
use redis::{RedisError, Value};

use crate::config::{RedisConfig, RedisOptions};
use crate::connection::{Commands, Connector};
use crate::consumer::RedisConsumer;
use crate::error;
use crate::keys::Keys;
use crate::lease::Session;
use crate::producer::RedisProducer;

/// Redis Streams.
#[derive(Debug, Clone, Copy)]
pub enum RedisBackend {}

impl RedisBackend {
    /// Starts building producers and consumers of the stream that `config` names.
    pub fn builder(config: RedisConfig) -> QueueBuilder<Self> {
        QueueBuilder::new(RedisOptions::new(config))
    }
}

impl driver::Backend for RedisBackend {
    const NAME: &'static str = "redis";
    type Config = RedisOptions;
    type Producer = RedisProducer;
    type Consumer = RedisConsumer;

    fn capabilities(config: &RedisOptions) -> Capabilities {
        Capabilities::native(Self::NAME)
            .emulated(
                Feature::ScheduledDelivery,
                "a sorted set; running consumers move what is due to the stream, atomically",
            )
            .emulated(
                Feature::DelayedRetry,
                "a sorted set per group; running consumers move what is due to the group's retry stream, atomically",
            )
            .emulated(Feature::DeadLetters, "published to another stream, then acked")
            .emulated(
                Feature::DeliveryCount,
                "carried along on the way through the group's retry stream, one atomic script a step",
            )
            .emulated(Feature::Deduplication, "a script remembers each id for the window, in a key of its own")
            .emulated(
                Feature::Lease,
                "running consumers move what was not settled in time to the group's retry stream, atomically",
            )
            .with_limits(Limits { payload_bytes: Some(config.max_payload), ..Limits::default() })
    }

    fn destination(config: &RedisOptions) -> String {
        config.config.stream.clone()
    }

    fn group(config: &RedisOptions) -> Option<String> {
        Some(config.config.group.clone())
    }

    fn redirect(config: &RedisOptions, destination: &str) -> RedisOptions {
        let mut redirected = config.clone();
        destination.clone_into(&mut redirected.config.stream);
        redirected
    }

    async fn connect_producer(options: &RedisOptions) -> Result<RedisProducer> {
        let (commands, _) = connect(options, false).await?;
        let keys = Keys::new(&options.config.stream, &options.config.group);
        for (key, expected) in [(&keys.stream, "stream"), (&keys.schedule, "zset")] {
            check_type(&commands, key, expected).await?;
        }
        let (group, window) = (options.config.group.clone(), options.deduplication_window);
        Ok(RedisProducer { commands, keys, group, window })
    }

    async fn connect_consumer(options: &RedisOptions) -> Result<RedisConsumer> {
        let config = &options.config;
        let (commands, connector) = connect(options, true).await?;
        let keys = Keys::new(&config.stream, &config.group);
        for (key, expected) in [
            (&keys.stream, "stream"),
            (&keys.retry, "stream"),
            (&keys.schedule, "zset"),
            (&keys.delayed, "zset"),
            (&keys.holds, "zset"),
            (&keys.broken, "list"),
        ] {
            check_type(&commands, key, expected).await?;
        }
        create_groups(&commands, &keys, &config.group).await.map_err(|error| fail(&error, options))?;
        let session =
            Session::new(Arc::new(commands), keys, &config.group, &config.consumer, config.pending_timeout);
        RedisConsumer::start(Arc::new(session), connector, config)
            .await
            .map_err(|error| fail(&error, options))
    }
}

async fn connect(options: &RedisOptions, consuming: bool) -> Result<(Commands, Arc<Connector>)> {
    let endpoint = options.validate(consuming)?;
    let pem = options.tls.read().await?;
    let connector = Connector::new(options, &endpoint, pem).map_err(|error| fail(&error, options))?;
    let connector = Arc::new(connector);
    let commands = Commands::connect(Arc::clone(&connector), options.request_timeout).await;
    Ok((commands.map_err(|error| fail(&error, options))?, connector))
}

fn fail(error: &RedisError, options: &RedisOptions) -> BuqueueError {
    error::convert(error, &options.config.stream)
}

async fn check_type(commands: &Commands, key: &str, expected: &str) -> Result<()> {
    let reply =
        commands.query(redis::cmd("TYPE").arg(key)).await.map_err(|error| error::convert(&error, key))?;
    match reply {
        Value::SimpleString(actual) if actual != "none" && actual != expected => {
            let fact = format!("stream: the key {key:?} must hold a {expected}, holds a {actual}");
            Err(BuqueueError::new(ErrorKind::InvalidConfig, fact))
        }
        _ => Ok(()),
    }
}

/// Creates the group on both streams, from the beginning, and the streams too, where they do not exist.
pub(crate) async fn create_groups(
    commands: &Commands,
    keys: &Keys,
    group: &str,
) -> std::result::Result<(), RedisError> {
    for key in [&keys.stream, &keys.retry] {
        let mut cmd = redis::cmd("XGROUP");
        cmd.arg("CREATE").arg(key).arg(group).arg("0").arg("MKSTREAM");
        match commands.query(&cmd).await {
            Err(error) if error.code() != Some("BUSYGROUP") => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
