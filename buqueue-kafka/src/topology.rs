//! Topics: verified, or created where there are none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use buqueue_core::{BuqueueError, ErrorKind, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::{KafkaOptions, invalid};
use crate::error;
use crate::levels::LEVELS;

/// How long a new topic may take until its leaders are known.
const SETTLING: Duration = Duration::from_millis(50);

/// How long it may take to learn what can be done without.
const ASKING: Duration = Duration::from_secs(1);

/// A topic as it is created where there is none.
struct Wanted {
    name: String,
    partitions: i32,
    /// One that has fewer is of no use.
    at_least: i32,
    settings: &'static [(&'static str, &'static str)],
}

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

    /// The topic itself.
    pub(crate) async fn ensure_topic(&self) -> Result<()> {
        self.ensure(&[self.topic()]).await.map(drop)
    }

    /// The largest batch of records that the topic takes, if whoever asks may know.
    pub(crate) async fn largest(&self) -> Option<usize> {
        let topic = ResourceSpecifier::Topic(&self.options.config.topic);
        let patience = AdminOptions::new().request_timeout(Some(ASKING));
        let described = tokio::time::timeout(ASKING, self.admin.describe_configs([&topic], &patience)).await;
        let described = described.ok()?.ok()?;
        let settings = described.into_iter().next()?.ok()?;
        settings.get("max.message.bytes")?.value.as_ref()?.parse().ok()
    }

    /// Where messages wait.
    pub(crate) async fn ensure_delay_topic(&self) -> Result<()> {
        self.ensure(&[self.delay_topic()]).await.map(drop)
    }

    /// What a consumer needs: the topic, where the group's failed messages come back, and where messages wait. Tells which
    /// were created.
    pub(crate) async fn ensure_all(&self) -> Result<Vec<String>> {
        // Partitions are dealt out by their number, whatever they hold: few of these, or somebody had nothing else.
        let partitions = (self.options.config.partitions / 4).max(1);
        let retry = Wanted { name: self.options.retry_topic(), partitions, ..self.topic() };
        self.ensure(&[self.topic(), retry, self.delay_topic()]).await
    }

    /// Others of the queue's, with as many partitions.
    pub(crate) async fn ensure_topics(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let wanted: Vec<Wanted> = names.into_iter().map(|name| Wanted { name, ..self.topic() }).collect();
        self.ensure(&wanted).await.map(drop)
    }

    /// Deletes the records of `topic` below an offset, partition by partition.
    pub(crate) async fn delete_below(&self, topic: &str, offsets: &HashMap<i32, i64>) -> Result<()> {
        let failed = |error| error::from_client("DeleteRecords", error);
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).map_err(failed)?;
        }
        self.admin.delete_records(&list, &AdminOptions::new()).await.map(drop).map_err(failed)
    }

    fn topic(&self) -> Wanted {
        let config = &self.options.config;
        Wanted { name: config.topic.clone(), partitions: config.partitions, at_least: 1, settings: &[] }
    }

    /// A partition for each level, kept until they are sent on, with the times of the broker.
    fn delay_topic(&self) -> Wanted {
        let settings = &[
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("message.timestamp.type", "LogAppendTime"),
        ];
        Wanted { name: self.options.delay_topic(), partitions: LEVELS, at_least: LEVELS, settings }
    }

    async fn ensure(&self, wanted: &[Wanted]) -> Result<Vec<String>> {
        let deadline = Instant::now() + self.options.connection_timeout;
        let copies = self.options.config.replication_factor.map_or(-1, i32::from);
        // Asked about first, they would be created by that, as the broker likes.
        let new = wanted.iter().map(|topic| {
            let new = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(copies));
            topic.settings.iter().fold(new, |new, (key, value)| new.set(key, value))
        });
        let new: Vec<NewTopic<'_>> = new.collect();
        let patience = AdminOptions::new().operation_timeout(Some(self.options.request_timeout));
        let patience = patience.request_timeout(Some(self.options.connection_timeout));
        let created = self.admin.create_topics(&new, &patience).await;
        let created = created.map_err(|error| error::from_client("CreateTopics", error))?;
        let mut fresh = Vec::new();
        for outcome in created {
            match outcome {
                Ok(topic) => fresh.push(topic),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    let kind = error::classify(code);
                    // Who may not create it may use it all the same, where it is.
                    if kind == ErrorKind::AuthenticationFailed && self.partitions(&topic).await?.is_some() {
                        continue;
                    }
                    let fact = format!("topic {topic:?} does not exist, and cannot be created: {code}");
                    return Err(BuqueueError::new(kind, fact));
                }
            }
        }
        for topic in wanted {
            let name = &topic.name;
            let partitions = loop {
                if let Some(count) = self.partitions(name).await? {
                    break count;
                }
                if Instant::now() >= deadline {
                    let fact = format!("topic {name:?} was created, and has no leaders yet");
                    return Err(BuqueueError::new(ErrorKind::ConnectionLost, fact));
                }
                tokio::time::sleep(SETTLING).await;
            };
            if partitions < topic.at_least {
                let fact =
                    format!("topic: {name:?} has {partitions} partitions, and needs {}", topic.at_least);
                return Err(invalid(fact));
            }
            if !topic.settings.is_empty() && !fresh.contains(name) {
                self.check_settings(topic, &patience).await?;
            }
        }
        Ok(fresh)
    }

    /// A topic that is there already has the settings that it needs, or what waits in it would be lost.
    async fn check_settings(&self, topic: &Wanted, patience: &AdminOptions) -> Result<()> {
        let failed = |error| error::from_client("DescribeConfigs", error);
        let asked = [ResourceSpecifier::Topic(&topic.name)];
        let described = self.admin.describe_configs(&asked, patience).await.map_err(failed)?;
        for described in described {
            let settings = match described {
                Ok(settings) => settings,
                // Who may not look has to take care of it.
                Err(code) if error::classify(code) == ErrorKind::AuthenticationFailed => continue,
                Err(code) => return Err(failed(KafkaError::AdminOp(code))),
            };
            for (key, wanted) in topic.settings {
                let Some(found) = settings.get(key).and_then(|entry| entry.value.as_deref()) else {
                    continue;
                };
                if found != *wanted {
                    let name = &topic.name;
                    return Err(invalid(format!(
                        "topic: {name:?} has {key}={found}, and needs {key}={wanted}"
                    )));
                }
            }
        }
        Ok(())
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
