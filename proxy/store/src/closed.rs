//! Network policies that cannot be read are in force all the same, closed, and are told as rejected.

use sluice_model::{ClusterNetworkPolicy, LabelSelector, Meta, Object, PolicyFault, ResourceKind};

use crate::convert::{FieldError, closed_cluster_policy, closed_policy};
use crate::{Event, Rejected};

/// Why an object is in force otherwise than written: the first of a policy's faults.
pub(crate) fn fault(object: &Object, origin: &str) -> Option<Rejected> {
    let (faults, what): (&[PolicyFault], _) = match object {
        Object::NetworkPolicy(policy) => (&policy.faults, "the policy denies everything"),
        Object::ClusterNetworkPolicy(policy) => (&policy.faults, "it fails closed"),
        _ => return None,
    };
    let fault = faults.first()?;
    let more = match faults.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(Rejected {
        key: Some(object.key()),
        origin: origin.to_owned(),
        field: fault.field.clone(),
        reason: format!("{}{more}; {what}", fault.message),
    })
}

/// What is in force in the place of an object that could not be decoded at all: of a policy, one for
/// all pods of its namespace; of a cluster-wide one, for all pods.
pub(crate) fn substitute(rejected: &Rejected) -> Option<Object> {
    let key = rejected.key.as_ref()?;
    let meta = Meta { name: key.name.clone(), ..Meta::default() };
    let why = || FieldError { field: rejected.field.clone(), reason: rejected.reason.clone() };
    match key.kind {
        ResourceKind::NetworkPolicy => {
            let policy = closed_policy(meta, LabelSelector::default(), vec![why()]);
            Some(Object::NetworkPolicy(policy))
        }
        ResourceKind::ClusterNetworkPolicy => {
            let policy = ClusterNetworkPolicy { meta, ..ClusterNetworkPolicy::default() };
            Some(Object::ClusterNetworkPolicy(closed_cluster_policy(policy, vec![why()])))
        }
        _ => None,
    }
}

/// An event and what follows from it: a policy that is closed is applied, and told after that.
pub(crate) fn with_faults(event: Event, origin: &str) -> impl Iterator<Item = Event> + use<> {
    let (first, second) = match event {
        Event::Apply(object) => {
            let fault = fault(&object, origin).map(Event::Reject);
            (Some(Event::Apply(object)), fault)
        }
        Event::Reject(rejected) => match substitute(&rejected) {
            Some(object) => {
                let fault = fault(&object, origin).map(Event::Reject);
                (Some(Event::Apply(Box::new(object))), fault)
            }
            None => (Some(Event::Reject(rejected)), None),
        },
        other => (Some(other), None),
    };
    first.into_iter().chain(second)
}
