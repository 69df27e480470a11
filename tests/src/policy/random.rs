//! Worlds and policies drawn at random, the same in every run, with more overlaps than real ones have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPeer, ClusterPolicyPort, ClusterPolicyRule, ContainerPort,
    LabelOperator, LabelRequirement, LabelSelector, Meta, Namespace, NamespacedPods, NetworkPolicy,
    ObjectName, Pod, PodPhase, PolicyAction, PolicyFault, PolicyPeer, PolicyPort, PolicyPortRange,
    PolicyRule, PolicyTier, Protocol,
};

use super::cluster::{PORTS, World};
use super::oracle::METADATA_NAME;
use super::table::PROTOCOLS;
use crate::packet::Random;

const KEYS: [&str; 3] = ["pod", "tier", "ns"];
const VALUES: [&str; 4] = ["a", "b", "x", "y"];
const PORT_NAMES: [&str; 3] = ["web", "alt", "dns"];

/// Draws from a seed.
#[derive(Debug)]
pub struct Draw(Random);

impl Draw {
    /// Seeds that are neighbours lead to draws that have nothing in common.
    pub fn new(seed: u64) -> Self {
        // The finalizer of SplitMix64.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(Random::new(mixed ^ (mixed >> 31)))
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.0.number() >> 16) as usize % limit
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of a list that is not empty.
    pub fn one<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn many<T>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| item(self)).collect()
    }
}

/// A world: two nodes, one to three namespaces, three to seven pods, some with one family alone, some of the host
/// network, with port names that mean other numbers in other pods.
pub fn world(draw: &mut Draw) -> World {
    let mut world = World { pods: Vec::new(), namespaces: Vec::new(), ..World::standard() };
    for name in &["x", "y", "z"][..=draw.below(3)] {
        let mut labels = labels(draw);
        // Some sources have the label that the API server sets, some leave it out.
        if draw.chance(50) {
            labels.insert(METADATA_NAME.to_owned(), (*name).to_owned());
        }
        let meta = Meta { name: ObjectName::new("", *name), labels, ..Meta::default() };
        world.namespaces.push(Namespace { meta });
    }
    for index in 0..3 + draw.below(5) {
        let on = draw.below(2);
        let host_network = draw.chance(15);
        let mut addrs: Vec<IpAddr> = if host_network {
            world.nodes[on].addrs.iter().map(|entry| entry.addr).collect()
        } else {
            let (number, host) = (on + 1, index + 2);
            vec![[10, 244, number as u8, host as u8].into(), v6(number as u16, host as u16)]
        };
        if !host_network && draw.chance(20) {
            addrs.remove(draw.below(2));
        }
        let namespace = draw.one(&world.namespaces).meta.name.name.clone();
        world.pods.push(Pod {
            meta: Meta {
                name: ObjectName::new(namespace, format!("pod-{index}")),
                labels: labels(draw),
                ..Meta::default()
            },
            node: Some(world.nodes[on].meta.name.name.clone()),
            host_network,
            phase: PodPhase::Running,
            ready: true,
            addrs,
            ports: named_ports(draw),
            ..Pod::default()
        });
    }
    world
}

fn v6(node: u16, host: u16) -> IpAddr {
    [0xfd00, 0x244, node, 0, 0, 0, 0, host].into()
}

/// Names are unique in a container; now and then another container of the pod has one of them once more.
fn named_ports(draw: &mut Draw) -> Vec<ContainerPort> {
    let mut ports = Vec::new();
    for name in PORT_NAMES {
        if draw.chance(60) {
            let protocol = protocol(draw);
            ports.push(ContainerPort { name: name.to_owned(), protocol, port: *draw.one(&PORTS) });
        }
    }
    if !ports.is_empty() && draw.chance(15) {
        let again = draw.one(&ports).clone();
        ports.push(ContainerPort { port: *draw.one(&PORTS), ..again });
    }
    ports
}

fn protocol(draw: &mut Draw) -> Protocol {
    if draw.chance(60) { Protocol::Tcp } else { *draw.one(&PROTOCOLS) }
}

fn labels(draw: &mut Draw) -> BTreeMap<String, String> {
    let pair = |draw: &mut Draw| ((*draw.one(&KEYS)).to_owned(), (*draw.one(&VALUES)).to_owned());
    draw.many(3, pair).into_iter().collect()
}

