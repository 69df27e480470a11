//! What cluster-wide policies say of a connection: the answer from the text of the API's types
//! (`apis/v1alpha2/clusternetworkpolicy_types.go` of kubernetes-sigs/network-policy-api), without indexes or shortcuts.
//!
//! What that leaves open is decided here in these points:
//!
//! - Of two policies of a tier with the same priority, the one whose name sorts first is asked first.
//! - A pod's own node reaches it under every policy, as under NetworkPolicies. What a pod asks of its node is judged by the
//!   rules of tiers: they name nodes and networks on purpose, and make no exception.

use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPeer, ClusterPolicyPort, ClusterPolicyRule, NamespacedPods,
    ObjectName, Pod, PolicyAction, PolicyTier,
};

use super::cluster::World;
use super::oracle::{Direction, namespace_label, pod_label, selector_matches, subject_pod};
use super::table::Query;

/// What a tier says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// The connection passes.
    Accepted,
    /// It does not, for the sake of this policy.
    Denied(ObjectName),
    /// The next tier is to decide.
    Nothing,
}

/// Asks the policies of one tier that are for the pod.
pub fn asked(
    world: &World,
    tier: PolicyTier,
    direction: Direction,
    pod: &Pod,
    query: &Query,
) -> Said {
    let mut policies: Vec<&ClusterNetworkPolicy> = world
        .cluster_policies
        .iter()
        .filter(|policy| policy.tier == tier && selects(world, &policy.subject, pod))
        .collect();
    policies.sort_by_key(|policy| (policy.priority, policy.meta.name.clone()));
    for policy in policies {
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for rule in rules {
            // "For Accept rules, fail closed means: treat the rule as matching no traffic. For Deny and Pass rules, fail
            // closed means: treat the rule as a Deny all rule."
            if !rule.understood {
                if rule.action == PolicyAction::Accept {
                    continue;
                }
                return Said::Denied(policy.meta.name.clone());
            }
            if !peers_match(world, rule, direction, query) || !ports_match(world, rule, query) {
                continue;
            }
            return match rule.action {
                PolicyAction::Accept => Said::Accepted,
                PolicyAction::Deny => Said::Denied(policy.meta.name.clone()),
                PolicyAction::Pass => Said::Nothing,
            };
        }
    }
    Said::Nothing
}

/// Whether these are pods among which that one is.
fn selects(world: &World, pods: &NamespacedPods, pod: &Pod) -> bool {
    let namespace = &pod.meta.name.namespace;
    selector_matches(&pods.namespaces, |key| namespace_label(world, namespace, key))
        && selector_matches(&pods.pods, |key| pod_label(pod, key))
}

fn peers_match(
    world: &World,
    rule: &ClusterPolicyRule,
    direction: Direction,
    query: &Query,
) -> bool {
    let peer = direction.peer(query);
    rule.peers.iter().any(|entry| match entry {
        ClusterPolicyPeer::Pods(pods) => {
            subject_pod(world, peer.who).is_some_and(|pod| selects(world, pods, pod))
        }
        ClusterPolicyPeer::Nodes(selector) => world.nodes.iter().any(|node| {
            selector_matches(selector, |key| node.meta.labels.get(key).map(String::as_str))
                && node.addrs.iter().any(|address| address.addr == peer.addr)
        }),
        ClusterPolicyPeer::Networks(list) => list.iter().any(|net| net.contains(&peer.addr)),
    })
}

fn ports_match(world: &World, rule: &ClusterPolicyRule, query: &Query) -> bool {
    rule.ports.is_empty()
        || rule.ports.iter().any(|entry| match entry {
            ClusterPolicyPort::Numbers(protocol, first, last) => {
                *protocol == query.protocol && (*first..=*last).contains(&query.port)
            }
            ClusterPolicyPort::Name(name) => {
                subject_pod(world, query.to.who).is_some_and(|destination| {
                    destination.ports.iter().any(|port| {
                        port.name == *name
                            && port.protocol == query.protocol
                            && port.port == query.port
                    })
                })
            }
        })
}
