//! Checksums: that follow a change of addresses or ports, and from scratch.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_csum_update,
};
use sluice_abi::{Addr, proto};

use crate::{
    packet::{Broken, Packet, Skb},
    parse::{self, ETH_LEN, Ip, Part, Transport},
};

/// `BPF_F_IPV6`: the pseudo header is IPv6's, whose addresses stand in no header checksum. Without
/// it the kernel spoils packets whose checksum the network card has summed up. Kernels that lack
/// the flag (before 6.16, or a stable release with the correction) refuse it.
const IPV6: u64 = 1 << 7;

/// What an Internet checksum has to be changed by when words of the packet change (RFC 1624), not
/// folded, as the helpers take it.
#[inline(always)]
pub fn difference<const N: usize>(from: [u32; N], to: [u32; N]) -> u32 {
    let mut sum = 0_u64;
    for n in 0..N {
        sum += u64::from(!from[n]) + u64::from(to[n]);
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// Where the checksum of TCP, UDP or ICMP stands in the packet, and how the helper is to treat it: UDP's
/// 0 means that there is none, and stays.
#[inline(always)]
fn field(transport: &Transport) -> (u32, u64) {
    if transport.proto == proto::UDP {
        (transport.offset + 6, u64::from(BPF_F_MARK_MANGLED_0))
    } else if transport.is_icmp() {
        (transport.offset + 2, 0)
    } else {
        (transport.offset + 16, 0)
    }
}

/// Addresses of the pseudo header change.
#[inline(always)]
pub fn addresses_change<const V6: bool, P: Packet>(
    packet: P,
    transport: &Transport,
    difference: u32,
) -> Result<(), Broken> {
    // SCTP's and ICMP's cover no addresses, and only the first fragment has one at all.
    if transport.proto == proto::SCTP
        || transport.proto == parse::icmp_proto(false)
        || transport.part == Part::Later
    {
        return Ok(());
    }
    let (offset, flags) = field(transport);
    let flags = flags | u64::from(BPF_F_PSEUDO_HDR);
    if V6 && packet.fix_transport_checksum(offset, difference, flags | IPV6).is_ok() {
        return Ok(());
    }
    packet.fix_transport_checksum(offset, difference, flags)
}

/// The word with both ports changes.
#[inline(always)]
pub fn ports_change<P: Packet>(
    packet: P,
    ip: &Ip,
    transport: &Transport,
    from: u32,
    to: u32,
) -> Result<(), Broken> {
    if transport.proto == proto::SCTP {
        let offset = transport.offset + 8;
        let Some(old) = packet.load::<u32>(offset) else { return Err(Broken) };
        let len = ip.end.wrapping_sub(transport.offset);
        let change = sluice_crc32c_change(u32::from_le(from ^ to), len);
        return packet.store(offset, &(old ^ change.to_le()));
    }
    let (offset, flags) = field(transport);
    packet.fix_transport_checksum(offset, difference([from], [to]), flags)
}

/// The sum of the Ethernet header.
#[inline(always)]
fn link_header(packet: Skb) -> Option<Sum> {
    let head = packet.head(ETH_LEN)?;
    let (a, b, c, d) = (head.u32::<0>(), head.u32::<4>(), head.u32::<8>(), head.u16::<12>());
    Some(Sum::new().word(a).word(b).word(c).half(d))
}

/// The packet gets another Ethernet header: the one that it has is taken off what the kernel has
/// summed up (`CHECKSUM_COMPLETE`), if it has, before it goes to `bpf_redirect_neigh`.
///
/// The stack forgets the sum of what it forwards. The helper keeps it, adds the header that it takes
/// away and does not add the one that comes; but a receiver behind a veth takes that one off, and would
/// find UDP's checksum wrong. See [`link_header_joins`].
#[inline(always)]
pub fn link_header_goes(packet: Skb) {
    if let Some(sum) = link_header(packet) {
        // SAFETY: the helper has no conditions; it does nothing where there is no such sum.
        let _ = unsafe { bpf_csum_update(packet.0, !u32::from(sum.fold())) };
    }
}

/// The packet has its Ethernet header, at an egress hook: it is added to the sum.
#[inline(always)]
pub fn link_header_joins(packet: Skb) {
    if let Some(sum) = link_header(packet) {
        // SAFETY: as in `link_header_goes`.
        let _ = unsafe { bpf_csum_update(packet.0, u32::from(sum.fold())) };
    }
}

/// CRC32c's polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The product of two polynomials over GF(2), modulo CRC32c's.
const fn product(mut a: u32, mut b: u32) -> u32 {
    let mut sum = 0;
    let mut n = 0;
    while n < 32 {
        sum ^= b & 0_u32.wrapping_sub(a >> 31);
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(b & 1));
        n += 1;
    }
    sum
}

/// The same, as a global function, which the verifier looks at once instead of at every call.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn sluice_crc32c_product(a: u32, b: u32) -> u32 {
    product(a, b)
}

/// What a number of zero bytes, a power of two, multiplies a remainder by.
const fn zeros(power: u32) -> u32 {
    // x^8.
    let mut factor = 1 << 23;
    let mut n = 0;
    while n < power {
        factor = product(factor, factor);
        n += 1;
    }
    factor
}

/// What an SCTP packet's checksum (RFC 9260 §6.8, appendix A) is changed by when `change` is added
/// to its first four bytes, read as a little-endian number. `len` is its length in bytes.
///
/// A CRC is linear: that of the sum of two packets of one length is the sum of theirs. The second
/// one here is `change` followed by zeros, whose remainder is a product of few factors. So the rest
/// of the packet, which may be anywhere, is not read.
///
/// A global function, as its part.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn sluice_crc32c_change(change: u32, len: u32) -> u32 {
    let mut sum = change;
    macro_rules! bits {
        ($($bit:literal)*) => {$(
            if len & (1 << $bit) != 0 {
                sum = sluice_crc32c_product(sum, const { zeros($bit) });
            }
        )*};
    }
    bits!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    sum
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
