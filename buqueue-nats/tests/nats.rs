//! What only NATS has: streams and durables that are compared, schedules in the stream, accounts.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed, and says so"
)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use buqueue_core::{ErrorKind, Message, QueueBuilder};
use buqueue_nats::{
    DeliverPolicy, DiscardPolicy, JetStreamConfig, NatsBackend, NatsBuilderExt, NatsConfig, RetentionPolicy,
    StorageType,
};
use chrono::{TimeDelta, Utc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{delay_stream, jetstream};

/// Where a server is; without it the test is skipped loudly, or fails where brokers are required.
fn server(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        assert_ne!(std::env::var("BUQUEUE_TEST_REQUIRE").as_deref(), Ok("1"), "{variable} is not set");
        println!("SKIPPED: {variable} is not set");
    }
    url
}

fn config(url: &str, name: &str) -> NatsConfig {
    let stream_name = format!("t-{name}-{}-{}", std::process::id(), Utc::now().timestamp_micros());
    NatsConfig {
        url: url.to_owned(),
        jetstream: JetStreamConfig {
            subjects: vec![format!("{stream_name}.>")],
            stream_name,
            ..JetStreamConfig::default()
        },
        durable_consumer: "worker".to_owned(),
        ..NatsConfig::default()
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap()
}

/// Each field of an existing stream and durable is compared; the error names the field and both values.
#[tokio::test]
async fn every_field_is_compared() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let mut base = config(&url, "compare");
    base.jetstream.max_messages = 1000;
    base.jetstream.max_bytes = 1_000_000;
    base.jetstream.max_message_size = 10_000;
    let _open = NatsBackend::builder(base.clone()).build_pair().await.unwrap();
    NatsBackend::builder(base.clone()).build_pair().await.unwrap();
    type Change = fn(&mut NatsConfig);
    let changes: [(&str, &str, Change); 11] = [
        ("subjects", "other", |config| config.jetstream.subjects.push("other-subject".to_owned())),
        ("storage", "Memory", |config| config.jetstream.storage = StorageType::Memory),
        ("retention", "Limits", |config| config.jetstream.retention = RetentionPolicy::Limits),
        ("discard", "Old", |config| config.jetstream.discard = DiscardPolicy::Old),
        ("max_age", "3600", |config| config.jetstream.max_age = Duration::from_secs(3600)),
        ("max_messages", "7", |config| config.jetstream.max_messages = 7),
        ("max_bytes", "77", |config| config.jetstream.max_bytes = 77),
        ("max_message_size", "777", |config| config.jetstream.max_message_size = 777),
        ("duplicate_window", "9", |config| config.jetstream.duplicate_window = Duration::from_secs(9)),
        ("ack_wait", "7s", |config| config.ack_wait = Duration::from_secs(7)),
        ("max_ack_pending", "5", |config| config.max_ack_pending = 5),
    ];
    for (field, value, change) in changes {
        let mut changed = base.clone();
        change(&mut changed);
        let error = NatsBackend::builder(changed).build_pair().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{field}: asked for")) && text.contains(value), "{text}");
        assert!(text.contains("has"), "{text}");
    }
}

/// A durable that others have made must not be given the schedules that wait, nor less than the subjects.
#[tokio::test]
async fn the_filter_of_a_durable_is_compared() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let mut config = config(&url, "filter");
    let name = config.jetstream.stream_name.clone();
    config.jetstream.subjects = vec![format!("{name}.b"), format!("{name}.a.>")];
    let producer = NatsBackend::builder(config.clone()).build_producer().await.unwrap();
    let later = Utc::now() + TimeDelta::days(1);
    producer.send_at(Message::new("m"), later).await.unwrap();
    let stream = jetstream(&url).await.get_stream(&name).await.unwrap();
    let is_native = stream.cached_info().config.allow_message_schedules;
    let (one, other) = (format!("{name}.a.>"), format!("{name}.b"));
    let none = String::new();
    let cases = [
        (&none, vec![], "has []", !is_native),
        (&other, vec![], &format!("has [{other:?}]"), false),
        (&none, vec![one.clone(), other.clone()], "", true),
    ];
    for (filter_subject, filter_subjects, text, passes) in cases {
        let durable = pull::Config {
            durable_name: Some("worker".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: config.ack_wait,
            max_ack_pending: config.max_ack_pending,
            filter_subject: filter_subject.clone(),
            filter_subjects,
            ..pull::Config::default()
        };
        stream.create_consumer(durable).await.unwrap();
        match NatsBackend::builder(config.clone()).build_consumer().await {
            Ok(mut consumer) => {
                assert!(passes, "{text}");
                assert!(consumer.try_receive().await.unwrap().is_none());
            }
            Err(error) => {
                assert!(!passes && error.kind == ErrorKind::InvalidConfig, "{error}");
                let asked = format!("filter_subjects: asked for [{one:?}, {other:?}]");
                assert!(error.to_string().contains(&asked), "{error} does not say {asked}");
                assert!(error.to_string().contains(text), "{error} does not say {text}");
            }
        }
        stream.delete_consumer("worker").await.unwrap();
    }
}

