//! The pods of this node: from the plugin's records to programs on their interfaces.
//!
//! A request of the plugin, a record that changed and an interface that went cost work for one pod.
//! [`Endpoints::sync`] looks at all of them: at the start, now and then, and whenever it is not known
//! what changed.

mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice};
use sluice_abi::{Addr, Endpoint};
use sluice_model::ObjectName;
use sluice_netlink::NetlinkError;

use super::attaching::{self, Prepared};
use super::host_ports::pod_name;
use super::leaks;
use super::links::Links;
use super::policy::LocalPods;
use super::records::{self, Record, Stamp};
use crate::control::EndpointRef;
use crate::dataplane::{Attachment, Dataplane, DataplaneError, TcHook};
use crate::wake::namespaces;

/// The pods that the agent serves.
#[derive(Debug)]
pub struct Endpoints {
    directory: PathBuf,
    /// Whether pods get programs at all.
    on: bool,
    /// What was read of the records, by the name of the file.
    files: BTreeMap<String, Held>,
    /// The pods that are there, by container and interface.
    pods: BTreeMap<EndpointRef, Pod>,
    /// Pods that the plugin is taking away: their record is still there, but they are served no
    /// more.
    leaving: BTreeSet<EndpointRef>,
    /// Pods that the plugin is taking away, by the index of their interface.
    departing: BTreeMap<u32, Departing>,
    /// What the kernel's map holds, as it was read last and written since.
    kernel: BTreeMap<Addr, Endpoint>,
    /// The queueing disciplines of what interfaces receive, by index.
    ingress: BTreeMap<u32, String>,
    /// Pods with an address that the map had no room for.
    starved: BTreeSet<EndpointRef>,
    /// What is wrong with the directory itself.
    trouble: Option<(String, String)>,
    /// Writes that found the map full, ever.
    failures: u64,
    next_number: u32,
    /// What was done beforehand for pods that are being made, by their interface.
    prepared: BTreeMap<String, Prepared>,
    work: Work,
}

/// What was done for pods, ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Records that were read from disk.
    pub records_read: u64,
    /// Interfaces that the kernel was asked about.
    pub interfaces_read: u64,
    /// Interfaces that programs were attached to.
    pub attached: u64,
    /// Times that the kernel's map of pods was read as a whole.
    pub map_dumps: u64,
    /// Entries of it that were written or deleted.
    pub map_writes: u64,
}

/// A record's file, as it was read last.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Held {
    Record(Stamp, Box<Record>),
    /// What is wrong with it.
    Bad(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Pod {
    /// The name of its record's file.
    file: String,
    record: Record,
    ifindex: u32,
    number: u32,
    how: How,
    /// Something on its interface is meant to see its packets.
    shaped: bool,
    /// What is wrong, subject and message.
    problems: Vec<(String, String)>,
}

/// What is left of a pod that the plugin is taking away, until its interface is gone: no packet of its
/// is to pass that policies deny, and those that pass may still be written down.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Departing {
    name: ObjectName,
    interface: String,
    addrs: Vec<Addr>,
}

/// How a pod is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
enum How {
    /// Not at all: pods get no programs.
    Off,
    /// Its programs could not be attached.
    Failed,
    By(TcHook),
}

/// Cookie of the pod's network namespace; 0 if it cannot be found out. Then policies do not see what the
/// pod says to itself through a Service; `aloud`, that is told.
fn cookie_of(record: &Record, aloud: bool) -> u64 {
    if record.netns.as_os_str().is_empty() {
        return 0;
    }
    namespaces::cookie_of(&record.netns).unwrap_or_else(|error| {
        if aloud {
            let netns = record.netns.display();
            tracing::warn!(pod = record.label(), "network namespace {netns}: {error}");
        }
        0
    })
}

impl Pod {
    fn is_served(&self) -> bool {
        matches!(self.how, How::By(_))
    }
}

