//! What policies say of a connection, and which rule says so, from the objects alone.

use std::fmt;
use std::net::IpAddr;

use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPort, ClusterPolicyRule, ObjectName, PolicyAction,
    PolicyPortRange, PolicyRule, PolicyTier, Protocol,
};

use super::classes::Element;
use super::net::Net;
use super::peers::Who;
use super::planner::PolicyPlanner;
use super::selector::{Labels, matches};

/// A connection, as one end sees it.
struct Asked {
    /// The other end.
    peer: Net,
    /// Whether the other end began it.
    ingress: bool,
    /// The destination's; `None` for protocols that no rule names.
    port: Option<(Protocol, u16)>,
    /// Whether the other end is the pod's own node.
    own_node: bool,
}

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Party {
    /// Whoever has the address: a pod, another node, somebody outside.
    Addr(IpAddr),
    /// The node that the other end's pod is on: it reaches its pods under every policy, and no NetworkPolicy
    /// keeps these from it.
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

/// A rule of a cluster-wide policy that is for a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterRule {
    /// The policy.
    pub policy: ObjectName,
    /// Its tier.
    pub tier: PolicyTier,
    /// Its priority.
    pub priority: u16,
    /// Index of the rule.
    pub rule: usize,
    /// The rule's name, if it has one.
    pub name: String,
    /// What is done; of a rule that is not understood, [`PolicyAction::Deny`].
    pub action: PolicyAction,
    /// Whether the rule is understood.
    pub understood: bool,
}

