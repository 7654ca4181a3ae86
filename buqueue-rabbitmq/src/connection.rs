//! How a connection is made.

use std::sync::{Arc, Mutex, PoisonError};

use buqueue_core::tls::TlsPem;
use buqueue_core::{BuqueueError, ErrorKind, Result};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio::time::timeout;

use crate::config::RabbitMqOptions;
use crate::error;

/// Knows where the broker is.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    pub(crate) options: Arc<RabbitMqOptions>,
    /// The last that were of use.
    certificates: Arc<Mutex<Option<TlsPem>>>,
}

impl Connector {
    /// Validates.
    pub(crate) fn new(options: &RabbitMqOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self { options: Arc::new(options.clone()), certificates: Arc::default() })
    }

    /// A connection, within the connection timeout.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let uri = self.options.validate()?;
        let limit = self.options.config.connection_timeout;
        let connecting = async {
            let vhost = uri.vhost.clone();
            let pem = self.certificates().await?;
            connected(uri, pem).await.map_err(|error| error::connecting(error, &vhost))
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| {
            let fact = format!("no broker answered within {limit:?}");
            Err(BuqueueError::new(ErrorKind::ConnectionLost, fact))
        })
    }

    /// Read anew each time: certificates that run out are replaced while the program goes on. While they are, a file may be
    /// missing for a moment, or belong to a key that is not there yet; that must not end a consumer, so the last good ones
    /// are used.
    async fn certificates(&self) -> Result<TlsPem> {
        let read = self.options.tls.read().await;
        let mut last = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        match (read, &*last) {
            (Err(_), Some(good)) => Ok(good.clone()),
            (Err(error), None) => Err(error),
            (Ok(read), _) => {
                *last = Some(read.clone());
                Ok(read)
            }
        }
    }
}

async fn connected(uri: AMQPUri, pem: TlsPem) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name("buqueue".into());
    if !RabbitMqOptions::is_tls(&uri) {
        return Connection::connect_uri(uri, properties).await;
    }
    // Two crypto providers in one program make the client panic. That one is installed already is fine.
    let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = OwnedTLSConfig {
        identity: pem.client_certificate.map(|(pem, key)| OwnedIdentity::PKCS8 { pem, key }),
        // What is no text in such a file is a comment.
        cert_chain: pem.root_certificates.map(|pem| String::from_utf8_lossy(&pem).into_owned()),
    };
    let runtime = lapin::runtime::default_runtime()?;
    Connection::connect_uri_with_config(uri, properties, config, runtime).await
}
