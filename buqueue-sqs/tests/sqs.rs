//! What only SQS has: FIFO groups, the relay of long schedules, redrive policies, and what a call costs.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says so"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_sqs::config::{ConfigBag, Intercept, ProvideCredentials, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use buqueue_core::{Delivery, DlqConfig, ErrorKind, Message, QueueBuilder};
use buqueue_sqs::{SqsBackend, SqsBuilderExt, SqsConfig, VisibilityTimeout};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::{ACCOUNT, REGION, client, credentials};

type Consumer = buqueue_core::Consumer<SqsBackend>;

/// Where the service is; without it the test is skipped loudly, or fails where brokers are required.
fn service() -> Option<String> {
    let variable = "BUQUEUE_TEST_SQS";
    let endpoint = std::env::var(variable).ok();
    if endpoint.is_none() {
        assert_ne!(std::env::var("BUQUEUE_TEST_REQUIRE").as_deref(), Ok("1"), "{variable} is not set");
        println!("SKIPPED: {variable} is not set");
    }
    endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned())
}

fn url(endpoint: &str, name: &str, suffix: &str) -> String {
    format!("{endpoint}/{ACCOUNT}/t-{name}-{}-{}{suffix}", std::process::id(), Utc::now().timestamp_micros())
}

fn builder(queue_url: String) -> QueueBuilder<SqsBackend> {
    let config = SqsConfig { queue_url, region: REGION.to_owned(), ..SqsConfig::default() };
    SqsBackend::builder(config).credentials_provider(credentials())
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

async fn receive(consumer: &mut Consumer) -> Delivery {
    within(consumer.receive()).await.unwrap()
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}

/// How many messages wait or are in flight.
async fn stored(endpoint: &str, queue_url: &str) -> u64 {
    let asking = client(endpoint).get_queue_attributes().queue_url(queue_url).attribute_names(Attribute::All);
    let attributes = asking.send().await.unwrap().attributes.unwrap_or_default();
    let count = |name| attributes.get(&name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    count(Attribute::ApproximateNumberOfMessages)
        + count(Attribute::ApproximateNumberOfMessagesNotVisible)
        + count(Attribute::ApproximateNumberOfMessagesDelayed)
}

/// What is text is readable by programs without buqueue, and theirs by us.
#[tokio::test]
async fn others_read_and_write_the_same() {
    let Some(endpoint) = service() else { return };
    let queue_url = url(&endpoint, "others", ".fifo");
    let (producer, mut consumer) = builder(queue_url.clone()).build_pair().await.unwrap();
    let message = Message::new("{\"n\":1}")
        .with_header("content-type", "application/json")
        .with_routing_key("customer-1")
        .with_deduplication_id("order-1");
    producer.send(message).await.unwrap();
    let raw = client(&endpoint)
        .receive_message()
        .queue_url(&queue_url)
        .wait_time_seconds(5)
        .message_attribute_names("All")
        .message_system_attribute_names(aws_sdk_sqs::types::MessageSystemAttributeName::All);
    let received = raw.send().await.unwrap();
    let raw = &received.messages()[0];
    assert_eq!(raw.body(), Some("{\"n\":1}"));
    let attributes = raw.message_attributes().unwrap();
    assert_eq!(attributes.len(), 1);
    assert_eq!(attributes["content-type"].string_value(), Some("application/json"));
    let deleting = client(&endpoint).delete_message().queue_url(&queue_url);
    deleting.set_receipt_handle(raw.receipt_handle().map(str::to_owned)).send().await.unwrap();

    let sending = client(&endpoint).send_message().queue_url(&queue_url).message_body("theirs");
    sending.message_group_id("g").message_deduplication_id("d").send().await.unwrap();
    let delivery = receive(&mut consumer).await;
    assert_eq!((text(&delivery).as_str(), delivery.routing_key()), ("theirs", Some("g")));
    assert_eq!(delivery.deduplication_id(), Some("d"));
    delivery.ack().await.unwrap();
}

/// The largest text and the largest bytes fit; one more does not, and says both numbers.
#[tokio::test]
async fn a_mebibyte_is_the_limit() {
    let Some(endpoint) = service() else { return };
    let (producer, mut consumer) = builder(url(&endpoint, "limit", "")).build_pair().await.unwrap();
    let limit = producer.capabilities().limits().payload_bytes.unwrap();
    for byte in [b'x', 0xff] {
        producer.send(Message::new(vec![byte; limit])).await.unwrap();
        let delivery = receive(&mut consumer).await;
        let arrived = delivery.payload();
        assert_eq!((arrived.len(), arrived.first()), (limit, Some(&byte)));
        assert!(arrived.iter().all(|each| *each == byte));
        delivery.ack().await.unwrap();
        let error = producer.send(Message::new(vec![byte; limit + 1])).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::PayloadTooLarge);
        let with_header = Message::new(vec![byte; limit]).with_header("name", "value".repeat(10));
        let error = producer.send(with_header).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::PayloadTooLarge);
        assert!(error.message().contains("1048576"), "{error}");
    }
}

