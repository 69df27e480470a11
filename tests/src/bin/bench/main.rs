//! `cargo xtask bench`: Sluice beside what else carries a connection to a pod, on this machine, now.

mod dns;
mod report;
mod rules;
mod service;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use sluice_tests::interrupt;

use crate::report::Measured;

/// Measures Sluice against direct routing, nftables and iptables.
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    /// Which benches to run: service, dns. All of them where none is named
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
    /// Only these variants: sluice, direct, nftables, iptables, loopback; sluice, knot, unbound
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

const VARIANTS: [&str; 7] =
    ["sluice", "direct", "nftables", "iptables", "loopback", "knot", "unbound"];
const BENCHES: [&str; 2] = ["service", "dns"];

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
    let mut measured: Vec<Measured> = Vec::new();
    if wanted("service") {
        println!(
            "{} rounds of {} ms each, variants interleaved; client and server share CPU {}\n",
            plan.rounds, plan.millis, plan.cpu
        );
        let services = service::run(&plan)?;
        report::print(&services);
        measured.extend(services);
    }
    if wanted("dns") {
        let seconds = plan.millis.div_ceil(1000).max(1);
        println!(
            "{} rounds of {seconds} s each, servers interleaved on CPU {}, dnsperf on another\n",
            plan.rounds, plan.cpu
        );
        let answers = dns::run(&plan)?;
        dns::print(&answers);
        measured.extend(answers);
    }
    if let Some(path) = cli.json {
        let json = serde_json::to_string_pretty(&report::json(&measured))?;
        std::fs::write(&path, json + "\n").with_context(|| path.display().to_string())?;
        println!("\nwritten to {}", path.display());
    }
    Ok(())
}
