//! Pods and namespaces: who is at an address, and which pods a selector selects.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use sluice_model::{ContainerPort, LabelSelector, Namespace, ObjectName, Pod, PodPhase, Protocol};

use super::net::Net;
use super::peers::{Peer, Who};
use super::selector::{ByLabel, Labels, matches, needed};
use crate::ids::Ids;

/// The label that every namespace has, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A pod of this node, as its network was made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalPod {
    /// Interface index of its host-side veth.
    pub ifindex: u32,
    /// Those of its other attachments: of a sandbox that is about to go, of further networks.
    pub others: BTreeSet<u32>,
    /// Its addresses, which are known before the Pod object has them.
    pub addrs: Vec<IpAddr>,
}

/// What the Pod object says.
#[derive(Clone, Debug)]
struct Known {
    labels: Labels,
    ports: Vec<ContainerPort>,
    addrs: Vec<IpAddr>,
    host_network: bool,
    /// Whether its containers run or may yet: else its addresses are not its own any more.
    alive: bool,
    deleting: bool,
    created: i64,
}

#[derive(Clone, Debug)]
struct State {
    name: ObjectName,
    known: Option<Known>,
    local: Option<LocalPod>,
    /// What its addresses were entered as.
    nets: Vec<Net>,
}

#[derive(Clone, Debug)]
struct NamespaceState {
    labels: Labels,
    /// Whether there is a Namespace object; else it is there for the pods in it.
    object: bool,
}

/// All pods, each under a number.
#[derive(Clone, Debug, Default)]
pub(super) struct Pods {
    ids: Ids,
    by_name: BTreeMap<ObjectName, u32>,
    states: HashMap<u32, State>,
    by_label: ByLabel,
    /// The pods that have an address, more than one where an old one has not been heard to be gone.
    at: BTreeMap<Net, Vec<u32>>,
    namespaces: BTreeMap<String, NamespaceState>,
}

fn with_name(name: &str, mut labels: Labels) -> Labels {
    labels.insert(NAMESPACE_NAME.to_owned(), name.to_owned());
    labels
}

