//! What only Kafka has: partitions that move, logs with gaps, commits with metadata, encryption and SASL.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says so"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use buqueue_core::{Delivery, ErrorKind, Message, QueueBuilder};
use buqueue_kafka::{
    KafkaBackend, KafkaBuilderExt, KafkaConfig, KafkaSasl, KafkaSecurity, KafkaTls, OffsetReset,
    SaslMechanism,
};
use chrono::{TimeDelta, Utc};
use opentelemetry::baggage::BaggageExt as _;
use opentelemetry::trace::{
    FutureExt as _, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

type Consumer = buqueue_core::Consumer<KafkaBackend>;

const SOON: Duration = Duration::from_secs(20);
/// Longer than a loaded machine stands still.
const SESSION: Duration = Duration::from_secs(6);
const GROUP: &str = "workers";

/// Where a broker is; without it the test is skipped loudly, or fails where brokers are required.
fn endpoint(variable: &str) -> Option<String> {
    let endpoint = std::env::var(variable).ok();
    if endpoint.is_none() {
        assert_ne!(std::env::var("BUQUEUE_TEST_REQUIRE").as_deref(), Ok("1"), "{variable} is not set");
        println!("SKIPPED: {variable} is not set");
    }
    endpoint
}

fn config(brokers: &str, name: &str) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers.split(',').map(str::to_owned).collect(),
        topic: format!("t-{name}-{}-{}", std::process::id(), Utc::now().timestamp_micros()),
        group_id: GROUP.to_owned(),
        partitions: 1,
        ..KafkaConfig::default()
    }
}

fn builder(config: &KafkaConfig) -> QueueBuilder<KafkaBackend> {
    // A broker that has just started takes long for its first groups on a loaded machine.
    KafkaBackend::builder(config.clone()).connection_timeout(Duration::from_secs(18)).session_timeout(SESSION)
}

fn client(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", config.brokers.join(","));
    client
}

fn admin(config: &KafkaConfig) -> AdminClient<DefaultClientContext> {
    client(config).create().unwrap()
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.unwrap()
}

async fn receive(consumer: &mut Consumer) -> Delivery {
    within(consumer.receive()).await.unwrap()
}

