//! Rejects: what nobody serves is answered at once, so that the client need not wait for its
//! time-out.

use sluice_abi::{Be16, Counter, proto};

use crate::{
    DROP,
    counters::count,
    csum::Sum,
    icmp_error::{self, ip_len, is_one_host, swap_hardware_addresses, write_ip},
    packet::{Broken, Packet, Skb},
    parse::{self, ETH_LEN, Ip, Part, TcpHeader, Upper, tcp},
};

/// Length of a TCP header without options.
const TCP_LEN: u32 = 20;

/// Turns the packet into its refusal: of TCP a reset, of everything else an ICMP error that the port
/// is unreachable. It comes from the address that was asked, and leaves by the interface that the
/// packet came in by. What must not be answered is dropped. The verdict.
#[inline(always)]
pub fn answer<const V6: bool>(packet: Skb, ip: &Ip) -> i32 {
    let verdict = match parse::upper::<V6, _>(packet, ip) {
        Some(upper) if upper.proto == proto::TCP => reset::<V6>(packet, ip, &upper),
        Some(_) => {
            let kind = icmp_error::port_unreachable(V6);
            icmp_error::send::<V6>(packet, ip, kind, Counter::DropNoBackend)
        }
        None => DROP,
    };
    if verdict != DROP {
        count(Counter::PacketReject);
    }
    verdict
}

#[inline(never)]
fn reset<const V6: bool>(packet: Skb, ip: &Ip, upper: &Upper) -> i32 {
    if upper.part == Part::Later
        || packet.is_to_many()
        || !is_one_host(&ip.src)
        || turn::<V6>(packet, ip, upper).is_err()
    {
        count(Counter::DropNoBackend);
        return DROP;
    }
    packet.send_back().unwrap_or(DROP)
}

/// Turns a segment into a reset (RFC 9293 §3.10.7.1).
#[inline(always)]
fn turn<const V6: bool>(packet: Skb, ip: &Ip, upper: &Upper) -> Result<(), Broken> {
    let segment: TcpHeader = packet.load(upper.offset).ok_or(Broken)?;
    if segment.flags & tcp::RST != 0 {
        return Err(Broken);
    }
    let (sequence, acknowledgement, flags) = if segment.flags & tcp::ACK != 0 {
        (segment.acknowledgement, 0, tcp::RST)
    } else {
        let headers = upper.offset - ETH_LEN + u32::from(segment.offset >> 4) * 4;
        let data = ip_len::<V6>(packet, ip).saturating_sub(headers);
        let len = data
            + u32::from(segment.flags & tcp::SYN != 0)
            + u32::from(segment.flags & tcp::FIN != 0);
        let next = u32::from_be(segment.sequence).wrapping_add(len);
        (0, next.to_be(), tcp::RST | tcp::ACK)
    };

    let partial = packet.is_partial(upper.offset + 16);
    packet.cut(upper.offset + TCP_LEN)?;
    let fixed = parse::fixed_len(V6);
    if upper.offset > fixed {
        packet.take_out(upper.offset - fixed)?;
    }

    let mut header = TcpHeader {
        sport: segment.dport,
        dport: segment.sport,
        sequence,
        acknowledgement,
        offset: (TCP_LEN as u8 / 4) << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let pseudo = Sum::new()
        .addr::<V6>(&ip.src)
        .addr::<V6>(&ip.dst)
        .half(Be16::new(TCP_LEN as u16).to_network())
        .half(Be16::new(u16::from(proto::TCP)).to_network());
    header.checksum = if partial {
        // Whoever sends the packet on adds the rest, at the same place.
        pseudo.fold()
    } else {
        pseudo
            .half(header.sport)
            .half(header.dport)
            .word(header.sequence)
            .word(header.acknowledgement)
            .half(u16::from_ne_bytes([header.offset, header.flags]))
            .checksum()
    };
    packet.replace(fixed, &header)?;
    write_ip::<V6>(packet, ip, proto::TCP, TCP_LEN)?;
    swap_hardware_addresses(packet)
}
