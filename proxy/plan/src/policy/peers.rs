//! Whom rules name: each peer under a number, and which peers may be a given pod.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use ipnet::{IpNet, Ipv6Net};
use sluice_model::{ClusterPolicyPeer, LabelSelector, NamespacedPods, PolicyPeer, Protocol};

use super::classes::Element;
use super::net::Net;
use super::nodes::Nodes;
use super::pods::Pods;
use super::selector::{ByLabel, Labels, needed, text};
use crate::ids::Ids;

/// A peer of a rule, but for ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Who {
    /// Pods by label.
    Pods {
        /// The namespace, where the peer has no selector for namespaces.
        namespace: Option<String>,
        namespaces: LabelSelector,
        pods: LabelSelector,
    },
    /// Addresses.
    Block { cidr: Net, except: Vec<Net> },
    /// Addresses of nodes by label.
    Nodes(LabelSelector),
    /// The node that is planned for. No rule names it; every pod of the node may ask it.
    OwnNode,
}

impl Who {
    /// A peer of a policy in that namespace.
    pub(super) fn new(peer: &PolicyPeer, policy_namespace: &str) -> Self {
        match peer {
            PolicyPeer::Pods { namespaces, pods } => Self::Pods {
                namespace: namespaces.is_none().then(|| policy_namespace.to_owned()),
                namespaces: namespaces.clone().unwrap_or_default(),
                pods: pods.clone().unwrap_or_default(),
            },
            PolicyPeer::Block { cidr, except } => Self::block(*cidr, except),
        }
    }

    /// A peer of a cluster-wide policy; one for each of several networks.
    pub(super) fn of_cluster(peer: &ClusterPolicyPeer) -> Vec<Self> {
        match peer {
            ClusterPolicyPeer::Pods(NamespacedPods { namespaces, pods }) => {
                let (namespaces, pods) = (namespaces.clone(), pods.clone());
                vec![Self::Pods { namespace: None, namespaces, pods }]
            }
            ClusterPolicyPeer::Nodes(selector) => vec![Self::Nodes(selector.clone())],
            ClusterPolicyPeer::Networks(list) => {
                list.iter().map(|cidr| Self::block(*cidr, &[])).collect()
            }
        }
    }

    fn block(cidr: IpNet, except: &[IpNet]) -> Self {
        let mut except: Vec<Net> = except.iter().map(|net| Net::from(*net)).collect();
        // Here, IPv4 addresses are among those of IPv6; to a policy they are not.
        let mapped = Net::from(mapped());
        if cidr.addr().is_ipv6() && Net::from(cidr).contains(mapped) {
            except.push(mapped);
        }
        except.sort_unstable();
        except.dedup();
        Self::Block { cidr: Net::from(cidr), except }
    }

    /// Every pod.
    pub(super) fn any_pod() -> Self {
        let (namespaces, pods) = (LabelSelector::default(), LabelSelector::default());
        Self::Pods { namespace: None, namespaces, pods }
    }
}

/// `::ffff:0:0/96`, where IPv4 addresses are.
fn mapped() -> IpNet {
    let start = std::net::Ipv6Addr::from_bits(0xffff_0000_0000);
    IpNet::V6(Ipv6Net::new_assert(start, 96))
}

/// A peer. With the name of a port, it tells the pods that have one apart by its number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Peer {
    pub(super) who: Who,
    pub(super) port: Option<(Protocol, String)>,
}

