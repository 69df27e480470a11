//! Which frontends a Service has, and what each leads to.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::sync::Arc;

use sluice_abi::{Addr, Backend, Be16, FrontendFlags, FrontendKey, Scope};
use sluice_model::{Endpoint, IpFamily, Service, ServiceKind, ServicePort, ServicePortName};

use crate::endpoints::{choose, family};
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
}

/// Whether the Service is somebody else's business: its labels say so, whatever their values.
pub fn is_foreign(service: &Service) -> bool {
    [PROXY_NAME_LABEL, HEADLESS_LABEL].iter().any(|l| service.meta.labels.contains_key(*l))
}

/// What a Service with these endpoints wants.
pub(crate) fn wants(service: &Service, endpoints: &[Endpoint]) -> Wants {
    let mut wants = Wants::default();
    if is_foreign(service)
        || service.headless
        || matches!(service.kind, ServiceKind::ExternalName(_))
    {
        return wants;
    }
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
        wants.add_port(service, index, port, endpoints);
    }
    wants
}

impl Wants {
    /// Adds the frontends of one port.
    fn add_port(
        &mut self,
        service: &Service,
        index: usize,
        port: &ServicePort,
        endpoints: &[Endpoint],
    ) {
        let name = Arc::new(ServicePortName {
            service: service.meta.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        });
        let choose = |family| choose(endpoints, &port.name, port.protocol, family);
        let mut lists: [Option<Arc<[Backend]>>; 2] = [None, None];
        for (ip_index, ip) in service.cluster_ips.iter().enumerate() {
            let list = match family(ip) {
                IpFamily::V4 => lists[0].get_or_insert_with(|| choose(IpFamily::V4)),
                IpFamily::V6 => lists[1].get_or_insert_with(|| choose(IpFamily::V6)),
            };
            let key = FrontendKey {
                addr: Addr::from(*ip),
                port: Be16::new(port.port),
                proto: port.protocol.number(),
                scope: Scope::Internal as u8,
            };
            let want = Want {
                port: Arc::clone(&name),
                flags: FrontendFlags::CLUSTER_IP,
                affinity_secs: service.affinity_secs.unwrap_or(0),
                backends: Arc::clone(list),
                field: format!("spec.clusterIPs[{ip_index}]"),
            };
            match self.frontends.entry(key) {
                btree_map::Entry::Vacant(entry) => {
                    entry.insert(want);
                }
                // The same address twice says nothing new; the same port number twice does.
                btree_map::Entry::Occupied(entry) if entry.get().port == name => {}
                btree_map::Entry::Occupied(entry) => {
                    let warning = Warning {
                        service: service.meta.name.clone(),
                        field: format!("spec.ports[{index}].port"),
                        problem: Problem::DuplicatePort {
                            port: port.port,
                            protocol: port.protocol,
                            first: entry.get().port.port.clone(),
                        },
                    };
                    // Once for all addresses of the Service.
                    if !self.warnings.contains(&warning) {
                        self.warnings.push(warning);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
