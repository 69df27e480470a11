//! Services for packets that no socket hook has seen: raw sockets, virtual machines, sandboxes with
//! a network stack of their own, sockets older than the agent.
//!
//! Known limits: fragments pass untranslated (see [`parse::transport`]), and so do packets of a pod
//! to a service whose only backend is the pod itself, in effect: the pod drops a packet that claims
//! to come from its own address. At the socket both work.

use sluice_abi::{Counter, FrontendKey, Scope, proto};

use crate::{
    counters::count,
    ct::{self, Refused, Side},
    lb::{self, Choice, Client},
    nat, node,
    packet::Packet,
    parse::{self, Ip, Transport, tcp},
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
    let Some(transport) = parse::transport::<V6, P>(packet, ip) else { return Outcome::Untouched };
    let key = ct::key(ip, &transport, Side::Client);
    let now = ct::now();

    if transport.proto == proto::UDP || opens_connection(&transport) {
        let frontend_key = FrontendKey {
            addr: ip.dst,
            port: transport.dport,
            proto: transport.proto,
            scope: Scope::Internal as u8,
        };
        let Some(frontend) = lb::frontend(&frontend_key) else { return Outcome::Untouched };
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
            if let Err(reason) = open(&frontend_key, &key, now) {
                return dropped(reason);
            }
        }
    }

    // A packet amid a connection needs its entry; one without is left to the stack, which may know
    // the connection from before.
    let Some(entry) = ct::find(&key) else { return Outcome::Untouched };
    ct::note(entry, Side::Client, transport.tcp, now);
    let (addr, port) = (entry.addr, entry.port);
    if nat::set_destination::<V6, P>(packet, ip, &transport, &addr, port).is_err() {
        return dropped(Counter::DropRewrite);
    }
    count(Counter::PacketForward);
    Outcome::Translated
}

/// Gives the flow a backend.
#[inline(always)]
fn open(frontend: &FrontendKey, key: &sluice_abi::CtKey, now: u64) -> Result<(), Counter> {
    for _ in 0..ATTEMPTS {
        let pick = match lb::select(frontend, &Client::address(&key.src)) {
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
pub fn from_pod<const V6: bool, P: Packet>(packet: P, ip: &Ip, delivered: bool) -> Outcome {
    let Some(transport) = parse::transport::<V6, P>(packet, ip) else { return Outcome::Untouched };
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
pub fn to_client<const V6: bool, P: Packet>(packet: P, ip: &Ip) -> Outcome {
    match parse::transport::<V6, P>(packet, ip) {
        Some(transport) => answer::<V6, P>(packet, ip, &transport),
        None => Outcome::Untouched,
    }
}

#[inline(always)]
fn answer<const V6: bool, P: Packet>(packet: P, ip: &Ip, transport: &Transport) -> Outcome {
    let key = ct::key(ip, transport, Side::Backend);
    let Some(entry) = ct::find(&key) else { return Outcome::Untouched };
    ct::note(entry, Side::Backend, transport.tcp, ct::now());
    let (addr, port) = (entry.addr, entry.port);
    if nat::set_source::<V6, P>(packet, ip, transport, &addr, port).is_err() {
        return dropped(Counter::DropRewrite);
    }
    count(Counter::PacketReverse);
    Outcome::Translated
}