/// A batch is split by its bytes as well as by its number, and what does not fit at all fails alone.
#[tokio::test]
async fn batches_are_split_by_size() {
    let Some(endpoint) = service() else { return };
    let (producer, mut consumer) = builder(url(&endpoint, "split", "")).build_pair().await.unwrap();
    let mut messages: Vec<Message> = (0..7_u8).map(|n| Message::new(vec![n; 300_000])).collect();
    messages.insert(3, Message::new("x").with_header("big", "y".repeat(1_100_000)));
    let error = producer.send_batch(messages).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PartialBatch { failed: 1, total: 8 });
    let kinds: Vec<_> =
        error.outcomes().iter().map(|outcome| outcome.as_ref().err().map(|error| &error.kind)).collect();
    assert_eq!(kinds[3], Some(&ErrorKind::PayloadTooLarge));
    let mut received = Vec::new();
    while received.len() < 7 {
        let delivery = receive(&mut consumer).await;
        received.push(delivery.payload()[0]);
        delivery.ack().await.unwrap();
    }
    received.sort_unstable();
    assert_eq!(received, (0..7).collect::<Vec<u8>>());
}

/// What a group has behind a failed message comes after it, also what was received ahead, and does not count it as
/// an attempt.
#[tokio::test]
async fn a_failed_message_keeps_its_place_in_its_group() {
    let Some(endpoint) = service() else { return };
    let (producer, mut consumer) = builder(url(&endpoint, "place", ".fifo")).build_pair().await.unwrap();
    let all: Vec<Message> = (0..60).map(|n| Message::new(n.to_string()).with_routing_key("k")).collect();
    producer.send_batch(all).await.unwrap();
    let mut seen = Vec::new();
    for n in 0..60 {
        let delivery = receive(&mut consumer).await;
        assert_eq!((text(&delivery), delivery.delivery_count()), (n.to_string(), 1));
        // By now it receives ahead.
        if n % 7 == 5 {
            delivery.nack().await.unwrap();
            let again = receive(&mut consumer).await;
            assert_eq!((text(&again), again.delivery_count()), (n.to_string(), 2));
            again.ack().await.unwrap();
        } else {
            delivery.ack().await.unwrap();
        }
        seen.push(n);
    }
    assert_eq!(seen.len(), 60);
}

/// One group that waits for its retry does not hold up another.
#[tokio::test]
async fn a_delayed_retry_holds_up_its_own_group_only() {
    let Some(endpoint) = service() else { return };
    let (producer, mut consumer) = builder(url(&endpoint, "groups", ".fifo")).build_pair().await.unwrap();
    let with = |name: &str, key: &str| Message::new(name.to_owned()).with_routing_key(key);
    producer.send_batch(vec![with("a1", "a"), with("a2", "a"), with("b1", "b")]).await.unwrap();
    let mut order = Vec::new();
    let mut failed = false;
    while order.len() < 3 {
        let delivery = receive(&mut consumer).await;
        if text(&delivery) == "a1" && !failed {
            failed = true;
            delivery.nack_after(Duration::from_millis(1500)).await.unwrap();
            continue;
        }
        order.push(text(&delivery));
        delivery.ack().await.unwrap();
    }
    assert_eq!(order, ["b1", "a1", "a2"]);
}

