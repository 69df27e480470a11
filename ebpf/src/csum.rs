//! Checksums: of TCP and UDP, that follow a change of address or port, and from scratch.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_csum_diff,
};
use sluice_abi::{Addr, Be16, proto};

use crate::{
    packet::{Broken, Packet},
    parse::{Part, Transport},
};

/// Where the checksum stands in the packet, and how the helper is to treat it: UDP's 0 means that
/// there is none, and stays.
#[inline(always)]
fn field(transport: &Transport) -> (u32, u64) {
    if transport.proto == proto::UDP {
        (transport.offset + 6, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (transport.offset + 16, 0)
    }
}

/// An address of the pseudo header changes.
#[inline(always)]
pub fn address_changes<const V6: bool, P: Packet>(
    packet: P,
    transport: &Transport,
    from: &Addr,
    to: &Addr,
) -> Result<(), Broken> {
    if transport.part == Part::Later {
        return Ok(());
    }
    let (offset, flags) = field(transport);
    let flags = flags | u64::from(BPF_F_PSEUDO_HDR);
    if V6 {
        // SAFETY: both are 16 bytes.
        let difference = unsafe {
            bpf_csum_diff(from.0.as_ptr().cast_mut(), 16, to.0.as_ptr().cast_mut(), 16, 0)
        };
        packet.fix_transport_checksum(offset, 0, difference as u64, flags)
    } else {
        packet.fix_transport_checksum(offset, u64::from(from.v4()), u64::from(to.v4()), flags | 4)
    }
}

/// A port changes.
#[inline(always)]
pub fn port_changes<P: Packet>(
    packet: P,
    transport: &Transport,
    from: Be16,
    to: Be16,
) -> Result<(), Broken> {
    let (offset, flags) = field(transport);
    packet.fix_transport_checksum(
        offset,
        u64::from(from.to_network()),
        u64::from(to.to_network()),
        flags | 2,
    )
}

/// A sum in ones' complement (RFC 1071), of words as they stand in memory: it does not depend on
/// the byte order.
#[derive(Clone, Copy)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds two bytes.
    #[inline(always)]
    pub const fn half(self, half: u16) -> Self {
        Self(self.0 + half as u64)
    }

    /// Adds four bytes.
    #[inline(always)]
    pub const fn word(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds an address, as a header of the family has it.
    #[inline(always)]
    pub const fn addr<const V6: bool>(self, addr: &Addr) -> Self {
        let [a, b, c, d] = addr.0;
        if V6 { self.word(a).word(b).word(c).word(d) } else { self.word(d) }
    }

    /// Takes an address away.
    #[inline(always)]
    pub const fn less_addr<const V6: bool>(self, addr: &Addr) -> Self {
        let [a, b, c, d] = addr.0;
        if V6 { self.word(!a).word(!b).word(!c).word(!d) } else { self.word(!d) }
    }

    /// Two bytes turn into others.
    #[inline(always)]
    pub const fn changed(self, from: u16, to: u16) -> Self {
        self.half(!from).half(to)
    }

    /// The sum of 16 bits.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let mut sum = self.0;
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// What stands in the header.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}
