//! Routes that lead nowhere: where packets to service addresses that nobody has end.
//!
//! The kernel's programs translate what is for a service before it is routed. What is left with a
//! destination in a range of service addresses is for no service, and the default route would carry it
//! out of the node, where a router that sends the range here may send it back. One blackhole route a
//! range ends it, under a protocol number of its own.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use super::kernel::{self, RouteError, Table};
use super::watch::{Event, Netlink};
use super::{Failed, KernelRoute, SERVICE_ROUTE_PROTOCOL};

/// Index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

/// What one [`ServiceRoutes::reconcile`] did and could not do.
#[derive(Debug, Default)]
pub struct ServiceRouteReport {
    /// Ranges that have their route now.
    pub set: Vec<IpNet>,
    /// Ranges whose route was removed.
    pub deleted: Vec<IpNet>,
    /// Foreign routes to just these ranges; they stay, and packets go where they lead.
    pub conflicts: Vec<KernelRoute>,
    /// Changes the kernel refused; the others were made.
    pub failed: Vec<Failed>,
}

/// Owner of all routes under [`SERVICE_ROUTE_PROTOCOL`] in one network namespace.
pub struct ServiceRoutes {
    netlink: Netlink,
    wanted: BTreeSet<IpNet>,
}

impl fmt::Debug for ServiceRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceRoutes").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl ServiceRoutes {
    /// Opens the sockets in the calling thread's network namespace. Must be called inside a tokio
    /// runtime; changes nothing yet.
    ///
    /// # Errors
    ///
    /// Those of netlink.
    pub fn open() -> Result<Self, RouteError> {
        Ok(Self { netlink: Netlink::open(false)?, wanted: BTreeSet::new() })
    }

    /// Makes the kernel hold exactly one route for each range, and removes those that an earlier run
    /// left for others. Foreign routes are not touched.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked at all; single failures are in the report.
    pub async fn reconcile(
        &mut self,
        ranges: impl IntoIterator<Item = IpNet>,
    ) -> Result<ServiceRouteReport, RouteError> {
        self.wanted = ranges.into_iter().map(|range| range.trunc()).collect();
        let mut report = ServiceRouteReport::default();
        let routes = kernel::list_table(&self.netlink.handle, Table::Main).await?;
        for range in &self.wanted {
            let at = |route: &&KernelRoute| route.cidr == *range;
            if routes.iter().filter(at).any(|route| route.protocol == SERVICE_ROUTE_PROTOCOL) {
                continue;
            }
            if let Some(foreign) = routes.iter().find(at) {
                report.conflicts.push(foreign.clone());
                continue;
            }
            match kernel::add_blackhole(&self.netlink.handle, range).await {
                Ok(()) => report.set.push(*range),
                Err(error) => report.failed.push(Failed { cidr: *range, error }),
            }
        }
        let stale = |route: &&KernelRoute| {
            route.protocol == SERVICE_ROUTE_PROTOCOL && !self.wanted.contains(&route.cidr)
        };
        for route in routes.iter().filter(stale) {
            match kernel::delete(&self.netlink.handle, Table::Main, route).await {
                Ok(()) => report.deleted.push(route.cidr),
                Err(error) => report.failed.push(Failed { cidr: route.cidr, error }),
            }
        }
        Ok(report)
    }

    /// Resolves when someone changed what is ours, or what stands where ours should be. Cancel-safe.
    ///
    /// # Errors
    ///
    /// Those of netlink.
    pub async fn changed(&mut self) -> Result<(), RouteError> {
        loop {
            let events = self.netlink.watch.next().await?;
            if events.iter().any(|event| self.concerns_us(event)) {
                return Ok(());
            }
        }
    }

    fn concerns_us(&self, event: &Event) -> bool {
        match event {
            Event::Lost => true,
            Event::RouteGone(route) => self.wanted.contains(&route.cidr),
            Event::RouteSet(route) => {
                self.wanted.contains(&route.cidr) != (route.protocol == SERVICE_ROUTE_PROTOCOL)
            }
            // An IPv6 blackhole hangs on the loopback interface and goes with it.
            Event::Link { index, up, .. } => *up && *index == LOOPBACK,
            Event::Address
            | Event::NodeRoute
            | Event::OtherDefault
            | Event::Neighbour { .. }
            | Event::Rule => false,
        }
    }
}
