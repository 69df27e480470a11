use sluice_model::{NodeAddress, NodeAddressKind};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("a range")).collect()
}

fn node() -> Node {
    let internal = |text| NodeAddress { kind: NodeAddressKind::Internal, addr: ip(text) };
    Node {
        addrs: vec![internal("203.0.113.9"), internal("172.31.0.11"), internal("fd00:172:31::11")],
        pod_cidrs: nets(&["10.244.1.0/24", "fd00:244:1::/64"]),
        ..Node::default()
    }
}

fn interfaces() -> Interfaces {
    Interfaces {
        names: [(2, "eth0"), (3, "eth1"), (7, "slu1")].map(|(n, s)| (n, s.to_owned())).into(),
        addrs: vec![
            (2, ip("198.51.100.4")),
            (3, ip("172.31.0.11")),
            (3, ip("fd00:172:31::11")),
            (2, ip("2001:db8::4")),
        ],
        defaults: [2].into(),
    }
}

fn chosen(flag: &str, node: Option<&Node>) -> Vec<String> {
    let flag = flag.parse().expect("any text will do");
    interfaces().uplinks(&flag, node, None).into_values().collect()
}

#[test]
fn uplinks_are_those_of_the_default_route_and_of_the_nodes_addresses_or_those_named() {
    let node = node();
    assert_eq!(chosen("auto", Some(&node)), ["eth0", "eth1"]);
    assert_eq!(chosen("auto", None), ["eth0"]);
    assert_eq!(chosen("eth1,eth9", None), ["eth1"]);
    assert_eq!(chosen("", Some(&node)), [""; 0]);
}

/// An interface is an uplink for what it has now, and by the name that it has now; its index stays.
#[test]
fn uplinks_follow_the_interfaces() {
    let node = node();
    let by = |interfaces: &Interfaces, flag: &str| {
        let flag = flag.parse().expect("any text will do");
        interfaces.uplinks(&flag, Some(&node), None).into_iter().collect::<Vec<_>>()
    };
    let wan = (8, "wan0".to_owned());
    let mut now = interfaces();
    let before = by(&now, "auto");
    // It comes with nothing, gets another's address, one of the node's, and a default route.
    now.names.insert(8, "eth2".to_owned());
    assert_eq!(by(&now, "auto"), before);
    now.addrs.push((8, ip("198.51.100.9")));
    assert_eq!(by(&now, "auto"), before);
    now.addrs.push((8, ip("203.0.113.9")));
    assert_eq!(by(&now, "auto").last(), Some(&(8, "eth2".to_owned())));
    now.addrs.retain(|(index, _)| *index != 8);
    now.defaults.insert(8);
    assert_eq!(by(&now, "auto").last(), Some(&(8, "eth2".to_owned())));
    assert_eq!(by(&now, "wan0"), []);
    // It is renamed.
    now.names.insert(8, "wan0".to_owned());
    assert_eq!(by(&now, "auto").last(), Some(&wan));
    assert_eq!(by(&now, "wan0"), [wan]);
    // It goes, though its default route was not told of yet.
    now.names.remove(&8);
    assert_eq!(by(&now, "auto"), before);
    assert_eq!(by(&now, "wan0"), []);
    // The node's address moves to another interface.
    let moved = |(index, addr): (u32, IpAddr)| if index == 3 { (7, addr) } else { (index, addr) };
    now.addrs = now.addrs.into_iter().map(moved).collect();
    let names: Vec<String> = by(&now, "auto").into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["eth0", "slu1"]);
}

/// R5: answers of backends behind the tunnel come in by its device.
#[test]
fn the_tunnels_device_is_an_uplink_beside_those_that_were_chosen() {
    let mut interfaces = interfaces();
    interfaces.names.insert(9, "sluice-vxlan".to_owned());
    let chosen = |flag: &str, tunnel| {
        let flag = flag.parse().expect("any text will do");
        interfaces.uplinks(&flag, None, tunnel).into_values().collect::<Vec<_>>()
    };
    assert_eq!(chosen("auto", Some("sluice-vxlan")), ["eth0", "sluice-vxlan"]);
    assert_eq!(chosen("eth1", Some("sluice-vxlan")), ["eth1", "sluice-vxlan"]);
    assert_eq!(chosen("", Some("sluice-vxlan")), [""; 0]);
    assert_eq!(chosen("auto", None), ["eth0"]);
}

#[test]
fn the_nodes_own_address_is_an_internal_ip_that_it_has_or_else_an_uplinks() {
    let (interfaces, node) = (interfaces(), node());
    let uplinks = interfaces.uplinks(&Uplinks::Auto, Some(&node), None);
    let own = interfaces.own(&uplinks, Some(&node));
    assert_eq!(own, [Some(ip("172.31.0.11")), Some(ip("fd00:172:31::11"))]);
    let uplinks = interfaces.uplinks(&Uplinks::Auto, None, None);
    assert_eq!(interfaces.own(&uplinks, None), [Some(ip("198.51.100.4")), Some(ip("2001:db8::4"))]);
    assert_eq!(interfaces.own(&BTreeMap::new(), None), [None, None]);
}

/// R6: what pods reach with their own addresses, by the flags and by the nodes.
#[test]
fn pods_keep_their_addresses_inside_the_cluster() {
    let holds = |ranges: &BTreeSet<CidrKey>, text: &str| {
        let net: IpNet = text.parse().expect("a range");
        ranges.contains(&CidrKey::new(net.network().into(), net.prefix_len()))
    };
    let nodes = [node()];
    let by_nodes = non_masquerade(&[], &[], &nodes);
    for text in
        ["10.244.1.0/24", "fd00:244:1::/64", "172.31.0.11/32", "169.254.0.0/16", "fe80::/10"]
    {
        assert!(holds(&by_nodes, text), "{text}: {by_nodes:?}");
    }
    let by_cluster = non_masquerade(&[], &nets(&["10.244.0.0/16"]), &nodes);
    assert!(holds(&by_cluster, "10.244.0.0/16") && holds(&by_cluster, "172.31.0.11/32"));
    assert!(!holds(&by_cluster, "10.244.1.0/24"));
    let explicit = non_masquerade(&nets(&["10.0.0.0/8"]), &nets(&["10.244.0.0/16"]), &nodes);
    assert!(holds(&explicit, "10.0.0.0/8") && !holds(&explicit, "172.31.0.11/32"));
}

#[test]
fn a_range_of_ports_has_a_first_and_a_last() {
    assert_eq!("32768-65535".parse(), Ok(PortRange { first: 32768, last: 65535 }));
    for text in ["", "1", "0-5", "9-3", "1-65536", "a-b"] {
        assert!(text.parse::<PortRange>().is_err(), "{text}");
    }
}
