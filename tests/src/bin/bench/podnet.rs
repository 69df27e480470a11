//! Bench `podnet`: what a connection to a pod's own address costs, on one node and between two.
//!
//! Both variants are namespaces wired alike: a pod with a client and one with a server on a node, a server on another
//! node, the nodes joined by a veth, with a route to each other's pods. `direct` is the kernel's forwarding and nothing
//! else. `sluice` has all programs attached as the agent attaches them, with the fast path, masquerade for what leaves the
//! cluster, and the pods' range as what does not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_abi::{Addr, CidrKey, Endpoint, NodeAddrs};
use sluice_proxy::dataplane::TcHook;
use sluice_tests::cgroup::Cgroup;
use sluice_tests::cluster::WorkDir;
use sluice_tests::kernel::Lab;
use sluice_tests::netns::NetNs;
use sluice_tests::process::{Launch, Process};
use sluice_tests::{bin, interrupt, wait_for};

use crate::Plan;
use crate::report::{self, Measured, median};
use crate::rules::Family;
use crate::service::{progress, stop_if_asked};
use crate::topology::{self, PORT, forward, tune, wire};

const VARIANTS: [&str; 2] = ["sluice", "direct"];

/// What is counted: name, the client's `--case`, unit.
const EXCHANGES: [(&str, &str); 3] =
    [("tcp-crr", "1/s"), ("tcp-rr", "1/s"), ("tcp-bulk", "Gbit/s")];

/// Names of the cases: on one node or between two, the exchange, the family.
const CASES: [[[&str; 2]; 3]; 2] = [
    [
        ["node-tcp-crr", "node-tcp-crr-v6"],
        ["node-tcp-rr", "node-tcp-rr-v6"],
        ["node-tcp-bulk", "node-tcp-bulk-v6"],
    ],
    [
        ["nodes-tcp-crr", "nodes-tcp-crr-v6"],
        ["nodes-tcp-rr", "nodes-tcp-rr-v6"],
        ["nodes-tcp-bulk", "nodes-tcp-bulk-v6"],
    ],
];

/// The nodes' interfaces to each other.
const UPLINK: &str = "eth0";

/// The address of a node.
fn node_address(family: Family, node: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(172, 31, 0, node).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x172, 0x31, 0, 0, 0, 0, node.into()).into(),
    }
}

/// The address of a pod of a node.
fn pod_address(family: Family, node: u8, pod: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, pod).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, pod.into()).into(),
    }
}

/// A pod: its namespace, its number, and the host's side of its interface.
struct Pod {
    netns: NetNs,
    number: u8,
    port: String,
}

/// Three pods on two nodes, with servers that run.
struct Pair {
    // Dropped in this order: the servers end before their namespaces go.
    _servers: Vec<Process>,
    _labs: Vec<Lab>,
    cgroups: [Cgroup; 2],
    /// The pods of each node: the client's is the first node's first.
    pods: [Vec<Pod>; 2],
    _nodes: [NetNs; 2],
}

impl Pair {
    fn new(variant: &str, dir: &WorkDir, cpu: usize) -> Result<Self> {
        let netns = |name: &str| NetNs::new(&format!("{variant}-{name}"));
        let nodes = [netns("n1")?, netns("n2")?];
        let [first, second] = &nodes;
        first.veth(UPLINK, second, UPLINK)?;
        for (number, node) in [1, 2].into_iter().zip(&nodes) {
            let other = 3 - number;
            let [v4, v6] = Family::ALL.map(|family| node_address(family, number));
            let [via4, via6] = Family::ALL.map(|family| node_address(family, other));
            node.ip(&format!(
                "addr add {v4}/24 dev {UPLINK}\naddr add {v6}/64 dev {UPLINK} nodad\n\
                 route add 10.244.{other}.0/24 via {via4}\nroute add fd00:244:{other}::/64 via {via6}"
            ))?;
            forward(node, UPLINK)?;
            tune(node)?;
        }
        let mut pods = [Vec::new(), Vec::new()];
        for (node, number, name) in [(0, 2, "cli"), (0, 3, "near"), (1, 2, "far")] {
            let pod = netns(name)?;
            let port = format!("cali{number}");
            let addresses = Family::ALL.map(|family| pod_address(family, node as u8 + 1, number));
            wire(&nodes[node], &port, &pod, addresses)?;
            tune(&pod)?;
            pods[node].push(Pod { netns: pod, number, port });
        }
        let cgroups =
            [Cgroup::new(&format!("{variant}-n1"))?, Cgroup::new(&format!("{variant}-n2"))?];
        let mut labs = Vec::new();
        if variant == "sluice" {
            for (n, node) in nodes.iter().enumerate() {
                labs.push(serve(n as u8 + 1, node, &cgroups[n], &pods[n])?);
            }
        }
        let mut servers = Vec::new();
        let perf = bin("perf")?;
        for (n, pod) in [(0, &pods[0][1]), (1, &pods[1][0])] {
            let launch = Launch::new(&perf).netns(&pod.netns).cgroup(&cgroups[n]);
            servers.extend(topology::start_servers(&launch, &format!("{variant}-{n}"), dir, cpu)?);
        }
        Ok(Self { _servers: servers, _labs: labs, cgroups, pods, _nodes: nodes })
    }

    /// The server that a client asks: on its own node, or on the other one.
    fn target(&self, between: bool, family: Family) -> SocketAddr {
        let (node, pod) = if between { (2, &self.pods[1][0]) } else { (1, &self.pods[0][1]) };
        (pod_address(family, node, pod.number), PORT).into()
    }

