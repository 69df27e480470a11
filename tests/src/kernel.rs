//! Fixtures for tests of the eBPF programs: a dataplane of its own, services written by hand, and
//! threads that live in a cgroup and a network namespace of their own.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use anyhow::{Context, Result};
use aya::{
    TestRun as _, TestRunOptions,
    maps::MapData,
    programs::{ProgramError, SchedClassifier},
};
use sluice_abi::{
    ABI_VERSION, Addr, Backend, Be16, Counter, Endpoint, Frontend, FrontendFlags, FrontendKey,
    SLOTS_PER_CHUNK, Scope, ServiceName, SlotKey, Slots, programs, vip_filter_bit,
};
use sluice_plan::{MapOp, Tables};
use sluice_proxy::dataplane::{Config, Dataplane, MapSizes};

use crate::{
    bpffs::BpfRoot,
    cgroup::{self, Cgroup},
    netns::NetNs,
    packet::Packet,
};

/// Verdicts of tc programs, as they come out of a test run.
pub mod verdict {
    /// `TC_ACT_UNSPEC`: on to the next program, then to the stack.
    pub const PASS: u32 = u32::MAX;
    /// `TC_ACT_SHOT`.
    pub const DROP: u32 = 2;
    /// `TC_ACT_REDIRECT`.
    pub const REDIRECT: u32 = 7;
}

/// Map sizes that cost little: many tests run on one machine.
pub const SMALL: MapSizes = MapSizes {
    frontends: 1024,
    slots: 1024,
    backends: 4096,
    names: 1024,
    conntrack: 4096,
    udp_peers: 4096,
    sock_peers: 4096,
    endpoints: 256,
    affinity: 1024,
    source_ranges: 1024,
    node_ports: 1024,
    identities: 1024,
    policy: 4096,
    policy_flows: 4096,
};

/// A dataplane with pins of its own, and services in it.
#[derive(Debug)]
pub struct Lab {
    /// The dataplane.
    pub dataplane: Dataplane,
    config: Config,
    tables: Tables,
    next: u32,
    root: BpfRoot,
}

/// An address as maps have it.
///
/// # Panics
/// If it is none.
pub fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap_or_else(|error| panic!("{text}: {error}")).into()
}

/// A frontend's key: `("10.96.0.1:80", proto::TCP)`.
///
/// # Panics
/// If the address is none.
pub fn frontend_key(address: &str, proto: u8) -> FrontendKey {
    let address: SocketAddr = address.parse().unwrap_or_else(|error| panic!("{address}: {error}"));
    FrontendKey {
        addr: address.ip().into(),
        port: Be16::new(address.port()),
        proto,
        scope: Scope::Internal as u8,
    }
}

impl Lab {
    /// Loads the programs, with the fast path on or off.
    ///
    /// # Errors
    /// Not root, or whatever [`Dataplane::open`] says.
    pub fn new(label: &str, fast_path: bool) -> Result<Self> {
        Self::with_cgroup(label, fast_path, cgroup::mount_point()?)
    }

