//! From a config struct to a producer and a consumer.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::dlq::DeadLetters;
use crate::driver::{Backend, Consumer as _};
use crate::observe::Scope;
use crate::shutdown::Shared;
use crate::{
    BuqueueError, Capabilities, Consumer, DlqConfig, Producer, QueueConsumer, QueueProducer, Result,
};

const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The builder's default: producers and consumers of a known type.
#[derive(Debug, Clone, Copy)]
pub enum Static {}

/// After [`make_dynamic`](QueueBuilder::make_dynamic): `Box<dyn QueueProducer>` and `Box<dyn QueueConsumer>`.
#[derive(Debug, Clone, Copy)]
pub enum Dynamic {}

/// Connects to one queue of one backend; made by `XBackend::builder(config)`.
///
/// `build_*` connects, checks the whole configuration, creates the queue or verifies the one that is there, and
/// fails with the field or the fact at fault.
#[must_use = "a builder does nothing until `build_*`"]
pub struct QueueBuilder<B: Backend, Dispatch = Static> {
    config: B::Config,
    dead_letter_queue: Option<DlqConfig>,
    drain_timeout: Duration,
    dispatch: PhantomData<fn() -> Dispatch>,
}

impl<B: Backend> QueueBuilder<B> {
    /// Starts building; backends call it in their `builder`.
    pub fn new(config: B::Config) -> Self {
        Self { config, dead_letter_queue: None, drain_timeout: DRAIN_TIMEOUT, dispatch: PhantomData }
    }

    /// Builds trait objects instead of concrete types. Changes types, never behaviour.
    pub fn make_dynamic(self) -> QueueBuilder<B, Dynamic> {
        QueueBuilder {
            config: self.config,
            dead_letter_queue: self.dead_letter_queue,
            drain_timeout: self.drain_timeout,
            dispatch: PhantomData,
        }
    }

    /// Connects both halves.
    ///
    /// # Errors
    /// As [`build_producer`](Self::build_producer) and [`build_consumer`](Self::build_consumer).
    pub async fn build_pair(self) -> Result<(Producer<B>, Consumer<B>)> {
        self.pair().await
    }

    /// Connects the sending half; starts nothing that consumes.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) with the field at fault,
    /// [`ConnectionLost`](crate::ErrorKind::ConnectionLost) within the connection timeout when the broker cannot be
    /// reached, [`AuthenticationFailed`](crate::ErrorKind::AuthenticationFailed).
    pub async fn build_producer(self) -> Result<Producer<B>> {
        self.producer().await
    }

    /// Connects the receiving half. What is sent after this returns is received.
    ///
    /// # Errors
    /// As [`build_producer`](Self::build_producer), also for the dead letter queue.
    pub async fn build_consumer(self) -> Result<Consumer<B>> {
        self.consumer().await
    }
}

impl<B: Backend> QueueBuilder<B, Dynamic> {
    /// Connects both halves.
    ///
    /// # Errors
    /// As [`QueueBuilder::build_producer`] and [`QueueBuilder::build_consumer`].
    pub async fn build_pair(self) -> Result<(Box<dyn QueueProducer>, Box<dyn QueueConsumer>)> {
        // Boxed, here and below, like what it builds: the compiler does not look into a client's futures then.
        let (producer, consumer) = Box::pin(self.pair()).await?;
        Ok((Box::new(producer), Box::new(consumer)))
    }

    /// Connects the sending half; starts nothing that consumes.
    ///
    /// # Errors
    /// As [`QueueBuilder::build_producer`].
    pub async fn build_producer(self) -> Result<Box<dyn QueueProducer>> {
        Ok(Box::new(Box::pin(self.producer()).await?))
    }

    /// Connects the receiving half. What is sent after this returns is received.
    ///
    /// # Errors
    /// As [`QueueBuilder::build_consumer`].
    pub async fn build_consumer(self) -> Result<Box<dyn QueueConsumer>> {
        Ok(Box::new(Box::pin(self.consumer()).await?))
    }
}

impl<B: Backend, Dispatch> QueueBuilder<B, Dispatch> {
    /// Moves messages that fail too often to another queue. Default: none, a failing message comes back for ever.
    pub fn dead_letter_queue(mut self, dead_letter_queue: DlqConfig) -> Self {
        self.dead_letter_queue = Some(dead_letter_queue);
        self
    }

    /// How long a shutdown waits for deliveries in flight. Default: 30 s.
    pub fn drain_timeout(mut self, drain_timeout: Duration) -> Self {
        self.drain_timeout = drain_timeout;
        self
    }

    /// Changes the backend's configuration in place. Backends offer their knobs beyond the config struct through
    /// extension traits that call this.
    pub fn configure(mut self, change: impl FnOnce(&mut B::Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// What this backend can do in this configuration, as far as that can be told without the broker.
    pub fn capabilities(&self) -> Capabilities {
        B::capabilities(&self.config)
    }

    async fn pair(self) -> Result<(Producer<B>, Consumer<B>)> {
        // The consumer first: it fixes the start position, and nothing is sent before.
        let consumer = self.connect_consumer().await.map_err(stamp::<B>)?;
        let producer = self.connect_producer().await.map_err(stamp::<B>)?;
        Ok((producer, consumer))
    }

    async fn producer(self) -> Result<Producer<B>> {
        self.connect_producer().await.map_err(stamp::<B>)
    }

    async fn consumer(self) -> Result<Consumer<B>> {
        self.connect_consumer().await.map_err(stamp::<B>)
    }

    async fn connect_producer(&self) -> Result<Producer<B>> {
        let driver = B::connect_producer(&self.config).await?;
        // Who sends is in no group.
        let scope =
            Scope::new(B::NAME, B::destination(&self.config), &B::destination_name(&self.config), None);
        Ok(Producer::new(driver, scope, B::capabilities(&self.config)))
    }

    async fn connect_consumer(&self) -> Result<Consumer<B>> {
        let source = B::destination(&self.config);
        let dead_letters = match &self.dead_letter_queue {
            None => None,
            Some(dlq) => {
                dlq.validate(&source)?;
                let redirected = B::redirect(&self.config, &dlq.destination);
                // A destination may be said in more ways than one.
                let destination = B::destination(&redirected);
                DlqConfig { destination, ..dlq.clone() }.validate(&source)?;
                let producer = B::connect_producer(&redirected).await?;
                Some(DeadLetters::new(dlq.max_receive_count, producer))
            }
        };
        let driver = match &self.dead_letter_queue {
            None => B::connect_consumer(&self.config).await?,
            Some(dlq) => {
                let config = B::with_max_receive_count(self.config.clone(), dlq.max_receive_count);
                B::connect_consumer(&config).await?
            }
        };
        let scope = Scope::new(
            B::NAME,
            source,
            &B::destination_name(&self.config),
            B::group(&self.config).as_deref(),
        );
        let shared = Shared::new(scope, dead_letters, self.drain_timeout, driver.control());
        Ok(Consumer::new(driver, Arc::new(shared), B::capabilities(&self.config)))
    }
}

fn stamp<B: Backend>(error: BuqueueError) -> BuqueueError {
    error.at(B::NAME, "build")
}

impl<B: Backend, Dispatch> fmt::Debug for QueueBuilder<B, Dispatch> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueBuilder")
            .field("backend", &B::NAME)
            .field("destination", &B::destination(&self.config))
            .field("dead_letter_queue", &self.dead_letter_queue)
            .field("drain_timeout", &self.drain_timeout)
            .finish_non_exhaustive()
    }
}
