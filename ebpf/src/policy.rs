//! Network policies: what passes to and from the isolated pods of this node.
//!
//! A packet is judged by its real sender and receiver and by the server's port, so after its
//! destination was translated and before its source is: at the sender's program by the sender's rules,
//! and by the receiver's rules where the packet is handed to it past the stack, or else at its own
//! program. What was allowed is written down for the flow, in both directions of it at once: one lookup
//! lets all that follows pass, until the agent raises the epoch.

use core::{arch::asm, ptr};

use aya_ebpf::{bindings::BPF_NOEXIST, btf_maps::lpm_trie::Key, helpers::bpf_ktime_get_ns};
use sluice_abi::{
    Addr, Be16, CidrKey, Counter, Direction, DropEvent, DropReason, PolicyDrops, PolicyFlow,
    PolicyFlowKey, PolicyKey, PolicyRule, PolicySets, PolicyState, proto,
};

use crate::{
    calls,
    counters::count,
    ct, fastpath, fragment,
    icmp::{self, ICMP_LEN, IcmpHeader},
    maps::{
        DROP_EVENTS, IDENTITIES, POLICY, POLICY_DROPS, POLICY_FLOWS, POLICY_SETS, POLICY_STATE,
    },
    nat::Rewrite,
    node::{self, copy},
    packet::{Packet, Skb},
    parse::{self, Ip, Part, Quoted, Transport},
};

/// The packet leaves the pod at the interface.
pub const FROM_POD: u16 = 1 << 0;
/// It goes to the pod at the interface.
pub const TO_POD: u16 = 1 << 1;
/// It is handed to a pod of this node, if there is one, past that pod's own program.
pub const PAST_STACK: u16 = 1 << 2;
/// It is a client's, and the server sees it as it is to become; else as it is.
pub const REQUEST: u16 = 1 << 3;
/// As [`PAST_STACK`], to the one that [`Skb::receiver`] tells, which somebody has looked up already.
pub const TO_RECEIVER: u16 = 1 << 4;

/// How long a flow that says nothing of its end may be silent, so that a packet of the server is still
/// an answer.
const IDLE_NS: u64 = 120_000_000_000;
/// How old a flow's last packet may get before it is written down anew.
const TOUCH_NS: u64 = 1_000_000_000;

/// First port that sockets get by themselves (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: u16 = 32_768;

/// Of [`Case::traits`]: the packet begins a flow, and is no answer.
const OPENS: u8 = 1 << 0;
/// The packet shows that its flow has begun before: it may be an answer though no flow is known.
const AMID: u8 = 1 << 1;
/// The packet is an answer or nothing: ICMP's echo reply.
const REPLY: u8 = 1 << 2;
/// Whatever begins no flow of the protocol is harmless without one, so answers need not be fresh.
const ORDERLY: u8 = 1 << 3;
/// A fragment whose ports are not known.
const ORPHAN: u8 = 1 << 4;
/// A process of the node sends the packet.
const FROM_NODE: u8 = 1 << 5;

/// Of [`asked`]: the packet goes from the client to the server.
const FORWARD: u32 = 1 << 0;
/// It goes from the server to the client.
const BACK: u32 = 1 << 1;
/// Either may be.
const BOTH_WAYS: u32 = FORWARD | BACK;
/// The rules of the pod that sends the packet are asked.
const SENDER: u32 = 1 << 2;
/// Those of the pod that gets it.
const RECEIVER: u32 = 1 << 3;
/// Nobody is told.
const QUIET: u32 = 1 << 4;

/// What policies ask of a packet beside its addresses.
#[repr(C)]
pub struct Case {
    /// Interface of the pod that sends it, if that is isolated; else 0.
    sender: u32,
    /// Interface of the pod that gets it, if that is isolated; else 0.
    receiver: u32,
    epoch: u32,
    len: u32,
    sport: Be16,
    dport: Be16,
    proto: u8,
    traits: u8,
    /// [`REQUEST`] and others.
    how: u16,
}

