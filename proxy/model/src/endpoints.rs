//! EndpointSlices, and the endpoints of a Service that come out of them or out of pods.

use std::net::IpAddr;

use crate::{Meta, ObjectName, ObjectRef, Protocol};

/// `addressType` of an EndpointSlice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AddressType {
    /// `IPv4`.
    #[default]
    V4,
    /// `IPv6`.
    V6,
    /// `FQDN`, deprecated and without meaning for a data plane: such slices are skipped.
    Fqdn,
}

/// `conditions` of an endpoint, defaults applied: `ready` and `serving` true, `terminating` false
/// where they are absent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Conditions {
    /// The endpoint takes new connections (`publishNotReadyAddresses` makes every endpoint ready).
    pub ready: bool,
    /// Like `ready`, but regardless of termination.
    pub serving: bool,
    /// The endpoint is going away.
    pub terminating: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { ready: true, serving: true, terminating: false }
    }
}

/// One entry of an EndpointSlice's `endpoints`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SliceEndpoint {
    /// `addresses`; kube-proxy and Sluice use the first.
    pub addresses: Vec<IpAddr>,
    /// `conditions`.
    pub conditions: Conditions,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `nodeName`.
    pub node: Option<String>,
    /// `zone`.
    pub zone: Option<String>,
    /// `targetRef`.
    pub target: Option<ObjectRef>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
}

/// One entry of an EndpointSlice's `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct SlicePort {
    /// `name`: that of the Service port it belongs to.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`; absent means all ports, which a Service cannot use.
    pub port: Option<u16>,
}

/// A Kubernetes EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointSlice {
    /// Metadata.
    pub meta: Meta,
    /// The Service that the label `kubernetes.io/service-name` names.
    pub service: Option<ObjectName>,
    /// The ServiceImport that the label `multicluster.kubernetes.io/service-name` names. Such a slice
    /// may be a Service's as well: that which stands for the import in this cluster.
    pub import: Option<ObjectName>,
    /// The cluster that its endpoints are in: the label `multicluster.kubernetes.io/source-cluster`.
    pub cluster: Option<String>,
    /// `addressType`.
    pub address_type: AddressType,
    /// `endpoints`.
    pub endpoints: Vec<SliceEndpoint>,
    /// `ports`.
    pub ports: Vec<SlicePort>,
}

/// One endpoint of a Service: an address with a port for each of the Service's ports that it
/// serves. All slices of a Service are merged into a list of these, one for each address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// The ports it serves, by name and protocol, sorted.
    pub ports: Vec<SlicePort>,
    /// `conditions`.
    pub conditions: Conditions,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `nodeName`.
    pub node: Option<String>,
    /// `zone`.
    pub zone: Option<String>,
    /// The pod behind it.
    pub target: Option<ObjectRef>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
}

impl Endpoint {
    /// An endpoint of which no more is known: neither where it is nor who is behind it.
    pub const fn new(addr: IpAddr, ports: Vec<SlicePort>, conditions: Conditions) -> Self {
        Self {
            addr,
            ports,
            conditions,
            hostname: None,
            node: None,
            zone: None,
            target: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }
    }
}
