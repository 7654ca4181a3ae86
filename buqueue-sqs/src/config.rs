//! The user's configuration, and what the builder adds to it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{ProvideCredentials, SharedCredentialsProvider};
use buqueue_core::{BuqueueError, ErrorKind, QueueBuilder, Result, duration};

use crate::SqsBackend;

/// The longest that SQS hides a message from others.
pub(crate) const LONGEST_VISIBILITY: Duration = Duration::from_secs(12 * 60 * 60);
/// The longest that a queue delays a message by itself.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(15 * 60);
/// The longest that a receive may wait at the service.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Which queue, and how this service reads it.
///
/// Credentials are none of its business: they come from the standard chain of the AWS SDK (environment, profile,
/// container or instance role), or from [`SqsBuilderExt::credentials_provider`].
///
/// With the feature `serde` it can be read from a file, where durations are as in `30s` or `1h30m`. As the configuration of
/// any backend it cannot be written: most hold credentials, and what can be written gets logged.
#[derive(Clone, PartialEq, Eq)]
pub struct SqsConfig {
    /// The whole URL of the queue. A name that ends in `.fifo` makes it a FIFO queue. A name has 1 to 80 letters, digits,
    /// `-` and `_`. Default: none, it must be said.
    pub queue_url: String,
    /// The AWS region that the queue lies in; the one of the URL, where that names one. Default: `us-east-1`.
    pub region: String,
    /// The lease: how long a received message is hidden from other consumers. Set it well above twice the longest time
    /// a handler needs: where messages come fast they are received ahead, and up to half of it may be over when one is
    /// handed out. Default: 30 s.
    pub visibility_timeout: VisibilityTimeout,
    /// Where to send requests, for an emulator or a VPC endpoint. Default: the host of the queue's URL, unless it is
    /// one of AWS's own, which the region tells.
    pub endpoint_url: Option<String>,
    /// How long one request waits at the service for a message, in whole seconds from 1 to 20. Default: 5 s. More costs
    /// fewer requests on an idle queue, and takes as much longer to notice a connection that has silently died.
    pub wait_time: Duration,
    /// Whether a standard queue is told the routing key as its message group, so that it serves all keys fairly. Of
    /// no meaning on FIFO queues, which always are. Default: no.
    pub fair_queues: bool,
    /// Whether a queue that does not exist is created, in the account of the credentials, with a retention of 14 days.
    /// Default: yes. What exists is never changed.
    pub create_queue: bool,
}

/// URLs have no credentials here, and one that has is refused when the queue is built; it is not shown before that either.
impl fmt::Debug for SqsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsConfig")
            .field("queue_url", &redact(&self.queue_url))
            .field("region", &self.region)
            .field("visibility_timeout", &self.visibility_timeout)
            .field("endpoint_url", &self.endpoint_url.as_deref().map(redact))
            .field("wait_time", &self.wait_time)
            .field("fair_queues", &self.fair_queues)
            .field("create_queue", &self.create_queue)
            .finish()
    }
}

/// What stands before an `@` may be a password.
fn redact(url: &str) -> Cow<'_, str> {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("…@{rest}").into(),
        None => url.into(),
    }
}

impl Default for SqsConfig {
    /// No queue yet, in `us-east-1`, with a lease of 30 s.
    fn default() -> Self {
        Self {
            queue_url: String::new(),
            region: "us-east-1".to_owned(),
            visibility_timeout: VisibilityTimeout::Seconds(30),
            endpoint_url: None,
            wait_time: Duration::from_secs(5),
            fair_queues: false,
            create_queue: true,
        }
    }
}

/// How long a received message is hidden from other consumers.
///
/// As text, in files and URLs: a duration of whole seconds as in `30s` or `5m`, or `queue_default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(try_from = "String"))]
pub enum VisibilityTimeout {
    /// So many seconds, 1 to 43 200 (12 hours).
    Seconds(u32),
    /// As the queue itself says.
    QueueDefault,
}

impl TryFrom<String> for VisibilityTimeout {
    type Error = BuqueueError;

