//! What holds for every sequence of changes, tried on many random ones over a small universe in
//! which Services share addresses, ports and endpoints.

use std::collections::BTreeMap;

use crate::common::{Kernel, endpoint, service};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use sluice_abi::{Backend, Be16, Slots};
use sluice_model::{Conditions, Endpoint, ObjectName, Protocol, Service, ServiceKind};
use sluice_plan::{MapOp, Planner, Tables};

/// The desired state of the world.
type World = BTreeMap<ObjectName, (Service, Vec<Endpoint>)>;

#[derive(Clone, Debug)]
enum Step {
    Upsert(Box<(Service, Vec<Endpoint>)>),
    Remove(ObjectName),
    /// The agent restarts.
    Restart,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const VIPS: [&str; 4] = ["10.96.0.1", "10.96.0.2", "fd00::1", "fd00::2"];
const PODS: [&str; 5] = ["10.244.0.1", "10.244.0.2", "10.244.1.1", "fd01::1", "fd01::2"];

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![8 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => Just(""), 2 => Just("http"), 1 => Just("dns")]
}

fn target() -> impl Strategy<Value = u16> {
    prop_oneof![8 => Just(8080), 1 => Just(8081)]
}

fn any_service() -> impl Strategy<Value = Service> {
    let ports = prop::collection::vec((port_name(), 80_u16..82, protocol()), 0..4);
    let kind = prop_oneof![
        8 => Just((ServiceKind::ClusterIp, false)),
        1 => Just((ServiceKind::ClusterIp, true)),
        1 => Just((ServiceKind::ExternalName("example.org".to_owned()), false)),
    ];
    let label = prop_oneof![9 => Just(false), 1 => Just(true)];
    (
        proptest::sample::select(&NAMES[..]),
        subsequence(&VIPS[..], 0..3),
        ports,
        kind,
        label,
        0_i64..3,
        prop_oneof![3 => Just(None), 1 => Just(Some(60)), 1 => Just(Some(10800))],
    )
        .prop_map(|(name, ips, ports, (kind, headless), foreign, created, affinity_secs)| {
            let mut service = service(name, &ips, &ports);
            service.kind = kind;
            service.headless = headless;
            service.meta.created = created;
            service.affinity_secs = affinity_secs;
            if foreign {
                let label = "service.kubernetes.io/service-proxy-name".to_owned();
                service.meta.labels.insert(label, String::new());
            }
            service
        })
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let ports = prop::collection::vec((port_name(), target(), protocol()), 1..4);
    let conditions = prop_oneof![
        4 => Just(Conditions::default()),
        1 => Just(Conditions { ready: false, serving: true, terminating: true }),
        1 => Just(Conditions { ready: false, serving: false, terminating: true }),
        1 => Just(Conditions { ready: false, serving: false, terminating: false }),
    ];
    (proptest::sample::select(&PODS[..]), ports, conditions)
        .prop_map(|(addr, ports, conditions)| Endpoint { conditions, ..endpoint(addr, &ports) })
}

/// Seldom more than a chunk, but sometimes.
fn any_endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let many = (14_u16..40).prop_map(|n| {
        (0..n).map(|i| endpoint("10.244.9.9", &[("", 9000 + i, Protocol::Tcp)])).collect()
    });
    prop_oneof![9 => prop::collection::vec(any_endpoint(), 0..6), 1 => many]
}

fn any_stated() -> impl Strategy<Value = (Service, Vec<Endpoint>)> {
    (any_service(), any_endpoints())
}

fn any_world() -> impl Strategy<Value = World> {
    prop::collection::vec(any_stated(), 0..6)
        .prop_map(|stated| stated.into_iter().map(|s| (s.0.meta.name.clone(), s)).collect())
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_stated().prop_map(|stated| Step::Upsert(Box::new(stated))),
        2 => proptest::sample::select(&NAMES[..])
            .prop_map(|name| Step::Remove(ObjectName::new("ns", name))),
        1 => Just(Step::Restart),
    ]
}

/// Plans the whole world, Services in the order given.
fn state_all<'a>(
    planner: &mut Planner,
    world: impl IntoIterator<Item = &'a (Service, Vec<Endpoint>)>,
) -> Vec<MapOp> {
    let mut ops = Vec::new();
    for (service, endpoints) in world {
        ops.extend(planner.upsert(service, endpoints).ops);
    }
    ops.extend(planner.prune().ops);
    ops
}

