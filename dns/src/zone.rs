//! What the cluster's zone holds: an immutable snapshot, indexed for questions.
//!
//! A [`Snapshot`] is cheap to copy and to change a little, so the feed makes a new one for each
//! batch of changes and swaps it in whole, and a question never sees half a change.

mod endpoints;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use sluice_model::{Endpoint, ObjectName, Protocol, Service, ServiceImport, ServiceKind};

pub use endpoints::{EndpointRecord, Endpoints};

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
    /// The published endpoints: the ready ones, or all of them where the Service has
    /// `publishNotReadyAddresses`.
    pub endpoints: Endpoints,
    /// The IPv4 addresses that the Service's own name has, each once.
    pub v4: Box<[Ipv4Addr]>,
    /// The IPv6 addresses that the Service's own name has, each once.
    pub v6: Box<[Ipv6Addr]>,
    /// Whether two endpoints go by one label.
    pub shared_labels: bool,
}

impl ServiceRecords {
    fn new(key: Arc<str>, shape: Shape, endpoints: Endpoints) -> Self {
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
        let mut labels: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.label).collect();
        labels.sort_unstable();
        let shared_labels = labels.windows(2).any(|two| two[0] == two[1]);
        Self { key, shape, endpoints, v4, v6, shared_labels }
    }

    /// Whether any port is known of it, its own or an endpoint's.
    pub(crate) fn has_ports(&self) -> bool {
        let own = matches!(&self.shape, Shape::Cluster { ports, .. } if !ports.is_empty());
        own || self.endpoints.iter().any(|endpoint| !endpoint.ports.is_empty())
    }

    /// The addresses that are its own in the reverse index.
    fn owned_addrs(&self) -> BTreeSet<IpAddr> {
        let addrs: &[IpAddr] = match &self.shape {
            Shape::Cluster { addrs, .. } => addrs,
            Shape::Headless | Shape::External(_) | Shape::Nothing => &[],
        };
        addrs.iter().copied().chain(self.endpoints.iter().map(|e| e.addr)).collect()
    }

    /// What it is to an address.
    fn owners(&self, addr: IpAddr) -> impl Iterator<Item = Owner<'_>> {
        let own = matches!(&self.shape, Shape::Cluster { addrs, .. } if addrs.contains(&addr));
        let endpoints = self.endpoints.at(addr).map(|endpoint| Some(endpoint.label));
        let service = &*self.key;
        own.then_some(None).into_iter().chain(endpoints).map(|endpoint| Owner { endpoint, service })
    }
}

/// Who an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner<'z> {
    /// The endpoint's label; `None` for the cluster IP of the Service itself.
    pub endpoint: Option<&'z str>,
    /// The key of the Service.
    pub service: &'z str,
}

/// The keys of the Services that one address belongs to. Nearly all addresses have one.
#[derive(Clone, Debug)]
enum Owners {
    One(Arc<str>),
    /// Sorted. Behind a pointer of one word, so that this takes no more room than the other.
    Many(Arc<Vec<Arc<str>>>),
}

impl Owners {
    fn all(&self) -> &[Arc<str>] {
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
    /// By address; each family by itself, since there is an entry for every endpoint of the cluster.
    owners_v4: ShardMap<Ipv4Addr, Owners>,
    owners_v6: ShardMap<Ipv6Addr, Owners>,
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
            && self.owners_v4 == other.owners_v4
            && self.owners_v6 == other.owners_v6
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
            owners_v4: ShardMap::new(),
            owners_v6: ShardMap::new(),
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
    pub fn owners(&self, addr: &IpAddr) -> Vec<Owner<'_>> {
        let keys = self.owner_keys(*addr).iter();
        let services = keys.filter_map(|key| self.services.get(&**key));
        let mut owners: Vec<_> = services.flat_map(|service| service.owners(*addr)).collect();
        // Those of Services come first.
        owners.sort_unstable();
        owners.dedup();
        let services = owners.partition_point(|owner| owner.endpoint.is_none());
        if services > 0 {
            owners.truncate(services);
        }
        owners
    }

    fn owner_keys(&self, addr: IpAddr) -> &[Arc<str>] {
        let owners = match addr {
            IpAddr::V4(addr) => self.owners_v4.get(&addr),
            IpAddr::V6(addr) => self.owners_v6.get(&addr),
        };
        owners.map_or(&[][..], Owners::all)
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
        let Some(key) = new.or(old).map(|records| records.key.clone()) else { return };
        let old = old.map(ServiceRecords::owned_addrs).unwrap_or_default();
        let new = new.map(ServiceRecords::owned_addrs).unwrap_or_default();
        for addr in old.symmetric_difference(&new) {
            let mut keys = self.owner_keys(*addr).to_vec();
            match keys.binary_search(&key) {
                Ok(at) if !new.contains(addr) => drop(keys.remove(at)),
                Err(at) if new.contains(addr) => keys.insert(at, key.clone()),
                _ => continue,
            }
            let owners = match keys.pop() {
                None => None,
                Some(one) if keys.is_empty() => Some(Owners::One(one)),
                Some(last) => {
                    keys.push(last);
                    Some(Owners::Many(Arc::new(keys)))
                }
            };
            match addr {
                IpAddr::V4(addr) => self.owners_v4.set(*addr, owners),
                IpAddr::V6(addr) => self.owners_v6.set(*addr, owners),
            }
        }
    }
}

/// `NAME.NAMESPACE`, lower case.
fn key_of(name: &ObjectName) -> String {
    format!("{}.{}", name.name, name.namespace).to_ascii_lowercase()
}

fn records_of(service: &Service, endpoints: &[Endpoint]) -> ServiceRecords {
    let key = key_of(&service.meta.name).into();
    let shape = match &service.kind {
        ServiceKind::ExternalName(target) => {
            return ServiceRecords::new(key, external(target), Endpoints::default());
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
    ServiceRecords::new(key, shape, Endpoints::new(published.map(endpoint_record).collect()))
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
        return ServiceRecords::new(key, shape, Endpoints::default());
    }
    let mut records = Vec::new();
    for (cluster, endpoint) in endpoints.iter().filter(|(_, e)| e.conditions.ready) {
        let (addr, mut label, ports) = endpoint_record(endpoint);
        if let Some(cluster) = cluster.as_ref().filter(|cluster| is_label(cluster)) {
            label = format!("{label}.{}", cluster.to_ascii_lowercase());
        }
        records.push((addr, label, ports));
    }
    ServiceRecords::new(key, Shape::Headless, Endpoints::new(records))
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

fn endpoint_record(endpoint: &Endpoint) -> (IpAddr, String, Vec<PortRecord>) {
    let ports = endpoint.ports.iter().map(|port| PortRecord {
        name: port.name.to_ascii_lowercase().into(),
        protocol: port.protocol,
        number: port.port,
    });
    (endpoint.addr, label_of(endpoint), ports.collect())
}

/// The label an endpoint goes by: its hostname where it has a usable one, else its address with
/// dashes.
fn label_of(endpoint: &Endpoint) -> String {
    match &endpoint.hostname {
        Some(name) if is_label(name) => name.to_ascii_lowercase(),
        _ => dashed(endpoint.addr),
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
