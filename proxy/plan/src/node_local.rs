//! A Service that every node serves by itself, as a cluster's DNS.
//!
//! Clients of this node get the endpoints of this node while one is ready, and all ready ones of the
//! cluster while none is: as with `trafficDistribution: PreferSameNode`, but decided here, so that
//! neither hints nor the controller that makes them are needed.
//!
//! A datagram socket that a program has connected is bound to its endpoint: the kernel asks nobody
//! about it again. Its endpoint may be restarted all the same, and a query must not get lost over it.
//! So the address of an endpoint that is not ready is a frontend as well, which leads to those that
//! are. Sockets that are connected to it go on, translated packet by packet until it is back, and
//! what it still answers by itself reaches them as before.

use std::sync::Arc;

use sluice_abi::{Backend, FrontendFlags};
use sluice_model::{Endpoint, Protocol, Service};

use crate::NodeContext;
use crate::endpoints::Pool;
use crate::frontends::Want;

/// Whether each node is to serve this Service by itself.
pub(crate) fn is_local(service: &Service, node: &NodeContext) -> bool {
    node.node_local.as_ref() == Some(&service.meta.name)
}

/// The endpoints, each meant for its own node alone ([`Endpoint::for_nodes`]).
pub(crate) fn hinted(endpoints: &[Endpoint]) -> Vec<Endpoint> {
    endpoints
        .iter()
        .map(|endpoint| Endpoint {
            // An endpoint of no node is meant for a node without a name, which there is not.
            for_nodes: vec![endpoint.node.clone().unwrap_or_default()],
            ..endpoint.clone()
        })
        .collect()
}

/// The addresses that others answer at: of each endpoint that is not ready, where `want` is what the
/// Service's own address leads to. None for streams, which end with their endpoint.
pub(crate) fn stand_ins(pool: &Pool<'_>, want: &Want) -> Vec<(Backend, Want)> {
    if want.port.protocol != Protocol::Udp || want.backends.is_empty() {
        return Vec::new();
    }
    let down = pool.not_ready();
    down.iter()
        // One that serves for want of a better.
        .filter(|one| !want.backends.iter().any(|b| (b.addr, b.port) == (one.addr, one.port)))
        .map(|one| {
            let want = Want {
                port: Arc::clone(&want.port),
                flags: FrontendFlags::CLUSTER_IP,
                outside: None,
                ranges: None,
                field: "endpoints".to_owned(),
                ..want.clone()
            };
            (*one, want)
        })
        .collect()
}

#[cfg(test)]
mod tests;
