//! Nodes on one LAN, and a directory of manifests as their source.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::PATIENCE;
use crate::names;
use crate::netns::NetNs;
use crate::node::{Node, NodeSpec};

const BRIDGE: &str = "lan0";

/// Some nodes, the LAN they share, and the manifests they read.
///
/// Node *i* is called `node-a`, `node-b`, …, has the addresses `172.31.0.(11+i)` and `fd00:172:31::(11+i)`, and the pod
/// CIDRs `10.244.(1+i).0/24` and `fd00:244:(1+i)::/64`. The LAN's own namespace stands for the outside world, at
/// `172.31.0.1` and `fd00:172:31::1`. Service addresses are free to choose; `10.96.0.0/16` and `fd00:96::/112` are usual.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    lan: NetNs,
    dir: WorkDir,
}

impl Cluster {
    /// Makes a cluster of `count` nodes (at most 26) whose agents do not run yet. Their Node objects are in the
    /// manifests, and a Namespace `default`.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the kernel refuses.
    pub fn new(count: usize) -> Result<Self> {
        crate::require_root()?;
        let lan = NetNs::new("lan")?;
        let dir = WorkDir::new("cluster")?;
        let mut this = Self { nodes: Vec::new(), lan, dir };
        fs::create_dir(this.manifests())?;
        this.lan.bridge(BRIDGE)?;
        this.lan.ip(&format!(
            "addr add 172.31.0.1/24 dev {BRIDGE}\naddr add fd00:172:31::1/64 dev {BRIDGE} nodad"
        ))?;
        this.apply(
            "namespace-default",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n",
        )?;
        for index in 0..count {
            let letter = char::from(b'a' + u8::try_from(index).context("too many nodes")?);
            let spec = NodeSpec {
                name: format!("node-{letter}"),
                addresses: vec![
                    format!("172.31.0.{}/24", 11 + index),
                    format!("fd00:172:31::{}/64", 11 + index),
                ],
                pod_cidrs: vec![
                    format!("10.244.{}.0/24", 1 + index),
                    format!("fd00:244:{}::/64", 1 + index),
                ],
            };
            this.apply(&spec.name, &node_manifest(&spec))?;
            let port = format!("port-{letter}");
            let node = Node::new(spec, &this.lan, BRIDGE, &port, this.dir.path())?;
            this.nodes.push(node);
        }
        Ok(this)
    }

    /// Node number `index`.
    ///
    /// # Panics
    /// If there are fewer nodes.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// Node number `index`, to start and stop its agent.
    ///
    /// # Panics
    /// If there are fewer nodes.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The namespace of the LAN: the outside world.
    pub fn lan(&self) -> &NetNs {
        &self.lan
    }

    /// A directory that goes with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// The manifests as a `--source`.
    pub fn source(&self) -> String {
        format!("dir:{}", self.manifests().display())
    }

    /// Starts every node's agent on the manifests.
    ///
    /// # Errors
    /// One does not come up.
    pub fn start_agents(&mut self) -> Result<()> {
        let source = self.source();
        for node in &mut self.nodes {
            node.start_agent(&source)?;
        }
        Ok(())
    }

    /// Writes `yaml` to `NAME.yaml` of the manifests in one step, so that nobody reads half of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let temporary = self.dir.path().join(format!(".{name}.yaml"));
        fs::write(&temporary, yaml).with_context(|| temporary.display().to_string())?;
        let path = self.manifests().join(format!("{name}.yaml"));
        fs::rename(&temporary, &path).with_context(|| path.display().to_string())
    }

    /// Removes `NAME.yaml` from the manifests.
    ///
    /// # Errors
    /// It is not there.
    pub fn delete(&self, name: &str) -> Result<()> {
        let path = self.manifests().join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// Waits until an HTTP request from a host process of node `index` to `target` is answered: the sign that a new
    /// Service has reached that node's kernel.
    ///
    /// # Errors
    /// It is not within [`PATIENCE`]; the message holds the last reason.
    pub fn wait_served(&self, index: usize, target: &str) -> Result<()> {
        crate::wait::wait_ok(
            &format!("{target} to be served on {}", self.node(index).name()),
            PATIENCE,
            // A request that got lost is not waited for.
            || self.node(index).get_within(target, 5).map(drop),
        )
    }
}

/// The Node object as an API server would hold it.
pub fn node_manifest(spec: &NodeSpec) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {0}\n  labels:\n    kubernetes.io/hostname: {0}\nspec:\n",
        spec.name
    );
    // Writing to a String cannot fail.
    if let Some(first) = spec.pod_cidrs.first() {
        let _ = writeln!(yaml, "  podCIDR: \"{first}\"\n  podCIDRs:");
        for cidr in &spec.pod_cidrs {
            let _ = writeln!(yaml, "  - \"{cidr}\"");
        }
    }
    let _ = writeln!(yaml, "status:\n  addresses:\n  - type: Hostname\n    address: {}", spec.name);
    for address in &spec.addresses {
        let bare = address.split('/').next().unwrap_or(address);
        let _ = writeln!(yaml, "  - type: InternalIP\n    address: \"{bare}\"");
    }
    yaml
}

/// A directory below the system's temporary directory, removed on drop; its name follows [`names::unique`], so that it
/// is swept when its owner was killed.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Makes it.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(label: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(names::unique(label));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let keep = std::env::var_os("SLUICE_KEEP_LOGS").is_some();
        if keep {
            eprintln!("kept: {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_manifest_is_yaml_with_its_addresses_and_ranges() {
        let spec = NodeSpec {
            name: "node-a".into(),
            addresses: vec!["172.31.0.11/24".into(), "fd00:172:31::11/64".into()],
            pod_cidrs: vec!["10.244.1.0/24".into(), "fd00:244:1::/64".into()],
        };
        let value: serde_json::Value = serde_norway::from_str(&node_manifest(&spec)).unwrap();
        assert_eq!(value["kind"], "Node");
        assert_eq!(value["spec"]["podCIDRs"][1], "fd00:244:1::/64");
        assert_eq!(value["status"]["addresses"][1]["address"], "172.31.0.11");
        assert_eq!(value["status"]["addresses"][2]["address"], "fd00:172:31::11");
    }
}
