//! A shop that can be watched: traces in the terminal, metrics on `/metrics`, logs on standard error.
//!
//! `cargo run -p buqueue-observability` runs some ten seconds in memory; `BROKER_URL` takes it to a broker, as in
//! `../src/lib.rs`. What to look at is told in the README beside this file.
//!
//! | variable | default | |
//! |---|---|---|
//! | `OBSERVE_SECONDS` | `10` | how long orders are placed; `0`: until Ctrl-C |
//! | `METRICS_ADDR` | `127.0.0.1:9464` | where `/metrics` is |
//! | `RUST_LOG` | `warn,observability=off` | what is logged, as `target=level` |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | `http://localhost:4318` | where spans go to, with `--features otlp` |

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

mod books;
#[cfg(test)]
mod dashboard;
mod exposition;
#[cfg(all(feature = "otlp", not(test)))]
mod otlp;
mod shop;
mod telemetry;
mod tree;

use std::error::Error;
use std::time::Duration;

use buqueue_examples::Broker;

use crate::shop::Shop;
use crate::telemetry::Telemetry;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The orders whose traces are shown; `shop::fate` knows what happens to them.
const SHOWN: [(u64, &str); 3] = [(1, "went well"), (2, "was retried"), (3, "died")];

/// What is printed at the end; the dashboard shows all of it.
const IMPORTANT: [&str; 8] = [
    "messaging_client_sent_messages_total",
    "messaging_client_consumed_messages_total",
    "messaging_process_duration_seconds_count",
    "buqueue_deliveries_redelivered_total",
    "buqueue_deliveries_abandoned_total",
    "buqueue_deliveries_dead_lettered_total",
    "buqueue_queue_messages",
    "buqueue_queue_dead_letters",
];

#[tokio::main]
async fn main() -> Result<()> {
    let seconds = match std::env::var("OBSERVE_SECONDS") {
        Ok(seconds) => seconds.parse().map_err(|_| format!("OBSERVE_SECONDS: no number: {seconds:?}"))?,
        Err(_) => 10,
    };
    // Before any queue is opened: instruments are made with it.
    let telemetry = Telemetry::install()?;
    let (listener, note) = exposition::listen().await?;
    let broker = Broker::from_env();
    println!("buqueue observability on {}", broker.scheme());
    println!("metrics: http://{}/metrics{note}", listener.local_addr()?);
    tokio::spawn(exposition::serve(listener, telemetry.registry.clone()));

    let (shop, outlets) = Shop::open(&broker).await?;
    let progress = tokio::spawn(tell(shop.clone()));
    tokio::select! {
        outcome = shop.run(outlets, Duration::from_millis(30), enough(seconds), &telemetry.registry) => outcome?,
        () = interrupted_twice() => return Err("interrupted before all orders were settled".into()),
    }
    progress.abort();

    let spans = telemetry.spans.all();
    for (order, what) in SHOWN {
        let trace = tree::trace_of(&spans, order).ok_or_else(|| format!("order {order} has no trace"))?;
        println!("\n\x1b[1mOrder {order}, which {what}\x1b[0m  trace {trace}");
        print!("{}", tree::draw(&spans, trace));
    }

    let text = exposition::text(&telemetry.registry)?;
    println!("\n\x1b[1mOf /metrics\x1b[0m");
    for line in text.lines().filter(|line| IMPORTANT.iter().any(|name| line.starts_with(name))) {
        println!("{line}");
    }

    println!("\n\x1b[1mDoes it add up?\x1b[0m");
    let mut all_hold = true;
    let samples = exposition::parse(&text);
    for claim in books::claims(&shop, &samples).into_iter().chain(tree::claims(&spans)) {
        println!("  {} {}", if claim.holds { "✓" } else { "✗" }, claim.text);
        all_hold &= claim.holds;
    }
    // Blocks until the last spans are out.
    tokio::task::spawn_blocking(move || telemetry.shut_down()).await??;
    if all_hold { Ok(()) } else { Err("the numbers do not add up".into()) }
}

/// When no more orders are placed.
async fn enough(seconds: u64) {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    if seconds == 0 {
        return interrupt.await;
    }
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        () = interrupt => {}
    }
}

/// The second Ctrl-C waits for nobody.
async fn interrupted_twice() {
    for _ in 0..2 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A line now and then, so that one sees it live.
async fn tell(shop: Shop) {
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let waiting = match shop.monitor().queue_stats().await {
            Ok(stats) => {
                let of = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
                let (in_flight, scheduled) = (of(stats.in_flight), of(stats.scheduled));
                format!("{} ready, {in_flight} in flight, {scheduled} for later", stats.ready)
            }
            Err(error) => format!("cannot be counted: {error}"),
        };
        println!("  {}; in the queue: {waiting}", shop.books());
    }
}
