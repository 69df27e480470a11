//! Where a kube-apiserver keeps its objects, and what a key and its value say. Pure.

use std::collections::BTreeSet;

use sluice_model::{ObjectKey, ObjectName, ResourceKind};

use crate::closed::with_faults;
use crate::decode::{DecodeError, decode_value};
use crate::manifest::rejection;
use crate::{Event, Rejected, SourceError};

/// Where all objects of one kind are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Prefix {
    pub(super) kind: ResourceKind,
    /// What their keys begin with, `/` at the end included.
    pub(super) key: String,
}

/// The prefixes to watch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Keys {
    root: String,
    prefixes: Vec<Prefix>,
}

/// The place of a kind below the kube-apiserver's `--etcd-prefix`: the plural, after its group for
/// custom resources, but for two whose names are older than that rule.
fn resource(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Service => "services/specs",
        ResourceKind::EndpointSlice => "endpointslices",
        ResourceKind::Pod => "pods",
        ResourceKind::Node => "minions",
        ResourceKind::Namespace => "namespaces",
        ResourceKind::NetworkPolicy => "networkpolicies",
        ResourceKind::ClusterNetworkPolicy => "policy.networking.k8s.io/clusternetworkpolicies",
        ResourceKind::ServiceImport => "multicluster.x-k8s.io/serviceimports",
    }
}

impl Keys {
    pub(super) fn new(root: &str, kinds: &BTreeSet<ResourceKind>) -> Result<Self, SourceError> {
        if !root.starts_with('/') {
            return Err(SourceError::Prefix { prefix: root.to_owned() });
        }
        let root = root.trim_end_matches('/').to_owned();
        let prefixes = kinds
            .iter()
            .map(|&kind| Prefix { kind, key: format!("{root}/{}/", resource(kind)) })
            .collect();
        Ok(Self { root, prefixes })
    }

    pub(super) fn prefixes(&self) -> &[Prefix] {
        &self.prefixes
    }

    /// A prefix that may be read, for questions about the store itself.
    pub(super) fn any(&self) -> &str {
        self.prefixes.first().map_or(&self.root, |prefix| &prefix.key)
    }
}

/// The object that a key names.
pub(super) fn object_key(prefix: &Prefix, key: &[u8]) -> Option<ObjectKey> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(&prefix.key)?;
    let name = match prefix.kind {
        ResourceKind::Node | ResourceKind::Namespace | ResourceKind::ClusterNetworkPolicy => {
            ObjectName::new("", rest)
        }
        ResourceKind::Service
        | ResourceKind::EndpointSlice
        | ResourceKind::Pod
        | ResourceKind::NetworkPolicy
        | ResourceKind::ServiceImport => {
            let (namespace, name) = rest.split_once('/')?;
            if namespace.is_empty() {
                return None;
            }
            ObjectName::new(namespace, name)
        }
    };
    (!name.name.is_empty() && !name.name.contains('/'))
        .then_some(ObjectKey { kind: prefix.kind, name })
}

/// What to say of a key that has this value, or no value any more.
pub(super) fn events(
    prefix: &Prefix,
    key: &[u8],
    value: Option<&[u8]>,
) -> impl Iterator<Item = Event> + use<> {
    with_faults(read(prefix, key, value), &String::from_utf8_lossy(key))
}

/// What it means that a key has this value, or no value any more.
pub(super) fn read(prefix: &Prefix, key: &[u8], value: Option<&[u8]>) -> Event {
    let origin = String::from_utf8_lossy(key).into_owned();
    let reject = |key: Option<ObjectKey>, field: &str, reason: String| {
        Event::Reject(Rejected { key, origin: origin.clone(), field: field.to_owned(), reason })
    };
    let named = match (object_key(prefix, key), value) {
        (Some(named), _) => named,
        (None, None) => return Event::Recover(origin),
        (None, Some(_)) => {
            let reason = format!("the key does not name a {}", prefix.kind);
            return reject(None, "", reason);
        }
    };
    let Some(value) = value else { return Event::Delete(named) };
    match decode_value(value) {
        Ok(object) => {
            let key = object.key();
            if key == named {
                Event::Apply(Box::new(object))
            } else {
                // Believing it would leave an object behind that no deletion ever names.
                reject(Some(named), "metadata.name", format!("the value is of {key}"))
            }
        }
        Err(error @ DecodeError::Field { .. }) => {
            Event::Reject(rejection(Some(named), origin, error))
        }
        Err(error) => reject(Some(named), "", format!("the value {error}")),
    }
}
