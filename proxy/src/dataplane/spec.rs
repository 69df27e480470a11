//! What each map is, as userspace knows it.

use aya::maps::MapType;
use sluice_abi::{
    Addr, Affinity, AffinityKey, Backend, CidrKey, Counter, CtEntry, CtKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, KnownWay, NodeAddrs, NodePortKey, NodeState,
    PORTS_PER_ELEMENT, PeerKey, PolicyDrops, PolicyFlow, PolicyFlowKey, PolicyKey, PolicySets,
    PolicyState, PortMarks, ServiceName, SlotKey, Slots, SockPeer, SourceRangeKey,
    VIP_FILTER_WORDS, maps,
};

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;

/// Elements of the maps whose size is a choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSizes {
    /// Frontends: a service port and address each.
    pub frontends: u32,
    /// Chunks of backend lists: 16 backends of a service port each. While a list is switched, the
    /// old and the new one both need room.
    pub slots: u32,
    /// Backends: an address, port and protocol each.
    pub backends: u32,
    /// Names of service ports.
    pub names: u32,
    /// Flows that are translated packet by packet, two elements each; the oldest give way.
    pub conntrack: u32,
    /// Conversations of unconnected datagram sockets, two elements each; the oldest give way.
    pub udp_peers: u32,
    /// Sockets that are connected to a service, so many streams and so many datagram sockets. Beyond
    /// that, sockets name their backend as the peer.
    pub sock_peers: u32,
    /// Addresses of this node's pods.
    pub endpoints: u32,
    /// Clients of services with session affinity; the oldest give way.
    pub affinity: u32,
    /// Ranges of clients that services admit (`loadBalancerSourceRanges`), for each service port.
    pub source_ranges: u32,
    /// Ports of the node that Services are served at, for each protocol.
    pub node_ports: u32,
    /// Addresses and ranges that the rules of network policies tell apart.
    pub identities: u32,
    /// What sets of rules allow identities: a prefix of ports each.
    pub policy: u32,
    /// Flows of pods that network policies isolate; the oldest give way.
    pub policy_flows: u32,
}

impl Default for MapSizes {
    /// Room for 10,000 services with 100,000 endpoints.
    fn default() -> Self {
        Self {
            frontends: 65_536,
            slots: 65_536,
            backends: 131_072,
            names: 16_384,
            conntrack: 524_288,
            udp_peers: 65_536,
            sock_peers: 131_072,
            endpoints: 4_096,
            affinity: 65_536,
            source_ranges: 16_384,
            // 2,768 numbers in Kubernetes' default range, of up to three protocols.
            node_ports: 16_384,
            identities: 65_536,
            policy: 262_144,
            policy_flows: 131_072,
        }
    }
}

/// One map.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    pub(super) key_size: usize,
    pub(super) value_size: usize,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
    /// The flag of the agent that sets the size.
    pub(super) size_flag: Option<&'static str>,
}

/// The flag that sets a map's size.
pub(super) fn size_flag(map: &str) -> &'static str {
    match map {
        maps::FRONTENDS => "--map-size-frontends",
        maps::SLOTS => "--map-size-slots",
        maps::BACKENDS => "--map-size-backends",
        maps::SERVICE_NAMES => "--map-size-names",
        maps::CONNTRACK => "--map-size-conntrack",
        maps::UDP_PEERS => "--map-size-udp-peers",
        maps::SOCK_PEERS | maps::UDP_SOCKS => "--map-size-sock-peers",
        maps::ENDPOINTS | maps::POLICY_SETS | maps::POLICY_DROPS => "--map-size-endpoints",
        maps::AFFINITY => "--map-size-affinity",
        maps::SOURCE_RANGES => "--map-size-source-ranges",
        maps::NODE_PORTS => "--map-size-node-ports",
        maps::IDENTITIES => "--map-size-identities",
        maps::POLICY => "--map-size-policy",
        maps::POLICY_FLOWS => "--map-size-policy-flows",
        _ => "the map's size",
    }
}

fn sized<K, V>(name: &'static str, kind: MapType, max_entries: u32, flags: u32) -> Spec {
    Spec {
        name,
        kind,
        key_size: size_of::<K>(),
        value_size: size_of::<V>(),
        max_entries,
        flags,
        size_flag: Some(size_flag(name)),
    }
}

fn fixed<K, V>(name: &'static str, kind: MapType, max_entries: u32, flags: u32) -> Spec {
    Spec { size_flag: None, ..sized::<K, V>(name, kind, max_entries, flags) }
}