async fn take_in_time(consumer: &mut Consumer, count: usize, times: &[DateTime<Utc>], lease: Duration) {
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < count {
        let delivery = receive(consumer).await;
        let now = Utc::now();
        let n: usize = delivery.payload_json().unwrap();
        assert!(now >= times[n], "{n} is {} early", times[n] - now);
        let late = now - times[n];
        assert!(late.to_std().unwrap() < lease + Duration::from_secs(4), "{n} is {late} late");
        seen.insert(n);
        delivery.ack().await.unwrap();
    }
}

/// Longer than the queue itself delays: by the relay, in several steps, never early, as new.
#[tokio::test]
async fn long_schedules_go_by_the_relay() {
    let Some(endpoint) = service() else { return };
    // Both at once: they take a while.
    let there = async |suffix: &str| {
        let queue_url = url(&endpoint, "relay", suffix);
        let builder = || builder(queue_url.clone()).longest_delay(Duration::from_secs(1));
        let (producer, mut consumer) = builder().build_pair().await.unwrap();
        let message =
            Message::new(vec![0, 255]).with_header("h", "ü").with_routing_key("k").with_deduplication_id("d");
        let at = Utc::now() + TimeDelta::milliseconds(9300);
        producer.send_at(message.clone(), at).await.unwrap();
        assert_eq!(stored(&endpoint, &queue_url).await, 0, "it waits elsewhere");
        let delivery = receive(&mut consumer).await;
        let late = Utc::now() - at;
        assert!(late >= TimeDelta::zero() && late < TimeDelta::seconds(10), "{late} late");
        assert!(*delivery.message() == message, "{delivery:?}");
        assert_eq!((delivery.delivery_count(), delivery.first_failed_at()), (1, None));
        delivery.ack().await.unwrap();
    };
    tokio::join!(there(""), there(".fifo"));
}

/// Whoever sends them on may die at any step; none is lost, none is early.
#[tokio::test]
async fn forwarders_come_and_go() {
    const COUNT: usize = 60;
    let Some(endpoint) = service() else { return };
    let queue_url = url(&endpoint, "forward", "");
    let builder = || builder(queue_url.clone()).longest_delay(Duration::from_secs(1));
    let producer = builder().build_producer().await.unwrap();
    let times: Vec<DateTime<Utc>> = (0..COUNT)
        .map(|n| Utc::now() + TimeDelta::milliseconds(3000 + i64::try_from(n).unwrap() * 50))
        .collect();
    for (n, at) in times.iter().enumerate() {
        producer.send_at(Message::new(n.to_string()), *at).await.unwrap();
    }
    let last = *times.last().unwrap();
    // Each is dropped, with its forwarder, somewhere between two steps.
    let mut life = 130;
    while Utc::now() < last {
        let consumer = builder().build_consumer().await.unwrap();
        tokio::time::sleep(Duration::from_millis(life)).await;
        drop(consumer);
        life = life * 7 % 611 + 20;
    }
    let mut consumer = builder().build_consumer().await.unwrap();
    // What a forwarder had when it died is hidden for eight seconds.
    take_in_time(&mut consumer, COUNT, &times, Duration::from_secs(12)).await;
}

