//! From objects as they are written to the model: every field checked, Kubernetes' defaults applied.
//!
//! The checks are those of the API server's validation that matter to a data plane, because a
//! manifest directory or a bare etcd has no API server in front.

mod cluster_policy;
mod endpoints;
mod field;
mod import;
mod meta;
mod node;
mod pod;
mod policy;
mod service;
#[cfg(test)]
mod tests;

pub use field::FieldError;

use sluice_model::{Namespace, Object, ResourceKind};

use crate::wire;

/// An object of a known kind, as it is written.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum WireObject {
    Service(Box<wire::Service>),
    EndpointSlice(Box<wire::EndpointSlice>),
    Pod(Box<wire::Pod>),
    Node(Box<wire::Node>),
    Namespace(Box<wire::Metadata>),
    NetworkPolicy(Box<wire::NetworkPolicy>),
    /// One of which no more can be read, and why.
    PolicyOutline(Box<wire::PolicyOutline>, FieldError),
    ClusterNetworkPolicy(Box<wire::ClusterNetworkPolicy>),
    ServiceImport(Box<wire::ServiceImport>),
}

impl WireObject {
    /// Its metadata; absent metadata is empty metadata.
    pub(crate) fn metadata(&self) -> Option<&wire::ObjectMeta> {
        match self {
            Self::Service(o) => o.metadata.as_ref(),
            Self::EndpointSlice(o) => o.metadata.as_ref(),
            Self::Pod(o) => o.metadata.as_ref(),
            Self::Node(o) => o.metadata.as_ref(),
            Self::Namespace(o) => o.metadata.as_ref(),
            Self::NetworkPolicy(o) => o.metadata.as_ref(),
            Self::PolicyOutline(o, _) => o.metadata.as_ref(),
            Self::ClusterNetworkPolicy(o) => o.metadata.as_ref(),
            Self::ServiceImport(o) => o.metadata.as_ref(),
        }
    }

    /// The object in the model's terms.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub(crate) fn into_model(self) -> Result<Object, FieldError> {
        Ok(match self {
            Self::Service(o) => Object::Service(service::service(*o)?),
            Self::EndpointSlice(o) => Object::EndpointSlice(endpoints::slice(*o)?),
            Self::Pod(o) => Object::Pod(pod::pod(*o)?),
            Self::Node(o) => Object::Node(node::node(*o)?),
            Self::Namespace(o) => Object::Namespace(Namespace {
                meta: meta::meta(ResourceKind::Namespace, o.metadata)?,
            }),
            Self::NetworkPolicy(o) => Object::NetworkPolicy(policy::policy(*o)?),
            Self::PolicyOutline(o, why) => Object::NetworkPolicy(policy::outline(*o, why)?),
            Self::ClusterNetworkPolicy(o) => {
                Object::ClusterNetworkPolicy(cluster_policy::cluster_policy(*o)?)
            }
            Self::ServiceImport(o) => Object::ServiceImport(import::import(*o)?),
        })
    }
}

pub(crate) use cluster_policy::closed as closed_cluster_policy;
pub(crate) use meta::object_name;
pub(crate) use policy::closed as closed_policy;
