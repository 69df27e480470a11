//! Which frontends a Service has, and what each leads to.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_abi::{Addr, Backend, Be16, FrontendFlags, FrontendKey, Scope};
use sluice_model::{
    Endpoint, IpFamily, Service, ServiceKind, ServicePort, ServicePortName, TrafficPolicy,
};

use crate::NodeContext;
use crate::endpoints::{Pool, family};
use crate::node::Depends;
use crate::node_local;
use crate::ranges::{Range, Ranges};
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
    /// What clients outside get instead: the backends of this node, and nothing where there are none
    /// (`externalTrafficPolicy: Local`).
    pub(crate) outside: Option<Arc<[Backend]>>,
    /// The clients that are admitted, if not all are.
    pub(crate) ranges: Option<Arc<[Range]>>,
    /// The field of the Service that asks for the frontend, for warnings.
    pub(crate) field: String,
}

/// All that a Service wants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wants {
    /// By the frontend's key.
    pub(crate) frontends: BTreeMap<FrontendKey, Want>,
    /// Keys of addresses all of whose ports are the Service's to refuse.
    pub(crate) any_port: BTreeSet<FrontendKey>,
    /// What of the Service makes no sense.
    pub(crate) warnings: Vec<Warning>,
    /// With what change of the node all this may change.
    pub(crate) depends: Depends,
}

impl Wants {
    /// The keys of all that is asked for.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.keys().chain(&self.any_port)
    }
}

/// The key that stands for all ports and protocols of an address that have no key of their own.
pub(crate) fn any_port(addr: Addr) -> FrontendKey {
    FrontendKey { addr, port: Be16::new(0), proto: 0, scope: Scope::Internal as u8 }
}

/// The key for clients inside at the same address, port and protocol: what Services ask for goes by
/// it, and the frontend for clients outside goes with it.
pub(crate) fn inside(key: &FrontendKey) -> FrontendKey {
    let scope = if key.scope == Scope::External as u8 { Scope::Internal as u8 } else { key.scope };
    FrontendKey { scope, ..*key }
}

/// Whether the key is one of [`any_port`]'s.
pub(crate) fn is_any_port(key: &FrontendKey) -> bool {
    *key == any_port(key.addr)
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
    let hinted;
    let mut endpoints = endpoints;
    let every_node = node_local::is_local(service, node);
    if every_node {
        hinted = node_local::hinted(endpoints);
        endpoints = &hinted;
    }
    let own = service.cluster_ips.iter().filter(|ip| !node.addrs.contains(ip));
    wants.any_port = own.map(|ip| any_port(Addr::from(*ip))).collect();
    let ranges = Ranges::of(service);
    wants.warnings.extend(ranges.warnings(service));
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
            let inside = address.flags == FrontendFlags::CLUSTER_IP;
            let backends = if inside { lists.internal(family) } else { lists.cluster(family) };
            // A Service without any endpoint refuses whoever comes, as one with the policy `Cluster`.
            let differs = !inside
                && service.external_policy == TrafficPolicy::Local
                && !backends.is_empty()
                // Nobody comes there from outside.
                && !address.addr.is_loopback();
            let want = Want {
                port: Arc::clone(&lists.name),
                flags: address.flags,
                affinity_secs: service.affinity_secs.unwrap_or(0),
                backends,
                outside: differs.then(|| lists.local(family)),
                ranges: (address.flags == FrontendFlags::LOAD_BALANCER)
                    .then(|| ranges.admitted(family))
                    .flatten(),
                field: address.field,
            };
            let at = (address.addr, address.port);
            if inside && every_node {
                for (one, want) in node_local::stand_ins(&lists.pool(family), &want) {
                    let at = (one.addr.to_ip(), one.port.get());
                    wants.add(service, index, at, "targetPort", want);
                }
            }
            wants.add(service, index, at, address.port_field, want);
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
        Pool::new(self.endpoints, &self.name.port, self.name.protocol, family, self.node)
    }

    /// For ClusterIPs ([KEP-2086]).
    ///
    /// [KEP-2086]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/2086-service-internal-traffic-policy
    fn internal(&mut self, family: IpFamily) -> Arc<[Backend]> {
        if self.internal_policy == TrafficPolicy::Cluster {
            return self.cluster(family);
        }
        self.local(family)
    }

    /// The endpoints of this node.
    fn local(&mut self, family: IpFamily) -> Arc<[Backend]> {
        let index = family as usize;
        let list = self.local[index].take().unwrap_or_else(|| self.pool(family).local());
        Arc::clone(self.local[index].insert(list))
    }

    /// For clients inside at all other addresses, whatever the external policy, and for all clients
    /// where that is `Cluster`.
    fn cluster(&mut self, family: IpFamily) -> Arc<[Backend]> {
        let index = family as usize;
        let list = self.cluster[index].take().unwrap_or_else(|| self.pool(family).cluster());
        Arc::clone(self.cluster[index].insert(list))
    }
}

impl Wants {
    /// Adds a frontend at an address and port, of the service port that stands at `index`.
    fn add(
        &mut self,
        service: &Service,
        index: usize,
        (addr, port): (IpAddr, u16),
        port_field: &str,
        want: Want,
    ) {
        let protocol = want.port.protocol;
        let key = FrontendKey {
            addr: Addr::from(addr),
            port: Be16::new(port),
            proto: protocol.number(),
            scope: Scope::Internal as u8,
        };
        match self.frontends.entry(key) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(want);
            }
            // An address may be a Service's in several ways, such as a load balancer's that stands
            // among the external IPs; a port number may not be two ports'.
            btree_map::Entry::Occupied(mut entry) if entry.get().port == want.port => {
                let first = entry.get_mut();
                // A ClusterIP stays one; and nobody gets past the ranges by the other name.
                if first.flags & FrontendFlags::CLUSTER_IP == 0 {
                    first.ranges = first.ranges.take().or(want.ranges);
                }
                first.flags |= want.flags;
            }
            btree_map::Entry::Occupied(entry) => {
                let first = entry.get().port.port.clone();
                let field = format!("spec.ports[{index}].{port_field}");
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
