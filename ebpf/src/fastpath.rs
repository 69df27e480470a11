//! Delivery to a pod of this node without the host's stack.

use aya_ebpf::{bindings::TC_ACT_REDIRECT, helpers::bpf_redirect_peer};
use sluice_abi::{Addr, Counter, Endpoint};

use crate::{
    counters::count,
    maps::ENDPOINTS,
    packet::{Packet, Skb},
    parse,
};

/// The pod of this node that has the address.
#[inline(always)]
pub fn endpoint(addr: &Addr) -> Option<Endpoint> {
    // SAFETY: copied at once. Should the element have been reused meanwhile, the packet goes to a
    // pod that does not have its address, and is dropped there, as one to a pod that is gone would.
    unsafe { ENDPOINTS.get(addr).copied() }
}

/// Moves the packet into the pod, as if the host had forwarded it: one hop less, and from the host
/// side's hardware address to the pod's. `None` if that cannot be; then the packet is as it was.
#[inline(always)]
pub fn deliver<const V6: bool>(packet: Skb, to: &Endpoint) -> Option<i32> {
    let head = packet.head(parse::fixed_len(V6))?;
    let [a, b, c, d, e, f] = to.mac;
    head.set_u16::<0>(u16::from_ne_bytes([a, b]));
    head.set_u16::<2>(u16::from_ne_bytes([c, d]));
    head.set_u16::<4>(u16::from_ne_bytes([e, f]));
    let [a, b, c, d, e, f] = to.host_mac;
    head.set_u16::<6>(u16::from_ne_bytes([a, b]));
    head.set_u16::<8>(u16::from_ne_bytes([c, d]));
    head.set_u16::<10>(u16::from_ne_bytes([e, f]));
    if V6 {
        head.set_u8::<21>(head.u8::<21>().wrapping_sub(1));
    } else {
        head.set_u8::<22>(head.u8::<22>().wrapping_sub(1));
        // RFC 1624 for a word that loses 0x0100: the checksum gains as much, the carry goes around.
        let sum = u32::from(u16::from_be(head.u16::<24>())) + 0x0100;
        head.set_u16::<24>((sum as u16).wrapping_add((sum >> 16) as u16).to_be());
    }
    count(Counter::FastPathPod);
    // SAFETY: the helper has no conditions. It only takes down where to; a device that is gone by
    // then drops the packet.
    let verdict = unsafe { bpf_redirect_peer(to.ifindex, 0) } as i32;
    if verdict == TC_ACT_REDIRECT as i32 { Some(verdict) } else { None }
}
