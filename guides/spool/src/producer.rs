use std::sync::Arc;

use buqueue_core::driver::Producer;
use buqueue_core::{BuqueueError, ErrorKind, Message, MessageId, QueueStats, Result};
use chrono::{DateTime, Utc};

use crate::convert;
use crate::error::blocking;
use crate::spool::Spool;
use crate::state::{Micros, due};

/// Sends to one queue.
#[derive(Debug)]
pub struct SpoolProducer {
    spool: Arc<Spool>,
}

impl SpoolProducer {
    pub(crate) fn new(spool: Arc<Spool>) -> Self {
        Self { spool }
    }

    async fn publish(&self, messages: Vec<Message>, due: Micros) -> Result<Vec<Result<MessageId>>> {
        let spool = Arc::clone(&self.spool);
        blocking(move || Ok(publish(&spool, &messages, due))).await
    }
}

/// Write, sync, rename, and once for all of them: sync the directory.
fn publish(spool: &Spool, messages: &[Message], due: Micros) -> Vec<Result<MessageId>> {
    let drafts: Vec<_> = messages.iter().map(|message| spool.draft(&convert::to_bytes(message)?)).collect();
    let submitted = drafts.into_iter().map(|draft| {
        let state = spool.submit(&draft?, due)?;
        Ok(MessageId::from(state.id))
    });
    let outcomes = submitted.collect();
    match spool.sync() {
        Ok(()) => outcomes,
        // Whether they are there after a power loss is open, so none of them is `Ok`.
        Err(error) => {
            outcomes.into_iter().map(|outcome: Result<_>| outcome.and(Err(error.again()))).collect()
        }
    }
}

impl Producer for SpoolProducer {
    async fn send(&self, message: Message) -> Result<MessageId> {
        one(self.publish(vec![message], 0).await?)
    }

    async fn send_at(&self, message: Message, deliver_at: DateTime<Utc>) -> Result<MessageId> {
        one(self.publish(vec![message], due(deliver_at)).await?)
    }

    async fn send_batch(&self, messages: Vec<Message>) -> Vec<Result<MessageId>> {
        let count = messages.len();
        match self.publish(messages, 0).await {
            Ok(outcomes) => outcomes,
            Err(error) => (0..count).map(|_| Err(error.again())).collect(),
        }
    }

    async fn queue_stats(&self) -> Result<QueueStats> {
        let spool = Arc::clone(&self.spool);
        blocking(move || spool.stats()).await
    }
}

fn one(outcomes: Vec<Result<MessageId>>) -> Result<MessageId> {
    let lost = || Err(BuqueueError::new(ErrorKind::ConnectionLost, "no outcome"));
    outcomes.into_iter().next().unwrap_or_else(lost)
}
