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
    let wants = wants(service, &[]);
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
    let wants = wants(&service, &[]);
    assert_eq!(wants.frontends.len(), 2);
    assert!(wants.frontends.values().all(|want| want.affinity_secs == 10800));
}

/// O5: the second port is left out with a warning that names object and field; the first stays.
#[test]
fn port_number_that_is_used_twice_is_warned_of_once() {
    let service =
        service(&["10.96.0.1", "fd00::1"], &[("a", 80, Protocol::Tcp), ("b", 80, Protocol::Tcp)]);
    let wants = wants(&service, &[]);
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
    let wants = wants(&service, &[]);
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
