//! The cluster of the demo with its source, its pods and everything that makes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use serde_json::Value;

use super::MANIFESTS;
use super::app::{self, Document, PodSpec, Workload};
use super::kubelet::{PodEnv, Running};
use super::publish::Publisher;
use crate::PATIENCE;
use crate::cluster::{Cluster, node_manifest};
use crate::netns::run;
use crate::node::Node;

/// Address of the Service `kube-dns`, which every pod's resolv.conf names.
const DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

/// Where the demo's objects come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory of manifests.
    Dir,
    /// A real etcd.
    Etcd,
}

/// Everything that runs. Fields are dropped in order: pods before their nodes.
#[derive(Debug)]
pub struct Stage {
    /// Pods by name, with their processes.
    pub pods: BTreeMap<String, Running>,
    /// Where objects go.
    pub publisher: Publisher,
    /// Nodes and LAN.
    pub cluster: Cluster,
    /// What pods are given.
    pub env: PodEnv,
    workloads: Vec<Workload>,
    documents: Vec<Document>,
}

impl Stage {
    /// Two nodes on a LAN and the source, nothing in it but Nodes and Namespaces.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the kernel refuses.
    pub fn new(kind: SourceKind) -> Result<Self> {
        let cluster = Cluster::new(2)?;
        // As the LAN's router knows where the pods of each node are.
        for node in cluster.nodes() {
            let addresses = node.addresses();
            for cidr in &node.spec().pod_cidrs {
                let six = cidr.contains(':');
                let via = addresses.iter().find(|address| address.is_ipv6() == six);
                let via = via.context("a node address of the pod CIDR's family")?;
                cluster.lan().ip(&format!("route add {cidr} via {via}"))?;
            }
        }
        let publisher = match kind {
            SourceKind::Dir => Publisher::dir(&cluster),
            SourceKind::Etcd => Publisher::etcd(cluster.lan(), cluster.dir())?,
        };
        if kind == SourceKind::Etcd {
            for node in cluster.nodes() {
                publisher.apply(&serde_norway::from_str::<Value>(&node_manifest(node.spec()))?)?;
            }
        }
        let mut documents = Vec::new();
        for (name, text) in MANIFESTS {
            documents.extend(app::documents(text).with_context(|| format!("{name}.yaml"))?);
        }
        let env = PodEnv { dns: DNS, source: publisher.url(), dir: cluster.dir().to_owned() };
        let workloads = documents.iter().filter_map(Workload::new).collect();
        Ok(Self { pods: BTreeMap::new(), publisher, cluster, env, workloads, documents })
    }

    /// Starts both agents.
    ///
    /// # Errors
    /// One does not come up; the message holds its log.
    pub fn start_agents(&mut self) -> Result<()> {
        for index in 0..self.cluster.nodes().len() {
            self.cluster.node_mut(index).start_agent(&self.env.source)?;
        }
        Ok(())
    }

    /// Publishes the manifests.
    ///
    /// # Errors
    /// The source cannot be written.
    pub fn publish(&self) -> Result<()> {
        self.documents.iter().try_for_each(|document| self.publisher.apply(&document.value))
    }

    /// The Services of the manifests: namespace, name, address or `headless`.
    pub fn services(&self) -> impl Iterator<Item = (&str, &str, String)> {
        self.documents.iter().filter(|document| document.kind == "Service").map(|document| {
            let ips = document.value.pointer("/spec/clusterIPs").and_then(Value::as_array);
            let ips: Vec<_> = ips.into_iter().flatten().filter_map(Value::as_str).collect();
            let address = if ips.is_empty() { "headless".to_owned() } else { ips.join(", ") };
            (document.namespace.as_str(), document.name.as_str(), address)
        })
    }

    /// Every replica of every workload, spread over the nodes in turn.
    pub fn desired(&self) -> Vec<PodSpec> {
        let nodes = self.cluster.nodes();
        self.workloads
            .iter()
            .flat_map(|workload| {
                (0..workload.replicas.unwrap_or(nodes.len())).map(move |index| {
                    workload.pod(index, nodes[index % nodes.len()].name(), &BTreeMap::new())
                })
            })
            .collect()
    }

