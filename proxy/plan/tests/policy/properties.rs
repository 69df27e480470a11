//! What holds for every sequence of changes, tried on many random ones over a small universe in which
//! policies overlap in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sluice_model::{
    ContainerPort, LabelOperator, LabelRequirement, LabelSelector, Meta, Namespace, NetworkPolicy,
    ObjectName, Pod, PodPhase, PolicyPeer, PolicyPort, PolicyPortRange, PolicyRule, Protocol,
};
use sluice_plan::{LocalPod, PolicyPlanner};

use crate::common::{Kernel, World, canonical, explained, ip, verdict, verdicts};

/// Of nodes, of pods, of nobody.
const ADDRS: [&str; 12] = [
    "10.244.0.1",
    "10.244.0.2",
    "10.244.0.3",
    "10.244.1.1",
    "10.244.1.2",
    "fd01::1",
    "fd01::2",
    "fd01::1:1",
    "172.31.0.1",
    "203.0.113.7",
    "2001:db8::7",
    "::1.2.3.4",
];
const BLOCKS: [&str; 13] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.244.0.0/24",
    "10.244.0.2/31",
    "10.244.0.1/32",
    "203.0.113.0/24",
    "::/0",
    "::/64",
    "fd01::/16",
    "fd01::/112",
    "fd01::1/128",
    "2001:db8::/32",
    "128.0.0.0/1",
];
const PORTS: [(Option<Protocol>, u16); 8] = [
    (None, 0),
    (Some(Protocol::Tcp), 79),
    (Some(Protocol::Tcp), 80),
    (Some(Protocol::Tcp), 81),
    (Some(Protocol::Tcp), 8080),
    (Some(Protocol::Udp), 80),
    (Some(Protocol::Udp), 65535),
    (Some(Protocol::Sctp), 80),
];

#[derive(Clone, Debug)]
enum Step {
    Namespace(String, Option<Namespace>),
    Pod(ObjectName, Option<Pod>),
    Local(ObjectName, Option<LocalPod>),
    Policy(ObjectName, Option<NetworkPolicy>),
    /// The agent restarts.
    Restart,
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let key = select(vec!["app", "tier"]).prop_map(str::to_owned);
    let value = select(vec!["1", "2", "3"]).prop_map(str::to_owned);
    btree_map(key, value, 0..3)
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let values = || btree_set(select(vec!["1".to_owned(), "2".to_owned(), "3".to_owned()]), 1..3);
    let operator = prop_oneof![
        values().prop_map(LabelOperator::In),
        values().prop_map(LabelOperator::NotIn),
        Just(LabelOperator::Exists),
        Just(LabelOperator::DoesNotExist),
    ];
    let key = select(vec!["app", "tier"]).prop_map(str::to_owned);
    let requirement =
        (key, operator).prop_map(|(key, operator)| LabelRequirement { key, operator });
    (prop_oneof![2 => Just(BTreeMap::new()), 3 => labels()], vec(requirement, 0..2))
        .prop_map(|(labels, expressions)| LabelSelector { labels, expressions })
}

