//! What single changes do to the kernel's tables.

use std::collections::BTreeSet;

use crate::common::{backends_of, endpoint, service};
use crate::node::{HTTP, Node, pods, texts, web};
use sluice_abi::SlotKey;
use sluice_model::{Conditions, Endpoint, Protocol, Service};
use sluice_plan::{MapOp, Plan, Planner, Tables};

use Protocol::{Sctp, Tcp, Udp};

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