    /// A replica of the workload `name` beyond those that [`Stage::desired`] has.
    ///
    /// # Errors
    /// There is no such workload.
    pub fn replica(
        &self,
        name: &str,
        index: usize,
        node: usize,
        labels: &BTreeMap<&str, &str>,
    ) -> Result<PodSpec> {
        let workload = self.workloads.iter().find(|workload| workload.name == name);
        let workload = workload.with_context(|| format!("no workload {name}"))?;
        Ok(workload.pod(index, self.cluster.node(node).name(), labels))
    }

    /// Starts a pod on the node that its object names; it is not ready yet.
    ///
    /// # Errors
    /// The plugin fails, or the command cannot be started.
    pub fn start(&mut self, spec: PodSpec) -> Result<&mut Running> {
        let nodes = self.cluster.nodes();
        let wanted = spec.object.pointer("/spec/nodeName").and_then(Value::as_str);
        let index = nodes.iter().position(|node| Some(node.name()) == wanted);
        let index = index.with_context(|| format!("no node {wanted:?}"))?;
        let name = spec.name.clone();
        let pod = Running::start(spec, (index, &nodes[index]), &self.env, &self.publisher)?;
        self.pods.insert(name.clone(), pod);
        self.pods.get_mut(&name).context("just put there")
    }

    /// Waits until a pod is ready and publishes that.
    ///
    /// # Errors
    /// It does not become ready in time.
    pub fn wait_ready(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.get_mut(name).with_context(|| format!("no pod {name}"))?;
        pod.wait_ready(self.cluster.node(pod.node), &self.publisher)
    }

    /// Ends a pod.
    ///
    /// # Errors
    /// It does not end within its grace period, or the plugin fails.
    pub fn terminate(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        let node = self.cluster.node(pod.node);
        pod.terminate(node, &self.publisher)
    }

    /// Waits until the kernel of every node sends `service` to exactly these pods.
    ///
    /// # Errors
    /// It does not within ten seconds; the message holds what it does instead.
    pub fn wait_backends(&self, service: &str, pods: &[&str]) -> Result<()> {
        let mut nodes = self.cluster.nodes().iter();
        nodes.try_for_each(|node| self.wait_backends_on(node, service, pods))
    }

    /// The same for one node.
    ///
    /// # Errors
    /// As [`Stage::wait_backends`].
    pub fn wait_backends_on(&self, node: &Node, service: &str, pods: &[&str]) -> Result<()> {
        let mut wanted: Vec<IpAddr> = Vec::new();
        for name in pods {
            let pod = self.pods.get(*name).with_context(|| format!("no pod {name}"))?;
            wanted.push(IpAddr::V4(pod.pod.ipv4()?));
        }
        wanted.sort_unstable();
        node.wait_for_view(&["service", "get", service], PATIENCE, |view| {
            let rows = view.as_array().into_iter().flatten();
            let four = rows.filter(|row| {
                row["frontend"].as_str().is_some_and(|address| !address.starts_with('['))
            });
            let mut found = four.map(|row| {
                let backends = row["backends"].as_array().into_iter().flatten();
                let mut found: Vec<IpAddr> = backends
                    .filter_map(|backend| backend.as_str()?.rsplit_once(':')?.0.parse().ok())
                    .collect();
                found.sort_unstable();
                found
            });
            // Every port of the Service, and at least one.
            let first = found.next();
            first.as_ref() == Some(&wanted) && found.all(|other| other == wanted)
        })
        .map(drop)
        .with_context(|| format!("backends of {service} on {}", node.name()))
    }

    /// How long one tool run takes that this machine needs: fails early where it is missing.
    ///
    /// # Errors
    /// A tool is missing; the message names what installs it.
    pub fn require_tools() -> Result<()> {
        for tool in ["ip", "nsenter", "unshare", "dig"] {
            run("sh", &["-c", &format!("command -v {tool}")])
                .with_context(|| format!("{tool} is missing: `cargo xtask setup` installs it"))?;
        }
        Ok(())
    }
}
