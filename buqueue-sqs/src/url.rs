//! The configuration as one URL.

use buqueue_core::Result;
use buqueue_core::url::UrlParts;

use crate::config::{QueueUrl, SqsConfig, VisibilityTimeout};

impl SqsConfig {
    /// Reads `sqs://host/account/queue`, which stands for the queue's URL with `https://`, with the other fields in its
    /// query: `sqs://sqs.eu-west-1.amazonaws.com/123456789012/orders?visibility_timeout=5m`. For emulators `sqs+http://`
    /// stands for `http://`: `sqs+http://127.0.0.1:4566/000000000000/orders?region=us-east-1`.
    ///
    /// The region is that of the host, where it is one of AWS's own. What else is not there is as in
    /// [`default`](Self::default). Credentials are not in the URL, and neither are the options of
    /// [`SqsBuilderExt`](crate::SqsBuilderExt).
    ///
    /// # Errors
    /// [`InvalidConfig`](buqueue_core::ErrorKind::InvalidConfig), with `url` or the field at fault. What the values say is
    /// checked when the queue is built.
    pub fn from_url(url: &str) -> Result<Self> {
        let (parts, mut query) = UrlParts::parse(url, &["sqs", "sqs+http"])?;
        let scheme = if parts.scheme() == "sqs" { "https" } else { "http" };
        let queue_url = format!("{scheme}{}", &parts.base()[parts.scheme().len()..]);
        let mut config = Self { queue_url, ..Self::default() };
        if let Some(region) = QueueUrl::parse(&config.queue_url)?.region {
            config.region = region;
        }
        query.set("region", &mut config.region)?;
        let mut visibility_timeout = None::<String>;
        query.set("visibility_timeout", &mut visibility_timeout)?;
        if let Some(text) = visibility_timeout {
            config.visibility_timeout = VisibilityTimeout::try_from(text)?;
        }
        query.set("endpoint_url", &mut config.endpoint_url)?;
        query.set("wait_time", &mut config.wait_time)?;
        query.set("fair_queues", &mut config.fair_queues)?;
        query.set("create_queue", &mut config.create_queue)?;
        query.finish()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use buqueue_core::ErrorKind;

    use super::*;

    #[test]
    fn a_url_says_every_field() {
        let url = "sqs+http://127.0.0.1:4566/000000000000/orders.fifo?region=eu-central-1&visibility_timeout=5m\
                   &endpoint_url=http://other:1&wait_time=20s&fair_queues=true&create_queue=false";
        let expected = SqsConfig {
            queue_url: "http://127.0.0.1:4566/000000000000/orders.fifo".to_owned(),
            region: "eu-central-1".to_owned(),
            visibility_timeout: VisibilityTimeout::Seconds(300),
            endpoint_url: Some("http://other:1".to_owned()),
            wait_time: Duration::from_secs(20),
            fair_queues: true,
            create_queue: false,
        };
        assert_eq!(SqsConfig::from_url(url).unwrap(), expected);
    }

    #[test]
    fn the_host_tells_the_region() {
        let region = |url: &str| SqsConfig::from_url(url).unwrap().region;
        let own = "sqs://sqs.eu-west-1.amazonaws.com/123456789012/orders";
        let expected = SqsConfig {
            queue_url: "https://sqs.eu-west-1.amazonaws.com/123456789012/orders".to_owned(),
            region: "eu-west-1".to_owned(),
            ..SqsConfig::default()
        };
        assert_eq!(SqsConfig::from_url(own).unwrap(), expected);
        assert_eq!(region("sqs+http://127.0.0.1:4566/000000000000/orders"), "us-east-1");
        // A clash is told when the queue is built.
        assert_eq!(region(&format!("{own}?region=us-east-1")), "us-east-1");
    }

    #[test]
    fn the_queue_may_say_the_lease() {
        let url = "sqs+http://h/1/orders?visibility_timeout=queue_default";
        assert_eq!(SqsConfig::from_url(url).unwrap().visibility_timeout, VisibilityTimeout::QueueDefault);
    }

    #[test]
    fn wrong_urls_name_the_fault_and_no_secret() {
        for (url, beginning) in [
            ("https://u:canary@h/1/q", "url: must begin with sqs:// or sqs+http://"),
            ("sqs://u:canary@h/1/q", "queue_url: must name a host, and no credentials"),
            ("sqs://u:can/ary@h/1/q", "url: has an `@`"),
            ("sqs://h", "queue_url: must name a queue"),
            ("sqs://h/1/", "queue_url: must end in a name"),
            ("sqs:///1/q", "queue_url: must name a host"),
            ("sqs://h/1/q?region=%zz", "region: has a `%`"),
            (
                "sqs://h/1/q?visibility_timeout=30",
                "visibility_timeout: must be queue_default, or whole seconds",
            ),
            ("sqs://h/1/q?visibility_timeout=1500ms", "visibility_timeout: must be queue_default"),
            ("sqs://h/1/q?visibility_timeout=99999d", "visibility_timeout: must be queue_default"),
            ("sqs://h/1/q?endpoint_url=%zz", "endpoint_url: has a `%`"),
            ("sqs://h/1/q?wait_time=5", "wait_time: must be a duration"),
            ("sqs://h/1/q?fair_queues=1", "fair_queues: must be true or false"),
            ("sqs://h/1/q?create_queue=no", "create_queue: must be true or false"),
            ("sqs://h/1/q?region=a&region=b", "url: the key \"region\" is there twice"),
            (
                "sqs://h/1/q?secret=canary",
                "url: unknown key \"secret\"; known are region, visibility_timeout, endpoint_url, wait_time, \
                 fair_queues, create_queue",
            ),
        ] {
            let error = SqsConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(beginning), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
