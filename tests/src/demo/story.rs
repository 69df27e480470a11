//! What is shown, step by step. Each step checks what it shows and fails where it is not so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::screen::Screen;
use super::stage::{SourceKind, Stage};
use crate::app::{FIRST_ANSWER, LoadReport};
use crate::process::Process;
use crate::resolvers::{self, Said};
use crate::{PATIENCE, interrupt, wait_for};

/// Requests of the step that shows the spread.
const REQUESTS: u64 = 2_000;

/// Tells the whole story; the stage that comes back is still up.
///
/// # Errors
/// The first thing that is not so.
pub fn tell(screen: &mut Screen, kind: SourceKind) -> Result<Stage> {
    Stage::require_tools()?;
    let mut stage = build(screen, kind)?;
    pods(screen, &mut stage)?;
    names(screen, &stage)?;
    spread(screen, &stage)?;
    by_name(screen, &stage)?;
    policy(screen, &stage)?;
    rolling(screen, &mut stage)?;
    killed(screen, &mut stage)?;
    Ok(stage)
}

fn attentive() -> Result<()> {
    ensure!(!interrupt::interrupted(), "interrupted");
    Ok(())
}

fn build(screen: &mut Screen, kind: SourceKind) -> Result<Stage> {
    screen.step("Two nodes on one LAN, an agent on each");
    screen.progress("making network namespaces, cgroups and the source");
    let mut stage = Stage::new(kind)?;
    stage.publish()?;
    screen.progress("starting sluiced on both nodes");
    let started = Instant::now();
    stage.start_agents()?;
    let took = started.elapsed();
    for node in stage.cluster.nodes() {
        let addresses: Vec<_> = node.addresses().iter().map(ToString::to_string).collect();
        let cidrs = node.spec().pod_cidrs.join(", ");
        screen.ok(&format!("{} at {}, pods in {cidrs}", node.name(), addresses.join(", ")));
    }
    screen.note(&format!("source {}, both agents up in {} ms", stage.env.source, took.as_millis()));
    Ok(stage)
}

fn pods(screen: &mut Screen, stage: &mut Stage) -> Result<()> {
    screen.step("The application's pods, each made by sluice-cni");
    let desired = stage.desired();
    let count = desired.len();
    for (index, spec) in desired.into_iter().enumerate() {
        attentive()?;
        screen.progress(&format!("pod {} of {count}: {}", index + 1, spec.name));
        stage.start(spec)?;
    }
    let names: Vec<String> = stage.pods.keys().cloned().collect();
    for name in &names {
        attentive()?;
        screen.progress(&format!("waiting for {name} to be ready"));
        stage.wait_ready(name)?;
    }
    let mut adds: Vec<Duration> = stage.pods.values().map(|pod| pod.add).collect();
    adds.sort_unstable();
    for node in stage.cluster.nodes() {
        let mut list = Vec::new();
        for pod in stage.pods.values().filter(|pod| pod.pod.node() == node.name()) {
            list.push(format!("{} {}", pod.spec.name, pod.pod.ipv4()?));
        }
        screen.ok(&format!("{}: {}", node.name(), list.join(", ")));
    }
    let median = adds[adds.len() / 2].as_millis();
    screen.note(&format!("{count} pods are ready; half of the ADDs took at most {median} ms"));
    for (namespace, name, address) in stage.services() {
        screen.note(&format!("Service {namespace}/{name}: {address}"));
    }
    stage.wait_backends("shop/web", &["web-0", "web-1", "web-2", "web-3"])?;
    stage.wait_backends("shop/catalog", &["catalog-0", "catalog-1"])?;
    for (index, node) in stage.cluster.nodes().iter().enumerate() {
        let own = format!("sluice-dns-{index}");
        stage.wait_backends_on(node, "kube-system/kube-dns", &[&own])?;
        screen.ok(&format!("names are resolved by {own} on {}", node.name()));
    }
    Ok(())
}

