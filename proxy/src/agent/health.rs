//! What the loop tells the health and metrics servers.

use std::time::Instant;

use sluice_abi::maps;
use sluice_store::{Changes, SourceStatus};
use tokio::sync::{mpsc, watch};

use super::StartError;
use super::reconcile::Reconciler;
use super::run::Agent;
use crate::cli::SluicedArgs;
use crate::dataplane::{Pinned, SocketKind};
use crate::health::{Config, Figures, Health, Refresh};

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
        self.health.end(begun, self.reconciler.retry_at().is_none(), changes.synced);
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
        ] {
            metrics.map_entries(map, entries);
        }
        for (map, failures) in self.reconciler.failures() {
            metrics.apply_failures(map, *failures);
        }
        metrics.apply_failures(maps::ENDPOINTS, self.endpoints.failures());
        for (protocol, kind) in [("TCP", SocketKind::Stream), ("UDP", SocketKind::Datagram)] {
            metrics.sockets_destroyed(protocol, self.wakes.destroyed(kind));
        }
        metrics.refresh(Figures {
            rejected: self.cache.rejected().count(),
            problems: self.problems().len(),
            endpoints: self.endpoints.served(),
        });
    }
}
