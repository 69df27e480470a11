//! Names below the cluster's domain, and the records they have.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{NS, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use sluice_model::Protocol;

use super::{Domain, PodRecords, address};
use crate::zone::{
    EndpointRecord, Endpoints, MAX_LABEL, PortRecord, ServiceRecords, Shape, Snapshot,
};

/// The version of the Kubernetes DNS specification that this server keeps.
pub(super) const SPECIFICATION: &str = "1.1.0";
/// The same for the cluster set's domain: of the multicluster DNS specification.
pub(super) const CLUSTERSET_SPECIFICATION: &str = "1.0.0";
/// How long `dns-version` lives, in seconds, as in CoreDNS: it changes with the server only.
const SPECIFICATION_TTL: u32 = 28800;

/// What a name means.
#[derive(Clone, Copy)]
pub(crate) enum Found<'s, 'q> {
    /// There is no such name.
    Missing,
    /// The name exists because others are below it.
    Empty,
    /// The domain itself.
    Apex,
    /// `ns.dns`, the zone's name server.
    NameServer,
    /// `dns-version`.
    Version,
    /// An alias for another name.
    Alias(&'s Name),
    /// Addresses, each once for every port that matches.
    Service(Match<'s, 'q>),
    /// A pod by its address.
    Pod(IpAddr),
}

/// One address with one port.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'s> {
    /// The address.
    pub(crate) addr: IpAddr,
    /// The port, if it has a number.
    pub(crate) port: Option<u16>,
    /// The endpoint's label; `None` for a cluster IP.
    pub(crate) endpoint: Option<&'s str>,
    /// The key of the Service.
    pub(crate) service: &'s str,
}

/// Which endpoints and ports of a Service a name asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'q> {
    /// `SERVICE`.
    Whole,
    /// `ENDPOINT.SERVICE`.
    Endpoint(&'q [u8]),
    /// `ENDPOINT.CLUSTER.SERVICE`, below the cluster set's domain.
    Member {
        /// The endpoint.
        endpoint: &'q [u8],
        /// The cluster it is in.
        cluster: &'q [u8],
    },
    /// `_PORT._PROTOCOL.SERVICE`.
    Port {
        /// Without its underscore.
        name: &'q [u8],
        /// Without its underscore.
        protocol: &'q [u8],
    },
}

impl Part<'_> {
    fn takes_endpoint(&self, endpoint: &EndpointRecord<'_>) -> bool {
        match self {
            Self::Endpoint(label) => endpoint.label.as_bytes().eq_ignore_ascii_case(label),
            Self::Member { endpoint: label, cluster } => {
                let parts = endpoint.label.split_once('.');
                parts.is_some_and(|(own, of)| {
                    own.as_bytes().eq_ignore_ascii_case(label)
                        && of.as_bytes().eq_ignore_ascii_case(cluster)
                })
            }
            Self::Whole | Self::Port { .. } => true,
        }
    }

    fn takes_port(&self, port: &PortRecord) -> bool {
        match self {
            Self::Port { name, protocol } => {
                // A port without a name has no SRV name of its own.
                !name.is_empty()
                    && port.name.as_bytes().eq_ignore_ascii_case(name)
                    && label_of(port.protocol).eq_ignore_ascii_case(protocol)
            }
            Self::Whole | Self::Endpoint(_) | Self::Member { .. } => true,
        }
    }
}

/// A protocol as a label, without the underscore.
fn label_of(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Tcp => b"tcp",
        Protocol::Udp => b"udp",
        Protocol::Sctp => b"sctp",
    }
}

/// A part of a Service that has something.
#[derive(Clone, Copy)]
pub(crate) struct Match<'s, 'q> {
    /// The Service.
    pub(crate) records: &'s ServiceRecords,
    /// What of it.
    pub(crate) part: Part<'q>,
}

