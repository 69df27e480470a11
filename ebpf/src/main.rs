//! The programs' entry points.
//!
//! | program | hook | job |
//! | --- | --- | --- |
//! | `sluice_connect4`, `6` | cgroup | connects a socket to a backend instead of a service |
//! | `sluice_sendmsg4`, `6` | cgroup | the same for a datagram of an unconnected socket |
//! | `sluice_recvmsg4`, `6` | cgroup | shows the service as the sender of the answer |
//! | `sluice_getpeername4`, `6` | cgroup | shows the service as the peer |
//! | `sluice_release` | cgroup | forgets what a socket was connected to |
//! | `sluice_post_bind4`, `6` | cgroup | keeps processes off NodePorts |
//! | `sluice_pod_send` | tc, ingress of a pod's host side | services per packet; fast path |
//! | `sluice_pod_recv` | tc, egress of a pod's host side | translates answers back |
//! | `sluice_uplink_in` | tc, ingress of an uplink | services for clients outside |
//! | `sluice_uplink_out` | tc, egress of an uplink | translates answers back; masquerade |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod counters;
mod csum;
mod ct;
mod fastpath;
mod fragment;
mod icmp;
mod icmp_error;
mod lb;
mod maps;
mod nat;
mod node;
mod packet;
mod parse;
mod reject;
mod service;
mod sock;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SockAddrContext, SockContext, TcContext},
};
use sluice_abi::NodeState;

use crate::{packet::Skb, service::Outcome};

/// Leaves the packet to whatever else is attached, then to the stack.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

#[cgroup_sock_addr(connect4)]
pub fn sluice_connect4(context: SockAddrContext) -> i32 {
    sock::connect::<false>(&context)
}

#[cgroup_sock_addr(connect6)]
pub fn sluice_connect6(context: SockAddrContext) -> i32 {
    sock::connect::<true>(&context)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sluice_sendmsg4(context: SockAddrContext) -> i32 {
    sock::sendmsg::<false>(&context)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sluice_sendmsg6(context: SockAddrContext) -> i32 {
    sock::sendmsg::<true>(&context)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sluice_recvmsg4(context: SockAddrContext) -> i32 {
    sock::recvmsg::<false>(&context);
    sock::PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sluice_recvmsg6(context: SockAddrContext) -> i32 {
    sock::recvmsg::<true>(&context);
    sock::PROCEED
}

#[cgroup_sock_addr(getpeername4)]
pub fn sluice_getpeername4(context: SockAddrContext) -> i32 {
    sock::getpeername::<false>(&context);
    sock::PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn sluice_getpeername6(context: SockAddrContext) -> i32 {
    sock::getpeername::<true>(&context);
    sock::PROCEED
}

#[cgroup_sock(sock_release)]
pub fn sluice_release(context: SockContext) -> i32 {
    sock::release(&context);
    sock::PROCEED
}

#[cgroup_sock(post_bind4)]
pub fn sluice_post_bind4(_context: SockContext) -> i32 {
    sock::PROCEED
}

#[cgroup_sock(post_bind6)]
pub fn sluice_post_bind6(_context: SockContext) -> i32 {
    sock::PROCEED
}

#[classifier]
pub fn sluice_uplink_in(_context: TcContext) -> i32 {
    PASS
}

#[classifier]
pub fn sluice_uplink_out(_context: TcContext) -> i32 {
    PASS
}

#[classifier]
pub fn sluice_pod_send(context: TcContext) -> i32 {
    let packet = Skb(context.skb.skb);
    match packet.ethertype() {
        Some(parse::ETH_P_IP) => pod_send::<false>(packet),
        Some(parse::ETH_P_IPV6) => pod_send::<true>(packet),
        _ => PASS,
    }
}

/// A function of its own for each family, so that their stacks share the kernel's 512 bytes.
#[inline(never)]
fn pod_send<const V6: bool>(packet: Skb) -> i32 {
    let Some(mut ip) = parse::ip::<V6, _>(packet) else { return PASS };
    let mut outcome = Outcome::Untouched;
    if lb::may_be_service(&ip.dst) {
        outcome = service::to_backend::<V6, _>(packet, &mut ip);
        match outcome {
            Outcome::Dropped => return DROP,
            Outcome::Rejected => return reject::answer::<V6>(packet, &ip),
            Outcome::Untouched | Outcome::Translated => {}
        }
    }

    let node = node::state();
    // With no hop left, the stack answers with an ICMP error.
    let endpoint = if node.flags & NodeState::FAST_PATH != 0 && ip.hops > 1 {
        fastpath::endpoint(&ip.dst)
    } else {
        None
    };
    if node.ct_used != 0
        && outcome == Outcome::Untouched
        && service::from_pod::<V6, _>(packet, &mut ip, endpoint.is_some()) == Outcome::Dropped
    {
        return DROP;
    }
    let Some(endpoint) = endpoint else { return PASS };
    fastpath::deliver::<V6>(packet, &endpoint).unwrap_or(PASS)
}

#[classifier]
pub fn sluice_pod_recv(context: TcContext) -> i32 {
    if node::state().ct_used == 0 {
        return PASS;
    }
    let packet = Skb(context.skb.skb);
    match packet.ethertype() {
        Some(parse::ETH_P_IP) => pod_recv::<false>(packet),
        Some(parse::ETH_P_IPV6) => pod_recv::<true>(packet),
        _ => PASS,
    }
}

#[inline(never)]
fn pod_recv<const V6: bool>(packet: Skb) -> i32 {
    let Some(mut ip) = parse::ip::<V6, _>(packet) else { return PASS };
    match service::to_client::<V6, _>(packet, &mut ip) {
        Outcome::Dropped | Outcome::Rejected => DROP,
        Outcome::Untouched | Outcome::Translated => PASS,
    }
}

/// The helpers that need it are GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
