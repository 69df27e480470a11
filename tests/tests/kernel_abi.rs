//! The object's maps against the crate that userspace reads them with. Needs no root.

use std::mem::offset_of;

use sluice_abi::{
    Addr, Affinity, AffinityKey, Backend, CidrKey, CtEntry, CtKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, KnownWay, NodeAddrs, NodePortKey, NodeState, PeerKey,
    PolicyDrops, PolicyFlow, PolicyFlowKey, PolicyKey, PolicySets, PolicyState, PortMarks,
    ServiceName, SlotKey, Slots, SockPeer, SourceRangeKey, maps,
};
use sluice_tests::btf::{self, MapDefinition};

/// A struct's members as userspace has them: name and offset.
macro_rules! members {
    ($ty:ty: $($member:ident),*) => {
        vec![$((stringify!($member), offset_of!($ty, $member) as u32)),*]
    };
}

/// A key or value as userspace has it.
struct Expected {
    size: u32,
    members: Vec<(&'static str, u32)>,
}

macro_rules! expected {
    ($ty:ty: $($member:ident),*) => {
        Expected { size: size_of::<$ty>() as u32, members: members!($ty: $($member),*) }
    };
}

fn expected(map: &str) -> (Expected, Expected) {
    let number = || Expected { size: 4, members: Vec::new() };
    let nothing = || Expected { size: 0, members: Vec::new() };
    let wide_number = || Expected { size: 8, members: Vec::new() };
    // The programs' library has the length and the rest of such a key.
    let prefix =
        |size: usize| Expected { size: size as u32, members: vec![("prefix_len", 0), ("data", 4)] };
    let sock_peer = || expected!(SockPeer: addr, backend_addr, port, backend_port, service, backend, list, netns);
    match map {
        maps::FRONTENDS => (
            expected!(FrontendKey: addr, port, proto, scope),
            expected!(Frontend: service, list, count, flags, affinity_secs),
        ),
        maps::SLOTS => (expected!(SlotKey: list, chunk), expected!(Slots: backend)),
        maps::BACKENDS => (number(), expected!(Backend: addr, port, proto, flags)),
        maps::SERVICE_NAMES => (number(), expected!(ServiceName: namespace, name, port)),
        maps::VIP_FILTER | maps::ICMP_BUDGET | maps::COUNTERS => (number(), wide_number()),
        maps::CONNTRACK => (
            expected!(CtKey: src, dst, sport, dport, proto, flags, reserved),
            expected!(CtEntry: last_seen, addr, port, flags, service, backend, list, nat_addr,
                nat_port, reserved, reserved2),
        ),
        maps::SOCK_PEERS | maps::UDP_SOCKS => (wide_number(), sock_peer()),
        maps::BACKEND_PORTS => {
            (number(), Expected { size: size_of::<PortMarks>() as u32, members: Vec::new() })
        }
        maps::UDP_PEERS => {
            (expected!(PeerKey: cookie, addr, port, proto, flags, reserved), sock_peer())
        }
        maps::ENDPOINTS => (
            Expected { size: size_of::<Addr>() as u32, members: vec![("__0", 0)] },
            expected!(Endpoint: ifindex, id, mac, host_mac, flags, cookie, netns, reserved),
        ),
        maps::NODE_STATE => {
            (number(), expected!(NodeState: ct_used, flags, netns, ct_beside, reserved))
        }
        maps::AFFINITY => (
            expected!(AffinityKey: client, service, flags),
            expected!(Affinity: last_used, backend, list),
        ),
        maps::SOURCE_RANGES => (prefix(size_of::<SourceRangeKey>()), number()),
        maps::NON_MASQUERADE => (prefix(size_of::<CidrKey>()), number()),
        maps::UPLINKS => (number(), number()),
        maps::WAYS => (
            number(),
            expected!(KnownWay: src, dst, ports, proto, class, from, until, ifindex, family, neighbour, mtu, notes),
        ),
        maps::FRAGMENTS => (
            expected!(FragmentKey: src, dst, id, proto, reserved),
            expected!(FragmentPorts: sport, dport),
        ),
        maps::NODE_PORTS => (expected!(NodePortKey: port, proto, reserved), number()),
        maps::IDENTITIES => (prefix(size_of::<CidrKey>()), number()),
        maps::POLICY => (prefix(size_of::<PolicyKey>()), number()),
        maps::POLICY_SETS => (number(), expected!(PolicySets: ingress, egress)),
        maps::POLICY_STATE => (number(), expected!(PolicyState: epoch, policed, filter)),
        maps::POLICY_FLOWS => (
            expected!(PolicyFlowKey: low, high, low_port, high_port, proto, reserved),
            expected!(PolicyFlow: last_seen, egress, ingress, flags, reserved),
        ),
        maps::POLICY_DROPS => (number(), expected!(PolicyDrops: ingress, egress)),
        // A ring buffer has no elements of one shape.
        maps::DROP_EVENTS => (nothing(), nothing()),
        maps::NODE_ADDRS => (number(), expected!(NodeAddrs: v4, v6, port_min, port_max, flags)),
        other => panic!("the object has a map that this test does not know: {other}"),
    }
}

fn definitions() -> std::collections::BTreeMap<String, MapDefinition> {
    let object = sluice_proxy::dataplane::object();
    assert!(!object.is_empty(), "built without eBPF programs: run `cargo xtask setup` and rebuild");
    btf::maps(object).expect("the object describes its maps in BTF")
}

/// Sizes of keys and values and offsets of their members are the same on both sides.
#[test]
fn keys_and_values_have_the_same_shape_on_both_sides() {
    for (name, map) in definitions() {
        let (key, value) = expected(&name);
        for (what, found, expected) in [("key", &map.key, key), ("value", &map.value, value)] {
            assert_eq!(found.size, expected.size, "size of the {what} of {name}: {found:?}");
            let members: Vec<_> =
                found.members.iter().map(|m| (m.name.as_str(), m.offset)).collect();
            assert_eq!(members, expected.members, "members of the {what} of {name}");
            let total: u32 = found.members.iter().map(|member| member.size).sum();
            if !found.members.is_empty() {
                assert_eq!(total, found.size, "the {what} of {name} has padding");
            }
        }
    }
}

/// The object has the maps that the ABI names, no other, and names that the kernel keeps whole.
#[test]
fn the_object_has_the_maps_that_the_abi_names() {
    let found: Vec<String> = definitions().into_keys().collect();
    let mut named: Vec<&str> = maps::ALL.to_vec();
    named.sort_unstable();
    assert_eq!(found, named);
    assert!(named.iter().all(|name| name.len() <= 15), "{named:?}");
}

/// The sizes in the object are the defaults of the agent, so that a loader that overrides nothing
/// makes the same maps.
#[test]
fn sizes_in_the_object_are_the_defaults_of_the_agent() {
    let sizes = sluice_proxy::dataplane::MapSizes::default();
    let definitions = definitions();
    for (name, size) in [
        (maps::FRONTENDS, sizes.frontends),
        (maps::SLOTS, sizes.slots),
        (maps::BACKENDS, sizes.backends),
        (maps::SERVICE_NAMES, sizes.names),
        (maps::CONNTRACK, sizes.conntrack),
        (maps::UDP_PEERS, sizes.udp_peers),
        (maps::SOCK_PEERS, sizes.sock_peers),
        (maps::UDP_SOCKS, sizes.sock_peers),
        (maps::ENDPOINTS, sizes.endpoints),
        (maps::AFFINITY, sizes.affinity),
        (maps::SOURCE_RANGES, sizes.source_ranges),
        (maps::IDENTITIES, sizes.identities),
        (maps::POLICY, sizes.policy),
        (maps::POLICY_SETS, sizes.endpoints),
        (maps::POLICY_FLOWS, sizes.policy_flows),
        (maps::POLICY_DROPS, sizes.endpoints),
    ] {
        assert_eq!(definitions[name].max_entries, size, "{name}");
    }
}