    /// As [`Lab::new`], for a cgroup; attaches nothing.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn with_cgroup(label: &str, fast_path: bool, cgroup: PathBuf) -> Result<Self> {
        let root = BpfRoot::new(label)?;
        let config = Config { bpf_root: root.path().to_owned(), cgroup, sizes: SMALL, fast_path };
        let dataplane = Dataplane::open(config.clone())?;
        Ok(Self { dataplane, config, tables: Tables::default(), next: 0, root })
    }

    /// What the dataplane was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it pins.
    pub fn root(&self) -> &std::path::Path {
        self.root.path()
    }

    /// What was applied so far.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Applies operations.
    ///
    /// # Errors
    /// As [`Dataplane::apply`].
    pub fn apply(&mut self, ops: &[MapOp]) -> Result<()> {
        self.dataplane.apply(ops)?;
        for op in ops {
            self.tables.apply(op);
        }
        Ok(())
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Makes a service, or switches it to other backends, in the order that plans keep. Backends
    /// that no list names any more are deleted.
    ///
    /// # Errors
    /// As [`Lab::apply`].
    pub fn service(&mut self, frontend: &str, proto: u8, backends: &[&str]) -> Result<()> {
        let key = frontend_key(frontend, proto);
        let old = self.tables.frontends.get(&key).copied();
        let mut ops = Vec::new();
        let mut numbers = Vec::new();
        for backend in backends {
            let at = frontend_key(backend, proto);
            let backend = Backend { addr: at.addr, port: at.port, proto, flags: 0 };
            let known = self.tables.backends.iter().find(|(_, b)| **b == backend);
            numbers.push(match known {
                Some((number, _)) => *number,
                None => {
                    let number = self.number();
                    ops.push(MapOp::PutBackend(number, backend));
                    number
                }
            });
        }
        let list = self.number();
        for (chunk, part) in numbers.chunks(SLOTS_PER_CHUNK as usize).enumerate() {
            let mut slots = Slots::default();
            slots.backend[..part.len()].copy_from_slice(part);
            ops.push(MapOp::PutSlots(SlotKey { list, chunk: u32::try_from(chunk)? }, slots));
        }
        let service = match old {
            Some(old) => old.service,
            None => self.number(),
        };
        ops.push(MapOp::PutName(service, ServiceName::new("test", frontend, "")));
        let bit = vip_filter_bit(&key.addr);
        let word = self.tables.vip_filter.get(&(bit / 64)).copied().unwrap_or(0);
        ops.push(MapOp::SetFilterWord(bit / 64, word | 1 << (bit % 64)));
        ops.push(MapOp::PutFrontend(
            key,
            Frontend {
                service,
                list,
                count: u32::try_from(numbers.len())?,
                flags: old.map_or(FrontendFlags::CLUSTER_IP, |old| old.flags),
                affinity_secs: old.map_or(0, |old| old.affinity_secs),
            },
        ));
        self.apply(&ops)?;
        self.drop_orphans()
    }

    /// Says that the address is a ClusterIP: ports that have no frontend are rejected.
    ///
    /// # Errors
    /// As [`Lab::apply`].
    pub fn cluster_ip(&mut self, address: &str) -> Result<()> {
        let addr = addr(address);
        let bit = vip_filter_bit(&addr);
        let word = self.tables.vip_filter.get(&(bit / 64)).copied().unwrap_or(0);
        let flags = FrontendFlags::CLUSTER_IP | FrontendFlags::ANY_PORT;
        let (service, list) = (self.number(), self.number());
        self.apply(&[
            MapOp::SetFilterWord(bit / 64, word | 1 << (bit % 64)),
            MapOp::PutFrontend(
                FrontendKey { addr, port: Be16::new(0), proto: 0, scope: Scope::Internal as u8 },
                Frontend { service, list, count: 0, flags, affinity_secs: 0 },
            ),
        ])
    }

    /// Changes what a frontend says beside its backends: affinity, flags. It keeps that when
    /// [`Lab::service`] gives it other backends.
    ///
    /// # Errors
    /// There is no such frontend, or as [`Lab::apply`].
    pub fn adjust(
        &mut self,
        frontend: &str,
        proto: u8,
        change: impl FnOnce(&mut Frontend),
    ) -> Result<()> {
        let key = frontend_key(frontend, proto);
        let found = self.tables.frontends.get(&key).copied();
        let mut value = found.with_context(|| format!("no frontend {frontend}"))?;
        change(&mut value);
        self.apply(&[MapOp::PutFrontend(key, value)])
    }

    /// Gives a frontend another one for clients outside: those backends, and flags of its own.
    ///
    /// # Errors
    /// There is no such frontend, or as [`Lab::apply`].
    pub fn outside(
        &mut self,
        frontend: &str,
        proto: u8,
        flags: u32,
        backends: &[&str],
    ) -> Result<()> {
        let inside = frontend_key(frontend, proto);
        let before = self.tables.frontends.get(&inside).copied();
        let mut value = before.with_context(|| format!("no frontend {frontend}"))?;
        let list = self.number();
        let mut ops = Vec::new();
        let mut slots = Slots::default();
        for (slot, backend) in slots.backend.iter_mut().zip(backends) {
            let at = frontend_key(backend, proto);
            let backend = Backend { addr: at.addr, port: at.port, proto, flags: 0 };
            *slot = self.number();
            ops.push(MapOp::PutBackend(*slot, backend));
        }
        ops.push(MapOp::PutSlots(SlotKey { list, chunk: 0 }, slots));
        let outside = FrontendKey { scope: Scope::External as u8, ..inside };
        let count = u32::try_from(backends.len())?;
        ops.push(MapOp::PutFrontend(
            outside,
            Frontend { list, count, flags: value.flags | flags, ..value },
        ));
        value.flags |= FrontendFlags::EXTERNAL_DIFFERS;
        ops.push(MapOp::PutFrontend(inside, value));
        self.apply(&ops)
    }

    /// Deletes a service.
    ///
    /// # Errors
    /// As [`Lab::apply`].
    pub fn remove(&mut self, frontend: &str, proto: u8) -> Result<()> {
        self.apply(&[MapOp::DeleteFrontend(frontend_key(frontend, proto))])?;
        self.drop_orphans()
    }

    /// Deletes lists that no frontend names and backends that no list names.
    fn drop_orphans(&mut self) -> Result<()> {
        let lists: BTreeSet<u32> = self.tables.frontends.values().map(|f| f.list).collect();
        let ops: Vec<_> = self
            .tables
            .slots
            .keys()
            .filter(|key| !lists.contains(&key.list))
            .map(|key| MapOp::DeleteSlots(*key))
            .collect();
        self.apply(&ops)?;
        let used: BTreeSet<u32> =
            self.tables.slots.values().flat_map(|slots| slots.backend).collect();
        let ops: Vec<_> = self
            .tables
            .backends
            .keys()
            .filter(|number| !used.contains(number))
            .map(|number| MapOp::DeleteBackend(*number))
            .collect();
        self.apply(&ops)
    }

    /// A map of the dataplane's, for tests that write what the agent or a program would.
    ///
    /// # Errors
    /// It is not pinned.
    pub fn map(&self, name: &str) -> Result<MapData> {
        let path = self.root().join(format!("v{ABI_VERSION}/maps")).join(name);
        MapData::from_pin(&path).with_context(|| path.display().to_string())
    }

    /// Says that a pod of this node has the address.
    ///
    /// # Errors
    /// As [`Dataplane::put_endpoint`].
    pub fn endpoint(&mut self, address: &str, endpoint: Endpoint) -> Result<()> {
        Ok(self.dataplane.put_endpoint(addr(address), endpoint)?)
    }

    /// What `sluice_pod_send` makes of the packet: the verdict and the bytes.
    ///
    /// # Errors
    /// The kernel refuses the packet.
    pub fn send(&self, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.run(programs::POD_SEND, packet)
    }

    /// What `sluice_pod_recv` makes of the packet.
    ///
    /// # Errors
    /// The kernel refuses the packet.
    pub fn receive(&self, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.run(programs::POD_RECV, packet)
    }

    /// What `sluice_uplink_in` makes of the packet.
    ///
    /// # Errors
    /// The kernel refuses the packet.
    pub fn arrive(&self, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.run(programs::UPLINK_IN, packet)
    }

    /// What `sluice_uplink_out` makes of the packet.
    ///
    /// # Errors
    /// The kernel refuses the packet.
    pub fn leave(&self, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.run(programs::UPLINK_OUT, packet)
    }

    fn run(&self, program: &str, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        let program: &SchedClassifier = self
            .dataplane
            .program(program)
            .with_context(|| format!("no program {program}"))?
            .try_into()
            .map_err(|error: ProgramError| anyhow::anyhow!(error))?;
        let mut out = vec![0; packet.len() + 64];
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// Sends the packet and demands that it pass, changed into another.
    ///
    /// # Panics
    /// If the verdict or a byte differs.
    #[track_caller]
    pub fn expect_sent(&self, packet: &Packet, expected: &Packet) {
        let (verdict, bytes) = self.send(&packet.build()).expect("the program runs");
        assert_eq!(verdict, verdict::PASS, "{packet:?}");
        assert_same(&bytes, &expected.build());
    }

    /// Receives the packet and demands that it pass, changed into another.
    ///
    /// # Panics
    /// If the verdict or a byte differs.
    #[track_caller]
    pub fn expect_received(&self, packet: &Packet, expected: &Packet) {
        let (verdict, bytes) = self.receive(&packet.build()).expect("the program runs");
        assert_eq!(verdict, verdict::PASS, "{packet:?}");
        assert_same(&bytes, &expected.build());
    }

    /// A counter, over all CPUs.
    ///
    /// # Panics
    /// If the counters cannot be read.
    #[track_caller]
    pub fn count(&self, counter: Counter) -> u64 {
        self.dataplane
            .counters()
            .expect("counters are readable")
            .into_iter()
            .find(|(name, _)| *name == counter)
            .map(|(_, value)| value)
            .expect("every counter is listed")
    }
}

/// Demands that two packets are the same, and shows where they are not.
///
/// # Panics
/// If they differ.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8]) {
    if found == expected {
        return;
    }
    let at: Vec<String> = found
        .iter()
        .zip(expected)
        .enumerate()
        .filter(|(_, (a, b))| a != b)
        .map(|(at, (a, b))| format!("byte {at}: {a:#04x}, expected {b:#04x}"))
        .collect();
    panic!(
        "packets differ ({} bytes, expected {}): {}",
        found.len(),
        expected.len(),
        at.join("; ")
    );
}