/// A retry later than SQS can hide a message: a copy waits in the relay, with the count.
#[tokio::test]
async fn a_retry_tomorrow_waits_in_the_relay() {
    let Some(endpoint) = service() else { return };
    let queue_url = url(&endpoint, "tomorrow", "");
    let (producer, mut consumer) = builder(queue_url.clone()).build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    receive(&mut consumer).await.nack_after(Duration::from_secs(24 * 60 * 60)).await.unwrap();
    assert_eq!(stored(&endpoint, &queue_url).await, 0);
    assert_eq!(stored(&endpoint, &format!("{queue_url}-buqueue-relay")).await, 1);

    producer.send(Message::new("n")).await.unwrap();
    let delivery = receive(&mut consumer).await;
    let error = delivery.extend_visibility(Duration::from_secs(13 * 60 * 60)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    delivery.extend_visibility(Duration::from_secs(60 * 60)).await.unwrap();
    delivery.ack().await.unwrap();
}

/// A redrive policy of the queue's own may be there, as long as it comes after our verdict.
#[tokio::test]
async fn a_redrive_policy_must_come_later() {
    let Some(endpoint) = service() else { return };
    let (queue_url, dead_url) = (url(&endpoint, "own", ""), url(&endpoint, "own-dead", ""));
    let with_dlq = |max_receive_count| {
        let dlq = DlqConfig { destination: dead_url.clone(), max_receive_count };
        builder(queue_url.clone()).dead_letter_queue(dlq)
    };
    let mut dead = builder(dead_url.clone()).build_consumer().await.unwrap();
    drop(with_dlq(2).build_consumer().await.unwrap());
    let name = dead_url.rsplit('/').next().unwrap();
    let policy = format!(
        "{{\"deadLetterTargetArn\":\"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}\",\"maxReceiveCount\":\"5\"}}"
    );
    let setting = client(&endpoint).set_queue_attributes().queue_url(&queue_url);
    setting.attributes(Attribute::RedrivePolicy, policy).send().await.unwrap();

    let error = with_dlq(5).build_consumer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig);
    assert!(
        error.message().contains("max_receive_count: is 5") && error.message().contains("after 5"),
        "{error}"
    );
    let (producer, mut consumer) = with_dlq(2).build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    for _ in 0..2 {
        receive(&mut consumer).await.nack().await.unwrap();
    }
    let letter = tokio::select! {
        letter = receive(&mut dead) => letter,
        other = consumer.receive() => panic!("{other:?}"),
    };
    assert!(letter.header("buqueue-dlq-reason").is_some(), "{letter:?}");
    letter.ack().await.unwrap();
}

/// A queue that may not be created must be there.
#[tokio::test]
async fn a_missing_queue_is_not_found() {
    let Some(endpoint) = service() else { return };
    let queue_url = url(&endpoint, "missing", "");
    let config = SqsConfig { queue_url: queue_url.clone(), create_queue: false, ..SqsConfig::default() };
    let building = SqsBackend::builder(config).credentials_provider(credentials()).build_producer();
    let error = building.await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message().contains(&queue_url), "{error}");
    // Nor one that would be created in another account.
    let foreign = queue_url.replace(ACCOUNT, "999999999999");
    let error = builder(foreign).build_producer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

/// The queue's own visibility timeout, where that is wanted.
#[tokio::test]
async fn the_lease_may_be_the_queues_own() {
    let Some(endpoint) = service() else { return };
    let queue_url = url(&endpoint, "lease", "");
    let creating = client(&endpoint).create_queue().queue_name(queue_url.rsplit('/').next().unwrap());
    creating.attributes(Attribute::VisibilityTimeout, "2").send().await.unwrap();
    let config =
        SqsConfig { queue_url, visibility_timeout: VisibilityTimeout::QueueDefault, ..SqsConfig::default() };
    let building = SqsBackend::builder(config).credentials_provider(credentials()).build_pair();
    let (producer, mut consumer) = building.await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    let first = receive(&mut consumer).await;
    let second = receive(&mut consumer).await;
    assert_eq!(second.delivery_count(), 2);
    assert_eq!(first.ack().await.unwrap_err().kind, ErrorKind::LeaseExpired);
    second.ack().await.unwrap();
}