impl<'s, 'q> Match<'s, 'q> {
    /// The entries: of the cluster IPs, or of the endpoints, one for each port that matches, and
    /// one without a port where there are no ports. Entries of one address stand side by side.
    pub(crate) fn entries(self) -> impl Iterator<Item = Entry<'s>> + use<'s, 'q> {
        let Self { records, part } = self;
        let (addrs, own_ports, endpoints): (&[IpAddr], &[PortRecord], Option<&Endpoints>) =
            match (&records.shape, part) {
                (Shape::Cluster { addrs, ports }, Part::Whole | Part::Port { .. }) => {
                    (addrs, ports, None)
                }
                (Shape::Cluster { .. }, Part::Endpoint(_) | Part::Member { .. })
                | (Shape::Headless, _) => (&[], &[], Some(&records.endpoints)),
                (Shape::External(_) | Shape::Nothing, _) => (&[], &[], None),
            };
        let service: &str = &records.key;
        let own =
            addrs.iter().flat_map(move |addr| entries((*addr, None, service), own_ports, part));
        let theirs = endpoints
            .into_iter()
            .flat_map(Endpoints::iter)
            .filter(move |endpoint| part.takes_endpoint(endpoint))
            .flat_map(move |e| entries((e.addr, Some(e.label), service), e.ports, part));
        own.chain(theirs)
    }
}

fn entries<'s, 'q>(
    (addr, endpoint, service): (IpAddr, Option<&'s str>, &'s str),
    ports: &'s [PortRecord],
    part: Part<'q>,
) -> impl Iterator<Item = Entry<'s>> + use<'s, 'q> {
    let entry = move |port| Entry { addr, port, endpoint, service };
    let portless = ports.is_empty() && !matches!(part, Part::Port { .. });
    let taken = ports.iter().filter(move |port| part.takes_port(port));
    portless.then(|| entry(None)).into_iter().chain(taken.map(move |port| entry(port.number)))
}

/// The longest name that means anything has so many labels below the apex.
pub(crate) const MAX_LABELS: usize = 5;

/// Finds a name that is the apex or below it.
pub(crate) fn find_name<'s, 'q>(
    domain: &Domain,
    snapshot: &'s Snapshot,
    name: &'q Name,
) -> Found<'s, 'q> {
    let below = name.iter().len() - domain.apex.iter().len();
    let mut labels: [&[u8]; MAX_LABELS] = [&[]; MAX_LABELS];
    if below > labels.len() {
        return Found::Missing;
    }
    for (slot, label) in labels.iter_mut().zip(name.iter()).take(below) {
        *slot = label;
    }
    find(domain.pods, snapshot, &labels[..below])
}

/// Finds a name by its labels below the apex. Allocates nothing.
pub(crate) fn find<'s, 'q>(
    pods: PodRecords,
    snapshot: &'s Snapshot,
    labels: &[&'q [u8]],
) -> Found<'s, 'q> {
    let is = |label: &[u8], word: &str| label.eq_ignore_ascii_case(word.as_bytes());
    if snapshot.is_clusterset() {
        match labels {
            [pod] if is(pod, "pod") => return Found::Missing,
            [cluster, service, namespace, svc] if is(svc, "svc") => {
                return find_member_cluster(snapshot, cluster, service, namespace);
            }
            [endpoint, cluster, service, namespace, svc]
                if is(svc, "svc") && !(endpoint.starts_with(b"_") && cluster.starts_with(b"_")) =>
            {
                let part = Part::Member { endpoint, cluster };
                return find_service(snapshot, service, namespace, part);
            }
            _ => {}
        }
    }
    match labels {
        [] => Found::Apex,
        [label] if is(label, "svc") || is(label, "pod") || is(label, "dns") => Found::Empty,
        [label] if is(label, "dns-version") => Found::Version,
        [ns, dns] if is(ns, "ns") && is(dns, "dns") => Found::NameServer,
        [rest @ .., svc] if is(svc, "svc") => match rest {
            [namespace] => find_namespace(snapshot, namespace),
            [service, namespace] => find_service(snapshot, service, namespace, Part::Whole),
            [endpoint, service, namespace] => {
                find_service(snapshot, service, namespace, Part::Endpoint(endpoint))
            }
            [port, protocol, service, namespace] => {
                let part = Part::Port { name: bare(port), protocol: bare(protocol) };
                find_service(snapshot, service, namespace, part)
            }
            _ => Found::Missing,
        },
        [rest @ .., pod] if is(pod, "pod") && pods != PodRecords::Disabled => match rest {
            [namespace] => find_namespace(snapshot, namespace),
            [addr, namespace] => find_pod(pods, snapshot, addr, namespace),
            _ => Found::Missing,
        },
        _ => Found::Missing,
    }
}

fn find_namespace<'s, 'q>(snapshot: &'s Snapshot, namespace: &[u8]) -> Found<'s, 'q> {
    let mut buffer = [0; MAX_KEY];
    match key(&[namespace], &mut buffer) {
        Some(namespace) if snapshot.has_namespace(namespace) => Found::Empty,
        _ => Found::Missing,
    }
}

fn find_pod<'s, 'q>(
    pods: PodRecords,
    snapshot: &'s Snapshot,
    label: &[u8],
    namespace: &[u8],
) -> Found<'s, 'q> {
    let mut buffer = [0; MAX_KEY];
    let found =
        key(&[namespace], &mut buffer).zip(undashed(label)).filter(
            |(namespace, addr)| match pods {
                PodRecords::Disabled => false,
                PodRecords::Insecure => snapshot.has_namespace(namespace),
                PodRecords::Verified => snapshot.pod_is_in(addr, namespace),
            },
        );
    found.map_or(Found::Missing, |(_, addr)| Found::Pod(addr))
}

/// `CLUSTER.SERVICE.NAMESPACE.svc`: nothing itself, but names of endpoints are below it.
fn find_member_cluster<'s, 'q>(
    snapshot: &'s Snapshot,
    cluster: &[u8],
    service: &'q [u8],
    namespace: &'q [u8],
) -> Found<'s, 'q> {
    let Found::Service(found) = find_service(snapshot, service, namespace, Part::Whole) else {
        return Found::Missing;
    };
    let has = |endpoint: EndpointRecord<'_>| {
        let parts = endpoint.label.split_once('.');
        parts.is_some_and(|(_, of)| of.as_bytes().eq_ignore_ascii_case(cluster))
    };
    if found.records.endpoints.iter().any(has) { Found::Empty } else { Found::Missing }
}

