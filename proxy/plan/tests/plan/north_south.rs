//! What single changes of Services and of the node do for clients outside.

use std::net::IpAddr;

use sluice_model::{Conditions, ObjectName, Protocol, Service, ServiceKind, TrafficPolicy};
use sluice_plan::{NodeContext, Plan, Tables};

use Protocol::Tcp;

use crate::common::service;
use crate::node::{Node, OUTER, balanced, placed, pods, web};

/// S32: the Services are read before the Node object is; what the kernel has tells the addresses.
#[test]
fn node_ports_stay_while_the_node_is_not_known_after_a_restart() {
    let mut node = Node::default();
    let mut web = web("web", "10.96.0.1");
    web.kind = ServiceKind::NodePort;
    web.ports[0].node_port = Some(30080);
    let addr: IpAddr = "172.31.0.11".parse().expect("an address");
    let context = NodeContext { node_port_addrs: [addr].into(), ..NodeContext::default() };
    node.planner.set_node(context.clone());
    node.upsert(&web, &pods(&["10.244.0.1"]));
    node.restart();
    let known = node.tables().node_port_addrs();
    assert_eq!(known, [addr].into());
    node.planner.set_node(NodeContext { node_port_addrs: known, ..NodeContext::default() });
    assert_eq!(node.upsert(&web, &pods(&["10.244.0.1"])).ops, []);
    assert_eq!(node.planner.set_node(context), [].into(), "the node is what it was");
    assert_eq!(node.prune().ops, []);
    assert_eq!(node.tcp("172.31.0.11", 30080), ["10.244.0.1:8080"]);
}

/// S32: whose a NodePort is was lost with its name, and another Service takes one of its addresses.
/// It is served at the others meanwhile, so no process of the node may bind the port.
#[test]
fn node_port_of_a_lost_name_stays_open_where_it_is_served() {
    let mut node = Node::default();
    let mut web = web("web", "10.96.0.1");
    web.kind = ServiceKind::NodePort;
    web.ports[0].node_port = Some(80);
    let addrs: [IpAddr; 2] = ["172.31.0.11", "127.0.0.1"].map(|a| a.parse().expect("an address"));
    node.planner.set_node(NodeContext { node_port_addrs: addrs.into(), ..Default::default() });
    node.upsert(&web, &pods(&["10.244.0.1"]));

    node.kernel.tables.names.clear();
    let context = node.planner.node().clone();
    node.restart();
    node.planner.set_node(context);
    let mut other = service("other", &["10.96.0.2"], crate::node::HTTP);
    other.external_ips = [addrs[0]].into();
    other.meta.created = 1;
    // What a client meets at a port without a name cannot be told, so it is not watched.
    let apply = |node: &mut Node, plan: Plan| {
        plan.ops.iter().for_each(|op| node.kernel.apply(op));
    };
    let plan = node.planner.upsert(&other, &pods(&["10.244.0.2"]));
    apply(&mut node, plan);
    assert_eq!(node.tcp("172.31.0.11", 80), ["10.244.0.2:8080"]);
    assert_eq!(node.tables().node_ports.len(), 1);

    let plan = node.planner.upsert(&web, &pods(&["10.244.0.1"]));
    apply(&mut node, plan);
    node.prune();
    assert_eq!(node.tcp("172.31.0.11", 80), ["10.244.0.1:8080"], "the elder has it");
    let owner = node.tables().node_ports.values().map(|service| node.tables().names[service]);
    assert_eq!(owner.map(|name| name.parts().1.to_owned()).collect::<Vec<_>>(), ["web"]);
}

/// A change of the node names the Services that depend on what changed, and no others.
#[test]
fn change_of_the_node_concerns_only_what_depends_on_it() {
    let mut node = Node::default();
    let plain = web("plain", "10.96.0.1");
    let mut local = web("local", "10.96.0.2");
    local.internal_policy = TrafficPolicy::Local;
    let mut port = web("port", "10.96.0.3");
    port.kind = ServiceKind::NodePort;
    port.ports[0].node_port = Some(30080);
    let mut external = web("external", "10.96.0.4");
    external.external_ips = ["192.0.2.1".parse().expect("an address")].into();
    for service in [&plain, &local, &port, &external] {
        node.upsert(service, &[]);
    }
    let mut hinted = pods(&["10.244.0.1"]);
    hinted[0].for_zones = vec!["west".to_owned()];
    node.upsert(&web("hinted", "10.96.0.5"), &hinted);

    let mut concerned = |change: &dyn Fn(&mut NodeContext)| {
        let mut context = node.planner.node().clone();
        change(&mut context);
        let names = node.planner.set_node(context);
        names.into_iter().map(|name| name.name).collect::<Vec<_>>()
    };
    assert_eq!(concerned(&|node| node.name = "a".to_owned()), ["local"]);
    assert_eq!(concerned(&|node| node.zone = Some("west".to_owned())), ["hinted"]);
    let addr: IpAddr = "172.31.0.11".parse().expect("an address");
    assert_eq!(concerned(&|node| _ = node.node_port_addrs.insert(addr)), ["port"]);
    assert_eq!(concerned(&|node| node.external_ips = false), ["external"]);
    assert_eq!(concerned(&|_| ()), [""; 0]);
}

