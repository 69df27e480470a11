//! The node's uplinks: clients outside reach services, backends elsewhere answer them through this
//! node, and pods that leave the cluster do it with the node's address.

use aya_ebpf::btf_maps::lpm_trie::Key;
use sluice_abi::{Addr, CidrKey, Counter, CtFlags, NodeAddrs, NodeState};

use crate::{
    DROP, PASS, calls,
    counters::count,
    csum,
    ct::{self, Created, Origin, Side},
    fastpath,
    fragment::Ports,
    lb::{self, Pick},
    maps::NON_MASQUERADE,
    nat::Rewrite,
    node,
    packet::{Skb, note},
    parse::{self, Ip, Transport},
    path::translate,
    policy,
    service::{self, Decision, Place},
};

/// A packet arrives from outside.
#[inline(always)]
pub fn incoming<const V6: bool>(packet: Skb) -> i32 {
    // A node on the same kernel may have sent it.
    packet.forget_notes();
    let verdict = calls::straight::<V6>(packet);
    if verdict != PASS {
        return verdict;
    }
    if parse::is_icmp::<V6, _>(packet) {
        message_arrives::<V6>(packet)
    } else {
        packet_arrives::<V6>(packet)
    }
}

/// Hands a packet that is [`fastpath::unconcerned`] to the pod of this node that it is for; else [`PASS`].
#[inline(always)]
pub fn straight<const V6: bool>(packet: Skb) -> i32 {
    match fastpath::unconcerned::<V6>(packet) {
        Some(ip) => fastpath::to_pod::<V6>(packet, &ip),
        None => PASS,
    }
}

/// An ICMP message arrives from outside: it may be an error about a flow that came by here, or, if
/// it takes the fast path past the pod's own program, about one of the pod's.
///
/// A function of its own for each family, as [`packet_arrives`], so that their stacks share the
/// kernel's 512 bytes.
#[inline(never)]
fn message_arrives<const V6: bool>(packet: Skb) -> i32 {
    let Some(mut ip) = parse::ip::<V6, _>(packet) else { return PASS };
    let state = node::state();
    let fast = state.flags & NodeState::FAST_PATH != 0;
    if state.ct_used != 0 {
        let mut transport = Transport::none();
        let mut to = Rewrite::none(&ip, &transport);
        let mut place = Place::FromOutside;
        let mut decision = calls::icmp_error::<V6>(packet, &ip, place, &mut transport, &mut to);
        if decision == Decision::Leave && fast && ip.hops > 1 && fastpath::takes(&ip.dst) {
            place = Place::AtPod;
            decision = calls::icmp_error::<V6>(packet, &ip, place, &mut transport, &mut to);
        }
        // A pod that left the cluster is answered: its ping.
        if decision == Decision::Leave
            && node::is_own::<V6>(&ip.dst)
            && calls::echo::<V6>(packet, &ip, &mut transport)
            && !transport.opens_connection()
        {
            to = Rewrite::none(&ip, &transport);
            decision = calls::answer(&ip, &transport, Place::FromOutside, &mut to);
            if decision != Decision::Leave && fast && policy::in_force() {
                let how = policy::PAST_STACK | policy::REQUEST;
                if !policy::passes::<V6>(packet, &ip, &transport, &to, how) {
                    return DROP;
                }
            }
        }
        match decision {
            Decision::Leave => {}
            Decision::Drop => return DROP,
            _ => return calls::take::<V6>(packet, &mut ip, &mut transport, &to, decision),
        }
    }
    if !fast {
        return PASS;
    }
    if policy::in_force() {
        let transport = Transport::none();
        let to = Rewrite::none(&ip, &transport);
        if !policy::passes::<V6>(packet, &ip, &transport, &to, policy::PAST_STACK) {
            return DROP;
        }
    }
    calls::to_pod::<V6>(packet, &ip)
}

