//! What single changes do to the kernel's tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::common::{Kernel, backends_for, backends_of, client, endpoint, service};
use sluice_abi::SlotKey;
use sluice_model::{
    Conditions, Endpoint, ObjectName, Protocol, Service, ServiceKind, TrafficPolicy,
};
use sluice_plan::{MapOp, NodeContext, Place, Plan, Planner, Tables};

use Protocol::{Sctp, Tcp, Udp};

/// A planner and the kernel that does what it says, operation by operation.
#[derive(Default)]
struct Node {
    planner: Planner,
    kernel: Kernel,
}

impl Node {
    fn upsert(&mut self, service: &Service, endpoints: &[Endpoint]) -> Plan {
        let plan = self.planner.upsert(service, endpoints);
        self.kernel.apply_watched(&plan.ops);
        plan
    }

    fn remove(&mut self, name: &str) -> Plan {
        let plan = self.planner.remove(&ObjectName::new("ns", name));
        self.kernel.apply_watched(&plan.ops);
        plan
    }

    fn prune(&mut self) -> Plan {
        let plan = self.planner.prune();
        self.kernel.apply_watched(&plan.ops);
        plan
    }

    /// The agent starts anew on what the kernel holds.
    fn restart(&mut self) {
        self.planner = Planner::restore(self.kernel.tables.clone());
    }

    fn tcp(&self, addr: &str, port: u16) -> Vec<String> {
        backends_of(&self.kernel.tables, addr, port, Tcp)
    }

    /// What a client beyond the uplinks meets.
    fn from(&self, addr: &str, to: &str, port: u16) -> Vec<String> {
        backends_for(&self.kernel.tables, &client((addr, Place::Outside)), to, port, Tcp)
    }

    fn tables(&self) -> &Tables {
        &self.kernel.tables
    }

    fn backend_numbers(&self) -> BTreeSet<u32> {
        self.tables().backends.keys().copied().collect()
    }

    fn service_numbers(&self) -> BTreeSet<u32> {
        self.tables().names.keys().copied().collect()
    }
}

const HTTP: &[(&str, u16, Protocol)] = &[("http", 80, Tcp)];

fn web(name: &str, ip: &str) -> Service {
    service(name, &[ip], HTTP)
}

fn pods(addrs: &[&str]) -> Vec<Endpoint> {
    addrs.iter().map(|addr| endpoint(addr, &[("http", 8080, Tcp)])).collect()
}

fn texts(plan: &Plan) -> Vec<String> {
    plan.warnings.iter().map(ToString::to_string).collect()
}

/// Each backend has one slot of the list, so that a uniform choice of slot is a uniform choice
/// of backend.
#[test]
fn new_service_leads_to_all_its_endpoints() {
    let mut node = Node::default();
    node.upsert(&web("web", "10.96.0.1"), &pods(&["10.244.0.1", "10.244.0.2"]));
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080", "10.244.0.2:8080"]);
    assert_eq!(node.tcp("10.96.0.1", 81), ["no such port"]);
    assert_eq!(node.tcp("10.96.0.2", 80), ["none"]);
}

/// S2: one address and port with different backends for TCP, UDP and SCTP.
#[test]
fn protocols_of_one_port_have_their_own_backends() {
    let mut node = Node::default();
    let dns = service("dns", &["10.96.0.10"], &[("t", 53, Tcp), ("u", 53, Udp), ("s", 53, Sctp)]);
    let endpoints = [
        endpoint("10.244.0.1", &[("t", 5301, Tcp)]),
        endpoint("10.244.0.2", &[("u", 5302, Udp)]),
        endpoint("10.244.0.3", &[("s", 5303, Sctp)]),
    ];
    node.upsert(&dns, &endpoints);
    let meets = |protocol| backends_of(node.tables(), "10.96.0.10", 53, protocol);
    assert_eq!(meets(Tcp), ["10.244.0.1:5301"]);
    assert_eq!(meets(Udp), ["10.244.0.2:5302"]);
    assert_eq!(meets(Sctp), ["10.244.0.3:5303"]);
    assert_eq!(node.service_numbers().len(), 3);
}

