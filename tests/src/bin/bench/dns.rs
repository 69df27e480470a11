//! Bench `dns`: what an answer costs, beside Knot and Unbound with the same names.
//!
//! Every server has one CPU, and the client has another. All servers run all the time and are asked in
//! turn, case by case, round by round; whoever is not asked sleeps. Two figures count: the rate of
//! answers under as much load as the client makes, and the server's CPU time an answer, as the
//! scheduler accounts it (in nanoseconds, not in ticks). How much of its CPU the server had, and how
//! much of its own the client, says which of the two the rate is about.
//!
//! There are two clients. `dnsperf` is the one that people know, and needs more CPU than the servers, so
//! that its rates are its own. `dnsflood` ([`mod@load`]) costs less than most servers: what is asked by
//! it is in cases of its own.
//!
//! An answer costs less the more of them are made at once, and a slow server has more waiting. So the
//! CPU time is measured at one rate for all as well, well below what any of them can do.

mod load;
mod names;

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sluice_tests::cluster::WorkDir;
use sluice_tests::netns::NetNs;
use sluice_tests::process::{Launch, Process};
use sluice_tests::{bin, interrupt, wait_for};

use crate::Plan;
use crate::report::{self, Measured, median};

use self::load::{
    CACHED, CASES, CLIENT_SHARE, CLIENTS, Case, EQUAL_RATE, FULL_UNDER_WAY, RATE, SERVER_SHARE,
    Sample,
};
use self::names::Names;

/// How long a server may take to read its names.
const START: Duration = Duration::from_secs(180);
/// Where the authoritative server of the foreign names listens.
const ORIGIN_PORT: u16 = 5300;
/// From this share of its CPU on, something is taken to be what limits the rate.
const BUSY: f64 = 90.0;

/// A server under test.
struct Server {
    variant: &'static str,
    n: usize,
    port: u16,
    process: Process,
}

impl Server {
    /// Whether it serves that case: Knot has no foreign names, and Unbound is there for those.
    fn serves(&self, case: Case) -> bool {
        match self.variant {
            "knot" => case.names != CACHED,
            "unbound" => matches!(case.names, CACHED | "hit"),
            _ => true,
        }
    }

    /// CPU time of all its threads so far, in nanoseconds.
    fn cpu_time(&self) -> Result<u64> {
        let tasks = format!("/proc/{}/task", self.process.pid());
        let mut total = 0;
        for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
            // A thread that ends in between had nothing to do with the answers.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            total += text.split(' ').next().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(total)
    }

    /// Its resident memory, in octets.
    fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.pid());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024).with_context(|| format!("no VmRSS in {path}"))
    }
}

/// Where the servers and the client run.
struct Stage<'d> {
    netns: NetNs,
    dir: &'d WorkDir,
    server_cpu: usize,
    client_cpu: usize,
    next_port: u16,
}

