//! From the source to the zone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sluice_model::{ObjectName, PodPhase};
use sluice_store::{Cache, Changes, SourceError, SourceOptions, SourceUrl, Stream};
use tokio::sync::oneshot;

use crate::resolver::Resolver;
use crate::zone::Snapshot;

/// Why the source cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// It can never be read.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// There is no thread for it.
    #[error("cannot start the thread that follows the source: {0}")]
    Thread(#[from] std::io::Error),
}

/// Follows the source on a thread of its own (see [`SourceOptions::in_place`]). What is returned ends
/// when that ends, which it does by itself never.
///
/// # Errors
///
/// The source can never be read, or there is no thread for it.
pub async fn start(
    url: SourceUrl,
    options: SourceOptions,
    resolver: Arc<Resolver>,
) -> Result<impl Future<Output = ()>, FeedError> {
    let options = SourceOptions { in_place: true, ..options };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (opened, open) = oneshot::channel();
    let (alive, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("feed".to_owned()).spawn(move || {
        // Dropped with this thread, however it ends.
        let _alive = alive;
        runtime.block_on(async {
            // Who started it waits for this.
            match Stream::open(&url, &options) {
                Ok(stream) => {
                    let _ = opened.send(Ok(()));
                    run(stream, resolver).await;
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            }
        });
    })?;
    if let Ok(result) = open.await {
        result?;
    }
    Ok(async move {
        // Nothing is sent: the channel ends with its sender.
        let _ = ended.await;
    })
}

/// Reads the source for ever and keeps the resolver's zone up to date. Until the source has been
/// read whole once the zone stays as it is, empty and not synced; once it has been, the zone goes on
/// answering what was known, whatever becomes of the source.
pub async fn run(mut stream: Stream, resolver: Arc<Resolver>) {
    let mut cache = Cache::for_names();
    let mut zone = Snapshot::new();
    let mut pods = Pods::default();
    while let Some(events) = stream.next_batch().await {
        let changes = cache.ingest(events);
        for rejected in &changes.rejected {
            tracing::warn!("skipped {rejected}");
        }
        update(&mut zone, &cache, &changes);
        let moved = pods.update(&mut zone, &cache, &changes);
        let changed = moved
            || !changes.services.is_empty()
            || !changes.namespaces.is_empty()
            || !changes.imports.is_empty();
        if !cache.synced() || zone.synced() && !changed {
            continue;
        }
        let first = !zone.synced();
        zone.set_synced();
        zone.set_serial(now());
        resolver.set_zone(zone.clone());
        if first {
            tracing::info!(services = zone.len(), "synced");
        }
    }
    tracing::error!("the source has ended; going on with what is known");
}

/// The addresses that pods had, to take them back when they change.
#[derive(Clone, Debug, Default)]
pub struct Pods(HashMap<ObjectName, Vec<IpAddr>>);

impl Pods {
    /// Brings the pods of a snapshot from what they were to what the cache now holds; says whether
    /// that changed anything. A pod of the host's network and one that has ended own no address.
    pub fn update(&mut self, zone: &mut Snapshot, cache: &Cache, changes: &Changes) -> bool {
        let mut moved = false;
        for name in &changes.pods {
            let pod = cache.pod(name).filter(|pod| {
                !pod.host_network && !matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed)
            });
            let new = pod.map(|pod| pod.addrs.clone()).unwrap_or_default();
            let old = self.0.get(name).cloned().unwrap_or_default();
            if old == new {
                continue;
            }
            moved = true;
            let namespace = name.namespace.to_ascii_lowercase();
            old.iter().for_each(|addr| zone.remove_pod(addr, &namespace));
            new.iter().for_each(|addr| zone.add_pod(*addr, &namespace));
            if new.is_empty() {
                self.0.remove(name);
            } else {
                self.0.insert(name.clone(), new);
            }
        }
        moved
    }
}

/// Brings a snapshot from what it was to what the cache now holds.
pub fn update(zone: &mut Snapshot, cache: &Cache, changes: &Changes) {
    for name in &changes.namespaces {
        zone.declare_namespace(name, cache.has_namespace(name));
    }
    for name in &changes.services {
        match cache.service(name) {
            Some(service) => zone.set_service(service, &cache.endpoints(name)),
            None => zone.remove_service(name),
        }
    }
    for name in &changes.imports {
        match cache.import(name) {
            Some(import) => zone.set_import(import, &cache.import_endpoints(name)),
            None => zone.remove_import(name),
        }
    }
}

/// Seconds since 1970. Serial numbers wrap (RFC 1982), and so does this in 2106.
fn now() -> u32 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (elapsed.as_secs() & u64::from(u32::MAX)) as u32
}
