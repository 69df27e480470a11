//! Prefixes of addresses, for longest-prefix tries (`BPF_MAP_TYPE_LPM_TRIE`).

use crate::{Addr, abi};

/// A range of clients that a service admits: key of [`SOURCE_RANGES`](crate::maps::SOURCE_RANGES).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SourceRangeKey {
    /// Leading bits of what follows that count: 32 for the service, and those of the range. An IPv4
    /// range has 96 more than it is written with.
    pub prefix_len: u32,
    /// Number of the service port ([`Frontend::service`](crate::Frontend::service)).
    pub service: u32,
    /// The range's first address.
    pub addr: Addr,
}

abi!(SourceRangeKey, size 24, align 4, fields [0 => prefix_len: u32, 4 => service: u32, 8 => addr: Addr]);

/// What follows the length in a [`SourceRangeKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourceRange {
    /// See [`SourceRangeKey::service`].
    pub service: u32,
    /// See [`SourceRangeKey::addr`].
    pub addr: Addr,
}

abi!(SourceRange, size 20, align 4, fields [0 => service: u32, 4 => addr: Addr]);

impl SourceRangeKey {
    /// A range of `len` bits as it is written: up to 32 for IPv4, up to 128 for IPv6.
    pub const fn new(service: u32, addr: Addr, len: u8) -> Self {
        let mapped = if addr.is_v4() { 96 } else { 0 };
        Self { prefix_len: 32 + mapped + len as u32, service, addr }
    }
}

/// A range of addresses that pods reach with their own: key of
/// [`NON_MASQUERADE`](crate::maps::NON_MASQUERADE).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CidrKey {
    /// Leading bits that count. An IPv4 range has 96 more than it is written with.
    pub prefix_len: u32,
    /// The range's first address.
    pub addr: Addr,
}

abi!(CidrKey, size 20, align 4, fields [0 => prefix_len: u32, 4 => addr: Addr]);

impl CidrKey {
    /// A range of `len` bits as it is written: up to 32 for IPv4, up to 128 for IPv6.
    pub const fn new(addr: Addr, len: u8) -> Self {
        let mapped = if addr.is_v4() { 96 } else { 0 };
        Self { prefix_len: mapped + len as u32, addr }
    }
}