impl Stage<'_> {
    fn launch(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        self.netns.launch(program).cpu(self.server_cpu)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    fn wait_for_answer(&self, process: &mut Process, port: u16, name: &str) -> Result<()> {
        let ask = self.netns.launch("dig").args([
            "+short",
            "+tries=1",
            "+time=1",
            "-p",
            &port.to_string(),
            "@127.0.0.1",
            name,
        ]);
        let served = wait_for(&format!("an answer for {name}"), START, || {
            let answer = ask.run().unwrap_or_default();
            (!process.is_running() || answer.starts_with(|c: char| c.is_ascii_digit()))
                .then_some(())
        });
        if served.is_err() || !process.is_running() {
            bail!("port {port} does not answer for {name}; the log says:\n{}", process.log());
        }
        Ok(())
    }

    fn sluice(&mut self, names: &Names) -> Result<Server> {
        let n = names.services;
        let manifests = self.path(&format!("manifests-{n}"));
        fs::create_dir(&manifests)?;
        for (index, chunk) in names.manifests().into_iter().enumerate() {
            fs::write(manifests.join(format!("{index}.json")), chunk)?;
        }
        let port = self.port();
        let launch = self.launch(bin("sluice-dns")?).args([
            format!("--source=dir:{}", manifests.display()),
            format!("--listen=127.0.0.1:{port}"),
            format!("--upstream=127.0.0.1:{ORIGIN_PORT}"),
            "--health-bind-address=".to_owned(),
            "--ready-bind-address=".to_owned(),
            "--metrics-bind-address=".to_owned(),
        ]);
        let mut process = launch.spawn(&self.path(&format!("sluice-{n}.log")))?;
        process.wait_for_log("synced", START)?;
        self.wait_for_answer(&mut process, port, &names.name(0))?;
        Ok(Server { variant: "sluice", n, port, process })
    }

    fn knot(&mut self, label: &str, port: u16, zone: (&str, &str), cpu: usize) -> Result<Process> {
        let (name, text) = zone;
        let file = self.write(&format!("{label}.zone"), text)?;
        let run = self.path(&format!("{label}.run"));
        fs::create_dir(&run)?;
        let run = run.display();
        let config = format!(
            "server:\n  rundir: \"{run}\"\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  \
             tcp-workers: 1\n  background-workers: 1\n\
             log:\n  - target: stderr\n    any: warning\n\
             database:\n  storage: \"{run}\"\n\
             zone:\n  - domain: {name}\n    file: \"{}\"\n    zonefile-sync: -1\n    \
             journal-content: none\n    semantic-checks: off\n",
            file.display()
        );
        let config = self.write(&format!("{label}.conf"), &config)?;
        let launch = self.netns.launch("knotd").cpu(cpu).arg("-c").arg(config);
        launch.spawn(&self.path(&format!("{label}.log")))
    }

    fn unbound(&mut self, names: &Names) -> Result<Server> {
        let (n, port) = (names.services, self.port());
        let label = format!("unbound-{n}");
        let config = format!(
            "server:\n  interface: 127.0.0.1@{port}\n  do-daemonize: no\n  username: \"\"\n  \
             chroot: \"\"\n  directory: \"{}\"\n  pidfile: \"\"\n  use-syslog: no\n  \
             num-threads: 1\n  do-not-query-localhost: no\n  module-config: \"iterator\"\n  \
             access-control: 127.0.0.0/8 allow\n  minimal-responses: yes\n  \
             local-zone: \"cluster.local.\" static\n{}\
             forward-zone:\n  name: \".\"\n  forward-addr: 127.0.0.1@{ORIGIN_PORT}\n\
             remote-control:\n  control-enable: no\n",
            self.dir.path().display(),
            names.local_data(),
        );
        let config = self.write(&format!("{label}.conf"), &config)?;
        let launch = self.launch("unbound").arg("-d").arg("-c").arg(config);
        let mut process = launch.spawn(&self.path(&format!("{label}.log")))?;
        self.wait_for_answer(&mut process, port, &names.name(0))?;
        Ok(Server { variant: "unbound", n, port, process })
    }
}

/// Keeps all threads of a server to a CPU. Those of Knot that answer choose one by themselves, the first
/// one for the first of them, whatever they were started with: beside `dnsperf` they would wait for each
/// other, and spare themselves what it costs to hand something to another CPU.
fn pin(process: &Process, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    let tasks = format!("/proc/{}/task", process.pid());
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        let name = task?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok());
        let thread = thread.with_context(|| format!("{name:?} in {tasks} is no thread"))?;
        sched_setaffinity(Pid::from_raw(thread), &cpus)
            .with_context(|| format!("sched_setaffinity of thread {thread} in {tasks}"))?;
    }
    Ok(())
}

/// Starts all servers, asks them in turn, and returns every figure.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Measured>> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        bail!("the bench dns needs two CPUs: one for the server, one for the client");
    }
    let dir = WorkDir::new("bench-dns")?;
    let mut stage = Stage {
        netns: NetNs::new("dns")?,
        dir: &dir,
        server_cpu: plan.cpu,
        client_cpu: (0..cpus).find(|cpu| *cpu != plan.cpu).unwrap_or(0),
        next_port: 5310,
    };
    let counts =
        if plan.services.is_empty() { vec![1_000, 100_000] } else { plan.services.clone() };
    let wanted = |name: &str| plan.only.is_empty() || plan.only.iter().any(|it| it == name);
    let client_cpu = stage.client_cpu;
    let mut origin =
        stage.knot("origin", ORIGIN_PORT, ("example.", &names::foreign_zone()), client_cpu)?;
    stage.wait_for_answer(&mut origin, ORIGIN_PORT, &names::foreign(0))?;
    pin(&origin, client_cpu)?;
    let mut servers = Vec::new();
    let mut queries = Vec::new();
    for &count in &counts {
        let names = Names { services: count };
        for case in CASES {
            let path =
                stage.write(&format!("{}-{count}.txt", case.name), &names.queries(case.names))?;
            queries.push((case, count, path));
        }
        if wanted("sluice") {
            progress(&format!("sluice, {count} services"));
            servers.push(stage.sluice(&names)?);
        }
        if wanted("knot") {
            progress(&format!("knot, {count} services"));
            let (port, cpu) = (stage.port(), stage.server_cpu);
            let zone = names.zone();
            let mut process =
                stage.knot(&format!("knot-{count}"), port, ("cluster.local.", &zone), cpu)?;
            stage.wait_for_answer(&mut process, port, &names.name(0))?;
            pin(&process, cpu)?;
            servers.push(Server { variant: "knot", n: count, port, process });
        }
        if wanted("unbound") {
            progress(&format!("unbound, {count} services"));
            servers.push(stage.unbound(&names)?);
        }
    }
    let mut measured = measure_all(plan, &stage, &servers, &queries)?;
    for server in &servers {
        measured.push(figure(server, "memory", "MiB", vec![server.memory()? as f64 / 1_048_576.0]));
    }
    if wanted("sluice") {
        measured.extend(at_size(plan, &mut stage)?);
    }
    progress("");
    Ok(measured)
}

