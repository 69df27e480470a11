//! The figures that the loop keeps. What kube-proxy exports under a name has that name here where it
//! means the same; the rest begins with `sluice_`.
//!
//! Left out on purpose: `kubeproxy_network_programming_duration_seconds` (nothing keeps the
//! annotation that says when an endpoint changed), the `..._changes_pending` gauges (a change is
//! applied in the turn of the loop that read it; `sluice_change_waiting_seconds` tells when one is
//! not), and everything about iptables and nftables.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::NoLocal;
use super::collector::Collector;

/// Network policies, now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyFigures {
    /// Those of the source.
    pub known: usize,
    /// Those that select a pod of this node.
    pub in_force: usize,
    /// Those that could not be read: namespace, name, and the first field that is wrong.
    pub refused: Vec<[String; 3]>,
    /// Packets that were dropped: namespace and name of the pod, to it, from it.
    pub drops: Vec<([String; 2], u64, u64)>,
}

/// One label.
type Label<V = &'static str> = [(&'static str, V); 1];

/// Figures that the loop sets and a scrape reads.
#[derive(Debug)]
pub struct Metrics {
    sync: Histogram,
    full_sync: Histogram,
    last_queued: Gauge<f64, AtomicU64>,
    last_synced: Gauge<f64, AtomicU64>,
    service_changes: Counter,
    endpoint_changes: Counter,
    no_local: Family<Label, Gauge>,
    healthz: Family<Label<u16>, Counter>,
    livez: Family<Label<u16>, Counter>,
    apply_failures: Family<Label, Counter>,
    sockets_destroyed: Family<Label, Counter>,
    entries: Family<Label, Gauge>,
    rejected: Gauge,
    problems: Gauge,
    endpoints: Gauge,
    policies: Gauge,
    policies_in_force: Gauge,
    policies_refused: Family<PolicyLabels, Gauge>,
    policy_updates: Histogram,
    policy_drops: Family<DropLabels, Counter>,
}

