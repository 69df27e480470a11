//! `networking.k8s.io/v1` NetworkPolicy.
//!
//! Below `spec`, a field that is not known is an error where the notation shows it (JSON, YAML): a
//! `from` that is misspelt would else allow everybody.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{IntOrString, ObjectMeta, nullable};

/// `networking/v1.NetworkPolicy`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NetworkPolicy {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<NetworkPolicySpec>,
}

/// `networking/v1.NetworkPolicySpec`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetworkPolicySpec {
    #[prost(message, optional, tag = "1")]
    pub(crate) pod_selector: Option<LabelSelector>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ingress: Vec<IngressRule>,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) egress: Vec<EgressRule>,
    #[prost(string, repeated, tag = "4")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) policy_types: Vec<String>,
}

/// `networking/v1.NetworkPolicyIngressRule`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct IngressRule {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<PolicyPort>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) from: Vec<PolicyPeer>,
}

/// `networking/v1.NetworkPolicyEgressRule`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EgressRule {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<PolicyPort>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) to: Vec<PolicyPeer>,
}

/// `networking/v1.NetworkPolicyPeer`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PolicyPeer {
    #[prost(message, optional, tag = "1")]
    pub(crate) pod_selector: Option<LabelSelector>,
    #[prost(message, optional, tag = "2")]
    pub(crate) namespace_selector: Option<LabelSelector>,
    #[prost(message, optional, tag = "3")]
    pub(crate) ip_block: Option<IpBlock>,
}

/// `networking/v1.IPBlock`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct IpBlock {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) cidr: String,
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) except: Vec<String>,
}

/// `networking/v1.NetworkPolicyPort`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PolicyPort {
    #[prost(string, optional, tag = "1")]
    pub(crate) protocol: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub(crate) port: Option<IntOrString>,
    #[prost(int32, optional, tag = "3")]
    pub(crate) end_port: Option<i32>,
}

/// `meta/v1.LabelSelector`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LabelSelector {
    #[prost(btree_map = "string, string", tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) match_labels: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) match_expressions: Vec<LabelRequirement>,
}

/// `meta/v1.LabelSelectorRequirement`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LabelRequirement {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) operator: String,
    #[prost(string, repeated, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) values: Vec<String>,
}

/// What is read of a policy whose rules cannot be: for whom it is.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PolicyOutline {
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Option<PolicyOutlineSpec>,
}

/// The part of a `spec` that a [`PolicyOutline`] has.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PolicyOutlineSpec {
    pub(crate) pod_selector: Option<LabelSelector>,
}
