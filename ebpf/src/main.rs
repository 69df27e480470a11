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

mod calls;
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
mod path;
mod policy;
mod reject;
mod service;
mod sock;
mod uplink;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SockAddrContext, SockContext, TcContext},
};
use sluice_abi::NodeState;

use crate::{
    ct::Origin,
    fastpath::Sender,
    fragment::Ports,
    nat::Rewrite,
    packet::{Skb, note},
    parse::Transport,
    service::{Decision, Place},
};

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
pub fn sluice_post_bind4(context: SockContext) -> i32 {
    sock::post_bind(&context)
}

#[cgroup_sock(post_bind6)]
pub fn sluice_post_bind6(context: SockContext) -> i32 {
    sock::post_bind(&context)
}

#[classifier]
pub fn sluice_uplink_in(context: TcContext) -> i32 {
    let packet = Skb(context.skb.skb);
    match packet.ethertype() {
        Some(parse::ETH_P_IP) => uplink::incoming::<false>(packet),
        Some(parse::ETH_P_IPV6) => uplink::incoming::<true>(packet),
        _ => PASS,
    }
}

#[classifier]
pub fn sluice_uplink_out(context: TcContext) -> i32 {
    let packet = Skb(context.skb.skb);
    match packet.ethertype() {
        Some(parse::ETH_P_IP) => uplink::outgoing::<false>(packet),
        Some(parse::ETH_P_IPV6) => uplink::outgoing::<true>(packet),
        _ => PASS,
    }
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

#[inline(always)]
fn pod_send<const V6: bool>(packet: Skb) -> i32 {
    // The pod's interface hands on what the pod wrote there.
    packet.forget_notes();
    let verdict = calls::again::<V6>(packet);
    if verdict != PASS {
        return verdict;
    }
    let Some(mut ip) = parse::ip::<V6, _>(packet) else { return PASS };
    let state = node::state();
    let sender = if state.flags & NodeState::FAST_PATH != 0 {
        fastpath::sender(packet, &ip)
    } else {
        Sender::Bound
    };
    let fast = sender != Sender::Bound;
    // With no hop left, the stack answers with an ICMP error.
    let receiver = if fast && ip.hops > 1 { fastpath::receiver(&ip.dst) } else { 0 };
    packet.set_receiver(receiver);
    let delivered = receiver != 0;
    // The node's loopback addresses are served to the node's own sockets alone.
    let may_be_service = lb::may_be_service(&ip.dst) && !ip.dst.is_loopback();
    let policed = policy::in_force();
    if may_be_service || state.ct_used != 0 || policed {
        let place = match (delivered, fast) {
            (true, _) => Place::PodToPod,
            (false, true) => Place::PodFast,
            (false, false) => Place::Pod,
        };
        let mut transport = Transport::none();
        let ports = calls::transport::<V6>(packet, &ip, &mut transport);
        let mut to = Rewrite::none(&ip, &transport);
        let mut decision = Decision::Leave;
        let mut how = policy::FROM_POD;
        if ip.proto == parse::icmp_proto(V6) {
            if state.ct_used != 0 {
                decision = calls::icmp_error::<V6>(packet, &ip, place, &mut transport, &mut to);
                if decision != Decision::Leave {
                    // About a flow that was allowed.
                    how = 0;
                }
            }
        } else if ports == Ports::Known {
            // What opens a connection is no answer.
            if state.ct_used != 0 && !transport.opens_connection() {
                decision = calls::answer(&ip, &transport, place, &mut to);
            }
            // A connection straight to a backend may meet a translated flow there; datagrams do not,
            // whose flows get ports that sockets do not pick.
            let beside = state.ct_beside != 0 && transport.tcp != 0;
            let may_meet = state.ct_used != 0 && (beside || transport.opens_connection());
            if decision == Decision::Leave && (may_be_service || may_meet) {
                let (origin, of_service) = (Origin::Pod, may_be_service);
                decision =
                    service::request::<V6>(packet, &ip, &transport, origin, of_service, &mut to);
                how |= policy::REQUEST;
            }
        } else if may_be_service {
            decision = service::without_ports(&ip, ports);
        }
        if policed && how != 0 && !matches!(decision, Decision::Drop | Decision::Reject) {
            if decision == Decision::Leave {
                how |= policy::TO_RECEIVER;
            } else if fast || decision == Decision::Direct {
                how |= policy::PAST_STACK;
            }
            if !policy::passes::<V6>(packet, &ip, &transport, &to, how) {
                return DROP;
            }
        }
        match decision {
            Decision::Leave => {}
            Decision::Drop => return DROP,
            Decision::Reject => return calls::reject::<V6>(packet, &ip),
            Decision::Translate if !fast => {
                return path::translate::<V6>(packet, &mut ip, &mut transport, &to);
            }
            _ => {
                let verdict = calls::take::<V6>(packet, &mut ip, &mut transport, &to, decision);
                // It has its new addresses, and is for no pod of this node.
                if decision != Decision::Translate || verdict != PASS {
                    return verdict;
                }
            }
        }
    }
    match sender {
        _ if delivered => calls::to_pod::<V6>(packet, &ip),
        Sender::Pod => calls::onward::<V6>(packet, &ip),
        _ => PASS,
    }
}

#[classifier]
pub fn sluice_pod_recv(context: TcContext) -> i32 {
    let packet = Skb(context.skb.skb);
    let translated = node::state().ct_used != 0;
    let policed = policy::concerns(packet.ifindex());
    if !translated && !policed {
        return PASS;
    }
    match packet.ethertype() {
        Some(parse::ETH_P_IP) => pod_recv::<false>(packet, translated, policed),
        Some(parse::ETH_P_IPV6) => pod_recv::<true>(packet, translated, policed),
        _ => PASS,
    }
}

#[inline(always)]
fn pod_recv<const V6: bool>(packet: Skb, translated: bool, policed: bool) -> i32 {
    let Some(mut ip) = parse::ip::<V6, _>(packet) else { return PASS };
    let mut transport = Transport::none();
    let ports = calls::transport::<V6>(packet, &ip, &mut transport);
    let mut to = Rewrite::none(&ip, &transport);
    let mut decision = Decision::Leave;
    let mut how = policy::TO_POD;
    if ip.proto == parse::icmp_proto(V6) {
        if translated {
            decision = calls::icmp_error::<V6>(packet, &ip, Place::AtPod, &mut transport, &mut to);
            if decision != Decision::Leave {
                // About a flow that was allowed.
                how = 0;
            }
        }
    } else if translated && ports == Ports::Known {
        decision = calls::answer(&ip, &transport, Place::AtPod, &mut to);
    }
    if policed
        && how != 0
        && decision != Decision::Drop
        && packet.notes() & note::JUDGED == 0
        && !policy::passes::<V6>(packet, &ip, &transport, &to, how)
    {
        return DROP;
    }
    match decision {
        Decision::Leave => PASS,
        Decision::Drop => DROP,
        _ => path::translate::<V6>(packet, &mut ip, &mut transport, &to),
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
