//! What the feature `metrics` counts, seen through an exporter in memory.
#![cfg(all(feature = "metrics", feature = "memory"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use buqueue::driver::{Activity, tell};
use buqueue::memory::{MemoryBackend, MemoryConfig};
use buqueue::{Consumer, Delivery, DlqConfig, Message, Producer, QueueBuilder};
use chrono::Utc;
use opentelemetry::global;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

/// One provider for the process, as in an application. Tests tell their queues apart by name.
static METRICS: LazyLock<(SdkMeterProvider, InMemoryMetricExporter)> = LazyLock::new(|| {
    let exporter = InMemoryMetricExporter::default();
    let reader = PeriodicReader::builder(exporter.clone()).with_interval(Duration::from_secs(3600)).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    global::set_meter_provider(provider.clone());
    (provider, exporter)
});

fn config(queue: &str) -> MemoryConfig {
    LazyLock::force(&METRICS);
    MemoryConfig { queue: queue.to_owned(), ..MemoryConfig::default() }
}

async fn pair(queue: &str) -> (Producer<MemoryBackend>, Consumer<MemoryBackend>) {
    MemoryBackend::builder(config(queue)).build_pair().await.unwrap()
}

/// One series of an instrument.
#[derive(Debug, Clone, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    /// The count of a histogram, the value of anything else.
    value: i64,
    /// The sum and the boundaries of a histogram.
    histogram: Option<(f64, Vec<f64>)>,
}

/// All series of one queue.
fn series(queue: &str) -> Vec<Series> {
    let (provider, exporter) = &*METRICS;
    provider.force_flush().unwrap();
    let exported: Vec<ResourceMetrics> = exporter.get_finished_metrics().unwrap();
    // Cumulative: the last export has everything.
    let last = exported.last().unwrap();
    let mut all = Vec::new();
    for metric in last.scope_metrics().flat_map(|scope| scope.metrics()) {
        let name = metric.name().to_owned();
        let text = |labels: &mut dyn Iterator<Item = &opentelemetry::KeyValue>| {
            let mut labels: Vec<_> =
                labels.map(|pair| (pair.key.to_string(), pair.value.to_string())).collect();
            labels.sort();
            labels
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                all.extend(sum.data_points().map(|point| Series {
                    name: name.clone(),
                    labels: text(&mut point.attributes()),
                    value: i64::try_from(point.value()).unwrap(),
                    histogram: None,
                }));
            }
            AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                all.extend(sum.data_points().map(|point| Series {
                    name: name.clone(),
                    labels: text(&mut point.attributes()),
                    value: point.value(),
                    histogram: None,
                }));
            }
            AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                all.extend(gauge.data_points().map(|point| Series {
                    name: name.clone(),
                    labels: text(&mut point.attributes()),
                    value: i64::try_from(point.value()).unwrap(),
                    histogram: None,
                }));
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                all.extend(histogram.data_points().map(|point| Series {
                    name: name.clone(),
                    labels: text(&mut point.attributes()),
                    value: i64::try_from(point.count()).unwrap(),
                    histogram: Some((point.sum(), point.bounds().collect())),
                }));
            }
            other => panic!("{name}: an instrument of another type: {other:?}"),
        }
    }
    let is_ours = |series: &Series| {
        series.labels.contains(&("messaging.destination.name".to_owned(), queue.to_owned()))
    };
    all.retain(is_ours);
    all
}

/// The value of the one series of `queue` that has these labels, among others.
#[track_caller]
fn value(queue: &str, name: &str, labels: &[(&str, &str)]) -> i64 {
    one(queue, name, labels).value
}

