//! Ports of the node that pods ask for: from the plugin's records to what the planner is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use sluice_model::{Node, ObjectName};
use sluice_plan::{HostPort, PodPorts};

use super::pods::PortProblems;
use super::records::{PortMapping, Record};
use crate::control::EndpointRef;
use crate::node_ports::{NodePortAddresses, node_port_addrs};

/// Pods with ports of the node, each by the container and interface that it is.
pub(super) type Wanted = BTreeMap<String, PodPorts>;

/// The addresses that this node has: those of its interfaces, those of its Node object (a cloud may
/// translate one of them to an interface's), and its loopback.
///
/// Link-local addresses of IPv6 are left out: they name a host on one link only, and the tables know
/// of no links.
pub(super) fn node_addrs(node: Option<&Node>) -> BTreeSet<IpAddr> {
    let mut addrs = node_port_addrs(&[NodePortAddresses::All], node);
    match getifaddrs() {
        Ok(interfaces) => addrs.extend(
            interfaces
                .filter_map(|interface| ip(&interface.address?))
                .filter(|addr| !matches!(addr, IpAddr::V6(ip) if ip.is_unicast_link_local())),
        ),
        Err(error) => {
            tracing::warn!(
                "getifaddrs: {error}; hostPorts are on the Node object's addresses only"
            );
        }
    }
    addrs
}

fn ip(addr: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = addr.as_sockaddr_in().map(|addr| IpAddr::V4(addr.ip()));
    v4.or_else(|| addr.as_sockaddr_in6().map(|addr| IpAddr::V6(addr.ip())))
}

/// The name that a pod goes by where its ports are planned.
pub(super) fn id(key: &EndpointRef) -> String {
    format!("{}/{}", key.container_id, key.interface)
}

/// What these pods want of a node with these addresses, and what of it cannot be.
pub(super) fn wanted<'a>(
    records: impl Iterator<Item = &'a Record>,
    node: &BTreeSet<IpAddr>,
) -> (Wanted, PortProblems) {
    let mut wanted = Wanted::new();
    let mut problems = PortProblems::new();
    for record in records {
        let mut mappings: Vec<&PortMapping> = record.host_ports.iter().collect();
        // An address that is named has a port before all addresses together do.
        mappings.sort_by_key(|mapping| !is_exact(mapping.host_ip));
        let mut ports = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let addrs = addresses(mapping.host_ip, node);
            if addrs.is_empty() {
                let reason = match mapping.host_ip {
                    Some(ip) if is_exact(Some(ip)) => {
                        format!("{ip} is no address of this node; the port is not served")
                    }
                    _ => "this node has no address for it; the port is not served".to_owned(),
                };
                let subject = format!("Pod {} hostPort {}", record.label(), mapping.host_port);
                problems.entry(id(&record.key)).or_default().insert(subject, reason);
                continue;
            }
            ports.push(HostPort {
                addrs,
                port: mapping.host_port,
                protocol: mapping.protocol.into(),
                target: mapping.container_port,
            });
        }
        if !ports.is_empty() {
            let id = id(&record.key);
            let pod = PodPorts {
                pod: pod_name(record),
                id: id.clone(),
                created: i64::try_from(record.created).unwrap_or(i64::MAX),
                addrs: record.addresses.clone(),
                ports,
            };
            wanted.insert(id, pod);
        }
    }
    (wanted, problems)
}

pub(super) fn pod_name(record: &Record) -> ObjectName {
    if record.pod_name.is_empty() {
        ObjectName::new("", &record.key.container_id)
    } else {
        ObjectName::new(&record.pod_namespace, &record.pod_name)
    }
}

fn is_exact(host_ip: Option<IpAddr>) -> bool {
    host_ip.is_some_and(|ip| !ip.is_unspecified())
}

