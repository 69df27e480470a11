//! Benches `service` and `nodeport`: what a connection to a service costs, by the number of services that are installed.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_tests::cluster::WorkDir;
use sluice_tests::{bin, interrupt, wait_for};

use crate::Plan;
use crate::report::Measured;
use crate::rules::{self, Family};
use crate::topology::{
    From, Node, POD_PORT, PORT, Plain, Rules, Sluice, node_port_target, plain_server,
    service_target,
};

/// What is counted, and between whom.
struct Case {
    name: &'static str,
    /// The client's `--case`.
    exchange: &'static str,
    family: Family,
    from: From,
    /// With every number of services; else with the most of them alone.
    always: bool,
}

const fn case(
    name: &'static str,
    exchange: &'static str,
    family: Family,
    from: From,
    always: bool,
) -> Case {
    Case { name, exchange, family, from, always }
}

/// Which way clients take to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its ClusterIP, from inside.
    ClusterIp,
    /// Its node port, from outside.
    NodePort,
}

impl Way {
    fn bench(self) -> &'static str {
        match self {
            Self::ClusterIp => "service",
            Self::NodePort => "nodeport",
        }
    }

    fn cases(self) -> &'static [Case] {
        const SERVICE: &[Case] = &[
            case("tcp-crr", "tcp-crr", Family::V4, From::Pod, true),
            case("tcp-rr", "tcp-rr", Family::V4, From::Pod, true),
            case("tcp-crr-v6", "tcp-crr", Family::V6, From::Pod, false),
            case("tcp-rr-v6", "tcp-rr", Family::V6, From::Pod, false),
            case("udp-crr", "udp-crr", Family::V4, From::Pod, false),
            case("udp-rr", "udp-rr", Family::V4, From::Pod, false),
            case("udp-rr-v6", "udp-rr", Family::V6, From::Pod, false),
            case("host-tcp-crr", "tcp-crr", Family::V4, From::Host, false),
            case("host-tcp-rr", "tcp-rr", Family::V4, From::Host, false),
            case("host-udp-rr", "udp-rr", Family::V4, From::Host, false),
        ];
        const NODE_PORT: &[Case] = &[
            case("tcp-crr", "tcp-crr", Family::V4, From::Outside, true),
            case("tcp-rr", "tcp-rr", Family::V4, From::Outside, true),
            case("tcp-crr-v6", "tcp-crr", Family::V6, From::Outside, false),
            case("tcp-rr-v6", "tcp-rr", Family::V6, From::Outside, false),
            case("udp-crr", "udp-crr", Family::V4, From::Outside, false),
            case("udp-rr", "udp-rr", Family::V4, From::Outside, false),
            case("udp-rr-v6", "udp-rr", Family::V6, From::Outside, false),
        ];
        match self {
            Self::ClusterIp => SERVICE,
            Self::NodePort => NODE_PORT,
        }
    }
}

/// What carries the packets, and what the client connects to.
struct Variant {
    name: String,
    n: usize,
    node: usize,
    to: To,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// The service.
    Service,
    /// The pod's own address.
    Pod,
    /// The server, from its own pod.
    Loopback,
}

impl Variant {
    fn measures(&self, case: &Case, largest: Option<usize>) -> bool {
        match self.to {
            // The limit that nothing can be faster than, and what a node pays for packets that are no service's: for
            // the first two cases.
            To::Loopback => case.always,
            To::Pod if self.n != 0 => case.always,
            To::Pod => true,
            To::Service => case.always || largest == Some(self.n),
        }
    }

    fn target(&self, way: Way, case: &Case, node: &Node) -> SocketAddr {
        match (self.to, way) {
            (To::Service, Way::ClusterIp) => service_target(case.family, self.n),
            (To::Service, Way::NodePort) => node_port_target(case.family, self.n),
            (To::Loopback, _) => SocketAddr::from(([127, 0, 0, 1], POD_PORT)),
            // Beside a service, answers of a connection without it must not look like those of one through it.
            (To::Pod, _) if case.always => (node.server_address(case.family), POD_PORT).into(),
            (To::Pod, _) => (node.server_address(case.family), PORT).into(),
        }
    }
}

