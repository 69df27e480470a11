//! Messages of sock_diag(7) for sockets of the internet: which are connected to a backend, and
//! their end.
//!
//! Numbers are those of `linux/sock_diag.h` and `linux/inet_diag.h`. Message headers are in the
//! host's byte order, addresses and ports in the network's.

use std::collections::HashSet;
use std::io;

use netlink_sys::{Socket, SocketAddr, constants::NETLINK_SOCK_DIAG};
use sluice_abi::{Addr, Be16, proto};

use crate::dataplane::SocketKind;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// "The peer is in this prefix."
const INET_DIAG_BC_D_COND: u8 = 8;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
const SOCKID: usize = 48;
/// Its beginning in `struct inet_diag_msg`, and its cookie.
const ID_IN_ANSWER: usize = 4;
const COOKIE_IN_ID: usize = 40;

/// Room for one answer; the kernel writes up to 32 KiB at once.
const BUFFER: usize = 64 * 1024;

/// Families that a socket may have which talks to a backend.
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

/// `TCP_TIME_WAIT`, as a bit of such states.
const TIME_WAIT: u32 = 1 << 6;

/// States (`TCP_ESTABLISHED` and so on, a bit each) in which a socket has a peer.
fn states(kind: SocketKind) -> u32 {
    const ESTABLISHED: u32 = 1 << 1;
    const SYN_SENT: u32 = 1 << 2;
    const FIN_WAIT1: u32 = 1 << 4;
    const FIN_WAIT2: u32 = 1 << 5;
    const CLOSE_WAIT: u32 = 1 << 8;
    match kind {
        SocketKind::Datagram => ESTABLISHED,
        SocketKind::Stream => ESTABLISHED | SYN_SENT | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT,
    }
}

fn protocol(kind: SocketKind) -> u8 {
    match kind {
        SocketKind::Datagram => proto::UDP,
        SocketKind::Stream => proto::TCP,
    }
}

/// A socket that the kernel named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    /// Its cookie.
    pub cookie: u64,
    family: u8,
    /// `struct inet_diag_sockid`: addresses, ports, interface, cookie.
    id: [u8; SOCKID],
}

