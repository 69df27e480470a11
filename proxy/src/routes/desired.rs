//! What routes there should be, from the Nodes of the cluster. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use sluice_model::Node;

use super::encapsulation::{Encapsulation, gateway};

/// A route to another node: to its pods, or, of packets of this node's pods, to the node itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct PodRoute {
    /// The node's pod CIDR, or an address of the node.
    pub cidr: IpNet,
    /// The next hop: the node's `InternalIP` of the same family, or what stands for it at the tunnel's
    /// device.
    pub via: IpAddr,
    /// The node's name.
    pub node: String,
    /// How packets are encapsulated; `None`: they are not.
    pub tunnel: Option<TunnelHop>,
}

/// The part of a route that says how packets are encapsulated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct TunnelHop {
    /// Index of the tunnel's device.
    pub device: u32,
    /// Where the outer packet goes: the node's `InternalIP`.
    pub peer: IpAddr,
    /// The source of packets that processes of this node send this way; `None`: the kernel's choice.
    pub source: Option<IpAddr>,
}

impl PodRoute {
    /// A route without encapsulation.
    pub fn direct(cidr: IpNet, via: IpAddr, node: impl Into<String>) -> Self {
        Self { cidr, via, node: node.into(), tunnel: None }
    }

    /// A route through the tunnel's device with the index given. `sources` are addresses of this node.
    pub fn encapsulated(to: &Encapsulated, device: u32, sources: &[IpAddr]) -> Self {
        let same_family = |ip: &IpAddr| ip.is_ipv4() == to.cidr.addr().is_ipv4();
        let source = sources.iter().copied().find(same_family);
        Self {
            cidr: to.cidr,
            via: gateway(&to.cidr, to.peer),
            node: to.node.clone(),
            tunnel: Some(TunnelHop { device, peer: to.peer, source }),
        }
    }
}

impl fmt::Display for PodRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tunnel {
            None => write!(f, "{} via {} (node {})", self.cidr, self.via, self.node),
            Some(hop) => write!(f, "{} by vxlan to {} (node {})", self.cidr, hop.peer, self.node),
        }
    }
}

/// Destinations that are, or may be, reached through the tunnel.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Encapsulated {
    /// A pod CIDR of the node, or one of its addresses.
    pub cidr: IpNet,
    /// The tunnel's other end: an `InternalIP` of the node.
    pub peer: IpAddr,
    /// The node's name.
    pub node: String,
}

/// Why there is no route for a pod CIDR, or none for a node at all.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SkipReason {
    /// The Node has no `spec.podCIDRs`.
    #[error("the Node has no spec.podCIDRs")]
    NoPodCidr,
    /// The Node has no `InternalIP` of the CIDR's family.
    #[error("the Node has no InternalIP of the family of {0}")]
    NoAddress(IpNet),
    /// The CIDR covers everything.
    #[error("pod CIDR {0} would be a default route")]
    DefaultRoute(IpNet),
    /// The next hop would be reached through the route itself.
    #[error("InternalIP {via} lies in the Node's own pod CIDR {cidr}")]
    NextHopInside {
        /// The CIDR.
        cidr: IpNet,
        /// The next hop.
        via: IpAddr,
    },
    /// Another node, or this one, has addresses of the same CIDR.
    #[error("pod CIDR {cidr} overlaps {other} of node {node}")]
    Overlap {
        /// The CIDR that gets no route.
        cidr: IpNet,
        /// The CIDR that keeps its addresses.
        other: IpNet,
        /// Whose that is.
        node: String,
    },
    /// The next hop is an address of this node.
    #[error("next hop {0} is an address of this node")]
    OwnAddress(IpAddr),
    /// The next hop is behind a router, so the packets would not arrive.
    #[error("next hop {via} is not on a shared link: it is reached through {gateway}")]
    NotOnLink {
        /// The next hop.
        via: IpAddr,
        /// The router on the way.
        gateway: IpAddr,
    },
    /// The other node has no end of the tunnel: its first `InternalIP` is of another family than this
    /// node's, which the tunnel is of; or either has none.
    #[error("no tunnel to its pod CIDR {cidr}: {}", no_end(*.v4))]
    NoTunnelEnd {
        /// The CIDR.
        cidr: IpNet,
        /// Whether the tunnel is of IPv4; `None`: this node has no end.
        v4: Option<bool>,
    },
    /// Two ends of the tunnel would have one hardware address.
    #[error("{peer} and {other} give one hardware address")]
    SameMac {
        /// The end that is left out.
        peer: IpAddr,
        /// The end that has it.
        other: IpAddr,
    },
    /// The tunnel's device is not there.
    #[error("no tunnel: {0}")]
    NoTunnel(String),
    /// The kernel knows no way to the next hop.
    #[error("next hop {via} is unreachable: {problem}")]
    Unreachable {
        /// The next hop.
        via: IpAddr,
        /// The kernel's answer.
        problem: String,
    },
}

