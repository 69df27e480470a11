//! May A talk to B? The answer from the text of the API, without indexes or shortcuts. What policies of the cluster say is
//! asked of [`tiers`]; they are part of the [`World`].
//!
//! What the API leaves open is decided here as `SEMANTICS` rows P6 and P8 say, and in these points:
//!
//! - A pod and its own node always reach each other, in both directions (the API's documentation says so of ipBlocks).
//!   A pod of the host network is its node.
//! - A named port is looked up in the destination pod by name and protocol. Where two containers have the name, both
//!   ports count. A destination that is no pod of the pod network has no named ports.

use std::fmt;

use sluice_model::{
    LabelOperator, LabelSelector, NetworkPolicy, ObjectName, Pod, PolicyPeer, PolicyPort,
    PolicyPortRange, PolicyRule, PolicyTier,
};

use super::cluster::{Who, World};
use super::table::{End, Query};
use super::tiers::{self, Said};

/// The label that the API server gives to every namespace.
pub const METADATA_NAME: &str = "kubernetes.io/metadata.name";

/// Which rules of a policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// Connections to the pod.
    Ingress,
    /// Connections from the pod.
    Egress,
}

impl Direction {
    /// Who is at the other end, seen from the pod that the rules are for.
    pub(super) fn peer(self, query: &Query) -> End {
        match self {
            Self::Ingress => query.from,
            Self::Egress => query.to,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Why a connection is denied: policies isolate the pod, and none of them allows it, or one of the cluster denies it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Why {
    /// The pod.
    pub pod: ObjectName,
    /// In which direction it is isolated.
    pub direction: Direction,
    /// The policies that isolate it, or the one of the cluster.
    pub policies: Vec<ObjectName>,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policies: Vec<String> = self.policies.iter().map(ToString::to_string).collect();
        let (pod, direction) = (&self.pod, self.direction);
        if let [policy] = &self.policies[..]
            && policy.namespace.is_empty()
        {
            return write!(f, "{direction} of {pod}: denied by {policy}");
        }
        write!(f, "{direction} of {pod}: isolated by {}, none allows it", policies.join(", "))
    }
}

/// What becomes of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// Its first packet is dropped.
    Deny {
        /// Which direction denies it; egress is asked first.
        why: Why,
    },
}

impl Verdict {
    /// Whether it passes.
    pub fn is_allowed(&self) -> bool {
        *self == Self::Allow
    }
}

/// Whether a new connection passes, with the exceptions for a pod's own node and for the pod itself.
pub fn verdict(world: &World, policies: &[NetworkPolicy], query: &Query) -> Verdict {
    if query.from.who == query.to.who {
        return Verdict::Allow;
    }
    for (direction, subject, peer) in [
        (Direction::Egress, query.from.who, query.to.who),
        (Direction::Ingress, query.to.who, query.from.who),
    ] {
        let Some(pod) = subject_pod(world, subject) else { continue };
        let own_node = is_own_node(world, pod, peer);
        if own_node && direction == Direction::Ingress {
            continue;
        }
        if let Some(why) = decide(world, policies, direction, pod, query, own_node) {
            return Verdict::Deny { why };
        }
    }
    Verdict::Allow
}

/// Tier by tier, the first that decides: cluster-wide policies before NetworkPolicies, these where they isolate the pod,
/// else cluster-wide policies after them. What none decides is allowed.
fn decide(
    world: &World,
    policies: &[NetworkPolicy],
    direction: Direction,
    pod: &Pod,
    query: &Query,
    own_node: bool,
) -> Option<Why> {
    let denied =
        |by: ObjectName| Some(Why { pod: pod.meta.name.clone(), direction, policies: vec![by] });
    match tiers::asked(world, PolicyTier::Admin, direction, pod, query) {
        Said::Accepted => return None,
        Said::Denied(by) => return denied(by),
        Said::Nothing => {}
    }
    let isolates =
        |policy: &NetworkPolicy| selects(policy, pod) && rules(policy, direction).is_some();
    if policies.iter().any(isolates) {
        return if own_node { None } else { judge(world, policies, direction, pod, query) };
    }
    match tiers::asked(world, PolicyTier::Baseline, direction, pod, query) {
        Said::Accepted | Said::Nothing => None,
        Said::Denied(by) => denied(by),
    }
}

/// Whether NetworkPolicies deny this pod the connection in that direction, without any exception: `None` is allowed.
pub fn judge(
    world: &World,
    policies: &[NetworkPolicy],
    direction: Direction,
    pod: &Pod,
    query: &Query,
) -> Option<Why> {
    let isolating: Vec<&NetworkPolicy> = policies
        .iter()
        .filter(|policy| selects(policy, pod) && rules(policy, direction).is_some())
        .collect();
    if isolating.is_empty() {
        return None;
    }
    let allowed = isolating.iter().any(|policy| {
        let namespace = &policy.meta.name.namespace;
        rules(policy, direction)
            .unwrap_or_default()
            .iter()
            .any(|rule| rule_allows(world, namespace, rule, direction, query))
    });
    if allowed {
        return None;
    }
    let policies = isolating.iter().map(|policy| policy.meta.name.clone()).collect();
    Some(Why { pod: pod.meta.name.clone(), direction, policies })
}

/// The pod that policies may select: one of the pod network.
pub fn subject_pod(world: &World, who: Who) -> Option<&Pod> {
    match who {
        Who::Pod(index) if !world.pods[index].host_network => Some(&world.pods[index]),
        _ => None,
    }
}

/// Whether a party is the node that the pod runs on, or one of its pods of the host network.
pub fn is_own_node(world: &World, pod: &Pod, who: Who) -> bool {
    let name = match who {
        Who::Node(index) => Some(&world.nodes[index].meta.name.name),
        Who::Pod(index) if world.pods[index].host_network => world.pods[index].node.as_ref(),
        _ => None,
    };
    name.is_some() && name == pod.node.as_ref()
}

/// Whether the policy is for that pod.
pub fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    policy.meta.name.namespace == pod.meta.name.namespace
        && selector_matches(&policy.pods, |key| pod_label(pod, key))
}