/// No credentials: said so, in time.
#[tokio::test]
async fn without_credentials_is_told() {
    #[derive(Debug)]
    struct None;
    impl ProvideCredentials for None {
        fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let error = aws_credential_types::provider::error::CredentialsError::not_loaded("there are none");
            aws_credential_types::provider::future::ProvideCredentials::ready(Err(error))
        }
    }
    let config = SqsConfig { queue_url: "http://127.0.0.1:1/1/q".to_owned(), ..SqsConfig::default() };
    let building = SqsBackend::builder(config).credentials_provider(None).build_producer();
    let error = within(building).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
}

/// Answers every request with the same.
async fn always(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut request, mut part) = (Vec::new(), [0; 4096]);
                loop {
                    let Ok(count @ 1..) = stream.read(&mut part).await else { return };
                    request.extend_from_slice(&part[..count]);
                    let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
                    let Some((head, rest)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if rest.len() < length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                        continue;
                    }
                    request.clear();
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}")
}

/// What SQS, or something before it, has to say that no emulator says.
#[tokio::test]
async fn refusals_have_their_kinds() {
    let says = |code: &str| -> &'static str {
        format!("{{\"__type\":\"com.amazonaws.sqs#{code}\",\"message\":\"words\"}}").leak()
    };
    for (status, body, kind) in [
        ("400 Bad Request", says("RequestThrottled"), ErrorKind::Throttled),
        ("400 Bad Request", says("OverLimit"), ErrorKind::Throttled),
        ("400 Bad Request", says("InvalidClientTokenId"), ErrorKind::AuthenticationFailed),
        ("403 Forbidden", says("AccessDeniedException"), ErrorKind::AuthenticationFailed),
        ("403 Forbidden", says("ExpiredTokenException"), ErrorKind::AuthenticationFailed),
        ("400 Bad Request", says("KmsThrottled"), ErrorKind::Throttled),
        ("400 Bad Request", says("QueueDoesNotExist"), ErrorKind::NotFound),
        ("503 Service Unavailable", says("ServiceUnavailable"), ErrorKind::ConnectionLost),
        ("502 Bad Gateway", "<html>a load balancer</html>", ErrorKind::ConnectionLost),
        ("429 Too Many Requests", "", ErrorKind::Throttled),
    ] {
        let endpoint = always(status, body).await;
        let config = SqsConfig {
            queue_url: format!("{endpoint}/{ACCOUNT}/orders"),
            create_queue: false,
            ..SqsConfig::default()
        };
        let building = SqsBackend::builder(config).credentials_provider(credentials()).build_producer();
        let error = within(building).await.unwrap_err();
        assert_eq!(error.kind, kind, "{status} {body}: {error:?}");
        assert!(!format!("{error:?}").contains("load balancer"), "{error:?}");
    }
}

/// A dead letter queue that is the queue itself, in other words.
#[tokio::test]
async fn a_queue_is_not_its_own_dead_letter_queue() {
    for (suffix, destination) in [("", "orders"), (".fifo", "orders"), (".fifo", "orders.fifo")] {
        let queue_url = format!("http://127.0.0.1:1/{ACCOUNT}/orders{suffix}");
        let dlq = DlqConfig { destination: destination.to_owned(), max_receive_count: 3 };
        let error = builder(queue_url).dead_letter_queue(dlq).build_consumer().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
        assert!(error.message().starts_with("dead_letter_queue.destination"), "{error}");
    }
}

/// Counts what goes over the wire.
#[derive(Debug, Clone, Default)]
struct Counting(Arc<AtomicU32>);

