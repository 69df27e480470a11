//! Routes to the other nodes, as the loop sees them.

use std::path::Path;
use std::time::Duration;

use sluice_model::Node;

use super::due::Due;
use super::problems::Problems;
use crate::cli::SluicedArgs;
use crate::routes::{
    Desired, Encapsulation, RouteError, RouteManager, RouteReport, TUNNEL_DEVICE, TunnelState,
    VxlanConfig, desired, prepare_forwarding, strict_reverse_paths,
};
use crate::view::{RouteHow, RouteRow};

/// After a failure of netlink itself.
const RETRY: Duration = Duration::from_secs(1);
/// How long a route that the kernel refused waits for the next attempt.
const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// Keeps the routes, and remembers what could not be done.
pub(super) struct Routes {
    manager: RouteManager,
    encapsulation: Encapsulation,
    /// Why nothing is encapsulated, though it was asked for.
    fallback: Option<&'static str>,
    config: VxlanConfig,
    /// The MTU of pods that was asked for.
    mtu: Option<u32>,
    tunnel: Option<TunnelState>,
    /// All pod CIDRs of other nodes, with a route or without.
    rows: Vec<RouteRow>,
    /// The kernel refused something that it may accept later.
    refused: bool,
    due: Due,
    problems: Problems,
}

impl Routes {
    /// Opens netlink in this process's network namespace, and asks whether the kernel can do what the
    /// flags say; changes nothing yet.
    pub(super) async fn open(args: &SluicedArgs) -> Result<Self, RouteError> {
        let config = VxlanConfig { id: args.vxlan_id, port: args.vxlan_port };
        let mut encapsulation = args.encapsulation;
        let mut fallback = None;
        let manager = if encapsulation == Encapsulation::Never {
            RouteManager::open()?
        } else {
            RouteManager::open_with_tunnel(config)?
        };
        if encapsulation != Encapsulation::Never && !manager.kernel_has("vxlan").await {
            encapsulation = Encapsulation::Never;
            fallback = Some(
                "the kernel has no vxlan devices (CONFIG_VXLAN): nothing is encapsulated, and \
                 nodes that do not share a link with this one are skipped",
            );
        }
        if let Some(fallback) = fallback {
            tracing::warn!("--encapsulation: {fallback}");
        }
        Ok(Self {
            manager,
            encapsulation,
            fallback,
            config,
            mtu: args.mtu,
            tunnel: None,
            rows: Vec::new(),
            refused: false,
            due: Due::new(),
            problems: Problems::default(),
        })
    }

    /// Resolves when the routes should be looked at again; never where the part is off.
    pub(super) async fn touched(routes: &mut Option<Self>) {
        let Some(routes) = routes else { return std::future::pending().await };
        let again = routes.refused.then_some(RETRY_REFUSED);
        routes.due.wait("the routes", routes.manager.changed(), again, RETRY).await;
    }

