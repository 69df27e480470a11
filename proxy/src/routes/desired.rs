//! What routes there should be, from the Nodes of the cluster. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use sluice_model::{Node, NodeAddressKind};

/// A route to the pods of another node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct HostGwRoute {
    /// The node's pod CIDR.
    pub cidr: IpNet,
    /// The node's `InternalIP` of the same family.
    pub via: IpAddr,
    /// The node's name.
    pub node: String,
}

impl fmt::Display for HostGwRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {} (node {})", self.cidr, self.via, self.node)
    }
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
    /// The kernel knows no way to the next hop.
    #[error("next hop {via} is unreachable: {problem}")]
    Unreachable {
        /// The next hop.
        via: IpAddr,
        /// The kernel's answer.
        problem: String,
    },
}

/// A pod CIDR without a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// The node it belongs to.
    pub node: String,
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
    /// The routes, sorted by CIDR; no two of them overlap.
    pub routes: Vec<HostGwRoute>,
    /// What has none.
    pub skipped: Vec<Skipped>,
}

/// The routes that node `own` needs to reach the pods of `nodes`.
///
/// The order of `nodes` does not matter. Of two nodes with overlapping CIDRs the one whose name
/// sorts first wins; this node wins against all.
pub fn desired<'a>(own: &str, nodes: impl IntoIterator<Item = &'a Node>) -> Desired {
    let by_name: BTreeMap<&str, &Node> =
        nodes.into_iter().map(|n| (n.meta.name.name.as_str(), n)).collect();
    let mut taken: Vec<(IpNet, &str)> = by_name
        .get(own)
        .map(|n| n.pod_cidrs.iter().map(|c| (c.trunc(), own)).collect())
        .unwrap_or_default();
    let mut out = Desired::default();
    for (&name, node) in by_name.iter().filter(|(name, _)| **name != own) {
        let mut skip = |reason| out.skipped.push(Skipped { node: name.to_owned(), reason });
        if node.pod_cidrs.is_empty() {
            skip(SkipReason::NoPodCidr);
        }
        for cidr in node.pod_cidrs.iter().map(IpNet::trunc) {
            if cidr.prefix_len() == 0 {
                skip(SkipReason::DefaultRoute(cidr));
                continue;
            }
            if let Some(&(other, owner)) =
                taken.iter().find(|(o, _)| o.contains(&cidr) || cidr.contains(o))
            {
                skip(SkipReason::Overlap { cidr, other, node: owner.to_owned() });
                continue;
            }
            let Some(via) = internal_address(node, &cidr) else {
                skip(SkipReason::NoAddress(cidr));
                continue;
            };
            if cidr.contains(&via) {
                skip(SkipReason::NextHopInside { cidr, via });
                continue;
            }
            taken.push((cidr, name));
            out.routes.push(HostGwRoute { cidr, via, node: name.to_owned() });
        }
    }
    out.routes.sort();
    out
}

fn internal_address(node: &Node, cidr: &IpNet) -> Option<IpAddr> {
    node.addrs
        .iter()
        .filter(|a| a.kind == NodeAddressKind::Internal)
        .map(|a| a.addr)
        .find(|a| a.is_ipv4() == cidr.addr().is_ipv4())
}

#[cfg(test)]
mod tests;
