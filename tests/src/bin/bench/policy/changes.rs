//! How long a change takes to be in force on a node of a large cluster: from the moment at which its object is there until
//! a pod that may do more from then on does it.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sluice_tests::cluster::Cluster;
use sluice_tests::pod::Pod;

use super::{MANY, PATIENCE, RULES};
use crate::report::{self, Measured};
use crate::service::{progress, stop_if_asked};
use crate::{Plan, topology::POD_PORT};

/// Pods of the cluster, and applications that they are of.
const PODS: usize = 10_000;
const APPS: usize = 1_000;
/// Pods of the node; the policies are for them in turn.
const LOCAL: usize = 20;
/// Changes of each kind in a round.
const CHANGES: usize = 20;
/// How long an answer is waited for before it is asked again.
const BEAT: Duration = Duration::from_micros(500);

/// What changes.
const KINDS: [(&str, [&str; 2]); 2] =
    [("label", ["label-p50", "label-max"]), ("policy", ["policy-p50", "policy-max"])];

fn app(n: usize) -> Value {
    json!({"app": format!("app-{}", n % APPS)})
}

/// A list of objects, as `kubectl get -o json` writes it.
fn list(items: Vec<Value>) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// The pods of other nodes.
fn pods() -> Vec<Value> {
    let pod = |n: usize| {
        let ip = format!("10.{}.{}.{}", 128 + n / 65_536, n / 256 % 256, n % 256);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("far-{n}"), "namespace": "shop", "labels": app(n)},
            "spec": {"nodeName": "far"},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        })
    };
    (0..PODS).map(pod).collect()
}

fn policy(name: &str, subject: &Value, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": subject}, "policyTypes": ["Ingress"], "ingress": rules},
    })
}

/// Policies with many rules each, every one with a peer and a port of its own.
fn policies() -> Vec<Value> {
    let rule = |policy: usize, n: usize| {
        json!({
            "from": [{"podSelector": {"matchLabels": app(policy + n)}}],
            "ports": [{"protocol": "TCP", "port": 1000 + policy}],
        })
    };
    let one = |n: usize| {
        let rules = (0..RULES).map(|j| rule(n, j)).collect();
        policy(&format!("policy-{n}"), &app(n % LOCAL), rules)
    };
    (0..MANY).map(one).collect()
}

/// Who may ask the server: pods with this label.
fn gate(open_for: &str) -> String {
    let rule = json!({
        "from": [{"podSelector": {"matchLabels": {"gate": open_for}}}],
        "ports": [{"protocol": "UDP", "port": POD_PORT}],
    });
    policy("gate", &app(0), vec![rule]).to_string()
}

/// Asks by a new socket each time, so that no flow is known, until there is an answer.
fn ask_until_answered(client: &Pod, server: SocketAddr) -> Result<Duration> {
    let asked = client.netns().run(|| -> Result<Duration> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(BEAT))?;
            socket.send_to(b"x", server)?;
            if socket.recv(&mut [0; 2048]).is_ok() {
                return Ok(started.elapsed());
            }
        }
        bail!("{server} does not answer")
    })?;
    asked.context("a change that opens")
}

/// Waits until a new flow has no answer for as long as an answer never takes.
fn wait_until_shut(client: &Pod, server: SocketAddr) -> Result<()> {
    let shut = client.netns().run(|| -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(40 * BEAT))?;
            socket.send_to(b"x", server)?;
            if socket.recv(&mut [0; 2048]).is_err() {
                return Ok(());
            }
        }
        bail!("{server} goes on answering")
    })?;
    shut.context("a change that shuts")
}

/// Measures, and returns milliseconds: of each round the median and the longest.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Measured>> {
    let mut cluster = Cluster::new(1)?;
    progress(&format!("{PODS} pods, {MANY} policies"));
    for (name, items) in [("pods", pods()), ("policies", policies())] {
        let path = cluster.manifests().join(format!("{name}.json"));
        fs::write(&path, list(items)).with_context(|| path.display().to_string())?;
    }
    cluster.apply("shop", &sluice_tests::manifests::namespace("shop"))?;
    cluster.apply("gate", &gate("open"))?;
    cluster.start_agents()?;
    let node = cluster.node(0);
    let mut local = Vec::new();
    for n in 0..LOCAL {
        let pod = node.add_pod("shop", &format!("local-{n}"))?;
        cluster.apply(&format!("local-{n}"), &pod.manifest(&[("app", &format!("app-{n}"))]))?;
        local.push(pod);
    }
    let client = node.add_pod("shop", "client")?;
    let label = |value: &str| cluster.apply("client", &client.manifest(&[("gate", value)]));
    label("open")?;
    let _server = local[0].serve(POD_PORT)?;
    let server = SocketAddr::from((local[0].ipv4()?, POD_PORT));
    ask_until_answered(&client, server)?;
    let mut rounds: Vec<[Vec<f64>; 2]> = vec![Default::default(); KINDS.len()];
    for round in 1..=plan.rounds {
        for (at, (kind, _)) in KINDS.iter().enumerate() {
            let mut times = Vec::with_capacity(CHANGES);
            for n in 1..=CHANGES {
                stop_if_asked()?;
                progress(&format!("round {round}/{}: {kind} {n}/{CHANGES}", plan.rounds));
                let change = |open: bool| match (*kind, open) {
                    ("label", true) => label("open"),
                    ("label", false) => label("shut"),
                    (_, true) => cluster.apply("gate", &gate("open")),
                    (_, false) => cluster.apply("gate", &gate("nobody")),
                };
                change(false)?;
                wait_until_shut(&client, server)?;
                change(true)?;
                times.push(ask_until_answered(&client, server)?.as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            rounds[at][0].push(report::median(&times));
            rounds[at][1].push(times.last().copied().unwrap_or(f64::NAN));
        }
    }
    progress("");
    let measured = KINDS.iter().zip(rounds).flat_map(|((_, cases), rounds)| {
        cases.iter().zip(rounds).map(|(case, rounds)| Measured {
            bench: "policy",
            case,
            variant: "sluice".to_owned(),
            n: MANY,
            unit: "ms",
            rounds,
        })
    });
    Ok(measured.collect())
}

/// Prints them.
pub(crate) fn print(measured: &[Measured]) {
    let mut table = report::bare();
    table.set_header(["change", "policies", "ms", "lowest", "highest"]);
    for it in measured {
        let end = |fold: fn(f64, f64) -> f64| it.rounds.iter().copied().reduce(fold);
        table.add_row([
            it.case.to_owned(),
            it.n.to_string(),
            format!("{:.2}", report::median(&it.rounds)),
            format!("{:.2}", end(f64::min).unwrap_or(f64::NAN)),
            format!("{:.2}", end(f64::max).unwrap_or(f64::NAN)),
        ]);
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    println!("\n{table}");
    println!(
        "\nfrom the change of the object until the server answers a client that it opens it for, on a node of a\n\
         cluster of {PODS} pods; {MANY} policies of {RULES} rules are in force there. max: the longest of {CHANGES}"
    );
}
