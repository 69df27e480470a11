//! `v1/Service`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{IntOrString, ObjectMeta, nullable};

/// `v1/Service`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Service {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    pub(crate) status: Option<ServiceStatus>,
}

/// `v1.ServiceSpec`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ServicePort>,
    #[prost(btree_map = "string, string", tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) selector: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub(crate) cluster_ip: String,
    #[prost(string, tag = "4")]
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[prost(string, repeated, tag = "5")]
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    pub(crate) external_ips: Vec<String>,
    #[prost(string, tag = "7")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) session_affinity: String,
    #[prost(string, repeated, tag = "9")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) load_balancer_source_ranges: Vec<String>,
    #[prost(string, tag = "10")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) external_name: String,
    #[prost(string, tag = "11")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) external_traffic_policy: String,
    #[prost(int32, tag = "12")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) health_check_node_port: i32,
    #[prost(bool, tag = "13")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) publish_not_ready_addresses: bool,
    #[prost(message, optional, tag = "14")]
    pub(crate) session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, repeated, tag = "18")]
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub(crate) cluster_ips: Vec<String>,
    #[prost(string, repeated, tag = "19")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ip_families: Vec<String>,
    #[prost(string, optional, tag = "22")]
    pub(crate) internal_traffic_policy: Option<String>,
    #[prost(string, optional, tag = "23")]
    pub(crate) traffic_distribution: Option<String>,
}

/// `v1.ServicePort`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServicePort {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) protocol: String,
    #[prost(int32, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) port: i32,
    #[prost(message, optional, tag = "4")]
    pub(crate) target_port: Option<IntOrString>,
    #[prost(int32, tag = "5")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) node_port: i32,
    #[prost(string, optional, tag = "6")]
    pub(crate) app_protocol: Option<String>,
}

/// `v1.SessionAffinityConfig`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "clientIP")]
    pub(crate) client_ip: Option<ClientIpConfig>,
}

/// `v1.ClientIPConfig`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClientIpConfig {
    #[prost(int32, optional, tag = "1")]
    pub(crate) timeout_seconds: Option<i32>,
}

/// `v1.ServiceStatus`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    pub(crate) load_balancer: Option<LoadBalancerStatus>,
}

/// `v1.LoadBalancerStatus`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ingress: Vec<LoadBalancerIngress>,
}

/// `v1.LoadBalancerIngress`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LoadBalancerIngress {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) ip: String,
    #[prost(string, optional, tag = "3")]
    pub(crate) ip_mode: Option<String>,
}
