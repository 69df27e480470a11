use sluice_model::{Meta, ObjectName, Protocol, TargetPort};

use super::*;

fn service(ips: &[&str], ports: &[(&str, u16, Protocol)]) -> Service {
    Service {
        meta: Meta { name: ObjectName::new("ns", "web"), ..Meta::default() },
        cluster_ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        ports: ports
            .iter()
            .map(|(name, port, protocol)| ServicePort {
                name: (*name).to_owned(),
                protocol: *protocol,
                port: *port,
                target: TargetPort::Number(*port),
                node_port: None,
                app_protocol: None,
            })
            .collect(),
        ..Service::default()
    }
}

fn keys(service: &Service) -> Vec<String> {
    let wants = wants(service, &[], &NodeContext::default());
    assert_eq!(wants.warnings, []);
    let mut keys: Vec<String> = wants
        .frontends
        .keys()
        .map(|k| format!("{:?} {:?}/{} scope {}", k.addr, k.port, k.proto, k.scope))
        .collect();
    keys.sort();
    keys
}

/// S2: a frontend for each port, protocol and cluster address.
#[test]
fn every_port_has_a_frontend_at_every_cluster_address() {
    let service = service(
        &["10.96.0.1", "fd00::1"],
        &[("a", 53, Protocol::Tcp), ("b", 53, Protocol::Udp), ("c", 9, Protocol::Sctp)],
    );
    assert_eq!(
        keys(&service),
        [
            "10.96.0.1 53/17 scope 0",
            "10.96.0.1 53/6 scope 0",
            "10.96.0.1 9/132 scope 0",
            "fd00::1 53/17 scope 0",
            "fd00::1 53/6 scope 0",
            "fd00::1 9/132 scope 0",
        ]
    );
}

#[test]
fn headless_and_external_name_services_have_no_frontend() {
    let web = service(&["10.96.0.1"], &[("", 80, Protocol::Tcp)]);
    assert_eq!(keys(&Service { headless: true, ..web.clone() }), [""; 0]);
    let external = ServiceKind::ExternalName("example.org".to_owned());
    assert_eq!(keys(&Service { kind: external, ..web }), [""; 0]);
}

/// S18: whatever the labels' values are.
#[test]
fn services_that_are_labelled_as_foreign_are_left_alone() {
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        for value in ["", "other-proxy"] {
            let mut service = service(&["10.96.0.1"], &[("", 80, Protocol::Tcp)]);
            service.meta.labels.insert(label.to_owned(), value.to_owned());
            assert_eq!(keys(&service), [""; 0], "{label}: {value}");
        }
    }
}

#[test]
fn node_port_and_load_balancer_services_have_their_cluster_address() {
    for kind in [ServiceKind::NodePort, ServiceKind::LoadBalancer] {
        let service = Service { kind, ..service(&["10.96.0.1"], &[("", 80, Protocol::Tcp)]) };
        assert_eq!(keys(&service), ["10.96.0.1 80/6 scope 0"]);
    }
}

#[test]
fn affinity_timeout_is_on_every_frontend() {
    let service = Service {
        affinity_secs: Some(10800),
        ..service(&["10.96.0.1", "fd00::1"], &[("", 80, Protocol::Tcp)])
    };
    let wants = wants(&service, &[], &NodeContext::default());
    assert_eq!(wants.frontends.len(), 2);
    assert!(wants.frontends.values().all(|want| want.affinity_secs == 10800));
}

/// O5: the second port is left out with a warning that names object and field; the first stays.
#[test]
fn port_number_that_is_used_twice_is_warned_of_once() {
    let service =
        service(&["10.96.0.1", "fd00::1"], &[("a", 80, Protocol::Tcp), ("b", 80, Protocol::Tcp)]);
    let wants = wants(&service, &[], &NodeContext::default());
    let texts: Vec<String> = wants.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "Service ns/web: spec.ports[1].port: 80/TCP is taken by the port \"a\"; the port is skipped"
        ]
    );
    assert!(wants.frontends.values().all(|want| want.port.port == "a"));
}

/// O5: likewise for a name; the same name with another protocol is another port.
#[test]
fn port_name_that_is_used_twice_is_warned_of() {
    let service = service(
        &["10.96.0.1"],
        &[("", 80, Protocol::Tcp), ("", 80, Protocol::Udp), ("", 81, Protocol::Tcp)],
    );
    let wants = wants(&service, &[], &NodeContext::default());
    let texts: Vec<String> = wants.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "Service ns/web: spec.ports[2].name: \"\" is the name of spec.ports[0] already; the port is skipped"
        ]
    );
    assert_eq!(wants.frontends.len(), 2);
}

#[test]
fn repeated_cluster_address_is_one_frontend() {
    let service = service(&["10.96.0.1", "::ffff:10.96.0.1"], &[("", 80, Protocol::Tcp)]);
    assert_eq!(keys(&service), ["10.96.0.1 80/6 scope 0"]);
}

