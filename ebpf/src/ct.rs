//! Flows that are translated packet by packet.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use sluice_abi::{Addr, Be16, Counter, CtEntry, CtFlags, CtKey, NodeAddrs, NodePortKey, proto};

use crate::{
    calls,
    counters::count,
    fastpath,
    lb::Pick,
    maps::CONNTRACK,
    nat::Rewrite,
    node::{self, copy},
    packet::{Netns, Packet},
    parse::{Ip, Transport, tcp},
};

/// How old a flow's last packet may get before it is written down anew. Less often, and the entry's
/// cache line stays shared between the CPUs that read it.
const TOUCH_NS: u64 = 1_000_000_000;

/// A flow that was silent for so long gives way to another with the same addresses: a pod that was
/// killed says no goodbye.
const IDLE_NS: u64 = 60_000_000_000;

/// Ports for a flow that keeps its address and has another port at the backend. The client's own
/// flows straight to the backend are not written down anywhere, and not all of them can be seen among
/// its sockets (datagrams), so these are ports that sockets do not pick by themselves
/// (`net.ipv4.ip_local_port_range` is 32768 to 60999 by default).
const MOVED_FIRST: u32 = 61_000;
const MOVED_PORTS: u32 = 65_536 - MOVED_FIRST;

const EEXIST: i32 = -17;

/// Ports of the node that are tried for one flow.
const PORT_ATTEMPTS: u32 = 8;

/// What became of a flow that was to be made.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Created {
    /// It has its entries.
    Yes,
    /// The map has no room even after it evicted.
    Full,
    /// At the backend, it would be the same as another one.
    Clash,
    /// It needs a port of the node, and none that was tried is free, or the node has no address of
    /// the family.
    NoPort,
}

/// Who begins a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Origin {
    /// A pod of this node that asks a service.
    Pod,
    /// Somebody outside the node who asks a service.
    Outside,
    /// A pod, or a socket of the node, that asks somebody outside, and is to do it from an address
    /// and port of the node that no other flow has.
    Masked,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From the client to the service.
    Client,
    /// From the backend to the client.
    Backend,
}

/// Now, as the entries tell time: to the tick, which is exact enough and far cheaper.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no conditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The key of the packet as it stands.
#[inline(always)]
pub fn key(ip: &Ip, transport: &Transport, side: Side) -> CtKey {
    CtKey {
        src: copy(&ip.src),
        dst: copy(&ip.dst),
        sport: transport.sport,
        dport: transport.dport,
        proto: transport.proto,
        flags: if side == Side::Backend { CtFlags::REVERSE } else { 0 },
        reserved: 0,
    }
}

/// The key of the answers that the backend of `forward` gives.
#[inline(always)]
fn answers(forward: &CtKey, entry: &CtEntry) -> CtKey {
    let (dst, dport) = if entry.flags & CtFlags::SNAT != 0 {
        (&entry.nat_addr, entry.nat_port)
    } else {
        (&forward.src, forward.sport)
    };
    CtKey {
        src: copy(&entry.addr),
        dst: copy(dst),
        sport: entry.port,
        dport,
        proto: forward.proto,
        flags: CtFlags::REVERSE,
        reserved: 0,
    }
}

/// The entry under the key.
///
/// It is used at once, and a lookup marks it as used lately, so that it is not evicted meanwhile.
#[inline(always)]
pub fn find(key: &CtKey) -> Option<&'static mut CtEntry> {
    // SAFETY: valid until this program ends, see above. Other CPUs may write the fields that
    // `note` writes: words of their own, of which either value will do.
    unsafe { CONNTRACK.get_ptr_mut(key).and_then(|entry| entry.as_mut()) }
}

/// Writes down that a packet was seen, where it says something new.
#[inline(always)]
pub fn note(entry: &mut CtEntry, side: Side, flags: u8, now: u64) {
    let (fin, also) = match side {
        Side::Client => (CtFlags::FIN_CLIENT, 0),
        Side::Backend => (CtFlags::FIN_BACKEND, CtFlags::REPLIED),
    };
    let mut seen = entry.flags | also;
    if flags & tcp::FIN != 0 {
        seen |= fin;
    }
    if flags & tcp::RST != 0 {
        seen |= CtFlags::RST;
    }
    let entry = ptr::from_mut(entry);
    // SAFETY: the pointer comes from a reference; volatile, since other CPUs write too.
    unsafe {
        if ptr::read_volatile(&raw const (*entry).flags) != seen {
            ptr::write_volatile(&raw mut (*entry).flags, seen);
        }
        if now.wrapping_sub(ptr::read_volatile(&raw const (*entry).last_seen)) >= TOUCH_NS {
            ptr::write_volatile(&raw mut (*entry).last_seen, now);
        }
    }
}

