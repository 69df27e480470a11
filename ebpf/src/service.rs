//! Services for packets that no socket hook has seen: raw sockets, virtual machines, sandboxes with
//! a network stack of their own, sockets older than the agent.
//!
//! Known limit: packets of a pod to a service whose only backend is the pod itself are dropped by the
//! pod in effect, since they claim to come from its own address. At the socket it works.

use sluice_abi::{Addr, Be16, Counter, FrontendFlags, FrontendKey, Scope, proto};

use crate::{
    counters::count,
    ct::{self, Refused, Side},
    fragment::{self, Ports},
    icmp,
    lb::{self, Choice},
    nat, node,
    packet::Packet,
    parse::{self, Ip, Part, Transport, tcp},
};

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not translated; none of ours.
    Untouched,
    /// Translated.
    Translated,
    /// To be dropped; it is counted.
    Dropped,
    /// Nobody serves it: to be answered with [`crate::reject::answer`].
    Rejected,
}

/// How often another backend is tried where a flow would clash with another one.
const ATTEMPTS: u32 = 3;

#[inline(always)]
fn dropped(reason: Counter) -> Outcome {
    count(reason);
    Outcome::Dropped
}

/// Translates a packet whose destination may be a service.
#[inline(always)]
pub fn to_backend<const V6: bool, P: Packet>(packet: P, ip: &mut Ip) -> Outcome {
    if ip.proto != parse::icmp_proto(V6) {
        return request::<V6, P>(packet, ip);
    }
    match icmp::to_backend::<V6, P>(packet, ip) {
        // A pod that is its own backend sees the service as its client.
        Outcome::Untouched => icmp::to_client::<V6, P>(packet, ip),
        outcome => outcome,
    }
}

/// What a step of [`request`] found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The flow is known, or there is none and none begins.
    Known,
    /// A flow begins, or is to get another backend.
    Begins,
    /// Nobody serves it.
    Rejected,
    /// Not for a service.
    Untouched,
    /// It cannot be served; that is counted.
    Dropped,
}

/// Each step has a stack of its own: together they would not fit into the kernel's 512 bytes.
#[inline(always)]
fn request<const V6: bool, P: Packet>(packet: P, ip: &mut Ip) -> Outcome {
    let mut transport = Transport::empty();
    match fragment::transport::<V6, P>(packet, ip, &mut transport) {
        Ports::Known => {}
        Ports::Orphan if is_cluster_ip(&ip.dst) => return dropped(Counter::FragmentUnknown),
        // At an address of the node's, it may be for a process of the node.
        Ports::Orphan => return Outcome::Untouched,
        Ports::None if is_cluster_ip(&ip.dst) => return Outcome::Rejected,
        Ports::None => return Outcome::Untouched,
    }
    // All fragments go where the first one went.
    let mut step = Step::Known;
    if (transport.proto == proto::UDP || opens_connection(&transport))
        && transport.part != Part::Later
    {
        step = look_up(ip, &transport);
        if step == Step::Begins {
            step = open(ip, &transport);
        }
    }
    match step {
        Step::Known | Step::Begins => send_on::<V6, P>(packet, ip, &transport),
        Step::Rejected => Outcome::Rejected,
        Step::Untouched => Outcome::Untouched,
        Step::Dropped => Outcome::Dropped,
    }
}

#[inline(always)]
fn frontend_key(ip: &Ip, transport: &Transport) -> FrontendKey {
    FrontendKey {
        addr: ip.dst,
        port: transport.dport,
        proto: transport.proto,
        scope: Scope::Internal as u8,
    }
}

/// Whether a service is asked, and whether it has an answer yet.
#[inline(never)]
fn look_up(ip: &Ip, transport: &Transport) -> Step {
    let Some(frontend) = lb::frontend(&frontend_key(ip, transport)) else {
        // At a ClusterIP, the ports that no service has are rejected too.
        return if is_cluster_ip(&ip.dst) { Step::Rejected } else { Step::Untouched };
    };
    let key = ct::key(ip, transport, Side::Client);
    let Some(entry) = ct::find(&key) else { return Step::Begins };
    let over = transport.proto == proto::TCP && ct::has_ended(&key, entry);
    if !over && lb::keeps(&frontend, entry.backend, entry.list) {
        entry.list = frontend.list;
        return Step::Known;
    }
    ct::forget_answers(&key, entry);
    Step::Begins
}

/// Gives the flow a backend.
#[inline(never)]
fn open(ip: &Ip, transport: &Transport) -> Step {
    let key = ct::key(ip, transport, Side::Client);
    let reason = match choose(&frontend_key(ip, transport), &key, ct::now()) {
        Ok(()) => return Step::Known,
        Err(Counter::DropNoBackend) => return Step::Rejected,
        Err(reason) => reason,
    };
    count(reason);
    Step::Dropped
}

