//! Traces through the queue: promise 33.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use buqueue_core::driver::Backend as _;
use buqueue_core::{Delivery, DlqConfig, Message, QueueProducer};
use chrono::Utc;
use futures_util::StreamExt as _;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;
use tracing::{Instrument as _, info, info_span};
use tracing_subscriber::filter::DynFilterFn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::support::{SOON, ack, nack, numbered, receive, receive_within, send, send_all, within};
use crate::traces::{Spans, attribute, carried, is_child, links_to, place, traced};
use crate::{Ctx, FailingDlq, Harness, Outcome};

/// A handler: a span of its own, and an answer that it sends.
async fn handle(delivery: &Delivery, answers: &impl QueueProducer) {
    let work = async {
        info!("at work");
        send(answers, Message::new("answer")).await;
    };
    // The span is made inside of the delivery's, and so is its child.
    delivery.instrument(async { work.instrument(info_span!("handler")).await }).await;
}

/// The whole way is one trace, and each step is the child of the one before.
fn assert_chain(spans: &Spans, steps: &[&SpanData]) {
    for pair in steps.windows(2) {
        let names = (&pair[0].name, &pair[1].name);
        assert!(is_child(pair[1], pair[0]), "{names:?}: not parent and child in\n{}", spans.tree());
    }
}

/// Producer, queue, consumer, the handler's own span, its answer, and the second consumer.
pub async fn one_trace_to_the_answer<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let (answers, mut answered) = cx.pair().await;
    let ((), spans) = traced(async {
        // With a header, as most messages have one.
        let request = async { send(&producer, Message::new("request").with_header("h", "v")).await };
        request.instrument(info_span!("request")).await;
        let delivery = receive(&mut consumer).await;
        handle(&delivery, &answers).await;
        ack(delivery).await;
        ack(receive(&mut answered).await).await;
    })
    .await;
    let (sends, processes) = (spans.of("send"), spans.of("process"));
    let steps = [spans.one("request"), sends[0], processes[0], spans.one("handler"), sends[1], processes[1]];
    assert_chain(&spans, &steps);
    assert_eq!((sends.len(), processes.len()), (2, 2));
    for (process, settle) in processes.iter().zip(spans.of("ack")) {
        assert!(is_child(settle, process), "{}", spans.tree());
        assert!(settle.end_time <= process.end_time, "a message is processed until it is settled");
    }
    for (receiving, (sent, process)) in spans.of("receive").iter().zip(sends.iter().zip(&processes)) {
        assert!(links_to(receiving, sent), "{receiving:?}");
        assert!(links_to(process, receiving), "{process:?}");
    }
    Ok(())
}

/// Each attempt is a child of the one send.
pub async fn through_a_nack<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let ((), spans) = traced(async {
        send(&producer, "m").await;
        nack(receive(&mut consumer).await).await;
        ack(receive(&mut consumer).await).await;
    })
    .await;
    let (sent, processes) = (spans.one("send"), spans.of("process"));
    assert_eq!(processes.len(), 2);
    for (process, settle) in processes.iter().zip([spans.one("nack"), spans.one("ack")]) {
        assert_chain(&spans, &[sent, process, settle]);
    }
    assert!(matches!(processes[0].status, Status::Error { .. }), "the first attempt failed");
    assert_eq!(attribute(processes[0], "error.type").as_deref(), Some("nack"));
    assert_eq!(processes[1].status, Status::Unset);
    Ok(())
}

/// A delayed retry is an attempt like others.
pub async fn through_a_delayed_retry<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let ((), spans) = traced(async {
        send(&producer, "m").await;
        let first = receive(&mut consumer).await;
        within(SOON, "nack_after", first.nack_after(Duration::from_millis(300))).await.expect("nack_after");
        ack(receive(&mut consumer).await).await;
    })
    .await;
    let processes = spans.of("process");
    assert_eq!(processes.len(), 2);
    assert_chain(&spans, &[spans.one("send"), processes[0], spans.one("nack_after")]);
    assert_chain(&spans, &[spans.one("send"), processes[1], spans.one("ack")]);
    Ok(())
}

/// A scheduled message takes its context along.
pub async fn through_a_schedule<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let ((), spans) = traced(async {
        let at = Utc::now() + Duration::from_millis(500);
        within(SOON, "send_at", producer.send_at(Message::new("m"), at)).await.expect("send_at");
        ack(receive(&mut consumer).await).await;
    })
    .await;
    assert_chain(&spans, &[spans.one("send_at"), spans.one("process"), spans.one("ack")]);
    Ok(())
}

