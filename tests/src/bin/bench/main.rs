//! `cargo xtask bench`: Sluice beside what else carries a connection to a pod, on this machine, now.

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
use crate::service::Way;

/// Measures Sluice against direct routing, nftables and iptables.
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    /// Which benches to run: service, nodeport. All of them where none is named
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
    /// Numbers of services
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    services: Vec<usize>,
    /// Only these variants: sluice, direct, nftables, iptables, loopback
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The CPU that client and server share; the last one where none is named
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

const BENCHES: [&str; 2] = ["service", "nodeport"];

const VARIANTS: [&str; 5] = ["sluice", "direct", "nftables", "iptables", "loopback"];

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
    if cli.services.iter().any(|count| !(1..=10_000).contains(count)) {
        bail!("--services takes numbers from 1 to 10000");
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
    println!(
        "{} rounds of {} ms each, variants interleaved; client and server share CPU {}\n",
        plan.rounds, plan.millis, plan.cpu
    );
    let mut measured: Vec<Measured> = Vec::new();
    for (name, way) in [("service", Way::ClusterIp), ("nodeport", Way::NodePort)] {
        if cli.names.is_empty() || cli.names.iter().any(|it| it == name) {
            let figures = service::run(&plan, way)?;
            println!("{name}");
            report::print(&figures);
            measured.extend(figures);
        }
    }
    if let Some(path) = cli.json {
        let json = serde_json::to_string_pretty(&report::json(&measured))?;
        std::fs::write(&path, json + "\n").with_context(|| path.display().to_string())?;
        println!("\nwritten to {}", path.display());
    }
    Ok(())
}
