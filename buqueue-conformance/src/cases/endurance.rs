//! Long runs under faults, with figures: promises 5, 9 and 14. Each prints one line of what it measured.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use buqueue_core::{Delivery, ErrorKind, Message};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::support::{LATE, Ledger, Numbers, SOON, ack, nothing_for, numbered, receive_within, text, within};
use crate::{ConsumerOf, Ctx, Harness, Outcome, ProducerOf};

const MESSAGES: usize = 20_000;
const FAULTS: usize = 5;

/// Nothing is stuck for longer, once the broker is back; and room for a loaded machine.
const STUCK: Duration = Duration::from_secs(13);

/// How long the whole of a run may take beyond its faults.
const LIMIT: Duration = Duration::from_secs(120);

/// What both sides of a run know.
#[derive(Debug)]
struct Run {
    ledger: Ledger,
    confirmed: usize,
    /// When something was last received, or the last fault ended.
    progress: Instant,
    longest_silence: Duration,
    /// A fault is going on: silence is nobody's fault.
    broken: bool,
}

impl Run {
    fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            ledger: Ledger::default(),
            confirmed: 0,
            progress: Instant::now(),
            longest_silence: Duration::ZERO,
            broken: false,
        }))
    }

    /// Something was received, or nothing for a while.
    fn note(&mut self, received: &[Delivery]) {
        // Where all that was confirmed has come there is nothing to be silent about.
        let now = Instant::now();
        if self.broken || self.ledger.is_complete() {
            self.progress = now;
        }
        self.longest_silence = self.longest_silence.max(now - self.progress);
        for delivery in received {
            self.ledger.received(&text(delivery));
            self.progress = now;
        }
    }

    fn broken(&mut self, broken: bool) {
        self.broken = broken;
        self.progress = Instant::now();
    }
}

