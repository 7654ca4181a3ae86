//! How a connection is made.

use std::sync::Arc;

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
}

impl Connector {
    /// Validates.
    pub(crate) fn new(options: &RabbitMqOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self { options: Arc::new(options.clone()) })
    }

    /// A connection, within the connection timeout.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let uri = self.options.validate()?;
        let limit = self.options.config.connection_timeout;
        let connecting = async {
            let vhost = uri.vhost.clone();
            // Anew each time: certificates that run out are replaced while the program goes on.
            let pem = self.options.tls.read().await?;
            connected(uri, pem).await.map_err(|error| error::connecting(error, &vhost))
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| {
            let fact = format!("no broker answered within {limit:?}");
            Err(BuqueueError::new(ErrorKind::ConnectionLost, fact))
        })
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