/// What an agent that starts with empty maps makes of the world.
fn rebuilt(world: &World) -> String {
    let mut planner = Planner::new();
    state_all(&mut planner, world.values());
    planner.tables().canonical()
}

/// One of the ways in which tables can be wrong.
fn damage(tables: &mut Tables, kind: u8, at: Index, other: Index) {
    fn pick<K: Copy, V>(map: &BTreeMap<K, V>, at: Index) -> Option<K> {
        (!map.is_empty()).then(|| *map.keys().nth(at.index(map.len())).expect("within the map"))
    }
    let backend = pick(&tables.backends, at);
    let chunk = pick(&tables.slots, at);
    let frontend = pick(&tables.frontends, at);
    let service = pick(&tables.names, at);
    match kind % 16 {
        0 => tables.backends.retain(|k, _| Some(*k) != backend),
        1 => tables.slots.retain(|k, _| Some(*k) != chunk),
        2 => tables.frontends.retain(|k, _| Some(*k) != frontend),
        3 => tables.names.retain(|k, _| Some(*k) != service),
        4 => tables.vip_filter.clear(),
        5 => {
            tables.vip_filter.insert(other.index(16384) as u32, u64::MAX);
        }
        6 => {
            // The same backend under a second number.
            if let Some(value) = backend.map(|k| tables.backends[&k]) {
                tables.backends.insert(other.index(40) as u32, value);
            }
        }
        7 => {
            if let Some(slots) = chunk.and_then(|k| tables.slots.get_mut(&k)) {
                slots.backend[other.index(16)] = other.index(40) as u32;
            }
        }
        8 => {
            if let Some(value) = frontend.and_then(|k| tables.frontends.get_mut(&k)) {
                value.count = other.index(1 << 20) as u32;
            }
        }
        9 => {
            if let Some(value) = frontend.and_then(|k| tables.frontends.get_mut(&k)) {
                value.list = other.index(20) as u32;
            }
        }
        10 => {
            if let Some(value) = frontend.and_then(|k| tables.frontends.get_mut(&k)) {
                value.service = other.index(20) as u32;
            }
        }
        11 => {
            if let (Some(k), Some(from)) = (service, pick(&tables.names, other)) {
                tables.names.insert(k, tables.names[&from]);
            }
        }
        12 => {
            if let Some(slots) = chunk.map(|k| tables.slots[&k]) {
                let key = sluice_abi::SlotKey {
                    list: other.index(20) as u32,
                    chunk: other.index(3) as u32,
                };
                tables.slots.insert(key, slots);
            }
        }
        13 => {
            let empty = sluice_abi::SlotKey { list: other.index(20) as u32, chunk: 1 };
            tables.slots.insert(empty, Slots::default());
        }
        14 => {
            if let Some(value) = backend.and_then(|k| tables.backends.get_mut(&k)) {
                *value = Backend { port: Be16::new(1), flags: 1, ..*value };
            }
        }
        _ => {
            if let Some((mut key, value)) = frontend.map(|k| (k, tables.frontends[&k])) {
                key.proto = 99;
                key.scope = 7;
                tables.frontends.insert(key, value);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// S30, S31, S32: no operation refers to what is not there; each prefix of each plan leaves each
    /// frontend as it was or as it will be, for every pick; the planner knows what the kernel holds;
    /// and the way there leaves no trace: the tables mean what a rebuild would make.
    #[test]
    fn incremental_equals_rebuild_and_every_prefix_is_old_or_new(
        steps in prop::collection::vec(any_step(), 1..20),
    ) {
        let mut world = World::new();
        let mut kernel = Kernel::default();
        let mut planner = Planner::new();
        for step in steps {
            match step {
                Step::Upsert(stated) => {
                    let plan = planner.upsert(&stated.0, &stated.1);
                    kernel.apply_watched(&plan.ops);
                    let again = planner.upsert(&stated.0, &stated.1);
                    prop_assert_eq!(again, sluice_plan::Plan::default(), "stated twice");
                    world.insert(stated.0.meta.name.clone(), *stated);
                }
                Step::Remove(name) => {
                    kernel.apply_watched(&planner.remove(&name).ops);
                    prop_assert_eq!(planner.remove(&name), sluice_plan::Plan::default());
                    world.remove(&name);
                }
                Step::Restart => {
                    planner = Planner::restore(kernel.tables.clone());
                    let ops = state_all(&mut planner, world.values().rev());
                    prop_assert_eq!(ops, vec![], "nothing has changed");
                }
            }
            prop_assert_eq!(&kernel.tables, planner.tables());
            prop_assert_eq!(kernel.tables.canonical(), rebuilt(&world));
        }
        prop_assert_eq!(planner.prune().ops, vec![], "nothing was left to prune");
        for name in NAMES {
            kernel.apply_watched(&planner.remove(&ObjectName::new("ns", name)).ops);
        }
        prop_assert_eq!(kernel.tables, Tables::default(), "nothing remains");
    }

    /// The order in which Services arrive does not matter, not even for those that claim the same
    /// frontend.
    #[test]
    fn order_of_arrival_is_irrelevant(
        stated in any_world().prop_flat_map(|world| {
            let stated: Vec<_> = world.into_values().collect();
            (Just(stated.clone()), Just(stated).prop_shuffle())
        }),
    ) {
        let mut one = Planner::new();
        state_all(&mut one, &stated.0);
        let mut other = Planner::new();
        state_all(&mut other, &stated.1);
        prop_assert_eq!(one.tables().canonical(), other.tables().canonical());
    }

    /// S32: the world changes while the agent is away. Frontends go over to their new state one by
    /// one, nothing of what stays is touched in between, and nothing remains of what went.
    #[test]
    fn restart_into_another_world_ends_as_a_rebuild(
        old in any_world(),
        new in any_world().prop_flat_map(|world| {
            (Just(world.clone()), Just(world.into_values().collect::<Vec<_>>()).prop_shuffle())
        }),
    ) {
        let mut planner = Planner::new();
        let mut kernel = Kernel::default();
        for op in state_all(&mut planner, old.values()) {
            kernel.apply(&op);
        }
        let mut planner = Planner::restore(kernel.tables.clone());
        for (service, endpoints) in &new.1 {
            kernel.apply_watched(&planner.upsert(service, endpoints).ops);
        }
        kernel.apply_watched(&planner.prune().ops);
        prop_assert_eq!(kernel.tables.canonical(), rebuilt(&new.0));
        prop_assert_eq!(&kernel.tables, planner.tables());
    }

    /// S32: of a frontend that the old and the new world give to the same Service with the same
    /// backends, no operation of a restart changes anything, whoever else asks for it first.
    #[test]
    fn restart_never_lends_a_frontend_to_another_service(
        world in any_world().prop_flat_map(|world| {
            (Just(world.clone()), Just(world.into_values().collect::<Vec<_>>()).prop_shuffle())
        }),
    ) {
        let mut planner = Planner::new();
        state_all(&mut planner, world.0.values());
        let mut restarted = Planner::restore(planner.tables().clone());
        prop_assert_eq!(state_all(&mut restarted, &world.1), vec![]);
    }

    /// S32: an agent killed after any number of operations leaves tables from which the next one
    /// gets to where it should be.
    #[test]
    fn agent_killed_within_a_plan_is_put_right_by_the_next(
        old in any_world(),
        new in any_world(),
        killed_after in any::<Index>(),
    ) {
        let mut planner = Planner::new();
        let mut kernel = Kernel::default();
        for op in state_all(&mut planner, old.values()) {
            kernel.apply(&op);
        }
        let ops = state_all(&mut planner, new.values());
        let done = killed_after.index(ops.len() + 1);
        ops[..done].iter().for_each(|op| kernel.apply(op));
        let mut planner = Planner::restore(kernel.tables.clone());
        for (service, endpoints) in new.values() {
            kernel.apply_watched(&planner.upsert(service, endpoints).ops);
        }
        kernel.apply_watched(&planner.prune().ops);
        prop_assert_eq!(kernel.tables.canonical(), rebuilt(&new));
    }

    /// Tables that somebody else has damaged are right again once all Services are stated.
    #[test]
    fn damaged_tables_heal(
        world in any_world(),
        wounds in prop::collection::vec((any::<u8>(), any::<Index>(), any::<Index>()), 1..6),
    ) {
        let mut planner = Planner::new();
        state_all(&mut planner, world.values());
        let mut kernel = Kernel { tables: planner.tables().clone() };
        for (kind, at, other) in wounds {
            damage(&mut kernel.tables, kind, at, other);
        }
        let mut planner = Planner::restore(kernel.tables.clone());
        for op in state_all(&mut planner, world.values()) {
            kernel.apply(&op);
        }
        prop_assert_eq!(kernel.tables.canonical(), rebuilt(&world));
        prop_assert_eq!(&kernel.tables, planner.tables());
        let mut again = Planner::restore(kernel.tables);
        prop_assert_eq!(state_all(&mut again, world.values()), vec![]);
    }
}
