//! What a backend brings to the suite.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use buqueue_core::QueueBuilder;
use buqueue_core::driver::Backend;

/// Connects the suite to one backend.
///
/// Three items are enough: [`Backend`](Self::Backend), [`connect`](Self::connect) and [`builder`](Self::builder).
/// Everything else has a default that excludes the cases it serves, with the reason in the report. Override what
/// the broker can do: each hook makes more cases run.
///
/// ```no_run
/// # use std::time::Duration;
/// use buqueue_conformance::{Harness, Setup, Skip};
/// # use buqueue_core::{driver, Capabilities, QueueBuilder, Result};
/// # #[derive(Clone)] struct MyConfig { url: String, queue: String, group: String, lease: Duration }
/// # struct MyBackend;
/// # impl driver::Backend for MyBackend {
/// #     const NAME: &'static str = "my";
/// #     type Config = MyConfig;
/// #     type Producer = driver_stub::P;
/// #     type Consumer = driver_stub::C;
/// #     fn capabilities(_: &MyConfig) -> Capabilities { Capabilities::native("my") }
/// #     fn destination(config: &MyConfig) -> String { config.queue.clone() }
/// #     fn redirect(config: &MyConfig, to: &str) -> MyConfig { MyConfig { queue: to.into(), ..config.clone() } }
/// #     async fn connect_producer(_: &MyConfig) -> Result<Self::Producer> { unimplemented!() }
/// #     async fn connect_consumer(_: &MyConfig) -> Result<Self::Consumer> { unimplemented!() }
/// # }
/// # mod driver_stub {
/// #     use buqueue_core::{driver, Message, MessageId, Result};
/// #     use std::{num::NonZeroUsize, sync::Arc, time::Duration};
/// #     #[derive(Debug)] pub struct P;
/// #     impl driver::Producer for P {
/// #         async fn send(&self, _: Message) -> Result<MessageId> { unimplemented!() }
/// #         async fn send_at(&self, _: Message, _: chrono::DateTime<chrono::Utc>) -> Result<MessageId> {
/// #             unimplemented!()
/// #         }
/// #         async fn send_batch(&self, _: Vec<Message>) -> Vec<Result<MessageId>> { unimplemented!() }
/// #     }
/// #     #[derive(Debug)] pub struct C;
/// #     impl driver::Consumer for C {
/// #         async fn fetch(
/// #             &mut self, _: NonZeroUsize, _: Duration, _: &mut Vec<driver::Received>,
/// #         ) -> Result<()> { unimplemented!() }
/// #         fn control(&self) -> Arc<dyn driver::Control> { unimplemented!() }
/// #     }
/// # }
///
/// struct MyHarness {
///     url: String,
/// }
///
/// impl Harness for MyHarness {
///     type Backend = MyBackend;
///
///     async fn connect() -> Result<Self, Skip> {
///         let url = std::env::var("MY_URL").map_err(|_| Skip::new("MY_URL is not set"))?;
///         Ok(Self { url })
///     }
///
///     fn builder(&self, setup: &Setup) -> QueueBuilder<MyBackend> {
///         QueueBuilder::new(MyConfig {
///             url: setup.via.map_or(self.url.clone(), |proxy| format!("my://{proxy}")),
///             queue: setup.queue.clone(),
///             group: setup.group.clone(),
///             lease: setup.lease,
///         })
///     }
/// }
/// ```
///
/// `connect` runs once a case. Cases run beside one another, each on queues of its own, so a harness that holds
/// nothing but an address needs no locks.
pub trait Harness: Sized + Send + Sync + 'static {
    /// The backend under test.
    type Backend: Backend;

    /// The name in the report. Differs from the backend's where one backend has several harnesses (alone, TLS,
    /// cluster).
    #[must_use]
    fn name() -> &'static str {
        Self::Backend::NAME
    }

    /// Finds the broker.
    ///
    /// # Errors
    /// Why there is none here (an environment variable is not set). The case then reports that it was skipped;
    /// with `BUQUEUE_TEST_REQUIRE=1` it fails, so that CI cannot skip by mistake.
    fn connect() -> impl Future<Output = Result<Self, Skip>> + Send;

    /// A builder for the queue that `setup` describes. The same `setup` again addresses the same queue.
    ///
    /// Every field of `setup` is to be honoured as far as the backend has the notion.
    fn builder(&self, setup: &Setup) -> QueueBuilder<Self::Backend>;

    /// A short lease for the cases that wait for one to run out. Default: 2.5 s. Say more where the broker
    /// takes its time; with less, a machine that does much else lets leases run out that a case is still using.
    #[must_use]
    fn lease(&self) -> Duration {
        Duration::from_millis(2500)
    }

    /// A short deduplication window, for the case that waits for its end; `None` where it cannot be chosen. The
    /// cases that need it put it into [`Setup::deduplication_window`].
    #[must_use]
    fn deduplication_window(&self) -> Option<Duration> {
        None
    }

    /// Where the broker listens in plain TCP, so that the suite can put its [`FaultProxy`](crate::FaultProxy) in
    /// front of it and hand the proxy's address to [`builder`](Self::builder) as [`Setup::via`].
    ///
    /// # Errors
    /// Why that cannot be done.
    fn broker_addr(&self) -> Hook<SocketAddr> {
        Err(Excluded::new("the harness has no broker address to put a proxy in front of"))
    }

    /// Where the proxy in front of [`broker_addr`](Self::broker_addr) has to listen, when the broker there sends its
    /// clients to a certain address. Default: anywhere.
    #[must_use]
    fn proxy_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// Restarts the broker, as an operator would; returns when it answers again.
    ///
    /// Runs while no other case of this process does.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn restart_broker(&self) -> impl Future<Output = Hook<()>> + Send {
        async { Err(Excluded::new("the harness cannot restart the broker")) }
    }

    /// Deletes what a case has left: the queue, and all that is named after it. For brokers that become slow with what they
    /// keep. Default: nothing.
    fn clean_up(&self, queue: &str) -> impl Future<Output = ()> + Send {
        let _ = queue;
        async {}
    }

    /// Deletes the consumer group (durable, …) of `setup` behind the consumer's back, not the queue.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn delete_group(&self, setup: &Setup) -> impl Future<Output = Hook<()>> + Send {
        let _ = setup;
        async { Err(Excluded::new("the harness cannot delete a consumer group")) }
    }

    /// Deletes the whole queue behind everybody's back.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn delete_queue(&self, setup: &Setup) -> impl Future<Output = Hook<()>> + Send {
        let _ = setup;
        async { Err(Excluded::new("the harness cannot delete a queue")) }
    }

    /// Writes one record into the queue of `setup` as a program without buqueue would.
    ///
    /// # Errors
    /// Why the broker cannot hold such a record.
    fn inject(&self, setup: &Setup, foreign: Foreign) -> impl Future<Output = Hook<()>> + Send {
        let _ = (setup, foreign);
        async { Err(Excluded::new("the harness cannot write foreign records")) }
    }

    /// How many records the broker stores for the queue of `setup`: waiting, in flight, and acknowledged ones that
    /// it has not dropped yet.
    ///
    /// # Errors
    /// Why that cannot be told.
    fn stored(&self, setup: &Setup) -> impl Future<Output = Hook<u64>> + Send {
        let _ = setup;
        async { Err(Excluded::new("the harness cannot count stored records")) }
    }

    /// A builder whose credentials the broker refuses, and the secret in it, which no error and no `Debug` may show.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn wrong_credentials(&self, setup: &Setup) -> Hook<(QueueBuilder<Self::Backend>, String)> {
        let _ = setup;
        Err(Excluded::new("the harness has no broker that asks for credentials"))
    }

    /// A builder for the queue of `setup` that clashes with the topology which [`builder`](Self::builder) has
    /// created there.
    ///
    /// # Errors
    /// Why nothing can clash.
    fn clashing(&self, setup: &Setup) -> Hook<QueueBuilder<Self::Backend>> {
        let _ = setup;
        Err(Excluded::new("the harness knows no setting that clashes"))
    }

    /// Builders with one invalid field each, and the field's name, which the error must contain.
    #[must_use]
    fn invalid(&self, setup: &Setup) -> Vec<(QueueBuilder<Self::Backend>, &'static str)> {
        let _ = setup;
        Vec::new()
    }

    /// Which numbers of [`QueueStats`](buqueue_core::QueueStats) the broker tells. Default: all. A backend that does not
    /// count at all leaves out the cases of `stats` by [`keeps`](Self::keeps).
    #[must_use]
    fn counts(&self) -> Counts {
        Counts { held: Held::Apart, scheduled: true }
    }

    /// Why a message that was fetched and given back untouched counts as an attempt on this broker; `Ok` where it
    /// does not, which is the default.
    ///
    /// # Errors
    /// The reason.
    fn returns_uncounted(&self) -> Hook<()> {
        Ok(())
    }

    /// Why this broker, or the emulator that stands for it, cannot keep one case (`group::name`); `Ok` where it can,
    /// which is the default. For what no capability says.
    ///
    /// # Errors
    /// The reason.
    fn keeps(&self, case: &str) -> Hook<()> {
        let _ = case;
        Ok(())
    }

    /// What a worker process needs in its environment, beyond what it inherits, so that its own
    /// [`connect`](Self::connect) finds this harness' queues. Only asked where the backend has
    /// [`Feature::SharedBetweenProcesses`](buqueue_core::Feature::SharedBetweenProcesses).
    #[must_use]
    fn worker_env(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Which numbers of [`QueueStats`](buqueue_core::QueueStats) a broker tells, beside `ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Where what is held unsettled is counted.
    pub held: Held,
    /// What is not due is counted.
    pub scheduled: bool,
}

/// Where a broker counts what is held unsettled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// In `in_flight`.
    Apart,
    /// In `ready`.
    AmongReady,
    /// In no number.
    Nowhere,
}

/// What a hook returns: its result, or why this backend has no such thing.
pub type Hook<T> = Result<T, Excluded>;

/// Which queue a case wants, and how.
///
/// All setups for one queue in one case have the same lease and the same window.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setup {
    /// The name: at most 40 lower-case letters, digits and `-`. Unique to the case.
    pub queue: String,
    /// The consumer group, where the backend has groups; else to be ignored.
    pub group: String,
    /// The lease, where the backend has leases; else to be ignored. 30 s unless the case waits for its end.
    pub lease: Duration,
    /// The deduplication window, where it can be chosen; `None`: the backend's default.
    pub deduplication_window: Option<Duration>,
    /// Connect to this address, a proxy, instead of the broker's own. Set only where
    /// [`Harness::broker_addr`] has given an address.
    pub via: Option<SocketAddr>,
}

impl Setup {
    /// A queue of this name, with the default group and a lease that no case outlives.
    #[must_use]
    pub fn new(queue: impl Into<String>) -> Self {
        Self {
            queue: queue.into(),
            group: "conformance".to_owned(),
            lease: Duration::from_secs(30),
            deduplication_window: None,
            via: None,
        }
    }

    /// The same queue, read by another group.
    #[must_use]
    pub fn group(&self, group: &str) -> Self {
        Self { group: group.to_owned(), ..self.clone() }
    }

    /// The same queue with another lease.
    #[must_use]
    pub fn lease(&self, lease: Duration) -> Self {
        Self { lease, ..self.clone() }
    }

    /// The same queue with a chosen deduplication window.
    #[must_use]
    pub fn deduplication_window(&self, window: Duration) -> Self {
        Self { deduplication_window: Some(window), ..self.clone() }
    }

    /// The same queue through a proxy.
    #[must_use]
    pub fn via(&self, proxy: SocketAddr) -> Self {
        Self { via: Some(proxy), ..self.clone() }
    }

    /// The dead letter queue that the cases give this queue.
    #[must_use]
    pub fn dlq(&self) -> Self {
        Self { queue: format!("{}-dlq", self.queue), ..self.clone() }
    }
}

/// A record that buqueue did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// The payload `foreign`, as a program in another language would send it, with no header at all.
    Plain,
    /// A record of a shape that buqueue never writes: fields missing, or of the wrong type.
    Malformed,
    /// The payload `foreign` and a header, or field, whose value is not UTF-8.
    BinaryHeader,
    /// The payload `foreign` and the header `twice` two times.
    DuplicateHeader,
}

/// There is no broker here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(Cow<'static, str>);

impl Skip {
    /// The reason, in lower case and without a full stop.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The case does not apply to this backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excluded(Cow<'static, str>);

impl Excluded {
    /// The reason, in lower case and without a full stop.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For [`Harness::keeps`] of a backend's second kind of queue: leaves out what takes minutes, and asks for what both kinds have
/// in common: connections that break, and brokers that restart. `BUQUEUE_TEST_ALL` in the environment tries all, as
/// `cargo xtask test --broker NAME` does.
///
/// # Errors
/// The case is one of them, and left out.
pub fn unless_long(case: &str) -> Hook<()> {
    let long = case.starts_with("endurance::")
        || case.starts_with("reconnect::")
        || case == "schedule::survives_a_broker_restart";
    if long && std::env::var_os("BUQUEUE_TEST_ALL").is_none() {
        return Err(Excluded::new(
            "it takes its time, and another kind of queue goes through it; `cargo xtask test --broker NAME` tries both",
        ));
    }
    Ok(())
}
