//! Which endpoints a Service port has.

use std::net::IpAddr;
use std::sync::Arc;

use sluice_abi::{Addr, Backend, BackendFlags, Be16};
use sluice_model::{Endpoint, IpFamily, Protocol};

use crate::NodeContext;

/// The family of an address as the kernel's tables have it: an IPv4-mapped IPv6 address is IPv4.
pub(crate) fn family(addr: &IpAddr) -> IpFamily {
    if Addr::from(*addr).is_v4() { IpFamily::V4 } else { IpFamily::V6 }
}

/// The endpoints of one family that serve a service port, each with the backend it is.
///
/// An endpoint that lists the port under several numbers counts as several.
#[derive(Debug)]
pub(crate) struct Pool<'a> {
    members: Vec<(Backend, &'a Endpoint)>,
    node: &'a NodeContext,
}

/// Which of the ready endpoints the hints of all of them lead this node to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Topology {
    SameNode,
    SameZone,
    Everywhere,
}

impl<'a> Pool<'a> {
    /// The endpoints with a port of that name and protocol, for frontends of that family.
    pub(crate) fn new(
        endpoints: &'a [Endpoint],
        port: &str,
        protocol: Protocol,
        wanted: IpFamily,
        node: &'a NodeContext,
    ) -> Self {
        let mut members = Vec::new();
        for endpoint in endpoints.iter().filter(|endpoint| family(&endpoint.addr) == wanted) {
            let flags = if is_local(endpoint, node) { BackendFlags::LOCAL } else { 0 };
            for served in &endpoint.ports {
                if served.name == port
                    && served.protocol == protocol
                    && let Some(number) = served.port.filter(|number| *number != 0)
                {
                    let backend = Backend {
                        addr: endpoint.addr.into(),
                        port: Be16::new(number),
                        proto: protocol.number(),
                        flags,
                    };
                    members.push((backend, endpoint));
                }
            }
        }
        Self { members, node }
    }

    /// The backends under the traffic policy `Cluster`: sorted, each once.
    ///
    /// They are those of the ready endpoints, of which the hints may shut some out; if none is
    /// ready, those that are terminating but still serve, wherever they are, so that a rollout that
    /// takes the last ready pod away loses no connection ([KEP-1669]).
    ///
    /// [KEP-1669]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/1669-proxy-terminating-endpoints
    pub(crate) fn cluster(&self) -> Arc<[Backend]> {
        let node = self.node;
        let topology = self.topology();
        let near = |endpoint: &Endpoint| match topology {
            Topology::SameNode => endpoint.for_nodes.contains(&node.name),
            Topology::SameZone => {
                node.zone.as_ref().is_some_and(|zone| endpoint.for_zones.contains(zone))
            }
            Topology::Everywhere => true,
        };
        let ready = self.backends(|endpoint| endpoint.conditions.ready && near(endpoint));
        if ready.is_empty() { self.backends(stands_in) } else { ready }
    }

    /// The backends of the endpoints that are not ready: sorted, each once.
    pub(crate) fn not_ready(&self) -> Arc<[Backend]> {
        self.backends(|endpoint| !endpoint.conditions.ready)
    }

    /// The backends under the traffic policy `Local`: those of this node, which may be terminating
    /// ones though other nodes have ready ones. Hints do not count.
    pub(crate) fn local(&self) -> Arc<[Backend]> {
        let here = |endpoint: &Endpoint| is_local(endpoint, self.node);
        let ready = self.backends(|endpoint| endpoint.conditions.ready && here(endpoint));
        if ready.is_empty() {
            self.backends(|endpoint| stands_in(endpoint) && here(endpoint))
        } else {
            ready
        }
    }

    /// Hints count only if every ready endpoint has them and one is meant for this node; those that
    /// name nodes come before those that name zones ([KEP-3015]).
    ///
    /// [KEP-3015]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/3015-prefer-same-node
    fn topology(&self) -> Topology {
        let node = self.node;
        let ready =
            || self.members.iter().map(|(_, endpoint)| *endpoint).filter(|e| e.conditions.ready);
        let leads = |hints: fn(&Endpoint) -> &[String], to: &String| {
            ready().all(|endpoint| !hints(endpoint).is_empty())
                && ready().any(|endpoint| hints(endpoint).contains(to))
        };
        if leads(|endpoint| &endpoint.for_nodes, &node.name) {
            Topology::SameNode
        } else if node.zone.as_ref().is_some_and(|zone| leads(|e| &e.for_zones, zone)) {
            Topology::SameZone
        } else {
            Topology::Everywhere
        }
    }

    fn backends(&self, usable: impl Fn(&Endpoint) -> bool) -> Arc<[Backend]> {
        let usable = self.members.iter().filter(|(_, endpoint)| usable(endpoint));
        let mut found: Vec<Backend> = usable.map(|(backend, _)| *backend).collect();
        // Of an endpoint that is said to be here and elsewhere, it is here that counts.
        found.sort_unstable_by_key(|b| (b.addr.to_ip(), b.port.get(), std::cmp::Reverse(b.flags)));
        found.dedup_by_key(|backend| (backend.addr, backend.port));
        found.into()
    }
}

/// Whether the endpoint is on this node.
fn is_local(endpoint: &Endpoint, node: &NodeContext) -> bool {
    endpoint.node.as_ref() == Some(&node.name)
}

/// Whether the endpoint takes connections while no endpoint is ready.
fn stands_in(endpoint: &Endpoint) -> bool {
    endpoint.conditions.serving && endpoint.conditions.terminating
}

#[cfg(test)]
mod tests;
