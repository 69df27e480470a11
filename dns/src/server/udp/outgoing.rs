//! The answers of a batch, until they are sent.
//!
//! What goes to one client goes as a train: one datagram to the kernel's network stack as far as the
//! client's socket or the device, which takes it apart (`UDP_SEGMENT`, Linux 4.18, udp(7)). Resolvers
//! ask for A and AAAA at once from one socket, caches and proxies for much more, and most of what an
//! answer costs is its way through the stack. All cars of a train have one length but the last, which
//! may be shorter; so a client's answers leave longest first.

use std::io::{self, IoSlice};
use std::ops::Range;

use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

use super::{BATCH, From, Socket};
use crate::fast::Buffer;
use crate::wire::MAX_UDP;

/// Answers of a batch, until they are sent.
pub(super) struct Outgoing {
    buffers: Box<[Buffer]>,
    lengths: [usize; BATCH],
    to: Vec<From>,
    order: Vec<Key>,
    addrs: Vec<SocketAddrAny>,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self {
            buffers: vec![[0; MAX_UDP as usize]; BATCH].into(),
            lengths: [0; BATCH],
            to: Vec::with_capacity(BATCH),
            order: Vec::with_capacity(BATCH),
            addrs: Vec::with_capacity(BATCH),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.to.len()
    }

    /// The next answer's buffer.
    pub(super) fn buffer(&mut self) -> &mut Buffer {
        &mut self.buffers[self.to.len()]
    }

    /// Says that the next answer is whole.
    pub(super) fn push(&mut self, length: usize, to: From) {
        self.order.push(Key::new(&to, length, self.to.len()));
        self.lengths[self.to.len()] = length;
        self.to.push(to);
    }

    /// Sends all; what cannot be sent is gone, as it may be on any way of a datagram.
    pub(super) fn send(&mut self, socket: &Socket) {
        self.order.sort_unstable();
        let mut singles = [0; BATCH];
        let mut alone = 0;
        for train in self.trains() {
            if train.len() > 1 {
                self.send_train(socket, train);
            } else {
                singles[alone] = self.order[train.start].place();
                alone += 1;
            }
        }
        self.send_singles(socket, &singles[..alone]);
        self.to.clear();
        self.order.clear();
    }

    fn reply(&self, n: usize) -> &[u8] {
        &self.buffers[n][..self.lengths[n]]
    }

    /// What leaves together, as ranges of the order, which is sorted.
    fn trains(&self) -> impl Iterator<Item = Range<usize>> {
        let mut rest = 0;
        std::iter::from_fn(move || {
            (rest < self.order.len()).then(|| {
                let train = self.train(rest);
                rest = train.end;
                train
            })
        })
    }

    /// The longest train that begins with this one of the order.
    fn train(&self, first: usize) -> Range<usize> {
        let head = self.order[first].place();
        let mut end = first + 1;
        while let Some(next) = self.order.get(end).map(|key| key.place())
            && self.to[next].is_same(&self.to[head])
        {
            end += 1;
            if self.lengths[next] != self.lengths[head] {
                break;
            }
        }
        first..end
    }

    fn send_train(&self, socket: &Socket, train: Range<usize>) {
        let cars = &self.order[train];
        let mut parts = [IoSlice::new(&[]); BATCH];
        for (part, car) in parts.iter_mut().zip(cars) {
            *part = IoSlice::new(self.reply(car.place()));
        }
        let head = cars[0].place();
        // A reply by UDP is never longer than the buffer, and that fits.
        let length = u16::try_from(self.lengths[head]).unwrap_or(u16::MAX);
        let to = &self.to[head];
        let send = || socket.send(&parts[..cars.len()], Some(length), to);
        let mut sent = send();
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            socket.wait_for_room();
            sent = send();
        }
        if sent.is_err() {
            // A way that takes no trains: a device whose packets are shorter, IPsec.
            cars.iter().for_each(|car| send_one(socket, self.reply(car.place()), to));
        }
    }

    /// Sends answers that have nothing in common, in one system call where the socket allows it.
    fn send_singles(&mut self, socket: &Socket, singles: &[usize]) {
        if socket.any() {
            for &n in singles {
                send_one(socket, self.reply(n), &self.to[n]);
            }
            return;
        }
        self.addrs.clear();
        self.addrs.extend(singles.iter().map(|&n| SocketAddrAny::from(self.to[n].peer)));
        let mut sent = 0;
        while sent < singles.len() {
            match self.send_batch(socket, singles, sent) {
                Ok(0) => break,
                Ok(count) => sent += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    // The first one is to blame; by itself it gets its wait or its message.
                    let n = singles[sent];
                    send_one(socket, self.reply(n), &self.to[n]);
                    sent += 1;
                }
            }
        }
    }

    fn send_batch(
        &self,
        socket: &Socket,
        singles: &[usize],
        first: usize,
    ) -> rustix::io::Result<usize> {
        let slices: [[IoSlice<'_>; 1]; BATCH] = std::array::from_fn(|n| {
            [IoSlice::new(singles.get(n).map_or(&[][..], |&n| self.reply(n)))]
        });
        let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BATCH] =
            std::array::from_fn(|_| SendAncillaryBuffer::new(&mut []));
        let mut messages: Vec<MMsgHdr<'_>> = controls
            .iter_mut()
            .zip(&slices)
            .zip(&self.addrs)
            .skip(first)
            .map(|((control, slice), addr)| MMsgHdr::new_with_addr(addr, slice, control))
            .collect();
        sendmmsg(&socket.socket, &mut messages, SendFlags::DONTWAIT)
    }
}

/// Where an answer stands in the order of sending: what goes to one client is together, the longest
/// first. Clients whose keys are alike by chance are told apart where trains are made up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key(u64);

impl Key {
    fn new(to: &From, length: usize, place: usize) -> Self {
        let addr = match to.peer.ip() {
            std::net::IpAddr::V4(addr) => addr.to_bits(),
            std::net::IpAddr::V6(addr) => addr.segments()[4..]
                .iter()
                .fold(0, |sum, part| u32::rotate_left(sum, 11) ^ u32::from(*part)),
        };
        let client = addr.rotate_left(16) ^ u32::from(to.peer.port());
        let shortness = u16::MAX - u16::try_from(length).unwrap_or(u16::MAX);
        Self(u64::from(client) << 32 | u64::from(shortness) << 16 | place as u64)
    }

    fn place(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// Sends one answer; waits for room once.
fn send_one(socket: &Socket, reply: &[u8], to: &From) {
    let parts = [IoSlice::new(reply)];
    let mut sent = socket.send(&parts, None, to);
    if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
        socket.wait_for_room();
        sent = socket.send(&parts, None, to);
    }
    if let Err(error) = sent {
        tracing::debug!(peer = %to.peer, %error, "an answer cannot be sent");
    }
}

#[cfg(test)]
mod tests;