/// Up to `most` policies over a world, which select, name and contain what it has. About one in twenty has a fault.
pub fn policies(draw: &mut Draw, world: &World, most: usize) -> Vec<NetworkPolicy> {
    let count = 1 + draw.below(most);
    (0..count)
        .map(|index| {
            let policy = policy(draw, world, index);
            if !draw.chance(5) {
                return policy;
            }
            let fault = PolicyFault { field: "spec".to_owned(), message: "drawn".to_owned() };
            let (ingress, egress) = (Some(Vec::new()), Some(Vec::new()));
            NetworkPolicy { ingress, egress, faults: vec![fault], ..policy }
        })
        .collect()
}

/// Like [`policies`], none with a fault: [`super::yaml::write`] can write them.
pub fn sound_policies(draw: &mut Draw, world: &World, most: usize) -> Vec<NetworkPolicy> {
    let count = 1 + draw.below(most);
    (0..count).map(|index| policy(draw, world, index)).collect()
}

/// Changes one thing: a policy, the labels or ports of a pod, the labels of a namespace, or whether the last pod is there.
/// Pods keep their places. `gone` holds a pod that is to come back.
pub fn change(
    draw: &mut Draw,
    world: &mut World,
    policies: &mut Vec<NetworkPolicy>,
    gone: &mut Option<Pod>,
) {
    let one = |draw: &mut Draw, count: usize| draw.below(count.max(1));
    match draw.below(8) {
        0 | 1 => {
            // Names are not taken again while they are in use.
            let taken: Vec<&str> = policies.iter().map(|policy| &*policy.meta.name.name).collect();
            let free = |index: &usize| !taken.contains(&format!("policy-{index}").as_str());
            let index = (0..).find(free).unwrap_or_default();
            policies.push(policy(draw, world, index));
        }
        2 if !policies.is_empty() => {
            policies.remove(one(draw, policies.len()));
        }
        3 if !policies.is_empty() => {
            let place = one(draw, policies.len());
            let name = policies[place].meta.name.clone();
            let mut other = policy(draw, world, place);
            other.meta.name = name;
            policies[place] = other;
        }
        4 => {
            let place = one(draw, world.pods.len());
            world.pods[place].meta.labels = labels(draw);
        }
        5 => {
            let place = one(draw, world.pods.len());
            world.pods[place].ports = named_ports(draw);
        }
        6 => match gone.take() {
            Some(pod) => world.pods.push(pod),
            None => *gone = world.pods.pop(),
        },
        _ => {
            let place = one(draw, world.namespaces.len());
            world.namespaces[place].meta.labels = labels(draw);
        }
    }
}

fn policy(draw: &mut Draw, world: &World, index: usize) -> NetworkPolicy {
    let namespace = draw.one(&world.namespaces).meta.name.name.clone();
    let types = draw.below(4);
    let rules = |draw: &mut Draw| draw.many(3, |draw| rule(draw, world));
    NetworkPolicy {
        meta: Meta {
            name: ObjectName::new(namespace, format!("policy-{index}")),
            ..Meta::default()
        },
        pods: selector(draw),
        // Both types in half of them.
        ingress: (types != 0).then(|| rules(draw)),
        egress: (types != 1).then(|| rules(draw)),
        faults: Vec::new(),
    }
}

fn rule(draw: &mut Draw, world: &World) -> PolicyRule {
    PolicyRule {
        peers: draw.many(3, |draw| peer(draw, world)),
        ports: draw.many(2, |draw| PolicyPort { protocol: protocol(draw), ports: range(draw) }),
    }
}

fn range(draw: &mut Draw) -> PolicyPortRange {
    match draw.below(10) {
        0 => PolicyPortRange::All,
        1..=4 => PolicyPortRange::Name((*draw.one(&PORT_NAMES)).to_owned()),
        5..=6 => {
            let first = PORTS[0] - 2 + draw.below(4) as u16;
            PolicyPortRange::Numbers(first, first + draw.below(4) as u16)
        }
        _ => {
            let port = *draw.one(&PORTS);
            PolicyPortRange::Numbers(port, port)
        }
    }
}

