//! Pods.

use std::net::IpAddr;

use crate::{Meta, Protocol};

/// `status.phase`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PodPhase {
    /// Not started yet, or no phase given.
    #[default]
    Pending,
    /// Running.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one badly.
    Failed,
    /// The node does not answer.
    Unknown,
}

/// One entry of a container's `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ContainerPort {
    /// `name`; empty where it has none.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

/// A Kubernetes Pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Metadata.
    pub meta: Meta,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.hostname`.
    pub hostname: Option<String>,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.phase`.
    pub phase: PodPhase,
    /// Whether the condition `Ready` is `True`.
    pub ready: bool,
    /// `status.podIPs`, or `podIP` alone; at most one a family.
    pub addrs: Vec<IpAddr>,
    /// The ports of all containers.
    pub ports: Vec<ContainerPort>,
}
