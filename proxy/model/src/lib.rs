//! What Sluice knows of a cluster, as pure types: no I/O, no clock, no wire format.
//!
//! The types hold what the data plane, the planner and the DNS server use, already checked: an
//! address is an [`std::net::IpAddr`], a port is a non-zero `u16`, an unknown enum value has been
//! refused. Turning Kubernetes objects into them, and telling which field was wrong, is the store's
//! work.

mod cluster_policy;
mod endpoints;
mod import;
mod meta;
mod node;
mod pod;
mod policy;
mod service;

pub use cluster_policy::{
    ClusterNetworkPolicy, ClusterPolicyPeer, ClusterPolicyPort, ClusterPolicyRule, NamespacedPods,
    PolicyAction, PolicyTier,
};
pub use endpoints::{AddressType, Conditions, Endpoint, EndpointSlice, SliceEndpoint, SlicePort};
pub use import::{ImportPort, ServiceImport};
pub use meta::{IpFamily, Meta, ObjectKey, ObjectName, ObjectRef, Protocol, ResourceKind};
pub use node::{Namespace, Node, NodeAddress, NodeAddressKind, Taint};
pub use pod::{ContainerPort, Pod, PodPhase};
pub use policy::{
    LabelOperator, LabelRequirement, LabelSelector, NetworkPolicy, PolicyFault, PolicyPeer,
    PolicyPort, PolicyPortRange, PolicyRule,
};
pub use service::{
    LoadBalancerIngress, Service, ServiceKind, ServicePort, ServicePortName, TargetPort,
    TrafficPolicy,
};

/// One object of any kind that Sluice watches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// `v1/Service`.
    Service(Service),
    /// `discovery.k8s.io/v1/EndpointSlice`.
    EndpointSlice(EndpointSlice),
    /// `v1/Pod`.
    Pod(Pod),
    /// `v1/Node`.
    Node(Node),
    /// `v1/Namespace`.
    Namespace(Namespace),
    /// `networking.k8s.io/v1/NetworkPolicy`.
    NetworkPolicy(NetworkPolicy),
    /// `policy.networking.k8s.io/v1alpha2/ClusterNetworkPolicy`.
    ClusterNetworkPolicy(ClusterNetworkPolicy),
    /// `multicluster.x-k8s.io/v1alpha1/ServiceImport`.
    ServiceImport(ServiceImport),
}

impl Object {
    /// The object's metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Service(o) => &o.meta,
            Self::EndpointSlice(o) => &o.meta,
            Self::Pod(o) => &o.meta,
            Self::Node(o) => &o.meta,
            Self::Namespace(o) => &o.meta,
            Self::NetworkPolicy(o) => &o.meta,
            Self::ClusterNetworkPolicy(o) => &o.meta,
            Self::ServiceImport(o) => &o.meta,
        }
    }

    /// The object's kind.
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Service(_) => ResourceKind::Service,
            Self::EndpointSlice(_) => ResourceKind::EndpointSlice,
            Self::Pod(_) => ResourceKind::Pod,
            Self::Node(_) => ResourceKind::Node,
            Self::Namespace(_) => ResourceKind::Namespace,
            Self::NetworkPolicy(_) => ResourceKind::NetworkPolicy,
            Self::ClusterNetworkPolicy(_) => ResourceKind::ClusterNetworkPolicy,
            Self::ServiceImport(_) => ResourceKind::ServiceImport,
        }
    }

    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: self.meta().name.clone() }
    }
}
