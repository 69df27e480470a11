//! Nodes, a pod itself, and policies with faults.

use sluice_model::NetworkPolicy;

use super::*;
use crate::policy::cluster::Who;
use crate::policy::oracle::{Direction, is_own_node, judge, selects, subject_pod};
use crate::policy::yaml::NumberOrName;

pub(super) fn all() -> Vec<Mutation> {
    vec![
        mutation(
            "P6",
            "the own node is judged",
            concluding(|world, policies, query| {
                if query.from.who == query.to.who {
                    return true;
                }
                let denied = |direction, who| {
                    subject_pod(world, who)
                        .is_some_and(|pod| judge(world, policies, direction, pod, query).is_some())
                };
                !denied(Direction::Egress, query.from.who)
                    && !denied(Direction::Ingress, query.to.who)
            }),
        ),
        mutation(
            "P6",
            "every node is let in",
            concluding(|world, policies, query| {
                let node = subject_pod(world, query.from.who).is_none()
                    && !matches!(query.from.who, Who::Outside(_));
                node || allowed(world, policies, query)
            }),
        ),
        mutation(
            "P6",
            "pods of the host network are subjects",
            on_world(|world| world.pods.iter_mut().for_each(|pod| pod.host_network = false)),
        ),
        mutation(
            "P6",
            "pods of the host network are peers by their labels",
            concluding(|world, policies, query| {
                // Asked from the other end alone, so that they are no subjects.
                let mut changed = world.clone();
                changed.pods.iter_mut().for_each(|pod| pod.host_network = false);
                allowed(world, policies, query) || {
                    let ends = [
                        (Direction::Egress, query.from.who, query.to.who),
                        (Direction::Ingress, query.to.who, query.from.who),
                    ];
                    ends.into_iter().all(|(direction, who, peer)| {
                        subject_pod(world, who).is_none_or(|pod| {
                            is_own_node(world, pod, peer)
                                || judge(&changed, policies, direction, pod, query).is_none()
                        })
                    })
                }
            }),
        ),
        mutation(
            "P8",
            "a pod is judged to itself",
            concluding(|world, policies, query| {
                let denied = |direction, who| {
                    subject_pod(world, who)
                        .is_some_and(|pod| judge(world, policies, direction, pod, query).is_some())
                };
                allowed(world, policies, query)
                    && (query.from.who != query.to.who
                        || (!denied(Direction::Egress, query.from.who)
                            && !denied(Direction::Ingress, query.to.who)))
            }),
        ),
        mutation(
            "P11",
            "a policy with a fault is left out",
            on_policies(|_, list| list.retain(|policy| policy.faults.is_empty())),
        ),
        mutation(
            "P11",
            "a policy with a fault closes ingress alone",
            concluding(|world, policies, query| {
                let policies: Vec<NetworkPolicy> = policies
                    .iter()
                    .map(|policy| {
                        let mut policy = policy.clone();
                        if !policy.faults.is_empty() {
                            policy.faults.clear();
                            policy.egress = None;
                        }
                        policy
                    })
                    .collect();
                allowed(world, &policies, query)
            }),
        ),
        mutation(
            "P11",
            "a policy with a fault closes its pods whatever others allow",
            concluding(|world, policies, query| {
                let closed = |who| {
                    subject_pod(world, who).is_some_and(|pod| {
                        policies
                            .iter()
                            .any(|policy| !policy.faults.is_empty() && selects(policy, pod))
                    })
                };
                let exempt = |who, other| {
                    query.from.who == query.to.who
                        || subject_pod(world, who).is_some_and(|pod| is_own_node(world, pod, other))
                };
                allowed(world, policies, query)
                    && (exempt(query.from.who, query.to.who) || !closed(query.from.who))
                    && (exempt(query.to.who, query.from.who) || !closed(query.to.who))
            }),
        ),
        mutation(
            "P11",
            "what can be read of a policy with a fault is in force",
            on_documents(|document| {
                for rule in document.rules_mut() {
                    rule.peers.retain(|peer| {
                        peer.pod_selector.is_some()
                            || peer.namespace_selector.is_some()
                            || peer.ip_block.is_some()
                    });
                    rule.ports.retain(|port| !matches!(port.port, Some(NumberOrName::Number(number)) if !(1..=65535).contains(&number)));
                }
            }),
        ),
        mutation(
            "P11",
            "a fault in the selector of the pods selects none",
            on_policies(|_, list| {
                list.retain(|policy| {
                    !policy.faults.iter().any(|fault| fault.field.starts_with("spec.podSelector"))
                });
            }),
        ),
    ]
}