/// Whether any pod of this node is isolated.
#[inline(always)]
pub fn in_force() -> bool {
    match POLICY_STATE.get_ptr(0) {
        // SAFETY: element 0 of an array exists as long as the map; the field is a word.
        Some(state) => unsafe { ptr::read_volatile(&raw const (*state).policed) != 0 },
        None => false,
    }
}

/// Whether the pod at an interface may be isolated.
#[inline(always)]
pub fn concerns(ifindex: u32) -> bool {
    POLICY_STATE.get_ptr(0).is_some_and(|state| isolated(state, ifindex) != 0)
}

/// The number of the interface if the pod there may be isolated, else 0.
#[inline(always)]
fn isolated(state: *const PolicyState, ifindex: u32) -> u32 {
    let bit = PolicyState::bit(ifindex);
    // SAFETY: the state is an array's element, see above; the index is within the filter.
    let word = unsafe {
        let filter = (&raw const (*state).filter).cast::<u64>();
        ptr::read_volatile(filter.add((bit / 64) as usize))
    };
    if word & (1 << (bit % 64)) != 0 { ifindex } else { 0 }
}

/// Whether policies let the packet pass. Call it before the packet is changed; what is dropped is
/// counted and told.
///
/// A function of its own, so that what is asked takes no place on the stack that services need.
#[inline(never)]
pub fn passes<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    transport: &Transport,
    to: &Rewrite,
    how: u16,
) -> bool {
    let Some(state) = POLICY_STATE.get_ptr(0) else { return true };
    // Read before the tables: what is judged by the old ones meanwhile is judged again.
    // SAFETY: as in `in_force`.
    let epoch = unsafe { ptr::read_volatile(&raw const (*state).epoch) };
    let mut sender = 0;
    let mut receiver = 0;
    if how & FROM_POD != 0 {
        sender = isolated(state, packet.ifindex());
    }
    if how & TO_POD != 0 {
        receiver = isolated(state, packet.ifindex());
    } else if how & PAST_STACK != 0 {
        receiver = isolated(state, fastpath::interface(&to.dst));
    } else if how & TO_RECEIVER != 0 {
        receiver = isolated(state, packet.receiver());
    }
    if sender == 0 && receiver == 0 {
        return true;
    }
    let mut case = Case {
        sender,
        receiver,
        epoch,
        len: packet.len(),
        sport: transport.sport,
        dport: transport.dport,
        proto: transport.proto,
        traits: 0,
        how,
    };
    // The stack takes down where a packet came in, and has nothing to take down of its own.
    if how & TO_POD != 0 && packet.ingress_ifindex() == 0 {
        case.traits = FROM_NODE;
    }
    if transport.is_icmp() {
        // A ping is answered that left the cluster: the pod knows it by the identifier that it gave.
        case.sport = to.dport;
        case.dport = to.dport;
        case.traits = REPLY;
        return calls::judge(ip, to, &case);
    }
    match calls::read::<V6>(packet, ip, transport, &mut case) {
        GO_ON => calls::judge(ip, to, &case),
        PASSES => true,
        at => calls::is_related::<V6>(packet, ip, at) || calls::judge(ip, to, &case),
    }
}

/// Of [`read`]: the packet is to be judged.
const GO_ON: u32 = 0;
/// It passes: a message of the link. Anything else is where the packet begins that an ICMP error quotes.
const PASSES: u32 = 1;

/// Reads what the packet says of itself.
#[inline(always)]
pub fn read<const V6: bool>(packet: Skb, ip: &Ip, transport: &Transport, case: &mut Case) -> u32 {
    if case.proto == 0 {
        return read_other::<V6>(packet, ip, case);
    }
    read_ports(ip, transport, case);
    GO_ON
}

/// Whether the server sees other ports than the packet has.
#[inline(always)]
const fn has_new_ports(case: &Case) -> bool {
    case.how & REQUEST != 0 && matches!(case.proto, proto::TCP | proto::UDP | proto::SCTP)
}