/// S9: clients outside get this node's endpoints with their own address, and nothing where there are
/// none; clients inside get all; a Service without any endpoint refuses both.
#[test]
fn external_policy_local_keeps_clients_outside_on_the_node() {
    let mut node = Node::default();
    let (web, context) = balanced(TrafficPolicy::Local);
    node.planner.set_node(context);
    let everywhere = placed(&[("10.244.0.1", "here"), ("10.244.1.1", "there")]);
    node.upsert(&web, &everywhere);
    for (addr, port) in OUTER {
        assert_eq!(node.from("203.0.113.7", addr, port), ["10.244.0.1:8080"]);
        assert_eq!(node.tcp(addr, port), ["10.244.0.1:8080", "10.244.1.1:8080"]);
    }
    // S20: to the ClusterIP the policy does not apply.
    let both = ["10.244.0.1:8080", "10.244.1.1:8080 as node"];
    assert_eq!(node.from("203.0.113.7", "10.96.0.1", 80), both);
    node.upsert(&web, &everywhere[1..]);
    for (addr, port) in OUTER {
        assert_eq!(node.from("203.0.113.7", addr, port), ["drop: no local endpoint"]);
        assert_eq!(node.tcp(addr, port), ["10.244.1.1:8080"]);
    }
    node.upsert(&web, &[]);
    for (addr, port) in OUTER {
        assert_eq!(node.from("203.0.113.7", addr, port), ["reject"]);
        assert_eq!(node.tcp(addr, port), ["reject"]);
    }
    node.remove("web");
    assert_eq!(*node.tables(), Tables::default());
}

/// S14: the last endpoint of this node serves clients outside while it terminates, though other nodes
/// have ready ones, which are what clients inside get (KEP-1669).
#[test]
fn terminating_endpoint_of_the_node_serves_clients_outside() {
    let mut node = Node::default();
    let (web, context) = balanced(TrafficPolicy::Local);
    node.planner.set_node(context);
    let mut pods = placed(&[("10.244.0.1", "here"), ("10.244.1.1", "there")]);
    pods[0].conditions = Conditions { ready: false, serving: true, terminating: true };
    node.upsert(&web, &pods);
    assert_eq!(node.from("203.0.113.7", "198.51.100.1", 80), ["10.244.0.1:8080"]);
    assert_eq!(node.tcp("198.51.100.1", 80), ["10.244.1.1:8080"]);
}

/// S31: the policy changes in place, both ways; what clients outside have is written before it is
/// announced and deleted after it is not announced any more.
#[test]
fn external_policy_changes_in_place() {
    let mut node = Node::default();
    let (local, context) = balanced(TrafficPolicy::Local);
    let (cluster, _) = balanced(TrafficPolicy::Cluster);
    node.planner.set_node(context);
    let pods = placed(&[("10.244.0.1", "here"), ("10.244.1.1", "there")]);
    node.upsert(&cluster, &pods);
    let sound = node.tables().canonical();
    let both = ["10.244.0.1:8080", "10.244.1.1:8080 as node"];
    assert_eq!(node.from("203.0.113.7", "192.0.2.1", 80), both);
    node.upsert(&local, &pods);
    assert_eq!(node.from("203.0.113.7", "192.0.2.1", 80), ["10.244.0.1:8080"]);
    node.upsert(&cluster, &pods);
    assert_eq!(node.tables().canonical(), sound);
}