fn namespaces() -> impl Strategy<Value = LabelSelector> {
    let by_name = |name: &str| LabelSelector {
        labels: [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into(),
        expressions: Vec::new(),
    };
    prop_oneof![3 => selector(), 1 => select(vec!["a", "b"]).prop_map(by_name)]
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    let pods = (option::of(namespaces()), option::of(selector())).prop_map(|(namespaces, pods)| {
        let pods = pods.or_else(|| namespaces.is_none().then(LabelSelector::default));
        PolicyPeer::Pods { namespaces, pods }
    });
    let block = (select(&BLOCKS[..]), subsequence(&BLOCKS[..], 0..5)).prop_map(|(cidr, except)| {
        let net = |text: &str| text.parse::<ipnet::IpNet>().expect("a CIDR");
        let cidr = net(cidr).trunc();
        let except = except.into_iter().map(|text| net(text).trunc());
        PolicyPeer::Block { cidr, except: except.filter(|net| cidr.contains(net)).collect() }
    });
    prop_oneof![3 => pods, 2 => block]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![6 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let range = prop_oneof![
        1 => Just(PolicyPortRange::All),
        3 => select(vec![(80, 80), (81, 81), (80, 81), (1, 80), (81, 65535), (1, 65535)])
            .prop_map(|(first, last)| PolicyPortRange::Numbers(first, last)),
        2 => select(vec!["http", "web"]).prop_map(|name| PolicyPortRange::Name(name.to_owned())),
    ];
    (protocol(), range).prop_map(|(protocol, ports)| PolicyPort { protocol, ports })
}

fn rules() -> impl Strategy<Value = Option<Vec<PolicyRule>>> {
    let rule = (vec(peer(), 0..3), vec(port(), 0..3))
        .prop_map(|(peers, ports)| PolicyRule { peers, ports });
    option::of(vec(rule, 0..3))
}

fn policy(name: ObjectName) -> impl Strategy<Value = NetworkPolicy> {
    (selector(), rules(), rules()).prop_map(move |(pods, ingress, egress)| NetworkPolicy {
        meta: Meta { name: name.clone(), ..Meta::default() },
        pods,
        ingress,
        egress,
        faults: Vec::new(),
    })
}

fn addrs() -> impl Strategy<Value = Vec<IpAddr>> {
    (option::weighted(0.8, 0..5_usize), option::weighted(0.5, 5..8_usize))
        .prop_map(|(v4, v6)| v4.into_iter().chain(v6).map(|i| ip(ADDRS[i])).collect())
}

fn pod(name: ObjectName) -> impl Strategy<Value = Pod> {
    let ports = (select(vec!["http", "web", ""]), protocol(), 79_u16..82)
        .prop_map(|(name, protocol, port)| ContainerPort { name: name.to_owned(), protocol, port });
    let phase = prop_oneof![9 => Just(PodPhase::Running), 1 => Just(PodPhase::Succeeded)];
    (labels(), addrs(), vec(ports, 0..3), phase, prop::bool::weighted(0.1), 0_i64..2).prop_map(
        move |(labels, addrs, ports, phase, host_network, created)| Pod {
            meta: Meta { name: name.clone(), labels, created, ..Meta::default() },
            host_network,
            phase,
            addrs,
            ports,
            ..Pod::default()
        },
    )
}

fn name(names: &'static [&'static str]) -> impl Strategy<Value = ObjectName> {
    (select(vec!["a", "b"]), select(names)).prop_map(|(ns, name)| ObjectName::new(ns, name))
}

const PODS: &[&str] = &["p", "q", "r"];

fn step() -> impl Strategy<Value = Step> {
    let namespace =
        (select(vec!["a", "b"]), option::weighted(0.8, labels())).prop_map(|(name, labels)| {
            let object = labels.map(|labels| Namespace {
                meta: Meta { name: ObjectName::new("", name), labels, ..Meta::default() },
            });
            Step::Namespace(name.to_owned(), object)
        });
    let pod = name(PODS).prop_flat_map(|name| {
        (Just(name.clone()), option::weighted(0.9, pod(name))).prop_map(|(n, p)| Step::Pod(n, p))
    });
    let local =
        (name(PODS), option::weighted(0.9, (1_u32..7, addrs()))).prop_map(|(name, local)| {
            Step::Local(
                name,
                local.map(|(ifindex, addrs)| LocalPod { ifindex, addrs, ..LocalPod::default() }),
            )
        });
    let policy = name(&["x", "y"]).prop_flat_map(|name| {
        (Just(name.clone()), option::weighted(0.9, policy(name)))
            .prop_map(|(n, p)| Step::Policy(n, p))
    });
    prop_oneof![2 => namespace, 6 => pod, 4 => local, 8 => policy, 1 => Just(Step::Restart)]
}

/// Does a step to the world. An interface is one pod's only, and so is an address on the node: the
/// pod that had it is gone.
fn change(world: &mut World, step: &Step) {
    fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: &Option<V>) {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
    match step {
        Step::Namespace(name, object) => put(&mut world.namespaces, name, object),
        Step::Pod(name, pod) => put(&mut world.pods, name, pod),
        Step::Policy(name, policy) => put(&mut world.policies, name, policy),
        Step::Local(name, local) => {
            if let Some(new) = local {
                world.local.retain(|_, old| {
                    old.ifindex != new.ifindex
                        && !old.addrs.iter().any(|addr| new.addrs.contains(addr))
                });
            }
            put(&mut world.local, name, local);
        }
        Step::Restart => {}
    }
}

fn peers() -> Vec<IpAddr> {
    ADDRS.map(ip).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// P1 to P4, P9, P13: after every change the tables say what the objects say; they are those of a
    /// planner that never saw anything else; and in between each verdict is the old or the new one.
    #[test]
    fn tables_follow_the_objects(steps in vec(step(), 1..30)) {
        let mut world = World::default();
        let mut planner = PolicyPlanner::new();
        let mut kernel = Kernel::default();
        for step in &steps {
            let old = world.clone();
            change(&mut world, step);
            if matches!(step, Step::Restart) {
                planner = PolicyPlanner::restore(kernel.tables.clone());
                world.state(&World::default(), &mut planner);
                prop_assert_eq!(planner.plan(), [], "a restart changes nothing");
                continue;
            }
            world.state(&old, &mut planner);
            let before = verdicts(&old, &kernel.tables, &peers(), &PORTS);
            let ops = planner.plan();
            let mut after = kernel.tables.clone();
            ops.iter().for_each(|op| after.apply(op));
            let after = verdicts(&world, &after, &peers(), &PORTS);
            let both: Vec<_> = before
                .iter()
                .filter_map(|(flow, old)| Some((flow, *old, *after.get(flow)?)))
                .filter(|(flow, ..)| same_pod(&old, &world, flow.0))
                .filter(|(flow, ..)| ![&old, &world].iter().any(|world| own(world, flow.0, flow.2)))
                .collect();
            for op in &ops {
                kernel.apply(op);
                for (flow, old, new) in &both {
                    let now = verdict(&kernel.tables, flow);
                    prop_assert!(now == *old || now == *new, "{:?} after {}", flow, op);
                }
            }
            prop_assert_eq!(&kernel.tables, planner.tables());
            let rebuilt = world.rebuild();
            prop_assert_eq!(canonical(&kernel.tables), canonical(rebuilt.tables()));
            for (flow, allowed) in &after {
                let expected = explained(&world, &planner, flow);
                if let Some(expected) = expected {
                    prop_assert_eq!(*allowed, expected, "{:?}\n{}", flow, kernel.tables.dump());
                }
            }
            prop_assert_eq!(planner.plan(), [], "nothing is left to do");
        }
    }

    /// P9: any number of changes while no agent ran; numbers of what is still the same are kept, and
    /// after a single change no connection meets what was not and will not be allowed.
    #[test]
    fn a_restart_writes_the_difference(
        steps in vec(step(), 1..25),
        meanwhile in vec(step(), 0..4),
    ) {
        let mut world = World::default();
        steps.iter().for_each(|step| change(&mut world, step));
        let mut kernel = Kernel { tables: world.rebuild().tables().clone() };
        let before = verdicts(&world, &kernel.tables, &peers(), &PORTS);
        let old = world.clone();
        meanwhile.iter().for_each(|step| change(&mut world, step));
        let mut planner = PolicyPlanner::restore(kernel.tables.clone());
        world.state(&World::default(), &mut planner);
        let ops = planner.plan();
        let rebuilt = world.rebuild();
        let after = verdicts(&world, rebuilt.tables(), &peers(), &PORTS);
        for op in &ops {
            kernel.apply(op);
            for (flow, old_verdict) in &before {
                let new = after.get(flow).filter(|_| same_pod(&old, &world, flow.0));
                let new = new.filter(|_| ![&old, &world].iter().any(|w| own(w, flow.0, flow.2)));
                // Of several changes, some may be seen before others.
                let Some(new) = new.filter(|_| meanwhile.len() < 2) else { continue };
                let opened = verdict(&kernel.tables, flow) && !old_verdict && !new;
                prop_assert!(!opened, "{:?} after {}", flow, op);
            }
        }
        prop_assert_eq!(&kernel.tables, planner.tables());
        prop_assert_eq!(canonical(&kernel.tables), canonical(rebuilt.tables()));
        // And it goes on from there.
        let last = world.clone();
        steps.iter().for_each(|step| change(&mut world, step));
        world.state(&last, &mut planner);
        planner.plan().iter().for_each(|op| kernel.apply(op));
        prop_assert_eq!(canonical(&kernel.tables), canonical(world.rebuild().tables()));
    }

    /// Many changes at once end where one after the other does.
    #[test]
    fn a_batch_ends_where_its_steps_do(steps in vec(vec(step(), 1..6), 1..6)) {
        let mut world = World::default();
        let mut planner = PolicyPlanner::new();
        let mut kernel = Kernel::default();
        for batch in &steps {
            let old = world.clone();
            batch.iter().for_each(|step| change(&mut world, step));
            world.state(&old, &mut planner);
            planner.plan().iter().for_each(|op| kernel.apply(op));
            prop_assert_eq!(canonical(&kernel.tables), canonical(world.rebuild().tables()));
        }
    }
}

/// Whether an interface is the same pod's as before.
fn same_pod(old: &World, new: &World, ifindex: u32) -> bool {
    let at = |world: &World| {
        let mut local = world.local.iter();
        local.find(|(_, local)| local.ifindex == ifindex).map(|(name, _)| name.clone())
    };
    at(old) == at(new)
}

/// Whether the address is one of the pod's own: it is both ends, which change one after the other.
fn own(world: &World, ifindex: u32, addr: IpAddr) -> bool {
    let mut local = world.local.iter();
    let Some((name, local)) = local.find(|(_, local)| local.ifindex == ifindex) else {
        return false;
    };
    local.addrs.contains(&addr) || world.pods.get(name).is_some_and(|pod| pod.addrs.contains(&addr))
}

/// The universe is not one in which everything is open, or nothing is.
#[test]
fn the_universe_is_a_mixed_one() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        let steps = vec(step(), 30).new_tree(&mut runner).expect("a value").current();
        let mut world = World::default();
        steps.iter().for_each(|step| change(&mut world, step));
        let planner = world.rebuild();
        for (flow, allowed) in verdicts(&world, planner.tables(), &peers(), &PORTS) {
            let sets = planner.tables().sets[&flow.0];
            let set = if flow.1 { sets.ingress } else { sets.egress };
            if set != 0 && set != u32::MAX {
                seen.insert((flow.1, flow.3, allowed));
            }
        }
    }
    assert_eq!(seen.len(), 2 * 4 * 2, "directions, protocols, verdicts: {seen:?}");
}