impl fmt::Display for ClusterRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, tier, priority, rule, name, action, understood } = self;
        write!(f, "{action} by rule {rule}")?;
        if !name.is_empty() {
            write!(f, " ({name})")?;
        }
        write!(f, " of {policy}, {tier} tier, priority {priority}")?;
        if *understood { Ok(()) } else { f.write_str("; it is not understood, and fails closed") }
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
    /// A rule of a cluster-wide policy accepts or denies it.
    Decided(ClusterRule),
    /// A rule of a cluster-wide policy leaves it to the next tier.
    Passed {
        /// The rule.
        by: ClusterRule,
        /// What comes of it there.
        then: Box<Judgement>,
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
        match self {
            Self::Denied { .. } | Self::NotKnown => false,
            Self::Decided(rule) => rule.action == PolicyAction::Accept,
            Self::Passed { then, .. } => then.allows(),
            Self::NoSubject | Self::NotIsolated | Self::Allowed { .. } | Self::OwnNode => true,
        }
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
            Party::OwnNode(_) if ingress => Judgement::OwnNode,
            Party::OwnNode(addr) | Party::Addr(addr) => {
                let port = protocol.map(|protocol| (protocol, port));
                let own_node = matches!(peer, Party::OwnNode(_));
                let asked = Asked { peer: Net::host(addr), ingress, port, own_node };
                self.judge(subject, &asked)
            }
        };
        Explanation {
            pods: (name(source), name(destination)),
            egress: ask(source, to, false),
            ingress: ask(destination, from, true),
        }
    }

    /// What the policies of the pod at `subject` say of a connection.
    fn judge(&self, subject: Net, asked: &Asked) -> Judgement {
        let Some(number) = self.pods.owner(subject) else { return Judgement::NoSubject };
        let Some((name, labels)) = self.pods.described(number) else {
            let name = self.pods.name(number);
            let open = name.is_none_or(|name| !self.has_policies(&name.namespace));
            return match open {
                _ if asked.own_node => Judgement::OwnNode,
                true => Judgement::NotIsolated,
                false => Judgement::NotKnown,
            };
        };
        let destination = if asked.ingress { Some(number) } else { self.pods.owner(asked.peer) };
        let of_cluster = self.cluster_policies();
        let of_cluster = of_cluster
            .filter(|(_, policy)| self.is_subject(&policy.subject, &name.namespace, labels));
        let mut of_cluster: Vec<_> = of_cluster.collect();
        of_cluster.sort_by_key(|(name, policy)| (policy.tier, policy.priority, *name));
        let tier = |tier| {
            let mut asked_of = of_cluster.iter().filter(|(_, policy)| policy.tier == tier);
            asked_of.find_map(|(_, policy)| self.first_rule(policy, destination, asked))
        };
        let mut passed = Vec::new();
        let decided = match tier(PolicyTier::Admin) {
            Some(rule) if rule.action == PolicyAction::Pass => {
                passed.push(rule);
                None
            }
            decided => decided.map(Judgement::Decided),
        };
        let decided = decided.or_else(|| self.union(&name.namespace, labels, destination, asked));
        let decided = decided.or_else(|| match tier(PolicyTier::Baseline) {
            Some(rule) if rule.action == PolicyAction::Pass => {
                passed.push(rule);
                None
            }
            decided => decided.map(Judgement::Decided),
        });
        let open = if asked.own_node { Judgement::OwnNode } else { Judgement::NotIsolated };
        passed.into_iter().rev().fold(decided.unwrap_or(open), |then, by| {
            let then = Box::new(then);
            Judgement::Passed { by, then }
        })
    }

    /// What the NetworkPolicies of a pod say; `None` where none isolates it.
    fn union(
        &self,
        namespace: &str,
        labels: &Labels,
        destination: Option<u32>,
        asked: &Asked,
    ) -> Option<Judgement> {
        let mut policies = Vec::new();
        let there = self.policies_of(namespace);
        for (name, policy) in there.filter(|(_, policy)| matches(&policy.pods, labels)) {
            let rules = if asked.ingress { &policy.ingress } else { &policy.egress };
            let Some(rules) = rules else { continue };
            if asked.own_node {
                return Some(Judgement::OwnNode);
            }
            let allows = |rule: &PolicyRule| {
                self.names(rule, asked.peer, namespace) && self.opens(rule, destination, asked.port)
            };
            if let Some(rule) = rules.iter().position(allows) {
                return Some(Judgement::Allowed { policy: name.clone(), rule });
            }
            policies.push(name.clone());
        }
        (!policies.is_empty()).then_some(Judgement::Denied { policies })
    }

    /// The first rule of a cluster-wide policy that is for a connection.
    fn first_rule(
        &self,
        policy: &ClusterNetworkPolicy,
        destination: Option<u32>,
        asked: &Asked,
    ) -> Option<ClusterRule> {
        let rules = if asked.ingress { &policy.ingress } else { &policy.egress };
        let is_for = |rule: &ClusterPolicyRule| match (rule.understood, rule.action) {
            (true, _) => self.is_for(rule, destination, asked),
            (false, action) => action != PolicyAction::Accept,
        };
        let rule = rules.iter().position(is_for)?;
        let ClusterPolicyRule { name, action, understood, .. } = &rules[rule];
        Some(ClusterRule {
            policy: policy.meta.name.clone(),
            tier: policy.tier,
            priority: policy.priority,
            rule,
            name: name.clone(),
            action: if *understood { *action } else { PolicyAction::Deny },
            understood: *understood,
        })
    }

    /// Whether a rule of a cluster-wide policy is for a connection.
    fn is_for(&self, rule: &ClusterPolicyRule, destination: Option<u32>, asked: &Asked) -> bool {
        let whos = rule.peers.iter().flat_map(Who::of_cluster);
        let mut whos = whos.filter(|who| self.is(who, asked.peer));
        let is_port = |entry: &ClusterPolicyPort| {
            let Some((protocol, port)) = asked.port else { return false };
            match entry {
                ClusterPolicyPort::Numbers(of, first, last) => {
                    *of == protocol && (*first..=*last).contains(&port)
                }
                ClusterPolicyPort::Name(name) => destination.is_some_and(|number| {
                    self.pods.ports_named(number, protocol, name).any(|named| named == port)
                }),
            }
        };
        whos.next().is_some() && (rule.ports.is_empty() || rule.ports.iter().any(is_port))
    }

    /// Whether a peer of a rule is at that address.
    fn is(&self, who: &Who, peer: Net) -> bool {
        match who {
            Who::Block { cidr, except } => {
                cidr.contains(peer) && !except.iter().any(|hole| hole.contains(peer))
            }
            Who::Nodes(selector) => self.nodes.is(peer, selector),
            Who::Pods { .. } | Who::OwnNode => {
                self.pods.owner(peer).is_some_and(|number| self.pods.is(number, peer, who))
            }
        }
    }

    /// Whether a rule is for that peer.
    fn names(&self, rule: &PolicyRule, peer: Net, namespace: &str) -> bool {
        rule.peers.is_empty()
            || rule.peers.iter().any(|entry| self.is(&Who::new(entry, namespace), peer))
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
