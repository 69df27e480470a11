//! Services and their ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{IpFamily, Meta, ObjectName, Protocol};

/// `spec.type`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ServiceKind {
    /// `ClusterIP`, headless Services included.
    #[default]
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName` with its target, a DNS name without the final dot.
    ExternalName(String),
}

/// `externalTrafficPolicy` or `internalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of the node that received the connection only.
    Local,
}

/// Where a Service port leads to on an endpoint.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// The name of a container port, which each pod may give another number.
    Name(String),
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// `name`; empty where the only port has none.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, 1 to 65535.
    pub port: u16,
    /// `targetPort`; the port itself where the object has none.
    pub target: TargetPort,
    /// `nodePort`, if one is allocated.
    pub node_port: Option<u16>,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// One entry of `status.loadBalancer.ingress` that has an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadBalancerIngress {
    /// `ip`.
    pub addr: IpAddr,
    /// Whether `ipMode` is `Proxy`: the address is not the node's business (KEP-1860).
    pub proxy: bool,
}

/// A Kubernetes Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// Metadata.
    pub meta: Meta,
    /// `type`.
    pub kind: ServiceKind,
    /// Whether `clusterIP` is `None`.
    pub headless: bool,
    /// `clusterIPs`, at most one a family; empty for headless and ExternalName Services.
    pub cluster_ips: Vec<IpAddr>,
    /// `ipFamilies`; derived from the cluster IPs where the object has none.
    pub ip_families: Vec<IpFamily>,
    /// `ports`.
    pub ports: Vec<ServicePort>,
    /// `selector`; `None` where the Service has none and its endpoints are made by someone else.
    pub selector: Option<BTreeMap<String, String>>,
    /// `externalIPs`.
    pub external_ips: BTreeSet<IpAddr>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<LoadBalancerIngress>,
    /// `loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpNet>,
    /// The entries of `loadBalancerSourceRanges` that are no CIDRs, by their index: they must not
    /// open what the others were to close.
    pub bad_source_ranges: Vec<(usize, String)>,
    /// `sessionAffinity: ClientIP` with its `timeoutSeconds`.
    pub affinity_secs: Option<u32>,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// `trafficDistribution`.
    pub traffic_distribution: Option<String>,
}

/// Namespace and name of a Service with the name of one of its ports and its protocol: what kube-proxy
/// calls a ServicePortName.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// `spec.ports[].name`.
    pub port: String,
    /// `spec.ports[].protocol`.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}