    fn try_from(text: String) -> Result<Self> {
        if text == "queue_default" {
            return Ok(Self::QueueDefault);
        }
        let duration = duration::parse(&text).filter(|duration| duration.subsec_nanos() == 0);
        match duration.map(|duration| u32::try_from(duration.as_secs())) {
            Some(Ok(seconds)) => Ok(Self::Seconds(seconds)),
            _ => Err(invalid(format!(
                "visibility_timeout: must be queue_default, or whole seconds as in \"30s\" or \"5m\", is {text:?}"
            ))),
        }
    }
}

/// [`SqsConfig`], and what the builder adds to it.
#[derive(Clone)]
pub struct SqsOptions {
    pub(crate) config: SqsConfig,
    pub(crate) connection_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) longest_delay: Duration,
    pub(crate) credentials: Option<SharedCredentialsProvider>,
    pub(crate) client: Option<Client>,
    pub(crate) max_receive_count: Option<u32>,
}

impl fmt::Debug for SqsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsOptions")
            .field("config", &self.config)
            .field("connection_timeout", &self.connection_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("longest_delay", &self.longest_delay)
            .finish_non_exhaustive()
    }
}

/// What can be said beyond [`SqsConfig`].
pub trait SqsBuilderExt: Sized {
    /// How long building waits for the service until it fails with `ConnectionLost`. Not zero. Default: 10 s.
    #[must_use]
    fn connection_timeout(self, timeout: Duration) -> Self;

    /// How long a request may take, with all its repetitions, until what needs it fails with `Timeout`; one of them takes
    /// half of it at most. Not zero. Default: 10 s. A receive is not repeated; it takes a third of it, and at least 3 s,
    /// beyond the time that it waits for messages. There are five repetitions at most, within about 3 s of waiting, unless
    /// the environment or the profile says otherwise (`AWS_MAX_ATTEMPTS`, `AWS_RETRY_MODE`; what is the SDK's own default,
    /// 3 and `standard`, says nothing).
    #[must_use]
    fn request_timeout(self, timeout: Duration) -> Self;

    /// How long the queue itself delays a message at most; longer schedules take the way of the relay queue. At least 1 s.
    /// Default, and the most that SQS can do: 15 minutes.
    #[must_use]
    fn longest_delay(self, delay: Duration) -> Self;

    /// Where credentials come from. Default: the standard chain of the AWS SDK.
    #[must_use]
    fn credentials_provider(self, provider: impl ProvideCredentials + 'static) -> Self;

    /// A client of your own, with everything that can be said about one: proxies, retries, interceptors. `region`,
    /// `endpoint_url`, the credentials and the timeouts said here are then its own business, but for receives: they are
    /// not repeated, and have the timeout that they have with any client. Default: one that is made here.
    #[must_use]
    fn client(self, client: Client) -> Self;
}

impl<Dispatch> SqsBuilderExt for QueueBuilder<SqsBackend, Dispatch> {
    fn connection_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.connection_timeout = timeout)
    }

    fn request_timeout(self, timeout: Duration) -> Self {
        self.configure(|options| options.request_timeout = timeout)
    }

    fn longest_delay(self, delay: Duration) -> Self {
        self.configure(|options| options.longest_delay = delay)
    }

    fn credentials_provider(self, provider: impl ProvideCredentials + 'static) -> Self {
        self.configure(|options| options.credentials = Some(SharedCredentialsProvider::new(provider)))
    }

    fn client(self, client: Client) -> Self {
        self.configure(|options| options.client = Some(client))
    }
}

impl SqsOptions {
    pub(crate) fn new(config: SqsConfig) -> Self {
        Self {
            config,
            connection_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            longest_delay: LONGEST_DELAY,
            credentials: None,
            client: None,
            max_receive_count: None,
        }
    }

    /// What a receive may take beyond the time that it waits for messages. A connection that has died without a word is
    /// noticed after that.
    pub(crate) fn patience(&self) -> Duration {
        (self.request_timeout / 3).max(Duration::from_secs(3))
    }

