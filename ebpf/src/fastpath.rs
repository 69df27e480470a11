//! Ways past the host's stack: into a pod of this node, and out by the interface that the routing
//! table names.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        TC_ACT_REDIRECT, bpf_fib_lookup as bpf_fib_lookup_params, bpf_redir_neigh,
    },
    helpers::{
        bpf_csum_update, bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    },
};
use sluice_abi::{Addr, Counter, Endpoint, KnownWay, NodeState, proto};

use crate::{
    DROP, PASS, calls,
    counters::count,
    csum, ct,
    fragment::Ports,
    icmp_error::is_one_host,
    lb,
    maps::{ENDPOINTS, UPLINKS, WAYS},
    nat::Rewrite,
    node,
    packet::{Head, Packet, Skb, note},
    parse::{self, ETH_LEN, Ip, Transport},
    policy, uplink,
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

/// Index of the host-side interface of the pod of this node that has the address; 0: none has.
#[inline(always)]
pub fn interface(addr: &Addr) -> u32 {
    match ENDPOINTS.get_ptr(addr) {
        // SAFETY: an element that was found exists while this program runs; the field is a word.
        Some(endpoint) => unsafe { (*endpoint).ifindex },
        None => 0,
    }
}

/// Index of the host-side interface of the pod of this node that has the address and to which packets
/// may be handed past the stack; 0: there is none.
#[inline(always)]
pub fn receiver(addr: &Addr) -> u32 {
    let Some(endpoint) = ENDPOINTS.get_ptr(addr) else { return 0 };
    // SAFETY: an element that was found exists while this program runs; its fields are words.
    let (flags, ifindex) = unsafe { ((*endpoint).flags, (*endpoint).ifindex) };
    if flags & Endpoint::NO_FAST_PATH == 0 { ifindex } else { 0 }
}

/// Whether a pod of this node has the address, and packets may be handed to it past the stack.
#[inline(always)]
pub fn takes(addr: &Addr) -> bool {
    receiver(addr) != 0
}

/// Index of the host-side interface of the pod of this node that has the address and whose network
/// namespace has that cookie; 0: there is none, or the namespace is not known.
#[inline(always)]
pub fn own_interface(addr: &Addr, cookie: u64) -> u32 {
    let Some(endpoint) = ENDPOINTS.get_ptr(addr) else { return 0 };
    // SAFETY: an element that was found exists while this program runs; its fields are words.
    let (of_pod, ifindex) = unsafe { ((*endpoint).cookie, (*endpoint).ifindex) };
    if of_pod == cookie { ifindex } else { 0 }
}

/// Who sends a packet, as its source address says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Not a pod of this node, or not by the pod's own interface.
    Stranger,
    /// The pod at the interface that the packet came in by.
    Pod,
    /// A pod whose packets stay on the stack.
    Bound,
}

