//! The pods of this node: from the plugin's records to programs on their interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice};
use sluice_abi::{Addr, Endpoint};

use super::leaks;
use super::records::{self, Record};
use crate::control::EndpointRef;
use crate::dataplane::{Dataplane, DataplaneError};
use crate::view::EndpointNote;

/// The pods that the agent serves.
#[derive(Debug)]
pub struct Endpoints {
    directory: PathBuf,
    /// Whether pods get programs at all.
    on: bool,
    /// What is attached and how, by container and interface.
    attached: BTreeMap<EndpointRef, Attached>,
    /// Records of pods with ports of the node, of those that are there: with programs or without.
    with_ports: Vec<Record>,
    /// Pods that the plugin is taking away: their record is still there, but they are served no
    /// more.
    leaving: BTreeSet<EndpointRef>,
    /// What is wrong, by record: each is logged once.
    problems: BTreeMap<String, String>,
    next_number: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Attached {
    record: Record,
    ifindex: u32,
    number: u32,
    how: String,
}

impl Endpoints {
    /// No pods yet; records are in `directory`. Numbers that the kernel's map has stay with their
    /// pods. With `on` false no pod gets programs.
    pub fn new(directory: PathBuf, on: bool) -> Self {
        Self {
            directory,
            on,
            attached: BTreeMap::new(),
            with_ports: Vec::new(),
            leaving: BTreeSet::new(),
            problems: BTreeMap::new(),
            next_number: 1,
        }
    }

    /// Brings the kernel to what the records say: attaches programs to new pods, forgets those that
    /// went. Work in proportion to the node's pods; called when a record or an interface changed.
    ///
    /// # Errors
    ///
    /// Only where the maps cannot be read or written. A pod whose programs cannot be attached is a
    /// problem of its own, which [`Endpoints::problems`] tells.
    pub fn sync(&mut self, dataplane: &mut Dataplane) -> Result<(), DataplaneError> {
        let (records, errors) = records::read_all(&self.directory);
        let mut problems = BTreeMap::new();
        for error in errors {
            problems.insert(error.to_string(), "the pod it belongs to is not served".to_owned());
        }
        self.leaving.retain(|key| records.contains_key(key));

        let in_kernel: BTreeMap<Addr, Endpoint> = dataplane.endpoints()?.into_iter().collect();
        let highest = in_kernel.values().map(|e| e.id).max().unwrap_or(0);
        self.next_number = self.next_number.max(highest + 1);

        let mut wanted = BTreeMap::new();
        let mut attached = BTreeMap::new();
        let mut with_ports = Vec::new();
        for (key, record) in records {
            if self.leaving.contains(&key) {
                continue;
            }
            // No interface: the plugin is at work on it, or the pod's namespace is gone.
            let Some(ifindex) = interface_index(&record.host_interface) else { continue };
            if !record.host_ports.is_empty() {
                with_ports.push(record.clone());
            }
            if !self.on {
                continue;
            }
            let before = self.attached.get(&key).filter(|a| a.ifindex == ifindex);
            let how = match before {
                Some(before) if before.how != FAILED => before.how.clone(),
                _ => match dataplane.attach_pod(&record.host_interface) {
                    Ok(attachment) => attachment.hook.to_string(),
                    Err(error) => {
                        problems.insert(record.label(), error.to_string());
                        FAILED.to_owned()
                    }
                },
            };
            let (Some(mac), Some(host_mac)) =
                (records::parse_mac(&record.mac), records::parse_mac(&record.host_mac))
            else {
                problems.insert(
                    record.label(),
                    format!("hardware address {:?} or {:?} is none", record.mac, record.host_mac),
                );
                continue;
            };
            let known = record.addresses.iter().find_map(|addr| in_kernel.get(&Addr::from(*addr)));
            let number = match (before, known.filter(|e| e.ifindex == ifindex)) {
                (Some(before), _) => before.number,
                (None, Some(known)) => known.id,
                (None, None) => {
                    self.next_number += 1;
                    self.next_number - 1
                }
            };
            // A pod without its programs is reached through the stack, where nothing is skipped.
            if how != FAILED {
                for addr in &record.addresses {
                    let endpoint = Endpoint { ifindex, id: number, mac, host_mac, flags: 0 };
                    wanted.insert(Addr::from(*addr), endpoint);
                }
            }
            attached.insert(key, Attached { record, ifindex, number, how });
        }

        for addr in in_kernel.keys().filter(|addr| !wanted.contains_key(addr)) {
            dataplane.delete_endpoint(*addr)?;
        }
        for (addr, endpoint) in &wanted {
            if in_kernel.get(addr) != Some(endpoint) {
                match dataplane.put_endpoint(*addr, *endpoint) {
                    // The pods that have a place keep it; this one is reached through the stack.
                    Err(error @ DataplaneError::Full { .. }) => {
                        problems.insert(format!("pod address {}", addr.to_ip()), error.to_string());
                    }
                    result => result?,
                }
            }
        }
        dataplane.detach_gone()?;

        for key in attached.keys().filter(|key| !self.attached.contains_key(key)) {
            let pod = &attached[key];
            tracing::info!(
                pod = pod.record.label(),
                interface = pod.record.host_interface,
                addresses = ?pod.record.addresses,
                programs = pod.how,
                "serving pod"
            );
        }
        for key in self.attached.keys().filter(|key| !attached.contains_key(key)) {
            tracing::info!(pod = self.attached[key].record.label(), "pod is gone");
        }
        for (subject, message) in &problems {
            if self.problems.get(subject) != Some(message) {
                tracing::warn!("{subject}: {message}");
            }
        }
        self.attached = attached;
        self.with_ports = with_ports;
        self.problems = problems;
        Ok(())
    }

