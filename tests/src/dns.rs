//! A cluster with an instance of `sluice-dns` on every node, behind `kube-system/kube-dns`.

pub mod message;

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;

use anyhow::{Context, Result};
use hickory_proto::op::{Message, ResponseCode};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::PATIENCE;
use crate::app::Latency;
use crate::bins::bin;
use crate::cluster::Cluster;
use crate::manifests::{Service, namespace};
use crate::netns::NetNs;
use crate::pod::Pod;
use crate::process::Process;
use crate::wait::wait_ok;

/// The address and port of the Service, UDP and TCP.
pub const DNS_V4: &str = "10.96.0.10:53";
/// The same, IPv6.
pub const DNS_V6: &str = "[fd00:96::10]:53";
/// A name that every instance answers in its own way: `192.0.2.(1+i)` on node *i*.
pub const WHO: &str = "who.test";

/// What `dnsload` prints at its end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DnsLoadReport {
    /// Queries, each asked once.
    pub asked: u64,
    /// Those with the right answer.
    pub answered: u64,
    /// Those without an answer.
    pub lost: u64,
    /// Those with a wrong answer.
    pub wrong: u64,
    /// Sockets that were taken away between two queries, and opened anew.
    pub reopened: u64,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, u64>,
    /// How long it asked, in seconds.
    pub seconds: f64,
    /// How many queries a second it asked.
    pub rate: f64,
    /// From a query to its answer, in microseconds.
    pub latency_us: Latency,
}

/// What `dnsflood` prints at its end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DnsFloodReport {
    /// Right answers.
    pub answered: u64,
    /// Queries without an answer.
    pub lost: u64,
    /// Wrong answers, and answers that nobody asked for.
    pub wrong: u64,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, u64>,
    /// How long it asked, in seconds.
    pub seconds: f64,
    /// Right answers a second, without those that came after it had asked its last.
    pub rate: f64,
    /// How much of the time it had something to do, in percent: the rest, it looked for answers in vain.
    pub busy: f64,
}

/// The cluster, its instances of `sluice-dns` and a client on each node.
#[derive(Debug)]
pub struct DnsCluster {
    /// The instances, by node; `None` where one is away.
    pub instances: Vec<Option<Process>>,
    /// The pods that they run in.
    pub pods: Vec<Pod>,
    /// A pod on each node that only asks.
    pub clients: Vec<Pod>,
    /// Nodes and LAN.
    pub cluster: Cluster,
    /// Whether foreign names are asked of the LAN's host, who knows none.
    upstream: bool,
}

impl DnsCluster {
    /// Makes it, with so many nodes, and waits until each node's clients are answered by its instance.
    ///
    /// # Errors
    /// A part does not come up.
    pub fn open(nodes: usize) -> Result<Self> {
        Self::make(nodes, false)
    }

    /// The same, with an upstream outside of the cluster that knows no name.
    ///
    /// # Errors
    /// A part does not come up.
    pub fn open_with_upstream(nodes: usize) -> Result<Self> {
        Self::make(nodes, true)
    }

    fn make(nodes: usize, upstream: bool) -> Result<Self> {
        let mut cluster = Cluster::new(nodes)?;
        if upstream {
            deny_all(cluster.lan())?;
        }
        for name in ["kube-system", "shop"] {
            cluster.apply(&format!("namespace-{name}"), &namespace(name))?;
        }
        cluster.start_agents()?;
        let mut this = Self {
            instances: Vec::new(),
            pods: Vec::new(),
            clients: Vec::new(),
            cluster,
            upstream,
        };
        for index in 0..nodes {
            let node = this.cluster.node(index);
            this.pods.push(node.add_pod("kube-system", &format!("dns-{index}"))?);
            this.clients.push(node.add_pod("shop", &format!("client-{index}"))?);
            this.instances.push(None);
            this.start(index)?;
        }
        let pods: Vec<&Pod> = this.pods.iter().collect();
        this.cluster.apply("kube-dns", &kube_dns().with_endpoints(&pods))?;
        for index in 0..nodes {
            this.wait_for_own(index)?;
        }
        Ok(this)
    }

