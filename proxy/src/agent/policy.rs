//! Network policies: from the cache and the pods of this node through the planner to the kernel, with
//! what failed tried again.
//!
//! Until the source has been read to its end, nothing is planned: what an agent before this one left
//! in the kernel stays in force as it is, and a pod that is new is shut. The first plan then starts from
//! what the kernel holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sluice_abi::PolicySets;
use sluice_model::ObjectName;
use sluice_plan::{LocalPod, PolicyOp, PolicyPlanner, PolicyTables};
use sluice_store::{Cache, Changes};

use super::backoff::Backoff;
use super::run::Agent;
use crate::dataplane::{Dataplane, DataplaneError, PolicyError};

/// The pods of this node that have their programs, by name.
pub type LocalPods = BTreeMap<ObjectName, LocalPod>;

/// Brings network policies into the kernel.
#[derive(Debug)]
pub struct Policies {
    on: bool,
    planner: PolicyPlanner,
    /// The pods that the planner was told of.
    pods: LocalPods,
    /// The node's own addresses.
    node: BTreeSet<IpAddr>,
    /// What the kernel holds of pods that nothing was planned for yet.
    shut: BTreeSet<u32>,
    /// Whether the planner knows everything.
    planned: bool,
    failure: Option<Failure>,
    /// Writes that the kernel refused, ever, by map.
    failures: BTreeMap<&'static str, u64>,
    updates: Vec<Duration>,
}

/// A write that the kernel refused: the planner's picture of the kernel is wrong until it is read anew.
#[derive(Debug)]
struct Failure {
    error: String,
    backoff: Backoff,
}

impl Policies {
    /// Starts from what the kernel holds. With `on` false, nothing is in force: what an agent before
    /// this one put there goes.
    ///
    /// # Errors
    ///
    /// Where the maps cannot be read.
    pub fn restore(dataplane: &mut Dataplane, on: bool) -> Result<Self, DataplaneError> {
        let held = dataplane.policy_tables()?;
        if on && !held.sets.is_empty() {
            tracing::info!(
                pods = held.sets.len(),
                rules = held.rules.len(),
                "policies that the kernel holds stay in force"
            );
        }
        let mut this = Self {
            on,
            planner: PolicyPlanner::restore(held),
            pods: LocalPods::new(),
            node: BTreeSet::new(),
            shut: BTreeSet::new(),
            planned: !on,
            failure: None,
            failures: BTreeMap::new(),
            updates: Vec::new(),
        };
        if !on {
            this.plan(dataplane);
        }
        Ok(this)
    }

    /// Whether policies are enforced at all.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// States the pods of this node at the start. Those that the kernel has rules for keep them, others
    /// are shut until the source is known.
    ///
    /// Where the kernel knows of no pod at all, no policy was ever in force here: then those that run
    /// go on as they are until the first plan.
    pub fn begin(&mut self, dataplane: &mut Dataplane, pods: LocalPods) {
        if self.planner.tables().sets.is_empty() {
            let known = pods.values().flat_map(interfaces);
            self.shut.extend(known);
        }
        self.pods(dataplane, pods);
    }

    /// States the pods of this node.
    pub fn pods(&mut self, dataplane: &mut Dataplane, pods: LocalPods) {
        if !self.on || pods == self.pods {
            return;
        }
        let before = std::mem::replace(&mut self.pods, pods);
        if !self.planned {
            return self.shut_new(dataplane);
        }
        if self.hurry() {
            return self.shut_without_rules(dataplane);
        }
        for name in before.keys().chain(self.pods.keys()) {
            let now = self.pods.get(name);
            if before.get(name) != now {
                self.planner.set_local(name, now.cloned());
            }
        }
        self.plan(dataplane);
    }

    /// States the node's own addresses, which its pods may always ask.
    pub fn node(&mut self, dataplane: &mut Dataplane, addrs: &BTreeSet<IpAddr>) {
        let own = addrs.iter().copied().filter(|addr| !addr.is_loopback()).collect();
        if !self.on || own == self.node {
            return;
        }
        self.node = own;
        if self.planned && !self.hurry() {
            self.planner.set_node(self.node.iter().copied());
            self.plan(dataplane);
        }
    }

