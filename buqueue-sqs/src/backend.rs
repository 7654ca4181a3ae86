//! Connecting: validation, the queue, and what can be promised.

use std::sync::Arc;
use std::time::Duration;

use buqueue_core::{BuqueueError, Capabilities, ErrorKind, Feature, Limits, QueueBuilder, Result, driver};
use tokio::time::timeout;

use crate::config::{QueueUrl, SqsConfig, SqsOptions, VisibilityTimeout};
use crate::connection::Link;
use crate::consumer::SqsConsumer;
use crate::convert::{FIFO_OVERHEAD, MAX_BYTES, OVERHEAD};
use crate::lease::Session;
use crate::producer::SqsProducer;
use crate::schedule::{HORIZON, Scheduler};
use crate::sender::Sender;
use crate::topology::{self, Standing};

/// AWS SQS.
#[derive(Debug, Clone, Copy)]
pub enum SqsBackend {}

impl SqsBackend {
    /// Starts building producers and consumers of the queue that `config` names.
    pub fn builder(config: SqsConfig) -> QueueBuilder<Self> {
        QueueBuilder::new(SqsOptions::new(config))
    }
}

impl driver::Backend for SqsBackend {
    const NAME: &'static str = "aws_sqs";
    type Config = SqsOptions;
    type Producer = SqsProducer;
    type Consumer = SqsConsumer;

    fn capabilities(options: &SqsOptions) -> Capabilities {
        let fifo = QueueUrl::parse(&options.config.queue_url).is_ok_and(|url| url.fifo);
        let overhead = if fifo { FIFO_OVERHEAD } else { OVERHEAD };
        let capabilities = Capabilities::native(Self::NAME)
            .emulated(
                Feature::ScheduledDelivery,
                "the queue's own delay up to 15 minutes; beyond, and on FIFO queues, a queue beside it, from where \
                 running consumers send on what is due",
            )
            .emulated(Feature::DeadLetters, "sent to another queue, then deleted")
            .emulated(
                Feature::DetectsLateSettle,
                "SQS may take a late settle silently; the lease is measured here, from the arrival of the message",
            )
            .unsupported(Feature::Groups, "a queue has one group of consumers")
            .with_limits(Limits {
                payload_bytes: Some(MAX_BYTES - overhead),
                schedule_horizon: Some(HORIZON),
                ..Limits::default()
            });
        if fifo {
            return capabilities;
        }
        capabilities
            .unsupported(Feature::OrderPerKey, "a standard queue does not keep the order; a FIFO queue does")
            .unsupported(Feature::Deduplication, "a standard queue does not deduplicate; a FIFO queue does")
    }

    fn destination(options: &SqsOptions) -> String {
        options.config.queue_url.clone()
    }

    fn destination_name(options: &SqsOptions) -> String {
        let url = &options.config.queue_url;
        url.rsplit('/').next().unwrap_or(url).to_owned()
    }

    fn redirect(options: &SqsOptions, destination: &str) -> SqsOptions {
        let mut redirected = options.clone();
        redirected.config.queue_url = match QueueUrl::parse(&options.config.queue_url) {
            Ok(url) => url.beside(destination),
            // Refused when it is connected.
            Err(_) => destination.to_owned(),
        };
        redirected
    }

    fn with_max_receive_count(mut options: SqsOptions, max_receive_count: u32) -> SqsOptions {
        options.max_receive_count = Some(max_receive_count);
        options
    }

    async fn connect_producer(options: &SqsOptions) -> Result<SqsProducer> {
        let (scheduler, _) = connect(options).await?;
        Ok(SqsProducer::new(scheduler))
    }

    async fn connect_consumer(options: &SqsOptions) -> Result<SqsConsumer> {
        let (scheduler, standing) = connect(options).await?;
        let seconds = match options.config.visibility_timeout {
            VisibilityTimeout::Seconds(seconds) => u64::from(seconds),
            VisibilityTimeout::QueueDefault => standing.visibility.max(1),
        };
        Ok(SqsConsumer::start(Arc::new(Session::new(scheduler, Duration::from_secs(seconds)))))
    }
}

async fn connect(options: &SqsOptions) -> Result<(Scheduler, Standing)> {
    let connecting = async {
        let link = Link::new(options).await?;
        let standing = topology::ensure_queue(&link, options).await?;
        let scheduler = Scheduler::new(Sender::new(link, options, standing), standing)?;
        Ok::<_, BuqueueError>((scheduler, standing))
    };
    match timeout(options.connection_timeout, connecting).await {
        // Nobody answers in the time that a request may take.
        Ok(Err(error)) if error.kind == ErrorKind::Timeout => {
            Err(BuqueueError::new(ErrorKind::ConnectionLost, error.message().to_owned()).with_source(error))
        }
        Ok(connected) => connected,
        Err(_) => {
            let fact = format!("SQS did not answer within {:?}", options.connection_timeout);
            Err(BuqueueError::new(ErrorKind::ConnectionLost, fact))
        }
    }
}
