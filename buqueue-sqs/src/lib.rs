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
//! # Permissions
//!
//! To send: `sqs:SendMessage` and `sqs:GetQueueAttributes`. To receive: `sqs:ReceiveMessage`, `sqs:DeleteMessage`,
//! `sqs:ChangeMessageVisibility`, `sqs:GetQueueAttributes`, and `sqs:SendMessage` on the dead letter queue. Where there
//! are schedules beyond 15 minutes or on FIFO queues, or retries beyond 12 hours: producers need `sqs:SendMessage` on the
//! relay, and consumers all of these on the relay and `sqs:SendMessage` on the queue itself. **Consumers that lack them leave
//! the relay alone** and only say so in the log, once, because most queues have none. To count: `sqs:GetQueueAttributes`, on
//! the relay too. `sqs:CreateQueue` where queues are to be created; set
//! [`create_queue`](SqsConfig::create_queue) to `false` where they are not.
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

mod backend;
mod config;
mod connection;
mod consumer;
mod convert;
mod error;
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
