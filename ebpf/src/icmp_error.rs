//! ICMP errors that the node sends itself, made of the packet that they are about.

use sluice_abi::{Addr, Be16, Counter, proto};

use crate::{
    DROP,
    counters::count,
    csum::Sum,
    ct,
    icmp::{ICMP_LEN, IcmpHeader},
    maps::ICMP_BUDGET,
    packet::{Broken, Packet, Skb},
    parse::{self, ETH_LEN, Ip, Ipv4Fragment, Ipv4Header, Ipv6Header, Part},
};

/// Hops of every packet that is made here.
pub const HOPS: u8 = 64;

/// Don't fragment (RFC 791 §3.1).
pub const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// Errors a second and CPU that are sent at most, so that nobody can use the node to flood another
/// (RFC 1812 §4.3.2.8, RFC 4443 §2.4 f).
const PER_SECOND: u64 = 1_000;
/// Errors that may be sent at once after a silence.
const BURST: u64 = 100;
/// Time that one error costs.
const PRICE_NS: u64 = 1_000_000_000 / PER_SECOND;

/// What an error says.
#[derive(Clone, Copy)]
pub struct Kind {
    kind: u8,
    code: u8,
    rest: u32,
}

/// Nobody listens at the port (RFC 792; RFC 4443 §3.1).
#[inline(always)]
pub const fn port_unreachable(v6: bool) -> Kind {
    if v6 { Kind { kind: 1, code: 4, rest: 0 } } else { Kind { kind: 3, code: 3, rest: 0 } }
}

/// The packet is larger than the next link takes (RFC 1191 §4; RFC 4443 §3.2).
#[inline(always)]
pub const fn packet_too_big(v6: bool, mtu: u32) -> Kind {
    if v6 {
        Kind { kind: 2, code: 0, rest: mtu.to_be() }
    } else {
        let mtu = if mtu > 0xffff { 0xffff } else { mtu };
        Kind { kind: 3, code: 4, rest: mtu.to_be() }
    }
}

/// The packet has no hop left (RFC 792; RFC 4443 §3.3).
#[inline(always)]
pub const fn time_exceeded(v6: bool) -> Kind {
    if v6 { Kind { kind: 3, code: 0, rest: 0 } } else { Kind { kind: 11, code: 0, rest: 0 } }
}

/// Bytes of a packet that are quoted at most: RFC 1812 §4.3.2.3 has the error at 576 bytes, RFC 4443
/// §2.4 c at IPv6's least MTU of 1280.
#[inline(always)]
const fn max_quote(v6: bool) -> u32 {
    if v6 { 1280 - 40 - ICMP_LEN } else { 576 - 20 - ICMP_LEN }
}

/// Whether an answer may be sent to the address: to one host only, and not to this one.
#[inline(always)]
pub fn is_one_host(addr: &Addr) -> bool {
    if addr.is_loopback() {
        return false;
    }
    if addr.is_v4() {
        // This network, multicast, reserved and broadcast.
        let first = u32::from_be(addr.v4()) >> 24;
        return first != 0 && first < 224;
    }
    let unspecified = addr.0[0] | addr.0[1] | addr.0[2] | addr.0[3] == 0;
    u32::from_be(addr.0[0]) >> 24 != 0xff && !unspecified
}

/// Turns the packet into the error, and sends it back from the address that the packet was to, by
/// the interface that it came in by. What must not be answered, or one error too many in too short a
/// time, is dropped and counted as said. The verdict.
#[inline(always)]
pub fn send<const V6: bool>(packet: Skb, ip: &Ip, kind: Kind, otherwise: Counter) -> i32 {
    match make::<V6>(packet, ip, kind) {
        Ok(()) => packet.send_back().unwrap_or(DROP),
        Err(Broken) => {
            count(otherwise);
            DROP
        }
    }
}

/// Takes one error from this CPU's budget, if there is one left.
#[inline(always)]
fn is_affordable() -> bool {
    let Some(paid) = ICMP_BUDGET.get_ptr_mut(0) else { return false };
    let now = ct::now();
    // SAFETY: elements of an array exist as long as the map, and are words. The pointer is this
    // CPU's element; a program that interrupts this one may get an error for free.
    let until = unsafe { *paid }.max(now.saturating_sub(BURST * PRICE_NS));
    if until + PRICE_NS > now {
        return false;
    }
    // SAFETY: as above.
    unsafe { *paid = until + PRICE_NS };
    true
}

/// Turns the packet into an error about it, from its destination to its source.
#[inline(always)]
fn make<const V6: bool>(packet: Skb, ip: &Ip, kind: Kind) -> Result<(), Broken> {
    let mut quotation = Quotation { len: 0, summed: 0, rest: 0 };
    quote::<V6>(packet, ip, &mut quotation)?;
    write_headers::<V6>(packet, ip, kind, &quotation)
}

/// What an error quotes.
struct Quotation {
    /// Bytes of the packet, from its IP header on.
    len: u32,
    /// How many of them are to be summed up.
    summed: u32,
    /// What the others sum up to.
    rest: u32,
}

