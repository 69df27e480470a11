//! What the agent says of the node, and what the programs tell each other.

use core::ptr;

use sluice_abi::{Addr, NodePortKey, NodeState};

use crate::maps::{NODE_ADDRS, NODE_PORTS, NODE_STATE};

/// The node's state.
#[inline(always)]
pub fn state() -> NodeState {
    match NODE_STATE.get_ptr(0) {
        // SAFETY: element 0 of an array exists as long as the map. The fields are words, so none is
        // read half written.
        Some(state) => unsafe { ptr::read_volatile(state) },
        None => NodeState { ct_used: 0, flags: 0, netns: 0 },
    }
}

/// Says that flows are translated packet by packet from now on.
#[inline(always)]
pub fn conntrack_is_used() {
    let Some(state) = NODE_STATE.get_ptr_mut(0) else { return };
    // SAFETY: as above; the field is written only once, so that its cache line stays shared.
    unsafe {
        let used = &raw mut (*state).ct_used;
        if ptr::read_volatile(used) == 0 {
            ptr::write_volatile(used, 1);
        }
    }
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
