use std::path::PathBuf;
use std::time::Duration;

use buqueue_core::url::UrlParts;
use buqueue_core::{BuqueueError, ErrorKind, Result};
use serde::Deserialize;

/// Which queue, where, and how it behaves.
///
/// Read from a file, durations are as in `30s` or `1h30m`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// Where the queues lie. Must be there already: a disk that is not mounted is not to be written beneath. No default.
    pub directory: PathBuf,
    /// The name of the queue, which is created when it is not there: 1 to 200 bytes, no `/`, no `.` at the beginning. No
    /// default.
    pub queue: String,
    /// How long a delivery stays with its consumer unsettled before it goes to another. From 1 ms to 100 years.
    /// Default: 30 s.
    #[serde(with = "buqueue_core::duration")]
    pub lease: Duration,
    /// How long a consumer that waits looks away at most. From 1 ms to 500 ms. Default: 100 ms.
    #[serde(with = "buqueue_core::duration")]
    pub poll_interval: Duration,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::new(),
            queue: String::new(),
            lease: Duration::from_secs(30),
            poll_interval: Duration::from_millis(100),
        }
    }
}

const QUEUE_BYTES_MAX: usize = 200;
const LEAST: Duration = Duration::from_millis(1);
const LEASE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// What is due is at most a second late.
const POLL_MAX: Duration = Duration::from_millis(500);

impl SpoolConfig {
    /// Reads `spool:///directory/queue`, with `lease` and `poll_interval` in the query:
    /// `spool:///var/spool/shop/orders?lease=1m`.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig), with `url` or the field at fault. What the values say is checked when
    /// the queue is built.
    pub fn from_url(url: &str) -> Result<Self> {
        const EXAMPLE: &str = "spool:///var/spool/shop/orders";
        let (parts, mut query) = UrlParts::parse(url, &["spool"])?;
        if parts.user_info().is_some() || !parts.hosts().is_empty() {
            return Err(invalid(format!("url: has no host and no user, as in {EXAMPLE}")));
        }
        let path = format!("/{}", parts.name("directory", EXAMPLE)?);
        let (directory, queue) = path.rsplit_once('/').unwrap_or_default();
        let mut config =
            Self { directory: PathBuf::from(directory), queue: queue.to_owned(), ..Self::default() };
        query.set("lease", &mut config.lease)?;
        query.set("poll_interval", &mut config.poll_interval)?;
        query.finish()?;
        Ok(config)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let queue = &self.queue;
        let fact = if self.directory.as_os_str().is_empty() {
            "directory: must not be empty".to_owned()
        } else if queue.is_empty() || queue.len() > QUEUE_BYTES_MAX {
            format!("queue: must have 1 to {QUEUE_BYTES_MAX} bytes, has {}", queue.len())
        } else if queue.starts_with('.') || queue.contains(['/', '\0']) {
            format!("queue: must not begin with a dot, nor have a slash or a NUL in it, is {queue:?}")
        } else if self.lease < LEAST || self.lease > LEASE_MAX {
            format!("lease: must lie between 1 ms and 100 years, is {:?}", self.lease)
        } else if self.poll_interval < LEAST || self.poll_interval > POLL_MAX {
            format!("poll_interval: must lie between 1 ms and {POLL_MAX:?}, is {:?}", self.poll_interval)
        } else {
            return Ok(());
        };
        Err(invalid(fact))
    }
}

fn invalid(fact: String) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}
