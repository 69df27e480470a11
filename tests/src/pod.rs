//! A pod: a namespace wired by the real CNI plugin, a cgroup below its node's, and processes in both.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::PATIENCE;
use crate::app::{Identity, LoadReport};
use crate::bins::bin;
use crate::cgroup::Cgroup;
use crate::netns::NetNs;
use crate::process::{Launch, Process};

/// A pod on a [`crate::node::Node`]. Dropping it removes its namespace and cgroup, with what runs there; the plugin's
/// DEL is [`crate::node::Node::del_pod`].
#[derive(Debug)]
pub struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) container_id: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) outside: PathBuf,
    pub(crate) log_dir: PathBuf,
    // Dropped in this order: processes end with the cgroup, then the namespace goes.
    pub(crate) cgroup: Cgroup,
    pub(crate) netns: NetNs,
}

impl Pod {
    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it runs on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The container ID that the plugin was given.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The addresses that the plugin gave it, in its order.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub fn ipv4(&self) -> Result<Ipv4Addr> {
        let found = self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        found.with_context(|| format!("pod {} has no IPv4 address", self.name))
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn ipv6(&self) -> Result<Ipv6Addr> {
        let found = self.addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        found.with_context(|| format!("pod {} has no IPv6 address", self.name))
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A command that will run as a process of this pod.
    pub fn launch(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        self.unplaced(program).cgroup(&self.cgroup)
    }

    /// A command in the pod's network namespace but outside the node's cgroup: no socket hook sees it, so its packets
    /// must be translated one by one, like those of a virtual machine or of a raw socket.
    pub fn launch_unhooked(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        self.unplaced(program).cgroup_path(&self.outside)
    }

    fn unplaced(&self, program: impl AsRef<std::ffi::OsStr>) -> Launch {
        let address = self.addresses.first().map(ToString::to_string).unwrap_or_default();
        Launch::new(program)
            .netns(&self.netns)
            .env("POD_NAME", &self.name)
            .env("POD_NAMESPACE", &self.namespace)
            .env("NODE_NAME", &self.node)
            .env("POD_IP", address)
    }

    /// Starts a process of this pod; its output goes to `NAMESPACE-NAME-LABEL.log` in the node's directory.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, label: &str, launch: &Launch) -> Result<Process> {
        launch.spawn(&self.log_dir.join(format!("{}-{}-{label}.log", self.namespace, self.name)))
    }

    /// Starts `testapp serve` on `port`, HTTP over TCP and echo over UDP, IPv4 and IPv6, and waits until it listens.
    ///
    /// # Errors
    /// It does not come up.
    pub fn serve(&self, port: u16) -> Result<Process> {
        let port_text = port.to_string();
        let launch = self.launch(bin("testapp")?).args(["serve", "--udp", "--port", &port_text]);
        let mut process = self.spawn(&format!("serve-{port}"), &launch)?;
        process.wait_for_log("listening", PATIENCE)?;
        Ok(process)
    }

    /// One HTTP request from this pod to `target` (`ADDRESS:PORT`).
    ///
    /// # Errors
    /// The request fails; the message holds the reason.
    pub fn get(&self, target: &str) -> Result<Identity> {
        get(self.launch(bin("testapp")?), target)
    }

    /// One UDP datagram to `target` and its answer.
    ///
    /// # Errors
    /// No answer.
    pub fn udp(&self, target: SocketAddr) -> Result<Identity> {
        udp(self.launch(bin("testapp")?), target)
    }

    /// `requests` HTTP requests to `target`, one connection each.
    ///
    /// # Errors
    /// The program fails; failed requests are counted in the report.
    pub fn load(&self, target: &str, requests: u64) -> Result<LoadReport> {
        load(self.launch(bin("testapp")?), target, requests)
    }

    /// The Pod object as an API server would hold it: running, ready, with these labels and its addresses.
    pub fn manifest(&self, labels: &[(&str, &str)]) -> String {
        let mut yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n",
            self.name, self.namespace
        );
        // Writing to a String cannot fail.
        if !labels.is_empty() {
            yaml.push_str("  labels:\n");
            for (key, value) in labels {
                let _ = writeln!(yaml, "    {key}: \"{value}\"");
            }
        }
        let _ = write!(
            yaml,
            "spec:\n  nodeName: {}\n  containers:\n  - name: app\n    image: testapp\nstatus:\n  phase: Running\n  \
             conditions:\n  - type: Ready\n    status: \"True\"\n",
            self.node
        );
        if let Some(first) = self.addresses.first() {
            let _ = writeln!(yaml, "  podIP: \"{first}\"\n  podIPs:");
            for address in &self.addresses {
                let _ = writeln!(yaml, "  - ip: \"{address}\"");
            }
        }
        yaml
    }
}

/// One HTTP request by the prepared `testapp`.
///
/// # Errors
/// The request fails.
pub fn get(testapp: Launch, target: &str) -> Result<Identity> {
    answer(testapp.args(["get", target]), target)
}

/// The same, which gives up after so many seconds without a connection or an answer: for what is asked again, and for
/// what is to have no answer.
///
/// # Errors
/// The request fails.
pub fn get_within(testapp: Launch, target: &str, seconds: u32) -> Result<Identity> {
    answer(testapp.args(["get", target, "--timeout", &seconds.to_string()]), target)
}

/// One UDP datagram by the prepared `testapp`.
///
/// # Errors
/// No answer.
pub fn udp(testapp: Launch, target: SocketAddr) -> Result<Identity> {
    answer(testapp.args(["udp", &target.to_string()]), &target.to_string())
}

fn answer(testapp: Launch, target: &str) -> Result<Identity> {
    let text = testapp.run()?;
    serde_json::from_str(&text).with_context(|| format!("answer of {target}: {text}"))
}

/// A load by the prepared `testapp`.
///
/// # Errors
/// The program fails.
pub fn load(testapp: Launch, target: &str, requests: u64) -> Result<LoadReport> {
    let text = testapp.args(["load", target, "--requests", &requests.to_string()]).run()?;
    serde_json::from_str(&text).with_context(|| format!("report of the load: {text}"))
}
