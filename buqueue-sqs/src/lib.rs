//! The AWS SQS backend of buqueue: standard and FIFO queues.
//!
//! ```no_run
//! use buqueue_core::Message;
//! use buqueue_sqs::{SqsBackend, SqsConfig, VisibilityTimeout};
//!
//! # async fn run() -> buqueue_core::Result<()> {
//! let config = SqsConfig {
//!     queue_url: "https://sqs.us-east-1.amazonaws.com/123456789012/order-events".to_owned(),
//!     region: "us-east-1".to_owned(),
//!     visibility_timeout: VisibilityTimeout::Seconds(30),
//!     ..SqsConfig::default()
//! };
//! let (producer, mut consumer) = SqsBackend::builder(config).build_pair().await?;
//! producer.send(Message::new("hello")).await?;
//! consumer.receive().await?.ack().await?;
//! # Ok(()) }
//! ```
//!
//! As a URL ([`SqsConfig::from_url`]): `sqs://sqs.eu-west-1.amazonaws.com/123456789012/orders`.
//!
//! # How buqueue's words map
//!
//! | buqueue | SQS |
//! |---|---|
//! | queue | the queue of [`SqsConfig::queue_url`]; FIFO when its name ends in `.fifo` |
//! | consumer group | none: all consumers of a queue share its messages |
//! | payload | the body; where that is no text that SQS takes, the binary attribute `buqueue-payload` |
//! | headers | string attributes; all together in the attribute `buqueue`, as JSON, where they are more than fit into ten, or have names or values that attributes cannot have |
//! | routing key | FIFO: the message group; standard: in the attribute `buqueue`, and with [`SqsConfig::fair_queues`] the message group as well |
//! | a message without a key | FIFO: a group of its own, so that it is in order with nothing and waits for nobody |
//! | deduplication id | FIFO: the deduplication id, for the five minutes of SQS; standard: in the attribute `buqueue` |
//! | message id | the `MessageId` |
//! | lease | the visibility timeout of the receive |
//! | `ack` | `DeleteMessageBatch`, ten to a request where acks come together |
//! | `nack`, `nack_after` | `ChangeMessageVisibilityBatch`; beyond the 12 hours of SQS a copy goes by the relay |
//! | `extend_visibility` | `ChangeMessageVisibilityBatch`, within the 12 hours |
//! | delivery count | `ApproximateReceiveCount`, without what this process gave back unseen |
//! | `send_at` | `DelaySeconds`, and the relay; see below |
//! | dead letter queue | another queue: its URL, or a name beside this one, of the same kind |
//!
//! A key or deduplication id that SQS would not take (over 128 bytes, other than visible ASCII) is replaced by its SHA-256
//! where SQS looks at it, and arrives as it was sent.
//!
//! # FIFO queues
//!
//! SQS hands out no more of a group while some of it is in flight, beyond what one receive has brought: handlers of one
//! key work one after the other, or on up to ten messages at once. When a message fails, those of its group that this
//! consumer has received and not handed out go back as well, so that they come after it. Those that were handed out
//! already are the handlers' business.
//!
//! # Schedules
//!
//! SQS delays in whole seconds. A message says how many milliseconds it has to wait, is visible in the last second before
//! that, and the consumer that receives it too early keeps it for the rest: never early and exact to milliseconds for
//! consumers of buqueue, up to a second early for others. The clock is that of SQS, from the time of sending on.
//!
//! Beyond 15 minutes, and always on FIFO queues, which know no delay of a message, it waits in a standard queue beside
//! this one: `<name>-buqueue-relay`, or `<name>-buqueue-relay-fifo`. Running consumers of the queue send it on, step by
//! step, and only when the copy is accepted is the original deleted. A process that dies in between holds a message up by
//! six seconds, and one whose request takes longer than that may send it on twice; FIFO queues drop the second. A
//! schedule of a month takes some 3000 steps, each of 0.3 requests where many wait. Deleting the message there cancels it.
//! On a FIFO queue a scheduled message is deduplicated when it is due.
//!
//! # Dead letters
//!
//! The verdict is buqueue's, before a handler sees the message. A redrive policy of the queue's own may be there beside it,
//! as long as its `maxReceiveCount` is larger than ours; a smaller one is refused when the consumer is built.
//!
//! # What `queue_stats` counts
//!
//! As SQS tells, which is about right on a standard queue, and up to a minute old. *Ready*:
//! `ApproximateNumberOfMessages`. *In flight*: `ApproximateNumberOfMessagesNotVisible`, which has those that wait for the
//! end of `nack_after` among them, and schedules that a consumer keeps for their last second. *Scheduled*:
//! `ApproximateNumberOfMessagesDelayed`, what a delay of the queue's own holds back included, and all that lies in the
//! relay; `None` where the credentials may not look at that. A message that is just sent on from there may be counted twice
//! for a moment. Two requests, side by side; without a relay the second one finds nothing and costs the same.
//!
//! # Production checklist
//!
//! At AWS:
//!
//! * `MessageRetentionPeriod` 1 209 600 (14 days, the most) of the queue, the dead letter queue and the relay. Queues that
//!   are created here have it; one that was made otherwise has 4 days. What is older is deleted, processed or not.
//! * Somebody looks at dead letters within those 14 days: they are new messages, whose time begins when they die.
//! * A consumer of the queue runs at least every few days: schedules beyond 15 minutes are sent on by consumers, each step
//!   begins the retention anew, and what nobody sends on for 14 days is deleted.
//! * A redrive policy of the queue's own is best left out. Where there is one, its `maxReceiveCount` is far above
//!   buqueue's `max_receive_count`, ten times and more: SQS counts what is received ahead and given back as well.
//! * The relay has none: what the queue does not take is received there again each second.
//! * The dead letter queue is FIFO where the queue is, and `MaximumMessageSize` of it and of the relay is not below the
//!   queue's.
//! * In flight at most 120 000 messages of a queue: SQS hands out no more beyond that, and what waits for the end of
//!   `nack_after` is in flight.
//! * FIFO queues made by hand need `FifoQueue` only: buqueue always says a deduplication id. Those that are created here
//!   have the usual throughput, 300 requests a second, of ten messages each.
//! * High throughput on a FIFO queue (`FifoThroughputLimit=perMessageGroupId` and `DeduplicationScope=messageGroup`) only
//!   where every message has a routing key: one without is a group of its own, and SQS would deduplicate it with nothing,
//!   nor drop the second copy of a schedule.
//! * A key of your own (SSE-KMS) is set on the relay and the dead letter queue too, which are created without; see below
//!   for its permissions.
//! * Queues are made beforehand, with [`create_queue`](SqsConfig::create_queue) `false`, where tags, keys or policies are
//!   required; the relay too: `<name>-buqueue-relay`, or for a FIFO queue `<name>-buqueue-relay-fifo`, a standard queue in
//!   both cases.
//! * An alarm on `ApproximateAgeOfOldestMessage` of the queue, the relay and the dead letter queue.
//!
//! In the configuration:
//!
//! * [`SqsConfig::visibility_timeout`] (30 s by default): well above twice the longest time a handler takes, since up to
//!   half of it may be over when a message is handed out. What takes longer goes to somebody else as well, unless it calls
//!   `extend_visibility`, which reaches 12 hours from the receive.
//! * [`SqsConfig::wait_time`] (5 s by default): 20 s costs the fewest requests on an idle queue, and notices a connection
//!   that has died silently as much later.
//! * [`SqsConfig::region`] is that of the queue, and credentials come from a role and not from keys in a file.
//! * [`SqsConfig::fair_queues`] where one key must not hold up the others of a standard queue.
//! * Handlers take the same message twice: a standard queue delivers twice by itself, also after an ack.
//! * A [dead letter queue](buqueue_core::QueueBuilder::dead_letter_queue): without one, and without a redrive policy, a
//!   message that fails is tried for ever.
//!
//! # Permissions
//!
//! To send: `sqs:SendMessage` and `sqs:GetQueueAttributes`. To receive: `sqs:ReceiveMessage`, `sqs:DeleteMessage`,
//! `sqs:ChangeMessageVisibility`, `sqs:GetQueueAttributes`, and `sqs:SendMessage` and `sqs:GetQueueAttributes` on the dead
//! letter queue. Where there are schedules beyond 15 minutes or on FIFO queues, or retries beyond 12 hours: producers need
//! `sqs:SendMessage` on the relay, and consumers all of these on the relay and `sqs:SendMessage` on the queue itself.
//! **Consumers that lack them leave the relay alone** and only say so in the log, once, because most queues have none. To
//! count: `sqs:GetQueueAttributes`, on the relay and the dead letter queue too. `sqs:CreateQueue` and
//! `sqs:GetQueueAttributes` where queues are to be created, on the relay for producers as well: it is who sends first that
//! finds it missing. Set [`create_queue`](SqsConfig::create_queue) to `false` where they are not.
//!
//! With a key of your own who sends needs `kms:GenerateDataKey` and `kms:Decrypt` on it, who receives `kms:Decrypt`; a
//! consumer of buqueue also sends, to the dead letter queue and the relay, and needs both.
//!
//! For the queue `orders` and the dead letter queue `orders-dead`, a service that sends and receives:
//!
//! ```json
//! {
//!   "Version": "2012-10-17",
//!   "Statement": [
//!     {
//!       "Sid": "QueueAndRelay",
//!       "Effect": "Allow",
//!       "Action": [
//!         "sqs:SendMessage",
//!         "sqs:ReceiveMessage",
//!         "sqs:DeleteMessage",
//!         "sqs:ChangeMessageVisibility",
//!         "sqs:GetQueueAttributes"
//!       ],
//!       "Resource": [
//!         "arn:aws:sqs:eu-west-1:123456789012:orders",
//!         "arn:aws:sqs:eu-west-1:123456789012:orders-buqueue-relay"
//!       ]
//!     },
//!     {
//!       "Sid": "DeadLetters",
//!       "Effect": "Allow",
//!       "Action": ["sqs:SendMessage", "sqs:GetQueueAttributes"],
//!       "Resource": "arn:aws:sqs:eu-west-1:123456789012:orders-dead"
//!     },
//!     {
//!       "Sid": "WhereQueuesAreToBeCreated",
//!       "Effect": "Allow",
//!       "Action": "sqs:CreateQueue",
//!       "Resource": "arn:aws:sqs:eu-west-1:123456789012:orders*"
//!     },
//!     {
//!       "Sid": "WithAKeyOfYourOwn",
//!       "Effect": "Allow",
//!       "Action": ["kms:GenerateDataKey", "kms:Decrypt"],
//!       "Resource": "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"
//!     }
//!   ]
//! }
//! ```
//!
//! # Limits
//!
//! A message with its attributes has 1 MiB at most, or what the queue says (`MaximumMessageSize`). Visibility timeouts have
//! whole seconds, from 1 to 43 200. Schedules reach a hundred years, in a queue that keeps messages for 14 days.
//!
//! # Not promised
//!
//! * Order, and deduplication, on a standard queue; it may also deliver a message twice by itself.
//! * `try_receive` asks a part of the servers of SQS only (a short poll), and may miss one of few messages.
//! * SQS counts every receive, so a message that another process received ahead and gave back has used up an attempt.
//!   buqueue receives ahead only while the consumer is fast, and gives back what nobody has taken for two seconds.
//! * SQS may take a late ack silently. buqueue measures the lease from the arrival of the message and refuses to settle once
//!   95 % of it are over (at most 250 ms before its end).
//! * The client repeats a request that was not answered in time, also a send: on a standard queue the message may be there
//!   twice then. On a FIFO queue SQS drops the second.
//! * A send that is dropped after it was polled is sent all the same, also after the producer was closed. A program that
//!   gives up waiting for sends and sends on while SQS does not answer has all of them in memory.
//! * A receive that waits is not cut off: a consumer that stops waits up to 1.5 s for it, and for the schedules that it
//!   is sending on. What it brings after that is given back as long as the process lives, and visible again after the
//!   lease otherwise.
//! * A connection that dies without a word is noticed after [`wait_time`](SqsConfig::wait_time) and a third of the request
//!   timeout. What SQS has sent on it is visible again when its lease ends.
//! * Connections that are idle for three seconds are closed; a producer that sends less often connects anew each time.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod error;
#[cfg(feature = "serde")]
mod file;
mod lease;
mod producer;
mod reader;
mod schedule;
mod sender;
mod settle;
mod stats;
mod telling;
mod topology;
mod url;

/// The client, for what [`SqsBuilderExt`] takes of it.
pub use aws_sdk_sqs;
pub use backend::SqsBackend;
pub use config::{SqsBuilderExt, SqsConfig, SqsOptions, VisibilityTimeout};
pub use consumer::SqsConsumer;
pub use producer::SqsProducer;
