//! EndpointSlices in a form that takes little room: there is an entry for every endpoint of the
//! cluster, and most of what it says (node, zone, namespace, kind) thousands of others say too.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_model::{
    AddressType, Conditions, Endpoint, EndpointSlice, ObjectName, ObjectRef, SliceEndpoint,
    SlicePort,
};

/// One EndpointSlice, reduced to what endpoints come out of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slice {
    pub(super) service: Option<ObjectName>,
    /// What few slices have.
    pub(super) import: Option<Box<Import>>,
    pub(super) content: Content,
}

/// The ServiceImport that a slice belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Import {
    pub(super) name: ObjectName,
    /// The cluster that its endpoints are in.
    pub(super) cluster: Option<String>,
}

/// What a slice says about its Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    endpoints: Box<[Entry]>,
    ports: Box<[SlicePort]>,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    addr: IpAddr,
    conditions: Conditions,
    /// Shared by all endpoints of a node.
    place: Option<Arc<Place>>,
    target: Option<Box<Target>>,
    /// What few endpoints have.
    rare: Option<Box<Rare>>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Place {
    node: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    kind: Arc<str>,
    namespace: Arc<str>,
    name: Box<str>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rare {
    hostname: Option<String>,
    for_zones: Vec<Arc<str>>,
    for_nodes: Vec<Arc<str>>,
}

impl Content {
    /// The slice's endpoints with its ports.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        let texts = |texts: &[Arc<str>]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        self.endpoints.iter().map(move |entry| Endpoint {
            addr: entry.addr,
            ports: self.ports.to_vec(),
            conditions: entry.conditions,
            hostname: entry.rare.as_ref().and_then(|rare| rare.hostname.clone()),
            node: entry.place.as_ref().and_then(|it| it.node.as_ref()).map(ToString::to_string),
            zone: entry.place.as_ref().and_then(|it| it.zone.as_ref()).map(ToString::to_string),
            target: entry.target.as_ref().map(|target| ObjectRef {
                kind: target.kind.to_string(),
                name: ObjectName::new(&*target.namespace, &*target.name),
            }),
            for_zones: entry.rare.as_ref().map_or_else(Vec::new, |rare| texts(&rare.for_zones)),
            for_nodes: entry.rare.as_ref().map_or_else(Vec::new, |rare| texts(&rare.for_nodes)),
        })
    }
}

/// All slices, and which Service each belongs to.
#[derive(Debug, Default)]
pub(super) struct Slices {
    by_name: HashMap<ObjectName, Slice>,
    /// Whether the Service itself is there or not.
    /// Sorted; most Services have one.
    of_service: HashMap<ObjectName, Vec<ObjectName>>,
    /// The same for ServiceImports.
    of_import: HashMap<ObjectName, BTreeSet<ObjectName>>,
}

impl Slices {
    pub(super) fn get(&self, name: &ObjectName) -> Option<&Slice> {
        self.by_name.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.by_name.keys()
    }

    /// Whether a Service has any slice.
    pub(super) fn any(&self, service: &ObjectName) -> bool {
        self.of_service.contains_key(service)
    }

    /// The slices of a Service in the order of their names; `None` if it has none.
    pub(super) fn of(&self, service: &ObjectName) -> Option<impl Iterator<Item = &Slice>> {
        let names = self.of_service.get(service)?;
        Some(names.iter().filter_map(|name| self.by_name.get(name)))
    }

    /// The slices of a ServiceImport in the order of their names.
    pub(super) fn of_import(&self, import: &ObjectName) -> impl Iterator<Item = &Slice> {
        let names = self.of_import.get(import).into_iter().flatten();
        names.filter_map(|name| self.by_name.get(name))
    }

    /// Puts a slice in, and gives back the one of that name that was there.
    pub(super) fn insert(&mut self, name: ObjectName, slice: Slice) -> Option<Slice> {
        let old = self.remove(&name);
        if let Some(service) = &slice.service {
            let names = self.of_service.entry(service.clone()).or_default();
            if let Err(at) = names.binary_search(&name) {
                names.reserve_exact(1);
                names.insert(at, name.clone());
            }
        }
        if let Some(import) = &slice.import {
            self.of_import.entry(import.name.clone()).or_default().insert(name.clone());
        }
        self.by_name.insert(name, slice);
        old
    }

