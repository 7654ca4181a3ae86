//! The Kafka backend of buqueue.
//!
//! ```no_run
//! use buqueue_core::Message;
//! use buqueue_kafka::{KafkaBackend, KafkaConfig};
//!
//! # async fn run() -> buqueue_core::Result<()> {
//! let config = KafkaConfig {
//!     brokers: vec!["localhost:9092".to_owned()],
//!     topic: "order-events".to_owned(),
//!     group_id: "order-processor".to_owned(),
//!     ..KafkaConfig::default()
//! };
//! let (producer, mut consumer) = KafkaBackend::builder(config).build_pair().await?;
//! producer.send(Message::new("hello")).await?;
//! consumer.receive().await?.ack().await?;
//! # Ok(()) }
//! ```
//!
//! As a URL ([`KafkaConfig::from_url`]): `kafka://one:9092,two:9092/orders?group_id=billing`.
//!
//! # How buqueue's words map
//!
//! | buqueue | Kafka |
//! |---|---|
//! | queue | the topic of [`KafkaConfig::topic`] |
//! | consumer group | the group of [`KafkaConfig::group_id`]; its members share the partitions |
//! | payload, headers | the value, and headers; an empty payload is an empty value, and a foreign record without a value reads as empty |
//! | routing key | the key, which decides the partition; without one any |
//! | deduplication id | the header `buqueue-kafka-id`; Kafka does not look at it |
//! | message id | `<partition>-<offset>` |
//! | lease | the ownership of the partition, for as long as the member polls, which it does whatever handlers do |
//! | `ack` | noted at once; everything that is done is committed within half a second, and before more is handed out |
//! | `nack` | again from memory, the count in the commit |
//! | `nack_after` | a copy waits as schedules do, comes back by `<topic>-<group>-buqueue-retry`, and when it is accepted the original is done |
//! | `extend_visibility` | nothing to extend; tells whether the message is still ours |
//! | delivery count | the failures that a copy tells of, those in the commit, and this one |
//! | `send_at` | `<topic>-buqueue-delay`; see below |
//! | dead letter queue | another topic |
//!
//! # Acks out of order
//!
//! Kafka remembers one offset a partition. buqueue commits the first one that is not done, and in the metadata of the commit
//! which of those above it are not done either, and how often each has been tried. A restart therefore neither brings again
//! what was done above a slow message, nor forgets that a message kills its process: before a message is handed out, a commit
//! says so, one for all that are handed out together. Who takes over a partition hands out those that were handed out before
//! one at a time, so that no other is blamed should one of them kill its handler; when one has taken five seconds, nobody
//! waits for that any longer. The metadata has 4096 bytes at most (`offset.metadata.max.bytes`); before that is
//! full, no more of the partition is handed out, which takes about a thousand messages of it that are not done. More than 127
//! attempts are not told of: who counts on begins there after a crash. Tools that commit offsets for the group erase what it
//! says.
//!
//! A slow message does not hold up its partition, only the committed offset: what a tool shows as lag. A partition that ends
//! in the end of a transaction, as after a schedule, keeps a lag of one.
//!
//! # What `queue_stats` counts
//!
//! `ready` is what the group of the configuration has not done, in all partitions of the topic and of its retry topic: from what
//! is committed to where committed records end, less what the commit says is done above the first that is not. It follows what
//! is settled by half a second. A group that has committed nothing yet has everything before it that is there with
//! [`OffsetReset::Earliest`], and nothing with [`OffsetReset::Latest`]. What a consumer holds, or has nacked, is not done, and
//! counts as `ready`: brokers do not know who holds what, so `in_flight` is `None`. What waits until it is due, by `send_at` or
//! `nack_after`, is not counted before it is: the delay topic is shared by all groups of the topic, and what is sent on within it
//! leaves gaps, so `scheduled` is `None`. Markers of transactions and gaps of compaction hold an offset each; of the last sixteen
//! of a partition it is looked which are records, so a queue that is done has 0, and a long one may have a few too many.
//!
//! Kafka counts offsets, not records. The end of a transaction takes one, and so does what was aborted or compacted away:
//! a partition that ends in the end of a transaction, as after a schedule or a `nack_after`, counts one until something is
//! sent behind it and done, and a backlog of messages that were sent on counts one more for each transaction.
//!
//! `dead_letter_stats` counts what the same group has not done of the dead letter topic, from its start: it falls only where
//! dead letters are received with the group of the queue.
//!
//! The first question makes a client, which is kept for a minute for the next one, and never joins the group.
//! Who only sends needs a valid [`KafkaConfig::group_id`] to ask, and more permissions than to send; see below.
//!
//! # Memory
//!
//! A consumer reads ahead: up to 8 MiB for all its partitions together, and before that the client keeps what it has fetched,
//! up to 2 MiB and one fetch of each partition that has a backlog.
//!
//! # Schedules
//!
//! A delayed message waits in the delay topic, in the partition of its level: those of level *k* have at least
//! 256 ms · 4^(k-1) to wait, those of level 0 less than that of level 1. One of the running consumers of the topic sends on
//! what is due, in transactions together with the offset, and readers see committed records only: each is sent on once,
//! whoever dies when. Mostly that is one step; where more than 300 wait in a level, or more than 2 MiB, they go down step by
//! step, a schedule of a month in some twenty. When that consumer closes, another one goes on at once; when it is killed, after
//! [`session_timeout`](KafkaBuilderExt::session_timeout). Records that were sent on are deleted every half minute. A message
//! that its topic does not take any more (it is too large by now, or may not be written) is tried again each minute, and
//! holds up no other. Who sends and who sends on compare their own clocks: a schedule is as early or late as they differ.
//! Should nothing be sent on because a permission is missing, a call that receives says so, once.
//!
//! # Topics
//!
//! Created where there are none, by producers (the topic), consumers (all three) and schedules (the delay topic), with
//! [`KafkaConfig::partitions`] and [`KafkaConfig::replication_factor`]; those that exist are used as they are. When somebody
//! deletes them while they are used they are created again, and read from their start. The delay topic needs 15 partitions,
//! `cleanup.policy=delete`, `retention.ms=-1`, `retention.bytes=-1` and `message.timestamp.type=LogAppendTime`; one that is
//! there already and has others is refused with `InvalidConfig`. The topic's own retention counts for what is not done
//! in time: what Kafka has deleted does not come.
//!
//! # Production checklist
//!
//! On the brokers:
//!
//! * Copies: `default.replication.factor=3`, or [`KafkaConfig::replication_factor`] 3. Topics that are created here (the
//!   topic, the dead letter topic, the retry topic, the delay topic) get that many and no other setting of safety.
//! * `min.insync.replicas=2`, of the brokers or of each of these topics, whose default is 1. buqueue sends with
//!   `acks=all`, which promises no more copies than that.
//! * `unclean.leader.election.enable=false`, the default: with `true` a copy that lags may lead, and what it has not is
//!   lost.
//! * `offsets.topic.replication.factor=3`, `transaction.state.log.replication.factor=3` and
//!   `transaction.state.log.min.isr=2`, the defaults: acks lie in the one, schedules that are being sent on in the other.
//! * `retention.ms` of the topic and of the retry topics: longer than the consumers may ever be behind. What it deletes
//!   nobody gets, done or not; topics that are created here have the brokers' own, a week by default. `retention.bytes`
//!   stays -1.
//! * `retention.ms` of the dead letter topic: longer than it takes to look at dead letters, or -1.
//! * `cleanup.policy=delete` for all of them: compaction drops a message when there is a newer one with its routing key,
//!   and brokers refuse messages without a key.
//! * The delay topic is created as it must be; made by hand it needs what is said under [Topics](#topics), and as many
//!   copies.
//! * `offsets.retention.minutes`, a week by default: longer than all consumers of a group may be away. After that the
//!   group is new, and begins as [`KafkaConfig::offset_reset`] says: with `Latest` it misses what was sent meanwhile. It
//!   holds for the group that is named after the delay topic as well: what was sent on may be sent on again.
//! * `offset.metadata.max.bytes` is at least 4096, the default, or commits are refused.
//! * `max.message.bytes` of the topic, the delay topic, the retry topics and the dead letter topic is the same: a message
//!   goes through all of them. More than the default helps headers only; a payload has a million bytes at most.
//! * `auto.create.topics.enable=false`, so that no topic is there with other partitions than [`KafkaConfig::partitions`]
//!   because somebody has asked for it.
//! * `transaction.max.timeout.ms` is at least 15 000, and `group.min.session.timeout.ms` at most
//!   [`session_timeout`](KafkaBuilderExt::session_timeout); the defaults fit.
//! * An ACL for each service, as under [Permissions](#permissions), and SASL over TLS: `Plain` shows the password to who
//!   listens.
//!
//! In the configuration and around it:
//!
//! * [`KafkaSecurity::tls`] is there: [`KafkaTls::ca_file`] where the brokers' certificates come from an authority of your
//!   own, [`KafkaTls::certificate_and_key_files`] where the brokers ask for one. The files are read by
//!   each client that the queue makes, some of them later, so they must stay readable; a client keeps what it has read: build
//!   the queue anew before they expire.
//! * [`KafkaConfig::brokers`] names more than one, so that one that is down does not keep a service from starting.
//! * [`KafkaConfig::partitions`]: at least as many as consumers will ever run; one that has none waits. Added later, they
//!   change which partition a routing key goes to, and with it the order of what is under way.
//! * [`KafkaConfig::offset_reset`] is `Earliest` where a group must not miss what was sent before its first consumer was
//!   built.
//! * A group for each topic: members of one group stand still together whenever one of them comes or goes.
//! * [`session_timeout`](KafkaBuilderExt::session_timeout): longer than a machine may stand still (6 s by default), or its
//!   partitions go to others while its handlers work.
//! * [`max_in_flight`](KafkaBuilderExt::max_in_flight): more than handlers run at the same time, with room for slow ones;
//!   when so many are not settled no more are handed out.
//! * A [dead letter queue](buqueue_core::QueueBuilder::dead_letter_queue): without one a message that fails is tried for
//!   ever.
//! * One consumer of the topic always runs, of whichever group: it is consumers that send on what was scheduled.
//! * Clocks are synchronised: schedules and `nack_after` are as wrong as the clocks of who sends and who sends on differ.
//!
//! # Permissions
//!
//! To send: `WRITE` on the topic; for schedules on the delay topic as well. To receive: `READ` on the topic, on the group,
//! on the delay topic, on the retry topics of all groups and on the group named after the delay topic; `WRITE` on the
//! topic, the delay topic, the retry topics of all groups, the dead letter topic and the transactional id named after the
//! delay topic; `DELETE` on the delay topic. Each consumer may become the one that sends on for all groups. `READ`,
//! `WRITE` and `DELETE` include `DESCRIBE`.
//!
//! `DESCRIBE_CONFIGS` on the topic and the dead letter topic tells how large a message may be (without it trace context is
//! added up to Kafka's default size of a record), on the delay topic whether its settings are right (without it they are
//! not checked). `CREATE` on each topic, or on the cluster, where topics are to be created; who may not uses those that
//! exist. Brokers before 2.8 want `IDEMPOTENT_WRITE` on the cluster beside each `WRITE`.
//!
//! For `queue_stats`: `DESCRIBE` on the topic, the group and its retry topic, and `READ` on the topics (without it markers
//! count). For `dead_letter_stats` the same for the dead letter topic and `<dead letter topic>-<group>-buqueue-retry`,
//! which mostly does not exist: brokers hide that from who may not describe it.
//!
//! For the topic `orders`, the group `billing` and the dead letter topic `orders-dead`; ACLs know no suffixes, so
//! `orders-` is a prefix:
//!
//! ```sh
//! acl() { kafka-acls --bootstrap-server localhost:9092 --add "$@"; }
//! # The service that sends; the second line is for schedules.
//! acl --allow-principal User:shop --operation Write --operation DescribeConfigs --topic orders
//! acl --allow-principal User:shop --operation Write --operation DescribeConfigs --topic orders-buqueue-delay
//! # The service that receives.
//! acl --allow-principal User:billing --operation Read --operation Write --operation DescribeConfigs --topic orders
//! acl --allow-principal User:billing --operation Read --operation Write --operation DescribeConfigs \
//!     --topic orders- --resource-pattern-type prefixed
//! acl --allow-principal User:billing --operation Delete --topic orders-buqueue-delay
//! acl --allow-principal User:billing --operation Read --group billing
//! acl --allow-principal User:billing --operation Read --group orders-buqueue-delay
//! acl --allow-principal User:billing --operation Write --transactional-id orders-buqueue-delay
//! # Where the service that sends counts what the group has before it.
//! acl --allow-principal User:shop --operation Describe --group billing
//! acl --allow-principal User:shop --operation Read --topic orders --topic orders-billing-buqueue-retry
//! # Where topics are to be created.
//! acl --allow-principal User:billing --operation Create --topic orders --resource-pattern-type prefixed
//! ```
//!
//! # Limits
//!
//! A record has 1 MB at most by the brokers' default (`message.max.bytes`). Names of topics and groups have letters, digits,
//! `.`, `_` and `-`. Schedules reach a hundred years.
//!
//! # Not promised
//!
//! * Order across keys, and of messages without a key: they go to any partition. Whatever comes back (a nack, a retry, what a
//!   process left that was killed) comes after what was read meanwhile.
//! * Ownership can go to another consumer while a handler works: when consumers come, and when this process is not heard of
//!   for [`session_timeout`](KafkaBuilderExt::session_timeout). Its settles are answered `LeaseExpired` then, and the message
//!   is handled by the other one as well.
//! * An `ack` that was answered is committed half a second later at most: a process that is killed before handles those
//!   messages again. Closing the consumer commits, for five seconds at most where no broker answers.
//! * More consumers than partitions: the rest wait.
//! * A consumer that holds messages and closes stays a member for up to a minute, for their sake.
//! * The client retries a send that was not answered; idempotence keeps it from being there twice as long as the producer
//!   lives.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod backlog;
mod commits;
mod config;
mod consumer;
mod convert;
mod delay;
mod election;
mod error;
#[cfg(feature = "serde")]
mod file;
mod group;
mod intake;
mod later;
mod lease;
mod levels;
mod metadata;
mod producer;
mod publisher;
#[cfg(test)]
mod random;
mod reader;
mod refusals;
mod reports;
mod session;
mod stats;
mod topology;
mod tracker;
mod url;
mod watch;

pub use backend::KafkaBackend;
pub use config::{
    CompressionType, KafkaBuilderExt, KafkaConfig, KafkaOptions, KafkaSasl, KafkaSecurity, KafkaTls,
    OffsetReset, SaslMechanism,
};
pub use consumer::KafkaConsumer;
pub use producer::KafkaProducer;
