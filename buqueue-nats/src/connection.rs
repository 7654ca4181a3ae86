//! One connection, and what is known about it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::response::Response;
use async_nats::{Client, ConnectOptions, Event, Request, ServerAddr, ServerError};
use buqueue_core::driver::Activity;
use buqueue_core::{BuqueueError, ErrorKind, Result, percent};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::{NatsOptions, invalid};
use crate::error;
use crate::telling::tell;

/// A peer that says nothing is given up after three of these.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const RECONNECT_FIRST: Duration = Duration::from_millis(20);
const RECONNECT_CAP: Duration = Duration::from_secs(2);

/// The connection's state, as the client tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) up: bool,
    /// Grows with every connection.
    pub(crate) epoch: u64,
}

/// A connection that the client keeps up.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) client: Client,
    request_timeout: Duration,
    state: watch::Receiver<State>,
    refusals: watch::Receiver<u64>,
    last_refusal: Arc<Mutex<String>>,
}

impl Link {
    pub(crate) async fn connect(options: &NatsOptions, consuming: bool) -> Result<Self> {
        let servers = options.validate(consuming)?;
        // The client reads them by itself, for each connection, and does not say which of them is of no use.
        options.tls.read().await?;
        // Two crypto providers in one program make the client panic. That one is installed already is fine.
        let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (state_sender, state) = watch::channel(State { up: false, epoch: 0 });
        let (refusal_sender, refusals) = watch::channel(0);
        let last_refusal = Arc::new(Mutex::new(String::new()));
        let words = Arc::clone(&last_refusal);
        let queue = options.config.jetstream.stream_name.clone();
        let mut connecting = ConnectOptions::new()
            .name("buqueue")
            .ping_interval(PING_INTERVAL)
            // Servers that others tell of come without a scheme: else each would say itself whether it is spoken to in plain.
            .require_tls(servers.iter().all(ServerAddr::tls_required))
            .connection_timeout(options.connection_timeout)
            .request_timeout(Some(options.request_timeout))
            .subscription_capacity(1 << 16)
            .reconnect_delay_callback(|attempt| {
                let exponent = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
                jittered((RECONNECT_FIRST * 2_u32.pow(exponent)).min(RECONNECT_CAP))
            })
            .event_callback(move |event| {
                match event {
                    Event::Connected => {
                        let before = state_sender.borrow().epoch;
                        state_sender.send_replace(State { up: true, epoch: before + 1 });
                        if before > 0 {
                            tell(&queue, Activity::Reconnected);
                        }
                    }
                    Event::Disconnected => {
                        let was_up = state_sender.borrow().up;
                        state_sender.send_modify(|state| state.up = false);
                        if was_up {
                            tell(&queue, Activity::Disconnected(&error::broken()));
                        }
                    }
                    // The user has dropped it.
                    Event::Closed => state_sender.send_modify(|state| state.up = false),
                    Event::ServerError(ServerError::Other(text)) => {
                        *words.lock().unwrap_or_else(PoisonError::into_inner) = text;
                        refusal_sender.send_modify(|count| *count += 1);
                    }
                    _ => {}
                }
                std::future::ready(())
            });
        // The client leaves aside what stands before the `@`.
        if let Some(server) = servers.iter().find(|server| server.username().is_some()) {
            let decoded = |text: &str| percent::decode(text).unwrap_or_else(|| text.to_owned());
            let user = decoded(server.username().unwrap_or_default());
            connecting = match server.password() {
                Some(password) => connecting.user_and_password(user, decoded(password)),
                None => connecting.token(user),
            };
        }
        if let Some(file) = &options.config.credentials_file {
            connecting = connecting.credentials_file(file).await.map_err(|error| {
                let fact = format!("credentials_file: {file:?} cannot be read: {}", error.kind());
                // The error itself may quote what the file says.
                invalid(fact)
            })?;
        }
        if let Some(file) = &options.tls.root_certificates {
            connecting = connecting.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = &options.tls.client_certificate {
            connecting = connecting.add_client_certificate(certificate.clone(), key.clone());
        }
        let client = match timeout(options.connection_timeout, connecting.connect(servers)).await {
            Ok(connected) => connected.map_err(error::connecting)?,
            Err(_) => {
                let fact = format!("no server answered within {:?}", options.connection_timeout);
                return Err(BuqueueError::new(ErrorKind::ConnectionLost, fact));
            }
        };
        // The event comes a moment after the connection.
        let mut told = state.clone();
        let _told_in_time =
            timeout(options.connection_timeout, told.wait_for(|state| state.up)).await.is_ok();
        let request_timeout = options.request_timeout;
        Ok(Self { client, request_timeout, state, refusals, last_refusal })
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Asks JetStream's API. The inner result is the server's answer.
    ///
    /// A server that does not permit a subject says so on the side and does not answer.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        payload: Option<serde_json::Value>,
    ) -> Result<std::result::Result<T, jetstream::Error>> {
        let mut refusals = self.refusals.clone();
        refusals.mark_unchanged();
        let refused = async {
            loop {
                if refusals.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                let words = self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if words.to_lowercase().contains("permissions violation") && words.contains(subject) {
                    return;
                }
            }
        };
        // Questions without arguments must be empty.
        let payload = payload.map_or_else(Vec::new, |value| value.to_string().into_bytes());
        let request = Request::new().payload(payload.into()).timeout(Some(self.request_timeout));
        tokio::select! {
            answer = self.client.send_request(format!("$JS.API.{subject}"), request) => {
                let answer = answer.map_err(|error| error::requesting(subject, error))?;
                match serde_json::from_slice(&answer.payload) {
                    Ok(Response::Ok(answer)) => Ok(Ok(answer)),
                    Ok(Response::Err { error }) => Ok(Err(error)),
                    Err(error) => Err(error::unreadable(subject, error)),
                }
            }
            () = refused => {
                let fact = format!("no permission to publish to \"$JS.API.{subject}\"");
                Err(BuqueueError::new(ErrorKind::AuthenticationFailed, fact))
            }
        }
    }
}

/// Between half and the whole of it, so that a crowd does not come back at the same moment.
fn jittered(delay: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos() % 1000);
    delay / 2 + delay / 2 * nanos / 1000
}
