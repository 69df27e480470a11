//! Load balancing at the socket: a program that connects to a service is connected to a backend,
//! and told that it is connected to the service.
//!
//! Addresses are IPv4-mapped for IPv4, so an `AF_INET6` socket that talks to `::ffff:10.96.0.1`
//! finds the same frontends as an `AF_INET` socket.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::{SockAddrContext, SockContext},
};
use sluice_abi::{
    Addr, Be16, Counter, Frontend, FrontendFlags, FrontendKey, NodePortKey, PORTS_PER_ELEMENT,
    PeerFlags, PeerKey, Scope, SockPeer, proto,
};

use crate::{
    counters::count,
    fastpath,
    lb::{self, Choice, Client, Pick},
    maps::{BACKEND_PORTS, SOCK_PEERS, UDP_PEERS, UDP_SOCKS},
    node, policy,
};

/// Verdict: let the call go on.
pub const PROCEED: i32 = 1;
/// Verdict: the call fails, with what `bpf_set_retval` was told.
const REFUSE: i32 = 0;

// Numbers of every architecture that eBPF runs on, except MIPS and SPARC.
const EADDRINUSE: i32 = 98;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// `bpf_sock.state` of a socket that is connected.
const TCP_ESTABLISHED: u32 = 1;

/// The context of the hooks, for one family.
struct Sock<'a, const V6: bool>(&'a SockAddrContext);

// SAFETY (for all of this block): the context is valid while the program runs. The verifier allows
// access to its fields by whole words at constant offsets only, which volatile access keeps to.
impl<const V6: bool> Sock<'_, V6> {
    /// The protocol, if the hooks know it.
    #[inline(always)]
    fn proto(&self) -> Option<u8> {
        // SAFETY: see above.
        let number = unsafe { ptr::read_volatile(&raw const (*self.0.sock_addr).protocol) };
        match number {
            6 => Some(proto::TCP),
            17 => Some(proto::UDP),
            _ => None,
        }
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        let context = self.0.sock_addr;
        if V6 {
            // SAFETY: see above.
            let word = |n: usize| unsafe { ptr::read_volatile(&raw const (*context).user_ip6[n]) };
            Addr::from_v6([word(0), word(1), word(2), word(3)])
        } else {
            // SAFETY: see above.
            Addr::from_v4(unsafe { ptr::read_volatile(&raw const (*context).user_ip4) })
        }
    }

    #[inline(always)]
    fn port(&self) -> Be16 {
        // SAFETY: see above.
        let port = unsafe { ptr::read_volatile(&raw const (*self.0.sock_addr).user_port) };
        Be16::from_network(port as u16)
    }

    #[inline(always)]
    fn set(&self, addr: &Addr, port: Be16) {
        let context = self.0.sock_addr;
        if V6 {
            // SAFETY: see above.
            let write = |n: usize| unsafe {
                ptr::write_volatile(&raw mut (*context).user_ip6[n], addr.0[n]);
            };
            write(0);
            write(1);
            write(2);
            write(3);
        } else {
            // SAFETY: see above.
            unsafe { ptr::write_volatile(&raw mut (*context).user_ip4, addr.v4()) };
        }
        // SAFETY: see above.
        unsafe {
            ptr::write_volatile(&raw mut (*context).user_port, u32::from(port.to_network()));
        }
    }

    #[inline(always)]
    fn is_connected(&self) -> bool {
        // SAFETY: see above; the hooks always have a socket.
        let state = unsafe {
            let sk = (*self.0.sock_addr).__bindgen_anon_1.sk;
            ptr::read_volatile(&raw const (*sk).state)
        };
        state == TCP_ESTABLISHED
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is what the helper expects.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// Cookie of the socket's network namespace: stands for the pod, or for the node.
    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context is what the helper expects.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) }
    }

    #[inline(always)]
    fn client(&self) -> Client {
        Client::namespace(self.netns())
    }

    /// Whether the address is none for services, whatever frontends there are: that of a pod's own
    /// loopback. NodePorts are served on the node's.
    #[inline(always)]
    fn is_private(&self, addr: &Addr) -> bool {
        addr.is_loopback() && self.netns() != node::state().netns
    }

    /// Whether the backend is the socket's own pod, and policies may isolate that. What a pod says to
    /// itself never leaves it: policies see it only if it is translated where it does.
    #[inline(always)]
    fn is_judged(&self, backend: &Addr) -> bool {
        policy::in_force() && policy::concerns(fastpath::own_interface(backend, self.netns()))
    }

    /// Whether a datagram to a service's address and no port of it may be an answer: a pod that asked
    /// itself, see [`Sock::is_judged`], has that address for its server. Where the packet leaves the pod
    /// it is known whether it is one, and else it is rejected there.
    #[inline(always)]
    fn may_answer_itself(&self) -> bool {
        if !policy::in_force() {
            return false;
        }
        let state = node::state();
        state.ct_used != 0 && state.netns != self.netns()
    }

    /// Forgets the service that the socket was connected to.
    ///
    /// Only datagram sockets are connected anew in practice. A stream socket may be, after a failure:
    /// what it remembers then matters only if it connects straight to the backend that failed.
    #[inline(always)]
    fn forget(&self, proto: u8) {
        if proto == proto::UDP {
            let _ = UDP_SOCKS.remove(self.cookie());
        }
    }

    /// Remembers the service that the socket is connected to, until it is closed.
    #[inline(always)]
    fn remember(&self, proto: u8, peer: &SockPeer) {
        mark_port(peer.backend_port);
        let cookie = self.cookie();
        let inserted = if proto == proto::UDP {
            UDP_SOCKS.insert(cookie, peer, 0)
        } else {
            SOCK_PEERS.insert(cookie, peer, 0)
        };
        if inserted.is_err() {
            count(Counter::SockPeerLost);
        }
    }

    #[inline(always)]
    fn connected_peer(&self, proto: u8) -> Option<&SockPeer> {
        let cookie = self.cookie();
        // SAFETY: the entry lives until the socket is closed or connected elsewhere. Should another
        // thread do that right now, what is read is compared with the address that the socket has.
        unsafe { if proto == proto::UDP { UDP_SOCKS.get(cookie) } else { SOCK_PEERS.get(cookie) } }
    }

    /// What becomes of a socket at a frontend that may be meant for certain clients only.
    #[inline(always)]
    fn access(&self, frontend: &Frontend, addr: &Addr) -> Access {
        if frontend.flags & FrontendFlags::SOURCE_RANGES == 0 {
            return Access::Granted;
        }
        if self.netns() != node::state().netns {
            return Access::PerPacket;
        }
        if lb::admits(frontend, &node::own_address(addr.is_v4())) {
            Access::Granted
        } else {
            Access::Denied
        }
    }

    /// Shows the service instead of the backend.
    #[inline(always)]
    fn unmask(&self, peer: &SockPeer, addr: &Addr, port: Be16) -> bool {
        if peer.backend_addr != *addr || peer.backend_port != port {
            return false;
        }
        self.set(&peer.addr, peer.port);
        true
    }
}

