//! Services: from the cache through the planner to the kernel, with what failed tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sluice_abi::BackendFlags;
use sluice_model::{Endpoint, ObjectName};
use sluice_plan::{NodeContext, Plan, Planner, PodPorts, Setback, Tables};
use sluice_store::Cache;

use super::host_ports::Wanted;
use super::node_local::NodeLocal;
use crate::dataplane::{ApplyError, Dataplane, DataplaneError};

/// First wait after a failed write, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Brings services into the kernel.
#[derive(Debug)]
pub struct Reconciler {
    planner: Planner,
    node_local: NodeLocal,
    /// The pods that the planner was told of because of their ports of the node.
    pods: Wanted,
    /// Addresses that the kernel had such ports on when the agent began.
    restored_addrs: BTreeSet<IpAddr>,
    failure: Option<Failure>,
    /// What is missing in the kernel since then.
    setback: Setback,
    /// Writes that the kernel refused, ever, by map.
    failures: BTreeMap<&'static str, u64>,
}

/// A write that the kernel refused: the planner's picture of the kernel is wrong until it is read
/// anew.
#[derive(Debug)]
struct Failure {
    subject: String,
    error: String,
    retry_at: Instant,
    wait: Duration,
}

impl Reconciler {
    /// Starts from what the kernel holds: an agent that was killed goes on with the numbers of the
    /// one before it. To what `node` says of addresses for NodePorts come those that the kernel has,
    /// until [`Reconciler::node`] tells which there really are.
    ///
    /// # Errors
    ///
    /// Where the maps cannot be read.
    pub fn restore(
        dataplane: &Dataplane,
        mut node: NodeContext,
        mut node_local: NodeLocal,
    ) -> Result<Self, DataplaneError> {
        let tables = dataplane.tables()?;
        let here = tables.backends.values().filter(|b| b.flags & BackendFlags::LOCAL != 0);
        node_local.restored(here.map(|backend| backend.addr.to_ip()));
        if !tables.frontends.is_empty() {
            tracing::info!(
                frontends = tables.frontends.len(),
                backends = tables.backends.len(),
                "took over what the kernel holds"
            );
        }
        node.node_port_addrs.extend(tables.node_port_addrs());
        let restored_addrs = tables.host_port_addrs().collect();
        let mut planner = Planner::restore(tables);
        planner.set_node(node);
        Ok(Self {
            planner,
            node_local,
            pods: Wanted::new(),
            restored_addrs,
            failure: None,
            setback: Setback::default(),
            failures: BTreeMap::new(),
        })
    }

    /// The addresses that the kernel had ports of pods on when the agent began: the node's, as far as
    /// is known before its Node object is.
    pub(super) fn restored_addrs(&self) -> &BTreeSet<IpAddr> {
        &self.restored_addrs
    }

    /// States all pods of this node that have ports of the node.
    pub(super) fn host_ports(&mut self, dataplane: &mut Dataplane, wanted: Wanted) {
        if wanted == self.pods {
            return;
        }
        let before = std::mem::replace(&mut self.pods, wanted);
        // Those that went come first: what they had is free for the others.
        for (id, pod) in &before {
            if !self.pods.contains_key(id) {
                let plan = self.planner.host_ports(&PodPorts { ports: Vec::new(), ..pod.clone() });
                self.apply(dataplane, &format_args!("Pod {}", pod.pod), plan);
            }
        }
        let changed = self.pods.iter().filter(|(id, pod)| before.get(*id) != Some(*pod));
        for pod in changed.map(|(_, pod)| pod.clone()).collect::<Vec<_>>() {
            let plan = self.planner.host_ports(&pod);
            self.apply(dataplane, &format_args!("Pod {}", pod.pod), plan);
        }
    }

    /// States one pod of this node: the ports that it has, or none where it has gone. Says whether
    /// anything changed.
    pub(super) fn host_ports_of(
        &mut self,
        dataplane: &mut Dataplane,
        id: &str,
        pod: Option<PodPorts>,
    ) -> bool {
        if self.pods.get(id) == pod.as_ref() {
            return false;
        }
        let before = match &pod {
            Some(pod) => self.pods.insert(id.to_owned(), pod.clone()),
            None => self.pods.remove(id),
        };
        let stated = pod.or_else(|| before.map(|gone| PodPorts { ports: Vec::new(), ..gone }));
        if let Some(pod) = stated {
            let plan = self.planner.host_ports(&pod);
            self.apply(dataplane, &format_args!("Pod {}", pod.pod), plan);
        }
        true
    }

    /// Deletes the ports of pods that are there no more. To be called once the pods of this node have
    /// been stated.
    pub(super) fn prune_host_ports(&mut self, dataplane: &mut Dataplane) {
        let plan = self.planner.prune_host_ports();
        self.apply(dataplane, &"ports of pods that went", plan);
    }

    /// States what the node is now; returns the Services that are to be brought in line with it.
    pub fn node(&mut self, node: NodeContext) -> BTreeSet<ObjectName> {
        if *self.planner.node() == node {
            return BTreeSet::new();
        }
        tracing::info!(
            zone = node.zone.as_deref().unwrap_or("none"),
            node_ports_on = ?node.node_port_addrs,
            "the node as services see it"
        );
        self.planner.set_node(node)
    }

