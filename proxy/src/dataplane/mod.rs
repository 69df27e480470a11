//! The kernel side as userspace sees it: load, pin, attach, write, read.
//!
//! Nothing else calls aya or bpf(2). Everything is pinned under `<bpf_root>/v<ABI version>/`: the
//! maps under `maps/`, the links under `links/`. So the programs go on when the agent goes, the next
//! agent takes the maps over as they are and replaces the programs in place, and `proxyctl` reads
//! the maps with no agent at all ([`Pinned`]).

mod apply;
mod attach;
mod cleanup;
mod conntrack;
mod error;
mod filters;
mod leaving;
mod links;
mod load;
mod map;
mod policy;
mod probe;
mod remains;
mod spec;
mod sys;
mod view;

use std::{collections::BTreeSet, path::PathBuf};

use aya::Ebpf;
use sluice_abi::{Addr, CidrKey, Counter, CtEntry, CtKey, Endpoint, NodeAddrs, NodeState};
use sluice_plan::Tables;

pub(crate) use self::conntrack::partner;
pub use self::sys::netns_cookie;
pub use self::{
    attach::{Attachment, TcHook},
    cleanup::{Removed, cleanup},
    conntrack::{Collected, Collector, Timeouts},
    error::{ApplyError, DataplaneError},
    load::object,
    policy::{Drops, PolicyError},
    probe::{Kernel, KernelLacks, probe},
    spec::MapSizes,
    view::{Pinned, SocketKind},
};
use self::{
    load::PinDirs,
    view::{Maps, map_error},
};

/// What the dataplane works with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to pin, on a BPF file system, such as `/sys/fs/bpf/sluice`.
    pub bpf_root: PathBuf,
    /// The cgroup (version 2) whose processes, and those below, get services at the socket.
    pub cgroup: PathBuf,
    /// Room in the maps. Maps that are pinned already keep theirs.
    pub sizes: MapSizes,
    /// Whether packets for pods of this node go to them, and those of its pods leave by uplinks,
    /// without crossing the host's stack.
    pub fast_path: bool,
}

/// Something to tell people once; nothing is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A pinned map has another size than was asked for, and keeps it with what it holds.
    SizeKept {
        /// The map.
        map: &'static str,
        /// The flag that asked.
        flag: &'static str,
        /// Its size.
        kept: u32,
        /// The size asked for.
        asked: u32,
    },
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SizeKept { map, flag, kept, asked } => write!(
                f,
                "map {map} keeps its size of {kept} elements; {flag} {asked} takes effect when the \
                 map is made anew"
            ),
        }
    }
}

/// The programs and maps of this node.
#[derive(Debug)]
pub struct Dataplane {
    config: Config,
    dirs: PinDirs,
    ebpf: Ebpf,
    view: Pinned,
    notices: Vec<Notice>,
    /// What a collector is to forget, once there is one.
    leaving: Option<leaving::Leaving>,
    /// Flows of isolated pods may be written down.
    judged: bool,
}

impl Dataplane {
    /// Loads the programs, with the maps that are pinned or new ones. Attaches nothing yet.
    ///
    /// # Errors
    ///
    /// Says what to do where the BPF file system, the rights or the programs are missing, and which
    /// pin is in the way where a map of another shape is pinned.
    pub fn open(config: Config) -> Result<Self, DataplaneError> {
        if object().is_empty() {
            return Err(DataplaneError::NoObject);
        }
        let dirs = PinDirs::new(&config.bpf_root);
        dirs.create(&config.bpf_root)?;
        let mut specs = spec::specs(&config.sizes);
        let mut notices = Vec::new();
        let ebpf = load::load(&dirs, &mut specs, &mut notices)?;
        let sizes = specs.iter().map(|spec| (spec.name, spec.max_entries)).collect();
        let view = Pinned { maps: Maps::open(&dirs.maps, false)?, sizes };
        let flows = &view.maps.policy_flows;
        let judged = view.policy_state()?.policed != 0
            || !flows.is_empty().map_err(map_error(flows, "read"))?;
        let dataplane = Self { config, dirs, ebpf, view, notices, leaving: None, judged };
        dataplane.write_node_state()?;
        dataplane.close_ways_without_pins()?;
        Ok(dataplane)
    }

    /// Tells the programs of the fast path and of this process's network namespace.
    fn write_node_state(&self) -> Result<(), DataplaneError> {
        let map = &self.view.maps.node_state;
        let mut state = self.view.node_state()?;
        let flags = if self.config.fast_path { NodeState::FAST_PATH } else { 0 };
        // Without the cookie (before Linux 5.14) nothing is served on loopback addresses.
        let netns = sys::netns_cookie().unwrap_or(0);
        if (state.flags, state.netns) == (flags, netns) {
            return Ok(());
        }
        (state.flags, state.netns) = (flags, netns);
        // A program may have set this since it was read: better once too often than lost.
        let conntrack = &self.view.maps.conntrack;
        if !conntrack.is_empty().map_err(map_error(conntrack, "read"))? {
            (state.ct_used, state.ct_beside) = (1, 1);
        }
        map.put(&0, &state).map_err(map_error(map, "write"))
    }

