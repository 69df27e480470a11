//! A node on this kernel: namespace, cgroup subtree, bpffs directory, run and state directories, and the real
//! binaries in them.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::app::{Identity, LoadReport};
use crate::bins::bin;
use crate::bpffs::BpfRoot;
use crate::cgroup::Cgroup;
use crate::names;
use crate::netns::NetNs;
use crate::pod::{self, Pod};
use crate::process::{Launch, Process};
use crate::wait_for;

/// What distinguishes one node from another.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its Kubernetes name.
    pub name: String,
    /// Its InternalIPs with prefix lengths, for example `172.31.0.11/24`.
    pub addresses: Vec<String>,
    /// Its pod CIDRs, IPv4 first.
    pub pod_cidrs: Vec<String>,
}

/// A node. Fields are dropped in order: the agent ends before its namespace goes.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    agent: Option<Process>,
    host: Cgroup,
    cgroup: Cgroup,
    outside: Cgroup,
    bpf: BpfRoot,
    netns: NetNs,
    dir: PathBuf,
}

impl Node {
    /// Makes the namespace with an interface `eth0` on the bridge `bridge` of `lan`, and the directories below `dir`.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the kernel refuses.
    pub fn new(spec: NodeSpec, lan: &NetNs, bridge: &str, port: &str, dir: &Path) -> Result<Self> {
        let dir = dir.join(&spec.name);
        for sub in ["run", "state", "log"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| dir.display().to_string())?;
        }
        let netns = NetNs::new(&spec.name)?;
        netns.veth("eth0", lan, port)?;
        lan.ip(&format!("link set {port} master {bridge}"))?;
        for address in &spec.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            netns.ip(&format!("addr add {address} dev eth0{nodad}"))?;
        }
        // As a node has them before any network component starts.
        netns.sysctls(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // A redirect eats ICMP rate-limit tokens, and a reject then becomes a time-out.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/conf/eth0/send_redirects", "0"),
        ])?;
        let cgroup = Cgroup::new(&spec.name)?;
        let host = cgroup.child("host")?;
        let outside = Cgroup::new(&format!("{}-outside", spec.name))?;
        let bpf = BpfRoot::new(&spec.name)?;
        Ok(Self { spec, agent: None, host, cgroup, outside, bpf, netns, dir })
    }

    /// Its Kubernetes name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What it was made from.
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Its InternalIPs without prefix lengths.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let bare = |text: &String| text.split('/').next().and_then(|address| address.parse().ok());
        self.spec.addresses.iter().filter_map(bare).collect()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The root of its cgroup subtree; host processes are in `host`, pods beside it.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its directory on bpffs.
    pub fn bpf_root(&self) -> &Path {
        self.bpf.path()
    }

    /// `--run-dir`.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// `--state-dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where logs of its processes go.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// A command that will run as a host process of this node.
    pub fn launch(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        Launch::new(program).netns(&self.netns).cgroup(&self.host).env("NODE_NAME", self.name())
    }

    /// A command in the node's network namespace but outside its cgroup: no socket hook sees it.
    pub fn launch_unhooked(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        Launch::new(program).netns(&self.netns).cgroup(&self.outside)
    }

    /// Starts a host process with its output in `LABEL.log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, label: &str, launch: &Launch) -> Result<Process> {
        launch.spawn(&self.log_dir().join(format!("{label}.log")))
    }

    /// The command line of this node's `sluiced`, with all paths its own.
    ///
    /// # Errors
    /// It has not been built.
    pub fn agent_launch(&self, source: &str) -> Result<Launch> {
        Ok(self
            .launch(bin("sluiced")?)
            .args(["--source", source, "--hostname-override", self.name()])
            .arg("--cgroup-root")
            .arg(self.cgroup.path())
            .arg("--bpf-root")
            .arg(self.bpf_root())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--state-dir")
            .arg(self.state_dir()))
    }

    /// Starts `sluiced` and waits until its socket and `node.json` are there.
    ///
    /// # Errors
    /// It does not come up within [`PATIENCE`]; the message holds its log.
    pub fn start_agent(&mut self, source: &str) -> Result<()> {
        self.start_agent_with(source, &[])
    }

    /// Like [`Node::start_agent`], with further arguments.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub fn start_agent_with(&mut self, source: &str, args: &[&str]) -> Result<()> {
        if self.agent.as_mut().is_some_and(Process::is_running) {
            bail!("the agent of {} runs already", self.name());
        }
        // Left over from an agent that was killed; a new one must not be taken for ready because of them.
        for stale in ["agent.sock", "node.json"] {
            let _ = fs::remove_file(self.run_dir().join(stale));
        }
        let launch = self.agent_launch(source)?.args(args);
        let mut agent = self.spawn("sluiced", &launch)?;
        let run = self.run_dir();
        agent.wait_until("agent.sock and node.json", PATIENCE, |_| {
            run.join("agent.sock").exists() && run.join("node.json").exists()
        })?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The running agent.
    ///
    /// # Errors
    /// It was not started, or was stopped.
    pub fn agent(&mut self) -> Result<&mut Process> {
        let name = self.spec.name.clone();
        self.agent.as_mut().with_context(|| format!("{name} has no agent"))
    }

    /// Stops the agent with SIGTERM, as a rolling update does.
    ///
    /// # Errors
    /// There is none, or it cannot be signalled.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent()?.terminate(PATIENCE)?;
        self.agent = None;
        Ok(())
    }

    /// Kills the agent with SIGKILL.
    ///
    /// # Errors
    /// There is none, or it cannot be killed.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent()?.kill()?;
        self.agent = None;
        Ok(())
    }

    /// Runs `proxyctl ARGS` against this node.
    ///
    /// # Errors
    /// It fails; the message holds its stderr.
    pub fn proxyctl(&self, args: &[&str]) -> Result<String> {
        self.launch(bin("proxyctl")?)
            .args(args)
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--bpf-root")
            .arg(self.bpf_root())
            .run()
    }

    /// Starts `sluice-dns` as a host process that listens on `listen` (`ADDRESS:PORT`).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_dns(&self, source: &str, listen: &[&str], args: &[&str]) -> Result<Process> {
        let mut launch = self.launch(bin("sluice-dns")?).args(["--source", source]);
        for address in listen {
            launch = launch.args(["--listen", address]);
        }
        self.spawn("sluice-dns", &launch.args(args))
    }

    /// Calls the CNI plugin as a runtime does, in the node's namespace, and returns its result.
    ///
    /// # Errors
    /// The plugin fails; the message holds its JSON error.
    pub fn cni(&self, command: &str, pod: &PodRef<'_>, config: &Value) -> Result<Value> {
        let output = self.cni_output(command, pod, config)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("sluice-cni {command} {}: {} {}", pod.name, stdout.trim(), stderr.trim());
        }
        if stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&stdout).with_context(|| format!("result of sluice-cni: {stdout}"))
    }

    /// The same, with whatever the plugin says, also where it fails or warns.
    ///
    /// # Errors
    /// The plugin cannot be run, or does not end.
    pub fn cni_output(&self, command: &str, pod: &PodRef<'_>, config: &Value) -> Result<Output> {
        let launch = self
            .launch(bin("sluice-cni")?)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod.container_id)
            .env("CNI_NETNS", pod.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", bin("sluice-cni")?.parent().context("directory of the plugin")?)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
                    pod.namespace, pod.name, pod.container_id
                ),
            );
        launch.output_with_input(config.to_string().as_bytes())
    }

    /// The network configuration of this node: ranges from the agent's `node.json`, confirmation over its socket.
    pub fn cni_config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "sluice",
            "type": "sluice-cni",
            "stateDir": self.state_dir(),
            "nodeFile": self.run_dir().join("node.json"),
            "agentSocket": self.run_dir().join("agent.sock"),
        })
    }

    /// The configuration for a plugin that works without an agent.
    pub fn cni_config_alone(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "sluice",
            "type": "sluice-cni",
            "stateDir": self.state_dir(),
            "podCIDRs": self.spec.pod_cidrs,
        })
    }

    /// Makes a pod: namespace, cgroup, and ADD with [`Node::cni_config`].
    ///
    /// # Errors
    /// The plugin fails.
    pub fn add_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.add_pod_with(namespace, name, &self.cni_config())
    }

    /// Makes a pod with a configuration of the caller's.
    ///
    /// # Errors
    /// The plugin fails.
    pub fn add_pod_with(&self, namespace: &str, name: &str, config: &Value) -> Result<Pod> {
        let netns = NetNs::new(&format!("pod-{name}"))?;
        let cgroup = self.cgroup.child(&format!("pod-{namespace}-{name}"))?;
        // Unique on the machine, like a runtime's.
        let container_id = names::unique(&format!("{namespace}-{name}"));
        let path = netns.path();
        let pod = PodRef { namespace, name, container_id: &container_id, netns: &path };
        let result = self.cni("ADD", &pod, config)?;
        let mut addresses = Vec::new();
        for ip in result["ips"].as_array().into_iter().flatten() {
            let text = ip["address"].as_str().unwrap_or_default();
            let bare = text.split('/').next().unwrap_or_default();
            addresses.push(bare.parse().with_context(|| format!("address in {result}"))?);
        }
        Ok(Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: self.spec.name.clone(),
            container_id,
            addresses,
            outside: self.outside.path().to_owned(),
            log_dir: self.log_dir(),
            cgroup,
            netns,
        })
    }

    /// Makes a pod that asks for ports of the node, in the shape of `runtimeConfig.portMappings`.
    ///
    /// # Errors
    /// The plugin fails.
    pub fn add_pod_with_ports(&self, namespace: &str, name: &str, mappings: Value) -> Result<Pod> {
        let mut config = self.cni_config();
        config["runtimeConfig"] = json!({ "portMappings": mappings });
        self.add_pod_with(namespace, name, &config)
    }

    /// Ends a pod as a runtime does: DEL, then its processes, cgroup and namespace go.
    ///
    /// # Errors
    /// The plugin fails; the pod is removed all the same.
    pub fn del_pod(&self, pod: Pod) -> Result<()> {
        let path = pod.netns.path();
        let reference = PodRef {
            namespace: &pod.namespace,
            name: &pod.name,
            container_id: &pod.container_id,
            netns: &path,
        };
        self.cni("DEL", &reference, &self.cni_config()).map(drop)
    }

    /// One HTTP request from a host process of this node.
    ///
    /// # Errors
    /// The request fails.
    pub fn get(&self, target: &str) -> Result<Identity> {
        pod::get(self.launch(bin("testapp")?), target)
    }

    /// The same, which gives up after so many seconds without a connection or an answer.
    ///
    /// # Errors
    /// The request fails.
    pub fn get_within(&self, target: &str, seconds: u32) -> Result<Identity> {
        pod::get_within(self.launch(bin("testapp")?), target, seconds)
    }

    /// One UDP datagram from a host process of this node.
    ///
    /// # Errors
    /// No answer.
    pub fn udp(&self, target: SocketAddr) -> Result<Identity> {
        pod::udp(self.launch(bin("testapp")?), target)
    }

    /// HTTP requests from a host process of this node.
    ///
    /// # Errors
    /// The program fails.
    pub fn load(&self, target: &str, requests: u64) -> Result<LoadReport> {
        pod::load(self.launch(bin("testapp")?), target, requests)
    }

    /// Waits until `proxyctl ARGS -o json` prints something that `condition` accepts, and returns it.
    ///
    /// # Errors
    /// It did not within `limit`; the message holds the last answer.
    pub fn wait_for_view(
        &self,
        args: &[&str],
        limit: Duration,
        mut condition: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let args = [args, &["-o", "json"]].concat();
        let mut last = String::new();
        wait_for(&format!("proxyctl {}", args.join(" ")), limit, || {
            match self.proxyctl(&args).and_then(|text| Ok(serde_json::from_str(&text)?)) {
                Ok(value) if condition(&value) => Some(value),
                Ok(value) => {
                    last = value.to_string();
                    None
                }
                Err(error) => {
                    last = format!("{error:#}");
                    None
                }
            }
        })
        .with_context(|| format!("last answer: {last}"))
    }
}

/// What the plugin is told about a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodRef<'a> {
    /// Kubernetes namespace.
    pub namespace: &'a str,
    /// Kubernetes name.
    pub name: &'a str,
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_NETNS`.
    pub netns: &'a Path,
}