/// A policy that could not be read, and the first of its fields that is wrong.
type PolicyLabels = [(&'static str, String); 3];

/// A pod and a direction.
type DropLabels = [(&'static str, String); 3];

/// What the loop counts when it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Objects of the source that could not be understood, now.
    pub rejected: usize,
    /// Rows under Problem of `proxyctl status`, now.
    pub problems: usize,
    /// Pods of this node that have their programs, now.
    pub endpoints: usize,
}

impl Metrics {
    /// All at nothing.
    pub(super) fn new() -> Self {
        // Those of kube-proxy: 1 ms to 16 s.
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self {
            sync: histogram(),
            full_sync: histogram(),
            last_queued: Gauge::default(),
            last_synced: Gauge::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            no_local: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            apply_failures: Family::default(),
            sockets_destroyed: Family::default(),
            entries: Family::default(),
            rejected: Gauge::default(),
            problems: Gauge::default(),
            endpoints: Gauge::default(),
            policies: Gauge::default(),
            policies_in_force: Gauge::default(),
            policies_refused: Family::default(),
            policy_updates: histogram(),
            policy_drops: Family::default(),
        }
    }

    /// Everything under its name, with what is read when it is asked for.
    pub(super) fn registry(&self, collector: Collector) -> Registry {
        let mut registry = Registry::default();
        let proxy = registry.sub_registry_with_prefix("kubeproxy");
        proxy.register(
            "sync_proxy_rules_duration_seconds",
            "Time to bring a batch of changes from the source into the kernel",
            self.sync.clone(),
        );
        proxy.register(
            "sync_full_proxy_rules_duration_seconds",
            "The same where all objects were gone through: after a full list or a failed write",
            self.full_sync.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When changes last came from the source",
            self.last_queued.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the kernel last had all changes",
            self.last_synced.clone(),
        );
        proxy.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services that came from the source",
            self.service_changes.clone(),
        );
        proxy.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices that came from the source",
            self.endpoint_changes.clone(),
        );
        proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local traffic policy and endpoints on other nodes only",
            self.no_local.clone(),
        );
        proxy.register("proxy_healthz", "Answers of /healthz by status", self.healthz.clone());
        proxy.register("proxy_livez", "Answers of /livez by status", self.livez.clone());

        let own = registry.sub_registry_with_prefix("sluice");
        own.register(
            "apply_failures",
            "Writes that the kernel refused, by map; they are tried again",
            self.apply_failures.clone(),
        );
        own.register(
            "sockets_destroyed",
            "Sockets that were destroyed since their backend is gone, by protocol",
            self.sockets_destroyed.clone(),
        );
        own.register(
            "map_entries",
            "Entries in use, as the agent wrote them; of CONNTRACK as the collector of idle flows \
             saw them last, at most some seconds ago",
            self.entries.clone(),
        );
        own.register(
            "rejected_objects",
            "Objects of the source that could not be understood",
            self.rejected.clone(),
        );
        own.register("problems", "What proxyctl status lists under Problem", self.problems.clone());
        own.register(
            "endpoints",
            "Pods of this node that have their programs",
            self.endpoints.clone(),
        );
        self.register_policies(own);
        registry.register_collector(Box::new(collector));
        registry
    }

    fn register_policies(&self, own: &mut Registry) {
        own.register("policies", "NetworkPolicies of the source", self.policies.clone());
        own.register(
            "policies_in_force",
            "NetworkPolicies that select a pod of this node",
            self.policies_in_force.clone(),
        );
        own.register(
            "policy_refused",
            "NetworkPolicies that could not be read and deny everything, with the first field that is wrong",
            self.policies_refused.clone(),
        );
        own.register(
            "policy_update_duration_seconds",
            "Time to bring a change of policies, pods or namespaces into the kernel's policy maps",
            self.policy_updates.clone(),
        );
        own.register(
            "policy_drops",
            "Packets that network policies did not let pass, by pod of this node and direction",
            self.policy_drops.clone(),
        );
    }

    /// Network policies.
    pub fn network_policies(&self, figures: PolicyFigures) {
        self.policies.set(signed(figures.known));
        self.policies_in_force.set(signed(figures.in_force));
        // One that was mended is not to be told any more, nor a pod that went.
        self.policies_refused.clear();
        for [namespace, name, field] in figures.refused {
            let labels = [("namespace", namespace), ("name", name), ("field", field)];
            self.policies_refused.get_or_create(&labels).set(1);
        }
        self.policy_drops.clear();
        for ([namespace, name], ingress, egress) in figures.drops {
            for (direction, count) in [("ingress", ingress), ("egress", egress)] {
                let counter = self.policy_drops.get_or_create(&[
                    ("namespace", namespace.clone()),
                    ("pod", name.clone()),
                    ("direction", direction.to_owned()),
                ]);
                counter.inner().store(count, Ordering::Relaxed);
            }
        }
    }

    /// A change of policies, pods or namespaces was brought into the kernel.
    pub fn policy_update(&self, took: Duration) {
        self.policy_updates.observe(took.as_secs_f64());
    }

    /// Changes came from the source.
    pub(super) fn queued(&self, services: u64, endpoints: u64, now: SystemTime) {
        self.service_changes.inc_by(services);
        self.endpoint_changes.inc_by(endpoints);
        self.last_queued.set(seconds(now));
    }

    /// They were handed to the kernel.
    pub(super) fn synced(&self, took: Duration, done: bool, full: bool, now: SystemTime) {
        self.sync.observe(took.as_secs_f64());
        if full {
            self.full_sync.observe(took.as_secs_f64());
        }
        if done {
            self.last_synced.set(seconds(now));
        }
    }

    /// Services without a local endpoint.
    pub(super) fn no_local(&self, services: impl Iterator<Item = NoLocal>) {
        let (mut internal, mut external) = (0, 0);
        for service in services {
            internal += i64::from(service.internal);
            external += i64::from(service.external);
        }
        for (policy, count) in [("internal", internal), ("external", external)] {
            self.no_local.get_or_create(&[("traffic_policy", policy)]).set(count);
        }
    }

    pub(super) fn healthz(&self, status: u16) {
        self.healthz.get_or_create(&[("code", status)]).inc();
    }

    pub(super) fn livez(&self, status: u16) {
        self.livez.get_or_create(&[("code", status)]).inc();
    }

    /// A map holds so many entries.
    pub fn map_entries(&self, map: &'static str, entries: usize) {
        self.entries.get_or_create(&[("map", map)]).set(signed(entries));
    }

    /// The kernel refused so many writes to a map, ever.
    pub fn apply_failures(&self, map: &'static str, failures: u64) {
        // The loop alone counts these, and they never go back.
        let counter = self.apply_failures.get_or_create(&[("map", map)]);
        counter.inner().store(failures, Ordering::Relaxed);
    }

    /// So many sockets were destroyed since their backend is gone, ever.
    pub fn sockets_destroyed(&self, protocol: &'static str, sockets: u64) {
        let counter = self.sockets_destroyed.get_or_create(&[("protocol", protocol)]);
        counter.inner().store(sockets, Ordering::Relaxed);
    }

    /// What the loop counted.
    pub fn refresh(&self, figures: Figures) {
        self.rejected.set(signed(figures.rejected));
        self.problems.set(signed(figures.problems));
        self.endpoints.set(signed(figures.endpoints));
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
