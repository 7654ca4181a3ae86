//! Connections: one server, sentinels or a cluster behind one type; and the shared command connection, which comes
//! back by itself.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use buqueue_core::driver::{self, Activity, Backend as _};
use buqueue_core::tls::TlsPem;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline,
    RedisError, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};
use tokio::time::timeout;

use crate::RedisBackend;
use crate::config::{Endpoint, RedisOptions, Sentinels};
use crate::error;
use crate::scripts::Lua;

/// How long a reconnect may take. Shorter than the first connect: a packet lost while the network was away must
/// not hold the next attempt up for long.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The client's own response timeout where it insists on one. Ours is always shorter.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// One open connection.
#[derive(Clone)]
pub(crate) enum Link {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(link) => link.req_packed_command(cmd),
            Self::Cluster(link) => link.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(link) => link.req_packed_commands(pipeline, offset, count),
            Self::Cluster(link) => link.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(link) => link.get_db(),
            Self::Cluster(link) => link.get_db(),
        }
    }
}

impl Link {
    /// Sends one command. An error that the server answers is an `Err`.
    pub(crate) async fn query(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self.req_packed_command(cmd).await? {
            Value::ServerError(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Sends commands in one round trip: one reply each, errors among them.
    pub(crate) async fn query_all(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.req_packed_commands(pipeline, 0, pipeline.len()).await
    }

    /// As [`query`](Self::query) for a script, which the server may have forgotten. `arguments` writes what
    /// follows the script itself.
    pub(crate) async fn eval(&mut self, lua: &Lua, arguments: impl Fn(&mut Cmd)) -> RedisResult<Value> {
        let mut cmd = lua.by_hash();
        arguments(&mut cmd);
        match self.query(&cmd).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                let mut cmd = lua.by_text();
                arguments(&mut cmd);
                self.query(&cmd).await
            }
            outcome => outcome,
        }
    }
}

enum Target {
    Single(Client),
    // Behind a lock because asking the sentinels needs the client for itself.
    Sentinel(tokio::sync::Mutex<SentinelClient>),
    Cluster(ClusterClient),
}

/// Opens connections.
pub(crate) struct Connector {
    target: Target,
    connection_timeout: Duration,
    /// For logs.
    stream: String,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.target {
            Target::Single(_) => "Connector::Single",
            Target::Sentinel(_) => "Connector::Sentinel",
            Target::Cluster(_) => "Connector::Cluster",
        })
    }
}

impl Connector {
    /// Prepares; connects nothing yet.
    pub(crate) fn new(options: &RedisOptions, endpoint: &Endpoint, pem: TlsPem) -> RedisResult<Self> {
        let certificates = certificates(pem);
        if options.is_tls(endpoint) {
            install_crypto_provider();
        }
        let target = match endpoint {
            Endpoint::Single(url) if options.cluster_nodes.is_empty() => {
                let info = url.as_str().into_connection_info()?.set_tcp_settings(tcp());
                Target::Single(match certificates {
                    Some(certificates) => Client::build_with_tls(info, certificates)?,
                    None => Client::open(info)?,
                })
            }
            Endpoint::Single(url) => Target::Cluster(cluster(url, endpoint, options, certificates)?),
            Endpoint::Sentinel(sentinels) => {
                Target::Sentinel(tokio::sync::Mutex::new(sentinel(sentinels, certificates)?))
            }
        };
        let (stream, connection_timeout) = (options.config.stream.clone(), options.connection_timeout);
        Ok(Self { target, connection_timeout, stream })
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.target, Target::Cluster(_))
    }

    /// The first connection: as long as the user allows.
    pub(crate) async fn connect(&self) -> RedisResult<Link> {
        self.connect_within(self.connection_timeout).await
    }

    pub(crate) async fn reconnect(&self) -> RedisResult<Link> {
        self.connect_within(RECONNECT_TIMEOUT.min(self.connection_timeout)).await
    }

    async fn connect_within(&self, limit: Duration) -> RedisResult<Link> {
        // The deadline is ours, for connecting and for every command; the client's own would end a blocking read.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connect = async {
            let mut link = match &self.target {
                Target::Single(client) => {
                    Link::Single(client.get_multiplexed_async_connection_with_config(&config).await?)
                }
                Target::Sentinel(client) => {
                    Link::Single(client.lock().await.get_async_connection_with_config(&config).await?)
                }
                Target::Cluster(client) => Link::Cluster(client.get_async_connection().await?),
            };
            link.query(&redis::cmd("PING")).await?;
            Ok(link)
        };
        timeout(limit, connect).await.unwrap_or_else(|_| Err(error::unreachable()))
    }
}

