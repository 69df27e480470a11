//! `v1/Pod`.

use serde::Deserialize;

use super::{ObjectMeta, nullable};

/// `v1/Pod`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Pod {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<PodSpec>,
    #[prost(message, optional, tag = "3")]
    pub(crate) status: Option<PodStatus>,
}

/// `v1.PodSpec`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodSpec {
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) containers: Vec<Container>,
    #[prost(string, tag = "10")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) node_name: String,
    #[prost(bool, tag = "11")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) host_network: bool,
    #[prost(string, tag = "16")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) hostname: String,
    #[prost(string, tag = "17")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) subdomain: String,
    #[prost(message, repeated, tag = "20")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) init_containers: Vec<Container>,
}

/// `v1.Container`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Container {
    #[prost(message, repeated, tag = "6")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ContainerPort>,
    #[prost(string, optional, tag = "24")]
    pub(crate) restart_policy: Option<String>,
}

/// `v1.ContainerPort`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[prost(int32, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) container_port: i32,
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) protocol: String,
}

/// `v1.PodStatus`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodStatus {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) phase: String,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<PodCondition>,
    #[prost(string, tag = "6")]
    #[serde(rename = "podIP", deserialize_with = "nullable")]
    pub(crate) pod_ip: String,
    #[prost(message, repeated, tag = "12")]
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub(crate) pod_ips: Vec<PodIp>,
}

/// `v1.PodCondition`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodCondition {
    #[prost(string, tag = "1")]
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: String,
}

/// `v1.PodIP`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodIp {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ip: String,
}
