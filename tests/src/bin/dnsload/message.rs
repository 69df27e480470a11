//! Queries for addresses, and whether an answer is right: by its octets, since there are many.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};

const HEADER: usize = 12;
const NXDOMAIN: u8 = 3;

/// A query for A or AAAA records.
pub(crate) fn query(name: &str, v6: bool) -> Result<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).context("name")?;
    name.set_fqdn(true);
    let kind = if v6 { RecordType::AAAA } else { RecordType::A };
    message.add_query(Query::query(name, kind));
    message.to_vec().context("encode")
}

/// Whether the message answers the query with these addresses and no others; with none, whether it
/// says that there is no such name.
pub(crate) fn check(
    message: &[u8],
    id: u16,
    query: &[u8],
    right: &BTreeSet<IpAddr>,
) -> Result<(), String> {
    if message.len() < query.len() || message[..2] != id.to_be_bytes() || message[2] & 0x80 == 0 {
        return Err("no answer to the query".to_owned());
    }
    if message[HEADER..query.len()] != query[HEADER..] {
        return Err("an answer to another question".to_owned());
    }
    let code = message[3] & 0x0f;
    if code != if right.is_empty() { NXDOMAIN } else { 0 } {
        return Err(format!("code {code}"));
    }
    let count = u16::from_be_bytes([message[6], message[7]]);
    let mut found = BTreeSet::new();
    let mut rest = &message[query.len()..];
    for _ in 0..count {
        let (addr, after) = record(rest).ok_or("a record that cannot be read")?;
        found.extend(addr);
        rest = after;
    }
    if found == *right { Ok(()) } else { Err(format!("{found:?}")) }
}

/// The address of the record that stands first, and what follows it.
fn record(message: &[u8]) -> Option<(Option<IpAddr>, &[u8])> {
    let mut rest = message;
    loop {
        match *rest.first()? {
            0 => {
                rest = &rest[1..];
                break;
            }
            label if label & 0xc0 == 0xc0 => {
                rest = rest.get(2..)?;
                break;
            }
            label => rest = rest.get(usize::from(label) + 1..)?,
        }
    }
    let head = rest.get(..10)?;
    let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
    let data = rest.get(10..10 + length)?;
    let addr = match (head[1], data.len()) {
        (1, 4) => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        (28, 16) => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    };
    Some((addr, &rest[10 + length..]))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, ResponseCode};
    use hickory_proto::rr::{RData, Record, rdata};

    use super::*;

    #[test]
    fn an_answer_is_right_or_it_is_told_why_not() {
        let question = query("web.shop.svc.cluster.local", false).unwrap();
        let mut reply = Message::from_vec(&question).unwrap();
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.id = 7;
        let name = reply.queries[0].name().clone();
        let right: BTreeSet<IpAddr> = ["10.96.0.80".parse().unwrap()].into();
        let empty = reply.to_vec().unwrap();
        assert!(check(&empty, 7, &question, &right).is_err());
        reply.add_answer(Record::from_rdata(name, 5, RData::A(rdata::A::new(10, 96, 0, 80))));
        let good = reply.to_vec().unwrap();
        assert_eq!(check(&good, 7, &question, &right), Ok(()));
        assert!(check(&good, 8, &question, &right).is_err(), "another query's");
        assert!(check(&good, 7, &question, &["10.96.0.81".parse().unwrap()].into()).is_err());
        assert!(check(&good[..good.len() - 1], 7, &question, &right).is_err(), "cut off");
        let other = query("other.shop.svc.cluster.local", false).unwrap();
        assert!(check(&good, 7, &other, &right).is_err());
        let mut missing = Message::from_vec(&empty).unwrap();
        missing.metadata.response_code = ResponseCode::NXDomain;
        let missing = missing.to_vec().unwrap();
        assert_eq!(check(&missing, 7, &question, &BTreeSet::new()), Ok(()));
        assert!(check(&missing, 7, &question, &right).is_err());
    }
}