/// S26: the frontends of both families lead to endpoints of their own family and share the service
/// number.
#[test]
fn families_of_a_service_have_their_own_backends() {
    let mut node = Node::default();
    let dual = service("web", &["10.96.0.1", "fd00::1"], HTTP);
    node.upsert(&dual, &pods(&["10.244.0.1", "fd01::1", "10.244.0.2"]));
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080", "10.244.0.2:8080"]);
    assert_eq!(node.tcp("fd00::1", 80), ["[fd01::1]:8080"]);
    assert_eq!(node.service_numbers().len(), 1);
    node.upsert(&dual, &pods(&["fd01::1"]));
    assert_eq!(node.tcp("10.96.0.1", 80), ["reject"], "single-stack endpoints");
}

/// A Service without endpoints is there, and rejects; not so a Service that does not exist.
#[test]
fn service_without_endpoints_rejects() {
    let mut node = Node::default();
    node.upsert(&web("web", "10.96.0.1"), &[]);
    assert_eq!(node.tcp("10.96.0.1", 80), ["reject"]);
    node.upsert(&web("web", "10.96.0.1"), &pods(&["10.244.0.1"]));
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
    node.upsert(&web("web", "10.96.0.1"), &[]);
    assert_eq!(node.tcp("10.96.0.1", 80), ["reject"]);
    assert_eq!(node.tables().backends.len(), 0);
    node.remove("web");
    assert_eq!(node.tcp("10.96.0.1", 80), ["none"]);
    assert_eq!(*node.tables(), Tables::default());
}

/// S14: the last ready endpoint begins to terminate and is used until a new one is ready.
#[test]
fn terminating_endpoint_serves_until_another_is_ready() {
    let mut node = Node::default();
    let web = web("web", "10.96.0.1");
    let mut endpoints = pods(&["10.244.0.1", "10.244.0.2"]);
    endpoints[0].conditions = Conditions { ready: false, serving: true, terminating: true };
    endpoints[1].conditions = Conditions { ready: false, serving: false, terminating: false };
    node.upsert(&web, &endpoints);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
    endpoints[1].conditions = Conditions::default();
    node.upsert(&web, &endpoints);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.2:8080"]);
}

/// S18: the label may come and go while the Service stands.
#[test]
fn service_that_becomes_foreign_is_withdrawn() {
    let mut node = Node::default();
    let own = web("web", "10.96.0.1");
    let mut foreign = own.clone();
    let label = "service.kubernetes.io/service-proxy-name".to_owned();
    foreign.meta.labels.insert(label, "other".to_owned());
    let pods = pods(&["10.244.0.1"]);
    node.upsert(&own, &pods);
    node.upsert(&foreign, &pods);
    assert_eq!(*node.tables(), Tables::default());
    node.upsert(&own, &pods);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
}

/// The time-out is the frontend's.
#[test]
fn affinity_is_switched_without_a_new_list() {
    let mut node = Node::default();
    let mut web = web("web", "10.96.0.1");
    let pods = pods(&["10.244.0.1"]);
    node.upsert(&web, &pods);
    web.affinity_secs = Some(10800);
    let plan = node.upsert(&web, &pods);
    assert!(matches!(plan.ops[..], [MapOp::PutFrontend(_, f)] if f.affinity_secs == 10800));
}

/// S30: two Services on the same endpoint share its number, and neither takes it from the other.
#[test]
fn backend_of_two_services_stays_while_one_needs_it() {
    let mut node = Node::default();
    node.upsert(&web("a", "10.96.0.1"), &pods(&["10.244.0.1", "10.244.0.2"]));
    node.upsert(&web("b", "10.96.0.2"), &pods(&["10.244.0.1"]));
    assert_eq!(node.tables().backends.len(), 2);
    let before = node.backend_numbers();
    node.remove("a");
    assert_eq!(node.tcp("10.96.0.2", 80), ["10.244.0.1:8080"]);
    assert_eq!(node.tables().backends.len(), 1);
    assert!(node.backend_numbers().is_subset(&before), "it keeps its number");
}

