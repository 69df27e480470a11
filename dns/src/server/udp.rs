//! UDP: one datagram in, one datagram out.
//!
//! A socket bound to the wildcard address learns with each datagram which address it was sent to,
//! and answers from that one; a client on a host with several addresses would drop the answer
//! otherwise.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::drain;
use crate::resolver::{Resolver, Step};
use crate::wire::Transport;

/// No query is longer; what is gets cut off and is refused as malformed.
const DATAGRAM: usize = 4096;

/// Which address and device a datagram came to.
#[derive(Clone, Copy, Debug)]
enum Local {
    /// The address the socket is bound to.
    Bound(IpAddr),
    /// From `IP_PKTINFO`.
    V4(libc::in_pktinfo),
    /// From `IPV6_PKTINFO`.
    V6(libc::in6_pktinfo),
}

impl Local {
    fn addr(&self) -> IpAddr {
        match self {
            Self::Bound(addr) => *addr,
            Self::V4(info) => IpAddr::V4(u32::from_be(info.ipi_spec_dst.s_addr).into()),
            Self::V6(info) => IpAddr::V6(info.ipi6_addr.s6_addr.into()),
        }
    }
}

/// A bound UDP socket.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    /// Bound to the wildcard address, so that datagrams carry the address they came to.
    any: bool,
    addr: IpAddr,
}

impl Socket {
    pub(super) fn new(socket: UdpSocket, any: bool, addr: IpAddr) -> Self {
        Self { socket, any, addr }
    }

    async fn recv(
        &self,
        buffer: &mut [u8],
        control: &mut [u8],
    ) -> io::Result<(usize, SocketAddr, Local)> {
        if !self.any {
            let (length, peer) = self.socket.recv_from(buffer).await?;
            return Ok((length, peer, Local::Bound(self.addr)));
        }
        self.socket.async_io(Interest::READABLE, || self.recvmsg(buffer, control)).await
    }

    fn recvmsg(
        &self,
        buffer: &mut [u8],
        control: &mut [u8],
    ) -> io::Result<(usize, SocketAddr, Local)> {
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(control), MsgFlags::empty())?;
        let peer = message.address.as_ref().and_then(socket_addr).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a datagram without a source address")
        })?;
        let mut local = Local::Bound(self.addr);
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::Ipv4PacketInfo(info) => local = Local::V4(info),
                ControlMessageOwned::Ipv6PacketInfo(info) => local = Local::V6(info),
                _ => {}
            }
        }
        Ok((message.bytes, peer, local))
    }

    async fn send(&self, reply: &[u8], peer: SocketAddr, local: Local) {
        let sent = match local {
            Local::Bound(_) => self.socket.send_to(reply, peer).await,
            _ => {
                let send = || sendmsg_from(&self.socket, reply, peer, local);
                self.socket.async_io(Interest::WRITABLE, send).await
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%peer, %error, "an answer cannot be sent");
        }
    }
}

fn sendmsg_from(
    socket: &UdpSocket,
    reply: &[u8],
    peer: SocketAddr,
    local: Local,
) -> io::Result<usize> {
    let send = |control: &[ControlMessage<'_>]| {
        let to = SockaddrStorage::from(peer);
        let parts = [IoSlice::new(reply)];
        Ok(sendmsg(socket.as_raw_fd(), &parts, control, MsgFlags::empty(), Some(&to))?)
    };
    match local {
        Local::Bound(_) => send(&[]),
        Local::V4(mut info) => {
            // The route to the peer decides about the device.
            info.ipi_ifindex = 0;
            send(&[ControlMessage::Ipv4PacketInfo(&info)])
        }
        Local::V6(mut info) => {
            if !std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local() {
                info.ipi6_ifindex = 0;
            }
            send(&[ControlMessage::Ipv6PacketInfo(&info)])
        }
    }
}

fn socket_addr(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|addr| SocketAddrV4::from(*addr).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|addr| SocketAddrV6::from(*addr).into()))
}

/// How many datagrams that have arrived before a stop are still answered.
const LAST: usize = 4096;

/// Serves until told to stop. What the cluster knows is answered in this loop; what an upstream has
/// to be asked for gets a task.
pub(super) async fn serve(
    socket: Socket,
    resolver: Arc<Resolver>,
    mut stop: watch::Receiver<bool>,
) {
    let socket = Arc::new(socket);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    loop {
        while tasks.try_join_next().is_some() {}
        let received = tokio::select! {
            received = socket.recv(&mut buffer, &mut control) => received,
            // An error says that the server is gone.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match received {
            Ok((length, peer, local)) => {
                handle(&socket, &resolver, &buffer[..length], peer, local, &mut tasks).await;
            }
            Err(error) => {
                // Nothing that one datagram causes may end the loop. Yielding keeps an error that
                // stays from starving the runtime.
                tracing::warn!(%error, "recvmsg failed");
                tokio::task::yield_now().await;
            }
        }
    }
    // What waits in the socket was sent before the stop, too.
    for _ in 0..LAST {
        let received = timeout(Duration::ZERO, socket.recv(&mut buffer, &mut control)).await;
        let Ok(Ok((length, peer, local))) = received else { break };
        handle(&socket, &resolver, &buffer[..length], peer, local, &mut tasks).await;
    }
    drain(&mut tasks).await;
}

async fn handle(
    socket: &Arc<Socket>,
    resolver: &Arc<Resolver>,
    message: &[u8],
    peer: SocketAddr,
    local: Local,
    tasks: &mut JoinSet<()>,
) {
    // Nobody can be reached there.
    if peer.port() == 0 || peer.ip().is_unspecified() {
        return;
    }
    match resolver.accept(message, Transport::Udp, Some(local.addr())) {
        Step::Ignore => {}
        Step::Reply(reply) => socket.send(&reply, peer, local).await,
        Step::Ask(pending) => {
            let (resolver, socket) = (Arc::clone(resolver), Arc::clone(socket));
            tasks.spawn(async move {
                let reply = resolver.finish(*pending).await;
                socket.send(&reply, peer, local).await;
            });
        }
    }
}
