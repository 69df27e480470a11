//! What the kernel holds, read from pinned maps: with an agent or without one.

use std::{io, path::Path};

use sluice_abi::{
    Addr, Affinity, AffinityKey, Backend, CidrKey, Counter, CtEntry, CtKey, Endpoint, Frontend,
    FrontendKey, NodeAddrs, NodePortKey, NodeState, PeerKey, PolicyDrops, PolicyFlow,
    PolicyFlowKey, PolicyKey, PolicySets, PolicyState, ServiceName, SlotKey, Slots, SockPeer,
    SourceRangeKey, maps,
};
use sluice_plan::Tables;

use super::{
    DataplaneError, MapSizes,
    load::{PinDirs, check_pin, is_permission},
    map::Map,
    spec::specs,
};

/// Handles of all maps that userspace reads or writes.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) frontends: Map<FrontendKey, Frontend>,
    pub(super) slots: Map<SlotKey, Slots>,
    pub(super) backends: Map<u32, Backend>,
    pub(super) names: Map<u32, ServiceName>,
    pub(super) vip_filter: Map<u32, u64>,
    pub(super) conntrack: Map<CtKey, CtEntry>,
    pub(super) sock_peers: Map<u64, SockPeer>,
    pub(super) udp_socks: Map<u64, SockPeer>,
    pub(super) udp_peers: Map<PeerKey, SockPeer>,
    pub(super) endpoints: Map<Addr, Endpoint>,
    pub(super) node_state: Map<u32, NodeState>,
    pub(super) affinity: Map<AffinityKey, Affinity>,
    pub(super) source_ranges: Map<SourceRangeKey, u32>,
    pub(super) node_ports: Map<NodePortKey, u32>,
    pub(super) node_addrs: Map<u32, NodeAddrs>,
    pub(super) non_masquerade: Map<CidrKey, u32>,
    pub(super) uplinks: Map<u32, u32>,
    pub(super) counters: Map<u32, u64>,
    pub(super) identities: Map<CidrKey, u32>,
    pub(super) policy: Map<PolicyKey, u32>,
    pub(super) policy_sets: Map<u32, PolicySets>,
    pub(super) policy_state: Map<u32, PolicyState>,
    pub(super) policy_flows: Map<PolicyFlowKey, PolicyFlow>,
    pub(super) policy_drops: Map<u32, PolicyDrops>,
}

impl Maps {
    pub(super) fn open(directory: &Path, read_only: bool) -> Result<Self, DataplaneError> {
        fn one<K: super::map::Plain, V: aya::Pod>(
            directory: &Path,
            name: &'static str,
            read_only: bool,
        ) -> Result<Map<K, V>, DataplaneError> {
            let path = directory.join(name);
            Map::open(name, &path, read_only).map_err(|source| {
                if is_permission(&source) {
                    DataplaneError::NotPermitted { action: format!("open {}", path.display()) }
                } else {
                    DataplaneError::File { action: "open", path, source }
                }
            })
        }
        Ok(Self {
            frontends: one(directory, maps::FRONTENDS, read_only)?,
            slots: one(directory, maps::SLOTS, read_only)?,
            backends: one(directory, maps::BACKENDS, read_only)?,
            names: one(directory, maps::SERVICE_NAMES, read_only)?,
            vip_filter: one(directory, maps::VIP_FILTER, read_only)?,
            conntrack: one(directory, maps::CONNTRACK, read_only)?,
            sock_peers: one(directory, maps::SOCK_PEERS, read_only)?,
            udp_socks: one(directory, maps::UDP_SOCKS, read_only)?,
            udp_peers: one(directory, maps::UDP_PEERS, read_only)?,
            endpoints: one(directory, maps::ENDPOINTS, read_only)?,
            node_state: one(directory, maps::NODE_STATE, read_only)?,
            affinity: one(directory, maps::AFFINITY, read_only)?,
            source_ranges: one(directory, maps::SOURCE_RANGES, read_only)?,
            node_ports: one(directory, maps::NODE_PORTS, read_only)?,
            node_addrs: one(directory, maps::NODE_ADDRS, read_only)?,
            non_masquerade: one(directory, maps::NON_MASQUERADE, read_only)?,
            uplinks: one(directory, maps::UPLINKS, read_only)?,
            counters: one(directory, maps::COUNTERS, read_only)?,
            identities: one(directory, maps::IDENTITIES, read_only)?,
            policy: one(directory, maps::POLICY, read_only)?,
            policy_sets: one(directory, maps::POLICY_SETS, read_only)?,
            policy_state: one(directory, maps::POLICY_STATE, read_only)?,
            policy_flows: one(directory, maps::POLICY_FLOWS, read_only)?,
            policy_drops: one(directory, maps::POLICY_DROPS, read_only)?,
        })
    }
}