fn no_end(v4: Option<bool>) -> &'static str {
    match v4 {
        None => "this node has no InternalIP",
        Some(true) => "the Node's first InternalIP is not an IPv4 address as this node's is",
        Some(false) => "the Node's first InternalIP is not an IPv6 address as this node's is",
    }
}

/// A pod CIDR without a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// The node it belongs to.
    pub node: String,
    /// The CIDR; `None` where the node has none.
    pub cidr: Option<IpNet>,
    /// Why.
    pub reason: SkipReason,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no route to node {}: {}", self.node, self.reason)
    }
}

/// The outcome of [`desired`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// Routes without encapsulation, sorted by CIDR; no two of them overlap. Whether their next hops
    /// are on a shared link is not known yet.
    pub routes: Vec<PodRoute>,
    /// What may be encapsulated; `None` where nothing is.
    pub tunnel: Option<Tunnel>,
    /// What has no route.
    pub skipped: Vec<Skipped>,
}

/// This node's end of the tunnel, and what may go through it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// Whether addresses of nodes on a shared link are behind it, too.
    pub always: bool,
    /// This end: the first `InternalIP` of this node.
    pub own: IpAddr,
    /// All `InternalIP`s of this node.
    pub own_addrs: Vec<IpAddr>,
    /// The ranges of this node's pods, without those that cover everything.
    pub own_cidrs: BTreeSet<IpNet>,
    /// Pod CIDRs of other nodes, sorted: those of [`Desired::routes`] whose node has an end, for the
    /// case that there is no shared link, and those that can be reached in no other way.
    pub pods: Vec<Encapsulated>,
    /// `InternalIP`s of other nodes, sorted. What this node's pods send there goes the same way as what
    /// comes back from there, and a router on the way may not know, or admit, addresses of pods.
    pub nodes: Vec<Encapsulated>,
}

