//! Which frontends a Service has, and what each leads to.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_abi::{Addr, Backend, Be16, FrontendFlags, FrontendKey, Scope};
use sluice_model::{
    Endpoint, IpFamily, Service, ServiceKind, ServicePort, ServicePortName, TrafficPolicy,
};

use crate::NodeContext;
use crate::endpoints::{Pool, family};
use crate::node::Depends;
use crate::warning::{Problem, Warning};

/// Services that another implementation proxies, as kube-proxy knows it.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Services whose endpoints are of no use to a service proxy.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What a Service wants one frontend to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Want {
    /// The service port; it has one number for all its frontends.
    pub(crate) port: Arc<ServicePortName>,
    /// Bits of [`FrontendFlags`].
    pub(crate) flags: u32,
    /// Seconds that a client keeps its backend; 0: no affinity.
    pub(crate) affinity_secs: u32,
    /// Sorted, each once; empty: connections are rejected.
    pub(crate) backends: Arc<[Backend]>,
    /// The field of the Service that asks for the frontend, for warnings.
    pub(crate) field: String,
}

/// All that a Service wants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wants {
    /// By the frontend's key.
    pub(crate) frontends: BTreeMap<FrontendKey, Want>,
    /// What of the Service makes no sense.
    pub(crate) warnings: Vec<Warning>,
    /// With what change of the node all this may change.
    pub(crate) depends: Depends,
}

/// Whether the Service is somebody else's business: its labels say so, whatever their values.
pub fn is_foreign(service: &Service) -> bool {
    [PROXY_NAME_LABEL, HEADLESS_LABEL].iter().any(|l| service.meta.labels.contains_key(*l))
}

/// What a Service with these endpoints wants on this node.
pub(crate) fn wants(service: &Service, endpoints: &[Endpoint], node: &NodeContext) -> Wants {
    let mut wants = Wants::default();
    if is_foreign(service)
        || service.headless
        || matches!(service.kind, ServiceKind::ExternalName(_))
    {
        return wants;
    }
    wants.depends = Depends::of(service, endpoints);
    let refuses_some = [IpFamily::V4, IpFamily::V6].map(|family| refuses_some(service, family));
    for (index, port) in service.ports.iter().enumerate() {
        let same = |p: &ServicePort| p.name == port.name && p.protocol == port.protocol;
        if let Some(first) = service.ports[..index].iter().position(same) {
            wants.warnings.push(Warning {
                service: service.meta.name.clone(),
                field: format!("spec.ports[{index}].name"),
                problem: Problem::DuplicatePortName { name: port.name.clone(), first },
            });
            continue;
        }
        let mut lists = PortLists::new(service, port, endpoints, node);
        for address in addresses(service, index, port, node) {
            let family = family(&address.addr);
            if address.flags == FrontendFlags::LOAD_BALANCER && refuses_some[family as usize] {
                wants.warn(service, address.field, Problem::SourceRanges { addr: address.addr });
                continue;
            }
            let backends = if address.flags == FrontendFlags::CLUSTER_IP {
                lists.internal(family)
            } else {
                lists.cluster(family)
            };
            wants.add(service, index, &lists.name, address, backends);
        }
    }
    wants
}

/// An address and port that a service port is reached at.
struct Address {
    addr: IpAddr,
    port: u16,
    /// One of [`FrontendFlags`].
    flags: u32,
    /// The field of the Service that says so.
    field: String,
    /// The field that names the port, after `spec.ports[N].`.
    port_field: &'static str,
}

/// The addresses of a service port, for clients on this node.
///
/// Of the addresses that are not ClusterIPs those count whose family the Service has: a Service with
/// an IPv4 ClusterIP alone has no NodePort on the node's IPv6 address.
fn addresses(
    service: &Service,
    index: usize,
    port: &ServicePort,
    node: &NodeContext,
) -> Vec<Address> {
    let at = |addr: IpAddr, flags, field: String| Address {
        addr,
        port: port.port,
        flags,
        field,
        port_field: "port",
    };
    let mut found: Vec<Address> = (0..)
        .zip(&service.cluster_ips)
        .map(|(n, ip): (usize, _)| {
            at(*ip, FrontendFlags::CLUSTER_IP, format!("spec.clusterIPs[{n}]"))
        })
        .collect();
    let served = |addr: &IpAddr| has_family(service, family(addr));
    if node.external_ips {
        let ips = service.external_ips.iter().filter(|ip| served(ip));
        found.extend(
            ips.map(|ip| at(*ip, FrontendFlags::EXTERNAL_IP, "spec.externalIPs".to_owned())),
        );
    }
    if service.kind == ServiceKind::LoadBalancer {
        let ips = service.ingress.iter().filter(|entry| !entry.proxy).map(|entry| entry.addr);
        found.extend(ips.filter(served).map(|ip| {
            at(ip, FrontendFlags::LOAD_BALANCER, "status.loadBalancer.ingress".to_owned())
        }));
    }
    if matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer)
        && let Some(number) = port.node_port
    {
        let ips = node.node_port_addrs.iter().filter(|ip| served(ip));
        found.extend(ips.map(|ip| Address {
            addr: *ip,
            port: number,
            flags: FrontendFlags::NODE_PORT,
            field: format!("spec.ports[{index}].nodePort"),
            port_field: "nodePort",
        }));
    }
    found
}

