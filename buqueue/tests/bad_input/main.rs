//! What bad input is answered with: one row of the table, one test. Each row states the kind and the words that name
//! the field or the fact. Run with `--nocapture` to read the table.
#![cfg(all(
    feature = "kafka",
    feature = "memory",
    feature = "nats",
    feature = "rabbitmq",
    feature = "redis",
    feature = "sqs"
))]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says so"
)]

use buqueue::prelude::*;

type Answer = Result<(), BuqueueError>;

/// The server a row needs; without it the row is skipped loudly, or fails where brokers are required.
fn server(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        assert_ne!(std::env::var("BUQUEUE_TEST_REQUIRE").as_deref(), Ok("1"), "{variable} is not set");
        println!("SKIPPED: {variable} is not set");
    }
    url
}

/// A name that nobody else uses.
fn unique(row: &str) -> String {
    format!("bad-input-{row}-{}-{}", std::process::id(), chrono::Utc::now().timestamp_micros())
}

/// Turns rows into tests. A row whose server is missing gives `None`.
macro_rules! rows {
    ($($name:ident: $kind:pat, $words:literal, $answer:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let answer: Option<Answer> = $answer.await;
            let Some(answer) = answer else { return };
            let error = answer.expect_err("bad input is refused");
            println!("| {} | {:?} | {error} |", stringify!($name).replace('_', " "), error.kind);
            assert!(matches!(error.kind, $kind), "{error:?}");
            let text = error.to_string();
            for word in $words.split(" & ") {
                assert!(text.contains(word), "{text:?} does not say {word:?}");
            }
            assert!(!text.contains("canary") && !format!("{error:?}").contains("canary"), "a secret shows");
        }
    )*};
}

mod kafka;
mod memory;
mod message;
mod nats;
mod rabbitmq;
mod redis;
mod sqs;