    /// Checks all that can be checked without the service.
    pub(crate) fn validate(&self) -> Result<QueueUrl> {
        let config = &self.config;
        let url = QueueUrl::parse(&config.queue_url)?;
        let is_region =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !is_region(&config.region) {
            return Err(invalid(format!("region: must be one as in \"us-east-1\", is {:?}", config.region)));
        }
        if let Some(other) = url.region.as_deref().filter(|region| *region != config.region) {
            return Err(invalid(format!("region: is {:?}, the queue_url says {other:?}", config.region)));
        }
        if let VisibilityTimeout::Seconds(seconds) = config.visibility_timeout
            && !(1..=LONGEST_VISIBILITY.as_secs()).contains(&u64::from(seconds))
        {
            return Err(invalid(format!("visibility_timeout: must be 1 to 43200 seconds, is {seconds}")));
        }
        if !(Duration::from_secs(1)..=LONGEST_WAIT).contains(&config.wait_time) {
            return Err(invalid(format!("wait_time: must be 1 to 20 s, is {:?}", config.wait_time)));
        }
        if let Some(endpoint) = &config.endpoint_url
            && !["http://", "https://"]
                .iter()
                .any(|scheme| endpoint.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
        {
            return Err(invalid("endpoint_url: must begin with http:// or https:// and name a host"));
        }
        if config.endpoint_url.as_ref().is_some_and(|endpoint| endpoint.contains('@')) {
            return Err(invalid("endpoint_url: must not contain credentials"));
        }
        for (field, timeout) in
            [("connection_timeout", self.connection_timeout), ("request_timeout", self.request_timeout)]
        {
            if timeout.is_zero() {
                return Err(invalid(format!("{field}: must not be zero")));
            }
        }
        if !(Duration::from_secs(1)..=LONGEST_DELAY).contains(&self.longest_delay) {
            return Err(invalid(format!("longest_delay: must be 1 to 900 s, is {:?}", self.longest_delay)));
        }
        Ok(url)
    }
}

/// A queue's URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueUrl {
    pub(crate) whole: String,
    /// What stands before the name, with the last slash.
    base: String,
    pub(crate) name: String,
    pub(crate) fifo: bool,
    /// Where requests go, when the host is none of AWS's own.
    pub(crate) endpoint: Option<String>,
    /// As the host says, when it is one of AWS's own.
    pub(crate) region: Option<String>,
}

const FIFO: &str = ".fifo";
const LONGEST_NAME: usize = 80;

impl QueueUrl {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let wrong = |what: &str| {
            invalid(format!(
                "queue_url: {what}, as in https://sqs.us-east-1.amazonaws.com/123456789012/orders"
            ))
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("must be the whole URL"))?;
        if !matches!(scheme, "http" | "https") {
            return Err(wrong("must begin with http:// or https://"));
        }
        let (authority, path) = rest.split_once('/').ok_or_else(|| wrong("must name a queue"))?;
        if authority.is_empty() || authority.contains('@') {
            return Err(wrong("must name a host, and no credentials"));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let stem = name.strip_suffix(FIFO).unwrap_or(name);
        let is_name =
            |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if stem.is_empty() || name.len() > LONGEST_NAME || !is_name(stem) {
            return Err(wrong("must end in a name of 1 to 80 letters, digits, `-` and `_`"));
        }
        let host = authority.split_once(':').map_or(authority, |(host, _)| host);
        let region = aws_region(host);
        let own = region.is_none();
        Ok(Self {
            whole: url.to_owned(),
            base: url[..url.len() - name.len()].to_owned(),
            name: name.to_owned(),
            fifo: name.ends_with(FIFO),
            endpoint: own.then(|| format!("{scheme}://{authority}")),
            region,
        })
    }

    /// The account and the name.
    pub(crate) fn path(&self) -> &str {
        let authority = self.whole.find("://").map_or(0, |at| at + 3);
        self.whole[authority..].split_once('/').map_or("", |(_, path)| path)
    }

    /// The URL of a queue beside this one. A bare name is of the same kind, standard or FIFO.
    pub(crate) fn beside(&self, destination: &str) -> String {
        if destination.contains("://") {
            return destination.to_owned();
        }
        let suffix = if self.fifo && !destination.ends_with(FIFO) { FIFO } else { "" };
        format!("{}{destination}{suffix}", self.base)
    }