/// Whether the Service is of that family: by its ClusterIPs; where nobody has allocated any (a
/// directory of manifests), by `ipFamilies`, or else it is of both.
fn has_family(service: &Service, wanted: IpFamily) -> bool {
    if service.cluster_ips.is_empty() {
        service.ip_families.is_empty() || service.ip_families.contains(&wanted)
    } else {
        service.cluster_ips.iter().any(|ip| family(ip) == wanted)
    }
}

/// Whether `loadBalancerSourceRanges` keep some clients of that family away.
fn refuses_some(service: &Service, wanted: IpFamily) -> bool {
    let mut ranges =
        service.source_ranges.iter().filter(|range| family(&range.addr()) == wanted).peekable();
    ranges.peek().is_some() && ranges.all(|range| range.prefix_len() != 0)
}

/// The name and the backend lists of one service port, each list made once when it is asked for.
struct PortLists<'a> {
    name: Arc<ServicePortName>,
    internal_policy: TrafficPolicy,
    endpoints: &'a [Endpoint],
    node: &'a NodeContext,
    cluster: [Option<Arc<[Backend]>>; 2],
    local: [Option<Arc<[Backend]>>; 2],
}

impl<'a> PortLists<'a> {
    fn new(
        service: &Service,
        port: &ServicePort,
        endpoints: &'a [Endpoint],
        node: &'a NodeContext,
    ) -> Self {
        let name = ServicePortName {
            service: service.meta.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        };
        Self {
            name: Arc::new(name),
            internal_policy: service.internal_policy,
            endpoints,
            node,
            cluster: [None, None],
            local: [None, None],
        }
    }

    fn pool(&self, family: IpFamily) -> Pool<'a> {
        Pool::new(self.endpoints, &self.name.port, self.name.protocol, family)
    }

    /// For ClusterIPs ([KEP-2086]).
    ///
    /// [KEP-2086]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/2086-service-internal-traffic-policy
    fn internal(&mut self, family: IpFamily) -> Arc<[Backend]> {
        if self.internal_policy == TrafficPolicy::Cluster {
            return self.cluster(family);
        }
        let index = family as usize;
        let list = self.local[index].take().unwrap_or_else(|| self.pool(family).local(self.node));
        Arc::clone(self.local[index].insert(list))
    }

    /// For all other addresses, whatever the external policy: the client is inside.
    fn cluster(&mut self, family: IpFamily) -> Arc<[Backend]> {
        let index = family as usize;
        let list =
            self.cluster[index].take().unwrap_or_else(|| self.pool(family).cluster(self.node));
        Arc::clone(self.cluster[index].insert(list))
    }
}

impl Wants {
    /// Adds a frontend of the service port that stands at `index`.
    fn add(
        &mut self,
        service: &Service,
        index: usize,
        name: &Arc<ServicePortName>,
        address: Address,
        backends: Arc<[Backend]>,
    ) {
        let key = FrontendKey {
            addr: Addr::from(address.addr),
            port: Be16::new(address.port),
            proto: name.protocol.number(),
            scope: Scope::Internal as u8,
        };
        match self.frontends.entry(key) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(Want {
                    port: Arc::clone(name),
                    flags: address.flags,
                    affinity_secs: service.affinity_secs.unwrap_or(0),
                    backends,
                    field: address.field,
                });
            }
            // An address may be a Service's in several ways, such as a load balancer's that stands
            // among the external IPs; a port number may not be two ports'.
            btree_map::Entry::Occupied(mut entry) if entry.get().port == *name => {
                entry.get_mut().flags |= address.flags;
            }
            btree_map::Entry::Occupied(entry) => {
                let first = entry.get().port.port.clone();
                let field = format!("spec.ports[{index}].{}", address.port_field);
                let (port, protocol) = (address.port, name.protocol);
                self.warn(service, field, Problem::DuplicatePort { port, protocol, first });
            }
        }
    }

    /// Warns, once for all addresses of the Service that a problem is the same for.
    fn warn(&mut self, service: &Service, field: String, problem: Problem) {
        let warning = Warning { service: service.meta.name.clone(), field, problem };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

#[cfg(test)]
mod tests;
