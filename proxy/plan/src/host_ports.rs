//! Ports of the node that lead to a single pod (`hostPort` of a Kubernetes container).
//!
//! To the tables a pod with such ports is like one more Service: it has frontends, each with the pod
//! as its only backend, and it stands in the same queue for an address and port as the Services do
//! with their NodePorts. Its place there is the time its network was made, against the
//! `creationTimestamp` of a Service; what has no time at all counts as the oldest.
//!
//! In the planner's books it is kept under a name that no Service can have, because a name of
//! Kubernetes has no slash; and the name of its port in the kernel's table cannot be a Service's
//! either, because those have no capitals.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_abi::{Addr, Backend, BackendFlags, Be16, FrontendFlags, FrontendKey, Scope};
use sluice_model::{ObjectName, Protocol, ServicePortName};

use crate::claims::Rank;
use crate::endpoints::family;
use crate::frontends::{Want, Wants};
use crate::{Plan, Planner, Tables};

/// What begins the name under which a pod stands among the Services.
const PREFIX: &str = "pod/";

/// The field of a Pod that asks for a port of the node, for warnings.
const FIELD: &str = "spec.containers[].ports[].hostPort";

/// A pod of this node with all ports of the node that it asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodPorts {
    /// Its namespace and name; of a container that no Pod is known of, only a name: its id.
    pub pod: ObjectName,
    /// What tells it from another pod of the same name: an old one may still be there, after a fault
    /// of the runtime, when the next is made.
    pub id: String,
    /// When its network was made, in seconds since 1970.
    pub created: i64,
    /// Its addresses.
    pub addrs: Vec<IpAddr>,
    /// The ports. Where two of them name one address, port and protocol, the first has it.
    pub ports: Vec<HostPort>,
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// The addresses of the node that have the port. Those of a family that the pod has no address
    /// of are passed over.
    pub addrs: Vec<IpAddr>,
    /// The node's port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub target: u16,
}

impl PodPorts {
    /// The name under which the pod stands among the Services.
    fn owner(&self) -> ObjectName {
        let Self { pod, id, .. } = self;
        ObjectName::new(&pod.namespace, format!("{PREFIX}{}/{id}", pod.name))
    }

    fn wants(&self) -> Wants {
        let mut wants = Wants::default();
        for port in &self.ports {
            let name = Arc::new(ServicePortName {
                service: self.pod.clone(),
                port: format!("hostPort-{}", port.port),
                protocol: port.protocol,
            });
            for addr in &port.addrs {
                let Some(pod) = self.addrs.iter().find(|pod| family(pod) == family(addr)) else {
                    continue;
                };
                let key = FrontendKey {
                    addr: Addr::from(*addr),
                    port: Be16::new(port.port),
                    proto: port.protocol.number(),
                    scope: Scope::Internal as u8,
                };
                let backend = Backend {
                    addr: Addr::from(*pod),
                    port: Be16::new(port.target),
                    proto: port.protocol.number(),
                    flags: BackendFlags::LOCAL,
                };
                wants.frontends.entry(key).or_insert_with(|| Want {
                    port: Arc::clone(&name),
                    flags: FrontendFlags::HOST_PORT,
                    affinity_secs: 0,
                    backends: Arc::new([backend]),
                    outside: None,
                    ranges: None,
                    field: FIELD.to_owned(),
                });
            }
        }
        wants
    }
}

impl Planner {
    /// States which ports of the node a pod has; none where `ports` is empty, and so a pod that went
    /// is stated a last time. What another pod or a Service has already is not taken from it: the
    /// plan warns of it.
    pub fn host_ports(&mut self, pod: &PodPorts) -> Plan {
        let owner = pod.owner();
        if pod.ports.is_empty() {
            return self.remove(&owner);
        }
        self.state(Rank { created: pod.created, service: owner }, pod.wants())
    }

    /// Deletes the restored ports of pods that were not stated since. To be called once all pods of
    /// the node were, which needs no source: the pods of a node are known to the node itself.
    pub fn prune_host_ports(&mut self) -> Plan {
        let is_host_port = |flags| flags & FrontendFlags::HOST_PORT != 0;
        let frontends = self.tables().frontends.iter();
        let affected = frontends.filter(|(_, f)| is_host_port(f.flags)).map(|(key, _)| *key);
        self.settle(affected.collect(), Vec::new())
    }
}

impl Tables {
    /// The addresses that the tables have pods' ports on: what is known of the node's addresses after
    /// a restart, until its Node object is read.
    pub fn host_port_addrs(&self) -> impl Iterator<Item = IpAddr> {
        let frontends = self.frontends.iter();
        frontends
            .filter(|(_, frontend)| frontend.flags & FrontendFlags::HOST_PORT != 0)
            .map(|(key, _)| key.addr.to_ip())
    }
}

/// `Service shop/web` or `Pod shop/web-0`: whoever stands under that name among the Services.
pub(crate) struct Subject<'a>(pub(crate) &'a ObjectName);

impl Subject<'_> {
    /// Whether it is a pod with ports of the node.
    pub(crate) fn is_pod(&self) -> bool {
        self.0.name.starts_with(PREFIX)
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rest) = self.0.name.strip_prefix(PREFIX) else {
            return write!(f, "Service {}", self.0);
        };
        let pod = rest.split('/').next().unwrap_or(rest);
        write!(f, "Pod {}", ObjectName::new(&self.0.namespace, pod))
    }
}
