use sluice_model::SlicePort;

use super::*;

fn endpoint(
    addr: &str,
    conditions: Conditions,
    ports: &[(&str, Protocol, Option<u16>)],
) -> Endpoint {
    Endpoint {
        addr: addr.parse().expect("an address"),
        ports: ports
            .iter()
            .map(|(name, protocol, port)| SlicePort {
                name: (*name).to_owned(),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        conditions,
        hostname: None,
        node: None,
        zone: None,
        target: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
    }
}

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };
const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const STOPPED: Conditions = Conditions { ready: false, serving: false, terminating: true };
const HTTP: &[(&str, Protocol, Option<u16>)] = &[("http", Protocol::Tcp, Some(8080))];

fn chosen(endpoints: &[Endpoint], family: IpFamily) -> Vec<String> {
    choose(endpoints, "http", Protocol::Tcp, family)
        .iter()
        .map(|b| format!("{:?}:{:?}/{}", b.addr, b.port, b.proto))
        .collect()
}

/// S14: endpoints that terminate get nothing while another one is ready.
#[test]
fn ready_endpoints_shut_out_terminating_ones() {
    let endpoints = [endpoint("10.0.0.1", READY, HTTP), endpoint("10.0.0.2", TERMINATING, HTTP)];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
}

/// S14: with none ready, those that still serve while they terminate are used, and only those.
#[test]
fn serving_and_terminating_endpoints_stand_in_when_none_is_ready() {
    let endpoints = [
        endpoint("10.0.0.1", UNREADY, HTTP),
        endpoint("10.0.0.2", TERMINATING, HTTP),
        endpoint("10.0.0.3", STOPPED, HTTP),
        endpoint("10.0.0.4", Conditions { terminating: false, ..TERMINATING }, HTTP),
    ];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.2:8080/6"]);
    assert!(chosen(&endpoints[..1], IpFamily::V4).is_empty());
}

/// S14, S26: the choice is made apart for each family.
#[test]
fn one_family_falls_back_while_the_other_has_ready_endpoints() {
    let endpoints = [endpoint("10.0.0.1", READY, HTTP), endpoint("fd00::2", TERMINATING, HTTP)];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
    assert_eq!(chosen(&endpoints, IpFamily::V6), ["fd00::2:8080/6"]);
}

/// S3: the port is found by name and protocol, and may have another number on each endpoint.
#[test]
fn named_port_has_its_own_number_on_each_endpoint() {
    let endpoints = [
        endpoint("10.0.0.1", READY, HTTP),
        endpoint(
            "10.0.0.2",
            READY,
            &[
                ("http", Protocol::Tcp, Some(9090)),
                ("http", Protocol::Udp, Some(1)),
                ("metrics", Protocol::Tcp, Some(2)),
            ],
        ),
    ];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6", "10.0.0.2:9090/6"]);
}

#[test]
fn endpoint_with_two_numbers_for_a_port_is_two_backends() {
    let both = &[("http", Protocol::Tcp, Some(8081)), ("http", Protocol::Tcp, Some(8080))];
    assert_eq!(
        chosen(&[endpoint("10.0.0.1", READY, both)], IpFamily::V4),
        ["10.0.0.1:8080/6", "10.0.0.1:8081/6"]
    );
}

/// S3: an address that several slices list is one backend, ready if one of them says so.
#[test]
fn repeated_endpoint_is_one_backend() {
    let endpoints = [
        endpoint("10.0.0.1", TERMINATING, HTTP),
        endpoint("10.0.0.1", READY, HTTP),
        endpoint("10.0.0.1", READY, HTTP),
    ];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
}

#[test]
fn port_without_a_number_is_no_backend() {
    for port in [None, Some(0)] {
        let endpoints = [endpoint("10.0.0.1", READY, &[("http", Protocol::Tcp, port)])];
        assert!(chosen(&endpoints, IpFamily::V4).is_empty());
    }
}

#[test]
fn mapped_ipv4_address_is_ipv4() {
    let endpoints = [endpoint("::ffff:10.0.0.1", READY, HTTP)];
    assert_eq!(chosen(&endpoints, IpFamily::V4), ["10.0.0.1:8080/6"]);
    assert!(chosen(&endpoints, IpFamily::V6).is_empty());
}
