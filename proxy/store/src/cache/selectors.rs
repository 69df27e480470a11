//! Which pods the selectors of Services select, kept up to date in proportion to the change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_model::{Meta, ObjectName};

type Labels = BTreeMap<String, String>;

/// One Service with a selector and without EndpointSlices.
#[derive(Debug)]
struct Entry {
    selector: Labels,
    /// Names of the selected pods, which are in the Service's namespace.
    pods: BTreeSet<String>,
}

/// The Services whose endpoints come out of pods.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    entries: HashMap<ObjectName, Entry>,
    /// Namespace, label, value: the names of the Services whose selector's last pair that is. A pod
    /// can only be selected by Services found under one of its labels. The last pair, since labels
    /// sort from the general (`app`) to the particular (`tier`, `version`) more often than not.
    by_label: HashMap<String, HashMap<String, HashMap<String, BTreeSet<String>>>>,
    /// The Services that select a pod; pods that none selects are not in it.
    services_of: HashMap<ObjectName, BTreeSet<String>>,
}

impl Selectors {
    /// A Service begins to select; `pods` are all pods of its namespace.
    pub(super) fn insert<'a>(
        &mut self,
        service: &ObjectName,
        selector: &Labels,
        pods: impl Iterator<Item = (&'a ObjectName, &'a Meta)>,
    ) {
        let Some((label, value)) = selector.last_key_value() else { return };
        let mut selected = BTreeSet::new();
        for (name, meta) in pods {
            if matches(selector, &meta.labels) {
                selected.insert(name.name.clone());
                self.services_of.entry(name.clone()).or_default().insert(service.name.clone());
            }
        }
        self.by_label
            .entry(service.namespace.clone())
            .or_default()
            .entry(label.clone())
            .or_default()
            .entry(value.clone())
            .or_default()
            .insert(service.name.clone());
        self.entries.insert(service.clone(), Entry { selector: selector.clone(), pods: selected });
    }

    /// A Service no longer selects.
    pub(super) fn remove(&mut self, service: &ObjectName) {
        let Some(entry) = self.entries.remove(service) else { return };
        for pod in entry.pods {
            let pod = ObjectName { namespace: service.namespace.clone(), name: pod };
            if let Some(services) = self.services_of.get_mut(&pod) {
                services.remove(&service.name);
                if services.is_empty() {
                    self.services_of.remove(&pod);
                }
            }
        }
        let Some((label, value)) = entry.selector.last_key_value() else { return };
        let Some(labels) = self.by_label.get_mut(&service.namespace) else { return };
        let Some(values) = labels.get_mut(label) else { return };
        let Some(names) = values.get_mut(value) else { return };
        names.remove(&service.name);
        if names.is_empty() {
            values.remove(value);
        }
        if values.is_empty() {
            labels.remove(label);
        }
        if labels.is_empty() {
            self.by_label.remove(&service.namespace);
        }
    }

    /// The pods that a Service selects, by name.
    pub(super) fn pods_of(&self, service: &ObjectName) -> impl Iterator<Item = &String> {
        self.entries.get(service).into_iter().flat_map(|entry| &entry.pods)
    }

    /// The Services that select a pod.
    pub(super) fn services_of(&self, pod: &ObjectName) -> Vec<ObjectName> {
        let names = self.services_of.get(pod).into_iter().flatten();
        names.map(|name| ObjectName::new(pod.namespace.clone(), name.clone())).collect()
    }

    /// All pods that any Service selects.
    pub(super) fn selected(&self) -> impl Iterator<Item = &ObjectName> {
        self.services_of.keys()
    }

    /// A pod appeared or changed its labels: the Services that select it now or did before.
    pub(super) fn pod_labels(&mut self, pod: &ObjectName, labels: &Labels) -> Vec<ObjectName> {
        let mut affected = self.pod_gone(pod);
        let mut selected_by = BTreeSet::new();
        if let Some(by_label) = self.by_label.get(&pod.namespace) {
            for (label, value) in labels {
                let names = by_label.get(label).and_then(|values| values.get(value));
                for name in names.into_iter().flatten() {
                    let service = ObjectName::new(pod.namespace.clone(), name.clone());
                    let Some(entry) = self.entries.get_mut(&service) else { continue };
                    if matches(&entry.selector, labels) {
                        entry.pods.insert(pod.name.clone());
                        selected_by.insert(name.clone());
                        affected.push(service);
                    }
                }
            }
        }
        if !selected_by.is_empty() {
            self.services_of.insert(pod.clone(), selected_by);
        }
        affected
    }

    /// A pod is gone: the Services that selected it.
    pub(super) fn pod_gone(&mut self, pod: &ObjectName) -> Vec<ObjectName> {
        let services = self.services_of(pod);
        self.services_of.remove(pod);
        for service in &services {
            if let Some(entry) = self.entries.get_mut(service) {
                entry.pods.remove(&pod.name);
            }
        }
        services
    }
}

/// Whether all pairs of the selector are among the labels.
fn matches(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(label, value)| labels.get(label) == Some(value))
}
