//! ICMP errors about packets that were translated.
//!
//! An error quotes the packet that it is about as its sender saw it. The receiver knows that packet
//! under other addresses and ports, so that the quotation is translated as the flow is, but the
//! other way round. Errors about a flow of ours are found by the quotation alone: a router on the
//! way may have sent them.

use sluice_abi::{Addr, Counter, CtFlags, CtKey, proto};

use crate::{
    counters::count,
    csum::Sum,
    ct,
    packet::{Broken, Header, Packet},
    parse::{self, ETH_LEN, Ip, Part, Quoted},
    service::Outcome,
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
const fn is_error(v6: bool, kind: u8) -> bool {
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) }
}

/// An error about a packet that seemed to come from a service goes to the backend that sent it.
#[inline(always)]
pub fn to_backend<const V6: bool, P: Packet>(packet: P, ip: &mut Ip) -> Outcome {
    translate::<V6, P>(packet, ip, 0)
}

/// An error about a packet to a service goes to the client that sent it.
#[inline(always)]
pub fn to_client<const V6: bool, P: Packet>(packet: P, ip: &mut Ip) -> Outcome {
    translate::<V6, P>(packet, ip, CtFlags::REVERSE)
}

/// Word by word: a copy of the whole would become a call of memmove.
#[inline(always)]
fn copy(addr: &Addr) -> Addr {
    Addr([addr.0[0], addr.0[1], addr.0[2], addr.0[3]])
}

/// `flags`: those of the key of the packets that go the same way as the error.
#[inline(never)]
fn translate<const V6: bool, P: Packet>(packet: P, ip: &mut Ip, flags: u8) -> Outcome {
    // Each step has a stack of its own, see `crate::service`.
    let mut message = Message::empty();
    if !read::<V6, P>(packet, ip, &mut message) || !look_up(ip, &mut message, flags) {
        return Outcome::Untouched;
    }
    if write::<V6, P>(packet, ip, &message).is_err() {
        count(Counter::DropRewrite);
        return Outcome::Dropped;
    }
    count(Counter::IcmpTranslated);
    Outcome::Translated
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
    const fn empty() -> Self {
        Self { old: Quoted::empty(), new: Quoted::empty(), offset: 0, checksum: 0, hide: 0 }
    }
}

/// Reads the error. `false` if it is none.
#[inline(never)]
fn read<const V6: bool, P: Packet>(packet: P, ip: &Ip, message: &mut Message) -> bool {
    let Some(upper) = parse::upper::<V6, P>(packet, ip) else { return false };
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
    parse::quoted::<V6, P>(packet, message.new.offset, &mut message.old)
        && message.old.src == ip.dst
}

/// Finds the flow that the quoted packet belongs to, and what it is on the other side.
#[inline(never)]
fn look_up(ip: &Ip, message: &mut Message, flags: u8) -> bool {
    let (old, new) = (&message.old, &mut message.new);
    let key = CtKey {
        src: copy(&old.dst),
        dst: copy(&old.src),
        sport: old.dport,
        dport: old.sport,
        proto: old.proto,
        flags,
        reserved: 0,
    };
    let Some(entry) = ct::find(&key) else { return false };
    new.src = copy(&old.src);
    new.dst = copy(&old.dst);
    new.sport = old.sport;
    new.dport = old.dport;
    let snat = entry.flags & CtFlags::SNAT != 0;
    let reverse = flags & CtFlags::REVERSE != 0;
    if reverse {
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
    message.hide = u16::from(ip.src == old.dst || (snat && !(masquerade && reverse)));
    true
}

/// Writes the quotation, then the IP header.
#[inline(never)]
fn write<const V6: bool, P: Packet>(
    packet: P,
    ip: &mut Ip,
    message: &Message,
) -> Result<(), Broken> {
    let Message { old, new, .. } = message;
    // What changes for the checksum of the quoted transport header, and for that of ICMP.
    let inner = Sum::new()
        .changed(old.sport.to_network(), new.sport.to_network())
        .changed(old.dport.to_network(), new.dport.to_network())
        .less_addr::<V6>(&old.src)
        .addr::<V6>(&new.src)
        .less_addr::<V6>(&old.dst)
        .addr::<V6>(&new.dst);
    let mut outer = Sum::new()
        .changed(old.sport.to_network(), new.sport.to_network())
        .changed(old.dport.to_network(), new.dport.to_network());
    if V6 {
        // The quoted addresses, and then those of the pseudo header. IPv4 has no pseudo header, and
        // the checksum in the quoted IP header makes up for the quoted addresses.
        outer = outer
            .less_addr::<V6>(&old.src)
            .addr::<V6>(&new.src)
            .less_addr::<V6>(&old.dst)
            .addr::<V6>(&new.dst)
            .less_addr::<V6>(&ip.dst)
            .addr::<V6>(&new.src);
        if message.hide != 0 {
            outer = outer.less_addr::<V6>(&ip.src).addr::<V6>(&new.dst);
        }
    }

    let at = match old.proto {
        proto::TCP => Some(old.offset + 16),
        proto::UDP => Some(old.offset + 6),
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
    packet.store(old.offset, &new.sport.to_network())?;
    packet.store(old.offset + 2, &new.dport.to_network())?;
    set_addr::<V6, P>(packet, new.offset, SOURCE, &old.src, &new.src)?;
    set_addr::<V6, P>(packet, new.offset, DESTINATION, &old.dst, &new.dst)?;
    packet.store(message.offset + 2, &outer.half(!message.checksum).checksum())?;

    set_addr::<V6, P>(packet, ETH_LEN, DESTINATION, &ip.dst, &new.src)?;
    ip.dst = copy(&new.src);
    if message.hide != 0 {
        set_addr::<V6, P>(packet, ETH_LEN, SOURCE, &ip.src, &new.dst)?;
        ip.src = copy(&new.dst);
    }
    Ok(())
}

/// Which address of an IP header.
const SOURCE: u32 = 0;
const DESTINATION: u32 = 1;

/// Writes an address into the IP header at `header`, whose own checksum follows.
#[inline(always)]
fn set_addr<const V6: bool, P: Packet>(
    packet: P,
    header: u32,
    which: u32,
    from: &Addr,
    to: &Addr,
) -> Result<(), Broken> {
    if V6 {
        packet.store(header + 8 + which * 16, &to.0)
    } else {
        packet.fix_ip_checksum(header + 10, from.v4(), to.v4())?;
        packet.store(header + 12 + which * 4, &to.v4())
    }
}