/// S30: what is shared by content alone is not mixed up when one of the two changes.
#[test]
fn services_with_the_same_endpoints_part_when_one_changes() {
    let mut node = Node::default();
    let both = pods(&["10.244.0.1", "10.244.0.2"]);
    node.upsert(&web("a", "10.96.0.1"), &both);
    let plan = node.upsert(&web("b", "10.96.0.2"), &both);
    assert!(!plan.ops.iter().any(|op| matches!(op, MapOp::PutSlots(..) | MapOp::PutBackend(..))));
    node.upsert(&web("b", "10.96.0.2"), &both[..1]);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080", "10.244.0.2:8080"]);
    assert_eq!(node.tcp("10.96.0.2", 80), ["10.244.0.1:8080"]);
}

/// S31: a new cluster address is served before the old one goes.
#[test]
fn cluster_address_changes_in_place() {
    let mut node = Node::default();
    let pods = pods(&["10.244.0.1"]);
    node.upsert(&web("web", "10.96.0.1"), &pods);
    let number = node.service_numbers();
    let plan = node.upsert(&web("web", "10.96.0.2"), &pods);
    let put = plan.ops.iter().position(|op| matches!(op, MapOp::PutFrontend(..)));
    let delete = plan.ops.iter().position(|op| matches!(op, MapOp::DeleteFrontend(..)));
    assert!(put.is_some() && put < delete, "{plan:?}");
    assert_eq!(node.tcp("10.96.0.1", 80), ["none"]);
    assert_eq!(node.tcp("10.96.0.2", 80), ["10.244.0.1:8080"]);
    assert_eq!(node.service_numbers(), number, "the service port keeps its number");
}

/// S31: a port's new name is a new service port; the frontend goes over in one write.
#[test]
fn port_is_renamed_in_place() {
    let mut node = Node::default();
    let endpoints = [endpoint("10.244.0.1", &[("http", 8080, Tcp), ("web", 8080, Tcp)])];
    node.upsert(&web("web", "10.96.0.1"), &endpoints);
    let plan = node.upsert(&service("web", &["10.96.0.1"], &[("web", 80, Tcp)]), &endpoints);
    let ops: Vec<_> = plan.ops.iter().map(ToString::to_string).collect();
    assert!(
        matches!(
            &plan.ops[..],
            [MapOp::PutName(new, _), MapOp::PutFrontend(_, f), MapOp::DeleteName(old)]
                if f.service == *new && new != old
        ),
        "{ops:?}"
    );
}

/// S31: ClusterIP, headless, ExternalName and back.
#[test]
fn type_changes_in_place() {
    let mut node = Node::default();
    let web = web("web", "10.96.0.1");
    let headless = Service { headless: true, cluster_ips: Vec::new(), ..web.clone() };
    let kind = sluice_model::ServiceKind::ExternalName("example.org".to_owned());
    let external = Service { kind, ..web.clone() };
    let pods = pods(&["10.244.0.1"]);
    for other in [headless, external] {
        node.upsert(&web, &pods);
        assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
        node.upsert(&other, &pods);
        assert_eq!(*node.tables(), Tables::default());
    }
}

/// The set counts, not its order: nothing is written.
#[test]
fn reordered_endpoints_change_nothing() {
    let mut node = Node::default();
    let web = web("web", "10.96.0.1");
    node.upsert(&web, &pods(&["10.244.0.1", "10.244.0.2", "10.244.0.3"]));
    let plan = node.upsert(&web, &pods(&["10.244.0.3", "10.244.0.1", "10.244.0.2"]));
    assert_eq!(plan, Plan::default());
}

/// A list never changes under a frontend that names it, so every change makes a new one, and a
/// number that was in use a moment ago is not used again.
#[test]
fn changed_endpoints_get_a_new_list_and_new_numbers() {
    let mut node = Node::default();
    let web = web("web", "10.96.0.1");
    let mut lists = BTreeSet::new();
    let mut backends = BTreeSet::new();
    for round in 0..5 {
        node.upsert(&web, &pods(&[&format!("10.244.0.{round}")]));
        let frontends = node.tables().frontends.values();
        let frontend = frontends.max_by_key(|f| f.count).expect("one frontend");
        assert!(lists.insert(frontend.list), "list number {} again", frontend.list);
        for number in node.backend_numbers() {
            assert!(backends.insert(number), "backend number {number} again");
        }
    }
    assert_eq!(node.tables().slots.len(), 1, "the old lists are gone");
}