/// Runs `dig +short` in a pod and returns the answers, sorted.
fn dig(stage: &Stage, pod: &str, words: &[&str]) -> Result<Vec<String>> {
    let pod = stage.pods.get(pod).with_context(|| format!("no pod {pod}"))?;
    let mut command = vec!["dig", "+short", "+tries=1", "+time=2", "+search"];
    command.extend(words);
    let text = pod.command(&stage.env, &command)?.run()?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

fn names(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.step("Names, resolved in a pod through the kube-dns Service");
    let expect = |screen: &mut Screen, pod: &str, words: &[&str], wanted: &[String]| {
        let found = dig(stage, pod, words)?;
        let mut wanted = wanted.to_vec();
        wanted.sort();
        let words = words.join(" ");
        ensure!(found == wanted, "dig {words} in {pod}: {found:?}, expected {wanted:?}");
        screen.command(&format!("dig +short {words}"));
        screen.ok(&found.join(", "));
        Ok::<_, anyhow::Error>(())
    };
    // The DNS servers may have been ready before the source told them of the last pod.
    wait_for("DNS to know both databases", PATIENCE, || {
        dig(stage, "client-0", &["db"]).is_ok_and(|found| found.len() == 2).then_some(())
    })?;
    let text = |addresses: &[&str]| addresses.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
    expect(screen, "client-0", &["web"], &text(&["10.96.0.80"]))?;
    expect(screen, "client-0", &["web", "AAAA"], &text(&["fd00:96::80"]))?;
    let mut databases = Vec::new();
    for name in ["db-0", "db-1"] {
        databases.push(stage.pods[name].pod.ipv4()?.to_string());
    }
    expect(screen, "client-1", &["db"], &databases)?;
    expect(screen, "client-1", &["db-0.db"], &databases[..1])?;
    let web: IpAddr = [10, 96, 0, 80].into();
    let name = text(&["web.shop.svc.cluster.local."]);
    expect(screen, "client-1", &["-x", &web.to_string()], &name)?;
    expect(screen, "client-0", &["no-such.shop.svc.cluster.local"], &[])?;
    screen.note("the last one does not exist: NXDOMAIN");
    libraries(screen, stage)
}

/// What programs have for resolvers gets by the search path what `dig` gets by the whole name, in both
/// families.
fn libraries(screen: &mut Screen, stage: &Stage) -> Result<()> {
    let programs: Vec<(&str, PathBuf)> = resolvers::LIBRARIES
        .into_iter()
        .map(|(library, compiler)| Ok((library, resolvers::build(stage.cluster.dir(), compiler)?)))
        .collect::<Result<_>>()?;
    for (name, full) in [
        ("web", "web.shop"),
        ("catalog.shop", "catalog.shop"),
        ("db", "db.shop"),
        ("db-1.db", "db-1.db.shop"),
        ("no-such.shop.svc.cluster.local.", "no-such.shop"),
    ] {
        let full = format!("{full}.svc.cluster.local.");
        let mut found: BTreeSet<String> = dig(stage, "client-0", &[&full])?.into_iter().collect();
        found.extend(dig(stage, "client-0", &[&full, "AAAA"])?);
        let pod = &stage.pods["client-0"];
        for (library, program) in &programs {
            let program = program.to_str().context("a path")?;
            let said = Said::read(&pod.command(&stage.env, &[program, name])?.run()?)?;
            ensure!(
                said.addrs == found,
                "{name} by {library}: {:?}, by dig: {found:?}",
                said.addrs
            );
        }
        let found = if found.is_empty() {
            "no such name".to_owned()
        } else {
            found.into_iter().collect::<Vec<_>>().join(", ")
        };
        screen.command(&format!("getaddrinfo({name:?})    # glibc, musl"));
        screen.ok(&found);
    }
    Ok(())
}

fn report(output: &str) -> Result<LoadReport> {
    let line = output.lines().rev().find(|line| line.starts_with('{'));
    let line = line.with_context(|| format!("no report in: {output}"))?;
    serde_json::from_str(line).with_context(|| format!("report {line}"))
}

/// All requests were answered, or the reasons why not.
fn none_failed(report: &LoadReport, what: &str) -> Result<()> {
    ensure!(report.requests > 0, "{what}: no request was made");
    ensure!(
        report.failed == 0,
        "{what}: {} of {} requests failed: {:?}",
        report.failed,
        report.requests,
        report.failures
    );
    Ok(())
}

fn bars(screen: &mut Screen, stage: &Stage, report: &LoadReport) {
    let rows: Vec<_> = report
        .backends
        .iter()
        .map(|(name, count)| {
            let node = stage.pods.get(name).map_or("gone", |pod| pod.pod.node());
            (name.as_str(), *count, node.to_owned())
        })
        .collect();
    screen.bars(rows);
}

fn spread(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.step("HTTP through the ClusterIP, a connection a request");
    for target in ["10.96.0.80:80", "[fd00:96::80]:80"] {
        attentive()?;
        let requests = REQUESTS.to_string();
        screen.progress(&format!("{requests} requests to {target}"));
        let client = &stage.pods["client-0"];
        let load = client
            .command(&stage.env, &["testapp", "load", target, "--requests", &requests])?
            .run()?;
        let report = report(&load)?;
        none_failed(&report, target)?;
        ensure!(report.backends.len() == 4, "{target} reaches {:?}", report.backends);
        // Four backends with the same chance: the mean is 500, its standard deviation 19.4.
        for (name, count) in &report.backends {
            ensure!((400..=600).contains(count), "{name} got {count} of {REQUESTS}");
        }
        screen.ok(&format!(
            "{target}: {} requests, none failed, half took at most {} µs",
            report.requests, report.latency_us.p50
        ));
        bars(screen, stage, &report);
    }
    // What no socket hook sees, as a virtual machine or a raw socket: packet by packet.
    let client = &stage.pods["client-1"];
    let report = crate::pod::load(
        client.pod.launch_unhooked(crate::bin("testapp")?),
        "10.96.0.80:80",
        REQUESTS / 4,
    )?;
    none_failed(&report, "packet by packet")?;
    ensure!(report.backends.len() == 4, "packet by packet: {:?}", report.backends);
    screen.ok("the same without socket hooks, translated packet by packet");
    let answer = client.pod.udp("10.96.0.81:5300".parse()?)?;
    screen.ok(&format!("UDP: a quote from {} on {}", answer.pod, answer.node));
    Ok(())
}

fn by_name(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.step("The same by name, as an application does: resolver, Service, pod");
    for (pod, target) in
        [("client-0", "web:80"), ("client-1", "catalog.shop:8080"), ("client-0", "db-1.db:5432")]
    {
        let client = &stage.pods[pod];
        let text = client.command(&stage.env, &["testapp", "get", target])?.run()?;
        let answer: crate::app::Identity = serde_json::from_str(&text)?;
        screen.command(&format!("curl http://{target}/    # in {pod} on {}", client.pod.node()));
        screen.ok(&format!("answered by {} on {}", answer.pod, answer.node));
        if target.starts_with("db-1") {
            ensure!(answer.pod == "db-1", "db-1.db is answered by {}", answer.pod);
        }
    }
    Ok(())
}

/// For the databases: clients may ask, and nobody else.
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-for-clients, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: sql}]}]
";

