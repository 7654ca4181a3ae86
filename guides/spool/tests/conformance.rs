//! A queue in a directory keeps the contract.
//!
//! The directory lies in cargo's target directory, on a real disk. Worker processes find it by themselves.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use buqueue_conformance::{Excluded, Foreign, Harness, Hook, Setup, Skip};
use buqueue_core::QueueBuilder;
use buqueue_spool::{SpoolBackend, SpoolConfig};

/// One directory for all cases; each has queues of its own in it.
struct Spool {
    directory: PathBuf,
}

impl Spool {
    fn messages(&self, setup: &Setup) -> PathBuf {
        self.directory.join(&setup.queue).join("messages")
    }
}

impl Harness for Spool {
    type Backend = SpoolBackend;

    async fn connect() -> Result<Self, Skip> {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("conformance");
        fs::create_dir_all(&directory).unwrap();
        Ok(Self { directory })
    }

    fn builder(&self, setup: &Setup) -> QueueBuilder<SpoolBackend> {
        SpoolBackend::builder(SpoolConfig {
            directory: self.directory.clone(),
            queue: setup.queue.clone(),
            lease: setup.lease,
            ..SpoolConfig::default()
        })
    }

    fn broker_addr(&self) -> Hook<SocketAddr> {
        Err(Excluded::new("there is no connection to a directory"))
    }

    async fn restart_broker(&self) -> Hook<()> {
        Err(Excluded::new("there is no server to restart: what is left of a process are the files"))
    }

    async fn clean_up(&self, queue: &str) {
        for queue in [queue.to_owned(), format!("{queue}-dlq")] {
            // Deliveries that a case has dropped are given back in the background, which may create it once more.
            drop(fs::remove_dir_all(self.directory.join(queue)));
        }
    }

    async fn delete_group(&self, _: &Setup) -> Hook<()> {
        Err(Excluded::new("a queue has one group, for as long as it is there"))
    }

    async fn delete_queue(&self, setup: &Setup) -> Hook<()> {
        fs::remove_dir_all(self.directory.join(&setup.queue)).unwrap();
        Ok(())
    }

    async fn inject(&self, setup: &Setup, foreign: Foreign) -> Hook<()> {
        let content: &[u8] = match foreign {
            Foreign::Plain => b"foreign",
            Foreign::Malformed => b"buqueue-spool {\"headers\":7}\n\xff",
            Foreign::BinaryHeader => b"buqueue-spool {\"headers\":{\"bin\":\"\xff\xfe\"}}\nforeign",
            Foreign::DuplicateHeader => {
                b"buqueue-spool {\"headers\":{\"twice\":\"1\",\"twice\":\"2\"}}\nforeign"
            }
            other => return Err(Excluded::new(format!("no file is known for {other:?}"))),
        };
        let draft = self.directory.join(format!("{}.draft", setup.queue));
        fs::write(&draft, content).unwrap();
        fs::rename(draft, self.messages(setup).join("mail.txt")).unwrap();
        Ok(())
    }

    async fn stored(&self, setup: &Setup) -> Hook<u64> {
        Ok(fs::read_dir(self.messages(setup)).unwrap().count().try_into().unwrap())
    }

    fn wrong_credentials(&self, _: &Setup) -> Hook<(QueueBuilder<SpoolBackend>, String)> {
        Err(Excluded::new("a directory asks for no credentials"))
    }

    fn clashing(&self, _: &Setup) -> Hook<QueueBuilder<SpoolBackend>> {
        Err(Excluded::new("nothing of the configuration is kept in the directory"))
    }

    fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<SpoolBackend>, &'static str)> {
        let with = |change: fn(&mut SpoolConfig)| self.builder(setup).configure(change);
        vec![
            (with(|config| config.directory.clear()), "directory"),
            (with(|config| config.directory.push("not-mounted")), "directory"),
            (with(|config| config.queue.clear()), "queue"),
            (with(|config| config.queue = "../elsewhere".to_owned()), "queue"),
            (with(|config| config.queue = "a/b".to_owned()), "queue"),
            (with(|config| config.lease = Duration::ZERO), "lease"),
            (with(|config| config.lease = Duration::MAX), "lease"),
            (with(|config| config.poll_interval = Duration::ZERO), "poll_interval"),
            (with(|config| config.poll_interval = Duration::from_secs(1)), "poll_interval"),
        ]
    }
}

buqueue_conformance::conformance_tests!(Spool);
