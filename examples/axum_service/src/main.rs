//! Puts the shop together: one URL for the queue, an address for HTTP, and an orderly end.
//!
//! | variable | default | |
//! |---|---|---|
//! | `ORDERS_QUEUE_URL` | `memory://orders` | where orders go, as `buqueue::connect` reads it |
//! | `ORDERS_DEAD_LETTERS` | `orders-dead` | the queue of those that cannot be shipped, on the same broker; of a FIFO queue `orders-dead.fifo` |
//! | `LISTEN` | `127.0.0.1:8080` | where HTTP is |
//! | `PACKING_MS` | `50` | how long it takes to ship an order |
//!
//! ```sh
//! ORDERS_QUEUE_URL='redis://127.0.0.1:6379?stream=orders&group=shop' cargo run -p axum_service --features redis
//! curl -i -H 'content-type: application/json' -d '{"id":"1","item":"lamp"}' http://127.0.0.1:8080/orders
//! ```

use std::error::Error;
use std::future::IntoFuture;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use axum_service::worker::{Failed, Warehouse};
use axum_service::{Order, api, worker};
use buqueue::prelude::*;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long requests may take to end. With [`DRAIN`], and what closing the connections takes, less than platforms wait before
/// they kill: thirty seconds, mostly.
const LAST_REQUESTS: Duration = Duration::from_secs(6);
/// How long the worker may take to end what it has begun.
const DRAIN: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // First of all, so that no signal ends the process half-way.
    let mut stop = signals()?;
    let url = variable("ORDERS_QUEUE_URL", "memory://orders");
    let dlq = DlqConfig { destination: variable("ORDERS_DEAD_LETTERS", "orders-dead"), max_receive_count: 5 };
    let queue = buqueue::connect(&url)?.dead_letter_queue(dlq).drain_timeout(DRAIN);
    let (producer, consumer) = queue.build_pair().await?;
    let packing = variable("PACKING_MS", "50").parse().map_err(|_| "PACKING_MS: no number")?;

    let shutdown = consumer.shutdown_handle();
    let mut worker = tokio::spawn(worker::run(consumer, Clerk { packing: Duration::from_millis(packing) }));

    let listener = TcpListener::bind(variable("LISTEN", "127.0.0.1:8080")).await?;
    tracing::info!("listening on {}", listener.local_addr()?);
    let told_to_stop = until_told(stop.clone());
    let mut http =
        axum::serve(listener, api::router(producer)).with_graceful_shutdown(told_to_stop).into_future();
    tokio::select! {
        served = &mut http => served?,
        // Nobody ships any more. A service that went on accepting orders would look healthy.
        ended = &mut worker => return Err(ended?.err().map_or_else(|| "the worker has ended".into(), Into::into)),
        _ = stop.changed() => match timeout(LAST_REQUESTS, &mut http).await {
            Ok(served) => served?,
            // A client that has sent half a request must not keep the worker from its end.
            Err(_) => tracing::warn!("some clients did not finish their requests"),
        },
    }

    // What the worker has begun it finishes; the rest waits at the broker.
    tracing::info!("{} orders are in flight", shutdown.in_flight());
    shutdown.shutdown().await;
    worker.await??;
    tracing::info!("stopped");
    Ok(())
}

/// Becomes true with the first SIGTERM or SIGINT. The second one ends the process as if nobody listened.
fn signals() -> Result<watch::Receiver<bool>, std::io::Error> {
    let (told, stop) = watch::channel(false);
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for signals in 1.. {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
            if signals > 1 {
                std::process::exit(130);
            }
            told.send_replace(true);
        }
    });
    Ok(stop)
}

async fn until_told(mut stop: watch::Receiver<bool>) {
    // It fails when nobody is left who could tell: then it is over as well.
    let _ = stop.wait_for(|told| *told).await;
}

/// Ships by saying so.
struct Clerk {
    packing: Duration,
}

impl Warehouse for Clerk {
    async fn ship(&self, order: &Order) -> Result<(), Failed> {
        tokio::time::sleep(self.packing).await;
        tracing::info!(id = order.id, item = order.item, "shipped");
        Ok(())
    }
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}
