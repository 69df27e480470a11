//! Which routes go straight and which through the tunnel, once the kernel has said where next hops
//! are. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::encapsulation::{Mac, mac};
use super::{Desired, Encapsulated, PodRoute, SkipReason, Skipped};

/// Where an address is, by the kernel's routing table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// On a shared link, by the interface with this index.
    OnLink(u32),
    /// Behind a router.
    Gateway(IpAddr),
    /// It is one of this node's.
    Local,
    /// Nowhere; the kernel's answer.
    Nowhere(String),
}

/// The outcome of [`settle`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Routes without encapsulation.
    pub direct: Vec<PodRoute>,
    /// Pod CIDRs behind the tunnel.
    pub pods: Vec<Encapsulated>,
    /// Addresses of nodes behind the tunnel, for packets of this node's pods.
    pub nodes: Vec<Encapsulated>,
    /// What has no route, beside [`Desired::skipped`].
    pub skipped: Vec<Skipped>,
}

impl Desired {
    /// The addresses whose [`Way`] [`settle`] asks for.
    pub fn hops(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let tunnel = self.tunnel.iter();
        let ends = tunnel.clone().flat_map(|tunnel| tunnel.pods.iter().map(|pods| pods.peer));
        let nodes = tunnel.flat_map(|tunnel| tunnel.nodes.iter().map(|node| node.cidr.addr()));
        self.routes.iter().map(|route| route.via).chain(ends).chain(nodes)
    }
}

/// Decides for each pod CIDR, and for each address of a node. `ways` holds the [`Desired::hops`].
pub fn settle(desired: &Desired, ways: &BTreeMap<IpAddr, Way>) -> Settled {
    let mut out = Settled::default();
    let mut macs: BTreeMap<Mac, IpAddr> = BTreeMap::new();
    let unknown = Way::Nowhere("it was not asked for".to_owned());
    let way = |address: &IpAddr| ways.get(address).unwrap_or(&unknown);
    let tunnel = desired.tunnel.as_ref();
    if let Some(tunnel) = tunnel {
        macs.insert(mac(tunnel.own), tunnel.own);
    }
    let mut behind: BTreeMap<_, &Encapsulated> =
        tunnel.iter().flat_map(|tunnel| &tunnel.pods).map(|pods| (pods.cidr, pods)).collect();
    let mut skip = |node: &str, cidr, reason| {
        out.skipped.push(Skipped { node: node.to_owned(), cidr: Some(cidr), reason });
    };
    for route in &desired.routes {
        let PodRoute { cidr, via, node, .. } = route;
        let reason = match way(via) {
            Way::OnLink(_) => {
                behind.remove(cidr);
                out.direct.push(route.clone());
                continue;
            }
            Way::Local => {
                behind.remove(cidr);
                SkipReason::OwnAddress(*via)
            }
            // The tunnel has its say below.
            _ if behind.contains_key(cidr) => continue,
            Way::Gateway(gateway) => SkipReason::NotOnLink { via: *via, gateway: *gateway },
            Way::Nowhere(problem) => {
                SkipReason::Unreachable { via: *via, problem: problem.clone() }
            }
        };
        skip(node, *cidr, reason);
    }
    for (cidr, pods) in behind {
        let peer = pods.peer;
        let reason = match (way(&peer), *macs.entry(mac(peer)).or_insert(peer)) {
            (Way::Local, _) => SkipReason::OwnAddress(peer),
            (Way::Nowhere(problem), _) => {
                SkipReason::Unreachable { via: peer, problem: problem.clone() }
            }
            (_, other) if other != peer => SkipReason::SameMac { peer, other },
            _ => {
                out.pods.push(pods.clone());
                continue;
            }
        };
        skip(&pods.node, cidr, reason);
    }
    let ends: BTreeSet<IpAddr> = out.pods.iter().map(|pods| pods.peer).collect();
    let always = tunnel.is_some_and(|tunnel| tunnel.always);
    for node in tunnel.iter().flat_map(|tunnel| &tunnel.nodes) {
        let addr = node.cidr.addr();
        let straight = !always && matches!(way(&addr), Way::OnLink(_));
        if ends.contains(&node.peer) && !straight && *way(&addr) != Way::Local {
            out.nodes.push(node.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests;
