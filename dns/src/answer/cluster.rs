//! Names below the cluster's domain, and the records they have.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{NS, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::{Domain, address};
use crate::zone::{EndpointRecord, PortRecord, ServiceRecords, Shape, Snapshot};

/// The version of the Kubernetes DNS specification that this server keeps.
const SPECIFICATION: &str = "1.1.0";
/// How long `dns-version` lives, in seconds, as in CoreDNS: it changes with the server only.
const SPECIFICATION_TTL: u32 = 28800;

/// What a name means.
pub(super) enum Found<'s> {
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
    Entries(Vec<Entry<'s>>),
}

/// One address with one port.
pub(super) struct Entry<'s> {
    addr: IpAddr,
    port: Option<u16>,
    /// The endpoint's label; `None` for a cluster IP.
    endpoint: Option<&'s str>,
    service: &'s str,
}

/// Which endpoints and ports of a Service a name asks for.
enum Part<'q> {
    /// `SERVICE`.
    Whole,
    /// `ENDPOINT.SERVICE`.
    Endpoint(&'q [u8]),
    /// `_PORT._PROTOCOL.SERVICE`.
    Port { name: &'q [u8], protocol: &'q [u8] },
}

impl Part<'_> {
    fn takes_endpoint(&self, endpoint: &EndpointRecord) -> bool {
        match self {
            Self::Endpoint(label) => endpoint.label.as_bytes().eq_ignore_ascii_case(label),
            Self::Whole | Self::Port { .. } => true,
        }
    }

    fn takes_port(&self, port: &PortRecord) -> bool {
        match self {
            Self::Port { name, protocol } => {
                // A port without a name has no SRV name of its own.
                !name.is_empty()
                    && port.name.as_bytes().eq_ignore_ascii_case(name)
                    && port.protocol.to_string().as_bytes().eq_ignore_ascii_case(protocol)
            }
            Self::Whole | Self::Endpoint(_) => true,
        }
    }
}

/// Finds a name that is the apex or below it.
pub(super) fn find<'s>(domain: &Domain, snapshot: &'s Snapshot, name: &Name) -> Found<'s> {
    let below = name.iter().len() - domain.apex.iter().len();
    // The longest name that means anything has five labels, so a longer one needs no more looks.
    let mut labels: [&[u8]; 5] = [&[]; 5];
    if below > labels.len() {
        return Found::Missing;
    }
    for (slot, label) in labels.iter_mut().zip(name.iter()).take(below) {
        *slot = label;
    }
    let is = |label: &[u8], word: &str| label.eq_ignore_ascii_case(word.as_bytes());
    match &labels[..below] {
        [] => Found::Apex,
        [label] if is(label, "svc") || is(label, "pod") || is(label, "dns") => Found::Empty,
        [label] if is(label, "dns-version") => Found::Version,
        [ns, dns] if is(ns, "ns") && is(dns, "dns") => Found::NameServer,
        [rest @ .., svc] if is(svc, "svc") => match rest {
            [namespace] => match lower(namespace) {
                Some(namespace) if snapshot.has_namespace(&namespace) => Found::Empty,
                _ => Found::Missing,
            },
            [service, namespace] => find_service(snapshot, service, namespace, &Part::Whole),
            [endpoint, service, namespace] => {
                find_service(snapshot, service, namespace, &Part::Endpoint(endpoint))
            }
            [port, protocol, service, namespace] => {
                let part = Part::Port { name: bare(port), protocol: bare(protocol) };
                find_service(snapshot, service, namespace, &part)
            }
            _ => Found::Missing,
        },
        // Records of pods are off, as in CoreDNS by default.
        _ => Found::Missing,
    }
}