    /// Brings the kernel's routes to what the nodes ask for.
    pub(super) async fn reconcile<'a>(
        &mut self,
        own: &str,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) {
        self.due.looked();
        let wanted = desired(own, nodes, self.encapsulation);
        let mut problems = Problems::default();
        if let Some(fallback) = self.fallback {
            problems.add("--encapsulation", fallback);
        }
        let proc_sys = Path::new("/proc/sys");
        let [v4, v6] = families(&wanted);
        for problem in prepare_forwarding(proc_sys, v4, v6) {
            problems.add(problem.name.clone(), problem);
        }
        for name in strict_reverse_paths(proc_sys) {
            let message = "the reverse path filter is strict: packets that arrive on another \
                           interface than the way back are dropped; 2 is loose";
            problems.add(name, message);
        }
        match self.manager.reconcile_all(&wanted).await {
            Ok(report) => self.note(&wanted, &report, &mut problems),
            Err(error) => {
                self.refused = true;
                problems.add("routes", error);
            }
        }
        problems.succeed(&mut self.problems);
    }

    fn note(&mut self, wanted: &Desired, report: &RouteReport, problems: &mut Problems) {
        for route in &report.replaced {
            tracing::info!("route set: {route}");
        }
        for route in &report.deleted {
            tracing::info!(pods = %route.cidr, "stale route removed");
        }
        if report.tunnel_removed {
            tracing::info!("{TUNNEL_DEVICE} removed: nothing is encapsulated");
        }
        for skipped in wanted.skipped.iter().chain(&report.skipped) {
            problems.add(format!("Node {}", skipped.node), skipped);
        }
        for conflict in &report.conflicts {
            problems.add(format!("route {}", conflict.wanted.cidr), conflict);
        }
        for failed in &report.failed {
            problems.add(format!("route {}", failed.cidr), failed);
        }
        if let Some(error) = &report.tunnel_error {
            problems.add(TUNNEL_DEVICE, error);
        }
        if self.encapsulation != Encapsulation::Never && wanted.tunnel.is_none() {
            let message =
                "no tunnel: the Node object of this node has no InternalIP, or is not there";
            problems.add(TUNNEL_DEVICE, message);
        }
        if let (Some(tunnel), Some(mtu)) = (report.tunnel, self.mtu)
            && mtu > tunnel.mtu
        {
            let fits = tunnel.mtu;
            problems
                .add("--mtu", format!("encapsulated packets of {mtu} bytes do not fit: {fits} do"));
        }
        self.tunnel = report.tunnel;
        self.refused = !report.failed.is_empty() || report.tunnel_error.is_some();
        self.rows = report.unchanged.iter().chain(&report.replaced).map(RouteRow::from).collect();
        self.rows.extend(wanted.skipped.iter().chain(&report.skipped).map(RouteRow::from));
        let pods = |cidr| wanted.routes.iter().any(|route| route.cidr == cidr);
        let behind = |cidr| {
            wanted.tunnel.iter().flat_map(|tunnel| &tunnel.pods).any(|pods| pods.cidr == cidr)
        };
        // Those to nodes' addresses are no rows.
        let conflicts = report.conflicts.iter().filter(|conflict| {
            let cidr = conflict.wanted.cidr;
            pods(cidr) || behind(cidr)
        });
        self.rows.extend(conflicts.map(RouteRow::from));
        self.rows.sort();
    }

    /// The MTU of new pods; `None`: that of the interface with the default route.
    pub(super) fn pod_mtu(&self) -> Option<u32> {
        self.mtu.or_else(|| self.tunnel_mtu())
    }

    /// The largest packet that the tunnel takes, in bytes.
    pub(super) fn tunnel_mtu(&self) -> Option<u32> {
        self.tunnel.map(|tunnel| tunnel.mtu)
    }

    /// The tunnel's device, where there is to be one.
    pub(super) fn tunnel_device(&self) -> Option<&'static str> {
        (self.encapsulation != Encapsulation::Never).then_some(TUNNEL_DEVICE)
    }

    /// How packets get to other nodes, for people.
    pub(super) fn text(&self) -> String {
        let VxlanConfig { id, port } = self.config;
        let how = match self.encapsulation {
            Encapsulation::Never => return "host-gw".to_owned(),
            Encapsulation::CrossSubnet => "host-gw, across subnets vxlan",
            Encapsulation::Always => "vxlan",
        };
        match self.tunnel {
            None => format!("{how}, VNI {id}, UDP port {port}, no device"),
            Some(TunnelState { mtu, pods, .. }) => {
                format!("{how}, VNI {id}, UDP port {port}, MTU {mtu}, {pods} pod CIDRs behind it")
            }
        }
    }

    /// The pod CIDRs of other nodes: with a route, and without one.
    pub(super) fn rows(&self) -> &[RouteRow] {
        &self.rows
    }

    /// Those with a route of ours.
    pub(super) fn held(&self) -> impl Iterator<Item = &RouteRow> {
        let held = |row: &&RouteRow| matches!(row.how, RouteHow::Direct | RouteHow::Vxlan);
        self.rows.iter().filter(held)
    }

    /// What is wrong, subject and message.
    pub(super) fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.problems.iter()
    }
}

/// Whether there are pods of other nodes with IPv4, and with IPv6 addresses.
fn families(wanted: &Desired) -> [bool; 2] {
    let behind = wanted.tunnel.iter().flat_map(|tunnel| tunnel.pods.iter().map(|pods| pods.cidr));
    let cidrs: Vec<_> = wanted.routes.iter().map(|route| route.cidr).chain(behind).collect();
    [true, false].map(|v4| cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == v4))
}
