//! The short way: from the octets of a common query to the octets of its answer.
//!
//! Nearly all that pods ask is a query with one question for A, AAAA or SRV, without EDNS or with an
//! OPT record that has no options, about a name of the cluster or one that an upstream was asked for
//! a moment ago. Such a query is answered here without an allocation and without a decoder: the
//! question is copied as it came, and the records are written behind it.
//!
//! All else is left to [`crate::wire`] and [`crate::answer`], which are the measure: what is answered
//! here has the same meaning there (the tests compare the two over random zones and queries). Both
//! ask [`crate::answer::cluster`] what a name means.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;

use crate::answer::Domain;
use crate::answer::cluster::{self, Entry, Found, MAX_LABELS, Match, Part};
use crate::wire::{self, ClientEdns, HEADER, MAX_UDP, MIN_UDP};
use crate::zone::{Shape, Snapshot};

/// Octets of an OPT record without options.
const OPT: usize = wire::OPT as usize;
/// Names of more labels take the long way; those below `ip6.arpa` have 34.
const LABELS: usize = 24;
/// The most addresses that are collected; a Service's own name may have more.
const ADDRESSES: usize = 32;
/// The most SRV targets of one answer; no more fit into a datagram.
const TARGETS: usize = 40;
/// A pointer to the question's name.
const QUESTION: [u8; 2] = [0xc0, HEADER as u8];
/// The class IN.
const IN: [u8; 2] = [0, 1];

/// Record types by number (RFC 1035 section 3.2.2, RFC 3596, RFC 2782, RFC 9460).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const HTTPS: u16 = 65;
}

/// A buffer for one answer by UDP.
pub type Buffer = [u8; MAX_UDP as usize];

/// An answer in a [`Buffer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// How many octets it has.
    pub length: usize,
    /// Its response code.
    pub rcode: ResponseCode,
}

/// A common query.
#[derive(Debug)]
pub struct Query<'m> {
    message: &'m [u8],
    /// Where the question ends.
    end: usize,
    /// The question's name in wire form, in lower case.
    lower: [u8; 255],
    name_length: usize,
    /// Where each label begins in `lower`, at its length octet.
    labels: [u8; LABELS],
    count: usize,
    /// The type asked for.
    pub kind: u16,
    /// The client's OPT record.
    pub edns: Option<ClientEdns>,
}

impl<'m> Query<'m> {
    /// Reads a message. `None` for whatever is not common, well-formed or not.
    pub fn read(message: &'m [u8]) -> Option<Self> {
        let header = message.first_chunk::<HEADER>()?;
        // A query of opcode 0 with one question, no answer, no authority, at most one additional.
        if header[2] & 0xf8 != 0 || header[4..10] != [0, 1, 0, 0, 0, 0] || header[10] != 0 {
            return None;
        }
        let mut query = Self {
            message,
            end: 0,
            lower: [0; 255],
            name_length: 0,
            labels: [0; LABELS],
            count: 0,
            kind: 0,
            edns: None,
        };
        let name = &message[HEADER..];
        let mut at = 0usize;
        loop {
            let length = usize::from(*name.get(at)?);
            if length == 0 {
                break;
            }
            if length > 63 {
                return None;
            }
            *query.labels.get_mut(query.count)? = u8::try_from(at).ok()?;
            query.count += 1;
            at += 1 + length;
        }
        query.name_length = at + 1;
        let lower = query.lower.get_mut(..=at)?;
        lower.copy_from_slice(&name[..=at]);
        // Length octets are below 64, and so no letters.
        lower.make_ascii_lowercase();
        let question = name.get(at + 1..at + 5)?;
        if question[2..] != IN {
            return None;
        }
        query.kind = u16::from_be_bytes([question[0], question[1]]);
        query.end = HEADER + at + 5;
        let rest = &message[query.end..];
        match header[11] {
            0 if rest.is_empty() => {}
            1 => {
                let opt: &[u8; OPT] = rest.try_into().ok()?;
                // The root, the type, no extended code, version 0, no options.
                if opt[..3] != [0, 0, kind::OPT as u8] || opt[5..7] != [0, 0] || opt[9..] != [0, 0]
                {
                    return None;
                }
                let payload = u16::from_be_bytes([opt[3], opt[4]]);
                query.edns = Some(ClientEdns { payload, dnssec_ok: opt[7] & 0x80 != 0 });
            }
            _ => return None,
        }
        Some(query)
    }

    /// The question's name in wire form, in lower case.
    pub(crate) fn name(&self) -> &[u8] {
        &self.lower[..self.name_length]
    }

    /// The label of that index, in lower case.
    pub(crate) fn label(&self, index: usize) -> &[u8] {
        let at = usize::from(self.labels[index]);
        let length = usize::from(self.lower[at]);
        &self.lower[at + 1..at + 1 + length]
    }

