//! Metadata.

use sluice_model::{Meta, ObjectName, ResourceKind};

use super::FieldError;
use crate::wire;

/// Where an object without a namespace is, as `kubectl apply` has it.
const DEFAULT_NAMESPACE: &str = "default";

/// What `kubectl apply` leaves on every object: a second copy of it, which nobody reads here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The longest name that Kubernetes allows (a DNS subdomain).
const MAX_NAME: usize = 253;

/// Namespace and name of an object, if they can be its name.
pub(crate) fn object_name(
    kind: ResourceKind,
    metadata: Option<&wire::ObjectMeta>,
) -> Result<ObjectName, FieldError> {
    let empty = wire::ObjectMeta::default();
    let metadata = metadata.unwrap_or(&empty);
    let name = checked("metadata.name", &metadata.name)?;
    let namespace = match kind {
        ResourceKind::Node | ResourceKind::Namespace | ResourceKind::ClusterNetworkPolicy => "",
        ResourceKind::Service
        | ResourceKind::EndpointSlice
        | ResourceKind::Pod
        | ResourceKind::NetworkPolicy
        | ResourceKind::ServiceImport => {
            if metadata.namespace.is_empty() {
                DEFAULT_NAMESPACE
            } else {
                checked("metadata.namespace", &metadata.namespace)?
            }
        }
    };
    Ok(ObjectName::new(namespace, name))
}

/// Lower-case letters, digits, `-` and `.`: all that object names have in common. A name may begin
/// with a digit (KEP-5311).
fn checked<'a>(field: &str, name: &'a str) -> Result<&'a str, FieldError> {
    if name.is_empty() {
        return Err(FieldError::new(field, "is missing"));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.len() > MAX_NAME || !name.chars().all(allowed) {
        return Err(FieldError::new(
            field,
            format_args!(
                "{name:?} is not a name: at most {MAX_NAME} lower-case letters, digits, '-' and '.'"
            ),
        ));
    }
    Ok(name)
}

pub(super) fn meta(
    kind: ResourceKind,
    metadata: Option<wire::ObjectMeta>,
) -> Result<Meta, FieldError> {
    let name = object_name(kind, metadata.as_ref())?;
    let metadata = metadata.unwrap_or_default();
    let mut annotations = metadata.annotations;
    annotations.remove(LAST_APPLIED);
    Ok(Meta {
        name,
        uid: metadata.uid,
        created: metadata.creation_timestamp.map_or(0, |time| time.seconds),
        labels: metadata.labels,
        annotations,
        deleting: metadata.deletion_timestamp.is_some(),
    })
}