/// A policy's rules for a direction; `None` where it does not isolate. A policy with faults allows nothing.
fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[PolicyRule]> {
    if !policy.faults.is_empty() {
        return Some(&[]);
    }
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

fn rule_allows(
    world: &World,
    namespace: &str,
    rule: &PolicyRule,
    direction: Direction,
    query: &Query,
) -> bool {
    let peer = direction.peer(query);
    let peer_allowed = rule.peers.is_empty()
        || rule.peers.iter().any(|entry| match entry {
            PolicyPeer::Pods { namespaces, pods } => {
                let Some(pod) = subject_pod(world, peer.who) else { return false };
                let namespace_matches = match namespaces {
                    Some(selector) => selector_matches(selector, |key| {
                        namespace_label(world, &pod.meta.name.namespace, key)
                    }),
                    None => pod.meta.name.namespace == namespace,
                };
                let pod_matches = match pods {
                    Some(selector) => selector_matches(selector, |key| pod_label(pod, key)),
                    None => true,
                };
                namespace_matches && pod_matches
            }
            PolicyPeer::Block { cidr, except } => {
                cidr.contains(&peer.addr) && !except.iter().any(|block| block.contains(&peer.addr))
            }
        });
    let port_allowed =
        rule.ports.is_empty() || rule.ports.iter().any(|entry| port_allows(world, entry, query));
    peer_allowed && port_allowed
}

fn port_allows(world: &World, entry: &PolicyPort, query: &Query) -> bool {
    entry.protocol == query.protocol
        && match &entry.ports {
            PolicyPortRange::All => true,
            PolicyPortRange::Numbers(first, last) => (*first..=*last).contains(&query.port),
            PolicyPortRange::Name(name) => {
                subject_pod(world, query.to.who).is_some_and(|destination| {
                    destination.ports.iter().any(|port| {
                        port.name == *name
                            && port.protocol == query.protocol
                            && port.port == query.port
                    })
                })
            }
        }
}

/// A namespace's label. The API server gives every namespace its name as one; a namespace that is not known has no other.
pub fn namespace_label<'a>(world: &'a World, namespace: &'a str, key: &str) -> Option<&'a str> {
    if key == METADATA_NAME {
        return Some(namespace);
    }
    let known = world.namespaces.iter().find(|known| known.meta.name.name == namespace)?;
    known.meta.labels.get(key).map(String::as_str)
}

/// A pod's label.
pub fn pod_label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.meta.labels.get(key).map(String::as_str)
}

/// Whether all of a selector's requirements hold for what has these labels.
pub fn selector_matches<'a>(
    selector: &LabelSelector,
    label: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    selector.labels.iter().all(|(key, value)| label(key) == Some(value))
        && selector.expressions.iter().all(|requirement| {
            let value = label(&requirement.key);
            match &requirement.operator {
                LabelOperator::In(values) => value.is_some_and(|value| values.contains(value)),
                LabelOperator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        })
}
