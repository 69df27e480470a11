//! The planner: from changes of objects to operations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_abi::{PolicyKey, PolicySets};
use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPort, ClusterPolicyRule, Namespace, NamespacedPods,
    NetworkPolicy, Node, ObjectName, Pod, PolicyAction, PolicyPort, PolicyPortRange, PolicyRule,
    PolicyTier, Protocol,
};

use super::classes::{Class, Classes, Element};
use super::net::Net;
use super::nodes::Nodes;
use super::peers::{Peer, Peers, Who};
use super::pods::{LocalPod, Pods, Subject};
use super::ports::Ports;
use super::selector::{Labels, matches};
use super::sets::Sets;
use super::tables::{PolicyOp, PolicyTables};
use super::tiers::{Content, Step};

/// Keeps the kernel's policy tables in step with policies, pods and namespaces, incrementally: a
/// change of one object costs work in proportion to the addresses and pods that it concerns.
///
/// Objects are stated one by one; [`PolicyPlanner::plan`] then says what that asks of the kernel. It
/// is not to be called before every source has been heard to its end: a policy that is not known yet
/// isolates nobody. Until then [`PolicyPlanner::protect`] keeps new pods safe.
///
/// The planner assumes that its operations succeed. Where one fails, make a new planner from what the
/// kernel really holds ([`PolicyPlanner::restore`]) and state everything again: it keeps every number
/// and only repairs what differs.
#[derive(Clone, Debug, Default)]
pub struct PolicyPlanner {
    pub(super) pods: Pods,
    pub(super) nodes: Nodes,
    /// Those of the cluster are in no namespace.
    pub(super) policies: BTreeMap<ObjectName, Entry>,
    pub(super) peers: Peers,
    pub(super) classes: Classes,
    pub(super) sets: Sets,
    /// The pods of this node, by name.
    pub(super) subjects: BTreeMap<ObjectName, SubjectState>,
    pub(super) tables: PolicyTables,
    /// What the kernel held at the start, until the first plan.
    pub(super) held: Option<PolicyTables>,
    dirty: Dirty,
    /// Peers that are referred to no more once the pods have their new sets.
    retired: Vec<u32>,
    /// The node's own addresses, and the number of the peer that they are.
    node: BTreeSet<Net>,
    own_node: Option<u32>,
}

/// What has changed since the last plan.
#[derive(Clone, Debug, Default)]
struct Dirty {
    nets: BTreeSet<Net>,
    subjects: BTreeSet<ObjectName>,
    /// Namespaces in which a policy changed.
    namespaces: BTreeSet<String>,
    /// Policies that changed, or that may select other pods now.
    policies: BTreeSet<ObjectName>,
}

/// A policy of a namespace or of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Policy {
    Namespaced(NetworkPolicy),
    Cluster(ClusterNetworkPolicy),
}

/// What is known of a policy.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) policy: Policy,
    /// The pods of this node that it selects.
    subjects: BTreeSet<ObjectName>,
    /// Its rules, while it selects any.
    compiled: Option<Compiled>,
}

/// A port of a rule.
#[derive(Clone, Debug)]
enum Port {
    Resolved(Ports),
    /// The port that the pod itself has by that name.
    Own(Protocol, String),
    /// The same, whatever its protocol.
    OwnAny(String),
}

/// The rules of one direction: a peer's number ([`PolicyKey::ANYBODY`] for all) and a port.
type Rules = Vec<(u32, Port)>;

#[derive(Clone, Debug, Default)]
struct Compiled {
    ingress: Direction,
    egress: Direction,
    /// The peers that these refer to, as often as they do.
    peers: Vec<u32>,
}

/// What a policy says of one direction.
#[derive(Clone, Debug, Default)]
enum Direction {
    /// Nothing: it does not isolate its pods.
    #[default]
    Nothing,
    /// What it allows.
    Allows(Rules),
    /// Of a cluster-wide policy: its tier, its priority, and its rules in their order.
    Ordered(PolicyTier, u16, Vec<(PolicyAction, Rules)>),
}

/// A pod of this node.
#[derive(Clone, Debug, Default)]
pub(super) struct SubjectState {
    interfaces: BTreeSet<u32>,
    pub(super) sets: PolicySets,
    /// The policies that select it.
    selected: BTreeSet<ObjectName>,
}

