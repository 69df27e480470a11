//! What policies say of a connection, and which rule says so, from the objects alone.

use std::net::IpAddr;

use sluice_model::{ObjectName, PolicyPortRange, PolicyRule, Protocol};

use super::classes::Element;
use super::net::Net;
use super::peers::Who;
use super::planner::PolicyPlanner;
use super::selector::matches;

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Party {
    /// Whoever has the address: a pod, another node, somebody outside.
    Addr(IpAddr),
    /// The node that the other end's pod is on: between the two, no policy denies anything.
    OwnNode(IpAddr),
}

impl Party {
    /// The address.
    pub fn addr(self) -> IpAddr {
        match self {
            Self::Addr(addr) | Self::OwnNode(addr) => addr,
        }
    }
}

/// What the policies of one end say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// It is no pod with a network of its own.
    NoSubject,
    /// No policy selects it for this direction.
    NotIsolated,
    /// A rule of a policy allows it; the first of all that do.
    Allowed {
        /// The policy.
        policy: ObjectName,
        /// Index of its rule.
        rule: usize,
    },
    /// The other end is the pod's own node.
    OwnNode,
    /// Its object is not known yet, and there are policies that may select it: nothing passes.
    NotKnown,
    /// Policies isolate it, and no rule of theirs allows it.
    Denied {
        /// These policies.
        policies: Vec<ObjectName>,
    },
}

impl Judgement {
    /// Whether the connection passes.
    pub fn allows(&self) -> bool {
        !matches!(self, Self::Denied { .. } | Self::NotKnown)
    }
}

/// What policies say of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The pods at both ends, where there are any.
    pub pods: (Option<ObjectName>, Option<ObjectName>),
    /// What the policies of the sender say.
    pub egress: Judgement,
    /// What the policies of the receiver say.
    pub ingress: Judgement,
}

impl Explanation {
    /// Whether both ends allow it.
    pub fn allows(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }
}

impl PolicyPlanner {
    /// What an identity stands for: the peers of rules that its addresses are, each with its port where
    /// the rule names one. Sorted; nothing for one that is not in use.
    pub fn identity(&self, number: u32) -> Vec<String> {
        let peers = self.classes.class(number).iter().filter_map(|Element { peer, port }| {
            let text = self.peers.get(*peer)?.to_string();
            Some(if *port == 0 { text } else { format!("{text} ({port})") })
        });
        let mut peers: Vec<String> = peers.collect();
        peers.sort();
        peers
    }

    /// The pod that has an address, as far as policies are concerned.
    pub fn pod_at(&self, addr: IpAddr) -> Option<&ObjectName> {
        self.pods.name(self.pods.owner(Net::host(addr))?)
    }

    /// The addresses that a pod has, as far as policies are concerned: those of pods that have ended
    /// or are on the host's network are not theirs.
    pub fn addrs(&self, pod: &ObjectName) -> Vec<IpAddr> {
        let number = self.pods.number(pod);
        number.into_iter().flat_map(|number| self.pods.nets(number)).map(Net::addr).collect()
    }

    /// What the policies say of a connection; `port` is that of the destination, after every
    /// translation. Without `protocol` it is of one that no policy names, such as ICMP. Pods of other
    /// nodes are judged like those of this one.
    ///
    /// A connection of a pod to itself is judged as one that came by a Service; to its own address it
    /// never leaves the pod, and is judged nowhere.
    pub fn explain(
        &self,
        from: Party,
        to: Party,
        protocol: Option<Protocol>,
        port: u16,
    ) -> Explanation {
        let (source, destination) = (Net::host(from.addr()), Net::host(to.addr()));
        let name = |net| self.pods.name(self.pods.owner(net)?).cloned();
        let ask = |subject, peer: Party, ingress| match peer {
            Party::OwnNode(_) => Judgement::OwnNode,
            Party::Addr(addr) => {
                let port = protocol.map(|protocol| (protocol, port));
                self.judge(subject, Net::host(addr), ingress, port)
            }
        };
        Explanation {
            pods: (name(source), name(destination)),
            egress: ask(source, to, false),
            ingress: ask(destination, from, true),
        }
    }

    /// What the policies of the pod at `subject` say of `peer`.
    fn judge(
        &self,
        subject: Net,
        peer: Net,
        ingress: bool,
        port: Option<(Protocol, u16)>,
    ) -> Judgement {
        let Some(number) = self.pods.owner(subject) else { return Judgement::NoSubject };
        let Some((name, labels)) = self.pods.described(number) else {
            let name = self.pods.name(number);
            let open = name.is_none_or(|name| !self.has_policies(&name.namespace));
            return if open { Judgement::NotIsolated } else { Judgement::NotKnown };
        };
        let destination = if ingress { Some(number) } else { self.pods.owner(peer) };
        let there = self.policies.range(ObjectName::new(name.namespace.clone(), "")..);
        let there = there.take_while(|(policy, _)| policy.namespace == name.namespace);
        let mut policies = Vec::new();
        for (policy, entry) in there.filter(|(_, entry)| matches(&entry.policy.pods, labels)) {
            let rules = if ingress { &entry.policy.ingress } else { &entry.policy.egress };
            let Some(rules) = rules else { continue };
            let allows = |rule: &PolicyRule| {
                self.names(rule, peer, &policy.namespace) && self.opens(rule, destination, port)
            };
            if let Some(rule) = rules.iter().position(allows) {
                return Judgement::Allowed { policy: policy.clone(), rule };
            }
            policies.push(policy.clone());
        }
        if policies.is_empty() { Judgement::NotIsolated } else { Judgement::Denied { policies } }
    }

    /// Whether a rule is for that peer.
    fn names(&self, rule: &PolicyRule, peer: Net, namespace: &str) -> bool {
        let owner = self.pods.owner(peer);
        rule.peers.is_empty()
            || rule.peers.iter().any(|entry| match Who::new(entry, namespace) {
                Who::Block { cidr, except } => {
                    cidr.contains(peer) && !except.iter().any(|hole| hole.contains(peer))
                }
                who => owner.is_some_and(|number| self.pods.is(number, peer, &who)),
            })
    }

    /// Whether a rule is for that port of the destination.
    fn opens(
        &self,
        rule: &PolicyRule,
        destination: Option<u32>,
        port: Option<(Protocol, u16)>,
    ) -> bool {
        if rule.ports.is_empty() {
            return true;
        }
        let Some((protocol, port)) = port else { return false };
        rule.ports.iter().filter(|entry| entry.protocol == protocol).any(|entry| {
            match &entry.ports {
                PolicyPortRange::All => true,
                PolicyPortRange::Numbers(first, last) => (*first..=*last).contains(&port),
                PolicyPortRange::Name(name) => destination.is_some_and(|number| {
                    self.pods.ports_named(number, protocol, name).any(|named| named == port)
                }),
            }
        })
    }
}
