use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use buqueue_core::{BuqueueError, ErrorKind, Result};

use crate::MemoryConfig;
use crate::queue::Queue;

/// The queues of one or more [`MemoryConfig`]s. Cheap to clone; clones are the same broker, and only they compare
/// equal.
#[derive(Clone, Default)]
pub struct MemoryBroker {
    queues: Arc<Mutex<HashMap<String, Arc<Queue>>>>,
}

impl MemoryBroker {
    /// The queue that the config names, created by whoever comes first.
    pub(crate) fn open(&self, config: &MemoryConfig) -> Result<Arc<Queue>> {
        config.validate()?;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = queues.get(&config.queue) else {
            let queue = Queue::new(config.queue.clone(), config.capacity, config.deduplication_window);
            let queue = Arc::new(queue);
            queues.insert(config.queue.clone(), Arc::clone(&queue));
            return Ok(queue);
        };
        let fact = if queue.capacity() != config.capacity {
            format!("capacity: asked for {}, the queue has {}", config.capacity, queue.capacity())
        } else if queue.deduplication_window() != config.deduplication_window {
            format!(
                "deduplication_window: asked for {:?}, the queue has {:?}",
                config.deduplication_window,
                queue.deduplication_window()
            )
        } else {
            return Ok(Arc::clone(queue));
        };
        Err(BuqueueError::new(ErrorKind::InvalidConfig, format!("queue {:?}: {fact}", config.queue)))
    }
}

impl PartialEq for MemoryBroker {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.queues, &other.queues)
    }
}

impl Eq for MemoryBroker {}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("MemoryBroker").field("queues", &queues.keys().collect::<Vec<_>>()).finish()
    }
}
