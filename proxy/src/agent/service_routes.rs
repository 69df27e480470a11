//! Where packets to service addresses that nobody has end, as the loop sees it.

use std::time::Duration;

use ipnet::IpNet;

use super::due::Due;
use super::problems::Problems;
use crate::routes::{RouteError, ServiceRouteReport, ServiceRoutes};

/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the blackhole routes of the ranges (`--service-cluster-ip-range`), and remembers what could
/// not be done.
pub(super) struct ServiceRanges {
    routes: ServiceRoutes,
    ranges: Vec<IpNet>,
    failed: bool,
    due: Due,
    problems: Problems,
}

impl ServiceRanges {
    /// Opens netlink in this process's network namespace; changes nothing yet.
    pub(super) fn open(ranges: Vec<IpNet>) -> Result<Self, RouteError> {
        let routes = ServiceRoutes::open()?;
        Ok(Self { routes, ranges, failed: false, due: Due::new(), problems: Problems::default() })
    }

    /// Resolves when the routes should be looked at again.
    pub(super) async fn touched(&mut self) {
        let again = self.failed.then_some(RETRY);
        self.due.wait("the service ranges", self.routes.changed(), again, RETRY).await;
    }

    /// Brings the kernel's routes to what was asked for.
    pub(super) async fn reconcile(&mut self) {
        self.due.looked();
        let mut problems = Problems::default();
        match self.routes.reconcile(self.ranges.iter().copied()).await {
            Ok(report) => {
                self.failed = !report.failed.is_empty();
                note(&report, &mut problems);
            }
            Err(error) => {
                self.failed = true;
                problems.add("service range", error);
            }
        }
        problems.succeed(&mut self.problems);
    }

    /// The ranges, for people.
    pub(super) fn text(&self) -> String {
        self.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Whether any range is known.
    pub(super) fn is_on(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// What is wrong, subject and message.
    pub(super) fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.problems.iter()
    }
}

fn note(report: &ServiceRouteReport, problems: &mut Problems) {
    for range in &report.set {
        tracing::info!(%range, "service addresses that nobody has end here");
    }
    for range in &report.deleted {
        tracing::info!(%range, "no range of service addresses any more");
    }
    for foreign in &report.conflicts {
        let message = format!(
            "{foreign} is there and not ours: packets to service addresses that nobody has go there"
        );
        problems.add(format!("service range {}", foreign.cidr), message);
    }
    for failed in &report.failed {
        problems.add(format!("service range {}", failed.cidr), failed);
    }
}
