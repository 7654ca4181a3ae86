//! Instruments by the OpenTelemetry conventions for messaging, and buqueue's own beside them.
//!
//! Source: <https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/>, v1.44 (development).

use std::fmt;
use std::time::Instant;

use chrono::{DateTime, Utc};
use opentelemetry::metrics::{Counter, Gauge, Histogram, UpDownCounter};
use opentelemetry::{KeyValue, global};

use super::{Operation, Outcome};
use crate::QueueStats;
use crate::driver::Activity;

/// The boundaries that the conventions ask for, in seconds.
const BOUNDARIES: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

const NAME: &str = "buqueue";

/// What works again: a connection, as a driver tells, or receiving, as core finds. One outage may be both.
const RECONNECTED: &str = "buqueue.reconnected";

/// When something began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started(Instant);

impl Started {
    #[inline]
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// The instruments of one queue, with the labels of each made once.
pub(crate) struct Meter {
    /// System, destination, and the group where there is one.
    queue: Box<[KeyValue]>,
    /// With the operation, by operation.
    operations: [Box<[KeyValue]>; Operation::ALL.len()],
    states: [Box<[KeyValue]>; 3],
    sent: Counter<u64>,
    consumed: Counter<u64>,
    operation_duration: Histogram<f64>,
    process_duration: Histogram<f64>,
    in_flight: UpDownCounter<i64>,
    redelivered: Counter<u64>,
    abandoned: Counter<u64>,
    dead_lettered: Counter<u64>,
    lateness: Histogram<f64>,
    reconnects: Counter<u64>,
    depth: Gauge<u64>,
    dead_letter_depth: Gauge<u64>,
}

fn labels(backend: &'static str, destination: &str, group: Option<&str>) -> Vec<KeyValue> {
    let mut labels = vec![
        KeyValue::new("messaging.system", backend),
        KeyValue::new("messaging.destination.name", destination.to_owned()),
    ];
    labels.extend(group.map(|group| KeyValue::new("messaging.consumer.group.name", group.to_owned())));
    labels
}

fn reconnects() -> Counter<u64> {
    let meter = global::meter(NAME);
    let counter = meter.u64_counter("buqueue.reconnects").with_unit("{reconnect}");
    counter.with_description("How often a connection that had failed worked again.").build()
}

impl Meter {
    /// The instruments are those of the meter provider that is installed now.
    pub(super) fn new(backend: &'static str, destination: &str, group: Option<&str>) -> Self {
        let meter = global::meter(NAME);
        let counter = |name: &'static str, about: &'static str| {
            meter.u64_counter(name).with_unit("{message}").with_description(about).build()
        };
        let histogram = |name: &'static str, about: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(about);
            histogram.with_boundaries(BOUNDARIES.to_vec()).build()
        };
        let gauge = |name: &'static str, about: &'static str| {
            meter.u64_gauge(name).with_unit("{message}").with_description(about).build()
        };
        let queue = labels(backend, destination, group);
        let with = |more: &[KeyValue]| queue.iter().chain(more).cloned().collect::<Box<[KeyValue]>>();
        Self {
            operations: Operation::ALL.map(|operation| {
                with(&[
                    KeyValue::new("messaging.operation.name", operation.name()),
                    KeyValue::new("messaging.operation.type", operation.kind()),
                ])
            }),
            states: ["ready", "in_flight", "scheduled"]
                .map(|state| with(&[KeyValue::new("buqueue.message.state", state)])),
            queue: with(&[]),
            sent: counter("messaging.client.sent.messages", "Messages that were given to the broker."),
            consumed: counter(
                "messaging.client.consumed.messages",
                "Messages that were handed out, each attempt counted.",
            ),
            operation_duration: histogram(
                "messaging.client.operation.duration",
                "How long a send, a fetch that brought something, or a settle took.",
            ),
            process_duration: histogram(
                "messaging.process.duration",
                "How long a message was held until it was settled.",
            ),
            in_flight: meter
                .i64_up_down_counter("buqueue.deliveries.in_flight")
                .with_unit("{message}")
                .with_description("Messages that are handed out and not settled.")
                .build(),
            redelivered: counter("buqueue.deliveries.redelivered", "Attempts after the first one."),
            abandoned: counter("buqueue.deliveries.abandoned", "Deliveries that were dropped unsettled."),
            dead_lettered: counter(
                "buqueue.deliveries.dead_lettered",
                "Messages that were moved to the dead letter queue.",
            ),
            lateness: histogram(
                "buqueue.schedule.lateness",
                "How long after its time a scheduled message was first handed out.",
            ),
            reconnects: reconnects(),
            depth: gauge("buqueue.queue.messages", "Messages that lie in the queue."),
            dead_letter_depth: gauge(
                "buqueue.queue.dead_letters",
                "Messages that lie in the dead letter queue.",
            ),
        }
    }

