//! Services for packets that no socket hook has seen: raw sockets, virtual machines, sandboxes with
//! a network stack of their own, sockets older than the agent.
//!
//! Known limit: packets of a pod to a service whose only backend is the pod itself are dropped by the
//! pod in effect, since they claim to come from its own address. At the socket it works.

use sluice_abi::{Addr, Be16, Counter, FrontendFlags, FrontendKey, Scope, proto};

use crate::{
    counters::count,
    ct::{self, Refused, Side},
    fragment::{self, Portless},
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
    let transport = match fragment::transport::<V6, P>(packet, ip) {
        Ok(transport) => transport,
        Err(why) => return without_ports::<V6, P>(packet, ip, why),
    };
    let key = ct::key(ip, &transport, Side::Client);
    let now = ct::now();

    // All fragments go where the first one went.
    let opens = transport.proto == proto::UDP || opens_connection(&transport);
    if opens && transport.part != Part::Later {
        let frontend_key = FrontendKey {
            addr: ip.dst,
            port: transport.dport,
            proto: transport.proto,
            scope: Scope::Internal as u8,
        };
        let Some(frontend) = lb::frontend(&frontend_key) else { return unserved(&ip.dst) };
        let stays = match ct::find(&key) {
            None => false,
            Some(entry) => {
                let over = transport.proto == proto::TCP && ct::has_ended(&key, entry);
                if !over && lb::keeps(&frontend, entry.backend, entry.list) {
                    entry.list = frontend.list;
                    true
                } else {
                    ct::forget_answers(&key, entry);
                    false
                }
            }
        };
        if !stays {
            match open(&frontend_key, &key, now) {
                Ok(()) => {}
                Err(Counter::DropNoBackend) => return Outcome::Rejected,
                Err(reason) => return dropped(reason),
            }
        }
    }

    // A packet amid a connection needs its entry; one without is left to the stack, which may know
    // the connection from before.
    let Some(entry) = ct::find(&key) else { return Outcome::Untouched };
    ct::note(entry, Side::Client, transport.tcp, now);
    let (addr, port) = (entry.addr, entry.port);
    fragment::remember(ip, &transport);
    if nat::set_destination::<V6, P>(packet, ip, &transport, &addr, port).is_err() {
        return dropped(Counter::DropRewrite);
    }
    count(Counter::PacketForward);
    Outcome::Translated
}

/// Whether every port of the address is a service's (a ClusterIP).
#[inline(always)]
fn is_cluster_ip(addr: &Addr) -> bool {
    let key =
        FrontendKey { addr: *addr, port: Be16::new(0), proto: 0, scope: Scope::Internal as u8 };
    lb::frontend(&key).is_some_and(|frontend| frontend.flags & FrontendFlags::ANY_PORT != 0)
}

/// No frontend has the packet's port: at a ClusterIP it is rejected, elsewhere it is none of ours.
#[inline(always)]
fn unserved(addr: &Addr) -> Outcome {
    if is_cluster_ip(addr) { Outcome::Rejected } else { Outcome::Untouched }
}

/// A packet whose destination may be a service, but which has no ports to look for.
#[inline(never)]
fn without_ports<const V6: bool, P: Packet>(packet: P, ip: &mut Ip, why: Portless) -> Outcome {
    match why {
        Portless::Orphan if is_cluster_ip(&ip.dst) => dropped(Counter::FragmentUnknown),
        // At an address of the node's, it may be for a process of the node.
        Portless::Orphan => Outcome::Untouched,
        Portless::Other if ip.proto == parse::icmp_proto(V6) => {
            match icmp::to_backend::<V6, P>(packet, ip) {
                // A pod that is its own backend sees the service as its client.
                Outcome::Untouched => icmp::to_client::<V6, P>(packet, ip),
                outcome => outcome,
            }
        }
        Portless::Other => unserved(&ip.dst),
    }
}

/// Gives the flow a backend.
#[inline(always)]
fn open(frontend: &FrontendKey, key: &sluice_abi::CtKey, now: u64) -> Result<(), Counter> {
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
    let transport = match fragment::transport::<V6, P>(packet, ip) {
        Ok(transport) => transport,
        Err(Portless::Other) if delivered => return icmp::to_client::<V6, P>(packet, ip),
        Err(_) => return Outcome::Untouched,
    };
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
    match fragment::transport::<V6, P>(packet, ip) {
        Ok(transport) => answer::<V6, P>(packet, ip, &transport),
        Err(Portless::Other) => icmp::to_client::<V6, P>(packet, ip),
        Err(Portless::Orphan) => Outcome::Untouched,
    }
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
