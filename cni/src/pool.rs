//! The address pool of a node: which addresses there are and which one is next. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why no address could be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// There are no ranges at all.
    #[error("this node has no pod CIDR")]
    NoRange,
    /// Two ranges share addresses.
    #[error("pod CIDRs {0} and {1} overlap")]
    Overlap(IpNet, IpNet),
    /// A range without an address that a pod could have.
    #[error("pod CIDR {0} has no address for a pod")]
    Unusable(IpNet),
    /// Every address of one family is taken.
    #[error("no free {family} address: {used} of {size} in {ranges} are in use")]
    Full {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The family's ranges, comma separated.
        ranges: String,
        /// Addresses in use.
        used: u128,
        /// Addresses there are.
        size: u128,
    },
}

/// One range, as the addresses a pod may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    cidr: IpNet,
    first: u128,
    last: u128,
}

impl Range {
    /// The network and the broadcast address are left out, and so is the first one, which people
    /// take for the gateway (in IPv6: the subnet-router anycast address of RFC 4291 2.6.1, and the
    /// first). Ranges of one or two addresses (RFC 3021, RFC 6164) have neither.
    fn new(cidr: IpNet) -> Result<Self, PoolError> {
        let (low, high) = (number(cidr.network()), number(cidr.broadcast()));
        let (first, last) = match cidr {
            _ if high - low < 2 => (low, high),
            IpNet::V4(_) => (low + 2, high - 1),
            IpNet::V6(_) => (low + 2, high),
        };
        if first > last { Err(PoolError::Unusable(cidr)) } else { Ok(Self { cidr, first, last }) }
    }

    fn address(&self, n: u128) -> IpAddr {
        match self.cidr {
            // A range of IPv4 never leaves 32 bits.
            IpNet::V4(_) => Ipv4Addr::from_bits(n as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(n).into(),
        }
    }

    fn size(&self) -> u128 {
        self.last - self.first + 1
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4() && (self.first..=self.last).contains(&number(address))
    }

    fn is_v4(&self) -> bool {
        matches!(self.cidr, IpNet::V4(_))
    }

    /// How many of its addresses are not excluded; `excluded` has no overlaps.
    fn size_without(&self, excluded: &[IpNet]) -> u128 {
        let hidden =
            excluded.iter().filter(|e| matches!(e, IpNet::V4(_)) == self.is_v4()).map(|e| {
                let low = number(e.network()).max(self.first);
                let high = number(e.broadcast()).min(self.last);
                high.checked_sub(low).map_or(0, |n| n.saturating_add(1))
            });
        self.size().saturating_sub(hidden.fold(0, u128::saturating_add))
    }

    /// The first free address from `from` to `to`. Steps over excluded ranges as a whole, so it
    /// looks at most at one address more than there are used and excluded entries.
    fn scan(
        &self,
        from: u128,
        to: u128,
        used: &BTreeSet<IpAddr>,
        excluded: &[IpNet],
    ) -> Option<IpAddr> {
        let mut n = from;
        while n <= to {
            let address = self.address(n);
            let last_seen = match excluded.iter().find(|e| e.contains(&address)) {
                Some(hidden) => number(hidden.broadcast()),
                None if !used.contains(&address) => return Some(address),
                None => n,
            };
            n = last_seen.checked_add(1)?;
        }
        None
    }

    /// The first free address after `last`, around the end to `last` itself.
    fn next(
        &self,
        last: Option<IpAddr>,
        used: &BTreeSet<IpAddr>,
        excluded: &[IpNet],
    ) -> Option<IpAddr> {
        let last = last.filter(|a| self.contains(*a)).map_or(self.last, number);
        let after = match last.checked_add(1) {
            Some(after) => self.scan(after, self.last, used, excluded),
            None => None,
        };
        after.or_else(|| self.scan(self.first, last, used, excluded))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// For each range the address given out last, so that a freed one rests as long as possible.
pub type LastUsed = BTreeMap<IpNet, IpAddr>;

/// The ranges of a node. A pod gets one address of each family there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    ranges: Vec<Range>,
    /// Without overlaps.
    excluded: Vec<IpNet>,
}

impl Pool {
    /// A pool over pod CIDRs without host bits, in order of preference within a family.
    pub fn new(cidrs: &[IpNet]) -> Result<Self, PoolError> {
        let mut ranges: Vec<Range> = Vec::with_capacity(cidrs.len());
        for &cidr in cidrs {
            if let Some(other) =
                ranges.iter().find(|r| r.cidr.contains(&cidr) || cidr.contains(&r.cidr))
            {
                return Err(PoolError::Overlap(other.cidr, cidr));
            }
            ranges.push(Range::new(cidr)?);
        }
        if ranges.is_empty() {
            Err(PoolError::NoRange)
        } else {
            Ok(Self { ranges, excluded: Vec::new() })
        }
    }

    /// The same pool without some addresses. What lies outside the pool does not matter.
    #[must_use]
    pub fn excluding(mut self, excluded: &[IpNet]) -> Self {
        self.excluded = IpNet::aggregate(&excluded.to_vec());
        self
    }

    /// One free address of each family, IPv4 first, by next fit. `last` moves on to what was given.
    ///
    /// `kept` are addresses the pod already has; no new one of their family is looked for.
    pub fn allocate(
        &self,
        used: &BTreeSet<IpAddr>,
        last: &mut LastUsed,
        kept: &[IpAddr],
    ) -> Result<Vec<IpAddr>, PoolError> {
        let mut addresses = Vec::with_capacity(2);
        for v4 in [true, false] {
            if !self.ranges.iter().any(|r| r.is_v4() == v4) {
                continue;
            }
            if let Some(&address) = kept.iter().find(|a| a.is_ipv4() == v4 && self.contains(**a)) {
                addresses.push(address);
                continue;
            }
            let (cidr, address) = self
                .ranges
                .iter()
                .filter(|r| r.is_v4() == v4)
                .find_map(|r| {
                    Some((r.cidr, r.next(last.get(&r.cidr).copied(), used, &self.excluded)?))
                })
                .ok_or_else(|| self.full(v4, used))?;
            last.insert(cidr, address);
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// Whether an address is one of those the pool gives out.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(address))
            && !self.excluded.iter().any(|e| e.contains(&address))
    }

    /// Whether the pool has a range of IPv6.
    pub fn has_v6(&self) -> bool {
        self.ranges.iter().any(|r| !r.is_v4())
    }

    /// Whether a range is one of the pool's.
    pub fn has_range(&self, cidr: &IpNet) -> bool {
        self.ranges.iter().any(|r| r.cidr == *cidr)
    }

    /// The family that has no free address, if there is one.
    pub fn check_free(&self, used: &BTreeSet<IpAddr>) -> Result<(), PoolError> {
        self.allocate(used, &mut LastUsed::new(), &[]).map(|_| ())
    }

    fn full(&self, v4: bool, used: &BTreeSet<IpAddr>) -> PoolError {
        let ranges: Vec<_> = self.ranges.iter().filter(|r| r.is_v4() == v4).collect();
        PoolError::Full {
            family: if v4 { "IPv4" } else { "IPv6" },
            ranges: ranges.iter().map(|r| r.cidr.to_string()).collect::<Vec<_>>().join(", "),
            used: used.iter().filter(|a| a.is_ipv4() == v4 && self.contains(**a)).count() as u128,
            size: ranges
                .iter()
                .fold(0, |sum, r| sum.saturating_add(r.size_without(&self.excluded))),
        }
    }
}

#[cfg(test)]
mod tests;
