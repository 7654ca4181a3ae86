//! A TCP proxy that breaks connections on command.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A proxy between a backend and its broker, that fails on command. Ends, with all its connections, on drop.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    faults: watch::Sender<Faults>,
    // Aborted on drop, and with it every connection.
    _tasks: JoinSet<()>,
}

/// What is wrong at the moment. Connections are numbered as they come.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    accepted: u64,
    refused: u64,
    /// Connections below this number are closed.
    cut_below: u64,
    /// Connections below this number are silent: what is sent vanishes, and nobody is told.
    silent_below: u64,
    refuse: bool,
    stalled: bool,
    delay: Duration,
}

impl FaultProxy {
    /// Listens on a free port of this machine and passes everything on to `upstream`.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), upstream).await
    }

    /// As [`start`](Self::start), listening at `addr`: for brokers that tell their clients where to connect. Waits a
    /// moment for an address that is just becoming free.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub async fn start_at(addr: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let listener = loop {
            match TcpListener::bind(addr).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if tokio::time::Instant::now() >= deadline {
                        return Err(error);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                bound => break bound?,
            }
        };
        let addr = listener.local_addr()?;
        let (faults, watched) = watch::channel(Faults::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, upstream, faults.clone(), watched));
        Ok(Self { addr, faults, _tasks: tasks })
    }

    /// Where to connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections have come in so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.faults.borrow().accepted
    }

    /// How many connections have been refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.faults.borrow().refused
    }

    /// Closes all connections at once. New ones are welcome.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.cut_below = faults.accepted);
    }

    /// Whether new connections are closed as soon as they come.
    pub fn refuse(&self, refuse: bool) {
        self.faults.send_modify(|faults| faults.refuse = refuse);
    }

    /// The connections that exist fall silent: whatever either side sends vanishes, and neither learns of it. New
    /// connections work. This is what a crashed peer or a dropped NAT entry looks like.
    pub fn half_open(&self) {
        self.faults.send_modify(|faults| faults.silent_below = faults.accepted);
    }

    /// Nothing passes any more, on old and new connections; nothing is lost either.
    pub fn stall(&self) {
        self.faults.send_modify(|faults| faults.stalled = true);
    }

    /// Ends a stall; what was held passes now.
    pub fn resume(&self) {
        self.faults.send_modify(|faults| faults.stalled = false);
    }

    /// Holds everything that passes, in each direction, for this long.
    pub fn delay(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    faults: watch::Sender<Faults>,
    watched: watch::Receiver<Faults>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        // What has ended is forgotten.
        while connections.try_join_next().is_some() {}
        if watched.borrow().refuse {
            faults.send_modify(|faults| faults.refused += 1);
            continue;
        }
        let mut number = 0;
        faults.send_modify(|faults| {
            number = faults.accepted;
            faults.accepted += 1;
        });
        connections.spawn(connection(client, upstream, number, watched.clone()));
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, number: u64, watched: watch::Receiver<Faults>) {
    let mut cut = watched.clone();
    let cut = cut.wait_for(|faults| faults.cut_below > number);
    let pass = async {
        let Ok(broker) = TcpStream::connect(upstream).await else { return };
        // The proxy adds no delay of its own.
        drop((client.set_nodelay(true), broker.set_nodelay(true)));
        let (from_client, to_client) = client.into_split();
        let (from_broker, to_broker) = broker.into_split();
        tokio::select! {
            () = pump(from_client, to_broker, number, watched.clone()) => {}
            () = pump(from_broker, to_client, number, watched.clone()) => {}
        }
    };
    tokio::select! {
        _ = cut => {}
        () = pass => {}
    }
}

