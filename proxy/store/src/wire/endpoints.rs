//! `discovery.k8s.io/v1/EndpointSlice`.

use serde::Deserialize;

use super::{ObjectMeta, nullable};

/// `discovery.k8s.io/v1/EndpointSlice`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<EndpointPort>,
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) address_type: String,
}

/// `discovery.v1.Endpoint`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    pub(crate) conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "3")]
    pub(crate) hostname: Option<String>,
    #[prost(message, optional, tag = "4")]
    pub(crate) target_ref: Option<ObjectReference>,
    #[prost(string, optional, tag = "6")]
    pub(crate) node_name: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(crate) zone: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) hints: Option<EndpointHints>,
}

/// `discovery.v1.EndpointConditions`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    pub(crate) ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(crate) serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) terminating: Option<bool>,
}

/// `v1.ObjectReference`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ObjectReference {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespace: String,
    #[prost(string, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
}

/// `discovery.v1.EndpointHints`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointHints {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) for_zones: Vec<Hint>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) for_nodes: Vec<Hint>,
}

/// `discovery.v1.ForZone` and `discovery.v1.ForNode`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Hint {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
}

/// `discovery.v1.EndpointPort`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(crate) protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub(crate) port: Option<i32>,
}
