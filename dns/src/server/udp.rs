//! UDP: workers that take datagrams in batches and answer them in batches.
//!
//! There is one worker a core. Each has a socket of its own for every address (`SO_REUSEPORT`: the
//! kernel spreads the clients over them), so that two cores never write to the same socket. What the
//! cluster and the cache know is answered in the worker; what an upstream has to be asked for goes to
//! the queue for that.
//!
//! Answers of a batch that are for one client leave as one train of datagrams ([`outgoing`]), all others
//! in one system call.
//!
//! A socket bound to the wildcard address learns with each datagram which address it was sent to,
//! and answers from that one; a client on a host with several addresses would drop the answer
//! otherwise. What such a socket sends has a control message of its own each time, so that only trains
//! are sent together.

mod outgoing;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6,
    SockaddrLike, SockaddrStorage, recvmmsg, sendmsg,
};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use self::outgoing::Outgoing;
use super::queue::{Queue, To};
use crate::fast::Query;
use crate::metrics::{Proto, Shard};
use crate::resolver::{Client, Resolver, Step, Zone};
use crate::wire::Transport;

/// How many datagrams a system call takes or sends.
const BATCH: usize = 32;
/// A batch of so many says that more have come while it was answered; looking is cheaper than waiting
/// for them.
const MORE: usize = 8;
/// Room for any query: no client is told how long its own may be. In one piece, since the kernel takes
/// much longer for two; what is never written to takes no memory, and a flood of the longest makes it a
/// batch of them for each worker, which is the bound. An odd number of cache lines, so that the buffers'
/// beginnings do not share cache sets.
const DATAGRAM: usize = 1025 * 64;
/// How many datagrams that have arrived before a stop are still answered, a socket.
const LAST: usize = 16 * 1024;
/// How often, and how long apart, a task tries to send what the socket has no room for.
const SEND_TRIES: usize = 50;
const SEND_PAUSE: Duration = Duration::from_millis(1);

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

/// A bound UDP socket, nonblocking.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    addr: SocketAddr,
}

impl Socket {
    pub(super) fn new(socket: UdpSocket, addr: SocketAddr) -> Self {
        Self { socket, addr }
    }

    /// Bound to the wildcard address, so that datagrams carry the address they came to.
    fn any(&self) -> bool {
        self.addr.ip().is_unspecified()
    }

    /// Sends one datagram, or a train of datagrams of `segment` bytes each, the last of which may be
    /// shorter.
    fn send(&self, parts: &[IoSlice<'_>], segment: Option<u16>, to: &From) -> io::Result<usize> {
        let addr = SockaddrStorage::from(to.peer);
        let segment = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let send = |source: Option<ControlMessage<'_>>| {
            let fd = self.socket.as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT;
            let with = |control: &[_]| Ok(sendmsg(fd, parts, control, flags, Some(&addr))?);
            match (source, segment) {
                (None, None) => with(&[]),
                (Some(one), None) | (None, Some(one)) => with(&[one]),
                (Some(one), Some(other)) => with(&[one, other]),
            }
        };
        match to.local {
            Local::Bound(_) => send(None),
            Local::V4(mut info) => {
                // The route to the peer decides about the device.
                info.ipi_ifindex = 0;
                send(Some(ControlMessage::Ipv4PacketInfo(&info)))
            }
            Local::V6(mut info) => {
                if !std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local() {
                    info.ipi6_ifindex = 0;
                }
                send(Some(ControlMessage::Ipv6PacketInfo(&info)))
            }
        }
    }

    /// Waits until the socket has room, for a short time.
    fn wait_for_room(&self) {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        let patience = rustix::time::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        // Whatever comes of it, the next send tells.
        let _ = poll(&mut fds, Some(&patience));
    }
}

/// A client's address in the form that the kernel gives.
trait Peer: SockaddrLike + Copy {
    fn addr(&self) -> SocketAddr;
}

impl Peer for SockaddrIn {
    fn addr(&self) -> SocketAddr {
        SocketAddrV4::from(*self).into()
    }
}

impl Peer for SockaddrIn6 {
    fn addr(&self) -> SocketAddr {
        SocketAddrV6::from(*self).into()
    }
}

/// Where a datagram of a batch came from, and to.
#[derive(Clone, Copy, Debug)]
struct From {
    peer: SocketAddr,
    local: Local,
}

impl From {
    /// Whether answers to both go the same way, from the same address.
    fn is_same(&self, other: &Self) -> bool {
        self.peer == other.peer && self.local.addr() == other.local.addr()
    }
}

