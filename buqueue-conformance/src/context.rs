//! What a running case holds: the harness, and names of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use buqueue_core::driver::Backend;
use buqueue_core::{Capabilities, Consumer, Delivery, DlqConfig, Producer, QueueBuilder};

use crate::worker::{Job, Worker};
use crate::{Case, FaultProxy, Harness, Hook, Setup};

/// The producer of a harness' backend.
pub type ProducerOf<H> = Producer<<H as Harness>::Backend>;
/// The consumer of a harness' backend.
pub type ConsumerOf<H> = Consumer<<H as Harness>::Backend>;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What a running case holds: the harness, and names that nobody else uses.
#[derive(Debug)]
pub struct Ctx<H> {
    harness: H,
    case: Case,
    module: &'static str,
    /// The names that were given away.
    queues: Mutex<Vec<String>>,
}

impl<H: Harness> Ctx<H> {
    pub(crate) fn new(harness: H, case: Case, module: &'static str) -> Self {
        Self { harness, case, module, queues: Mutex::default() }
    }

    /// The harness under test.
    pub fn harness(&self) -> &H {
        &self.harness
    }

    /// The case that is running.
    pub fn case(&self) -> Case {
        self.case
    }

    /// A fresh queue, with a lease that the case does not outlive.
    pub fn setup(&self) -> Setup {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (pid, number) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let name = format!("cf-{:x}-{pid:x}-{number:x}", since_epoch.as_millis());
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        Setup::new(name)
    }

    pub(crate) fn queues(&self) -> Vec<String> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A fresh queue with the harness' short lease.
    pub fn leased(&self) -> Setup {
        self.setup().lease(self.harness.lease())
    }

    /// A builder for the queue of `setup`.
    pub fn builder(&self, setup: &Setup) -> QueueBuilder<H::Backend> {
        self.harness.builder(setup)
    }

    /// A builder whose dead letters go to [`Setup::dlq`].
    pub fn builder_with_dlq(&self, setup: &Setup, max_receive_count: u32) -> QueueBuilder<H::Backend> {
        let destination = setup.dlq().queue;
        self.builder(setup).dead_letter_queue(DlqConfig { destination, max_receive_count })
    }

    /// The configuration that the harness gives the queue of `setup`.
    pub fn config(&self, setup: &Setup) -> <H::Backend as Backend>::Config {
        let mut config = None;
        drop(self.builder(setup).configure(|builders| config = Some(builders.clone())));
        config.unwrap_or_else(|| unreachable!("`configure` calls its argument"))
    }

    /// What the backend can do.
    pub fn capabilities(&self) -> Capabilities {
        H::Backend::capabilities(&self.config(&self.setup()))
    }

    /// Both halves on a fresh queue.
    pub async fn pair(&self) -> (ProducerOf<H>, ConsumerOf<H>) {
        self.pair_on(&self.setup()).await
    }

    /// Both halves on the queue of `setup`.
    pub async fn pair_on(&self, setup: &Setup) -> (ProducerOf<H>, ConsumerOf<H>) {
        self.builder(setup).build_pair().await.unwrap_or_else(|error| panic!("build_pair: {error:?}"))
    }

    /// Both halves on the queue of `setup`, and a consumer of its dead letter queue.
    pub async fn with_dlq(
        &self,
        setup: &Setup,
        max_receive_count: u32,
    ) -> (ProducerOf<H>, ConsumerOf<H>, ConsumerOf<H>) {
        let dead = self.consumer(&setup.dlq()).await;
        let built = self.builder_with_dlq(setup, max_receive_count).build_pair().await;
        let (producer, consumer) = built.unwrap_or_else(|error| panic!("build_pair: {error:?}"));
        (producer, consumer, dead)
    }

    /// A producer on the queue of `setup`.
    pub async fn producer(&self, setup: &Setup) -> ProducerOf<H> {
        let built = self.builder(setup).build_producer().await;
        built.unwrap_or_else(|error| panic!("build_producer: {error:?}"))
    }

    /// A consumer on the queue of `setup`.
    pub async fn consumer(&self, setup: &Setup) -> ConsumerOf<H> {
        let built = self.builder(setup).build_consumer().await;
        built.unwrap_or_else(|error| panic!("build_consumer: {error:?}"))
    }

    /// The message has failed once. It may have come back since, unseen, to a consumer that was leaving, which is one
    /// more attempt where the broker counts those.
    #[track_caller]
    pub fn assert_failed_once(&self, delivery: &Delivery) {
        let most = if self.harness.returns_uncounted().is_ok() { 2 } else { 3 };
        let count = delivery.delivery_count();
        assert!((2..=most).contains(&count), "attempt {count}");
    }

    /// A proxy in front of the broker; excludes the case where there can be none.
    ///
    /// # Errors
    /// The harness' reason.
    pub async fn proxy(&self) -> Hook<FaultProxy> {
        let upstream = self.harness.broker_addr()?;
        let started = match self.harness.proxy_addr() {
            Some(addr) => FaultProxy::start_at(addr, upstream).await,
            None => FaultProxy::start(upstream).await,
        };
        Ok(started.unwrap_or_else(|error| panic!("the proxy: {error}")))
    }

    /// A process of its own that does `job` on the queue of `setup`, and can be killed.
    pub fn worker(&self, setup: &Setup, job: Job) -> Worker {
        Worker::start(self.module, setup, job, self.harness.worker_env())
    }
}