/// A dead letter, and the message that it becomes again, belong to the trace that they began in.
pub async fn through_a_dead_letter_and_a_redrive<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 3).await;
    let ((), spans) = traced(async {
        send(&producer, "m").await;
        let poison = receive(&mut consumer).await;
        within(SOON, "dead_letter", poison.dead_letter("poison")).await.expect("dead_letter");
        let letter = receive(&mut dead).await;
        within(SOON, "redrive", letter.redrive(&producer)).await.expect("redrive");
        ack(receive(&mut consumer).await).await;
    })
    .await;
    let (sends, processes) = (spans.of("send"), spans.of("process"));
    assert_eq!((sends.len(), processes.len()), (2, 3), "{}", spans.tree());
    for process in &processes {
        assert_chain(&spans, &[sends[0], process]);
    }
    assert_chain(&spans, &[processes[0], spans.one("dead_letter")]);
    assert_eq!(attribute(processes[0], "error.type").as_deref(), Some("dead_letter"));
    assert!(links_to(sends[1], sends[0]), "the redrive sends what was created elsewhere");
    Ok(())
}

/// A batch is one span that links to its messages, on each side, and each message has a span of its own.
pub async fn batches_link<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let ((), spans) = traced(async {
        send_all(&producer, numbered("m", 3)).await;
        let mut batch = Vec::new();
        while batch.len() < 3 {
            let received = within(SOON, "receive_batch", consumer.receive_batch(3 - batch.len())).await;
            batch.extend(received.expect("receive_batch"));
        }
        within(SOON, "ack_all", Delivery::ack_all(batch)).await.expect("ack_all");
    })
    .await;
    let (created, processes) = (spans.of("create"), spans.of("process"));
    assert_eq!((created.len(), processes.len()), (3, 3), "{}", spans.tree());
    let sent = spans.one("send_batch");
    assert_eq!(attribute(sent, "messaging.batch.message_count").as_deref(), Some("3"));
    let settled = spans.one("ack");
    assert_eq!(attribute(settled, "messaging.batch.message_count").as_deref(), Some("3"));
    let received = spans.of("receive");
    let counts = received.iter().filter_map(|span| attribute(span, "messaging.batch.message_count"));
    assert_eq!(counts.filter_map(|count| count.parse::<usize>().ok()).sum::<usize>(), 3);
    for one in created {
        assert!(links_to(sent, one), "{sent:?}");
        assert_eq!(received.iter().filter(|receiving| links_to(receiving, one)).count(), 1);
        let process = processes.iter().find(|process| is_child(process, one));
        let process = process.unwrap_or_else(|| panic!("a message without its process:\n{}", spans.tree()));
        assert!(links_to(settled, process), "{settled:?}");
    }
    Ok(())
}

/// Handlers side by side on a stream stay each in its own trace.
pub async fn streams_keep_traces_apart<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, consumer) = cx.pair().await;
    let (answers, _answered) = cx.pair().await;
    let ((), spans) = traced(async {
        for number in 0..5 {
            let request = async { send(&producer, format!("m-{number}")).await };
            request.instrument(info_span!(parent: None, "request")).await;
        }
        let stream = consumer.into_stream().take(5);
        let handling = stream.for_each_concurrent(None, async |delivery| {
            let delivery = delivery.expect("a delivery");
            handle(&delivery, &answers).await;
            ack(delivery).await;
        });
        within(SOON, "five messages", handling).await;
    })
    .await;
    let requests = spans.of("request");
    let handlers = spans.of("handler");
    assert_eq!((requests.len(), handlers.len()), (5, 5));
    for request in requests {
        let find = |operation: &str, parent: &SpanData| {
            let spans_of = spans.of(operation);
            let found = spans_of.into_iter().find(|span| is_child(span, parent));
            found.unwrap_or_else(|| panic!("no {operation} below {}:\n{}", parent.name, spans.tree()))
        };
        let process = find("process", find("send", request));
        let _answer = find("send", find("handler", process));
    }
    Ok(())
}

