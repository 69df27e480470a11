//! Pods come and go: requests of the plugin, and what is noticed without one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use inotify::{EventMask, EventOwned};

use super::host_ports;
use super::links;
use super::run::Agent;
use crate::control::{Answer, Call, EndpointDel, EndpointRef, Request};

/// The record of a pod that the plugin makes is there before its interface is, and the request comes
/// last. What happens to a record is looked at by itself only if no request came by then.
const SETTLE: Duration = Duration::from_millis(100);

/// What was noticed and not looked at yet.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    /// Records that were written or removed, and when to look at them.
    files: BTreeMap<String, Instant>,
    /// The node's addresses changed.
    addresses: Option<Instant>,
    /// It is not known what changed.
    all: Option<Instant>,
    /// The directory of records is gone, and with it the watch on it.
    unwatched: bool,
}

impl Noticed {
    /// Takes in what happened in the directory of records.
    pub(super) fn record(&mut self, event: &EventOwned, now: Instant) {
        if event.mask.intersects(EventMask::Q_OVERFLOW | EventMask::IGNORED) {
            self.unwatched |= event.mask.contains(EventMask::IGNORED);
            self.all.get_or_insert(now + SETTLE);
        }
        let name = event.name.as_ref().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|name| super::records::is_record(name)) {
            self.files.insert(name.to_owned(), now + SETTLE);
        }
    }

    /// It is not known what changed.
    pub(super) fn lost(&mut self, now: Instant) {
        self.all.get_or_insert(now + SETTLE);
    }

    /// When to look.
    pub(super) fn due(&self) -> Option<Instant> {
        self.files.values().copied().chain(self.addresses).chain(self.all).min()
    }

    /// A request explained what happened to a record.
    fn explained(&mut self, file: &str) {
        self.files.remove(file);
    }

    /// The records whose time has come.
    fn files_due(&mut self, now: Instant) -> Vec<String> {
        let due: Vec<String> =
            self.files.iter().filter(|(_, at)| **at <= now).map(|(file, _)| file.clone()).collect();
        for file in &due {
            self.files.remove(file);
        }
        due
    }

    /// Whether the watch on the directory has to be made anew; asked once.
    pub(super) fn take_unwatched(&mut self) -> bool {
        std::mem::take(&mut self.unwatched)
    }

    /// The watch could not be made.
    pub(super) fn still_unwatched(&mut self) {
        self.unwatched = true;
    }
}

/// Ports of the node that pods cannot get: subject and message, by the pod's container and interface.
pub(super) type PortProblems = BTreeMap<String, BTreeMap<String, String>>;

impl Agent {
    /// Answers all who wait. What takes long is done for all new pods at once.
    pub(super) fn answer_all(&mut self, calls: Vec<Call>) {
        let added = calls.iter().filter_map(|call| match &call.request {
            Request::EndpointAdd(add) => Some((&add.key, add.record.as_deref()?)),
            _ => None,
        });
        self.endpoints.prepare(&self.dataplane, added);
        for call in calls {
            let interface = self.interface_to_unlink(&call.request);
            let answer = self.answer(call.request);
            if let Some((ifindex, name)) = interface.filter(|_| answer.ok) {
                self.unlinks.begin(ifindex, name, call.answer);
                continue;
            }
            // A client that left wants no answer.
            let _ = call.answer.send(answer);
        }
        self.endpoints.end_of_calls();
    }

    /// The plugin has made a pod's record and interface.
    pub(super) fn add_pod(&mut self, key: &EndpointRef, record: Option<&str>) -> Answer {
        if let Some(file) = record {
            self.noticed.explained(file);
        }
        if let Err(error) = self.endpoints.add(&mut self.dataplane, key, record) {
            return Answer::error(error.to_string(), "see sluiced's log");
        }
        // Before the answer: nothing in the pod runs until then.
        self.sync_policies();
        self.sync_ports_of(key);
        let pod = self.endpoints.record(key).map(host_ports::pod_name);
        let protected = pod.map_or(Ok(()), |pod| self.policies.check(&self.dataplane, &pod));
        match self.endpoints.check(key).and(protected) {
            Ok(()) => Answer::done(),
            Err(error) => Answer::error(error, "see sluiced's log"),
        }
    }

    /// The interface that the plugin asks the agent to delete, if that is the one that the pod is known
    /// by.
    fn interface_to_unlink(&self, request: &Request) -> Option<(u32, String)> {
        let Request::EndpointDel(del) = request else { return None };
        let name = del.host_interface.as_deref()?;
        let ifindex = self.endpoints.interface_of(&del.key, name)?;
        (del.host_ifindex == Some(ifindex)).then(|| (ifindex, name.to_owned()))
    }

    /// The plugin is about to take a pod away.
    pub(super) fn remove_pod(&mut self, del: &EndpointDel) -> Answer {
        let key = &del.key;
        let known = self.endpoints.record(key).map(|record| record.host_interface.as_str());
        if del.host_interface.as_deref().is_some_and(|name| known.is_some_and(|it| it != name)) {
            // Another network's, of the same container: that one is not meant.
            return Answer::done();
        }
        let removed = self.endpoints.remove(&mut self.dataplane, key);
        self.sync_policies();
        self.sync_ports_of(key);
        match removed {
            Ok(()) => Answer::done(),
            Err(error) => Answer::error(error.to_string(), "see sluiced's log"),
        }
    }