fn find_service<'s>(
    snapshot: &'s Snapshot,
    service: &[u8],
    namespace: &[u8],
    part: &Part<'_>,
) -> Found<'s> {
    let Some(key) = lower(service).zip(lower(namespace)).map(|(s, n)| format!("{s}.{n}")) else {
        return Found::Missing;
    };
    let Some(records) = snapshot.service(&key) else { return Found::Missing };
    match (&records.shape, part) {
        (Shape::Nothing, _) => Found::Missing,
        (Shape::External(target), Part::Whole) => Found::Alias(target),
        (Shape::External(_), _) => Found::Missing,
        (Shape::Cluster { addrs, ports }, Part::Whole | Part::Port { .. }) => {
            let entries: Vec<_> = addrs
                .iter()
                .flat_map(|addr| entries(*addr, None, &records.key, ports, part))
                .collect();
            // A Service that has no address yet exists all the same.
            let exists = matches!(part, Part::Whole) || ports.iter().any(|p| part.takes_port(p));
            if exists { Found::Entries(entries) } else { Found::Missing }
        }
        (Shape::Cluster { .. }, Part::Endpoint(_)) | (Shape::Headless, _) => {
            match endpoint_entries(records, part) {
                entries if entries.is_empty() => Found::Missing,
                entries => Found::Entries(entries),
            }
        }
    }
}

fn endpoint_entries<'s>(records: &'s ServiceRecords, part: &Part<'_>) -> Vec<Entry<'s>> {
    records
        .endpoints
        .iter()
        .filter(|endpoint| part.takes_endpoint(endpoint))
        .flat_map(|e| entries(e.addr, Some(&e.label), &records.key, &e.ports, part))
        .collect()
}

/// One entry for each port that matches, and one without a port where there are no ports.
fn entries<'s>(
    addr: IpAddr,
    endpoint: Option<&'s str>,
    service: &'s str,
    ports: &[PortRecord],
    part: &Part<'_>,
) -> Vec<Entry<'s>> {
    let entry = |port| Entry { addr, port, endpoint, service };
    if ports.is_empty() && !matches!(part, Part::Port { .. }) {
        return vec![entry(None)];
    }
    ports.iter().filter(|port| part.takes_port(port)).map(|port| entry(port.number)).collect()
}

/// A label as text in lower case; `None` where it cannot be a Kubernetes name.
fn lower(label: &[u8]) -> Option<String> {
    std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)
}

/// A label without the underscore that marks a port or a protocol (RFC 2782).
fn bare(label: &[u8]) -> &[u8] {
    label.strip_prefix(b"_").unwrap_or(label)
}

impl Domain {
    /// The records that a name has for a type, and those that go with them.
    pub(super) fn records(
        &self,
        snapshot: &Snapshot,
        found: &Found<'_>,
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
                let text = RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]));
                (vec![Record::from_rdata(owner.clone(), SPECIFICATION_TTL, text)], Vec::new())
            }
            (Found::Entries(entries), RecordType::A | RecordType::AAAA) => {
                (self.addresses(entries, owner, kind), Vec::new())
            }
            (Found::Entries(entries), RecordType::SRV) => self.services(entries, owner),
            _ => Default::default(),
        }
    }

    fn addresses(&self, entries: &[Entry<'_>], owner: &Name, kind: RecordType) -> Vec<Record> {
        let mut last = None;
        entries
            .iter()
            // Entries of one address stand side by side.
            .filter(|entry| last.replace(entry.addr) != Some(entry.addr))
            .map(|entry| address(entry.addr))
            .filter(|data| data.record_type() == kind)
            .map(|data| self.record(owner.clone(), data))
            .collect()
    }

    fn services(&self, entries: &[Entry<'_>], owner: &Name) -> (Vec<Record>, Vec<Record>) {
        // Each address counts, so one port of a dual-stack Service weighs 50, as in CoreDNS.
        let weight = u16::try_from(100 / entries.len().max(1)).unwrap_or(1).max(1);
        let (mut seen, mut glued) = (BTreeSet::new(), BTreeSet::new());
        let (mut records, mut glue) = (Vec::new(), Vec::new());
        for entry in entries {
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
        for label in endpoint.into_iter().chain(service.split('.')).chain(["svc"]) {
            name = name.append_label(label.as_bytes())?;
        }
        name.append_domain(&self.apex)
    }
}
