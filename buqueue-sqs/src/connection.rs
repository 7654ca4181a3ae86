//! The clients: one for requests that are answered at once, one for those that wait for messages.

use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::{RetryConfig, RetryPartition, TokenBucket};
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{Region, SharedCredentialsProvider};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use buqueue_core::Result;

use crate::config::{QueueUrl, SqsOptions};

/// How long a connection is kept that nobody uses. When a way dies without a word, whoever takes such a connection
/// waits in vain; before the first of those gives up, the others are gone.
const IDLE: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The SDK by itself repeats a request twice, after up to 1 and 2 s, of which chance takes a part. Where nothing has
/// happened but that a connection was closed that holds up a send for half a second. Here it is five times, after up to
/// 0.1, 0.2, 0.4, 0.8 and 1.6 s: the same time in all, and the first ones soon; what is throttled is repeated by the same.
const ATTEMPTS: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// What repetitions take from, 5 or 10 at a time, and answers give back, so that an outage does not multiply requests. The
/// SDK has 500 for its two, which all clients of a region share; this is as much for five, and the queue's own.
const QUOTA: usize = 1250;

/// A queue, and the clients to speak with it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) client: Client,
    /// For receives: never repeated by the client, because what a lost answer brought is in flight.
    pub(crate) poller: Client,
    pub(crate) queue: Arc<QueueUrl>,
}

impl Link {
    /// Reads the credentials chain; nothing is asked of the service yet.
    pub(crate) async fn new(options: &SqsOptions) -> Result<Self> {
        let queue = options.validate()?;
        let client = match &options.client {
            Some(client) => client.clone(),
            None => client(options, &queue).await,
        };
        // How long a receive may take depends on how long it waits, so it is not the client that measures it.
        let poller = client
            .config()
            .to_builder()
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
            .build();
        Ok(Self { client, poller: Client::from_conf(poller), queue: Arc::new(queue) })
    }

    /// The same clients and another queue.
    pub(crate) fn to(&self, queue: QueueUrl) -> Self {
        Self { queue: Arc::new(queue), ..self.clone() }
    }
}

async fn client(options: &SqsOptions, queue: &QueueUrl) -> Client {
    let config = &options.config;
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT.min(options.connection_timeout))
        .operation_attempt_timeout(options.request_timeout / 2)
        .operation_timeout(options.request_timeout)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(config.region.clone()))
        .timeout_config(timeouts)
        .http_client(
            // But for that the SDK's own default.
            aws_smithy_http_client::Builder::new()
                .pool_idle_timeout(IDLE)
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .build_https(),
        );
    if let Some(endpoint) = config.endpoint_url.as_ref().or(queue.endpoint.as_ref()) {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(credentials) = &options.credentials {
        loader = loader.credentials_provider(SharedCredentialsProvider::clone(credentials));
    }
    let loaded = loader.load().await;
    let retries = retries(loaded.retry_config());
    let quota = RetryPartition::custom("buqueue").token_bucket(TokenBucket::new(QUOTA)).build();
    let config = aws_sdk_sqs::config::Builder::from(&loaded).retry_config(retries).retry_partition(quota);
    Client::from_conf(config.build())
}

/// What the environment or the profile says of repetitions holds; ours are in the place of the SDK's default.
fn retries(said: Option<&RetryConfig>) -> RetryConfig {
    let default = RetryConfig::standard();
    match said {
        Some(said) if *said != default => said.clone(),
        _ => default.with_max_attempts(ATTEMPTS).with_initial_backoff(FIRST_WAIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_of_repetitions_holds() {
        let loader = aws_config::defaults(BehaviorVersion::latest()).region(Region::from_static("eu-west-1"));
        let nothing_said = loader.empty_test_environment().load().await;
        assert_eq!(retries(nothing_said.retry_config()).max_attempts(), ATTEMPTS);
        assert_eq!(
            retries(Some(&RetryConfig::standard())).max_attempts(),
            ATTEMPTS,
            "as if nothing were said"
        );
        assert_eq!(retries(Some(&RetryConfig::standard().with_max_attempts(2))).max_attempts(), 2);
        assert_eq!(retries(Some(&RetryConfig::disabled())).max_attempts(), 1);
    }
}
