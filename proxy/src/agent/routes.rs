//! Routes to the other nodes, as the loop sees them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use sluice_model::Node;

use crate::routes::{
    HostGwRoute, RouteError, RouteManager, RouteReport, desired, prepare_forwarding,
    strict_reverse_paths,
};
use crate::view::RouteRow;

/// A burst of events is answered once.
const SETTLE: Duration = Duration::from_millis(50);
/// After a failure of netlink itself.
const RETRY: Duration = Duration::from_secs(1);
/// How long a route that the kernel refused waits for the next attempt.
const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// Keeps the routes, and remembers what could not be done.
pub(super) struct Routes {
    manager: RouteManager,
    held: Vec<HostGwRoute>,
    /// The kernel refused something that it may accept later.
    refused: bool,
    /// What is wrong, subject and message; each is logged once.
    problems: BTreeSet<(String, String)>,
}

impl Routes {
    /// Opens netlink in this process's network namespace; changes nothing yet.
    pub(super) fn open() -> Result<Self, RouteError> {
        let manager = RouteManager::open()?;
        Ok(Self { manager, held: Vec::new(), refused: false, problems: BTreeSet::new() })
    }

    /// Resolves when the routes should be looked at again; never where the part is off.
    pub(super) async fn touched(routes: &mut Option<Self>) {
        let Some(routes) = routes else { return std::future::pending().await };
        let limit = if routes.refused { RETRY_REFUSED } else { Duration::MAX };
        match tokio::time::timeout(limit, routes.manager.changed()).await {
            Ok(Ok(())) => tokio::time::sleep(SETTLE).await,
            Ok(Err(error)) => {
                tracing::warn!("{error}; looking at the routes again in {RETRY:?}");
                tokio::time::sleep(RETRY).await;
            }
            // Time to try again.
            Err(_) => {}
        }
    }

    /// Brings the kernel's routes to what the nodes ask for.
    pub(super) async fn reconcile<'a>(
        &mut self,
        own: &str,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) {
        let wanted = desired(own, nodes);
        let mut problems: BTreeSet<(String, String)> = BTreeSet::new();
        let proc_sys = Path::new("/proc/sys");
        let has = |six: bool| wanted.routes.iter().any(|route| route.cidr.addr().is_ipv6() == six);
        for problem in prepare_forwarding(proc_sys, has(false), has(true)) {
            problems.insert((problem.name.clone(), problem.to_string()));
        }
        for name in strict_reverse_paths(proc_sys) {
            let message = "the reverse path filter is strict: packets that arrive on another \
                           interface than the way back are dropped; 2 is loose";
            problems.insert((name, message.to_owned()));
        }
        for skipped in &wanted.skipped {
            problems.insert((format!("Node {}", skipped.node), skipped.to_string()));
        }
        match self.manager.reconcile(&wanted.routes).await {
            Ok(report) => self.note(&report, &mut problems),
            Err(error) => {
                self.refused = true;
                problems.insert(("routes".to_owned(), error.to_string()));
            }
        }
        for (subject, message) in problems.difference(&self.problems) {
            tracing::warn!("{subject}: {message}");
        }
        self.problems = problems;
    }

    fn note(&mut self, report: &RouteReport, problems: &mut BTreeSet<(String, String)>) {
        for route in &report.replaced {
            tracing::info!(pods = %route.cidr, via = %route.via, node = route.node, "route set");
        }
        for route in &report.deleted {
            tracing::info!(pods = %route.cidr, "stale route removed");
        }
        for skipped in &report.skipped {
            problems.insert((format!("Node {}", skipped.node), skipped.to_string()));
        }
        for conflict in &report.conflicts {
            problems.insert((format!("route {}", conflict.wanted.cidr), conflict.to_string()));
        }
        for failed in &report.failed {
            problems.insert((format!("route {}", failed.cidr), failed.error.to_string()));
        }
        self.refused = !report.failed.is_empty();
        self.held = report.unchanged.iter().chain(&report.replaced).cloned().collect();
        self.held.sort();
    }

    /// The routes that are there.
    pub(super) fn rows(&self) -> Vec<RouteRow> {
        self.held
            .iter()
            .map(|route| RouteRow {
                destination: route.cidr.to_string(),
                via: route.via,
                node: route.node.clone(),
            })
            .collect()
    }

    /// What is wrong, subject and message.
    pub(super) fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.problems.iter().map(|(subject, message)| (subject.as_str(), message.as_str()))
    }
}
