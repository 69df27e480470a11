//! Whom selectors select.

use sluice_model::{LabelOperator, LabelRequirement, LabelSelector, NetworkPolicy, PolicyPeer};

use super::*;
use crate::policy::oracle::METADATA_NAME;

pub(super) fn all() -> Vec<Mutation> {
    vec![
        mutation(
            "P2",
            "both selectors of one element: either is enough",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Pods { namespaces: Some(namespaces), pods: Some(pods) } => vec![
                        PolicyPeer::Pods { namespaces: Some(namespaces.clone()), pods: None },
                        PolicyPeer::Pods { namespaces: None, pods: Some(pods.clone()) },
                    ],
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation("P2", "separate elements must all match", concluding(all_peers_must_match)),
        mutation(
            "P2",
            "a podSelector alone is for all namespaces",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Pods { namespaces: None, pods } => vec![PolicyPeer::Pods {
                        namespaces: Some(LabelSelector::default()),
                        pods: pods.clone(),
                    }],
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P2",
            "the namespaceSelector is not read",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Pods { namespaces: Some(_), pods } => {
                        vec![PolicyPeer::Pods { namespaces: None, pods: pods.clone() }]
                    }
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P2",
            "the podSelector beside a namespaceSelector is not read",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Pods { namespaces: Some(namespaces), .. } => {
                        vec![PolicyPeer::Pods { namespaces: Some(namespaces.clone()), pods: None }]
                    }
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P2",
            "an empty namespaceSelector is the policy's own namespace",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Pods { namespaces: Some(namespaces), pods }
                        if *namespaces == LabelSelector::default() =>
                    {
                        vec![PolicyPeer::Pods { namespaces: None, pods: pods.clone() }]
                    }
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P2",
            "an empty podSelector matches no peer",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Pods { pods: Some(pods), .. }
                        if *pods == LabelSelector::default() =>
                    {
                        vec![nobody()]
                    }
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P2",
            "an empty namespaceSelector matches addresses outside",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Pods { namespaces: Some(namespaces), pods: None }
                        if *namespaces == LabelSelector::default() =>
                    {
                        vec![peer.clone(), everywhere(false), everywhere(true)]
                    }
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P2",
            "namespaces are selected by the labels of their pods",
            on_world(|world| {
                for namespace in &mut world.namespaces {
                    let pods = world
                        .pods
                        .iter()
                        .filter(|pod| pod.meta.name.namespace == namespace.meta.name.name);
                    namespace.meta.labels = pods.flat_map(|pod| pod.meta.labels.clone()).collect();
                }
            }),
        ),
        mutation(
            "P2",
            "pods are selected by their namespace's labels too",
            on_world(|world| {
                for pod in &mut world.pods {
                    let namespace = world
                        .namespaces
                        .iter()
                        .find(|namespace| namespace.meta.name.name == pod.meta.name.namespace);
                    let inherited = namespace
                        .map(|namespace| namespace.meta.labels.clone())
                        .unwrap_or_default();
                    let own = std::mem::replace(&mut pod.meta.labels, inherited);
                    pod.meta.labels.extend(own);
                }
            }),
        ),
        mutation(
            "P2",
            "kubernetes.io/metadata.name is not known",
            on_policies(|_, list| {
                selectors(list, |selector| {
                    for key in selector.labels.keys().cloned().collect::<Vec<_>>() {
                        if key == METADATA_NAME {
                            let value = selector.labels.remove(&key).unwrap_or_default();
                            selector.labels.insert("no-such-label".to_owned(), value);
                        }
                    }
                    selector
                        .expressions
                        .iter_mut()
                        .filter(|requirement| requirement.key == METADATA_NAME)
                        .for_each(|requirement| "no-such-label".clone_into(&mut requirement.key));
                });
            }),
        ),
        mutation(
            "P2",
            "In takes the first value alone",
            on_operators(|operator| {
                if let LabelOperator::In(values) = operator {
                    *values = values.iter().take(1).cloned().collect();
                }
            }),
        ),
        mutation(
            "P2",
            "In asks for the label alone",
            on_operators(|operator| {
                if matches!(operator, LabelOperator::In(_)) {
                    *operator = LabelOperator::Exists;
                }
            }),
        ),
        mutation(
            "P2",
            "NotIn is In",
            on_operators(|operator| {
                if let LabelOperator::NotIn(values) = operator {
                    *operator = LabelOperator::In(values.clone());
                }
            }),
        ),
        mutation(
            "P2",
            "NotIn asks for the label to be there",
            on_policies(|_, list| {
                selectors(list, |selector| {
                    let not_in = |requirement: &&LabelRequirement| {
                        matches!(requirement.operator, LabelOperator::NotIn(_))
                    };
                    let more: Vec<_> = selector
                        .expressions
                        .iter()
                        .filter(not_in)
                        .map(|requirement| LabelRequirement {
                            key: requirement.key.clone(),
                            operator: LabelOperator::Exists,
                        })
                        .collect();
                    selector.expressions.extend(more);
                });
            }),
        ),
        mutation(
            "P2",
            "Exists is always true",
            on_operators(|operator| {
                if *operator == LabelOperator::Exists {
                    *operator = LabelOperator::NotIn(["no such value".to_owned()].into());
                }
            }),
        ),
        mutation(
            "P2",
            "DoesNotExist is Exists",
            on_operators(|operator| {
                if *operator == LabelOperator::DoesNotExist {
                    *operator = LabelOperator::Exists;
                }
            }),
        ),
        mutation(
            "P2",
            "matchExpressions are not read",
            on_policies(|_, list| selectors(list, |selector| selector.expressions.clear())),
        ),
        mutation(
            "P2",
            "matchLabels are not read where there are matchExpressions",
            on_policies(|_, list| {
                selectors(list, |selector| {
                    if !selector.expressions.is_empty() {
                        selector.labels.clear();
                    }
                });
            }),
        ),
        mutation(
            "P2",
            "one of the matchLabels is enough",
            on_policies(|_, list| {
                selectors(list, |selector| {
                    selector.labels = selector.labels.clone().into_iter().take(1).collect();
                });
            }),
        ),
        mutation(
            "P2",
            "one of the matchExpressions is enough",
            on_policies(|_, list| selectors(list, |selector| selector.expressions.truncate(1))),
        ),
    ]
}

/// As if the elements of `from` and `to` were requirements: each of them alone must allow.
fn all_peers_must_match(world: &World, policies: &[NetworkPolicy], query: &Query) -> bool {
    let mut most = 1;
    directions(&mut policies.to_vec(), |rules| {
        most = rules.iter().map(|rule| rule.peers.len()).fold(most, usize::max);
    });
    (0..most).all(|index| {
        let mut policies = policies.to_vec();
        directions(&mut policies, |rules| {
            for rule in rules.iter_mut().filter(|rule| !rule.peers.is_empty()) {
                rule.peers = vec![rule.peers[index % rule.peers.len()].clone()];
            }
        });
        allowed(world, &policies, query)
    })
}
