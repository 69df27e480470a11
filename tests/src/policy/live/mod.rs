//! Truth tables of a running data plane: real connections between real pods, one table in a fraction of a second.
//!
//! [`Stage`] wires the world's pods on two nodes and listens in each of them. [`Stage::observe`] then asks every cell at
//! once from one thread (see [`probe`]). Whatever enforces policies is an [`Enforcer`]: [`agents::Agents`], the real ones,
//! and [`filter::Filter`], made of nftables rules, which proves the stage itself.

pub mod agents;
pub mod filter;
pub mod probe;

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sluice_model::{ClusterNetworkPolicy, NetworkPolicy, Protocol};
use socket2::{Domain, Socket, Type};

use super::cases::{self, Case};
use super::cluster::{PORTS, Who, World};
use super::random::{self, Draw};
use super::table::{self, Query};
use super::yaml;
use crate::cluster::Cluster;
use crate::netns::NetNs;
use crate::pod::Pod;
use crate::wait::wait_ok;

pub use probe::Observation;

/// How long the wiring has until every pair talks.
const WARM_UP: Duration = Duration::from_secs(20);

/// Puts policies in force on a stage's nodes.
pub trait Enforcer {
    /// Puts exactly these policies in force, and returns once new connections are judged by them on every node.
    ///
    /// # Errors
    /// They cannot be put in force.
    fn apply(&mut self, stage: &Stage, policies: &Policies) -> Result<()>;
}

/// Policies as a user writes them and as they are read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policies {
    /// The manifest.
    pub yaml: String,
    /// What it says of the policies of namespaces.
    pub list: Vec<NetworkPolicy>,
    /// And of those of the cluster.
    pub cluster: Vec<ClusterNetworkPolicy>,
}

impl Policies {
    /// Reads a manifest.
    ///
    /// # Panics
    /// As [`yaml::policies`].
    pub fn read(yaml: &str) -> Self {
        let (list, cluster) = (yaml::policies(yaml), yaml::cluster_policies(yaml));
        Self { yaml: yaml.to_owned(), list, cluster }
    }
}

/// What came of many sets that all hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Sets of policies.
    pub sets: usize,
    /// Cells of all their tables.
    pub cells: usize,
    /// Cells that were denied.
    pub denied: usize,
    /// How long observing took, without putting the policies in force.
    pub elapsed: Duration,
}

/// What wires the pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wiring {
    /// The CNI plugin alone; routes are the stage's own.
    Plugin,
    /// The plugin and an agent on each node, which reads the stage's manifests.
    Agents,
}

/// A socket that answers.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) who: Who,
    pub(crate) protocol: Protocol,
    pub(crate) socket: Socket,
}

/// The nine pods of the network of [`World::standard`] on two nodes, and an outside, with everybody listening on
/// [`PORTS`], TCP and UDP, in both families.
#[derive(Debug)]
pub struct Stage {
    world: World,
    servers: Vec<Server>,
    pub(crate) round: AtomicU32,
    // Dropped in this order: pods before their nodes.
    pods: Vec<(Who, Pod)>,
    cluster: Cluster,
}

impl Stage {
    /// Makes it, and waits until without policies every pair talks.
    ///
    /// # Errors
    /// Not root, a tool or binary is missing, or some pair does not talk; the message holds the table.
    pub fn new(wiring: Wiring) -> Result<Self> {
        raise_file_limit()?;
        let mut cluster = Cluster::new(2)?;
        let mut world = World::standard();
        if wiring == Wiring::Agents {
            cluster.start_agents()?;
        } else {
            // What agents do for each other.
            for (here, there) in [(0, 1), (1, 0)] {
                cluster.node(here).netns().ip(&routes_to_pods(&world, there))?;
            }
        }
        // The way of the outside to pods, and its second host with the nodes' way to it.
        let outside: Vec<IpAddr> =
            world.outside.iter().flat_map(|host| host.addrs.clone()).collect();
        for address in &outside {
            if !own_of_the_lan(*address) {
                let nodad = if address.is_ipv6() { " nodad" } else { "" };
                cluster.lan().ip(&format!("addr add {address} dev lo{nodad}"))?;
                for node in cluster.nodes() {
                    let gateway = if address.is_ipv6() { "fd00:172:31::1" } else { "172.31.0.1" };
                    node.netns().ip(&format!("route add {address} via {gateway}"))?;
                }
            }
        }
        for node in 0..world.nodes.len() {
            cluster.lan().ip(&routes_to_pods(&world, node))?;
        }
        let mut pods = Vec::new();
        for who in world.everybody() {
            let Who::Pod(index) = who else { continue };
            if world.pods[index].host_network {
                continue;
            }
            let name = &world.pods[index].meta.name;
            let node = cluster
                .nodes()
                .iter()
                .find(|node| Some(node.name()) == world.pods[index].node.as_deref());
            let node = node.with_context(|| format!("the node of {name}"))?;
            let config = match wiring {
                Wiring::Plugin => node.cni_config_alone(),
                Wiring::Agents => node.cni_config(),
            };
            let pod = node.add_pod_with(&name.namespace, &name.name, &config)?;
            world.pods[index].addrs = pod.addresses().to_vec();
            pods.push((who, pod));
        }
        cluster.apply("world", &world.manifests())?;
        let mut this = Self { world, servers: Vec::new(), round: AtomicU32::new(0), pods, cluster };
        for who in this.parties() {
            let addrs = this.world.addrs(who);
            let sockets = this.netns(who).run(|| listen(who, &addrs))??;
            this.servers.extend(sockets);
        }
        wait_ok("every pair to talk", WARM_UP, || this.check("without policies", &[]))?;
        Ok(this)
    }

