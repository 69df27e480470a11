//! DNS over TLS (RFC 7858): who this server is, and whom it trusts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// The port of DNS over TLS.
pub const PORT: u16 = 853;
/// How a client that speaks several protocols names this one (RFC 7858, IANA).
const ALPN: &[u8] = b"dot";
/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not of the form that PEM has.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file has no certificate.
    #[error("{} has no certificate", .0.display())]
    Empty(PathBuf),
    /// A certificate cannot be used, or does not fit the key.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// The system has no certificates that could be trusted.
    #[error("the system has no trusted certificates (give a file of them)")]
    NoRoots,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let list = CertificateDer::pem_file_iter(path).map_err(read)?;
    let list = list.collect::<Result<Vec<_>, _>>().map_err(read)?;
    if list.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(list) }
}

/// What a client needs to check upstreams: against the authorities of a PEM file, or else against
/// those that the system trusts.
///
/// # Errors
///
/// The file cannot be read or has no usable certificate, or the system has none.
pub fn client(authorities: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.map_err(|source| TlsError::Certificate { path: path.to_owned(), source })?;
            }
        }
        None => {
            // Some systems carry a few that nobody can read any more.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let builder = ClientConfig::builder_with_provider(provider());
    // Both versions that the provider has are known to it.
    let builder = builder.with_safe_default_protocol_versions().map_err(|source| {
        TlsError::Certificate { path: authorities.unwrap_or(Path::new("")).to_owned(), source }
    })?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Certificate and key of this server, as its files have them.
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    config: ArcSwap<ServerConfig>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the certificate, those that lead to its authority behind it, and the key: PEM files.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or the two do not fit together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let config = server(certificate, key)?;
        let config = ArcSwap::from(config);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config })
    }

    /// Begins a connection with the certificate as it is now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Follows the files for ever. A pair that cannot be used is logged, and the old one stays:
    /// one file may be written before the other.
    pub async fn watch(&self) {
        let read = || (std::fs::read(&self.certificate), std::fs::read(&self.key));
        let text = |(certificate, key): (io::Result<Vec<u8>>, io::Result<Vec<u8>>)| {
            (certificate.unwrap_or_default(), key.unwrap_or_default())
        };
        let mut known = text(read());
        let mut told = String::new();
        loop {
            tokio::time::sleep(PERIOD).await;
            let new = text(read());
            if new == known && told.is_empty() {
                continue;
            }
            match server(&self.certificate, &self.key) {
                Ok(config) => {
                    self.config.store(config);
                    (known, told) = (new, String::new());
                    tracing::info!("the certificate was read again");
                }
                Err(error) => {
                    let error = error.to_string();
                    if told != error {
                        tracing::error!("--tls-cert: {error}; the old one stays");
                        told = error;
                    }
                }
            }
        }
    }
}

fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|source| TlsError::Read { path: key.to_owned(), source })?;
    let wrong = |source| TlsError::Certificate { path: certificate.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(wrong)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}