/// The key of what the client of `reverse` sends.
#[inline(always)]
fn requests(reverse: &CtKey, entry: &CtEntry) -> CtKey {
    let (src, sport) = if entry.flags & CtFlags::SNAT != 0 {
        (&entry.nat_addr, entry.nat_port)
    } else {
        (&reverse.dst, reverse.dport)
    };
    CtKey {
        src: copy(src),
        dst: copy(&entry.addr),
        sport,
        dport: entry.port,
        proto: reverse.proto,
        flags: 0,
        reserved: 0,
    }
}

/// Whether a reverse entry is that of the flow, and not of a later one that took its place.
#[inline(always)]
fn belongs(forward: &CtKey, entry: &CtEntry, reverse: &CtEntry) -> bool {
    if reverse.addr != forward.dst || reverse.port != forward.dport {
        return false;
    }
    if (entry.flags ^ reverse.flags) & CtFlags::SNAT != 0 {
        return false;
    }
    entry.flags & CtFlags::SNAT == 0
        || (reverse.nat_addr == forward.src && reverse.nat_port == forward.sport)
}

/// Whether a TCP connection with these flags has ended.
#[inline(always)]
const fn is_closed(flags: u16) -> bool {
    const BOTH: u16 = CtFlags::FIN_CLIENT | CtFlags::FIN_BACKEND;
    flags & CtFlags::RST != 0 || flags & BOTH == BOTH
}

/// Whether the flow has ended, so that a SYN begins another one. The two entries know of a FIN each.
#[inline(always)]
pub fn has_ended(forward: &CtKey, entry: &CtEntry) -> bool {
    match find(&answers(forward, entry)) {
        Some(reverse) if belongs(forward, entry, reverse) => is_closed(entry.flags | reverse.flags),
        // Evicted, or another flow's: answers could not find the client any more.
        _ => true,
    }
}

/// Whether the flow of a reverse entry may give way to another with the same addresses and ports at
/// the backend. If so, what is left of it is forgotten, but for the reverse entry itself.
#[inline(always)]
fn gives_way(reverse: &CtKey, entry: &CtEntry, now: u64) -> bool {
    let requests = requests(reverse, entry);
    let Some(forward) = find(&requests) else { return true };
    let over = is_closed(entry.flags | forward.flags)
        || (now.wrapping_sub(entry.last_seen) >= IDLE_NS
            && now.wrapping_sub(forward.last_seen) >= IDLE_NS);
    if over {
        let _ = CONNTRACK.remove(&requests);
    }
    over
}

/// A connection that is not translated begins. If it is, at the backend, the same as one that was
/// translated and is over, that one is forgotten, or else the answers would seem to come from the
/// service.
///
/// Whether one is in the way that is not over.
#[inline(always)]
pub fn supersede(ip: &Ip, transport: &Transport) -> bool {
    let reverse = CtKey {
        src: copy(&ip.dst),
        dst: copy(&ip.src),
        sport: transport.dport,
        dport: transport.sport,
        proto: transport.proto,
        flags: CtFlags::REVERSE,
        reserved: 0,
    };
    let Some(entry) = find(&reverse) else { return false };
    if !gives_way(&reverse, entry, now()) {
        return true;
    }
    let _ = CONNTRACK.remove(&reverse);
    false
}

/// Forgets the answers of the backend that the flow had, before it gets another.
#[inline(always)]
pub fn forget_answers(forward: &CtKey, entry: &CtEntry) {
    let reverse = answers(forward, entry);
    if find(&reverse).is_some_and(|other| belongs(forward, entry, other)) {
        let _ = CONNTRACK.remove(&reverse);
    }
}

