//! Echo requests (ping) from network namespaces, and who sees them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::traffic::PATIENCE;

/// A raw socket for the ICMP messages of a namespace: the one of the thread that opens it.
#[derive(Debug)]
pub struct Pinger {
    /// None of UDP, but what the standard library knows of sockets that send to and hear from anybody
    /// holds for it.
    socket: UdpSocket,
    v6: bool,
}

/// An ICMP message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// An echo request, with its identifier.
    Request(u16),
    /// An echo reply, with its identifier.
    Reply(u16),
    /// An error that quotes an echo request: from whom to whom, and its identifier.
    Error(IpAddr, IpAddr, u16),
}

/// RFC 4443 §2.3 wants a pseudo header summed up, which the kernel does for raw ICMPv6 sockets.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

impl Pinger {
    /// Opens one of the family.
    ///
    /// # Errors
    /// The kernel refuses; it wants root.
    pub fn open(v6: bool) -> Result<Self> {
        let (domain, protocol) =
            if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("a raw socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket: UdpSocket::from(OwnedFd::from(socket)), v6 })
    }

    /// Sends an echo request.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ask(&self, target: IpAddr, id: u16) -> Result<()> {
        let mut bytes = vec![if self.v6 { 128 } else { 8 }, 0, 0, 0];
        bytes.extend(id.to_be_bytes());
        bytes.extend(*b"\0\x01a body of an even length");
        if !self.v6 {
            let sum = checksum(&bytes).to_be_bytes();
            bytes[2..4].copy_from_slice(&sum);
        }
        self.socket.send_to(&bytes, SocketAddr::new(target, 0))?;
        Ok(())
    }

    /// The next message that `wanted` accepts, and its source; others are passed over.
    ///
    /// # Errors
    /// None came in time.
    pub fn hear(&self, wanted: impl Fn(&Message) -> bool) -> Result<(IpAddr, Message)> {
        loop {
            let mut buffer = [0; 2048];
            let (len, from) = self.socket.recv_from(&mut buffer).context("an ICMP message")?;
            let Some(message) = self.read(&buffer[..len]) else { continue };
            if wanted(&message) {
                return Ok((from.ip(), message));
            }
        }
    }

    /// What a received message is, if it is one of those that are told apart. That of IPv4 comes with its
    /// IP header.
    fn read(&self, bytes: &[u8]) -> Option<Message> {
        let message = if self.v6 { bytes } else { bytes.get(header_len(bytes)?..)? };
        let id = |message: &[u8]| Some(u16::from_be_bytes(message.get(4..6)?.try_into().ok()?));
        match (self.v6, *message.first()?) {
            (false, 8) | (true, 128) => Some(Message::Request(id(message)?)),
            (false, 0) | (true, 129) => Some(Message::Reply(id(message)?)),
            (false, 3 | 11) => {
                let quoted = message.get(8..)?;
                let addr = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 4] = quoted.get(at..at + 4)?.try_into().ok()?;
                    Some(Ipv4Addr::from(octets).into())
                };
                let inner = quoted.get(header_len(quoted)?..)?;
                Some(Message::Error(addr(12)?, addr(16)?, id(inner)?))
            }
            (true, 1 | 3) => {
                let quoted = message.get(8..)?;
                let addr = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 16] = quoted.get(at..at + 16)?.try_into().ok()?;
                    Some(Ipv6Addr::from(octets).into())
                };
                Some(Message::Error(addr(8)?, addr(24)?, id(quoted.get(40..)?)?))
            }
            _ => None,
        }
    }
}

/// Bytes of an IPv4 header.
fn header_len(packet: &[u8]) -> Option<usize> {
    Some(usize::from(packet.first()? & 0xf) * 4)
}
