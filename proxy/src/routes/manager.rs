//! Brings the kernel's routes to what they should be and keeps them there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::diff::{Diff, diff};
use super::kernel::{self, Way};
use super::watch::{Event, Watch};
use super::{Conflict, HostGwRoute, KernelRoute, RouteError, RouteOp, SkipReason, Skipped};

/// A change that the kernel refused.
#[derive(Debug)]
pub struct Failed {
    /// The CIDR whose route is not as it should be.
    pub cidr: IpNet,
    /// The failing call and the kernel's answer.
    pub error: RouteError,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// What one [`RouteManager::reconcile`] did and could not do.
#[derive(Debug, Default)]
pub struct RouteReport {
    /// Routes made or replaced.
    pub replaced: Vec<HostGwRoute>,
    /// Routes deleted.
    pub deleted: Vec<KernelRoute>,
    /// Routes that were right already.
    pub unchanged: Vec<HostGwRoute>,
    /// Routes not made because a foreign one is there.
    pub conflicts: Vec<Conflict>,
    /// Routes not made because they would lead nowhere.
    pub skipped: Vec<Skipped>,
    /// Changes the kernel refused; the others were made.
    pub failed: Vec<Failed>,
}

impl RouteReport {
    /// Whether every route that should be there is.
    pub fn is_complete(&self) -> bool {
        self.conflicts.is_empty() && self.skipped.is_empty() && self.failed.is_empty()
    }
}

/// Owner of all routes under [`super::ROUTE_PROTOCOL`] in one network namespace.
pub struct RouteManager {
    handle: Handle,
    connection: JoinHandle<()>,
    watch: Watch,
    /// What stands in the kernel by our knowledge: next hop and outgoing interface.
    installed: BTreeMap<IpNet, (IpAddr, u32)>,
    /// CIDRs that should have a route.
    wanted: BTreeSet<IpNet>,
    /// Next hops that led nowhere at the last reconcile.
    waiting: BTreeSet<IpAddr>,
    /// The last reconcile left something undone that a link or an address may make possible.
    unsettled: bool,
}

impl fmt::Debug for RouteManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteManager")
            .field("installed", &self.installed)
            .field("unsettled", &self.unsettled)
            .finish_non_exhaustive()
    }
}

impl Drop for RouteManager {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl RouteManager {
    /// Opens the sockets in the calling thread's network namespace. Must be called inside a tokio
    /// runtime; changes nothing yet.
    pub fn open() -> Result<Self, RouteError> {
        // Before the first list, so that nothing is missed in between.
        let watch = Watch::open()?;
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| RouteError::new("open netlink", e))?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            watch,
            installed: BTreeMap::new(),
            wanted: BTreeSet::new(),
            waiting: BTreeSet::new(),
            unsettled: false,
        })
    }

    /// The routes of ours that the kernel holds.
    pub async fn list(&self) -> Result<Vec<KernelRoute>, RouteError> {
        let mut routes = kernel::list(&self.handle).await?;
        routes.retain(KernelRoute::is_ours);
        Ok(routes)
    }

    /// Makes the kernel hold exactly `desired` under our protocol: replaces in place, then removes
    /// what is stale, also what an earlier run of the agent left. Foreign routes are not touched.
    ///
    /// An error means that the kernel could not be asked at all; single failures are in the report.
    /// The caller tries again after a while in both cases: not every cause shows as an event.
    pub async fn reconcile(&mut self, desired: &[HostGwRoute]) -> Result<RouteReport, RouteError> {
        // Stays so if this is cut short.
        self.unsettled = true;
        self.waiting.clear();
        self.wanted = desired.iter().map(|r| r.cidr).collect();
        let mut report = RouteReport::default();
        let mut reachable = Vec::with_capacity(desired.len());
        let mut interfaces: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for route in desired {
            match self.check_next_hop(route.via).await {
                Ok(interface) => {
                    interfaces.insert(route.via, interface);
                    reachable.push(route.clone());
                }
                Err(reason) => {
                    self.waiting.insert(route.via);
                    report.skipped.push(Skipped { node: route.node.clone(), reason });
                }
            }
        }
        let Diff { ops, conflicts, unchanged } =
            diff(&reachable, &kernel::list(&self.handle).await?);
        report.conflicts = conflicts;
        report.unchanged = unchanged;
        for op in ops {
            match op {
                RouteOp::Replace(route) => match kernel::replace(&self.handle, &route).await {
                    Ok(()) => report.replaced.push(route),
                    Err(error) => report.failed.push(Failed { cidr: route.cidr, error }),
                },
                RouteOp::Delete(route) => match kernel::delete(&self.handle, &route).await {
                    Ok(()) => report.deleted.push(route),
                    Err(error) => report.failed.push(Failed { cidr: route.cidr, error }),
                },
            }
        }
        self.installed = report
            .replaced
            .iter()
            .chain(&report.unchanged)
            .map(|r| (r.cidr, (r.via, interfaces.get(&r.via).copied().unwrap_or_default())))
            .collect();
        // A conflict is over when the foreign route goes, which is an event of its own.
        self.unsettled = !report.skipped.is_empty() || !report.failed.is_empty();
        Ok(report)
    }

    /// The interface a next hop is on, or why it is none for us.
    async fn check_next_hop(&self, via: IpAddr) -> Result<u32, SkipReason> {
        match kernel::way_to(&self.handle, via).await {
            Ok(Way::OnLink(interface)) => Ok(interface),
            Ok(Way::Local) => Err(SkipReason::OwnAddress(via)),
            Ok(Way::Gateway(gateway)) => Err(SkipReason::NotOnLink { via, gateway }),
            Err(e) => Err(SkipReason::Unreachable { via, problem: e.source.to_string() }),
        }
    }

    /// Waits until something happened that calls for another [`reconcile`](Self::reconcile): a
    /// route of ours was deleted or changed by someone else, a foreign one came or went where ours
    /// should be or on the way to a next hop, a link or an address changed that matters, or events
    /// were lost.
    ///
    /// Cancel-safe. Returns after the first such event; a caller that waits a moment before it
    /// reconciles handles a burst at once.
    pub async fn changed(&mut self) -> Result<(), RouteError> {
        loop {
            let events = self.watch.next().await?;
            if events.iter().any(|event| self.matters(event)) {
                return Ok(());
            }
        }
    }

    /// Our own changes come back as events too; they do not differ from `installed`.
    fn matters(&self, event: &Event) -> bool {
        let installed = |route: &KernelRoute| {
            self.installed.get(&route.cidr).is_some_and(|(via, _)| Some(*via) == route.via)
        };
        match event {
            Event::Lost => true,
            Event::RouteGone(route) if route.is_ours() => installed(route),
            Event::RouteSet(route) if route.is_ours() => !installed(route),
            // `ip route replace` of ours by a foreign one shows as the latter alone.
            Event::RouteSet(route) | Event::RouteGone(route) => {
                self.wanted.contains(&route.cidr)
                    || self.waiting.iter().any(|via| route.cidr.contains(via))
            }
            Event::Link { index, up } => {
                (self.unsettled && *up) || (!up && self.installed.values().any(|(_, i)| i == index))
            }
            Event::Address => self.unsettled,
        }
    }
}
