//! Bench `cni`: how long ADD and DEL take a runtime, beside the reference plugins `ptp` and `host-local`.
//!
//! Every call is a process of its own, started in the node's namespace as a runtime does it, and timed from its start to
//! its end. All variants give a pod one IPv4 address and a default route; `sluice` and `sluice-tcx` wait for the agent,
//! too, which has attached its programs by then, and `sluice-alone` has none to wait for. `sluice` is the configuration
//! of the README, `sluice-tcx` the one that leaves room for the bandwidth plugin (`"hook": "tcx"`). Agent and plugin are
//! optimised builds, as the reference plugins are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use sluice_tests::cluster::Cluster;
use sluice_tests::netns::NetNs;
use sluice_tests::runtime::PLUGINS;
use sluice_tests::{bin, names};

use crate::report::{self, median};
use crate::service::{progress, stop_if_asked};
use crate::{Plan, VARIANTS};

/// How many calls are under way at once.
const CROWDS: [usize; 2] = [1, 30];
const COMMANDS: [&str; 2] = ["ADD", "DEL"];

/// A plugin with its configuration.
struct Variant {
    name: &'static str,
    program: PathBuf,
    conf: Value,
}

/// Milliseconds of every call, by variant, in rounds.
struct Measured {
    command: &'static str,
    crowd: usize,
    rounds: BTreeMap<&'static str, Vec<Vec<f64>>>,
}

/// Measures, prints the table, and returns the results for the JSON file.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Value>> {
    let mut cluster = Cluster::new(1)?;
    cluster.start_agents()?;
    let node = cluster.node(0);
    let state = cluster.dir().join("alone");
    let variants = variants(plan, &node.cni_config(), state)?;
    ensure!(!variants.is_empty(), "no variant of bench cni among those of --only");
    let pods = (0..CROWDS[1]).map(|_| NetNs::new("pod")).collect::<Result<Vec<_>>>()?;
    let mut measured: Vec<Measured> = Vec::new();
    for crowd in CROWDS {
        let mut of_crowd =
            COMMANDS.map(|command| Measured { command, crowd, rounds: BTreeMap::new() });
        for round in 0..=plan.rounds {
            for variant in &variants {
                progress(&format!("round {round}/{}: {} x {crowd}", plan.rounds, variant.name));
                for it in &mut of_crowd {
                    stop_if_asked()?;
                    let times = call(node.netns(), variant, it.command, &pods[..crowd])
                        .with_context(|| format!("{} {} x {crowd}", variant.name, it.command))?;
                    // The first round fills caches and loads kernel modules.
                    if round > 0 {
                        it.rounds.entry(variant.name).or_default().push(times);
                    }
                }
            }
        }
        measured.extend(of_crowd);
    }
    progress("");
    print(&measured);
    Ok(json(&measured))
}

fn variants(plan: &Plan, with_agent: &Value, state: PathBuf) -> Result<Vec<Variant>> {
    let ours = |conf: &Value| {
        let mut conf = conf.clone();
        conf["cniVersion"] = json!("1.0.0");
        conf["podCIDRs"] = json!(["10.244.1.0/24"]);
        conf
    };
    let sluice = ours(with_agent);
    let mut tcx = sluice.clone();
    tcx["hook"] = json!("tcx");
    let mut alone = sluice.clone();
    alone.as_object_mut().context("an object")?.remove("agentSocket");
    // Another range, so that the two never meet in a route.
    alone["podCIDRs"] = json!(["10.244.2.0/24"]);
    alone["stateDir"] = json!(state);
    let reference =
        PLUGINS.iter().map(|dir| PathBuf::from(dir).join("ptp")).find(|it| it.is_file());
    let reference =
        reference.context("no plugin ptp: apt-get install containernetworking-plugins")?;
    let ptp = json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "ptp",
        "ipam": {
            "type": "host-local",
            "dataDir": state.with_file_name("host-local"),
            "ranges": [[{"subnet": "10.244.3.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    let all = [
        ("sluice", bin("sluice-cni")?, sluice),
        ("sluice-tcx", bin("sluice-cni")?, tcx),
        ("sluice-alone", bin("sluice-cni")?, alone),
        ("ptp", reference, ptp),
    ];
    let wanted = |name: &str| plan.only.is_empty() || plan.only.iter().any(|it| it == name);
    let all = all.into_iter().filter(|(name, ..)| wanted(name));
    let all: Vec<Variant> =
        all.map(|(name, program, conf)| Variant { name, program, conf }).collect();
    debug_assert!(all.iter().all(|variant| VARIANTS.contains(&variant.name)));
    Ok(all)
}

/// One call for each of these pods, all at once; how many milliseconds each took.
fn call(node: &NetNs, variant: &Variant, command: &str, pods: &[NetNs]) -> Result<Vec<f64>> {
    let directory = variant.program.parent().context("a plugin is in a directory")?;
    let conf = std::env::temp_dir().join(names::unique("conf"));
    fs::write(&conf, variant.conf.to_string())?;
    let one = |pod: &NetNs| -> Result<f64> {
        // A process is of the namespace that the thread is in which starts it.
        setns(File::open(node.path())?, CloneFlags::CLONE_NEWNET).context("setns")?;
        let mut process = Command::new(&variant.program);
        process
            .env_clear()
            .envs([
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", pod.name()),
                ("CNI_IFNAME", "eth0"),
            ])
            .env("CNI_NETNS", pod.path())
            .env("CNI_PATH", directory)
            .stdin(File::open(&conf)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let output = process.output().with_context(|| variant.program.display().to_string())?;
        let taken: Duration = started.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{text}");
        Ok(taken.as_secs_f64() * 1000.0)
    };
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || one(pod))).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(time) => time,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Result<Vec<f64>>>()
    });
    let _ = fs::remove_file(&conf);
    times
}