/// See [`Sock::access`].
enum Access {
    /// The client may come.
    Granted,
    /// The client is a pod. What address its packets have is known only once they leave it, so they
    /// are looked at one by one there.
    PerPacket,
    /// The client may not come.
    Denied,
}

/// The call fails with that error, and not with the `EPERM` of a program that says no.
#[inline(always)]
fn fail(errno: i32, counter: Counter) -> i32 {
    count(counter);
    // SAFETY: a negative errno is what the helper expects.
    let _ = unsafe { bpf_set_retval(-errno) };
    REFUSE
}

#[inline(always)]
fn refuse(counter: Counter) -> i32 {
    fail(ECONNREFUSED, counter)
}

#[inline(always)]
fn peer_of(addr: Addr, port: Be16, pick: &Pick, netns: u64) -> SockPeer {
    SockPeer {
        addr,
        backend_addr: pick.backend.addr,
        port,
        backend_port: pick.backend.port,
        service: pick.frontend.service,
        backend: pick.number,
        list: pick.frontend.list,
        netns,
    }
}

/// `connect(2)`, TCP and UDP.
#[inline(always)]
pub fn connect<const V6: bool>(context: &SockAddrContext) -> i32 {
    let sock = Sock::<V6>(context);
    let Some(proto) = sock.proto() else { return PROCEED };
    let addr = sock.addr();
    if !lb::may_be_service(&addr) || sock.is_private(&addr) {
        sock.forget(proto);
        return PROCEED;
    }
    let port = sock.port();
    let key = FrontendKey { addr, port, proto, scope: Scope::Internal as u8 };
    match lb::select_by(&key, || sock.client()) {
        Choice::NotService => {
            sock.forget(proto);
            // To connect a datagram socket to port 0 is to ask for a route, as resolvers do that
            // put addresses in order.
            let asks_for_route = proto == proto::UDP && port.get() == 0;
            let may_answer = proto == proto::UDP && sock.may_answer_itself();
            if !asks_for_route && !may_answer && lb::rejects_other_ports(&addr) {
                return refuse(Counter::SockRejected);
            }
            PROCEED
        }
        Choice::Empty => refuse(Counter::SockRejected),
        Choice::Missing => refuse(Counter::BackendMissing),
        Choice::Picked(pick) => {
            match sock.access(&pick.frontend, &addr) {
                Access::Granted => {}
                Access::PerPacket => {
                    sock.forget(proto);
                    return PROCEED;
                }
                Access::Denied => return fail(EHOSTUNREACH, Counter::DropSourceRange),
            }
            if sock.is_judged(&pick.backend.addr) {
                sock.forget(proto);
                return PROCEED;
            }
            sock.remember(proto, &peer_of(addr, port, &pick, sock.netns()));
            sock.set(&pick.backend.addr, pick.backend.port);
            count(Counter::SockConnect);
            PROCEED
        }
    }
}

