//! From Pod objects to running processes on a node, and back into their status.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::app::PodSpec;
use super::publish::Publisher;
use crate::PATIENCE;
use crate::bins::bin;
use crate::node::Node;
use crate::pod::Pod;
use crate::process::{Launch, Process};
use crate::wait::wait_ok;

/// A pod with its process. Dropped: the process ends, the namespace goes.
#[derive(Debug)]
pub struct Running {
    /// What it is.
    pub spec: PodSpec,
    /// Which node it runs on.
    pub node: usize,
    /// How long the runtime's call of the CNI plugin took.
    pub add: Duration,
    process: Process,
    /// Its network.
    pub pod: Pod,
}

/// What every pod is given.
#[derive(Debug, Clone)]
pub struct PodEnv {
    /// The cluster's resolver.
    pub dns: IpAddr,
    /// `SLUICE_SOURCE`: the cluster's DNS reads the same source as the agents.
    pub source: String,
    /// Where files of pods go.
    pub dir: PathBuf,
}

impl Running {
    /// Makes the pod's network with `sluice-cni`, starts its command, and publishes it as not yet
    /// ready.
    ///
    /// # Errors
    /// The plugin fails, or the command cannot be started.
    pub fn start(
        spec: PodSpec,
        (index, node): (usize, &Node),
        env: &PodEnv,
        publisher: &Publisher,
    ) -> Result<Self> {
        let started = Instant::now();
        let pod = node.add_pod(&spec.namespace, &spec.name)?;
        let add = started.elapsed();
        let launch = in_pod(&pod, &spec, env, &expand(&spec.command()?, env))?;
        let process = pod.spawn("app", &launch)?;
        let this = Self { spec, node: index, add, process, pod };
        this.publish(publisher, false, None)?;
        Ok(this)
    }

    /// Probes it from its node, as a kubelet does, and publishes it as ready.
    ///
    /// # Errors
    /// It does not answer in time; the message holds its log.
    pub fn wait_ready(&mut self, node: &Node, publisher: &Publisher) -> Result<()> {
        if let Some((port, path)) = self.spec.probe() {
            let address = SocketAddr::new(IpAddr::V4(self.pod.ipv4()?), port);
            let process = &mut self.process;
            wait_ok(&format!("pod {} to be ready", self.spec.name), PATIENCE, || {
                if !process.is_running() {
                    bail!("it ended:\n{}", process.log());
                }
                node.netns().run(|| probe(address, &path))?
            })
            .with_context(|| format!("log of pod {}:\n{}", self.spec.name, self.process.log()))?;
        }
        self.publish(publisher, true, None)
    }

    /// Ends it as a kubelet does: the object says that it is terminating, the process gets SIGTERM
    /// and its grace period, then the network goes, then the object.
    ///
    /// # Errors
    /// The plugin fails, or the object cannot be written.
    pub fn terminate(mut self, node: &Node, publisher: &Publisher) -> Result<()> {
        let grace = Duration::from_secs(self.spec.grace_secs());
        self.publish(publisher, true, Some("2026-01-01T00:00:00Z"))?;
        self.process.signal(Signal::TERM)?;
        self.process.wait(grace)?;
        publisher.delete("Pod", &self.spec.namespace, &self.spec.name)?;
        node.del_pod(self.pod)
    }

    /// A command in this pod, with the pod's resolver.
    ///
    /// # Errors
    /// The resolver's file cannot be written.
    pub fn command(&self, env: &PodEnv, words: &[&str]) -> Result<Launch> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        in_pod(&self.pod, &self.spec, env, &words)
    }

    fn publish(&self, publisher: &Publisher, ready: bool, deleted: Option<&str>) -> Result<()> {
        let mut object = self.spec.object.clone();
        if let Some(time) = deleted {
            object["metadata"]["deletionTimestamp"] = json!(time);
        }
        let addresses: Vec<Value> =
            self.pod.addresses().iter().map(|address| json!({"ip": address})).collect();
        object["status"] = json!({
            "phase": "Running",
            "podIP": addresses.first().map(|address| address["ip"].clone()),
            "podIPs": addresses,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        });
        publisher.apply(&object)
    }
}

/// `$(NAME)` in a command, as Kubernetes expands it.
fn expand(words: &[String], env: &PodEnv) -> Vec<String> {
    words.iter().map(|word| word.replace("$(SLUICE_SOURCE)", &env.source)).collect()
}

/// A command in the pod's namespaces: its network, its cgroup, and its `/etc/resolv.conf`.
fn in_pod(pod: &Pod, spec: &PodSpec, env: &PodEnv, words: &[String]) -> Result<Launch> {
    let (first, rest) = words.split_first().context("a command")?;
    // What the workspace builds comes from there, the rest from the PATH.
    let program = bin(first).unwrap_or_else(|_| PathBuf::from(first));
    if !spec.cluster_dns() {
        return Ok(pod.launch(program).args(rest));
    }
    let resolver = resolv_conf(&env.dir, &spec.namespace, env.dns)?;
    Ok(pod
        .launch("unshare")
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
        .arg(resolver)
        .arg(program)
        .args(rest))
}

/// The resolver's configuration that a kubelet gives to pods of a namespace.
fn resolv_conf(dir: &Path, namespace: &str, dns: IpAddr) -> Result<PathBuf> {
    let path = dir.join(format!("resolv-{namespace}.conf"));
    if !path.exists() {
        let text = format!(
            "nameserver {dns}\nsearch {namespace}.svc.cluster.local svc.cluster.local \
             cluster.local\noptions ndots:5\n"
        );
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(path)
}

/// One HTTP request; any answer but 200 is an error.
fn probe(address: SocketAddr, path: &str) -> Result<()> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let line = answer.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) != Some("200") {
        bail!("{address}{path} answers {line:?}");
    }
    Ok(())
}