    /// Brings the named Services to what the cache says of them.
    pub fn services<'a>(
        &mut self,
        dataplane: &mut Dataplane,
        cache: &Cache,
        names: impl IntoIterator<Item = &'a ObjectName>,
    ) {
        // What goes goes last: a Service that was renamed hands its addresses over in one write.
        let (there, gone): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| cache.service(name).is_some());
        for name in there.into_iter().chain(gone) {
            let plan = match cache.service(name) {
                Some(service) => {
                    let endpoints = self.endpoints(cache, name);
                    self.planner.upsert(service, &endpoints)
                }
                None => {
                    self.node_local_is_gone(name);
                    self.planner.remove(name)
                }
            };
            self.apply(dataplane, &format_args!("Service {name}"), plan);
        }
    }

    /// The endpoints of a Service, with what this node knows better of its own.
    fn endpoints(&mut self, cache: &Cache, name: &ObjectName) -> Vec<Endpoint> {
        let endpoints = cache.endpoints(name);
        if self.node_local.service() != Some(name) {
            return endpoints;
        }
        self.node_local.follow(&endpoints);
        self.node_local.for_clients(endpoints)
    }

    fn node_local_is_gone(&mut self, name: &ObjectName) {
        if self.node_local.service() == Some(name) {
            self.node_local.follow(&[]);
        }
    }

    /// The endpoints of a Service for sockets that are connected to one of them.
    pub fn endpoints_of_sockets(&self, cache: &Cache, name: &ObjectName) -> Vec<Endpoint> {
        let endpoints = cache.endpoints(name);
        if self.node_local.service() != Some(name) {
            return endpoints;
        }
        self.node_local.for_sockets(endpoints)
    }

    /// The node-local Service.
    pub fn node_local(&self) -> &NodeLocal {
        &self.node_local
    }

    /// Waits for news of the node-local Service's endpoints, and names it. Cancel-safe.
    pub async fn node_local_changed(&mut self) -> Option<ObjectName> {
        self.node_local.changed().await
    }

    /// Deletes what the kernel holds and no source names. To be called only once the source has
    /// been read to its end.
    pub fn prune(&mut self, dataplane: &mut Dataplane) {
        let plan = self.planner.prune();
        if !plan.ops.is_empty() {
            tracing::info!(operations = plan.ops.len(), "removing what is in no source any more");
        }
        self.apply(dataplane, &"clean-up", plan);
    }

    fn apply(&mut self, dataplane: &mut Dataplane, subject: &dyn fmt::Display, plan: Plan) {
        for warning in &plan.warnings {
            tracing::warn!("{warning}");
        }
        // Before anything failed that is all; after it, what rests on what is missing waits for the
        // next try, which states it again.
        let Some(ops) = self.setback.admit(plan.ops) else {
            tracing::warn!("{subject}: waits for what found no room");
            return;
        };
        if ops.is_empty() {
            return;
        }
        if let Err(error) = dataplane.apply(&ops) {
            self.setback.stopped(&ops[error.done()..]);
            self.failed(subject, &error);
        }
    }

    fn failed(&mut self, subject: &dyn fmt::Display, error: &ApplyError) {
        tracing::error!("{subject}: {error}; what was programmed stays, the rest is tried again");
        *self.failures.entry(error.map()).or_default() += 1;
        let wait = self.failure.as_ref().map_or(RETRY.0, |failure| failure.wait);
        self.failure = Some(Failure {
            subject: subject.to_string(),
            error: error.to_string(),
            retry_at: Instant::now() + wait,
            wait,
        });
    }

    /// When [`Reconciler::retry`] is due, if anything failed.
    pub fn retry_at(&self) -> Option<Instant> {
        self.failure.as_ref().map(|failure| failure.retry_at)
    }

    /// After a failure: reads the kernel anew and brings every Service to what the cache says.
    pub fn retry(&mut self, dataplane: &mut Dataplane, cache: &Cache) {
        let Some(failure) = self.failure.take() else { return };
        let wait = (failure.wait * 2).min(RETRY.1);
        match dataplane.tables() {
            Ok(tables) => {
                let node = self.planner.node().clone();
                self.planner = Planner::restore(tables);
                self.planner.set_node(node);
                self.setback = Setback::default();
            }
            Err(error) => {
                tracing::error!("{error}; tried again in {wait:?}");
                let retry_at = Instant::now() + wait;
                self.failure = Some(Failure { retry_at, wait, ..failure });
                return;
            }
        }
        // First of all the room that what was not finished takes up.
        let swept = self.planner.sweep();
        self.apply(dataplane, &"clean-up", swept);
        let pods = std::mem::take(&mut self.pods);
        self.host_ports(dataplane, pods);
        self.prune_host_ports(dataplane);
        let names: Vec<ObjectName> =
            cache.services().map(|service| service.meta.name.clone()).collect();
        self.services(dataplane, cache, &names);
        if cache.synced() {
            self.prune(dataplane);
        }
        match &mut self.failure {
            Some(failure) => {
                failure.wait = wait;
                failure.retry_at = Instant::now() + wait;
            }
            None => tracing::info!("the kernel holds every service again"),
        }
    }

    /// Writes that the kernel refused, ever, by map.
    pub fn failures(&self) -> &BTreeMap<&'static str, u64> {
        &self.failures
    }

    /// What the kernel holds after all that was written.
    pub fn tables(&self) -> &Tables {
        self.planner.tables()
    }

    /// What is wrong, subject and message.
    pub fn problems(&self) -> impl Iterator<Item = (String, String)> {
        let failure = self.failure.iter().map(|f| (f.subject.clone(), f.error.clone()));
        let warnings = self
            .planner
            .warnings()
            .map(|warning| (warning.subject().to_string(), warning.message()));
        failure.chain(warnings)
    }
}
