//! Addresses and ports in network byte order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi;

/// A 16-bit number in network byte order (a port).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Be16(u16);

abi!(Be16, size 2, align 2, fields [0 => 0: u16]);

impl Be16 {
    /// From a number in the host's byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From bytes that are in network byte order already (a packet's, or a socket context's).
    #[inline(always)]
    pub const fn from_network(raw: u16) -> Self {
        Self(raw)
    }

    /// The number in the host's byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The raw value, in network byte order.
    #[inline(always)]
    pub const fn to_network(self) -> u16 {
        self.0
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&self.get(), f)
    }
}

/// An IPv6 address, or an IPv4 address mapped into it, as four words in network byte order.
///
/// Words rather than bytes, so that the programs move and compare it with four instructions.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Addr(pub [u32; 4]);

abi!(Addr, size 16, align 4, fields [0 => 0: [u32; 4]]);

/// Third word of an IPv4-mapped address: `::ffff:0:0/96`.
const V4_MARK: u32 = 0xffff_u32.to_be();

impl Addr {
    /// From an IPv4 address whose four bytes stand in memory as on the wire.
    #[inline(always)]
    pub const fn from_v4(raw: u32) -> Self {
        Self([0, 0, V4_MARK, raw])
    }

    /// From the words of an IPv6 address as they stand in memory on the wire.
    #[inline(always)]
    pub const fn from_v6(raw: [u32; 4]) -> Self {
        Self(raw)
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == V4_MARK
    }

    /// The last word: of an IPv4 address all of it, in network byte order.
    #[inline(always)]
    pub const fn v4(&self) -> u32 {
        self.0[3]
    }

    /// Whether the address is the host's own, whichever host it is: `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// The address as the standard library has it.
    pub const fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            return IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(self.0[3])));
        }
        let high = ((u32::from_be(self.0[0]) as u64) << 32) | u32::from_be(self.0[1]) as u64;
        let low = ((u32::from_be(self.0[2]) as u64) << 32) | u32::from_be(self.0[3]) as u64;
        IpAddr::V6(Ipv6Addr::from_bits(((high as u128) << 64) | low as u128))
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.to_bits().to_be()),
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                Self([
                    ((bits >> 96) as u32).to_be(),
                    ((bits >> 64) as u32).to_be(),
                    ((bits >> 32) as u32).to_be(),
                    (bits as u32).to_be(),
                ])
            }
        }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.to_ip(), f)
    }
}
