//! Ways past the host's stack: into a pod of this node, and out by the interface that the routing
//! table names.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        TC_ACT_REDIRECT, bpf_fib_lookup as bpf_fib_lookup_params, bpf_redir_neigh,
    },
    helpers::{bpf_csum_update, bpf_fib_lookup, bpf_redirect_neigh, bpf_redirect_peer},
};
use sluice_abi::{Addr, Counter, Endpoint};

use crate::{
    PASS,
    counters::count,
    maps::ENDPOINTS,
    nat::Rewrite,
    node,
    packet::{Head, Packet, Skb},
    parse::{self, ETH_LEN, Ip},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The pod of this node that has the address.
#[inline(always)]
pub fn endpoint(addr: &Addr) -> Option<Endpoint> {
    // SAFETY: copied at once. Should the element have been reused meanwhile, the packet goes to a
    // pod that does not have its address, and is dropped there, as one to a pod that is gone would.
    unsafe { ENDPOINTS.get(addr).copied() }
}

/// Whether a pod of this node has the address.
#[inline(always)]
pub fn is_endpoint(addr: &Addr) -> bool {
    ENDPOINTS.get_ptr(addr).is_some()
}

/// Takes a hop, as a router does.
#[inline(always)]
fn take_hop<const V6: bool>(packet: Skb, head: Head) {
    if V6 {
        head.set_u8::<21>(head.u8::<21>().wrapping_sub(1));
        // No checksum in the header makes up for it in a sum that the kernel has of the whole packet
        // (CHECKSUM_COMPLETE): the word with the hop limit is 1 less.
        // SAFETY: the helper has no conditions.
        let _ = unsafe { bpf_csum_update(packet.0, !u32::from(1u16.to_be())) };
    } else {
        head.set_u8::<22>(head.u8::<22>().wrapping_sub(1));
        // RFC 1624 for a word that loses 0x0100: the checksum gains as much, the carry goes around.
        let sum = u32::from(u16::from_be(head.u16::<24>())) + 0x0100;
        head.set_u16::<24>((sum as u16).wrapping_add((sum >> 16) as u16).to_be());
    }
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
    take_hop::<V6>(packet, head);
    count(Counter::FastPathPod);
    // SAFETY: the helper has no conditions. It only takes down where to; a device that is gone by
    // then drops the packet.
    let verdict = unsafe { bpf_redirect_peer(to.ifindex, 0) } as i32;
    if verdict == TC_ACT_REDIRECT as i32 { Some(verdict) } else { None }
}

/// Hands the packet to the pod that it is for, if that is on this node; else the stack has it.
#[inline(always)]
pub fn to_pod<const V6: bool>(packet: Skb, ip: &Ip) -> i32 {
    // With no hop left, the stack answers with an ICMP error.
    if ip.hops <= 1 {
        return PASS;
    }
    let Some(endpoint) = endpoint(&ip.dst) else { return PASS };
    deliver::<V6>(packet, &endpoint).unwrap_or(PASS)
}

/// `struct bpf_redir_neigh`: the neighbour to hand a packet to.
#[repr(C)]
struct Neighbour {
    family: u32,
    addr: [u32; 4],
}

/// The way out that a packet takes.
#[repr(C)]
pub struct Way {
    /// Index of the interface.
    ifindex: u32,
    neighbour: Neighbour,
    /// The largest packet that the way takes, where [`route`] says that this one is larger.
    pub mtu: u32,
}

impl Way {
    /// No way yet.
    #[inline(always)]
    pub fn none() -> Self {
        let zero = node::zero();
        let addr = [zero, zero, zero, zero];
        Self { ifindex: zero, neighbour: Neighbour { family: zero, addr }, mtu: zero }
    }
}

/// `struct bpf_fib_lookup`, in words.
#[repr(C)]
struct FibParams {
    /// Family, protocol, source port.
    who: u32,
    /// Destination port; length, or the MTU found.
    dport_len: u32,
    ifindex: u32,
    tos: u32,
    src: [u32; 4],
    dst: [u32; 4],
    rest: [u32; 4],
}

const _: () = assert!(size_of::<FibParams>() == size_of::<bpf_fib_lookup_params>());
const _: () = assert!(size_of::<Neighbour>() == size_of::<bpf_redir_neigh>());

/// What the routing table says.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Route {
    /// There is a way.
    Found,
    /// There is one, but the packet is too large for it.
    TooBig,
    /// There is none.
    None,
}

/// Looks up the way of a packet that will have the addresses and ports given.
#[inline(always)]
pub fn route<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    proto: u32,
    to: &Rewrite,
    way: &mut Way,
) -> Route {
    let family = if V6 { AF_INET6 } else { AF_INET };
    let [a, b] = to.sport.to_network().to_ne_bytes();
    let [c, d] = to.dport.to_network().to_ne_bytes();
    // With no length given, the helper takes the packet's own, and knows of segments.
    let len = if packet.is_gso() { 0 } else { ip.end.wrapping_sub(ETH_LEN) as u16 };
    let [e, f] = len.to_ne_bytes();
    let (src, dst) = if V6 {
        (to.src.0, to.dst.0)
    } else {
        let zero = node::zero();
        ([to.src.v4(), zero, zero, zero], [to.dst.v4(), zero, zero, zero])
    };
    let mut params = FibParams {
        who: u32::from_ne_bytes([family, proto as u8, a, b]),
        dport_len: u32::from_ne_bytes([c, d, e, f]),
        ifindex: packet.ifindex(),
        tos: 0,
        src,
        dst,
        rest: node::no_addr().0,
    };
    let found = {
        let params = (&raw mut params).cast();
        // SAFETY: the context is valid, the parameters are as long as said.
        unsafe { bpf_fib_lookup(packet.0.cast(), params, size_of::<FibParams>() as i32, 0) as u32 }
    };
    if found == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        let [_, _, e, f] = params.dport_len.to_ne_bytes();
        way.mtu = u32::from(u16::from_ne_bytes([e, f]));
        return Route::TooBig;
    }
    // A neighbour that is not known yet is asked for when the packet leaves.
    if found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH {
        return Route::None;
    }
    way.ifindex = params.ifindex;
    // The helper puts the neighbour in the destination's place; its family may be another.
    let [family, _, _, _] = params.who.to_ne_bytes();
    way.neighbour.family = u32::from(family);
    let [a, b, c, d] = params.dst;
    way.neighbour.addr = [a, b, c, d];
    Route::Found
}

/// Sends the packet out, one hop older. `None` if that cannot be.
#[inline(always)]
pub fn leave<const V6: bool>(packet: Skb, way: &mut Way) -> Option<i32> {
    take_hop::<V6>(packet, packet.head(parse::fixed_len(V6))?);
    packet.set_done(true);
    count(Counter::FastPathUplink);
    // SAFETY: the parameters are as long as said; the helper copies them.
    let verdict = unsafe {
        bpf_redirect_neigh(
            way.ifindex,
            (&raw mut way.neighbour).cast(),
            size_of::<Neighbour>() as i32,
            0,
        )
    } as i32;
    if verdict == TC_ACT_REDIRECT as i32 { Some(verdict) } else { None }
}