/// A packet that is no ICMP message arrives from outside.
#[inline(never)]
fn packet_arrives<const V6: bool>(packet: Skb) -> i32 {
    let Some(mut ip) = parse::ip::<V6, _>(packet) else { return PASS };
    let state = node::state();
    let fast = state.flags & NodeState::FAST_PATH != 0;
    let policed = policy::in_force();
    // The host's own addresses for itself are served to nobody else.
    let may_be_service = lb::may_be_service(&ip.dst) && !ip.dst.is_loopback();
    let mut transport = Transport::none();
    let ports = calls::transport::<V6>(packet, &ip, &mut transport);
    let mut to = Rewrite::none(&ip, &transport);
    let mut decision = Decision::Leave;
    if ports != Ports::Known {
        if may_be_service {
            decision = service::without_ports(&ip, ports);
        }
        return match decision {
            Decision::Reject => calls::reject::<V6>(packet, &ip),
            Decision::Drop => DROP,
            _ if !fast => PASS,
            _ if policed
                && !policy::passes::<V6>(packet, &ip, &transport, &to, policy::PAST_STACK) =>
            {
                DROP
            }
            _ => calls::to_pod::<V6>(packet, &ip),
        };
    }
    if may_be_service {
        decision = service::request::<V6>(packet, &ip, &transport, Origin::Outside, true, &mut to);
    }
    if decision == Decision::Leave && state.ct_used != 0 && node::is_own::<V6>(&ip.dst) {
        decision = calls::answer(&ip, &transport, Place::FromOutside, &mut to);
    }
    // The pod's own program sees what goes by the stack.
    if policed
        && (fast && matches!(decision, Decision::Translate) || decision == Decision::Direct)
        && !policy::passes::<V6>(packet, &ip, &transport, &to, policy::PAST_STACK | policy::REQUEST)
    {
        return DROP;
    }
    match decision {
        Decision::Drop => DROP,
        Decision::Reject => calls::reject::<V6>(packet, &ip),
        // What a pod hears goes past its own program if it takes the fast path.
        Decision::Translate if fast && ip.hops > 1 && fastpath::takes(&to.dst) => {
            into_pod::<V6>(packet, &mut ip, &mut transport, &to)
        }
        Decision::Leave => {
            if state.ct_used != 0 {
                if transport.opens_connection() {
                    calls::supersede(&ip, &transport);
                } else if fast && ip.hops > 1 && fastpath::takes(&ip.dst) {
                    decision = calls::answer(&ip, &transport, Place::AtPod, &mut to);
                }
            }
            if !fast {
                return PASS;
            }
            if policed && !policy::passes::<V6>(packet, &ip, &transport, &to, policy::PAST_STACK) {
                return DROP;
            }
            if decision == Decision::Leave {
                calls::to_pod::<V6>(packet, &ip)
            } else {
                calls::take::<V6>(packet, &mut ip, &mut transport, &to, decision)
            }
        }
        _ => calls::take::<V6>(packet, &mut ip, &mut transport, &to, decision),
    }
}

/// Translates a packet for a pod of this node, and then what the pod is to hear of it.
#[inline(never)]
fn into_pod<const V6: bool>(
    packet: Skb,
    ip: &mut Ip,
    transport: &mut Transport,
    to: &Rewrite,
) -> i32 {
    if !calls::apply::<V6>(packet, ip, transport, to) {
        count(Counter::DropRewrite);
        return DROP;
    }
    let mut again = Rewrite::none(ip, transport);
    calls::answer(ip, transport, Place::AtPod, &mut again);
    calls::take::<V6>(packet, ip, transport, &again, Decision::Translate)
}

