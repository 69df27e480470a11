//! Names of addresses: `2.0.0.10.in-addr.arpa`, and nibbles below `ip6.arpa` (RFC 1035 section 3.5,
//! RFC 3596 section 2.5).

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, RecordType};

use super::{Answer, Domain, Outcome};
use crate::zone::Snapshot;

impl Domain {
    /// Answers for addresses that belong to the cluster; all other names are forwarded.
    pub(super) fn answer_reverse(
        &self,
        snapshot: &Snapshot,
        name: &Name,
        kind: RecordType,
    ) -> Outcome {
        let Some(addr) = parse(name) else { return Outcome::Forward };
        if !snapshot.synced() {
            // An upstream would deny an address of the cluster, and the denial would be kept.
            return Outcome::Answer(Answer::code(ResponseCode::ServFail));
        }
        let owners = snapshot.owners(&addr);
        if owners.is_empty() {
            return Outcome::Forward;
        }
        let answers: Vec<_> = owners
            .iter()
            .filter(|_| kind == RecordType::PTR)
            .filter_map(|owner| self.target(owner.endpoint, owner.service).ok())
            .map(|target| self.record(name.clone(), RData::PTR(PTR(target))))
            .collect();
        let mut answer = Answer::records(answers, Vec::new());
        if answer.answers.is_empty() {
            // We speak for this one address, not for the range it is in.
            answer.authorities.push(self.soa(name, snapshot.serial()));
        }
        Outcome::Answer(answer)
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for, if it stands for a whole
/// one.
pub(crate) fn parse(name: &Name) -> Option<IpAddr> {
    let mut labels = name.iter().rev();
    if !labels.next()?.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let zone = labels.next()?;
    if zone.eq_ignore_ascii_case(b"in-addr") && labels.len() == 4 {
        let mut octets = [0u8; 4];
        for (octet, label) in octets.iter_mut().zip(labels) {
            *octet = decimal(label)?;
        }
        Some(octets.into())
    } else if zone.eq_ignore_ascii_case(b"ip6") && labels.len() == 32 {
        let mut bits = 0u128;
        for label in labels {
            let [digit] = label else { return None };
            bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        }
        Some(std::net::Ipv6Addr::from(bits).into())
    } else {
        None
    }
}

/// An octet in its one right spelling: no sign, no leading zero.
fn decimal(label: &[u8]) -> Option<u8> {
    let value = std::str::from_utf8(label).ok()?.parse::<u8>().ok()?;
    (value.to_string().as_bytes() == label).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_addresses_in_their_right_spelling_are_understood() {
        let parse = |text: &str| {
            let labels = text.split_terminator('.').filter(|label| !label.is_empty());
            super::parse(&Name::from_labels(labels.map(str::as_bytes)).expect("a name"))
        };
        assert_eq!(parse("2.1.0.10.IN-addr.arpa."), "10.0.1.2".parse().ok());
        for addr in ["10.0.1.2", "fd00::1:2", "::1", "255.255.255.255"] {
            let addr: IpAddr = addr.parse().expect("an address");
            assert_eq!(super::parse(&Name::from(addr)), Some(addr));
        }
        for wrong in [
            "1.0.10.in-addr.arpa.",
            "9.2.1.0.10.in-addr.arpa.",
            "256.1.0.10.in-addr.arpa.",
            "02.1.0.10.in-addr.arpa.",
            "+2.1.0.10.in-addr.arpa.",
            "2.1.0.10.in-addr.example.",
            "1.ip6.arpa.",
            "arpa.",
            ".",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