#[track_caller]
fn one(queue: &str, name: &str, labels: &[(&str, &str)]) -> Series {
    let all = series(queue);
    let fits = |series: &&Series| {
        let has =
            |(key, value): &(&str, &str)| series.labels.contains(&((*key).to_owned(), (*value).to_owned()));
        series.name == name && labels.iter().all(has)
    };
    let found: Vec<_> = all.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{name} with {labels:?} in {all:#?}");
    found[0].clone()
}

#[tokio::test]
async fn sends_and_receives_are_counted() {
    let queue = "counted";
    let (producer, mut consumer) = pair(queue).await;
    producer.send(Message::new("1")).await.unwrap();
    producer.send_batch(vec![Message::new("2"), Message::new("3")]).await.unwrap();
    let invalid = Message::new("4").with_header("buqueue-mine", "x");
    producer.send(invalid).await.unwrap_err();
    let first = consumer.receive().await.unwrap();
    first.ack().await.unwrap();
    Delivery::ack_all(consumer.receive_batch(10).await.unwrap()).await.unwrap();
    let sent = "messaging.client.sent.messages";
    assert_eq!(value(queue, sent, &[("error.type", "invalid_message")]), 1);
    let all = series(queue);
    let sent: i64 = all.iter().filter(|series| series.name == sent).map(|series| series.value).sum();
    assert_eq!(sent, 4, "three that were sent, and one that failed");
    let labels = [
        ("messaging.system", "memory"),
        ("messaging.operation.name", "receive"),
        ("messaging.operation.type", "receive"),
    ];
    assert_eq!(value(queue, "messaging.client.consumed.messages", &labels), 3);
}

#[tokio::test]
async fn durations_have_the_boundaries_of_the_convention() {
    let queue = "durations";
    let (producer, mut consumer) = pair(queue).await;
    producer.send(Message::new("1")).await.unwrap();
    let delivery = consumer.receive().await.unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    delivery.nack().await.unwrap();
    consumer.receive().await.unwrap().ack().await.unwrap();
    let boundaries = vec![0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
    for (operation, kind) in [("send", "send"), ("nack", "settle"), ("ack", "settle")] {
        let labels = [("messaging.operation.name", operation), ("messaging.operation.type", kind)];
        let series = one(queue, "messaging.client.operation.duration", &labels);
        assert_eq!((series.value, series.histogram.unwrap().1), (1, boundaries.clone()), "{operation}");
    }
    let failed = one(queue, "messaging.process.duration", &[("error.type", "nack")]);
    let (sum, bounds) = failed.histogram.unwrap();
    assert_eq!((failed.value, bounds), (1, boundaries));
    assert!((0.03..10.0).contains(&sum), "{sum} s, slept for 30 ms");
}

#[tokio::test]
async fn what_is_in_flight_goes_up_and_down() {
    let queue = "in-flight";
    let (producer, mut consumer) = pair(queue).await;
    producer.send_batch((0..5).map(|number| Message::new(format!("{number}"))).collect()).await.unwrap();
    let mut held = consumer.receive_batch(5).await.unwrap();
    while held.len() < 5 {
        held.push(consumer.receive().await.unwrap());
    }
    let in_flight = || value(queue, "buqueue.deliveries.in_flight", &[]);
    assert_eq!(in_flight(), 5);
    held.pop().unwrap().ack().await.unwrap();
    drop(held.pop());
    assert_eq!(in_flight(), 3);
    Delivery::ack_all(held).await.unwrap();
    assert_eq!(in_flight(), 0);
    assert_eq!(value(queue, "buqueue.deliveries.abandoned", &[]), 1);
}

#[tokio::test]
async fn attempts_and_dead_letters_are_counted() {
    let queue = "poison";
    let dlq = DlqConfig { destination: "poison-dlq".to_owned(), max_receive_count: 3 };
    let builder: QueueBuilder<MemoryBackend> = MemoryBackend::builder(config(queue));
    let (producer, mut consumer) = builder.dead_letter_queue(dlq).build_pair().await.unwrap();
    producer.send(Message::new("poison")).await.unwrap();
    for _ in 0..3 {
        consumer.receive().await.unwrap().nack().await.unwrap();
    }
    assert_eq!(value(queue, "buqueue.deliveries.redelivered", &[]), 2);
    assert_eq!(value(queue, "buqueue.deliveries.dead_lettered", &[]), 1);
    let monitor = consumer.monitor();
    let reporting = tokio::spawn(async move { monitor.report(Duration::from_millis(20)).await });
    let counted = async {
        while !series(queue).iter().any(|series| series.name == "buqueue.queue.dead_letters") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
    assert_eq!(value(queue, "buqueue.queue.dead_letters", &[]), 1);
    for (state, count) in [("ready", 0), ("in_flight", 0), ("scheduled", 0)] {
        assert_eq!(value(queue, "buqueue.queue.messages", &[("buqueue.message.state", state)]), count);
    }
    consumer.shutdown_handle().shutdown().await;
    tokio::time::timeout(Duration::from_secs(10), reporting).await.expect("the report ends").unwrap();
}

#[tokio::test]
async fn lateness_is_measured_from_the_time_that_was_asked_for() {
    let queue = "late";
    let (producer, mut consumer) = pair(queue).await;
    producer.send_at(Message::new("m"), Utc::now() + Duration::from_millis(50)).await.unwrap();
    let delivery = consumer.receive().await.unwrap();
    let again = delivery.message().clone();
    delivery.nack().await.unwrap();
    // A later attempt is no schedule's.
    consumer.receive().await.unwrap().ack().await.unwrap();
    let late = one(queue, "buqueue.schedule.lateness", &[]);
    let (sum, _) = late.histogram.unwrap();
    assert_eq!(late.value, 1);
    assert!((0.0..10.0).contains(&sum), "{sum} s");
    // What is sent on as it came is not late: it is no schedule any more.
    producer.send(again).await.unwrap();
    consumer.receive().await.unwrap().ack().await.unwrap();
    assert_eq!(one(queue, "buqueue.schedule.lateness", &[]).value, 1);
}

#[tokio::test]
async fn reconnects_of_drivers_are_counted() {
    LazyLock::force(&METRICS);
    tell("memory", "reconnected", Activity::Reconnected);
    tell("memory", "reconnected", Activity::Reconnected);
    tell("memory", "reconnected", Activity::Forwarded(3));
    let labels = [("messaging.system", "memory"), ("buqueue.reconnected", "connection")];
    assert_eq!(value("reconnected", "buqueue.reconnects", &labels), 2);
}

/// What is given up is counted, once, and is no longer in flight.
#[tokio::test]
async fn what_is_given_up_is_counted_once() {
    let queue = "given-up";
    let config = MemoryConfig { capacity: 1, ..config(queue) };
    let (producer, mut consumer) = MemoryBackend::builder(config).build_pair().await.unwrap();
    producer.send(Message::new("fills the queue")).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(20), producer.send(Message::new("waits")));
    waiting.await.expect_err("the queue is full");
    let sent = "messaging.client.sent.messages";
    assert_eq!(value(queue, sent, &[("error.type", "cancelled")]), 1);
    let in_flight = || value(queue, "buqueue.deliveries.in_flight", &[]);

    // A settle that is not begun, one of many that is given up, a panic, and a stream that goes.
    drop(consumer.receive().await.unwrap().ack());
    drop(Delivery::ack_all(vec![consumer.receive().await.unwrap()]));
    let held = consumer.receive().await.unwrap();
    let panicking = tokio::spawn(async move {
        let _held = held;
        panic!("a handler that fails");
    });
    assert!(panicking.await.is_err());
    let mut stream = consumer.into_stream();
    let held = futures_util::StreamExt::next(&mut stream).await.unwrap().unwrap();
    drop(stream);
    assert_eq!(in_flight(), 1);
    held.ack().await.unwrap();
    assert_eq!(in_flight(), 0);
    let abandoned = value(queue, "buqueue.deliveries.abandoned", &[]);
    let processed: i64 = (series(queue).iter())
        .filter(|series| series.name == "messaging.process.duration")
        .map(|series| series.value)
        .sum();
    assert_eq!((abandoned, processed), (3, 4), "each attempt has one end");
}

/// A dead letter that could not be published is none, and its attempt ends once.
#[tokio::test]
async fn an_attempt_ends_once() {
    let queue = "hanging";
    // The dead letter queue is full, and so the burial waits.
    let dlq = MemoryConfig { queue: "hanging-dlq".to_owned(), capacity: 1, ..config(queue) };
    let (letters, _reader) = MemoryBackend::builder(dlq.clone()).build_pair().await.unwrap();
    letters.send(Message::new("fills it")).await.unwrap();
    let config = MemoryConfig { queue: queue.to_owned(), ..dlq };
    let dead_letters = DlqConfig { destination: "hanging-dlq".to_owned(), max_receive_count: 1 };
    let builder = MemoryBackend::builder(config).dead_letter_queue(dead_letters);
    let (producer, mut consumer) = builder.build_pair().await.unwrap();
    producer.send(Message::new("poison")).await.unwrap();
    let poison = consumer.receive().await.unwrap();
    tokio::time::timeout(Duration::from_millis(20), poison.nack()).await.expect_err("it hangs");
    let ends: Vec<_> = (series(queue).into_iter())
        .filter(|series| series.name == "messaging.process.duration")
        .map(|series| (series.value, series.labels.into_iter().find(|(name, _)| name == "error.type")))
        .collect();
    assert_eq!(ends, [(1, Some(("error.type".to_owned(), "abandoned".to_owned())))]);
    let gave_up = [("messaging.operation.name", "dead_letter"), ("error.type", "cancelled")];
    assert_eq!(value(queue, "messaging.client.operation.duration", &gave_up), 1);
}

/// The list of the documentation is the list of what there is.
#[tokio::test]
async fn every_instrument_is_documented() {
    let queue = "documented";
    let dlq = DlqConfig { destination: "documented-dlq".to_owned(), max_receive_count: 2 };
    let builder = MemoryBackend::builder(config(queue)).dead_letter_queue(dlq);
    let (producer, mut consumer) = builder.build_pair().await.unwrap();
    producer.send_at(Message::new("m"), Utc::now()).await.unwrap();
    drop(consumer.receive().await.unwrap());
    consumer.receive().await.unwrap().dead_letter("for the list").await.unwrap();
    tell("memory", queue, Activity::Reconnected);
    let monitor = consumer.monitor();
    let reporting = tokio::spawn(async move { monitor.report(Duration::from_millis(10)).await });
    let counted = async {
        while !series(queue).iter().any(|series| series.name == "buqueue.queue.dead_letters") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
    drop(consumer);
    let ended = tokio::time::timeout(Duration::from_secs(10), reporting).await;
    ended.expect("the report ends with its consumer").unwrap();
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/OBSERVING.md")).unwrap();
    let rows = guide.lines().skip_while(|line| !line.starts_with("| instrument ")).skip(2);
    let documented: BTreeSet<String> = rows
        .map_while(|row| row.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    let seen: BTreeSet<String> = series(queue).into_iter().map(|series| series.name).collect();
    assert_eq!(seen, documented);
}