/// Writes the backend into the packet.
#[inline(never)]
fn send_on<const V6: bool, P: Packet>(packet: P, ip: &mut Ip, transport: &Transport) -> Outcome {
    // A packet amid a connection needs its entry; one without is left to the stack, which may know
    // the connection from before.
    let Some(entry) = ct::find(&ct::key(ip, transport, Side::Client)) else {
        return Outcome::Untouched;
    };
    ct::note(entry, Side::Client, transport.tcp, ct::now());
    let (addr, port) = (entry.addr, entry.port);
    fragment::remember(ip, transport);
    if nat::set_destination::<V6, P>(packet, ip, transport, &addr, port).is_err() {
        return dropped(Counter::DropRewrite);
    }
    count(Counter::PacketForward);
    Outcome::Translated
}

/// Whether every port of the address is a service's (a ClusterIP).
#[inline(never)]
fn is_cluster_ip(addr: &Addr) -> bool {
    let key =
        FrontendKey { addr: *addr, port: Be16::new(0), proto: 0, scope: Scope::Internal as u8 };
    lb::frontend(&key).is_some_and(|frontend| frontend.flags & FrontendFlags::ANY_PORT != 0)
}

/// Chooses a backend that the flow can have.
#[inline(always)]
fn choose(frontend: &FrontendKey, key: &sluice_abi::CtKey, now: u64) -> Result<(), Counter> {
    for _ in 0..ATTEMPTS {
        let pick = match lb::select(frontend) {
            Choice::Picked(pick) => pick,
            Choice::Missing => return Err(Counter::BackendMissing),
            Choice::NotService | Choice::Empty => return Err(Counter::DropNoBackend),
        };
        match ct::create(key, &pick, now) {
            Ok(()) => {
                node::conntrack_is_used();
                count(Counter::FlowCreated);
                return Ok(());
            }
            Err(Refused::Full) => return Err(Counter::DropConntrackFull),
            Err(Refused::Clash) => {}
        }
    }
    Err(Counter::DropFlowClash)
}

/// A packet that was not translated leaves a pod. Call only once flows are translated at all.
///
/// `delivered`: it will not pass the program at the receiver's host side, so that one's work is
/// done here.
#[inline(always)]
pub fn from_pod<const V6: bool, P: Packet>(packet: P, ip: &mut Ip, delivered: bool) -> Outcome {
    if ip.proto != parse::icmp_proto(V6) {
        return other::<V6, P>(packet, ip, delivered);
    }
    if delivered { icmp::to_client::<V6, P>(packet, ip) } else { Outcome::Untouched }
}

#[inline(never)]
fn other<const V6: bool, P: Packet>(packet: P, ip: &Ip, delivered: bool) -> Outcome {
    let mut transport = Transport::empty();
    if fragment::transport::<V6, P>(packet, ip, &mut transport) != Ports::Known {
        return Outcome::Untouched;
    }
    if opens_connection(&transport) {
        ct::supersede(ip, &transport, ct::now());
        // What opens a connection is no answer.
        return Outcome::Untouched;
    }
    if delivered { answer::<V6, P>(packet, ip, &transport) } else { Outcome::Untouched }
}

#[inline(always)]
const fn opens_connection(transport: &Transport) -> bool {
    transport.tcp & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
}

/// Gives a backend's answer the service's address.
#[inline(always)]
pub fn to_client<const V6: bool, P: Packet>(packet: P, ip: &mut Ip) -> Outcome {
    if ip.proto == parse::icmp_proto(V6) {
        return icmp::to_client::<V6, P>(packet, ip);
    }
    received::<V6, P>(packet, ip)
}

#[inline(never)]
fn received<const V6: bool, P: Packet>(packet: P, ip: &Ip) -> Outcome {
    let mut transport = Transport::empty();
    if fragment::transport::<V6, P>(packet, ip, &mut transport) != Ports::Known {
        return Outcome::Untouched;
    }
    answer::<V6, P>(packet, ip, &transport)
}

#[inline(always)]
fn answer<const V6: bool, P: Packet>(packet: P, ip: &Ip, transport: &Transport) -> Outcome {
    let key = ct::key(ip, transport, Side::Backend);
    let Some(entry) = ct::find(&key) else { return Outcome::Untouched };
    ct::note(entry, Side::Backend, transport.tcp, ct::now());
    let (addr, port) = (entry.addr, entry.port);
    fragment::remember(ip, transport);
    if nat::set_source::<V6, P>(packet, ip, transport, &addr, port).is_err() {
        return dropped(Counter::DropRewrite);
    }
    count(Counter::PacketReverse);
    Outcome::Translated
}
