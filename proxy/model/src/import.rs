//! Services of other clusters ([KEP-1645]).
//!
//! [KEP-1645]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-multicluster/1645-multi-cluster-services-api

use std::net::IpAddr;

use crate::{Meta, Protocol};

/// One entry of a ServiceImport's `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImportPort {
    /// `name`; empty where the only port has none.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, 1 to 65535.
    pub port: u16,
}

/// A `multicluster.x-k8s.io/v1alpha1` ServiceImport: a Service that clusters of a set share.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceImport {
    /// Metadata.
    pub meta: Meta,
    /// Whether `spec.type` is `Headless`: it has endpoints and no address of its own.
    pub headless: bool,
    /// `spec.ips`: the addresses it has in this cluster, at most one a family.
    pub ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ImportPort>,
}