    /// The standard queue where long schedules wait.
    pub(crate) fn relay(&self) -> String {
        // `orders` and `orders.fifo` are two queues.
        let suffix = if self.fifo { "-buqueue-relay-fifo" } else { "-buqueue-relay" };
        let stem = self.name.strip_suffix(FIFO).unwrap_or(&self.name);
        let room = LONGEST_NAME - suffix.len();
        if stem.len() <= room {
            return format!("{}{stem}{suffix}", self.base);
        }
        let tail = crate::convert::fingerprint(&self.name);
        format!("{}{}-{}{suffix}", self.base, &stem[..room - 17], &tail[..16])
    }
}

/// The region of one of AWS's own hosts; `None` for others, VPC endpoints included.
fn aws_region(host: &str) -> Option<String> {
    let rest = host
        .strip_suffix(".amazonaws.com")
        .or_else(|| host.strip_suffix(".amazonaws.com.cn"))
        .or_else(|| host.strip_suffix(".api.aws"))?;
    let region = match rest.split('.').collect::<Vec<_>>().as_slice() {
        ["sqs" | "sqs-fips", region] | [region, "queue"] => (*region).to_owned(),
        ["queue"] => "us-east-1".to_owned(),
        _ => return None,
    };
    Some(region)
}

pub(crate) fn invalid(fact: impl Into<String>) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_does_not_belong_there_is_not_shown() {
        let config = SqsConfig {
            queue_url: "http://u:canary@h/1/q".to_owned(),
            endpoint_url: Some("http://u:canary@h".to_owned()),
            ..Default::default()
        };
        let shown = format!("{config:?}");
        assert!(!shown.contains("canary") && shown.contains("…@h/1/q"), "{shown}");
    }

    #[test]
    fn urls_are_taken_apart() {
        let url = QueueUrl::parse("https://sqs.eu-west-1.amazonaws.com/123456789012/orders.fifo").unwrap();
        assert_eq!((url.name.as_str(), url.fifo), ("orders.fifo", true));
        assert_eq!((url.endpoint.as_deref(), url.region.as_deref()), (None, Some("eu-west-1")));
        assert_eq!(url.beside("dead"), "https://sqs.eu-west-1.amazonaws.com/123456789012/dead.fifo");
        assert_eq!(url.relay(), "https://sqs.eu-west-1.amazonaws.com/123456789012/orders-buqueue-relay-fifo");
        let url = QueueUrl::parse("http://127.0.0.1:4566/000000000000/orders").unwrap();
        assert_eq!(url.endpoint.as_deref(), Some("http://127.0.0.1:4566"));
        assert_eq!((url.fifo, url.region.as_deref()), (false, None));
        assert_eq!(url.beside("http://other/1/dead"), "http://other/1/dead");
        let vpc = "https://vpce-1-2.sqs.us-east-1.vpce.amazonaws.com/123456789012/orders";
        assert_eq!(
            QueueUrl::parse(vpc).unwrap().endpoint.as_deref(),
            Some("https://vpce-1-2.sqs.us-east-1.vpce.amazonaws.com")
        );
    }

    #[test]
    fn names_of_relays_fit_and_differ() {
        let relay = |name: String| QueueUrl::parse(&format!("http://h/1/{name}")).unwrap().relay();
        let long = "x".repeat(75);
        let relays = [relay(format!("{long}-a")), relay(format!("{long}-b")), relay(format!("{long}.fifo"))];
        for relay in &relays {
            assert!(QueueUrl::parse(relay).is_ok(), "{relay}");
        }
        assert!(relays[0] != relays[1] && relays[1] != relays[2] && relays[0] != relays[2]);
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for url in
            ["", "orders", "amqp://h/1/orders", "http://h", "http://h/1/", "http:///1/x", "http://u:p@h/1/x"]
        {
            let error = QueueUrl::parse(url).unwrap_err();
            assert!(error.message().starts_with("queue_url: "), "{error}");
        }
    }
}