fn node() -> NodeContext {
    NodeContext {
        name: "here".to_owned(),
        node_port_addrs: ["172.31.0.11", "127.0.0.1", "fd00:172::11", "::1"]
            .map(|ip| ip.parse().expect("an address"))
            .into(),
        ..NodeContext::default()
    }
}

/// Each address and port with the bits of its kind, sorted; TCP.
fn kinds(service: &Service, node: &NodeContext) -> Vec<String> {
    let wants = wants(service, &[], node);
    let mut kinds: Vec<String> = wants
        .frontends
        .iter()
        .map(|(key, want)| format!("{} {} {:#x}", key.addr.to_ip(), key.port.get(), want.flags))
        .collect();
    kinds.sort();
    kinds
}

fn with_node_port(kind: ServiceKind, number: Option<u16>, ips: &[&str]) -> Service {
    let mut service = Service { kind, ..service(ips, &[("", 80, Protocol::Tcp)]) };
    service.ports[0].node_port = number;
    service
}

#[test]
fn node_port_is_on_the_nodes_addresses_of_the_services_families() {
    let v4 = with_node_port(ServiceKind::NodePort, Some(30080), &["10.96.0.1"]);
    assert_eq!(
        kinds(&v4, &node()),
        ["10.96.0.1 80 0x1", "127.0.0.1 30080 0x2", "172.31.0.11 30080 0x2"]
    );
    let dual = with_node_port(ServiceKind::LoadBalancer, Some(30080), &["10.96.0.1", "fd00::1"]);
    assert_eq!(
        kinds(&dual, &node()),
        [
            "10.96.0.1 80 0x1",
            "127.0.0.1 30080 0x2",
            "172.31.0.11 30080 0x2",
            "::1 30080 0x2",
            "fd00:172::11 30080 0x2",
            "fd00::1 80 0x1",
        ]
    );
    // Nobody has allocated a ClusterIP.
    let bare = with_node_port(ServiceKind::NodePort, Some(30080), &[]);
    assert_eq!(kinds(&bare, &node()).len(), 4);
    let bare = Service { ip_families: vec![IpFamily::V6], ..bare };
    assert_eq!(kinds(&bare, &node()), ["::1 30080 0x2", "fd00:172::11 30080 0x2"]);
}

/// S6: `allocateLoadBalancerNodePorts: false`.
#[test]
fn load_balancer_without_a_node_port_has_none() {
    let none = with_node_port(ServiceKind::LoadBalancer, None, &["10.96.0.1"]);
    assert_eq!(kinds(&none, &node()), ["10.96.0.1 80 0x1"]);
    let stale = with_node_port(ServiceKind::ClusterIp, Some(30080), &["10.96.0.1"]);
    assert_eq!(kinds(&stale, &node()), ["10.96.0.1 80 0x1"], "a port left over from another type");
}

fn balanced() -> Service {
    let ingress = |addr: &str, proxy| sluice_model::LoadBalancerIngress {
        addr: addr.parse().expect("an address"),
        proxy,
    };
    Service {
        ingress: vec![
            ingress("198.51.100.1", false),
            ingress("198.51.100.2", true),
            ingress("2001:db8::1", false),
        ],
        external_ips: ["192.0.2.1", "198.51.100.1"]
            .map(|ip| ip.parse().expect("an address"))
            .into(),
        ..with_node_port(ServiceKind::LoadBalancer, None, &["10.96.0.1"])
    }
}

/// S5: but for `ipMode: Proxy`, other families, and what the flag turns off.
#[test]
fn ingress_addresses_and_external_ips_are_frontends() {
    let service = balanced();
    assert_eq!(
        kinds(&service, &node()),
        ["10.96.0.1 80 0x1", "192.0.2.1 80 0x4", "198.51.100.1 80 0xc"]
    );
    let node = NodeContext { external_ips: false, ..node() };
    assert_eq!(kinds(&service, &node), ["10.96.0.1 80 0x1", "198.51.100.1 80 0x8"]);
    let cluster_ip = Service { kind: ServiceKind::ClusterIp, ..service };
    assert_eq!(kinds(&cluster_ip, &node), ["10.96.0.1 80 0x1"], "a status left over");
}

/// The ranges of each frontend that has any, by its address.
fn admitted(service: &Service) -> Vec<String> {
    let wants = wants(service, &[], &node());
    let ranges = |want: &Want| {
        let keys: Vec<String> = want
            .ranges
            .iter()
            .flat_map(|ranges| ranges.iter().map(|range| range.key(0)))
            .map(|key| format!("{:?}+{}", key.addr, key.prefix_len))
            .collect();
        if want.ranges.is_none() { None } else { Some(keys.join(" ")) }
    };
    let mut all: Vec<String> = wants
        .frontends
        .iter()
        .filter_map(|(key, want)| Some(format!("{}: {}", key.addr.to_ip(), ranges(want)?)))
        .collect();
    all.sort();
    all
}

