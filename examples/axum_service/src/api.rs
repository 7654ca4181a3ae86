//! The HTTP side: an order is accepted when the broker has it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use buqueue::prelude::*;
use serde::Serialize;

use crate::Order;

/// Larger orders than this many bytes are refused before they are read.
const MAX_ORDER: usize = 64 * 1024;

/// How long a client waits for the broker.
const PATIENCE: Duration = Duration::from_secs(5);

type Orders = Arc<dyn QueueProducer>;

/// The service's routes.
pub fn router(orders: Box<dyn QueueProducer>) -> Router {
    Router::new()
        .route("/orders", post(place))
        .route("/health", get(health))
        .layer(DefaultBodyLimit::max(MAX_ORDER))
        .with_state(Orders::from(orders))
}

/// What the client hears of an order.
#[derive(Debug, Serialize)]
struct Accepted {
    message: String,
}

/// `202` when the broker has taken it, and not before: nothing that was accepted is lost with this process.
async fn place(
    State(orders): State<Orders>,
    order: Result<Json<Order>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(order) = order?;
    // The key keeps the orders of one item in order, where the broker has order. The id lets a broker that can drop
    // what a client sends a second time because it never heard the answer.
    let message = Message::from_json_with_key(&order, &order.item)?.with_deduplication_id(&order.id);
    // The order may be there all the same, when this is given up: the client sends it again, with the same id.
    let id = tokio::time::timeout(PATIENCE, orders.send(message)).await.map_err(|_| Problem::Busy)??;
    Ok((StatusCode::ACCEPTED, Json(Accepted { message: id.to_string() })).into_response())
}

/// Whether the broker answers, and how much waits there.
async fn health(State(orders): State<Orders>) -> Result<String, Problem> {
    let stats = tokio::time::timeout(PATIENCE, orders.queue_stats()).await.map_err(|_| Problem::Busy)?;
    let waiting = stats?.ready;
    Ok(format!("{waiting} orders wait\n"))
}

/// Why a request failed, as its client may know it.
#[derive(Debug)]
enum Problem {
    /// It is not JSON, or not an order.
    Request(JsonRejection),
    /// The broker does not answer, or lets senders wait.
    Busy,
    /// The queue.
    Queue(BuqueueError),
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::Request(rejection)
    }
}

impl From<BuqueueError> for Problem {
    fn from(error: BuqueueError) -> Self {
        Self::Queue(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        const RETRY_AFTER: [(HeaderName, &str); 1] = [(header::RETRY_AFTER, "5")];
        // Which broker, and what is wrong with it, is none of the client's business.
        let again = (StatusCode::SERVICE_UNAVAILABLE, RETRY_AFTER, "try again");
        match self {
            Self::Request(rejection) => rejection.into_response(),
            Self::Busy => again.into_response(),
            Self::Queue(error) => {
                tracing::warn!(%error, "the queue failed");
                match error.kind {
                    ErrorKind::PayloadTooLarge => {
                        (StatusCode::PAYLOAD_TOO_LARGE, "too large").into_response()
                    }
                    ErrorKind::InvalidMessage => {
                        (StatusCode::BAD_REQUEST, "not a valid order").into_response()
                    }
                    _ if error.is_transient() => again.into_response(),
                    _ => (StatusCode::INTERNAL_SERVER_ERROR, "not accepted").into_response(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use buqueue::memory::{MemoryBackend, MemoryConfig};
    use tower::ServiceExt;

    use super::*;

    async fn shop() -> (Router, Box<dyn QueueConsumer>) {
        let builder = MemoryBackend::builder(MemoryConfig::default()).make_dynamic();
        let (producer, consumer) = builder.build_pair().await.unwrap();
        (router(producer), consumer)
    }

    fn post(body: impl Into<Body>) -> Request<Body> {
        let request = Request::post("/orders").header("content-type", "application/json");
        request.body(body.into()).unwrap()
    }

    #[tokio::test]
    async fn an_order_that_is_accepted_is_in_the_queue() {
        let (router, mut consumer) = shop().await;
        let answer = router.oneshot(post(r#"{"id":"o-1","item":"lamp"}"#)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);

        let delivery = consumer.try_receive().await.unwrap().expect("an order");
        let order: Order = delivery.payload_json().unwrap();
        assert_eq!(order, Order { id: "o-1".to_owned(), item: "lamp".to_owned() });
        assert_eq!((delivery.routing_key(), delivery.deduplication_id()), (Some("lamp"), Some("o-1")));
        delivery.ack().await.unwrap();
    }

    #[tokio::test]
    async fn a_repeated_request_is_one_order() {
        let (router, mut consumer) = shop().await;
        for _ in 0..2 {
            let answer = router.clone().oneshot(post(r#"{"id":"o-1","item":"lamp"}"#)).await.unwrap();
            assert_eq!(answer.status(), StatusCode::ACCEPTED);
        }
        consumer.receive().await.unwrap().ack().await.unwrap();
        assert!(consumer.try_receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_order_is_refused() {
        let (router, mut consumer) = shop().await;
        for (body, status) in [
            ("{", StatusCode::BAD_REQUEST),
            (r#"{"id":"o-1"}"#, StatusCode::UNPROCESSABLE_ENTITY),
            (&"x".repeat(MAX_ORDER + 1), StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            let answer = router.clone().oneshot(post(body.to_owned())).await.unwrap();
            assert_eq!(answer.status(), status);
        }
        assert!(consumer.try_receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn health_tells_how_much_waits() {
        let (router, _consumer) = shop().await;
        let placed = router.clone().oneshot(post(r#"{"id":"o-1","item":"lamp"}"#)).await.unwrap();
        assert_eq!(placed.status(), StatusCode::ACCEPTED);
        let answer = router.oneshot(Request::get("/health").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let said = axum::body::to_bytes(answer.into_body(), 1024).await.unwrap();
        assert_eq!(said, "1 orders wait\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_is_full_asks_the_client_to_wait() {
        let config = MemoryConfig { capacity: 1, ..Default::default() };
        let (producer, _consumer) = MemoryBackend::builder(config).make_dynamic().build_pair().await.unwrap();
        let router = router(producer);
        let first = router.clone().oneshot(post(r#"{"id":"o-1","item":"lamp"}"#)).await.unwrap();
        let second = router.oneshot(post(r#"{"id":"o-2","item":"lamp"}"#)).await.unwrap();
        assert_eq!(first.status(), StatusCode::ACCEPTED);
        assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(second.headers()[header::RETRY_AFTER], "5");
    }
}
