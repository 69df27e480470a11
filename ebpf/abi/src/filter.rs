//! A bitmap that tells cheaply whether an address can be a service's.
//!
//! Most packets of a pod are not for a service address (a socket's packets go straight to the
//! backend). One load from a bitmap of one bit an address spares them the lookup in the frontends
//! map. A bit that is set says "look"; a bit that is clear says "not a service". The agent sets a
//! bit before it writes a frontend, and clears it once no frontend's address maps to it.

use crate::Addr;

/// Bits in the filter: at 10,000 services one in a hundred other addresses is looked up in vain.
pub const VIP_FILTER_BITS: u32 = 1 << 20;

/// Elements of the map.
pub const VIP_FILTER_WORDS: u32 = VIP_FILTER_BITS / 64;

/// The address's bit: word `bit / 64`, bit `bit % 64` of it.
///
/// A multiplicative hash (Knuth, The Art of Computer Programming, 6.4) of the four words as they
/// stand in memory; service addresses are mostly consecutive, which it spreads without collision.
#[inline(always)]
pub const fn vip_filter_bit(addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    // The last word holds what differs between addresses of one range; its most significant byte
    // in memory order is the least significant on the wire, so swap it down before multiplying.
    let x = u32::from_be(d)
        ^ u32::from_be(c).wrapping_mul(0x85eb_ca6b)
        ^ u32::from_be(b).wrapping_mul(0xc2b2_ae35)
        ^ u32::from_be(a).wrapping_mul(0x27d4_eb2f);
    x.wrapping_mul(0x9e37_79b1) >> (32 - VIP_FILTER_BITS.trailing_zeros())
}
