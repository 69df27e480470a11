//! What the servers are asked, how, and what one measurement brings.

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use sluice_tests::bin;
use sluice_tests::dns::DnsFloodReport;

use super::{Server, Stage};

/// A case of the table.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// What is asked for; see [`super::names::Names::queries`].
    pub(super) names: &'static str,
    load: Load,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq)]
enum Load {
    /// `dnsperf`, as fast as it can.
    Dnsperf,
    /// `dnsperf`, so many queries a second.
    Rate(u32),
    /// `dnsflood` by so many sockets, with so many queries under way.
    Flood(usize, usize),
}

/// The foreign names, which an upstream was asked for once.
pub(super) const CACHED: &str = "cached";
/// The case in which all are asked at the same rate, and what they are asked is as in `hit`.
pub(super) const EQUAL_RATE: &str = "equal-rate";
/// Queries a second in that case.
pub(super) const RATE: u32 = 40_000;
/// Queries that `dnsperf` has under way. More do not fit into a socket with the kernel's default buffer,
/// which is what the peers have: of the 400 that a run would begin with they lose half, and those count as
/// under way until they time out.
const UNDER_WAY: &str = "150";
/// The same for `dnsflood`. By 64 sockets it is three for each.
pub(super) const FULL_UNDER_WAY: usize = 150;
/// Clients that have one query under way each: nothing that a server could do for two of them at once.
pub(super) const CLIENTS: usize = 128;
/// Sockets of `dnsperf`, and of `dnsflood` where it is to be like it.
const SOCKETS: usize = 4;
/// Many sockets.
const MANY: usize = 64;

const fn perf(name: &'static str) -> Case {
    Case { name, names: name, load: Load::Dnsperf }
}

const fn full(name: &'static str, names: &'static str) -> Case {
    Case { name, names, load: Load::Flood(SOCKETS, FULL_UNDER_WAY) }
}

const fn many(name: &'static str, names: &'static str) -> Case {
    Case { name, names, load: Load::Flood(MANY, FULL_UNDER_WAY) }
}

const fn one(name: &'static str, names: &'static str) -> Case {
    Case { name, names, load: Load::Flood(CLIENTS, CLIENTS) }
}

/// All cases, in the order of the table.
pub(super) const CASES: [Case; 19] = [
    perf("hit"),
    perf("aaaa"),
    perf("nxdomain"),
    perf("headless"),
    perf("srv"),
    perf("search"),
    perf(CACHED),
    Case { name: EQUAL_RATE, names: "hit", load: Load::Rate(RATE) },
    full("hit-full", "hit"),
    full("aaaa-full", "aaaa"),
    full("nxdomain-full", "nxdomain"),
    full("headless-full", "headless"),
    full("srv-full", "srv"),
    full("search-full", "search"),
    full("cached-full", CACHED),
    many("hit-64", "hit"),
    many("cached-64", CACHED),
    one("hit-one", "hit"),
    one("cached-one", CACHED),
];

pub(super) const SERVER_SHARE: &str = "% server CPU";
pub(super) const CLIENT_SHARE: &str = "% client CPU";

/// What one measurement brings.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    /// Answers a second.
    rate: f64,
    /// Nanoseconds of the server's CPU time an answer.
    cost: f64,
    /// How much of its CPU the server had, in percent.
    server: f64,
    /// How much of its CPU the client had, in percent; of `dnsflood`, which never sleeps, how much it used.
    client: f64,
}

impl Sample {
    /// The units of its figures, in the order of [`Self::figures`].
    pub(super) const UNITS: [&str; 4] = ["1/s", "ns/answer", SERVER_SHARE, CLIENT_SHARE];

    pub(super) fn figures(self) -> [f64; 4] {
        [self.rate, self.cost, self.server, self.client]
    }
}

/// What a client says.
struct Told {
    answered: f64,
    lost: f64,
    rate: f64,
    /// How long it asked.
    seconds: f64,
    client: f64,
}

impl Stage<'_> {
    /// One measurement. At the end of it, the client waits for what it calls lost.
    pub(super) fn measure(
        &self,
        server: &Server,
        case: Case,
        queries: &Path,
        seconds: u64,
    ) -> Result<Sample> {
        let before = server.cpu_time()?;
        let told = match case.load {
            Load::Dnsperf => self.dnsperf(server, queries, seconds, None)?,
            Load::Rate(rate) => self.dnsperf(server, queries, seconds, Some(rate))?,
            Load::Flood(sockets, under_way) => {
                self.dnsflood(server, queries, seconds, (sockets, under_way))?
            }
        };
        let used = (server.cpu_time()? - before) as f64;
        let Told { answered, lost, rate, seconds, client } = told;
        if answered == 0.0 || lost > answered / 50.0 {
            bail!("{} lost {lost} of {answered} answers in {}", server.variant, case.name);
        }
        Ok(Sample { rate, cost: used / answered, server: percent(used, seconds), client })
    }

    fn dnsperf(
        &self,
        server: &Server,
        queries: &Path,
        seconds: u64,
        rate: Option<u32>,
    ) -> Result<Told> {
        let mut client = self
            .netns
            .launch("dnsperf")
            .cpu(self.client_cpu)
            .args(["-s", "127.0.0.1", "-p", &server.port.to_string()])
            .args(["-c", &SOCKETS.to_string(), "-q", UNDER_WAY])
            .args(["-t", "2", "-l", &seconds.to_string(), "-d"])
            .arg(queries);
        if let Some(rate) = rate {
            client = client.args(["-Q", &rate.to_string()]);
        }
        let before = children_time()?;
        let text = client.run()?;
        let used = (children_time()? - before).num_microseconds() as f64 * 1e3;
        let figure = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok())
                .with_context(|| format!("no {name:?} in what dnsperf says:\n{text}"))
        };
        let (answered, rate) = (figure("Queries completed:")?, figure("Queries per second:")?);
        let (lost, seconds) = (figure("Queries lost:")?, answered / rate);
        Ok(Told { answered, lost, rate, seconds, client: percent(used, seconds) })
    }

    fn dnsflood(
        &self,
        server: &Server,
        queries: &Path,
        seconds: u64,
        (sockets, under_way): (usize, usize),
    ) -> Result<Told> {
        let client = self
            .netns
            .launch(bin("dnsflood")?)
            .cpu(self.client_cpu)
            .arg(format!("127.0.0.1:{}", server.port))
            .arg(queries)
            .arg(format!("--sockets={sockets}"))
            .arg(format!("--under-way={under_way}"))
            .arg(format!("--seconds={seconds}"));
        let text = client.run()?;
        let report: DnsFloodReport = serde_json::from_str(&text).with_context(|| text.clone())?;
        if report.wrong > 0 {
            bail!("{} answers wrongly: {:?}", server.variant, report.failures);
        }
        Ok(Told {
            answered: report.answered as f64,
            lost: report.lost as f64,
            rate: report.rate,
            seconds: report.seconds,
            client: report.busy,
        })
    }
}

/// That time of a CPU's, in nanoseconds, beside so many seconds.
fn percent(nanoseconds: f64, seconds: f64) -> f64 {
    nanoseconds / seconds / 1e7
}

/// CPU time of all clients that have ended.
fn children_time() -> Result<TimeVal> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage RUSAGE_CHILDREN")?;
    Ok(usage.user_time() + usage.system_time())
}