/// Cuts the packet to what is to be quoted, and makes room for the error's headers before it.
#[inline(never)]
fn quote<const V6: bool>(packet: Skb, ip: &Ip, out: &mut Quotation) -> Result<(), Broken> {
    let upper = parse::upper::<V6, _>(packet, ip).ok_or(Broken)?;
    // RFC 1122 §3.2.2, RFC 4443 §2.4 e: never about an ICMP error, a fragment other than the first,
    // or what was not sent to one host by one host.
    if upper.part == Part::Later
        || upper.proto == parse::icmp_proto(V6)
        || packet.is_to_many()
        || !is_one_host(&ip.src)
        || !is_affordable()
    {
        return Err(Broken);
    }
    let len = ip_len::<V6>(packet, ip);
    out.len = if len > max_quote(V6) { max_quote(V6) } else { len };
    out.summed = out.len;
    // A checksum that is yet to be completed will be, behind our back. That does not depend on the
    // bytes: with the checksum, the transport header and what follows sum up to the complement of
    // the pseudo header's sum, which is what stands in the place of the checksum now.
    let checksum_at = match upper.proto {
        proto::TCP => upper.offset + 16,
        proto::UDP => upper.offset + 6,
        _ => 0,
    };
    if checksum_at != 0 && packet.is_partial(checksum_at) {
        let pseudo: u16 = packet.load(checksum_at).ok_or(Broken)?;
        out.summed = upper.offset - ETH_LEN;
        out.rest = u32::from(!pseudo);
    }
    packet.cut(ETH_LEN + out.len)?;
    packet.make_room(parse::fixed_len(V6) - ETH_LEN + ICMP_LEN)
}

/// Writes the headers in front of the quotation.
#[inline(never)]
fn write_headers<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    kind: Kind,
    quotation: &Quotation,
) -> Result<(), Broken> {
    let start = parse::fixed_len(V6);
    let payload = quotation.len + ICMP_LEN;
    let mut header = IcmpHeader { kind: kind.kind, code: kind.code, checksum: 0, rest: kind.rest };
    let mut sum = Sum::new()
        .half(u16::from_ne_bytes([header.kind, header.code]))
        .word(header.rest)
        .word(quotation.rest);
    sum = add_bytes(packet, sum, start + ICMP_LEN, quotation.summed).ok_or(Broken)?;
    if V6 {
        sum = sum
            .addr::<V6>(&ip.src)
            .addr::<V6>(&ip.dst)
            .word(payload.to_be())
            .word(u32::from(parse::icmp_proto(V6)).to_be());
    }
    header.checksum = sum.checksum();
    packet.replace(start, &header)?;
    write_ip::<V6>(packet, ip, parse::icmp_proto(V6), payload)?;
    swap_hardware_addresses(packet)
}

/// Bytes from the IP header on, without what Ethernet pads. Of a packet that its device put together
/// of many, the header may not say.
#[inline(always)]
pub fn ip_len<const V6: bool>(packet: Skb, ip: &Ip) -> u32 {
    let end =
        if ip.end > packet.len() || ip.end <= parse::fixed_len(V6) { packet.len() } else { ip.end };
    end - ETH_LEN
}

/// Adds bytes of the packet to a sum.
#[inline(always)]
fn add_bytes(packet: Skb, mut sum: Sum, start: u32, len: u32) -> Option<Sum> {
    const WORDS: u32 = 16;
    const MOST: u32 = max_quote(true).div_ceil(WORDS);
    let (mut at, mut left) = (start, len);
    for _ in 0..MOST {
        if left < WORDS {
            break;
        }
        sum = sum.addr::<true>(&Addr(packet.load(at)?));
        at += WORDS;
        left -= WORDS;
    }
    for _ in 0..WORDS / 4 {
        if left < 4 {
            break;
        }
        sum = sum.word(packet.load(at)?);
        at += 4;
        left -= 4;
    }
    if left >= 2 {
        sum = sum.half(packet.load(at)?);
        at += 2;
        left -= 2;
    }
    if left == 1 {
        sum = sum.half(u16::from_ne_bytes([packet.load(at)?, 0]));
    }
    Some(sum)
}

/// Writes the IP header of an answer to the packet that had `ip`.
#[inline(always)]
pub fn write_ip<const V6: bool>(
    packet: Skb,
    ip: &Ip,
    proto: u8,
    payload: u32,
) -> Result<(), Broken> {
    if V6 {
        return packet.replace(
            ETH_LEN,
            &Ipv6Header {
                version_flow: 0x6000_0000_u32.to_be(),
                len: Be16::new(payload as u16).to_network(),
                next: proto,
                hops: HOPS,
                src: ip.dst.0,
                dst: ip.src.0,
            },
        );
    }
    let mut header = Ipv4Header {
        version_words: 0x45,
        // RFC 1812 §4.3.2.5: an error has the precedence of internetwork control.
        service: if proto == parse::icmp_proto(false) { 0xc0 } else { 0 },
        len: Be16::new(payload as u16 + 20).to_network(),
        // RFC 6864 §4.1: what cannot be fragmented needs no identification.
        fragment: Ipv4Fragment { id: 0, fragment: DONT_FRAGMENT },
        hops: HOPS,
        proto,
        checksum: 0,
        src: ip.dst.v4(),
        dst: ip.src.v4(),
    };
    header.checksum = Sum::new()
        .half(u16::from_ne_bytes([header.version_words, header.service]))
        .half(header.len)
        .half(header.fragment.fragment)
        .half(u16::from_ne_bytes([header.hops, header.proto]))
        .word(header.src)
        .word(header.dst)
        .checksum();
    packet.replace(ETH_LEN, &header)
}

/// The packet goes back where it came from.
#[inline(always)]
pub fn swap_hardware_addresses(packet: Skb) -> Result<(), Broken> {
    let head = packet.head(ETH_LEN).ok_or(Broken)?;
    let to = (head.u16::<0>(), head.u16::<2>(), head.u16::<4>());
    head.set_u16::<0>(head.u16::<6>());
    head.set_u16::<2>(head.u16::<8>());
    head.set_u16::<4>(head.u16::<10>());
    head.set_u16::<6>(to.0);
    head.set_u16::<8>(to.1);
    head.set_u16::<10>(to.2);
    Ok(())
}
