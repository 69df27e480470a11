//! What of the node itself the tables depend on.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_abi::FrontendFlags;
use sluice_model::{Endpoint, ObjectName, Service, TrafficPolicy};

use crate::Tables;

/// The node that the tables are for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeContext {
    /// Name of the Node object: an endpoint whose `nodeName` it is is local.
    pub name: String,
    /// The node's zone, if it has one: the label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// The node's own addresses that NodePorts are served on, `127.0.0.1` and `::1` among them if
    /// processes of the node are to reach NodePorts there.
    pub node_port_addrs: BTreeSet<IpAddr>,
    /// The node's own addresses. A Service that has one of them for its ClusterIP takes its own ports
    /// there and leaves all others to the node.
    pub addrs: BTreeSet<IpAddr>,
    /// Whether `spec.externalIPs` are served ([KEP-5707]: a Service's author may take any address
    /// by them, so clusters with authors that are not trusted turn them off).
    ///
    /// [KEP-5707]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/5707-deprecate-service.spec.externalips
    pub external_ips: bool,
    /// The Service that every node serves by itself where it can, as a cluster's DNS: this node's
    /// endpoints come before all others, whatever hints say. `None` where there is none.
    pub node_local: Option<ObjectName>,
}

impl Default for NodeContext {
    /// A node without name and addresses that serves external IPs.
    fn default() -> Self {
        Self {
            name: String::new(),
            zone: None,
            node_port_addrs: BTreeSet::new(),
            addrs: BTreeSet::new(),
            external_ips: true,
            node_local: None,
        }
    }
}

/// Which parts of the [`NodeContext`] something depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Depends {
    pub(crate) name: bool,
    pub(crate) zone: bool,
    pub(crate) node_port_addrs: bool,
    pub(crate) addrs: bool,
    pub(crate) external_ips: bool,
    pub(crate) node_local: bool,
}

impl Depends {
    /// What the frontends of a Service with these endpoints depend on, at most.
    pub(crate) fn of(service: &Service, endpoints: &[Endpoint]) -> Self {
        Self {
            name: service.internal_policy == TrafficPolicy::Local
                || service.external_policy == TrafficPolicy::Local
                || endpoints.iter().any(|e| e.node.is_some() || !e.for_nodes.is_empty()),
            zone: endpoints.iter().any(|endpoint| !endpoint.for_zones.is_empty()),
            node_port_addrs: service.ports.iter().any(|port| port.node_port.is_some()),
            addrs: !service.cluster_ips.is_empty(),
            external_ips: !service.external_ips.is_empty(),
            node_local: true,
        }
    }

    /// The parts that differ.
    pub(crate) fn differing(one: &NodeContext, other: &NodeContext) -> Self {
        Self {
            name: one.name != other.name,
            zone: one.zone != other.zone,
            node_port_addrs: one.node_port_addrs != other.node_port_addrs,
            addrs: one.addrs != other.addrs,
            external_ips: one.external_ips != other.external_ips,
            node_local: one.node_local != other.node_local,
        }
    }

    /// Whether the two have a part in common.
    pub(crate) fn meets(self, other: Self) -> bool {
        (self.name && other.name)
            || (self.zone && other.zone)
            || (self.node_port_addrs && other.node_port_addrs)
            || (self.addrs && other.addrs)
            || (self.external_ips && other.external_ips)
            || (self.node_local && other.node_local)
    }
}

impl Tables {
    /// The addresses that the tables have NodePorts on: what is known of the node's addresses after
    /// a restart, until its Node object is read. Services that are stated in between keep their
    /// NodePorts by it.
    pub fn node_port_addrs(&self) -> BTreeSet<IpAddr> {
        self.frontends
            .iter()
            .filter(|(_, frontend)| frontend.flags & FrontendFlags::NODE_PORT != 0)
            .map(|(key, _)| key.addr.to_ip())
            .collect()
    }
}
