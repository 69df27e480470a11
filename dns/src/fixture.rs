//! The cluster that the tests ask about.

use std::net::IpAddr;

use sluice_model::{
    Conditions, Endpoint, Meta, ObjectName, Protocol, Service, ServiceKind, ServicePort, SlicePort,
    TargetPort,
};

use crate::zone::Snapshot;

/// A Service with its endpoints.
pub(crate) type Entry = (Service, Vec<Endpoint>);

pub(crate) fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `NAMESPACE/NAME`, with ports as `name:protocol:number`.
pub(crate) fn service(name: &str, cluster_ips: &[&str], ports: &[&str]) -> Service {
    let (namespace, name) = name.split_once('/').expect("NAMESPACE/NAME");
    Service {
        meta: Meta { name: ObjectName::new(namespace, name), ..Meta::default() },
        cluster_ips: cluster_ips.iter().map(|a| addr(a)).collect(),
        ports: ports
            .iter()
            .map(|port| {
                let SlicePort { name, protocol, port } = slice_port(port);
                let port = port.expect("a number");
                let target = TargetPort::Number(port);
                ServicePort { name, protocol, port, target, node_port: None, app_protocol: None }
            })
            .collect(),
        ..Service::default()
    }
}

pub(crate) fn headless(name: &str, ports: &[&str]) -> Service {
    Service { headless: true, ..service(name, &[], ports) }
}

pub(crate) fn external(name: &str, target: &str) -> Service {
    Service { kind: ServiceKind::ExternalName(target.to_owned()), ..service(name, &[], &[]) }
}

fn slice_port(text: &str) -> SlicePort {
    let parts: Vec<_> = text.split(':').collect();
    let [name, protocol, number] = parts[..] else { panic!("{text} is not name:protocol:number") };
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => panic!("{other} is no protocol"),
    };
    SlicePort { name: name.to_owned(), protocol, port: number.parse().ok() }
}

/// `ADDRESS`, `ADDRESS=HOSTNAME`; a trailing `!` says that it is not ready.
pub(crate) fn endpoint(text: &str, ports: &[&str]) -> Endpoint {
    let ready = !text.ends_with('!');
    let text = text.trim_end_matches('!');
    let (address, hostname) = match text.split_once('=') {
        Some((address, hostname)) => (address, Some(hostname.to_owned())),
        None => (text, None),
    };
    Endpoint {
        hostname,
        ..Endpoint::new(
            addr(address),
            ports.iter().map(|port| slice_port(port)).collect(),
            Conditions { ready, serving: ready, terminating: false },
        )
    }
}

fn endpoints(list: &[&str], ports: &[&str]) -> Vec<Endpoint> {
    list.iter().map(|e| endpoint(e, ports)).collect()
}

/// All Services of the cluster.
pub(crate) fn cluster() -> Vec<Entry> {
    let http = &["http:tcp:80"][..];
    let two = &["http:tcp:80", "dns:udp:53"][..];
    vec![
        // One address, named ports.
        (
            service("shop/web", &["10.0.0.1"], two),
            endpoints(&["172.16.0.1", "172.16.0.2=first"], &["http:tcp:8080", "dns:udp:5353"]),
        ),
        (service("shop/web6", &["fd00::1"], http), vec![]),
        (service("shop/dual", &["10.0.0.2", "fd00::2"], http), vec![]),
        // The only port has no name.
        (service("shop/unnamed", &["10.0.0.3"], &[":tcp:80"]), vec![]),
        // No address allocated yet.
        (service("shop/pending", &[], http), vec![]),
        // Headless: hostnames, a shared hostname, dashed addresses, one that is not ready.
        (
            headless("shop/db", &["pg:tcp:5432"]),
            endpoints(
                &[
                    "172.16.1.1=db-0",
                    "172.16.1.2",
                    "172.16.1.3=twin",
                    "172.16.1.4=twin",
                    "172.16.1.5=late!",
                    "fd00:16::1",
                ],
                &["pg:tcp:5432"],
            ),
        ),
        // Headless without ports.
        (headless("shop/portless", &[]), endpoints(&["172.16.2.1"], &[])),
        // Nobody is ready.
        (headless("shop/starting", http), endpoints(&["172.16.3.1!"], http)),
        (
            Service { publish_not_ready: true, ..headless("shop/eager", http) },
            endpoints(&["172.16.4.1=eager-0!"], http),
        ),
        // Endpoints of two Services at one address.
        (headless("shop/db-read", &["pg:tcp:5432"]), endpoints(&["172.16.1.2"], &["pg:tcp:5432"])),
        // Two Services at one cluster IP.
        (service("shop/twin-a", &["10.0.0.9"], http), vec![]),
        (service("shop/twin-b", &["10.0.0.9"], http), vec![]),
        // Aliases: out, in, to another alias, to nothing, to an address, and in a circle.
        (external("shop/out", "Www.Example.com"), vec![]),
        (external("shop/in", "web.shop.svc.cluster.local"), vec![]),
        (external("shop/hop", "out.shop.svc.cluster.local"), vec![]),
        (external("shop/dangling", "gone.shop.svc.cluster.local"), vec![]),
        (external("shop/address", "192.0.2.1"), vec![]),
        (external("shop/ring-a", "ring-b.shop.svc.cluster.local"), vec![]),
        (external("shop/ring-b", "ring-a.shop.svc.cluster.local"), vec![]),
        // A name that begins with a digit, another namespace.
        (service("lab/1st", &["10.0.1.1"], http), vec![]),
    ]
}

/// A synced zone with these Services and an empty namespace `empty`.
pub(crate) fn zone(entries: &[Entry]) -> Snapshot {
    let mut zone = Snapshot::new();
    zone.declare_namespace("empty", true);
    for (service, endpoints) in entries {
        zone.set_service(service, endpoints);
    }
    zone.set_synced();
    zone.set_serial(20);
    zone
}
