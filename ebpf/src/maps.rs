//! The maps. Sizes are defaults; the loader overrides them.
//!
//! Hash maps are not preallocated: what is not used costs no memory. Only the LRU maps must be.
//! Their elements may be reused for another key as soon as they are deleted, while a program on
//! this CPU that was preempted still holds a pointer; see [`crate::lb::select`] for what follows.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use sluice_abi::{
    Addr, Affinity, AffinityKey, Backend, Counter, CtEntry, CtKey, Endpoint, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, KnownWay, NodeAddrs, NodePortKey, NodeState,
    PORTS_PER_ELEMENT, PeerKey, PolicyDrops, PolicyFlow, PolicyFlowKey, PolicyRule, PolicySets,
    PolicyState, PortMarks, ServiceName, SlotKey, Slots, SockPeer, SourceRange, VIP_FILTER_WORDS,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, 65536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static SLOTS: HashMap<SlotKey, Slots, 65536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static BACKENDS: HashMap<u32, Backend, 131072, NO_PREALLOC> = HashMap::new();

/// No program reads it: people do, and the agent when it starts.
#[btf_map]
pub static SERVICE_NAMES: HashMap<u32, ServiceName, 16384, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static VIP_FILTER: Array<u64, { VIP_FILTER_WORDS as usize }> = Array::new();

#[btf_map]
pub static CONNTRACK: LruHashMap<CtKey, CtEntry, 524288> = LruHashMap::new();

#[btf_map]
pub static SOCK_PEERS: HashMap<u64, SockPeer, 131072, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static UDP_SOCKS: HashMap<u64, SockPeer, 131072, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static BACKEND_PORTS: Array<PortMarks, { 65536 / PORTS_PER_ELEMENT as usize }> = Array::new();

#[btf_map]
pub static UDP_PEERS: LruHashMap<PeerKey, SockPeer, 65536> = LruHashMap::new();

#[btf_map]
pub static ENDPOINTS: HashMap<Addr, Endpoint, 4096, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static NODE_STATE: Array<NodeState, 1> = Array::new();

#[btf_map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, 65536> = LruHashMap::new();

#[btf_map]
pub static SOURCE_RANGES: LpmTrie<SourceRange, u32, 16384> = LpmTrie::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 8192> = LruHashMap::new();

#[btf_map]
pub static NODE_PORTS: HashMap<NodePortKey, u32, 8192, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static NODE_ADDRS: Array<NodeAddrs, 1> = Array::new();

#[btf_map]
pub static NON_MASQUERADE: LpmTrie<Addr, u32, 65536> = LpmTrie::new();

#[btf_map]
pub static UPLINKS: HashMap<u32, u32, 1024, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static WAYS: PerCpuArray<KnownWay, { KnownWay::ELEMENTS as usize }> = PerCpuArray::new();

/// Until when the ICMP errors that were sent are paid for, in nanoseconds of the monotonic clock.
#[btf_map]
pub static ICMP_BUDGET: PerCpuArray<u64, 1> = PerCpuArray::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
pub static IDENTITIES: LpmTrie<Addr, u32, 65536> = LpmTrie::new();

#[btf_map]
pub static POLICY: LpmTrie<PolicyRule, u32, 262144> = LpmTrie::new();

#[btf_map]
pub static POLICY_SETS: HashMap<u32, PolicySets, 4096, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static POLICY_STATE: Array<PolicyState, 1> = Array::new();

#[btf_map]
pub static POLICY_FLOWS: LruHashMap<PolicyFlowKey, PolicyFlow, 131072> = LruHashMap::new();

#[btf_map]
pub static POLICY_DROPS: HashMap<u32, PolicyDrops, 4096, NO_PREALLOC> = HashMap::new();

/// Of [`sluice_abi::DropEvent`]. Bytes, not elements: room for 3,600 drops.
#[btf_map]
pub static DROP_EVENTS: RingBuf<(), 262144> = RingBuf::new();