fn peer(draw: &mut Draw, world: &World) -> PolicyPeer {
    if draw.chance(35) {
        return block(draw, world);
    }
    match draw.below(3) {
        0 => PolicyPeer::Pods { namespaces: None, pods: Some(selector(draw)) },
        1 => PolicyPeer::Pods { namespaces: Some(namespaces(draw, world)), pods: None },
        _ => {
            let namespaces = Some(namespaces(draw, world));
            PolicyPeer::Pods { namespaces, pods: Some(selector(draw)) }
        }
    }
}

fn namespaces(draw: &mut Draw, world: &World) -> LabelSelector {
    if draw.chance(60) {
        return selector(draw);
    }
    let name = draw.one(&world.namespaces).meta.name.name.clone();
    let values = [name.clone()].into();
    let operator =
        if draw.chance(50) { LabelOperator::In(values) } else { LabelOperator::NotIn(values) };
    let key = METADATA_NAME.to_owned();
    if draw.chance(50) {
        LabelSelector { labels: [(key, name)].into(), expressions: Vec::new() }
    } else {
        let expressions = vec![LabelRequirement { key, operator }];
        LabelSelector { labels: BTreeMap::new(), expressions }
    }
}

fn selector(draw: &mut Draw) -> LabelSelector {
    if draw.chance(30) {
        return LabelSelector::default();
    }
    let pair = |draw: &mut Draw| ((*draw.one(&KEYS)).to_owned(), (*draw.one(&VALUES)).to_owned());
    let requirement = |draw: &mut Draw| {
        let values = (0..=draw.below(2)).map(|_| (*draw.one(&VALUES)).to_owned()).collect();
        let operator = match draw.below(4) {
            0 => LabelOperator::In(values),
            1 => LabelOperator::NotIn(values),
            2 => LabelOperator::Exists,
            _ => LabelOperator::DoesNotExist,
        };
        LabelRequirement { key: (*draw.one(&KEYS)).to_owned(), operator }
    };
    if draw.chance(60) {
        LabelSelector { labels: [pair(draw)].into(), expressions: Vec::new() }
    } else {
        let labels = draw.many(1, pair).into_iter().collect();
        LabelSelector { labels, expressions: draw.many(2, requirement) }
    }
}

/// Up to `most` policies of the cluster, with few priorities, so that many are the same. About one rule in thirty is not
/// understood.
pub fn cluster_policies(draw: &mut Draw, world: &World, most: usize) -> Vec<ClusterNetworkPolicy> {
    let count = 1 + draw.below(most);
    (0..count).map(|index| cluster_policy(draw, world, index)).collect()
}

/// Changes one policy of the cluster, adds or removes one, or changes a node's labels.
pub fn change_cluster(draw: &mut Draw, world: &mut World) {
    let place = draw.below(world.cluster_policies.len().max(1));
    match draw.below(5) {
        0 | 1 => {
            let taken: Vec<ObjectName> =
                world.cluster_policies.iter().map(|policy| policy.meta.name.clone()).collect();
            let free = |index: &usize| !taken.contains(&cluster_name(*index));
            let index = (0..).find(free).unwrap_or_default();
            let policy = cluster_policy(draw, world, index);
            world.cluster_policies.push(policy);
        }
        2 if !world.cluster_policies.is_empty() => {
            world.cluster_policies.remove(place);
        }
        3 if !world.cluster_policies.is_empty() => {
            let mut other = cluster_policy(draw, world, place);
            other.meta.name = world.cluster_policies[place].meta.name.clone();
            world.cluster_policies[place] = other;
        }
        _ => {
            let place = draw.below(world.nodes.len());
            let name = world.nodes[place].meta.name.name.clone();
            let mut labels = labels(draw);
            if draw.chance(70) {
                labels.insert(HOSTNAME.to_owned(), name);
            }
            world.nodes[place].meta.labels = labels;
        }
    }
}

/// The label that kubelets give to their nodes.
const HOSTNAME: &str = "kubernetes.io/hostname";

fn cluster_name(index: usize) -> ObjectName {
    ObjectName::new("", format!("cluster-{index}"))
}

fn cluster_policy(draw: &mut Draw, world: &World, index: usize) -> ClusterNetworkPolicy {
    let tier = if draw.chance(60) { PolicyTier::Admin } else { PolicyTier::Baseline };
    let subject = if draw.chance(40) {
        NamespacedPods::default()
    } else {
        NamespacedPods { namespaces: namespaces(draw, world), pods: selector(draw) }
    };
    ClusterNetworkPolicy {
        meta: Meta { name: cluster_name(index), ..Meta::default() },
        tier,
        priority: *draw.one(&[0, 10, 10, 1000]),
        subject,
        ingress: draw.many(4, |draw| cluster_rule(draw, world, true)),
        egress: draw.many(4, |draw| cluster_rule(draw, world, false)),
        faults: Vec::new(),
    }
}

