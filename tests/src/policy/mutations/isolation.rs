//! What isolates, and what rules mean.

use std::slice;

use sluice_model::{LabelSelector, NetworkPolicy, PolicyRule};

use super::*;
use crate::policy::oracle::{Direction, judge, selects, subject_pod};

pub(super) fn all() -> Vec<Mutation> {
    vec![
        mutation(
            "P1",
            "a direction without rules allows all",
            on_policies(|_, list| {
                directions(list, |rules| {
                    if rules.is_empty() {
                        rules.push(PolicyRule::default());
                    }
                });
            }),
        ),
        mutation(
            "P1",
            "an empty rule allows nothing",
            on_policies(|_, list| {
                directions(list, |rules| rules.retain(|rule| *rule != PolicyRule::default()));
            }),
        ),
        mutation(
            "P1",
            "an empty list of peers is nobody",
            on_policies(|_, list| {
                directions(list, |rules| rules.retain(|rule| !rule.peers.is_empty()));
            }),
        ),
        mutation(
            "P1",
            "an empty podSelector is no pod",
            on_policies(|_, list| list.retain(|policy| policy.pods != LabelSelector::default())),
        ),
        mutation(
            "P1",
            "a policy is for all namespaces",
            concluding(|world, policies, query| {
                let policies: Vec<NetworkPolicy> = world
                    .namespaces
                    .iter()
                    .flat_map(|namespace| {
                        policies.iter().map(|policy| {
                            let mut policy = policy.clone();
                            policy.meta.name.namespace.clone_from(&namespace.meta.name.name);
                            policy
                        })
                    })
                    .collect();
                allowed(world, &policies, query)
            }),
        ),
        mutation(
            "P1",
            "a policy is for all pods of its namespace",
            on_policies(|_, list| {
                list.iter_mut().for_each(|policy| policy.pods = LabelSelector::default());
            }),
        ),
        mutation(
            "P1",
            "every policy isolates ingress",
            on_policies(|_, list| {
                list.iter_mut().for_each(|policy| {
                    policy.ingress.get_or_insert_default();
                });
            }),
        ),
        mutation(
            "P1",
            "every policy isolates egress",
            on_policies(|_, list| {
                list.iter_mut().for_each(|policy| {
                    policy.egress.get_or_insert_default();
                });
            }),
        ),
        mutation(
            "P1",
            "policyTypes default to Ingress alone",
            on_documents(|document| {
                if document.spec.policy_types.is_empty() {
                    document.spec.policy_types.push("Ingress".to_owned());
                }
            }),
        ),
        mutation(
            "P1",
            "policyTypes default to what has rules",
            on_documents(|document| {
                let spec = &mut document.spec;
                if spec.policy_types.is_empty()
                    && spec.ingress.is_empty()
                    && !spec.egress.is_empty()
                {
                    spec.policy_types.push("Egress".to_owned());
                }
            }),
        ),
        mutation(
            "P1",
            "policyTypes default to both",
            on_documents(|document| {
                if document.spec.policy_types.is_empty() {
                    document.spec.policy_types = vec!["Ingress".to_owned(), "Egress".to_owned()];
                }
            }),
        ),
        mutation(
            "P1",
            "rules count in a direction that policyTypes leaves out",
            on_documents(|document| {
                let spec = &mut document.spec;
                for (name, rules) in [("Ingress", &spec.ingress), ("Egress", &spec.egress)] {
                    if !rules.is_empty()
                        && !spec.policy_types.is_empty()
                        && !spec.policy_types.iter().any(|given| given == name)
                    {
                        spec.policy_types.push(name.to_owned());
                    }
                }
            }),
        ),
        mutation(
            "P1",
            "all policies must allow",
            concluding(|world, policies, query| {
                policies.iter().all(|policy| allowed(world, slice::from_ref(policy), query))
            }),
        ),
        mutation(
            "P1",
            "the last policy of a pod counts",
            concluding(|world, policies, query| {
                let of = |who| subject_pod(world, who);
                let mut kept: Vec<NetworkPolicy> = Vec::new();
                for who in [query.from.who, query.to.who] {
                    let Some(pod) = of(who) else { continue };
                    kept.extend(policies.iter().rfind(|policy| selects(policy, pod)).cloned());
                }
                allowed(world, &kept, query)
            }),
        ),
        mutation(
            "P1",
            "the peers of one rule may use the ports of another",
            on_policies(|_, list| {
                directions(list, |rules| {
                    if rules.len() > 1
                        && rules.iter().all(|rule| !rule.peers.is_empty() && !rule.ports.is_empty())
                    {
                        let peers = rules.iter().flat_map(|rule| rule.peers.clone()).collect();
                        let ports = rules.iter().flat_map(|rule| rule.ports.clone()).collect();
                        *rules = vec![PolicyRule { peers, ports }];
                    }
                });
            }),
        ),
        mutation(
            "P1",
            "the first rule alone counts",
            on_policies(|_, list| directions(list, |rules| rules.truncate(1))),
        ),
        mutation(
            "P1",
            "peers and ports go in pairs",
            on_policies(|_, list| {
                directions(list, |rules| {
                    *rules = rules
                        .iter()
                        .flat_map(|rule| {
                            if rule.peers.len() < 2 || rule.ports.len() < 2 {
                                return vec![rule.clone()];
                            }
                            rule.peers
                                .iter()
                                .zip(&rule.ports)
                                .map(|(peer, port)| PolicyRule {
                                    peers: vec![peer.clone()],
                                    ports: vec![port.clone()],
                                })
                                .collect()
                        })
                        .collect();
                });
            }),
        ),
        mutation(
            "P1",
            "peers or ports is enough",
            on_policies(|_, list| {
                directions(list, |rules| {
                    *rules = rules
                        .iter()
                        .flat_map(|rule| {
                            if rule.peers.is_empty() || rule.ports.is_empty() {
                                return vec![rule.clone()];
                            }
                            vec![
                                PolicyRule { peers: rule.peers.clone(), ports: Vec::new() },
                                PolicyRule { peers: Vec::new(), ports: rule.ports.clone() },
                            ]
                        })
                        .collect();
                });
            }),
        ),
        mutation(
            "P1",
            "egress is not judged",
            on_policies(|_, list| {
                list.iter_mut()
                    .filter(|policy| policy.faults.is_empty())
                    .for_each(|policy| policy.egress = None);
            }),
        ),
        mutation(
            "P1",
            "ingress is not judged",
            on_policies(|_, list| {
                list.iter_mut()
                    .filter(|policy| policy.faults.is_empty())
                    .for_each(|policy| policy.ingress = None);
            }),
        ),
        mutation(
            "P1",
            "an allow of egress overrules the destination's policies",
            concluding(|world, policies, query| {
                allowed(world, policies, query)
                    || subject_pod(world, query.from.who).is_some_and(|pod| {
                        policies
                            .iter()
                            .any(|policy| selects(policy, pod) && policy.egress.is_some())
                            && judge(world, policies, Direction::Egress, pod, query).is_none()
                    })
            }),
        ),
    ]
}
