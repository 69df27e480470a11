//! Frames beyond [`Packet`](crate::packet::Packet): ICMP errors with what they quote, resets, and
//! fragments.

use std::net::IpAddr;

use crate::packet::{ETHERNET, Packet, checksum, ethertype, extension, protocol, tcp};

/// Length of an IPv4 header without options.
const IPV4: usize = 20;
/// Length of an IPv6 header.
const IPV6: usize = 40;

/// The checksum over the pseudo header (RFC 768, RFC 8200 §8.1) and the segment.
///
/// # Panics
/// If the addresses are of different families.
pub fn pseudo_checksum(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
        _ => panic!("a packet has one family"),
    };
    bytes.extend((segment.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(segment);
    checksum(&bytes)
}

/// A frame whose IP header is as a sender without options makes it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Destination hardware address.
    pub to_mac: [u8; 6],
    /// Source hardware address.
    pub from_mac: [u8; 6],
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Hops left.
    pub hops: u8,
    /// IPv4's type of service.
    pub service: u8,
    /// IPv4's identification.
    pub id: u16,
    /// IPv4's flags and fragment offset.
    pub fragment: u16,
    /// What follows the IP header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The frame's bytes.
    ///
    /// # Panics
    /// If the addresses are of different families.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = [self.to_mac, self.from_mac].concat();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend(ethertype::IPV4.to_be_bytes());
                let mut header = vec![0x45, self.service];
                header.extend(((IPV4 + self.payload.len()) as u16).to_be_bytes());
                header.extend(self.id.to_be_bytes());
                header.extend(self.fragment.to_be_bytes());
                header.extend([self.hops, self.protocol, 0, 0]);
                header.extend(src.octets());
                header.extend(dst.octets());
                let sum = checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&sum);
                bytes.extend(header);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend(ethertype::IPV6.to_be_bytes());
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend((self.payload.len() as u16).to_be_bytes());
                bytes.extend([self.protocol, self.hops]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            _ => panic!("a packet has one family"),
        }
        bytes.extend(&self.payload);
        bytes
    }
}

/// An ICMP error: type, code, the word after the checksum, and what it quotes.
#[derive(Clone, Debug)]
pub struct IcmpError {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// What the type says.
    pub rest: u32,
    /// The packet it is about, from its IP header on.
    pub quote: Vec<u8>,
}

impl IcmpError {
    /// That nobody listens at the packet's port, quoting `quote` bytes of it at most.
    pub fn port_unreachable(packet: &[u8], quote: usize) -> Self {
        let v6 = is_v6(packet);
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        Self { kind, code, rest: 0, quote: quoted(packet, quote) }
    }

    /// That the packet is too big for the next link.
    pub fn too_big(packet: &[u8], quote: usize, mtu: u32) -> Self {
        let (kind, code) = if is_v6(packet) { (2, 0) } else { (3, 4) };
        Self { kind, code, rest: mtu, quote: quoted(packet, quote) }
    }

    /// The frame that carries it.
    ///
    /// # Panics
    /// If the addresses are of different families.
    pub fn frame(&self, src: IpAddr, dst: IpAddr) -> Frame {
        let mut payload = vec![self.kind, self.code, 0, 0];
        payload.extend(self.rest.to_be_bytes());
        payload.extend(&self.quote);
        let protocol = if src.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        let sum = if src.is_ipv4() {
            checksum(&payload)
        } else {
            pseudo_checksum(src, dst, protocol, &payload)
        };
        payload[2..4].copy_from_slice(&sum.to_be_bytes());
        let (to_mac, from_mac) = ([0x02, 0, 0, 0, 0, 0x01], [0x02, 0, 0, 0, 0, 0x02]);
        Frame {
            to_mac,
            from_mac,
            src,
            dst,
            protocol,
            hops: 64,
            service: 0xc0,
            id: 0,
            fragment: 0x4000,
            payload,
        }
    }
}

fn is_v6(packet: &[u8]) -> bool {
    packet[12..14] == ethertype::IPV6.to_be_bytes()
}

fn quoted(packet: &[u8], most: usize) -> Vec<u8> {
    packet[ETHERNET..].iter().copied().take(most).collect()
}