/// O5: a frontend and what clients outside have there belong to one Service, whichever policy the
/// other has.
#[test]
fn loser_of_an_address_has_no_clients_outside_there() {
    let mut node = Node::default();
    let (mut new, context) = balanced(TrafficPolicy::Local);
    let (mut old, _) = balanced(TrafficPolicy::Cluster);
    (new.meta.name.name, new.meta.created) = ("new".to_owned(), 100);
    old.meta.name.name = "old".to_owned();
    new.cluster_ips = vec!["10.96.0.2".parse().expect("an address")];
    node.planner.set_node(context);
    node.upsert(&new, &placed(&[("10.244.0.1", "here")]));
    node.upsert(&old, &placed(&[("10.244.0.2", "here"), ("10.244.1.2", "there")]));
    let all = ["10.244.0.2:8080", "10.244.1.2:8080 as node"];
    assert_eq!(node.from("203.0.113.7", "192.0.2.1", 80), all);
    assert!(!node.tables().canonical().contains('!'), "{}", node.tables().canonical());
    node.remove("old");
    assert_eq!(node.from("203.0.113.7", "192.0.2.1", 80), ["10.244.0.1:8080"]);
}

/// S7: only clients in the ranges get to the load balancer's address, from inside and outside; the
/// Service's other addresses have no ranges. The ranges change in place, and go with the Service.
#[test]
fn source_ranges_admit_and_change_in_place() {
    let mut node = Node::default();
    let (mut web, context) = balanced(TrafficPolicy::Cluster);
    let range = |text: &str| text.parse().expect("a CIDR");
    node.planner.set_node(context);
    let pods = placed(&[("10.244.0.1", "here")]);
    web.source_ranges = vec![range("203.0.113.0/24"), range("10.244.0.0/16")];
    node.upsert(&web, &pods);
    let (in_it, not_in_it) = ("203.0.113.7", "192.0.2.99");
    let dropped = ["drop: not admitted"];
    assert_eq!(node.from(in_it, "198.51.100.1", 80), ["10.244.0.1:8080"]);
    assert_eq!(node.from(not_in_it, "198.51.100.1", 80), dropped);
    assert_eq!(node.tcp("198.51.100.1", 80), ["10.244.0.1:8080"], "pods are in the second range");
    for (addr, port) in [("10.96.0.1", 80), ("172.31.0.1", 30080), ("192.0.2.1", 80)] {
        assert_eq!(node.from(not_in_it, addr, port), ["10.244.0.1:8080"], "{addr}");
    }
    web.source_ranges = vec![range("192.0.2.0/24")];
    let plan = node.upsert(&web, &pods);
    assert_eq!(plan.ops.len(), 3, "one range comes and two go: {:?}", plan.ops);
    assert_eq!(node.from(in_it, "198.51.100.1", 80), dropped);
    assert_eq!(node.from(not_in_it, "198.51.100.1", 80), ["10.244.0.1:8080"]);
    assert_eq!(node.tcp("198.51.100.1", 80), dropped);
    node.restart();
    assert_eq!(node.planner.set_node(balanced(TrafficPolicy::Cluster).1), [].into());
    assert_eq!(node.upsert(&web, &pods), Plan::default());
    assert_eq!(node.prune(), Plan::default());
    web.source_ranges.clear();
    node.upsert(&web, &pods);
    assert_eq!(node.from(in_it, "198.51.100.1", 80), ["10.244.0.1:8080"]);
    assert!(node.tables().source_ranges.is_empty());
}

/// S19: a port of the node is taken for as long as a frontend is there, on whatever address.
#[test]
fn node_ports_are_taken_while_they_are_served() {
    let mut node = Node::default();
    let (mut web, context) = balanced(TrafficPolicy::Local);
    node.planner.set_node(context.clone());
    let taken = |node: &Node| {
        node.tables().node_ports.keys().map(|key| (key.port.get(), key.proto)).collect::<Vec<_>>()
    };
    node.upsert(&web, &[]);
    assert_eq!(taken(&node), [(30080, 6)]);
    web.ports[0].node_port = Some(30081);
    node.upsert(&web, &[]);
    assert_eq!(taken(&node), [(30081, 6)]);
    node.planner.set_node(NodeContext { node_port_addrs: [].into(), ..context.clone() });
    node.upsert(&web, &[]);
    assert_eq!(taken(&node), [], "it is served nowhere");
    node.planner.set_node(context);
    node.upsert(&web, &[]);
    web.kind = ServiceKind::ClusterIp;
    assert_eq!(taken(&node).len(), 1);
    node.upsert(&web, &[]);
    assert_eq!(taken(&node), []);
}

