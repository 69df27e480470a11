//! Names that the configuration itself gives: hosts, and names that stand for others.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;

use crate::answer::{Answer, address, reverse};

/// How long a host's records live, in seconds, as in CoreDNS.
const TTL: u32 = 3600;

/// The names of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Local {
    hosts: HashMap<Name, Vec<IpAddr>>,
    reverse: HashMap<IpAddr, Vec<Name>>,
    rewrites: HashMap<Name, Name>,
    /// All names of it in wire form and lower case.
    names: HashSet<Box<[u8]>>,
}

impl Local {
    /// Gives a host an address, beside those that it has.
    ///
    /// # Errors
    ///
    /// The name is too long.
    pub fn add_host(&mut self, name: &Name, addr: IpAddr) -> Result<(), ProtoError> {
        let name = self.note(name)?;
        self.reverse.entry(addr).or_default().push(name.clone());
        self.hosts.entry(name).or_default().push(addr);
        Ok(())
    }

    /// Lets a name stand for another: whoever asks for it gets the other's answer under the name
    /// that was asked for.
    ///
    /// # Errors
    ///
    /// The name is too long.
    pub fn add_rewrite(&mut self, from: &Name, to: &Name) -> Result<(), ProtoError> {
        let from = self.note(from)?;
        let mut to = to.clone();
        to.set_fqdn(true);
        self.rewrites.insert(from, to);
        Ok(())
    }

    fn note(&mut self, name: &Name) -> Result<Name, ProtoError> {
        let mut name = name.to_lowercase();
        name.set_fqdn(true);
        self.names.insert(name.to_bytes()?.into());
        Ok(name)
    }

    /// Whether a name in wire form and lower case is one of these.
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        !self.names.is_empty() && self.names.contains(name)
    }

    /// What a name stands for, if it stands for another.
    pub(crate) fn rewrite(&self, name: &Name) -> Option<&Name> {
        self.rewrites.get(&name.to_lowercase())
    }

    /// The answer about a host, or about a host's address.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        let record = |data| Record::from_rdata(name.clone(), TTL, data);
        let answers = if let Some(addrs) = self.hosts.get(&name.to_lowercase()) {
            let data = addrs.iter().map(|addr| address(*addr));
            data.filter(|data| data.record_type() == kind).map(record).collect()
        } else {
            let names = self.reverse.get(&reverse::parse(name)?)?;
            let names = names.iter().filter(|_| kind == RecordType::PTR);
            names.map(|name| record(RData::PTR(PTR(name.clone())))).collect()
        };
        Some(Answer { authoritative: true, answers, ..Answer::code(ResponseCode::NoError) })
    }
}
