//! ICMP errors about packets that were translated.
//!
//! An error quotes the packet that it is about as its sender saw it. The receiver knows that packet
//! under other addresses and ports, so that the quotation is translated as the flow is, but the
//! other way round. Errors about a flow of ours are found by the quotation alone: a router on the
//! way may have sent them.

use sluice_abi::{Counter, CtFlags, CtKey, proto};

use crate::{
    counters::count,
    csum::{self, Sum},
    ct,
    nat::Rewrite,
    node::{self, copy},
    packet::{Broken, Header, Packet, Skb},
    parse::{self, Ip, Part, Quoted, Transport},
    service::{self, Decision, Place},
};

/// RFC 792, RFC 4443 §2.1; numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IcmpHeader {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Over the message, of ICMPv6 over a pseudo header too.
    pub checksum: u16,
    /// What the type says.
    pub rest: u32,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for IcmpHeader {}

/// Length of an ICMP header.
pub const ICMP_LEN: u32 = 8;

/// Whether messages of the type quote a packet that could not be delivered: unreachable, too big,
/// time exceeded, parameter problem.
#[inline(always)]
pub const fn is_error(v6: bool, kind: u8) -> bool {
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) }
}

/// Decides on an ICMP error at the place given. If it is about a flow of ours, its quotation is
/// translated at once; its own addresses are to become those in `to`, for which `transport` says
/// where its checksum is.
#[inline(always)]
pub fn error<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    place: Place,
    transport: &mut Transport,
    to: &mut Rewrite,
) -> Decision {
    let mut message = Message::none();
    if !read::<V6>(packet, ip, &mut message) {
        return Decision::Leave;
    }
    // The error is for the client, or else for the backend.
    let mut decision = look_up(ip, &mut message, place, true);
    if decision == Decision::Leave {
        decision = look_up(ip, &mut message, place, false);
    }
    if decision == Decision::Leave {
        return decision;
    }
    if write::<V6>(packet, &message).is_err() {
        count(Counter::DropRewrite);
        return Decision::Drop;
    }
    count(Counter::IcmpTranslated);
    transport.offset = message.offset;
    transport.proto = parse::icmp_proto(V6);
    // The error goes to whom sent the packet.
    to.dst = copy(&message.new.src);
    to.src = copy(if message.hide != 0 { &message.new.dst } else { &ip.src });
    // Its quotation is translated: nobody else can have it as it was.
    if decision == Decision::Shortcut { Decision::Direct } else { decision }
}

/// An ICMP error that is to be translated.
struct Message {
    /// What it quotes.
    old: Quoted,
    /// What it is to quote. Its offset is that of the quoted IP header.
    new: Quoted,
    /// Where the ICMP header is.
    offset: u32,
    /// Its checksum.
    checksum: u16,
    /// Not 0 if the error is to come from the address that the quoted packet went to.
    hide: u16,
}

impl Message {
    #[inline(always)]
    fn none() -> Self {
        let zero = node::zero();
        Self {
            old: Quoted::none(),
            new: Quoted::none(),
            offset: zero,
            checksum: zero as u16,
            hide: zero as u16,
        }
    }
}

/// Reads the error. `false` if it is none.
#[inline(never)]
fn read<const V6: bool>(packet: Skb, ip: &Ip, message: &mut Message) -> bool {
    let Some(upper) = parse::upper::<V6, _>(packet, ip) else { return false };
    if upper.part != Part::Whole || upper.proto != parse::icmp_proto(V6) {
        return false;
    }
    let Some(header) = packet.load::<IcmpHeader>(upper.offset) else { return false };
    if !is_error(V6, header.kind) {
        return false;
    }
    message.offset = upper.offset;
    message.checksum = header.checksum;
    message.new.offset = upper.offset + ICMP_LEN;
    // Who sent the packet is told.
    parse::quoted::<V6, _>(packet, message.new.offset, &mut message.old)
        && message.old.src == ip.dst
}

/// What is to become of an error to the backend of a flow whose forward entry has the flags.
#[inline(always)]
fn way_there(flags: u16, masked: bool, place: Place) -> Decision {
    let masquerade = flags & CtFlags::MASQUERADE != 0;
    match place {
        Place::AtPod => Decision::Leave,
        Place::ToOutside if masquerade => Decision::Translate,
        Place::ToOutside => Decision::Leave,
        // A pod's, which the program at the uplink translates.
        _ if masquerade => Decision::Leave,
        _ if masked => Decision::Direct,
        _ => Decision::Translate,
    }
}

