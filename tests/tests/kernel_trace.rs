//! One table of cases, run on the model and on the kernel: what the model says of a connection is what the programs do
//! with it, whoever opens it and wherever it goes. Needs root.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};
use sluice_abi::{Counter, Endpoint as KernelEndpoint, NodeAddrs, proto};
use sluice_model::{
    Conditions, Endpoint, LoadBalancerIngress, Meta, ObjectName, Protocol, Service, ServiceKind,
    ServicePort, SlicePort, TargetPort, TrafficPolicy,
};
use sluice_plan::{Client, Destination, Here, NodeContext, Place, Planner, Source, Verdict, trace};
use sluice_proxy::dataplane::SocketKind;
use sluice_tests::kernel::{Lab, isolated, verdict};
use sluice_tests::netns::NetNs;
use sluice_tests::packet::{ETHERNET, Packet, tcp};
use socket2::{Domain, Socket, Type};

/// The addresses of one family.
struct Family {
    node: &'static str,
    /// A pod of this node that is a client, and an endpoint of one Service.
    pod: &'static str,
    /// Endpoints, here and on another node.
    near: &'static str,
    far: &'static str,
    /// Clients outside: one that source ranges admit, and one that they do not.
    admitted: &'static str,
    stranger: &'static str,
    ranges: &'static str,
    /// What the Services' addresses begin with; a number follows.
    cluster_ips: &'static str,
    external_ips: &'static str,
    ingress: &'static str,
    loopback: &'static str,
    nobody: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        node: "172.31.0.11",
        pod: "10.244.1.5",
        near: "10.244.1.7",
        far: "10.244.2.7",
        admitted: "192.0.2.5",
        stranger: "198.51.100.5",
        ranges: "192.0.2.0/24",
        cluster_ips: "10.96.0.",
        external_ips: "203.0.113.",
        ingress: "203.0.113.20",
        loopback: "127.0.0.1",
        nobody: "10.97.0.1",
    },
    Family {
        node: "fd00:172:31::11",
        pod: "fd00:244:1::5",
        near: "fd00:244:1::7",
        far: "fd00:244:2::7",
        admitted: "2001:db8:2::5",
        stranger: "2001:db8:51::5",
        ranges: "2001:db8:2::/48",
        cluster_ips: "fd00:96::",
        external_ips: "2001:db8:113::",
        ingress: "2001:db8:113::20",
        loopback: "::1",
        nobody: "fd00:97::1",
    },
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What both executors tell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    /// It reaches a backend, which takes somebody for its client.
    Reaches(SocketAddr, Source),
    Refused,
    Dropped,
    /// It goes on as it is.
    LeftAlone,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reaches(to, Source::Client) => write!(f, "{to}"),
            Self::Reaches(to, Source::Node(addr)) => write!(f, "{to} as the node {addr}"),
            Self::Reaches(to, Source::Service(addr)) => write!(f, "{to} as the service {addr}"),
            Self::Refused => f.write_str("refused"),
            Self::Dropped => f.write_str("dropped"),
            Self::LeftAlone => f.write_str("left alone"),
        }
    }
}

/// A Service with TCP and UDP on port 80, and its endpoints by their addresses and whether they are on this node.
struct Case {
    service: Service,
    endpoints: Vec<Endpoint>,
}