    /// The world with the addresses that the pods got.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The cluster below.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The cluster below, to start and stop its agents.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Changes the objects that policies select by, in the manifests and for the oracle. Returns when the manifests are
    /// written; agents read them after that.
    ///
    /// # Errors
    /// The manifests cannot be written.
    pub fn change_world(&mut self, change: impl FnOnce(&mut World)) -> Result<()> {
        change(&mut self.world);
        self.cluster.apply("world", &self.world.manifests())
    }

    /// The pod of that name (`NAMESPACE/NAME`).
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        let who = self.world.find(name)?;
        self.pods.iter().find(|(known, _)| *known == who).map(|(_, pod)| pod)
    }

    /// Everybody who listens: pods of the pod network, nodes, hosts outside.
    pub fn parties(&self) -> Vec<Who> {
        let on_stage = |who: &Who| match who {
            Who::Pod(index) => !self.world.pods[*index].host_network,
            Who::Node(_) | Who::Outside(_) => true,
        };
        self.world.everybody().into_iter().filter(on_stage).collect()
    }

    /// All cells: the pairs of which one is a pod, TCP and UDP, both ports, both families.
    pub fn queries(&self) -> Vec<Query> {
        let ports: Vec<(Protocol, u16)> = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(|protocol| PORTS.map(|port| (protocol, port)))
            .collect();
        let parties = self.parties();
        let mut queries = table::queries_of(&self.world, &ports);
        queries
            .retain(|query| parties.contains(&query.from.who) && parties.contains(&query.to.who));
        queries
    }

    /// Asks all cells of the data plane as it is now.
    ///
    /// # Errors
    /// A socket cannot be made, or even what no policy may deny does not arrive.
    pub fn observe(&self) -> Result<Observation> {
        probe::observe(self, &self.queries())
    }

    /// Observes and compares with the oracle.
    ///
    /// # Errors
    /// A cell differs, or an answer was lost or came from somebody else; the message holds the tables.
    pub fn check(&self, title: &str, policies: &[NetworkPolicy]) -> Result<Observation> {
        self.check_in(&self.world, title, policies)
    }

    /// [`Stage::check`] in the stage's world with policies of the cluster.
    fn check_in(
        &self,
        world: &World,
        title: &str,
        policies: &[NetworkPolicy],
    ) -> Result<Observation> {
        let seen = self.observe()?;
        let found =
            table::compare(world, policies, seen.table.keys().copied(), |query| seen.table[query]);
        let mut text = String::new();
        if !found.is_empty() {
            text = table::report_table(&self.world, title, &found, &seen.table);
        }
        for fault in &seen.faults {
            text.push_str(&format!("{fault}\n"));
        }
        if !text.is_empty() {
            bail!("{text}");
        }
        Ok(seen)
    }

    /// Puts policies in force and holds the data plane against the oracle.
    ///
    /// # Errors
    /// They cannot be put in force, or as [`Stage::check`]; the message holds the policies.
    pub fn hold(&self, enforcer: &mut dyn Enforcer, policies: &Policies) -> Result<Observation> {
        let title = &policies.yaml;
        enforcer.apply(self, policies).with_context(|| title.clone())?;
        self.check_in(&self.world.with(policies.cluster.clone()), title, &policies.list)
    }

    /// [`Stage::hold`] of many sets, each with a name. All are tried, whatever comes of the ones before.
    ///
    /// # Errors
    /// Some do not hold; the message names all of them and shows the first.
    pub fn hold_all(
        &self,
        enforcer: &mut dyn Enforcer,
        sets: impl IntoIterator<Item = (String, Policies)>,
    ) -> Result<Summary> {
        let mut summary = Summary::default();
        let mut failed: Vec<String> = Vec::new();
        let mut first = None;
        for (name, policies) in sets {
            match self.hold(enforcer, &policies) {
                Ok(seen) => {
                    summary.sets += 1;
                    summary.cells += seen.table.len();
                    summary.denied += seen.table.values().filter(|allowed| !**allowed).count();
                    summary.elapsed += seen.elapsed;
                }
                Err(error) => {
                    failed.push(name);
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            None => Ok(summary),
            Some(error) => {
                let (count, total) = (failed.len(), failed.len() + summary.sets);
                Err(error.context(format!("{count} of {total} differ: {}", failed.join(", "))))
            }
        }
    }

    /// The table of cases, for [`Stage::hold_all`].
    pub fn cases(&self) -> Vec<(String, Policies)> {
        let named = |case: Case| (case.name.clone(), Policies::read(&case.to_string()));
        cases::all(&self.world).into_iter().map(named).collect()
    }

    /// The cases of policies of the cluster, for [`Stage::hold_all`].
    pub fn tiers(&self) -> Vec<(String, Policies)> {
        let named = |case: Case| (case.name.clone(), Policies::read(&case.to_string()));
        cases::tiers(&self.world).into_iter().map(named).collect()
    }

    /// Policies of the cluster and of namespaces drawn at random, for [`Stage::hold_all`].
    pub fn drawn_tiers(&self, seeds: Range<u64>) -> impl Iterator<Item = (String, Policies)> {
        seeds.map(|seed| {
            let mut draw = Draw::new(seed);
            let list = random::sound_policies(&mut draw, &self.world, 2);
            let cluster = random::cluster_policies(&mut draw, &self.world, 4);
            let yaml = yaml::write(&list) + &yaml::write_cluster(&cluster);
            (format!("tiers, seed {seed}"), Policies::read(&yaml))
        })
    }

    /// Policies drawn at random over this world, one set a seed, for [`Stage::hold_all`].
    pub fn drawn(&self, seeds: Range<u64>) -> impl Iterator<Item = (String, Policies)> {
        seeds.map(|seed| {
            let list = random::sound_policies(&mut Draw::new(seed), &self.world, 6);
            (format!("seed {seed}"), Policies::read(&yaml::write(&list)))
        })
    }

    /// The namespace that a party is in.
    ///
    /// # Panics
    /// For a pod of the host network.
    pub fn netns(&self, who: Who) -> &NetNs {
        match who {
            Who::Pod(_) => {
                let found = self.pods.iter().find(|(known, _)| *known == who);
                found.expect("a pod on the stage").1.netns()
            }
            Who::Node(index) => self.cluster.node(index).netns(),
            Who::Outside(_) => self.cluster.lan(),
        }
    }

    pub(crate) fn servers(&self) -> &[Server] {
        &self.servers
    }
}

/// Whether the LAN's namespace has the address already.
fn own_of_the_lan(address: IpAddr) -> bool {
    address == IpAddr::from([172, 31, 0, 1])
        || address == IpAddr::from([0xfd00, 0x172, 0x31, 0, 0, 0, 0, 1])
}

/// `ip` lines: the ways to a node's pods.
fn routes_to_pods(world: &World, node: usize) -> String {
    let node = &world.nodes[node];
    let lines: Vec<String> = node
        .pod_cidrs
        .iter()
        .filter_map(|cidr| {
            let mut addrs = node.addrs.iter().map(|entry| entry.addr);
            let gateway = addrs.find(|addr| addr.is_ipv6() == cidr.addr().is_ipv6())?;
            Some(format!("route replace {cidr} via {gateway}"))
        })
        .collect();
    lines.join("\n")
}

fn listen(who: Who, addrs: &[IpAddr]) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for &addr in addrs {
        for port in PORTS {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let address = SocketAddr::new(addr, port);
                let socket =
                    socket(protocol, address).with_context(|| format!("{protocol} {address}"))?;
                if protocol == Protocol::Tcp {
                    socket.listen(1024)?;
                }
                servers.push(Server { who, protocol, socket });
            }
        }
    }
    Ok(servers)
}

/// A socket that does not block, bound to an address of the namespace that the thread is in.
pub(crate) fn socket(protocol: Protocol, address: SocketAddr) -> Result<Socket> {
    let kind = if protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    crate::bind::bind(|| socket.bind(&address.into()))?;
    Ok(socket)
}

/// A table has more sockets than the usual limit of open files.
fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("limit of open files")
}