impl Endpoints {
    /// No pods yet; records are in `directory`. Numbers that the kernel's map has stay with their
    /// pods. With `on` false no pod gets programs.
    pub fn new(directory: PathBuf, on: bool) -> Self {
        Self {
            directory,
            on,
            files: BTreeMap::new(),
            pods: BTreeMap::new(),
            leaving: BTreeSet::new(),
            departing: BTreeMap::new(),
            kernel: BTreeMap::new(),
            ingress: BTreeMap::new(),
            starved: BTreeSet::new(),
            trouble: None,
            failures: 0,
            next_number: 1,
            prepared: BTreeMap::new(),
            work: Work::default(),
        }
    }

    /// Brings the kernel to what the records say: attaches programs to new pods, forgets those that
    /// went. Looks at every pod, but reads only the records that changed.
    ///
    /// # Errors
    ///
    /// Only where the maps cannot be read or written. A pod whose programs cannot be attached is a
    /// problem of its own, which [`Endpoints::problems`] tells.
    pub fn sync(&mut self, dataplane: &mut Dataplane) -> Result<(), DataplaneError> {
        self.read_directory();
        self.kernel = dataplane.endpoints()?.into_iter().collect();
        self.work.map_dumps += 1;
        let highest = self.kernel.values().map(|e| e.id).max().unwrap_or(0);
        self.next_number = self.next_number.max(highest + 1);

        // Of two records of one attachment the last one counts.
        let mut there: BTreeMap<EndpointRef, (String, Record)> = BTreeMap::new();
        for (file, held) in &self.files {
            if let Held::Record(_, record) = held {
                there.insert(record.key.clone(), (file.clone(), (**record).clone()));
            }
        }
        self.leaving.retain(|key| there.contains_key(key));
        let departed: Vec<u32> = self
            .departing
            .iter()
            .filter(|(ifindex, pod)| !has_interface(&pod.interface, **ifindex))
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in departed {
            self.departed(dataplane, ifindex)?;
        }
        let lost = |key: &EndpointRef, pod: &Pod| {
            let stands = there.contains_key(key) && !self.leaving.contains(key);
            // A damaged record takes nothing from a pod that runs.
            !stands && !matches!(self.files.get(&pod.file), Some(Held::Bad(_)))
        };
        let gone: Vec<EndpointRef> = self
            .pods
            .iter()
            .filter(|(key, pod)| lost(key, pod))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &gone {
            self.forget(dataplane, key)?;
        }
        let damaged = self.pods.iter().filter(|(key, _)| !there.contains_key(*key));
        let damaged: Vec<_> =
            damaged.map(|(_, pod)| (pod.file.clone(), pod.record.clone())).collect();
        let mut links = None;
        self.read_ingress(&mut links);
        for (file, record) in there.into_values().chain(damaged) {
            if !self.leaving.contains(&record.key) {
                self.serve(dataplane, &mut links, &file, record)?;
            }
        }
        let served = self.pods.values().filter(|pod| pod.is_served());
        let wanted: BTreeSet<Addr> = served
            .flat_map(|pod| pod.record.addresses.iter().map(|addr| Addr::from(*addr)))
            .collect();
        let stale: Vec<Addr> =
            self.kernel.keys().filter(|addr| !wanted.contains(addr)).copied().collect();
        for addr in stale {
            self.delete(dataplane, addr)?;
        }
        self.feed(dataplane)?;
        dataplane.detach_gone()?;
        Ok(())
    }

    /// The plugin has made a pod's record and interface. With the name of the record's file the work
    /// is that for one pod.
    ///
    /// # Errors
    ///
    /// As [`Endpoints::sync`].
    pub fn add(
        &mut self,
        dataplane: &mut Dataplane,
        key: &EndpointRef,
        file: Option<&str>,
    ) -> Result<(), DataplaneError> {
        // The same attachment may have been taken away before.
        self.leaving.remove(key);
        if let Some(file) = file.filter(|file| records::is_record(file)) {
            self.read(file);
            if let Some(Held::Record(_, record)) = self.files.get(file)
                && record.key == *key
            {
                let record = (**record).clone();
                return self.serve(dataplane, &mut None, file, record);
            }
        }
        self.sync(dataplane)
    }