async fn nothing_for(wait: Duration, consumer: &mut Consumer) {
    if let Ok(delivery) = tokio::time::timeout(wait, consumer.receive()).await {
        panic!("received {:?}", text(&delivery.unwrap()));
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}

/// By partition: what is committed, and where the log ends.
fn committed(config: &KafkaConfig) -> Vec<(Option<i64>, i64)> {
    let mut own = client(config);
    let consumer: BaseConsumer = own.set("group.id", &config.group_id).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(&config.topic), SOON).unwrap();
    let count = i32::try_from(metadata.topics()[0].partitions().len()).unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_range(&config.topic, 0, count - 1);
    let found = consumer.committed_offsets(all, SOON).unwrap();
    let of = |partition: i32| match found.find_partition(&config.topic, partition).unwrap().offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    let deadline = Instant::now() + SOON;
    let end = |partition| loop {
        match consumer.fetch_watermarks(&config.topic, partition, SOON) {
            Ok((_, end)) => return end,
            // A new partition has no leader for a moment.
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (0..count).map(|partition| (of(partition), end(partition))).collect()
}

async fn until(what: &str, mut met: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !met().await {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn there_and_back(config: &KafkaConfig) {
    let (producer, mut consumer) = builder(config).build_pair().await.unwrap();
    producer.send(Message::new("now")).await.unwrap();
    producer.send_at(Message::new("later"), Utc::now() + TimeDelta::milliseconds(500)).await.unwrap();
    for expected in ["now", "later"] {
        let delivery = receive(&mut consumer).await;
        assert_eq!(text(&delivery), expected);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn tls_is_used_and_the_authority_is_checked() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA_TLS") else { return };
    let Some(authority) = endpoint("BUQUEUE_TEST_KAFKA_TLS_CA") else { return };
    let mut config = config(&brokers, "tls");
    config.security.tls = Some(KafkaTls { ca_file: Some(authority), ..KafkaTls::default() });
    there_and_back(&config).await;
    config.security.tls = Some(KafkaTls::default());
    let error = builder(&config).build_producer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error}");
}

/// Who shows his certificate is let in, and who has none is told so.
#[tokio::test]
async fn a_client_certificate_is_shown() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA_MTLS") else { return };
    let Some(authority) = endpoint("BUQUEUE_TEST_KAFKA_TLS_CA") else { return };
    let Some(certificate) = endpoint("BUQUEUE_TEST_KAFKA_TLS_CLIENT_CERT") else { return };
    let Some(key) = endpoint("BUQUEUE_TEST_KAFKA_TLS_CLIENT_KEY") else { return };
    let mut config = config(&brokers, "mtls");
    let mut shows = |files: Option<(&String, &String)>| {
        let certificate_and_key_files = files.map(|(certificate, key)| (certificate.clone(), key.clone()));
        config.security.tls = Some(KafkaTls { ca_file: Some(authority.clone()), certificate_and_key_files });
        config.clone()
    };
    there_and_back(&shows(Some((&certificate, &key)))).await;
    let file = |name: &str| std::path::Path::new(&authority).with_file_name(name).display().to_string();
    let unknown = shows(None);
    let stranger = shows(Some((&file("stranger.crt"), &file("stranger.key"))));
    for error in [
        within(builder(&unknown).build_producer()).await.map(drop).unwrap_err(),
        within(builder(&unknown).build_consumer()).await.map(drop).unwrap_err(),
        within(builder(&stranger).build_producer()).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
        assert!(error.message().starts_with("security.tls.certificate_and_key_files: "), "{error}");
    }
    // Files that do not belong together, and no key.
    for files in [(&authority, &key), (&certificate, &certificate)] {
        let error = within(builder(&shows(Some(files))).build_producer()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
        assert!(error.message().starts_with("security.tls.certificate_and_key_files: "), "{error}");
    }
}

/// A file of no use is told by its field, before anything is connected, and nothing of what it says.
#[tokio::test]
async fn a_file_without_a_certificate_is_told_by_its_field() {
    let name = format!("broken-{}-{}.pem", std::process::id(), Utc::now().timestamp_micros());
    let broken = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&broken, "-----BEGIN CERTIFICATE canary\n").unwrap();
    let none = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for file in ["/nowhere/file.pem", none, broken.to_str().unwrap()].map(str::to_owned) {
        let client = Some((file.clone(), file.clone()));
        let ca_file = KafkaTls { ca_file: Some(file), ..KafkaTls::default() };
        let client_files = KafkaTls { certificate_and_key_files: client, ..KafkaTls::default() };
        for (tls, field) in
            [(ca_file, "security.tls.ca_file: "), (client_files, "security.tls.certificate_and_key_files: ")]
        {
            let mut config = config("127.0.0.1:1", "file");
            config.security.tls = Some(tls);
            let error = within(builder(&config).build_producer()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
            assert!(error.message().starts_with(field), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn every_mechanism_of_sasl_works() {
    let Some(url) = endpoint("BUQUEUE_TEST_KAFKA_SASL") else { return };
    let (credentials, brokers) = url.split_once('@').unwrap();
    let (username, password) = credentials.split_once(':').unwrap();
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
        let (username, password) = (username.to_owned(), password.to_owned());
        let sasl = Some(KafkaSasl { mechanism, username, password });
        let security = KafkaSecurity { tls: None, sasl };
        there_and_back(&KafkaConfig { security, ..config(brokers, "sasl") }).await;
    }
}

#[tokio::test]
async fn what_is_sent_to_new_partitions_is_received() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    // With the default start, which is the next message.
    let config = config(&brokers, "partitions");
    let (producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    producer.send(Message::new("before")).await.unwrap();
    receive(&mut consumer).await.ack().await.unwrap();
    admin(&config)
        .create_partitions(&[NewPartitions::new(&config.topic, 4)], &AdminOptions::new())
        .await
        .unwrap();
    // Long before the consumer learns of them.
    let raw: BaseProducer = client(&config).create().unwrap();
    until("records in the new partitions", async || {
        let ends = committed(&config);
        for (partition, (_, end)) in (0_i32..).zip(&ends).skip(1).filter(|(_, (_, end))| *end == 0) {
            let (payload, _) = (format!("{partition}"), end);
            let record = BaseRecord::<[u8], str>::to(&config.topic).partition(partition).payload(&payload);
            raw.send(record).map_err(|(error, _)| error).unwrap();
            raw.flush(SOON).unwrap();
        }
        ends.len() == 4 && ends.iter().all(|(_, end)| *end > 0)
    })
    .await;
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        let delivery = receive(&mut consumer).await;
        assert!(seen.insert(text(&delivery)), "each once");
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_done_above_a_slow_message_does_not_come_again() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = config(&brokers, "holes");
    let (producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    producer.send_batch((0..10).map(|n| Message::new(n.to_string())).collect()).await.unwrap();
    let mut open = Vec::new();
    for number in 0..10 {
        let delivery = receive(&mut consumer).await;
        if number % 2 == 0 {
            delivery.ack().await.unwrap();
        } else {
            open.push(delivery);
        }
    }
    drop(consumer);
    // Given back while the consumer is a member still: counted, and committed.
    drop(open);
    let mut second = builder(&config).build_consumer().await.unwrap();
    for number in [1, 3, 5, 7, 9] {
        let delivery = receive(&mut second).await;
        assert_eq!((text(&delivery), delivery.delivery_count()), (number.to_string(), 2));
        delivery.ack().await.unwrap();
    }
    nothing_for(Duration::from_millis(300), &mut second).await;
    until("no lag", async || committed(&config).iter().all(|(done, end)| *done == Some(*end))).await;
}

#[tokio::test]
async fn a_compacted_topic_holds_nothing_up() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = KafkaConfig { offset_reset: OffsetReset::Earliest, ..config(&brokers, "compacted") };
    let topic = NewTopic::new(&config.topic, 1, TopicReplication::Fixed(1))
        .set("cleanup.policy", "compact")
        .set("min.cleanable.dirty.ratio", "0.001")
        .set("segment.bytes", "1048576")
        .set("segment.ms", "50")
        .set("delete.retention.ms", "0");
    admin(&config).create_topics([&topic], &AdminOptions::new()).await.unwrap();
    let raw: BaseProducer = client(&config).create().unwrap();
    let mut sent = 0_i64;
    let send = |key: &str, number: i64| {
        let payload = number.to_string();
        raw.send(BaseRecord::to(&config.topic).key(key).payload(&payload))
            .map_err(|(error, _)| error)
            .unwrap();
        raw.flush(SOON).unwrap();
    };
    // The same keys again and again, with segments that end soon: until some records are gone.
    let mut own = client(&config);
    own.set("group.id", "reader").set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
    until("compaction", async || {
        for key in ["a", "b", "c"] {
            send(key, sent);
            sent += 1;
        }
        let reader: BaseConsumer = own.create().unwrap();
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&config.topic, 0, Offset::Beginning).unwrap();
        reader.assign(&place).unwrap();
        let mut count = 0;
        while let Some(Ok(_)) = reader.poll(Duration::from_secs(5)) {
            count += 1;
        }
        sent - count > 6
    })
    .await;
    let (_producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    let last = (sent - 1).to_string();
    // Out of order, around the holes.
    let mut held = Vec::new();
    loop {
        let delivery = receive(&mut consumer).await;
        let is_last = text(&delivery) == last;
        held.push(delivery);
        if is_last {
            break;
        }
    }
    assert!(i64::try_from(held.len()).unwrap() < sent, "there were no holes");
    while let Some(delivery) = held.pop() {
        delivery.ack().await.unwrap();
    }
    until("no lag", async || committed(&config) == [(Some(sent), sent)]).await;
}

#[tokio::test]
async fn transactions_of_others_are_read_when_they_are_committed() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = config(&brokers, "transactions");
    let (producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    let mut own = client(&config);
    let raw: BaseProducer = own.set("transactional.id", &config.topic).create().unwrap();
    raw.init_transactions(SOON).unwrap();
    let send = |payload: &str| {
        raw.begin_transaction().unwrap();
        raw.send(BaseRecord::<[u8], str>::to(&config.topic).payload(payload))
            .map_err(|(error, _)| error)
            .unwrap();
        raw.flush(SOON).unwrap();
    };
    for round in 0..5 {
        send(&format!("committed {round}"));
        raw.commit_transaction(SOON).unwrap();
        send(&format!("aborted {round}"));
        raw.abort_transaction(SOON).unwrap();
    }
    // A broker writes the end of a transaction after it has answered; behind the last record it would look like lag.
    until("the ends of transactions are written", async || committed(&config)[0].1 == 20).await;
    producer.send(Message::new("last")).await.unwrap();
    let expected: Vec<String> =
        (0..5).map(|round| format!("committed {round}")).chain(["last".to_owned()]).collect();
    let mut held = Vec::new();
    for expected in &expected {
        let delivery = receive(&mut consumer).await;
        assert_eq!(text(&delivery), *expected);
        held.push(delivery);
    }
    while let Some(delivery) = held.pop() {
        delivery.ack().await.unwrap();
    }
    until("no lag", async || committed(&config).iter().all(|(done, end)| *done == Some(*end))).await;
}

/// The client's `max.poll.interval.ms` is as long as the session.
#[tokio::test]
async fn a_handler_may_take_longer_than_the_poll_interval() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = config(&brokers, "slow");
    let (producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    producer.send(Message::new("slow")).await.unwrap();
    let delivery = receive(&mut consumer).await;
    nothing_for(SESSION + Duration::from_secs(3), &mut consumer).await;
    producer.send(Message::new("next")).await.unwrap();
    let next = receive(&mut consumer).await;
    assert_eq!((text(&next), next.delivery_count()), ("next".to_owned(), 1));
    delivery.ack().await.unwrap();
    next.ack().await.unwrap();
    until("no lag", async || committed(&config).iter().all(|(done, end)| *done == Some(*end))).await;
}

#[tokio::test]
async fn who_loses_a_partition_can_no_longer_settle() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = KafkaConfig { partitions: 4, ..config(&brokers, "moved") };
    let (producer, mut first) = builder(&config).build_pair().await.unwrap();
    for number in 0..20 {
        producer.send(Message::new("m").with_routing_key(number.to_string())).await.unwrap();
    }
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(receive(&mut first).await);
    }
    // Some of the partitions go to the second.
    let mut second = builder(&config).build_consumer().await.unwrap();
    let again = receive(&mut second).await;
    assert_eq!(again.delivery_count(), 2);
    again.ack().await.unwrap();
    let (mut ours, mut lost) = (0, 0);
    for delivery in held {
        match delivery.ack().await {
            Ok(()) => ours += 1,
            Err(error) if error.kind == ErrorKind::LeaseExpired => lost += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(ours > 0 && lost > 0, "{ours} ours, {lost} lost");
    for _ in 1..lost {
        receive(&mut second).await.ack().await.unwrap();
    }
    until("no lag", async || committed(&config).iter().all(|(done, end)| *done == Some(*end))).await;
}

/// With the brokers' week of retention, what waits longer would be lost.
#[tokio::test]
async fn a_delay_topic_that_forgets_is_refused() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = config(&brokers, "forgets");
    let name = format!("{}-buqueue-delay", config.topic);
    let topic = NewTopic::new(&name, 15, TopicReplication::Fixed(1)).set("retention.ms", "604800000");
    for created in admin(&config).create_topics(&[topic], &AdminOptions::new()).await.unwrap() {
        created.unwrap();
    }
    let error = builder(&config).build_consumer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig);
    assert!(error.message().contains("retention.ms=604800000"), "{error}");
}

#[tokio::test]
async fn what_its_topic_does_not_take_any_more_holds_up_no_other() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = config(&brokers, "shrunk");
    let (producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    let due = Utc::now() + TimeDelta::seconds(2);
    producer.send_at(Message::new(vec![0; 100_000]), due).await.unwrap();
    let smaller = AlterConfig::new(ResourceSpecifier::Topic(&config.topic)).set("max.message.bytes", "10000");
    for altered in admin(&config).alter_configs(&[smaller], &AdminOptions::new()).await.unwrap() {
        altered.unwrap();
    }
    for number in 0..20 {
        let at = due + TimeDelta::milliseconds(100 * (number - 5));
        producer.send_at(Message::new(number.to_string()), at).await.unwrap();
    }
    let mut received = BTreeSet::new();
    while received.len() < 20 {
        let delivery = receive(&mut consumer).await;
        received.insert(text(&delivery));
        delivery.ack().await.unwrap();
    }
}

/// Nobody waits for the session of one that has said goodbye.
#[tokio::test]
async fn who_closes_hands_over_the_schedules() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = KafkaConfig { partitions: 2, ..config(&brokers, "handover") };
    let builder = || builder(&config).session_timeout(Duration::from_secs(15));
    let (producer, first) = builder().build_pair().await.unwrap();
    let mut second = builder().build_consumer().await.unwrap();
    // Declares what schedules need, and shows who sends on.
    producer.send_at(Message::new("a"), Utc::now() + TimeDelta::milliseconds(300)).await.unwrap();
    first.shutdown_handle().shutdown().await;
    drop(first);
    producer.send_at(Message::new("b"), Utc::now() + TimeDelta::milliseconds(300)).await.unwrap();
    let mut received = BTreeSet::new();
    let deadline = Instant::now() + Duration::from_secs(14);
    while received.len() < 2 {
        let delivery = tokio::time::timeout_at(deadline, second.receive()).await.unwrap().unwrap();
        received.insert(text(&delivery));
        delivery.ack().await.unwrap();
    }
}

// Members that come, go, and are killed.

const MEMBER: &str = "BUQUEUE_KAFKA_TEST_MEMBER";
const MARK: &str = "member: ";

/// Not a test by itself: a process of `members_come_go_and_are_killed`. Acks out of order, nacks now and then, says what it
/// has acked.
#[tokio::test]
async fn member_process() {
    let Ok(told) = std::env::var(MEMBER) else { return };
    let (brokers, topic) = told.split_once(' ').unwrap();
    let config = KafkaConfig { topic: topic.to_owned(), partitions: 12, ..config(brokers, "") };
    // The others wait so long for the partitions of one that was killed.
    let builder = builder(&config).session_timeout(Duration::from_secs(2));
    let mut consumer = builder.build_consumer().await.unwrap();
    println!("{MARK}ready");
    let (mut held, mut random) = (Vec::new(), u64::from(std::process::id()) | 1);
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    loop {
        let mut said = String::new();
        match tokio::time::timeout(Duration::from_millis(300), consumer.receive_batch(50)).await {
            Ok(batch) => {
                let (batch, now) = (batch.unwrap(), Utc::now().timestamp_millis());
                for delivery in &batch {
                    said.push_str(&format!("{MARK}got {now} {}\n", delivery.message_id()));
                }
                print!("{said}");
                held.extend(batch);
            }
            // Nothing comes any more: what is held is settled.
            Err(_) if held.is_empty() => continue,
            Err(_) => {}
        }
        let keep = usize::try_from(below(100)).unwrap();
        said.clear();
        while held.len() > keep.min(held.len().saturating_sub(1)) {
            let at = usize::try_from(below(held.len() as u64)).unwrap();
            let delivery: Delivery = held.swap_remove(at);
            let line = format!("acked {}", text(&delivery));
            if below(200) == 0 {
                // A partition that has moved meanwhile has taken it along.
                drop(delivery.nack().await);
            } else if delivery.ack().await.is_ok() {
                said.push_str(&format!("{MARK}{line}\n"));
            }
        }
        print!("{said}");
    }
}

struct Member(Child);

impl Member {
    /// Says what the process says, and which one it was.
    fn start(brokers: &str, topic: &str, number: usize, said: &UnboundedSender<(usize, String)>) -> Self {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "member_process", "--nocapture", "--test-threads=1"]);
        let child =
            command.env(MEMBER, format!("{brokers} {topic}")).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = child.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = said.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, words)) = line.split_once(MARK) {
                    drop(said.send((number, words.to_owned())));
                }
            }
        });
        Self(child)
    }
}

