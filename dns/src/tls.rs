//! DNS over TLS (RFC 7858): who this server is, and whom it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
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

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let wrong = |error| TlsError::Read { path: path.to_owned(), source: pem::Error::Io(error) };
    std::fs::read(path).map_err(wrong)
}

/// The certificates of a file with that text.
fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Read { path: path.to_owned(), source };
    let list = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let list = list.map_err(wrong)?;
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
            for certificate in certificates(path, &read(path)?)? {
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

/// The text of the files of a certificate and its key.
#[derive(PartialEq, Eq)]
struct Texts {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// Certificate and key of this server, as its files have them.
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    /// What was read at the start.
    first: Texts,
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
        let first = Texts { certificate: read(certificate)?, key: read(key)? };
        let config = ArcSwap::from(server((certificate, key), &first)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), first, config })
    }

    /// Begins a connection with the certificate as it is now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Follows the files for ever. A pair that cannot be used is logged, and the old one stays:
    /// one file may be written before the other.
    pub async fn watch(&self) {
        // What is served, whatever has become of the files since they were read.
        let mut known = None;
        let mut told = String::new();
        loop {
            tokio::time::sleep(PERIOD).await;
            match self.read_again(known.as_ref().unwrap_or(&self.first)) {
                Ok(None) => told.clear(),
                Ok(Some((texts, config))) => {
                    self.config.store(config);
                    known = Some(texts);
                    told.clear();
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

    /// What the files have, if it is something else.
    fn read_again(&self, known: &Texts) -> Result<Option<(Texts, Arc<ServerConfig>)>, TlsError> {
        let texts = Texts { certificate: read(&self.certificate)?, key: read(&self.key)? };
        if texts == *known {
            return Ok(None);
        }
        let config = server((&self.certificate, &self.key), &texts)?;
        Ok(Some((texts, config)))
    }
}

fn server(
    (certificate, key): (&Path, &Path),
    texts: &Texts,
) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(certificate, &texts.certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&texts.key)
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