/// A single server has one replica, whatever is wished for.
#[tokio::test]
async fn replicas_are_ignored_on_a_single_server() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let mut config = config(&url, "replicas");
    config.jetstream.num_replicas = 3;
    NatsBackend::builder(config.clone()).build_pair().await.unwrap();
    NatsBackend::builder(config).build_pair().await.unwrap();
}

/// The pair that the server refuses, a work queue that delivers what is new, starts and brings what was there.
#[tokio::test]
async fn a_work_queue_takes_new_for_all() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let config = NatsConfig { deliver_policy: DeliverPolicy::New, ..config(&url, "new") };
    let producer = NatsBackend::builder(config.clone()).build_producer().await.unwrap();
    producer.send(Message::new("before")).await.unwrap();
    let mut consumer = NatsBackend::builder(config).build_consumer().await.unwrap();
    assert_eq!(within(consumer.receive()).await.unwrap().payload(), "before");
}

/// An interest stream: two services each get everything, schedules too, and then it is gone.
#[tokio::test]
async fn interest_keeps_until_all_have_acked() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let mut config = config(&url, "interest");
    config.jetstream.retention = RetentionPolicy::Interest;
    let (producer, mut one) = NatsBackend::builder(config.clone()).build_pair().await.unwrap();
    let other = NatsConfig { durable_consumer: "other".to_owned(), ..config.clone() };
    let mut two = NatsBackend::builder(other).build_consumer().await.unwrap();
    producer.send(Message::new("now")).await.unwrap();
    let due = Utc::now() + TimeDelta::milliseconds(700);
    producer.send_at(Message::new("later"), due).await.unwrap();
    for consumer in [&mut one, &mut two] {
        for payload in ["now", "later"] {
            let delivery = within(consumer.receive()).await.unwrap();
            assert_eq!(delivery.payload(), payload);
            delivery.ack().await.unwrap();
        }
    }
    assert!(Utc::now() >= due);
    let context = jetstream(&url).await;
    let stream = context.get_stream(&config.jetstream.stream_name).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 0);
}

/// A full stream refuses and loses nothing; it goes on when there is room.
#[tokio::test]
async fn a_full_stream_throttles() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let mut config = config(&url, "full");
    config.jetstream.max_messages = 2;
    let (producer, mut consumer) = NatsBackend::builder(config).build_pair().await.unwrap();
    producer.send(Message::new("1")).await.unwrap();
    producer.send(Message::new("2")).await.unwrap();
    let error = producer.send(Message::new("3")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Throttled, "{error}");
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
    producer.send(Message::new("3")).await.unwrap();
}

/// Age is for messages that could be received, not for those that wait for their time.
#[tokio::test]
async fn a_schedule_outlives_max_age() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let mut config = config(&url, "age");
    config.jetstream.max_age = Duration::from_secs(1);
    let (producer, mut consumer) = NatsBackend::builder(config).build_pair().await.unwrap();
    let due = Utc::now() + TimeDelta::milliseconds(3000);
    producer.send_at(Message::new("m"), due).await.unwrap();
    assert_eq!(within(consumer.receive()).await.unwrap().payload(), "m");
    assert!(Utc::now() >= due);
}

/// A schedule thirty days out is a message that the server's own tools see, and cancel by deleting it.
#[tokio::test]
async fn a_far_schedule_is_seen_and_cancelled() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let config = config(&url, "far");
    let producer = NatsBackend::builder(config.clone()).build_producer().await.unwrap();
    let id = producer.send_at(Message::new("m"), Utc::now() + TimeDelta::days(30)).await.unwrap();
    let context = jetstream(&url).await;
    let name = &config.jetstream.stream_name;
    let mut stream = context.get_stream(name).await.unwrap();
    if stream.cached_info().state.messages == 0 {
        stream = context.get_stream(delay_stream(name)).await.unwrap();
    }
    assert_eq!(stream.cached_info().state.messages, 1);
    assert!(stream.delete_message(id.to_string().parse().unwrap()).await.unwrap());
    assert_eq!(stream.info().await.unwrap().state.messages, 0);
}