/// The value below which that share of all lies.
fn quantile(rounds: &[Vec<f64>], share: f64) -> f64 {
    let mut all: Vec<f64> = rounds.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among some thousand values"
    )]
    let rank = ((all.len() as f64) * share).ceil() as usize;
    all.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The median of the ratios of the medians within each round.
fn ratio(of: &[Vec<f64>], to: &[Vec<f64>]) -> f64 {
    let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| median(of) / median(to)).collect();
    median(&ratios)
}

fn print(measured: &[Measured]) {
    let mut table = report::bare();
    table.set_header(["call", "at once", "variant", "p50 ms", "p95 ms", "x ptp"]);
    for it in measured {
        for (variant, rounds) in &it.rounds {
            let to_ptp = it.rounds.get("ptp").map(|ptp| ratio(rounds, ptp));
            table.add_row([
                it.command.to_owned(),
                it.crowd.to_string(),
                (*variant).to_owned(),
                format!("{:.2}", quantile(rounds, 0.5)),
                format!("{:.2}", quantile(rounds, 0.95)),
                to_ptp.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            ]);
        }
    }
    for column in [1, 3, 4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    println!("\n{table}");
    println!("\ntimes of single calls, all rounds together; below 1 in x ptp is faster");
}

fn json(measured: &[Measured]) -> Vec<Value> {
    let mut results = Vec::new();
    for it in measured {
        for (variant, rounds) in &it.rounds {
            for (name, share) in [("p50", 0.5), ("p95", 0.95)] {
                let value = (quantile(rounds, share) * 100.0).round() / 100.0;
                results.push(json!({
                    "bench": "cni",
                    "case": format!("{}-{name}", it.command.to_ascii_lowercase()),
                    "variant": variant,
                    "n": it.crowd,
                    "value": value,
                    "unit": "ms",
                }));
            }
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let rounds = [vec![4.0, 1.0], vec![3.0, 2.0]];
        assert_eq!(quantile(&rounds, 0.5).to_bits(), 2.0_f64.to_bits());
        assert_eq!(quantile(&rounds, 0.95).to_bits(), 4.0_f64.to_bits());
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // A slow machine in the second round slows both alike.
        let (ours, theirs) = ([vec![2.0], vec![20.0]], [vec![4.0], vec![40.0]]);
        assert_eq!(ratio(&ours, &theirs).to_bits(), 0.5_f64.to_bits());
    }

    #[test]
    fn the_json_has_the_documented_shape() {
        let rounds = BTreeMap::from([("sluice", vec![vec![6.914]])]);
        let results = json(&[Measured { command: "ADD", crowd: 30, rounds }]);
        let expected = json!({
            "bench": "cni", "case": "add-p50", "variant": "sluice", "n": 30, "value": 6.91, "unit": "ms"
        });
        assert_eq!(results[0], expected);
    }
}
