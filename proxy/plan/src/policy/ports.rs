//! Ports that a rule allows, and the prefixes that they are in the kernel's table.

use std::collections::BTreeMap;

use sluice_abi::{Be16, PolicyKey};

/// What is allowed of a peer. Protocols are IP protocol numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Ports {
    /// Everything, ICMP included.
    All,
    /// All ports of a protocol.
    Protocol(u8),
    /// Ports of a protocol from the first to the last.
    Range(u8, u16, u16),
    /// The port that the peer has by the rule's name for it.
    Peers(u8),
}

/// Prefixes that cover a range of ports exactly: first port and number of leading bits.
fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut covered = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        // As large as the alignment and what is left allow.
        let aligned = if next == 0 { 16 } else { next.trailing_zeros().min(16) };
        let bits = aligned.min((end - next).ilog2());
        covered.push((next as u16, 16 - bits));
        next += 1 << bits;
    }
    covered
}

/// Ranges in their order, those that touch as one.
pub(super) fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(open) if u32::from(first) <= u32::from(open.1) + 1 => {
                open.1 = open.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The keys of ranges of a protocol's ports that do not touch.
pub(super) fn range_keys(
    set: u32,
    identity: u32,
    proto: u8,
    ranges: &[(u16, u16)],
) -> impl Iterator<Item = PolicyKey> {
    ranges.iter().flat_map(|(first, last)| prefixes(*first, *last)).map(move |(port, bits)| {
        let prefix_len = PolicyKey::PROTO + bits;
        PolicyKey { prefix_len, set, identity, proto, reserved: 0, port: Be16::new(port) }
    })
}

/// The keys that say of one set and one identity what these ports do together; none is contained in
/// another.
pub(super) fn keys(set: u32, identity: u32, ports: impl Iterator<Item = Ports>) -> Vec<PolicyKey> {
    let mut ranges: BTreeMap<u8, Vec<(u16, u16)>> = BTreeMap::new();
    for entry in ports {
        match entry {
            Ports::All => {
                let prefix_len = PolicyKey::ANY;
                return vec![PolicyKey { prefix_len, set, identity, ..PolicyKey::default() }];
            }
            Ports::Protocol(proto) => ranges.entry(proto).or_default().push((0, u16::MAX)),
            Ports::Range(proto, first, last) => {
                ranges.entry(proto).or_default().push((first, last));
            }
            // Whoever knows the peer has put a range in its place.
            Ports::Peers(_) => {}
        }
    }
    let mut keys = Vec::new();
    for (proto, ranges) in ranges {
        keys.extend(range_keys(set, identity, proto, &merged(ranges)));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(keys: &[PolicyKey], proto: u8, port: u16) -> usize {
        let covers = |key: &&PolicyKey| {
            let bits = key.prefix_len.saturating_sub(PolicyKey::PROTO);
            let mask = if bits == 0 { 0 } else { u16::MAX << (16 - bits) };
            key.prefix_len == PolicyKey::ANY
                || key.proto == proto && port & mask == key.port.get() & mask
        };
        keys.iter().filter(covers).count()
    }

    /// P3: each port of the ranges is covered once, and no other.
    #[test]
    fn prefixes_cover_ranges_exactly() {
        for ranges in [
            &[(80, 80)][..],
            &[(0, 65535)],
            &[(1, 65535)],
            &[(1, 65534)],
            &[(6000, 6010), (6005, 7000), (7001, 7001)],
            &[(1000, 1999), (3000, 3999), (65535, 65535)],
        ] {
            let ports = ranges.iter().map(|&(first, last)| Ports::Range(6, first, last));
            let keys = keys(1, 2, ports);
            for port in 0..=u16::MAX {
                let inside = ranges.iter().any(|&(first, last)| (first..=last).contains(&port));
                assert_eq!(allows(&keys, 6, port), usize::from(inside), "{ranges:?} {port}");
                assert_eq!(allows(&keys, 17, port), 0);
            }
            assert!(keys.len() <= 30 * ranges.len());
        }
    }

    #[test]
    fn everything_is_one_key() {
        let all = [Ports::Range(6, 1, 2), Ports::Protocol(17), Ports::All];
        assert_eq!(keys(1, 2, all.into_iter()).len(), 1);
        let udp = [Ports::Range(17, 1, 2), Ports::Protocol(17), Ports::Range(17, 53, 53)];
        let keys = keys(1, 2, udp.into_iter());
        assert_eq!(keys.iter().map(|key| key.prefix_len).collect::<Vec<_>>(), [PolicyKey::PROTO]);
    }
}
