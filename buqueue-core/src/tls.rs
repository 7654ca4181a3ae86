//! The files of TLS that a configuration names, and what a handshake fails at for good.
//!
//! The clients of the brokers tell of a file that is of no use late, or not by its option, or not at all; so the files are
//! looked at before a client gets them. For backend authors.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, RootCertStore};

use crate::{BuqueueError, ErrorKind, Result};

const ROOTS: &str = "root_certificates";
const CLIENT: &str = "client_certificate";

/// Where the files are: the options `root_certificates` and `client_certificate` of a builder, by which errors name them.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The authorities that a server's certificate must come from.
    pub root_certificates: Option<PathBuf>,
    /// The client's own certificate, with those that lead to its authority behind it, and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// What the files hold, in PEM. `Debug` shows none of it.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct TlsPem {
    /// The authorities.
    pub root_certificates: Option<Vec<u8>>,
    /// The client's own certificate, and its key.
    pub client_certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for TlsPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsPem")
            .field("root_certificates", &self.root_certificates.is_some())
            .field("client_certificate", &self.client_certificate.is_some())
            .finish()
    }
}

impl TlsFiles {
    /// Refuses files where nobody would look at them. `scheme` is what a URL over TLS begins with.
    ///
    /// # Errors
    /// `InvalidConfig`, with the option's name, where there are files and `is_tls` is false.
    pub fn need_tls(&self, is_tls: bool, scheme: &str) -> Result<()> {
        let roots = self.root_certificates.is_some().then_some(ROOTS);
        match roots.or(self.client_certificate.is_some().then_some(CLIENT)) {
            Some(option) if !is_tls => {
                Err(invalid(format!("{option}: is used over TLS alone, where the url begins with {scheme}")))
            }
            _ => Ok(()),
        }
    }

    /// Reads the files, and looks at what they hold.
    ///
    /// # Errors
    /// `InvalidConfig`, with the option's name and the file's, where one cannot be read, holds no certificate or no key, or
    /// one that does not belong to the other. Nothing of what they hold is in the error.
    pub async fn read(&self) -> Result<TlsPem> {
        let root_certificates = match &self.root_certificates {
            Some(file) => Some(roots(file).await?),
            None => None,
        };
        let client_certificate = match &self.client_certificate {
            Some((certificate, key)) => Some(identity(certificate, key).await?),
            None => None,
        };
        Ok(TlsPem { root_certificates, client_certificate })
    }
}

async fn roots(file: &Path) -> Result<Vec<u8>> {
    let pem = read(ROOTS, file).await?;
    let mut store = RootCertStore::empty();
    for certificate in certificates(ROOTS, file, &pem)? {
        store.add(certificate).map_err(|error| broken(ROOTS, file).with_source(error))?;
    }
    Ok(pem)
}

async fn identity(certificate: &Path, key: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let (pem, key_pem) = (read(CLIENT, certificate).await?, read(CLIENT, key).await?);
    let chain = certificates(CLIENT, certificate, &pem)?;
    let Ok(private) = PrivateKeyDer::from_pem_slice(&key_pem) else {
        return Err(invalid(format!("{CLIENT}: {key:?} holds no key in PEM, or an encrypted one")));
    };
    // The client will use what the program has installed.
    let installed = CryptoProvider::get_default().cloned();
    let provider = installed.unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
    CertifiedKey::from_der(chain, private, &provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => {
            invalid(format!("{CLIENT}: {certificate:?} is no certificate of the key in {key:?}"))
        }
        Error::InvalidCertificate(_) => broken(CLIENT, certificate),
        error => invalid(format!("{CLIENT}: {key:?} holds no usable key: {error}")).with_source(error),
    })?;
    Ok((pem, key_pem))
}

async fn read(option: &str, file: &Path) -> Result<Vec<u8>> {
    let cannot = |error| invalid(format!("{option}: {file:?} cannot be read: {error}")).with_source(error);
    tokio::fs::read(file).await.map_err(cannot)
}

fn certificates(option: &str, file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    // The error is left out: it quotes the file.
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(invalid(format!("{option}: {file:?} holds no certificate in PEM")))
        }
        Ok(found) => Ok(found),
        Err(_) => Err(broken(option, file)),
    }
}

fn invalid(fact: String) -> BuqueueError {
    BuqueueError::new(ErrorKind::InvalidConfig, fact)
}

fn broken(option: &str, file: &Path) -> BuqueueError {
    invalid(format!("{option}: {file:?} holds a certificate that cannot be decoded"))
}

/// What has ended a handshake for good, out of the words of a client that uses rustls: a certificate is refused, the
/// server's or the client's. `None` where they speak of something else; that a handshake failed without a reason is nothing
/// for good: a proxy says so while it has nobody to hand on to, and an old server where a certificate is missing.
#[must_use]
pub fn refusal(words: &str) -> Option<(ErrorKind, String)> {
    if let Some(at) = words.find("invalid peer certificate") {
        let fact = format!("url: the server's certificate is refused: {}", &words[at..]);
        return Some((ErrorKind::InvalidConfig, fact));
    }
    let (_, alert) = words.split_once("received fatal alert: ")?;
    let alert = alert.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    match alert {
        "NoCertificate"
        | "BadCertificate"
        | "UnsupportedCertificate"
        | "CertificateRevoked"
        | "CertificateExpired"
        | "CertificateUnknown"
        | "UnknownCA"
        | "AccessDenied"
        | "DecryptError"
        | "CertificateRequired" => {
            let fact = format!("{CLIENT}: the server asks for one, or refuses the one it was shown: {alert}");
            Some((ErrorKind::AuthenticationFailed, fact))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[test]
    fn what_ends_a_handshake_for_good_is_known_by_the_clients_words() {
        let kind = |error: &Error| refusal(&format!("IO error: {error}")).map(|(kind, _)| kind);
        for alert in [AlertDescription::CertificateRequired, AlertDescription::UnknownCA] {
            assert_eq!(kind(&Error::AlertReceived(alert)), Some(ErrorKind::AuthenticationFailed));
        }
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(kind(&unknown), Some(ErrorKind::InvalidConfig));
        for alert in [AlertDescription::InternalError, AlertDescription::HandshakeFailure] {
            assert_eq!(kind(&Error::AlertReceived(alert)), None);
        }
        assert_eq!(kind(&Error::HandshakeNotComplete), None);
    }

    #[test]
    fn files_without_tls_are_refused_by_their_option() {
        let none = TlsFiles::default();
        assert!(none.need_tls(false, "x://").is_ok());
        let client = TlsFiles { client_certificate: Some(("c".into(), "k".into())), ..none };
        let both = TlsFiles { root_certificates: Some("r".into()), ..client.clone() };
        for (files, option) in [(client, CLIENT), (both, ROOTS)] {
            assert!(files.need_tls(true, "x://").is_ok());
            let error = files.need_tls(false, "x://").unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(&format!("{option}: ")), "{error}");
        }
    }
}
