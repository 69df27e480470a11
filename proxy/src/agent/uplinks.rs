//! The uplinks, as the loop sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use sluice_abi::NodeAddrs;
use sluice_model::Node;

use super::due::Due;
use super::problems::Problems;
use crate::cli::SluicedArgs;
use crate::dataplane::{Dataplane, DataplaneError};
use crate::routes::watch::{Event, Netlink};
use crate::routes::{RouteError, TUNNEL_DEVICE, prepare_forwarding};
use crate::uplinks::{self, Interfaces, Uplinks};

/// After a failure of netlink itself, or of an attachment.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the programs on the uplinks, and what they know of the node.
pub(super) struct UplinkPart {
    on: bool,
    netlink: Netlink,
    /// Names of interfaces that are uplinks whenever they are there.
    named: BTreeSet<String>,
    /// The interfaces that have their programs, by index: name and hook.
    attached: BTreeMap<u32, (String, String)>,
    own: [Option<IpAddr>; 2],
    ports: String,
    /// Something failed that may succeed later.
    unsettled: bool,
    due: Due,
    problems: Problems,
}

impl UplinkPart {
    /// Opens netlink in this process's network namespace; changes nothing yet.
    pub(super) fn open(args: &SluicedArgs) -> Result<Self, RouteError> {
        Ok(Self {
            on: args.uplinks != Uplinks::Off,
            netlink: Netlink::open(false)?,
            named: {
                let mut named = BTreeSet::from([TUNNEL_DEVICE.to_owned()]);
                if let Uplinks::Named(names) = &args.uplinks {
                    named.extend(names.iter().cloned());
                }
                named
            },
            attached: BTreeMap::new(),
            own: [None, None],
            ports: args.snat_port_range.to_string(),
            unsettled: false,
            due: Due::new(),
            problems: Problems::default(),
        })
    }

    /// Resolves when the uplinks should be looked at again.
    pub(super) async fn touched(&mut self) {
        if !self.on {
            return std::future::pending().await;
        }
        let Self { netlink, attached, named, due, unsettled, .. } = self;
        let again = unsettled.then_some(RETRY);
        due.wait("the uplinks", changed(netlink, attached, named), again, RETRY).await;
    }

    /// Brings the kernel to what the flags, the interfaces and the nodes ask for. `nodes` are all of
    /// the cluster's once the source was read to its end; before, nothing that an agent before this
    /// one said is taken back. `tunnel` is the device that packets to other nodes' pods are encapsulated
    /// by: requests that were sent on to them are answered there.
    pub(super) async fn reconcile(
        &mut self,
        dataplane: &mut Dataplane,
        args: &SluicedArgs,
        own: &str,
        nodes: Option<&[&Node]>,
        tunnel: Option<&str>,
    ) {
        self.due.looked();
        self.netlink.watch.skip_all();
        tracing::debug!("looking at the uplinks");
        let mut problems = Problems::default();
        let interfaces = match Interfaces::read(&self.netlink.handle).await {
            Ok(interfaces) => interfaces,
            Err(error) => {
                problems.add("uplinks", format!("list interfaces: {error}"));
                return self.note(problems);
            }
        };
        let known = nodes.unwrap_or_default();
        let node = known.iter().copied().find(|node| node.meta.name.name == own);
        let wanted = interfaces.uplinks(&args.uplinks, node, tunnel);
        self.own = interfaces.own(&wanted, node);
        let result = self.tell(dataplane, args, known, nodes.is_some());
        if let Err(error) = result {
            problems.add("uplinks", error);
        }
        if self.on {
            let [v4, v6] = self.own.map(|ip| ip.is_some());
            for problem in prepare_forwarding(Path::new("/proc/sys"), v4, v6) {
                problems.add(problem.name.clone(), problem);
            }
        }
        self.attach(dataplane, &wanted, &mut problems);
        if let Uplinks::Named(names) = &args.uplinks {
            for name in names.iter().filter(|name| !wanted.values().any(|have| have == *name)) {
                let message = "--uplinks names it, but there is no such interface";
                problems.add(format!("interface {name}"), message);
            }
        }
        if nodes.is_some() || !self.on {
            self.detach(dataplane, &interfaces, &wanted, &mut problems);
        }
        self.note(problems);
    }

