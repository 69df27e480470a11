//! Network policies that cannot be read are in force all the same, closed, and are told as rejected.

use sluice_model::{LabelSelector, Meta, Object, ResourceKind};

use crate::convert::{FieldError, closed_policy};
use crate::{Event, Rejected};

/// Why an object is in force otherwise than written: the first of a policy's faults.
pub(crate) fn fault(object: &Object, origin: &str) -> Option<Rejected> {
    let Object::NetworkPolicy(policy) = object else { return None };
    let fault = policy.faults.first()?;
    let more = match policy.faults.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(Rejected {
        key: Some(object.key()),
        origin: origin.to_owned(),
        field: fault.field.clone(),
        reason: format!("{}{more}; the policy denies everything", fault.message),
    })
}

/// What is in force in the place of an object that could not be decoded at all: of a policy, one for
/// all pods of its namespace.
pub(crate) fn substitute(rejected: &Rejected) -> Option<Object> {
    let key = rejected.key.as_ref().filter(|key| key.kind == ResourceKind::NetworkPolicy)?;
    let meta = Meta { name: key.name.clone(), ..Meta::default() };
    let why = FieldError { field: rejected.field.clone(), reason: rejected.reason.clone() };
    let policy = closed_policy(meta, LabelSelector::default(), vec![why]);
    Some(Object::NetworkPolicy(policy))
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