impl Pods {
    /// States what the Pod object is now; returns the addresses that this concerns.
    pub(super) fn set_known(&mut self, name: &ObjectName, pod: Option<&Pod>) -> Vec<Net> {
        let known = pod.map(|pod| Known {
            labels: pod.meta.labels.clone(),
            ports: pod.ports.clone(),
            addrs: pod.addrs.clone(),
            host_network: pod.host_network,
            alive: !matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed),
            deleting: pod.meta.deleting,
            created: pod.meta.created,
        });
        self.set(name, |state| state.known = known)
    }

    /// States that the pod is on this node, or no more; returns the addresses that this concerns.
    pub(super) fn set_local(&mut self, name: &ObjectName, local: Option<LocalPod>) -> Vec<Net> {
        self.set(name, |state| state.local = local)
    }

    fn set(&mut self, name: &ObjectName, change: impl FnOnce(&mut State)) -> Vec<Net> {
        let number = self.by_name.get(name).copied();
        let mut state = number.and_then(|number| self.take(number)).unwrap_or_else(|| State {
            name: name.clone(),
            known: None,
            local: None,
            nets: Vec::new(),
        });
        let mut touched = std::mem::take(&mut state.nets);
        change(&mut state);
        if state.known.is_none() && state.local.is_none() {
            self.by_name.remove(name);
            self.forget_namespace(&name.namespace);
            return touched;
        }
        state.nets = addrs(&state).map(Net::host).collect();
        state.nets.sort_unstable();
        state.nets.dedup();
        touched.extend(&state.nets);
        let states = &self.states;
        let number = number.unwrap_or_else(|| self.ids.allocate(|n| states.contains_key(&n)));
        for net in &state.nets {
            self.at.entry(*net).or_default().push(number);
        }
        for (key, value) in state.known.iter().flat_map(|known| &known.labels) {
            self.by_label.insert(key, value, number);
        }
        if !self.namespaces.contains_key(&name.namespace) {
            let labels = with_name(&name.namespace, Labels::new());
            let namespace = NamespaceState { labels, object: false };
            self.namespaces.insert(name.namespace.clone(), namespace);
        }
        self.by_name.insert(name.clone(), number);
        self.states.insert(number, state);
        touched
    }

    /// Takes a pod out of everything but its name.
    fn take(&mut self, number: u32) -> Option<State> {
        let state = self.states.remove(&number)?;
        for net in &state.nets {
            if let Some(there) = self.at.get_mut(net) {
                there.retain(|other| *other != number);
                if there.is_empty() {
                    self.at.remove(net);
                }
            }
        }
        for (key, value) in state.known.iter().flat_map(|known| &known.labels) {
            self.by_label.remove(key, value, number);
        }
        Some(state)
    }

    /// States what the Namespace object is now; returns the addresses that this concerns.
    pub(super) fn set_namespace(&mut self, name: &str, object: Option<&Namespace>) -> Vec<Net> {
        let labels = object.map(|object| object.meta.labels.clone()).unwrap_or_default();
        let labels = with_name(name, labels);
        let state = NamespaceState { labels, object: object.is_some() };
        let old = self.namespaces.insert(name.to_owned(), state);
        let same = old.is_some_and(|old| self.namespaces[name].labels == old.labels);
        self.forget_namespace(name);
        if same {
            return Vec::new();
        }
        let pods: Vec<u32> = self.in_namespace(name).collect();
        pods.iter().flat_map(|number| self.nets(*number)).collect()
    }

    /// Forgets a namespace of which nothing is left.
    fn forget_namespace(&mut self, name: &str) {
        let object = self.namespaces.get(name).is_some_and(|namespace| namespace.object);
        if !object && self.in_namespace(name).next().is_none() {
            self.namespaces.remove(name);
        }
    }

    fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.by_name
            .range(ObjectName::new(namespace, "")..)
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, number)| *number)
    }

    pub(super) fn namespace_matches(&self, selector: &LabelSelector, name: &str) -> bool {
        self.namespaces.get(name).is_some_and(|namespace| matches(selector, &namespace.labels))
    }

    /// The addresses of a pod.
    pub(super) fn nets(&self, number: u32) -> impl Iterator<Item = Net> + use<'_> {
        self.states.get(&number).into_iter().flat_map(|state| state.nets.iter().copied())
    }

    /// The pod that has an address: the one that got it on this node, one that is not going, the
    /// younger one.
    pub(super) fn owner(&self, net: Net) -> Option<u32> {
        let is = |addr: &IpAddr| Net::host(*addr) == net;
        let rank = |number: &u32| {
            let state = self.states.get(number)?;
            let known = state.known.as_ref();
            Some((
                !state.local.as_ref().is_some_and(|local| local.addrs.iter().any(is)),
                known.is_some_and(|known| known.deleting),
                Reverse(known.map(|known| known.created)),
                &state.name,
            ))
        };
        self.at.get(&net)?.iter().copied().min_by_key(rank)
    }

    /// The pods with an address in the prefix.
    fn inside(&self, net: Net) -> impl Iterator<Item = u32> + use<'_> {
        self.at.range(net.span()).flat_map(|(_, numbers)| numbers.iter().copied())
    }

    /// Name and labels of a pod whose object is known.
    pub(super) fn described(&self, number: u32) -> Option<(&ObjectName, &Labels)> {
        let state = self.states.get(&number)?;
        Some((&state.name, &state.known.as_ref()?.labels))
    }

    /// The name of a pod.
    pub(super) fn name(&self, number: u32) -> Option<&ObjectName> {
        Some(&self.states.get(&number)?.name)
    }

    /// The labels of a pod whose object is known.
    pub(super) fn labels(&self, name: &ObjectName) -> Option<&Labels> {
        Some(self.described(*self.by_name.get(name)?)?.1)
    }

    /// The pods of this node, in one namespace or all.
    pub(super) fn local<'a>(
        &'a self,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a ObjectName> + 'a {
        let from = ObjectName::new(namespace.unwrap_or_default(), "");
        let there = self.by_name.range(from..).take_while(move |(name, _)| {
            namespace.is_none_or(|namespace| name.namespace == namespace)
        });
        there
            .filter(|(_, number)| self.states.get(number).is_some_and(|s| s.local.is_some()))
            .map(|(name, _)| name)
    }

    /// The interfaces of a pod of this node, and whether its object is known and says that it has a
    /// network of its own.
    pub(super) fn subject(&self, name: &ObjectName) -> Option<(BTreeSet<u32>, Subject)> {
        let state = self.states.get(self.by_name.get(name)?)?;
        let subject = match &state.known {
            None => Subject::Unknown,
            Some(known) if known.host_network => Subject::HostNetwork,
            Some(_) => Subject::Known,
        };
        let local = state.local.as_ref()?;
        Some((local.others.iter().copied().chain([local.ifindex]).collect(), subject))
    }

    /// Whether policies can be for the pod, wherever it is.
    pub(super) fn has_own_network(&self, number: u32) -> bool {
        let known = self.states.get(&number).and_then(|state| state.known.as_ref());
        known.is_some_and(|known| !known.host_network)
    }

    /// The numbers that a pod has for a port's name.
    pub(super) fn ports_named<'a>(
        &'a self,
        number: u32,
        protocol: Protocol,
        name: &'a str,
    ) -> impl Iterator<Item = u16> + 'a {
        let known = self.states.get(&number).and_then(|state| state.known.as_ref());
        let ports = known.into_iter().flat_map(|known| &known.ports);
        ports.filter(move |port| port.protocol == protocol && port.name == name).map(|p| p.port)
    }

    /// The number of a pod.
    pub(super) fn number(&self, name: &ObjectName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Whether a peer, but for its port, is the pod at that address.
    pub(super) fn is(&self, number: u32, net: Net, who: &Who) -> bool {
        let Some((name, labels)) = self.described(number) else { return false };
        match who {
            Who::Pods { namespace, namespaces, pods } => {
                self.has_own_network(number)
                    && namespace.as_ref().is_none_or(|namespace| *namespace == name.namespace)
                    && matches(pods, labels)
                    && self.namespace_matches(namespaces, &name.namespace)
            }
            Who::OwnNode | Who::Nodes(_) => false,
            Who::Block { cidr, except } => {
                cidr.contains(net) && !except.iter().any(|hole| hole.contains(net))
            }
        }
    }

    /// The addresses of pods that a peer may be; some may be of others.
    pub(super) fn candidates(&self, peer: &Peer) -> BTreeSet<Net> {
        let numbers: Vec<u32> = match &peer.who {
            // These are no pods.
            Who::OwnNode | Who::Nodes(_) => Vec::new(),
            Who::Block { cidr, .. } => self.inside(*cidr).collect(),
            Who::Pods { namespace, namespaces, pods } => match needed(pods) {
                Some((key, values)) => {
                    values.iter().flat_map(|value| self.by_label.get(key, value)).collect()
                }
                None => {
                    let names = self.namespaces.keys();
                    let wanted = names.filter(|name| match namespace {
                        Some(namespace) => namespace == *name,
                        None => self.namespace_matches(namespaces, name),
                    });
                    wanted.flat_map(|name| self.in_namespace(name)).collect()
                }
            },
        };
        numbers.into_iter().flat_map(|number| self.nets(number)).collect()
    }
}

/// The addresses that a pod has as a peer.
fn addrs(state: &State) -> impl Iterator<Item = IpAddr> + use<'_> {
    let known = state.known.as_ref().filter(|known| known.alive && !known.host_network);
    let host = state.known.as_ref().is_some_and(|known| known.host_network);
    let local = state.local.as_ref().filter(|_| !host);
    let local = local.into_iter().flat_map(|local| &local.addrs);
    known.into_iter().flat_map(|known| &known.addrs).chain(local).copied()
}

/// What is known of a pod of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    /// Not what it is: no labels.
    Unknown,
    /// That it has the node's network; policies are not for it.
    HostNetwork,
    /// What it is.
    Known,
}
