//! What only a queue in a directory does.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use buqueue_core::{Consumer, DlqConfig, ErrorKind, Message, Producer, unique_id};
use buqueue_spool::{SpoolBackend, SpoolConfig};

type Pair = (Producer<SpoolBackend>, Consumer<SpoolBackend>);

/// A directory of its own, removed in the end.
struct Temporary(SpoolConfig);

impl Temporary {
    fn new() -> Self {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique_id());
        fs::create_dir_all(&directory).unwrap();
        Self(SpoolConfig { directory, queue: "orders".to_owned(), ..SpoolConfig::default() })
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.directory.join("orders").join(below)
    }

    async fn pair(&self) -> Pair {
        SpoolBackend::builder(self.0.clone()).build_pair().await.unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0.directory));
    }
}

#[tokio::test]
async fn a_file_that_is_moved_in_is_a_message() {
    let temporary = Temporary::new();
    let (_, mut consumer) = temporary.pair().await;
    fs::write(temporary.path("drafts/mail"), "by hand").unwrap();
    fs::rename(temporary.path("drafts/mail"), temporary.path("messages/mail.txt")).unwrap();
    let delivery = consumer.receive().await.unwrap();
    assert_eq!((delivery.payload().as_ref(), delivery.delivery_count()), (b"by hand".as_slice(), 1));
    delivery.ack().await.unwrap();
    assert_eq!(fs::read_dir(temporary.path("messages")).unwrap().count(), 0);
}

#[tokio::test]
async fn links_directories_and_hidden_files_are_no_messages() {
    let temporary = Temporary::new();
    let (_, mut consumer) = temporary.pair().await;
    fs::write(temporary.path("messages/.draft"), "hidden").unwrap();
    fs::create_dir(temporary.path("messages/directory")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(temporary.path("messages/.draft"), temporary.path("messages/link")).unwrap();
    assert!(consumer.try_receive().await.unwrap().is_none());
    assert_eq!(consumer.monitor().queue_stats().await.unwrap().ready, 0);
}

#[tokio::test]
async fn what_a_killed_writer_has_left_is_swept_a_day_later() {
    let temporary = Temporary::new();
    drop(temporary.pair().await);
    let draft = |name: &str, age| {
        let path = temporary.path("drafts").join(name);
        let file = File::create(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        path
    };
    let (old, new) = (draft("old", 25 * 3600), draft("new", 3600));
    // No writer leaves a directory.
    let directory = temporary.path("drafts/directory");
    fs::create_dir(&directory).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(25 * 3600);
    File::open(&directory).unwrap().set_modified(long_ago).unwrap();
    drop(temporary.pair().await);
    assert!(!old.exists() && new.exists() && directory.exists());
}

#[tokio::test]
async fn what_is_not_sent_leaves_no_draft() {
    let temporary = Temporary::new();
    let (producer, _consumer) = temporary.pair().await;
    fs::remove_dir(temporary.path("messages")).unwrap();
    let error = producer.send(Message::new("m")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(fs::read_dir(temporary.path("drafts")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_that_is_not_read_becomes_a_dead_letter_and_is_kept() {
    const SIZE: u64 = (32 << 20) + 1;
    let temporary = Temporary::new();
    let dlq = DlqConfig { destination: "dead".to_owned(), max_receive_count: 2 };
    let builder = SpoolBackend::builder(temporary.0.clone()).dead_letter_queue(dlq);
    let (producer, mut consumer) = builder.build_pair().await.unwrap();
    File::create(temporary.path("messages/large")).unwrap().set_len(SIZE).unwrap();
    for attempt in 1..=2 {
        let delivery = consumer.receive().await.unwrap();
        assert_eq!((delivery.payload().len(), delivery.delivery_count()), (0, attempt));
        let why = "has 33554433 bytes, at most 33554432 are read";
        assert_eq!(delivery.header("spool-unreadable"), Some(why));
        delivery.nack().await.unwrap();
    }
    producer.send(Message::new("next")).await.unwrap();
    assert_eq!(consumer.receive().await.unwrap().payload(), "next");
    let dead = SpoolConfig { queue: "dead".to_owned(), ..temporary.0.clone() };
    let mut dead = SpoolBackend::builder(dead).build_consumer().await.unwrap();
    let letter = dead.receive().await.unwrap();
    assert!(letter.header("spool-unreadable").is_some());
    letter.ack().await.unwrap();
    let mut kept = fs::read_dir(temporary.path("unreadable")).unwrap();
    assert_eq!(kept.next().unwrap().unwrap().metadata().unwrap().len(), SIZE);
    assert!(kept.next().is_none());
}

#[tokio::test]
async fn a_failed_message_comes_first() {
    let temporary = Temporary::new();
    let (producer, mut consumer) = temporary.pair().await;
    producer.send(Message::new("one")).await.unwrap();
    consumer.receive().await.unwrap().nack().await.unwrap();
    producer.send(Message::new("two")).await.unwrap();
    for expected in ["one", "two"] {
        let delivery = consumer.receive().await.unwrap();
        assert_eq!(delivery.payload(), expected);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_late_ack_holds_while_nobody_else_has_the_message() {
    let mut temporary = Temporary::new();
    temporary.0.lease = Duration::from_millis(50);
    let (producer, mut consumer) = temporary.pair().await;
    producer.send(Message::new("m")).await.unwrap();
    let delivery = consumer.receive().await.unwrap();
    while consumer.monitor().queue_stats().await.unwrap().ready == 0 {
        tokio::task::yield_now().await;
    }
    delivery.ack().await.unwrap();
    assert!(consumer.try_receive().await.unwrap().is_none());
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_not_created() {
    let config = SpoolConfig { queue: "orders".to_owned(), ..SpoolConfig::default() };
    let config = SpoolConfig { directory: "/not/mounted".into(), ..config };
    let error = SpoolBackend::builder(config).build_producer().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig);
    assert_eq!(
        error.to_string(),
        "spool build: invalid configuration: directory: /not/mounted is no directory"
    );
}

#[test]
fn a_url_and_a_file_say_every_field() {
    let expected = SpoolConfig {
        directory: "/var/spool/my shop".into(),
        queue: "orders".to_owned(),
        lease: Duration::from_secs(90),
        poll_interval: Duration::from_millis(20),
    };
    let url = "spool:///var/spool/my%20shop/orders?lease=1m30s&poll_interval=20ms";
    assert_eq!(SpoolConfig::from_url(url).unwrap(), expected);
    let file =
        r#"{"directory":"/var/spool/my shop","queue":"orders","lease":"1m30s","poll_interval":"20ms"}"#;
    assert_eq!(serde_json::from_str::<SpoolConfig>(file).unwrap(), expected);
    assert!(serde_json::from_str::<SpoolConfig>(r#"{"leese":"1s"}"#).is_err());
}

#[test]
fn wrong_urls_name_the_fault() {
    for (url, beginning) in [
        ("file:///var/spool/orders", "url: must begin with spool://"),
        ("spool://host/orders", "url: has no host and no user"),
        ("spool://", "directory: is missing"),
        ("spool:///orders?lease=30", "lease: must be a duration"),
        ("spool:///orders?sync=no", "url: unknown key \"sync\"; known are lease, poll_interval"),
    ] {
        let error = SpoolConfig::from_url(url).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
        assert!(error.message().starts_with(beginning), "{error}");
    }
}
