//! What an object says of its own type.

use serde::Deserialize;

use super::nullable;

/// The first bytes of a protobuf value in etcd; a [`Unknown`] follows.
pub(crate) const MAGIC: &[u8] = b"k8s\0";

/// `metav1.TypeMeta` and `runtime.TypeMeta`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TypeMeta {
    /// `GROUP/VERSION`, or the version alone for the core group.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) api_version: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(crate) kind: String,
}

/// `runtime.Unknown`: the envelope around every protobuf object.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Unknown {
    #[prost(message, optional, tag = "1")]
    pub(crate) type_meta: Option<TypeMeta>,
    /// The object itself.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) raw: Vec<u8>,
    /// Empty for plain bytes.
    #[prost(string, tag = "3")]
    pub(crate) content_encoding: String,
    /// Empty for protobuf.
    #[prost(string, tag = "4")]
    pub(crate) content_type: String,
}