/// One who may not create uses what is there, and is told the subject that is missing where nothing is.
#[tokio::test]
async fn a_limited_user_uses_what_is_there() {
    let (Some(full), Some(limited)) = (server("BUQUEUE_TEST_NATS_AUTH"), server("BUQUEUE_TEST_NATS_LIMITED"))
    else {
        return;
    };
    let config = config(&full, "limited");
    let refused = NatsConfig { url: limited.clone(), ..config.clone() };
    let error = NatsBackend::builder(refused.clone()).build_pair().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error}");
    assert!(error.to_string().contains("$JS.API.STREAM.CREATE"), "{error}");
    NatsBackend::builder(config).build_pair().await.unwrap();
    let (producer, mut consumer) = NatsBackend::builder(refused).build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
}

/// A token in the URL opens the door.
#[tokio::test]
async fn a_token_in_the_url_is_shown() {
    let Some(url) = server("BUQUEUE_TEST_NATS_TOKEN") else { return };
    let (producer, mut consumer) = NatsBackend::builder(config(&url, "token")).build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
}

/// TLS is used where the URL says so, and a certificate of an unknown authority is refused.
#[tokio::test]
async fn tls_is_used_and_the_authority_is_checked() {
    let Some(url) = server("BUQUEUE_TEST_NATS_TLS") else { return };
    let Some(authority) = server("BUQUEUE_TEST_NATS_TLS_CA") else { return };
    let trusting = NatsBackend::builder(config(&url, "tls")).root_certificates(&authority);
    let (producer, mut consumer) = trusting.build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
    let error = within(NatsBackend::builder(config(&url, "tls")).build_producer()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
}

/// Who shows his certificate is let in, and who has none is told so.
#[tokio::test]
async fn a_client_certificate_is_shown() {
    let Some(url) = server("BUQUEUE_TEST_NATS_MTLS") else { return };
    let Some(authority) = server("BUQUEUE_TEST_NATS_TLS_CA") else { return };
    let Some(certificate) = server("BUQUEUE_TEST_NATS_TLS_CLIENT_CERT") else { return };
    let Some(key) = server("BUQUEUE_TEST_NATS_TLS_CLIENT_KEY") else { return };
    let unknown = || NatsBackend::builder(config(&url, "mtls")).root_certificates(&authority);
    let known = unknown().client_certificate(&certificate, &key);
    let (producer, mut consumer) = known.build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
    let file = |name: &str| std::path::Path::new(&authority).with_file_name(name);
    let stranger = || unknown().client_certificate(file("stranger.crt"), file("stranger.key"));
    for builder in [&unknown as &dyn Fn() -> QueueBuilder<NatsBackend>, &stranger] {
        // The alert comes after the handshake: now and then nothing but a closed connection is seen.
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut error = within(builder().build_producer()).await.unwrap_err();
        while error.kind == ErrorKind::ConnectionLost && Instant::now() < deadline {
            error = within(builder().build_producer()).await.unwrap_err();
        }
        assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
        assert!(error.message().starts_with("client_certificate: "), "{error}");
    }
    // Files that do not belong together, and no key.
    for (certificate, key) in [(&authority, &key), (&certificate, &certificate)] {
        let wrong = unknown().client_certificate(certificate, key);
        let error = within(wrong.build_producer()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
        assert!(error.message().starts_with("client_certificate: "), "{error}");
    }
}

/// The first line that a server says, which is never encrypted.
fn greeting(server: &mut TcpStream) -> String {
    let mut line = String::new();
    let mut byte = [0];
    while !line.ends_with("\r\n") {
        server.read_exact(&mut byte).unwrap();
        line.push(char::from(byte[0]));
    }
    line
}

/// A server that another one tells of is spoken to over TLS where the URL says so, whatever it says of itself.
#[tokio::test]
async fn a_server_that_is_told_of_gets_nothing_in_plain() {
    let Some(url) = server("BUQUEUE_TEST_NATS_TLS") else { return };
    let Some(authority) = server("BUQUEUE_TEST_NATS_TLS_CA") else { return };
    let way = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let told = format!("INFO {{\"connect_urls\":[\"{}\"],", other.local_addr().unwrap());
    let through = format!("tls://{}", way.local_addr().unwrap());
    let (said, plain) = tokio::sync::oneshot::channel();
    let (cut, cutting) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let (mut client, _) = way.accept().unwrap();
        let mut server = TcpStream::connect(url.trim_start_matches("tls://")).unwrap();
        let info = greeting(&mut server);
        client.write_all(info.replacen("INFO {", &told, 1).as_bytes()).unwrap();
        let plain = info.replace("\"tls_required\":true", "\"tls_required\":false");
        assert_ne!(plain, info);
        said.send(plain).unwrap();
        let [from, mut to] = [&client, &server].map(|stream| stream.try_clone().unwrap());
        let [back_from, mut back_to] = [&server, &client].map(|stream| stream.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut &from, &mut to));
        std::thread::spawn(move || std::io::copy(&mut &back_from, &mut back_to));
        // Until the test lets go.
        assert!(cutting.recv().is_err());
        // Nobody answers here any more.
        drop((way, client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both)));
    });
    let builder = NatsBackend::builder(config(&through, "told")).root_certificates(&authority);
    let producer = within(builder.build_producer()).await.unwrap();
    let plain = within(plain).await.unwrap();
    drop(cut);
    let (mut client, _) = within(other.accept()).await.unwrap();
    client.write_all(plain.as_bytes()).await.unwrap();
    // A record of TLS that begins a handshake.
    assert_eq!(within(client.read_u8()).await.unwrap(), 22);
    drop(producer);
}

