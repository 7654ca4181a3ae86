//! Redis Streams keep the contract.
//!
//! Needs a server: `BUQUEUE_TEST_REDIS=redis://127.0.0.1:6379`. The cases that restart it call the program in
//! `BUQUEUE_XTASK`, or `cargo xtask`; those about credentials use the server in `BUQUEUE_TEST_REDIS_AUTH`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use buqueue_conformance::{Excluded, Foreign, Harness, Hook, Setup, Skip};
use buqueue_core::QueueBuilder;
use buqueue_redis::{RedisBackend, RedisBuilderExt, RedisConfig};
use redis::Value;

/// How long an answer may take where nothing breaks, and only the machine is slow.
const SLOW: Duration = Duration::from_secs(10);

/// One server.
struct Redis {
    url: String,
}

impl Redis {
    fn config(&self, setup: &Setup) -> RedisConfig {
        let url = match setup.via {
            Some(proxy) => format!("redis://{proxy}"),
            None => self.url.clone(),
        };
        RedisConfig {
            url,
            stream: setup.queue.clone(),
            group: setup.group.clone(),
            consumer: support::unique("consumer"),
            pending_timeout: setup.lease,
            ..RedisConfig::default()
        }
    }

    async fn query(&self, cmd: &redis::Cmd) -> Value {
        support::query(&self.url, cmd).await
    }
}

impl Harness for Redis {
    type Backend = RedisBackend;

    async fn connect() -> Result<Self, Skip> {
        let url =
            std::env::var("BUQUEUE_TEST_REDIS").map_err(|_| Skip::new("BUQUEUE_TEST_REDIS is not set"))?;
        Ok(Self { url })
    }

    fn builder(&self, setup: &Setup) -> QueueBuilder<RedisBackend> {
        // A limit that a test can reach.
        let builder = RedisBackend::builder(self.config(setup)).max_payload(4 * 1024 * 1024);
        // What a proxy holds up is noticed soon.
        let builder = if setup.via.is_some() { builder } else { builder.request_timeout(SLOW) };
        match setup.deduplication_window {
            Some(window) => builder.deduplication_window(window),
            None => builder,
        }
    }

    fn deduplication_window(&self) -> Option<Duration> {
        Some(Duration::from_millis(500))
    }

    fn broker_addr(&self) -> Hook<SocketAddr> {
        let authority = self.url.trim_start_matches("redis://").trim_end_matches('/');
        let mut addresses = authority.to_socket_addrs().map_err(|error| Excluded::new(error.to_string()))?;
        addresses.next().ok_or_else(|| Excluded::new("the endpoint has no address"))
    }

    async fn restart_broker(&self) -> Hook<()> {
        let program = std::env::var("BUQUEUE_XTASK");
        let arguments = ["brokers", "restart", "redis"];
        let mut command = match &program {
            Ok(program) => tokio::process::Command::new(program),
            Err(_) => {
                let mut cargo = tokio::process::Command::new(env!("CARGO"));
                cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
                cargo
            }
        };
        // Given an endpoint, it would take the server for somebody else's.
        let output = command.args(arguments).env_remove("BUQUEUE_TEST_REDIS").output().await;
        let output = output.unwrap_or_else(|error| panic!("cannot restart the broker: {error}"));
        assert!(output.status.success(), "restart: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn delete_group(&self, setup: &Setup) -> Hook<()> {
        self.query(redis::cmd("XGROUP").arg("DESTROY").arg(&setup.queue).arg(&setup.group)).await;
        Ok(())
    }

    async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
        self.query(redis::cmd("DEL").arg(&setup.queue)).await;
        let mut companions = redis::cmd("KEYS");
        companions.arg(format!("{{{}}}:*", setup.queue));
        if let Value::Array(keys) = self.query(&companions).await {
            for key in keys {
                if let Value::BulkString(key) = key {
                    self.query(redis::cmd("DEL").arg(key)).await;
                }
            }
        }
        Ok(())
    }

    async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
        let mut cmd = redis::cmd("XADD");
        cmd.arg(&setup.queue).arg("*");
        match foreign {
            Foreign::Plain => cmd.arg("payload").arg("foreign"),
            Foreign::Malformed => cmd.arg(b"\xff\xfe".as_slice()).arg(b"\0\xff".as_slice()),
            Foreign::BinaryHeader => cmd.arg("payload").arg("foreign").arg("bin").arg(b"\xff\xfe".as_slice()),
            Foreign::DuplicateHeader => {
                cmd.arg("payload").arg("foreign").arg("twice").arg("1").arg("twice").arg("2")
            }
            other => return Err(Excluded::new(format!("no entry is known for {other:?}"))),
        };
        self.query(&cmd).await;
        Ok(())
    }

    async fn stored(&self, setup: &Setup) -> Hook<u64> {
        let mut count = 0;
        for (command, key) in [
            ("XLEN", setup.queue.clone()),
            ("XLEN", format!("{{{}}}:retry:{}", setup.queue, setup.group)),
            ("ZCARD", format!("{{{}}}:delayed:{}", setup.queue, setup.group)),
            ("ZCARD", format!("{{{}}}:schedule", setup.queue)),
        ] {
            if let Value::Int(length) = self.query(redis::cmd(command).arg(key)).await {
                count += u64::try_from(length).unwrap_or(0);
            }
        }
        Ok(count)
    }

    fn wrong_credentials(&self, setup: &Setup) -> Hook<(QueueBuilder<RedisBackend>, String)> {
        let url = std::env::var("BUQUEUE_TEST_REDIS_AUTH")
            .map_err(|_| Excluded::new("BUQUEUE_TEST_REDIS_AUTH is not set"))?;
        let (_, host) = url.rsplit_once('@').unwrap_or(("", url.trim_start_matches("redis://")));
        let secret = "wrong-canary";
        let config = RedisConfig { url: format!("redis://:{secret}@{host}"), ..self.config(setup) };
        Ok((RedisBackend::builder(config), secret.to_owned()))
    }

    fn clashing(&self, setup: &Setup) -> Hook<QueueBuilder<RedisBackend>> {
        // The schedule of the queue is a sorted set, and can be no stream.
        let _ = setup;
        Err(Excluded::new(
            "a stream has no settings that could clash; other types of key: see tests/redis.rs",
        ))
    }

    fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<RedisBackend>, &'static str)> {
        let with = |change: fn(&mut RedisConfig)| {
            let mut config = self.config(setup);
            change(&mut config);
            RedisBackend::builder(config)
        };
        vec![
            (with(|config| config.url.clear()), "url"),
            (with(|config| config.url = "http://localhost".to_owned()), "url"),
            (with(|config| config.stream.clear()), "stream"),
            (with(|config| config.group.clear()), "group"),
            (with(|config| config.consumer.clear()), "consumer"),
            (with(|config| config.read_count = 0), "read_count"),
            (with(|config| config.pending_timeout = Duration::ZERO), "pending_timeout"),
        ]
    }
}

buqueue_conformance::conformance_tests!(Redis);