/// Copies one direction until it ends or fails.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u64,
    mut watched: watch::Receiver<Faults>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        let Ok(Faults { delay, .. }) = watched.wait_for(|faults| !faults.stalled).await.map(|faults| *faults)
        else {
            return;
        };
        tokio::time::sleep(delay).await;
        if watched.borrow().silent_below > number {
            match read {
                Ok(1..) => continue,
                // Nobody is told that this side has gone.
                Ok(0) | Err(_) => std::future::pending().await,
            }
        }
        match read {
            Ok(length @ 1..) if to.write_all(&buffer[..length]).await.is_ok() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(150);
    const LONG: Duration = Duration::from_secs(5);

    /// A server that says everything back, and a proxy before it.
    async fn echo() -> (FaultProxy, JoinSet<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        (FaultProxy::start(upstream).await.unwrap(), tasks)
    }

    async fn connect(proxy: &FaultProxy) -> TcpStream {
        TcpStream::connect(proxy.addr()).await.unwrap()
    }

    async fn says_back(stream: &mut TcpStream, word: &[u8; 4]) -> bool {
        if stream.write_all(word).await.is_err() {
            return false;
        }
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.is_ok() && answer == *word
    }

    #[tokio::test]
    async fn passes_everything_on() {
        let (proxy, _server) = echo().await;
        assert!(timeout(LONG, says_back(&mut connect(&proxy).await, b"ping")).await.unwrap());
        assert_eq!(proxy.accepted(), 1);
    }

    #[tokio::test]
    async fn a_cut_closes_old_connections_only() {
        let (proxy, _server) = echo().await;
        let mut old = connect(&proxy).await;
        assert!(timeout(LONG, says_back(&mut old, b"ping")).await.unwrap());
        proxy.cut();
        assert!(!timeout(LONG, says_back(&mut old, b"ping")).await.unwrap());
        assert!(timeout(LONG, says_back(&mut connect(&proxy).await, b"ping")).await.unwrap());
    }

    #[tokio::test]
    async fn refuses_while_told_to() {
        let (proxy, _server) = echo().await;
        proxy.refuse(true);
        assert!(!timeout(LONG, says_back(&mut connect(&proxy).await, b"ping")).await.unwrap());
        assert_eq!(proxy.refused(), 1);
        proxy.refuse(false);
        assert!(timeout(LONG, says_back(&mut connect(&proxy).await, b"ping")).await.unwrap());
    }

    #[tokio::test]
    async fn half_open_is_silent() {
        let (proxy, _server) = echo().await;
        let mut old = connect(&proxy).await;
        assert!(timeout(LONG, says_back(&mut old, b"ping")).await.unwrap());
        proxy.half_open();
        assert!(timeout(SHORT, says_back(&mut old, b"ping")).await.is_err(), "neither answer nor end");
        assert!(timeout(LONG, says_back(&mut connect(&proxy).await, b"ping")).await.unwrap());
        proxy.cut();
        assert!(!timeout(LONG, says_back(&mut old, b"ping")).await.unwrap());
    }

    #[tokio::test]
    async fn a_stall_loses_nothing() {
        let (proxy, _server) = echo().await;
        let mut stream = connect(&proxy).await;
        assert!(timeout(LONG, says_back(&mut stream, b"ping")).await.unwrap());
        proxy.stall();
        stream.write_all(b"held").await.unwrap();
        let mut answer = [0; 4];
        assert!(timeout(SHORT, stream.read_exact(&mut answer)).await.is_err());
        proxy.resume();
        timeout(LONG, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"held");
    }

    #[tokio::test]
    async fn delays_each_direction() {
        let (proxy, _server) = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.delay(SHORT);
        let start = std::time::Instant::now();
        assert!(timeout(LONG, says_back(&mut stream, b"ping")).await.unwrap());
        assert!(start.elapsed() >= 2 * SHORT);
    }

    #[tokio::test]
    async fn ends_when_dropped() {
        let (proxy, _server) = echo().await;
        let mut stream = connect(&proxy).await;
        assert!(timeout(LONG, says_back(&mut stream, b"ping")).await.unwrap());
        drop(proxy);
        assert!(!timeout(LONG, says_back(&mut stream, b"ping")).await.unwrap());
    }
}