/// A packet leaves the node.
#[inline(always)]
pub fn outgoing<const V6: bool>(packet: Skb) -> i32 {
    let notes = packet.notes();
    if notes != 0 {
        packet.set_notes(0);
        if notes & note::ROUTED != 0 {
            csum::link_header_joins(packet);
        }
        if notes & note::DONE != 0 {
            return PASS;
        }
    }
    let state = node::state();
    let Some(node) = node::addrs() else { return PASS };
    if state.ct_used == 0 && node.flags & NodeAddrs::MASQUERADE == 0 {
        return PASS;
    }
    let Some(mut ip) = parse::ip::<V6, _>(packet) else { return PASS };
    let mut transport = Transport::none();
    let ports = calls::transport::<V6>(packet, &ip, &mut transport);
    let mut to = Rewrite::none(&ip, &transport);
    if ports != Ports::Known {
        if ip.proto != parse::icmp_proto(V6) {
            return PASS;
        }
        if !calls::echo::<V6>(packet, &ip, &mut transport) {
            if state.ct_used == 0 {
                return PASS;
            }
            let place = Place::ToOutside;
            return match calls::icmp_error::<V6>(packet, &ip, place, &mut transport, &mut to) {
                Decision::Leave => PASS,
                Decision::Drop => DROP,
                _ => translate::<V6>(packet, &mut ip, &mut transport, &to),
            };
        }
        to = Rewrite::none(&ip, &transport);
    }
    if state.ct_used != 0 && !transport.opens_connection() {
        let decision = calls::answer(&ip, &transport, Place::ToOutside, &mut to);
        if decision != Decision::Leave {
            return translate::<V6>(packet, &mut ip, &mut transport, &to);
        }
    }
    match needs_mask::<V6>(&ip, &transport) {
        Mask::None => return PASS,
        Mask::Kept => {}
        Mask::New => match begin::<V6>(packet, &ip, &transport) {
            Created::Yes => {
                node::conntrack_is_used();
                count(Counter::Masqueraded);
            }
            other => {
                if let Some(reason) = service::reason(other) {
                    count(reason);
                }
                return DROP;
            }
        },
    }
    if masked(&ip, &transport, &mut to) {
        translate::<V6>(packet, &mut ip, &mut transport, &to)
    } else {
        PASS
    }
}

/// Whether the address is reached with a pod's own.
#[inline(always)]
fn knows_pods(addr: &Addr) -> bool {
    let key = CidrKey { prefix_len: 8 * size_of::<Addr>() as u32, addr: node::copy(addr) };
    // SAFETY: the same fields, without padding, and no alignment is asked for.
    let key: &Key<Addr> = unsafe { &*(&raw const key).cast() };
    NON_MASQUERADE.get(key).is_some()
}

/// Whether what a pod of this node sends to the address gets an address and port of the node for its
/// source.
#[inline(always)]
pub fn is_masked(node: &NodeAddrs, dst: &Addr) -> bool {
    node.flags & NodeAddrs::MASQUERADE != 0 && !knows_pods(dst)
}

/// Whether a packet gets an address and port of the node for its source.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Mask {
    /// It does not.
    None,
    /// It does if its flow has one.
    Kept,
    /// Its flow is to get one.
    New,
}

/// Decides whether a packet gets an address and port of the node for its source: a pod's that leaves
/// the cluster, or one of a socket of the node whose answers would else be taken for another flow's.
#[inline(never)]
fn needs_mask<const V6: bool>(ip: &Ip, transport: &Transport) -> Mask {
    let Some(node) = node::addrs() else { return Mask::None };
    let of_pod = node.flags & NodeAddrs::MASQUERADE != 0
        && fastpath::is_endpoint(&ip.src)
        && !knows_pods(&ip.dst);
    if !of_pod {
        let port = transport.sport.get();
        let in_range = port >= node.port_min && port <= node.port_max;
        if !in_range || !node::is_own::<V6>(&ip.src) {
            return Mask::None;
        }
    }
    if !transport.may_open() {
        return Mask::Kept;
    }
    let key = ct::key(ip, transport, Side::Client);
    if let Some(entry) = ct::find(&key) {
        if entry.flags & CtFlags::MASQUERADE != 0 {
            if !ct::has_ended(&key, entry) {
                return Mask::Kept;
            }
            ct::forget_answers(&key, entry);
        }
    }
    if of_pod || calls::supersede(ip, transport) { Mask::New } else { Mask::None }
}

/// What the packet's source becomes; whether it has a flow that says so.
#[inline(never)]
fn masked(ip: &Ip, transport: &Transport, to: &mut Rewrite) -> bool {
    let key = ct::key(ip, transport, Side::Client);
    let Some(entry) = ct::find(&key) else { return false };
    if entry.flags & CtFlags::MASQUERADE == 0 {
        return false;
    }
    ct::note(entry, Side::Client, transport.tcp, ct::now());
    to.src = node::copy(&entry.nat_addr);
    to.sport = entry.nat_port;
    true
}

/// Makes the flow of a packet that gets an address and port of the node.
#[inline(never)]
fn begin<const V6: bool>(packet: Skb, ip: &Ip, transport: &Transport) -> Created {
    let mut pick = Pick::none();
    pick.backend.addr = node::copy(&ip.dst);
    pick.backend.port = transport.dport;
    pick.backend.proto = transport.proto;
    calls::create::<V6>(packet, ip, transport, &pick, Origin::Masked)
}
