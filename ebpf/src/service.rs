//! Services for packets that no socket hook has seen: clients outside, and of the node's own pods
//! raw sockets, virtual machines, sandboxes with a network stack of their own, sockets older than
//! the agent.
//!
//! What is to become of a packet is decided here, without changing it; [`crate::path`] does it.

use sluice_abi::{Be16, Counter, CtFlags, FrontendFlags, FrontendKey, Scope, proto};

use crate::{
    calls,
    counters::count,
    ct::{self, Created, Origin, Side},
    fragment::Ports,
    lb::{self, Choice, Pick},
    nat::Rewrite,
    node,
    packet::Skb,
    parse::{Ip, Transport},
};

/// What is to become of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Decision {
    /// It is none of ours.
    Leave,
    /// To be translated; the stack may have it then.
    Translate,
    /// To be translated and sent out at once. If that cannot be, the stack may have it as it is: the
    /// program at the uplink's egress will translate it.
    Shortcut,
    /// To be translated and sent on at once: with an address of the node, or of a service, for its
    /// source the stack would refuse it.
    Direct,
    /// Nobody serves it: to be answered, see [`crate::reject`].
    Reject,
    /// To be dropped; it is counted.
    Drop,
}

/// How often another backend is tried where a flow would clash with another one.
const ATTEMPTS: u32 = 3;

/// What [`choose`] found.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Chosen {
    /// No service is asked.
    NotService,
    /// The flow keeps what it has.
    Kept,
    /// The flow is to get the backend.
    Backend,
    /// The service has no backend.
    Empty,
    /// It has none on this node, and wants no other.
    NoLocal,
    /// The client may not come.
    NotAdmitted,
    /// The list or the backend is not there.
    Missing,
}

#[inline(always)]
fn dropped(reason: Counter) -> Decision {
    count(reason);
    Decision::Drop
}

/// Looks for the service that is asked, and whether the flow has a backend already. Else the pick
/// says which frontend to choose one of, and under which scope (as its number).
#[inline(always)]
pub fn choose(ip: &Ip, transport: &Transport, origin: Origin, pick: &mut Pick) -> Chosen {
    let mut frontend_key = FrontendKey {
        addr: node::copy(&ip.dst),
        port: transport.dport,
        proto: transport.proto,
        scope: Scope::Internal as u8,
    };
    let Some(mut frontend) = lb::frontend(&frontend_key) else { return Chosen::NotService };
    if origin == Origin::Outside && frontend.flags & FrontendFlags::EXTERNAL_DIFFERS != 0 {
        frontend_key.scope = Scope::External as u8;
        match lb::frontend(&frontend_key) {
            Some(external) => frontend = external,
            // The two became one just now.
            None => frontend_key.scope = Scope::Internal as u8,
        }
    }
    if frontend.flags & FrontendFlags::SOURCE_RANGES != 0 && !lb::admits(&frontend, &ip.src) {
        return Chosen::NotAdmitted;
    }
    let key = ct::key(ip, transport, Side::Client);
    if let Some(entry) = ct::find(&key) {
        let over = transport.proto != proto::UDP && ct::has_ended(&key, entry);
        if !over && lb::keeps(&frontend, entry.backend, entry.list) {
            entry.list = frontend.list;
            return Chosen::Kept;
        }
        ct::forget_answers(&key, entry);
    }
    pick.frontend = frontend;
    pick.number = u32::from(frontend_key.scope);
    Chosen::Backend
}

/// Chooses the backend, after [`choose`] has said that the flow is to get one.
#[inline(always)]
pub fn select(ip: &Ip, transport: &Transport, pick: &mut Pick) -> Chosen {
    let key = FrontendKey {
        addr: node::copy(&ip.dst),
        port: transport.dport,
        proto: transport.proto,
        scope: pick.number as u8,
    };
    match lb::select(&key, &lb::Client::address(&ip.src)) {
        Choice::Picked(found) => {
            pick.frontend = found.frontend;
            pick.number = found.number;
            pick.backend.addr = node::copy(&found.backend.addr);
            pick.backend.port = found.backend.port;
            pick.backend.proto = found.backend.proto;
            pick.backend.flags = found.backend.flags;
            Chosen::Backend
        }
        Choice::Missing => Chosen::Missing,
        Choice::NotService | Choice::Empty => {
            if pick.keeps_client() {
                Chosen::NoLocal
            } else {
                Chosen::Empty
            }
        }
    }
}