/// Tables that were damaged: a port of the node whose owner has lost its name is taken once that is
/// stated and has its name again, and not before, whatever comes first.
#[test]
fn a_node_port_waits_for_its_owners_name() {
    let mut node = Node::default();
    let addr: IpAddr = "10.96.0.1".parse().expect("an address");
    let other: IpAddr = "fd00::2".parse().expect("an address");
    let mut external = service("external", &[], &[("", 81, Tcp)]);
    external.meta.created = 1;
    external.external_ips = [addr].into();
    let mut web = service("web", &["10.96.0.1", "fd00::1"], &[("", 80, Tcp)]);
    web.kind = ServiceKind::NodePort;
    web.ports[0].node_port = Some(81);
    let context = NodeContext {
        node_port_addrs: [addr, other].into(),
        external_ips: true,
        ..NodeContext::default()
    };
    node.planner.set_node(context.clone());
    node.upsert(&external, &[]);
    node.upsert(&web, &[]);
    let right: Vec<_> = node.tables().node_ports.keys().copied().collect();
    assert_eq!(right.len(), 1);
    node.kernel.tables.node_ports.clear();
    node.kernel.tables.names.clear();
    node.restart();
    node.planner.set_node(context);
    // The tables are not whole before the end, so that nobody can be asked whom clients meet.
    for stated in [&external, &web] {
        node.planner.upsert(stated, &[]).ops.iter().for_each(|op| node.kernel.apply(op));
    }
    node.planner.prune().ops.iter().for_each(|op| node.kernel.apply(op));
    let Tables { node_ports, names, .. } = &node.kernel.tables;
    assert_eq!(node_ports.keys().copied().collect::<Vec<_>>(), right);
    assert!(node_ports.values().all(|owner| names.contains_key(owner)), "{node_ports:?}");
}

/// The mark of endpoints on this node follows the node's name.
#[test]
fn endpoints_of_this_node_are_marked() {
    let mut node = Node::default();
    let (web, context) = balanced(TrafficPolicy::Cluster);
    let pods = placed(&[("10.244.0.1", "here"), ("10.244.1.1", "there")]);
    node.planner.set_node(context.clone());
    node.upsert(&web, &pods);
    let both = |node: &Node| node.from("203.0.113.7", "198.51.100.1", 80);
    assert_eq!(both(&node), ["10.244.0.1:8080", "10.244.1.1:8080 as node"]);
    let renamed = NodeContext { name: "there".to_owned(), ..context };
    assert_eq!(node.planner.set_node(renamed), [ObjectName::new("ns", "web")].into());
    node.upsert(&web, &pods);
    assert_eq!(both(&node), ["10.244.0.1:8080 as node", "10.244.1.1:8080"]);
}

/// S31: through all types and back; `apply_watched` sees to it that each client meets the old state or
/// the new one at each address after each operation.
#[test]
fn service_changes_its_type_in_place() {
    let mut node = Node::default();
    let (balanced, context) = balanced(TrafficPolicy::Local);
    node.planner.set_node(context);
    let pods = placed(&[("10.244.0.1", "here"), ("10.244.1.1", "there")]);
    let plain = |kind| Service { kind, external_ips: [].into(), ..balanced.clone() };
    let types = [
        plain(ServiceKind::ClusterIp),
        plain(ServiceKind::NodePort),
        balanced.clone(),
        plain(ServiceKind::ExternalName("example.org".to_owned())),
        Service { headless: true, cluster_ips: Vec::new(), ..plain(ServiceKind::ClusterIp) },
    ];
    let shown = |node: &Node| {
        [("10.96.0.1", 80), ("172.31.0.1", 30080), ("198.51.100.1", 80)]
            .map(|(addr, port)| node.from("203.0.113.7", addr, port).len())
    };
    let expected = [[2, 1, 1], [2, 1, 1], [2, 1, 1], [1, 1, 1], [1, 1, 1]];
    let served = [[true, false, false], [true, true, false], [true; 3], [false; 3], [false; 3]];
    for (from, to) in (0..5).flat_map(|from| (0..5).map(move |to| (from, to))) {
        node.upsert(&types[from], &pods);
        node.upsert(&types[to], &pods);
        assert_eq!(shown(&node), expected[to], "{from} to {to}");
        for (at, (addr, port)) in [("10.96.0.1", 80), OUTER[0], OUTER[2]].into_iter().enumerate() {
            let meets = node.from("203.0.113.7", addr, port);
            assert_eq!(meets[0].contains(":8080"), served[to][at], "{from} to {to}: {meets:?}");
        }
    }
}