fn find_service<'s, 'q>(
    snapshot: &'s Snapshot,
    service: &[u8],
    namespace: &[u8],
    part: Part<'q>,
) -> Found<'s, 'q> {
    let mut buffer = [0; MAX_KEY];
    let Some(key) = key(&[service, namespace], &mut buffer) else { return Found::Missing };
    let Some(records) = snapshot.service(key) else { return Found::Missing };
    let exists = match (&records.shape, part) {
        (Shape::Nothing, _) => false,
        (Shape::External(target), Part::Whole) => return Found::Alias(target),
        (Shape::External(_), _) => false,
        // A Service that has no address yet exists all the same.
        (Shape::Cluster { .. }, Part::Whole) => true,
        (Shape::Cluster { ports, .. }, Part::Port { .. }) => {
            ports.iter().any(|port| part.takes_port(port))
        }
        (Shape::Cluster { .. }, Part::Endpoint(_) | Part::Member { .. }) | (Shape::Headless, _) => {
            Match { records, part }.entries().next().is_some()
        }
    };
    if exists { Found::Service(Match { records, part }) } else { Found::Missing }
}

/// Two labels with a dot.
const MAX_KEY: usize = 2 * MAX_LABEL + 1;

/// Labels as a key of the snapshot: joined by dots, in lower case; `None` where they cannot be
/// Kubernetes names.
fn key<'b>(labels: &[&[u8]], buffer: &'b mut [u8; MAX_KEY]) -> Option<&'b str> {
    let mut length = 0;
    for (n, label) in labels.iter().enumerate() {
        if n > 0 {
            *buffer.get_mut(length)? = b'.';
            length += 1;
        }
        let place = buffer.get_mut(length..length + label.len())?;
        place.copy_from_slice(label);
        place.make_ascii_lowercase();
        length += label.len();
    }
    std::str::from_utf8(&buffer[..length]).ok()
}

/// A label without the underscore that marks a port or a protocol (RFC 2782).
fn bare(label: &[u8]) -> &[u8] {
    label.strip_prefix(b"_").unwrap_or(label)
}

