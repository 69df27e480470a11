//! The record of an attachment: one JSON file, which is also the allocation of its addresses.
//!
//! The file's name carries the host-side interface, hence the key, and the addresses:
//! `slu0123456789a,10.244.1.5,fd00:244:1::5.json`. So one directory listing tells which addresses
//! are taken, and a file whose content is damaged still reserves its addresses and can still be
//! freed by its key.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::names::{HOST_INTERFACE_PREFIX, Key, Mac};
use crate::ports::PortMapping;

/// Version of the record's format.
pub const RECORD_VERSION: u32 = 1;

/// How the agent attaches its programs to the node's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// By TCX where the kernel has it. The kernel waits for two grace periods at ADD and two at DEL,
    /// in which no interface of the node can be changed.
    Tcx,
    /// By filters of the clsact queueing discipline, without such waits. Nobody else can have an
    /// ingress queueing discipline on the node's end then, as the plugin `bandwidth` wants it for
    /// what a pod sends.
    Clsact,
}

impl Hook {
    /// Where the configuration names none.
    pub const DEFAULT: Self = Self::Clsact;

    /// That of records without one.
    fn unrecorded() -> Self {
        Self::Tcx
    }

    fn is_unrecorded(&self) -> bool {
        *self == Self::unrecorded()
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "tcx" => Some(Self::Tcx),
            "clsact" => Some(Self::Clsact),
            _ => None,
        }
    }
}

/// What ADD made. The agent reads these files too; fields are only ever added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// The interface in the pod.
    pub interface: String,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The node's end of the veth pair.
    pub host_interface: String,
    /// MAC address of the pod's end.
    pub mac: Mac,
    /// MAC address of the node's end.
    pub host_mac: Mac,
    /// MTU of both ends, bytes.
    pub mtu: u32,
    /// The pod's addresses, at most one a family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// `K8S_POD_NAMESPACE`, or empty.
    #[serde(default)]
    pub pod_namespace: String,
    /// `K8S_POD_NAME`, or empty.
    #[serde(default)]
    pub pod_name: String,
    /// `K8S_POD_UID`, or empty.
    #[serde(default)]
    pub pod_uid: String,
    /// Ports of the node that lead to the pod; the agent serves them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<PortMapping>,
    /// How the agent is to attach its programs.
    #[serde(default = "Hook::unrecorded", skip_serializing_if = "Hook::is_unrecorded")]
    pub hook: Hook,
    /// When ADD began, in seconds since 1970: of two that want one port of the node, the elder has
    /// it. 0 in records of a release that did not write it.
    #[serde(default)]
    pub created: u64,
    /// `/proc/sys/kernel/random/boot_id` when it was made; the interfaces do not outlive a boot.
    pub boot_id: String,
}

impl Record {
    /// The attachment's identity.
    pub fn key(&self) -> Key {
        Key {
            network: self.network.clone(),
            container_id: self.container_id.clone(),
            interface: self.interface.clone(),
        }
    }

    /// The name of its file.
    pub fn file_name(&self) -> String {
        FileName { host_interface: self.host_interface.clone(), addresses: self.addresses.clone() }
            .to_string()
    }
}

/// A record's file name, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileName {
    /// The node's end of the veth pair.
    pub host_interface: String,
    /// The addresses the record holds.
    pub addresses: Vec<IpAddr>,
}

impl FileName {
    /// `None` for a name that no release of this plugin wrote.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".json")?.split(',');
        let host_interface = parts.next()?;
        let digits = host_interface.strip_prefix(HOST_INTERFACE_PREFIX)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let addresses = parts.map(|a| a.parse().ok()).collect::<Option<Vec<_>>>()?;
        Some(Self { host_interface: host_interface.to_owned(), addresses })
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.host_interface)?;
        for address in &self.addresses {
            write!(f, ",{address}")?;
        }
        f.write_str(".json")
    }
}
