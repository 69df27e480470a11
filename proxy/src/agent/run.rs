//! Start and loop.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use sluice_abi::maps;
use sluice_model::ObjectName;
use sluice_store::{Cache, Event, SourceStatus, Stream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::endpoints::Endpoints;
use super::flows::Flows;
use super::lock::NodeLock;
use super::node_file::NodeFile;
use super::node_local::NodeLocal;
use super::pods::{self, Noticed, PortProblems};
use super::policy::Policies;
use super::reconcile::Reconciler;
use super::routes::Routes;
use super::service_routes::ServiceRanges;
use super::unlinks::Unlinks;
use super::uplinks::UplinkPart;
use super::wake::Wakes;
use super::{StartError, health, host_ports, links, records, settings};
use crate::cli::SluicedArgs;
use crate::control::{self, Monitors};
use crate::dataplane::{self, Dataplane};
use crate::health::Health;

/// How often idle flows are looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(10);

/// Everything the agent holds.
pub(super) struct Agent {
    pub(super) args: SluicedArgs,
    pub(super) node: String,
    pub(super) started: Instant,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) dataplane: Dataplane,
    pub(super) cache: Cache,
    pub(super) reconciler: Reconciler,
    pub(super) endpoints: Endpoints,
    pub(super) policies: Policies,
    /// Ports of the node that pods ask for and cannot get.
    pub(super) port_problems: PortProblems,
    /// The node's addresses for such ports, as they were seen last.
    pub(super) node_addrs: BTreeSet<IpAddr>,
    /// What happened to pods and was not looked at yet.
    pub(super) noticed: Noticed,
    pub(super) routes: Option<Routes>,
    pub(super) uplinks: UplinkPart,
    pub(super) unlinks: Unlinks,
    pub(super) wakes: Wakes,
    pub(super) service_ranges: ServiceRanges,
    pub(super) source: watch::Receiver<SourceStatus>,
    pub(super) notices: Vec<String>,
    pub(super) kernel: dataplane::Kernel,
    pub(super) health: Health,
    node_file: Option<NodeFile>,
    flows: Flows,
    _lock: NodeLock,
}

