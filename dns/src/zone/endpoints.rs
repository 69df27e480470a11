//! The endpoints of a Service in a form that takes little room: a cluster has more of them than of
//! anything else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::PortRecord;

/// A published endpoint: the label it goes by, its address and its ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndpointRecord<'e> {
    /// The address.
    pub addr: IpAddr,
    /// The hostname, or the address with dashes; below the cluster set's domain, a dot and the cluster
    /// follow.
    pub label: &'e str,
    /// The ports, target ports of the pod.
    pub ports: &'e [PortRecord],
}

/// One endpoint. Its label and its ports are elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    addr: IpAddr,
    /// Octets of the label.
    length: u8,
    /// Where the label begins.
    start: u32,
    /// Which list of ports.
    ports: u32,
}

/// Published endpoints, sorted by address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Endpoints {
    entries: Box<[Entry]>,
    /// All labels, one behind the other.
    labels: Box<str>,
    /// Each list of ports once: nearly always there is one.
    ports: Box<[Box<[PortRecord]>]>,
}

impl Endpoints {
    /// Of these addresses, labels and ports. An endpoint whose label is longer than two labels can be
    /// is left out.
    pub(super) fn new(mut all: Vec<(IpAddr, String, Vec<PortRecord>)>) -> Self {
        all.sort_by_key(|(addr, ..)| *addr);
        let mut labels = String::with_capacity(all.iter().map(|(_, label, _)| label.len()).sum());
        let mut lists: BTreeMap<Vec<PortRecord>, u32> = BTreeMap::new();
        let mut entries = Vec::with_capacity(all.len());
        for (addr, label, ports) in all {
            let (Ok(length), Ok(start)) = (u8::try_from(label.len()), u32::try_from(labels.len()))
            else {
                continue;
            };
            labels.push_str(&label);
            // There are no more lists than endpoints, and four octets count those.
            let next = lists.len() as u32;
            let ports = *lists.entry(ports).or_insert(next);
            entries.push(Entry { addr, length, start, ports });
        }
        let mut ports = vec![Box::default(); lists.len()];
        for (list, at) in lists {
            ports[at as usize] = list.into();
        }
        Self { entries: entries.into(), labels: labels.into(), ports: ports.into() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = EndpointRecord<'_>> + Clone {
        self.entries.iter().map(|entry| self.record(entry))
    }

    /// Those with that address.
    pub(super) fn at(&self, addr: IpAddr) -> impl Iterator<Item = EndpointRecord<'_>> {
        let first = self.entries.partition_point(|entry| entry.addr < addr);
        let same = self.entries[first..].iter().take_while(move |entry| entry.addr == addr);
        same.map(|entry| self.record(entry))
    }

    fn record(&self, entry: &Entry) -> EndpointRecord<'_> {
        let start = entry.start as usize;
        EndpointRecord {
            addr: entry.addr,
            label: &self.labels[start..start + usize::from(entry.length)],
            ports: &self.ports[entry.ports as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_model::Protocol;

    use super::*;

    fn port(number: u16) -> PortRecord {
        PortRecord { name: "http".into(), protocol: Protocol::Tcp, number: Some(number) }
    }

    /// D4: each endpoint keeps its own label and ports, whoever it shares the room with.
    #[test]
    fn every_endpoint_comes_out_as_it_went_in() {
        let all: Vec<(IpAddr, String, Vec<PortRecord>)> = vec![
            ("10.1.0.9".parse().expect("an address"), "db-9".to_owned(), vec![port(1), port(2)]),
            ("fd00::1".parse().expect("an address"), "fd00--1".to_owned(), vec![]),
            ("10.1.0.1".parse().expect("an address"), "10-1-0-1".to_owned(), vec![port(7)]),
            ("10.1.0.9".parse().expect("an address"), String::new(), vec![port(7)]),
        ];
        let endpoints = Endpoints::new(all.clone());
        let out: Vec<_> =
            endpoints.iter().map(|it| (it.addr, it.label.to_owned(), it.ports.to_vec())).collect();
        assert_eq!(out, [&all[2], &all[0], &all[3], &all[1]].map(Clone::clone));
        let at = |addr: &str| -> Vec<String> {
            let addr = addr.parse().expect("an address");
            endpoints.at(addr).map(|it| it.label.to_owned()).collect()
        };
        assert_eq!(at("10.1.0.9"), ["db-9", ""]);
        assert_eq!(at("10.1.0.2"), [""; 0]);
        let small = size_of::<Entry>();
        assert!(small <= 28, "{small} octets an endpoint");
    }
}
