//! Prefixes of addresses, IPv4 ones as the IPv4-mapped ones they are in the kernel's tables.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_abi::{Addr, CidrKey};

use super::tables::PolicyTables;

/// A prefix: those inside another one stand right behind it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Net {
    start: u128,
    len: u8,
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Net {
    /// One address.
    pub(super) fn host(addr: IpAddr) -> Self {
        Self { start: bits(addr), len: 128 }
    }

    /// Its first address.
    pub(super) fn addr(self) -> IpAddr {
        Addr::from(IpAddr::V6(std::net::Ipv6Addr::from_bits(self.start))).to_ip()
    }

    /// Whether it is one address.
    pub(super) fn is_host(self) -> bool {
        self.len == 128
    }

    fn mask(len: u8) -> u128 {
        if len == 0 { 0 } else { u128::MAX << (128 - u32::from(len)) }
    }

    /// The prefix of that length around this one; itself where it is as short.
    pub(super) fn widened(self, len: u8) -> Self {
        let len = len.min(self.len);
        Self { start: self.start & Self::mask(len), len }
    }

    /// Its length in bits.
    pub(super) fn len(self) -> u8 {
        self.len
    }

    /// Whether all of the other is inside.
    pub(super) fn contains(self, other: Self) -> bool {
        other.len >= self.len && other.widened(self.len) == self
    }

    /// From the first to the last prefix that may be inside; a shorter one may be among them.
    pub(super) fn span(self) -> std::ops::RangeInclusive<Self> {
        self..=Self { start: self.start | !Self::mask(self.len), len: 128 }
    }

    /// As the kernel's table has it.
    pub(super) fn key(self) -> CidrKey {
        let addr = std::net::Ipv6Addr::from_bits(self.start);
        CidrKey { prefix_len: u32::from(self.len), addr: Addr::from(IpAddr::V6(addr)) }
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&PolicyTables::prefix_text(&self.key()))
    }
}

impl From<IpNet> for Net {
    fn from(net: IpNet) -> Self {
        let more = if net.addr().is_ipv4() { 96 } else { 0 };
        let len = net.prefix_len() + more;
        Self { start: bits(net.addr()) & Self::mask(len), len }
    }
}
