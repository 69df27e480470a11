//! What load balancers, kubelet and Prometheus ask of a node, over HTTP.
//!
//! | who asks | where | what |
//! | --- | --- | --- |
//! | a load balancer | `--healthz-bind-address`, `/healthz` | may this node have traffic |
//! | kubelet | the same, `/livez` | does the agent do its work |
//! | a load balancer | a Service's `healthCheckNodePort` | has this node endpoints of that Service |
//! | Prometheus | `--metrics-bind-address`, `/metrics` | figures |
//!
//! Paths, status codes and bodies are kube-proxy's (pkg/proxy/healthcheck; KEP-3836 for the
//! difference between `/healthz` and `/livez`). Everything is answered on a thread of its own: the
//! agent's loop may be busy with a long list, and whether it is stuck is what is asked.
//!
//! What is decided is pure ([`Progress`], [`answer`], [`ServiceCheck`]); the servers only carry it.

pub mod answer;
mod bind;
mod collector;
mod local;
mod metrics;
mod node_ports;
mod progress;
mod server;
mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use sluice_model::{Node, ObjectName};
use sluice_store::{Cache, Event, SourceStatus};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::bind::{BindAddress, BindAddressError, HEALTHZ_PORT, METRICS_PORT};
pub use self::local::{NoLocal, ServiceCheck};
pub use self::metrics::{Figures, Metrics, PolicyFigures};
pub use self::progress::{Progress, STUCK_AFTER, Verdict};
use self::shared::Shared;
use crate::dataplane::Pinned;

/// A question of the metrics server to the loop: bring the figures up to date, then answer.
pub type Refresh = oneshot::Sender<()>;

/// Where to listen, and what the answers come from.
#[derive(Debug)]
pub struct Config {
    /// `--healthz-bind-address`.
    pub healthz: BindAddress,
    /// `--metrics-bind-address`.
    pub metrics: BindAddress,
    /// The maps, for counters that are read when they are asked for; `None` where there are none.
    pub maps: Option<Pinned>,
    /// State of the source.
    pub source: watch::Receiver<SourceStatus>,
}

/// The loop's end: it says what happens, the servers tell it on. Dropping it ends the servers.
#[derive(Debug)]
pub struct Health {
    shared: Arc<Shared>,
    /// `healthCheckNodePort` by Service, with the endpoints of this node.
    checks: watch::Sender<BTreeMap<ObjectName, ServiceCheck>>,
    no_local: BTreeMap<ObjectName, NoLocal>,
}

impl Health {
    /// Starts the thread that answers. A port that cannot be had is a problem
    /// ([`Health::problems`]) and is tried again every few seconds; it is no error.
    ///
    /// # Errors
    ///
    /// Where the thread cannot be made.
    pub fn start(config: Config) -> io::Result<(Self, mpsc::Receiver<Refresh>)> {
        let shared = Arc::new(Shared::new(Instant::now(), SystemTime::now()));
        let (checks, wanted) = watch::channel(BTreeMap::new());
        let (refresh, refreshes) = mpsc::channel(1);
        let state = Arc::clone(&shared);
        std::thread::Builder::new().name("health".to_owned()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(server::run(config, state, wanted, refresh)),
                Err(error) => {
                    let problem = format!("no health checks and no metrics: {error}");
                    tracing::error!("{problem}");
                    state.refused("health server", &problem);
                }
            }
        })?;
        Ok((Self { shared, checks, no_local: BTreeMap::new() }, refreshes))
    }

    /// The figures.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The kernel holds services, if only those of the agent before this one.
    pub fn programmed(&self) {
        self.shared.progress(Progress::programmed);
    }

    /// The loop is not stuck.
    pub fn alive(&self) {
        self.shared.progress(|progress| progress.alive(Instant::now()));
    }

    /// Changes came from the source; they wait from now on.
    pub fn begin(&self, events: &[Event]) -> Instant {
        let now = Instant::now();
        self.shared.progress(|progress| progress.begin(now));
        let (mut services, mut endpoints) = (0, 0);
        for event in events {
            let kind = match event {
                Event::Apply(object) => object.key().kind,
                Event::Delete(key) => key.kind,
                _ => continue,
            };
            match kind {
                sluice_model::ResourceKind::Service => services += 1,
                sluice_model::ResourceKind::EndpointSlice => endpoints += 1,
                _ => {}
            }
        }
        self.metrics().queued(services, endpoints, SystemTime::now());
        now
    }

    /// What was pending when `begun` was taken has been handed to the kernel: `done` where the
    /// kernel has all of it, else it goes on waiting. `full`: everything was gone through, not only
    /// what changed.
    pub fn end(&self, begun: Instant, done: bool, full: bool) {
        let now = Instant::now();
        self.shared.progress(|progress| progress.end(done, now, SystemTime::now()));
        self.metrics().synced(now.duration_since(begun), done, full, SystemTime::now());
    }

    /// What this node's object says of it; `None` where there is none.
    pub fn node(&self, node: Option<&Node>) {
        self.shared.progress(|progress| progress.node(node));
    }

    /// Services that changed, or whose endpoints did, seen from the node called `node`.
    pub fn services<'a>(
        &mut self,
        cache: &Cache,
        node: &str,
        names: impl IntoIterator<Item = &'a ObjectName>,
    ) {
        let mut changed = BTreeMap::new();
        for name in names {
            let service = cache.service(name).filter(|service| local::has_local_policy(service));
            // Most Services end here, before their endpoints are looked at.
            let endpoints = service.map(|_| cache.endpoints(name)).unwrap_or_default();
            let none = service.map(|s| NoLocal::of(s, &endpoints, node)).unwrap_or_default();
            if none == NoLocal::default() {
                self.no_local.remove(name);
            } else {
                self.no_local.insert(name.clone(), none);
            }
            changed.insert(
                name.clone(),
                service.and_then(|service| ServiceCheck::of(service, &endpoints, node)),
            );
        }
        self.metrics().no_local(self.no_local.values().copied());
        self.checks.send_if_modified(|checks| {
            let mut modified = false;
            for (name, check) in changed {
                let before = match check {
                    Some(check) => checks.insert(name, check),
                    None => checks.remove(&name),
                };
                modified |= before != check;
            }
            modified
        });
    }

    /// Whether the node is fit, as `/healthz` and `/livez` tell it now.
    pub fn verdict(&self) -> Verdict {
        self.shared.verdict(Instant::now())
    }

    /// What is wrong, subject and message: ports that could not be had.
    pub fn problems(&self) -> Vec<(String, String)> {
        self.shared.problems()
    }

    /// Where is listened now, by what for: `healthz`, `metrics`, `Service NAMESPACE/NAME`.
    pub fn bound(&self) -> BTreeMap<String, SocketAddr> {
        self.shared.bound()
    }

    /// `healthCheckNodePort`s that should be open.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.checks.borrow().values().map(|check| check.port).collect()
    }
}

#[cfg(test)]
mod tests;
