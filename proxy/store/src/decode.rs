//! From bytes to the model: a value in etcd, or one document's tree.

use prost::Message;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sluice_model::{Object, ObjectName, ResourceKind};

use crate::convert::{FieldError, WireObject, object_name};
use crate::wire::{self, MAGIC, Metadata, PolicyOutline, TypeMeta, Unknown};

/// Why bytes are not an object.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Neither JSON nor Kubernetes' protobuf.
    #[error("is neither JSON nor Kubernetes protobuf: it begins with {begin:?}")]
    Format {
        /// The first bytes, as text.
        begin: String,
    },
    /// Encrypted by the kube-apiserver.
    #[error("is encrypted at rest ({provider}); Sluice can read plain values only")]
    Encrypted {
        /// `k8s:enc:PROVIDER:VERSION:KEY`.
        provider: String,
    },
    /// The bytes of a protobuf message are damaged.
    #[error("is damaged protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// The text is not JSON.
    #[error("is not JSON: {0}")]
    Json(String),
    /// An object of a kind that is not watched.
    #[error("is a {api_version} {kind}, which Sluice does not use")]
    Ignored {
        /// `apiVersion`.
        api_version: String,
        /// `kind`.
        kind: String,
    },
    /// A field of an object is wrong.
    #[error("{error}")]
    Field {
        /// The object, as far as it is known.
        name: Option<(ResourceKind, ObjectName)>,
        /// The field and what is wrong with it.
        error: FieldError,
    },
}

impl DecodeError {
    fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        let error = FieldError { field: field.into(), reason: reason.into() };
        Self::Field { name: None, error }
    }
}

/// Decodes one value as a kube-apiserver writes it into etcd: JSON, or protobuf in its `k8s\0`
/// envelope. A NetworkPolicy with a field that is wrong is no error: it fails closed, and its `faults`
/// say why.
///
/// # Errors
/// Bytes that are no object, an object of a kind that is not watched, or a field that is wrong.
pub fn decode_value(bytes: &[u8]) -> Result<Object, DecodeError> {
    if let Some(envelope) = bytes.strip_prefix(MAGIC) {
        return finish(protobuf(envelope)?);
    }
    let begin = bytes.trim_ascii_start();
    if begin.first() == Some(&b'{') {
        let type_meta: TypeMeta =
            serde_json::from_slice(begin).map_err(|error| DecodeError::Json(error.to_string()))?;
        let kind = kind(&type_meta)?;
        let mut deserializer = serde_json::Deserializer::from_slice(begin);
        return finish(tree(kind, &mut deserializer)?);
    }
    if bytes.starts_with(b"k8s:enc:") {
        let provider = bytes.splitn(6, |&byte| byte == b':').take(5).collect::<Vec<_>>();
        let provider = String::from_utf8_lossy(&provider.join(&b':')).into_owned();
        return Err(DecodeError::Encrypted { provider });
    }
    let begin = String::from_utf8_lossy(&bytes[..bytes.len().min(16)]).into_owned();
    Err(DecodeError::Format { begin })
}

/// Decodes the tree of one object, already found to be of that kind.
pub(crate) fn decode_tree<'de, D>(
    kind: ResourceKind,
    deserializer: D,
) -> Result<Object, DecodeError>
where
    D: Deserializer<'de>,
    D::Error: std::fmt::Display,
{
    finish(tree(kind, deserializer)?)
}

/// The kind that `apiVersion` and `kind` name. The same kind in another API group is another kind
/// (Knative has a Service of its own); the same in another version is one that Sluice cannot read.
pub(crate) fn kind(type_meta: &TypeMeta) -> Result<ResourceKind, DecodeError> {
    if type_meta.kind.is_empty() {
        return Err(DecodeError::field("kind", "is missing"));
    }
    if type_meta.api_version.is_empty() {
        return Err(DecodeError::field("apiVersion", "is missing"));
    }
    let (group, version) =
        type_meta.api_version.rsplit_once('/').unwrap_or(("", type_meta.api_version.as_str()));
    let kind = match (group, type_meta.kind.as_str()) {
        ("", "Service") => ResourceKind::Service,
        ("", "Pod") => ResourceKind::Pod,
        ("", "Node") => ResourceKind::Node,
        ("", "Namespace") => ResourceKind::Namespace,
        ("discovery.k8s.io", "EndpointSlice") => ResourceKind::EndpointSlice,
        ("networking.k8s.io", "NetworkPolicy") => ResourceKind::NetworkPolicy,
        ("policy.networking.k8s.io", "ClusterNetworkPolicy") => ResourceKind::ClusterNetworkPolicy,
        ("multicluster.x-k8s.io", "ServiceImport") => ResourceKind::ServiceImport,
        _ => {
            return Err(DecodeError::Ignored {
                api_version: type_meta.api_version.clone(),
                kind: type_meta.kind.clone(),
            });
        }
    };
    let wanted = match kind {
        ResourceKind::ServiceImport => "v1alpha1",
        ResourceKind::ClusterNetworkPolicy => "v1alpha2",
        _ => "v1",
    };
    if version != wanted {
        let known = if group.is_empty() { wanted.to_owned() } else { format!("{group}/{wanted}") };
        return Err(DecodeError::field(
            "apiVersion",
            format!("{:?} is not {known:?}", type_meta.api_version),
        ));
    }
    Ok(kind)
}