impl Intercept for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Ten messages cost one request to send, one to receive and one to ack.
#[tokio::test]
async fn tens_cost_one_request() {
    const COUNT: u32 = 500;
    let Some(endpoint) = service() else { return };
    let counting = Counting::default();
    let counted = client(&endpoint).config().to_builder().interceptor(counting.clone()).build();
    let queue_url = url(&endpoint, "cost", "");
    let (producer, mut consumer) =
        builder(queue_url).client(Client::from_conf(counted)).build_pair().await.unwrap();
    let calls = || counting.0.swap(0, Ordering::Relaxed);
    calls();
    producer.send_batch((0..COUNT).map(|n| Message::new(n.to_string())).collect()).await.unwrap();
    let sent = calls();
    assert_eq!(sent, COUNT / 10);
    let mut all = Vec::new();
    while all.len() < COUNT as usize {
        all.extend(within(consumer.receive_batch(COUNT as usize - all.len())).await.unwrap());
    }
    let received = calls();
    // The handlers ack one by one, at the same time.
    let acks = futures_util::future::join_all(all.into_iter().map(Delivery::ack)).await;
    assert!(acks.iter().all(Result::is_ok));
    let acked = calls();
    println!("{COUNT} messages: {sent} requests to send, {received} to receive, {acked} to ack");
    assert!(received <= COUNT / 10 + COUNT / 20, "{received} requests to receive {COUNT}");
    assert!(acked <= COUNT / 10 + 10, "{acked} requests to ack {COUNT}");
}

/// A proxy before the service. The first connection that asks for `operation` breaks when the answer comes; the second
/// request for it waits until it may `go_on`.
async fn losing_an_answer(endpoint: &str, operation: &'static str, go_on: Arc<Notify>) -> String {
    let upstream = endpoint.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(&upstream).await.unwrap();
            let (asked, go_on) = (Arc::clone(&asked), Arc::clone(&go_on));
            tokio::spawn(async move {
                let ((mut asks, mut hears), (mut answers, mut is_asked)) =
                    (near.into_split(), far.into_split());
                let is_lost = AtomicBool::new(false);
                let there = async {
                    let mut bytes = vec![0; 1 << 20];
                    while let Ok(count @ 1..) = asks.read(&mut bytes).await {
                        if bytes[..count].windows(operation.len()).any(|part| part == operation.as_bytes()) {
                            match asked.fetch_add(1, Ordering::Relaxed) {
                                0 => is_lost.store(true, Ordering::Relaxed),
                                1 => go_on.notified().await,
                                _ => {}
                            }
                        }
                        is_asked.write_all(&bytes[..count]).await.unwrap();
                    }
                };
                let back = async {
                    let mut bytes = vec![0; 1 << 20];
                    while let Ok(count @ 1..) = answers.read(&mut bytes).await
                        && !is_lost.load(Ordering::Relaxed)
                        && hears.write_all(&bytes[..count]).await.is_ok()
                    {}
                };
                tokio::select! { () = there => {}, () = back => {} }
            });
        }
    });
    format!("http://{address}")
}

/// When it is repeated, somebody else has the message already.
#[tokio::test]
async fn a_nack_whose_answer_is_lost_has_happened() {
    let Some(endpoint) = service() else { return };
    let go_on = Arc::new(Notify::new());
    let losing = losing_an_answer(&endpoint, "AmazonSQS.ChangeMessageVisibilityBatch", go_on.clone()).await;
    let queue_url = url(&endpoint, "lost-nack", "");
    let (producer, mut other) = builder(queue_url.clone()).build_pair().await.unwrap();
    let mut consumer = builder(queue_url.replace(&endpoint, &losing)).build_consumer().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    let nacking = tokio::spawn(receive(&mut consumer).await.nack());
    let again = receive(&mut other).await;
    assert_eq!(again.delivery_count(), 2);
    go_on.notify_one();
    within(nacking).await.unwrap().unwrap();
    again.ack().await.unwrap();
}

/// When it is repeated, the message is gone.
#[tokio::test]
async fn an_ack_whose_answer_is_lost_has_happened() {
    let Some(endpoint) = service() else { return };
    let go_on = Arc::new(Notify::new());
    let losing = losing_an_answer(&endpoint, "AmazonSQS.DeleteMessageBatch", go_on.clone()).await;
    let queue_url = url(&endpoint, "lost-ack", "");
    let producer = builder(queue_url.clone()).build_producer().await.unwrap();
    let mut consumer = builder(queue_url.replace(&endpoint, &losing)).build_consumer().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    go_on.notify_one();
    within(receive(&mut consumer).await.ack()).await.unwrap();
    assert_eq!(stored(&endpoint, &queue_url).await, 0);
}