/// A file of no use is told by its option, before anything is connected, and nothing of what it says.
#[tokio::test]
async fn a_file_without_a_certificate_is_told_by_its_option() {
    let name = format!("broken-{}-{}.pem", std::process::id(), Utc::now().timestamp_micros());
    let broken = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&broken, "-----BEGIN CERTIFICATE canary\n").unwrap();
    let none = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for file in ["/nowhere/file.pem", none, broken.to_str().unwrap()] {
        let encrypted = || NatsBackend::builder(config("tls://127.0.0.1:1", "file"));
        for (builder, option) in [
            (encrypted().root_certificates(file), "root_certificates"),
            (encrypted().client_certificate(file, file), "client_certificate"),
        ] {
            let error = within(builder.build_producer()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
            assert!(error.message().starts_with(&format!("{option}: {file:?} ")), "{error}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}

/// Without TLS nobody would look at certificates, and of several servers each must speak it.
#[tokio::test]
async fn certificates_without_tls_are_refused() {
    for url in ["nats://127.0.0.1:1", "tls://127.0.0.1:1,nats://127.0.0.1:1"] {
        let plain = || NatsBackend::builder(config(url, "plain"));
        for (builder, option) in [
            (plain().root_certificates("ca.pem"), "root_certificates: "),
            (plain().client_certificate("client.pem", "key.pem"), "client_certificate: "),
        ] {
            let error = builder.build_producer().await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
            assert!(error.message().starts_with(option) && error.message().contains("tls://"), "{error}");
        }
    }
}

/// A credentials file opens the door of a server with accounts; without it, or with one that is none, it stays shut.
#[tokio::test]
async fn a_credentials_file_is_shown() {
    let Some(url) = server("BUQUEUE_TEST_NATS_CREDS") else { return };
    let Some(file) = server("BUQUEUE_TEST_NATS_CREDS_FILE") else { return };
    let known = NatsConfig { credentials_file: Some(file), ..config(&url, "credentials") };
    let (producer, mut consumer) = NatsBackend::builder(known).build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
    let error = within(NatsBackend::builder(config(&url, "nobody")).build_producer()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
    for other in ["/nowhere/user.creds", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")] {
        let config = NatsConfig { credentials_file: Some(other.to_owned()), ..config(&url, "credentials") };
        let error = within(NatsBackend::builder(config).build_producer()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{other}: {error:?}");
    }
}

/// Of several servers, the first that answers will do.
#[tokio::test]
async fn a_dead_server_among_several_is_passed_over() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let config = config(&format!("nats://127.0.0.1:1,{url}"), "several");
    let (producer, mut consumer) = NatsBackend::builder(config).build_pair().await.unwrap();
    producer.send(Message::new("m")).await.unwrap();
    within(consumer.receive()).await.unwrap().ack().await.unwrap();
}

/// A stream that was deleted is declared again by who sends, and read from its start.
#[tokio::test]
async fn another_stream_of_the_same_name_is_read_from_its_start() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let mut config = config(&url, "another");
    config.jetstream.retention = RetentionPolicy::Limits;
    let producer = NatsBackend::builder(config.clone()).build_producer().await.unwrap();
    let messages = |prefix: &str| (0..20).map(|n| Message::new(format!("{prefix}{n}"))).collect::<Vec<_>>();
    producer.send_batch(messages("old")).await.unwrap();
    let from_the_start = NatsConfig { deliver_policy: DeliverPolicy::All, ..config.clone() };
    // Its place in the stream is beyond what the next stream will hold.
    let mut first = NatsBackend::builder(from_the_start.clone()).build_consumer().await.unwrap();
    for _ in 0..20 {
        within(first.receive()).await.unwrap().ack().await.unwrap();
    }
    drop(first);
    let mut consumer = NatsBackend::builder(from_the_start).build_consumer().await.unwrap();
    jetstream(&url).await.delete_stream(&config.jetstream.stream_name).await.unwrap();
    within(producer.send_batch(messages("new"))).await.unwrap();
    for number in 0..20 {
        let delivery = loop {
            match within(consumer.receive()).await {
                Ok(delivery) => break delivery,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
        };
        assert_eq!(delivery.payload(), format!("new{number}").as_bytes());
        delivery.ack().await.unwrap();
    }
}

/// A message that is covered by the stream's subjects is where others look for it.
#[tokio::test]
async fn keys_are_subjects() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let config = config(&url, "subjects");
    let name = config.jetstream.stream_name.clone();
    let producer = NatsBackend::builder(config).build_producer().await.unwrap();
    for key in [Some(format!("{name}.placed")), None, Some("elsewhere".to_owned())] {
        let message = Message::new("m");
        let message = key.into_iter().fold(message, Message::with_routing_key);
        producer.send(message).await.unwrap();
    }
    let stream = jetstream(&url).await.get_stream(&name).await.unwrap();
    let mut subjects = Vec::new();
    for sequence in 1..=3 {
        subjects.push(stream.get_raw_message(sequence).await.unwrap().subject.to_string());
    }
    assert_eq!(subjects, [format!("{name}.placed"), format!("{name}._"), format!("{name}._")]);
}

/// Settles that are not confirmed arrive all the same.
#[tokio::test]
async fn plain_acks_arrive() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let config = config(&url, "plain");
    let builder = NatsBackend::builder(config.clone()).plain_acks();
    let (producer, mut consumer) = builder.build_pair().await.unwrap();
    producer.send_batch((0..100).map(|number| Message::new(number.to_string())).collect()).await.unwrap();
    for _ in 0..100 {
        within(consumer.receive()).await.unwrap().ack().await.unwrap();
    }
    let stream = jetstream(&url).await.get_stream(&config.jetstream.stream_name).await.unwrap();
    let mut durable: PullConsumer = stream.get_consumer("worker").await.unwrap();
    within(async {
        while durable.info().await.unwrap().num_ack_pending > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A look, or a call that is given up, leaves no pulls at the server that go on waiting.
#[tokio::test]
async fn pulls_do_not_pile_up() {
    let Some(url) = server("BUQUEUE_TEST_NATS") else { return };
    let config = config(&url, "pulls");
    let (producer, mut consumer) = NatsBackend::builder(config.clone()).build_pair().await.unwrap();
    let stream = jetstream(&url).await.get_stream(&config.jetstream.stream_name).await.unwrap();
    let mut durable: PullConsumer = stream.get_consumer("worker").await.unwrap();
    let mut most = 0;
    for round in 0..300 {
        assert!(within(consumer.try_receive()).await.unwrap().is_none());
        drop(tokio::time::timeout(Duration::from_millis(1), consumer.receive()).await);
        if round % 20 == 0 {
            most = most.max(durable.info().await.unwrap().num_waiting);
        }
    }
    assert!(most <= 2, "{most} pulls wait");
    // And what comes now comes once, at once.
    producer.send(Message::new("m")).await.unwrap();
    let delivery = within(consumer.receive()).await.unwrap();
    assert_eq!(delivery.delivery_count(), 1);
    delivery.ack().await.unwrap();
}
