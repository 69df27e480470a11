//! Brings the kernel's routes to what they should be and keeps them there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::diff::{Diff, diff};
use super::encapsulation::{VxlanConfig, gateway, mac, overhead};
use super::kernel::{self, Table};
use super::settle::{Settled, Way, settle};
use super::vxlan::{self, DeviceSpec, Entries};
use super::watch::{Event, Netlink};
use super::{
    Conflict, Desired, Encapsulated, KernelRoute, PodRoute, RouteError, RouteOp, SkipReason,
    Skipped, Tunnel,
};

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
    pub replaced: Vec<PodRoute>,
    /// Routes deleted.
    pub deleted: Vec<KernelRoute>,
    /// Routes that were right already.
    pub unchanged: Vec<PodRoute>,
    /// Routes not made because a foreign one is there.
    pub conflicts: Vec<Conflict>,
    /// Routes not made because they would lead nowhere.
    pub skipped: Vec<Skipped>,
    /// Changes the kernel refused; the others were made.
    pub failed: Vec<Failed>,
    /// The tunnel's device, where there is to be one.
    pub tunnel: Option<TunnelState>,
    /// What of the tunnel could not be brought about.
    pub tunnel_error: Option<RouteError>,
    /// The device and the rules of an earlier run, removed.
    pub tunnel_removed: bool,
}

/// The tunnel as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelState {
    /// Index of its device.
    pub device: u32,
    /// MTU of the device, in bytes: pods' packets must not be larger.
    pub mtu: u32,
    /// Pod CIDRs behind it.
    pub pods: usize,
}

impl RouteReport {
    /// Whether every route that should be there is.
    pub fn is_complete(&self) -> bool {
        self.conflicts.is_empty()
            && self.skipped.is_empty()
            && self.failed.is_empty()
            && self.tunnel_error.is_none()
    }
}

/// Owner of all routes under [`super::ROUTE_PROTOCOL`], and of the tunnel's device, in one network
/// namespace.
pub struct RouteManager {
    netlink: Netlink,
    config: VxlanConfig,
    /// What stands in the kernel by our knowledge: next hop and outgoing interface.
    installed: BTreeMap<IpNet, (IpAddr, u32)>,
    /// CIDRs that should have a route.
    wanted: BTreeSet<IpNet>,
    /// Addresses whose way was looked up at the last reconcile.
    hops: BTreeSet<IpAddr>,
    /// What the tunnel needs by our knowledge; `None` without one.
    tunnel: Option<TunnelPart>,
    /// Nothing of a tunnel that an earlier run had is left.
    swept: bool,
    /// The last reconcile left something undone that a link or an address may make possible.
    unsettled: bool,
}

/// What is told apart in events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TunnelPart {
    device: Option<u32>,
    underlay: Option<u32>,
}

impl fmt::Debug for RouteManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteManager")
            .field("installed", &self.installed)
            .field("tunnel", &self.tunnel)
            .field("unsettled", &self.unsettled)
            .finish_non_exhaustive()
    }
}

impl RouteManager {
    /// Opens the sockets in the calling thread's network namespace. Must be called inside a tokio
    /// runtime; changes nothing yet. A manager that is opened so makes no tunnel.
    ///
    /// # Errors
    ///
    /// Those of netlink.
    pub fn open() -> Result<Self, RouteError> {
        Ok(Self::with(Netlink::open(false)?, VxlanConfig::default()))
    }

    /// The same for a manager that makes a tunnel where [`Desired::tunnel`] says so.
    ///
    /// # Errors
    ///
    /// Those of netlink.
    pub fn open_with_tunnel(config: VxlanConfig) -> Result<Self, RouteError> {
        Ok(Self::with(Netlink::open(true)?, config))
    }

    fn with(netlink: Netlink, config: VxlanConfig) -> Self {
        Self {
            netlink,
            config,
            installed: BTreeMap::new(),
            wanted: BTreeSet::new(),
            hops: BTreeSet::new(),
            tunnel: None,
            swept: false,
            unsettled: false,
        }
    }

