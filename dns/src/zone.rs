//! What the cluster's zone holds: an immutable snapshot, indexed for questions.
//!
//! A [`Snapshot`] is cheap to copy and to change a little, so the feed makes a new one for each
//! batch of changes and swaps it in whole, and a question never sees half a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use sluice_model::{Endpoint, ObjectName, Protocol, Service, ServiceImport, ServiceKind};

use crate::shards::ShardMap;

/// The longest label that DNS allows, in octets (RFC 1035 section 2.3.4).
pub(crate) const MAX_LABEL: usize = 63;

/// A port that SRV records tell of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortRecord {
    /// The port's name; empty where it has none.
    pub name: Box<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port number; `None` where the endpoint names none, which no SRV record can say.
    pub number: Option<u16>,
}

/// A published endpoint: the label it goes by, its address and its ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointRecord {
    /// The address.
    pub addr: IpAddr,
    /// The hostname, or the address with dashes; below the cluster set's domain, a dot and the cluster
    /// follow.
    pub label: Arc<str>,
    /// The ports, target ports of the pod. Endpoints with the same ports share the list.
    pub ports: Arc<[PortRecord]>,
}

/// What a Service's own name means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Its cluster IPs, with the Service's ports. No address at all where none is allocated yet.
    Cluster {
        /// The cluster IPs.
        addrs: Vec<IpAddr>,
        /// The Service's ports.
        ports: Vec<PortRecord>,
    },
    /// Its endpoints.
    Headless,
    /// An alias for another name. Such a Service has no endpoints and no ports.
    External(Name),
    /// Nothing: an `externalName` that is an address or no DNS name.
    Nothing,
}

/// All that the zone knows of one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceRecords {
    /// `NAME.NAMESPACE`, lower case: the two labels before `svc`.
    pub key: Arc<str>,
    /// What the Service's own name means.
    pub shape: Shape,
    /// The published endpoints, sorted by address: the ready ones, or all of them where the
    /// Service has `publishNotReadyAddresses`.
    pub endpoints: Vec<EndpointRecord>,
    /// The IPv4 addresses that the Service's own name has, each once.
    pub v4: Box<[Ipv4Addr]>,
    /// The IPv6 addresses that the Service's own name has, each once.
    pub v6: Box<[Ipv6Addr]>,
    /// Whether two endpoints go by one label.
    pub shared_labels: bool,
}

impl ServiceRecords {
    fn new(key: Arc<str>, shape: Shape, endpoints: Vec<EndpointRecord>) -> Self {
        let mut addrs: Vec<IpAddr> = match &shape {
            Shape::Cluster { addrs, .. } => addrs.clone(),
            Shape::Headless => endpoints.iter().map(|endpoint| endpoint.addr).collect(),
            Shape::External(_) | Shape::Nothing => Vec::new(),
        };
        addrs.dedup();
        let v4 = addrs.iter().filter_map(|addr| match addr {
            IpAddr::V4(addr) => Some(*addr),
            IpAddr::V6(_) => None,
        });
        let v6 = addrs.iter().filter_map(|addr| match addr {
            IpAddr::V6(addr) => Some(*addr),
            IpAddr::V4(_) => None,
        });
        let (v4, v6) = (v4.collect(), v6.collect());
        let mut labels: Vec<&str> = endpoints.iter().map(|endpoint| &*endpoint.label).collect();
        labels.sort_unstable();
        let shared_labels = labels.windows(2).any(|two| two[0] == two[1]);
        Self { key, shape, endpoints, v4, v6, shared_labels }
    }

    /// Whether any port is known of it, its own or an endpoint's.
    pub(crate) fn has_ports(&self) -> bool {
        let own = matches!(&self.shape, Shape::Cluster { ports, .. } if !ports.is_empty());
        own || self.endpoints.iter().any(|endpoint| !endpoint.ports.is_empty())
    }
}

/// Who an address belongs to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    /// The endpoint's label; `None` for the cluster IP of the Service itself.
    pub endpoint: Option<Arc<str>>,
    /// The key of the Service.
    pub service: Arc<str>,
}

/// The owners of one address. Nearly all addresses have one.
#[derive(Clone, Debug)]
enum Owners {
    One(Owner),
    /// Sorted.
    Many(Arc<[Owner]>),
}

impl Owners {
    fn all(&self) -> &[Owner] {
        match self {
            Self::One(owner) => std::slice::from_ref(owner),
            Self::Many(owners) => owners,
        }
    }
}

