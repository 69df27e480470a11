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
    endpoints: Entries,
    ports: Box<[SlicePort]>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Entries {
    /// Of endpoints that say no more than this, as all do for whom Services are names.
    Plain(Box<[Plain]>),
    Full(Box<[Entry]>),
}

/// What every endpoint of a slice says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plain {
    addr: IpAddr,
    conditions: Conditions,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    plain: Plain,
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
        let (plain, full): (&[Plain], &[Entry]) = match &self.endpoints {
            Entries::Plain(plain) => (plain, &[]),
            Entries::Full(full) => (&[], full),
        };
        let plain = plain.iter().map(|plain| self.endpoint(*plain));
        plain.chain(full.iter().map(|entry| self.full_endpoint(entry)))
    }

    fn endpoint(&self, Plain { addr, conditions }: Plain) -> Endpoint {
        Endpoint::new(addr, self.ports.to_vec(), conditions)
    }

    fn full_endpoint(&self, entry: &Entry) -> Endpoint {
        let texts = |texts: &[Arc<str>]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        Endpoint {
            hostname: entry.rare.as_ref().and_then(|rare| rare.hostname.clone()),
            node: entry.place.as_ref().and_then(|it| it.node.as_ref()).map(ToString::to_string),
            zone: entry.place.as_ref().and_then(|it| it.zone.as_ref()).map(ToString::to_string),
            target: entry.target.as_ref().map(|target| ObjectRef {
                kind: target.kind.to_string(),
                name: ObjectName::new(&*target.namespace, &*target.name),
            }),
            for_zones: entry.rare.as_ref().map_or_else(Vec::new, |rare| texts(&rare.for_zones)),
            for_nodes: entry.rare.as_ref().map_or_else(Vec::new, |rare| texts(&rare.for_nodes)),
            ..self.endpoint(entry.plain)
        }
    }
}

impl Entries {
    fn new(full: Vec<Entry>) -> Self {
        let is_plain = |it: &Entry| it.place.is_none() && it.target.is_none() && it.rare.is_none();
        if full.iter().all(is_plain) {
            Self::Plain(full.iter().map(|entry| entry.plain).collect())
        } else {
            Self::Full(full.into())
        }
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
            AddressType::Fqdn => Vec::new(),
            AddressType::V4 | AddressType::V6 => {
                slice.endpoints.into_iter().filter_map(|e| self.entry(e)).collect()
            }
        };
        let content =
            Content { endpoints: Entries::new(endpoints), ports: slice.ports.into_boxed_slice() };
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
            plain: Plain { addr: *endpoint.addresses.first()?, conditions: endpoint.conditions },
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

    /// There is one for every endpoint of a cluster.
    #[test]
    fn a_plain_endpoint_takes_little_room() {
        assert!(size_of::<Plain>() <= 20, "{}", size_of::<Plain>());
    }

    /// O7: what an endpoint says comes out again, in whichever form it is kept.
    #[test]
    fn an_endpoint_says_what_its_slice_says() {
        let bare = SliceEndpoint {
            addresses: vec![[10, 1, 0, 1].into()],
            conditions: Conditions { ready: false, ..Conditions::default() },
            ..SliceEndpoint::default()
        };
        let full = SliceEndpoint {
            hostname: Some("db-0".to_owned()),
            node: Some("n1".to_owned()),
            zone: Some("z1".to_owned()),
            target: Some(ObjectRef { kind: "Pod".to_owned(), name: ObjectName::new("a", "b") }),
            for_zones: vec!["z1".to_owned()],
            for_nodes: vec!["n1".to_owned()],
            ..bare.clone()
        };
        let ports = vec![SlicePort { port: Some(80), ..SlicePort::default() }];
        for (endpoints, is_plain) in
            [(vec![bare.clone()], true), (vec![bare.clone(), full], false), (vec![], true)]
        {
            let slice = EndpointSlice {
                endpoints: endpoints.clone(),
                ports: ports.clone(),
                ..EndpointSlice::default()
            };
            let kept = Texts::default().slice(slice).content;
            assert_eq!(matches!(kept.endpoints, Entries::Plain(_)), is_plain);
            let out: Vec<_> = kept
                .endpoints()
                .map(|it| {
                    assert_eq!(it.ports, ports);
                    SliceEndpoint {
                        addresses: vec![it.addr],
                        conditions: it.conditions,
                        hostname: it.hostname,
                        node: it.node,
                        zone: it.zone,
                        target: it.target,
                        for_zones: it.for_zones,
                        for_nodes: it.for_nodes,
                    }
                })
                .collect();
            assert_eq!(out, endpoints);
        }
    }

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
