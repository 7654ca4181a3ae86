//! What the tests share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use redis::Value;

/// A name that nobody else uses.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (pid, number) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    format!("{prefix}-{:x}-{pid:x}-{number:x}", since_epoch.as_millis())
}

/// Asks the server behind the library's back.
pub(crate) async fn query(url: &str, cmd: &redis::Cmd) -> Value {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    cmd.query_async(&mut connection).await.unwrap()
}
