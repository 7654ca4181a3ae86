//! What is told of what happens by itself.

use buqueue_core::driver::{self, Activity, Backend};

use crate::NatsBackend;

/// Tells what happens to messages of one queue.
pub(crate) fn tell(queue: &str, activity: Activity<'_>) {
    driver::tell(NatsBackend::NAME, queue, activity);
}