/// Looks whether a connection that a pod begins, straight to what may be a backend, would be one with a
/// translated flow there, which has the same address and port of the pod. Then it is to get another
/// port, if it has none yet.
#[inline(always)]
pub fn direct(ip: &Ip, transport: &Transport, pick: &mut Pick) -> Chosen {
    if !transport.opens_connection() {
        return Chosen::NotService;
    }
    if has_flow(ip, transport) {
        // Its first packet comes again.
        return Chosen::Kept;
    }
    if !calls::supersede(ip, transport) {
        return Chosen::NotService;
    }
    node::conntrack_has_direct();
    *pick = Pick::none();
    pick.backend.addr = node::copy(&ip.dst);
    pick.backend.port = transport.dport;
    pick.backend.proto = transport.proto;
    Chosen::Backend
}

/// Whether a connection straight to a backend has another port there already. What is left of one that
/// is over is forgotten.
///
/// A function of its own, so that its keys take no place on the stack that [`ct::supersede`] needs.
#[inline(never)]
fn has_flow(ip: &Ip, transport: &Transport) -> bool {
    let key = ct::key(ip, transport, Side::Client);
    let Some(entry) = ct::find(&key) else { return false };
    if entry.addr == ip.dst && !ct::has_ended(&key, entry) {
        return true;
    }
    // It is over, or of a service that this address was once.
    ct::forget_answers(&key, entry);
    ct::forget(&key);
    false
}

/// Whether every port of the destination is a service's (a ClusterIP).
#[inline(always)]
pub fn is_cluster_ip(ip: &Ip) -> bool {
    let key = FrontendKey {
        addr: node::copy(&ip.dst),
        port: Be16::new(0),
        proto: 0,
        scope: Scope::Internal as u8,
    };
    lb::frontend(&key).is_some_and(|frontend| frontend.flags & FrontendFlags::ANY_PORT != 0)
}

/// Decides on a packet whose destination may be a service's address, but whose ports are not known.
#[inline(always)]
pub fn without_ports(ip: &Ip, ports: Ports) -> Decision {
    if !calls::is_cluster_ip(ip) {
        // It may be for a process of the node.
        return Decision::Leave;
    }
    if ports == Ports::Orphan { dropped(Counter::FragmentUnknown) } else { Decision::Reject }
}

/// Decides on a packet whose destination may be a service's address, or, if not `of_service`, is one
/// to which a pod may have a connection that [`direct`] is about.
#[inline(always)]
pub fn request<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    transport: &Transport,
    origin: Origin,
    of_service: bool,
    to: &mut Rewrite,
) -> Decision {
    if transport.may_open() {
        let mut pick = Pick::none();
        let mut created = Created::Clash;
        for _ in 0..ATTEMPTS {
            let mut chosen = Chosen::NotService;
            if of_service {
                chosen = calls::choose(ip, transport, origin, &mut pick);
            }
            match chosen {
                Chosen::Backend => chosen = calls::select(ip, transport, &mut pick),
                Chosen::NotService if origin == Origin::Pod => {
                    chosen = calls::direct(ip, transport, &mut pick);
                }
                _ => {}
            }
            match chosen {
                // At a ClusterIP, the ports that no service has are rejected too.
                Chosen::NotService if of_service && calls::is_cluster_ip(ip) => {
                    return Decision::Reject;
                }
                Chosen::NotService => return Decision::Leave,
                Chosen::Kept => {
                    created = Created::Yes;
                    break;
                }
                Chosen::Backend => {}
                Chosen::Empty => return Decision::Reject,
                Chosen::NoLocal => return dropped(Counter::DropNoLocal),
                Chosen::NotAdmitted => return dropped(Counter::DropSourceRange),
                Chosen::Missing => return dropped(Counter::BackendMissing),
            }
            created = calls::create::<V6>(packet, ip, transport, &pick, origin);
            if created == Created::Yes {
                node::conntrack_is_used();
                count(Counter::FlowCreated);
            }
            if created != Created::Clash {
                break;
            }
        }
        if let Some(reason) = reason(created) {
            return dropped(reason);
        }
    }

    along(ip, transport, origin, to)
}