impl Peer {
    /// The prefix whose addresses are the peer by themselves, whoever has them, and its holes.
    pub(super) fn block(&self) -> Option<(Net, &[Net])> {
        match (&self.who, &self.port) {
            (Who::Block { cidr, except }, None) => Some((*cidr, except)),
            _ => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Pods { namespace: Some(namespace), pods, .. } => {
                write!(f, "pods {{{}}} of {namespace}", text(pods))?;
            }
            Who::Pods { namespaces, pods, .. } => {
                write!(f, "pods {{{}}} of namespaces {{{}}}", text(pods), text(namespaces))?;
            }
            Who::Nodes(selector) => write!(f, "nodes {{{}}}", text(selector))?,
            Who::OwnNode => f.write_str("this node")?,
            Who::Block { cidr, except } => {
                write!(f, "{cidr}")?;
                let holes: Vec<String> = except.iter().map(ToString::to_string).collect();
                if !holes.is_empty() {
                    write!(f, " except {}", holes.join(", "))?;
                }
            }
        }
        match &self.port {
            Some((protocol, name)) => write!(f, " with {name}/{protocol}"),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Index {
    by_label: ByLabel,
    rest: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
struct Entry {
    peer: Peer,
    refs: u32,
}

/// The peers of the policies in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    ids: Ids,
    by_content: HashMap<Peer, u32>,
    entries: HashMap<u32, Entry>,
    /// Those without a selector for namespaces, by their own.
    own: HashMap<String, Index>,
    wide: Index,
    named_blocks: BTreeSet<u32>,
    /// Those that are nodes.
    of_nodes: BTreeSet<u32>,
}

impl Peers {
    /// Counts one more who refers to the peer; its number, and whether it is new.
    pub(super) fn retain(&mut self, peer: Peer) -> (u32, bool) {
        if let Some(number) = self.by_content.get(&peer).copied() {
            if let Some(entry) = self.entries.get_mut(&number) {
                entry.refs += 1;
            }
            return (number, false);
        }
        let entries = &self.entries;
        let number = self.ids.allocate(|n| entries.contains_key(&n));
        self.enlist(number, &peer, true);
        self.by_content.insert(peer.clone(), number);
        self.entries.insert(number, Entry { peer, refs: 1 });
        (number, true)
    }

    /// Counts one less; the peer, if that was the last.
    pub(super) fn release(&mut self, number: u32) -> Option<Peer> {
        let entry = self.entries.get_mut(&number)?;
        entry.refs -= 1;
        if entry.refs > 0 {
            return None;
        }
        let Entry { peer, .. } = self.entries.remove(&number)?;
        self.by_content.remove(&peer);
        self.enlist(number, &peer, false);
        Some(peer)
    }

    pub(super) fn get(&self, number: u32) -> Option<&Peer> {
        self.entries.get(&number).map(|entry| &entry.peer)
    }

    /// Enters a peer where [`Peers::elements`] looks for it, or takes it out.
    fn enlist(&mut self, number: u32, peer: &Peer, add: bool) {
        let set = |numbers: &mut BTreeSet<u32>| {
            if add {
                numbers.insert(number)
            } else {
                numbers.remove(&number)
            };
        };
        let Who::Pods { namespace, pods, .. } = &peer.who else {
            match &peer.who {
                Who::Nodes(_) => set(&mut self.of_nodes),
                _ if peer.port.is_some() => set(&mut self.named_blocks),
                _ => {}
            }
            return;
        };
        let index = match namespace {
            Some(namespace) => self.own.entry(namespace.clone()).or_default(),
            None => &mut self.wide,
        };
        match needed(pods) {
            Some((key, values)) => {
                for value in values {
                    if add {
                        index.by_label.insert(key, value, number);
                    } else {
                        index.by_label.remove(key, value, number);
                    }
                }
            }
            None => set(&mut index.rest),
        }
        if index.rest.is_empty()
            && index.by_label.is_empty()
            && let Some(namespace) = namespace
        {
            self.own.remove(namespace);
        }
    }

    fn candidates(&self, namespace: &str, labels: &Labels) -> BTreeSet<u32> {
        let indexes = self.own.get(namespace).into_iter().chain([&self.wide]);
        let found = indexes.flat_map(|index| {
            let labelled = labels.iter().flat_map(|(key, value)| index.by_label.get(key, value));
            labelled.chain(index.rest.iter().copied())
        });
        found.chain(self.named_blocks.iter().copied()).collect()
    }

    /// What the rules in force tell of the node at an address.
    pub(super) fn node_elements(&self, nodes: &Nodes, net: Net, found: &mut Vec<Element>) {
        if !nodes.has(net) {
            return;
        }
        for number in &self.of_nodes {
            if let Some(Entry { peer: Peer { who: Who::Nodes(selector), port: None }, .. }) =
                self.entries.get(number)
                && nodes.is(net, selector)
            {
                found.push(Element { peer: *number, port: 0 });
            }
        }
    }

    /// What the rules in force tell of the pod at an address by who it is; not by its address alone.
    pub(super) fn elements(&self, pods: &Pods, net: Net, found: &mut Vec<Element>) {
        let Some(number) = pods.owner(net) else { return };
        let Some((name, labels)) = pods.described(number) else { return };
        for candidate in self.candidates(&name.namespace, labels) {
            let Some(Entry { peer, .. }) = self.entries.get(&candidate) else { continue };
            if !pods.is(number, net, &peer.who) {
                continue;
            }
            match &peer.port {
                None => found.push(Element { peer: candidate, port: 0 }),
                Some((protocol, name)) => {
                    let ports = pods.ports_named(number, *protocol, name);
                    found.extend(ports.map(|port| Element { peer: candidate, port }));
                }
            }
        }
    }
}
