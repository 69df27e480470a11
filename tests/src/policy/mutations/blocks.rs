//! Blocks of addresses.

use ipnet::IpNet;
use sluice_model::{PolicyPeer, PolicyRule};

use super::*;
use crate::policy::oracle::{Direction, is_own_node, selects, subject_pod};
use crate::policy::yaml::Block;

pub(super) fn all() -> Vec<Mutation> {
    vec![
        mutation("P4", "except is not read", on_excepts(Vec::clear)),
        mutation("P4", "the first except alone counts", on_excepts(|except| except.truncate(1))),
        mutation(
            "P4",
            "an except of one peer denies what another allows",
            concluding(|world, policies, query| {
                let excluded = |rules: &Option<Vec<PolicyRule>>, addr| {
                    rules.iter().flatten().flat_map(|rule| &rule.peers).any(|peer| matches!(peer, PolicyPeer::Block { except, .. } if except.iter().any(|block| block.contains(addr))))
                };
                let denied = |direction, who, addr| {
                    subject_pod(world, who).is_some_and(|pod| {
                        policies.iter().filter(|policy| selects(policy, pod)).any(|policy| {
                            excluded(
                                if direction == Direction::Ingress {
                                    &policy.ingress
                                } else {
                                    &policy.egress
                                },
                                addr,
                            )
                        })
                    })
                };
                let exempt = |who, other| {
                    query.from.who == query.to.who
                        || subject_pod(world, who).is_some_and(|pod| is_own_node(world, pod, other))
                };
                allowed(world, policies, query)
                    && (exempt(query.to.who, query.from.who)
                        || !denied(Direction::Ingress, query.to.who, &query.from.addr))
                    && (exempt(query.from.who, query.to.who)
                        || !denied(Direction::Egress, query.from.who, &query.to.addr))
            }),
        ),
        mutation(
            "P4",
            "a block does not match pods",
            without_blocks(|world, query| {
                [query.from.who, query.to.who]
                    .into_iter()
                    .all(|who| subject_pod(world, who).is_some())
            }),
        ),
        mutation(
            "P4",
            "a block matches pods alone",
            without_blocks(|world, query| {
                [query.from.who, query.to.who]
                    .into_iter()
                    .any(|who| subject_pod(world, who).is_none())
            }),
        ),
        mutation(
            "P4",
            "0.0.0.0/0 is both families",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Block { cidr, .. } if cidr.prefix_len() == 0 => {
                        vec![peer.clone(), everywhere(cidr.addr().is_ipv4())]
                    }
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P4",
            "IPv6 blocks are not read",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Block { cidr, .. } if cidr.addr().is_ipv6() => vec![nobody()],
                    other => vec![other.clone()],
                });
            }),
        ),
        mutation(
            "P4",
            "a block with host bits is a fault",
            on_documents(|document| {
                on_blocks(document, |block| {
                    if block.cidr.parse::<IpNet>().is_ok_and(|net| net != net.trunc()) {
                        block.cidr.push('!');
                    }
                });
            }),
        ),
        mutation(
            "P4",
            "a block with host bits is its address alone",
            on_documents(|document| {
                on_blocks(document, |block| {
                    if let Ok(net) = block.cidr.parse::<IpNet>()
                        && net != net.trunc()
                    {
                        block.cidr = IpNet::from(net.addr()).to_string();
                        block.except.clear();
                    }
                });
            }),
        ),
        mutation(
            "P4",
            "an except with host bits is its address alone",
            on_documents(|document| {
                on_blocks(document, |block| {
                    for except in &mut block.except {
                        if let Ok(net) = except.parse::<IpNet>()
                            && net != net.trunc()
                        {
                            *except = IpNet::from(net.addr()).to_string();
                        }
                    }
                });
            }),
        ),
        mutation(
            "P4",
            "what is excepted is allowed",
            on_policies(|_, list| {
                replace_peers(list, |peer| match peer {
                    PolicyPeer::Block { except, .. } if !except.is_empty() => vec![
                        peer.clone(),
                        PolicyPeer::Block { cidr: except[0], except: Vec::new() },
                    ],
                    other => vec![other.clone()],
                });
            }),
        ),
    ]
}

/// Takes no block for anybody where the cell is one of those.
fn without_blocks(of: impl Fn(&World, &Query) -> bool + 'static) -> Wrong {
    concluding(move |world, policies, query| {
        let mut policies = policies.to_vec();
        if of(world, query) {
            replace_peers(&mut policies, |peer| match peer {
                PolicyPeer::Block { .. } => vec![nobody()],
                other @ PolicyPeer::Pods { .. } => vec![other.clone()],
            });
        }
        allowed(world, &policies, query)
    })
}

/// Changes the excepts of each block.
fn on_excepts(change: impl Fn(&mut Vec<IpNet>) + 'static) -> Wrong {
    on_policies(move |_, policies| {
        replace_peers(policies, |peer| {
            let mut peer = peer.clone();
            if let PolicyPeer::Block { except, .. } = &mut peer {
                change(except);
            }
            vec![peer]
        });
    })
}

/// Changes each block as it is written.
fn on_blocks(document: &mut Document, change: impl Fn(&mut Block)) {
    document
        .rules_mut()
        .flat_map(|rule| &mut rule.peers)
        .filter_map(|peer| peer.ip_block.as_mut())
        .for_each(change);
}
