//! Binding the sockets, and saying why it failed.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Room for a burst of queries, in octets, as long as the loop is busy.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How often another free port is tried where port 0 asks for any: the kernel picks it for UDP, and
/// it may be taken for TCP.
const FREE_PORT_TRIES: usize = 16;

/// An address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve on {addr}: {call}: {source}{}", hint(.source, .addr))]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// The call that failed.
    pub call: &'static str,
    /// Its error.
    #[source]
    pub source: io::Error,
}

fn hint(error: &io::Error, addr: &SocketAddr) -> String {
    let port = addr.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            " (another process has port {port}: see `ss -lunpt 'sport = :{port}'`; \
             systemd-resolved and dnsmasq are frequent ones)"
        ),
        io::ErrorKind::PermissionDenied => {
            " (ports below 1024 need CAP_NET_BIND_SERVICE)".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => " (no interface has this address)".to_owned(),
        _ if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            " (the kernel has no such address family: name the addresses with --listen)".to_owned()
        }
        _ => String::new(),
    }
}

/// The sockets of one address: UDP and TCP on the same port.
#[derive(Debug)]
pub struct Sockets {
    /// The address, with the port that was really bound.
    pub addr: SocketAddr,
    /// One for each worker.
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Binds both, UDP once for each of so many workers. Port 0 takes any port that is free for both.
    ///
    /// # Errors
    ///
    /// A call fails; the error names it, and what to do about it.
    pub fn bind(addr: SocketAddr, workers: usize) -> Result<Self, BindError> {
        let mut tries = if addr.port() == 0 { FREE_PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            match Self::bind_once(addr, workers.max(1)) {
                Err(error) if tries > 0 && error.source.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
    }

    fn bind_once(addr: SocketAddr, workers: usize) -> Result<Self, BindError> {
        // TCP first: UDP sockets that share a port would share it with another server of this kind.
        let (tcp, bound) = tcp_socket(addr)?;
        let udp = (0..workers).map(|_| udp_socket(bound)).collect::<Result<_, _>>()?;
        Ok(Self { addr: bound, udp, tcp })
    }
}

/// The socket of an address where DNS over TLS is served.
#[derive(Debug)]
pub struct TlsSocket {
    /// The address, with the port that was really bound.
    pub addr: SocketAddr,
    pub(super) tcp: TcpListener,
}

impl TlsSocket {
    /// Binds it.
    ///
    /// # Errors
    ///
    /// A call fails; the error names it, and what to do about it.
    pub fn bind(addr: SocketAddr) -> Result<Self, BindError> {
        let (tcp, addr) = tcp_socket(addr)?;
        Ok(Self { addr, tcp })
    }
}

/// A listening socket, and the address that was really bound.
fn tcp_socket(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let fail = |call| move |source| BindError { addr, call, source };
    let tcp = socket(addr, Type::STREAM, Protocol::TCP).map_err(fail("socket"))?;
    // A restart must not wait for the connections of its predecessor.
    tcp.set_reuse_address(true).map_err(fail("setsockopt SO_REUSEADDR"))?;
    tcp.bind(&addr.into()).map_err(fail("bind TCP"))?;
    tcp.listen(BACKLOG).map_err(fail("listen"))?;
    let tcp = TcpListener::from(tcp);
    let bound = tcp.local_addr().map_err(fail("getsockname"))?;
    Ok((tcp, bound))
}

fn udp_socket(addr: SocketAddr) -> Result<UdpSocket, BindError> {
    let fail = |call| move |source| BindError { addr, call, source };
    let udp = socket(addr, Type::DGRAM, Protocol::UDP).map_err(fail("socket"))?;
    // With CAP_NET_ADMIN beyond the kernel's limit (net.core.rmem_max), or else up to it; less is
    // no error.
    if setsockopt(&udp, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = udp.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    udp.set_reuse_port(true).map_err(fail("setsockopt SO_REUSEPORT"))?;
    udp.bind(&addr.into()).map_err(fail("bind UDP"))?;
    if addr.ip().is_unspecified() {
        // The answer has to come from the address that was asked.
        let option = match addr {
            SocketAddr::V4(_) => setsockopt(&udp, sockopt::Ipv4PacketInfo, &true),
            SocketAddr::V6(_) => setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true),
        };
        option.map_err(|e| fail("setsockopt PKTINFO")(e.into()))?;
    }
    Ok(udp.into())
}

fn socket(addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    if addr.is_ipv6() {
        // The IPv4 wildcard has a socket of its own.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_with_a_hint() {
        let first = Sockets::bind(([127, 0, 0, 1], 0).into(), 2).expect("a free port");
        assert_ne!(first.addr.port(), 0);
        let error = Sockets::bind(first.addr, 2).expect_err("taken").to_string();
        assert!(error.starts_with(&format!("cannot serve on {}: bind TCP: ", first.addr)));
        assert!(error.contains("another process has port"), "{error}");
    }
}