/// What the members have said.
#[derive(Default)]
struct Said {
    /// How often each message was acked.
    acked: BTreeMap<usize, u32>,
    /// When each record was received first, in milliseconds, by which member, and after how many others of its own.
    received: BTreeMap<(u32, u64), (i64, usize, u64)>,
    count: u64,
}

impl Said {
    fn hear(&mut self, member: usize, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        match words[..] {
            ["acked", number] => *self.acked.entry(number.parse().unwrap()).or_default() += 1,
            ["got", at, id] => {
                let (partition, offset) = id.split_once('-').unwrap();
                self.count += 1;
                let first = (at.parse().unwrap(), member, self.count);
                let place = (partition.parse().unwrap(), offset.parse().unwrap());
                let known = self.received.entry(place).or_insert(first);
                *known = (*known).min(first);
            }
            _ => {}
        }
    }

    /// The first time each record of a partition is received, those before it have been: strictly at one member, and as far
    /// as the clocks of two processes tell at two.
    fn check_order(&self) {
        const APART: i64 = 500;
        let mut latest = BTreeMap::<u32, i64>::new();
        let mut own = BTreeMap::<(u32, usize), u64>::new();
        for (&(partition, offset), &(at, member, count)) in &self.received {
            let latest = latest.entry(partition).or_insert(at);
            assert!(at + APART >= *latest, "{partition}-{offset} came {} ms after a later one", *latest - at);
            *latest = at.max(*latest);
            let before = own.insert((partition, member), count);
            assert!(before < Some(count), "{partition}-{offset} came after a later one at member {member}");
        }
    }
}

