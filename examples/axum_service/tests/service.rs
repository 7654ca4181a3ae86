//! The service as it is deployed: its binary, its port, its signals.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

struct Service {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
    address: String,
}

impl Service {
    async fn start(queue: &str, packing_ms: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_axum_service"))
            .env("ORDERS_QUEUE_URL", queue)
            .env("ORDERS_DEAD_LETTERS", "orders-dead")
            .env("LISTEN", "127.0.0.1:0")
            .env("PACKING_MS", packing_ms)
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut service = Self { process, log, address: String::new() };
        service.address = service.after("listening on ").await;
        service
    }

    /// The next line of the log; none when the service has ended.
    async fn line(&mut self) -> Option<String> {
        timeout(LIMIT, self.log.next_line()).await.expect("the service says nothing").unwrap()
    }

    /// What the log says behind this.
    async fn after(&mut self, text: &str) -> String {
        loop {
            let line = self.line().await.expect("the service ended");
            if let Some((_, rest)) = line.split_once(text) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Whether the order was accepted.
    async fn place(&self, id: &str) -> bool {
        let body = format!(r#"{{"id":"{id}","item":"lamp"}}"#);
        let request = format!(
            "POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut connection = TcpStream::connect(&self.address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LIMIT, connection.read_to_string(&mut answer)).await.expect("an answer").unwrap();
        answer.starts_with("HTTP/1.1 202 ")
    }

    /// Sends SIGTERM.
    fn terminate(&self) {
        let pid = self.process.id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Reads the log to its end, and counts what was shipped; the end must be a good one.
    async fn end(mut self, shipped: &mut BTreeMap<String, u32>) {
        let mut last = String::new();
        while let Some(line) = self.line().await {
            count(&line, shipped);
            last = line;
        }
        assert!(last.ends_with("stopped"), "{last}");
        assert!(timeout(LIMIT, self.process.wait()).await.expect("it ends").unwrap().success());
    }
}

/// `… shipped id="o-1" item="lamp"`
fn count(line: &str, shipped: &mut BTreeMap<String, u32>) {
    if let Some((_, order)) = line.split_once("shipped id=\"") {
        let id = order.split('"').next().unwrap().to_owned();
        *shipped.entry(id).or_default() += 1;
    }
}

#[tokio::test]
async fn sigterm_ends_it_when_what_it_began_is_shipped() {
    // So slow that all of the first eight are under way when the signal comes.
    let mut service = Service::start("memory://orders", "5000").await;
    for number in 0..20 {
        assert!(service.place(&format!("o-{number}")).await);
    }
    service.terminate();
    let mut shipped = BTreeMap::new();
    let in_flight: usize = loop {
        let line = service.line().await.expect("the service ended");
        count(&line, &mut shipped);
        if let Some((text, _)) = line.split_once(" orders are in flight") {
            break text.rsplit(' ').next().unwrap().parse().unwrap();
        }
    };
    service.end(&mut shipped).await;
    assert!(
        in_flight > 0 && shipped.len() >= in_flight,
        "{in_flight} were in flight, {} were shipped",
        shipped.len()
    );
    assert!(shipped.len() < 20, "it stopped before all was done");
    assert!(shipped.values().all(|times| *times == 1), "{shipped:?}");
}

#[tokio::test]
async fn a_client_that_stops_half_way_does_not_keep_it_from_its_end() {
    let service = Service::start("memory://orders", "50").await;
    let mut connection = TcpStream::connect(&service.address).await.unwrap();
    connection.write_all(b"POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-le").await.unwrap();
    // The connection is known to the service when another request has been answered.
    assert!(service.place("o-1").await);
    service.terminate();
    service.end(&mut BTreeMap::new()).await;
}

#[tokio::test]
async fn what_was_accepted_is_shipped_by_whoever_comes_next() {
    let Ok(redis) = std::env::var("BUQUEUE_TEST_REDIS") else {
        assert!(std::env::var_os("BUQUEUE_TEST_REQUIRE").is_none(), "BUQUEUE_TEST_REDIS is not set");
        eprintln!("SKIPPED: a rolling update needs a broker, and BUQUEUE_TEST_REDIS is not set");
        return;
    };
    if cfg!(not(feature = "redis")) {
        eprintln!("SKIPPED: a rolling update needs a broker, and the feature redis is off");
        return;
    }
    let queue = format!("{redis}?stream=axum-service-{}&group=shop", std::process::id());
    let mut shipped = BTreeMap::new();

    let mut first = Service::start(&queue, "50").await;
    for number in 0..100 {
        assert!(first.place(&format!("o-{number}")).await);
    }
    while shipped.len() < 10 {
        let line = first.line().await.expect("the service ended");
        count(&line, &mut shipped);
    }
    first.terminate();
    first.end(&mut shipped).await;

    let mut second = Service::start(&queue, "50").await;
    while shipped.len() < 100 {
        let line = second.line().await.expect("the service ended");
        count(&line, &mut shipped);
    }
    second.terminate();
    second.end(&mut shipped).await;
    assert!(shipped.values().all(|times| *times == 1), "each once: {shipped:?}");
}