impl Maps {
    /// The map of connected sockets of that kind.
    pub(super) fn socks(&self, kind: SocketKind) -> &Map<u64, SockPeer> {
        match kind {
            SocketKind::Stream => &self.sock_peers,
            SocketKind::Datagram => &self.udp_socks,
        }
    }
}

/// Sockets that the hooks connect to backends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SocketKind {
    /// TCP.
    Stream,
    /// UDP, connected.
    Datagram,
}

/// A view of what is pinned, for reading.
#[derive(Debug)]
pub struct Pinned {
    pub(super) maps: Maps,
    pub(super) sizes: Vec<(&'static str, u32)>,
}

pub(super) fn map_error<K: super::map::Plain, V: aya::Pod>(
    map: &Map<K, V>,
    call: &'static str,
) -> impl FnOnce(io::Error) -> DataplaneError + use<K, V> {
    let map = map.name();
    move |source| DataplaneError::Map { map, call, source }
}

/// All entries of a map, sorted by key.
pub(super) fn sorted<K, V>(map: &Map<K, V>) -> Result<Vec<(K, V)>, DataplaneError>
where
    K: super::map::Plain + Ord + Copy,
    V: aya::Pod + Default,
{
    let mut entries = Vec::new();
    map.for_each(V::default(), |key, value| entries.push((*key, *value)))
        .map_err(map_error(map, "read"))?;
    entries.sort_unstable_by_key(|(key, _)| *key);
    Ok(entries)
}

const NO_BACKEND: Backend =
    Backend { addr: Addr([0; 4]), port: sluice_abi::Be16::new(0), proto: 0, flags: 0 };
const NO_NAME: ServiceName = ServiceName { namespace: [0; 64], name: [0; 64], port: [0; 64] };

impl Pinned {
    /// Opens the maps that an agent pinned under the root (`--bpf-root`), read-only. Their shapes
    /// are checked first.
    pub fn open(bpf_root: &Path) -> Result<Self, DataplaneError> {
        let dirs = PinDirs::new(bpf_root);
        let mut sizes = Vec::new();
        for spec in specs(&MapSizes::default()) {
            match check_pin(&spec, &dirs.maps.join(spec.name))? {
                Some(size) => sizes.push((spec.name, size)),
                None => return Err(DataplaneError::NothingPinned { path: dirs.maps }),
            }
        }
        Ok(Self { maps: Maps::open(&dirs.maps, true)?, sizes })
    }

    /// How many elements a map ([`sluice_abi::maps`]) has room for.
    pub fn size(&self, map: &str) -> Option<u32> {
        self.sizes.iter().find(|(name, _)| *name == map).map(|(_, size)| *size)
    }