/// Judges a packet by its flow, or by the rules.
#[inline(always)]
pub fn judge(ip: &Ip, to: &Rewrite, case: &Case) -> bool {
    let request = case.how & REQUEST != 0;
    let (src, dst) = if request { (&to.src, &to.dst) } else { (&ip.src, &ip.dst) };
    let (mut sport, mut dport) = (case.sport, case.dport);
    if has_new_ports(case) {
        (sport, dport) = (to.sport, to.dport);
    }
    let from_high = is_high(src, sport, dst, dport);
    let key = if from_high {
        flow_key(dst, dport, src, sport, case.proto)
    } else {
        flow_key(src, sport, dst, dport, case.proto)
    };
    // SAFETY: valid until this program ends; other CPUs write words of it, of which either value will
    // do. Should the element be reused for another flow meanwhile, a packet is judged by that one once.
    match unsafe { POLICY_FLOWS.get_ptr_mut(&key).and_then(|flow| flow.as_mut()) } {
        Some(flow) => {
            let forward = (flow.flags & PolicyFlow::FROM_HIGH != 0) == from_high;
            if forward || !is_other(case, flow) {
                return along(ip, to, case, flow, forward);
            }
        }
        None => {}
    }
    let ways = ways(case, sport, dport);
    let forward = if ways == BOTH_WAYS {
        !asked(ip, to, case, BACK | SENDER | RECEIVER | QUIET)
    } else {
        ways == FORWARD
    };
    let receiver = if case.traits & FROM_NODE != 0 { 0 } else { RECEIVER };
    if !asked(ip, to, case, if forward { FORWARD } else { BACK } | SENDER | receiver) {
        if forward {
            // What was made for a service's client before it was known that it may not come.
            calls::take_back(to, case.proto.into());
        }
        return false;
    }
    write_down(case, &key, forward, from_high);
    true
}

/// What ports and flags say.
#[inline(always)]
fn read_ports(ip: &Ip, transport: &Transport, case: &mut Case) {
    fragment::remember(ip, transport);
    case.traits |= match transport.proto {
        proto::TCP | proto::SCTP if transport.opens_connection() => OPENS | ORDERLY,
        proto::TCP | proto::SCTP => AMID | ORDERLY,
        _ => 0,
    };
    if transport.part == Part::Later && transport.dport.to_network() == 0 {
        case.traits |= ORPHAN;
    }
}

/// What a packet without ports says of itself.
#[inline(never)]
fn read_other<const V6: bool>(packet: Skb, ip: &Ip, case: &mut Case) -> u32 {
    case.proto = ip.proto;
    let Some(upper) = parse::upper::<V6, _>(packet, ip) else { return GO_ON };
    case.proto = upper.proto;
    if upper.proto != parse::icmp_proto(V6) {
        return GO_ON;
    }
    let mut transport = Transport::none();
    transport.id = upper.id;
    transport.proto = upper.proto;
    transport.part = upper.part;
    if upper.part == Part::Later {
        if !fragment::find(ip, &mut transport) {
            case.traits |= ORPHAN;
        }
        case.sport = transport.sport;
        case.dport = transport.dport;
        return GO_ON;
    }
    let Some(header) = packet.load::<IcmpHeader>(upper.offset) else { return GO_ON };
    if V6 && is_of_the_link(header.kind, ip.hops) {
        return PASSES;
    }
    let (request, reply) = if V6 { (128, 129) } else { (8, 0) };
    if header.kind == request || header.kind == reply {
        // The identifier is the first half of what follows the checksum.
        let [a, b, _, _] = header.rest.to_ne_bytes();
        let identifier = Be16::from_network(u16::from_ne_bytes([a, b]));
        case.sport = identifier;
        case.dport = identifier;
        case.traits |= if header.kind == request { OPENS } else { REPLY };
        transport.sport = identifier;
        transport.dport = identifier;
        fragment::remember(ip, &transport);
        return GO_ON;
    }
    if icmp::is_error(V6, header.kind) && upper.part == Part::Whole {
        return upper.offset + ICMP_LEN;
    }
    GO_ON
}

/// Whether an ICMPv6 message is for the link alone: neighbours, routers, groups (RFC 4861, RFC 3810).
/// No router sends such a packet on, so it cannot come from further away than its hops say.
#[inline(always)]
const fn is_of_the_link(kind: u8, hops: u8) -> bool {
    matches!(kind, 133..=136) && hops == 255 || matches!(kind, 130..=132 | 143) && hops == 1
}

