//! What the agent says of the node, and what the programs tell each other.

use core::{arch::asm, ptr};

use sluice_abi::{Addr, NodeAddrs, NodePortKey, NodeState};

use crate::maps::{NODE_ADDRS, NODE_PORTS, NODE_STATE};

/// The node's state.
#[inline(always)]
pub fn state() -> NodeState {
    match NODE_STATE.get_ptr(0) {
        // SAFETY: element 0 of an array exists as long as the map. The fields are words, so none is
        // read half written.
        Some(state) => unsafe { ptr::read_volatile(state) },
        None => NodeState { ct_used: 0, flags: 0, netns: 0, ct_beside: 0, reserved: 0 },
    }
}

/// The node's addresses and what goes with them.
///
/// The agent writes them whole while programs read: for a moment an address may be half the old one.
/// What is made of that leads nowhere, and the client tries again.
#[inline(always)]
pub fn addrs() -> Option<&'static NodeAddrs> {
    // SAFETY: element 0 of an array exists as long as the map.
    NODE_ADDRS.get_ptr(0).map(|addrs| unsafe { &*addrs })
}

/// Whether the address is the one that clients get where theirs must not be seen.
#[inline(always)]
pub fn is_own<const V6: bool>(addr: &Addr) -> bool {
    addrs().is_some_and(|node| *addr == if V6 { node.v6 } else { node.v4 })
}

/// Says that flows are translated packet by packet from now on.
#[inline(always)]
pub fn conntrack_is_used() {
    let Some(state) = NODE_STATE.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    unsafe { set(&raw mut (*state).ct_used) }
}

/// Says that connections straight to backends are looked up from now on.
#[inline(always)]
pub fn conntrack_has_direct() {
    let Some(state) = NODE_STATE.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    unsafe { set(&raw mut (*state).ct_beside) }
}

/// Makes a word 1. It is written only once, so that its cache line stays shared.
///
/// # Safety
///
/// The pointer is valid.
#[inline(always)]
unsafe fn set(word: *mut u32) {
    // SAFETY: the caller says so.
    unsafe {
        if ptr::read_volatile(word) == 0 {
            ptr::write_volatile(word, 1);
        }
    }
}

/// 0, without the compiler's knowledge: it would make a call of `memset` of a few words that are
/// zero, which the verifier walks through byte by byte.
#[inline(always)]
pub fn zero() -> u32 {
    let zero: u64;
    // SAFETY: a register is set.
    unsafe {
        asm!("{zero} = 0", zero = out(reg) zero, options(pure, nomem, nostack, preserves_flags));
    }
    zero as u32
}

/// No address.
#[inline(always)]
pub fn no_addr() -> Addr {
    let zero = zero();
    Addr([zero, zero, zero, zero])
}

/// The same address, word by word: the compiler would call `memmove` for a copy of the whole where
/// it cannot tell that the two do not overlap.
#[inline(always)]
pub const fn copy(addr: &Addr) -> Addr {
    Addr([addr.0[0], addr.0[1], addr.0[2], addr.0[3]])
}

/// The address that processes of the node have for clients and servers of that family.
#[inline(always)]
pub fn own_address(v4: bool) -> Addr {
    let Some(addrs) = NODE_ADDRS.get_ptr(0) else { return Addr([0; 4]) };
    // SAFETY: element 0 of an array exists as long as the map. The agent writes it whole, and what
    // is read while it does is compared only.
    unsafe { if v4 { (*addrs).v4 } else { (*addrs).v6 } }
}

/// Whether a Service has this port on the node.
#[inline(always)]
pub fn is_node_port(key: &NodePortKey) -> bool {
    // SAFETY: the value is not read.
    unsafe { NODE_PORTS.get(key).is_some() }
}