fn case(
    family: &Family,
    number: u16,
    endpoints: &[&'static str],
    change: impl FnOnce(&mut Service),
) -> Case {
    let mut service = Service {
        meta: Meta { name: ObjectName::new("trace", format!("s{number}")), ..Meta::default() },
        kind: ServiceKind::LoadBalancer,
        cluster_ips: vec![ip(&format!("{}{number}", family.cluster_ips))],
        external_ips: [ip(&format!("{}{number}", family.external_ips))].into(),
        ports: [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| ServicePort {
                name: format!("{protocol:?}").to_lowercase(),
                protocol,
                port: 80,
                target: TargetPort::Number(8080),
                node_port: Some(30_000 + number),
                app_protocol: None,
            })
            .into(),
        ..Service::default()
    };
    change(&mut service);
    let endpoints = endpoints.iter().map(|address| endpoint(family, address)).collect();
    Case { service, endpoints }
}

fn endpoint(family: &Family, address: &str) -> Endpoint {
    let node = if address == family.far { "node-b" } else { "node-a" };
    Endpoint {
        node: Some(node.to_owned()),
        ..Endpoint::new(
            ip(address),
            [Protocol::Tcp, Protocol::Udp]
                .map(|protocol| SlicePort {
                    name: format!("{protocol:?}").to_lowercase(),
                    protocol,
                    port: Some(8080),
                })
                .into(),
            Conditions::default(),
        )
    }
}

/// The table: every kind of Service that a verdict may depend on.
fn cases(family: &Family) -> Vec<Case> {
    let Family { near, far, pod, .. } = *family;
    let local = |service: &mut Service| service.external_policy = TrafficPolicy::Local;
    vec![
        case(family, 1, &[near, far], |_| {}),
        case(family, 2, &[near], |_| {}),
        case(family, 3, &[far], |_| {}),
        case(family, 4, &[], |_| {}),
        case(family, 5, &[near, far], local),
        case(family, 6, &[far], local),
        case(family, 7, &[], local),
        case(family, 8, &[near, far], |it| it.internal_policy = TrafficPolicy::Local),
        case(family, 9, &[far], |it| it.internal_policy = TrafficPolicy::Local),
        // A pod that asks itself.
        case(family, 10, &[pod], |_| {}),
        case(family, 20, &[near, far], |it| {
            it.ingress = vec![LoadBalancerIngress { addr: ip(family.ingress), proxy: false }];
            it.source_ranges = vec![family.ranges.parse().expect("a range")];
        }),
    ]
}

/// Every address and port of the cases, and some that are nobody's.
fn destinations(family: &Family, cases: &[Case]) -> BTreeSet<SocketAddr> {
    let mut all = BTreeSet::new();
    for Case { service, .. } in cases {
        let ingress = service.ingress.iter().map(|entry| entry.addr);
        for addr in service.cluster_ips.iter().chain(&service.external_ips).copied().chain(ingress)
        {
            all.insert((addr, 80).into());
            // A port that the address does not have.
            all.insert((addr, 81).into());
        }
        for port in service.ports.iter().filter_map(|port| port.node_port) {
            all.insert((ip(family.node), port).into());
            all.insert((ip(family.loopback), port).into());
        }
    }
    all.insert((ip(family.nobody), 80).into());
    all.insert((ip(family.node), 81).into());
    all
}

struct Kernel {
    lab: Lab,
    pod: NetNs,
    /// Every connection has a client port of its own, or it would keep the backend of the one before.
    port: AtomicU16,
}

impl Kernel {
    fn client_port(&self) -> u16 {
        1_024 + self.port.fetch_add(1, Ordering::Relaxed) % 30_000
    }

    /// What becomes of one connection.
    fn run(&self, family: &Family, client: &Client, to: Destination) -> Result<Seen> {
        let at = SocketAddr::new(to.addr, to.port);
        match client.place {
            Place::Outside | Place::PodPackets => self.packet(family, client, to),
            Place::Node => Ok(self.socket(at, to.protocol)?.unwrap_or(Seen::LeftAlone)),
            Place::Pod => {
                // Called in the node's namespace; the programs tell a pod by its own.
                let seen = std::thread::scope(|scope| {
                    let socket = || self.pod.run(|| Outcome::of(at, to.protocol));
                    scope
                        .spawn(socket)
                        .join()
                        .map_err(|_| anyhow::anyhow!("the pod's thread panicked"))?
                })??;
                match self.judge(&seen)? {
                    Some(seen) => Ok(seen),
                    // What the hook leaves alone is met by the program at the pod's interface.
                    None => self.packet(family, client, to),
                }
            }
        }
    }

    fn socket(&self, to: SocketAddr, protocol: Protocol) -> Result<Option<Seen>> {
        self.judge(&Outcome::of(to, protocol)?)
    }

    /// What the hook did to a socket; `None` if nothing.
    fn judge(&self, outcome: &Outcome) -> Result<Option<Seen>> {
        const ECONNREFUSED: i32 = 111;
        const EHOSTUNREACH: i32 = 113;
        let kind = match outcome.protocol {
            Protocol::Udp => SocketKind::Datagram,
            _ => SocketKind::Stream,
        };
        let peers = self.lab.dataplane.view().sock_peers(kind)?;
        let peer = peers.into_iter().find(|(cookie, _)| *cookie == outcome.cookie);
        match (peer, outcome.error) {
            (Some((_, peer)), _) => {
                let to = SocketAddr::new(peer.backend_addr.to_ip(), peer.backend_port.get());
                Ok(Some(Seen::Reaches(to, Source::Client)))
            }
            (None, Some(ECONNREFUSED)) => Ok(Some(Seen::Refused)),
            (None, Some(EHOSTUNREACH)) => Ok(Some(Seen::Dropped)),
            (None, None) => Ok(None),
            (None, Some(errno)) => bail!("{}", std::io::Error::from_raw_os_error(errno)),
        }
    }

    fn packet(&self, family: &Family, client: &Client, to: Destination) -> Result<Seen> {
        let from = SocketAddr::new(client.addr, self.client_port()).to_string();
        let at = SocketAddr::new(to.addr, to.port).to_string();
        let packet = match to.protocol {
            Protocol::Udp => Packet::udp(&from, &at),
            _ => Packet::tcp(&from, &at, tcp::SYN),
        };
        let sent = packet.build();
        let rejected = self.lab.count(Counter::PacketReject);
        let (found, bytes) = match client.place {
            Place::Outside => self.lab.arrive(&sent)?,
            _ => self.lab.send(&sent)?,
        };
        if self.lab.count(Counter::PacketReject) > rejected {
            return Ok(Seen::Refused);
        }
        if found == verdict::DROP {
            return Ok(Seen::Dropped);
        }
        if bytes == sent {
            return Ok(Seen::LeftAlone);
        }
        let (src, dst) = ends(&bytes).context("the packet that came out")?;
        let source = if src.ip() == client.addr {
            Source::Client
        } else if client.place == Place::Outside && src.ip() == ip(family.node) {
            Source::Node(src.ip())
        } else {
            Source::Service(src.ip())
        };
        Ok(Seen::Reaches(dst, source))
    }
}

/// What a program saw of its call to connect.
struct Outcome {
    cookie: u64,
    protocol: Protocol,
    error: Option<i32>,
    /// Open for as long as the programs' notes are looked at.
    _socket: Socket,
}

impl Outcome {
    fn of(to: SocketAddr, protocol: Protocol) -> Result<Self> {
        const EINPROGRESS: i32 = 115;
        let kind = if protocol == Protocol::Udp { Type::DGRAM } else { Type::STREAM };
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        socket.set_nonblocking(true)?;
        let error = socket.connect(&to.into()).err().and_then(|error| error.raw_os_error());
        let cookie = rustix::net::sockopt::socket_cookie(&socket)?;
        let error = error.filter(|errno| *errno != EINPROGRESS);
        Ok(Self { cookie, protocol, error, _socket: socket })
    }
}

/// Source and destination of a packet with TCP or UDP, without options.
fn ends(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let v4 = *bytes.get(ETHERNET)? >> 4 == 4;
    let addr = |at: usize| -> Option<IpAddr> {
        Some(if v4 {
            IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?)
        } else {
            IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?)
        })
    };
    let (src, dst, ports) = if v4 { (12, 16, 20) } else { (8, 24, 40) };
    let port = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
    };
    let (src, dst) = (addr(ETHERNET + src)?, addr(ETHERNET + dst)?);
    let at = ETHERNET + ports;
    Some((SocketAddr::new(src, port(at)?), SocketAddr::new(dst, port(at + 2)?)))
}

