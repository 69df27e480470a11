//! `cargo xtask bench`: Sluice beside what else carries a connection to a pod or wires one, on this machine, now.

mod cni;
mod dns;
mod podnet;
mod policy;
mod report;
mod rules;
mod service;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::{Value, json};
use sluice_tests::interrupt;

use crate::report::Measured;
use crate::service::Way;

/// Measures Sluice against direct routing, nftables and iptables, and its plugin against the reference.
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    /// Which benches to run: service, nodeport, cni, dns, podnet, policy. All of them where none is named
    names: Vec<String>,
    /// Fewer rounds: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Write the medians to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds; every variant is measured once in each
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds of one measurement
    #[arg(long)]
    millis: Option<u64>,
    /// Numbers of services [default: 10,1000,10000 for service, 1000,100000 for dns]
    #[arg(long, value_delimiter = ',')]
    services: Vec<usize>,
    /// Only these variants: of service and nodeport sluice, direct, nftables, iptables, loopback; of cni
    /// sluice, sluice-alone, ptp; of dns sluice, knot, unbound; of podnet sluice, direct; of
    /// policy sluice, sluice-rules, direct, nftables
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The CPU that client and server share, or the server's in the bench dns; the last one where none
    /// is named
    #[arg(long)]
    cpu: Option<usize>,
}

/// How a bench measures.
struct Plan {
    rounds: usize,
    millis: u64,
    services: Vec<usize>,
    only: Vec<String>,
    cpu: usize,
}

const BENCHES: [&str; 6] = ["service", "nodeport", "cni", "dns", "podnet", "policy"];

const VARIANTS: [&str; 11] = [
    "sluice",
    "direct",
    "nftables",
    "iptables",
    "loopback",
    "sluice-alone",
    "sluice-tcx",
    "sluice-rules",
    "ptp",
    "knot",
    "unbound",
];

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    for name in &cli.names {
        if !BENCHES.contains(&name.as_str()) {
            bail!("no bench {name}; there are: {}", BENCHES.join(", "));
        }
    }
    for variant in &cli.only {
        if !VARIANTS.contains(&variant.as_str()) {
            bail!("no variant {variant}; there are: {}", VARIANTS.join(", "));
        }
    }
    if cli.services.iter().any(|count| !(1..=100_000).contains(count)) {
        bail!("--services takes numbers from 1 to 100000");
    }
    sluice_tests::require_root()?;
    // From here on Ctrl-C ends the run in order, and everything is removed.
    interrupt::take_over()?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        rounds: cli.rounds.unwrap_or(if cli.quick { 3 } else { 25 }).max(1),
        millis: cli.millis.unwrap_or(300).max(10),
        services: cli.services,
        only: cli.only,
        cpu: cli.cpu.unwrap_or(cpus - 1),
    };
    println!("{}", report::machine());
    let wanted = |name: &str| cli.names.is_empty() || cli.names.iter().any(|it| it == name);
    let mut results: Vec<Value> = Vec::new();
    for (name, way) in [("service", Way::ClusterIp), ("nodeport", Way::NodePort)] {
        if wanted(name) {
            println!(
                "{name}: {} rounds of {} ms each, variants interleaved; client and server share CPU {}\n",
                plan.rounds, plan.millis, plan.cpu
            );
            let measured: Vec<Measured> = service::run(&plan, way)?;
            report::print(&measured);
            results.extend(report::json(&measured));
        }
    }
    if wanted("cni") {
        println!(
            "cni: {} rounds, variants interleaved, calls one by one and 30 at once",
            plan.rounds
        );
        results.extend(cni::run(&plan)?);
    }
    if wanted("dns") {
        let seconds = plan.millis.div_ceil(1000).max(1);
        println!(
            "dns: {} rounds of {seconds} s each, servers interleaved on CPU {}, the clients on another\n",
            plan.rounds, plan.cpu
        );
        let answers = dns::run(&plan)?;
        dns::print(&answers);
        results.extend(report::json(&answers));
    }
    if wanted("podnet") {
        println!(
            "podnet: {} rounds of {} ms each, variants interleaved; client and server share CPU {}\n",
            plan.rounds, plan.millis, plan.cpu
        );
        let measured = podnet::run(&plan)?;
        podnet::print(&measured);
        results.extend(report::json(&measured));
    }
    if wanted("policy") {
        println!(
            "policy: {} rounds of {} ms each, variants interleaved; client and server share CPU {}\n",
            plan.rounds, plan.millis, plan.cpu
        );
        let measured = policy::run(&plan)?;
        policy::print(&measured);
        results.extend(report::json(&measured));
        let changes = policy::changes::run(&plan)?;
        policy::changes::print(&changes);
        results.extend(report::json(&changes));
    }
    if let Some(path) = cli.json {
        let json = serde_json::to_string_pretty(&json!({ "results": results }))?;
        std::fs::write(&path, json + "\n").with_context(|| path.display().to_string())?;
        println!("\nwritten to {}", path.display());
    }
    Ok(())
}
