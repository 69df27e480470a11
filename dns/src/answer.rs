//! What the cluster's zone answers: pure, from a [`Snapshot`] and a question.
//!
//! The rules are those of the Kubernetes DNS specification 1.1.0
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>), and where it is silent,
//! of CoreDNS's kubernetes plugin. Names are compared without regard to case; the owner of an
//! answer is the question's name as it was spelled, so a client that randomizes case sees its own
//! spelling again.
//!
//! Where CoreDNS denies a name that does exist for another type (`dns-version`, an ExternalName
//! Service asked for SRV), the general rules of DNS win: NODATA, or the CNAME (RFC 1034 section
//! 3.6.2, RFC 8020).

pub(crate) mod cluster;
pub(crate) mod reverse;

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;

use crate::zone::Snapshot;

/// The longest chain of ExternalName Services that is followed, as in CoreDNS.
const MAX_CHAIN: usize = 8;

/// The sections of a response, without its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The response code.
    pub rcode: ResponseCode,
    /// Whether the answer comes from data of our own (AA).
    pub authoritative: bool,
    /// Whether an upstream has validated the answer (AD).
    pub authentic: bool,
    /// Whether an upstream has left something out (TC).
    pub truncated: bool,
    /// The answer section, aliases first.
    pub answers: Vec<Record>,
    /// The authority section: the SOA of a negative answer.
    pub authorities: Vec<Record>,
    /// The additional section, without OPT.
    pub additionals: Vec<Record>,
}

impl Answer {
    /// A response that has nothing but a response code.
    pub fn code(rcode: ResponseCode) -> Self {
        Self {
            rcode,
            authoritative: false,
            authentic: false,
            truncated: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    fn records(answers: Vec<Record>, additionals: Vec<Record>) -> Self {
        Self { authoritative: true, answers, additionals, ..Self::code(ResponseCode::NoError) }
    }
}

/// What is to be done about a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// This is the answer.
    Answer(Answer),
    /// An alias leads out of the cluster: these CNAMEs come first, then what an upstream says of
    /// the target.
    Chase {
        /// The CNAME records up to the target.
        aliases: Vec<Record>,
        /// The name to ask for, with the question's type.
        target: Name,
    },
    /// The name is not ours: an upstream answers.
    Forward,
}

/// Why a name cannot be the cluster's domain.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a domain name: {source}")]
pub struct DomainError {
    text: String,
    #[source]
    source: ProtoError,
}

/// Which records pods have, beside those of the Services they are endpoints of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum PodRecords {
    /// None.
    #[default]
    Disabled,
    /// `10-1-0-7.NAMESPACE.pod.DOMAIN` is `10.1.0.7` wherever the namespace exists: whoever asks
    /// gets the address that the name spells.
    Insecure,
    /// The same where a pod with that address is in that namespace.
    Verified,
}

/// The cluster's domain, with the names and the TTL of its records.
#[derive(Clone, Debug)]
pub struct Domain {
    apex: Name,
    name_server: Name,
    mailbox: Name,
    ttl: u32,
    pods: PodRecords,
    /// The apex in wire form, in lower case.
    wire: Box<[u8]>,
    /// The version of the specification that the records below keep to.
    version: &'static str,
    /// The domain of the cluster set, with the same TTL; `None` of itself.
    clusterset: Option<Box<Domain>>,
}

/// The domain of ServiceImports, the same for all cluster sets ([KEP-1645]).
///
/// [KEP-1645]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-multicluster/1645-multi-cluster-services-api
const CLUSTERSET: &str = "clusterset.local";

impl Domain {
    /// The domain of that name (`cluster.local`, the final dot is optional), whose records live for
    /// `ttl` seconds.
    pub fn new(name: &str, ttl: u32) -> Result<Self, DomainError> {
        let mut domain = Self::plain(name, ttl)?;
        let mut clusterset = Self::plain(CLUSTERSET, ttl)?;
        if clusterset.apex != domain.apex {
            clusterset.version = cluster::CLUSTERSET_SPECIFICATION;
            domain.clusterset = Some(Box::new(clusterset));
        }
        Ok(domain)
    }

    fn plain(name: &str, ttl: u32) -> Result<Self, DomainError> {
        let error = |source| DomainError { text: name.to_owned(), source };
        let mut apex = Name::from_ascii(name).map_err(error)?.to_lowercase();
        if apex.iter().len() == 0 {
            return Err(error(ProtoError::from("the root cannot be a cluster's domain")));
        }
        apex.set_fqdn(true);
        let below = |labels: &[&str]| {
            Name::from_labels(labels.iter().copied()).and_then(|n| n.append_domain(&apex))
        };
        // The longest names are made in answers; what does not fit there makes no record.
        let name_server = below(&["ns", "dns"]).map_err(error)?;
        let mailbox = below(&["hostmaster"]).map_err(error)?;
        let wire = apex.to_bytes().map_err(error)?.into();
        let pods = PodRecords::default();
        let version = cluster::SPECIFICATION;
        Ok(Self { apex, name_server, mailbox, ttl, pods, wire, version, clusterset: None })
    }