    /// The service tables.
    pub fn tables(&self) -> Result<Tables, DataplaneError> {
        let Maps { frontends, slots, backends, names, vip_filter, .. } = &self.maps;
        let Maps { source_ranges, node_ports, .. } = &self.maps;
        let mut tables = Tables::default();
        frontends
            .for_each(Frontend::default(), |key, value| {
                tables.frontends.insert(*key, *value);
            })
            .map_err(map_error(frontends, "read"))?;
        slots
            .for_each(Slots::default(), |key, value| {
                tables.slots.insert(*key, *value);
            })
            .map_err(map_error(slots, "read"))?;
        backends
            .for_each(NO_BACKEND, |key, value| {
                tables.backends.insert(*key, *value);
            })
            .map_err(map_error(backends, "read"))?;
        names
            .for_each(NO_NAME, |key, value| {
                tables.names.insert(*key, *value);
            })
            .map_err(map_error(names, "read"))?;
        vip_filter
            .for_each(0, |word, bits| {
                if *bits != 0 {
                    tables.vip_filter.insert(*word, *bits);
                }
            })
            .map_err(map_error(vip_filter, "read"))?;
        source_ranges
            .for_each(0, |key, _| {
                tables.source_ranges.insert(*key);
            })
            .map_err(map_error(source_ranges, "read"))?;
        node_ports
            .for_each(0, |key, service| {
                tables.node_ports.insert(*key, *service);
            })
            .map_err(map_error(node_ports, "read"))?;
        Ok(tables)
    }

    /// The pods of this node by address, sorted.
    pub fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, DataplaneError> {
        sorted(&self.maps.endpoints)
    }

    /// The flows that are translated packet by packet: two entries each, sorted by key.
    pub fn conntrack(&self) -> Result<Vec<(CtKey, CtEntry)>, DataplaneError> {
        sorted(&self.maps.conntrack)
    }

    /// The sockets that are connected to a service, by their cookie, sorted: streams or datagram
    /// sockets.
    pub fn sock_peers(&self, kind: SocketKind) -> Result<Vec<(u64, SockPeer)>, DataplaneError> {
        sorted(self.maps.socks(kind))
    }

    /// Which backend each client of services with session affinity had last, sorted by key.
    pub fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>, DataplaneError> {
        sorted(&self.maps.affinity)
    }

    /// The conversations of unconnected datagram sockets, sorted by key.
    pub fn udp_peers(&self) -> Result<Vec<(PeerKey, SockPeer)>, DataplaneError> {
        sorted(&self.maps.udp_peers)
    }

    /// What the programs know of the node.
    pub fn node_state(&self) -> Result<NodeState, DataplaneError> {
        let map = &self.maps.node_state;
        let state = map.get(&0, NodeState::default()).map_err(map_error(map, "read"))?;
        Ok(state.unwrap_or_default())
    }

    /// The node's addresses and what goes with them.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn node_addrs(&self) -> Result<NodeAddrs, DataplaneError> {
        let map = &self.maps.node_addrs;
        let addrs = map.get(&0, NodeAddrs::default()).map_err(map_error(map, "read"))?;
        Ok(addrs.unwrap_or_default())
    }

    /// The addresses that pods reach with their own, sorted.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn non_masquerade(&self) -> Result<Vec<CidrKey>, DataplaneError> {
        let map = &self.maps.non_masquerade;
        let mut ranges = Vec::new();
        map.for_each(0, |key, _| ranges.push(*key)).map_err(map_error(map, "read"))?;
        ranges.sort_unstable();
        Ok(ranges)
    }

    /// The interfaces that pods' packets may leave by past the host's stack, by their index, sorted.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn uplinks(&self) -> Result<Vec<u32>, DataplaneError> {
        let map = &self.maps.uplinks;
        let mut indexes = Vec::new();
        map.for_each(0, |ifindex, _| indexes.push(*ifindex)).map_err(map_error(map, "read"))?;
        indexes.sort_unstable();
        Ok(indexes)
    }

    /// The counters, summed over all CPUs.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, DataplaneError> {
        let map = &self.maps.counters;
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| DataplaneError::File {
            action: "read",
            path: path.into(),
            source,
        })?;
        Counter::ALL
            .into_iter()
            .map(|(counter, _)| {
                let mut values = vec![0_u64; cpus];
                map.get_per_cpu(&(counter as u32), &mut values).map_err(map_error(map, "read"))?;
                Ok((counter, values.iter().sum()))
            })
            .collect()
    }
}
