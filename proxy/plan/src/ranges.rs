//! Which clients a Service admits (`spec.loadBalancerSourceRanges`).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use sluice_abi::{Addr, SourceRangeKey};
use sluice_model::{IpFamily, Service};

use crate::Warning;
use crate::endpoints::family;
use crate::warning::Problem;

/// A range of clients: its first address and its length in bits as the family counts them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Range {
    addr: Addr,
    len: u8,
}

impl Range {
    /// As the kernel has it for a service port.
    pub(crate) fn key(self, service: u32) -> SourceRangeKey {
        SourceRangeKey::new(service, self.addr, self.len)
    }
}

/// The ranges of a Service.
#[derive(Debug)]
pub(crate) struct Ranges {
    /// All of them; none: nobody is admitted where [`Ranges::restricts`] says so.
    all: Arc<[Range]>,
    /// By family: whether some clients are kept away.
    restricts: [bool; 2],
}

impl Ranges {
    /// As kube-proxy reads the field: the ranges of one family say nothing of the other, and one that
    /// cannot be read is left out. Unlike it, a Service all of whose ranges cannot be read admits
    /// nobody rather than everybody.
    pub(crate) fn of(service: &Service) -> Self {
        let of = |wanted| service.source_ranges.iter().filter(move |r| family(&r.addr()) == wanted);
        let restricts = [IpFamily::V4, IpFamily::V6].map(|family| {
            of(family).all(|range| range.prefix_len() != 0)
                && (of(family).next().is_some()
                    || (service.source_ranges.is_empty() && !service.bad_source_ranges.is_empty()))
        });
        let mut all = Vec::new();
        for range in &service.source_ranges {
            if !restricts[family(&range.addr()) as usize] {
                continue;
            }
            let range = range.trunc();
            match (range.addr(), range.prefix_len()) {
                (IpAddr::V6(addr), len) => all.extend(without_mapped(addr, len)),
                (addr, len) => all.push(Range { addr: addr.into(), len }),
            }
        }
        all.sort_unstable();
        all.dedup();
        Self { all: all.into(), restricts }
    }

    /// Who is admitted at addresses of that family; `None`: everybody.
    pub(crate) fn admitted(&self, family: IpFamily) -> Option<Arc<[Range]>> {
        self.restricts[family as usize].then(|| Arc::clone(&self.all))
    }

    /// What of the field cannot be read.
    pub(crate) fn warnings(&self, service: &Service) -> impl Iterator<Item = Warning> {
        let nobody = self.all.is_empty() && self.restricts.contains(&true);
        service.bad_source_ranges.iter().map(move |(index, text)| Warning {
            service: service.meta.name.clone(),
            field: format!("spec.loadBalancerSourceRanges[{index}]"),
            problem: Problem::BadSourceRange { text: text.clone(), nobody },
        })
    }
}

/// An IPv6 range without the IPv4-mapped addresses, which are the IPv4 clients in the kernel's table:
/// they are none of its business, however wide it is.
fn without_mapped(addr: Ipv6Addr, len: u8) -> Vec<Range> {
    const MAPPED: u128 = 0xffff << 32;
    let bits = addr.to_bits();
    // Bit `n` counts from the most significant one.
    let mask = |len: u8| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    let whole = |bits: u128, len| Range { addr: IpAddr::V6(bits.into()).into(), len };
    if len >= 96 {
        return if bits & mask(96) == MAPPED { Vec::new() } else { vec![whole(bits, len)] };
    }
    if MAPPED & mask(len) != bits {
        return vec![whole(bits, len)];
    }
    // Beside the way down to the mapped addresses there is one half at each step.
    (len + 1..=96).map(|len| whole((MAPPED & mask(len)) ^ (1 << (128 - len)), len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(addr: &str, len: u8) -> Vec<String> {
        let ranges = without_mapped(addr.parse().expect("an address"), len);
        ranges.iter().map(|range| format!("{:?}/{}", range.addr, range.len)).collect()
    }

    #[test]
    fn range_that_holds_no_mapped_address_stays_as_it_is() {
        assert_eq!(shown("2001:db8::", 32), ["2001:db8::/32"]);
        assert_eq!(shown("2001:db8::1", 128), ["2001:db8::1/128"]);
    }

    #[test]
    fn range_around_the_mapped_addresses_leaves_them_out() {
        assert_eq!(shown("::fffc:0:0", 94), ["::fffc:0:0/95", "::fffe:0:0/96"]);
        let parts = without_mapped(Ipv6Addr::UNSPECIFIED, 1);
        assert_eq!(parts.len(), 95);
        let holds = |addr: u128| {
            let within = |range: &Range| {
                let IpAddr::V6(first) = range.addr.to_ip() else { panic!("an IPv4 range") };
                (first.to_bits() ^ addr) >> (128 - range.len) == 0
            };
            parts.iter().filter(|range| within(range)).count()
        };
        assert_eq!(holds(0xffff_0a00_0001), 0, "::ffff:10.0.0.1");
        for addr in [0, 1, 0xfffe_ffff_ffff, 0x1_0000_0000_0000, 1 << 126] {
            assert_eq!(holds(addr), 1, "{addr:#x}");
        }
        assert_eq!(holds(1 << 127), 0, "beyond the range");
        assert_eq!(shown("::ffff:0:0", 96), [""; 0]);
    }
}
