//! The difference between the routes there should be and those the kernel holds. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{PodRoute, ROUTE_PROTOCOL};

/// A route of the kernel's main table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct KernelRoute {
    /// Destination.
    pub cidr: IpNet,
    /// The one next hop; `None` for none, or for several.
    pub via: Option<IpAddr>,
    /// Index of the outgoing interface, if there is one.
    pub interface: Option<u32>,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// `RTA_PRIORITY`; 0 is IPv4's default, 1024 is IPv6's.
    pub metric: u32,
    /// `RTA_PREFSRC`.
    pub source: Option<IpAddr>,
}

impl KernelRoute {
    /// Whether the route is one of ours.
    pub fn is_ours(&self) -> bool {
        self.protocol == ROUTE_PROTOCOL
    }
}

impl fmt::Display for KernelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " proto {} metric {}", self.protocol, self.metric)
    }
}

/// One change of the kernel's table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteOp {
    /// Make the route, in place of one of ours to the same CIDR if there is one.
    Replace(PodRoute),
    /// Delete exactly this route, which is ours.
    Delete(KernelRoute),
}

/// A foreign route that stands where one of ours should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// What should be there.
    pub wanted: PodRoute,
    /// What is there, and stays.
    pub foreign: KernelRoute,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {} is not set: {} is there and not ours", self.wanted, self.foreign)
    }
}

/// The outcome of [`diff`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diff {
    /// What to do: replacements first, so that no CIDR is without a route in between.
    pub ops: Vec<RouteOp>,
    /// What cannot be done.
    pub conflicts: Vec<Conflict>,
    /// Routes that are as they should be.
    pub unchanged: Vec<PodRoute>,
}

/// Compares. `kernel` holds all routes of a table, or at least ours and those whose CIDR is one of
/// `desired`; `device` is the index of the tunnel's device, where there is one.
///
/// Where a foreign route has the same CIDR, whatever its metric, nothing is added, and one of ours
/// that says something else is removed.
pub fn diff(desired: &[PodRoute], kernel: &[KernelRoute], device: Option<u32>) -> Diff {
    let mut out = Diff::default();
    let mut deletions = Vec::new();
    let wanted: BTreeMap<IpNet, &PodRoute> = desired.iter().map(|r| (r.cidr, r)).collect();
    let ours: BTreeSet<&KernelRoute> = kernel.iter().filter(|r| r.is_ours()).collect();

    let mut right: BTreeMap<IpNet, &KernelRoute> = BTreeMap::new();
    for &route in &ours {
        if wanted.get(&route.cidr).is_some_and(|w| is_right(route, w, device)) {
            right.entry(route.cidr).or_insert(route);
        }
    }
    let mut replaced: BTreeSet<IpNet> = BTreeSet::new();
    for (cidr, &route) in &wanted {
        let foreign = kernel.iter().find(|r| r.cidr == *cidr && !r.is_ours());
        if let Some(foreign) = foreign {
            out.conflicts.push(Conflict { wanted: route.clone(), foreign: foreign.clone() });
        } else if right.contains_key(cidr) {
            out.unchanged.push(route.clone());
        } else {
            out.ops.push(RouteOp::Replace(route.clone()));
            replaced.insert(*cidr);
        }
    }
    for route in ours {
        let stays = right.get(&route.cidr) == Some(&route)
            // The replacement takes the place of the one with its metric.
            || (replaced.contains(&route.cidr) && route.metric == metric(&route.cidr));
        if !stays {
            deletions.push(RouteOp::Delete(route.clone()));
        }
    }
    out.ops.extend(deletions);
    out
}

/// The metric of every route of ours: the kernel's default.
pub fn metric(cidr: &IpNet) -> u32 {
    match cidr {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

fn is_right(route: &KernelRoute, wanted: &PodRoute, device: Option<u32>) -> bool {
    let way = match &wanted.tunnel {
        Some(hop) => route.interface == Some(hop.device) && route.source == hop.source,
        None => device.is_none() || route.interface != device,
    };
    way && route.via == Some(wanted.via) && route.metric == metric(&wanted.cidr)
}

#[cfg(test)]
mod tests;