    fn measure(&self, plan: &Plan, exchange: &str, target: SocketAddr) -> Result<f64> {
        let millis = plan.millis.to_string();
        let text = Launch::new(bin("perf")?)
            .netns(&self.pods[0][0].netns)
            .cgroup(&self.cgroups[0])
            .args(["client", &target.to_string(), "--case", exchange, "--millis", &millis])
            .cpu(plan.cpu)
            .urgent()
            .run()?;
        text.trim().parse().with_context(|| format!("figure of the client: {text}"))
    }
}

/// Attaches everything on one node, and says what the agent would.
fn serve(number: u8, node: &NetNs, cgroup: &Cgroup, pods: &[Pod]) -> Result<Lab> {
    let mut lab = Lab::with_cgroup("podnet", true, cgroup.path().to_owned())?;
    lab.dataplane.attach_cgroup()?;
    node.run(|| lab.dataplane.attach_uplink(UPLINK))??;
    let [v4, v6] = Family::ALL.map(|family| Addr::from(node_address(family, number)));
    lab.dataplane.set_node_addrs(NodeAddrs {
        v4,
        v6,
        port_min: 32_768,
        port_max: 65_535,
        flags: NodeAddrs::MASQUERADE,
    })?;
    let ranges = ["10.244.0.0".parse()?, "fd00:244::".parse::<IpAddr>()?]
        .map(|base| CidrKey::new(base.into(), if base.is_ipv4() { 16 } else { 32 }));
    lab.dataplane.set_non_masquerade(&ranges.into())?;
    for pod in pods {
        let attachment = node.run(|| lab.dataplane.attach_pod(&pod.port, TcHook::Clsact))??;
        let (host_mac, mac) = (mac(node, &pod.port)?, mac(&pod.netns, "eth0")?);
        for family in Family::ALL {
            let (ifindex, id) = (attachment.ifindex, pod.number.into());
            let address = pod_address(family, number, pod.number).into();
            lab.dataplane.put_endpoint(
                address,
                Endpoint { ifindex, id, mac, host_mac, ..Endpoint::default() },
            )?;
        }
    }
    Ok(lab)
}

/// The hardware address of an interface.
fn mac(netns: &NetNs, name: &str) -> Result<[u8; 6]> {
    let text = netns.ip_output(&["-o", "link", "show", "dev", name])?;
    let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let mac = mac.with_context(|| format!("hardware address in {text}"))?;
    let bytes: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| mac.to_owned())?;
    <[u8; 6]>::try_from(bytes).ok().with_context(|| mac.to_owned())
}

/// Builds both variants, measures them in turn, and returns every figure.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Measured>> {
    let dir = WorkDir::new("bench")?;
    let wanted = |name: &&str| plan.only.is_empty() || plan.only.iter().any(|it| it == name);
    let mut pairs = Vec::new();
    for variant in VARIANTS.into_iter().filter(wanted) {
        progress(variant);
        pairs.push((variant, Pair::new(variant, &dir, plan.cpu)?));
    }
    ensure!(!pairs.is_empty(), "no variant of bench podnet among those of --only");
    let mut measured: Vec<Measured> = Vec::new();
    for round in 1..=plan.rounds {
        let mut at = 0;
        for (between, exchanges) in [false, true].into_iter().zip(CASES) {
            for ((exchange, unit), names) in EXCHANGES.into_iter().zip(exchanges) {
                for (family, case) in Family::ALL.into_iter().zip(names) {
                    for (variant, pair) in &pairs {
                        progress(&format!("round {round}/{}: {case} {variant}", plan.rounds));
                        let target = pair.target(between, family);
                        let rate = pair.measure(plan, exchange, target);
                        if rate.is_err() {
                            // Ctrl-C reaches the client, too, and its end may be seen first.
                            let _ = wait_for("Ctrl-C", Duration::from_millis(200), || {
                                interrupt::interrupted().then_some(())
                            });
                        }
                        stop_if_asked()?;
                        let rate = rate.with_context(|| format!("{case} {variant}"))?;
                        if round == 1 {
                            let (variant, rounds) = ((*variant).to_owned(), Vec::new());
                            let bench = "podnet";
                            measured.push(Measured { bench, case, variant, n: 0, unit, rounds });
                        }
                        measured[at].rounds.push(rate);
                        at += 1;
                    }
                }
            }
        }
    }
    progress("");
    Ok(measured)
}

/// Prints the table.
pub(crate) fn print(measured: &[Measured]) {
    let mut table = report::bare();
    table.set_header(["case", "variant", "value", "unit", "lowest", "highest", "x direct"]);
    for it in measured {
        let direct = measured.iter().find(|direct| {
            direct.case == it.case && direct.variant == "direct" && it.variant != "direct"
        });
        let figure = |value: f64| {
            if it.unit == "Gbit/s" { format!("{value:.2}") } else { report::thousands(value) }
        };
        table.add_row([
            it.case.to_owned(),
            it.variant.clone(),
            figure(median(&it.rounds)),
            it.unit.to_owned(),
            figure(it.rounds.iter().copied().fold(f64::INFINITY, f64::min)),
            figure(it.rounds.iter().copied().fold(0.0, f64::max)),
            direct.map_or_else(String::new, |to| format!("{:.2}", report::ratio(it, to))),
        ]);
    }
    for column in [2, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    println!("\n{table}");
    println!("\nmedians over the rounds; ratios are medians of the ratios within each round");
    println!("node: both pods on one node; nodes: on two that a veth joins");
}
