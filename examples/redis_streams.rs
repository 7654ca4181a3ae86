//! A Redis stream that two instances of a service share, one of which dies in the middle of a job.
//!
//! `cargo run --features redis --example redis_streams`. `REDIS_URL` says where Redis is, `redis://127.0.0.1:6379` where it is
//! not set.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeSet;
use std::time::Duration;

use buqueue::prelude::*;
use buqueue::redis::{RedisBackend, RedisConfig};
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Thumbnail {
    picture: u32,
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let instance = |name: &str| RedisConfig {
        url: address("REDIS_URL", "redis://127.0.0.1:6379"),
        stream: fresh("thumbnails"),
        // All instances of the service are one group: each message goes to one of them.
        group: "thumbnailer".to_owned(),
        // Each instance has a name of its own, by which Redis knows what it holds. On Kubernetes: that of the pod.
        consumer: name.to_owned(),
        // How long a message may be held before it is given to somebody else. Real handlers want more.
        pending_timeout: Duration::from_secs(5),
        ..Default::default()
    };
    let (producer, mut one) = RedisBackend::builder(instance("one")).build_pair().await?;
    let mut two = RedisBackend::builder(instance("two")).build_consumer().await?;

    let messages: Result<Vec<Message>, _> =
        (0..10).map(|picture| Message::from_json(&Thumbnail { picture })).collect();
    let ids = producer.send_batch(messages?).await?;
    println!("sent {} pictures in one round trip; the first is entry {}", ids.len(), ids[0]);

    // Instance `one` takes a picture and is killed: nobody acks, nobody nacks, no destructor runs.
    let held = one.receive().await?;
    let lost: Thumbnail = held.payload_json()?;
    println!("one took picture {}, and was killed", lost.picture);
    std::mem::forget(held);
    drop(one);

    // `two` does all the rest, and, when the timeout is over, that one as well.
    let mut done = BTreeSet::new();
    while done.len() < ids.len() {
        let delivery = two.receive().await?;
        let Thumbnail { picture } = delivery.payload_json()?;
        let attempt = delivery.delivery_count();
        if picture == lost.picture {
            println!("two took picture {picture} over, attempt {attempt}");
            assert_eq!(attempt, 2, "the attempt that ended in a crash counts");
        }
        assert!(done.insert(picture), "picture {picture} was made twice");
        delivery.ack().await?;
    }

    // Entries that every group has acked are deleted: the stream does not grow.
    let left = producer.queue_stats().await?;
    assert_eq!((left.ready, left.in_flight), (0, Some(0)));
    println!(
        "✓ {} pictures made, 1 of them by the instance that survived, nothing left in the stream",
        done.len()
    );
    Ok(())
}