    /// How many labels the name has.
    pub(crate) fn labels(&self) -> usize {
        self.count
    }

    /// How many labels stand before a domain of so many labels in wire form; `None` for a name that
    /// is neither the domain nor below it.
    pub(crate) fn below(&self, domain: &[u8], labels: usize) -> Option<usize> {
        let below = self.count.checked_sub(labels)?;
        let at = if labels == 0 { self.name_length - 1 } else { usize::from(self.labels[below]) };
        (self.lower[at..self.name_length] == *domain).then_some(below)
    }

    /// How many octets the message has.
    pub(crate) fn size(&self) -> usize {
        self.message.len()
    }

    /// The RD bit.
    pub(crate) fn recursion_desired(&self) -> bool {
        self.message[2] & 0x01 != 0
    }

    /// The CD bit.
    pub(crate) fn checking_disabled(&self) -> bool {
        self.message[3] & 0x10 != 0
    }

    /// Whether the client understands the AD bit.
    pub(crate) fn wants_authentic(&self) -> bool {
        self.message[3] & 0x20 != 0 || self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    fn id(&self) -> u16 {
        u16::from_be_bytes([self.message[0], self.message[1]])
    }

    /// The most octets that the answer may have by UDP, without its OPT record.
    fn limit(&self) -> usize {
        match self.edns {
            None => usize::from(MIN_UDP),
            Some(edns) => usize::from(edns.payload.clamp(MIN_UDP, MAX_UDP)) - OPT,
        }
    }
}

/// Writes an answer record by record, as long as they fit.
pub(crate) struct Writer<'q, 'b> {
    query: &'q Query<'q>,
    out: &'b mut Buffer,
    at: usize,
    limit: usize,
    /// Records of the answer, authority and additional sections.
    counts: [u16; 3],
    truncated: bool,
}

impl<'q, 'b> Writer<'q, 'b> {
    /// A writer that has written the question.
    pub(crate) fn new(query: &'q Query<'_>, out: &'b mut Buffer) -> Self {
        let end = query.end;
        // Longer than the longest name with its header a question is not.
        out[HEADER..end].copy_from_slice(&query.message[HEADER..end]);
        Self { query, out, at: end, limit: query.limit(), counts: [0; 3], truncated: false }
    }

    /// Room for so many octets, if there is room.
    pub(crate) fn take(&mut self, length: usize) -> Option<&mut [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.limit)?;
        let place = &mut self.out[self.at..end];
        self.at = end;
        Some(place)
    }

    /// An A or AAAA record; `false` where it does not fit.
    fn address(&mut self, owner: [u8; 2], addr: IpAddr, ttl: u32) -> bool {
        match addr {
            IpAddr::V4(addr) => self.data(owner, kind::A, &addr.octets(), ttl),
            IpAddr::V6(addr) => self.data(owner, kind::AAAA, &addr.octets(), ttl),
        }
    }

    fn data(&mut self, owner: [u8; 2], kind: u16, data: &[u8], ttl: u32) -> bool {
        let Some(place) = self.take(12 + data.len()) else { return false };
        put_head(place, owner, kind, ttl, data.len());
        place[12..].copy_from_slice(data);
        true
    }

    /// Counts records of the answer, authority or additional section.
    pub(crate) fn count(&mut self, section: usize, records: u16) {
        self.counts[section] += records;
    }