    /// Starts the instance of a node.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, index: usize) -> Result<()> {
        let pod = &self.pods[index];
        let config = self.cluster.dir().join(format!("dns-{index}.yaml"));
        fs::write(&config, format!("hosts:\n  192.0.2.{}: [{WHO}]\n", 1 + index))
            .with_context(|| config.display().to_string())?;
        let launch = pod
            .launch(bin("sluice-dns")?)
            .args(["--source", &self.cluster.source(), "--resolv-conf", "/dev/null"])
            .args(["--listen", &format!("{}:53", pod.ipv4()?)])
            .args(["--listen", &format!("[{}]:53", pod.ipv6()?)])
            .arg("--config")
            .arg(config);
        let launch = if self.upstream { launch.args(["--upstream", UPSTREAM]) } else { launch };
        self.instances[index] = Some(pod.spawn("dns", &launch)?);
        Ok(())
    }

    /// Ends the instance of a node as a kubelet does, and waits for its end.
    ///
    /// # Errors
    /// It is not there, does not end, or ends with an error.
    pub fn stop(&mut self, index: usize) -> Result<()> {
        let mut instance = self.instances[index].take().context("an instance")?;
        instance.signal(Signal::TERM)?;
        let status = instance.wait(PATIENCE)?;
        anyhow::ensure!(status.success(), "{}", instance.log());
        Ok(())
    }

    /// Kills the instance of a node.
    ///
    /// # Errors
    /// It is not there.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.instances[index].take().context("an instance")?.kill().map(drop)
    }

    /// Waits until the node sends its clients to its own instance.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for_own(&self, index: usize) -> Result<()> {
        let own = vec![format!("{}:53", self.pods[index].ipv4()?)];
        self.wait_for_backends(index, |backends| backends == own)
    }

    /// Waits until the node sends its clients to other instances.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for_others(&self, index: usize) -> Result<()> {
        let own = format!("{}:53", self.pods[index].ipv4()?);
        self.wait_for_backends(index, |backends| !backends.is_empty() && !backends.contains(&own))
    }

    fn wait_for_backends(&self, index: usize, condition: impl Fn(&[String]) -> bool) -> Result<()> {
        let node = self.cluster.node(index);
        let view = &["service", "get", "kube-system/kube-dns"];
        node.wait_for_view(view, PATIENCE, |view| {
            let rows = view.as_array().into_iter().flatten();
            let mut four = rows.filter(|row| row["frontend"] == DNS_V4).map(|row| {
                let backends = row["backends"].as_array().into_iter().flatten();
                let texts = backends.filter_map(|backend| backend.as_str()).map(str::to_owned);
                texts.collect::<Vec<String>>()
            });
            let first = four.next();
            first.is_some_and(|first| condition(&first)) && four.all(|other| condition(&other))
        })
        .map(drop)
    }

    /// Waits until an instance, asked itself, knows a name.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for_name(&self, index: usize, name: &str) -> Result<()> {
        let server = self.pods[index].ipv4()?.to_string();
        wait_ok(&format!("{name} at {server}"), PATIENCE, || {
            let found = self.dig(index, &server, &[name])?;
            anyhow::ensure!(!found.is_empty(), "{name} is not known");
            Ok(())
        })
    }

    /// `dig +short` in a client: the lines, sorted.
    ///
    /// # Errors
    /// No answer.
    pub fn dig(&self, index: usize, server: &str, words: &[&str]) -> Result<Vec<String>> {
        let server = format!("@{server}");
        let mut all = vec!["+short", "+tries=1", "+time=20", &server];
        all.extend(words);
        let text = self.clients[index].launch("dig").args(all).run()?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    }
}

/// Where [`deny_all`] listens.
const UPSTREAM: &str = "172.31.0.1:53";

/// Answers every query in that namespace with NXDOMAIN, for as long as this process lives.
fn deny_all(netns: &NetNs) -> Result<()> {
    let socket = netns.run(|| UdpSocket::bind(UPSTREAM))?.context("an upstream")?;
    std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.metadata.recursion_available = true;
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_queries(query.queries.clone());
            // A client that is gone wants no answer.
            let _ = reply.to_vec().map(|reply| socket.send_to(&reply, from));
        }
    })?;
    Ok(())
}

/// The Service of the cluster's DNS, in both families.
pub fn kube_dns() -> Service {
    Service::new("kube-system", "kube-dns")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .udp("dns", 53, 53)
        .tcp("dns-tcp", 53, 53)
}

/// A load in a pod that goes on until it is stopped.
#[derive(Debug)]
pub struct DnsLoad(Process);

impl DnsLoad {
    /// Starts it, and waits until it asks.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        pod: &Pod,
        label: &str,
        server: &str,
        rate: u64,
        names: &[String],
    ) -> Result<Self> {
        let mut launch = pod.launch(bin("dnsload")?).args([server, "--rate", &rate.to_string()]);
        for name in names {
            launch = launch.args(["--name", name]);
        }
        let mut process = pod.spawn(&format!("dnsload-{label}"), &launch)?;
        process.wait_for_log("running until", PATIENCE)?;
        Ok(Self(process))
    }

    /// Stops it.
    ///
    /// # Errors
    /// It ended before.
    pub fn stop(mut self) -> Result<DnsLoadReport> {
        self.0.signal(Signal::TERM)?;
        self.0.wait(PATIENCE)?;
        let log = self.0.log();
        let line = log.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("report of the load: {log}"))
    }
}