fn policy(screen: &mut Screen, stage: &Stage) -> Result<()> {
    screen.step("A NetworkPolicy: the databases answer clients alone");
    let object = serde_norway::from_str(POLICY)?;
    stage.publisher.apply(&object)?;
    screen.progress("waiting for both nodes to have it in force");
    for node in stage.cluster.nodes() {
        node.wait_for_view(&["policy", "list"], Duration::from_secs(10), |view| {
            let mut rows = view.as_array().into_iter().flatten();
            rows.any(|row| row["name"] == "db-for-clients" && row["pods"] == 1)
        })?;
    }
    for line in POLICY.trim().lines().skip(3) {
        screen.plain(line);
    }
    let ask = |pod: &str| -> Result<std::process::Output> {
        stage.pods[pod].command(&stage.env, &["testapp", "get", "db-0.db.shop:5432"])?.output()
    };
    let node = stage.cluster.node(stage.pods["db-0"].node);
    for (pod, allowed) in [("client-0", true), ("client-1", true), ("web-0", false)] {
        attentive()?;
        screen.progress(&format!("{pod} asks db-0"));
        let output = ask(pod)?;
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success() == allowed, "{pod} to db-0: {output:?}");
        screen.command(&format!("curl http://db-0.db.shop:5432/    # in {pod}"));
        if allowed {
            screen.ok("answered by db-0");
        } else {
            screen.ok(&format!("not answered: {}", complaint.lines().last().unwrap_or_default()));
        }
        let (from, to) = (format!("shop/{pod}"), "shop/db-0");
        let trace = node.proxyctl(&["policy", "trace", &from, to, "5432"])?;
        let word = if allowed { "allowed" } else { "denied" };
        let first = trace.lines().next().unwrap_or_default();
        ensure!(first.ends_with(word) && !trace.contains("does not do"), "{trace}");
        if pod != "client-1" {
            screen.command(&format!("proxyctl policy trace {from} {to} 5432"));
            trace.lines().for_each(|line| screen.plain(line));
        }
    }
    stage.publisher.delete("NetworkPolicy", "shop", "db-for-clients")?;
    wait_for("the database to answer again", Duration::from_secs(10), || {
        ask("web-0").is_ok_and(|output| output.status.success()).then_some(())
    })?;
    screen.ok("without the policy, web-0 is answered too");
    Ok(())
}