/// Sends the reply to one datagram, later.
#[derive(Debug)]
pub(super) struct Sender {
    socket: Arc<Socket>,
    to: From,
}

impl Sender {
    /// Sends from a task. The socket is in no reactor: that would wake a thread of the runtime for
    /// every datagram that a worker takes or sends.
    pub(super) async fn send(self, reply: &[u8]) {
        let peer = self.to.peer;
        for _ in 0..SEND_TRIES {
            match self.socket.send(&[IoSlice::new(reply)], None, &self.to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(SEND_PAUSE).await;
                }
                Err(error) => {
                    tracing::debug!(%peer, %error, "an answer cannot be sent");
                    return;
                }
                Ok(_) => return,
            }
        }
        tracing::debug!(%peer, "an answer is dropped: the socket has no room");
    }
}

/// What the receiving of a worker needs, for one address family.
struct Incoming<S> {
    headers: MultiHeaders<S>,
}

impl<S: Peer> Incoming<S> {
    fn new(any: bool) -> Self {
        let control = any.then(|| nix::cmsg_space!(libc::in6_pktinfo));
        Self { headers: MultiHeaders::preallocate(BATCH, control) }
    }

    /// Takes what is there, up to a batch, and hands over each datagram.
    fn take(
        &mut self,
        socket: &Socket,
        buffers: &mut [u8],
        mut each: impl FnMut(&[u8], From),
    ) -> io::Result<usize> {
        let mut chunks = buffers.chunks_exact_mut(DATAGRAM);
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let fd = socket.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = recvmmsg(fd, &mut self.headers, slices.iter_mut(), flags, None)?;
        let mut count = 0;
        for message in received {
            count += 1;
            let Some(peer) = message.address.map(|addr| addr.addr()) else { continue };
            // Nobody can be reached there.
            if peer.port() == 0 || peer.ip().is_unspecified() {
                continue;
            }
            let mut local = Local::Bound(socket.addr.ip());
            if socket.any() {
                for part in message.cmsgs().into_iter().flatten() {
                    match part {
                        ControlMessageOwned::Ipv4PacketInfo(info) => local = Local::V4(info),
                        ControlMessageOwned::Ipv6PacketInfo(info) => local = Local::V6(info),
                        _ => {}
                    }
                }
            }
            each(message.iovs().next().unwrap_or_default(), From { peer, local });
        }
        Ok(count)
    }
}

enum Family {
    V4(Incoming<SockaddrIn>),
    V6(Incoming<SockaddrIn6>),
}

/// Tells workers to stop.
#[derive(Debug)]
pub(super) struct Stop {
    flag: AtomicBool,
    /// Readable once the flag is set.
    event: OwnedFd,
}

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { flag: AtomicBool::new(false), event })
    }

    pub(super) fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
        // It is written once, so there is room for the one.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

/// What the stop goes by among the sockets' numbers.
const STOP: u64 = u64::MAX;

/// Waits for sockets. What is waited for stays known to the kernel, which is cheaper than telling it
/// anew each time, and those that have nothing need not be asked.
#[derive(Debug)]
struct Ready {
    epoll: OwnedFd,
}

impl Ready {
    fn new(sockets: &[Arc<Socket>], stop: &Stop) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop.event, EventData::new_u64(STOP), EventFlags::IN)?;
        for (index, socket) in sockets.iter().enumerate() {
            let data = EventData::new_u64(index as u64);
            epoll::add(&epoll, &socket.socket, data, EventFlags::IN)?;
        }
        Ok(Self { epoll })
    }

    /// Waits for a datagram or the stop, and says which sockets have one. There has to be room for all
    /// events.
    fn wait<'e>(&self, events: &'e mut Vec<epoll::Event>) -> impl Iterator<Item = usize> + use<'e> {
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Out of memory for the moment; a loop without a pause would not help.
                tracing::warn!(%error, "epoll_wait failed");
                std::thread::sleep(SEND_PAUSE);
            }
        }
        let numbers = events.iter().map(|event| event.data.u64());
        // Nothing but indices went in.
        numbers.filter(|number| *number != STOP).map(|number| number as usize)
    }
}

/// One worker: its sockets, one for each address.
pub(super) struct Worker {
    sockets: Vec<Arc<Socket>>,
    resolver: Arc<Resolver>,
    queue: Arc<Queue>,
    stop: Arc<Stop>,
    shard: Arc<Shard>,
    ready: Ready,
}