impl PolicyPlanner {
    /// A planner for a kernel whose tables are empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// A planner for a kernel that holds `tables`: after a restart of the agent, or after an operation
    /// failed.
    ///
    /// All is to be stated anew. The first plan then keeps the numbers of all that still means what it
    /// meant, and writes only what differs. A pod that is not stated by then is forgotten.
    pub fn restore(tables: PolicyTables) -> Self {
        Self { held: Some(tables), ..Self::default() }
    }

    /// States what a policy is now; `None`: it is gone.
    pub fn set_policy(&mut self, name: &ObjectName, policy: Option<&NetworkPolicy>) {
        self.replace_policy(name, policy.cloned().map(Policy::Namespaced));
    }

    /// States what a policy of the cluster is now; `None`: it is gone.
    pub fn set_cluster_policy(&mut self, name: &ObjectName, policy: Option<&ClusterNetworkPolicy>) {
        self.replace_policy(name, policy.cloned().map(Policy::Cluster));
    }

    fn replace_policy(&mut self, name: &ObjectName, policy: Option<Policy>) {
        let old = match policy {
            Some(policy) if self.policies.get(name).is_some_and(|old| old.policy == policy) => {
                return;
            }
            Some(policy) => {
                let subjects = BTreeSet::new();
                self.policies.insert(name.clone(), Entry { policy, subjects, compiled: None })
            }
            None => self.policies.remove(name),
        };
        if let Some(old) = old {
            self.retired.extend(old.compiled.into_iter().flat_map(|compiled| compiled.peers));
            for subject in old.subjects {
                if let Some(state) = self.subjects.get_mut(&subject) {
                    state.selected.remove(name);
                }
                // One that the new form does not select any more is no less concerned.
                self.dirty.subjects.insert(subject);
            }
        }
        self.dirty.namespaces.insert(name.namespace.clone());
        self.dirty.policies.insert(name.clone());
    }

    /// States what a pod is now, wherever it runs; `None`: it is gone.
    pub fn set_pod(&mut self, name: &ObjectName, pod: Option<&Pod>) {
        let nets = self.pods.set_known(name, pod);
        self.dirty.nets.extend(nets);
        if self.pods.subject(name).is_some() {
            self.dirty.subjects.insert(name.clone());
        }
    }

    /// States what a namespace is now; `None`: there is no such object (any more). It is there all the
    /// same while there are pods in it.
    pub fn set_namespace(&mut self, name: &str, namespace: Option<&Namespace>) {
        let nets = self.pods.set_namespace(name, namespace);
        self.dirty.nets.extend(nets);
        // Policies of the cluster select pods by it.
        if self.cluster_policies().next().is_some() {
            self.dirty.subjects.extend(self.pods.local(Some(name)).cloned());
        }
    }

    /// States what a node of the cluster is now; `None`: it is gone.
    pub fn set_cluster_node(&mut self, name: &str, node: Option<&Node>) {
        self.dirty.nets.extend(self.nodes.set(name, node));
    }

    /// States which addresses the node itself has: its pods may always ask it, whatever isolates them.
    /// (That it reaches them is seen by where its packets come from, not by an address.)
    pub fn set_node(&mut self, addrs: impl IntoIterator<Item = IpAddr>) {
        let nets: BTreeSet<Net> = addrs.into_iter().map(Net::host).collect();
        self.dirty.nets.extend(self.node.symmetric_difference(&nets));
        if self.own_node.is_none() && !nets.is_empty() {
            self.own_node = Some(self.peers.retain(Peer { who: Who::OwnNode, port: None }).0);
            self.dirty.subjects.extend(self.pods.local(None).cloned());
        }
        self.node = nets;
    }

    /// States that a pod is on this node, and where; `None`: no more.
    pub fn set_local(&mut self, name: &ObjectName, local: Option<LocalPod>) {
        let nets = self.pods.set_local(name, local);
        self.dirty.nets.extend(nets);
        self.dirty.subjects.insert(name.clone());
    }

    /// What keeps a new pod safe until the first plan: nothing may reach it, and it may reach nothing.
    /// `None` if it has sets from before.
    pub fn protect(&self, ifindex: u32) -> Option<PolicyOp> {
        let tables = self.held.as_ref().unwrap_or(&self.tables);
        let known = tables.sets.contains_key(&ifindex);
        (!known).then_some(PolicyOp::PutSets(ifindex, PolicySets::SHUT))
    }