/// Whether the packet that an ICMP error quotes belongs to a flow that was allowed.
#[inline(always)]
pub fn is_related<const V6: bool>(packet: Skb, ip: &Ip, at: u32) -> bool {
    let mut quoted = Quoted::none();
    // Who sent the packet is told.
    if !parse::quoted::<V6, _>(packet, at, &mut quoted) || quoted.src != ip.dst {
        return false;
    }
    if quoted.proto == parse::icmp_proto(V6) {
        quoted.dport = quoted.sport;
    }
    let from_high = is_high(&quoted.src, quoted.sport, &quoted.dst, quoted.dport);
    let key = if from_high {
        flow_key(&quoted.dst, quoted.dport, &quoted.src, quoted.sport, quoted.proto)
    } else {
        flow_key(&quoted.src, quoted.sport, &quoted.dst, quoted.dport, quoted.proto)
    };
    POLICY_FLOWS.get_ptr(&key).is_some()
}

/// Whether the first of two ends is the high one.
#[inline(always)]
fn is_high(a: &Addr, a_port: Be16, b: &Addr, b_port: Be16) -> bool {
    // Addresses of one family most often differ in their last words.
    if a.0[3] != b.0[3] {
        return a.0[3] > b.0[3];
    }
    if a.0[2] != b.0[2] {
        return a.0[2] > b.0[2];
    }
    if a.0[1] != b.0[1] {
        return a.0[1] > b.0[1];
    }
    if a.0[0] != b.0[0] {
        return a.0[0] > b.0[0];
    }
    a_port.to_network() > b_port.to_network()
}

#[inline(always)]
fn flow_key(low: &Addr, low_port: Be16, high: &Addr, high_port: Be16, proto: u8) -> PolicyFlowKey {
    let zero = node::zero() as u8;
    PolicyFlowKey {
        low: copy(low),
        high: copy(high),
        low_port,
        high_port,
        proto,
        reserved: [zero, zero, zero],
    }
}

/// Whether a packet from the server's end belongs to another flow than the one that is known: it begins
/// one, or comes too late to be an answer.
#[inline(always)]
fn is_other(case: &Case, flow: &PolicyFlow) -> bool {
    if case.traits & OPENS != 0 {
        return true;
    }
    // SAFETY: the pointer comes from a reference; volatile, since other CPUs write too.
    let last_seen = unsafe { ptr::read_volatile(&raw const flow.last_seen) };
    case.traits & (ORDERLY | FROM_NODE) == 0 && ct::now().wrapping_sub(last_seen) >= IDLE_NS
}

/// Decides on a packet of a flow that is known.
#[inline(always)]
fn along(ip: &Ip, to: &Rewrite, case: &Case, flow: &mut PolicyFlow, forward: bool) -> bool {
    // Which end's rules were asked under this epoch. Those of the server are never asked where the
    // client is the node.
    let of_client = flow.egress == case.epoch;
    let of_server = flow.ingress == case.epoch || flow.flags & PolicyFlow::NODE != 0;
    let (sender, receiver) = if forward { (of_client, of_server) } else { (of_server, of_client) };
    let mut how = if forward { FORWARD } else { BACK };
    if case.sender != 0 && !sender {
        how |= SENDER;
    }
    if case.receiver != 0 && !receiver && case.traits & FROM_NODE == 0 {
        how |= RECEIVER;
    }
    if how & (SENDER | RECEIVER) != 0 {
        if !asked(ip, to, case, how) {
            return false;
        }
        let (client, server) = if forward { (SENDER, RECEIVER) } else { (RECEIVER, SENDER) };
        // SAFETY: the pointers come from a reference; volatile, since other CPUs write too.
        unsafe {
            if how & client != 0 {
                ptr::write_volatile(&raw mut flow.egress, case.epoch);
            }
            if how & server != 0 {
                ptr::write_volatile(&raw mut flow.ingress, case.epoch);
            }
        }
    }
    let now = ct::now();
    // SAFETY: as above.
    unsafe {
        if now.wrapping_sub(ptr::read_volatile(&raw const flow.last_seen)) >= TOUCH_NS {
            ptr::write_volatile(&raw mut flow.last_seen, now);
        }
    }
    true
}

