//! `multicluster.x-k8s.io/v1alpha1` ServiceImport. A custom resource: the API server keeps it as JSON.

use serde::Deserialize;

use super::{ObjectMeta, nullable};

#[derive(Clone, PartialEq, Default, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceImport {
    pub(crate) metadata: Option<ObjectMeta>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: ServiceImportSpec,
}

#[derive(Clone, PartialEq, Default, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceImportSpec {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ServiceImportPort>,
}

#[derive(Clone, PartialEq, Default, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceImportPort {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) protocol: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) port: i32,
}