/// Forgets the flow of a packet that is dropped, whose addresses and ports at the backend are given:
/// if it is one, and nobody has answered it yet.
#[inline(always)]
pub fn take_back(to: &Rewrite, proto: u32) {
    let reverse = CtKey {
        src: copy(&to.dst),
        dst: copy(&to.src),
        sport: to.dport,
        dport: to.sport,
        proto: proto as u8,
        flags: CtFlags::REVERSE,
        reserved: 0,
    };
    let Some(entry) = find(&reverse) else { return };
    if entry.flags & CtFlags::REPLIED != 0 {
        return;
    }
    let requests = requests(&reverse, entry);
    let _ = CONNTRACK.remove(&requests);
    let _ = CONNTRACK.remove(&reverse);
}

/// Forgets what becomes of what the client sends.
#[inline(always)]
pub fn forget(forward: &CtKey) {
    let _ = CONNTRACK.remove(forward);
}

/// Makes the reverse entry of a flow, in the place of one that is over if need be.
#[inline(always)]
pub fn claim(reverse: &CtKey, entry: &CtEntry, now: u64) -> Created {
    match CONNTRACK.insert(reverse, entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => return Created::Yes,
        Err(EEXIST) => {}
        Err(_) => return Created::Full,
    }
    if let Some(other) = find(reverse) {
        let same = other.addr == entry.addr
            && other.port == entry.port
            && other.nat_addr == entry.nat_addr
            && other.nat_port == entry.nat_port;
        if !same && !gives_way(reverse, other, now) {
            return Created::Clash;
        }
    }
    match CONNTRACK.insert(reverse, entry, 0) {
        Ok(()) => Created::Yes,
        Err(_) => Created::Full,
    }
}

/// Whether the client gets an address and port of the node: where the answers would else not come
/// by here, or where it is asked for.
#[inline(always)]
fn is_masked(origin: Origin, pick: &Pick, node: &NodeAddrs, own: &Addr) -> bool {
    match origin {
        Origin::Pod => false,
        Origin::Masked => true,
        // A process of the node: its answers leave by an uplink, and its packets would be refused
        // if they came from outside with the node's own address.
        Origin::Outside if pick.backend.addr == *own => false,
        Origin::Outside => {
            let local = pick.is_local() || fastpath::is_endpoint(&pick.backend.addr);
            !local || (node.flags & NodeAddrs::SNAT_ALWAYS != 0 && !pick.keeps_client())
        }
    }
}

/// Whether the pod that begins the flow has a connection of its own with the same port, straight to
/// the backend: a socket hook made it, and nothing but the pod's socket tells of it.
#[inline(always)]
fn is_direct<const V6: bool, P: Packet>(packet: P, answer: &CtKey) -> bool {
    // The kernel finds every bound datagram socket by its port alone, the one that asks among them.
    if answer.proto != proto::TCP {
        return false;
    }
    match fastpath::endpoint(&answer.dst) {
        Some(pod) if pod.netns != 0 => {
            packet.meets_socket::<V6>(answer, Netns::number(pod.netns - 1))
        }
        _ => false,
    }
}

