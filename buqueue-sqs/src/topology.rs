//! The queue: verified, or created where there is none.

use std::collections::HashMap;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use buqueue_core::{BuqueueError, ErrorKind, Result};
use serde_json::Value;

use crate::config::{QueueUrl, SqsOptions, invalid};
use crate::connection::Link;
use crate::convert::MAX_BYTES;
use crate::error;

/// The longest that SQS keeps messages, in seconds.
const RETENTION: &str = "1209600";

/// What a queue says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The largest message, in bytes.
    pub(crate) max_bytes: usize,
    /// How long a received message is hidden, where the receive does not say, in seconds.
    pub(crate) visibility: u64,
}

/// Looks at the queue, and creates it where there is none and that is wanted.
pub(crate) async fn ensure_queue(link: &Link, options: &SqsOptions) -> Result<Standing> {
    let all = [Attribute::All];
    let attributes = match attributes(link, &all).await {
        Err(error) if error.kind == ErrorKind::NotFound && options.config.create_queue => {
            create(link).await?;
            attributes_of_new(link, &all).await?
        }
        looked => looked?,
    };
    if let Some(attempts) = options.max_receive_count {
        verify_redrive(&attributes, attempts)?;
    }
    let number = |name: Attribute| attributes.get(&name).and_then(|text| text.parse().ok());
    Ok(Standing {
        max_bytes: number(Attribute::MaximumMessageSize)
            .and_then(|size: u64| usize::try_from(size).ok())
            .unwrap_or(MAX_BYTES),
        visibility: number(Attribute::VisibilityTimeout).unwrap_or(30),
    })
}

/// It is there, and not all of SQS knows it yet.
pub(crate) fn not_yet(error: BuqueueError) -> BuqueueError {
    match error.kind {
        ErrorKind::NotFound => {
            BuqueueError::new(ErrorKind::Throttled, "the queue was created this moment").with_source(error)
        }
        _ => error,
    }
}

/// A redrive policy of the queue's own moves messages without a word about why; it must come after our verdict.
fn verify_redrive(attributes: &HashMap<Attribute, String>, attempts: u32) -> Result<()> {
    let policy =
        attributes.get(&Attribute::RedrivePolicy).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let count = policy.as_ref().and_then(|policy| policy.get("maxReceiveCount"));
    // Some write it as text.
    let count = count.and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()));
    match count {
        Some(count) if count <= u64::from(attempts) => Err(invalid(format!(
            "dead_letter_queue.max_receive_count: is {attempts}, and the queue's own redrive policy moves messages \
             after {count} receives; that must be more"
        ))),
        _ => Ok(()),
    }
}

/// What the queue says about itself. `NotFound`: there is none.
pub(crate) async fn attributes(link: &Link, names: &[Attribute]) -> Result<HashMap<Attribute, String>> {
    let asking = link.client.get_queue_attributes().queue_url(&link.queue.whole);
    match asking.set_attribute_names(Some(names.to_vec())).send().await {
        Ok(answer) => Ok(answer.attributes.unwrap_or_default()),
        Err(refused) => {
            let mut refused = error::from_sdk("GetQueueAttributes", refused);
            if refused.kind == ErrorKind::NotFound {
                let fact = format!("queue_url: there is no queue {:?}", link.queue.whole);
                refused = BuqueueError::new(ErrorKind::NotFound, fact).with_source(refused);
            }
            Err(refused)
        }
    }
}

/// It may take a second until all of SQS knows a new queue.
async fn attributes_of_new(link: &Link, names: &[Attribute]) -> Result<HashMap<Attribute, String>> {
    match attributes(link, names).await {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(HashMap::new()),
        looked => looked,
    }
}

async fn create(link: &Link) -> Result<()> {
    let queue = &link.queue;
    let mut creating = link
        .client
        .create_queue()
        .queue_name(&queue.name)
        .attributes(Attribute::MessageRetentionPeriod, RETENTION);
    if queue.fifo {
        creating = creating.attributes(Attribute::FifoQueue, "true");
    }
    let created = creating.send().await.map_err(|error| error::from_sdk("CreateQueue", error))?;
    let url = created.queue_url().unwrap_or_default();
    // The host may have another name; the account is what counts.
    let same = QueueUrl::parse(url).is_ok_and(|created| created.path() == queue.path());
    if same {
        return Ok(());
    }
    let fact =
        format!("queue_url: there is no queue {:?}, and one that is created here is {url:?}", queue.whole);
    Err(BuqueueError::new(ErrorKind::NotFound, fact))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_comes_first_is_refused() {
        let policy = |count: &str| {
            let text =
                format!("{{\"deadLetterTargetArn\":\"arn:aws:sqs:r:1:d\",\"maxReceiveCount\":{count}}}");
            HashMap::from([(Attribute::RedrivePolicy, text)])
        };
        assert!(verify_redrive(&HashMap::new(), 3).is_ok());
        assert!(verify_redrive(&policy("4"), 3).is_ok());
        assert!(verify_redrive(&policy("\"4\""), 3).is_ok());
        for count in ["3", "1", "\"3\""] {
            let error = verify_redrive(&policy(count), 3).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().contains("is 3"), "{error}");
        }
    }
}
