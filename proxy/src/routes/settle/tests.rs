use ipnet::IpNet;
use sluice_model::{Meta, Node, NodeAddress, NodeAddressKind, ObjectName};

use super::*;
use crate::routes::{Encapsulation, desired};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn node(name: &str, cidrs: &[&str], addrs: &[&str]) -> Node {
    let address = |text: &&str| NodeAddress { kind: NodeAddressKind::Internal, addr: ip(text) };
    Node {
        meta: Meta { name: ObjectName::new("", name), ..Meta::default() },
        pod_cidrs: cidrs.iter().map(|c| c.parse().expect("a range")).collect(),
        addrs: addrs.iter().map(address).collect(),
        taints: Vec::new(),
    }
}

/// `a` is this node; `b` shares a link with it, `c` does not.
fn cluster() -> [Node; 3] {
    [
        node("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]),
        node("b", &["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.2", "2001:db8::2"]),
        node("c", &["10.244.3.0/24", "fd00:3::/64"], &["198.51.100.3", "2001:db8:51::3"]),
    ]
}

/// Where the addresses of [`cluster`] are for `a`.
fn way(address: &IpAddr) -> Way {
    let on_link: [IpNet; 2] =
        ["192.0.2.0/24", "2001:db8::/64"].map(|range| range.parse().expect("a range"));
    if on_link.iter().any(|range| range.contains(address)) {
        Way::OnLink(2)
    } else {
        Way::Gateway(ip("192.0.2.254"))
    }
}

fn ways(desired: &Desired) -> BTreeMap<IpAddr, Way> {
    desired.hops().map(|hop| (hop, way(&hop))).collect()
}

struct Outcome {
    direct: Vec<String>,
    pods: Vec<String>,
    nodes: Vec<String>,
    skipped: Vec<String>,
}

fn run(nodes: &[Node], encapsulation: Encapsulation) -> Outcome {
    let desired = desired("a", nodes, encapsulation);
    let settled = settle(&desired, &ways(&desired));
    let to = |all: &[Encapsulated]| -> Vec<String> {
        all.iter().map(|to| format!("{} to {}", to.cidr, to.peer)).collect()
    };
    Outcome {
        direct: settled.direct.iter().map(ToString::to_string).collect(),
        pods: to(&settled.pods),
        nodes: to(&settled.nodes),
        skipped: desired.skipped.iter().chain(&settled.skipped).map(ToString::to_string).collect(),
    }
}

/// R5: without encapsulation what is behind a router is skipped.
#[test]
fn nothing_is_encapsulated_by_default() {
    let out = run(&cluster(), Encapsulation::Never);
    assert_eq!(
        out.direct,
        ["10.244.2.0/24 via 192.0.2.2 (node b)", "fd00:2::/64 via 2001:db8::2 (node b)"]
    );
    assert_eq!((out.pods.len(), out.nodes.len()), (0, 0));
    assert_eq!(
        out.skipped,
        [
            "no route to node c: next hop 198.51.100.3 is not on a shared link: it is reached \
             through 192.0.2.254",
            "no route to node c: next hop 2001:db8:51::3 is not on a shared link: it is reached \
             through 192.0.2.254",
        ]
    );
}

/// R5: across subnets alone, decided for each node.
#[test]
fn what_is_behind_a_router_goes_through_the_tunnel() {
    let out = run(&cluster(), Encapsulation::CrossSubnet);
    assert_eq!(out.direct.len(), 2);
    assert_eq!(out.pods, ["10.244.3.0/24 to 198.51.100.3", "fd00:3::/64 to 198.51.100.3"]);
    assert_eq!(
        out.nodes,
        ["198.51.100.3/32 to 198.51.100.3", "2001:db8:51::3/128 to 198.51.100.3"]
    );
    assert_eq!(out.skipped, [""; 0]);
}

/// R5: all of it, where that is asked for.
#[test]
fn everything_goes_through_the_tunnel() {
    let out = run(&cluster(), Encapsulation::Always);
    assert_eq!((out.direct.len(), out.pods.len(), out.nodes.len()), (0, 4, 4));
    assert_eq!(out.skipped, [""; 0]);
}

/// R5: pods of a family that the nodes have no addresses of.
#[test]
fn the_tunnel_carries_both_families_over_either() {
    let nodes = [
        node("a", &["10.244.1.0/24", "fd00:1::/64"], &["2001:db8::1"]),
        node("c", &["10.244.3.0/24", "fd00:3::/64"], &["2001:db8:51::3"]),
    ];
    for encapsulation in [Encapsulation::CrossSubnet, Encapsulation::Always] {
        let out = run(&nodes, encapsulation);
        assert_eq!(out.pods, ["10.244.3.0/24 to 2001:db8:51::3", "fd00:3::/64 to 2001:db8:51::3"]);
        assert_eq!(out.skipped, [""; 0]);
    }
}

#[test]
fn what_cannot_be_encapsulated_is_skipped_with_a_reason() {
    let mut nodes = cluster().to_vec();
    nodes.extend([
        node("d", &["10.244.4.0/24"], &["2001:db8:51::4"]),
        node("e", &["203.0.113.0/24"], &["203.0.113.5"]),
        node("f", &["10.244.6.0/24"], &[]),
    ]);
    let out = run(&nodes, Encapsulation::Always);
    assert_eq!(
        out.skipped,
        [
            "no route to node d: no tunnel to its pod CIDR 10.244.4.0/24: the Node's first \
             InternalIP is not an IPv4 address as this node's is",
            "no route to node e: InternalIP 203.0.113.5 lies in the Node's own pod CIDR \
             203.0.113.0/24",
            "no route to node f: no tunnel to its pod CIDR 10.244.6.0/24: the Node's first \
             InternalIP is not an IPv4 address as this node's is",
        ]
    );
    nodes[0].addrs.clear();
    let out = run(&nodes[..2], Encapsulation::Always);
    assert!(out.skipped[0].contains("this node has no InternalIP"), "{:?}", out.skipped);
}

/// An end that is this node, or that the kernel has no way to, is no end.
#[test]
fn the_tunnel_needs_a_way_to_its_end() {
    let nodes = cluster();
    let desired = desired("a", &nodes, Encapsulation::CrossSubnet);
    let mut ways = ways(&desired);
    ways.insert(ip("198.51.100.3"), Way::Nowhere("Network is unreachable".to_owned()));
    let settled = settle(&desired, &ways);
    assert_eq!((settled.pods.len(), settled.nodes.len(), settled.skipped.len()), (0, 0, 2));
    assert_eq!(
        settled.skipped[0].to_string(),
        "no route to node c: next hop 198.51.100.3 is unreachable: Network is unreachable"
    );
    ways.insert(ip("198.51.100.3"), Way::Local);
    let settled = settle(&desired, &ways);
    assert_eq!((settled.pods.len(), settled.nodes.len(), settled.skipped.len()), (0, 0, 2));
}