/// The addresses that a `hostIP` stands for. One that is not the node's stands for none: a pod must
/// not take connections to somebody else's address.
fn addresses(host_ip: Option<IpAddr>, node: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    match host_ip {
        None => node.iter().copied().collect(),
        Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => {
            node.iter().copied().filter(IpAddr::is_ipv4).collect()
        }
        Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => {
            node.iter().copied().filter(IpAddr::is_ipv6).collect()
        }
        Some(ip) if node.contains(&ip) || ip.is_loopback() => vec![ip],
        Some(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ports: &str) -> Record {
        let text = format!(
            r#"{{"containerId":"c1","interface":"eth0","hostInterface":"slu0",
            "mac":"02:00:00:00:00:01","hostMac":"02:00:00:00:00:02",
            "addresses":["10.244.1.2","fd00:244:1::2"],"podNamespace":"shop","podName":"web-0",
            "created":1700000000,"hostPorts":{ports}}}"#
        );
        serde_json::from_str(&text).expect("a record")
    }

    fn node() -> BTreeSet<IpAddr> {
        ["127.0.0.1", "172.31.0.11", "::1", "fd00:172:31::11"].map(ip).into()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn served(ports: &str) -> Vec<(Vec<String>, u16)> {
        let record = record(ports);
        let (wanted, problems) = wanted([&record].into_iter(), &node());
        assert!(problems.is_empty(), "{problems:?}");
        let pod = &wanted["c1/eth0"];
        assert_eq!((pod.pod.to_string().as_str(), pod.created), ("shop/web-0", 1_700_000_000));
        let port =
            |port: &HostPort| (port.addrs.iter().map(ToString::to_string).collect(), port.target);
        pod.ports.iter().map(port).collect()
    }

    /// S37: no hostIP is all of the node's addresses, an unspecified one those of its family.
    #[test]
    fn a_host_ip_chooses_among_the_addresses_of_the_node() {
        let all = ["127.0.0.1", "172.31.0.11", "::1", "fd00:172:31::11"].map(str::to_owned);
        let cases = [
            ("", all.to_vec()),
            (r#","hostIP":"0.0.0.0""#, all[..2].to_vec()),
            (r#","hostIP":"::""#, all[2..].to_vec()),
            (r#","hostIP":"172.31.0.11""#, all[1..2].to_vec()),
            (r#","hostIP":"127.0.0.53""#, vec!["127.0.0.53".to_owned()]),
        ];
        for (host_ip, expected) in cases {
            let mapping =
                format!(r#"[{{"hostPort":8080,"containerPort":80,"protocol":"tcp"{host_ip}}}]"#);
            assert_eq!(served(&mapping), [(expected, 80)], "{host_ip}");
        }
    }

    /// S37: a port at one address comes before the same port at all of them.
    #[test]
    fn a_named_address_comes_first() {
        let mappings = r#"[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},
            {"hostPort":8080,"containerPort":81,"protocol":"tcp","hostIP":"127.0.0.1"}]"#;
        let targets: Vec<u16> = served(mappings).into_iter().map(|(_, target)| target).collect();
        assert_eq!(targets, [81, 80]);
    }

    /// S37: an address that is not the node's is not taken from whoever has it.
    #[test]
    fn a_host_ip_that_is_not_the_nodes_is_a_problem() {
        let record =
            record(r#"[{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"8.8.8.8"}]"#);
        let (wanted, problems) = wanted([&record].into_iter(), &node());
        assert!(wanted.is_empty());
        let (subject, message) = problems["c1/eth0"].first_key_value().expect("a problem");
        assert_eq!(subject, "Pod shop/web-0 hostPort 53");
        assert!(message.contains("8.8.8.8 is no address of this node"), "{message}");
    }

    #[test]
    fn the_loopback_is_among_the_nodes_addresses() {
        let addrs = node_addrs(None);
        assert!(addrs.contains(&ip("127.0.0.1")) && addrs.contains(&ip("::1")), "{addrs:?}");
    }
}