    /// The same domain with these records of pods.
    pub fn with_pods(self, pods: PodRecords) -> Self {
        Self { pods, ..self }
    }

    /// The name of the zone in wire form, in lower case, and how many labels it has.
    pub(crate) fn wire(&self) -> (&[u8], usize) {
        (&self.wire, self.apex.iter().len())
    }

    /// How long the records live, in seconds.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// Which records pods have.
    pub fn pods(&self) -> PodRecords {
        self.pods
    }

    /// The name of the zone.
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// Answers a question of class IN. `local` is the address that it was sent to, which the zone
    /// gives as its name server's.
    pub fn answer(
        &self,
        snapshot: &Snapshot,
        name: &Name,
        kind: RecordType,
        local: Option<IpAddr>,
    ) -> Outcome {
        if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Outcome::Answer(Answer::code(ResponseCode::Refused));
        }
        let outcome = if self.apex.zone_of(name) {
            self.answer_cluster(snapshot, name, kind, local)
        } else {
            self.answer_reverse(snapshot, name, kind)
        };
        match &self.clusterset {
            Some(domain) if outcome == Outcome::Forward => {
                domain.answer_clusterset(snapshot, name, kind, local)
            }
            _ => outcome,
        }
    }

    /// Answers what the cluster's own domain leaves: names below the cluster set's, and addresses of
    /// ServiceImports. Nothing is ours where nothing has been imported.
    fn answer_clusterset(
        &self,
        snapshot: &Snapshot,
        name: &Name,
        kind: RecordType,
        local: Option<IpAddr>,
    ) -> Outcome {
        match snapshot.clusterset() {
            Some(imports) => self.answer(imports, name, kind, local),
            // Something may have been imported; an upstream would deny it.
            None if !snapshot.synced() && self.apex.zone_of(name) => {
                Outcome::Answer(Answer::code(ResponseCode::ServFail))
            }
            None => Outcome::Forward,
        }
    }

    /// Whether a name is one that [`Domain::answer`] answers for the cluster set.
    pub(crate) fn has_in_clusterset(
        &self,
        snapshot: &Snapshot,
        query: &crate::fast::Query<'_>,
    ) -> bool {
        let below = self.clusterset.as_ref().is_some_and(|domain| {
            let (apex, labels) = domain.wire();
            query.below(apex, labels).is_some()
        });
        below && (snapshot.clusterset().is_some() || !snapshot.synced())
    }

    fn answer_cluster(
        &self,
        snapshot: &Snapshot,
        name: &Name,
        kind: RecordType,
        local: Option<IpAddr>,
    ) -> Outcome {
        let mut aliases = Vec::new();
        let mut owner = name;
        while aliases.len() < MAX_CHAIN {
            let found = cluster::find_name(self, snapshot, owner);
            if let cluster::Found::Alias(target) = found {
                aliases.push(self.record(owner.clone(), RData::CNAME(CNAME(target.clone()))));
                if matches!(kind, RecordType::CNAME | RecordType::ANY) {
                    return Outcome::Answer(Answer::records(aliases, Vec::new()));
                }
                if !self.apex.zone_of(target) {
                    return Outcome::Chase { aliases, target: target.clone() };
                }
                owner = target;
                continue;
            }
            let mut answer = match found {
                cluster::Found::Missing if !snapshot.synced() => {
                    Answer::code(ResponseCode::ServFail)
                }
                cluster::Found::Missing => self.negative(snapshot, ResponseCode::NXDomain),
                found => match self.records(snapshot, &found, owner, kind, local) {
                    (answers, _) if answers.is_empty() => {
                        self.negative(snapshot, ResponseCode::NoError)
                    }
                    (answers, additionals) => Answer::records(answers, additionals),
                },
            };
            answer.answers.splice(0..0, aliases);
            return Outcome::Answer(answer);
        }
        // Services that name one another in a circle, or nearly so.
        Outcome::Answer(Answer::code(ResponseCode::ServFail))
    }

    fn negative(&self, snapshot: &Snapshot, rcode: ResponseCode) -> Answer {
        let mut answer = Answer::code(rcode);
        answer.authoritative = true;
        answer.authorities.push(self.soa(&self.apex, snapshot.serial()));
        answer
    }

    fn record(&self, owner: Name, data: RData) -> Record {
        Record::from_rdata(owner, self.ttl, data)
    }

    /// The SOA record of a zone of ours. Its minimum, which is how long a negative answer may be
    /// kept (RFC 2308), is the TTL of all records.
    fn soa(&self, apex: &Name, serial: u32) -> Record {
        let soa = SOA::new(
            self.name_server.clone(),
            self.mailbox.clone(),
            serial,
            7200,
            1800,
            86400,
            self.ttl,
        );
        self.record(apex.clone(), RData::SOA(soa))
    }
}

/// An A or AAAA record's data.
pub(crate) fn address(addr: IpAddr) -> RData {
    match addr {
        IpAddr::V4(addr) => RData::A(addr.into()),
        IpAddr::V6(addr) => RData::AAAA(addr.into()),
    }
}

#[cfg(test)]
mod tests;