/// Sockets of one network namespace.
pub struct Diag {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Diag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Diag").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Diag {
    /// Those of the namespace that this thread is in.
    ///
    /// # Errors
    ///
    /// What socket(2) says: no rights, or a kernel without `CONFIG_INET_DIAG`.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::new(NETLINK_SOCK_DIAG)?, sequence: 0 })
    }

    /// The sockets that are connected to the port, and where `addr` is given, to that address.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn connected_to(
        &mut self,
        kind: SocketKind,
        addr: Option<Addr>,
        port: Be16,
    ) -> io::Result<Vec<Named>> {
        let mut found = Vec::new();
        for family in FAMILIES {
            if addr.is_some_and(|addr| !addr.is_v4()) && family == libc::AF_INET as u8 {
                continue;
            }
            let mut id = [0; SOCKID];
            id[2..4].copy_from_slice(&port.to_network().to_ne_bytes());
            let condition = addr.map(|addr| peer_is(&addr)).unwrap_or_default();
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let query = Query { family, kind, states: states(kind), id };
            self.send(SOCK_DIAG_BY_FAMILY, flags, &query, &condition)?;
            self.answers(|answer| found.extend(named(answer)))?;
        }
        Ok(found)
    }

    /// The cookies of all sockets that have a port. One that is closed and merely keeps its port from
    /// others (TIME_WAIT) is none.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn cookies(&mut self, kind: SocketKind) -> io::Result<HashSet<u64>> {
        let mut found = HashSet::new();
        for family in FAMILIES {
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let any = Query { family, kind, states: !TIME_WAIT, id: [0; SOCKID] };
            self.send(SOCK_DIAG_BY_FAMILY, flags, &any, &[])?;
            self.answers(|answer| found.extend(named(answer).map(|socket| socket.cookie)))?;
        }
        Ok(found)
    }

    /// Destroys a socket; `false` where it is gone already, or has another peer by now.
    ///
    /// # Errors
    ///
    /// What the kernel answers: `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&mut self, kind: SocketKind, socket: &Named) -> io::Result<bool> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let query = Query { family: socket.family, kind, states: states(kind), id: socket.id };
        self.send(SOCK_DESTROY, flags, &query, &[])?;
        match self.answers(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, query: &Query, attributes: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request(kind, flags, self.sequence, query, attributes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// Reads the answers to the last request to their end.
    fn answers(&mut self, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            for (kind, sequence, body) in Messages(&buffer) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = i32::from_ne_bytes(array(body, 0).unwrap_or_default());
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => visit(body),
                }
            }
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Which sockets are meant: `struct inet_diag_req_v2`.
struct Query {
    family: u8,
    kind: SocketKind,
    states: u32,
    /// What is zero may be anything.
    id: [u8; SOCKID],
}

/// `struct nlmsghdr`, `struct inet_diag_req_v2` and attributes.
fn request(kind: u16, flags: u16, sequence: u32, query: &Query, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    // Family, protocol, extensions, padding.
    bytes.extend_from_slice(&[query.family, protocol(query.kind), 0, 0]);
    bytes.extend_from_slice(&query.states.to_ne_bytes());
    bytes.extend_from_slice(&query.id);
    bytes.extend_from_slice(attributes);
    let len = u32::try_from(bytes.len()).unwrap_or_default();
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes
}

/// The attribute that asks for sockets with this peer. An IPv4 condition also holds for IPv6 sockets
/// with an IPv4-mapped peer.
fn peer_is(addr: &Addr) -> Vec<u8> {
    let (family, bits, words) = if addr.is_v4() {
        (libc::AF_INET, 32, &addr.0[3..])
    } else {
        (libc::AF_INET6, 128, &addr.0[..])
    };
    // struct inet_diag_bc_op, then struct inet_diag_hostcond with any port.
    let len = 4 + 8 + 4 * words.len();
    let mut bytes = Vec::with_capacity(4 + len);
    bytes.extend_from_slice(&((4 + len) as u16).to_ne_bytes());
    bytes.extend_from_slice(&INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    // Where it goes on if so: at the end, which means yes. If not: behind the end, which means no.
    bytes.extend_from_slice(&[INET_DIAG_BC_D_COND, len as u8]);
    bytes.extend_from_slice(&(len as u16 + 4).to_ne_bytes());
    bytes.extend_from_slice(&[family as u8, bits, 0, 0]);
    bytes.extend_from_slice(&(-1_i32).to_ne_bytes());
    for word in words {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The socket of a `struct inet_diag_msg`.
fn named(answer: &[u8]) -> Option<Named> {
    let id: [u8; SOCKID] = array(answer, ID_IN_ANSWER)?;
    let low = u32::from_ne_bytes(array(&id, COOKIE_IN_ID)?);
    let high = u32::from_ne_bytes(array(&id, COOKIE_IN_ID + 4)?);
    Some(Named { cookie: u64::from(high) << 32 | u64::from(low), family: *answer.first()?, id })
}

/// Messages of a buffer: type, sequence number, body. Ends at one that is cut off.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = u32::from_ne_bytes(array(self.0, 0)?) as usize;
        let kind = u16::from_ne_bytes(array(self.0, 4)?);
        let sequence = u32::from_ne_bytes(array(self.0, 8)?);
        let body = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_to_the_one_that_is_cut_off() {
        let message = |kind: u16, body: &[u8]| {
            let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&7_u32.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let mut bytes = message(20, b"abcde");
        bytes.extend(message(NLMSG_DONE, b""));
        let all: Vec<_> = Messages(&bytes).collect();
        assert_eq!(all, [(20, 7, &b"abcde"[..]), (NLMSG_DONE, 7, &b""[..])]);
        for cut in 0..bytes.len() {
            assert!(Messages(&bytes[..cut]).count() < 2, "{cut}");
        }
        let nonsense = [1_u8; 40];
        assert_eq!(Messages(&nonsense).count(), 0);
    }

    #[test]
    fn an_answer_that_is_too_short_names_no_socket() {
        assert_eq!(named(&[0; 51]), None);
        let mut answer = [0; 72];
        answer[0] = libc::AF_INET6 as u8;
        answer[44..48].copy_from_slice(&5_u32.to_ne_bytes());
        answer[48..52].copy_from_slice(&1_u32.to_ne_bytes());
        let found = named(&answer).expect("long enough");
        assert_eq!((found.cookie, found.family), ((1 << 32) + 5, libc::AF_INET6 as u8));
    }
}
