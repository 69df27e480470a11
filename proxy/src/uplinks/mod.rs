//! The node's uplinks: by which interfaces clients outside come in, which address of the node stands
//! for theirs, and whom pods reach with their own. Pure, but for [`Interfaces::read`].

mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_abi::{Addr, CidrKey, NodeAddrs};
use sluice_model::Node;

/// `--uplinks`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Uplinks {
    /// None: clients outside are not served.
    Off,
    /// Interfaces with a default route, and those that hold an InternalIP of the Node object.
    Auto,
    /// These, where they exist.
    Named(BTreeSet<String>),
}

impl FromStr for Uplinks {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: BTreeSet<String> = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(match names.first().map(String::as_str) {
            None => Self::Off,
            Some("auto") if names.len() == 1 => Self::Auto,
            Some(_) => Self::Named(names),
        })
    }
}

/// `--snat-port-range`: ports, first and last included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// What is no range of ports.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no range of ports such as 32768-65535")]
pub struct NoPortRange(String);

impl FromStr for PortRange {
    type Err = NoPortRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || NoPortRange(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| error());
        let (first, last) = (port(first)?, port(last)?);
        if first == 0 || first > last { Err(error()) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The interfaces of the node's network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interfaces {
    /// Names by index, without loopbacks.
    pub names: BTreeMap<u32, String>,
    /// Addresses with the index of their interface, loopbacks' included, in the kernel's order; link-local ones
    /// left out.
    pub addrs: Vec<(u32, IpAddr)>,
    /// Indexes of those with a default route.
    pub defaults: BTreeSet<u32>,
}

impl Interfaces {
    /// The uplinks among them, by index. `node` is this node's object, if it is known; `tunnel` is the
    /// device by which packets go to other nodes' pods encapsulated, if there is one: an uplink beside
    /// the others, where there are any at all.
    pub fn uplinks(
        &self,
        chosen: &Uplinks,
        node: Option<&Node>,
        tunnel: Option<&str>,
    ) -> BTreeMap<u32, String> {
        let holds_internal = |index: &u32| {
            self.addrs.iter().any(|(at, addr)| at == index && internal(node).any(|ip| ip == *addr))
        };
        let wanted = |(index, name): &(&u32, &String)| match chosen {
            Uplinks::Off => false,
            _ if tunnel == Some(name.as_str()) => true,
            Uplinks::Auto => self.defaults.contains(index) || holds_internal(index),
            Uplinks::Named(names) => names.contains(*name),
        };
        let found = self.names.iter().filter(wanted);
        found.map(|(index, name)| (*index, name.clone())).collect()
    }

    /// The node's own address of each family: the first InternalIP that this machine has, else the
    /// first address of an uplink.
    pub fn own(&self, uplinks: &BTreeMap<u32, String>, node: Option<&Node>) -> [Option<IpAddr>; 2] {
        [true, false].map(|v4| {
            let here = |ip: &IpAddr| self.addrs.iter().any(|(_, addr)| addr == ip);
            let of_uplink = || self.addrs.iter().filter(|(at, _)| uplinks.contains_key(at));
            internal(node)
                .filter(|ip| ip.is_ipv4() == v4)
                .find(here)
                .or_else(|| of_uplink().map(|(_, ip)| *ip).find(|ip| ip.is_ipv4() == v4))
        })
    }
}

fn internal(node: Option<&Node>) -> impl Iterator<Item = IpAddr> + '_ {
    node.into_iter().flat_map(Node::internal_addrs)
}

/// What the programs are told of the node's addresses.
pub fn node_addrs(own: [Option<IpAddr>; 2], ports: PortRange, flags: u32) -> NodeAddrs {
    let [v4, v6] = own.map(|ip| ip.map(Addr::from).unwrap_or_default());
    NodeAddrs { v4, v6, port_min: ports.first, port_max: ports.last, flags }
}

/// Ranges that pods reach with their own addresses in any case: link-local and multicast.
fn always() -> [IpNet; 4] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16).into(),
        Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).into(),
    ]
}

/// The ranges that pods reach with their own addresses: `explicit` where there are any, else the
/// cluster's, else the pod CIDRs of all nodes, the last two with all addresses of all nodes.
///
/// Neighbouring ranges become one, so that a large cluster needs few.
pub fn non_masquerade<'a>(
    explicit: &[IpNet],
    cluster: &[IpNet],
    nodes: impl IntoIterator<Item = &'a Node>,
) -> BTreeSet<CidrKey> {
    let mut ranges: Vec<IpNet> = always().into();
    ranges.extend(explicit.iter().map(IpNet::trunc));
    if explicit.is_empty() {
        ranges.extend(cluster.iter().map(IpNet::trunc));
        for node in nodes {
            if cluster.is_empty() {
                ranges.extend(node.pod_cidrs.iter().map(IpNet::trunc));
            }
            ranges.extend(node.addrs.iter().map(|address| IpNet::from(address.addr)));
        }
    }
    IpNet::aggregate(&ranges)
        .into_iter()
        .map(|net| CidrKey::new(net.network().into(), net.prefix_len()))
        .collect()
}

#[cfg(test)]
mod tests;