/// Decides on a packet of a flow that is known. A function of its own, so that its key takes no place
/// on the stack that [`request`] needs.
#[inline(never)]
fn along(ip: &Ip, transport: &Transport, origin: Origin, to: &mut Rewrite) -> Decision {
    // A packet amid a connection needs its entry; one without is left to the stack, which may know
    // the connection from before.
    let key = ct::key(ip, transport, Side::Client);
    let Some(entry) = ct::find(&key) else { return Decision::Leave };
    ct::note(entry, Side::Client, transport.tcp, ct::now());
    to.dst = node::copy(&entry.addr);
    to.dport = entry.port;
    count(if origin == Origin::Outside { Counter::UplinkForward } else { Counter::PacketForward });
    if entry.flags & CtFlags::SNAT == 0 {
        return Decision::Translate;
    }
    to.src = node::copy(&entry.nat_addr);
    to.sport = entry.nat_port;
    // With its own address and another port the stack takes it.
    if entry.nat_addr == ip.src { Decision::Translate } else { Decision::Direct }
}

/// Why a flow could not be made, if it could not.
#[inline(always)]
pub fn reason(created: Created) -> Option<Counter> {
    match created {
        Created::Yes => None,
        Created::Full => Some(Counter::DropConntrackFull),
        Created::Clash => Some(Counter::DropFlowClash),
        Created::NoPort => Some(Counter::DropSnatExhausted),
    }
}

/// Where an answer is now.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    /// It leaves a pod, and goes past no other program: to a pod by the fast path.
    PodToPod,
    /// It leaves a pod; what is for clients outside may be sent out at once.
    PodFast,
    /// It leaves a pod for the stack.
    Pod,
    /// It arrives at a pod.
    AtPod,
    /// It arrives from outside at the node's own address.
    FromOutside,
    /// It leaves the node.
    ToOutside,
}

/// What is to become of a packet to the client of a flow whose reverse entry has the flags, and how
/// it is counted. `None` if it is another program's business. `masked`: at the backend the client has
/// another address.
#[inline(always)]
pub fn way_back(flags: u16, masked: bool, place: Place) -> Option<(Decision, Counter)> {
    let way = match place {
        // At the node's own address, or at a service's, nobody else would take it.
        Place::PodToPod | Place::PodFast | Place::Pod if masked => {
            (Decision::Direct, Counter::PacketReverse)
        }
        Place::PodFast if flags & CtFlags::EXTERNAL != 0 => {
            (Decision::Shortcut, Counter::UplinkReverse)
        }
        Place::PodToPod | Place::AtPod if !masked => (Decision::Translate, Counter::PacketReverse),
        Place::ToOutside if !masked && flags & CtFlags::EXTERNAL != 0 => {
            (Decision::Translate, Counter::UplinkReverse)
        }
        Place::FromOutside if flags & CtFlags::MASQUERADE != 0 => {
            (Decision::Translate, Counter::Masqueraded)
        }
        Place::FromOutside if masked => (Decision::Direct, Counter::UplinkReverse),
        _ => return None,
    };
    Some(way)
}

/// Decides on a packet that may be a backend's answer.
#[inline(always)]
pub fn answer(ip: &Ip, transport: &Transport, place: Place, to: &mut Rewrite) -> Decision {
    let key = ct::key(ip, transport, Side::Backend);
    let Some(entry) = ct::find(&key) else { return Decision::Leave };
    let other = entry.flags & CtFlags::SNAT != 0;
    // A client that has only another port at the backend is answered by its own address.
    let masked = other && entry.nat_addr != ip.dst;
    let Some((decision, counter)) = way_back(entry.flags, masked, place) else {
        return Decision::Leave;
    };
    ct::note(entry, Side::Backend, transport.tcp, ct::now());
    to.src = node::copy(&entry.addr);
    to.sport = entry.port;
    if other {
        to.dst = node::copy(&entry.nat_addr);
        to.dport = entry.nat_port;
    }
    if counter != Counter::Masqueraded {
        count(counter);
    }
    decision
}