impl Worker {
    /// A worker on these sockets, which waits for datagrams as soon as it runs.
    ///
    /// # Errors
    ///
    /// The kernel cannot watch the sockets.
    pub(super) fn new(
        sockets: Vec<Arc<Socket>>,
        (resolver, queue): (&Arc<Resolver>, &Arc<Queue>),
        stop: &Arc<Stop>,
    ) -> io::Result<Self> {
        let ready = Ready::new(&sockets, stop)?;
        let shard = resolver.metrics().worker();
        let (resolver, queue) = (Arc::clone(resolver), Arc::clone(queue));
        Ok(Self { sockets, resolver, queue, stop: Arc::clone(stop), shard, ready })
    }

    /// Serves until told to stop, and then what waits in the sockets.
    pub(super) fn run(self) {
        let mut state = State {
            families: self.sockets.iter().map(|socket| family(socket)).collect(),
            buffers: vec![0; BATCH * DATAGRAM],
            outgoing: Outgoing::new(),
        };
        let mut more = false;
        let mut ready = Vec::with_capacity(self.sockets.len());
        let mut events = Vec::with_capacity(self.sockets.len() + 1);
        loop {
            ready.clear();
            if more {
                // One that is never empty must not keep the others waiting.
                ready.extend(0..self.sockets.len());
            } else {
                ready.extend(self.ready.wait(&mut events));
            }
            if self.stop.flag.load(Ordering::Relaxed) {
                break;
            }
            more = false;
            for &index in &ready {
                more |= self.serve(&mut state, index) >= MORE;
            }
        }
        for index in 0..self.sockets.len() {
            let mut left = LAST;
            loop {
                let count = self.serve(&mut state, index);
                left = left.saturating_sub(count);
                if count == 0 || left == 0 {
                    break;
                }
            }
        }
    }

    /// Takes and answers one batch; says how many datagrams there were.
    fn serve(&self, state: &mut State, index: usize) -> usize {
        let State { families, buffers, outgoing } = state;
        let socket = &self.sockets[index];
        let zone = self.resolver.load();
        let begin = std::time::Instant::now();
        let each = |message: &[u8], from: From| self.handle(socket, &zone, message, from, outgoing);
        let taken = match &mut families[index] {
            Family::V4(incoming) => incoming.take(socket, buffers, each),
            Family::V6(incoming) => incoming.take(socket, buffers, each),
        };
        match taken {
            Ok(count) => {
                let answers = outgoing.len() as u64;
                outgoing.send(socket);
                if answers > 0 {
                    self.shard.took(begin.elapsed(), answers);
                }
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                // Nothing that one datagram causes may end the loop: an ICMP error of an earlier
                // answer arrives here.
                tracing::debug!(%error, "recvmmsg failed");
                0
            }
        }
    }

    fn handle(
        &self,
        socket: &Arc<Socket>,
        zone: &Zone,
        message: &[u8],
        from: From,
        outgoing: &mut Outgoing,
    ) {
        let client = Client {
            transport: Transport::Udp,
            proto: Proto::Udp,
            peer: Some(from.peer),
            local: Some(from.local.addr()),
        };
        if let Some(query) = Query::read(message) {
            let done = zone.fast(&query, &client, outgoing.buffer(), &self.shard);
            if let Some(length) = done {
                outgoing.push(length, from);
                return;
            }
        }
        let (reply, pending) = match self.resolver.accept(message, &client, &self.shard) {
            Step::Ignore => (None, None),
            Step::Reply(reply) => (Some(reply), None),
            Step::Refresh(reply, pending) => (Some(reply), Some((pending, To::Nobody))),
            Step::Ask(pending) => {
                let sender = Sender { socket: Arc::clone(socket), to: from };
                (None, Some((pending, To::Datagram(sender))))
            }
        };
        // A reply by UDP is never longer than the buffer.
        if let Some(reply) = reply
            && let Some(place) = outgoing.buffer().get_mut(..reply.len())
        {
            place.copy_from_slice(&reply);
            outgoing.push(reply.len(), from);
        }
        if let Some((pending, to)) = pending {
            self.queue.push(pending, to);
        }
    }
}

/// What a worker uses again and again.
struct State {
    families: Vec<Family>,
    buffers: Vec<u8>,
    outgoing: Outgoing,
}

fn family(socket: &Socket) -> Family {
    if socket.addr.is_ipv4() {
        Family::V4(Incoming::new(socket.any()))
    } else {
        Family::V6(Incoming::new(socket.any()))
    }
}
