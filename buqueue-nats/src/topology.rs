//! The stream, its companion for delays, and the durable consumer: created, or compared with what is there.

use std::fmt::Debug;

use async_nats::jetstream::consumer::{self, pull};
use async_nats::jetstream::stream;
use buqueue_core::driver::Activity;
use buqueue_core::{BuqueueError, ErrorKind, Result};
use serde_json::json;

use crate::config::{NatsConfig, NatsOptions, RetentionPolicy, invalid};
use crate::connection::Link;
use crate::error::{self, code};
use crate::subject;
use crate::telling::tell;

/// How schedules of this stream are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scheduling {
    /// By the server, in the stream (2.12 and later).
    Native,
    /// By a second stream, whose consumers hand messages back until they are due.
    Delayed,
    /// Neither may be had; the text says why.
    Unavailable(String),
}

/// A stream as it was found.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) scheduling: Scheduling,
    /// Another one of the same name has another. Nanoseconds since 1970.
    pub(crate) created: i128,
}

/// The stream that keeps delayed messages.
pub(crate) fn delay_stream(stream: &str) -> String {
    format!("{stream}_buqueue_delay")
}

/// The durable that moves them.
pub(crate) const MOVER: &str = "mover";

/// Creates the stream, or compares it with what is there.
pub(crate) async fn ensure_stream(link: &Link, config: &NatsConfig) -> Result<Standing> {
    let wanted = config.jetstream.to_native();
    // What nobody is interested in, an interest stream drops: schedules too. And the server (2.15.1) refuses schedules
    // in a stream that discards what is new.
    let native = link.client.is_server_compatible(2, 12, 0)
        && config.jetstream.retention != RetentionPolicy::Interest
        && wanted.discard == stream::DiscardPolicy::Old;
    let found = match stream_info(link, &wanted.name).await? {
        Some(info) => info,
        None => match create(link, with_schedules(&wanted, native)).await? {
            Created::Now(info) => info,
            // Somebody was faster.
            Created::Before => stream_info(link, &wanted.name)
                .await?
                .ok_or_else(|| invalid(format!("stream_name: {:?} is taken", wanted.name)))?,
        },
    };
    compare(&wanted, &found.config, link)?;
    let created = found.created.unix_timestamp_nanos();
    let scheduling = ensure_scheduling(link, config, native, &found.config).await?;
    Ok(Standing { scheduling, created })
}

async fn ensure_scheduling(
    link: &Link,
    config: &NatsConfig,
    native: bool,
    found: &stream::Config,
) -> Result<Scheduling> {
    if native && scheduling_is_on(found) {
        return Ok(Scheduling::Native);
    }
    if native && !found.sealed && found.mirror.is_none() {
        let widened = with_schedules(found, true);
        let asked =
            link.api::<stream::Info>(&format!("STREAM.UPDATE.{}", found.name), Some(json!(widened))).await;
        // Old servers take the request and leave the flag out.
        if asked.is_ok_and(|answer| answer.is_ok_and(|info| scheduling_is_on(&info.config))) {
            return Ok(Scheduling::Native);
        }
    }
    match ensure_delay_stream(link, config).await {
        Ok(()) => Ok(Scheduling::Delayed),
        Err(error) if error.is_transient() => Err(error),
        Err(error) => Ok(Scheduling::Unavailable(error.to_string())),
    }
}

fn with_schedules(config: &stream::Config, native: bool) -> stream::Config {
    let mut config = config.clone();
    if native {
        let own = subject::schedules(&config.name);
        if !config.subjects.contains(&own) {
            config.subjects.push(own);
        }
        config.allow_message_schedules = true;
        config.allow_message_ttl = true;
    }
    config
}

pub(crate) fn scheduling_is_on(config: &stream::Config) -> bool {
    config.allow_message_schedules
        && config.allow_message_ttl
        && config.subjects.contains(&subject::schedules(&config.name))
}