    /// Says to the programs which addresses the node has, and whom pods reach with their own.
    fn tell(
        &self,
        dataplane: &mut Dataplane,
        args: &SluicedArgs,
        nodes: &[&Node],
        synced: bool,
    ) -> Result<(), DataplaneError> {
        let held = dataplane.view().node_addrs()?;
        let mut flags = 0;
        if args.masquerade && self.on {
            flags |= NodeAddrs::MASQUERADE;
        }
        if args.masquerade_all {
            flags |= NodeAddrs::SNAT_ALWAYS;
        }
        let mut addrs = uplinks::node_addrs(self.own, args.snat_port_range, flags);
        if !synced {
            // The Node object may name others; flows that there are go on meanwhile.
            if held.v4 != sluice_abi::Addr::default() {
                addrs.v4 = held.v4;
            }
            if held.v6 != sluice_abi::Addr::default() {
                addrs.v6 = held.v6;
            }
            // Whom pods reach with their own addresses is not known yet.
            addrs.flags = (addrs.flags & !NodeAddrs::MASQUERADE) | (held.flags & addrs.flags);
        } else {
            let ranges = uplinks::non_masquerade(
                &args.non_masquerade_cidrs,
                &args.cluster_cidr,
                nodes.iter().copied(),
            );
            dataplane.set_non_masquerade(&ranges)?;
        }
        dataplane.set_node_addrs(addrs)
    }

    fn attach(
        &mut self,
        dataplane: &mut Dataplane,
        wanted: &BTreeMap<u32, String>,
        problems: &mut Problems,
    ) {
        for (index, name) in wanted {
            if self.attached.get(index).is_some_and(|(held, _)| held == name) {
                continue;
            }
            match dataplane.attach_uplink(name) {
                Ok(attachment) => {
                    let hook = attachment.hook.to_string();
                    tracing::info!(interface = name, programs = hook, "serving uplink");
                    self.attached.insert(attachment.ifindex, (name.clone(), hook));
                }
                Err(error) => {
                    problems.add(format!("interface {name}"), error);
                }
            }
        }
    }

    fn detach(
        &mut self,
        dataplane: &mut Dataplane,
        interfaces: &Interfaces,
        wanted: &BTreeMap<u32, String>,
        problems: &mut Problems,
    ) {
        let mut stale: BTreeSet<u32> = self.attached.keys().copied().collect();
        match dataplane.pinned_uplinks() {
            Ok(pinned) => stale.extend(pinned),
            Err(error) => {
                problems.add("uplinks", error);
            }
        }
        for index in stale.iter().filter(|index| !wanted.contains_key(index)) {
            let name = interfaces.names.get(index).map(String::as_str);
            match dataplane.detach_uplink(*index, name) {
                Ok(()) => {
                    self.attached.remove(index);
                    tracing::info!(interface = name.unwrap_or("gone"), "no uplink any more");
                }
                Err(error) => {
                    problems.add("uplinks", error);
                }
            }
        }
    }

    fn note(&mut self, problems: Problems) {
        self.unsettled = !problems.is_empty();
        problems.succeed(&mut self.problems);
    }

    /// Whether the part is on.
    pub(super) fn on(&self) -> bool {
        self.on
    }

    /// Which they are, for people.
    pub(super) fn note_text(&self) -> String {
        if self.attached.is_empty() {
            return "none found".to_owned();
        }
        let mut names: Vec<String> =
            self.attached.values().map(|(name, hook)| format!("{name} by {hook}")).collect();
        names.extend(self.own.iter().flatten().map(|ip| format!("source {ip}")));
        names.push(format!("ports {}", self.ports));
        names.join(", ")
    }

    /// What is wrong, subject and message.
    pub(super) fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.problems.iter()
    }
}

/// Waits for something that may make a difference to the uplinks. Cancel-safe.
async fn changed(
    netlink: &mut Netlink,
    attached: &BTreeMap<u32, (String, String)>,
    named: &BTreeSet<String>,
) -> Result<(), RouteError> {
    let matters = |event: &Event| matters(event, |index| attached.contains_key(&index), named);
    while !netlink.watch.next().await?.iter().any(matters) {}
    Ok(())
}

/// Whether an event may make a difference to the uplinks.
///
/// What happens to a pod's interface does not: what makes an interface an uplink is its name, a default
/// route or an address, and the latter two are events of their own.
fn matters(event: &Event, is_attached: impl FnOnce(u32) -> bool, named: &BTreeSet<String>) -> bool {
    match event {
        Event::Lost | Event::Address | Event::OtherDefault => true,
        Event::Link { index, name, .. } => {
            is_attached(*index) || name.as_ref().is_none_or(|name| named.contains(name))
        }
        Event::RouteSet(route) | Event::RouteGone(route) => route.cidr.prefix_len() == 0,
        Event::NodeRoute | Event::Neighbour { .. } | Event::Rule => false,
    }
}

#[cfg(test)]
mod tests;