/// A load that goes on until it is stopped.
struct Background {
    name: String,
    process: Process,
}

impl Background {
    fn start(stage: &Stage, pod: &str, words: &[&str]) -> Result<Self> {
        let client = &stage.pods[pod];
        let mut command = vec!["testapp", "load"];
        command.extend(words);
        let name = format!("load-{}", words.join("-").replace(['/', ':', '[', ']'], "_"));
        let launch = client.command(&stage.env, &command)?;
        let mut process = client.pod.spawn(&name, &launch)?;
        process.wait_for_log(FIRST_ANSWER, PATIENCE)?;
        Ok(Self { name: format!("{pod}: load {}", words.join(" ")), process })
    }

    fn stop(mut self) -> Result<LoadReport> {
        if !self.process.is_running() {
            bail!("{} ended by itself:\n{}", self.name, self.process.log());
        }
        self.process.signal(Signal::TERM)?;
        self.process.wait(PATIENCE)?;
        let report = report(&self.process.log())?;
        none_failed(&report, &self.name)?;
        Ok(report)
    }
}

fn rolling(screen: &mut Screen, stage: &mut Stage) -> Result<()> {
    screen.step("A rolling change of web from v1 to v2, under load from both nodes");
    let loads = [
        Background::start(stage, "client-0", &["10.96.0.80:80", "--rate", "500"])?,
        Background::start(stage, "client-1", &["[fd00:96::80]:80", "--rate", "500"])?,
    ];
    let labels: BTreeMap<_, _> = [("version", "v2")].into();
    for index in 0..4 {
        attentive()?;
        let (old, new) = (format!("web-{index}"), format!("web-{}", index + 4));
        screen.progress(&format!("{new} replaces {old}"));
        let spec = stage.replica("web", index + 4, index % 2, &labels)?;
        stage.start(spec)?;
        stage.wait_ready(&new)?;
        stage.terminate(&old)?;
    }
    stage.wait_backends("shop/web", &["web-4", "web-5", "web-6", "web-7"])?;
    let mut total = LoadReport::default();
    for load in loads {
        let report = load.stop()?;
        total.requests += report.requests;
        for (name, count) in report.backends {
            *total.backends.entry(name).or_default() += count;
        }
    }
    ensure!(total.backends.len() == 8, "both versions answer: {:?}", total.backends);
    screen.ok(&format!("four pods replaced, {} requests, none failed", total.requests));
    bars(screen, stage, &total);
    Ok(())
}

fn killed(screen: &mut Screen, stage: &mut Stage) -> Result<()> {
    screen.step("The agents killed (SIGKILL) under load, and started again");
    let fresh = Background::start(stage, "client-0", &["10.96.0.80:80", "--rate", "500"])?;
    let kept =
        Background::start(stage, "client-1", &["10.96.0.80:80", "--keep-alive", "--rate", "500"])?;
    let source = stage.env.source.clone();
    for index in 0..stage.cluster.nodes().len() {
        attentive()?;
        let name = stage.cluster.node(index).name().to_owned();
        screen.progress(&format!("killing sluiced on {name}"));
        stage.cluster.node_mut(index).kill_agent()?;
        let out = stage.cluster.node(index).proxyctl(&["service", "get", "shop/web"])?;
        ensure!(out.contains("10.96.0.80:80"), "proxyctl without the agent shows: {out}");
        // The node is on its own for a while.
        let client = if index == 0 { "client-0" } else { "client-1" };
        stage.pods[client].pod.load("10.96.0.80:80", 500).and_then(|report| {
            none_failed(&report, &format!("while the agent of {name} is dead"))
        })?;
        stage.cluster.node_mut(index).start_agent(&source)?;
        screen.ok(&format!("{name}: killed, served on without an agent, started again"));
    }
    stage.wait_backends("shop/web", &["web-4", "web-5", "web-6", "web-7"])?;
    let fresh = fresh.stop()?;
    let kept = kept.stop()?;
    ensure!(
        kept.backends.len() == 1,
        "the connection that was kept has changed its backend: {:?}",
        kept.backends
    );
    screen.ok(&format!("{} new connections in that time, none failed", fresh.requests));
    screen.ok(&format!("one connection kept throughout, {} requests on it", kept.requests));
    Ok(())
}