    /// Whether the kernel has devices of a kind that cannot be made without settings, such as
    /// `vxlan`. Changes nothing, but a module may be loaded.
    pub async fn kernel_has(&self, kind: &str) -> bool {
        vxlan::kernel_has(&self.netlink.handle, kind).await
    }

    /// The routes of ours that the kernel's main table holds.
    ///
    /// # Errors
    ///
    /// Those of netlink.
    pub async fn list(&self) -> Result<Vec<KernelRoute>, RouteError> {
        let mut routes = kernel::list_table(&self.netlink.handle, Table::Main).await?;
        routes.retain(KernelRoute::is_ours);
        Ok(routes)
    }

    /// Index of the tunnel's device, if there is one.
    ///
    /// # Errors
    ///
    /// Those of netlink.
    pub async fn tunnel_device(&self) -> Result<Option<u32>, RouteError> {
        vxlan::index(&self.netlink.handle).await
    }

    /// [`Self::reconcile_all`] without a tunnel.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn reconcile(&mut self, desired: &[PodRoute]) -> Result<RouteReport, RouteError> {
        self.reconcile_all(&Desired { routes: desired.to_vec(), ..Desired::default() }).await
    }

    /// Makes the kernel hold exactly what is desired under our protocol: replaces in place, then
    /// removes what is stale, also what an earlier run of the agent left. Foreign routes are not
    /// touched. Without [`Desired::tunnel`] the tunnel's device goes, and all that hangs on it.
    ///
    /// # Errors
    ///
    /// An error means that the kernel could not be asked at all; single failures are in the report.
    /// The caller tries again after a while in both cases: not every cause shows as an event.
    pub async fn reconcile_all(&mut self, desired: &Desired) -> Result<RouteReport, RouteError> {
        // Stays so if this is cut short.
        self.unsettled = true;
        let tunnel = desired.tunnel.as_ref();
        self.wanted = desired.routes.iter().map(|route| route.cidr).collect();
        self.wanted.extend(tunnel.iter().flat_map(|tunnel| &tunnel.pods).map(|pods| pods.cidr));
        self.hops = desired.hops().collect();
        let mut ways = BTreeMap::new();
        for hop in &self.hops {
            ways.insert(*hop, kernel::way_to(&self.netlink.handle, *hop).await);
        }
        let mut settled = settle(desired, &ways);
        let mut report = RouteReport::default();
        let made = match tunnel {
            Some(tunnel) => self.make_tunnel(tunnel, &mut settled, &mut report).await?,
            None => {
                self.tunnel = None;
                None
            }
        };
        let device = report.tunnel.map(|state| state.device);
        let (through, nodes) = match (tunnel, device, &made) {
            (Some(_), Some(device), Some(made)) => {
                let routes = |all: &[Encapsulated], sources: &[IpAddr]| -> Vec<PodRoute> {
                    all.iter().map(|to| PodRoute::encapsulated(to, device, sources)).collect()
                };
                (routes(&settled.pods, &made.sources), routes(&settled.nodes, &[]))
            }
            _ => Default::default(),
        };
        report.skipped = settled.skipped;
        let routes: Vec<PodRoute> = settled.direct.into_iter().chain(through).collect();
        let held = kernel::list(&self.netlink.handle).await?;
        let of = |wanted: Table| -> Vec<KernelRoute> {
            held.iter().filter(|(table, _)| *table == wanted).map(|(_, r)| r.clone()).collect()
        };
        self.apply(Table::Main, diff(&routes, &of(Table::Main), device), &mut report).await;
        self.installed = report
            .replaced
            .iter()
            .chain(&report.unchanged)
            .map(|route| {
                let straight = match ways.get(&route.via) {
                    Some(Way::OnLink(interface)) => *interface,
                    _ => 0,
                };
                let interface = route.tunnel.map_or(straight, |hop| hop.device);
                (route.cidr, (route.via, interface))
            })
            .collect();
        // They are not told one by one, but for what went wrong.
        let mut of_nodes = RouteReport::default();
        self.apply(Table::Nodes, diff(&nodes, &of(Table::Nodes), device), &mut of_nodes).await;
        report.conflicts.append(&mut of_nodes.conflicts);
        report.failed.append(&mut of_nodes.failed);
        let finished = match (tunnel, made) {
            (Some(tunnel), Some(made)) => self.finish_tunnel(tunnel, &nodes, &made).await,
            // The device could not be made: what there is may still be of use.
            (Some(_), None) => Ok(()),
            (None, _) if self.swept => Ok(()),
            (None, _) => self.remove_tunnel().await.map(|removed| {
                report.tunnel_removed = removed;
                self.swept = true;
            }),
        };
        if let Err(error) = finished {
            report.tunnel_error.get_or_insert(error);
        }
        // A conflict is over when the foreign route goes, which is an event of its own.
        self.unsettled = !report.skipped.is_empty()
            || !report.failed.is_empty()
            || report.tunnel_error.is_some();
        Ok(report)
    }

    async fn apply(&self, table: Table, diff: Diff, report: &mut RouteReport) {
        let Diff { ops, conflicts, unchanged } = diff;
        report.conflicts = conflicts;
        report.unchanged = unchanged;
        for op in ops {
            match op {
                RouteOp::Replace(route) => {
                    match kernel::replace(&self.netlink.handle, table, &route).await {
                        Ok(()) => report.replaced.push(route),
                        Err(error) => report.failed.push(Failed { cidr: route.cidr, error }),
                    }
                }
                RouteOp::Delete(route) => {
                    match kernel::delete(&self.netlink.handle, table, &route).await {
                        Ok(()) => report.deleted.push(route),
                        Err(error) => report.failed.push(Failed { cidr: route.cidr, error }),
                    }
                }
            }
        }
    }

    /// Makes the device and what routes through it need. `None` where that cannot be: then what would
    /// go through it is skipped.
    async fn make_tunnel(
        &mut self,
        tunnel: &Tunnel,
        settled: &mut Settled,
        report: &mut RouteReport,
    ) -> Result<Option<Made>, RouteError> {
        self.swept = false;
        let (underlay, sources) =
            vxlan::underlay(&self.netlink.handle, tunnel.own, &tunnel.own_addrs).await?;
        let any = |v4| if v4 { [0u8; 4].into() } else { [0u16; 8].into() };
        let spec = DeviceSpec {
            config: self.config,
            local: if sources.contains(&tunnel.own) {
                tunnel.own
            } else {
                any(tunnel.own.is_ipv4())
            },
            mac: mac(tunnel.own),
            mtu: underlay.mtu.saturating_sub(overhead(tunnel.own)),
        };
        let mut part = TunnelPart { device: None, underlay: underlay.interface };
        let made = self.make_device(&spec, settled, report).await;
        part.device = made.as_ref().ok().map(|made| made.device);
        self.tunnel = Some(part);
        match made {
            Ok(made) => {
                let pods = settled.pods.len();
                report.tunnel = Some(TunnelState { device: made.device, mtu: spec.mtu, pods });
                Ok(Some(Made { sources, ..made }))
            }
            Err(error) => {
                for pods in settled.pods.drain(..) {
                    settled.skipped.push(Skipped {
                        node: pods.node,
                        cidr: Some(pods.cidr),
                        reason: SkipReason::NoTunnel(error.to_string()),
                    });
                }
                settled.nodes.clear();
                report.tunnel_error = Some(error);
                Ok(None)
            }
        }
    }

    async fn make_device(
        &self,
        spec: &DeviceSpec,
        settled: &Settled,
        report: &mut RouteReport,
    ) -> Result<Made, RouteError> {
        let device = vxlan::ensure(&self.netlink.handle, spec).await?;
        let held = Entries::read(&self.netlink.handle, device).await?;
        let mut wanted = Entries::default();
        for to in settled.pods.iter().chain(&settled.nodes) {
            wanted.forwarding.insert((mac(to.peer), to.peer));
            wanted.neighbours.insert((gateway(&to.cidr, to.peer), mac(to.peer)));
        }
        report.tunnel_error = wanted.add(&self.netlink.handle, device, &held).await.err();
        Ok(Made { device, wanted, held, sources: Vec::new() })
    }

    /// Sends packets of pods to the routes of nodes, where there are any, and removes what no route
    /// needs any more.
    async fn finish_tunnel(
        &self,
        tunnel: &Tunnel,
        nodes: &[PodRoute],
        made: &Made,
    ) -> Result<(), RouteError> {
        let families: BTreeSet<bool> =
            nodes.iter().map(|route| route.cidr.addr().is_ipv4()).collect();
        let ranges = tunnel.own_cidrs.iter().copied();
        let ranges = ranges.filter(|cidr| families.contains(&cidr.addr().is_ipv4())).collect();
        vxlan::set_rules(&self.netlink.handle, &ranges).await?;
        made.wanted.remove_others(&self.netlink.handle, made.device, &made.held).await?;
        Ok(())
    }

    /// Whether there was one.
    async fn remove_tunnel(&self) -> Result<bool, RouteError> {
        let rules = vxlan::set_rules(&self.netlink.handle, &BTreeSet::new()).await?;
        let device = vxlan::remove(&self.netlink.handle).await?;
        Ok(device || rules > 0)
    }

    /// Waits until something happened that calls for another [`reconcile`](Self::reconcile): a
    /// route of ours was deleted or changed by someone else, a foreign one came or went where ours
    /// should be or on the way to a next hop, a link or an address changed that matters, something of
    /// the tunnel changed, or events were lost.
    ///
    /// Cancel-safe. Returns after the first such event; a caller that waits a moment before it
    /// reconciles handles a burst at once.
    ///
    /// # Errors
    ///
    /// Those of netlink.
    pub async fn changed(&mut self) -> Result<(), RouteError> {
        loop {
            let events = self.netlink.watch.next().await?;
            if events.iter().any(|event| self.matters(event)) {
                return Ok(());
            }
        }
    }

    /// Our own changes come back as events too. Those of routes do not differ from `installed`; the
    /// others lead to one more look, which finds all as it should be.
    fn matters(&self, event: &Event) -> bool {
        let installed = |route: &KernelRoute| {
            self.installed.get(&route.cidr).is_some_and(|(via, interface)| {
                Some(*via) == route.via && Some(*interface) == route.interface
            })
        };
        let tunnel = self.tunnel.as_ref();
        match event {
            Event::Lost => true,
            Event::RouteGone(route) if route.is_ours() => installed(route),
            Event::RouteSet(route) if route.is_ours() => !installed(route),
            // `ip route replace` of ours by a foreign one shows as the latter alone.
            Event::RouteSet(route) | Event::RouteGone(route) => {
                self.wanted.contains(&route.cidr)
                    || self.hops.iter().any(|hop| route.cidr.contains(hop))
            }
            Event::Link { index, up, .. } => {
                (self.unsettled && *up)
                    || (!up && self.installed.values().any(|(_, i)| i == index))
                    // Its MTU may have changed.
                    || tunnel.is_some_and(|tunnel| {
                        [tunnel.device, tunnel.underlay].contains(&Some(*index))
                    })
            }
            Event::Address => self.unsettled || tunnel.is_some(),
            Event::NodeRoute | Event::Rule => tunnel.is_some(),
            Event::OtherDefault => false,
            Event::Neighbour { index } => {
                tunnel.is_some_and(|tunnel| tunnel.device == Some(*index))
            }
        }
    }
}

/// The tunnel's device, and what hangs on it.
struct Made {
    device: u32,
    wanted: Entries,
    held: Entries,
    sources: Vec<IpAddr>,
}