    /// Takes a slice out.
    pub(super) fn remove(&mut self, name: &ObjectName) -> Option<Slice> {
        let old = self.by_name.remove(name)?;
        if let Some(service) = &old.service
            && let Some(names) = self.of_service.get_mut(service)
        {
            names.retain(|it| it != name);
            if names.is_empty() {
                self.of_service.remove(service);
            }
        }
        if let Some(import) = &old.import
            && let Some(names) = self.of_import.get_mut(&import.name)
        {
            names.remove(name);
            if names.is_empty() {
                self.of_import.remove(&import.name);
            }
        }
        Some(old)
    }
}

/// Texts that many endpoints share.
#[derive(Debug, Default)]
pub(super) struct Texts {
    texts: HashSet<Arc<str>>,
    places: HashSet<Arc<Place>>,
    /// Leaves out all that names do not need.
    names_only: bool,
    /// How many texts there may be before those that nobody uses any more are dropped.
    limit: usize,
}

impl Texts {
    /// For whom endpoints are names and addresses, and no more.
    pub(super) fn names_only() -> Self {
        Self { names_only: true, ..Self::default() }
    }

    /// A slice in its small form.
    pub(super) fn slice(&mut self, slice: EndpointSlice) -> Slice {
        self.shed();
        let endpoints = match slice.address_type {
            // Host names have no place in a data plane; the slice itself still counts.
            AddressType::Fqdn => Box::default(),
            AddressType::V4 | AddressType::V6 => {
                slice.endpoints.into_iter().filter_map(|e| self.entry(e)).collect()
            }
        };
        let content = Content { endpoints, ports: slice.ports.into_boxed_slice() };
        let cluster = slice.cluster;
        let import = slice.import.map(|name| Box::new(Import { name, cluster }));
        Slice { service: slice.service, import, content }
    }

    fn entry(&mut self, endpoint: SliceEndpoint) -> Option<Entry> {
        let mut endpoint = endpoint;
        if self.names_only {
            endpoint = SliceEndpoint {
                addresses: endpoint.addresses,
                conditions: endpoint.conditions,
                hostname: endpoint.hostname,
                ..SliceEndpoint::default()
            };
        }
        let place = self.place(endpoint.node.as_deref(), endpoint.zone.as_deref());
        let SliceEndpoint { hostname, for_zones, for_nodes, .. } = endpoint;
        let plain = hostname.is_none() && for_zones.is_empty() && for_nodes.is_empty();
        Some(Entry {
            addr: *endpoint.addresses.first()?,
            conditions: endpoint.conditions,
            place,
            target: endpoint.target.map(|target| {
                Box::new(Target {
                    kind: self.shared(&target.kind),
                    namespace: self.shared(&target.name.namespace),
                    name: target.name.name.into_boxed_str(),
                })
            }),
            rare: (!plain).then(|| {
                Box::new(Rare {
                    hostname,
                    for_zones: for_zones.iter().map(|text| self.shared(text)).collect(),
                    for_nodes: for_nodes.iter().map(|text| self.shared(text)).collect(),
                })
            }),
        })
    }

    fn place(&mut self, node: Option<&str>, zone: Option<&str>) -> Option<Arc<Place>> {
        if node.is_none() && zone.is_none() {
            return None;
        }
        let place = Place {
            node: node.map(|text| self.shared(text)),
            zone: zone.map(|text| self.shared(text)),
        };
        if let Some(place) = self.places.get(&place) {
            return Some(place.clone());
        }
        let place = Arc::new(place);
        self.places.insert(place.clone());
        Some(place)
    }

    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(text) = self.texts.get(text) {
            return text.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    /// Drops what nobody uses any more, once there may be much of it.
    fn shed(&mut self) {
        if self.texts.len() + self.places.len() > self.limit {
            self.places.retain(|place| Arc::strong_count(place) > 1);
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.limit = ((self.texts.len() + self.places.len()) * 2).max(1024);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_nobody_uses_are_dropped() {
        let mut texts = Texts::default();
        let kept = texts.shared("kept");
        for i in 0..10_000 {
            texts.shared(&i.to_string());
            texts.shed();
        }
        assert!(texts.texts.len() <= 1025);
        assert!(Arc::ptr_eq(&kept, &texts.shared("kept")));
    }
}