/// The names that the conventions have, on each kind of span, and no others.
pub async fn attributes_are_the_conventions<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let ((), spans) = traced(async {
        send(&producer, "m").await;
        ack(receive(&mut consumer).await).await;
    })
    .await;
    let own = ["code.", "thread.", "busy_ns", "idle_ns", "target", "level"];
    let destination = attribute(spans.one("send"), "messaging.destination.name").expect("a destination");
    for (operation, kind, operation_type) in [
        ("send", SpanKind::Producer, "send"),
        ("receive", SpanKind::Client, "receive"),
        ("process", SpanKind::Consumer, "process"),
        ("ack", SpanKind::Client, "settle"),
    ] {
        let span = spans.one(operation);
        assert_eq!(span.span_kind, kind, "{operation}");
        assert_eq!(span.name, format!("{operation} {destination}"));
        for (name, value) in [
            ("messaging.system", cx.capabilities().backend()),
            ("messaging.operation.name", operation),
            ("messaging.operation.type", operation_type),
            ("messaging.destination.name", &destination),
        ] {
            assert_eq!(attribute(span, name).as_deref(), Some(value), "{operation}: {name}");
        }
        for name in span.attributes.iter().map(|pair| pair.key.as_str()) {
            let known = NAMES.contains(&name) || own.iter().any(|own| name.starts_with(own));
            assert!(known, "{operation}: {name} is not in the list");
        }
    }
    let process = spans.one("process");
    let of_the_system: &[&str] = match cx.capabilities().backend() {
        "kafka" => &["messaging.destination.partition.id", "messaging.kafka.offset"],
        "rabbitmq" => &["messaging.rabbitmq.message.delivery_tag"],
        "aws_sqs" => &["aws.sqs.queue.url"],
        _ => &[],
    };
    for name in of_the_system.iter().chain(&["buqueue.delivery_count"]) {
        assert!(attribute(process, name).is_some(), "no {name} in {process:?}");
    }
    let group = H::Backend::group(&cx.config(&cx.setup())).is_some();
    assert_eq!(attribute(process, "messaging.consumer.group.name").is_some(), group);
    let id = attribute(process, "messaging.message.id").expect("an id");
    assert_eq!(attribute(spans.one("send"), "messaging.message.id"), Some(id), "both sides know one id");
    Ok(())
}

/// All attributes that buqueue gives its spans, as the documentation lists them.
const NAMES: &[&str] = &[
    "messaging.system",
    "messaging.operation.name",
    "messaging.operation.type",
    "messaging.destination.name",
    "messaging.destination.partition.id",
    "messaging.consumer.group.name",
    "messaging.message.id",
    "messaging.batch.message_count",
    "messaging.kafka.offset",
    "messaging.rabbitmq.destination.routing_key",
    "messaging.rabbitmq.message.delivery_tag",
    "aws.sqs.queue.url",
    "error.type",
    "buqueue.delivery_count",
];

/// A message that carries a context keeps it, and its send links to it.
pub async fn what_is_carried_stays<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (producer, mut consumer) = cx.pair().await;
    let (header, spans) = traced(async {
        let message = Message::new("m").with_header("traceparent", PARENT).with_header("tracestate", "v=1");
        send(&producer, message).await;
        let delivery = receive(&mut consumer).await;
        let header = delivery.header("traceparent").map(str::to_owned);
        assert_eq!(delivery.header("tracestate"), Some("v=1"));
        ack(delivery).await;
        header
    })
    .await;
    assert_eq!(header.as_deref(), Some(PARENT));
    let (sent, process) = (spans.one("send"), spans.one("process"));
    assert_eq!(process.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(process.parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(process.span_context.trace_state().header(), "v=1");
    assert!(sent.links.iter().any(|link| link.span_context.span_id().to_string() == "b7ad6b7169203331"));
    Ok(())
}

/// Baggage comes through, and out again with what the handler sends.
pub async fn baggage_comes_through<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let (answers, mut answered) = cx.pair().await;
    let ((), spans) = traced(async {
        let message = Message::new("m")
            .with_header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .with_header("baggage", "tenant=gr%C3%BCn,tier=1");
        send(&producer, message).await;
        let delivery = receive(&mut consumer).await;
        handle(&delivery, &answers).await;
        ack(delivery).await;
        let answer = receive(&mut answered).await;
        let baggage = answer.header("baggage").expect("baggage").to_owned();
        let mut members: Vec<&str> = baggage.split(',').collect();
        members.sort_unstable();
        assert_eq!(members, ["tenant=gr%C3%BCn", "tier=1"]);
        assert_eq!(
            carried(&answer).expect("a parent").split('-').next(),
            Some("0af7651916cd43dd8448eb211c80319c")
        );
        ack(answer).await;
    })
    .await;
    assert_eq!(spans.of("process").len(), 2);
    Ok(())
}

