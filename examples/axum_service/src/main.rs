//! Puts the shop together: one URL for the queue, an address for HTTP, and an orderly end.
//!
//! | variable | default | |
//! |---|---|---|
//! | `ORDERS_QUEUE_URL` | `memory://orders` | where orders go, as `buqueue::connect` reads it |
//! | `ORDERS_DEAD_LETTERS` | `orders-dead` | the queue of those that cannot be shipped, on the same broker |
//! | `LISTEN` | `127.0.0.1:8080` | where HTTP is |
//!
//! ```sh
//! ORDERS_QUEUE_URL='redis://127.0.0.1:6379?stream=orders&group=shop' cargo run -p axum_service --features redis
//! curl -i -H 'content-type: application/json' -d '{"id":"1","item":"lamp"}' http://127.0.0.1:8080/orders
//! ```

use std::error::Error;
use std::future::IntoFuture;
use std::time::Duration;

use axum_service::worker::{Failed, Warehouse};
use axum_service::{Order, api, worker};
use buqueue::prelude::*;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Less than platforms wait before they kill: thirty seconds, mostly.
const DRAIN: Duration = Duration::from_secs(25);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let url = variable("ORDERS_QUEUE_URL", "memory://orders");
    let dlq = DlqConfig { destination: variable("ORDERS_DEAD_LETTERS", "orders-dead"), max_receive_count: 5 };
    let queue = buqueue::connect(&url)?.dead_letter_queue(dlq).drain_timeout(DRAIN);
    let (producer, consumer) = queue.build_pair().await?;

    let shutdown = consumer.shutdown_handle();
    let mut worker = tokio::spawn(worker::run(consumer, Clerk));

    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let told_to_stop = async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    };
    let listener = TcpListener::bind(variable("LISTEN", "127.0.0.1:8080")).await?;
    tracing::info!("listening on {}", listener.local_addr()?);
    let http = axum::serve(listener, api::router(producer)).with_graceful_shutdown(told_to_stop);
    tokio::select! {
        served = http.into_future() => served?,
        // Nobody ships any more. A service that went on accepting orders would look healthy.
        ended = &mut worker => return Err(ended?.err().map_or_else(|| "the worker has ended".into(), Into::into)),
    }

    // No request is left that could enqueue. What the worker has begun it finishes; the rest waits at the broker.
    tracing::info!("{} orders are in flight", shutdown.in_flight());
    shutdown.shutdown().await;
    worker.await??;
    tracing::info!("stopped");
    Ok(())
}

/// Ships by saying so.
struct Clerk;

impl Warehouse for Clerk {
    async fn ship(&self, order: &Order) -> Result<(), Failed> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        tracing::info!(id = order.id, item = order.item, "shipped");
        Ok(())
    }
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}