    /// What the kernel holds after all operations returned so far.
    pub fn tables(&self) -> &PolicyTables {
        self.held.as_ref().unwrap_or(&self.tables)
    }

    /// How many policies select a pod of this node.
    pub fn in_force(&self) -> usize {
        self.policies.values().filter(|entry| entry.compiled.is_some()).count()
    }

    /// A pod's policies: those that select it, if it is of this node.
    pub fn selecting(&self, pod: &ObjectName) -> impl Iterator<Item = &NetworkPolicy> {
        self.selected_by(pod).filter_map(|policy| match policy {
            Policy::Namespaced(policy) => Some(policy),
            Policy::Cluster(_) => None,
        })
    }

    /// The same of those of the cluster, in the order in which they are asked.
    pub fn cluster_selecting(&self, pod: &ObjectName) -> Vec<&ClusterNetworkPolicy> {
        let selecting = self.selected_by(pod).filter_map(|policy| match policy {
            Policy::Cluster(policy) => Some(policy),
            Policy::Namespaced(_) => None,
        });
        let mut selecting: Vec<&ClusterNetworkPolicy> = selecting.collect();
        selecting.sort_by_key(|policy| (policy.tier, policy.priority, &policy.meta.name));
        selecting
    }

    fn selected_by(&self, pod: &ObjectName) -> impl Iterator<Item = &Policy> {
        let selected = self.subjects.get(pod).into_iter().flat_map(|state| &state.selected);
        selected.filter_map(|name| self.policies.get(name)).map(|entry| &entry.policy)
    }

    /// Those of the cluster.
    pub(super) fn cluster_policies(
        &self,
    ) -> impl Iterator<Item = (&ObjectName, &ClusterNetworkPolicy)> {
        let there = self.policies.iter().take_while(|(name, _)| name.namespace.is_empty());
        there.filter_map(|(name, entry)| match &entry.policy {
            Policy::Cluster(policy) => Some((name, policy)),
            Policy::Namespaced(_) => None,
        })
    }