/// The namespaces of a node and a pod have a way to everywhere.
fn wire(netns: &NetNs, addresses: [&str; 2]) -> Result<()> {
    netns.sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    netns.ip(&format!(
        "link set lo up\nlink add eth0 type veth peer name peer0\nlink set peer0 up\nlink set eth0 up\n\
         addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n\
         route add 0.0.0.0/0 dev eth0\nroute add ::/0 dev eth0",
        addresses[0], addresses[1]
    ))
}

fn meant(
    tables: &sluice_plan::Tables,
    here: &Here,
    client: &Client,
    to: Destination,
) -> BTreeSet<Seen> {
    // More picks than any of the cases has backends.
    (0..4)
        .map(|pick| match trace(tables, here, client, to, pick) {
            Verdict::Forward { to, source, .. } => Seen::Reaches(to, source),
            Verdict::Reject { .. } | Verdict::RejectPort => Seen::Refused,
            Verdict::Drop(_) => Seen::Dropped,
            Verdict::NotAService => Seen::LeftAlone,
            Verdict::Broken(breakage) => panic!("{to:?}: {breakage}"),
        })
        .collect()
}

fn agree(label: &str, masquerade_all: bool) -> Result<()> {
    isolated(label, |netns: &NetNs, cgroup: PathBuf| {
        wire(netns, FAMILIES.map(|family| family.node))?;
        let pod = NetNs::new(&format!("{label}-pod"))?;
        wire(&pod, FAMILIES.map(|family| family.pod))?;
        let mut lab = Lab::with_cgroup(label, false, cgroup)?;
        lab.dataplane.attach_cgroup()?;
        let [v4, v6] = FAMILIES.map(|family| ip(family.node).into());
        let flags = if masquerade_all { NodeAddrs::SNAT_ALWAYS } else { 0 };
        lab.dataplane.set_node_addrs(NodeAddrs {
            v4,
            v6,
            port_min: 40_000,
            port_max: 65_000,
            flags,
        })?;
        let mut here = Here { masquerade_all, ..Here::default() };
        let mut planner = Planner::new();
        planner.set_node(NodeContext {
            name: "node-a".to_owned(),
            node_port_addrs: FAMILIES
                .iter()
                .flat_map(|it| [ip(it.node), ip(it.loopback)])
                .collect(),
            addrs: FAMILIES.iter().map(|it| ip(it.node)).collect(),
            ..NodeContext::default()
        });
        for (number, family) in FAMILIES.iter().enumerate() {
            here.addrs.push(ip(family.node));
            for address in [family.pod, family.near] {
                here.pods.insert(ip(address));
                // The loopback interface: what is sent there goes nowhere.
                lab.endpoint(address, KernelEndpoint { ifindex: 1, ..KernelEndpoint::default() })?;
            }
            for mut case in cases(family) {
                // The other family's Services have other names and node ports.
                case.service.meta.name.name += if number == 0 { "" } else { "-v6" };
                let plan = planner.upsert(&case.service, &case.endpoints);
                assert_eq!(plan.warnings, []);
                lab.apply(&plan.ops)?;
            }
        }
        let kernel = Kernel { lab, pod, port: AtomicU16::new(0) };
        let mut differences = Vec::new();
        let mut met = HashSet::new();
        for family in &FAMILIES {
            let clients = [
                (Place::Pod, family.pod),
                (Place::PodPackets, family.pod),
                (Place::Node, family.node),
                (Place::Outside, family.admitted),
                (Place::Outside, family.stranger),
            ];
            for to in destinations(family, &cases(family)) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let to = Destination { addr: to.ip(), port: to.port(), protocol };
                    for (place, addr) in clients {
                        let client = Client { addr: ip(addr), place };
                        let meant = meant(planner.tables(), &here, &client, to);
                        let mut seen = BTreeSet::new();
                        // Two backends are met within so many tries but for once in 2^63 runs.
                        for _ in 0..64 {
                            let one = kernel.run(family, &client, to).with_context(|| {
                                format!(
                                    "{place:?} {addr} to {} port {}/{protocol:?}",
                                    to.addr, to.port
                                )
                            })?;
                            seen.insert(one);
                            if seen == meant {
                                break;
                            }
                        }
                        met.extend(meant.iter().map(std::mem::discriminant));
                        if seen != meant {
                            differences.push(format!(
                                "{place:?} {addr} to {} port {}/{protocol:?}: the model says {meant:?}, the kernel {seen:?}",
                                to.addr, to.port
                            ));
                        }
                    }
                }
            }
        }
        assert!(
            differences.is_empty(),
            "{} differences:\n{}",
            differences.len(),
            differences.join("\n")
        );
        assert_eq!(met.len(), 4, "the table leads to every kind of outcome");
        assert_eq!(kernel.lab.count(Counter::BackendMissing), 0);
        Ok(())
    })
}

/// S4, S5, S7, S9, S10, S16, S17, S20, S21: every client meets at every address what the model says.
#[test]
fn model_and_kernel_agree_on_every_case() -> Result<()> {
    agree("trace", false)
}

/// S20: the same where clients outside never keep their address.
#[test]
fn model_and_kernel_agree_with_masquerade_all() -> Result<()> {
    agree("trace-all", true)
}

/// The protocols of the table are those that the programs know by these numbers.
#[test]
fn protocols_have_the_programs_numbers() {
    assert_eq!(Protocol::Tcp.number(), proto::TCP);
    assert_eq!(Protocol::Udp.number(), proto::UDP);
}