impl PartialEq for Owners {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct NamespaceEntry {
    /// The source has the Namespace object.
    declared: bool,
    /// How many Services are in it. A manifest directory often has no Namespace objects, and a
    /// namespace with Services in it does exist.
    services: u32,
}

/// The zone's content at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    services: ShardMap<Arc<str>, Arc<ServiceRecords>>,
    namespaces: ShardMap<Arc<str>, NamespaceEntry>,
    owners: ShardMap<IpAddr, Owners>,
    /// The namespaces of the pods with an address of their own. More than one pod has it for
    /// a moment, where an address is used again.
    pods: ShardMap<IpAddr, Arc<[Arc<str>]>>,
    synced: bool,
    serial: u32,
    /// Whether this is what is below the cluster set's domain: Services are ServiceImports then.
    is_clusterset: bool,
    /// What is below the cluster set's domain.
    clusterset: Option<Arc<Snapshot>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Snapshot {
    /// Equal in content; the serial number is no content.
    fn eq(&self, other: &Self) -> bool {
        self.synced == other.synced
            && self.namespaces == other.namespaces
            && self.services == other.services
            && self.owners == other.owners
            && self.pods == other.pods
            && self.is_clusterset == other.is_clusterset
            && self.clusterset() == other.clusterset()
    }
}

impl Snapshot {
    /// An empty snapshot that is not synced.
    pub fn new() -> Self {
        Self {
            services: ShardMap::new(),
            namespaces: ShardMap::new(),
            owners: ShardMap::new(),
            pods: ShardMap::new(),
            synced: false,
            serial: 0,
            is_clusterset: false,
            clusterset: None,
        }
    }

    /// Whether the source has been read whole once. Until then a name that is not here may well
    /// exist.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Says that the source has been read whole.
    pub fn set_synced(&mut self) {
        self.synced = true;
        if let Some(zone) = &mut self.clusterset {
            Arc::make_mut(zone).synced = true;
        }
    }

    /// The zone's serial number.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Sets the serial number; seconds since 1970 make one that also grows over a restart.
    pub fn set_serial(&mut self, serial: u32) {
        self.serial = serial;
        if let Some(zone) = &mut self.clusterset {
            Arc::make_mut(zone).serial = serial;
        }
    }

    /// Whether the Services here are ServiceImports, below the cluster set's domain.
    pub(crate) fn is_clusterset(&self) -> bool {
        self.is_clusterset
    }

    /// What is below the cluster set's domain; `None` where nothing has been imported.
    pub fn clusterset(&self) -> Option<&Snapshot> {
        self.clusterset.as_deref().filter(|zone| !zone.is_empty())
    }

    /// The same, to be changed. Namespaces of one name are the same in all clusters of a set, so those
    /// that are known here are known there.
    fn clusterset_mut(&mut self) -> &mut Snapshot {
        let zone = self.clusterset.get_or_insert_with(|| {
            let mut zone = Snapshot { is_clusterset: true, ..Snapshot::new() };
            (zone.synced, zone.serial) = (self.synced, self.serial);
            Arc::new(zone)
        });
        Arc::make_mut(zone)
    }

    /// Puts a ServiceImport with its endpoints, each with its cluster, in place of what was known of
    /// it.
    pub fn set_import(&mut self, import: &ServiceImport, endpoints: &[(Option<String>, Endpoint)]) {
        self.clusterset_mut().put(&import.meta.name, import_records(import, endpoints));
    }

    /// Removes a ServiceImport.
    pub fn remove_import(&mut self, name: &ObjectName) {
        if self.clusterset.is_some() {
            self.clusterset_mut().remove_service(name);
        }
    }

    /// How many Services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is no Service.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The Service with this key (see [`ServiceRecords::key`]).
    pub fn service(&self, key: &str) -> Option<&Arc<ServiceRecords>> {
        self.services.get(key)
    }

    /// Whether a namespace exists: its object is known, or a Service is in it.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get(name).is_some()
    }

    /// The owners of an address; empty where it belongs to nothing here. A cluster IP belongs to
    /// its Services, even where it is also an endpoint of another.
    pub fn owners(&self, addr: &IpAddr) -> &[Owner] {
        let all = self.owners.get(addr).map_or(&[][..], Owners::all);
        let services = all.partition_point(|owner| owner.endpoint.is_none());
        if services > 0 { &all[..services] } else { all }
    }

    /// Whether a pod of that namespace has that address.
    pub fn pod_is_in(&self, addr: &IpAddr, namespace: &str) -> bool {
        self.pods.get(addr).is_some_and(|all| all.iter().any(|it| **it == *namespace))
    }

    /// The namespace of the pod with that address; `None` where there is none, or where pods of
    /// several namespaces claim it.
    pub fn pod_namespace(&self, addr: &IpAddr) -> Option<&Arc<str>> {
        let (first, rest) = self.pods.get(addr)?.split_first()?;
        rest.iter().all(|it| it == first).then_some(first)
    }

