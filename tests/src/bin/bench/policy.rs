//! Bench `policy`: what network policies cost a connection between two pods of one node, to the pod's own address and
//! through a ClusterIP.
//!
//! Sluice is measured with the real agent, on a node without a policy, on one where the peer that is allowed stands behind
//! 99 others in the rules, and on nodes with one policy and with 1,000. Beside it are plain kernel forwarding without any
//! policy, and nftables in the shape that agents give it which keep policies there. At the end, changes of objects are timed
//! ([`changes`]).

pub(crate) mod changes;
mod manifests;
mod nftables;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::cluster::WorkDir;
use sluice_tests::wait::wait_ok;
use sluice_tests::{bin, interrupt, wait_for};

use crate::Plan;
use crate::report::{self, Measured, median};
use crate::rules::{self, Family};
use crate::service::{progress, stop_if_asked};
use crate::topology::{
    From, Node, POD_PORT, PORT, Plain, Rules, Sluice, plain_server, service_target,
};

/// Services on each node; the measured one is among them.
const SERVICES: usize = 10;
/// Peers that each pod's rules name, where there are many; the one that is allowed stands last.
const RULES: usize = 100;
/// Policies for the server's pod, where there are many.
const MANY: usize = 1_000;

/// How long an agent may take until it has everything in the kernel.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which policies a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// None.
    Open,
    /// Both pods are closed but for what [`RULES`] rules of each allow.
    Rules,
    /// So many, all for the server's pod; one of them allows the client.
    Policies(usize),
}

/// Names of the variants with their loads; those that are set beside each other are measured one after the other.
const SLUICE: [(&str, usize, Load); 4] = [
    ("sluice", 0, Load::Open),
    ("sluice-rules", 3, Load::Rules),
    ("sluice", 1, Load::Policies(1)),
    ("sluice", MANY, Load::Policies(MANY)),
];

/// What is measured: its name, the client's `--case`, the family, and whether through the ClusterIP.
struct Case {
    name: &'static str,
    exchange: &'static str,
    family: Family,
    of_service: bool,
}

const fn case(
    name: &'static str,
    exchange: &'static str,
    family: Family,
    of_service: bool,
) -> Case {
    Case { name, exchange, family, of_service }
}

const CASES: [Case; 8] = [
    case("pod-tcp-crr", "tcp-crr", Family::V4, false),
    case("pod-tcp-rr", "tcp-rr", Family::V4, false),
    case("pod-tcp-crr-v6", "tcp-crr", Family::V6, false),
    case("pod-tcp-rr-v6", "tcp-rr", Family::V6, false),
    case("service-tcp-crr", "tcp-crr", Family::V4, true),
    case("service-tcp-rr", "tcp-rr", Family::V4, true),
    case("service-tcp-crr-v6", "tcp-crr", Family::V6, true),
    case("service-tcp-rr-v6", "tcp-rr", Family::V6, true),
];

/// A node, its name in the table, and how many policies it has.
struct Variant {
    name: &'static str,
    n: usize,
    node: Node,
}

impl Variant {
    /// What the client asks. Plain forwarding has no service: it stands for itself in every case.
    fn target(&self, case: &Case) -> SocketAddr {
        if case.of_service && self.name != "direct" {
            service_target(case.family, SERVICES)
        } else {
            (self.node.server_address(case.family), POD_PORT).into()
        }
    }

    fn measure(&self, plan: &Plan, case: &Case) -> Result<f64> {
        let (target, millis) = (self.target(case).to_string(), plan.millis.to_string());
        let text = self
            .node
            .client(From::Pod, &bin("perf")?)
            .args(["client", &target, "--case", case.exchange, "--millis", &millis])
            .cpu(plan.cpu)
            .urgent()
            .run()?;
        text.trim().parse().with_context(|| format!("figure of the client: {text}"))
    }
}

/// Builds all variants, measures them in turn, and returns every figure.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Measured>> {
    let dir = WorkDir::new("bench")?;
    let variants = build(plan, &dir)?;
    let mut measured: Vec<(Measured, &Case, &Variant)> = Vec::new();
    for case in &CASES {
        for variant in &variants {
            let (bench, name, rounds) = ("policy", variant.name.to_owned(), Vec::new());
            let figures = Measured {
                bench,
                case: case.name,
                variant: name,
                n: variant.n,
                unit: "1/s",
                rounds,
            };
            measured.push((figures, case, variant));
        }
    }
    for round in 1..=plan.rounds {
        // To and fro, so that none is always the one that comes after another.
        let order: Vec<usize> = match round % 2 {
            0 => (0..measured.len()).rev().collect(),
            _ => (0..measured.len()).collect(),
        };
        for at in order {
            let (it, case, variant) = &mut measured[at];
            let what = format!("{} {} {}", it.case, it.variant, it.n);
            progress(&format!("round {round}/{}: {what}", plan.rounds));
            let rate = variant.measure(plan, case);
            if rate.is_err() {
                // Ctrl-C reaches the client, too, and its end may be seen first.
                let _ = wait_for("Ctrl-C", Duration::from_millis(200), || {
                    interrupt::interrupted().then_some(())
                });
            }
            stop_if_asked()?;
            it.rounds.push(rate.context(what)?);
        }
    }
    progress("");
    Ok(measured.into_iter().map(|(figures, ..)| figures).collect())
}