    /// Those of a namespace.
    pub(super) fn policies_of<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a NetworkPolicy)> {
        let there = self.policies.range(ObjectName::new(namespace, "")..);
        let there = there.take_while(move |(name, _)| name.namespace == namespace);
        there.filter_map(|(name, entry)| match &entry.policy {
            Policy::Namespaced(policy) => Some((name, policy)),
            Policy::Cluster(_) => None,
        })
    }

    /// Whether a policy of the cluster is for a pod with these labels.
    pub(super) fn is_subject(
        &self,
        subject: &NamespacedPods,
        namespace: &str,
        labels: &Labels,
    ) -> bool {
        matches(&subject.pods, labels)
            && self.pods.namespace_matches(&subject.namespaces, namespace)
    }

    /// How many pods of this node a policy selects.
    pub fn selected(&self, policy: &ObjectName) -> usize {
        self.policies.get(policy).map_or(0, |entry| entry.subjects.len())
    }

    /// What everything stated since the last plan asks of the kernel, in the order in which it must be
    /// done.
    pub fn plan(&mut self) -> Vec<PolicyOp> {
        match self.held.take() {
            Some(held) => self.resume(held),
            None => self.settle(),
        }
    }

    pub(super) fn settle(&mut self) -> Vec<PolicyOp> {
        let mut ops = Vec::new();
        let dirty = std::mem::take(&mut self.dirty);
        let mut subjects = dirty.subjects;
        for namespace in &dirty.namespaces {
            // A policy of the cluster is in none, and may be for any pod.
            let namespace = Some(namespace.as_str()).filter(|namespace| !namespace.is_empty());
            subjects.extend(self.pods.local(namespace).cloned());
        }
        let mut policies = dirty.policies;
        for subject in &subjects {
            self.select(subject, &mut policies);
        }
        // All identities are told apart that old or new rules tell apart, ...
        let mut nets = dirty.nets;
        for policy in &policies {
            self.enforce(policy, &mut nets);
        }
        self.classify(nets, &mut ops);
        // ... then the pods get their new rules, ...
        self.switch(&subjects, &mut ops);
        // ... then what only old rules told apart becomes one.
        let mut nets = BTreeSet::new();
        for peer in std::mem::take(&mut self.retired) {
            let before: Vec<Net> = self.classes.nets_of_peer(peer).collect();
            if let Some(gone) = self.peers.release(peer) {
                nets.extend(before);
                if let Some((cidr, except)) = gone.block() {
                    nets.extend(self.classes.remove_block(peer, cidr, except));
                }
            }
        }
        self.classify(nets, &mut ops);
        ops
    }

    fn emit(&mut self, op: PolicyOp, ops: &mut Vec<PolicyOp>) {
        self.tables.apply(&op);
        ops.push(op);
    }

    fn put_rules(&mut self, rules: Vec<PolicyOp>, ops: &mut Vec<PolicyOp>) {
        for op in rules {
            self.emit(op, ops);
        }
    }

    fn delete_rules(
        &mut self,
        set: u32,
        identities: std::ops::RangeInclusive<u32>,
        ops: &mut Vec<PolicyOp>,
    ) {
        let keys: Vec<PolicyKey> = self.tables.of(set, identities).map(|(key, _)| key).collect();
        for key in keys {
            self.emit(PolicyOp::DeleteRule(key), ops);
        }
    }

    /// Finds out which policies select a pod of this node; adds those that begin or cease to.
    fn select(&mut self, name: &ObjectName, policies: &mut BTreeSet<ObjectName>) {
        let mut selected = BTreeSet::new();
        let known = matches!(self.pods.subject(name), Some((_, Subject::Known)));
        if let Some(labels) = self.pods.labels(name).filter(|_| known) {
            let wanted = self.policies_of(&name.namespace);
            let wanted = wanted.filter(|(_, policy)| matches(&policy.pods, labels));
            selected.extend(wanted.map(|(policy, _)| policy.clone()));
            let wanted = self.cluster_policies();
            let wanted = wanted
                .filter(|(_, policy)| self.is_subject(&policy.subject, &name.namespace, labels));
            selected.extend(wanted.map(|(policy, _)| policy.clone()));
        }
        let state = self.subjects.entry(name.clone()).or_default();
        let before = std::mem::take(&mut state.selected);
        for policy in selected.symmetric_difference(&before) {
            if let Some(entry) = self.policies.get_mut(policy) {
                if selected.contains(policy) {
                    entry.subjects.insert(name.clone());
                } else {
                    entry.subjects.remove(name);
                }
                policies.insert(policy.clone());
            }
        }
        state.selected = selected;
    }

    /// Brings a policy's rules into force or out of it; adds the prefixes that its peers concern.
    fn enforce(&mut self, name: &ObjectName, nets: &mut BTreeSet<Net>) {
        let Some(entry) = self.policies.get_mut(name) else { return };
        if entry.subjects.is_empty() {
            let old = entry.compiled.take();
            self.retired.extend(old.into_iter().flat_map(|compiled| compiled.peers));
            return;
        }
        if entry.compiled.is_some() {
            return;
        }
        let mut compiled = Compiled::default();
        let mut compiler = Compiler {
            namespace: &name.namespace,
            peers: &mut self.peers,
            used: &mut compiled.peers,
            new: Vec::new(),
        };
        (compiled.ingress, compiled.egress) = match &entry.policy {
            Policy::Namespaced(policy) => {
                let ingress = policy.ingress.as_ref().map(|rules| compiler.ingress(rules));
                let egress = policy.egress.as_ref().map(|rules| compiler.egress(rules));
                let direction = |rules: Option<Rules>| rules.map(Direction::Allows);
                (direction(ingress).unwrap_or_default(), direction(egress).unwrap_or_default())
            }
            Policy::Cluster(policy) => {
                let mut direction = |rules: &[ClusterPolicyRule], is_ingress| {
                    let rules = rules.iter().map(|rule| compiler.ordered(rule, is_ingress));
                    Direction::Ordered(policy.tier, policy.priority, rules.collect())
                };
                (direction(&policy.ingress, true), direction(&policy.egress, false))
            }
        };
        let new = compiler.new;
        entry.compiled = Some(compiled);
        for number in new {
            let Some(peer) = self.peers.get(number) else { continue };
            match peer.block() {
                Some((cidr, except)) => nets.extend(self.classes.add_block(number, cidr, except)),
                None => {
                    if let Who::Nodes(selector) = &peer.who {
                        nets.extend(self.nodes.nets(selector));
                    }
                    nets.extend(self.pods.candidates(peer));
                }
            }
        }
    }

    /// All that the rules in force say of a prefix; `None`: it needs no identity of its own.
    fn class(&self, net: Net) -> Option<Class> {
        let mut elements: Vec<Element> = Vec::new();
        if net.is_host() {
            self.peers.elements(&self.pods, net, &mut elements);
            self.peers.node_elements(&self.nodes, net, &mut elements);
            let own_node = self.own_node.filter(|_| self.node.contains(&net));
            elements.extend(own_node.map(|peer| Element { peer, port: 0 }));
        }
        if elements.is_empty() && !self.classes.is_bound(net) {
            return None;
        }
        self.classes.blocks(net, &mut elements);
        elements.sort_unstable();
        elements.dedup();
        Some(elements.into())
    }

    /// Gives prefixes the identities that they should have.
    fn classify(&mut self, nets: BTreeSet<Net>, ops: &mut Vec<PolicyOp>) {
        let mut changed = Vec::new();
        for net in nets {
            let identity = match self.class(net) {
                None => None,
                Some(class) => {
                    let (number, new) = self.classes.intern(class);
                    if new {
                        let class: Class = self.classes.class(number).into();
                        for set in self.sets.naming(&class) {
                            let rules = self.sets.ops(set, number, &class);
                            self.put_rules(rules, ops);
                        }
                    }
                    Some(number)
                }
            };
            if identity != self.classes.identity(net) {
                changed.push((net, identity));
            } else if identity.is_none() {
                // It may have been a bound.
                self.classes.assign(net, None);
            }
        }
        // An identity that some lose and others get is never without any.
        for (net, identity) in &changed {
            self.classes.join(*net, *identity);
        }
        // The longest first that come, the shortest first that go: no address passes through what a
        // prefix around its own one is.
        let (mut there, mut gone): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|(_, identity)| identity.is_some());
        there.sort_unstable_by_key(|(net, _)| std::cmp::Reverse(net.len()));
        gone.sort_unstable_by_key(|(net, _)| net.len());
        let mut unused = Vec::new();
        for (net, identity) in there.into_iter().chain(gone) {
            let op = match identity {
                Some(identity) => PolicyOp::PutIdentity(net.key(), identity),
                None => PolicyOp::DeleteIdentity(net.key()),
            };
            self.emit(op, ops);
            unused.extend(self.classes.assign(net, identity));
        }
        for (identity, class) in unused {
            for set in self.sets.naming(&class) {
                self.delete_rules(set, identity..=identity, ops);
            }
        }
    }

    /// Gives pods the sets that they should have.
    fn switch(&mut self, subjects: &BTreeSet<ObjectName>, ops: &mut Vec<PolicyOp>) {
        let mut wanted = Vec::new();
        for name in subjects {
            let Some(found) = self.pods.subject(name) else {
                wanted.push((name, None));
                continue;
            };
            let (interfaces, subject) = found;
            let sets = match subject {
                Subject::HostNetwork => PolicySets::default(),
                // Without a policy for pods of its namespace, none can select it.
                Subject::Unknown if self.has_policies(&name.namespace) => PolicySets::SHUT,
                Subject::Unknown => PolicySets::default(),
                Subject::Known => PolicySets {
                    ingress: self.set(name, true, ops),
                    egress: self.set(name, false, ops),
                },
            };
            wanted.push((name, Some((interfaces, sets))));
        }
        let mut released = Vec::new();
        let (mut gone, mut there) = (BTreeSet::new(), BTreeSet::new());
        for (name, wanted) in wanted {
            let Some(state) = self.subjects.get_mut(name) else { continue };
            released.extend([state.sets.ingress, state.sets.egress]);
            let Some((interfaces, sets)) = wanted else {
                gone.extend(std::mem::take(&mut state.interfaces));
                self.subjects.remove(name);
                continue;
            };
            gone.extend(state.interfaces.difference(&interfaces));
            there.extend(&interfaces);
            (state.interfaces, state.sets) = (interfaces.clone(), sets);
            for ifindex in interfaces {
                if self.tables.sets.get(&ifindex) != Some(&sets) {
                    self.emit(PolicyOp::PutSets(ifindex, sets), ops);
                }
            }
        }
        // An interface index may be another pod's by now.
        for ifindex in gone.difference(&there) {
            if self.tables.sets.contains_key(ifindex) {
                self.emit(PolicyOp::DeleteSets(*ifindex), ops);
            }
        }
        for set in released {
            if self.sets.release(set) {
                self.delete_rules(set, 0..=u32::MAX, ops);
            }
        }
    }

    /// Whether any pod of the namespace may be isolated.
    pub(super) fn has_policies(&self, namespace: &str) -> bool {
        self.policies_of(namespace).next().is_some()
            || self.cluster_policies().any(|(_, policy)| {
                self.pods.namespace_matches(&policy.subject.namespaces, namespace)
            })
    }

    /// The set of a pod in one direction, written where it is new.
    fn set(&mut self, name: &ObjectName, ingress: bool, ops: &mut Vec<PolicyOp>) -> u32 {
        let Some(content) = self.content(name, ingress) else { return PolicySets::OPEN };
        let (number, new) = self.sets.retain(content);
        if new {
            let mut identities = BTreeSet::from([PolicyKey::ANYBODY]);
            for peer in self.sets.peers(number) {
                identities.extend(self.classes.of_peer(peer));
            }
            for identity in identities {
                let rules = self.sets.ops(number, identity, self.classes.class(identity));
                self.put_rules(rules, ops);
            }
        }
        number
    }

    /// What a pod's policies say together; `None` where they let everything pass.
    fn content(&self, name: &ObjectName, ingress: bool) -> Option<Content> {
        let pod = self.pods.number(name)?;
        let mut allowed: Option<Vec<(u32, Ports)>> = None;
        let mut tiers = Vec::new();
        for policy in &self.subjects.get(name)?.selected {
            let compiled = self.policies.get(policy).and_then(|entry| entry.compiled.as_ref());
            let Some(compiled) = compiled else { continue };
            match if ingress { &compiled.ingress } else { &compiled.egress } {
                Direction::Nothing => {}
                Direction::Allows(more) => {
                    let rules = allowed.get_or_insert_with(|| {
                        let own_node = self.own_node.filter(|_| !ingress);
                        own_node.map(|peer| (peer, Ports::All)).into_iter().collect()
                    });
                    self.resolve(pod, more, rules);
                }
                // Of two with the same priority, the one whose name sorts first comes first.
                Direction::Ordered(tier, priority, more) => {
                    tiers.push((*tier, *priority, policy, more));
                }
            }
        }
        tiers.sort_by_key(|(tier, priority, policy, _)| (*tier, *priority, *policy));
        let steps = |wanted: PolicyTier| {
            let rules = tiers.iter().filter(|(tier, ..)| *tier == wanted);
            let steps = rules.flat_map(|(.., rules)| *rules).map(|(action, rules)| {
                let mut resolved = Vec::new();
                self.resolve(pod, rules, &mut resolved);
                Step::new(*action, resolved)
            });
            steps.collect()
        };
        Content::new(steps(PolicyTier::Admin), allowed, steps(PolicyTier::Baseline))
    }

    /// Puts numbers in place of the names that ports of the pod itself have.
    fn resolve(&self, pod: u32, rules: &Rules, resolved: &mut Vec<(u32, Ports)>) {
        for (peer, port) in rules {
            let own = |protocol: Protocol, name| {
                let ports = self.pods.ports_named(pod, protocol, name);
                let proto = protocol.number();
                ports.map(move |port| (*peer, Ports::Range(proto, port, port)))
            };
            match port {
                Port::Resolved(ports) => resolved.push((*peer, *ports)),
                Port::Own(protocol, name) => resolved.extend(own(*protocol, name)),
                Port::OwnAny(name) => {
                    let all = PROTOCOLS.into_iter().flat_map(|protocol| own(protocol, name));
                    resolved.extend(all);
                }
            }
        }
    }
}