/// The cgroup that this process is in while a test needs threads in cgroups of their own.
///
/// Threads of one process may be in different cgroups only below the process's own, if those are
/// threaded (`Documentation/admin-guide/cgroup-v2.rst`, "Threads").
#[derive(Debug)]
struct Domain {
    cgroup: Option<Cgroup>,
    before: PathBuf,
}

static DOMAIN: Mutex<Weak<Domain>> = Mutex::new(Weak::new());

impl Domain {
    fn enter() -> Result<Arc<Self>> {
        let mut current = DOMAIN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(domain) = current.upgrade() {
            return Ok(domain);
        }
        let mount = cgroup::mount_point()?;
        let cgroups = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let path = cgroups
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .context("this process is in no cgroup2")?;
        let before = mount.join(path.trim_start_matches('/'));
        let cgroup = Cgroup::new("threads")?;
        cgroup.enter(std::process::id())?;
        let domain = Arc::new(Self { cgroup: Some(cgroup), before });
        *current = Arc::downgrade(&domain);
        Ok(domain)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Another may be made meanwhile, then this process is in that one already and stays.
        let current = DOMAIN.lock().unwrap_or_else(PoisonError::into_inner);
        if current.upgrade().is_none() {
            let _ = fs::write(self.before.join("cgroup.procs"), std::process::id().to_string());
        }
        drop(self.cgroup.take());
    }
}

/// Runs `work` on a thread in a cgroup and a network namespace of its own, with the cgroup's path.
/// Threads that it starts are in them too; they must end before it does.
///
/// # Errors
/// Not root, no cgroup2, or what `work` says.
///
/// # Panics
/// If `work` does.
pub fn isolated<T: Send>(
    label: &str,
    work: impl FnOnce(&NetNs, PathBuf) -> Result<T> + Send,
) -> Result<T> {
    let domain = Domain::enter()?;
    let netns = NetNs::new(label)?;
    let cgroup = domain.cgroup.as_ref().context("the domain is alive")?.child(label)?;
    let path = cgroup.path().to_owned();
    fs::write(path.join("cgroup.type"), "threaded").context("cgroup.type")?;
    let result = netns.run(|| {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        fs::write(path.join("cgroup.threads"), &thread).context("cgroup.threads")?;
        let result = work(&netns, path.clone());
        let out = domain.cgroup.as_ref().context("the domain is alive")?;
        fs::write(out.path().join("cgroup.threads"), &thread).context("cgroup.threads")?;
        result
    })?;
    drop(cgroup);
    result
}
