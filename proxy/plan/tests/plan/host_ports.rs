//! Ports of the node that lead to a pod.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_model::{ObjectName, Protocol, Service, ServiceKind};
use sluice_plan::{HostPort, NodeContext, Plan, Planner, PodPorts};

use crate::common::{Kernel, backends_of, endpoint, service};

use Protocol::{Tcp, Udp};

const NODE: [&str; 2] = ["172.31.0.11", "fd00:172:31::11"];

#[derive(Default)]
struct Node {
    planner: Planner,
    kernel: Kernel,
}

impl Node {
    fn apply(&mut self, plan: Plan) -> Vec<String> {
        self.kernel.apply_watched(&plan.ops);
        plan.warnings.iter().map(ToString::to_string).collect()
    }

    /// States a pod; returns the warnings.
    fn pod(&mut self, pod: &PodPorts) -> Vec<String> {
        let plan = self.planner.host_ports(pod);
        self.apply(plan)
    }

    fn gone(&mut self, pod: &PodPorts) -> Vec<String> {
        self.pod(&PodPorts { ports: Vec::new(), ..pod.clone() })
    }

    fn upsert(&mut self, service: &Service) -> Vec<String> {
        let endpoints = [endpoint("10.244.2.2", &[("http", 8080, Tcp)])];
        let plan = self.planner.upsert(service, &endpoints);
        self.apply(plan)
    }

    fn restart(&mut self) {
        let context = self.planner.node().clone();
        self.planner = Planner::restore(self.kernel.tables.clone());
        self.planner.set_node(context);
    }

    fn at(&self, addr: &str, port: u16, protocol: Protocol) -> Vec<String> {
        backends_of(&self.kernel.tables, addr, port, protocol)
    }

    fn empty(&self) -> bool {
        self.kernel.tables.canonical().is_empty()
    }
}