fn build(plan: &Plan, dir: &WorkDir) -> Result<Vec<Variant>> {
    let wanted = |name: &str| plan.only.is_empty() || plan.only.iter().any(|it| it == name);
    let mut variants = Vec::new();
    if wanted("direct") {
        progress("direct routing");
        let plain = Plain::new("policy-direct", &Rules::None, dir, plan.cpu)?;
        variants.push(Variant { name: "direct", n: 0, node: Node::Plain(Box::new(plain)) });
    }
    if wanted("nftables") {
        progress("nftables");
        let services = Family::ALL.map(|family| {
            let target = (plain_server(family), PORT);
            let services = rules::services(family, SERVICES, target, false);
            [services, rules::extras(family)].concat()
        });
        let rules = Rules::Policed(services, nftables::table(RULES));
        let plain = Plain::new("policy-nftables", &rules, dir, plan.cpu)?;
        variants.push(Variant { name: "nftables", n: 3, node: Node::Plain(Box::new(plain)) });
    }
    for (name, n, load) in SLUICE {
        stop_if_asked()?;
        if wanted(name) {
            progress(&format!("{name}, {n} policies"));
            let sluice = Sluice::new(SERVICES, false, dir, plan.cpu)?;
            enforce(&sluice, load).with_context(|| format!("{name} with {n} policies"))?;
            variants.push(Variant { name, n, node: Node::Sluice(Box::new(sluice)) });
        }
    }
    ensure!(!variants.is_empty(), "no variant of bench policy among those of --only");
    Ok(variants)
}

/// Gives the node its policies, and waits until its kernel has them.
fn enforce(sluice: &Sluice, load: Load) -> Result<()> {
    sluice.cluster().apply("pods", &manifests::pods(sluice, RULES.max(MANY)))?;
    sluice.cluster().apply("policies", &manifests::policies(load))?;
    let expected = match load {
        Load::Open => 0,
        Load::Rules => 3,
        Load::Policies(count) => count,
    };
    let node = sluice.cluster().node(0);
    wait_ok(&format!("{expected} policies in the kernel"), PATIENCE, || {
        let list: Value = serde_json::from_str(&node.proxyctl(&["policy", "list", "-o", "json"])?)?;
        let list = list.as_array().context("a list of policies")?;
        ensure!(list.len() == expected, "{} policies", list.len());
        // Another port is allowed where no policy is.
        for (port, allowed) in [(POD_PORT, true), (PORT, true), (9, load == Load::Open)] {
            let port = port.to_string();
            let args = ["policy", "trace", "default/client", "default/server", &port, "-o", "json"];
            let trace: Value = serde_json::from_str(&node.proxyctl(&args)?)?;
            ensure!(trace["agree"] == true && trace["allowed"] == allowed, "port {port}: {trace}");
        }
        Ok(())
    })
}

/// Prints the table.
pub(crate) fn print(measured: &[Measured]) {
    let mut table = report::bare();
    table.set_header([
        "case",
        "variant",
        "policies",
        "1/s",
        "lowest",
        "highest",
        "x direct",
        "x nftables",
        "x none",
        "x one",
    ]);
    for it in measured {
        let beside = |variant: &str, n: Option<usize>| {
            let found = measured.iter().find(|other| {
                other.case == it.case && other.variant == variant && n.is_none_or(|n| other.n == n)
            });
            let found = found.filter(|other| other.variant != it.variant || other.n != it.n);
            found.map_or_else(String::new, |other| format!("{:.3}", report::ratio(it, other)))
        };
        table.add_row([
            it.case.to_owned(),
            it.variant.clone(),
            it.n.to_string(),
            report::thousands(median(&it.rounds)),
            report::thousands(it.rounds.iter().copied().fold(f64::INFINITY, f64::min)),
            report::thousands(it.rounds.iter().copied().fold(0.0, f64::max)),
            beside("direct", None),
            beside("nftables", None),
            beside("sluice", Some(0)),
            beside("sluice", Some(1)),
        ]);
    }
    for column in 2..10 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    println!("\n{table}");
    println!("\nmedians over the rounds; ratios are medians of the ratios within each round");
    println!(
        "direct: no policy, and always the pod's own address; nftables and sluice-rules: both pods closed, and"
    );
    println!(
        "{RULES} peers for each of which the last is the other; x none, x one: to Sluice with so many policies"
    );
}
