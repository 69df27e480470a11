//! Queries, and whether an answer is right: by its octets, since there are many.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};

const HEADER: usize = 12;
const NXDOMAIN: u8 = 3;

/// A query for records of that type.
///
/// # Errors
///
/// The name is none.
pub fn query(name: &str, kind: RecordType) -> Result<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).context("name")?;
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message.to_vec().context("encode")
}

/// What an answer says beside its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The response code.
    pub code: u8,
    /// How many records the answer section has.
    pub count: u16,
    /// Whether there are more than fit.
    pub truncated: bool,
}

/// The head of an answer to that query, which has no more than its question. The query's own id does
/// not count.
///
/// # Errors
///
/// It is no answer to it; why not.
pub fn head(message: &[u8], id: u16, query: &[u8]) -> Result<Head, &'static str> {
    if message.len() < query.len() || message[..2] != id.to_be_bytes() || message[2] & 0x80 == 0 {
        return Err("no answer to the query");
    }
    if message[HEADER..query.len()] != query[HEADER..] {
        return Err("an answer to another question");
    }
    Ok(Head {
        code: message[3] & 0x0f,
        count: u16::from_be_bytes([message[6], message[7]]),
        truncated: message[2] & 0x02 != 0,
    })
}

/// What the answer to a query is to be, as far as a look at its head tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Records.
    Answer,
    /// None of that type.
    NoData,
    /// That there is no such name.
    NxDomain,
}

impl Expect {
    /// Whether that is what the answer says. One whose records do not fit may leave all of them out.
    pub fn is_met(self, head: Head) -> bool {
        match self {
            Self::Answer => head.code == 0 && (head.count > 0 || head.truncated),
            Self::NoData => head.code == 0 && head.count == 0 && !head.truncated,
            Self::NxDomain => head.code == NXDOMAIN,
        }
    }
}

impl std::str::FromStr for Expect {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "answer" => Self::Answer,
            "nodata" => Self::NoData,
            "nxdomain" => Self::NxDomain,
            _ => bail!("{text:?} is none of answer, nodata, nxdomain"),
        })
    }
}

/// Whether the message answers the query with these addresses and no others; with none, whether it
/// says that there is no such name.
///
/// # Errors
///
/// It does not; what it says instead.
pub fn check(
    message: &[u8],
    id: u16,
    query: &[u8],
    right: &BTreeSet<IpAddr>,
) -> Result<(), String> {
    let Head { code, count, .. } = head(message, id, query)?;
    if code != if right.is_empty() { NXDOMAIN } else { 0 } {
        return Err(format!("code {code}"));
    }
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
        let question = query("web.shop.svc.cluster.local", RecordType::A).unwrap();
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
        let other = query("other.shop.svc.cluster.local", RecordType::A).unwrap();
        assert!(check(&good, 7, &other, &right).is_err());
        let mut missing = Message::from_vec(&empty).unwrap();
        missing.metadata.response_code = ResponseCode::NXDomain;
        let missing = missing.to_vec().unwrap();
        assert_eq!(check(&missing, 7, &question, &BTreeSet::new()), Ok(()));
        assert!(check(&missing, 7, &question, &right).is_err());
    }

    #[test]
    fn a_head_meets_what_is_expected_and_nothing_else() {
        let head = |code, count, truncated| Head { code, count, truncated };
        let heads = [
            (head(0, 1, false), [true, false, false]),
            (head(0, 0, true), [true, false, false]),
            (head(0, 0, false), [false, true, false]),
            (head(3, 0, false), [false, false, true]),
            (head(2, 0, false), [false; 3]),
            (head(5, 0, false), [false; 3]),
        ];
        for (head, met) in heads {
            let all = [Expect::Answer, Expect::NoData, Expect::NxDomain];
            assert_eq!(all.map(|expect| expect.is_met(head)), met, "{head:?}");
        }
    }
}
