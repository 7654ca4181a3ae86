//! Connecting: validation, the topics, the group, and what can be promised.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::{BuqueueError, Capabilities, ErrorKind, Feature, Limits, QueueBuilder, Result, driver};
use tokio::time::{Instant, timeout_at};

use crate::config::{KafkaConfig, KafkaOptions, OffsetReset};
use crate::consumer::KafkaConsumer;
use crate::delay::Forwarding;
use crate::later::Later;
use crate::levels::HORIZON;
use crate::producer::KafkaProducer;
use crate::publisher::Publisher;
use crate::reader::Reader;
use crate::session::Session;
use crate::topology::Topology;

/// The brokers' default for a batch of records, and a little less for what a record has beside its value.
const MAX_PAYLOAD: usize = 1_000_000;

/// Apache Kafka.
#[derive(Debug, Clone, Copy)]
pub enum KafkaBackend {}

impl KafkaBackend {
    /// Starts building producers and consumers of the topic that `config` names.
    pub fn builder(config: KafkaConfig) -> QueueBuilder<Self> {
        QueueBuilder::new(KafkaOptions::new(config))
    }
}

impl driver::Backend for KafkaBackend {
    const NAME: &'static str = "kafka";
    type Config = KafkaOptions;
    type Producer = KafkaProducer;
    type Consumer = KafkaConsumer;

    fn capabilities(_options: &KafkaOptions) -> Capabilities {
        Capabilities::native(Self::NAME)
            .emulated(
                Feature::ScheduledDelivery,
                "a topic whose partitions wait for different times, from where running consumers send on what is due",
            )
            .emulated(Feature::DelayedRetry, "a copy waits as schedules do, and comes back by a topic of the group")
            .emulated(Feature::DeadLetters, "sent to another topic, then done")
            .emulated(Feature::DeliveryCount, "kept in the metadata of the group's commits")
            .unsupported(Feature::Deduplication, "the id arrives; Kafka does not look at it")
            .unsupported(Feature::Lease, "a message belongs to who owns its partition, for as long as it does")
            .with_limits(Limits {
                payload_bytes: Some(MAX_PAYLOAD),
                schedule_horizon: Some(HORIZON),
                ..Limits::default()
            })
    }

    fn destination(options: &KafkaOptions) -> String {
        options.config.topic.clone()
    }

    fn group(options: &KafkaOptions) -> Option<String> {
        Some(options.config.group_id.clone())
    }

    fn redirect(options: &KafkaOptions, destination: &str) -> KafkaOptions {
        let mut redirected = options.clone();
        destination.clone_into(&mut redirected.config.topic);
        // It is only sent to and counted: what nobody has read there yet is all there.
        redirected.config.offset_reset = OffsetReset::Earliest;
        redirected
    }

    async fn connect_producer(options: &KafkaOptions) -> Result<KafkaProducer> {
        options.validate(false)?;
        Limit::new(options)
            .keeps("no broker answered", async {
                let publisher = Publisher::new(options)?;
                let topology = Topology::new(options)?;
                publisher.unless_refused(topology.ensure_topic()).await?;
                Ok(KafkaProducer::new(publisher, options, topology.largest().await))
            })
            .await
    }

    async fn connect_consumer(options: &KafkaOptions) -> Result<KafkaConsumer> {
        options.validate(true)?;
        let limit = Limit::new(options);
        let publisher = limit
            .keeps("no broker answered", async {
                let publisher = Publisher::new(options)?;
                publisher.unless_refused(Topology::new(options)?.ensure_all()).await?;
                Ok(publisher)
            })
            .await?;
        let later = Later::new(publisher, options);
        let session = Arc::new(Session::new(options.clone(), later));
        let mut begun = Reader::start(&session)?;
        let closing = CloseUnlessDone(Some(Arc::clone(&session)));
        let joining = async {
            // The start is fixed with the first assignment.
            let joined = begun.wait_for(|begun| *begun).await;
            joined.map(drop).map_err(|_| crate::error::lost("joining the group"))
        };
        limit.keeps("the group was not joined", joining).await?;
        let telling = Arc::downgrade(&session);
        let tell = move |error| {
            if let Some(session) = telling.upgrade() {
                session.mailbox.fail(error);
            }
        };
        let forwarding = Forwarding::start(options, tell).map_err(|error| {
            let kind = ErrorKind::BackendSpecific { code: "thread".to_owned(), message: error.to_string() };
            BuqueueError::new(kind, "the forwarder's thread cannot be started")
        })?;
        session.forwards_by(forwarding);
        closing.done();
        Ok(KafkaConsumer::new(session))
    }
}

/// A build that is cut off leaves nothing running.
struct CloseUnlessDone(Option<Arc<Session>>);

impl CloseUnlessDone {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseUnlessDone {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.close();
        }
    }
}

/// How long connecting may take.
struct Limit {
    whole: Duration,
    end: Instant,
}

impl Limit {
    fn new(options: &KafkaOptions) -> Self {
        let whole = options.connection_timeout;
        // What knows its own limit says more than this does.
        Self { whole, end: Instant::now() + whole + Duration::from_millis(100) }
    }

    async fn keeps<T>(&self, otherwise: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
        match timeout_at(self.end, step).await {
            Ok(Err(error)) if error.kind == ErrorKind::Timeout => {
                let fact = error.message().to_owned();
                Err(BuqueueError::new(ErrorKind::ConnectionLost, fact).with_source(error))
            }
            Ok(outcome) => outcome,
            Err(_) => {
                let fact = format!("{otherwise} within {:?}", self.whole);
                Err(BuqueueError::new(ErrorKind::ConnectionLost, fact))
            }
        }
    }
}
