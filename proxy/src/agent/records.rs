//! The records that `sluice-cni` keeps of the pods it attached.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sluice_model::Protocol;

use crate::control::EndpointRef;
use crate::dataplane::TcHook;

/// The part of a record that the agent uses; `sluice-cni` writes more.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Container and interface.
    #[serde(flatten)]
    pub key: EndpointRef,
    /// Path of the pod's network namespace; empty in records of plugins that did not say.
    #[serde(default)]
    pub netns: PathBuf,
    /// Name of the host-side veth.
    pub host_interface: String,
    /// Hardware address of the pod's interface, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Hardware address of the host-side veth.
    pub host_mac: String,
    /// The pod's addresses, one a family.
    pub addresses: Vec<IpAddr>,
    /// Namespace of the pod; empty where the runtime did not say.
    #[serde(default)]
    pub pod_namespace: String,
    /// Name of the pod.
    #[serde(default)]
    pub pod_name: String,
    /// Ports of the node that the pod asks for.
    #[serde(default)]
    pub host_ports: Vec<PortMapping>,
    /// MTU of the pod's interface, in bytes; 0 in records that do not say.
    #[serde(default)]
    pub mtu: u32,
    /// When the pod's network was made, in seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// How the programs are to be attached.
    #[serde(default)]
    pub hook: RecordedHook,
}

/// How the programs are attached to the pod's interface, as the network's configuration asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordedHook {
    /// By TCX where the kernel has it, which leaves the queueing disciplines of the interface to
    /// others.
    #[default]
    Tcx,
    /// By filters of the clsact queueing discipline: attached and taken away without the grace
    /// periods of the kernel that TCX waits for.
    Clsact,
}

impl From<RecordedHook> for TcHook {
    fn from(hook: RecordedHook) -> Self {
        match hook {
            RecordedHook::Tcx => Self::Tcx,
            RecordedHook::Clsact => Self::Clsact,
        }
    }
}

/// A port of the node that leads to a port of the pod.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: u16,
    /// The pod's.
    pub container_port: u16,
    /// The protocol of both.
    pub protocol: RecordedProtocol,
    /// The node's address that has the port; none or an unspecified one: all of them.
    #[serde(rename = "hostIP", default)]
    pub host_ip: Option<IpAddr>,
}

impl fmt::Display for PortMapping {
    /// `8080->80/TCP`, with the address before it where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host_port, container_port, protocol, host_ip } = self;
        match host_ip {
            Some(ip) => write!(f, "{}", SocketAddr::new(*ip, *host_port))?,
            None => write!(f, "{host_port}")?,
        }
        write!(f, "->{container_port}/{}", Protocol::from(*protocol))
    }
}

/// A protocol as records spell it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordedProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl From<RecordedProtocol> for Protocol {
    fn from(protocol: RecordedProtocol) -> Self {
        match protocol {
            RecordedProtocol::Tcp => Self::Tcp,
            RecordedProtocol::Udp => Self::Udp,
            RecordedProtocol::Sctp => Self::Sctp,
        }
    }
}

impl Record {
    /// `NAMESPACE/NAME` of the pod, or the container's id.
    pub fn label(&self) -> String {
        if self.pod_name.is_empty() {
            self.key.container_id.clone()
        } else {
            format!("{}/{}", self.pod_namespace, self.pod_name)
        }
    }
}

/// A record that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory or a file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The failing call's error.
        source: io::Error,
    },
    /// A file is not a record.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What serde said.
        source: serde_json::Error,
    },
}

/// Directory of the records below the plugin's state directory.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("endpoints")
}

/// Reads one record, with its stamp. `None` where there is no such file.
///
/// # Errors
///
/// It cannot be read, or is no record.
pub(super) fn read(path: &Path) -> Result<Option<(Stamp, Record)>, RecordError> {
    let io_error = |source| RecordError::Io { path: path.to_owned(), source };
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(source)),
    };
    let stamp = Stamp::of(&file.metadata().map_err(io_error)?);
    let mut text = Vec::new();
    io::Read::read_to_end(&mut file, &mut text).map_err(io_error)?;
    let record = serde_json::from_slice(&text)
        .map_err(|source| RecordError::Malformed { path: path.to_owned(), source })?;
    Ok(Some((stamp, record)))
}

/// What tells, without reading it, that a file is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Stamp {
    /// From what the file system says of a file.
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The names of the records in `directory`, with what tells whether they changed. A directory that
/// is not there has none.
///
/// # Errors
///
/// The directory cannot be read.
pub(super) fn list(directory: &Path) -> Result<BTreeMap<String, Stamp>, RecordError> {
    let io_error = |source| RecordError::Io { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(io_error(source)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(io_error)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // One that cannot be looked at is gone since the directory was read: the pod went.
        if is_record(&name)
            && let Ok(metadata) = entry.metadata()
        {
            found.insert(name, Stamp::of(&metadata));
        }
    }
    Ok(found)
}

/// Whether a file of that name in the directory of records is one. Temporary files of the plugin have
/// another ending.
pub(super) fn is_record(name: &str) -> bool {
    name.ends_with(".json") && !name.contains('/') && !name.starts_with('.')
}

/// Reads all records in `directory`. A file that is not a record does not hide the others: it comes
/// back as an error beside them. A directory that is not there has no records.
pub(super) fn read_all(directory: &Path) -> (BTreeMap<EndpointRef, Record>, Vec<RecordError>) {
    let mut records = BTreeMap::new();
    let mut errors = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return (records, errors),
        Err(source) => {
            errors.push(RecordError::Io { path: directory.to_owned(), source });
            return (records, errors);
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // Temporary files of the plugin have another ending.
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            // Gone since the directory was read: the pod went.
            Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                errors.push(RecordError::Io { path, source });
                continue;
            }
        };
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) => {
                records.insert(record.key.clone(), record);
            }
            Err(source) => errors.push(RecordError::Malformed { path, source }),
        }
    }
    (records, errors)
}

/// A hardware address from its text.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_record_does_not_hide_the_good_ones() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let good = r#"{"version":1,"network":"n","containerId":"c1","interface":"eth0",
            "netns":"/x","hostInterface":"slu0","mac":"02:00:00:00:00:01",
            "hostMac":"02:00:00:00:00:02","addresses":["10.0.0.2","fd00::2"],
            "podNamespace":"shop","podName":"web-0","bootId":"b"}"#;
        fs::write(dir.path().join("good.json"), good).expect("a file");
        fs::write(dir.path().join("torn.json"), &good[..40]).expect("a file");
        fs::write(dir.path().join("other.tmp"), "x").expect("a file");
        let (records, errors) = read_all(dir.path());
        assert_eq!(records.len(), 1);
        let record = records.values().next().expect("one record");
        assert_eq!(record.label(), "shop/web-0");
        assert_eq!(record.addresses.len(), 2);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("torn.json"), "{}", errors[0]);
    }

    #[test]
    fn hardware_addresses_are_six_bytes() {
        assert_eq!(parse_mac("02:00:00:00:00:ff"), Some([2, 0, 0, 0, 0, 255]));
        for bad in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:00:00:00:00:zz"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