fn cluster_rule(draw: &mut Draw, world: &World, is_ingress: bool) -> ClusterPolicyRule {
    let actions = [PolicyAction::Accept, PolicyAction::Deny, PolicyAction::Pass];
    let first = cluster_peer(draw, world, is_ingress);
    let mut peers = draw.many(2, |draw| cluster_peer(draw, world, is_ingress));
    peers.push(first);
    let of_pods = peers.iter().all(|peer| matches!(peer, ClusterPolicyPeer::Pods(_)));
    ClusterPolicyRule {
        name: String::new(),
        action: *draw.one(&actions),
        peers,
        ports: draw.many(2, |draw| match draw.below(10) {
            // Only pods have names for ports.
            0..=3 if of_pods => ClusterPolicyPort::Name((*draw.one(&PORT_NAMES)).to_owned()),
            0..=6 => {
                let port = *draw.one(&PORTS);
                ClusterPolicyPort::Numbers(protocol(draw), port, port)
            }
            _ => {
                let first = *draw.one(&[1, PORTS[0] - 2, PORTS[0], PORTS[1]]);
                let last = *draw.one(&[PORTS[1] + 1, PORTS[1] + 2, u16::MAX]);
                ClusterPolicyPort::Numbers(protocol(draw), first, last)
            }
        }),
        understood: !draw.chance(3),
    }
}

fn cluster_peer(draw: &mut Draw, world: &World, is_ingress: bool) -> ClusterPolicyPeer {
    match draw.below(10) {
        0..=2 if !is_ingress => {
            let mut networks = draw.many(1, |draw| network(draw, world));
            networks.push(network(draw, world));
            ClusterPolicyPeer::Networks(networks)
        }
        3..=4 if !is_ingress => ClusterPolicyPeer::Nodes(nodes(draw, world)),
        _ if draw.chance(40) => {
            let namespaces = namespaces(draw, world);
            ClusterPolicyPeer::Pods(NamespacedPods { namespaces, ..NamespacedPods::default() })
        }
        _ => {
            let namespaces = namespaces(draw, world);
            ClusterPolicyPeer::Pods(NamespacedPods { namespaces, pods: selector(draw) })
        }
    }
}

fn network(draw: &mut Draw, world: &World) -> IpNet {
    match block(draw, world) {
        PolicyPeer::Block { cidr, .. } => cidr,
        PolicyPeer::Pods { .. } => unreachable!("it is a block"),
    }
}

fn nodes(draw: &mut Draw, world: &World) -> LabelSelector {
    if draw.chance(30) {
        return selector(draw);
    }
    let values = [draw.one(&world.nodes).meta.name.name.clone()].into();
    let operator =
        if draw.chance(50) { LabelOperator::In(values) } else { LabelOperator::NotIn(values) };
    let expressions = vec![LabelRequirement { key: HOSTNAME.to_owned(), operator }];
    LabelSelector { labels: BTreeMap::new(), expressions }
}

/// A block around an address of the world, with excepts that mostly hit others of its addresses.
fn block(draw: &mut Draw, world: &World) -> PolicyPeer {
    let everybody = world.everybody();
    let addrs: Vec<IpAddr> = everybody.iter().flat_map(|who| world.addrs(*who)).collect();
    let center = *draw.one(&addrs);
    let lengths: &[u8] =
        if center.is_ipv4() { &[0, 8, 16, 24, 30, 31, 32] } else { &[0, 8, 32, 48, 64, 127, 128] };
    let cidr = net(center, *draw.one(lengths));
    let inside: Vec<IpAddr> = addrs.iter().copied().filter(|addr| cidr.contains(addr)).collect();
    let except = draw
        .many(2, |draw| net(*draw.one(&inside), *draw.one(lengths)))
        .into_iter()
        .filter(|inner| cidr.contains(inner) && *inner != cidr)
        .collect();
    PolicyPeer::Block { cidr, except }
}

fn net(addr: IpAddr, len: u8) -> IpNet {
    IpNet::new(addr, len).map_or_else(|_| addr.into(), |net| net.trunc())
}