    /// Whether a pod is served, after [`Endpoints::sync`]; else why not.
    ///
    /// # Errors
    ///
    /// The reason, for the plugin to pass on.
    pub fn check(&self, key: &EndpointRef) -> Result<(), String> {
        if !self.on {
            return Ok(());
        }
        match self.attached.get(key) {
            Some(pod) if pod.how == FAILED => {
                let label = pod.record.label();
                let why = self.problems.get(&label).map_or("", String::as_str);
                Err(format!("pod {label} cannot be served: {why}"))
            }
            Some(_) => Ok(()),
            None => Err(format!(
                "no record and interface of container {} ({}) under {}",
                key.container_id,
                key.interface,
                self.directory.display()
            )),
        }
    }

    /// Marks a pod as going away; the next [`Endpoints::sync`] forgets it though its record may
    /// still stand.
    pub fn leave(&mut self, key: EndpointRef) {
        self.leaving.insert(key);
    }

    /// The opposite of [`Endpoints::leave`]: the same attachment was made again.
    pub fn enter(&mut self, key: &EndpointRef) {
        self.leaving.remove(key);
    }

    /// The pods that ask for ports of the node, after [`Endpoints::sync`].
    pub(super) fn with_ports(&self) -> impl Iterator<Item = &Record> {
        self.with_ports.iter()
    }

    /// Frees the addresses of pods that went without a DEL.
    pub(super) fn heal(&self) {
        let Some(state_dir) = self.directory.parent() else { return };
        match leaks::heal(state_dir, SystemTime::now(), leaks::GRACE, interface_is_gone) {
            Ok(removed) => {
                for path in removed {
                    tracing::warn!(
                        record = %path.display(),
                        "the pod went without a DEL; its addresses are free again"
                    );
                }
            }
            Err(error) => tracing::warn!("leaks below {}: {error}", state_dir.display()),
        }
    }

    /// What is known of the pod with that address.
    pub fn note(&self, address: IpAddr) -> EndpointNote {
        self.attached
            .values()
            .find(|pod| pod.record.addresses.contains(&address))
            .map(|pod| EndpointNote {
                pod: pod.record.label(),
                interface: pod.record.host_interface.clone(),
                attached: pod.how.clone(),
                host_ports: pod.record.host_ports.iter().map(ToString::to_string).collect(),
            })
            .unwrap_or_default()
    }

    /// Pods with addresses outside these ranges, which other nodes have no routes to: the node's pod
    /// CIDRs were changed while the pods ran.
    pub(super) fn outside<'a>(
        &'a self,
        cidrs: &'a [IpNet],
    ) -> impl Iterator<Item = (String, IpAddr)> + 'a {
        let pods = self.attached.values().map(|pod| &pod.record);
        pods.flat_map(|record| record.addresses.iter().map(|addr| (record.label(), *addr)))
            .filter(|(_, addr)| !cidrs.iter().any(|cidr| cidr.contains(addr)))
    }

    /// Pods whose packets may be larger than so many bytes, with the MTU that they have.
    pub(super) fn with_larger_mtu(&self, mtu: u32) -> impl Iterator<Item = (String, u32)> + '_ {
        let pods = self.attached.values().map(|pod| &pod.record);
        pods.filter(move |record| record.mtu > mtu).map(|record| (record.label(), record.mtu))
    }

    /// How many pods have their programs.
    pub fn served(&self) -> usize {
        self.attached.values().filter(|pod| pod.how != FAILED).count()
    }

    /// How many addresses those have.
    pub fn addresses(&self) -> usize {
        let served = self.attached.values().filter(|pod| pod.how != FAILED);
        served.map(|pod| pod.record.addresses.len()).sum()
    }

    /// What is wrong, subject and message.
    pub fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.problems.iter().map(|(subject, message)| (subject.as_str(), message.as_str()))
    }
}

/// How a pod is attached whose programs could not be.
const FAILED: &str = "none";

/// Whether there is certainly no interface of that name in this process's network namespace.
fn interface_is_gone(name: &str) -> bool {
    let Ok(socket) = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None) else {
        return false;
    };
    matches!(netdevice::name_to_index(&socket, name), Err(Errno::NODEV))
}

/// Index of an interface in this process's network namespace.
fn interface_index(name: &str) -> Option<u32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::name_to_index(&socket, name).ok()
}