    #[inline]
    pub(super) fn start(&self) -> Started {
        Started::now()
    }

    pub(super) fn sent(&self, count: usize, failure: Option<&'static str>) {
        let labels = &self.operations[Operation::Send as usize];
        record(labels, failure, |labels| self.sent.add(count as u64, labels));
    }

    pub(super) fn operation(&self, operation: Operation, started: &Started, failure: Option<&'static str>) {
        let labels = &self.operations[operation as usize];
        record(labels, failure, |labels| {
            self.operation_duration.record(started.seconds(), labels);
        });
    }

    pub(super) fn consumed(&self, count: usize) {
        self.consumed.add(count as u64, &self.operations[Operation::Receive as usize]);
    }

    pub(super) fn in_flight(&self, count: usize, more: bool) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.in_flight.add(if more { count } else { -count }, &self.queue);
    }

    /// What a message that is handed out tells of its way here.
    pub(super) fn delivered(&self, due: Option<DateTime<Utc>>, delivery_count: u32) {
        if delivery_count > 1 {
            self.redelivered.add(1, &self.queue);
            return;
        }
        if let Some(due) = due {
            // Two clocks: one that is behind makes no message early.
            let late = (Utc::now() - due).to_std().unwrap_or_default();
            self.lateness.record(late.as_secs_f64(), &self.queue);
        }
    }

    pub(super) fn processed(&self, since: &Started, until: &Started, outcome: Outcome) {
        let labels = &self.operations[Operation::Process as usize];
        let seconds = until.0.saturating_duration_since(since.0).as_secs_f64();
        record(labels, outcome.failure(), |labels| self.process_duration.record(seconds, labels));
    }

    pub(super) fn abandoned(&self) {
        self.abandoned.add(1, &self.queue);
    }

    pub(super) fn dead_lettered(&self) {
        self.dead_lettered.add(1, &self.queue);
    }

    pub(super) fn reconnected(&self) {
        let mut labels = self.queue.to_vec();
        labels.push(KeyValue::new(RECONNECTED, "receive"));
        self.reconnects.add(1, &labels);
    }

    pub(super) fn depth(&self, queue: &QueueStats) {
        let counts = [Some(queue.ready), queue.in_flight, queue.scheduled];
        for (labels, count) in self.states.iter().zip(counts) {
            if let Some(count) = count {
                self.depth.record(count, labels);
            }
        }
    }

    pub(super) fn dead_letter_depth(&self, stats: &QueueStats) {
        self.dead_letter_depth.record(stats.ready + stats.in_flight.unwrap_or(0), &self.queue);
    }
}

/// Records with the labels as they are, or with the failure beside them.
#[inline]
fn record(labels: &[KeyValue], failure: Option<&'static str>, record: impl FnOnce(&[KeyValue])) {
    match failure {
        None => record(labels),
        Some(failure) => {
            let mut labels = labels.to_vec();
            labels.push(KeyValue::new("error.type", failure));
            record(&labels);
        }
    }
}

/// A driver that reconnects by itself tells so here; rare, so the instrument is asked for each time.
pub(super) fn activity(backend: &'static str, destination: &str, activity: Activity<'_>) {
    if matches!(activity, Activity::Reconnected) {
        let mut labels = labels(backend, destination, None);
        labels.push(KeyValue::new(RECONNECTED, "connection"));
        reconnects().add(1, &labels);
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("queue", &self.queue).finish_non_exhaustive()
    }
}