/// Which way a packet goes whose flow is not known: it begins one, or it shows that it has begun before
/// anything was written down, or after that was evicted.
#[inline(always)]
fn ways(case: &Case, sport: Be16, dport: Be16) -> u32 {
    if case.traits & REPLY != 0 {
        return BACK;
    }
    if case.traits & AMID == 0 || case.traits & FROM_NODE != 0 {
        return FORWARD;
    }
    let (sport, dport) = (sport.get(), dport.get());
    if sport >= EPHEMERAL && dport >= EPHEMERAL {
        // Both picked theirs.
        BOTH_WAYS
    } else if sport >= dport {
        // Of two ends of a connection, the server has the lower port.
        FORWARD
    } else {
        BACK
    }
}

/// Writes down a flow that was allowed.
#[inline(never)]
fn write_down(case: &Case, key: &PolicyFlowKey, forward: bool, from_high: bool) {
    let (client, server) =
        if forward { (case.sender, case.receiver) } else { (case.receiver, case.sender) };
    let mut flags = 0;
    if from_high == forward {
        flags |= PolicyFlow::FROM_HIGH;
    }
    if forward && case.traits & FROM_NODE != 0 {
        flags |= PolicyFlow::NODE;
    }
    let flow = PolicyFlow {
        last_seen: ct::now(),
        egress: if client != 0 { case.epoch } else { 0 },
        ingress: if server != 0 { case.epoch } else { 0 },
        flags,
        reserved: 0,
    };
    // Without room, each packet is judged, and answers as if they began the flow.
    let _ = POLICY_FLOWS.insert(key, &flow, 0);
}

/// Whose rules say what in a direction of the flow: of the packet's sender, and of its receiver.
#[inline(always)]
const fn directions(how: u32) -> (Direction, Direction) {
    if how & FORWARD != 0 {
        (Direction::Egress, Direction::Ingress)
    } else {
        (Direction::Ingress, Direction::Egress)
    }
}

/// Asks the rules of both ends for the flow, as far as `how` says. What they do not allow is counted
/// and told.
#[inline(never)]
fn asked(ip: &Ip, to: &Rewrite, case: &Case, how: u32) -> bool {
    let (of_sender, of_receiver) = directions(how);
    let port = match (how & FORWARD != 0, has_new_ports(case)) {
        (true, true) => to.dport,
        (true, false) => case.dport,
        (false, true) => to.sport,
        (false, false) => case.sport,
    };
    let wanted = u32::from(case.proto) << 16 | u32::from(port.to_network());
    if how & SENDER != 0 && case.sender != 0 {
        let set = set_of(case.sender, of_sender);
        if !calls::allows(set, &to.dst, wanted) {
            if how & QUIET == 0 {
                dropped(ip, to, case, how & !RECEIVER, set);
            }
            return false;
        }
    }
    if how & RECEIVER != 0 && case.receiver != 0 {
        let set = set_of(case.receiver, of_receiver);
        if !calls::allows(set, &ip.src, wanted) {
            if how & QUIET == 0 {
                dropped(ip, to, case, how & !SENDER, set);
            }
            return false;
        }
    }
    true
}

/// The set of rules of the pod at an interface.
#[inline(always)]
fn set_of(ifindex: u32, direction: Direction) -> u32 {
    let Some(sets) = POLICY_SETS.get_ptr(&ifindex) else { return PolicySets::OPEN };
    // SAFETY: an element that was found exists while this program runs; its fields are words. Should
    // it be reused meanwhile, the epoch has this judged again.
    unsafe {
        match direction {
            Direction::Ingress => ptr::read_volatile(&raw const (*sets).ingress),
            Direction::Egress => ptr::read_volatile(&raw const (*sets).egress),
        }
    }
}

