//! A queue in a directory: the backend that the guide [Write your own backend] builds, small enough to be read whole.
//!
//! ```
//! use buqueue_core::Message;
//! use buqueue_spool::{SpoolBackend, SpoolConfig};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> buqueue_core::Result<()> {
//! # let directory = std::env::temp_dir().join(format!("spool-{}", buqueue_core::unique_id()));
//! # std::fs::create_dir(&directory).map_err(|error| {
//! #     buqueue_core::BuqueueError::new(buqueue_core::ErrorKind::NotFound, "no temporary directory").with_source(error)
//! # })?;
//! let config = SpoolConfig { directory, queue: "orders".to_owned(), ..SpoolConfig::default() };
//! # let temporary = config.directory.clone();
//! let (producer, mut consumer) = SpoolBackend::builder(config).build_pair().await?;
//! producer.send(Message::new("hello")).await?;
//! let delivery = consumer.receive().await?;
//! assert_eq!(delivery.payload(), "hello");
//! delivery.ack().await?;
//! # std::fs::remove_dir_all(temporary).ok();
//! # Ok(()) }
//! ```
//!
//! As a URL ([`SpoolConfig::from_url`]): `spool:///var/spool/shop/orders?lease=1m`.
//!
//! # How buqueue's words map
//!
//! | buqueue | in a directory |
//! |---|---|
//! | queue | `<directory>/<queue>/messages`, with `drafts` beside it |
//! | message | a file; its state is its name, its content one line of JSON and then the payload |
//! | message id | a part of the file's name that stays |
//! | `send` | written to `drafts`, synced, renamed into `messages`, and `messages` is synced |
//! | `receive` | renamed to a name with one more attempt and the end of the lease; who renames first has it |
//! | `ack` | the file is removed |
//! | `nack`, `nack_after`, dropped delivery | renamed to a name without lease; a delay moves its place |
//! | `extend_visibility` | renamed to a name with another end |
//! | expired lease | the end in the name has passed, so that any consumer may rename it again |
//! | `send_at` | a place in the queue that is not reached before that time |
//! | dead letter queue | another queue of the same directory |
//! | a file that cannot be read | a message without content, whose header `spool-unreadable` says why |
//!
//! A name is `place.id.attempts.first-failed.leased-until`: times in microseconds since 1970, and all numbers but the
//! attempts in hexadecimal. A rename is atomic and takes the old name away from everybody else, so a process may be killed
//! at any point: a message has one name at any time, and that name says all there is to say of it.
//!
//! A file with any other name is a message too: the whole of it is the payload. Write it elsewhere in the same file
//! system and `mv` it into `messages`.
//!
//! A file that this process has no permission to read, or that has more than 32 MiB, is delivered without its content, and
//! so fails and becomes a dead letter. The file itself is not removed by `ack`, nor when the dead letter is written, but moved
//! to `unreadable`, beside `messages`. An error that may pass is returned by `receive`, and is no attempt.
//!
//! # Not promised
//!
//! * Order, schedules and leases go by the clock of the machine. When that is set back, what has a time waits until the time
//!   has come again, also what was sent just before.
//! * After a power loss, what `send` and `send_at` have answered with `Ok` is there. Settling is not synced: an acked message
//!   may be there again, and a failed one with an older count.
//! * What a dropped `receive` has taken lies with its consumer until that receives again. After a whole lease it may go to
//!   another consumer first, which counts as an attempt.
//! * A waiting consumer looks again and again, up to [`SpoolConfig::poll_interval`] apart, and reads all names each time. A
//!   queue of hundreds of thousands of messages is slow.
//! * Local file systems of Unix only. On a network file system a rename may be carried out and be reported as failed.
//!
//! `queue_stats` counts names: as ready what a consumer may take now, as in flight what is leased, as scheduled what has
//! its place in the future.
//!
//! [Write your own backend]: https://github.com/buqueue/buqueue/blob/main/guides/own-backend.md

mod backend;
mod config;
mod consumer;
mod convert;
mod error;
mod lease;
mod producer;
mod spool;
mod state;

pub use backend::SpoolBackend;
pub use config::SpoolConfig;
pub use consumer::SpoolConsumer;
pub use producer::SpoolProducer;
