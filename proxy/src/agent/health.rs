//! What the loop tells the health and metrics servers.

use std::collections::BTreeMap;
use std::time::Instant;

use sluice_abi::maps;
use sluice_model::ObjectName;
use sluice_store::{Changes, SourceStatus};
use tokio::sync::{mpsc, watch};

use super::StartError;
use super::reconcile::Reconciler;
use super::run::Agent;
use crate::cli::SluicedArgs;
use crate::dataplane::{Pinned, SocketKind};
use crate::health::{Config, Figures, Health, PolicyFigures, Refresh};

/// Starts the servers, once the maps are pinned.
pub(super) fn start(
    args: &SluicedArgs,
    source: watch::Receiver<SourceStatus>,
    reconciler: &Reconciler,
) -> Result<(Health, mpsc::Receiver<Refresh>), StartError> {
    let maps = Pinned::open(&args.paths.bpf_root)
        .map_err(|error| StartError::new(error.to_string(), ""))?;
    let config = Config {
        healthz: args.healthz_bind_address,
        metrics: args.metrics_bind_address,
        maps: Some(maps),
        source,
    };
    let (health, refreshes) = Health::start(config)
        .map_err(|error| StartError::new(format!("cannot start the health server: {error}"), ""))?;
    // Services go on where an agent before this one left them: no need to wait for the source.
    if !reconciler.tables().frontends.is_empty() {
        health.programmed();
    }
    Ok((health, refreshes))
}

impl Agent {
    /// A batch of changes has been handed to the kernel.
    pub(super) fn note_progress(&mut self, begun: Instant, changes: &Changes) {
        if changes.synced || changes.nodes.contains(&self.node) {
            self.health.node(self.cache.node(&self.node));
        }
        self.health.services(&self.cache, &self.node, &changes.services);
        if self.cache.synced() {
            self.health.programmed();
        }
        let done = self.reconciler.retry_at().is_none() && self.policies.retry_at().is_none();
        self.health.end(begun, done, changes.synced);
        self.note_policy_updates();
    }

    /// Hands on how long changes of policies took.
    pub(super) fn note_policy_updates(&mut self) {
        for took in self.policies.take_updates() {
            self.health.metrics().policy_update(took);
        }
    }

    /// Tries again what the kernel refused.
    pub(super) fn retry(&mut self) {
        let begun = Instant::now();
        self.reconciler.retry(&mut self.dataplane, &self.cache);
        self.wakes.changed(Instant::now());
        self.health.end(begun, self.reconciler.retry_at().is_none(), true);
    }

    /// Brings the figures up to date that only the loop knows.
    pub(super) fn refresh_figures(&self) {
        let tables = self.reconciler.tables();
        let metrics = self.health.metrics();
        for (map, entries) in [
            (maps::FRONTENDS, tables.frontends.len()),
            (maps::SLOTS, tables.slots.len()),
            (maps::BACKENDS, tables.backends.len()),
            (maps::SERVICE_NAMES, tables.names.len()),
            (maps::SOURCE_RANGES, tables.source_ranges.len()),
            (maps::NODE_PORTS, tables.node_ports.len()),
            (maps::ENDPOINTS, self.endpoints.addresses()),
            (maps::IDENTITIES, self.policies.tables().identities.len()),
            (
                maps::POLICY,
                self.policies.tables().rules.len() + self.policies.tables().denials.len(),
            ),
            (maps::POLICY_SETS, self.policies.tables().sets.len()),
        ] {
            metrics.map_entries(map, entries);
        }
        for (map, failures) in self.reconciler.failures() {
            metrics.apply_failures(map, *failures);
        }
        for (map, failures) in self.policies.failures() {
            metrics.apply_failures(map, *failures);
        }
        metrics.apply_failures(maps::ENDPOINTS, self.endpoints.failures());
        metrics.network_policies(self.policy_figures());
        for (protocol, kind) in [("TCP", SocketKind::Stream), ("UDP", SocketKind::Datagram)] {
            metrics.sockets_destroyed(protocol, self.wakes.destroyed(kind));
        }
        metrics.refresh(Figures {
            rejected: self.cache.rejected().count(),
            problems: self.problems().len(),
            endpoints: self.endpoints.served(),
        });
    }

    fn policy_figures(&self) -> PolicyFigures {
        let policies = self.cache.policies().map(|policy| (&policy.meta.name, &policy.faults));
        let of_cluster = self.cache.cluster_policies();
        let of_cluster = of_cluster.map(|policy| (&policy.meta.name, &policy.faults));
        let refused = policies.chain(of_cluster).filter_map(|(name, faults)| {
            let ObjectName { namespace, name } = name.clone();
            Some([namespace, name, faults.first()?.field.clone()])
        });
        let drops = match self.dataplane.view().policy_drops() {
            Ok(drops) => drops,
            Err(error) => {
                tracing::warn!("counting drops: {error}");
                Vec::new()
            }
        };
        let mut of_pods: BTreeMap<ObjectName, (u64, u64)> = BTreeMap::new();
        for (ifindex, drops) in drops {
            let Some(pod) = self.policies.pod_at(ifindex) else { continue };
            let sum = of_pods.entry(pod.clone()).or_default();
            *sum = (sum.0 + drops.ingress, sum.1 + drops.egress);
        }
        let drops = of_pods
            .into_iter()
            .map(|(pod, (ingress, egress))| ([pod.namespace, pod.name], ingress, egress));
        PolicyFigures {
            known: self.cache.policies().count() + self.cache.cluster_policies().count(),
            in_force: self.policies.planner().in_force(),
            refused: refused.collect(),
            drops: drops.collect(),
        }
    }
}
