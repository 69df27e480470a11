//! Ports and protocols.

use sluice_model::{ContainerPort, NetworkPolicy, PolicyPort, PolicyPortRange, Protocol};

use super::*;
use crate::policy::cluster::Who;
use crate::policy::table::PROTOCOLS;
use crate::policy::yaml::{NumberOrName, Port};

pub(super) fn all() -> Vec<Mutation> {
    vec![
        mutation(
            "P3",
            "the protocol is not read",
            on_ports(|_, port| {
                PROTOCOLS
                    .map(|protocol| PolicyPort { protocol, ports: port.ports.clone() })
                    .to_vec()
            }),
        ),
        mutation(
            "P3",
            "a port without a protocol is of every protocol",
            on_documents(|document| {
                for rule in document.rules_mut() {
                    rule.ports = rule
                        .ports
                        .iter()
                        .flat_map(|port| match port.protocol {
                            Some(_) => vec![port.clone()],
                            None => ["TCP", "UDP", "SCTP"]
                                .map(|protocol| Port {
                                    protocol: Some(protocol.to_owned()),
                                    ..port.clone()
                                })
                                .to_vec(),
                        })
                        .collect();
                }
            }),
        ),
        mutation(
            "P3",
            "a protocol alone is no port",
            on_ports(|_, port| {
                if port.ports == PolicyPortRange::All { Vec::new() } else { vec![port.clone()] }
            }),
        ),
        mutation(
            "P3",
            "a protocol alone is every protocol",
            on_policies(|_, list| {
                directions(list, |rules| {
                    rules
                        .iter_mut()
                        .filter(|rule| {
                            rule.ports.iter().any(|port| port.ports == PolicyPortRange::All)
                        })
                        .for_each(|rule| rule.ports.clear());
                });
            }),
        ),
        mutation(
            "P3",
            "an empty list of ports is no port",
            on_policies(|_, list| {
                directions(list, |rules| {
                    rules.retain(|rule| !rule.ports.is_empty() || rule.peers.is_empty());
                });
            }),
        ),
        mutation(
            "P3",
            "a rule for SCTP alone does not isolate TCP",
            concluding(|world, policies, query| {
                let sctp_alone = |policy: &NetworkPolicy| {
                    let mut rules =
                        policy.ingress.iter().chain(&policy.egress).flatten().peekable();
                    rules.peek().is_some()
                        && rules.all(|rule| {
                            !rule.ports.is_empty()
                                && rule.ports.iter().all(|port| port.protocol == Protocol::Sctp)
                        })
                };
                let kept: Vec<NetworkPolicy> = policies
                    .iter()
                    .filter(|policy| query.protocol != Protocol::Tcp || !sctp_alone(policy))
                    .cloned()
                    .collect();
                allowed(world, &kept, query)
            }),
        ),
        mutation(
            "P3",
            "a rule isolates only the protocols it names",
            concluding(|world, policies, query| {
                let names = |policy: &NetworkPolicy| {
                    let mut rules = policy.ingress.iter().chain(&policy.egress).flatten();
                    rules.all(|rule| {
                        rule.ports.is_empty()
                            || rule.ports.iter().any(|port| port.protocol == query.protocol)
                    })
                };
                let kept: Vec<NetworkPolicy> =
                    policies.iter().filter(|policy| names(policy)).cloned().collect();
                allowed(world, &kept, query)
            }),
        ),
        mutation(
            "P3",
            "endPort is not included",
            on_ports(|_, port| match port.ports {
                PolicyPortRange::Numbers(first, last) if first < last => vec![PolicyPort {
                    ports: PolicyPortRange::Numbers(first, last - 1),
                    ..port.clone()
                }],
                _ => vec![port.clone()],
            }),
        ),
        mutation(
            "P3",
            "endPort is not read",
            on_ports(|_, port| match port.ports {
                PolicyPortRange::Numbers(first, _) => vec![PolicyPort {
                    ports: PolicyPortRange::Numbers(first, first),
                    ..port.clone()
                }],
                _ => vec![port.clone()],
            }),
        ),
        mutation(
            "P3",
            "endPort is one too large",
            on_ports(|_, port| match port.ports {
                PolicyPortRange::Numbers(first, last) => vec![PolicyPort {
                    ports: PolicyPortRange::Numbers(first, last.saturating_add(1)),
                    ..port.clone()
                }],
                _ => vec![port.clone()],
            }),
        ),
        mutation(
            "P3",
            "a range begins after its port",
            on_ports(|_, port| match port.ports {
                PolicyPortRange::Numbers(first, last) if first < last => vec![PolicyPort {
                    ports: PolicyPortRange::Numbers(first + 1, last),
                    ..port.clone()
                }],
                _ => vec![port.clone()],
            }),
        ),
        mutation(
            "P3",
            "a range is rounded to a power of two",
            on_ports(|_, port| match port.ports {
                PolicyPortRange::Numbers(first, last) if first < last => {
                    let mask = u16::MAX >> (last - first).leading_zeros();
                    vec![PolicyPort {
                        ports: PolicyPortRange::Numbers((first & !mask).max(1), last | mask),
                        ..port.clone()
                    }]
                }
                _ => vec![port.clone()],
            }),
        ),
        mutation(
            "P3",
            "the first port of a list counts",
            on_policies(|_, list| {
                directions(list, |rules| rules.iter_mut().for_each(|rule| rule.ports.truncate(1)));
            }),
        ),
        mutation(
            "P3",
            "a port's name is looked up once for all pods",
            on_ports(|world, port| match &port.ports {
                PolicyPortRange::Name(name) => world
                    .pods
                    .iter()
                    .flat_map(|pod| &pod.ports)
                    .find(|known| known.name == *name && known.protocol == port.protocol)
                    .map(|known| PolicyPort {
                        protocol: port.protocol,
                        ports: PolicyPortRange::Numbers(known.port, known.port),
                    })
                    .into_iter()
                    .collect(),
                _ => vec![port.clone()],
            }),
        ),
        mutation(
            "P3",
            "a port's name is every number that any pod has for it",
            on_ports(|world, port| match &port.ports {
                PolicyPortRange::Name(name) => world
                    .pods
                    .iter()
                    .flat_map(|pod| &pod.ports)
                    .filter(|known| known.name == *name && known.protocol == port.protocol)
                    .map(|known| PolicyPort {
                        protocol: port.protocol,
                        ports: PolicyPortRange::Numbers(known.port, known.port),
                    })
                    .collect(),
                _ => vec![port.clone()],
            }),
        ),
        mutation(
            "P3",
            "a port's name is looked up in the source",
            concluding(|world, policies, query| {
                // The two ends exchange their port names.
                let mut changed = world.clone();
                if let (Who::Pod(from), Who::Pod(to)) = (query.from.who, query.to.who) {
                    changed.pods[to].ports = world.pods[from].ports.clone();
                }
                allowed(&changed, policies, query)
            }),
        ),
        mutation(
            "P3",
            "a port's name matches nothing in egress",
            on_policies(|_, list| {
                list.iter_mut().filter_map(|policy| policy.egress.as_mut()).flatten().for_each(
                    |rule| {
                        let before = rule.ports.len();
                        rule.ports.retain(|port| !matches!(port.ports, PolicyPortRange::Name(_)));
                        if before > 0 && rule.ports.is_empty() {
                            rule.peers = vec![nobody()];
                        }
                    },
                );
            }),
        ),
        mutation(
            "P3",
            "a port's name is of any protocol",
            on_world(|world| {
                world.pods.iter_mut().for_each(|pod| {
                    pod.ports = pod
                        .ports
                        .iter()
                        .flat_map(|port| {
                            PROTOCOLS.map(|protocol| ContainerPort { protocol, ..port.clone() })
                        })
                        .collect();
                });
            }),
        ),
        mutation(
            "P3",
            "a name that no pod has is every port",
            on_documents(|document| {
                for rule in document.rules_mut() {
                    for port in &mut rule.ports {
                        if port.port == Some(NumberOrName::Name("nothing".to_owned())) {
                            port.port = None;
                        }
                    }
                }
            }),
        ),
    ]
}
