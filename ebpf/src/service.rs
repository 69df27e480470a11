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
    lb::{self, Choice},
    nat, node,
    packet::Packet,
    parse::{self, Ip, tcp},
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

    let opens = transport.proto == proto::UDP
        || transport.tcp & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN;
    if opens {
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

/// Gives a backend's answer the service's address.
#[inline(always)]
pub fn to_client<const V6: bool, P: Packet>(packet: P, ip: &Ip) -> Outcome {
    let Some(transport) = parse::transport::<V6, P>(packet, ip) else { return Outcome::Untouched };
    let key = ct::key(ip, &transport, Side::Backend);
    let Some(entry) = ct::find(&key) else { return Outcome::Untouched };
    ct::note(entry, Side::Backend, transport.tcp, ct::now());
    let (addr, port) = (entry.addr, entry.port);
    if nat::set_source::<V6, P>(packet, ip, &transport, &addr, port).is_err() {
        return dropped(Counter::DropRewrite);
    }
    count(Counter::PacketReverse);
    Outcome::Translated
}
