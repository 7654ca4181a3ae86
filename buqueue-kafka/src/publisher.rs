//! Sending records, and waiting until they are accepted.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::{BuqueueError, ErrorKind, Message, MessageId, Result};
use futures_util::future::join_all;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use tokio::time::Instant;

use crate::config::KafkaOptions;
use crate::convert::{self, Delayed, Story};
use crate::error;
use crate::refusals::Refusals;

/// How long it waits until the client's queue has room again.
const FULL: Duration = Duration::from_millis(5);
/// How long a broker may take to say what a partition has.
const RANGE: Duration = Duration::from_secs(2);

/// Sends records to any topic.
#[derive(Clone)]
pub(crate) struct Publisher {
    producer: Arc<FutureProducer<Refusals>>,
    timeout: Duration,
    refusals: Refusals,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Where a record goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct To<'a> {
    pub(crate) topic: &'a str,
    /// Which partition; by the key where that is not said.
    pub(crate) partition: Option<i32>,
}

impl Publisher {
    pub(crate) fn new(options: &KafkaOptions) -> Result<Self> {
        let refusals = Refusals::default();
        let producer = options.producer().create_with_context(refusals.clone());
        let producer = producer.map_err(|error| error::from_client("producer", error))?;
        Ok(Self { producer: Arc::new(producer), timeout: options.request_timeout, refusals })
    }

    /// Does `work`, unless the brokers refuse this client meanwhile.
    pub(crate) async fn unless_refused<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            refusal = self.refusals.refused() => Err(refusal),
        }
    }

    /// Sends one and waits until it is accepted.
    pub(crate) async fn send(
        &self,
        to: To<'_>,
        message: &Message,
        story: Story,
        delayed: Option<&Delayed>,
    ) -> Result<MessageId> {
        let accepted = self.enqueue(to, message, story, delayed).await?;
        outcome(accepted.await)
    }

    /// Sends many, in order, and waits until all are accepted.
    pub(crate) async fn send_all(&self, to: To<'_>, messages: &[Message]) -> Vec<Result<MessageId>> {
        let mut accepting = Vec::with_capacity(messages.len());
        for message in messages {
            accepting.push(self.enqueue(to, message, Story::default(), None).await);
        }
        let waiting = accepting.into_iter().map(|enqueued| async {
            match enqueued {
                Ok(accepted) => outcome(accepted.await),
                Err(error) => Err(error),
            }
        });
        join_all(waiting).await
    }

    /// Hands a record to the client, in front of which there may be a queue.
    async fn enqueue(
        &self,
        to: To<'_>,
        message: &Message,
        story: Story,
        delayed: Option<&Delayed>,
    ) -> Result<DeliveryFuture> {
        let mut deadline = None;
        let mut record = FutureRecord::<str, [u8]>::to(to.topic).payload(message.payload());
        record.key = message.routing_key();
        record.partition = to.partition;
        record.headers = convert::headers(message, story, delayed);
        loop {
            match self.producer.send_result(record) {
                Ok(accepted) => return Ok(accepted),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), same))
                    if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + self.timeout) =>
                {
                    record = same;
                    tokio::time::sleep(FULL).await;
                }
                Err((error, _)) => return Err(error::from_client("send", error)),
            }
        }
    }

    /// The first offset of a partition, and the next. Blocks.
    pub(crate) fn range_of(&self, topic: &str, partition: i32) -> KafkaResult<(i64, i64)> {
        let client = self.producer.client();
        match client.fetch_watermarks(topic, partition, RANGE) {
            // It is new: asked about the topic, the client learns of it.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition) => {
                client.fetch_metadata(Some(topic), RANGE)?;
                client.fetch_watermarks(topic, partition, RANGE)
            }
            range => range,
        }
    }

    /// Has the client ask about a topic that it knows not to exist: by itself it would only do so minutes later.
    pub(crate) async fn find(&self, topic: &str) -> Result<()> {
        let (producer, topic, timeout) = (Arc::clone(&self.producer), topic.to_owned(), self.timeout);
        // It blocks.
        let found =
            tokio::task::spawn_blocking(move || producer.client().fetch_metadata(Some(&topic), timeout));
        let found = found.await.map_err(|_| error::lost("metadata"))?;
        found.map(drop).map_err(|error| error::from_client("metadata", error))
    }

    /// Waits until nothing is under way.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (producer, timeout) = (Arc::clone(&self.producer), self.timeout);
        // It blocks.
        let flushed = tokio::task::spawn_blocking(move || producer.flush(timeout)).await;
        flushed.map_err(|_| error::lost("flush"))?.map_err(|error| error::from_client("flush", error))
    }
}

fn outcome<E>(
    accepted: std::result::Result<
        std::result::Result<
            rdkafka::producer::future_producer::Delivery,
            (KafkaError, rdkafka::message::OwnedMessage),
        >,
        E,
    >,
) -> Result<MessageId> {
    match accepted {
        Ok(Ok(delivery)) => {
            let id = format!("{}-{}", delivery.partition, delivery.offset);
            Ok(id.into())
        }
        Ok(Err((error, _))) => Err(error::from_client("send", error)),
        Err(_) => Err(BuqueueError::new(ErrorKind::ConnectionLost, "send: the producer has ended")),
    }
}