/// The identity of an address.
#[inline(always)]
fn identity(addr: &Addr) -> u32 {
    let key = CidrKey { prefix_len: 8 * size_of::<Addr>() as u32, addr: copy(addr) };
    // SAFETY: the same fields, without padding, and no alignment is asked for. The value is a word.
    unsafe {
        let key: &Key<Addr> = &*(&raw const key).cast();
        IDENTITIES.get(key).copied().unwrap_or(PolicyKey::ANYBODY)
    }
}

/// What a set says of an identity: [`PolicyKey::ALLOW`], [`PolicyKey::DENY`], or 0 for nothing.
#[inline(always)]
fn rule(set: u32, identity: u32, wanted: u32) -> u32 {
    let key = PolicyKey {
        prefix_len: PolicyKey::PORT,
        set,
        identity,
        proto: (wanted >> 16) as u8,
        reserved: node::zero() as u8,
        port: Be16::from_network(wanted as u16),
    };
    // SAFETY: the same fields, without padding, and no alignment is asked for. The value is a word.
    unsafe {
        let key: &Key<PolicyRule> = &*(&raw const key).cast();
        POLICY.get(key).copied().unwrap_or(0)
    }
}

/// Whether a set of rules allows a peer what is wanted.
#[inline(always)]
pub fn allows(set: u32, peer: &Addr, wanted: u32) -> bool {
    if set == PolicySets::OPEN {
        return true;
    }
    if set == PolicySets::CLOSED {
        return false;
    }
    let identity = identity(peer);
    if identity != PolicyKey::ANYBODY {
        let own = rule(set, identity, wanted);
        if own != 0 {
            return own == PolicyKey::ALLOW;
        }
    }
    rule(set, PolicyKey::ANYBODY, wanted) == PolicyKey::ALLOW
}

/// Counts a packet that is dropped, and tells whoever listens.
#[inline(never)]
fn dropped(ip: &Ip, to: &Rewrite, case: &Case, how: u32, set: u32) {
    let at_receiver = how & RECEIVER != 0;
    let (of_sender, of_receiver) = directions(how);
    let (direction, ifindex, peer) = if at_receiver {
        (of_receiver, case.receiver, &ip.src)
    } else {
        (of_sender, case.sender, &to.dst)
    };
    // The packet's way, not the flow's: at the receiver it was on its way in.
    count(if at_receiver { Counter::DropPolicyIngress } else { Counter::DropPolicyEgress });
    let drops = POLICY_DROPS.get_ptr_mut(&ifindex).or_else(|| {
        let zero = u64::from(node::zero());
        let none = PolicyDrops { ingress: zero, egress: zero };
        let _ = POLICY_DROPS.insert(&ifindex, &none, u64::from(BPF_NOEXIST));
        POLICY_DROPS.get_ptr_mut(&ifindex)
    });
    if let Some(drops) = drops {
        // SAFETY: an element that was found exists while this program runs; its fields are words. The
        // target's own atomics have no such operation.
        unsafe {
            let counter =
                if at_receiver { &raw mut (*drops).ingress } else { &raw mut (*drops).egress };
            asm!(
                "lock *(u64 *)({counter} + 0) += {one}",
                counter = in(reg) counter,
                one = in(reg) 1_u64,
                options(nostack, preserves_flags),
            );
        }
    }
    let identity = identity(peer);
    let Some(mut entry) = DROP_EVENTS.reserve_untyped::<DropEvent>(0) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the element is ours until it is submitted, and all of it is written.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).src = copy(&ip.src);
        (*event).dst = copy(&to.dst);
        (*event).ifindex = ifindex;
        (*event).set = set;
        (*event).identity = identity;
        (*event).len = case.len;
        (*event).sport = case.sport;
        // What the sender has, and what the receiver will have.
        (*event).dport = if has_new_ports(case) { to.dport } else { case.dport };
        (*event).proto = case.proto;
        (*event).direction = direction as u8;
        (*event).reason = if set == PolicySets::CLOSED {
            DropReason::Closed
        } else if case.traits & ORPHAN != 0 {
            DropReason::UnknownFragment
        } else {
            DropReason::NotAllowed
        } as u8;
        (*event).answer = u8::from(how & FORWARD == 0);
    }
    entry.submit(0);
}