/// Runs the agent until SIGTERM or SIGINT; traffic goes on after it.
///
/// # Errors
///
/// [`StartError`] with a hint where the node cannot be programmed at all. Once it runs, nothing
/// stops it: what goes wrong is logged, shown by `proxyctl status` and tried again.
pub async fn run(args: SluicedArgs) -> Result<(), StartError> {
    settings::require_root()?;
    let lock = NodeLock::take(&args.paths.run_dir).map_err(|error| {
        StartError::new(error.to_string(), "stop it first, or give this one its own --run-dir")
    })?;
    let cgroup = if args.socket_lb { Some(settings::cgroup_root(&args)?) } else { None };
    let config = dataplane::Config {
        bpf_root: args.paths.bpf_root.clone(),
        cgroup: cgroup.clone().unwrap_or_default(),
        sizes: settings::map_sizes(&args),
        fast_path: args.pod_programs && args.fast_path,
    };
    // These errors say themselves what to do.
    let start_error = |error: dataplane::DataplaneError| StartError::new(error.to_string(), "");
    let kernel = dataplane::probe().map_err(|lacks| start_error(lacks.into()))?;
    for fallback in &kernel.fallbacks {
        tracing::warn!("kernel {}: {fallback}", kernel.release);
    }
    let mut dataplane = Dataplane::open(config).map_err(start_error)?;
    let notices: Vec<String> = dataplane.notices().iter().map(ToString::to_string).collect();
    for notice in &notices {
        tracing::warn!("{notice}");
    }
    if cgroup.is_some() {
        dataplane.attach_cgroup().map_err(start_error)?;
    } else {
        dataplane.detach_cgroup().map_err(start_error)?;
    }
    let node = settings::node_name(&args);
    let context = settings::node_context(&args, &node, None);
    let node_local =
        NodeLocal::new(args.node_local_dns.0.clone(), node.clone(), args.node_local_dns_ready_port);
    let mut reconciler =
        Reconciler::restore(&dataplane, context, node_local).map_err(start_error)?;

    let records = records::directory(&args.state_dir);
    let mut record_events = watch_records(&records)?;
    // Before the first look, so that nothing is missed in between.
    let mut link_events = links::Watch::open()
        .map_err(|error| StartError::new(format!("cannot watch interfaces: {error}"), ""))?;
    // Before a pod may be found to have gone.
    let collector = dataplane.collector(&args.paths.leaving()).map_err(start_error)?;
    let mut endpoints = Endpoints::new(records.clone(), args.pod_programs);
    endpoints.heal();
    endpoints.sync(&mut dataplane).map_err(start_error)?;
    let mut policies =
        Policies::restore(&mut dataplane, args.network_policy).map_err(start_error)?;
    policies.begin(&mut dataplane, endpoints.local());
    let node_addrs = pods::first_addrs(reconciler.restored_addrs());
    policies.node(&mut dataplane, &node_addrs);
    let (wanted, port_problems) = host_ports::wanted(endpoints.with_ports(), &node_addrs);
    reconciler.host_ports(&mut dataplane, wanted);
    reconciler.prune_host_ports(&mut dataplane);

    let routes = if args.routes { Some(Routes::open(&args).await) } else { None };
    let routes = routes
        .transpose()
        .map_err(|error| StartError::new(error.to_string(), "or set --routes false"))?;
    let flows = Flows::start(collector, settings::timeouts(&args))
        .map_err(|error| StartError::new(format!("cannot start a thread: {error}"), ""))?;
    let wakes =
        Wakes::start(records::directory(&args.state_dir), args.reset_deleted_endpoint_connections)
            .map_err(|error| StartError::new(format!("cannot start a thread: {error}"), ""))?;
    let uplinks = UplinkPart::open(&args)
        .map_err(|error| StartError::new(error.to_string(), "or set --uplinks ''"))?;
    // Also where there is none: routes of an agent that had one go.
    let mut service_ranges = ServiceRanges::open(args.service_cluster_ip_range.clone())
        .map_err(|error| StartError::new(error.to_string(), ""))?;
    service_ranges.reconcile().await;
    let options = settings::source_options(&args)?;
    let mut stream = Stream::open(&args.source, &options)
        .map_err(|error| StartError::new(error.to_string(), error.hint()))?;
    let monitors = Monitors::new(&args.paths.bpf_root);
    let mut calls = control::serve(&args.paths.socket(), monitors)
        .map_err(|error| StartError::new(error.to_string(), "check --run-dir"))?;
    let (health, mut refreshes) = health::start(&args, stream.status(), &reconciler)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(signal_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signal_error)?;

    let mut agent = Agent {
        node,
        started: Instant::now(),
        cgroup,
        dataplane,
        cache: Cache::new(),
        reconciler,
        endpoints,
        policies,
        port_problems,
        node_addrs,
        noticed: Noticed::default(),
        routes,
        uplinks,
        unlinks: Unlinks::default(),
        wakes,
        service_ranges,
        source: stream.status(),
        notices,
        kernel,
        health,
        node_file: None,
        flows,
        args,
        _lock: lock,
    };
    tracing::info!(node = agent.node, source = %agent.args.source, "sluiced is up");

    // What an agent before this one served goes on; a first one need not wait for the source.
    agent.reconcile_uplinks().await;
    let mut collect = tokio::time::interval(COLLECT_EVERY);
    collect.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let retry_at = agent.reconciler.retry_at();
        let policies_at = agent.policies.retry_at();
        let wake_at = agent.wakes.due();
        let noticed_at = agent.noticed.due();
        tokio::select! {
            batch = stream.next_batch() => match batch {
                Some(events) => agent.ingest(events).await,
                // The source's task ended, which it does with the runtime only.
                None => return Ok(()),
            },
            Some(call) = calls.recv() => {
                let mut all = vec![call];
                while let Ok(call) = calls.try_recv() {
                    all.push(call);
                }
                agent.answer_all(all);
            }
            Some(event) = record_events.next() => match event {
                Ok(event) => agent.noticed.record(&event, Instant::now()),
                Err(error) => {
                    tracing::warn!("watching {}: {error}", records.display());
                    agent.noticed.lost(Instant::now());
                }
            },
            events = link_events.next() => agent.links_changed(events),
            () = sleep_until(noticed_at) => agent.look_at_noticed(),
            () = Routes::touched(&mut agent.routes) => agent.reconcile_routes().await,
            () = agent.uplinks.touched() => agent.reconcile_uplinks().await,
            () = agent.service_ranges.touched() => agent.service_ranges.reconcile().await,
            () = sleep_until(retry_at) => {
                agent.retry();
            }
            () = sleep_until(policies_at) => {
                agent.policies.retry(&mut agent.dataplane, &agent.cache);
            }
            Some(service) = agent.reconciler.node_local_changed() => agent.node_local(&service),
            () = sleep_until(wake_at) => agent.wake(),
            Some(done) = refreshes.recv() => {
                agent.refresh_figures();
                // A scrape that waited for too long wants no answer.
                let _ = done.send(());
            }
            _ = collect.tick() => {
                if agent.noticed.take_unwatched() && !watch_again(&record_events, &records) {
                    agent.noticed.still_unwatched();
                }
                agent.collect();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("sluiced stops; services, policies, pods and routes stay as they are");
    Ok(())
}

impl Agent {
    async fn ingest(&mut self, events: Vec<Event>) {
        let begun = self.health.begin(&events);
        let was_synced = self.cache.synced();
        let mut changes = self.cache.ingest(events);
        for rejected in &changes.rejected {
            tracing::warn!("{rejected}");
        }
        if changes.nodes.contains(&self.node)
            && let Some(node) = self.cache.node(&self.node)
        {
            let context = settings::node_context(&self.args, &self.node, Some(node));
            changes.services.extend(self.reconciler.node(context));
            self.sync_host_ports();
        }
        // Before anybody is led to a new pod.
        self.policies.changed(&mut self.dataplane, &self.cache, &changes);
        self.reconciler.services(&mut self.dataplane, &self.cache, &changes.services);
        if changes.synced {
            // Only now is it known what is in no source any more.
            self.reconciler.prune(&mut self.dataplane);
            if !was_synced {
                tracing::info!(
                    services = self.cache.services().count(),
                    nodes = self.cache.nodes().count(),
                    "in sync with the source"
                );
            }
        }
        if changes.synced || !changes.services.is_empty() {
            self.wakes.changed(Instant::now());
        }
        self.note_progress(begun, &changes);
        if self.cache.synced() && (changes.synced || !changes.nodes.is_empty()) {
            self.reconcile_routes().await;
            self.reconcile_uplinks().await;
            // Last: it is the sign for the plugin, and for who starts a node, that pods may come.
            self.write_node_file();
        }
    }

    /// An endpoint of the node-local Service on this node became ready, or is so no more.
    fn node_local(&mut self, service: &ObjectName) {
        self.reconciler.services(&mut self.dataplane, &self.cache, [service]);
        self.wakes.changed(Instant::now());
    }

    fn write_node_file(&mut self) {
        let Some(node) = self.cache.node(&self.node) else {
            if self.node_file.is_none() {
                tracing::warn!(
                    "no Node named {} in the source: pods get addresses only from the CNI \
                     configuration's podCIDRs, and NodePorts are served on localhost only; \
                     --hostname-override names the node",
                    self.node
                );
            }
            return;
        };
        let file = NodeFile {
            node: self.node.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
            mtu: self.routes.as_ref().map_or(self.args.mtu, Routes::pod_mtu),
        };
        if self.node_file.as_ref() == Some(&file) {
            return;
        }
        if let Some(before) = &self.node_file
            && before.pod_cidrs != file.pod_cidrs
        {
            tracing::warn!(
                "pod CIDRs of {} changed from {:?} to {:?}: pods that run keep their addresses",
                self.node,
                before.pod_cidrs,
                file.pod_cidrs
            );
        }
        let path = self.args.paths.node_file();
        match file.write(&path) {
            Ok(()) => self.node_file = Some(file),
            Err(error) => tracing::error!("cannot write {}: {error}", path.display()),
        }
    }

    async fn reconcile_routes(&mut self) {
        // Before the first list it is not known which routes are stale.
        if let Some(routes) = &mut self.routes
            && self.cache.synced()
        {
            routes.reconcile(&self.node, self.cache.nodes()).await;
        }
        // What there is room for in a packet may be known only now, or be another.
        if self.node_file.is_some() {
            self.write_node_file();
        }
    }

    async fn reconcile_uplinks(&mut self) {
        let nodes: Option<Vec<_>> = self.cache.synced().then(|| self.cache.nodes().collect());
        let nodes = nodes.as_deref();
        let tunnel = self.routes.as_ref().and_then(Routes::tunnel_device);
        self.uplinks.reconcile(&mut self.dataplane, &self.args, &self.node, nodes, tunnel).await;
    }

    fn collect(&mut self) {
        self.health.alive();
        if let Err(error) = self.forget_sockets() {
            tracing::warn!("forgetting sockets that are gone: {error}");
        }
        self.endpoints.heal();
        // An interface may have gone, or got an address.
        self.sync_endpoints();
        for pass in self.flows.passes() {
            match pass {
                Ok(collected) => {
                    let left = collected.seen.saturating_sub(collected.removed);
                    self.health.metrics().map_entries(maps::CONNTRACK, left);
                    if collected.removed > 0 {
                        tracing::debug!(entries = collected.removed, "forgot idle flows");
                    }
                }
                Err(error) => tracing::warn!("collecting idle flows: {error}"),
            }
        }
    }
}

/// Watches the directory of records, which is made if need be: a plugin that runs without the
/// control socket is noticed this way.
fn watch_records(
    directory: &std::path::Path,
) -> Result<inotify::EventStream<[u8; 4096]>, StartError> {
    let error = |call: &str, error: std::io::Error| {
        StartError::new(
            format!("cannot watch {}: {call}: {error}", directory.display()),
            "check --state-dir and fs.inotify.max_user_instances",
        )
    };
    std::fs::create_dir_all(directory).map_err(|e| error("mkdir", e))?;
    let inotify = Inotify::init().map_err(|e| error("inotify_init", e))?;
    let watches = &mut inotify.watches();
    watches.add(directory, RECORD_EVENTS).map_err(|e| error("inotify_add_watch", e))?;
    inotify.into_event_stream([0; 4096]).map_err(|e| error("inotify", e))
}

/// A record was written, by hand or by the plugin, or went.
const RECORD_EVENTS: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE);

/// Watches a directory that was made anew; whether that worked.
fn watch_again(events: &inotify::EventStream<[u8; 4096]>, directory: &std::path::Path) -> bool {
    let made = std::fs::create_dir_all(directory);
    made.and_then(|()| events.watches().add(directory, RECORD_EVENTS)).is_ok()
}

fn signal_error(error: std::io::Error) -> StartError {
    StartError::new(format!("cannot wait for signals: {error}"), "")
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