fn ranged(ranges: &[&str]) -> Service {
    Service {
        source_ranges: ranges.iter().map(|range| range.parse().expect("a CIDR")).collect(),
        cluster_ips: ["10.96.0.1", "fd00::1"].map(|ip| ip.parse().expect("an address")).into(),
        ..balanced()
    }
}

/// S7: those of the load balancer's addresses, whichever other name these have (198.51.100.1 is an
/// external IP as well), and of each family by itself.
#[test]
fn source_ranges_are_those_of_ingress_addresses() {
    assert_eq!(admitted(&ranged(&["203.0.113.5/24"])), ["198.51.100.1: 203.0.113.0+152"]);
    let both = "203.0.113.0+152 2001:db8::+64";
    assert_eq!(
        admitted(&ranged(&["203.0.113.0/24", "2001:db8::/32"])),
        [format!("198.51.100.1: {both}"), format!("2001:db8::1: {both}")]
    );
    assert_eq!(
        admitted(&ranged(&["203.0.113.0/24", "::/0"])),
        ["198.51.100.1: 203.0.113.0+152"],
        "one family is open, and its range opens not the other"
    );
    for open in [&["203.0.113.0/24", "0.0.0.0/0"][..], &[]] {
        assert_eq!(admitted(&ranged(open)), [""; 0], "{open:?}");
    }
}

/// S7, O5: a range that cannot be read is named and admits nobody; it is not as if there were none.
#[test]
fn source_range_that_cannot_be_read_opens_nothing() {
    let bad = |ranges: &[&str]| Service {
        bad_source_ranges: vec![(1, "203.0.113.0/33".to_owned())],
        ..ranged(ranges)
    };
    let texts = |service: &Service| {
        let warnings = wants(service, &[], &node()).warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let warning = "Service ns/web: spec.loadBalancerSourceRanges[1]: \"203.0.113.0/33\" is not a \
                   CIDR and admits no client";
    let one = bad(&["192.0.2.0/24"]);
    assert_eq!(admitted(&one), ["198.51.100.1: 192.0.2.0+152"]);
    assert_eq!(texts(&one), [warning]);
    let none = bad(&[]);
    assert_eq!(admitted(&none), ["198.51.100.1: ", "2001:db8::1: "]);
    assert_eq!(texts(&none), [format!("{warning}; no other is left, so nobody is admitted")]);
}

/// S17: each ClusterIP refuses its other ports, unless it is an address of the node's own.
#[test]
fn cluster_addresses_refuse_their_other_ports() {
    let any = |service: &Service, node: &NodeContext| {
        let mut all: Vec<String> = wants(service, &[], node)
            .any_port
            .iter()
            .map(|key| format!("{:?}", key.addr))
            .collect();
        all.sort();
        all
    };
    assert_eq!(any(&ranged(&[]), &node()), ["10.96.0.1", "fd00::1"], "and no other address");
    let own = NodeContext { addrs: ["10.96.0.1".parse().expect("an address")].into(), ..node() };
    assert_eq!(any(&ranged(&[]), &own), ["fd00::1"]);
    assert_eq!(any(&Service { headless: true, ..ranged(&[]) }, &node()), [""; 0]);
}

/// S9, S10: the ClusterIP has this node's endpoints under the internal policy `Local`, for whoever
/// asks; at the other addresses clients inside get all endpoints, and clients outside this node's
/// under the external one.
#[test]
fn policies_choose_endpoints_by_the_kind_of_address() {
    let at = |addr: &str, node: &str| Endpoint {
        node: Some(node.to_owned()),
        ..Endpoint::new(
            addr.parse().expect("an address"),
            vec![sluice_model::SlicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: Some(8080),
            }],
            sluice_model::Conditions::default(),
        )
    };
    let endpoints = [at("10.244.0.1", "here"), at("10.244.1.1", "there")];
    for (internal, of_cluster_ip) in [(TrafficPolicy::Local, 1), (TrafficPolicy::Cluster, 2)] {
        for external in [TrafficPolicy::Local, TrafficPolicy::Cluster] {
            let service = Service {
                internal_policy: internal,
                external_policy: external,
                ..with_node_port(ServiceKind::NodePort, Some(30080), &["10.96.0.1"])
            };
            for (key, want) in &wants(&service, &endpoints, &node()).frontends {
                let (inside, outside) = match (key.port.get(), external) {
                    (80, _) => (of_cluster_ip, None),
                    (_, TrafficPolicy::Cluster) => (2, None),
                    _ if key.addr.is_loopback() => (2, None),
                    (_, TrafficPolicy::Local) => (2, Some(1)),
                };
                assert_eq!(want.backends.len(), inside, "{internal:?} {external:?} {key:?}");
                let found = want.outside.as_ref().map(|list| list.len());
                assert_eq!(found, outside, "{internal:?} {external:?} {key:?}");
            }
        }
    }
}