/// O5: of two Services with one ClusterIP and port the older has it; the other gets one warning
/// that names both objects and the field, and gets the frontend when the first goes.
#[test]
fn duplicate_cluster_address_belongs_to_the_older_service() {
    let mut node = Node::default();
    let old = web("old", "10.96.0.1");
    let mut new = web("new", "10.96.0.1");
    new.meta.created = 100;
    assert_eq!(texts(&node.upsert(&old, &pods(&["10.244.0.1"]))), [""; 0]);
    let warning = "Service ns/new: spec.clusterIPs[0]: 10.96.0.1 port 80/TCP belongs to Service \
                   ns/old; this Service does not get it";
    assert_eq!(texts(&node.upsert(&new, &pods(&["10.244.0.2"]))), [warning]);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
    assert_eq!(texts(&node.upsert(&new, &pods(&["10.244.0.3"]))), [""; 0], "warned of already");
    node.remove("old");
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.3:8080"]);
    // It comes back, still the older one.
    assert_eq!(texts(&node.upsert(&old, &pods(&["10.244.0.1"]))), [warning]);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
}

/// O5: who stops to ask for a frontend and then asks again is told again.
#[test]
fn conflict_that_returns_is_warned_of_again() {
    let mut node = Node::default();
    node.upsert(&web("a", "10.96.0.1"), &[]);
    assert_eq!(node.upsert(&web("b", "10.96.0.1"), &[]).warnings.len(), 1);
    assert_eq!(node.upsert(&web("b", "10.96.0.2"), &[]).warnings.len(), 0);
    assert_eq!(node.upsert(&web("b", "10.96.0.1"), &[]).warnings.len(), 1);
}

/// O5: with the same age the name decides, and a third claimant waits its turn.
#[test]
fn claimants_of_one_age_queue_by_name() {
    let mut node = Node::default();
    for (name, pod) in [("c", "10.244.0.3"), ("a", "10.244.0.1"), ("b", "10.244.0.2")] {
        node.upsert(&web(name, "10.96.0.1"), &pods(&[pod]));
    }
    for (name, pod) in [("a", "10.244.0.1:8080"), ("b", "10.244.0.2:8080")] {
        assert_eq!(node.tcp("10.96.0.1", 80), [pod]);
        node.remove(name);
    }
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.3:8080"]);
}

/// O5: what one Service loses it loses alone: its other frontends, and all others, are programmed.
#[test]
fn loser_of_one_frontend_keeps_its_others() {
    let mut node = Node::default();
    node.upsert(&web("a", "10.96.0.1"), &pods(&["10.244.0.1"]));
    let both = service("b", &["10.96.0.1"], &[("http", 80, Tcp), ("alt", 81, Tcp)]);
    let endpoints = [endpoint("10.244.0.2", &[("http", 8080, Tcp), ("alt", 8081, Tcp)])];
    assert_eq!(node.upsert(&both, &endpoints).warnings.len(), 1);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
    assert_eq!(node.tcp("10.96.0.1", 81), ["10.244.0.2:8081"]);
}

/// S32: a restart with the same world writes nothing and keeps every number.
#[test]
fn restart_with_the_same_services_writes_nothing() {
    let mut node = Node::default();
    let a = service("a", &["10.96.0.1", "fd00::1"], &[("http", 80, Tcp), ("dns", 53, Udp)]);
    let pods_a = [endpoint("10.244.0.1", &[("http", 8080, Tcp), ("dns", 53, Udp)])];
    let pods_b = pods(&["10.244.0.1", "10.244.0.2"]);
    node.upsert(&a, &pods_a);
    node.upsert(&web("b", "10.96.0.2"), &pods_b);
    node.restart();
    assert_eq!(node.upsert(&web("b", "10.96.0.2"), &pods_b), Plan::default());
    assert_eq!(node.upsert(&a, &pods_a), Plan::default());
    assert_eq!(node.prune(), Plan::default());
}