    /// Shuts the pods that nothing is known of yet, and forgets those that were and are gone.
    fn shut_new(&mut self, dataplane: &mut Dataplane) {
        let there: BTreeSet<u32> = self.pods.values().flat_map(interfaces).collect();
        let mut ops: Vec<PolicyOp> = there
            .iter()
            .filter(|ifindex| !self.shut.contains(ifindex))
            .filter_map(|ifindex| self.planner.protect(*ifindex))
            .collect();
        let gone = self.shut.difference(&there).map(|ifindex| PolicyOp::DeleteSets(*ifindex));
        ops.extend(gone);
        let put = |op: &PolicyOp| match op {
            PolicyOp::PutSets(ifindex, _) => Some(*ifindex),
            _ => None,
        };
        match dataplane.apply_policy(&ops) {
            Ok(()) => {
                self.shut.retain(|ifindex| there.contains(ifindex));
                self.shut.extend(ops.iter().filter_map(put));
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Takes in what changed in the cache, and brings the kernel to it.
    pub fn changed(&mut self, dataplane: &mut Dataplane, cache: &Cache, changes: &Changes) {
        if !self.on || !cache.synced() {
            return;
        }
        if !self.planned {
            return self.rebuild(dataplane, cache);
        }
        let nothing = changes.namespaces.is_empty()
            && changes.pods.is_empty()
            && changes.nodes.is_empty()
            && changes.policies.is_empty()
            && changes.cluster_policies.is_empty();
        // After a failure all of the cache is stated anew.
        if nothing || self.hurry() {
            return;
        }
        for name in &changes.namespaces {
            self.planner.set_namespace(name, cache.namespace(name));
        }
        for name in &changes.pods {
            self.planner.set_pod(name, cache.pod(name));
        }
        for name in &changes.nodes {
            self.planner.set_cluster_node(name, cache.node(name));
        }
        for name in &changes.policies {
            self.planner.set_policy(name, cache.policy(name));
        }
        for name in &changes.cluster_policies {
            self.planner.set_cluster_policy(name, cache.cluster_policy(name));
        }
        self.plan(dataplane);
    }

    /// After a failure: there is something new, so the wait is a short one. Whether there was one.
    fn hurry(&mut self) -> bool {
        let Some(failure) = &mut self.failure else { return false };
        failure.backoff.hurry(Instant::now());
        true
    }

    /// States everything to a planner that starts from what the kernel holds.
    fn rebuild(&mut self, dataplane: &mut Dataplane, cache: &Cache) {
        let held = match dataplane.policy_tables() {
            Ok(held) => held,
            Err(error) => return self.failed(&error.into()),
        };
        self.planner = PolicyPlanner::restore(held);
        if self.on {
            self.state(cache);
        }
        self.planned = true;
        self.shut.clear();
        self.plan(dataplane);
    }

    /// States everything.
    fn state(&mut self, cache: &Cache) {
        self.planner.set_node(self.node.iter().copied());
        for namespace in cache.namespaces() {
            self.planner.set_namespace(&namespace.meta.name.name, Some(namespace));
        }
        for pod in cache.pods() {
            self.planner.set_pod(&pod.meta.name, Some(pod));
        }
        for (name, pod) in &self.pods {
            self.planner.set_local(name, Some(pod.clone()));
        }
        for node in cache.nodes() {
            self.planner.set_cluster_node(&node.meta.name.name, Some(node));
        }
        for policy in cache.policies() {
            self.planner.set_policy(&policy.meta.name, Some(policy));
        }
        for policy in cache.cluster_policies() {
            self.planner.set_cluster_policy(&policy.meta.name, Some(policy));
        }
    }

    /// Plans, and does what that asks for.
    fn plan(&mut self, dataplane: &mut Dataplane) {
        let begun = Instant::now();
        let ops = self.planner.plan();
        if ops.is_empty() {
            return;
        }
        tracing::debug!(operations = ops.len(), "policies change");
        if let Err(error) = dataplane.apply_policy(&ops) {
            self.failed(&error);
            self.shut_without_rules(dataplane);
        }
        self.updates.push(begun.elapsed());
    }

    /// Pods that should have rules by now and have none are shut.
    fn shut_without_rules(&self, dataplane: &mut Dataplane) {
        let held = match dataplane.policy_tables() {
            Ok(held) => held,
            Err(error) => return tracing::error!("policies: {error}"),
        };
        let bare = self.pods.values().flat_map(interfaces);
        let bare = bare.filter(|ifindex| !held.sets.contains_key(ifindex));
        let ops: Vec<PolicyOp> =
            bare.map(|ifindex| PolicyOp::PutSets(ifindex, PolicySets::SHUT)).collect();
        if let Err(error) = dataplane.apply_policy(&ops) {
            tracing::error!("policies: {error}");
        }
    }

    fn failed(&mut self, error: &PolicyError) {
        tracing::error!(
            "policies: {error}; what was in force stays, new pods are shut, the rest is tried again"
        );
        if let Some(map) = error.map() {
            *self.failures.entry(map).or_default() += 1;
        }
        let backoff = match self.failure.take() {
            Some(failure) => failure.backoff.again(Instant::now()),
            None => Backoff::new(Instant::now()),
        };
        self.failure = Some(Failure { error: error.to_string(), backoff });
    }

    /// When [`Policies::retry`] is due, if anything failed.
    pub fn retry_at(&self) -> Option<Instant> {
        self.failure.as_ref().map(|failure| failure.backoff.due())
    }

    /// After a failure: reads the kernel anew and states everything.
    pub fn retry(&mut self, dataplane: &mut Dataplane, cache: &Cache) {
        let Some(failure) = self.failure.take() else { return };
        if self.planned || cache.synced() {
            self.rebuild(dataplane, cache);
        } else {
            self.shut_new(dataplane);
        }
        match &mut self.failure {
            Some(again) => again.backoff = failure.backoff.again(Instant::now()),
            None => tracing::info!("the kernel holds every policy again"),
        }
    }

    /// Whether the kernel has what a pod of this node is to have.
    ///
    /// # Errors
    ///
    /// Why it has not, for the plugin to pass on: the pod would be open.
    pub fn check(&self, dataplane: &Dataplane, pod: &ObjectName) -> Result<(), String> {
        let Some(local) = self.pods.get(pod).filter(|_| self.on) else { return Ok(()) };
        // Where all went well there is nothing to ask.
        let Some(failure) = &self.failure else { return Ok(()) };
        let held = dataplane.policy_tables().map_err(|error| error.to_string())?;
        if interfaces(local).all(|ifindex| held.sets.contains_key(&ifindex)) {
            return Ok(());
        }
        Err(format!("no policy can be put in force for pod {pod}: {}", failure.error))
    }

    /// The planner, for explanations.
    pub fn planner(&self) -> &PolicyPlanner {
        &self.planner
    }

    /// Whether the planner takes an address for the node's own.
    pub fn is_node(&self, addr: IpAddr) -> bool {
        self.node.contains(&addr)
    }

    /// The pods of this node.
    pub fn local(&self) -> &LocalPods {
        &self.pods
    }

    /// The pod at an interface of this node.
    pub fn pod_at(&self, ifindex: u32) -> Option<&ObjectName> {
        let at = |pod: &LocalPod| interfaces(pod).any(|other| other == ifindex);
        self.pods.iter().find(|(_, pod)| at(pod)).map(|(name, _)| name)
    }

    /// What the kernel holds after all that was written.
    pub fn tables(&self) -> &PolicyTables {
        self.planner.tables()
    }

    /// Writes that the kernel refused, ever, by map.
    pub fn failures(&self) -> &BTreeMap<&'static str, u64> {
        &self.failures
    }

    /// How long each update since the last call took.
    pub fn take_updates(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.updates)
    }

    /// What is wrong, subject and message.
    pub fn problem(&self) -> Option<(&'static str, &str)> {
        self.failure.as_ref().map(|failure| ("policies", failure.error.as_str()))
    }

    /// How many policies are in force here, and how many pods they isolate.
    pub fn note(&self) -> String {
        if !self.on {
            return String::new();
        }
        if !self.planned {
            return "as the agent before left them, until the source is known".to_owned();
        }
        let isolated = self.tables().sets.values().filter(|sets| **sets != PolicySets::default());
        format!("{} in force, {} pods isolated", self.planner.in_force(), isolated.count())
    }
}

/// All interfaces of a pod.
fn interfaces(pod: &LocalPod) -> impl Iterator<Item = u32> + use<'_> {
    pod.others.iter().copied().chain([pod.ifindex])
}

impl Agent {
    /// Brings policies to the pods that are on this node now.
    pub(super) fn sync_policies(&mut self) {
        self.policies.pods(&mut self.dataplane, self.endpoints.local());
        self.note_policy_updates();
    }
}
