//! `metav1.ObjectMeta`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::nullable;
use super::time::Time;

/// `metav1.ObjectMeta`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ObjectMeta {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[prost(string, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespace: String,
    #[prost(string, tag = "5")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid: String,
    #[prost(message, optional, tag = "8")]
    pub(crate) creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    pub(crate) deletion_timestamp: Option<Time>,
    #[prost(btree_map = "string, string", tag = "11")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Any object, down to its metadata: it names an object of which nothing else can be read. Every
/// kind has its metadata in field 1. It is also all of a `v1/Namespace` that is used.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
}