/// The routes that node `own` needs to reach the pods of `nodes`.
///
/// The order of `nodes` does not matter. Of two nodes with overlapping CIDRs the one whose name
/// sorts first wins; this node wins against all.
pub fn desired<'a>(
    own: &str,
    nodes: impl IntoIterator<Item = &'a Node>,
    encapsulation: Encapsulation,
) -> Desired {
    let by_name: BTreeMap<&str, &Node> =
        nodes.into_iter().map(|n| (n.meta.name.name.as_str(), n)).collect();
    let this = by_name.get(own).copied();
    let mut taken: Vec<(IpNet, &str)> =
        this.map(|n| n.pod_cidrs.iter().map(|c| (c.trunc(), own)).collect()).unwrap_or_default();
    let mut out = Desired::default();
    let may_encapsulate = encapsulation != Encapsulation::Never;
    let mut tunnel = this.filter(|_| may_encapsulate).and_then(Tunnel::from_node);
    for (&name, node) in by_name.iter().filter(|(name, _)| **name != own) {
        let mut skip = |cidr, reason| {
            out.skipped.push(Skipped { node: name.to_owned(), cidr, reason });
        };
        if node.pod_cidrs.is_empty() {
            skip(None, SkipReason::NoPodCidr);
        }
        let end = tunnel.as_ref().and_then(|tunnel| tunnel.end_at(node));
        let mut encapsulated = false;
        for cidr in node.pod_cidrs.iter().map(IpNet::trunc) {
            if cidr.prefix_len() == 0 {
                skip(Some(cidr), SkipReason::DefaultRoute(cidr));
                continue;
            }
            if let Some(&(other, owner)) =
                taken.iter().find(|(o, _)| o.contains(&cidr) || cidr.contains(o))
            {
                let reason = SkipReason::Overlap { cidr, other, node: owner.to_owned() };
                skip(Some(cidr), reason);
                continue;
            }
            let inside = |via| SkipReason::NextHopInside { cidr, via };
            let straight = match internal_address(node, &cidr) {
                _ if encapsulation == Encapsulation::Always => {
                    let v4 = tunnel.as_ref().map(|tunnel| tunnel.own.is_ipv4());
                    Err(SkipReason::NoTunnelEnd { cidr, v4 })
                }
                None => Err(SkipReason::NoAddress(cidr)),
                Some(via) if cidr.contains(&via) => Err(inside(via)),
                Some(via) => Ok(via),
            };
            // An end among the node's own pods would be reached through the tunnel itself.
            let through = match end {
                Some(end) if node.pod_cidrs.iter().any(|range| range.contains(&end)) => {
                    Err(Some(inside(end)))
                }
                Some(end) => Ok(end),
                None => Err(None),
            };
            match (&straight, &through) {
                (Err(reason), Err(other)) => {
                    skip(Some(cidr), other.as_ref().unwrap_or(reason).clone());
                    continue;
                }
                _ => taken.push((cidr, name)),
            }
            if let Ok(via) = straight {
                out.routes.push(PodRoute::direct(cidr, via, name));
            }
            if let (Ok(peer), Some(tunnel)) = (through, &mut tunnel) {
                tunnel.pods.push(Encapsulated { cidr, peer, node: name.to_owned() });
                encapsulated = true;
            }
        }
        if let (true, Some(peer), Some(tunnel)) = (encapsulated, end, &mut tunnel) {
            tunnel.nodes.extend(node.internal_addrs().map(|addr| Encapsulated {
                cidr: addr.into(),
                peer,
                node: name.to_owned(),
            }));
        }
    }
    out.routes.sort();
    if let Some(tunnel) = &mut tunnel {
        tunnel.always = encapsulation == Encapsulation::Always;
        tunnel.pods.sort();
        tunnel.nodes.sort();
        // Nodes with one address between them: the one whose name sorts first, as with CIDRs.
        tunnel.nodes.dedup_by(|a, b| a.cidr == b.cidr);
    }
    out.tunnel = tunnel;
    out
}

impl Tunnel {
    /// This node's end, with nothing to go through yet; `None` without an `InternalIP`.
    fn from_node(node: &Node) -> Option<Self> {
        let own_addrs: Vec<IpAddr> = node.internal_addrs().collect();
        let own_cidrs = node.pod_cidrs.iter().map(IpNet::trunc);
        Some(Self {
            always: false,
            own: *own_addrs.first()?,
            own_cidrs: own_cidrs.filter(|cidr| cidr.prefix_len() > 0).collect(),
            own_addrs,
            pods: Vec::new(),
            nodes: Vec::new(),
        })
    }

    /// The end at another node, if that takes the same family for the tunnel.
    fn end_at(&self, node: &Node) -> Option<IpAddr> {
        node.internal_addrs().next().filter(|addr| addr.is_ipv4() == self.own.is_ipv4())
    }
}

fn internal_address(node: &Node, cidr: &IpNet) -> Option<IpAddr> {
    node.internal_addrs().find(|a| a.is_ipv4() == cidr.addr().is_ipv4())
}

#[cfg(test)]
mod tests;