/// Makes the two entries of the packet's flow: the reverse one first, so that no answer comes before
/// it.
///
/// Where the node's address is to stand for the client's, or the client's port is taken at the
/// backend, it picks a port at random, and goes on to the next one while another flow to the same
/// backend, or a socket of the node or of the pod, has it.
#[inline(always)]
pub fn create<const V6: bool, P: Packet>(
    packet: P,
    ip: &Ip,
    transport: &Transport,
    pick: &Pick,
    origin: Origin,
) -> Created {
    let Some(node) = node::addrs() else { return Created::Full };
    let own = if V6 { &node.v6 } else { &node.v4 };
    let now = now();
    let mut entry = MaybeUninit::uninit();
    let mut key = MaybeUninit::uninit();
    prepare(&mut key, &mut entry, ip, transport, pick);
    // SAFETY: `prepare` has written them whole.
    let (key, entry) = unsafe { (key.assume_init_mut(), entry.assume_init_mut()) };
    entry.last_seen = now;
    entry.flags = match origin {
        Origin::Pod => 0,
        Origin::Outside => CtFlags::EXTERNAL,
        Origin::Masked => CtFlags::MASQUERADE,
    };
    let masked = is_masked(origin, pick, node, own);
    let mut other_port = masked;
    if !masked {
        // A pod that asks itself would drop what seems to come from itself.
        if origin == Origin::Pod && pick.backend.addr == ip.src {
            entry.flags |= CtFlags::HAIRPIN | CtFlags::SNAT;
            entry.nat_addr = copy(&ip.src);
            entry.nat_port = transport.sport;
            key.dst = copy(&ip.dst);
        }
        let hairpin = entry.flags & CtFlags::HAIRPIN != 0;
        let done = if origin == Origin::Pod && !hairpin && is_direct::<V6, P>(packet, key) {
            Created::Clash
        } else {
            calls::claim(key, entry, now)
        };
        // Another flow from the same port of the client to the same backend: there, this one gets
        // another port. The client keeps its address.
        other_port = done == Created::Clash && !hairpin;
        if done != Created::Yes && !other_port {
            return done;
        }
    }
    if other_port {
        entry.flags |= CtFlags::SNAT;
        entry.nat_addr = copy(&ip.src);
        entry.nat_port = transport.sport;
        if masked {
            key.dst = copy(own);
        }
        let (first, ports) = if masked {
            let first = u32::from(node.port_min);
            (first, (u32::from(node.port_max) + 1).wrapping_sub(first) & 0xffff)
        } else {
            (MOVED_FIRST, MOVED_PORTS)
        };
        if key.dst == Addr([0; 4]) || ports == 0 {
            return Created::NoPort;
        }
        // SAFETY: the helper has no conditions.
        let random = unsafe { bpf_get_prandom_u32() };
        let mut port = ((u64::from(random) * u64::from(ports)) >> 32) as u32;
        let mut done = Created::NoPort;
        // Unrolled, the loop would need more stack than there is.
        let mut n = node::zero();
        while n < PORT_ATTEMPTS && n < ports {
            n += 1;
            key.dport = Be16::new((first + port) as u16);
            port = if port + 1 >= ports { 0 } else { port + 1 };
            // What comes to a NodePort is a request, whoever sends it.
            let node_port = NodePortKey { port: key.dport, proto: key.proto, reserved: 0 };
            let taken = if masked {
                node::is_node_port(&node_port) || packet.meets_socket::<V6>(key, Netns::CURRENT)
            } else {
                is_direct::<V6, P>(packet, key)
            };
            if !taken {
                done = calls::claim(key, entry, now);
                if done != Created::Clash {
                    break;
                }
            }
            done = Created::NoPort;
            count(Counter::SnatRetry);
        }
        if done != Created::Yes {
            return done;
        }
        count(Counter::SnatCreated);
    }

    finish(key, entry, ip, transport, pick)
}

/// Makes a reverse entry and its key, of a flow whose client keeps its address.
///
/// Functions of their own, here and below: in one, the copies would need more stack than there is.
#[inline(never)]
fn prepare(
    key: &mut MaybeUninit<CtKey>,
    entry: &mut MaybeUninit<CtEntry>,
    ip: &Ip,
    transport: &Transport,
    pick: &Pick,
) {
    key.write(CtKey {
        src: copy(&pick.backend.addr),
        dst: copy(&ip.src),
        sport: pick.backend.port,
        dport: transport.sport,
        proto: transport.proto,
        flags: CtFlags::REVERSE,
        reserved: 0,
    });
    entry.write(CtEntry {
        last_seen: 0,
        addr: copy(&ip.dst),
        port: transport.dport,
        flags: 0,
        service: pick.frontend.service,
        backend: pick.number,
        list: pick.frontend.list,
        nat_addr: node::no_addr(),
        nat_port: Be16::new(0),
        reserved: 0,
        reserved2: 0,
    });
}

/// Makes the forward entry out of the reverse one.
#[inline(never)]
fn finish(
    key: &mut CtKey,
    entry: &mut CtEntry,
    ip: &Ip,
    transport: &Transport,
    pick: &Pick,
) -> Created {
    if entry.flags & CtFlags::SNAT != 0 {
        entry.nat_addr = copy(&key.dst);
        entry.nat_port = key.dport;
    }
    entry.addr = copy(&pick.backend.addr);
    entry.port = pick.backend.port;
    key.src = copy(&ip.src);
    key.dst = copy(&ip.dst);
    key.sport = transport.sport;
    key.dport = transport.dport;
    key.flags = 0;
    // A reverse entry that is left alone gives way to the next flow, and is collected.
    match CONNTRACK.insert(&*key, &*entry, 0) {
        Ok(()) => Created::Yes,
        Err(_) => Created::Full,
    }
}
