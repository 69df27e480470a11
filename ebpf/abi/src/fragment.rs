//! Fragments: only the first one of a datagram has the ports.

use crate::{Addr, Be16, abi};

/// What the fragments of one datagram have in common (RFC 791 §3.2, RFC 8200 §4.5), as the packets
/// that arrive have it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// The datagram's identification, in network byte order: 16 bits for IPv4, 32 for IPv6.
    pub id: u32,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

abi!(FragmentKey, size 40, align 4, fields [0 => src: Addr, 16 => dst: Addr, 32 => id: u32, 36 => proto: u8, 37 => reserved: [u8; 3]]);

/// The ports that the first fragment had.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentPorts {
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
}

abi!(FragmentPorts, size 4, align 2, fields [0 => sport: Be16, 2 => dport: Be16]);