/// Who does not trace sends no header more, and the same producer does when somebody traces.
pub async fn only_who_traces_adds_headers<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "untraced").await;
    let delivery = receive(&mut consumer).await;
    assert!(delivery.headers().is_empty(), "{:?}", delivery.headers());
    ack(delivery).await;
    let (parent, spans) = traced(async {
        send(&producer, "traced").await;
        let delivery = receive(&mut consumer).await;
        let parent = carried(&delivery);
        ack(delivery).await;
        parent
    })
    .await;
    let (trace, id) = place(spans.one("send"));
    assert_eq!(parent, Some(format!("{trace}-{id}")));
    Ok(())
}

/// What everybody in this process says under our name, threads and tasks of drivers included, while a case listens. Others
/// that run beside it send no canaries.
struct Listening(Log);

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

static LISTENERS: AtomicUsize = AtomicUsize::new(0);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Listening {
    fn begin() -> Self {
        static LOG: LazyLock<Log> = LazyLock::new(|| {
            let log = Log::default();
            let writer = log.clone();
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(move || writer.clone())
                .with_ansi(false)
                .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
                // What the brokers' own clients say is theirs.
                .with_filter(DynFilterFn::new(|metadata, _| {
                    metadata.target().starts_with("buqueue") && LISTENERS.load(Ordering::Relaxed) > 0
                }));
            let subscriber = tracing_subscriber::registry().with(layer);
            tracing::subscriber::set_global_default(subscriber).expect("the first to listen");
            log
        });
        LISTENERS.fetch_add(1, Ordering::Relaxed);
        Self(LOG.clone())
    }

    fn said(&self) -> String {
        String::from_utf8(self.0.0.lock().unwrap().clone()).expect("text")
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Neither a payload nor a header's value nor a password is in any event or span, at any level, whatever goes wrong:
/// failures, dead letters, a dead letter queue that refuses, a broken connection, a refused password.
pub async fn nothing_private_is_said<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let log = Listening::begin();
    let message = || Message::new("canary-payload").with_header("token", "canary-value");
    let wrong = cx.harness().wrong_credentials(&cx.setup());
    let secret = wrong.as_ref().map(|(_, secret)| secret.clone()).unwrap_or_else(|_| "canary".to_owned());
    let setup = cx.setup();
    let (producer, mut consumer, mut dead) = cx.with_dlq(&setup, 2).await;
    send(&producer, message()).await;
    send_all(&producer, [message(), message()]).await;
    nack(receive(&mut consumer).await).await;
    for _ in 0..2 {
        let poison = receive(&mut consumer).await;
        within(SOON, "dead_letter", poison.dead_letter("for a reason")).await.expect("dead_letter");
    }
    drop(receive(&mut consumer).await);
    let letter = receive(&mut dead).await;
    within(SOON, "redrive", letter.redrive(&producer)).await.expect("redrive");
    ack(receive(&mut dead).await).await;
    consumer.shutdown_handle().shutdown().await;

    // A dead letter queue that refuses.
    let setup = cx.setup();
    let destination = setup.dlq().queue;
    let (builder, _failures) = FailingDlq::<H::Backend>::builder(cx.config(&setup), 1);
    let builder = builder.dead_letter_queue(DlqConfig { destination, max_receive_count: 1 });
    let (producer, mut consumer) = builder.build_pair().await.expect("build_pair");
    send(&producer, message()).await;
    let poison = receive(&mut consumer).await;
    assert!(within(SOON, "nack", poison.nack()).await.is_err(), "the dead letter queue refuses");

    // A broken connection, under a consumer that waits.
    if let Ok(proxy) = cx.proxy().await {
        let setup = cx.leased();
        let mut consumer = cx.consumer(&setup.via(proxy.addr())).await;
        let producer = cx.producer(&setup).await;
        let cutting = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.cut();
            send(&producer, message()).await;
        };
        let (delivery, ()) = tokio::join!(receive_within(3 * SOON, &mut consumer), cutting);
        ack(delivery).await;
    }
    if let Ok((builder, _)) = wrong {
        assert!(builder.build_producer().await.is_err(), "the credentials are wrong");
    }
    let said = log.said();
    for expected in
        ["dropped unsettled", "moved to the dead letter queue", "dead letter could not be published"]
    {
        assert!(
            said.contains(expected),
            "the test sees what is said, and {expected:?} is not there:\n{said}"
        );
    }
    let private = |line: &&str| line.contains("canary") || line.contains(&secret);
    assert_eq!(said.lines().find(private), None);
    Ok(())
}
