//! What holds for every sequence of changes, tried on many random ones over a small universe in
//! which Services share addresses, ports and endpoints.

use std::collections::BTreeMap;

use crate::common::{Kernel, endpoint, service};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use sluice_abi::{
    Backend, Be16, FrontendFlags, FrontendKey, NodePortKey, SLOTS_PER_CHUNK, Scope, SlotKey, Slots,
    SourceRangeKey,
};
use sluice_model::{
    Conditions, Endpoint, LoadBalancerIngress, ObjectName, Protocol, Service, ServiceKind,
    TrafficPolicy,
};
use sluice_plan::{MapOp, NodeContext, Plan, Planner, Setback, Tables};

/// The desired state of the world.
type World = BTreeMap<ObjectName, (Service, Vec<Endpoint>)>;

#[derive(Clone, Debug)]
enum Step {
    Upsert(Box<(Service, Vec<Endpoint>)>),
    Remove(ObjectName),
    /// The node's addresses, zone or name change.
    Node(NodeContext),
    /// The agent restarts.
    Restart,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const VIPS: [&str; 4] = ["10.96.0.1", "10.96.0.2", "fd00::1", "fd00::2"];
/// Addresses of the node and of load balancers; some are others' ClusterIPs.
const OUTER: [&str; 5] = ["172.31.0.1", "127.0.0.1", "10.96.0.1", "fd00:172::1", "fd00::2"];
/// Some of the clients are in one of them; some hold others, and two are all of a family.
const RANGES: [&str; 8] = [
    "0.0.0.0/0",
    "10.244.0.1/32",
    "203.0.0.0/8",
    "203.0.113.0/24",
    "::/0",
    "2001:db8:1::/48",
    "2001:db8::/32",
    "8000::/1",
];
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
        5 => Just((ServiceKind::ClusterIp, false)),
        3 => Just((ServiceKind::NodePort, false)),
        3 => Just((ServiceKind::LoadBalancer, false)),
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
        any_outside(),
    )
        .prop_map(
            |(name, ips, ports, (kind, headless), foreign, created, affinity_secs, outside)| {
                let mut service = service(name, &ips, &ports);
                service.kind = kind;
                service.headless = headless;
                service.meta.created = created;
                service.affinity_secs = affinity_secs;
                if foreign {
                    let label = "service.kubernetes.io/service-proxy-name".to_owned();
                    service.meta.labels.insert(label, String::new());
                }
                for (port, number) in service.ports.iter_mut().zip(outside.node_ports) {
                    port.node_port = number;
                }
                service.external_ips = outside.external_ips.iter().map(ip).collect();
                service.ingress = outside
                    .ingress
                    .iter()
                    .map(|(addr, proxy)| LoadBalancerIngress { addr: ip(addr), proxy: *proxy })
                    .collect();
                let policy =
                    |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
                service.source_ranges =
                    outside.ranges.iter().map(|r| r.parse().expect("a CIDR")).collect();
                if outside.bad_range {
                    service.bad_source_ranges.push((9, "everybody".to_owned()));
                }
                service.internal_policy = policy(outside.local.0);
                service.external_policy = policy(outside.local.1);
                service
            },
        )
}

