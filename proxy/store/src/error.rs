//! Why a source cannot be started at all.

use std::io;
use std::path::PathBuf;

/// A source that cannot start: its configuration is wrong. A source that is merely away (no such
/// directory yet, no etcd listening) is not an error; its status says so and it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file of the TLS options cannot be read.
    #[error("cannot read {option} {}: {source}", path.display())]
    ReadFile {
        /// Which option names the file, such as `--etcd-cacert`.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// An `https` endpoint without a certificate authority.
    #[error("{endpoint} needs the certificate authority that signed etcd's certificate")]
    NoAuthority {
        /// The endpoint.
        endpoint: String,
    },
    /// A client certificate without its key, or a key without its certificate.
    #[error("a client certificate and its key go together; only {given} is given")]
    HalfIdentity {
        /// The option that is there.
        given: &'static str,
    },
    /// A user without a password, or a password without a user.
    #[error("an etcd user and its password go together; only the {given} is given")]
    HalfUser {
        /// The one that is there.
        given: &'static str,
    },
    /// The prefix of the keys is not absolute.
    #[error("etcd prefix {prefix:?} does not begin with '/'")]
    Prefix {
        /// The prefix as given.
        prefix: String,
    },
    /// [`crate::SourceOptions::kinds`] is empty.
    #[error("no kind of object is asked for")]
    NoKinds,
    /// [`crate::Stream::open`] was called outside of a tokio runtime.
    #[error("a source needs a running tokio runtime: {0}")]
    NoRuntime(#[from] tokio::runtime::TryCurrentError),
}

impl SourceError {
    /// What to do about it, in one line.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::ReadFile { .. } => {
                "check that the file exists and that its mode lets Sluice read it"
            }
            Self::NoAuthority { .. } => {
                "give --etcd-cacert (on a kubeadm node /etc/kubernetes/pki/etcd/ca.crt)"
            }
            Self::HalfIdentity { .. } => "give both --etcd-cert and --etcd-key, or neither",
            Self::HalfUser { .. } => "give both, or neither",
            Self::Prefix { .. } => {
                "the kube-apiserver's --etcd-prefix is /registry unless it was changed"
            }
            Self::NoKinds => "name the kinds to watch",
            Self::NoRuntime(_) => "open the source inside the runtime",
        }
    }
}
