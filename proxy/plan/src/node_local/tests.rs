use sluice_model::{Conditions, Meta, ObjectName, ServicePort, SlicePort, TargetPort};

use super::*;
use crate::frontends::wants;

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const ENDING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const DOWN: Conditions = Conditions { ready: false, serving: false, terminating: false };

fn service() -> Service {
    let port = |name: &str, protocol| ServicePort {
        name: name.to_owned(),
        protocol,
        port: 53,
        target: TargetPort::Number(5353),
        node_port: None,
        app_protocol: None,
    };
    Service {
        meta: Meta { name: ObjectName::new("kube-system", "kube-dns"), ..Meta::default() },
        cluster_ips: vec!["10.96.0.10".parse().expect("an address")],
        ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
        ..Service::default()
    }
}

fn endpoint(addr: &str, node: Option<&str>, conditions: Conditions) -> Endpoint {
    let port =
        |name: &str, protocol| SlicePort { name: name.to_owned(), protocol, port: Some(5353) };
    Endpoint {
        node: node.map(str::to_owned),
        ..Endpoint::new(
            addr.parse().expect("an address"),
            vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
            conditions,
        )
    }
}

/// `ADDR:PORT/PROTOCOL -> BACKEND, ...`, sorted.
fn frontends(endpoints: &[Endpoint], node_local: Option<&str>) -> Vec<String> {
    let node = NodeContext {
        name: "here".to_owned(),
        node_local: node_local.map(|name| ObjectName::new("kube-system", name)),
        ..NodeContext::default()
    };
    let wants = wants(&service(), endpoints, &node);
    assert_eq!(wants.warnings, []);
    let text = |(key, want): (&sluice_abi::FrontendKey, &Want)| {
        let backends: Vec<_> = want.backends.iter().map(|b| b.addr.to_ip().to_string()).collect();
        let proto = if key.proto == Protocol::Udp.number() { "udp" } else { "tcp" };
        let addr = key.addr.to_ip();
        format!("{addr}:{}/{proto} -> {}", key.port.get(), backends.join(", "))
    };
    let mut found: Vec<_> = wants.frontends.iter().map(text).collect();
    found.sort();
    found
}

/// D19: a node's own endpoint alone, as long as it is ready; endpoints without hints, and without
/// a node, make no difference.
#[test]
fn the_nodes_own_endpoint_comes_first() {
    let endpoints = [
        endpoint("10.244.1.5", Some("here"), READY),
        endpoint("10.244.2.5", Some("there"), READY),
        endpoint("10.244.3.5", None, READY),
    ];
    assert_eq!(
        frontends(&endpoints, Some("kube-dns")),
        ["10.96.0.10:53/tcp -> 10.244.1.5", "10.96.0.10:53/udp -> 10.244.1.5"]
    );
    // Without the switch, and for another Service, all are the same.
    for other in [None, Some("other")] {
        let all = frontends(&endpoints, other);
        assert_eq!(all[1], "10.96.0.10:53/udp -> 10.244.1.5, 10.244.2.5, 10.244.3.5");
    }
}

/// D19: while the node's own is not ready, all ready ones serve, and they do so at its address too,
/// for the datagram sockets that are connected to it.
#[test]
fn others_stand_in_also_at_the_address_of_the_one_that_is_not_ready() {
    for conditions in [ENDING, DOWN] {
        let endpoints = [
            endpoint("10.244.1.5", Some("here"), conditions),
            endpoint("10.244.2.5", Some("there"), READY),
            endpoint("10.244.3.5", Some("yonder"), READY),
        ];
        assert_eq!(
            frontends(&endpoints, Some("kube-dns")),
            [
                "10.244.1.5:5353/udp -> 10.244.2.5, 10.244.3.5",
                "10.96.0.10:53/tcp -> 10.244.2.5, 10.244.3.5",
                "10.96.0.10:53/udp -> 10.244.2.5, 10.244.3.5",
            ]
        );
    }
    // Another node's that is away has its sockets here as well.
    let endpoints = [
        endpoint("10.244.1.5", Some("here"), READY),
        endpoint("10.244.2.5", Some("there"), ENDING),
    ];
    assert_eq!(frontends(&endpoints, Some("kube-dns"))[0], "10.244.2.5:5353/udp -> 10.244.1.5");
}

/// D19: where none is ready, one that still serves does, at its own address as itself; where none
/// serves, the Service refuses, and no address of a pod does.
#[test]
fn an_endpoint_never_stands_in_for_itself() {
    let last = [endpoint("10.244.1.5", Some("here"), ENDING)];
    assert_eq!(
        frontends(&last, Some("kube-dns")),
        ["10.96.0.10:53/tcp -> 10.244.1.5", "10.96.0.10:53/udp -> 10.244.1.5"]
    );
    let none = [endpoint("10.244.1.5", Some("here"), DOWN)];
    assert_eq!(
        frontends(&none, Some("kube-dns")),
        ["10.96.0.10:53/tcp -> ", "10.96.0.10:53/udp -> "]
    );
}
