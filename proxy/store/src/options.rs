//! What a source needs to know besides its URL.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use sluice_model::ResourceKind;

/// Options of a source. The default watches every kind and speaks to etcd without TLS or user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceOptions {
    /// What only an etcd source needs.
    pub etcd: EtcdOptions,
    /// The kinds to watch; all others are left out.
    pub kinds: BTreeSet<ResourceKind>,
    /// Reads files on the runtime's own thread. For a runtime that does nothing but follow the source:
    /// what is allocated and freed on one thread is used again by it, so it takes less memory.
    pub in_place: bool,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            etcd: EtcdOptions::default(),
            kinds: BTreeSet::from([
                ResourceKind::Service,
                ResourceKind::EndpointSlice,
                ResourceKind::Pod,
                ResourceKind::Node,
                ResourceKind::Namespace,
                ResourceKind::NetworkPolicy,
                ResourceKind::ClusterNetworkPolicy,
                ResourceKind::ServiceImport,
            ]),
            in_place: false,
        }
    }
}

/// How to reach etcd and where in it the objects are. The files are read again at every connect, so
/// a rotated certificate is honoured.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// What all keys begin with: the kube-apiserver's `--etcd-prefix`.
    pub prefix: String,
    /// PEM file of the authority that signed etcd's certificate; needed for `https`.
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of the client's private key.
    pub key: Option<PathBuf>,
    /// User name, where etcd's authentication is on.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            prefix: "/registry".to_owned(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            password: None,
        }
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("prefix", &self.prefix)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("user", &self.user)
            // A password has no place in a log.
            .field("password", &self.password.as_ref().map(|_| "***"))
            .finish()
    }
}