/// Twelve partitions, members that join, leave by dying, and are killed every few seconds; on the cluster
/// (`BUQUEUE_TEST_KAFKA_CLUSTER`) its nodes, too. Nothing is lost, everything is received in order, and in the end nothing is
/// left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_go_and_are_killed() {
    const KEYS: usize = 100;
    let cluster = std::env::var("BUQUEUE_TEST_KAFKA_CLUSTER").ok();
    let Some(brokers) = cluster.clone().or_else(|| endpoint("BUQUEUE_TEST_KAFKA")) else { return };
    let (messages, faults): (usize, usize) = if cluster.is_some() { (100_000, 24) } else { (30_000, 8) };
    let config = KafkaConfig { partitions: 12, ..config(&brokers, "chaos") };
    let (producer, first) = builder(&config).build_pair().await.unwrap();
    drop(first);
    let (says, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let mut members: Vec<Member> =
        (0..3).map(|number| Member::start(&brokers, &config.topic, number, &says)).collect();
    let sending = tokio::spawn(async move {
        for chunk in (0..messages).collect::<Vec<_>>().chunks(100) {
            let mut open: Vec<Message> = chunk
                .iter()
                .map(|n| Message::new(n.to_string()).with_routing_key(format!("key-{}", n % KEYS)))
                .collect();
            while !open.is_empty() {
                let Err(error) = producer.send_batch(open.clone()).await else { break };
                let mut outcomes = error.outcomes().iter();
                open.retain(|_| outcomes.next().is_none_or(|outcome| outcome.is_err()));
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    });
    let mut said = Said::default();
    let (mut kills, mut restarts) = (0, Vec::new());
    let mut next_kill = Instant::now() + Duration::from_secs(2);
    let deadline = Instant::now() + Duration::from_secs(if cluster.is_some() { 300 } else { 100 });
    while said.acked.len() < messages {
        assert!(Instant::now() < deadline, "{} of {messages} handled, {kills} kills", said.acked.len());
        if let Ok(words) = tokio::time::timeout_at(next_kill, hears.recv()).await {
            let (member, words) = words.unwrap();
            said.hear(member, &words);
            continue;
        }
        next_kill = Instant::now() + Duration::from_secs(if cluster.is_some() { 4 } else { 2 });
        if kills < faults {
            kills += 1;
            members.remove(0).0.kill().await.unwrap();
            members.push(Member::start(&brokers, &config.topic, 2 * kills + 1, &says));
            // Now and then one more, and one that only comes for a while.
            if kills % 3 == 0 {
                members.push(Member::start(&brokers, &config.topic, 2 * kills + 2, &says));
            } else if kills % 3 == 1 && members.len() > 3 {
                members.pop().unwrap().0.kill().await.unwrap();
            }
            if cluster.is_some() && kills % 5 == 2 {
                // The node that leads the first partition.
                restarts.push(tokio::spawn(restart_leader(config.clone())));
            }
        }
    }
    sending.await.unwrap();
    let nodes = restarts.len();
    for restart in restarts {
        restart.await.unwrap();
    }
    until("no lag", async || committed(&config).iter().all(|(done, end)| *done == Some(*end))).await;
    said.check_order();
    let duplicates: u32 = said.acked.values().map(|times| times - 1).sum();
    println!(
        "measured kafka members_come_go_and_are_killed: {messages} handled, {kills} kills, {nodes} leaders restarted, \
         lost 0, {duplicates} twice, {} records in order",
        said.received.len()
    );
}

/// `kill -9` of the node that leads the first partition, and up again.
async fn restart_leader(config: KafkaConfig) {
    let program = std::env::var("BUQUEUE_XTASK").unwrap();
    let topic = config.topic.clone();
    let leader = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client(&config).create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), SOON).unwrap();
        metadata.topics()[0].partitions()[0].leader()
    });
    let node = format!("kafka-cluster/node-{}", leader.await.unwrap());
    let mut command = tokio::process::Command::new(program);
    command.args(["brokers", "restart", &node]).env_remove("BUQUEUE_TEST_KAFKA_CLUSTER");
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A topic may take less than Kafka's default, and no message is refused for the context that travels with it.
#[tokio::test(flavor = "multi_thread")]
async fn the_context_keeps_to_what_the_topic_takes() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = KafkaConfig { offset_reset: OffsetReset::Earliest, ..config(&brokers, "narrow") };
    let topic = NewTopic::new(&config.topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "16000");
    admin(&config).create_topics([&topic], &AdminOptions::new()).await.unwrap();
    let (producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    let span = SpanContext::new(
        TraceId::from(7_u128),
        SpanId::from(9_u64),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    // What cannot be compressed, a little below the limit with and without room for context.
    for (bytes, carried) in [(8_000_u32, true), (15_800, false)] {
        let payload: Vec<u8> = (0..bytes).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
        let baggage = opentelemetry::KeyValue::new("long", "b".repeat(4000));
        let cx = opentelemetry::Context::new().with_remote_span_context(span.clone()).with_baggage([baggage]);
        producer.send(Message::new(payload)).with_context(cx).await.unwrap();
        let delivery = tokio::time::timeout(SOON, consumer.receive()).await.unwrap().unwrap();
        assert_eq!(delivery.header("traceparent").is_some(), carried, "{bytes} bytes");
        delivery.ack().await.unwrap();
    }
}

/// What was sent on by a transaction leaves a marker behind, which is nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn markers_of_transactions_do_not_count() {
    let Some(brokers) = endpoint("BUQUEUE_TEST_KAFKA") else { return };
    let config = KafkaConfig { offset_reset: OffsetReset::Earliest, ..config(&brokers, "markers") };
    let (producer, mut consumer) = builder(&config).build_pair().await.unwrap();
    producer.send(Message::new("now")).await.unwrap();
    producer.send_at(Message::new("then"), Utc::now() + TimeDelta::milliseconds(300)).await.unwrap();
    let mut acked = 0;
    while acked < 2 {
        let delivery = tokio::time::timeout(SOON, consumer.receive()).await.unwrap().unwrap();
        if delivery.delivery_count() == 1 {
            delivery.nack_after(Duration::from_millis(100)).await.unwrap();
        } else {
            delivery.ack().await.unwrap();
            acked += 1;
        }
    }
    let deadline = Instant::now() + SOON;
    loop {
        let stats = producer.queue_stats().await.unwrap();
        if stats.ready == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