fn measure_all(
    plan: &Plan,
    stage: &Stage<'_>,
    servers: &[Server],
    queries: &[(Case, usize, PathBuf)],
) -> Result<Vec<Measured>> {
    let seconds = plan.millis.div_ceil(1000).max(1);
    let mut measured: Vec<[Measured; 4]> = Vec::new();
    for round in 0..plan.rounds {
        let mut index = 0;
        for &(case, count, ref path) in queries {
            for server in servers.iter().filter(|it| it.n == count && it.serves(case)) {
                if interrupt::interrupted() {
                    bail!("interrupted");
                }
                progress(&format!(
                    "round {}/{}: {} {} {count}",
                    round + 1,
                    plan.rounds,
                    case.name,
                    server.variant
                ));
                if round == 0 {
                    let empty = |unit| figure(server, case.name, unit, Vec::new());
                    measured.push(Sample::UNITS.map(empty));
                    // What an upstream has to be asked for is asked for now.
                    stage.measure(server, case, path, 1)?;
                }
                let sample = stage.measure(server, case, path, seconds)?;
                for (figure, value) in measured[index].iter_mut().zip(sample.figures()) {
                    figure.rounds.push(value);
                }
                index += 1;
            }
        }
    }
    Ok(measured.into_iter().flatten().collect())
}

fn figure(server: &Server, case: &'static str, unit: &'static str, rounds: Vec<f64>) -> Measured {
    let (variant, n) = (server.variant.to_owned(), server.n);
    Measured { bench: "dns", case, variant, n, unit, rounds }
}

/// Services, and endpoints of each, that the bounds on memory and on the time of a change are for.
const SIZE: (usize, usize) = (10_000, 10);
/// Changes in a round.
const CHANGES: usize = 100;

/// Memory with 10,000 services of ten endpoints each, and there, how long after a manifest was put in
/// its place the new address is answered: the median of a round, and what 99 of 100 keep to.
fn at_size(plan: &Plan, stage: &mut Stage<'_>) -> Result<Vec<Measured>> {
    let (services, endpoints) = SIZE;
    progress(&format!("{services} services of {endpoints} endpoints"));
    let manifests = stage.path("manifests-memory");
    fs::create_dir(&manifests)?;
    for (index, chunk) in names::with_endpoints(services, endpoints).into_iter().enumerate() {
        fs::write(manifests.join(format!("{index}.json")), chunk)?;
    }
    let port = stage.port();
    let launch = stage.launch(bin("sluice-dns")?).args([
        format!("--source=dir:{}", manifests.display()),
        format!("--listen=127.0.0.1:{port}"),
        "--resolv-conf=/dev/null".to_owned(),
        "--health-bind-address=".to_owned(),
        "--ready-bind-address=".to_owned(),
        "--metrics-bind-address=".to_owned(),
    ]);
    let mut process = launch.spawn(&stage.path("memory.log"))?;
    process.wait_for_log("synced", START)?;
    stage.wait_for_answer(&mut process, port, &Names { services }.name(0))?;
    let server = Server { variant: "sluice", n: services, port, process };
    let memory = server.memory()? as f64 / 1_048_576.0;
    let (mut medians, mut worst) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        if interrupt::interrupted() {
            bail!("interrupted");
        }
        progress(&format!("round {}/{}: changes", round + 1, plan.rounds));
        let (cpu, netns) = (stage.client_cpu, &stage.netns);
        let mut times = netns.run(|| changes(&manifests, port, round, cpu))??;
        times.sort_unstable_by(f64::total_cmp);
        worst.push(times[CHANGES * 99 / 100 - 1]);
        medians.push(median(&times));
    }
    Ok(vec![
        figure(&server, "memory-10x", "MiB", vec![memory]),
        figure(&server, "change-p50", "ms", medians),
        figure(&server, "change-p99", "ms", worst),
    ])
}

