//! Errors of the plugin and the specification's codes for them.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sluice_netlink::NetlinkError;

use crate::pool::PoolError;
use crate::version::SpecVersion;

/// Everything that can go wrong in one call of the plugin.
///
/// The display form is the `msg` of the CNI error; [`Error::hint`] is its `details`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `cniVersion` is none that this plugin speaks.
    #[error("cniVersion {0:?} is not supported")]
    UnsupportedVersion(String),
    /// The command does not exist in the version the configuration asks for.
    #[error(
        "CNI_COMMAND {command} needs cniVersion {needs} or newer, the configuration says {has}"
    )]
    CommandTooNew {
        /// The command.
        command: &'static str,
        /// First version of the specification that has it.
        needs: SpecVersion,
        /// Version of the configuration.
        has: SpecVersion,
    },
    /// A field holds a value that is valid but that this plugin does not support.
    #[error("field {field}: {problem}")]
    UnsupportedField {
        /// The field.
        field: String,
        /// What is not supported.
        problem: String,
    },
    /// The network namespace of `CNI_NETNS` is not there.
    #[error("CNI_NETNS {}: the network namespace does not exist", .0.display())]
    NoNetns(PathBuf),
    /// Environment variables are missing or invalid; every one is named.
    #[error("invalid environment: {0}")]
    Environment(String),
    /// A file, a socket or stdin could not be read or written.
    #[error("{call} {object}: {source}")]
    Io {
        /// What was done, for example `read`.
        call: &'static str,
        /// Path or stream.
        object: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Stdin is not JSON.
    #[error("network configuration on stdin is not valid JSON: {0}")]
    Decode(String),
    /// A field of the network configuration is missing or wrong.
    #[error("network configuration: field {field}: {problem}")]
    Config {
        /// The field, dotted from the top.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What the node's agent writes is not there yet or is unusable.
    #[error("node file {}: {problem}", .path.display())]
    NodeFile {
        /// Path of the node file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No address is left, or the ranges are unusable.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// An address that is free by the records has a route to some device.
    #[error("address {0} is already routed on this node, but no record holds it")]
    AddressRouted(std::net::IpAddr),
    /// A requested address is another attachment's.
    #[error("requested address {0} is in use by another pod of this node")]
    AddressTaken(std::net::IpAddr),
    /// The agent is away, too slow, or refused.
    #[error("agent at {}: {problem}", .socket.display())]
    Agent {
        /// Path of the agent's socket.
        socket: PathBuf,
        /// What went wrong.
        problem: String,
        /// What the agent advises, if it answered.
        hint: Option<String>,
    },
    /// The kernel refused a change.
    #[error("{what}: {source}")]
    Kernel {
        /// What was to be done, naming the object.
        what: String,
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// A thread could not enter the pod's network namespace.
    #[error("enter network namespace {}: {source}", .path.display())]
    EnterNetns {
        /// Its path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// CHECK found something missing or different.
    #[error("attachment is not as it was made: {}", .0.join("; "))]
    CheckFailed(Vec<String>),
    /// GC went through, but some attachments could not be freed.
    #[error("could not free {} attachments: {}", .0.len(), .0.join("; "))]
    GcIncomplete(Vec<String>),
    /// STATUS: the plugin cannot serve an ADD now.
    #[error("not ready: {}", .0.join("; "))]
    NotReady(Vec<String>),
}

impl Error {
    /// An [`Error::Io`] on a path.
    pub fn io(call: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { call, object: path.display().to_string(), source }
    }

    /// An [`Error::Config`].
    pub fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { field: field.into(), problem: problem.into() }
    }

    /// The code of the CNI specification (section "Error"); from 100 on, Sluice's own.
    ///
    /// 100: the kernel refused a change; 101: CHECK found a difference; 102: GC is incomplete.
    pub fn code(&self) -> u32 {
        match self {
            Self::UnsupportedVersion(_) | Self::CommandTooNew { .. } => 1,
            Self::UnsupportedField { .. } => 2,
            Self::NoNetns(_) => 3,
            Self::Environment(_) => 4,
            Self::Io { .. } => 5,
            Self::Decode(_) => 6,
            Self::Config { .. } => 7,
            Self::Pool(PoolError::Overlap(..) | PoolError::Unusable(_)) => 7,
            Self::NodeFile { .. }
            | Self::Pool(PoolError::Full { .. } | PoolError::NoRange)
            | Self::AddressRouted(_)
            | Self::AddressTaken(_)
            | Self::Agent { .. } => 11,
            Self::NotReady(_) => 50,
            Self::Kernel { .. } | Self::EnterNetns { .. } => 100,
            Self::CheckFailed(_) => 101,
            Self::GcIncomplete(_) => 102,
        }
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnsupportedVersion(_) => {
                format!("use one of {}", SpecVersion::ALL.map(SpecVersion::as_str).join(", "))
            }
            Self::NodeFile { path, .. } => format!(
                "sluiced writes {} once it knows the node's pod CIDRs; is it running? Or set \
                 podCIDRs in the network configuration",
                path.display()
            ),
            Self::Pool(PoolError::Full { .. }) => {
                "delete pods of this node, run GC if attachments leaked, or give the node a larger \
                 pod CIDR"
                    .into()
            }
            Self::Pool(PoolError::NoRange) => {
                "the Node object has no spec.podCIDRs yet; set podCIDRs in the network \
                 configuration if nothing assigns them"
                    .into()
            }
            Self::AddressRouted(_) => "remove the route, or the pod that uses it".into(),
            Self::Agent { hint: Some(hint), .. } => hint.clone(),
            Self::Agent { .. } => "is sluiced running on this node? See proxyctl status".into(),
            Self::Kernel { source, .. } if source.is_permission() => {
                "the plugin needs CAP_NET_ADMIN and CAP_SYS_ADMIN".into()
            }
            Self::CheckFailed(_) => "delete the pod's sandbox; the runtime makes it anew".into(),
            _ => return None,
        })
    }

    /// The error object of the specification.
    pub fn report(&self, version: SpecVersion) -> ErrorReport {
        ErrorReport {
            cni_version: version.as_str(),
            code: self.code(),
            msg: self.to_string(),
            details: self.hint().unwrap_or_default(),
        }
    }
}

/// JSON that a failing plugin prints on stdout.
#[derive(Serialize, Debug)]
pub struct ErrorReport {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    code: u32,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}
