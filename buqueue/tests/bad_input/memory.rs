//! The in-memory backend, and what is the same on every backend because core answers it.

use std::time::Duration;

use buqueue::memory::{MemoryBackend, MemoryConfig};
use buqueue::prelude::*;

use super::Answer;

async fn build_memory(config: MemoryConfig, dlq: Option<DlqConfig>) -> Option<Answer> {
    let builder = MemoryBackend::builder(config);
    let builder = match dlq {
        Some(dlq) => builder.dead_letter_queue(dlq),
        None => builder,
    };
    Some(builder.build_pair().await.map(drop))
}

rows! {
    zero_batch: ErrorKind::InvalidConfig, "max & at least 1", async {
        let mut consumer = MemoryBackend::builder(MemoryConfig::default()).build_consumer().await.unwrap();
        Some(consumer.receive_batch(0).await.map(drop))
    };
    dead_letter_queue_is_the_queue_itself: ErrorKind::InvalidConfig,
        "dead_letter_queue.destination & must differ",
        build_memory(
            MemoryConfig::default(),
            Some(DlqConfig { destination: "queue".to_owned(), max_receive_count: 3 }),
        );
    no_attempts_allowed: ErrorKind::InvalidConfig, "dead_letter_queue.max_receive_count & at least 1",
        build_memory(
            MemoryConfig::default(),
            Some(DlqConfig { destination: "dead".to_owned(), max_receive_count: 0 }),
        );
    dead_letter_without_a_queue: ErrorKind::Unsupported, "no dead letter queue", async {
        let (producer, mut consumer) =
            MemoryBackend::builder(MemoryConfig::default()).build_pair().await.unwrap();
        producer.send(Message::new("")).await.unwrap();
        Some(consumer.receive().await.unwrap().dead_letter("canary").await)
    };
    empty_memory_queue_name: ErrorKind::InvalidConfig, "queue & must not be empty",
        build_memory(MemoryConfig { queue: String::new(), ..Default::default() }, None);
    zero_capacity: ErrorKind::InvalidConfig, "capacity & at least 1",
        build_memory(MemoryConfig { capacity: 0, ..Default::default() }, None);
    zero_lease: ErrorKind::InvalidConfig, "lease & 1 ms",
        build_memory(MemoryConfig { lease: Duration::ZERO, ..Default::default() }, None);
    clash_with_an_existing_queue: ErrorKind::InvalidConfig, "capacity & asked for 7 & has 1048576", async {
        let config = MemoryConfig::default();
        let _open = MemoryBackend::builder(config.clone()).build_producer().await.unwrap();
        build_memory(MemoryConfig { capacity: 7, ..config }, None).await
    };
}