/// As the client takes them; `None` leaves it with the system's authorities.
fn certificates(pem: TlsPem) -> Option<TlsCertificates> {
    let TlsPem { root_certificates, client_certificate, .. } = pem;
    let client_tls =
        client_certificate.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    (client_tls.is_some() || root_certificates.is_some())
        .then_some(TlsCertificates { client_tls, root_cert: root_certificates })
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn cluster(
    url: &str,
    endpoint: &Endpoint,
    options: &RedisOptions,
    certificates: Option<TlsCertificates>,
) -> RedisResult<ClusterClient> {
    let from_url = url.into_connection_info()?;
    let scheme = if endpoint.is_tls() { "rediss" } else { "redis" };
    let nodes = options
        .cluster_nodes
        .iter()
        .map(|node| if node.contains("://") { node.clone() } else { format!("{scheme}://{node}") });
    let mut builder = ClusterClientBuilder::new(nodes)
        .tcp_settings(tcp())
        .connection_timeout(options.connection_timeout)
        .response_timeout(NEVER)
        .retries(3);
    if let Some(username) = from_url.redis_settings().username() {
        builder = builder.username(username);
    }
    if let Some(password) = from_url.redis_settings().password() {
        builder = builder.password(password);
    }
    if endpoint.is_tls() {
        builder = builder.tls(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    builder.build()
}

fn sentinel(sentinels: &Sentinels, certificates: Option<TlsCertificates>) -> RedisResult<SentinelClient> {
    let hosts = sentinels.hosts.iter().map(|(host, port)| {
        if sentinels.tls {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.clone(), *port)
        }
    });
    let mut builder = SentinelClientBuilder::new(hosts, &sentinels.service, SentinelServerType::Master)?
        .set_client_to_redis_db(sentinels.db)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if let Some(username) = &sentinels.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &sentinels.password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(username) = &sentinels.sentinel_username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &sentinels.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if sentinels.tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
    }
    builder.build()
}

/// The client panics when the program has no rustls provider, or two.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Err: another thread was faster, which is as good.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    }
}

/// The shared command connection: replaced when it breaks, one attempt at a time.
#[derive(Debug)]
pub(crate) struct Commands {
    connector: Arc<Connector>,
    slot: Mutex<Slot>,
    /// Held while connecting, so that many callers make one attempt.
    connecting: tokio::sync::Mutex<()>,
    timeout: Duration,
    breaks: AtomicU64,
    /// It was told that the connection is lost.
    lost: AtomicBool,
}

struct Slot {
    link: Option<Link>,
    /// How many attempts there have been; names the connection too.
    attempts: u64,
    failure: Option<RedisError>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("connected", &self.link.is_some()).finish_non_exhaustive()
    }
}

impl Commands {
    pub(crate) async fn connect(connector: Arc<Connector>, timeout: Duration) -> RedisResult<Self> {
        let link = connector.connect().await?;
        let slot = Mutex::new(Slot { link: Some(link), attempts: 1, failure: None });
        Ok(Self {
            connector,
            slot,
            connecting: tokio::sync::Mutex::new(()),
            timeout,
            breaks: AtomicU64::new(0),
            lost: AtomicBool::new(false),
        })
    }

    /// Sends one command.
    pub(crate) async fn query(&self, cmd: &Cmd) -> RedisResult<Value> {
        self.run(async |link: &mut Link| link.query(cmd).await).await.0
    }

