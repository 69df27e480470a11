//! `--nodeport-addresses`: which of the node's addresses NodePorts are served on.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use sluice_model::{IpFamily, Node, NodeAddressKind};

/// One element of `--nodeport-addresses`, as kube-proxy has them ([KEP-6032] for the last two
/// words); several add up.
///
/// [KEP-6032]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/6032-nodeport-addresses
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// `primary`: of each family the first InternalIP of the Node object, or else its first
    /// ExternalIP.
    Primary,
    /// `localhost`: `127.0.0.1` and `::1`, for processes of the node.
    Localhost,
    /// `all`: all addresses of the Node object and those of `localhost`.
    All,
    /// A CIDR: those of `all` that are in it.
    Within(IpNet),
}

/// What `--nodeport-addresses` does not know.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is neither a CIDR nor one of primary, localhost, all")]
pub struct UnknownAddresses(String);

impl FromStr for NodePortAddresses {
    type Err = UnknownAddresses;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            text => text.parse().map(Self::Within).map_err(|_| UnknownAddresses(text.to_owned())),
        }
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Localhost => f.write_str("localhost"),
            Self::All => f.write_str("all"),
            Self::Within(net) => net.fmt(f),
        }
    }
}

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The addresses that NodePorts are served on; `node` is this node's object, if it is known.
pub fn node_port_addrs(chosen: &[NodePortAddresses], node: Option<&Node>) -> BTreeSet<IpAddr> {
    let of_node = || node.iter().flat_map(|node| &node.addrs).map(|address| address.addr);
    let all = || of_node().chain(LOOPBACKS);
    let mut found = BTreeSet::new();
    for choice in chosen {
        match choice {
            NodePortAddresses::Primary => found.extend(node.into_iter().flat_map(primary)),
            NodePortAddresses::Localhost => found.extend(LOOPBACKS),
            NodePortAddresses::All => found.extend(all()),
            NodePortAddresses::Within(net) => found.extend(all().filter(|ip| net.contains(ip))),
        }
    }
    found
}

fn primary(node: &Node) -> impl Iterator<Item = IpAddr> + use<> {
    let first = |family, kind| node.addrs_of(kind).find(|addr| IpFamily::of(addr) == family);
    [IpFamily::V4, IpFamily::V6]
        .map(|family| {
            first(family, NodeAddressKind::Internal)
                .or_else(|| first(family, NodeAddressKind::External))
        })
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use sluice_model::NodeAddress;

    use super::*;

    fn node() -> Node {
        use NodeAddressKind::{External, Internal};
        let addrs = [
            (External, "198.51.100.7"),
            (Internal, "172.31.0.11"),
            (Internal, "192.168.0.11"),
            (External, "2001:db8::11"),
        ];
        let addrs = addrs.map(|(kind, addr)| NodeAddress { kind, addr: ip(addr) });
        Node { addrs: addrs.into(), ..Node::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn chosen(flag: &str) -> Vec<String> {
        let chosen: Vec<NodePortAddresses> =
            flag.split(',').map(|part| part.parse().expect("known")).collect();
        node_port_addrs(&chosen, Some(&node())).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_and_cidrs_choose_among_the_addresses_of_the_node_object() {
        assert_eq!(chosen("primary"), ["172.31.0.11", "2001:db8::11"]);
        assert_eq!(chosen("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(
            chosen("all"),
            ["127.0.0.1", "172.31.0.11", "192.168.0.11", "198.51.100.7", "::1", "2001:db8::11"]
        );
        assert_eq!(chosen("172.16.0.0/12,192.168.0.0/16"), ["172.31.0.11", "192.168.0.11"]);
        assert_eq!(chosen("127.0.0.0/8"), ["127.0.0.1"]);
        assert_eq!(
            chosen("primary,localhost"),
            ["127.0.0.1", "172.31.0.11", "::1", "2001:db8::11"]
        );
        assert_eq!(chosen("203.0.113.0/24"), [""; 0]);
    }

    #[test]
    fn a_node_that_is_not_known_has_its_loopback_alone() {
        let all = [NodePortAddresses::All, NodePortAddresses::Primary];
        assert_eq!(node_port_addrs(&all, None), BTreeSet::from(LOOPBACKS));
    }

    #[test]
    fn other_words_are_refused() {
        let error = "eth0".parse::<NodePortAddresses>().expect_err("no CIDR");
        assert!(error.to_string().contains("\"eth0\" is neither a CIDR nor"), "{error}");
    }
}