/// Turns rules into numbers of peers and ports.
struct Compiler<'a> {
    namespace: &'a str,
    peers: &'a mut Peers,
    used: &'a mut Vec<u32>,
    /// The peers that nobody referred to before.
    new: Vec<u32>,
}

impl Compiler<'_> {
    fn peer(&mut self, who: Who, port: Option<(Protocol, String)>) -> u32 {
        let (number, new) = self.peers.retain(Peer { who, port });
        self.used.push(number);
        if new {
            self.new.push(number);
        }
        number
    }

    /// The peers of a rule by number, each once.
    fn peers(&mut self, rule: &PolicyRule, port: Option<&(Protocol, String)>) -> Vec<u32> {
        if rule.peers.is_empty() {
            return match port {
                None => vec![PolicyKey::ANYBODY],
                // Only pods have names for ports.
                Some(port) => vec![self.peer(Who::any_pod(), Some(port.clone()))],
            };
        }
        let whos = rule.peers.iter().map(|peer| Who::new(peer, self.namespace));
        let whos: BTreeSet<Who> = whos.collect();
        whos.into_iter().map(|who| self.peer(who, port.cloned())).collect()
    }

    fn ingress(&mut self, rules: &[PolicyRule]) -> Rules {
        let mut compiled = Vec::new();
        for rule in rules {
            let peers = self.peers(rule, None);
            let ports = ports(rule).into_iter().map(|port| match port {
                Ok(ports) => Port::Resolved(ports),
                Err((protocol, name)) => Port::Own(protocol, name),
            });
            for port in ports {
                compiled.extend(peers.iter().map(|peer| (*peer, port.clone())));
            }
        }
        compiled
    }

    /// A rule of a cluster-wide policy. One that is not understood fails closed, as
    /// [`ClusterPolicyRule::understood`] says.
    fn ordered(&mut self, rule: &ClusterPolicyRule, is_ingress: bool) -> (PolicyAction, Rules) {
        if !rule.understood {
            return match rule.action {
                PolicyAction::Accept => (PolicyAction::Accept, Rules::new()),
                PolicyAction::Deny | PolicyAction::Pass => {
                    let everything = (PolicyKey::ANYBODY, Port::Resolved(Ports::All));
                    (PolicyAction::Deny, vec![everything])
                }
            };
        }
        let whos: BTreeSet<Who> = rule.peers.iter().flat_map(Who::of_cluster).collect();
        let mut compiled = Rules::new();
        let mut plain: Option<Vec<u32>> = None;
        let every = [Ok(Ports::All)].into_iter().filter(|_| rule.ports.is_empty());
        let ports = rule.ports.iter().map(|port| match port {
            ClusterPolicyPort::Numbers(protocol, first, last) => {
                Ok(Ports::Range(protocol.number(), *first, *last))
            }
            ClusterPolicyPort::Name(name) => Err(name),
        });
        for port in every.chain(ports) {
            let port = match port {
                Ok(ports) => Port::Resolved(ports),
                Err(name) if is_ingress => Port::OwnAny(name.clone()),
                Err(name) => {
                    for protocol in PROTOCOLS {
                        let ports = Port::Resolved(Ports::Peers(protocol.number()));
                        for who in &whos {
                            let peer = self.peer(who.clone(), Some((protocol, name.clone())));
                            compiled.push((peer, ports.clone()));
                        }
                    }
                    continue;
                }
            };
            let peers = plain.get_or_insert_with(|| {
                whos.iter().map(|who| self.peer(who.clone(), None)).collect()
            });
            compiled.extend(peers.iter().map(|peer| (*peer, port.clone())));
        }
        (rule.action, compiled)
    }

    fn egress(&mut self, rules: &[PolicyRule]) -> Rules {
        let mut compiled = Vec::new();
        for rule in rules {
            let mut plain: Option<Vec<u32>> = None;
            for port in ports(rule) {
                match port {
                    Ok(ports) => {
                        let peers = plain.get_or_insert_with(|| self.peers(rule, None)).iter();
                        compiled.extend(peers.map(|peer| (*peer, Port::Resolved(ports))));
                    }
                    Err(named) => {
                        let ports = Port::Resolved(Ports::Peers(named.0.number()));
                        let peers = self.peers(rule, Some(&named)).into_iter();
                        compiled.extend(peers.map(|peer| (peer, ports.clone())));
                    }
                }
            }
        }
        compiled
    }
}

/// The protocols that have ports.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The ports of a rule; those by name apart.
fn ports(rule: &PolicyRule) -> Vec<Result<Ports, (Protocol, String)>> {
    if rule.ports.is_empty() {
        return vec![Ok(Ports::All)];
    }
    let port = |PolicyPort { protocol, ports }: &PolicyPort| match ports {
        PolicyPortRange::All => Ok(Ports::Protocol(protocol.number())),
        PolicyPortRange::Numbers(first, last) => Ok(Ports::Range(protocol.number(), *first, *last)),
        PolicyPortRange::Name(name) => Err((*protocol, name.clone())),
    };
    rule.ports.iter().map(port).collect()
}