/// Builds all variants, measures them in turn, and returns every figure.
pub(crate) fn run(plan: &Plan, way: Way) -> Result<Vec<Measured>> {
    let dir = WorkDir::new("bench")?;
    let counts = counts(plan, way)?;
    let (nodes, variants) = build(plan, way, &counts, &dir)?;
    let largest = counts.iter().copied().max();
    let mut measured: Vec<(Measured, &Case, &Variant)> = Vec::new();
    for case in way.cases() {
        for variant in variants.iter().filter(|variant| variant.measures(case, largest)) {
            let bench = way.bench();
            let (name, n, rounds) = (variant.name.clone(), variant.n, Vec::new());
            let figures =
                Measured { bench, case: case.name, variant: name, n, unit: "1/s", rounds };
            measured.push((figures, case, variant));
        }
    }
    for round in 1..=plan.rounds {
        for (it, case, variant) in &mut measured {
            progress(&format!(
                "round {round}/{}: {} {} {}",
                plan.rounds, it.case, it.variant, it.n
            ));
            let node = &nodes[variant.node];
            let rate = measure(plan, node, variant, variant.target(way, case, node), case);
            if rate.is_err() {
                // Ctrl-C reaches the client, too, and its end may be seen first.
                let _ = wait_for("Ctrl-C", Duration::from_millis(200), || {
                    interrupt::interrupted().then_some(())
                });
            }
            stop_if_asked()?;
            it.rounds.push(rate.with_context(|| format!("{} {} {}", it.case, it.variant, it.n))?);
        }
    }
    progress("");
    Ok(measured.into_iter().map(|(figures, ..)| figures).collect())
}

/// The numbers of services.
fn counts(plan: &Plan, way: Way) -> Result<Vec<usize>> {
    let counts = if plan.services.is_empty() { &[10, 1_000, 10_000][..] } else { &plan.services };
    let most = match way {
        // As many as fit in the range of cluster IPs.
        Way::ClusterIp => 60_000,
        Way::NodePort => 10_000,
    };
    if counts.iter().any(|count| *count > most) {
        bail!("the bench {} takes up to {most} services", way.bench());
    }
    Ok(counts.to_vec())
}

fn build(
    plan: &Plan,
    way: Way,
    counts: &[usize],
    dir: &WorkDir,
) -> Result<(Vec<Node>, Vec<Variant>)> {
    let (mut nodes, mut variants) = (Vec::new(), Vec::new());
    let wanted = |name: &str| plan.only.is_empty() || plan.only.iter().any(|it| it == name);
    let mut add = |node: Node, names: &[(&str, usize, To)]| {
        for (name, n, to) in names {
            let name = (*name).to_owned();
            variants.push(Variant { name, n: *n, node: nodes.len(), to: *to });
        }
        nodes.push(node);
    };
    if wanted("direct") || wanted("loopback") {
        progress("direct routing");
        let plain = Plain::new("direct", &Rules::None, dir, plan.cpu)?;
        let names: Vec<_> = [("loopback", 0, To::Loopback), ("direct", 0, To::Pod)]
            .into_iter()
            .filter(|(name, ..)| wanted(name) && (*name != "loopback" || way == Way::ClusterIp))
            .collect();
        add(Node::Plain(Box::new(plain)), &names);
    }
    // To the pod's own address on a node with all services: what a node pays for packets that are no service's.
    let largest = counts.iter().copied().max();
    let node_ports = way == Way::NodePort;
    for &count in counts {
        let also_pod = largest == Some(count) && way == Way::ClusterIp;
        let names = |name: &'static str, pod: &'static str| {
            let mut names = vec![(name, count, To::Service)];
            if also_pod {
                names.push((pod, count, To::Pod));
            }
            names
        };
        if wanted("sluice") {
            progress(&format!("sluice, {count} services"));
            let sluice = Sluice::new(count, node_ports, dir, plan.cpu)?;
            add(Node::Sluice(Box::new(sluice)), &names("sluice", "sluice-pod"));
        }
        for name in ["nftables", "iptables"] {
            stop_if_asked()?;
            if !wanted(name) {
                continue;
            }
            progress(&format!("{name}, {count} services"));
            // The services stay in their order; what every cluster has comes last.
            let all = Family::ALL.map(|family| {
                let target = (plain_server(family), PORT);
                let services = rules::services(family, count, target, node_ports);
                [services, rules::extras(family)].concat()
            });
            let (rules, pod) = match name {
                "nftables" => (Rules::Nftables(all), "nftables-pod"),
                _ => (Rules::Iptables(all), "iptables-pod"),
            };
            let plain = Plain::new(&format!("{name}-{count}"), &rules, dir, plan.cpu)?;
            add(Node::Plain(Box::new(plain)), &names(name, pod));
        }
    }
    Ok((nodes, variants))
}

fn measure(
    plan: &Plan,
    node: &Node,
    variant: &Variant,
    target: SocketAddr,
    case: &Case,
) -> Result<f64> {
    let from = if variant.to == To::Loopback { From::Server } else { case.from };
    let millis = plan.millis.to_string();
    let text = node
        .client(from, &bin("perf")?)
        .args(["client", &target.to_string(), "--case", case.exchange, "--millis", &millis])
        .cpu(plan.cpu)
        .urgent()
        .run()?;
    text.trim().parse().with_context(|| format!("figure of the client: {text}"))
}

pub(crate) fn stop_if_asked() -> Result<()> {
    if interrupt::interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// One line that is overwritten, on a terminal only.
pub(crate) fn progress(text: &str) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let _ = write!(terminal, "\r\x1b[K{text}");
        let _ = terminal.flush();
    }
}