    /// Several pods are about to be added, each with the name of its record's file: does beforehand,
    /// side by side, what takes long. To be ended by [`Endpoints::end_of_calls`].
    pub fn prepare<'a>(
        &mut self,
        dataplane: &Dataplane,
        added: impl Iterator<Item = (&'a EndpointRef, &'a str)>,
    ) {
        if !self.on {
            return;
        }
        let interfaces: Vec<(String, TcHook)> = added
            .filter(|(key, file)| records::is_record(file) && !self.pods.contains_key(*key))
            .filter_map(|(key, file)| {
                let (_, record) = records::read(&self.directory.join(file)).ok()??;
                (record.key == *key).then(|| (record.host_interface, record.hook.into()))
            })
            .collect();
        // One alone gains nothing.
        if interfaces.len() > 1 {
            self.prepared = attaching::attach_all(dataplane, &interfaces);
        }
    }

    /// All that was prepared has been added, or never will be.
    pub fn end_of_calls(&mut self) {
        self.prepared.clear();
    }

    /// The index of the pod's interface on the node, if it is known under this name.
    pub fn interface_of(&self, key: &EndpointRef, name: &str) -> Option<u32> {
        let pod = self.pods.get(key).filter(|pod| pod.record.host_interface == name)?;
        Some(pod.ifindex).filter(|ifindex| *ifindex != 0)
    }

    /// The plugin is about to take a pod away: it is forgotten though its record still stands.
    ///
    /// # Errors
    ///
    /// As [`Endpoints::sync`].
    pub fn remove(
        &mut self,
        dataplane: &mut Dataplane,
        key: &EndpointRef,
    ) -> Result<(), DataplaneError> {
        self.leaving.insert(key.clone());
        if let Some(pod) = self.pods.get(key).filter(|pod| pod.is_served()) {
            let departing = Departing {
                name: pod_name(&pod.record),
                interface: pod.record.host_interface.clone(),
                addrs: pod.record.addresses.iter().map(|addr| Addr::from(*addr)).collect(),
            };
            self.departing.insert(pod.ifindex, departing);
        }
        self.forget(dataplane, key)?;
        self.feed(dataplane)
    }

    /// A file in the directory of records was written or removed.
    ///
    /// # Errors
    ///
    /// As [`Endpoints::sync`].
    pub fn touched(&mut self, dataplane: &mut Dataplane, file: &str) -> Result<(), DataplaneError> {
        if !records::is_record(file) {
            return Ok(());
        }
        let before = self.files.get(file).cloned();
        self.read(file);
        match self.files.get(file) {
            Some(Held::Record(_, record)) => {
                if self.leaving.contains(&record.key) {
                    return Ok(());
                }
                let record = (**record).clone();
                self.serve(dataplane, &mut None, file, record)
            }
            Some(Held::Bad(_)) => Ok(()),
            None => {
                let key = match before {
                    Some(Held::Record(_, record)) => Some(record.key.clone()),
                    _ => self.pods.iter().find(|(_, p)| p.file == file).map(|(key, _)| key.clone()),
                };
                let Some(key) = key else { return Ok(()) };
                self.leaving.remove(&key);
                // It may have another record by now.
                if self.pods.get(&key).is_some_and(|pod| pod.file == file) {
                    self.forget(dataplane, &key)?;
                    self.feed(dataplane)?;
                }
                Ok(())
            }
        }
    }

    /// An interface went, or its queueing disciplines changed.
    ///
    /// # Errors
    ///
    /// As [`Endpoints::sync`].
    pub fn interface_changed(
        &mut self,
        dataplane: &mut Dataplane,
        ifindex: u32,
        gone: bool,
    ) -> Result<(), DataplaneError> {
        let mut links = None;
        if gone {
            self.departed(dataplane, ifindex)?;
            self.ingress.remove(&ifindex);
            dataplane.unpin_pod(ifindex)?;
        }
        let Some(pod) = self.pods.values().find(|pod| pod.ifindex == ifindex) else {
            return Ok(());
        };
        let (file, record) = (pod.file.clone(), pod.record.clone());
        if !gone {
            self.read_ingress(&mut links);
        }
        self.serve(dataplane, &mut links, &file, record)?;
        if gone { self.feed(dataplane) } else { Ok(()) }
    }

    /// The interface of a pod that the plugin was taking away is gone. Whatever it sent after it was
    /// forgotten, while its interface was still there, is to be forgotten too; another pod that has
    /// such an address by now has seen to that.
    fn departed(&mut self, dataplane: &mut Dataplane, ifindex: u32) -> Result<(), DataplaneError> {
        let Some(pod) = self.departing.remove(&ifindex) else { return Ok(()) };
        for addr in pod.addrs {
            if !self.kernel.contains_key(&addr) {
                dataplane.forget(addr)?;
            }
        }
        Ok(())
    }

    /// Reads what changed in the directory.
    fn read_directory(&mut self) {
        let listed = match records::list(&self.directory) {
            Ok(listed) => listed,
            // The pods are as they were, as far as anybody knows.
            Err(error) => {
                let trouble =
                    (error.to_string(), "pods that come or go are not noticed".to_owned());
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("{}: {}", trouble.0, trouble.1);
                }
                self.trouble = Some(trouble);
                return;
            }
        };
        self.trouble = None;
        self.files.retain(|file, _| listed.contains_key(file));
        for (file, stamp) in listed {
            let known = self.files.get(&file);
            if !known.is_some_and(|held| matches!(held, Held::Record(s, _) if *s == stamp)) {
                self.read(&file);
            }
        }
    }

    /// Reads one file.
    fn read(&mut self, file: &str) {
        self.work.records_read += 1;
        let held = match records::read(&self.directory.join(file)) {
            Ok(None) => {
                self.work.records_read -= 1;
                self.files.remove(file);
                return;
            }
            Ok(Some((stamp, record))) => Held::Record(stamp, Box::new(record)),
            Err(error) => {
                let error = error.to_string();
                if self.files.get(file) != Some(&Held::Bad(error.clone())) {
                    tracing::warn!("{error}: {}", self.verdict(file));
                }
                Held::Bad(error)
            }
        };
        self.files.insert(file.to_owned(), held);
    }

    /// What becomes of the pod of a record that cannot be read.
    fn verdict(&self, file: &str) -> &'static str {
        if self.pods.values().any(|pod| pod.file == file) {
            "the pod it belongs to is served by what the record said before"
        } else {
            "the pod it belongs to is not served"
        }
    }

    /// Brings the kernel to what one record says. `links` is opened when it is needed.
    fn serve(
        &mut self,
        dataplane: &mut Dataplane,
        links: &mut Option<Links>,
        file: &str,
        record: Record,
    ) -> Result<(), DataplaneError> {
        let key = record.key.clone();
        let before = self.pods.get(&key).cloned();
        self.work.interfaces_read += 1;
        let (read, attached) = match self.prepared.remove(&record.host_interface) {
            Some(Prepared { link, attached }) => (link, Some(attached)),
            None => (opened(links).and_then(|links| links.get(&record.host_interface)), None),
        };
        let link = match read {
            Ok(Some(link)) => link,
            // The plugin is at work on it, or the pod's namespace is gone.
            Ok(None) => return self.forget(dataplane, &key),
            Err(error) => {
                let message = format!("interface {}: {error}", record.host_interface);
                tracing::warn!("{}: {message}", record.label());
                if let Some(pod) = self.pods.get_mut(&key) {
                    pod.problems = vec![(record.label(), message)];
                }
                return Ok(());
            }
        };
        let ifindex = link.index;
        let same = before.as_ref().filter(|pod| pod.ifindex == ifindex);
        let mut problems = Vec::new();
        let how = match same.map(|pod| pod.how.clone()) {
            _ if !self.on => How::Off,
            Some(how @ How::By(_)) => how,
            _ => {
                let here = attached.filter(|it| it.as_ref().is_ok_and(|at| at.ifindex == ifindex));
                self.attach(dataplane, &record, here, &mut problems)
            }
        };
        let known = record.addresses.iter().find_map(|addr| self.kernel.get(&Addr::from(*addr)));
        let known = known.filter(|known| known.ifindex == ifindex);
        let cookie = match known.map_or(0, |known| known.cookie) {
            0 if self.on => cookie_of(&record, before.is_none()),
            cookie => cookie,
        };
        let number = match (same, known) {
            (Some(pod), _) => pod.number,
            (None, Some(known)) => known.id,
            (None, None) => {
                self.next_number += 1;
                self.next_number - 1
            }
        };
        let macs = (records::parse_mac(&record.mac), records::parse_mac(&record.host_mac));
        if self.on && (macs.0.is_none() || macs.1.is_none()) {
            problems.push((
                record.label(),
                format!("hardware address {:?} or {:?} is none", record.mac, record.host_mac),
            ));
        }
        let addrs: BTreeSet<Addr> = record.addresses.iter().map(|addr| Addr::from(*addr)).collect();
        if let Some(before) = &before {
            // What it had and has no more.
            for addr in before.record.addresses.iter().map(|addr| Addr::from(*addr)) {
                if !addrs.contains(&addr) && self.is_of(addr, before.ifindex) {
                    self.delete(dataplane, addr)?;
                }
            }
        }
        self.starved.remove(&key);
        let ingress = self.ingress.get(&ifindex).map(String::as_str);
        let shaped = link.is_shaped(ingress, how == How::By(TcHook::Clsact));
        let flags = if shaped { Endpoint::NO_FAST_PATH } else { 0 };
        // A pod without its programs is reached through the stack, where nothing is skipped.
        if let (How::By(_), (Some(mac), Some(host_mac))) = (&how, macs) {
            for addr in addrs {
                let endpoint = Endpoint {
                    ifindex,
                    id: number,
                    mac,
                    host_mac,
                    flags,
                    cookie,
                    netns: link.netns,
                    reserved: 0,
                };
                if let Some(error) = self.put(dataplane, addr, endpoint)? {
                    problems.push((format!("pod address {}", addr.to_ip()), error));
                    self.starved.insert(key.clone());
                }
            }
        }
        let pod = Pod { file: file.to_owned(), record, ifindex, number, how, shaped, problems };
        self.tell(before.as_ref(), &pod);
        self.pods.insert(key, pod);
        Ok(())
    }

    /// Reads which interfaces have a queueing discipline for what they receive; what is known stays
    /// where the kernel does not answer.
    fn read_ingress(&mut self, links: &mut Option<Links>) {
        let read = match opened(links) {
            Ok(links) => links.ingress(),
            Err(error) => Err(error),
        };
        match read {
            Ok(found) => self.ingress = found,
            Err(error) => tracing::warn!("listing queueing disciplines: {error}"),
        }
    }

    fn attach(
        &mut self,
        dataplane: &mut Dataplane,
        record: &Record,
        done: Option<Result<Attachment, DataplaneError>>,
        problems: &mut Vec<(String, String)>,
    ) -> How {
        self.work.attached += 1;
        let attach = || dataplane.attach_pod(&record.host_interface, record.hook.into());
        match done.unwrap_or_else(attach) {
            Ok(attachment) => How::By(attachment.hook),
            Err(error) => {
                problems.push((record.label(), error.to_string()));
                How::Failed
            }
        }
    }

    /// Logs what is new about a pod.
    fn tell(&self, before: Option<&Pod>, pod: &Pod) {
        if pod.how != How::Off && before.is_none() {
            tracing::info!(
                pod = pod.record.label(),
                interface = pod.record.host_interface,
                addresses = ?pod.record.addresses,
                programs = %pod.how,
                "serving pod"
            );
        }
        for problem in &pod.problems {
            if before.is_none_or(|before| !before.problems.contains(problem)) {
                tracing::warn!("{}: {}", problem.0, problem.1);
            }
        }
    }

    /// Takes one pod out of the kernel's map. Its programs go with its interface.
    fn forget(
        &mut self,
        dataplane: &mut Dataplane,
        key: &EndpointRef,
    ) -> Result<(), DataplaneError> {
        self.starved.remove(key);
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        let (ifindex, addrs) = (pod.ifindex, pod.record.addresses.clone());
        for addr in addrs.into_iter().map(Addr::from) {
            if self.is_of(addr, ifindex) {
                self.delete(dataplane, addr)?;
            }
        }
        if let Some(pod) = self.pods.remove(key)
            && pod.how != How::Off
        {
            tracing::info!(pod = pod.record.label(), "pod is gone");
        }
        Ok(())
    }

    /// Gives room that became free to those that found none.
    fn feed(&mut self, dataplane: &mut Dataplane) -> Result<(), DataplaneError> {
        let mut hungry = std::mem::take(&mut self.starved).into_iter();
        while let Some(key) = hungry.next() {
            let Some(pod) = self.pods.get(&key) else { continue };
            let (file, record) = (pod.file.clone(), pod.record.clone());
            self.serve(dataplane, &mut None, &file, record)?;
            if self.starved.contains(&key) {
                // No room left: the others wait on.
                self.starved.extend(hungry);
                break;
            }
        }
        Ok(())
    }

    /// Whether the kernel's map has the address at that interface.
    fn is_of(&self, addr: Addr, ifindex: u32) -> bool {
        self.kernel.get(&addr).is_some_and(|endpoint| endpoint.ifindex == ifindex)
    }

    /// Writes an entry unless it is there; what is wrong if there is no room.
    fn put(
        &mut self,
        dataplane: &mut Dataplane,
        addr: Addr,
        endpoint: Endpoint,
    ) -> Result<Option<String>, DataplaneError> {
        match self.kernel.get(&addr) {
            Some(held) if *held == endpoint => return Ok(None),
            // Another pod had it, and went while no agent was there: its flows are not this one's.
            Some(held) if held.ifindex != endpoint.ifindex => self.delete(dataplane, addr)?,
            // It may have sent more since it was forgotten.
            None if self.departing.values().any(|pod| pod.addrs.contains(&addr)) => {
                dataplane.forget(addr)?;
            }
            _ => {}
        }
        self.work.map_writes += 1;
        match dataplane.put_endpoint(addr, endpoint) {
            Ok(()) => {
                self.kernel.insert(addr, endpoint);
                Ok(None)
            }
            // The pods that have a place keep it; this one is reached through the stack.
            Err(error @ DataplaneError::Full { .. }) => {
                self.failures += 1;
                Ok(Some(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    fn delete(&mut self, dataplane: &mut Dataplane, addr: Addr) -> Result<(), DataplaneError> {
        self.work.map_writes += 1;
        dataplane.delete_endpoint(addr)?;
        self.kernel.remove(&addr);
        Ok(())
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
}

/// A socket in this thread's network namespace, opened where it is not yet.
fn opened(links: &mut Option<Links>) -> Result<&mut Links, NetlinkError> {
    match links {
        Some(links) => Ok(links),
        none => Ok(none.insert(Links::open()?)),
    }
}

/// Whether there is certainly no interface of that name in this process's network namespace.
fn interface_is_gone(name: &str) -> bool {
    matches!(index_of(name), Err(Errno::NODEV))
}

/// Whether the interface of that name may still be the one with this index: another attachment of the
/// same container has the same name.
fn has_interface(name: &str, ifindex: u32) -> bool {
    match index_of(name) {
        Ok(index) => index == ifindex,
        Err(errno) => errno != Errno::NODEV,
    }
}

/// The index that an interface has in this process's network namespace.
fn index_of(name: &str) -> Result<u32, Errno> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    netdevice::name_to_index(&socket, name)
}
