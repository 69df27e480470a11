//! What was decided is done: a packet is translated and takes its way.

use sluice_abi::{Counter, Endpoint, NodeState};

use crate::{
    DROP, PASS, calls,
    counters::count,
    fastpath::{self, Route, Way},
    nat::Rewrite,
    node,
    packet::{Skb, note},
    parse::{Ip, Transport},
    service::Decision,
};

fn dropped(reason: Counter) -> i32 {
    count(reason);
    DROP
}

/// Translates the packet and leaves it to the stack: at an egress hook, which can hand it to nobody,
/// and wherever it is not to go past the stack.
#[inline(always)]
pub fn translate<const V6: bool>(
    packet: Skb,
    ip: &mut Ip,
    transport: &mut Transport,
    to: &Rewrite,
) -> i32 {
    if calls::apply::<V6>(packet, ip, transport, to) { PASS } else { dropped(Counter::DropRewrite) }
}

/// Translates the packet and sends it on. At an ingress hook only: the kernel drops what is handed to
/// a pod from an egress hook.
#[inline(always)]
pub fn take<const V6: bool>(
    packet: Skb,
    ip: &mut Ip,
    transport: &mut Transport,
    to: &Rewrite,
    decision: Decision,
) -> i32 {
    let past_stack = matches!(decision, Decision::Direct | Decision::Shortcut);
    let fast = node::state().flags & NodeState::FAST_PATH != 0;
    // With no hop left, the stack answers with an ICMP error.
    let endpoint =
        if (fast || past_stack) && ip.hops > 1 { fastpath::endpoint(&to.dst) } else { None };
    let mut way = Way::none();
    if past_stack && endpoint.is_none() {
        if ip.hops <= 1 {
            return match decision {
                Decision::Shortcut => PASS,
                _ => calls::expired::<V6>(packet, ip),
            };
        }
        match (calls::route::<V6>(packet, ip, transport, to, &mut way), decision) {
            // A neighbour that is not known yet is asked for when the packet leaves.
            (Route::Found | Route::Unresolved, _) => {}
            (_, Decision::Shortcut) => return PASS,
            (Route::TooBig, _) => return calls::too_big::<V6>(packet, ip, way.mtu),
            (Route::None, _) => return dropped(Counter::DropNoRoute),
        }
    }
    if !calls::apply::<V6>(packet, ip, transport, to) {
        return dropped(Counter::DropRewrite);
    }
    if let Some(endpoint) = endpoint
        && (past_stack || endpoint.flags & Endpoint::NO_FAST_PATH == 0)
    {
        return fastpath::deliver::<V6>(packet, &endpoint).unwrap_or(DROP);
    }
    if !past_stack {
        return PASS;
    }
    fastpath::leave::<V6>(packet, &mut way, note::DONE).unwrap_or(DROP)
}