/// `sendto(2)` and `sendmsg(2)` with an address, UDP.
///
/// A socket that goes on sending to a service stays with its backend as long as the service has
/// that backend: protocols over UDP (QUIC, TFTP, Mosh) keep state there, and a connection tracker
/// would keep it too.
#[inline(always)]
pub fn sendmsg<const V6: bool>(context: &SockAddrContext) -> i32 {
    let sock = Sock::<V6>(context);
    let addr = sock.addr();
    if !lb::may_be_service(&addr) || sock.is_private(&addr) {
        return PROCEED;
    }
    let Some(proto) = sock.proto() else { return PROCEED };
    let port = sock.port();
    let frontend_key = FrontendKey { addr, port, proto, scope: Scope::Internal as u8 };
    let Some(frontend) = lb::frontend(&frontend_key) else {
        return if lb::rejects_other_ports(&addr) && !sock.may_answer_itself() {
            refuse(Counter::SockRejected)
        } else {
            PROCEED
        };
    };
    match sock.access(&frontend, &addr) {
        Access::Granted => {}
        Access::PerPacket => return PROCEED,
        Access::Denied => return fail(EHOSTUNREACH, Counter::DropSourceRange),
    }

    let cookie = sock.cookie();
    let mut key = PeerKey { cookie, addr, port, proto, flags: PeerFlags::SERVICE, reserved: 0 };
    // SAFETY: copied at once. Should the element have been reused meanwhile, its service shows.
    let known = unsafe { UDP_PEERS.get(&key).copied() };
    let (peer, changed) = match known {
        Some(mut peer)
            if peer.addr == addr
                && peer.port == port
                && lb::keeps(&frontend, peer.backend, peer.list) =>
        {
            let moved = peer.list != frontend.list;
            peer.list = frontend.list;
            (peer, moved)
        }
        _ => match lb::select_by(&frontend_key, || sock.client()) {
            Choice::NotService => return PROCEED,
            Choice::Empty => return refuse(Counter::SockRejected),
            Choice::Missing => return refuse(Counter::BackendMissing),
            Choice::Picked(pick) => (peer_of(addr, port, &pick, 0), true),
        },
    };
    if changed {
        // A full map evicts; with no memory at all the next datagram chooses anew.
        let _ = UDP_PEERS.insert(&key, &peer, 0);
    }
    // All that the socket sends to the service goes that way, since its backend is remembered.
    if sock.is_judged(&peer.backend_addr) {
        return PROCEED;
    }
    key.addr = peer.backend_addr;
    key.port = peer.backend_port;
    key.flags = 0;
    // The lookup also keeps the entry from being evicted before the other one.
    // SAFETY: copied at once; compared only.
    let answers = unsafe { UDP_PEERS.get(&key).copied() };
    match answers {
        Some(known) if known.addr == addr && known.port == port => {}
        _ => {
            let _ = UDP_PEERS.insert(&key, &peer, 0);
        }
    }
    sock.set(&peer.backend_addr, peer.backend_port);
    count(Counter::SockSendmsg);
    PROCEED
}