/// S32: what changed while the agent was away is put right, what went is kept until all sources
/// have been heard, and then deleted.
#[test]
fn restart_keeps_what_it_has_not_heard_of_until_it_prunes() {
    let mut node = Node::default();
    node.upsert(&web("stays", "10.96.0.1"), &pods(&["10.244.0.1"]));
    node.upsert(&web("changes", "10.96.0.2"), &pods(&["10.244.0.1", "10.244.0.2"]));
    node.upsert(&web("goes", "10.96.0.3"), &pods(&["10.244.0.3"]));
    let numbers = node.backend_numbers();
    node.restart();
    node.upsert(&web("changes", "10.96.0.2"), &pods(&["10.244.0.2", "10.244.0.4"]));
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"], "not heard of yet");
    assert_eq!(node.tcp("10.96.0.2", 80), ["10.244.0.2:8080", "10.244.0.4:8080"]);
    assert_eq!(node.tcp("10.96.0.3", 80), ["10.244.0.3:8080"], "not heard of");
    assert_eq!(node.upsert(&web("stays", "10.96.0.1"), &pods(&["10.244.0.1"])), Plan::default());
    node.prune();
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
    assert_eq!(node.tcp("10.96.0.3", 80), ["none"]);
    let new = node.backend_numbers();
    assert_eq!(new.difference(&numbers).count(), 1, "only 10.244.0.4 is new");
    assert!(!node.tables().canonical().contains('!'), "{}", node.tables().canonical());
}

/// S32: after a restart the lesser claimant that arrives first does not get the frontend for as
/// long as its owner is not heard of; nor does a Service that has the address now, until the old
/// owner's absence is certain.
#[test]
fn restored_frontend_waits_for_its_owner() {
    let mut node = Node::default();
    node.upsert(&web("owner", "10.96.0.1"), &pods(&["10.244.0.1"]));
    node.restart();
    let mut other = web("other", "10.96.0.1");
    other.meta.created = 100;
    assert_eq!(node.upsert(&other, &pods(&["10.244.0.2"])), Plan::default());
    let mut later = Node { planner: node.planner.clone(), kernel: node.kernel.clone() };
    let plan = node.upsert(&web("owner", "10.96.0.1"), &pods(&["10.244.0.1"]));
    assert_eq!((plan.ops.len(), plan.warnings.len()), (0, 1), "{:?}", plan.ops);
    later.prune();
    assert_eq!(later.tcp("10.96.0.1", 80), ["10.244.0.2:8080"]);
}

/// S32: a Service that is stated to be gone before it was ever stated to exist.
#[test]
fn removal_reaches_what_was_restored() {
    let mut node = Node::default();
    node.upsert(&web("web", "10.96.0.1"), &pods(&["10.244.0.1"]));
    node.restart();
    node.remove("web");
    assert_eq!(*node.tables(), Tables::default());
}

#[test]
fn service_of_ten_thousand_endpoints_fills_its_chunks() {
    let mut node = Planner::new();
    let endpoints: Vec<Endpoint> = (0..10_000_u32)
        .map(|i| {
            let addr = format!("10.{}.{}.{}", 100 + (i >> 16), (i >> 8) & 255, i & 255);
            endpoint(&addr, &[("http", 8080, Tcp)])
        })
        .collect();
    let web = web("web", "10.96.0.1");
    node.upsert(&web, &endpoints);
    assert_eq!(node.tables().slots.len(), 625);
    assert_eq!(backends_of(node.tables(), "10.96.0.1", 80, Tcp).len(), 10_000);
    assert!(!node.tables().canonical().contains('!'));
    // One endpoint fewer: one new list of as many chunks, and one backend to delete.
    let plan = node.upsert(&web, &endpoints[1..]);
    let count = |of: fn(&MapOp) -> bool| plan.ops.iter().filter(|op| of(op)).count();
    assert_eq!(count(|op| matches!(op, MapOp::PutSlots(..))), 625);
    assert_eq!(count(|op| matches!(op, MapOp::DeleteSlots(..))), 625);
    assert_eq!(count(|op| matches!(op, MapOp::DeleteBackend(..))), 1);
    assert_eq!(count(|op| matches!(op, MapOp::PutBackend(..))), 0);
    assert_eq!(plan.ops.len(), 625 + 625 + 1 + 1);
}