    /// Writes the OPT record and the header. `flags` and `more_flags` are those beside what the
    /// query determines.
    pub(crate) fn finish(mut self, flags: u8, more_flags: u8, rcode: ResponseCode) -> Done {
        if let Some(edns) = self.query.edns {
            let [high, low] = MAX_UDP.to_be_bytes();
            let dnssec_ok = if edns.dnssec_ok { 0x80 } else { 0 };
            let opt = [0, 0, kind::OPT as u8, high, low, 0, 0, dnssec_ok, 0, 0, 0];
            // The limit has left room for it.
            self.out[self.at..self.at + OPT].copy_from_slice(&opt);
            self.at += OPT;
            self.counts[2] += 1;
        }
        let message = self.query.message;
        let truncated = if self.truncated { 0x02 } else { 0 };
        self.out[..2].copy_from_slice(&message[..2]);
        self.out[2] = 0x80 | flags | truncated | message[2] & 0x01;
        self.out[3] = more_flags | message[3] & 0x10 | rcode.low();
        self.out[4..6].copy_from_slice(&[0, 1]);
        for (place, count) in self.out[6..HEADER].chunks_exact_mut(2).zip(self.counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        Done { length: self.at, rcode }
    }
}

fn put_head(place: &mut [u8], owner: [u8; 2], kind: u16, ttl: u32, length: usize) {
    place[..2].copy_from_slice(&owner);
    place[2..4].copy_from_slice(&kind.to_be_bytes());
    place[4..6].copy_from_slice(&IN);
    place[6..10].copy_from_slice(&ttl.to_be_bytes());
    // Datagrams are shorter than what two octets can say.
    place[10..12].copy_from_slice(&(length as u16).to_be_bytes());
}

/// The AA bit.
const AUTHORITATIVE: u8 = 0x04;
/// The RA bit.
pub(crate) const RECURSION_AVAILABLE: u8 = 0x80;

/// Answers a query about a name of the cluster. `None` where the long way has to: names that are not
/// the cluster's, aliases, types that are asked rarely, a zone that is not synced.
///
/// `recursion` says whether the server has upstreams (RA); `negative` whether a name below that
/// namespace may be denied here.
pub fn answer(
    query: &Query<'_>,
    domain: &Domain,
    snapshot: &Snapshot,
    recursion: bool,
    negative: impl Fn(&[u8]) -> bool,
    out: &mut Buffer,
) -> Option<Done> {
    if !snapshot.synced() {
        return None;
    }
    if !matches!(query.kind, kind::A | kind::AAAA | kind::SRV | kind::HTTPS) {
        return None;
    }
    let (apex, labels) = domain.wire();
    let below = query.below(apex, labels)?;
    let mut parts: [&[u8]; MAX_LABELS] = [&[]; MAX_LABELS];
    let found = if below > MAX_LABELS {
        Found::Missing
    } else {
        for (index, slot) in parts.iter_mut().enumerate().take(below) {
            *slot = query.label(index);
        }
        cluster::find(domain.pods(), snapshot, &parts[..below])
    };
    let ttl = domain.ttl();
    let mut writer = Writer::new(query, out);
    let mut rcode = ResponseCode::NoError;
    match found {
        Found::NameServer | Found::Version | Found::Alias(_) => return None,
        Found::Missing => rcode = ResponseCode::NXDomain,
        Found::Empty | Found::Apex => {}
        Found::Pod(addr) => {
            if kind_of(addr) == query.kind && writer.address(QUESTION, addr, ttl) {
                writer.count(0, 1);
            }
        }
        Found::Service(found) => match query.kind {
            kind::A | kind::AAAA => addresses(&mut writer, found, ttl)?,
            kind::SRV => services(&mut writer, found, apex, ttl)?,
            _ => {}
        },
    }
    if writer.counts[0] == 0 && !writer.truncated {
        if rcode == ResponseCode::NXDomain && below >= 3 && query.label(below - 1) == b"svc" {
            let namespace = query.label(below - 2);
            if !negative(namespace) {
                return None;
            }
        }
        start_of_authority(&mut writer, apex, snapshot.serial(), ttl)?;
    }
    let recursion = if recursion { RECURSION_AVAILABLE } else { 0 };
    Some(writer.finish(AUTHORITATIVE, recursion, rcode))
}

fn kind_of(addr: IpAddr) -> u16 {
    match addr {
        IpAddr::V4(_) => kind::A,
        IpAddr::V6(_) => kind::AAAA,
    }
}

/// The addresses of a name, beginning elsewhere each time. `None` where they are too many to be
/// collected.
fn addresses(writer: &mut Writer<'_, '_>, found: Match<'_, '_>, ttl: u32) -> Option<()> {
    let v4 = writer.query.kind == kind::A;
    if found.part == Part::Whole {
        let records = found.records;
        if v4 {
            rotated(writer, records.v4.len(), |n| records.v4[n].into(), ttl);
        } else {
            rotated(writer, records.v6.len(), |n| records.v6[n].into(), ttl);
        }
        return Some(());
    }
    let mut list = [IpAddr::V4(0.into()); ADDRESSES];
    let (mut count, mut last) = (0, None);
    for entry in found.entries() {
        if last.replace(entry.addr) != Some(entry.addr) && entry.addr.is_ipv4() == v4 {
            *list.get_mut(count)? = entry.addr;
            count += 1;
        }
    }
    rotated(writer, count, |n| list[n], ttl);
    Some(())
}

fn rotated(writer: &mut Writer<'_, '_>, count: usize, addr: impl Fn(usize) -> IpAddr, ttl: u32) {
    let first = usize::from(writer.query.id()).checked_rem(count).unwrap_or(0);
    for n in (first..count).chain(0..first) {
        if !writer.address(QUESTION, addr(n), ttl) {
            writer.truncated = true;
            return;
        }
        writer.count(0, 1);
    }
}

/// The SRV records of a name and the addresses of their targets. `None` where the same target and
/// port may come up again later, which takes memory to notice.
fn services(
    writer: &mut Writer<'_, '_>,
    found: Match<'_, '_>,
    apex: &[u8],
    ttl: u32,
) -> Option<()> {
    if found.records.shared_labels && !matches!(found.records.shape, Shape::Cluster { .. }) {
        return None;
    }
    let weight = cluster::weight(found.entries().count());
    // Where each target's name is written, in the order of the endpoints.
    let (mut targets, mut count) = ([0u16; TARGETS], 0);
    let (mut ports, mut seen) = ([0u16; 16], 0);
    let mut last: Option<Entry<'_>> = None;
    for entry in found.entries() {
        let same = last.replace(entry).is_some_and(|last| last.endpoint == entry.endpoint);
        let Some(port) = entry.port else {
            // Rare: an endpoint whose port has no number.
            if found.records.has_ports() {
                return None;
            }
            continue;
        };
        if !same {
            seen = 0;
        }
        if ports[..seen].contains(&port) {
            continue;
        }
        *ports.get_mut(seen)? = port;
        seen += 1;
        let start = writer.at;
        if writer.take(18).is_none() {
            writer.truncated = true;
            return Some(());
        }
        match target(writer, &entry, apex) {
            Fit::Yes => {}
            Fit::No => {
                writer.at = start;
                writer.truncated = true;
                return Some(());
            }
            Fit::TooLong => return None,
        }
        let length = writer.at - start - 12;
        let place = &mut writer.out[start..start + 18];
        put_head(place, QUESTION, kind::SRV, ttl, length);
        place[12..14].copy_from_slice(&[0, 0]);
        place[14..16].copy_from_slice(&weight.to_be_bytes());
        place[16..18].copy_from_slice(&port.to_be_bytes());
        writer.count(0, 1);
        if !same {
            // What is written has an offset of less than the size of a datagram.
            *targets.get_mut(count)? = (start + 18) as u16;
            count += 1;
        }
    }
    let (mut index, mut last) = (0, None::<Entry<'_>>);
    for entry in found.entries().filter(|entry| entry.port.is_some()) {
        let before = last.replace(entry);
        if before.is_some_and(|before| before.endpoint != entry.endpoint) {
            index += 1;
        }
        let glued = before
            .is_some_and(|before| before.endpoint == entry.endpoint && before.addr == entry.addr);
        if glued {
            continue;
        }
        if !writer.address((0xc000 | targets[index]).to_be_bytes(), entry.addr, ttl) {
            // Glue that is left out is no truncation (RFC 2181 section 9).
            break;
        }
        writer.count(2, 1);
    }
    Some(())
}

enum Fit {
    Yes,
    No,
    TooLong,
}

/// `[ENDPOINT.]SERVICE.NAMESPACE.svc.DOMAIN` without compression, as RFC 2782 wants it.
fn target(writer: &mut Writer<'_, '_>, entry: &Entry<'_>, apex: &[u8]) -> Fit {
    let start = writer.at;
    for label in entry.endpoint.into_iter().chain(entry.service.split('.')).chain(["svc"]) {
        if !(1..=63).contains(&label.len()) {
            return Fit::TooLong;
        }
        let Some(place) = writer.take(1 + label.len()) else { return Fit::No };
        place[0] = label.len() as u8;
        place[1..].copy_from_slice(label.as_bytes());
    }
    match writer.take(apex.len()) {
        Some(place) => place.copy_from_slice(apex),
        None => return Fit::No,
    }
    if writer.at - start > 255 { Fit::TooLong } else { Fit::Yes }
}

/// The SOA record of a denial. The question ends with the zone's name, which is pointed to.
fn start_of_authority(
    writer: &mut Writer<'_, '_>,
    apex: &[u8],
    serial: u32,
    ttl: u32,
) -> Option<()> {
    const SERVER: &[u8] = b"\x02ns\x03dns";
    const MAILBOX: &[u8] = b"\x0ahostmaster";
    const DATA: usize = SERVER.len() + 2 + MAILBOX.len() + 2 + 20;
    // Names have at most 255 octets, so pointers of two octets reach.
    let zone = (0xc000 | (HEADER + writer.query.name_length - apex.len()) as u16).to_be_bytes();
    let place = writer.take(12 + DATA)?;
    put_head(place, zone, kind::SOA, ttl, DATA);
    let mut rest = &mut place[12..];
    let mut put = |bytes: &[u8]| {
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        rest = tail;
    };
    put(SERVER);
    put(&zone);
    put(MAILBOX);
    put(&zone);
    for number in [serial, 7200, 1800, 86400, ttl] {
        put(&number.to_be_bytes());
    }
    writer.count(1, 1);
    Some(())
}

#[cfg(test)]
mod tests;