/// `recvfrom(2)` and `recvmsg(2)` that ask for the sender's address, UDP.
#[inline(always)]
pub fn recvmsg<const V6: bool>(context: &SockAddrContext) {
    let sock = Sock::<V6>(context);
    let addr = sock.addr();
    let port = sock.port();
    if sock.is_connected() {
        if let Some(peer) = sock.connected_peer(proto::UDP) {
            if sock.unmask(peer, &addr, port) {
                return;
            }
        }
    }
    let Some(proto) = sock.proto() else { return };
    let key = PeerKey { cookie: sock.cookie(), addr, port, proto, flags: 0, reserved: 0 };
    // SAFETY: copied at once. Should the element have been reused meanwhile, its backend shows.
    if let Some(peer) = unsafe { UDP_PEERS.get(&key).copied() } {
        sock.unmask(&peer, &addr, port);
    }
}

/// `getpeername(2)`, TCP and UDP.
#[inline(always)]
pub fn getpeername<const V6: bool>(context: &SockAddrContext) {
    let sock = Sock::<V6>(context);
    let port = sock.port();
    // accept(2) asks too: for the client of a server, whose port is hardly ever a backend's.
    if !is_backend_port(port) {
        return;
    }
    let Some(proto) = sock.proto() else { return };
    if let Some(peer) = sock.connected_peer(proto) {
        sock.unmask(peer, &sock.addr(), port);
    }
}

/// `close(2)` of a socket.
#[inline(always)]
pub fn release(context: &SockContext) {
    // SAFETY: the context is valid while the program runs; the verifier allows this read.
    let port = unsafe { ptr::read_volatile(&raw const (*context.sock).dst_port) };
    // A socket whose connection failed or was undone has no port any more.
    if port != 0 && !is_backend_port(Be16::from_network(port)) {
        return;
    }
    // SAFETY: the context is what the helper expects.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    if protocol(context) == u32::from(proto::UDP) {
        let _ = UDP_SOCKS.remove(cookie);
    } else {
        let _ = SOCK_PEERS.remove(cookie);
    }
}

#[inline(always)]
fn protocol(context: &SockContext) -> u32 {
    // SAFETY: the context is valid while the program runs; the verifier allows this read.
    unsafe { ptr::read_volatile(&raw const (*context.sock).protocol) }
}

/// `bind(2)`, once the socket has its port: a process of the node does not get one that a Service
/// has there. What is sent to it would go to the Service.
///
/// The kernel does not say whether the port was asked for or picked (`bind` to port 0), nor does it
/// pick another one when this says no: a range of NodePorts that overlaps the kernel's
/// (`net.ipv4.ip_local_port_range`) fails such calls now and then. `connect` without `bind` does
/// not come here.
#[inline(always)]
pub fn post_bind(context: &SockContext) -> i32 {
    let proto = match protocol(context) {
        6 => proto::TCP,
        17 => proto::UDP,
        _ => return PROCEED,
    };
    // SAFETY: as above; the field is in the host's byte order.
    let port = unsafe { ptr::read_volatile(&raw const (*context.sock).src_port) };
    if !node::is_node_port(&NodePortKey { port: Be16::new(port as u16), proto, reserved: 0 }) {
        return PROCEED;
    }
    // SAFETY: the context is what the helper expects.
    if unsafe { bpf_get_netns_cookie(context.as_ptr()) } != node::state().netns {
        return PROCEED;
    }
    fail(EADDRINUSE, Counter::BindRefused)
}

#[inline(always)]
fn port_mark(port: Be16) -> Option<*mut u8> {
    let number = u32::from(port.get());
    let marks = BACKEND_PORTS.get_ptr_mut(number / PORTS_PER_ELEMENT)?;
    // SAFETY: the index is less than the element's length.
    Some(unsafe { marks.cast::<u8>().add((number % PORTS_PER_ELEMENT) as usize) })
}

/// Says that a socket was connected to a backend with this port.
#[inline(always)]
fn mark_port(port: Be16) {
    let Some(mark) = port_mark(port) else { return };
    // SAFETY: elements of an array exist as long as the map; a byte is written whole, and only once,
    // so that its cache line stays shared.
    unsafe {
        if ptr::read_volatile(mark) == 0 {
            ptr::write_volatile(mark, 1);
        }
    }
}

#[inline(always)]
fn is_backend_port(port: Be16) -> bool {
    // SAFETY: elements of an array exist as long as the map.
    port_mark(port).is_some_and(|mark| unsafe { ptr::read_volatile(mark) != 0 })
}
