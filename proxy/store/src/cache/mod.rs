//! What the cluster looks like, folded out of a source's events. Pure: no I/O, no clock.

mod endpoints;
mod rejects;
mod selectors;
mod slices;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_model::{
    ClusterNetworkPolicy, Endpoint, Namespace, NetworkPolicy, Node, Object, ObjectKey, ObjectName,
    Pod, ResourceKind, Service, ServiceImport, ServiceKind,
};

use crate::{Event, Rejected};
use rejects::Rejects;
use selectors::Selectors;
use slices::{Import, Slice, Slices, Texts};

/// What [`Cache::ingest`] changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Services that changed, appeared or went, or whose endpoints did.
    pub services: BTreeSet<ObjectName>,
    /// Pods that changed, appeared or went.
    pub pods: BTreeSet<ObjectName>,
    /// Nodes that changed, appeared or went.
    pub nodes: BTreeSet<String>,
    /// ServiceImports that changed, appeared or went, or whose endpoints did.
    pub imports: BTreeSet<ObjectName>,
    /// Namespaces that appeared, went or changed.
    pub namespaces: BTreeSet<String>,
    /// Network policies that changed, appeared or went.
    pub policies: BTreeSet<ObjectName>,
    /// Cluster-wide network policies that changed, appeared or went.
    pub cluster_policies: BTreeSet<ObjectName>,
    /// Rejections that were not known before: to be warned about once.
    pub rejected: Vec<Rejected>,
    /// Whether a list was completed by these events. [`Cache::synced`] says whether one ever was.
    pub synced: bool,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An object in the form that the cache keeps.
#[derive(Debug)]
enum Kept {
    Slice(ObjectName, Slice),
    Other(Box<Object>),
}

impl Kept {
    fn kind(&self) -> ResourceKind {
        match self {
            Self::Slice(..) => ResourceKind::EndpointSlice,
            Self::Other(object) => object.kind(),
        }
    }
}

/// An object's place in a list that is not complete yet.
#[derive(Debug)]
enum Listed {
    /// In the form that the cache holds.
    Same,
    /// In another form.
    New(Kept),
    /// It could not be understood.
    Rejected,
}

/// A list between `Init` and `InitDone`.
#[derive(Debug, Default)]
struct List {
    objects: HashMap<ObjectKey, Listed>,
    rejected: BTreeMap<String, Rejected>,
}

/// The objects of a source. An event costs work in proportion to the object it names, and to the
/// Services that select it; the end of a list costs work in proportion to the list.
#[derive(Debug, Default)]
pub struct Cache {
    services: BTreeMap<ObjectName, Service>,
    slices: Slices,
    texts: Texts,
    pods: BTreeMap<ObjectName, Pod>,
    nodes: BTreeMap<String, Node>,
    namespaces: BTreeMap<String, Namespace>,
    policies: BTreeMap<ObjectName, NetworkPolicy>,
    cluster_policies: BTreeMap<ObjectName, ClusterNetworkPolicy>,
    imports: BTreeMap<ObjectName, ServiceImport>,
    /// Services that have a selector and no slice, and which pods they select.
    selectors: Selectors,
    rejects: Rejects,
    list: Option<List>,
    synced: bool,
    /// See [`Cache::for_names`].
    names_only: bool,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cache for whom Services are names with addresses and ports: it keeps no labels and
    /// annotations of Services, and of endpoints neither nodes and zones nor the pods behind them.
    pub fn for_names() -> Self {
        Self { names_only: true, texts: Texts::names_only(), ..Self::default() }
    }

    /// Folds events in, in order, and says what they changed. Events inside a list change nothing
    /// until its `InitDone`, which changes only what differs from what was known before.
    pub fn ingest(&mut self, events: impl IntoIterator<Item = Event>) -> Changes {
        let mut changes = Changes::default();
        self.rejects.begin();
        for event in events {
            match event {
                Event::Init => self.list = Some(List::default()),
                Event::InitDone => {
                    if let Some(list) = self.list.take() {
                        self.swap(list, &mut changes);
                        self.synced = true;
                        changes.synced = true;
                    }
                }
                event => match self.list.take() {
                    Some(mut list) => {
                        self.enlist(&mut list, event);
                        self.list = Some(list);
                    }
                    None => self.change(event, &mut changes),
                },
            }
        }
        changes.rejected = self.rejects.end();
        changes
    }

