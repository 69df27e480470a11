//! A node of which single changes are told, and what they are told of.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_model::{Endpoint, ObjectName, Protocol, Service, ServiceKind, TrafficPolicy};
use sluice_plan::{NodeContext, Place, Plan, Planner, Tables};

use Protocol::Tcp;

use crate::common::{Kernel, backends_for, backends_of, client, endpoint, service};

/// A planner and the kernel that does what it says, operation by operation.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) planner: Planner,
    pub(crate) kernel: Kernel,
}

impl Node {
    pub(crate) fn upsert(&mut self, service: &Service, endpoints: &[Endpoint]) -> Plan {
        let plan = self.planner.upsert(service, endpoints);
        self.kernel.apply_watched(&plan.ops);
        plan
    }

    pub(crate) fn remove(&mut self, name: &str) -> Plan {
        let plan = self.planner.remove(&ObjectName::new("ns", name));
        self.kernel.apply_watched(&plan.ops);
        plan
    }

    pub(crate) fn prune(&mut self) -> Plan {
        let plan = self.planner.prune();
        self.kernel.apply_watched(&plan.ops);
        plan
    }

    /// The agent starts anew on what the kernel holds.
    pub(crate) fn restart(&mut self) {
        self.planner = Planner::restore(self.kernel.tables.clone());
    }

    pub(crate) fn tcp(&self, addr: &str, port: u16) -> Vec<String> {
        backends_of(&self.kernel.tables, addr, port, Tcp)
    }

    /// What a client beyond the uplinks meets.
    pub(crate) fn from(&self, addr: &str, to: &str, port: u16) -> Vec<String> {
        backends_for(&self.kernel.tables, &client((addr, Place::Outside)), to, port, Tcp)
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.kernel.tables
    }

    pub(crate) fn backend_numbers(&self) -> BTreeSet<u32> {
        self.tables().backends.keys().copied().collect()
    }

    pub(crate) fn service_numbers(&self) -> BTreeSet<u32> {
        self.tables().names.keys().copied().collect()
    }
}

pub(crate) const HTTP: &[(&str, u16, Protocol)] = &[("http", 80, Tcp)];

pub(crate) fn web(name: &str, ip: &str) -> Service {
    service(name, &[ip], HTTP)
}

pub(crate) fn pods(addrs: &[&str]) -> Vec<Endpoint> {
    addrs.iter().map(|addr| endpoint(addr, &[("http", 8080, Tcp)])).collect()
}

pub(crate) fn texts(plan: &Plan) -> Vec<String> {
    plan.warnings.iter().map(ToString::to_string).collect()
}

/// A LoadBalancer on node `here`, with all kinds of addresses.
pub(crate) fn balanced(policy: TrafficPolicy) -> (Service, NodeContext) {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let mut web = web("web", "10.96.0.1");
    web.kind = ServiceKind::LoadBalancer;
    web.ports[0].node_port = Some(30080);
    web.external_ips = [ip("192.0.2.1")].into();
    web.ingress =
        vec![sluice_model::LoadBalancerIngress { addr: ip("198.51.100.1"), proxy: false }];
    web.external_policy = policy;
    let context = NodeContext {
        name: "here".to_owned(),
        node_port_addrs: [ip("172.31.0.1"), ip("127.0.0.1")].into(),
        ..NodeContext::default()
    };
    (web, context)
}

/// Pods on nodes.
pub(crate) fn placed(pods: &[(&str, &str)]) -> Vec<Endpoint> {
    pods.iter()
        .map(|(addr, node)| Endpoint {
            node: Some((*node).to_owned()),
            ..endpoint(addr, &[("http", 8080, Tcp)])
        })
        .collect()
}

pub(crate) const OUTER: [(&str, u16); 3] =
    [("172.31.0.1", 30080), ("192.0.2.1", 80), ("198.51.100.1", 80)];