/// Who sends a packet from a pod's interface.
#[inline(always)]
pub fn sender(packet: Skb, ip: &Ip) -> Sender {
    let Some(endpoint) = ENDPOINTS.get_ptr(&ip.src) else { return Sender::Stranger };
    // SAFETY: an element that was found exists while this program runs; its fields are words.
    let (flags, ifindex) = unsafe { ((*endpoint).flags, (*endpoint).ifindex) };
    if flags & Endpoint::NO_FAST_PATH != 0 {
        Sender::Bound
    } else if ifindex == packet.ifindex() {
        Sender::Pod
    } else {
        Sender::Stranger
    }
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
    // SAFETY: the helpers have no conditions. They only take down where to; a device that is gone by
    // then drops the packet.
    let verdict = if to.flags & Endpoint::NO_FAST_PATH != 0 {
        // Not past the queueing discipline of the host's side, nor past the pod's own program: what it
        // would see is changed.
        packet.set_notes(note::JUDGED);
        unsafe { bpf_redirect(to.ifindex, 0) }
    } else {
        count(Counter::FastPathPod);
        unsafe { bpf_redirect_peer(to.ifindex, 0) }
    } as i32;
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
    if endpoint.flags & Endpoint::NO_FAST_PATH != 0 {
        return PASS;
    }
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
    /// The largest packet that the way takes; 0 where the packet's length is not known.
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

/// Whether the interface has the programs of an uplink.
#[inline(always)]
fn is_uplink(ifindex: u32) -> bool {
    UPLINKS.get_ptr(&ifindex).is_some()
}

/// Whether packets to the address are forwarded: neither multicast nor broadcast, nor for one link
/// alone (RFC 3927 §2.7, RFC 4291 §2.5.6).
#[inline(always)]
fn is_forwarded(addr: &Addr) -> bool {
    let link_local = if addr.is_v4() {
        u32::from_be(addr.v4()) >> 16 == 0xa9fe
    } else {
        u32::from_be(addr.0[0]) >> 22 == 0xfe80 >> 6
    };
    !link_local && is_one_host(addr)
}

/// Sends a pod's packet out by the uplink that the routing table names, to whom it names; else the
/// stack has it.
///
/// Everything that asks for more than to be sent on is the stack's: a packet without a hop left or
/// too large for the way, options, a destination that is this node's own or nobody's, a neighbour
/// that is not known (it looks for it, and tells the pod if there is none), a mark, which rules may
/// ask for and the lookup does not see. A way by another interface than an uplink is also the
/// stack's: what is behind it, a tunnel perhaps, is not ours to judge.
#[inline(always)]
pub fn onward<const V6: bool>(packet: Skb, ip: &Ip) -> i32 {
    let options = if V6 { ip.proto == parse::HOP_BY_HOP } else { ip.next != parse::fixed_len(V6) };
    if ip.hops <= 1
        || options
        || packet.mark() != 0
        || !packet.is_to_this_host()
        || !is_forwarded(&ip.dst)
    {
        return PASS;
    }
    let mut transport = Transport::none();
    // Rules, and the choice among several ways, may ask for ports.
    if calls::transport::<V6>(packet, ip, &mut transport) == Ports::None
        && ip.proto == parse::icmp_proto(V6)
    {
        transport.proto = ip.proto;
    }
    let mut way = Way::none();
    let notes = match known::<V6>(packet, ip, Flow::of(&transport), &mut way) {
        Some(notes) => notes,
        None => {
            let to = Rewrite::none(ip, &transport);
            if calls::route::<V6>(packet, ip, &transport, &to, &mut way) != Route::Found
                || !is_uplink(way.ifindex)
            {
                return PASS;
            }
            // The program at the uplink's egress gives it the node's address, unless it stays in the
            // cluster: then nothing is left to do there. An answer to a client outside was asked for
            // before this.
            let masked = node::addrs().is_none_or(|node| uplink::is_masked(node, &ip.dst));
            let notes = if masked { 0 } else { note::DONE };
            keep::<V6>(packet, ip, Flow::of(&transport), &way, notes);
            notes
        }
    };
    leave::<V6>(packet, &mut way, notes).unwrap_or(DROP)
}

/// The header of a packet that may go past the stack, and that neither Services nor flows nor policies can
/// concern; most packets of a cluster are from pod to pod.
#[inline(always)]
pub fn unconcerned<const V6: bool>(packet: Skb) -> Option<Ip> {
    let state = node::state();
    if state.flags & NodeState::FAST_PATH == 0 || state.ct_used != 0 || policy::in_force() {
        return None;
    }
    parse::ip::<V6, _>(packet).filter(|ip| !lb::may_be_service(&ip.dst))
}

/// Sends a pod's packet the way that its flow took a moment ago; [`PASS`] if that is not known, or if
/// Services, flows or policies may concern it.
///
/// Whatever a packet is asked about before it comes to [`onward`] was asked then: whether the pod at
/// this interface has its source, and whether a pod of this node has its destination.
#[inline(always)]
pub fn again<const V6: bool>(packet: Skb) -> i32 {
    let Some(ip) = &unconcerned::<V6>(packet) else { return PASS };
    if ip.hops <= 1 || packet.mark() != 0 || !packet.is_to_this_host() {
        return PASS;
    }
    let Some(flow) = Flow::plain::<V6>(packet, ip) else { return PASS };
    let mut way = Way::none();
    match known::<V6>(packet, ip, flow, &mut way) {
        Some(notes) => leave::<V6>(packet, &mut way, notes).unwrap_or(DROP),
        None => PASS,
    }
}

/// What tells flows apart beside their addresses.
#[derive(Clone, Copy)]
struct Flow {
    /// Both ports as they stand in the packet.
    ports: u32,
    /// IP protocol number.
    proto: u8,
    /// Where the transport header begins.
    offset: u32,
}

impl Flow {
    #[inline(always)]
    fn of(transport: &Transport) -> Self {
        let [a, b] = transport.sport.to_network().to_ne_bytes();
        let [c, d] = transport.dport.to_network().to_ne_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        Self { ports, proto: transport.proto, offset: transport.offset }
    }

    /// That of TCP or UDP that follows a plain IP header at once, in one piece.
    #[inline(always)]
    fn plain<const V6: bool>(packet: Skb, ip: &Ip) -> Option<Self> {
        let offset = parse::fixed_len(V6);
        let plain = ip.next == offset && !ip.is_fragment();
        if !plain || (ip.proto != proto::TCP && ip.proto != proto::UDP) {
            return None;
        }
        let head = packet.head(offset + 4)?;
        let ports = if V6 { head.u32::<54>() } else { head.u32::<34>() };
        Some(Self { ports, proto: ip.proto, offset })
    }
}

/// Where the flow's way is written down, if it is: flows that meet there drive each other out.
#[inline(always)]
fn kept(ip: &Ip, flow: Flow) -> Option<*mut KnownWay> {
    // Knuth, The Art of Computer Programming, volume 3, section 6.4: multiplicative hashing.
    let sum = flow.ports ^ ip.src.0[3].rotate_left(16) ^ ip.dst.0[3];
    let index = sum.wrapping_mul(0x9e37_79b1) >> (32 - KnownWay::ELEMENTS.ilog2());
    WAYS.get_ptr_mut(index)
}

/// The way that the flow took a moment ago, with the notes that its packets got; `None` if that is not
/// known, or the packet is too large for it.
///
/// The routing table costs more than everything else here. So that a change of it counts, and the same
/// flow asks it again, the way is soon forgotten.
#[inline(always)]
fn known<const V6: bool>(packet: Skb, ip: &Ip, flow: Flow, way: &mut Way) -> Option<u32> {
    let known = kept(ip, flow)?;
    // SAFETY: an element of an array exists as long as the map, and is this CPU's own: no other
    // program of ours runs here meanwhile.
    let known = unsafe { &*known };
    if known.ports != flow.ports
        || known.until <= ct::now()
        || known.src != ip.src
        || known.dst != ip.dst
        || known.proto != u32::from(flow.proto)
        || known.from != packet.ifindex()
        || known.class != traffic_class::<V6>(packet)
    {
        return None;
    }
    let len = u32::from(len_on_link(packet, ip, flow));
    if len == 0 || len > known.mtu {
        return None;
    }
    way.ifindex = known.ifindex;
    way.neighbour.family = known.family;
    way.neighbour.addr = known.neighbour;
    Some(known.notes)
}

/// Writes the way of a flow down.
#[inline(always)]
fn keep<const V6: bool>(packet: Skb, ip: &Ip, flow: Flow, way: &Way, notes: u32) {
    let Some(known) = kept(ip, flow) else { return };
    // SAFETY: as in `known`.
    let known = unsafe { &mut *known };
    known.src = node::copy(&ip.src);
    known.dst = node::copy(&ip.dst);
    known.ports = flow.ports;
    known.proto = u32::from(flow.proto);
    known.class = traffic_class::<V6>(packet);
    known.from = packet.ifindex();
    known.until = ct::now().wrapping_add(KnownWay::KEPT_NS);
    known.ifindex = way.ifindex;
    known.family = way.neighbour.family;
    known.neighbour = way.neighbour.addr;
    known.mtu = way.mtu;
    known.notes = notes;
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
    /// There is one, to a neighbour whose hardware address is not known.
    Unresolved,
    /// There is one, but the packet is too large for it.
    TooBig,
    /// There is none.
    None,
}

/// Bytes of the longest packet, its IP header included, that this one is on a link: of one that the
/// kernel will cut into segments, those of a segment. 0 where that is not known.
#[inline(always)]
fn len_on_link(packet: Skb, ip: &Ip, flow: Flow) -> u16 {
    let size = packet.segment_size();
    if size == 0 {
        return ip.end.wrapping_sub(ETH_LEN) as u16;
    }
    let header = match flow.proto {
        proto::TCP => match packet.load::<u8>(flow.offset + 12) {
            Some(words) => u32::from(words >> 4) * 4,
            None => return 0,
        },
        proto::UDP => 8,
        // SCTP's segments are as they were put together, each with a length of its own.
        _ => return 0,
    };
    let len = flow.offset - ETH_LEN + header + size;
    if len > 0xffff { 0xffff } else { len as u16 }
}

/// What the routing table is asked by beside addresses and ports: IPv4's type of service, IPv6's
/// traffic class and flow label.
#[inline(always)]
fn traffic_class<const V6: bool>(packet: Skb) -> u32 {
    match packet.head(parse::fixed_len(V6)) {
        Some(head) if V6 => head.u32::<14>() & 0x0fff_ffff_u32.to_be(),
        Some(head) => u32::from(head.u8::<15>()),
        None => 0,
    }
}

/// Looks up the way of a packet that will have the addresses and ports given, as the stack would:
/// by rules (but for those that ask for a mark), of several ways by the flow's.
#[inline(always)]
pub fn route<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    transport: &Transport,
    to: &Rewrite,
    way: &mut Way,
) -> Route {
    let family = if V6 { AF_INET6 } else { AF_INET };
    let [a, b] = to.sport.to_network().to_ne_bytes();
    let [c, d] = to.dport.to_network().to_ne_bytes();
    // With no length given, the helper takes the packet's own, and lets pass what is to be cut.
    let [e, f] = len_on_link(packet, ip, Flow::of(transport)).to_ne_bytes();
    let (src, dst) = if V6 {
        (to.src.0, to.dst.0)
    } else {
        let zero = node::zero();
        ([to.src.v4(), zero, zero, zero], [to.dst.v4(), zero, zero, zero])
    };
    let mut params = FibParams {
        who: u32::from_ne_bytes([family, transport.proto, a, b]),
        dport_len: u32::from_ne_bytes([c, d, e, f]),
        ifindex: packet.ifindex(),
        tos: traffic_class::<V6>(packet),
        src,
        dst,
        rest: node::no_addr().0,
    };
    let found = {
        let params = (&raw mut params).cast();
        // SAFETY: the context is valid, the parameters are as long as said.
        unsafe { bpf_fib_lookup(packet.0.cast(), params, size_of::<FibParams>() as i32, 0) as u32 }
    };
    // It stands where the length did.
    let [_, _, e, f] = params.dport_len.to_ne_bytes();
    way.mtu = u32::from(u16::from_ne_bytes([e, f]));
    if found == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        return Route::TooBig;
    }
    if found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH {
        return Route::None;
    }
    way.ifindex = params.ifindex;
    // The helper puts the neighbour in the destination's place; its family may be another.
    let [family, _, _, _] = params.who.to_ne_bytes();
    way.neighbour.family = u32::from(family);
    let [a, b, c, d] = params.dst;
    way.neighbour.addr = [a, b, c, d];
    if found == BPF_FIB_LKUP_RET_NO_NEIGH { Route::Unresolved } else { Route::Found }
}

/// Sends the packet out by an uplink, one hop older, with a [`note`] to the program there. `None` if
/// that cannot be.
#[inline(always)]
pub fn leave<const V6: bool>(packet: Skb, way: &mut Way, also: u32) -> Option<i32> {
    take_hop::<V6>(packet, packet.head(parse::fixed_len(V6))?);
    csum::link_header_goes(packet);
    packet.set_notes(note::ROUTED | also);
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