    /// Interfaces or addresses changed.
    pub(super) fn links_changed(&mut self, events: Vec<links::Event>) {
        let now = Instant::now();
        for event in events {
            let (ifindex, gone) = match event {
                links::Event::Gone(ifindex) => {
                    self.unlinks.gone(ifindex);
                    (ifindex, true)
                }
                links::Event::Qdisc(ifindex) => (ifindex, false),
                links::Event::Address => {
                    self.noticed.addresses.get_or_insert(now + SETTLE);
                    continue;
                }
                links::Event::Lost => {
                    self.noticed.lost(now);
                    continue;
                }
            };
            let key = self.endpoints.at(ifindex);
            if let Err(error) = self.endpoints.interface_changed(&mut self.dataplane, ifindex, gone)
            {
                tracing::error!("pods of this node: {error}");
            }
            if let Some(key) = key {
                self.sync_ports_of(&key);
            }
        }
        self.sync_policies();
    }

    /// Looks at what was noticed.
    pub(super) fn look_at_noticed(&mut self) {
        let now = Instant::now();
        if self.noticed.all.is_some_and(|at| at <= now) {
            self.noticed.all = None;
            self.noticed.addresses = None;
            self.noticed.files.clear();
            return self.sync_endpoints();
        }
        for file in self.noticed.files_due(now) {
            let before = self.endpoints.key_of(&file);
            if let Err(error) = self.endpoints.touched(&mut self.dataplane, &file) {
                tracing::error!("pods of this node: {error}");
            }
            let keys: BTreeSet<EndpointRef> =
                before.into_iter().chain(self.endpoints.key_of(&file)).collect();
            for key in keys {
                self.sync_ports_of(&key);
            }
        }
        self.sync_policies();
        if self.noticed.addresses.is_some_and(|at| at <= now) {
            self.noticed.addresses = None;
            self.sync_host_ports();
        }
    }

    /// Looks at all pods.
    pub(super) fn sync_endpoints(&mut self) {
        if let Err(error) = self.endpoints.sync(&mut self.dataplane) {
            tracing::error!("pods of this node: {error}");
        }
        self.sync_policies();
        self.sync_host_ports();
        self.wakes.changed(Instant::now());
    }

    /// Brings the ports of the node that pods ask for to what their records and the node's addresses
    /// say.
    pub(super) fn sync_host_ports(&mut self) {
        let node = self.cache.node(&self.node);
        let mut addrs = host_ports::node_addrs(node);
        if node.is_none() {
            addrs.extend(self.reconciler.restored_addrs());
        }
        self.node_addrs = addrs;
        self.policies.node(&mut self.dataplane, &self.node_addrs);
        let (wanted, problems) = host_ports::wanted(self.endpoints.with_ports(), &self.node_addrs);
        self.tell_ports(problems.values());
        self.port_problems = problems;
        self.reconciler.host_ports(&mut self.dataplane, wanted);
    }

    /// The same for one pod, with the node's addresses as they were seen last: an event tells of
    /// those that come.
    fn sync_ports_of(&mut self, key: &EndpointRef) {
        let id = host_ports::id(key);
        let record = self.endpoints.record(key).filter(|record| !record.host_ports.is_empty());
        let (mut wanted, mut problems) = host_ports::wanted(record.into_iter(), &self.node_addrs);
        let problems = problems.remove(&id);
        self.tell_ports(problems.iter());
        match problems {
            Some(problems) => self.port_problems.insert(id.clone(), problems),
            None => self.port_problems.remove(&id),
        };
        let pod = wanted.remove(&id);
        if self.reconciler.host_ports_of(&mut self.dataplane, &id, pod) {
            self.wakes.changed(Instant::now());
        }
    }

    /// Logs the problems that are new.
    fn tell_ports<'a>(&self, problems: impl Iterator<Item = &'a BTreeMap<String, String>>) {
        let known = |subject: &str, message: &str| {
            let mut all = self.port_problems.values();
            all.any(|of_pod| of_pod.get(subject).is_some_and(|known| known == message))
        };
        for (subject, message) in problems.flatten() {
            if !known(subject, message) {
                tracing::warn!("{subject}: {message}");
            }
        }
    }
}

/// The addresses of the node at the start.
pub(super) fn first_addrs(restored: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let mut addrs = host_ports::node_addrs(None);
    addrs.extend(restored);
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(mask: EventMask, name: Option<&str>) -> EventOwned {
        let (_, stream) = watch();
        EventOwned { wd: stream, mask, cookie: 0, name: name.map(Into::into) }
    }

    /// A watch descriptor cannot be made up.
    fn watch() -> (inotify::Inotify, inotify::WatchDescriptor) {
        let inotify = inotify::Inotify::init().expect("inotify");
        let mask = inotify::WatchMask::MOVED_TO;
        let wd = inotify.watches().add("/", mask).expect("a watch");
        (inotify, wd)
    }

    #[test]
    fn what_a_request_explains_is_not_looked_at_again() {
        let now = Instant::now();
        let mut noticed = Noticed::default();
        for name in ["slu1,10.0.0.2.json", "slu2,10.0.0.3.json", ".new", "notes.txt"] {
            noticed.record(&event(EventMask::MOVED_TO, Some(name)), now);
        }
        noticed.explained("slu1,10.0.0.2.json");
        assert_eq!(noticed.due(), Some(now + SETTLE));
        assert!(noticed.files_due(now).is_empty(), "it has time to settle");
        assert_eq!(noticed.files_due(now + SETTLE), ["slu2,10.0.0.3.json"]);
        assert_eq!(noticed.due(), None);
    }

    #[test]
    fn lost_events_ask_for_a_look_at_everything() {
        let now = Instant::now();
        let mut noticed = Noticed::default();
        noticed.record(&event(EventMask::Q_OVERFLOW, None), now);
        assert_eq!(noticed.all, Some(now + SETTLE));
        assert!(!noticed.take_unwatched());
        noticed.record(&event(EventMask::IGNORED, None), now + SETTLE);
        assert_eq!(noticed.due(), Some(now + SETTLE), "the first one counts");
        assert!(noticed.take_unwatched());
    }
}