/// Sends all messages in batches, each until it is confirmed.
fn sending<H: Harness>(producer: ProducerOf<H>, run: &Arc<Mutex<Run>>) -> JoinHandle<()> {
    let run = Arc::clone(run);
    tokio::spawn(async move {
        for batch in numbered("m", MESSAGES).chunks(50) {
            let mut open = batch.to_vec();
            while !open.is_empty() {
                let messages: Vec<_> = open.iter().map(|payload| Message::new(payload.clone())).collect();
                for payload in &open {
                    run.lock().unwrap().ledger.attempted(payload);
                }
                let sent = producer.send_batch(messages).await;
                {
                    let mut run = run.lock().unwrap();
                    match sent {
                        Ok(_) => {
                            run.confirmed += open.len();
                            open.drain(..).for_each(|payload| run.ledger.confirmed(&payload));
                        }
                        Err(error) => {
                            assert!(matches!(error.kind, ErrorKind::PartialBatch { .. }), "{error:?}");
                            let mut outcomes = error.outcomes().iter();
                            open.retain(|payload| match outcomes.next().unwrap() {
                                Ok(_) => {
                                    run.confirmed += 1;
                                    run.ledger.confirmed(payload);
                                    false
                                }
                                Err(error) => {
                                    assert!(error.is_transient(), "{error:?}");
                                    true
                                }
                            });
                        }
                    }
                }
                if !open.is_empty() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

/// Receives and acks until everything that was confirmed has come and the senders are done.
fn receiving<H: Harness>(
    mut consumer: ConsumerOf<H>,
    run: &Arc<Mutex<Run>>,
    mut sent: tokio::sync::oneshot::Receiver<()>,
) -> JoinHandle<ConsumerOf<H>> {
    let run = Arc::clone(run);
    tokio::spawn(async move {
        let mut all_sent = false;
        loop {
            match tokio::time::timeout(Duration::from_millis(500), consumer.receive_batch(100)).await {
                Ok(batch) => {
                    let batch = batch.unwrap_or_else(|error| panic!("receive_batch: {error:?}"));
                    run.lock().unwrap().note(&batch);
                    // An ack that fails brings the message again, which the ledger counts.
                    drop(Delivery::ack_all(batch).await);
                }
                Err(_) => run.lock().unwrap().note(&[]),
            }
            all_sent = all_sent || sent.try_recv().is_ok();
            let run = run.lock().unwrap();
            assert!(run.longest_silence <= STUCK, "stuck: {}", run.ledger.account());
            if all_sent && run.ledger.is_complete() {
                drop(run);
                return consumer;
            }
        }
    })
}

/// Sends, receives, and calls `fault` again and again in the middle of it.
async fn under_faults<H: Harness>(
    cx: &Ctx<H>,
    (producer, consumer): (ProducerOf<H>, ConsumerOf<H>),
    what: &str,
    mut fault: impl AsyncFnMut() -> Outcome,
) -> Outcome {
    let run = Run::new();
    let (done, sent) = tokio::sync::oneshot::channel();
    let received = receiving::<H>(consumer, &run, sent);
    let sent = sending::<H>(producer, &run);
    for number in 1..=FAULTS {
        let reached = MESSAGES * number / (FAULTS + 1);
        within(LIMIT, &format!("{reached} confirmed"), async {
            while run.lock().unwrap().confirmed < reached && !sent.is_finished() {
                assert!(!received.is_finished(), "the receiver has ended early");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        run.lock().unwrap().broken(true);
        let outcome = fault().await;
        run.lock().unwrap().broken(false);
        outcome?;
    }
    within(LIMIT, "all sent", sent).await.unwrap();
    done.send(()).unwrap();
    match tokio::time::timeout(LIMIT, received).await {
        Ok(consumer) => drop(consumer.unwrap()),
        Err(_) => panic!("not all received within {LIMIT:?}: {}", run.lock().unwrap().ledger.account()),
    }
    let run = run.lock().unwrap();
    let account = run.ledger.check();
    assert_eq!(account.confirmed, MESSAGES);
    measured(
        cx,
        &format!("{FAULTS} {what}: {account}, longest silence {:.1} s", run.longest_silence.as_secs_f64()),
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a figure that a person wants to see")]
fn measured<H: Harness>(cx: &Ctx<H>, figures: &str) {
    println!("measured {} {}::{}: {figures}", H::name(), cx.case().group, cx.case().name);
}

/// The broker restarts five times under load: everything confirmed comes, and nothing is stuck.
pub async fn five_restarts<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let pair = cx.pair_on(&cx.leased()).await;
    // Asked once before the load, so that a harness that cannot do it is found out at no cost.
    cx.harness().restart_broker().await?;
    under_faults(cx, pair, "restarts", async || cx.harness().restart_broker().await).await
}

/// The connections of both sides fall silent five times under load.
pub async fn five_half_opens<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    let pair = cx.pair_on(&cx.leased().via(proxy.addr())).await;
    under_faults(cx, pair, "half-open connections", async || {
        proxy.half_open();
        Ok(())
    })
    .await
}

/// A thousand schedules at random within half a minute: each once, none early, none late.
pub async fn thousand_schedules<H: Harness>(cx: &Ctx<H>) -> Outcome {
    const COUNT: usize = 1000;
    /// What is promised of each holds for most of them also where the machine is slow.
    const PROMISED: Duration = Duration::from_secs(1);
    let (producer, mut consumer) = cx.pair().await;
    let seed = Utc::now().timestamp_micros().unsigned_abs();
    let mut numbers = Numbers::new(seed);
    let start = Utc::now();
    let times: Vec<DateTime<Utc>> = (0..COUNT)
        .map(|_| start + TimeDelta::microseconds(i64::try_from(numbers.below(30_000_000)).unwrap()))
        .collect();
    let accepting = async {
        for (chunk, times) in times.chunks(100).enumerate() {
            let sending = times
                .iter()
                .enumerate()
                .map(|(number, at)| producer.send_at(Message::new((chunk * 100 + number).to_string()), *at));
            for sent in within(SOON, "100 schedules", join_all(sending)).await {
                sent.unwrap();
            }
        }
        Utc::now()
    };
    // Received while the rest is still being accepted, as in a program.
    let receiving = async {
        let mut arrived = Vec::with_capacity(COUNT);
        // On the side, so that a slow ack makes nothing late.
        let mut acks = JoinSet::new();
        while arrived.len() < COUNT {
            let delivery = receive_within(2 * SOON, &mut consumer).await;
            let now = Utc::now();
            let number = delivery.payload_json::<usize>().unwrap();
            assert!(now >= times[number], "{} early (seed {seed})", times[number] - now);
            assert_eq!(delivery.delivery_count(), 1, "schedule {number} (seed {seed})");
            arrived.push((number, now));
            acks.spawn(ack(delivery));
        }
        within(SOON, "all acks", acks.join_all()).await;
        arrived
    };
    let (accepted, arrived) = tokio::join!(accepting, receiving);
    let mut seen: Vec<usize> = arrived.iter().map(|(number, _)| *number).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..COUNT).collect::<Vec<_>>(), "each once (seed {seed})");
    // What was due before it was accepted cannot be in time.
    let mut late: Vec<Duration> = arrived
        .iter()
        .filter(|(number, _)| times[*number] >= accepted)
        .map(|(number, now)| (*now - times[*number]).to_std().unwrap())
        .collect();
    late.sort_unstable();
    let of = |percent: usize| late[(late.len() - 1) * percent / 100];
    measured(
        cx,
        &format!("{COUNT} schedules, 0 early, late p50 {:?}, p99 {:?}, max {:?}", of(50), of(99), of(100)),
    );
    assert!(of(50) <= PROMISED, "mostly {:?} late (seed {seed})", of(50));
    assert!(of(100) <= LATE, "{:?} late (seed {seed})", of(100));
    nothing_for(Duration::from_millis(200), &mut consumer).await;
    Ok(())
}

/// Four hundred schedules for a queue that is deleted meanwhile: those for other queues come in time.
pub async fn schedules_to_a_deleted_queue<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let doomed = cx.setup();
    let (producer, consumer) = cx.pair_on(&doomed).await;
    let (other, mut receiver) = cx.pair().await;
    // The first one may have to declare what all of them need.
    let first = Utc::now() + TimeDelta::seconds(20);
    within(4 * SOON, "a schedule", producer.send_at(Message::new("orphan"), first)).await.unwrap();
    // Far enough for a slow broker: the queue is to be gone by then, and not to go in that moment.
    let due = Utc::now() + TimeDelta::milliseconds(6000);
    let sending = numbered("orphan", 400).into_iter().map(|text| producer.send_at(Message::new(text), due));
    for sent in within(4 * SOON, "400 schedules", join_all(sending)).await {
        sent.unwrap();
    }
    drop((producer, consumer));
    cx.harness().delete_queue(&doomed).await?;
    // Before, with and after them.
    let start = Utc::now().max(due - TimeDelta::milliseconds(2500));
    let times: Vec<_> = (0..30).map(|number| start + TimeDelta::milliseconds(300 + 200 * number)).collect();
    for (number, at) in times.iter().enumerate() {
        within(SOON, "send_at", other.send_at(Message::new(number.to_string()), *at)).await.unwrap();
    }
    let mut latest = Duration::ZERO;
    for _ in 0..times.len() {
        let delivery = receive_within(SOON, &mut receiver).await;
        let now = Utc::now();
        let at = times[delivery.payload_json::<usize>().unwrap()];
        assert!(now >= at, "{} early", at - now);
        latest = latest.max((now - at).to_std().unwrap());
        ack(delivery).await;
    }
    measured(cx, &format!("400 orphans, others late by {latest:?} at most"));
    assert!(latest <= LATE, "{latest:?} late");
    Ok(())
}