    /// Tells the programs of the node's addresses, of the ports that they may use with them, and of
    /// when to.
    ///
    /// # Errors
    ///
    /// The map cannot be read or written.
    pub fn set_node_addrs(&mut self, addrs: NodeAddrs) -> Result<(), DataplaneError> {
        let map = &self.view.maps.node_addrs;
        if self.view.node_addrs()? == addrs {
            return Ok(());
        }
        map.put(&0, &addrs).map_err(map_error(map, "write"))
    }

    /// Says which addresses pods reach with their own: these, and no others.
    ///
    /// New ones are added before others go, so that what is in both is never missing.
    ///
    /// # Errors
    ///
    /// The map cannot be read or written, or is full.
    pub fn set_non_masquerade(&mut self, ranges: &BTreeSet<CidrKey>) -> Result<(), DataplaneError> {
        let map = &self.view.maps.non_masquerade;
        let held: BTreeSet<CidrKey> = self.view.non_masquerade()?.into_iter().collect();
        for range in ranges.difference(&held) {
            map.put(range, &1).map_err(map_error(map, "write"))?;
        }
        for range in held.difference(ranges) {
            map.delete(range).map_err(map_error(map, "delete from"))?;
        }
        Ok(())
    }

    /// What to tell people, once.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// The maps, for reading.
    pub fn view(&self) -> &Pinned {
        &self.view
    }

    /// The service tables as the kernel holds them.
    pub fn tables(&self) -> Result<Tables, DataplaneError> {
        self.view.tables()
    }

    /// Says that a pod of this node has the address, or changes what is known of it.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Full`] where there is no room for one more.
    pub fn put_endpoint(&mut self, addr: Addr, endpoint: Endpoint) -> Result<(), DataplaneError> {
        if let Some(leaving) = &self.leaving {
            let all = leaving.all();
            if all.contains(&addr) {
                // A look through everything: the pod's other address is to need no second one.
                self.forget_now(&all)?;
                all.iter().for_each(|addr| leaving.done(*addr));
            }
        }
        let map = &self.view.maps.endpoints;
        map.put(&addr, &endpoint).map_err(|source| match source.raw_os_error() {
            Some(libc::E2BIG) => DataplaneError::Full {
                map: map.name(),
                size: self.view.size(map.name()).unwrap_or(0),
                flag: spec::size_flag(map.name()),
            },
            _ => map_error(map, "write")(source),
        })
    }

    /// Says that no pod of this node has the address any more; whether one had. What was written down
    /// of it goes too, see [`Dataplane::forget`].
    ///
    /// # Errors
    ///
    /// The maps cannot be read or written.
    pub fn delete_endpoint(&mut self, addr: Addr) -> Result<bool, DataplaneError> {
        let map = &self.view.maps.endpoints;
        let held = map.get(&addr, Endpoint::default()).map_err(map_error(map, "read"))?;
        if held.is_none() {
            return Ok(false);
        }
        // Before: an agent that dies in between must leave it to the next one.
        if self.leaving.is_some() {
            self.forget(addr)?;
        }
        let map = &self.view.maps.endpoints;
        let existed = map.delete(&addr).map_err(map_error(map, "delete from"))?;
        if self.leaving.is_none() {
            self.forget(addr)?;
        }
        Ok(existed)
    }

    /// Has everything forgotten that the programs wrote down of an address which no pod of this node
    /// has any more: its flows, those that policies allowed, the backends that it had of services with
    /// affinity. That is so before another pod gets the address: at once, or with the next pass of the
    /// collector where there is one.
    ///
    /// # Errors
    ///
    /// The maps cannot be read or written.
    pub fn forget(&mut self, addr: Addr) -> Result<(), DataplaneError> {
        // Where no flow was ever translated packet by packet and no pod ever isolated, there is nothing
        // to forget.
        if self.view.node_state()?.ct_used == 0 && !self.judged {
            return Ok(());
        }
        match &self.leaving {
            None => self.forget_now(&BTreeSet::from([addr]))?,
            Some(leaving) => {
                if let Err(error) = leaving.add(addr) {
                    // An agent that dies now leaves them.
                    tracing::warn!("flows of {}: remember: {error}", addr.to_ip());
                }
            }
        }
        Ok(())
    }

    fn forget_now(&self, addrs: &BTreeSet<Addr>) -> Result<(), DataplaneError> {
        let is_one = |addr: &Addr| addrs.contains(addr);
        self.forget_flows(&is_one)?;
        self.forget_remains(&is_one)
    }

    /// Forgets sockets that were connected to a service, by their cookies.
    pub fn forget_socks(
        &mut self,
        kind: SocketKind,
        cookies: &[u64],
    ) -> Result<(), DataplaneError> {
        let map = self.view.maps.socks(kind);
        map.delete_all(cookies).map_err(|stopped| map_error(map, "delete from")(stopped.error))
    }

    /// The pods of this node by address, sorted.
    pub fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, DataplaneError> {
        self.view.endpoints()
    }

    /// The flows that are translated packet by packet: two entries each, sorted by key.
    pub fn conntrack(&self) -> Result<Vec<(CtKey, CtEntry)>, DataplaneError> {
        self.view.conntrack()
    }

    /// The counters, summed over all CPUs.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, DataplaneError> {
        self.view.counters()
    }
}