    /// Says that a pod of that namespace has that address.
    pub fn add_pod(&mut self, addr: IpAddr, namespace: &str) {
        let namespace = match self.namespaces.get_key(namespace) {
            Some(known) => known.clone(),
            None => namespace.into(),
        };
        let old = self.pods.get(&addr).map(|all| all.to_vec()).unwrap_or_default();
        self.pods.insert(addr, old.into_iter().chain([namespace]).collect());
    }

    /// Says that a pod of that namespace has that address no more.
    pub fn remove_pod(&mut self, addr: &IpAddr, namespace: &str) {
        let Some(all) = self.pods.get(addr) else { return };
        let mut left = all.to_vec();
        if let Some(at) = left.iter().position(|it| **it == *namespace) {
            left.remove(at);
        }
        if left.is_empty() {
            self.pods.remove(addr);
        } else {
            self.pods.insert(*addr, left.into());
        }
    }

    /// Says whether the source has a Namespace object of that name.
    pub fn declare_namespace(&mut self, name: &str, exists: bool) {
        let name = name.to_ascii_lowercase();
        self.change_namespace(&name, |entry| entry.declared = exists);
        self.clusterset_mut().change_namespace(&name, |entry| entry.declared = exists);
    }

    /// Puts a Service with its endpoints in place of what was known of it.
    pub fn set_service(&mut self, service: &Service, endpoints: &[Endpoint]) {
        self.put(&service.meta.name, records_of(service, endpoints));
    }

    fn put(&mut self, name: &ObjectName, records: ServiceRecords) {
        let records = Arc::new(records);
        let old = self.services.get(&records.key).cloned();
        if old.as_ref() == Some(&records) {
            return;
        }
        if old.is_none() {
            let namespace = name.namespace.to_ascii_lowercase();
            self.change_namespace(&namespace, |entry| entry.services += 1);
        }
        self.move_owners(old.as_deref(), Some(&records));
        self.services.insert(records.key.clone(), records);
    }

    /// Removes a Service.
    pub fn remove_service(&mut self, name: &ObjectName) {
        let Some(old) = self.services.remove(key_of(name).as_str()) else { return };
        self.move_owners(Some(&old), None);
        self.change_namespace(&name.namespace.to_ascii_lowercase(), |entry| {
            entry.services = entry.services.saturating_sub(1);
        });
    }

    fn change_namespace(&mut self, name: &str, change: impl FnOnce(&mut NamespaceEntry)) {
        let mut entry = self.namespaces.get(name).copied().unwrap_or_default();
        change(&mut entry);
        if entry == NamespaceEntry::default() {
            self.namespaces.remove(name);
        } else {
            self.namespaces.insert(name.into(), entry);
        }
    }

    /// Moves the reverse index from one state of a Service to another. Only addresses that differ
    /// are touched, since each may copy a shard.
    fn move_owners(&mut self, old: Option<&ServiceRecords>, new: Option<&ServiceRecords>) {
        let old = old.map(owned_addrs).unwrap_or_default();
        let new = new.map(owned_addrs).unwrap_or_default();
        let mut changed: BTreeMap<IpAddr, BTreeSet<Owner>> = BTreeMap::new();
        for (addr, owner) in old.difference(&new) {
            self.changed_owners(&mut changed, *addr).remove(owner);
        }
        for (addr, owner) in new.difference(&old) {
            self.changed_owners(&mut changed, *addr).insert(owner.clone());
        }
        for (addr, owners) in changed {
            let mut owners: Vec<Owner> = owners.into_iter().collect();
            match (owners.pop(), owners.is_empty()) {
                (None, _) => drop(self.owners.remove(&addr)),
                (Some(one), true) => drop(self.owners.insert(addr, Owners::One(one))),
                (Some(last), false) => {
                    owners.push(last);
                    self.owners.insert(addr, Owners::Many(owners.into()));
                }
            }
        }
    }

    fn changed_owners<'c>(
        &self,
        changed: &'c mut BTreeMap<IpAddr, BTreeSet<Owner>>,
        addr: IpAddr,
    ) -> &'c mut BTreeSet<Owner> {
        changed.entry(addr).or_insert_with(|| {
            self.owners
                .get(&addr)
                .map(|owners| owners.all().iter().cloned().collect())
                .unwrap_or_default()
        })
    }
}

/// `NAME.NAMESPACE`, lower case.
fn key_of(name: &ObjectName) -> String {
    format!("{}.{}", name.name, name.namespace).to_ascii_lowercase()
}

