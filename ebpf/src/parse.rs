//! Headers.

use sluice_abi::{Addr, Be16, proto};

use crate::{
    node,
    packet::{Header, Packet},
};

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

/// An extension header that every router on the way is to look at.
pub const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
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
    pub next: u32,
    /// Where the packet ends by what its header says, from its start.
    pub end: u32,
    /// Protocol, or IPv6's next header.
    pub proto: u8,
    /// Hops left.
    pub hops: u8,
    /// Not 0 if it is an IPv4 fragment, the first one included.
    fragment: u8,
    /// Zero.
    reserved: u8,
}

impl Ip {
    /// Whether it is an IPv4 fragment, the first one included. IPv6 has a header of its own for that.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment != 0
    }
}

/// Protocol number of ICMP for the family.
#[inline(always)]
pub const fn icmp_proto(v6: bool) -> u8 {
    if v6 { proto::ICMPV6 } else { proto::ICMP }
}

/// IPv4: more fragments follow, or an offset; not the bits reserved and don't fragment.
const IPV4_FRAGMENT: u16 = 0x3fff_u16.to_be();
/// IPv4: where the fragment belongs.
const IPV4_OFFSET: u16 = 0x1fff_u16.to_be();

/// Bytes of the Ethernet and the fixed IP header.
#[inline(always)]
pub const fn fixed_len(v6: bool) -> u32 {
    ETH_LEN + if v6 { IPV6_LEN } else { IPV4_LEN }
}

/// Whether the IP header says that ICMP follows, without a look at the rest of it.
#[inline(always)]
pub fn is_icmp<const V6: bool, P: Packet>(packet: P) -> bool {
    let Some(head) = packet.head(fixed_len(V6)) else { return false };
    let proto = if V6 { head.u8::<20>() } else { head.u8::<23>() };
    proto == icmp_proto(V6)
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
    Some(Ip {
        src: Addr::from_v4(head.u32::<26>()),
        dst: Addr::from_v4(head.u32::<30>()),
        proto: head.u8::<23>(),
        hops: head.u8::<22>(),
        fragment: u8::from(head.u16::<20>() & IPV4_FRAGMENT != 0),
        reserved: 0,
        next: ETH_LEN + u32::from(first & 0xf) * 4,
        end: ETH_LEN + u32::from(u16::from_be(head.u16::<16>())),
    })
}

/// Which part of a datagram a packet holds. Two bytes, so that [`Transport`] has no padding: the
/// verifier refuses copies of bytes that were never written.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which has the transport header.
    First,
    /// Another fragment.
    Later,
}

/// What follows the IP header, options and extension headers.
#[derive(Clone, Copy)]
pub struct Upper {
    /// IP protocol number.
    pub proto: u8,
    /// Which part of it.
    pub part: Part,
    /// Where it begins, from the packet's start.
    pub offset: u32,
    /// Of a fragment, the datagram's identification, in network byte order.
    pub id: u32,
}

/// Ports of TCP, UDP or SCTP, or what stands for them in an echo message, and where they stand.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Transport {
    /// Where the header begins, from the packet's start. A fragment other than the first has none:
    /// only its addresses are translated.
    pub offset: u32,
    /// Of a fragment, the datagram's identification, in network byte order.
    pub id: u32,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// See [`proto`].
    pub proto: u8,
    /// Bits of [`tcp`]; for SCTP, what its first chunk means in TCP's terms, and so for an echo message;
    /// 0 for UDP.
    pub tcp: u8,
    /// Which part of the datagram the packet holds.
    pub part: Part,
}

impl Transport {
    /// One to be filled in.
    #[inline(always)]
    pub fn none() -> Self {
        let zero = node::zero();
        Self {
            offset: zero,
            id: zero,
            sport: Be16::from_network(zero as u16),
            dport: Be16::from_network(zero as u16),
            proto: zero as u8,
            tcp: zero as u8,
            part: Part::Whole,
        }
    }

    /// Whether it is an ICMP message, of either family.
    #[inline(always)]
    pub const fn is_icmp(&self) -> bool {
        self.proto == icmp_proto(false) || self.proto == icmp_proto(true)
    }

    /// Whether the packet asks for a new connection.
    #[inline(always)]
    pub const fn opens_connection(&self) -> bool {
        self.tcp & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
    }

