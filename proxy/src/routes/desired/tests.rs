use sluice_model::{Meta, NodeAddress, NodeAddressKind, ObjectName};

use super::*;

fn node(name: &str, cidrs: &[&str], addrs: &[&str]) -> Node {
    let address = |kind, a: &str| NodeAddress { kind, addr: a.parse().expect("test address") };
    Node {
        meta: Meta { name: ObjectName::new("", name), ..Meta::default() },
        pod_cidrs: cidrs.iter().map(|c| c.parse().expect("test range")).collect(),
        addrs: addrs
            .iter()
            .map(|a| match a.strip_prefix("external:") {
                Some(a) => address(NodeAddressKind::External, a),
                None => address(NodeAddressKind::Internal, a),
            })
            .collect(),
        taints: Vec::new(),
    }
}

fn run(own: &str, nodes: &[Node]) -> (Vec<String>, Vec<String>) {
    let out = desired(own, nodes, Encapsulation::Never);
    (
        out.routes.iter().map(ToString::to_string).collect(),
        out.skipped.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn every_other_node_gets_a_route_a_family() {
    let nodes = [
        node("c", &["10.244.3.0/24"], &["192.0.2.3"]),
        node("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]),
        node(
            "b",
            &["10.244.2.0/24", "fd00:2::/64"],
            &["external:198.51.100.2", "2001:db8::2", "192.0.2.2", "192.0.2.22"],
        ),
    ];
    let (routes, skipped) = run("a", &nodes);
    assert_eq!(
        routes,
        [
            "10.244.2.0/24 via 192.0.2.2 (node b)",
            "10.244.3.0/24 via 192.0.2.3 (node c)",
            "fd00:2::/64 via 2001:db8::2 (node b)",
        ]
    );
    assert_eq!(skipped, [""; 0]);
    let mut turned = nodes.clone();
    turned.reverse();
    assert_eq!(
        desired("a", &turned, Encapsulation::Never),
        desired("a", &nodes, Encapsulation::Never)
    );
}

#[test]
fn nodes_that_cannot_be_reached_are_skipped_with_a_reason() {
    let nodes = [
        node("no-cidr", &[], &["192.0.2.2"]),
        node("no-address", &["10.244.3.0/24"], &["external:198.51.100.2", "2001:db8::3"]),
        node("everything", &["0.0.0.0/0"], &["192.0.2.4"]),
        node("inside", &["10.244.5.0/24"], &["10.244.5.1"]),
        node("half", &["10.244.6.0/24", "fd00:6::/64"], &["192.0.2.6"]),
    ];
    let (routes, skipped) = run("a", &nodes);
    assert_eq!(routes, ["10.244.6.0/24 via 192.0.2.6 (node half)"]);
    assert_eq!(
        skipped,
        [
            "no route to node everything: pod CIDR 0.0.0.0/0 would be a default route",
            "no route to node half: the Node has no InternalIP of the family of fd00:6::/64",
            "no route to node inside: InternalIP 10.244.5.1 lies in the Node's own pod CIDR \
             10.244.5.0/24",
            "no route to node no-address: the Node has no InternalIP of the family of \
             10.244.3.0/24",
            "no route to node no-cidr: the Node has no spec.podCIDRs",
        ]
    );
}

#[test]
fn overlapping_cidrs_have_a_winner_that_does_not_depend_on_order() {
    let nodes = [
        node("z-own", &["10.244.1.0/24"], &["192.0.2.1"]),
        node("c", &["10.244.2.0/24"], &["192.0.2.3"]),
        node("b", &["10.244.2.0/24"], &["192.0.2.2"]),
        node("d", &["10.244.1.0/24"], &["192.0.2.4"]),
        node("e", &["10.244.0.0/16"], &["192.0.2.5"]),
    ];
    let (routes, skipped) = run("z-own", &nodes);
    assert_eq!(routes, ["10.244.2.0/24 via 192.0.2.2 (node b)"]);
    assert_eq!(
        skipped,
        [
            "no route to node c: pod CIDR 10.244.2.0/24 overlaps 10.244.2.0/24 of node b",
            "no route to node d: pod CIDR 10.244.1.0/24 overlaps 10.244.1.0/24 of node z-own",
            "no route to node e: pod CIDR 10.244.0.0/16 overlaps 10.244.1.0/24 of node z-own",
        ]
    );
    let mut turned = nodes.clone();
    turned.reverse();
    assert_eq!(
        desired("z-own", &turned, Encapsulation::Never),
        desired("z-own", &nodes, Encapsulation::Never)
    );
}