/// Number 0 stands for no list: a frontend that rejects does not keep what lies there alive.
#[test]
fn chunks_of_list_zero_are_pruned() {
    let mut node = Node::default();
    node.upsert(&web("none", "10.96.0.1"), &[]);
    node.upsert(&web("some", "10.96.0.2"), &pods(&["10.244.0.1"]));
    let sound = node.tables().clone();
    let key = SlotKey { list: 0, chunk: 0 };
    let slots = *node.tables().slots.values().next().expect("the list of `some`");
    node.kernel.tables.slots.insert(key, slots);
    node.restart();
    node.upsert(&web("none", "10.96.0.1"), &[]);
    node.upsert(&web("some", "10.96.0.2"), &pods(&["10.244.0.1"]));
    assert_eq!(node.prune().ops, [MapOp::DeleteSlots(key)]);
    assert_eq!(*node.tables(), sound);
}

#[test]
fn removing_what_is_not_there_does_nothing() {
    let mut node = Node::default();
    assert_eq!(node.remove("web"), Plan::default());
    assert_eq!(node.prune(), Plan::default());
}

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

/// A LoadBalancer on node `here`, with all kinds of addresses.
fn balanced(policy: TrafficPolicy) -> (Service, NodeContext) {
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
fn placed(pods: &[(&str, &str)]) -> Vec<Endpoint> {
    pods.iter()
        .map(|(addr, node)| Endpoint {
            node: Some((*node).to_owned()),
            ..endpoint(addr, &[("http", 8080, Tcp)])
        })
        .collect()
}

const OUTER: [(&str, u16); 3] = [("172.31.0.1", 30080), ("192.0.2.1", 80), ("198.51.100.1", 80)];

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

/// S17: an address that two Services share refuses its other ports until both are gone, also across
/// a restart.
#[test]
fn shared_cluster_address_refuses_its_other_ports_until_the_last_service_goes() {
    let mut node = Node::default();
    let one = web("one", "10.96.0.1");
    let two = service("two", &["10.96.0.1"], &[("http", 81, Tcp)]);
    let pods = pods(&["10.244.0.1"]);
    assert_eq!(texts(&node.upsert(&one, &pods)), [""; 0]);
    assert_eq!(texts(&node.upsert(&two, &pods)), [""; 0], "nobody owns the other ports");
    assert_eq!(node.tcp("10.96.0.1", 82), ["no such port"]);
    node.remove("one");
    assert_eq!(node.tcp("10.96.0.1", 80), ["no such port"]);
    node.upsert(&one, &pods);
    node.restart();
    node.upsert(&one, &pods);
    node.remove("one");
    assert_eq!(node.tcp("10.96.0.1", 82), ["no such port"], "the other is not heard of yet");
    node.upsert(&two, &pods);
    node.prune();
    assert_eq!(node.tcp("10.96.0.1", 82), ["no such port"]);
    node.remove("two");
    assert_eq!(node.tcp("10.96.0.1", 82), ["none"]);
    assert_eq!(*node.tables(), Tables::default());
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

/// S31: a Service under a new name takes the addresses over from the old one in one write, if it is
/// stated before the other is removed.
#[test]
fn service_is_renamed_in_place() {
    let mut node = Node::default();
    let pods = pods(&["10.244.0.1"]);
    node.upsert(&web("old", "10.96.0.1"), &pods);
    let mut new = web("new", "10.96.0.1");
    new.meta.created = 100;
    node.upsert(&new, &pods);
    let plan = node.remove("old");
    let frontends = plan
        .ops
        .iter()
        .filter(|op| matches!(op, MapOp::PutFrontend(..) | MapOp::DeleteFrontend(..)));
    assert_eq!(frontends.count(), 1, "{:?}", plan.ops);
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
}

/// S38: names that begin with a digit (KEP-5311) are names.
#[test]
fn name_that_begins_with_a_digit_is_served() {
    let mut node = Node::default();
    node.upsert(&web("1st", "10.96.0.1"), &pods(&["10.244.0.1"]));
    assert_eq!(node.tcp("10.96.0.1", 80), ["10.244.0.1:8080"]);
    let names: Vec<_> = node.tables().names.values().map(|name| name.parts().1).collect();
    assert_eq!(names, ["1st"]);
}
