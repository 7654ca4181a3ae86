//! The files of TLS, and what it fails at for good.
//!
//! The clients tell of a file that is of no use late, not by its option, or not at all; so files are looked at first.

use std::path::{Path, PathBuf};

use buqueue_core::{BuqueueError, ErrorKind, Result};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::config::invalid;

const ROOTS: &str = "root_certificates";
const CLIENT: &str = "client_certificate";

/// Where they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    pub(crate) root_certificates: Option<PathBuf>,
    /// The certificate, and its key.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Refuses files where they would be of no use: without TLS nobody would look at them. `scheme` is what it takes.
    pub(crate) fn need_tls(&self, is_tls: bool, scheme: &str) -> Result<()> {
        let roots = self.root_certificates.is_some().then_some(ROOTS);
        match roots.or(self.client_certificate.is_some().then_some(CLIENT)) {
            Some(option) if !is_tls => {
                Err(invalid(format!("{option}: is for connections over TLS, whose url begins with {scheme}")))
            }
            _ => Ok(()),
        }
    }

    /// Looks at what they hold.
    pub(crate) async fn check(&self) -> Result<()> {
        if let Some(file) = &self.root_certificates {
            check_roots(file).await?;
        }
        if let Some((certificate, key)) = &self.client_certificate {
            check_identity(certificate, key).await?;
        }
        Ok(())
    }
}

async fn check_roots(file: &Path) -> Result<()> {
    let pem = read(ROOTS, file).await?;
    let mut store = RootCertStore::empty();
    for certificate in certificates(ROOTS, file, &pem)? {
        store.add(certificate).map_err(|error| broken(ROOTS, file).with_source(error))?;
    }
    Ok(())
}

async fn check_identity(certificate: &Path, key: &Path) -> Result<()> {
    let (pem, key_pem) = (read(CLIENT, certificate).await?, read(CLIENT, key).await?);
    let chain = certificates(CLIENT, certificate, &pem)?;
    let Ok(private) = PrivateKeyDer::from_pem_slice(&key_pem) else {
        return Err(invalid(format!("{CLIENT}: {key:?} holds no key in PEM, or an encrypted one")));
    };
    let checked = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map(drop);
    checked.map_err(|error| {
        let fact = format!("{CLIENT}: {certificate:?} is no certificate of the key in {key:?}: {error}");
        invalid(fact).with_source(error)
    })
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

fn broken(option: &str, file: &Path) -> BuqueueError {
    invalid(format!("{option}: {file:?} holds a certificate that cannot be decoded"))
}

/// What has ended a handshake for good, out of the client's words: trying again does not help.
pub(crate) fn refusal(words: &str) -> Option<(ErrorKind, String)> {
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
        // What an older server says to a client without a certificate, and any to one that it can agree on nothing with.
        "HandshakeFailure" => Some((
            ErrorKind::InvalidConfig,
            format!("url: the server has ended the handshake of TLS: {alert}"),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, Error};

    use super::*;

    #[test]
    fn what_ends_a_handshake_for_good_is_known_by_the_clients_words() {
        let kind = |error: &Error| refusal(&format!("IO error: {error}")).map(|(kind, _)| kind);
        for alert in [AlertDescription::CertificateRequired, AlertDescription::UnknownCA] {
            assert_eq!(kind(&Error::AlertReceived(alert)), Some(ErrorKind::AuthenticationFailed));
        }
        let alert = Error::AlertReceived(AlertDescription::HandshakeFailure);
        assert_eq!(kind(&alert), Some(ErrorKind::InvalidConfig));
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(kind(&unknown), Some(ErrorKind::InvalidConfig));
        assert_eq!(kind(&Error::AlertReceived(AlertDescription::InternalError)), None);
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
