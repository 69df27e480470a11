//! Objects into the source.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::PATIENCE;
use crate::cgroup::Cgroup;
use crate::cluster::Cluster;
use crate::netns::NetNs;
use crate::process::{Launch, Process};
use crate::wait::wait_ok;

/// Where the agents and DNS servers read the cluster from.
#[derive(Debug)]
pub enum Publisher {
    /// A directory of manifests.
    Dir {
        /// The directory.
        path: PathBuf,
    },
    /// A real etcd in the LAN's namespace, with the keys that a kube-apiserver writes.
    Etcd(Box<Etcd>),
}

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    /// Prepared client.
    client: Launch,
    // Dropped in this order: the server ends before its cgroup goes.
    _process: Process,
    /// Where a sweep finds the server after a crash of the demo.
    _cgroup: Cgroup,
}

/// Where etcd listens: the LAN's own address, which nodes and pods reach.
const ETCD: &str = "http://172.31.0.1:2379";

impl Publisher {
    /// The directory of the cluster's manifests.
    pub fn dir(cluster: &Cluster) -> Self {
        Self::Dir { path: cluster.manifests() }
    }

    /// Starts an etcd, waits until it is healthy.
    ///
    /// # Errors
    /// It is not installed, or does not come up; the message holds its log.
    pub fn etcd(lan: &NetNs, dir: &Path) -> Result<Self> {
        let cgroup = Cgroup::new("etcd")?;
        let launch = Launch::new("etcd")
            .netns(lan)
            .cgroup(&cgroup)
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--unsafe-no-fsync", "--log-level", "warn"]);
        let mut process = launch.spawn(&dir.join("etcd.log")).context(
            "etcd is not here: `cargo xtask setup` installs it (Debian: etcd-server, etcd-client)",
        )?;
        let client = Launch::new("etcdctl").netns(lan).env("ETCDCTL_API", "3").args([
            "--endpoints",
            ETCD,
            "--command-timeout",
            "5s",
        ]);
        wait_ok("etcd to be healthy", PATIENCE, || {
            if !process.is_running() {
                bail!("etcd ended:\n{}", process.log());
            }
            client.clone().args(["endpoint", "health"]).run().map(drop)
        })?;
        Ok(Self::Etcd(Box::new(Etcd { client, _process: process, _cgroup: cgroup })))
    }

    /// The `--source` that reads it.
    pub fn url(&self) -> String {
        match self {
            Self::Dir { path } => format!("dir:{}", path.display()),
            Self::Etcd(_) => format!("etcd:{ETCD}"),
        }
    }

    /// Creates or replaces an object.
    ///
    /// # Errors
    /// The file or key cannot be written.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let kind = object["kind"].as_str().context("kind")?;
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let name = object["metadata"]["name"].as_str().context("name")?;
        match self {
            Self::Dir { path } => {
                let file = path.join(file_name(kind, namespace, name));
                let temporary = file.with_extension("tmp");
                std::fs::write(&temporary, serde_norway::to_string(object)?)
                    .and_then(|()| std::fs::rename(&temporary, &file))
                    .with_context(|| file.display().to_string())
            }
            Self::Etcd(etcd) => {
                let Some(key) = etcd_key(kind, namespace, name) else { return Ok(()) };
                let put = etcd.client.clone().args(["put", &key]);
                let output = put.output_with_input(object.to_string().as_bytes())?;
                if !output.status.success() {
                    bail!("etcdctl put {key}: {}", String::from_utf8_lossy(&output.stderr).trim());
                }
                Ok(())
            }
        }
    }

    /// Removes an object.
    ///
    /// # Errors
    /// The file or key cannot be removed.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        match self {
            Self::Dir { path } => {
                let file = path.join(file_name(kind, namespace, name));
                std::fs::remove_file(&file).with_context(|| file.display().to_string())
            }
            Self::Etcd(etcd) => {
                let Some(key) = etcd_key(kind, namespace, name) else { return Ok(()) };
                etcd.client.clone().args(["del", &key]).run().map(drop)
            }
        }
    }
}

fn file_name(kind: &str, namespace: &str, name: &str) -> String {
    format!("{}-{namespace}-{name}.yaml", kind.to_lowercase())
}

/// The key of an object, of the kinds that a data plane reads.
fn etcd_key(kind: &str, namespace: &str, name: &str) -> Option<String> {
    Some(match kind {
        "Service" => format!("/registry/services/specs/{namespace}/{name}"),
        "Pod" => format!("/registry/pods/{namespace}/{name}"),
        "Node" => format!("/registry/minions/{name}"),
        "Namespace" => format!("/registry/namespaces/{name}"),
        "NetworkPolicy" => format!("/registry/networkpolicies/{namespace}/{name}"),
        _ => return None,
    })
}