/// Finds the flow that the quoted packet belongs to, and what it is on the other side.
#[inline(never)]
fn look_up(ip: &Ip, message: &mut Message, place: Place, to_client: bool) -> Decision {
    let (old, new) = (&message.old, &mut message.new);
    let key = CtKey {
        src: copy(&old.dst),
        dst: copy(&old.src),
        sport: old.dport,
        dport: old.sport,
        proto: old.proto,
        flags: if to_client { CtFlags::REVERSE } else { 0 },
        reserved: 0,
    };
    let Some(entry) = ct::find(&key) else { return Decision::Leave };
    let snat = entry.flags & CtFlags::SNAT != 0;
    // A client may have only another port at the backend.
    let client = if to_client { &old.src } else { &old.dst };
    let masked = snat && entry.nat_addr != *client;
    let decision = if to_client {
        match service::way_back(entry.flags, masked, place) {
            Some((decision, _)) => decision,
            None => Decision::Leave,
        }
    } else {
        way_there(entry.flags, masked, place)
    };
    if decision == Decision::Leave {
        return decision;
    }
    new.src = copy(&old.src);
    new.dst = copy(&old.dst);
    new.sport = old.sport;
    new.dport = old.dport;
    if to_client {
        new.dst = copy(&entry.addr);
        new.dport = entry.port;
        if snat {
            new.src = copy(&entry.nat_addr);
            new.sport = entry.nat_port;
        }
    } else {
        new.src = copy(&entry.addr);
        new.sport = entry.port;
        if snat {
            new.dst = copy(&entry.nat_addr);
            new.dport = entry.nat_port;
        }
    }
    // The backend's own address is not shown to the client. A router's is, unless the client is
    // outside and the node hides from it what is behind: networks in between might drop it. A pod
    // that left the cluster is told who outside sent the error.
    let masquerade = entry.flags & CtFlags::MASQUERADE != 0;
    message.hide = u16::from(ip.src == old.dst || (masked && !(masquerade && to_client)));
    decision
}

/// Writes the quotation.
#[inline(never)]
fn write<const V6: bool>(packet: Skb, message: &Message) -> Result<(), Broken> {
    let Message { old, new, .. } = message;
    // What changes for the checksum of the quoted transport header, and for that of ICMP.
    let echo = old.proto == parse::icmp_proto(V6);
    let mut inner = Sum::new()
        .changed(old.sport.to_network(), new.sport.to_network())
        .changed(old.dport.to_network(), new.dport.to_network());
    if V6 || !echo {
        inner = inner
            .less_addr::<V6>(&old.src)
            .addr::<V6>(&new.src)
            .less_addr::<V6>(&old.dst)
            .addr::<V6>(&new.dst);
    }
    let mut outer = Sum::new()
        .changed(old.sport.to_network(), new.sport.to_network())
        .changed(old.dport.to_network(), new.dport.to_network());
    if V6 {
        // In IPv4, the checksum in the quoted IP header makes up for the quoted addresses.
        outer = outer
            .less_addr::<V6>(&old.src)
            .addr::<V6>(&new.src)
            .less_addr::<V6>(&old.dst)
            .addr::<V6>(&new.dst);
    }

    let at = match old.proto {
        proto::TCP => Some(old.offset + 16),
        proto::UDP => Some(old.offset + 6),
        _ if echo => Some(old.offset + 2),
        // SCTP's covers no address; nobody looks at that of a quotation.
        _ => None,
    };
    // The quotation may end before it.
    if let Some(at) = at
        && let Some(before) = packet.load::<u16>(at)
        // UDP's 0 means that there is none.
        && !(old.proto == proto::UDP && before == 0)
    {
        let mut after = inner.half(!before).checksum();
        if old.proto == proto::UDP && after == 0 {
            after = 0xffff;
        }
        outer = outer.changed(before, after);
        packet.store(at, &after)?;
    }
    if echo {
        packet.store(old.offset + parse::ECHO_ID, &new.sport.to_network())?;
    } else {
        packet.store(old.offset, &new.sport.to_network())?;
        packet.store(old.offset + 2, &new.dport.to_network())?;
    }
    if V6 {
        packet.store(new.offset + 8, &new.src.0)?;
        packet.store(new.offset + 24, &new.dst.0)?;
    } else {
        let addrs = [new.src.v4(), new.dst.v4()];
        let difference = csum::difference([old.src.v4(), old.dst.v4()], addrs);
        packet.fix_ip_checksum(new.offset + 10, difference)?;
        packet.store(new.offset + 12, &addrs)?;
    }
    packet.store(message.offset + 2, &outer.half(!message.checksum).checksum())
}