/// Changes a Service again and again, and says how long each change took to be answered, in
/// milliseconds. The clock starts before the new manifest is in its place.
fn changes(manifests: &Path, port: u16, round: usize, cpu: usize) -> Result<Vec<f64>> {
    // This one asks without a pause, and the server has its CPU to itself.
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("sched_setaffinity")?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(START))?;
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["changing", "team-0", "svc", "cluster", "local"] {
        query.push(u8::try_from(label.len())?);
        query.extend(label.bytes());
    }
    // The root, type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    let mut times = Vec::with_capacity(CHANGES);
    for n in 0..CHANGES {
        let address = [10, 90, u8::try_from(round % 256)?, u8::try_from(n + 1)?];
        let [a, b, c, d] = address;
        let text = format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"changing","namespace":"team-0"}},"spec":{{"clusterIP":"{a}.{b}.{c}.{d}","clusterIPs":["{a}.{b}.{c}.{d}"],"ports":[{{"port":80}}]}}}}"#
        );
        let (new, place) = (manifests.join(".changing"), manifests.join("changing.json"));
        fs::write(&new, text)?;
        let begin = Instant::now();
        fs::rename(&new, &place)?;
        let mut reply = [0; 512];
        loop {
            socket.send(&query)?;
            let length = socket.recv(&mut reply)?;
            if reply[..length].windows(4).any(|part| part == address) {
                break;
            }
            if begin.elapsed() > START {
                bail!("a change is not answered");
            }
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// Prints the table.
pub(crate) fn print(measured: &[Measured]) {
    let mut table = report::bare();
    table.set_header([
        "case",
        "variant",
        "services",
        "value",
        "unit",
        "lowest",
        "highest",
        "x peer",
        "server CPU",
        "client CPU",
        "limit",
    ]);
    let shares = [SERVER_SHARE, CLIENT_SHARE];
    let shown_rows = |it: &&Measured| it.bench == "dns" && !shares.contains(&it.unit);
    for it in measured.iter().filter(shown_rows) {
        let names = CASES.iter().find(|case| case.name == it.case).map(|case| case.names);
        let peer = if names == Some(CACHED) { "unbound" } else { "knot" };
        let peer = measured.iter().find(|other| {
            other.bench == "dns"
                && (other.case, other.unit, other.n) == (it.case, it.unit, it.n)
                && other.variant == peer
                && it.variant != peer
        });
        let ratio = peer.map(|peer| {
            let ratios: Vec<f64> = it.rounds.iter().zip(&peer.rounds).map(|(a, b)| a / b).collect();
            format!("{:.2}", median(&ratios))
        });
        let [server, client] = shares.map(|unit| {
            let same = |other: &&Measured| {
                (other.case, &other.variant, other.n) == (it.case, &it.variant, it.n)
            };
            let share = measured.iter().filter(same).find(|other| other.unit == unit);
            share.filter(|_| it.unit == "1/s").map(|share| median(&share.rounds))
        });
        let percent =
            |share: Option<f64>| share.map_or_else(String::new, |it| format!("{it:.0} %"));
        table.add_row([
            it.case.to_owned(),
            it.variant.clone(),
            it.n.to_string(),
            shown(it, median(&it.rounds)),
            it.unit.to_owned(),
            shown(it, it.rounds.iter().copied().fold(f64::INFINITY, f64::min)),
            shown(it, it.rounds.iter().copied().fold(0.0, f64::max)),
            ratio.unwrap_or_default(),
            percent(server),
            percent(client),
            server
                .zip(client)
                .map_or("", |(server, client)| limit(it.case, server, client))
                .to_owned(),
        ]);
    }
    println!("\n{table}");
    println!("\nx peer: to Knot in the same round, or to Unbound for cached foreign names");
    println!(
        "limit: who had {BUSY} % of its CPU or more; neither: they waited for each other, or for others' work"
    );
    println!("{EQUAL_RATE}: as hit, {RATE} queries a second to each");
    println!(
        "NAME-full: the same asked by dnsflood, by 4 sockets as dnsperf does; its CPU is what it used of it"
    );
    println!("NAME-64: by 64 sockets, which share {FULL_UNDER_WAY} queries");
    println!("NAME-one: by {CLIENTS} sockets, each of which has one query under way");
}

/// Who kept the rate from being higher.
fn limit(case: &str, server: f64, client: f64) -> &'static str {
    match (server >= BUSY, client >= BUSY) {
        _ if case == EQUAL_RATE => "the rate asked for",
        (true, true) => "both",
        (true, false) => "server",
        (false, true) => "client",
        (false, false) => "neither",
    }
}

/// A figure with the digits that its unit needs.
fn shown(measured: &Measured, value: f64) -> String {
    if measured.unit == "ms" { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// One line that is overwritten, on a terminal only.
fn progress(text: &str) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let _ = write!(terminal, "\r\x1b[K{text}");
        let _ = terminal.flush();
    }
}