/// Bytes of the ring buffer of drops.
const DROP_EVENT_BYTES: u32 = 262_144;

/// Every map of [`maps::ALL`].
pub(super) fn specs(sizes: &MapSizes) -> [Spec; maps::ALL.len()] {
    [
        sized::<FrontendKey, Frontend>(
            maps::FRONTENDS,
            MapType::Hash,
            sizes.frontends,
            NO_PREALLOC,
        ),
        sized::<SlotKey, Slots>(maps::SLOTS, MapType::Hash, sizes.slots, NO_PREALLOC),
        sized::<u32, Backend>(maps::BACKENDS, MapType::Hash, sizes.backends, NO_PREALLOC),
        sized::<u32, ServiceName>(maps::SERVICE_NAMES, MapType::Hash, sizes.names, NO_PREALLOC),
        fixed::<u32, u64>(maps::VIP_FILTER, MapType::Array, VIP_FILTER_WORDS, 0),
        sized::<CtKey, CtEntry>(maps::CONNTRACK, MapType::LruHash, sizes.conntrack, 0),
        sized::<u64, SockPeer>(maps::SOCK_PEERS, MapType::Hash, sizes.sock_peers, NO_PREALLOC),
        sized::<u64, SockPeer>(maps::UDP_SOCKS, MapType::Hash, sizes.sock_peers, NO_PREALLOC),
        fixed::<u32, PortMarks>(maps::BACKEND_PORTS, MapType::Array, 65_536 / PORTS_PER_ELEMENT, 0),
        sized::<PeerKey, SockPeer>(maps::UDP_PEERS, MapType::LruHash, sizes.udp_peers, 0),
        sized::<Addr, Endpoint>(maps::ENDPOINTS, MapType::Hash, sizes.endpoints, NO_PREALLOC),
        fixed::<u32, NodeState>(maps::NODE_STATE, MapType::Array, 1, 0),
        sized::<AffinityKey, Affinity>(maps::AFFINITY, MapType::LruHash, sizes.affinity, 0),
        sized::<SourceRangeKey, u32>(
            maps::SOURCE_RANGES,
            MapType::LpmTrie,
            sizes.source_ranges,
            NO_PREALLOC,
        ),
        fixed::<FragmentKey, FragmentPorts>(maps::FRAGMENTS, MapType::LruHash, 8_192, 0),
        sized::<NodePortKey, u32>(maps::NODE_PORTS, MapType::Hash, sizes.node_ports, NO_PREALLOC),
        fixed::<u32, NodeAddrs>(maps::NODE_ADDRS, MapType::Array, 1, 0),
        // Two ranges and two addresses of each node, where no cluster CIDR covers them.
        fixed::<CidrKey, u32>(maps::NON_MASQUERADE, MapType::LpmTrie, 65_536, NO_PREALLOC),
        // More interfaces than a machine has networks.
        fixed::<u32, u32>(maps::UPLINKS, MapType::Hash, 1024, NO_PREALLOC),
        fixed::<u32, KnownWay>(maps::WAYS, MapType::PerCpuArray, KnownWay::ELEMENTS, 0),
        fixed::<u32, u64>(maps::ICMP_BUDGET, MapType::PerCpuArray, 1, 0),
        fixed::<u32, u64>(maps::COUNTERS, MapType::PerCpuArray, Counter::COUNT, 0),
        sized::<CidrKey, u32>(maps::IDENTITIES, MapType::LpmTrie, sizes.identities, NO_PREALLOC),
        sized::<PolicyKey, u32>(maps::POLICY, MapType::LpmTrie, sizes.policy, NO_PREALLOC),
        sized::<u32, PolicySets>(maps::POLICY_SETS, MapType::Hash, sizes.endpoints, NO_PREALLOC),
        fixed::<u32, PolicyState>(maps::POLICY_STATE, MapType::Array, 1, 0),
        sized::<PolicyFlowKey, PolicyFlow>(
            maps::POLICY_FLOWS,
            MapType::LruHash,
            sizes.policy_flows,
            0,
        ),
        sized::<u32, PolicyDrops>(maps::POLICY_DROPS, MapType::Hash, sizes.endpoints, NO_PREALLOC),
        fixed::<(), ()>(maps::DROP_EVENTS, MapType::RingBuf, DROP_EVENT_BYTES, 0),
    ]
}