    /// Whether a complete list has been seen.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// All Services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The Service of that name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// All Pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The Pod of that name.
    pub fn pod(&self, name: &ObjectName) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// All Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// All Namespaces that the source has as objects, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// The Namespace of that name, where the source has it as an object.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// All network policies, by name. Those with faults are in force, closed.
    pub fn policies(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.policies.values()
    }

    /// The network policy of that name.
    pub fn policy(&self, name: &ObjectName) -> Option<&NetworkPolicy> {
        self.policies.get(name)
    }

    /// All cluster-wide network policies, by name. Those with faults are in force, closed.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &ClusterNetworkPolicy> {
        self.cluster_policies.values()
    }

    /// The cluster-wide network policy of that name.
    pub fn cluster_policy(&self, name: &ObjectName) -> Option<&ClusterNetworkPolicy> {
        self.cluster_policies.get(name)
    }

    /// Whether that namespace exists: as an object, or because a Service or a Pod is in it (a
    /// directory of manifests often leaves Namespaces out).
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
            || first_in(&self.services, name).is_some()
            || first_in(&self.pods, name).is_some()
    }

    /// The ServiceImport of that name.
    pub fn import(&self, name: &ObjectName) -> Option<&ServiceImport> {
        self.imports.get(name)
    }

    /// The endpoints of a ServiceImport, each with the cluster it is in, sorted by cluster and
    /// address: all its EndpointSlices merged, those of each cluster by themselves. Empty for one that
    /// does not exist.
    pub fn import_endpoints(&self, name: &ObjectName) -> Vec<(Option<String>, Endpoint)> {
        if !self.imports.contains_key(name) {
            return Vec::new();
        }
        let mut clusters: BTreeMap<Option<&String>, Vec<Endpoint>> = BTreeMap::new();
        for slice in self.slices.of_import(name) {
            let cluster = slice.import.as_ref().and_then(|import| import.cluster.as_ref());
            clusters.entry(cluster).or_default().extend(slice.content.endpoints());
        }
        clusters
            .into_iter()
            .flat_map(|(cluster, all)| {
                endpoints::merge(all.into_iter()).into_iter().map(move |e| (cluster.cloned(), e))
            })
            .collect()
    }

    /// What could not be understood, by origin.
    pub fn rejected(&self) -> impl Iterator<Item = &Rejected> {
        self.rejects.iter()
    }

    /// The endpoints of a Service, one entry an address, sorted by address: all its EndpointSlices
    /// merged, or the pods it selects where it has no slice at all. Empty for a Service that does
    /// not exist or is an ExternalName.
    pub fn endpoints(&self, name: &ObjectName) -> Vec<Endpoint> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        if matches!(service.kind, ServiceKind::ExternalName(_)) {
            return Vec::new();
        }
        if let Some(slices) = self.slices.of(name) {
            return endpoints::merge(slices.flat_map(|slice| slice.content.endpoints()));
        }
        let pods = self.selectors.pods_of(name).filter_map(|pod| {
            self.pods.get(&ObjectName { namespace: name.namespace.clone(), name: pod.clone() })
        });
        endpoints::derive(service, pods, |node| self.nodes.get(node).and_then(Node::zone))
    }

    /// One event of an unfinished list.
    fn enlist(&mut self, list: &mut List, event: Event) {
        match event {
            Event::Apply(object) => {
                let key = object.key();
                let kept = self.keep(object);
                let listed = if self.holds(&key, &kept) { Listed::Same } else { Listed::New(kept) };
                list.objects.insert(key, listed);
            }
            Event::Delete(key) => {
                list.objects.remove(&key);
            }
            Event::Reject(rejected) => {
                if let Some(key) = &rejected.key {
                    // A good form that the same list had before it is better than none.
                    list.objects.entry(key.clone()).or_insert(Listed::Rejected);
                }
                list.rejected.insert(rejected.origin.clone(), rejected);
            }
            Event::Recover(origin) => {
                list.rejected.remove(&origin);
            }
            // `ingest` takes these itself.
            Event::Init | Event::InitDone => {}
        }
    }

    /// Puts a complete list in the place of what was known.
    fn swap(&mut self, list: List, changes: &mut Changes) {
        let gone: Vec<ObjectKey> =
            self.keys().filter(|key| !list.objects.contains_key(key)).collect();
        for key in gone {
            self.delete(&key, changes);
        }
        let mut new: Vec<Kept> = list
            .objects
            .into_values()
            .filter_map(|listed| match listed {
                Listed::New(kept) => Some(kept),
                Listed::Same | Listed::Rejected => None,
            })
            .collect();
        // Pods last: then no Service of a first list has to look for its pods, and no node either.
        new.sort_by_key(|kept| (kept.kind() == ResourceKind::Pod, kept.kind()));
        for kept in new {
            self.apply(kept, changes);
        }
        self.rejects.replace(list.rejected.into_values());
    }

    /// One event outside of a list.
    fn change(&mut self, event: Event, changes: &mut Changes) {
        match event {
            Event::Apply(object) => {
                self.rejects.recover_key(&object.key());
                let kept = self.keep(object);
                self.apply(kept, changes);
            }
            Event::Delete(key) => {
                self.rejects.recover_key(&key);
                self.delete(&key, changes);
            }
            Event::Reject(rejected) => self.rejects.insert(rejected),
            Event::Recover(origin) => self.rejects.recover_origin(&origin),
            // `ingest` takes these itself.
            Event::Init | Event::InitDone => {}
        }
    }

    /// An object in the form that the cache keeps.
    fn keep(&mut self, object: Box<Object>) -> Kept {
        if let Object::EndpointSlice(slice) = *object {
            Kept::Slice(slice.meta.name.clone(), self.texts.slice(slice))
        } else {
            let mut object = object;
            if let Object::Service(service) = &mut *object
                && self.names_only
            {
                service.meta.labels.clear();
                service.meta.annotations.clear();
            }
            Kept::Other(object)
        }
    }

    /// Whether the cache holds the object in exactly this form.
    fn holds(&self, key: &ObjectKey, kept: &Kept) -> bool {
        match kept {
            Kept::Slice(name, new) => self.slices.get(name) == Some(new),
            Kept::Other(object) => match &**object {
                Object::Service(new) => self.services.get(&key.name) == Some(new),
                Object::EndpointSlice(_) => false,
                Object::Pod(new) => self.pods.get(&key.name) == Some(new),
                Object::Node(new) => self.nodes.get(&key.name.name) == Some(new),
                Object::Namespace(new) => self.namespaces.get(&key.name.name) == Some(new),
                Object::NetworkPolicy(new) => self.policies.get(&key.name) == Some(new),
                Object::ClusterNetworkPolicy(new) => {
                    self.cluster_policies.get(&key.name) == Some(new)
                }
                Object::ServiceImport(new) => self.imports.get(&key.name) == Some(new),
            },
        }
    }

    /// The keys of all objects.
    fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        let namespaced =
            |kind: ResourceKind| move |name: &ObjectName| ObjectKey { kind, name: name.clone() };
        let cluster = |kind: ResourceKind| {
            move |name: &String| ObjectKey { kind, name: ObjectName::new("", name.clone()) }
        };
        let services = self.services.keys().map(namespaced(ResourceKind::Service));
        let slices = self.slices.names().map(namespaced(ResourceKind::EndpointSlice));
        let pods = self.pods.keys().map(namespaced(ResourceKind::Pod));
        let nodes = self.nodes.keys().map(cluster(ResourceKind::Node));
        let namespaces = self.namespaces.keys().map(cluster(ResourceKind::Namespace));
        let policies = self.policies.keys().map(namespaced(ResourceKind::NetworkPolicy));
        let kind = ResourceKind::ClusterNetworkPolicy;
        let cluster_policies = self.cluster_policies.keys().map(namespaced(kind));
        let imports = self.imports.keys().map(namespaced(ResourceKind::ServiceImport));
        services
            .chain(slices)
            .chain(pods)
            .chain(nodes)
            .chain(namespaces)
            .chain(policies)
            .chain(cluster_policies)
            .chain(imports)
    }

    fn apply(&mut self, kept: Kept, changes: &mut Changes) {
        let object = match kept {
            Kept::Slice(name, slice) => return self.apply_slice(name, slice, changes),
            Kept::Other(object) => *object,
        };
        match object {
            Object::Service(service) => self.apply_service(service, changes),
            Object::EndpointSlice(slice) => {
                let (name, slice) = (slice.meta.name.clone(), self.texts.slice(slice));
                self.apply_slice(name, slice, changes);
            }
            Object::Pod(pod) => self.apply_pod(pod, changes),
            Object::Node(node) => self.apply_node(node, changes),
            Object::Namespace(namespace) => {
                let name = namespace.meta.name.name.clone();
                if self.namespaces.get(&name) != Some(&namespace) {
                    self.namespaces.insert(name.clone(), namespace);
                    changes.namespaces.insert(name);
                }
            }
            Object::NetworkPolicy(policy) => {
                let name = policy.meta.name.clone();
                if self.policies.get(&name) != Some(&policy) {
                    self.policies.insert(name.clone(), policy);
                    changes.policies.insert(name);
                }
            }
            Object::ClusterNetworkPolicy(policy) => {
                let name = policy.meta.name.clone();
                if self.cluster_policies.get(&name) != Some(&policy) {
                    self.cluster_policies.insert(name.clone(), policy);
                    changes.cluster_policies.insert(name);
                }
            }
            Object::ServiceImport(import) => {
                let name = import.meta.name.clone();
                if self.imports.get(&name) != Some(&import) {
                    self.imports.insert(name.clone(), import);
                    changes.imports.insert(name);
                }
            }
        }
    }

    fn delete(&mut self, key: &ObjectKey, changes: &mut Changes) {
        let name = &key.name;
        match key.kind {
            ResourceKind::Service => {
                if self.services.remove(name).is_some() {
                    self.selectors.remove(name);
                    changes.services.insert(name.clone());
                }
            }
            ResourceKind::EndpointSlice => {
                let Some(old) = self.slices.remove(name) else { return };
                if let Some(service) = old.service {
                    self.resettle(&service);
                    self.mark(&service, changes);
                }
                self.mark_import(old.import.as_deref(), changes);
            }
            ResourceKind::Pod => {
                if self.pods.remove(name).is_some() {
                    changes.services.extend(self.selectors.pod_gone(name));
                    changes.pods.insert(name.clone());
                }
            }
            ResourceKind::Node => {
                if let Some(old) = self.nodes.remove(&name.name) {
                    if old.zone().is_some() {
                        self.mark_node(&name.name, changes);
                    }
                    changes.nodes.insert(name.name.clone());
                }
            }
            ResourceKind::Namespace => {
                if self.namespaces.remove(&name.name).is_some() {
                    changes.namespaces.insert(name.name.clone());
                }
            }
            ResourceKind::NetworkPolicy => {
                if self.policies.remove(name).is_some() {
                    changes.policies.insert(name.clone());
                }
            }
            ResourceKind::ClusterNetworkPolicy => {
                if self.cluster_policies.remove(name).is_some() {
                    changes.cluster_policies.insert(name.clone());
                }
            }
            ResourceKind::ServiceImport => {
                if self.imports.remove(name).is_some() {
                    changes.imports.insert(name.clone());
                }
            }
        }
    }

    fn apply_service(&mut self, service: Service, changes: &mut Changes) {
        let name = service.meta.name.clone();
        let old = self.services.get(&name);
        if old == Some(&service) {
            return;
        }
        let reselect = old.is_none_or(|old| {
            old.selector != service.selector || selects(old) != selects(&service)
        });
        self.services.insert(name.clone(), service);
        if reselect {
            self.reselect(&name);
        }
        changes.services.insert(name);
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Slice, changes: &mut Changes) {
        if self.slices.get(&name) == Some(&slice) {
            return;
        }
        let service = slice.service.clone();
        self.mark_import(slice.import.as_deref(), changes);
        let old = self.slices.insert(name, slice);
        let import = old.as_ref().and_then(|old| old.import.as_deref());
        self.mark_import(import, changes);
        let old = old.and_then(|old| old.service);
        if old != service
            && let Some(old) = old
        {
            self.resettle(&old);
            self.mark(&old, changes);
        }
        if let Some(service) = service {
            self.resettle(&service);
            self.mark(&service, changes);
        }
    }

    fn apply_pod(&mut self, pod: Pod, changes: &mut Changes) {
        let name = pod.meta.name.clone();
        let old = self.pods.get(&name);
        if old == Some(&pod) {
            return;
        }
        if old.is_some_and(|old| old.meta.labels == pod.meta.labels) {
            changes.services.extend(self.selectors.services_of(&name));
        } else {
            changes.services.extend(self.selectors.pod_labels(&name, &pod.meta.labels));
        }
        self.pods.insert(name.clone(), pod);
        changes.pods.insert(name);
    }

    fn apply_node(&mut self, node: Node, changes: &mut Changes) {
        let name = node.meta.name.name.clone();
        let old = self.nodes.get(&name);
        if old == Some(&node) {
            return;
        }
        let moved = old.and_then(Node::zone) != node.zone();
        self.nodes.insert(name.clone(), node);
        if moved {
            self.mark_node(&name, changes);
        }
        changes.nodes.insert(name);
    }

    /// The zone of a node changed, and with it that of the endpoints that come out of its pods. Looks
    /// at all pods that are selected so: none where the source has EndpointSlices.
    fn mark_node(&self, node: &str, changes: &mut Changes) {
        for pod in self.selectors.selected() {
            if self.pods.get(pod).is_some_and(|pod| pod.node.as_deref() == Some(node)) {
                changes.services.extend(self.selectors.services_of(pod));
            }
        }
    }

    /// Slices of a Service came or went: its endpoints come out of them if there are any.
    fn resettle(&mut self, service: &ObjectName) {
        if self.slices.any(service) {
            self.selectors.remove(service);
        } else {
            self.reselect(service);
        }
    }

    /// Finds out anew which pods a Service selects, if its endpoints come out of pods.
    fn reselect(&mut self, name: &ObjectName) {
        self.selectors.remove(name);
        if self.slices.any(name) {
            return;
        }
        let Some(service) = self.services.get(name) else { return };
        let Some(selector) = service.selector.as_ref().filter(|_| selects(service)) else { return };
        let pods = in_namespace(&self.pods, &name.namespace).map(|(name, pod)| (name, &pod.meta));
        self.selectors.insert(name, selector, pods);
    }

    /// The endpoints of a ServiceImport changed.
    fn mark_import(&self, import: Option<&Import>, changes: &mut Changes) {
        if let Some(Import { name, .. }) = import
            && self.imports.contains_key(name)
        {
            changes.imports.insert(name.clone());
        }
    }

    /// The endpoints of a Service changed. One that does not exist (yet) is marked when it comes.
    fn mark(&self, service: &ObjectName, changes: &mut Changes) {
        if self.services.contains_key(service) {
            changes.services.insert(service.clone());
        }
    }
}

/// Whether a Service may get endpoints by its selector.
fn selects(service: &Service) -> bool {
    service.selector.is_some() && !matches!(service.kind, ServiceKind::ExternalName(_))
}

/// The objects of one namespace.
fn in_namespace<'a, T>(
    objects: &'a BTreeMap<ObjectName, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectName, &'a T)> {
    objects
        .range(ObjectName::new(namespace, "")..)
        .take_while(move |(name, _)| name.namespace == namespace)
}

/// The first object of one namespace.
fn first_in<'a, T>(objects: &'a BTreeMap<ObjectName, T>, namespace: &'a str) -> Option<&'a T> {
    in_namespace(objects, namespace).map(|(_, object)| object).next()
}
