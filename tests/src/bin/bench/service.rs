//! Bench `service`: what a connection to a service costs, by the number of services that are installed.

use std::io::{IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_tests::cluster::WorkDir;
use sluice_tests::{bin, interrupt, wait_for};

use crate::Plan;
use crate::report::Measured;
use crate::rules;
use crate::topology::{Node, PLAIN_SERVER, POD_PORT, PORT, Plain, Rules, Sluice};

const CASES: [&str; 2] = ["tcp-crr", "tcp-rr"];

/// Where a client connects to, and in which pod it runs.
struct Variant {
    name: String,
    n: usize,
    node: usize,
    target: SocketAddr,
    /// The client runs in the server's own pod.
    loopback: bool,
}

/// Builds all variants, measures them in turn, and returns every figure.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Measured>> {
    let dir = WorkDir::new("bench")?;
    let (nodes, variants) = build(plan, &dir)?;
    let mut measured: Vec<Measured> = Vec::new();
    for case in CASES {
        measured.extend(variants.iter().map(|variant| Measured {
            bench: "service",
            case,
            variant: variant.name.clone(),
            n: variant.n,
            unit: "1/s",
            rounds: Vec::new(),
        }));
    }
    for round in 1..=plan.rounds {
        for (index, it) in measured.iter_mut().enumerate() {
            progress(&format!(
                "round {round}/{}: {} {} {}",
                plan.rounds, it.case, it.variant, it.n
            ));
            let variant = &variants[index % variants.len()];
            let rate = measure(plan, &nodes[variant.node], variant, it.case);
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
    Ok(measured)
}

fn build(plan: &Plan, dir: &WorkDir) -> Result<(Vec<Node>, Vec<Variant>)> {
    let (mut nodes, mut variants) = (Vec::new(), Vec::new());
    let wanted = |name: &str| plan.only.is_empty() || plan.only.iter().any(|it| it == name);
    let mut add = |node: Node, names: &[(&str, usize, Option<Ipv4Addr>)]| {
        for (name, n, service) in names {
            let loopback = *name == "loopback";
            let target = match (service, loopback) {
                (Some(address), _) => SocketAddr::from((*address, 80)),
                (None, true) => SocketAddr::from((Ipv4Addr::LOCALHOST, POD_PORT)),
                (None, false) => SocketAddr::from((node.server_address(), POD_PORT)),
            };
            let name = (*name).to_owned();
            variants.push(Variant { name, n: *n, node: nodes.len(), target, loopback });
        }
        nodes.push(node);
    };
    if wanted("direct") || wanted("loopback") {
        progress("direct routing");
        let plain = Plain::new("direct", &Rules::None, dir, plan.cpu)?;
        let names: Vec<_> = ["loopback", "direct"]
            .into_iter()
            .filter(|name| wanted(name))
            .map(|name| (name, 0, None))
            .collect();
        add(Node::Plain(Box::new(plain)), &names);
    }
    // To the pod's own address on a node with all services: what a node pays for packets that are no service's.
    let counts = if plan.services.is_empty() { &[10, 1_000, 10_000][..] } else { &plan.services };
    let largest = counts.iter().copied().max();
    for &count in counts {
        let also_pod = largest == Some(count);
        let names = |name: &'static str, pod: &'static str, address| {
            let mut names = vec![(name, count, Some(address))];
            if also_pod {
                names.push((pod, count, None));
            }
            names
        };
        if wanted("sluice") {
            progress(&format!("sluice, {count} services"));
            let (sluice, services) = Sluice::new(count, dir, plan.cpu)?;
            let address = services[count / 2].address;
            add(Node::Sluice(Box::new(sluice)), &names("sluice", "sluice-pod", address));
        }
        for name in ["nftables", "iptables"] {
            stop_if_asked()?;
            if !wanted(name) {
                continue;
            }
            progress(&format!("{name}, {count} services"));
            let target = (PLAIN_SERVER, PORT);
            let services = rules::services(count, target);
            let address = services[count / 2].address;
            // The services stay in their order; what every cluster has comes last.
            let all = [services, rules::extras()].concat();
            let (rules, pod) = match name {
                "nftables" => (Rules::Nftables(all), "nftables-pod"),
                _ => (Rules::Iptables(all), "iptables-pod"),
            };
            let plain = Plain::new(&format!("{name}-{count}"), &rules, dir, plan.cpu)?;
            add(Node::Plain(Box::new(plain)), &names(name, pod, address));
        }
    }
    Ok((nodes, variants))
}

fn measure(plan: &Plan, node: &Node, variant: &Variant, case: &str) -> Result<f64> {
    let perf = bin("perf")?;
    let launch = if variant.loopback { node.server(&perf) } else { node.client(&perf) };
    let target = variant.target.to_string();
    let millis = plan.millis.to_string();
    let text = launch
        .args(["client", &target, "--case", case, "--millis", &millis])
        .cpu(plan.cpu)
        .urgent()
        .run()?;
    text.trim().parse().with_context(|| format!("figure of the client: {text}"))
}

fn stop_if_asked() -> Result<()> {
    if interrupt::interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// One line that is overwritten, on a terminal only.
fn progress(text: &str) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let _ = write!(terminal, "\r\x1b[K{text}");
        let _ = terminal.flush();
    }
}