async fn ensure_delay_stream(link: &Link, config: &NatsConfig) -> Result<()> {
    let name = delay_stream(&config.jetstream.stream_name);
    let wanted = config.jetstream.to_native();
    let delays = stream::Config {
        name: name.clone(),
        subjects: vec![subject::delayed(&config.jetstream.stream_name)],
        retention: stream::RetentionPolicy::WorkQueue,
        discard: stream::DiscardPolicy::New,
        max_age: std::time::Duration::ZERO,
        max_messages: -1,
        max_bytes: -1,
        duplicate_window: config.jetstream.duplicate_window,
        ..wanted
    };
    if stream_info(link, &name).await?.is_none() {
        create(link, delays).await?;
    }
    let mover = pull::Config {
        durable_name: Some(MOVER.to_owned()),
        ack_policy: consumer::AckPolicy::Explicit,
        ack_wait: std::time::Duration::from_secs(2),
        max_deliver: -1,
        max_ack_pending: -1,
        ..pull::Config::default()
    };
    if consumer_info(link, &name, MOVER).await?.is_none() {
        create_consumer(link, &name, MOVER, &mover).await?;
    }
    Ok(())
}

enum Created {
    Now(Box<stream::Info>),
    Before,
}

impl Created {
    fn boxed(info: stream::Info) -> Self {
        Self::Now(Box::new(info))
    }
}

async fn stream_info(link: &Link, name: &str) -> Result<Option<Box<stream::Info>>> {
    match link.api::<stream::Info>(&format!("STREAM.INFO.{name}"), None).await? {
        Ok(info) => Ok(Some(Box::new(info))),
        Err(error) if error.error_code().0 == code::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(error::refused(&format!("stream {name:?}"), &error)),
    }
}

async fn create(link: &Link, mut config: stream::Config) -> Result<Created> {
    let subject = format!("STREAM.CREATE.{}", config.name);
    let mut answer = link.api::<stream::Info>(&subject, Some(json!(config))).await?;
    if answer.as_ref().is_err_and(|error| error.error_code().0 == code::NO_REPLICAS_WITHOUT_A_CLUSTER) {
        // A single server has one replica of everything, whatever is wished for.
        config.num_replicas = 1;
        answer = link.api::<stream::Info>(&subject, Some(json!(config))).await?;
    }
    match answer {
        Ok(info) => Ok(Created::boxed(info)),
        Err(error) if error.error_code().0 == code::STREAM_NAME_IN_USE => Ok(Created::Before),
        Err(error) => {
            let what = format!("stream_name {:?}, subjects {:?}", config.name, config.subjects);
            Err(error::refused(&what, &error))
        }
    }
}

/// Field by field; what buqueue adds, and what the server fills in, does not count.
fn compare(wanted: &stream::Config, found: &stream::Config, link: &Link) -> Result<()> {
    let own = subject::schedules(&wanted.name);
    let sorted = |subjects: &[String]| {
        let mut subjects: Vec<String> = subjects.iter().filter(|subject| **subject != own).cloned().collect();
        subjects.sort();
        subjects
    };
    let differs = |field: &str, wanted: &dyn Debug, found: &dyn Debug| {
        invalid(format!("{field}: asked for {wanted:?}, and the stream has {found:?}"))
    };
    let (asked, has) = (sorted(&wanted.subjects), sorted(&found.subjects));
    if asked != has {
        return Err(differs("subjects", &asked, &has));
    }
    // Without a cluster there is one replica.
    let replicas = if found.num_replicas == 1 && link.client.server_info().cluster.is_none() {
        1
    } else {
        wanted.num_replicas
    };
    if replicas != found.num_replicas {
        return Err(differs("num_replicas", &wanted.num_replicas, &found.num_replicas));
    }
    macro_rules! fields {
        ($($field:ident),*) => {$(
            if wanted.$field != found.$field {
                return Err(differs(stringify!($field), &wanted.$field, &found.$field));
            }
        )*};
    }
    if (wanted.max_messages, wanted.max_bytes) != (-1, -1) && wanted.discard != found.discard {
        return Err(differs("discard", &wanted.discard, &found.discard));
    }
    fields!(storage, retention, max_age, max_messages, max_bytes, max_message_size, duplicate_window);
    Ok(())
}