/// The address that a label of a pod's name stands for: `10-1-0-7`, `fd00--7`. Any spelling that
/// parses is understood, as in CoreDNS.
fn undashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let mut buffer = [0u8; MAX_LABEL];
    let place = buffer.get_mut(..text.len())?;
    let v4 = text.bytes().filter(|b| *b == b'-').count() == 3 && !text.contains("--");
    for (slot, byte) in place.iter_mut().zip(text.bytes()) {
        *slot = match byte {
            b'-' if v4 => b'.',
            b'-' => b':',
            other => other,
        };
    }
    std::str::from_utf8(place).ok()?.parse().ok()
}

impl Domain {
    /// The records that a name has for a type, and those that go with them.
    pub(super) fn records(
        &self,
        snapshot: &Snapshot,
        found: &Found<'_, '_>,
        owner: &Name,
        kind: RecordType,
        local: Option<IpAddr>,
    ) -> (Vec<Record>, Vec<Record>) {
        let one = |data| (vec![self.record(owner.clone(), data)], Vec::new());
        match (found, kind) {
            (Found::Apex, RecordType::SOA) => {
                (vec![self.soa(owner, snapshot.serial())], Vec::new())
            }
            (Found::Apex, RecordType::NS) => {
                let ns = self.record(owner.clone(), RData::NS(NS(self.name_server.clone())));
                let glue = local.map(|a| self.record(self.name_server.clone(), address(a)));
                (vec![ns], glue.into_iter().collect())
            }
            (Found::NameServer, _) => match local {
                Some(local) if address(local).record_type() == kind => one(address(local)),
                _ => Default::default(),
            },
            (Found::Version, RecordType::TXT) => {
                let text = RData::TXT(TXT::new(vec![self.version.to_owned()]));
                (vec![Record::from_rdata(owner.clone(), SPECIFICATION_TTL, text)], Vec::new())
            }
            (Found::Service(found), RecordType::A | RecordType::AAAA) => {
                (self.addresses(*found, owner, kind), Vec::new())
            }
            (Found::Service(found), RecordType::SRV) => self.services(*found, owner),
            (Found::Pod(addr), _) if address(*addr).record_type() == kind => one(address(*addr)),
            _ => Default::default(),
        }
    }

    fn addresses(&self, found: Match<'_, '_>, owner: &Name, kind: RecordType) -> Vec<Record> {
        let mut last = None;
        found
            .entries()
            // Entries of one address stand side by side.
            .filter(|entry| last.replace(entry.addr) != Some(entry.addr))
            .map(|entry| address(entry.addr))
            .filter(|data| data.record_type() == kind)
            .map(|data| self.record(owner.clone(), data))
            .collect()
    }

    fn services(&self, found: Match<'_, '_>, owner: &Name) -> (Vec<Record>, Vec<Record>) {
        let weight = weight(found.entries().count());
        let (mut seen, mut glued) = (BTreeSet::new(), BTreeSet::new());
        let (mut records, mut glue) = (Vec::new(), Vec::new());
        for entry in found.entries() {
            let (Some(port), Ok(target)) = (entry.port, self.target(entry.endpoint, entry.service))
            else {
                continue;
            };
            if seen.insert((entry.endpoint, port)) {
                let srv = SRV::new(0, weight, port, target.clone());
                records.push(self.record(owner.clone(), RData::SRV(srv)));
            }
            if glued.insert((entry.endpoint, entry.addr)) {
                glue.push(self.record(target, address(entry.addr)));
            }
        }
        (records, glue)
    }

    /// `[ENDPOINT.]SERVICE.NAMESPACE.svc.DOMAIN`.
    ///
    /// # Errors
    ///
    /// The name is longer than DNS allows.
    pub(super) fn target(
        &self,
        endpoint: Option<&str>,
        service: &str,
    ) -> Result<Name, hickory_proto::ProtoError> {
        let mut name = Name::new();
        // Of a ServiceImport an endpoint's label is two.
        let endpoint = endpoint.into_iter().flat_map(|endpoint| endpoint.split('.'));
        for label in endpoint.chain(service.split('.')).chain(["svc"]) {
            name = name.append_label(label.as_bytes())?;
        }
        name.append_domain(&self.apex)
    }
}

/// The weight of each of so many SRV records. Each address counts, so one port of a dual-stack
/// Service weighs 50, as in CoreDNS.
pub(crate) fn weight(entries: usize) -> u16 {
    u16::try_from(100 / entries.max(1)).unwrap_or(1).max(1)
}