fn pod(name: &str, number: u8, ports: &[(u16, Protocol, u16)]) -> PodPorts {
    let addrs = [format!("10.244.1.{number}"), format!("fd00:244:1::{number}")];
    PodPorts {
        pod: ObjectName::new("ns", name),
        id: format!("container-{number}/eth0"),
        created: 1000 + i64::from(number),
        addrs: addrs.map(|addr| ip(&addr)).into(),
        ports: ports
            .iter()
            .map(|(port, protocol, target)| HostPort {
                addrs: NODE.map(ip).into(),
                port: *port,
                protocol: *protocol,
                target: *target,
            })
            .collect(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A NodePort of 30080 that was made that many seconds after 1970.
fn node_port(created: i64) -> Service {
    let mut service = service("web", &["10.96.0.1"], &[("http", 80, Tcp)]);
    service.kind = ServiceKind::NodePort;
    service.ports[0].node_port = Some(30080);
    service.meta.created = created;
    service
}

fn node_with_ports_on(addrs: &[&str]) -> Node {
    let mut node = Node::default();
    let node_port_addrs: BTreeSet<IpAddr> = addrs.iter().map(|addr| ip(addr)).collect();
    node.planner.set_node(NodeContext { node_port_addrs, ..NodeContext::default() });
    node
}

/// S37: both families, both protocols, the pod alone; and nothing is left of it.
#[test]
fn a_pods_ports_lead_to_the_pod_and_go_with_it() {
    let mut node = Node::default();
    let web = pod("web", 2, &[(8080, Tcp, 80), (8080, Udp, 53)]);
    assert_eq!(node.pod(&web), [""; 0]);
    assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.2:80"]);
    assert_eq!(node.at(NODE[0], 8080, Udp), ["10.244.1.2:53"]);
    assert_eq!(node.at(NODE[1], 8080, Tcp), ["[fd00:244:1::2]:80"]);
    assert_eq!(node.at(NODE[0], 80, Tcp), ["none"]);
    let names: BTreeSet<String> =
        node.kernel.tables.names.values().map(|name| format!("{name:?}")).collect();
    assert_eq!(names, BTreeSet::from(["ns/web:hostPort-8080".to_owned()]));
    // Twice is a no-op.
    assert!(node.planner.host_ports(&web).ops.is_empty());
    assert_eq!(node.gone(&web), [""; 0]);
    assert!(node.empty(), "{}", node.kernel.tables.canonical());
}

/// S37: a pod of one family takes nothing from the addresses of the other.
#[test]
fn a_family_that_the_pod_has_no_address_of_is_passed_over() {
    let mut node = Node::default();
    let mut web = pod("web", 2, &[(8080, Tcp, 80)]);
    web.addrs.truncate(1);
    node.pod(&web);
    assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.2:80"]);
    assert_eq!(node.at(NODE[1], 8080, Tcp), ["none"]);
}

/// S37: the first of two ports at one address has it, without a warning.
#[test]
fn the_first_of_a_pods_own_ports_at_an_address_has_it() {
    let mut node = Node::default();
    let mut web = pod("web", 2, &[(8080, Tcp, 81), (8080, Tcp, 80)]);
    web.ports[0].addrs.truncate(1);
    assert_eq!(node.pod(&web), [""; 0]);
    assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.2:81"]);
    assert_eq!(node.at(NODE[1], 8080, Tcp), ["[fd00:244:1::2]:80"]);
}

/// S37: of two pods the elder has the port, whoever is stated first; the other gets it after it.
#[test]
fn of_two_pods_the_elder_keeps_the_port_and_the_other_waits() {
    let (elder, other) = (pod("a", 2, &[(8080, Tcp, 80)]), pod("b", 3, &[(8080, Tcp, 80)]));
    for order in [[&elder, &other], [&other, &elder]] {
        let mut node = Node::default();
        let warnings: Vec<String> = order.iter().flat_map(|pod| node.pod(pod)).collect();
        let expected = NODE.map(|addr| {
            format!(
                "Pod ns/b: spec.containers[].ports[].hostPort: {addr} port 8080/TCP belongs to Pod \
                 ns/a; this Pod is not reached there"
            )
        });
        assert_eq!(warnings, expected);
        assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.2:80"]);
        assert_eq!(node.planner.warnings().count(), 2);
        node.gone(&elder);
        assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.3:80"]);
        assert_eq!(node.planner.warnings().count(), 0);
    }
}

/// S37: two containers of one pod's name are two pods: a late DEL of the old takes nothing from the
/// new.
#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    let mut node = Node::default();
    let (old, new) = (pod("web-0", 2, &[(8080, Tcp, 80)]), pod("web-0", 3, &[(8080, Tcp, 80)]));
    node.pod(&old);
    node.pod(&new);
    node.gone(&old);
    assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.3:80"]);
    node.gone(&old);
    assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.3:80"]);
}

/// S37: between a pod and a NodePort the elder has the port, and the warning names both.
#[test]
fn between_a_pod_and_a_node_port_the_elder_has_the_port() {
    let web = pod("web-0", 2, &[(30080, Tcp, 80)]);
    let mut node = node_with_ports_on(&NODE[..1]);
    node.upsert(&node_port(1));
    let warnings = node.pod(&web);
    assert_eq!(
        warnings,
        [
            "Pod ns/web-0: spec.containers[].ports[].hostPort: 172.31.0.11 port 30080/TCP belongs to \
          Service ns/web; this Pod is not reached there"
        ]
    );
    assert_eq!(node.at(NODE[0], 30080, Tcp), ["10.244.2.2:8080"]);
    // The Service does not have the other address.
    assert_eq!(node.at(NODE[1], 30080, Tcp), ["[fd00:244:1::2]:80"]);

    let mut node = node_with_ports_on(&NODE[..1]);
    node.pod(&web);
    let warnings = node.upsert(&node_port(2000));
    assert_eq!(
        warnings,
        ["Service ns/web: spec.ports[0].nodePort: 172.31.0.11 port 30080/TCP belongs to Pod \
          ns/web-0; this Service does not get it"]
    );
    assert_eq!(node.at(NODE[0], 30080, Tcp), ["10.244.1.2:80"]);
    node.gone(&web);
    assert_eq!(node.at(NODE[0], 30080, Tcp), ["10.244.2.2:8080"]);
}

/// S37, S32: after a restart the ports of pods that live stay untouched, whatever is pruned; those
/// of pods that went while nobody looked go before the first Service is read.
#[test]
fn a_restart_keeps_the_ports_of_living_pods_and_drops_the_others() {
    let mut node = node_with_ports_on(&NODE[..1]);
    let (stays, goes) = (pod("a", 2, &[(8080, Tcp, 80)]), pod("b", 3, &[(9090, Udp, 90)]));
    node.pod(&stays);
    node.pod(&goes);
    node.upsert(&node_port(1));
    let before = node.kernel.tables.dump();
    node.restart();
    assert!(node.planner.host_ports(&stays).ops.is_empty());
    let plan = node.planner.prune_host_ports();
    node.apply(plan);
    assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.2:80"]);
    assert_eq!(node.at(NODE[0], 9090, Udp), ["none"]);
    // Held for its Service, which nobody has stated yet.
    assert_eq!(node.at(NODE[0], 30080, Tcp), ["10.244.2.2:8080"]);
    node.upsert(&node_port(1));
    let plan = node.planner.prune();
    node.apply(plan);
    node.pod(&goes);
    assert_eq!(node.kernel.tables.frontends.len(), before.matches("frontend ").count());
    assert_eq!(node.at(NODE[0], 8080, Tcp), ["10.244.1.2:80"]);
}

/// S37: a NodePort that the kernel holds from before a restart is not taken by a pod that is stated
/// first, though its Service is not known yet.
#[test]
fn a_restored_node_port_waits_for_its_service() {
    let mut node = node_with_ports_on(&NODE[..1]);
    node.upsert(&node_port(1));
    node.restart();
    let web = pod("web-0", 2, &[(30080, Tcp, 80)]);
    node.pod(&web);
    assert_eq!(node.at(NODE[0], 30080, Tcp), ["10.244.2.2:8080"]);
    node.upsert(&node_port(1));
    assert_eq!(node.at(NODE[0], 30080, Tcp), ["10.244.2.2:8080"]);
    node.planner.remove(&ObjectName::new("ns", "web"));
}
