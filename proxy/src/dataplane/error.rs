//! What can go wrong.

use std::{fmt::Debug, io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use sluice_plan::MapOp;

use super::probe::KernelLacks;

/// The dataplane cannot be opened, attached or read.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The binary was built where the toolchain for eBPF was missing.
    #[error(
        "this binary was built without eBPF programs; run `cargo xtask setup` and build it again"
    )]
    NoObject,
    /// The kernel lacks what the programs cannot do without.
    #[error("{0}")]
    Kernel(#[from] KernelLacks),
    /// The pin directory is on another file system.
    #[error("{path} is not on a BPF file system; run `mount -t bpf bpf /sys/fs/bpf`")]
    NotBpfFs {
        /// The nearest directory that exists.
        path: PathBuf,
    },
    /// The process may not do this.
    #[error("{action}: not permitted; it needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)")]
    NotPermitted {
        /// What was tried.
        action: String,
    },
    /// A file or directory could not be made, read or removed.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A map of another shape is pinned under the name.
    #[error(
        "the pinned map {path} has {field} {found}, but {expected} is needed; another version left \
         it there: stop that one and remove the file"
    )]
    PinnedShape {
        /// The pin.
        path: PathBuf,
        /// What differs: type, key size, value size or flags.
        field: &'static str,
        /// As it is.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// The object does not load.
    #[error("load the eBPF object: {0}")]
    Object(#[source] Box<EbpfError>),
    /// The kernel refuses a program.
    #[error("load the eBPF program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why; with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("attach {program} to {target}: {source}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// The cgroup or the interface.
        target: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No network interface has the name.
    #[error("network interface {name}: {source}")]
    Interface {
        /// The name.
        name: String,
        /// Why it was not found.
        #[source]
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("{call} map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What was tried.
        call: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A map has no room.
    #[error("map {map} is full at {size} elements; raise {flag}")]
    Full {
        /// Its name.
        map: &'static str,
        /// Its size.
        size: u32,
        /// The flag that sets the size.
        flag: &'static str,
    },
    /// A pinned map could not be looked at.
    #[error("look at the pinned map {path}: {source}")]
    MapInfo {
        /// The pin.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<MapError>,
    },
    /// Nothing is pinned there: no agent has run.
    #[error("nothing is pinned under {path}; has sluiced run on this node?")]
    NothingPinned {
        /// The directory of the maps.
        path: PathBuf,
    },
}

/// An operation of a plan failed. Those before it were done, those after it were not.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError<Op: Debug = MapOp> {
    /// The map has no room.
    #[error("map {map} is full at {size} elements; raise {flag}: {op:?} was not done")]
    Full {
        /// The map.
        map: &'static str,
        /// Its size.
        size: u32,
        /// The flag that sets the size.
        flag: &'static str,
        /// The operation that found no room.
        op: Box<Op>,
        /// How many operations of the plan were done.
        done: usize,
    },
    /// The kernel refused.
    #[error("map {map}: {op:?}: {source}")]
    Refused {
        /// The map.
        map: &'static str,
        /// The operation.
        op: Box<Op>,
        /// How many operations of the plan were done.
        done: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl<Op: Debug> ApplyError<Op> {
    /// The map that could not be written.
    pub fn map(&self) -> &'static str {
        match self {
            Self::Full { map, .. } | Self::Refused { map, .. } => map,
        }
    }

    /// How many operations of the plan were done.
    pub fn done(&self) -> usize {
        match self {
            Self::Full { done, .. } | Self::Refused { done, .. } => *done,
        }
    }
}
