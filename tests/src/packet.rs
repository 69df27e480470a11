//! Packets, built byte by byte with checksums computed from scratch, and taken apart again.

use std::net::{IpAddr, SocketAddr};

/// EtherTypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// IPv6 extension headers.
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// TCP flags.
pub mod tcp {
    /// The sender is done.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends it at once.
    pub const RST: u8 = 0x04;
    /// There is data to deliver at once.
    pub const PSH: u8 = 0x08;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A packet to be built.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination hardware address.
    pub to_mac: [u8; 6],
    /// Source hardware address.
    pub from_mac: [u8; 6],
    /// A VLAN tag, if any.
    pub vlan: Option<u16>,
    /// Source address and, with TCP and UDP, port.
    pub src: SocketAddr,
    /// Destination address and, with TCP and UDP, port.
    pub dst: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Hops left.
    pub hops: u8,
    /// IPv4 options; a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number and whole header, whose first byte is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4 flags and fragment offset, as they stand in the header.
    pub fragment: u16,
    /// TCP flags.
    pub tcp_flags: u8,
    /// SCTP: type of the first chunk; 1 is INIT.
    pub chunk: u8,
    /// Whether there is a UDP checksum.
    pub udp_checksum: bool,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet of any protocol.
    ///
    /// # Panics
    /// If the addresses are of different families.
    pub fn new(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Self {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "a packet has one family");
        Self {
            to_mac: [0x02, 0, 0, 0, 0, 0x01],
            from_mac: [0x02, 0, 0, 0, 0, 0x02],
            vlan: None,
            src,
            dst,
            protocol,
            hops: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0x4000,
            tcp_flags: tcp::ACK,
            chunk: 1,
            udp_checksum: true,
            payload: b"sluice".to_vec(),
        }
    }

    /// A TCP segment.
    ///
    /// # Panics
    /// If an address does not parse.
    pub fn tcp(src: &str, dst: &str, flags: u8) -> Self {
        Self { tcp_flags: flags, ..Self::new(protocol::TCP, parse(src), parse(dst)) }
    }

    /// A UDP datagram.
    ///
    /// # Panics
    /// If an address does not parse.
    pub fn udp(src: &str, dst: &str) -> Self {
        Self::new(protocol::UDP, parse(src), parse(dst))
    }

    /// An SCTP packet whose first chunk is of that type.
    ///
    /// # Panics
    /// If an address does not parse.
    pub fn sctp(src: &str, dst: &str, chunk: u8) -> Self {
        Self { chunk, ..Self::new(protocol::SCTP, parse(src), parse(dst)) }
    }

    /// The same to another destination.
    ///
    /// # Panics
    /// If the address does not parse.
    #[must_use]
    pub fn to(mut self, dst: &str) -> Self {
        self.dst = parse(dst);
        self
    }

    /// The same from another source.
    ///
    /// # Panics
    /// If the address does not parse.
    #[must_use]
    pub fn from(mut self, src: &str) -> Self {
        self.src = parse(src);
        self
    }

    /// The packet's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.to_mac);
        bytes.extend(self.from_mac);
        if let Some(tag) = self.vlan {
            bytes.extend(ethertype::VLAN.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        let transport = self.transport();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend(ethertype::IPV4.to_be_bytes());
                let words = 5 + self.options.len() / 4;
                let mut header = vec![0x40 | words as u8, 0];
                header.extend(((words * 4 + transport.len()) as u16).to_be_bytes());
                header.extend(0x1234_u16.to_be_bytes());
                header.extend(self.fragment.to_be_bytes());
                header.extend([self.hops, self.protocol, 0, 0]);
                header.extend(src.octets());
                header.extend(dst.octets());
                header.extend(&self.options);
                let sum = checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&sum);
                bytes.extend(header);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend(ethertype::IPV6.to_be_bytes());
                let mut next = self.protocol;
                let mut chain = Vec::new();
                for (number, header) in self.extensions.iter().rev() {
                    let mut header = header.clone();
                    header[0] = next;
                    next = *number;
                    header.append(&mut chain);
                    chain = header;
                }
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(((chain.len() + transport.len()) as u16).to_be_bytes());
                bytes.extend([next, self.hops]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
                bytes.extend(chain);
            }
            _ => unreachable!("`new` takes addresses of one family"),
        }
        bytes.extend(transport);
        bytes
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ports = |bytes: &mut Vec<u8>| {
            bytes.extend(self.src.port().to_be_bytes());
            bytes.extend(self.dst.port().to_be_bytes());
        };
        let at = match self.protocol {
            protocol::TCP => {
                ports(&mut bytes);
                bytes.extend(0x0102_0304_u32.to_be_bytes());
                bytes.extend(0x0506_0708_u32.to_be_bytes());
                bytes.extend([0x50, self.tcp_flags]);
                bytes.extend(0xffff_u16.to_be_bytes());
                bytes.extend([0, 0, 0, 0]);
                Some(16)
            }
            protocol::UDP => {
                ports(&mut bytes);
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                self.udp_checksum.then_some(6)
            }
            protocol::SCTP => {
                ports(&mut bytes);
                bytes.extend(0x0708_090a_u32.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend([self.chunk, 0]);
                bytes.extend(((4 + self.payload.len()) as u16).to_be_bytes());
                None
            }
            // The checksum covers no address.
            _ => {
                bytes.extend([8, 0, 0, 0, 0, 1, 0, 1]);
                None
            }
        };
        bytes.extend(&self.payload);
        if self.protocol == protocol::SCTP {
            let sum = crc32c(&bytes).to_le_bytes();
            bytes[8..12].copy_from_slice(&sum);
        }
        if let Some(at) = at {
            let sum = match self.pseudo_checksum(&bytes) {
                0 if self.protocol == protocol::UDP => 0xffff,
                sum => sum,
            };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The checksum over the pseudo header (RFC 768, RFC 8200 §8.1) and the segment.
    fn pseudo_checksum(&self, segment: &[u8]) -> u16 {
        let mut bytes = Vec::new();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            _ => unreachable!("`new` takes addresses of one family"),
        }
        bytes.extend((segment.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, self.protocol]);
        bytes.extend(segment);
        checksum(&bytes)
    }
}

fn parse(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of SCTP (RFC 9260 appendix A: CRC32c), bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// Numbers that are the same in every run (xorshift), for packets of garbage.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// That many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_agrees_with_the_example_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn crc32c_agrees_with_the_example_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_built_packet_sums_to_zero() {
        let mut packet = Packet::tcp("10.0.0.1:1", "10.0.0.2:2", tcp::SYN);
        packet.options = vec![1; 8];
        let bytes = packet.build();
        assert_eq!(bytes.len(), ETHERNET + 28 + 20 + 6);
        assert_eq!(checksum(&bytes[ETHERNET..ETHERNET + 28]), 0);
        assert_eq!(packet.pseudo_checksum(&bytes[ETHERNET + 28..]), 0);
    }

    #[test]
    fn extension_headers_are_chained() {
        let mut packet = Packet::udp("[fd00::1]:1", "[fd00::2]:2");
        packet.extensions =
            vec![(extension::HOP_BY_HOP, vec![0; 8]), (extension::DESTINATION, vec![0; 8])];
        let bytes = packet.build();
        assert_eq!(bytes[ETHERNET + 6], extension::HOP_BY_HOP);
        assert_eq!(bytes[ETHERNET + 40], extension::DESTINATION);
        assert_eq!(bytes[ETHERNET + 48], protocol::UDP);
        assert_eq!(&bytes[ETHERNET + 56..ETHERNET + 58], &1_u16.to_be_bytes());
    }
}
