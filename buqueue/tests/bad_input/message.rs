//! Messages: the same fault has the same kind on every backend.

use buqueue::QueueBuilder;
use buqueue::driver::Backend;
use buqueue::memory::{MemoryBackend, MemoryConfig};
use buqueue::nats::NatsBackend;
use buqueue::prelude::*;
use buqueue::rabbitmq::RabbitMqBackend;
use buqueue::redis::RedisBackend;

use super::nats::nats;
use super::rabbitmq::rabbitmq;
use super::redis::redis;
use super::{Answer, server};

/// Sends on every backend: the answers are alike, and the connection stays usable.
async fn send(row: &str, message: Message) -> Option<Answer> {
    let answer = send_on(MemoryBackend::builder(MemoryConfig::default()), &message).await;
    let mut others = Vec::new();
    if let Some(url) = server("BUQUEUE_TEST_REDIS") {
        others.push(send_on(RedisBackend::builder(redis(url, row)), &message).await);
    }
    if let Some(url) = server("BUQUEUE_TEST_NATS") {
        others.push(send_on(NatsBackend::builder(nats(url, row)), &message).await);
    }
    if let Some(url) = server("BUQUEUE_TEST_RABBITMQ") {
        others.push(send_on(RabbitMqBackend::builder(rabbitmq(url, row)), &message).await);
    }
    let kind = |answer: &Answer| answer.as_ref().err().map(|error| error.kind.clone());
    for other in others {
        assert_eq!(kind(&answer), kind(&other), "the same fault has the same kind on every backend");
    }
    Some(answer)
}

async fn send_on<B: Backend>(builder: QueueBuilder<B>, message: &Message) -> Answer {
    let producer = builder.build_producer().await.unwrap();
    let answer = producer.send(message.clone()).await.map(drop);
    producer.send(Message::new("good")).await.unwrap();
    answer
}

rows! {
    header_name_over_the_limit: ErrorKind::InvalidMessage, "header name & 255 bytes",
        send("long", Message::new("").with_header("n".repeat(256), "canary"));
    header_name_with_a_space: ErrorKind::InvalidMessage, "header name & visible ASCII",
        send("space", Message::new("").with_header("no good", "canary"));
    empty_header_name: ErrorKind::InvalidMessage, "header name",
        send("empty", Message::new("").with_header("", "canary"));
    reserved_header: ErrorKind::InvalidMessage, "buqueue-dlq-reason & reserved",
        send("reserved", Message::new("").with_header("buqueue-dlq-reason", "canary"));
    payload_that_is_no_json: ErrorKind::Serialization, "payload from JSON & line 1 column", async {
        Some(Message::new("canary").payload_json::<Vec<u8>>().map(drop))
    };
    value_that_json_cannot_hold: ErrorKind::Serialization, "payload to JSON", async {
        let keyed_by_a_list: std::collections::BTreeMap<Vec<u8>, u8> = [(vec![1], 1)].into();
        Some(Message::from_json(&keyed_by_a_list).map(drop))
    };

}
