//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy. A custom resource: the API server keeps it as JSON.
//!
//! What is wrong within a rule concerns that rule alone, so `spec` stays a tree, and its parts are read one
//! by one. In none of them a field that is not known is passed over.

use serde::Deserialize;
use serde_json::Value;

use super::{LabelSelector, ObjectMeta};

/// `ClusterNetworkPolicy`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClusterNetworkPolicy {
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Value,
}

/// `ClusterNetworkPolicySubject`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Subject {
    pub(crate) namespaces: Option<LabelSelector>,
    pub(crate) pods: Option<NamespacedPod>,
}

/// `NamespacedPod`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NamespacedPod {
    pub(crate) namespace_selector: Option<LabelSelector>,
    pub(crate) pod_selector: Option<LabelSelector>,
}

/// `ClusterNetworkPolicyIngressRule`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClusterIngressRule {
    pub(crate) name: Option<String>,
    pub(crate) action: String,
    pub(crate) from: Vec<ClusterPeer>,
    pub(crate) protocols: Option<Vec<ClusterProtocol>>,
}

/// `ClusterNetworkPolicyEgressRule`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClusterEgressRule {
    pub(crate) name: Option<String>,
    pub(crate) action: String,
    pub(crate) to: Vec<ClusterPeer>,
    pub(crate) protocols: Option<Vec<ClusterProtocol>>,
}

/// `ClusterNetworkPolicyEgressPeer`, and with its first two fields `ClusterNetworkPolicyIngressPeer`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClusterPeer {
    pub(crate) namespaces: Option<LabelSelector>,
    pub(crate) pods: Option<NamespacedPod>,
    pub(crate) nodes: Option<LabelSelector>,
    pub(crate) networks: Option<Vec<String>>,
    pub(crate) domain_names: Option<Vec<String>>,
}

/// `ClusterNetworkPolicyProtocol`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClusterProtocol {
    pub(crate) tcp: Option<Transport>,
    pub(crate) udp: Option<Transport>,
    pub(crate) sctp: Option<Transport>,
    pub(crate) destination_named_port: Option<String>,
}

/// `ClusterNetworkPolicyProtocolTCP` and its likes.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Transport {
    pub(crate) destination_port: Option<TransportPort>,
}

/// `Port`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TransportPort {
    pub(crate) number: Option<i32>,
    pub(crate) range: Option<TransportRange>,
}

/// `PortRange`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TransportRange {
    pub(crate) start: i32,
    pub(crate) end: i32,
}
