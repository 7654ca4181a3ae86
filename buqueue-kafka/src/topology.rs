//! Topics: verified, or created where there are none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, ErrorKind, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;

use crate::config::{KafkaOptions, invalid};
use crate::error;
use crate::levels::LEVELS;

/// How long a new topic may take until its leaders are known.
const SETTLING: Duration = Duration::from_millis(50);

/// Creates and looks at topics.
pub(crate) struct Topology {
    admin: Arc<AdminClient<DefaultClientContext>>,
    options: KafkaOptions,
}

impl Topology {
    pub(crate) fn new(options: &KafkaOptions) -> Result<Self> {
        let admin = options.client().create().map_err(|error| error::from_client("admin", error))?;
        Ok(Self { admin: Arc::new(admin), options: options.clone() })
    }

    /// The topic itself; how many partitions it has.
    pub(crate) async fn ensure_topic(&self) -> Result<i32> {
        let config = &self.options.config;
        self.ensure(&config.topic, config.partitions, &[]).await
    }

    /// Where the group's failed messages come back.
    pub(crate) async fn ensure_retry_topic(&self) -> Result<i32> {
        self.ensure(&self.options.retry_topic(), self.options.config.partitions, &[]).await
    }

    /// Where messages wait: a partition for each level, kept until they are sent on, with the times of the broker.
    pub(crate) async fn ensure_delay_topic(&self) -> Result<()> {
        let kept = [("retention.ms", "-1"), ("message.timestamp.type", "LogAppendTime")];
        let name = self.options.delay_topic();
        let partitions = self.ensure(&name, LEVELS, &kept).await?;
        if partitions < LEVELS {
            return Err(invalid(format!("topic: {name:?} has {partitions} partitions, and needs {LEVELS}")));
        }
        Ok(())
    }

    async fn ensure(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<i32> {
        let deadline = Instant::now() + self.options.connection_timeout;
        // Asked about first, it would be created by that, as the broker likes.
        let copies = self.options.config.replication_factor.map_or(-1, i32::from);
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(copies));
        for (key, value) in settings {
            new = new.set(key, value);
        }
        let patience = AdminOptions::new().operation_timeout(Some(self.options.request_timeout));
        let created = self.admin.create_topics([&new], &patience).await;
        let created = created.map_err(|error| error::from_client("CreateTopics", error))?;
        for outcome in created {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                // There it may be all the same.
                Err((_, code)) if error::classify(code) == ErrorKind::AuthenticationFailed => {
                    return self.partitions(topic).await?.ok_or_else(|| {
                        let fact = format!("topic {topic:?} does not exist, and may not be created");
                        BuqueueError::new(ErrorKind::NotFound, fact)
                    });
                }
                Err((_, code)) => {
                    let kind = error::classify(code);
                    let fact = format!("topic {topic:?} does not exist, and cannot be created: {code}");
                    return Err(BuqueueError::new(kind, fact));
                }
            }
        }
        loop {
            if let Some(count) = self.partitions(topic).await? {
                return Ok(count);
            }
            if Instant::now() >= deadline {
                let fact = format!("topic {topic:?} was created, and has no leaders yet");
                return Err(BuqueueError::new(ErrorKind::ConnectionLost, fact));
            }
            tokio::time::sleep(SETTLING).await;
        }
    }

    /// How many partitions a topic has; `None` where there is none, or it has no leaders yet.
    async fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        let (name, limit) = (topic.to_owned(), self.options.connection_timeout);
        let admin = Arc::clone(&self.admin);
        // It blocks.
        let metadata =
            tokio::task::spawn_blocking(move || admin.inner().fetch_metadata(Some(&name), limit)).await;
        let metadata = metadata
            .map_err(|_| error::lost("metadata"))?
            .map_err(|error| error::from_client("metadata", error))?;
        Ok(count(&metadata, topic))
    }
}

fn count(metadata: &Metadata, topic: &str) -> Option<i32> {
    let found = metadata.topics().iter().find(|found| found.name() == topic)?;
    if found.error().is_some() || found.partitions().is_empty() {
        return None;
    }
    let led = found.partitions().iter().all(|partition| partition.leader() >= 0);
    led.then(|| i32::try_from(found.partitions().len()).unwrap_or(i32::MAX))
}
