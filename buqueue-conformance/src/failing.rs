//! A backend around a backend, whose dead letter queue cannot be written to for a while.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use buqueue_core::driver::{Backend, Producer};
use buqueue_core::{
    BuqueueError, Capabilities, ErrorKind, Message, MessageId, QueueBuilder, QueueStats, Result,
};
use chrono::{DateTime, Utc};

/// Any backend, except that the next sends to its dead letter queue fail.
///
/// Also the proof that the seam can be implemented from outside, by delegation.
#[derive(Debug)]
pub struct FailingDlq<B>(PhantomData<fn() -> B>);

/// The configuration of a [`FailingDlq`].
#[derive(Debug)]
pub struct FailingConfig<B: Backend> {
    inner: B::Config,
    failures: Arc<AtomicU32>,
    /// This is the dead letter queue.
    redirected: bool,
}

impl<B: Backend> FailingDlq<B> {
    /// A builder for the queue of `config`, and the number of dead letters still to fail.
    pub fn builder(config: B::Config, failures: u32) -> (QueueBuilder<Self>, Arc<AtomicU32>) {
        let failures = Arc::new(AtomicU32::new(failures));
        let config = FailingConfig { inner: config, failures: Arc::clone(&failures), redirected: false };
        (QueueBuilder::new(config), failures)
    }
}

impl<B: Backend> Clone for FailingConfig<B> {
    fn clone(&self) -> Self {
        let Self { inner, failures, redirected } = self;
        Self { inner: inner.clone(), failures: Arc::clone(failures), redirected: *redirected }
    }
}

impl<B: Backend> Backend for FailingDlq<B> {
    const NAME: &'static str = B::NAME;

    type Config = FailingConfig<B>;
    type Producer = FailingProducer<B::Producer>;
    type Consumer = B::Consumer;

    fn capabilities(config: &Self::Config) -> Capabilities {
        B::capabilities(&config.inner)
    }

    fn destination(config: &Self::Config) -> String {
        B::destination(&config.inner)
    }

    fn destination_name(config: &Self::Config) -> String {
        B::destination_name(&config.inner)
    }

    fn group(config: &Self::Config) -> Option<String> {
        B::group(&config.inner)
    }

    fn redirect(config: &Self::Config, destination: &str) -> Self::Config {
        let inner = B::redirect(&config.inner, destination);
        FailingConfig { inner, redirected: true, ..config.clone() }
    }

    async fn connect_producer(config: &Self::Config) -> Result<Self::Producer> {
        let failures = config.redirected.then(|| Arc::clone(&config.failures));
        Ok(FailingProducer { inner: B::connect_producer(&config.inner).await?, failures })
    }

    fn connect_consumer(config: &Self::Config) -> impl Future<Output = Result<Self::Consumer>> + Send {
        B::connect_consumer(&config.inner)
    }
}

/// The producer of a [`FailingDlq`].
pub struct FailingProducer<P> {
    inner: P,
    failures: Option<Arc<AtomicU32>>,
}

impl<P> FailingProducer<P> {
    fn check(&self) -> Result<()> {
        let Some(failures) = &self.failures else { return Ok(()) };
        let one_less = |left: u32| left.checked_sub(1);
        match failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
            Ok(_) => Err(BuqueueError::new(ErrorKind::Throttled, "the dead letter queue takes nothing")),
            Err(_) => Ok(()),
        }
    }
}

impl<P: Producer> Producer for FailingProducer<P> {
    fn send_ready(&self, message: Message) -> std::result::Result<Result<MessageId>, Message> {
        match self.check() {
            Ok(()) => self.inner.send_ready(message),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn send(&self, message: Message) -> Result<MessageId> {
        // `send_ready` has come first and has checked.
        self.inner.send(message).await
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        self.check()?;
        self.inner.send_at(message, deliver_at).await
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        self.inner.send_batch(messages).await
    }

    fn header_room(&self, message: &Message) -> usize {
        self.inner.header_room(message)
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        self.inner.queue_stats().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

impl<P: Producer> fmt::Debug for FailingProducer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailingProducer").field("inner", &self.inner).finish_non_exhaustive()
    }
}
