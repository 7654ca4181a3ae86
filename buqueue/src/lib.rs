#![doc = include_str!("../../README.md")]

pub use buqueue_core::*;

pub mod prelude;

/// The in-memory backend, for tests and small programs (feature `memory`).
#[cfg(feature = "memory")]
pub mod memory {
    pub use buqueue_memory::*;
}

/// The Redis Streams backend (feature `redis`).
#[cfg(feature = "redis")]
pub mod redis {
    pub use buqueue_redis::*;
}