    /// Whether the packet may begin a flow: datagrams have no other sign.
    #[inline(always)]
    pub const fn may_open(&self) -> bool {
        // All fragments go where the first one went.
        (self.proto == proto::UDP && !matches!(self.part, Part::Later)) || self.opens_connection()
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

/// RFC 9293 §3.1; numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TcpHeader {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// The next byte expected.
    pub acknowledgement: u32,
    /// Words of the header, in the upper half.
    pub offset: u8,
    /// Bits of [`tcp`] and others.
    pub flags: u8,
    /// Bytes that may be sent.
    pub window: u16,
    /// Over the pseudo header too.
    pub checksum: u16,
    /// Where urgent data ends.
    pub urgent: u16,
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

/// What IPv4 has for fragments: words 2 of the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4Fragment {
    /// Identification of the datagram.
    pub id: u16,
    /// Flags, and the offset in units of 8 bytes.
    pub fragment: u16,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for Ipv4Fragment {}

/// RFC 8200 §4.5.
#[repr(C)]
#[derive(Clone, Copy)]
struct FragmentHeader {
    next: u8,
    reserved: u8,
    /// The offset in units of 8 bytes, times 8, and the bit for more fragments.
    offset: u16,
    id: u32,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for FragmentHeader {}

/// Finds what follows the IP header at `start`, past extension headers.
///
/// `None` if it is cut off, or has too many extension headers, or extension headers between the
/// fragment header and the transport header: then fragments would not agree on the protocol. A
/// routing header is not passed over: the packet's destination is another one than the header says.
#[inline(always)]
fn walk<P: Packet>(packet: P, proto: u8, start: u32) -> Option<Upper> {
    let mut upper = Upper { proto, part: Part::Whole, offset: start, id: 0 };
    for _ in 0..MAX_EXTENSIONS {
        // RFC 8200 §4: lengths in units of 8 bytes beyond the first; RFC 4302 §2.2: in units of
        // 4 bytes beyond the first two.
        let len = match upper.proto {
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let header: Extension = packet.load(upper.offset)?;
                upper.proto = header.next;
                (u32::from(header.len) + 1) * 8
            }
            AUTHENTICATION => {
                let header: Extension = packet.load(upper.offset)?;
                upper.proto = header.next;
                (u32::from(header.len) + 2) * 4
            }
            FRAGMENT => {
                let header: FragmentHeader = packet.load(upper.offset)?;
                let (offset, more) =
                    (u16::from_be(header.offset) >> 3, u16::from_be(header.offset) & 1);
                upper.proto = header.next;
                upper.offset += 8;
                // RFC 6946: a datagram in one piece may have the header too.
                if offset == 0 && more == 0 {
                    continue;
                }
                upper.part = if offset == 0 { Part::First } else { Part::Later };
                upper.id = header.id;
                return Some(upper);
            }
            _ => break,
        };
        upper.offset += len;
    }
    Some(upper)
}

/// Finds what follows the IP header.
#[inline(always)]
pub fn upper<const V6: bool, P: Packet>(packet: P, ip: &Ip) -> Option<Upper> {
    if V6 {
        return walk(packet, ip.proto, ip.next);
    }
    let mut upper = Upper { proto: ip.proto, part: Part::Whole, offset: ip.next, id: 0 };
    if ip.fragment != 0 {
        let header: Ipv4Fragment = packet.load(ETH_LEN + 4)?;
        upper.part = if header.fragment & IPV4_OFFSET == 0 { Part::First } else { Part::Later };
        upper.id = u32::from(header.id);
    }
    Some(upper)
}

/// Reads the transport header, past options and extension headers.
///
/// `None` if it is none of TCP, UDP and SCTP, or is cut off. A fragment other than the first has no
/// such header, so that both ports are 0 here: [`crate::fragment::transport`] knows them. SCTP in
/// fragments is not understood: its checksum covers them all.
#[inline(always)]
pub fn transport<const V6: bool, P: Packet>(packet: P, ip: &Ip) -> Option<Transport> {
    let Upper { proto, part, offset, id } = upper::<V6, P>(packet, ip)?;
    let mut transport = Transport { offset, id, proto, part, ..Transport::none() };
    match proto {
        proto::TCP | proto::UDP if part == Part::Later => {}
        proto::TCP => {
            let header: TcpHeader = packet.load(offset)?;
            transport.sport = Be16::from_network(header.sport);
            transport.dport = Be16::from_network(header.dport);
            transport.tcp = header.flags;
        }
        proto::UDP => {
            let header: UdpHeader = packet.load(offset)?;
            transport.sport = Be16::from_network(header.sport);
            transport.dport = Be16::from_network(header.dport);
        }
        proto::SCTP if part == Part::Whole => {
            let header: SctpHeader = packet.load(offset)?;
            transport.sport = Be16::from_network(header.sport);
            transport.dport = Be16::from_network(header.dport);
            transport.tcp = sctp_meaning(header.chunk[0]);
        }
        _ => return None,
    }
    Some(transport)
}

/// An IP header with the ports that follow it, as an ICMP error quotes it.
pub struct Quoted {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// See [`proto`].
    pub proto: u8,
    /// Where the transport header begins, from the packet's start.
    pub offset: u32,
}

impl Quoted {
    /// One to be filled in.
    #[inline(always)]
    pub fn none() -> Self {
        let zero = node::zero();
        Self {
            src: node::no_addr(),
            dst: node::no_addr(),
            sport: Be16::from_network(zero as u16),
            dport: Be16::from_network(zero as u16),
            proto: zero as u8,
            offset: zero,
        }
    }
}

/// RFC 791 §3.1; numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4Header {
    /// Version, and words of the header.
    pub version_words: u8,
    /// Type of service.
    pub service: u8,
    /// Bytes of the packet.
    pub len: u16,
    /// Identification, flags, offset.
    pub fragment: Ipv4Fragment,
    /// Hops left.
    pub hops: u8,
    /// Protocol number.
    pub proto: u8,
    /// Of the header.
    pub checksum: u16,
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for Ipv4Header {}

/// RFC 8200 §3; numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6Header {
    /// Version, traffic class, flow label.
    pub version_flow: u32,
    /// Bytes that follow.
    pub len: u16,
    /// Protocol number of what follows.
    pub next: u8,
    /// Hops left.
    pub hops: u8,
    /// Source address.
    pub src: [u32; 4],
    /// Destination address.
    pub dst: [u32; 4],
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for Ipv6Header {}

/// The two ports that TCP, UDP and SCTP all begin with.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ports {
    sport: u16,
    dport: u16,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for Ports {}

/// An echo message (RFC 792, RFC 4443 §4), as far as its identifier; numbers in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
struct EchoHeader {
    kind: u8,
    code: u8,
    checksum: u16,
    id: u16,
}

// SAFETY: repr(C), no padding, numbers only.
unsafe impl Header for EchoHeader {}

impl EchoHeader {
    const fn is_request<const V6: bool>(self) -> bool {
        self.kind == if V6 { 128 } else { 8 } && self.code == 0
    }

    const fn is_reply<const V6: bool>(self) -> bool {
        self.kind == if V6 { 129 } else { 0 } && self.code == 0
    }
}

/// Where an echo message has its identifier, from the ICMP header's start.
pub const ECHO_ID: u32 = 4;

/// Reads an echo request or reply (ping) that comes whole. Its identifier is the port of who asks; the
/// other port is 0. A request opens a flow as a SYN does. `false` if it is none.
#[inline(always)]
pub fn echo<const V6: bool, P: Packet>(packet: P, ip: &Ip, out: &mut Transport) -> bool {
    let Some(upper) = upper::<V6, P>(packet, ip) else { return false };
    if upper.part != Part::Whole || upper.proto != icmp_proto(V6) {
        return false;
    }
    let Some(header) = packet.load::<EchoHeader>(upper.offset) else { return false };
    let id = Be16::from_network(header.id);
    if header.is_request::<V6>() {
        out.sport = id;
        out.tcp = tcp::SYN;
    } else if header.is_reply::<V6>() {
        out.dport = id;
        out.tcp = tcp::ACK;
    } else {
        return false;
    }
    out.offset = upper.offset;
    out.proto = upper.proto;
    true
}

/// Reads the packet that an ICMP error quotes at `start`. `false` if it has neither ports nor is an echo
/// request, or is no valid packet of the family.
#[inline(always)]
pub fn quoted<const V6: bool, P: Packet>(packet: P, start: u32, out: &mut Quoted) -> bool {
    let upper = if V6 {
        let Some(header) = packet.load::<Ipv6Header>(start) else { return false };
        if u32::from_be(header.version_flow) >> 28 != 6 {
            return false;
        }
        out.src = Addr::from_v6(header.src);
        out.dst = Addr::from_v6(header.dst);
        match walk(packet, header.next, start + IPV6_LEN) {
            Some(upper) => upper,
            None => return false,
        }
    } else {
        let Some(header) = packet.load::<Ipv4Header>(start) else { return false };
        if !(0x45..=0x4f).contains(&header.version_words) {
            return false;
        }
        out.src = Addr::from_v4(header.src);
        out.dst = Addr::from_v4(header.dst);
        let later = header.fragment.fragment & IPV4_OFFSET != 0;
        Upper {
            proto: header.proto,
            part: if later { Part::Later } else { Part::Whole },
            offset: start + u32::from(header.version_words & 0xf) * 4,
            id: 0,
        }
    };
    if upper.part == Part::Later {
        return false;
    }
    out.proto = upper.proto;
    out.offset = upper.offset;
    if upper.proto == icmp_proto(V6) {
        let Some(header) = packet.load::<EchoHeader>(upper.offset) else { return false };
        out.sport = Be16::from_network(header.id);
        out.dport = Be16::from_network(0);
        return header.is_request::<V6>();
    }
    if !matches!(upper.proto, proto::TCP | proto::UDP | proto::SCTP) {
        return false;
    }
    let Some(ports) = packet.load::<Ports>(upper.offset) else { return false };
    out.sport = Be16::from_network(ports.sport);
    out.dport = Be16::from_network(ports.dport);
    true
}