    /// Sends commands in one round trip: one reply each, errors among them.
    pub(crate) async fn query_all(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.run(async |link: &mut Link| link.query_all(pipeline).await).await.0
    }

    /// Runs a script.
    pub(crate) async fn eval(&self, lua: &Lua, arguments: impl Fn(&mut Cmd)) -> RedisResult<Value> {
        self.eval_told(lua, arguments).await.0
    }

    /// Runs a script, and tells whether it may have been sent.
    pub(crate) async fn eval_told(
        &self,
        lua: &Lua,
        arguments: impl Fn(&mut Cmd),
    ) -> (RedisResult<Value>, bool) {
        self.run(async |link: &mut Link| link.eval(lua, &arguments).await).await
    }

    /// How long a command may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How often the connection was found dead. When this one is, others to the same server may be.
    pub(crate) fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::Relaxed)
    }

    /// Gives the connection up: the next command opens another.
    pub(crate) fn reset(&self) {
        self.slot().link = None;
    }

    /// The outcome, and whether there was a connection to send the request on.
    async fn run<T>(&self, request: impl AsyncFnOnce(&mut Link) -> RedisResult<T>) -> (RedisResult<T>, bool) {
        let mut used = None;
        let outcome = timeout(self.timeout, async {
            let (mut link, attempt) = self.link().await?;
            used = Some(attempt);
            request(&mut link).await
        });
        let outcome = outcome.await.unwrap_or_else(|_| Err(error::timed_out()));
        match (&outcome, used) {
            (Err(error), used) if error::breaks_connection(error) => self.broke(used, error),
            (_, Some(attempt)) if self.lost.load(Ordering::Relaxed) => self.answered(attempt),
            _ => {}
        }
        (outcome, used.is_some())
    }

    /// The connection broke that this attempt made, or none could be made.
    fn broke(&self, used: Option<u64>, error: &RedisError) {
        if let Some(attempt) = used {
            self.breaks.fetch_add(1, Ordering::Relaxed);
            let mut slot = self.slot();
            if slot.attempts != attempt {
                return;
            }
            slot.link = None;
        } else if self.slot().link.is_some() {
            // Somebody else has made one meanwhile.
            return;
        }
        if !self.lost.swap(true, Ordering::Relaxed) {
            let stream = &self.connector.stream;
            let error = error::convert(error, stream);
            driver::tell(RedisBackend::NAME, stream, Activity::Disconnected(&error));
        }
    }

    /// The server has answered on the connection that this attempt made. One that was made and not answered on is no
    /// good news: it may lead to a server that refuses everything.
    fn answered(&self, attempt: u64) {
        let is_current = {
            let slot = self.slot();
            slot.attempts == attempt && slot.link.is_some()
        };
        if is_current && self.lost.swap(false, Ordering::Relaxed) {
            driver::tell(RedisBackend::NAME, &self.connector.stream, Activity::Reconnected);
        }
    }

    async fn link(&self) -> RedisResult<(Link, u64)> {
        let before = {
            let slot = self.slot();
            if let Some(link) = &slot.link {
                return Ok((link.clone(), slot.attempts));
            }
            slot.attempts
        };
        let connecting = self.connecting.lock().await;
        {
            let slot = self.slot();
            if let Some(link) = &slot.link {
                return Ok((link.clone(), slot.attempts));
            }
            // Somebody else has just tried; his answer is ours.
            if let (true, Some(failure)) = (slot.attempts != before, &slot.failure) {
                return Err(failure.clone());
            }
        }
        let outcome = self.connector.reconnect().await;
        let mut slot = self.slot();
        slot.attempts += 1;
        let attempts = slot.attempts;
        let outcome = match outcome {
            Ok(link) => {
                slot.failure = None;
                slot.link = Some(link.clone());
                Ok((link, attempts))
            }
            Err(error) => {
                slot.failure = Some(error.clone());
                Err(error)
            }
        };
        drop(slot);
        drop(connecting);
        outcome
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