fn owned_addrs(records: &ServiceRecords) -> BTreeSet<(IpAddr, Owner)> {
    let addrs: &[IpAddr] = match &records.shape {
        Shape::Cluster { addrs, .. } => addrs,
        Shape::Headless | Shape::External(_) | Shape::Nothing => &[],
    };
    let own = addrs.iter().map(|addr| (*addr, None));
    let endpoints = records.endpoints.iter().map(|e| (e.addr, Some(e.label.clone())));
    own.chain(endpoints)
        .map(|(addr, endpoint)| (addr, Owner { endpoint, service: records.key.clone() }))
        .collect()
}

fn records_of(service: &Service, endpoints: &[Endpoint]) -> ServiceRecords {
    let key = key_of(&service.meta.name).into();
    let shape = match &service.kind {
        ServiceKind::ExternalName(target) => {
            return ServiceRecords::new(key, external(target), Vec::new());
        }
        _ if service.headless => Shape::Headless,
        _ => Shape::Cluster {
            addrs: service.cluster_ips.clone(),
            ports: service
                .ports
                .iter()
                .map(|port| PortRecord {
                    name: port.name.to_ascii_lowercase().into(),
                    protocol: port.protocol,
                    number: Some(port.port),
                })
                .collect(),
        },
    };
    let published = endpoints.iter().filter(|e| e.conditions.ready || service.publish_not_ready);
    ServiceRecords::new(key, shape, endpoint_records(published))
}

fn import_records(
    import: &ServiceImport,
    endpoints: &[(Option<String>, Endpoint)],
) -> ServiceRecords {
    let key = key_of(&import.meta.name).into();
    if !import.headless {
        let ports = import.ports.iter().map(|port| PortRecord {
            name: port.name.to_ascii_lowercase().into(),
            protocol: port.protocol,
            number: Some(port.port),
        });
        let shape = Shape::Cluster { addrs: import.ips.clone(), ports: ports.collect() };
        // No name leads to the endpoints of one cluster alone.
        return ServiceRecords::new(key, shape, Vec::new());
    }
    let mut records = Vec::new();
    for (cluster, endpoint) in endpoints.iter().filter(|(_, e)| e.conditions.ready) {
        let mut record = endpoint_records(std::iter::once(endpoint));
        if let Some(cluster) = cluster.as_ref().filter(|cluster| is_label(cluster)) {
            for record in &mut record {
                record.label = format!("{}.{}", record.label, cluster.to_ascii_lowercase()).into();
            }
        }
        records.append(&mut record);
    }
    records.sort_by_key(|record| record.addr);
    ServiceRecords::new(key, Shape::Headless, records)
}

/// The target of an ExternalName Service. An address is no name, so it makes no record.
fn external(target: &str) -> Shape {
    if target.is_empty() || target.parse::<IpAddr>().is_ok() {
        return Shape::Nothing;
    }
    match Name::from_ascii(target) {
        Ok(mut name) => {
            name.set_fqdn(true);
            Shape::External(name)
        }
        Err(_) => Shape::Nothing,
    }
}

fn endpoint_records<'e>(endpoints: impl Iterator<Item = &'e Endpoint>) -> Vec<EndpointRecord> {
    let mut records: Vec<EndpointRecord> = Vec::new();
    for endpoint in endpoints {
        let ports: Vec<PortRecord> = endpoint
            .ports
            .iter()
            .map(|port| PortRecord {
                name: port.name.to_ascii_lowercase().into(),
                protocol: port.protocol,
                number: port.port,
            })
            .collect();
        let ports = match records.last() {
            Some(last) if *last.ports == *ports => last.ports.clone(),
            _ => ports.into(),
        };
        records.push(EndpointRecord { addr: endpoint.addr, label: label_of(endpoint), ports });
    }
    records.sort_by_key(|record| record.addr);
    // There is one for every endpoint of the cluster, and room for more is not needed.
    records.shrink_to_fit();
    records
}

/// The label an endpoint goes by: its hostname where it has a usable one, else its address with
/// dashes.
fn label_of(endpoint: &Endpoint) -> Arc<str> {
    match &endpoint.hostname {
        Some(name) if is_label(name) => name.to_ascii_lowercase().into(),
        _ => dashed(endpoint.addr).into(),
    }
}

fn is_label(name: &str) -> bool {
    (1..=MAX_LABEL).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// An address as a label: `172-0-0-2`, `5678-abcd--1`. A label neither begins nor ends with a dash,
/// so a zero stands there (`1234--0` for `1234::`).
pub fn dashed(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => addr.to_string().replace('.', "-"),
        IpAddr::V6(addr) => {
            // An IPv4-mapped address is written with dots by `Display`.
            let mut label = addr.to_string().replace([':', '.'], "-");
            if label.starts_with('-') {
                label.insert(0, '0');
            }
            if label.ends_with('-') {
                label.push('0');
            }
            label
        }
    }
}

#[cfg(test)]
mod tests;