/// The reset that a closed port answers a packet of [`Packet::tcp`] with (RFC 9293 §3.10.7.1).
pub fn reset_of(packet: &Packet) -> Vec<u8> {
    // What `Packet` writes.
    let (sequence, acknowledgement) = (0x0102_0304_u32, 0x0506_0708_u32);
    let mut segment = Vec::new();
    segment.extend(packet.dst.port().to_be_bytes());
    segment.extend(packet.src.port().to_be_bytes());
    let flags = if packet.tcp_flags & tcp::ACK != 0 {
        segment.extend(acknowledgement.to_be_bytes());
        segment.extend([0; 4]);
        tcp::RST
    } else {
        let flags = packet.tcp_flags & (tcp::SYN | tcp::FIN);
        let len = packet.payload.len() as u32 + flags.count_ones();
        segment.extend([0; 4]);
        segment.extend((sequence + len).to_be_bytes());
        tcp::RST | tcp::ACK
    };
    segment.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let sum = pseudo_checksum(packet.dst.ip(), packet.src.ip(), protocol::TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    Frame {
        to_mac: packet.from_mac,
        from_mac: packet.to_mac,
        src: packet.dst.ip(),
        dst: packet.src.ip(),
        protocol: protocol::TCP,
        hops: 64,
        service: 0,
        id: 0,
        fragment: 0x4000,
        payload: segment,
    }
    .build()
}

/// The packet in fragments of at most `size` bytes of payload each, a multiple of 8. The packet has
/// neither options nor extension headers.
///
/// # Panics
/// If the size is none.
pub fn fragments(packet: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    assert!(size > 0 && size.is_multiple_of(8), "fragments hold multiples of 8 bytes");
    let v6 = is_v6(packet);
    let start = ETHERNET + if v6 { IPV6 } else { IPV4 };
    let payload = &packet[start..];
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(n, part)| {
            let offset = (n * size / 8) as u16;
            let more = n + 1 < count;
            let mut bytes = packet[..start].to_vec();
            let ip = &mut bytes[ETHERNET..];
            if v6 {
                let next = ip[6];
                ip[6] = extension::FRAGMENT;
                ip[4..6].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
                bytes.extend([next, 0]);
                bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
                bytes.extend(id.to_be_bytes());
            } else {
                ip[2..4].copy_from_slice(&((IPV4 + part.len()) as u16).to_be_bytes());
                ip[4..6].copy_from_slice(&(id as u16).to_be_bytes());
                ip[6..8].copy_from_slice(&(u16::from(more) << 13 | offset).to_be_bytes());
                ip[10..12].fill(0);
                let sum = checksum(&ip[..IPV4]).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
            }
            bytes.extend(part);
            bytes
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_put_together_are_the_packet() {
        for packet in [
            Packet { payload: vec![7; 3000], ..Packet::udp("10.0.0.1:1", "10.0.0.2:2") },
            Packet { payload: vec![7; 3000], ..Packet::udp("[fd00::1]:1", "[fd00::2]:2") },
        ] {
            let whole = packet.build();
            let (header, cut) = if packet.src.is_ipv4() { (IPV4, IPV4) } else { (IPV6, IPV6 + 8) };
            let parts = fragments(&whole, 1400, 9);
            assert_eq!(parts.len(), 3);
            let payload: Vec<u8> =
                parts.iter().flat_map(|part| part[ETHERNET + cut..].to_vec()).collect();
            assert_eq!(payload, whole[ETHERNET + header..]);
        }
    }

    #[test]
    fn an_icmp_error_sums_to_zero() {
        let packet = Packet::udp("10.0.0.1:1", "10.0.0.2:2").build();
        let error = IcmpError::port_unreachable(&packet, 28);
        let bytes = error.frame([10, 0, 0, 2].into(), [10, 0, 0, 1].into()).build();
        assert_eq!(bytes.len(), ETHERNET + 20 + 8 + 28);
        assert_eq!(checksum(&bytes[ETHERNET..ETHERNET + 20]), 0);
        assert_eq!(checksum(&bytes[ETHERNET + 20..]), 0);
    }
}
