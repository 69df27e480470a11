//! Headers.

use sluice_abi::{Addr, Be16, proto};

use crate::packet::{Header, Packet};

/// EtherTypes, in network byte order.
pub const ETH_P_IP: u16 = 0x0800_u16.to_be();
/// IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();

/// Length of an Ethernet header.
pub const ETH_LEN: u32 = 14;
const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;

/// IPv6 extension headers that are walked at most. Real packets have one or two.
const MAX_EXTENSIONS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// What the IP header says.
#[repr(C)]
pub struct Ip {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Where the next header begins, from the packet's start.
    next: u32,
    /// Where the packet ends by what its header says, from its start.
    pub end: u32,
    /// Protocol, or IPv6's next header.
    proto: u8,
    /// Hops left.
    pub hops: u8,
    /// Not 0 if it is an IPv4 fragment, the first one included.
    fragment: u8,
    /// Zero.
    reserved: u8,
}

/// Bytes of the Ethernet and the fixed IP header.
#[inline(always)]
pub const fn fixed_len(v6: bool) -> u32 {
    ETH_LEN + if v6 { IPV6_LEN } else { IPV4_LEN }
}

/// Reads the IP header. `None` if it is no valid one.
#[inline(always)]
pub fn ip<const V6: bool, P: Packet>(packet: P) -> Option<Ip> {
    let head = packet.head(fixed_len(V6))?;
    let first = head.u8::<14>();
    if V6 {
        if first >> 4 != 6 {
            return None;
        }
        return Some(Ip {
            src: Addr::from_v6([
                head.u32::<22>(),
                head.u32::<26>(),
                head.u32::<30>(),
                head.u32::<34>(),
            ]),
            dst: Addr::from_v6([
                head.u32::<38>(),
                head.u32::<42>(),
                head.u32::<46>(),
                head.u32::<50>(),
            ]),
            proto: head.u8::<20>(),
            hops: head.u8::<21>(),
            fragment: 0,
            reserved: 0,
            next: fixed_len(true),
            end: fixed_len(true) + u32::from(u16::from_be(head.u16::<18>())),
        });
    }
    // Version 4, and a header of at least five words.
    if !(0x45..=0x4f).contains(&first) {
        return None;
    }
    // More fragments, or an offset; not the bits reserved and don't fragment.
    const FRAGMENT: u16 = 0x3fff_u16.to_be();
    Some(Ip {
        src: Addr::from_v4(head.u32::<26>()),
        dst: Addr::from_v4(head.u32::<30>()),
        proto: head.u8::<23>(),
        hops: head.u8::<22>(),
        fragment: u8::from(head.u16::<20>() & FRAGMENT != 0),
        reserved: 0,
        next: ETH_LEN + u32::from(first & 0xf) * 4,
        end: ETH_LEN + u32::from(u16::from_be(head.u16::<16>())),
    })
}

/// Ports of TCP, UDP or SCTP, and where they stand.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Transport {
    /// Where the header begins, from the packet's start.
    pub offset: u32,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// See [`proto`].
    pub proto: u8,
    /// Bits of [`tcp`]; for SCTP, what its first chunk means in TCP's terms; 0 for UDP.
    pub tcp: u8,
    /// Zero.
    pub reserved: u16,
}

impl Transport {
    /// Whether the packet asks for a new connection.
    #[inline(always)]
    pub const fn opens_connection(&self) -> bool {
        self.tcp & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
    }

    /// Whether the packet may begin a flow: datagrams have no other sign.
    #[inline(always)]
    pub const fn may_open(&self) -> bool {
        self.proto == proto::UDP || self.opens_connection()
    }
}

/// TCP flags.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TcpHeader {
    sport: u16,
    dport: u16,
    sequence: u32,
    acknowledgement: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for TcpHeader {}

#[repr(C)]
#[derive(Clone, Copy)]
struct UdpHeader {
    sport: u16,
    dport: u16,
    len: u16,
    checksum: u16,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for UdpHeader {}

/// The common header and the type of the first chunk (RFC 9260 §3).
#[repr(C)]
#[derive(Clone, Copy)]
struct SctpHeader {
    sport: u16,
    dport: u16,
    tag: u32,
    checksum: u32,
    chunk: [u8; 4],
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for SctpHeader {}

/// What a chunk that comes first in a packet means for the association, as bits of [`tcp`]
/// (RFC 9260 §3.2).
#[inline(always)]
const fn sctp_meaning(chunk: u8) -> u8 {
    const INIT: u8 = 1;
    const ABORT: u8 = 6;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match chunk {
        INIT => tcp::SYN,
        ABORT | SHUTDOWN_COMPLETE => tcp::RST,
        _ => tcp::ACK,
    }
}

/// What every extension header begins with.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extension {
    next: u8,
    len: u8,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for Extension {}

/// Reads the transport header, past options and extension headers.
///
/// `None` if it is none of TCP, UDP and SCTP, or is cut off, or the packet is a fragment: only the first
/// fragment has the ports, and to translate it alone would deliver half a datagram. A packet with a
/// routing header is left alone too: its destination is another one than the header says.
#[inline(always)]
pub fn transport<const V6: bool, P: Packet>(packet: P, ip: &Ip) -> Option<Transport> {
    if ip.fragment != 0 {
        return None;
    }
    let mut proto = ip.proto;
    let mut offset = ip.next;
    if V6 {
        for _ in 0..MAX_EXTENSIONS {
            // RFC 8200 §4: lengths in units of 8 bytes beyond the first; RFC 4302 §2.2: in units of
            // 4 bytes beyond the first two.
            let len = match proto {
                HOP_BY_HOP | DESTINATION_OPTIONS => {
                    let header: Extension = packet.load(offset)?;
                    proto = header.next;
                    (u32::from(header.len) + 1) * 8
                }
                AUTHENTICATION => {
                    let header: Extension = packet.load(offset)?;
                    proto = header.next;
                    (u32::from(header.len) + 2) * 4
                }
                _ => break,
            };
            offset += len;
        }
    }
    match proto {
        proto::TCP => {
            let header: TcpHeader = packet.load(offset)?;
            Some(Transport {
                proto,
                offset,
                sport: Be16::from_network(header.sport),
                dport: Be16::from_network(header.dport),
                tcp: header.flags,
                reserved: 0,
            })
        }
        proto::UDP => {
            let header: UdpHeader = packet.load(offset)?;
            Some(Transport {
                proto,
                offset,
                sport: Be16::from_network(header.sport),
                dport: Be16::from_network(header.dport),
                tcp: 0,
                reserved: 0,
            })
        }
        proto::SCTP => {
            let header: SctpHeader = packet.load(offset)?;
            Some(Transport {
                proto,
                offset,
                sport: Be16::from_network(header.sport),
                dport: Be16::from_network(header.dport),
                tcp: sctp_meaning(header.chunk[0]),
                reserved: 0,
            })
        }
        _ => None,
    }
}
