//! The Kubernetes objects as they are written, reduced to the fields that the model needs.
//!
//! Each struct reads both JSON (or YAML) by its field names and protobuf by the field numbers of the
//! published `generated.proto` files of k8s.io/api and k8s.io/apimachinery. Fields that are absent,
//! `null` or empty come out alike, as in Kubernetes itself.

mod cluster_policy;
mod endpoints;
mod envelope;
mod import;
mod int_or_string;
mod meta;
mod node;
mod pod;
mod policy;
mod service;
mod time;

pub(crate) use cluster_policy::{
    ClusterEgressRule, ClusterIngressRule, ClusterNetworkPolicy, ClusterPeer, ClusterProtocol,
    NamespacedPod, Subject, TransportPort,
};
pub(crate) use endpoints::{Endpoint, EndpointSlice};
pub(crate) use envelope::{MAGIC, TypeMeta, Unknown};
pub(crate) use import::ServiceImport;
pub(crate) use int_or_string::IntOrString;
pub(crate) use meta::{Metadata, ObjectMeta};
pub(crate) use node::Node;
pub(crate) use pod::Pod;
pub(crate) use policy::{
    IpBlock, LabelSelector, NetworkPolicy, PolicyOutline, PolicyPeer, PolicyPort,
};
pub(crate) use service::{Service, ServicePort, ServiceSpec, ServiceStatus};

use serde::{Deserialize, Deserializer};

/// `null` is the same as absent, for fields of every type.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