/// What of a Service is for more than its ClusterIPs.
#[derive(Clone, Debug)]
struct Outside {
    node_ports: Vec<Option<u16>>,
    external_ips: Vec<&'static str>,
    ingress: Vec<(&'static str, bool)>,
    /// Internal and external traffic policy.
    local: (bool, bool),
    ranges: Vec<&'static str>,
    bad_range: bool,
}

/// Node ports have numbers that ports have too, so that they meet on one address.
fn any_outside() -> impl Strategy<Value = Outside> {
    let seldom = || prop_oneof![4 => Just(false), 1 => Just(true)];
    (
        prop::collection::vec(prop_oneof![Just(None), (79_u16..82).prop_map(Some)], 4),
        subsequence(&OUTER[..], 0..3),
        prop::collection::vec((proptest::sample::select(&OUTER[..]), seldom()), 0..2),
        (seldom(), any::<bool>()),
        prop_oneof![Just(Vec::new()), subsequence(&RANGES[..], 0..4)],
        seldom(),
    )
        .prop_map(|(node_ports, external_ips, ingress, local, ranges, bad_range)| Outside {
            node_ports,
            external_ips,
            ingress,
            local,
            ranges,
            bad_range,
        })
}

fn any_node() -> impl Strategy<Value = NodeContext> {
    (
        proptest::sample::select(&["n1", "n2"][..]),
        prop_oneof![Just(None), Just(Some("z1")), Just(Some("z2"))],
        subsequence(&OUTER[..], 0..4),
        prop_oneof![4 => Just(true), 1 => Just(false)],
        prop_oneof![Just(None), proptest::sample::select(&NAMES[..]).prop_map(Some)],
    )
        .prop_map(|(name, zone, addrs, external_ips, node_local)| NodeContext {
            name: name.to_owned(),
            zone: zone.map(str::to_owned),
            node_port_addrs: addrs.iter().map(ip).collect(),
            addrs: addrs.iter().map(ip).collect(),
            external_ips,
            node_local: node_local.map(|name| ObjectName::new("ns", name)),
        })
}

fn ip(text: &&str) -> std::net::IpAddr {
    text.parse().expect("an address")
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let ports = prop::collection::vec((port_name(), target(), protocol()), 1..4);
    let conditions = prop_oneof![
        4 => Just(Conditions::default()),
        1 => Just(Conditions { ready: false, serving: true, terminating: true }),
        1 => Just(Conditions { ready: false, serving: false, terminating: true }),
        1 => Just(Conditions { ready: false, serving: false, terminating: false }),
    ];
    let hints = |names: &'static [&'static str]| {
        let some = subsequence(names, 1..=2);
        prop_oneof![1 => Just(Vec::new()), 3 => some]
            .prop_map(|names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let node = proptest::option::of(proptest::sample::select(&["n1", "n2"][..]));
    let place = (node, hints(&["z1", "z2"]), hints(&["n1", "n2"]));
    (proptest::sample::select(&PODS[..]), ports, conditions, place).prop_map(
        |(addr, ports, conditions, (node, for_zones, for_nodes))| Endpoint {
            conditions,
            node: node.map(str::to_owned),
            for_zones,
            for_nodes,
            ..endpoint(addr, &ports)
        },
    )
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
        2 => any_node().prop_map(Step::Node),
        1 => Just(Step::Restart),
    ]
}

/// A planner for that node on empty tables, or on what a kernel holds.
fn planner_for(node: &NodeContext, tables: Option<&Tables>) -> Planner {
    let mut planner = tables.map_or_else(Planner::new, |tables| Planner::restore(tables.clone()));
    assert!(planner.set_node(node.clone()).is_empty(), "no Service is known yet");
    planner
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
fn rebuilt(world: &World, node: &NodeContext) -> String {
    let mut planner = planner_for(node, None);
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
    match kind % 22 {
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
        14 => tables.source_ranges.clear(),
        15 => {
            let service = other.index(20) as u32;
            let addr = std::net::IpAddr::from([192, 0, 2, 0]).into();
            tables.source_ranges.insert(SourceRangeKey::new(service, addr, 24));
        }
        16 => tables.node_ports.clear(),
        17 => {
            let key = NodePortKey { port: Be16::new(79), proto: 6, reserved: 0 };
            tables.node_ports.insert(key, other.index(20) as u32);
        }
        18 => {
            if let Some(value) = frontend.and_then(|k| tables.frontends.get_mut(&k)) {
                value.flags ^= 1 << other.index(9);
            }
        }
        19 => {
            if let Some((mut key, value)) = frontend.map(|k| (k, tables.frontends[&k])) {
                key.scope ^= 1;
                tables.frontends.insert(key, value);
            }
        }
        20 => {
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

/// The kernel's maps, with room for so many backends, chunks of lists and frontends.
struct Small {
    tables: Tables,
    room: [usize; 3],
}

impl Small {
    fn has_room(&self, op: &MapOp) -> bool {
        let Tables { backends, slots, frontends, .. } = &self.tables;
        let [backend, chunk, frontend] = self.room;
        match op {
            MapOp::PutBackend(key, _) => backends.len() < backend || backends.contains_key(key),
            MapOp::PutSlots(key, _) => slots.len() < chunk || slots.contains_key(key),
            MapOp::PutFrontend(key, _) => frontends.len() < frontend || frontends.contains_key(key),
            _ => true,
        }
    }

    /// Does a plan as the agent does: what may be done of it, as far as there is room.
    fn apply(&mut self, setback: &mut Setback, plan: Plan) {
        let Some(ops) = setback.admit(plan.ops) else { return };
        for (done, op) in ops.iter().enumerate() {
            if !self.has_room(op) {
                return setback.stopped(&ops[done..]);
            }
            self.tables.apply(op);
            self.assert_sound(op);
        }
    }

    /// Every frontend has a name and all its backends, and clients outside find theirs.
    fn assert_sound(&self, op: &MapOp) {
        let Tables { backends, slots, frontends, names, .. } = &self.tables;
        for (key, frontend) in frontends {
            let any_port = frontend.flags & FrontendFlags::ANY_PORT != 0;
            assert!(any_port || names.contains_key(&frontend.service), "{op}: {key:?} has no name");
            let outside = FrontendKey { scope: Scope::External as u8, ..*key };
            let differs = frontend.flags & FrontendFlags::EXTERNAL_DIFFERS != 0;
            assert!(!differs || frontends.contains_key(&outside), "{op}: {key:?} is half there");
            for slot in 0..frontend.count {
                let chunk = SlotKey { list: frontend.list, chunk: slot / SLOTS_PER_CHUNK };
                let number =
                    slots.get(&chunk).map_or(0, |s| s.backend[(slot % SLOTS_PER_CHUNK) as usize]);
                assert!(backends.contains_key(&number), "{op}: {key:?} leads to backend {number}");
            }
        }
    }

    /// The next try: a planner of what there really is, told all that there should be.
    fn retry(&mut self, node: &NodeContext, world: &World) -> (Planner, Setback) {
        let (mut planner, mut setback) =
            (planner_for(node, Some(&self.tables)), Setback::default());
        self.apply(&mut setback, planner.sweep());
        for (service, endpoints) in world.values() {
            self.apply(&mut setback, planner.upsert(service, endpoints));
        }
        self.apply(&mut setback, planner.prune());
        (planner, setback)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// S30, S31, S32: no operation refers to what is not there; each prefix of each plan leaves each
    /// frontend as it was or as it will be, for every pick; the planner knows what the kernel holds;
    /// and the way there leaves no trace: the tables mean what a rebuild would make.
    #[test]
    fn incremental_equals_rebuild_and_every_prefix_is_old_or_new(
        first in any_node(),
        steps in prop::collection::vec(any_step(), 1..20),
    ) {
        let mut node = first;
        let mut world = World::new();
        let mut kernel = Kernel::default();
        let mut planner = planner_for(&node, None);
        for step in steps {
            match step {
                Step::Upsert(stated) => {
                    let plan = planner.upsert(&stated.0, &stated.1);
                    kernel.apply_watched(&plan.ops);
                    let again = planner.upsert(&stated.0, &stated.1);
                    prop_assert_eq!(again, Plan::default(), "stated twice");
                    world.insert(stated.0.meta.name.clone(), *stated);
                }
                Step::Remove(name) => {
                    kernel.apply_watched(&planner.remove(&name).ops);
                    prop_assert_eq!(planner.remove(&name), Plan::default());
                    world.remove(&name);
                }
                Step::Node(new) => {
                    for name in planner.set_node(new.clone()) {
                        let (service, endpoints) = &world[&name];
                        kernel.apply_watched(&planner.upsert(service, endpoints).ops);
                    }
                    for (service, endpoints) in world.values() {
                        let plan = planner.upsert(service, endpoints);
                        prop_assert_eq!(plan, Plan::default(), "no other Service is concerned");
                    }
                    prop_assert_eq!(planner.set_node(new.clone()), [].into(), "stated twice");
                    node = new;
                }
                Step::Restart => {
                    planner = planner_for(&node, Some(&kernel.tables));
                    let ops = state_all(&mut planner, world.values().rev());
                    prop_assert_eq!(ops, vec![], "nothing has changed");
                }
            }
            prop_assert_eq!(&kernel.tables, planner.tables());
            prop_assert_eq!(kernel.tables.canonical(), rebuilt(&world, &node));
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
        node in any_node(),
    ) {
        let mut one = planner_for(&node, None);
        state_all(&mut one, &stated.0);
        let mut other = planner_for(&node, None);
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
        node in any_node(),
    ) {
        let mut planner = planner_for(&node, None);
        let mut kernel = Kernel::default();
        for op in state_all(&mut planner, old.values()) {
            kernel.apply(&op);
        }
        let mut planner = planner_for(&node, Some(&kernel.tables));
        for (service, endpoints) in &new.1 {
            kernel.apply_watched(&planner.upsert(service, endpoints).ops);
        }
        kernel.apply_watched(&planner.prune().ops);
        prop_assert_eq!(kernel.tables.canonical(), rebuilt(&new.0, &node));
        prop_assert_eq!(&kernel.tables, planner.tables());
    }

    /// S32: of a frontend that the old and the new world give to the same Service with the same
    /// backends, no operation of a restart changes anything, whoever else asks for it first.
    #[test]
    fn restart_never_lends_a_frontend_to_another_service(
        world in any_world().prop_flat_map(|world| {
            (Just(world.clone()), Just(world.into_values().collect::<Vec<_>>()).prop_shuffle())
        }),
        node in any_node(),
    ) {
        let mut planner = planner_for(&node, None);
        state_all(&mut planner, world.0.values());
        let mut restarted = planner_for(&node, Some(planner.tables()));
        prop_assert_eq!(state_all(&mut restarted, &world.1), vec![]);
    }

    /// S32: an agent killed after any number of operations leaves tables from which the next one
    /// gets to where it should be.
    #[test]
    fn agent_killed_within_a_plan_is_put_right_by_the_next(
        old in any_world(),
        new in any_world(),
        killed_after in any::<Index>(),
        node in any_node(),
    ) {
        let mut planner = planner_for(&node, None);
        let mut kernel = Kernel::default();
        for op in state_all(&mut planner, old.values()) {
            kernel.apply(&op);
        }
        let ops = state_all(&mut planner, new.values());
        let done = killed_after.index(ops.len() + 1);
        ops[..done].iter().for_each(|op| kernel.apply(op));
        let mut planner = planner_for(&node, Some(&kernel.tables));
        for (service, endpoints) in new.values() {
            kernel.apply_watched(&planner.upsert(service, endpoints).ops);
        }
        kernel.apply_watched(&planner.prune().ops);
        prop_assert_eq!(kernel.tables.canonical(), rebuilt(&new, &node));
    }

    /// S33: where maps are full, whatever changes meanwhile, no frontend ever leads to what is not
    /// there; and all is as it should be after a try that finds room.
    #[test]
    fn full_maps_break_no_frontend(
        steps in prop::collection::vec(any_step(), 1..20),
        room in (0_usize..6, 0_usize..6, 0_usize..12),
    ) {
        let (mut node, mut world) = (NodeContext::default(), World::new());
        let mut kernel = Small { tables: Tables::default(), room: room.into() };
        let (mut planner, mut setback) = kernel.retry(&node, &world);
        for step in steps {
            match step {
                Step::Upsert(stated) => {
                    kernel.apply(&mut setback, planner.upsert(&stated.0, &stated.1));
                    world.insert(stated.0.meta.name.clone(), *stated);
                }
                Step::Remove(name) => {
                    kernel.apply(&mut setback, planner.remove(&name));
                    world.remove(&name);
                }
                Step::Node(new) => {
                    for name in planner.set_node(new.clone()) {
                        let (service, endpoints) = &world[&name];
                        kernel.apply(&mut setback, planner.upsert(service, endpoints));
                    }
                    node = new;
                }
                Step::Restart => (planner, setback) = kernel.retry(&node, &world),
            }
        }
        kernel.room = [usize::MAX; 3];
        kernel.retry(&node, &world);
        prop_assert_eq!(kernel.tables.canonical(), rebuilt(&world, &node));
    }

    /// Tables that somebody else has damaged are right again once all Services are stated.
    #[test]
    fn damaged_tables_heal(
        world in any_world(),
        wounds in prop::collection::vec((any::<u8>(), any::<Index>(), any::<Index>()), 1..6),
        node in any_node(),
    ) {
        let mut planner = planner_for(&node, None);
        state_all(&mut planner, world.values());
        let mut kernel = Kernel { tables: planner.tables().clone() };
        for (kind, at, other) in wounds {
            damage(&mut kernel.tables, kind, at, other);
        }
        let mut planner = planner_for(&node, Some(&kernel.tables));
        for op in state_all(&mut planner, world.values()) {
            kernel.apply(&op);
        }
        prop_assert_eq!(kernel.tables.canonical(), rebuilt(&world, &node));
        prop_assert_eq!(&kernel.tables, planner.tables());
        let mut again = planner_for(&node, Some(&kernel.tables));
        prop_assert_eq!(state_all(&mut again, world.values()), vec![]);
    }
}
