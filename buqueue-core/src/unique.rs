//! Ids that nobody else gives.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// An id that nobody else gives, on this machine or another: the process, its start, chance, and a number. Of lower
/// case hexadecimal digits and `-`, 64 bytes at most.
#[must_use]
pub fn unique_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<String> = LazyLock::new(|| {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        // Two containers that start together may well have the same process id.
        let chance = RandomState::new().hash_one(start);
        format!("{start:x}-{:x}-{chance:x}", std::process::id())
    });
    format!("{}-{:x}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_another() {
        let (first, second) = (unique_id(), unique_id());
        assert_ne!(first, second);
        assert!(first.len() <= 64, "{first}");
    }
}