/// Creates the durable, or compares it with what is there. `again`: it has been there before, at this place.
pub(crate) async fn ensure_consumer(
    link: &Link,
    options: &NatsOptions,
    scheduling: &Scheduling,
    again: Option<u64>,
) -> Result<consumer::Info> {
    let config = &options.config;
    let (stream, name) = (&config.jetstream.stream_name, &config.durable_consumer);
    if let Some(info) = consumer_info(link, stream, name).await? {
        compare_consumer(config, scheduling, &info.config)?;
        return Ok(info);
    }
    let mut wanted = pull::Config {
        durable_name: Some(name.clone()),
        deliver_policy: config.start(),
        ack_policy: consumer::AckPolicy::Explicit,
        ack_wait: config.ack_wait,
        // The verdict is buqueue's: at a limit of its own the server would keep the message, for ever and unseen.
        max_deliver: -1,
        max_ack_pending: config.max_ack_pending,
        ..pull::Config::default()
    };
    if *scheduling == Scheduling::Native {
        // Schedules lie in the stream too, and are not for consumers.
        match config.jetstream.subjects.as_slice() {
            [subject] => wanted.filter_subject.clone_from(subject),
            subjects => wanted.filter_subjects = subjects.to_vec(),
        }
    }
    if let Some(sequence) = again.filter(|_| config.jetstream.retention == RetentionPolicy::Limits) {
        wanted.deliver_policy =
            consumer::DeliverPolicy::ByStartSequence { start_sequence: sequence.saturating_add(1) };
    } else if again.is_some() {
        wanted.deliver_policy = consumer::DeliverPolicy::All;
    }
    match create_consumer(link, stream, name, &wanted).await? {
        Some(info) => {
            if again.is_some() {
                let fact = format!("the durable {name:?} was gone, and has been created again");
                let gone = BuqueueError::new(ErrorKind::NotFound, fact);
                tell(stream, Activity::Failed("reading", &gone));
            }
            Ok(info)
        }
        // Somebody was faster.
        None => {
            let info = consumer_info(link, stream, name).await?;
            let info = info.ok_or_else(|| {
                BuqueueError::new(ErrorKind::NotFound, format!("the durable {name:?} of {stream:?} is gone"))
            })?;
            compare_consumer(config, scheduling, &info.config)?;
            Ok(info)
        }
    }
}

/// The durable as the server sees it; `None` where there is none.
pub(crate) async fn consumer_info(link: &Link, stream: &str, name: &str) -> Result<Option<consumer::Info>> {
    match link.api::<consumer::Info>(&format!("CONSUMER.INFO.{stream}.{name}"), None).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.error_code().0 == code::CONSUMER_NOT_FOUND => Ok(None),
        Err(error) => Err(error::refused(&format!("durable_consumer {name:?}"), &error)),
    }
}

/// `None`: there is one of that name, which is another.
async fn create_consumer(
    link: &Link,
    stream: &str,
    name: &str,
    config: &pull::Config,
) -> Result<Option<consumer::Info>> {
    use consumer::IntoConsumerConfig;
    // Servers before 2.10 do not know the action, and have nothing against it.
    let request = json!({
        "stream_name": stream,
        "config": config.clone().into_consumer_config(),
        "action": "create",
    });
    match link
        .api::<consumer::Info>(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), Some(request))
        .await?
    {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.error_code().0 == code::CONSUMER_EXISTS => Ok(None),
        Err(error) => Err(error::refused(&format!("durable_consumer {name:?} of {stream:?}"), &error)),
    }
}

fn compare_consumer(config: &NatsConfig, scheduling: &Scheduling, found: &consumer::Config) -> Result<()> {
    let differs = |field: &str, wanted: &dyn Debug, found: &dyn Debug| {
        Err(invalid(format!("{field}: asked for {wanted:?}, and the durable has {found:?}")))
    };
    if found.ack_policy != consumer::AckPolicy::Explicit {
        return differs("ack_policy", &config.ack_policy, &found.ack_policy);
    }
    if found.ack_wait != config.ack_wait {
        return differs("ack_wait", &config.ack_wait, &found.ack_wait);
    }
    if found.max_ack_pending != config.max_ack_pending {
        return differs("max_ack_pending", &config.max_ack_pending, &found.max_ack_pending);
    }
    if found.max_deliver > 0 {
        return differs("max_deliver", &-1, &found.max_deliver);
    }
    if found.deliver_subject.is_some() {
        return differs("durable_consumer", &"one that is pulled from", &"a subject that it pushes to");
    }
    let filters = found.filter_subjects.iter().chain([&found.filter_subject]);
    let mut has: Vec<&String> = filters.filter(|filter| !filter.is_empty()).collect();
    let mut asked: Vec<&String> = config.jetstream.subjects.iter().collect();
    has.sort();
    asked.sort();
    // Without a filter it is given all that is in the stream, which is the same where no schedules lie there.
    if has != asked && (!has.is_empty() || *scheduling == Scheduling::Native) {
        return differs("filter_subjects", &asked, &has);
    }
    Ok(())
}
