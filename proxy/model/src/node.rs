//! Nodes and namespaces.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Meta;

/// `type` of a node's address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NodeAddressKind {
    /// `InternalIP`.
    Internal,
    /// `ExternalIP`.
    External,
}

/// One entry of `status.addresses` that is an address (names are left out).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeAddress {
    /// `type`.
    pub kind: NodeAddressKind,
    /// `address`.
    pub addr: IpAddr,
}

/// One entry of `spec.taints`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taint {
    /// `key`.
    pub key: String,
    /// `effect`.
    pub effect: String,
}

/// A Kubernetes Node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Metadata; the zone is the label `topology.kubernetes.io/zone`.
    pub meta: Meta,
    /// `spec.podCIDRs`, or `podCIDR` alone; at most one a family.
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses`.
    pub addrs: Vec<NodeAddress>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
}

impl Node {
    /// The label `topology.kubernetes.io/zone`.
    pub fn zone(&self) -> Option<&str> {
        self.meta.labels.get("topology.kubernetes.io/zone").map(String::as_str)
    }

    /// Its addresses of one type, in their order.
    pub fn addrs_of(&self, kind: NodeAddressKind) -> impl Iterator<Item = IpAddr> + '_ {
        self.addrs.iter().filter(move |entry| entry.kind == kind).map(|entry| entry.addr)
    }

    /// Its InternalIPs.
    pub fn internal_addrs(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addrs_of(NodeAddressKind::Internal)
    }
}

/// A Kubernetes Namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Namespace {
    /// Metadata.
    pub meta: Meta,
}