/// What follows the magic bytes.
fn protobuf(envelope: &[u8]) -> Result<WireObject, DecodeError> {
    let unknown = Unknown::decode(envelope)?;
    let kind = kind(&unknown.type_meta.unwrap_or_default())?;
    if !unknown.content_encoding.is_empty() {
        let reason = format!("{:?} is not plain", unknown.content_encoding);
        return Err(DecodeError::field("contentEncoding", reason));
    }
    let raw = unknown.raw.as_slice();
    let object = match kind {
        ResourceKind::Service => wire::Service::decode(raw).map(Box::new).map(WireObject::Service),
        ResourceKind::EndpointSlice => {
            wire::EndpointSlice::decode(raw).map(Box::new).map(WireObject::EndpointSlice)
        }
        ResourceKind::Pod => wire::Pod::decode(raw).map(Box::new).map(WireObject::Pod),
        ResourceKind::Node => wire::Node::decode(raw).map(Box::new).map(WireObject::Node),
        ResourceKind::Namespace => {
            wire::Metadata::decode(raw).map(Box::new).map(WireObject::Namespace)
        }
        ResourceKind::NetworkPolicy => {
            wire::NetworkPolicy::decode(raw).map(Box::new).map(WireObject::NetworkPolicy)
        }
        ResourceKind::ServiceImport | ResourceKind::ClusterNetworkPolicy => {
            let reason = "a custom resource is kept as JSON, not as protobuf";
            return Err(DecodeError::field("contentType", reason));
        }
    };
    Ok(object?)
}

fn tree<'de, D>(kind: ResourceKind, deserializer: D) -> Result<WireObject, DecodeError>
where
    D: Deserializer<'de>,
    D::Error: std::fmt::Display,
{
    /// Keeps the path of the field that has the wrong type.
    fn read<'de, T, D>(deserializer: D) -> Result<Box<T>, DecodeError>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
        D::Error: std::fmt::Display,
    {
        serde_path_to_error::deserialize(deserializer).map(Box::new).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { path };
            DecodeError::field(field, error.into_inner().to_string())
        })
    }
    Ok(match kind {
        ResourceKind::Service => WireObject::Service(read(deserializer)?),
        ResourceKind::EndpointSlice => WireObject::EndpointSlice(read(deserializer)?),
        ResourceKind::Pod => WireObject::Pod(read(deserializer)?),
        ResourceKind::Node => WireObject::Node(read(deserializer)?),
        ResourceKind::Namespace => WireObject::Namespace(read(deserializer)?),
        ResourceKind::NetworkPolicy => {
            let value: Value = *read(deserializer)?;
            match read(&value) {
                Ok(policy) => WireObject::NetworkPolicy(policy),
                // It fails closed, for its own pods only where they can be read.
                Err(DecodeError::Field { error, .. }) => {
                    let outline = PolicyOutline::deserialize(&value);
                    let outline = outline.or_else(|_| {
                        Metadata::deserialize(&value)
                            .map(|o| PolicyOutline { metadata: o.metadata, spec: None })
                    });
                    match outline {
                        Ok(outline) => WireObject::PolicyOutline(Box::new(outline), error),
                        Err(_) => return Err(DecodeError::Field { name: None, error }),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        ResourceKind::ClusterNetworkPolicy => WireObject::ClusterNetworkPolicy(read(deserializer)?),
        ResourceKind::ServiceImport => WireObject::ServiceImport(read(deserializer)?),
    })
}

/// Converts, and puts the object's name to an error.
fn finish(wire: WireObject) -> Result<Object, DecodeError> {
    let kind = match &wire {
        WireObject::Service(_) => ResourceKind::Service,
        WireObject::EndpointSlice(_) => ResourceKind::EndpointSlice,
        WireObject::Pod(_) => ResourceKind::Pod,
        WireObject::Node(_) => ResourceKind::Node,
        WireObject::Namespace(_) => ResourceKind::Namespace,
        WireObject::NetworkPolicy(_) | WireObject::PolicyOutline(..) => ResourceKind::NetworkPolicy,
        WireObject::ClusterNetworkPolicy(_) => ResourceKind::ClusterNetworkPolicy,
        WireObject::ServiceImport(_) => ResourceKind::ServiceImport,
    };
    let name = object_name(kind, wire.metadata()).ok().map(|name| (kind, name));
    wire.into_model().map_err(|error| DecodeError::Field { name, error })
}
