//! What a new connection would meet, told from the tables alone: the model of what the kernel's
//! programs do.
//!
//! Client, destination and tables go in; the verdict and the addresses that the backend sees come out.
//! A test that runs a case on the model and on the kernel must see the same, so everything that decides
//! stands here, in the order in which the programs look at it:
//!
//! 1. The address filter, and the frontend of scope `Internal`; clients outside go on to the one of
//!    scope `External` where it says that there is one. Where there is no frontend, the one that
//!    stands for all ports of the address refuses.
//! 2. Loopback addresses are served to the node alone.
//! 3. Clients that are not admitted are dropped (`loadBalancerSourceRanges`).
//! 4. Where there is no backend, the connection is refused, or dropped under
//!    `externalTrafficPolicy: Local`.
//! 5. A backend is picked, and the client's address stays or is replaced ([`Source`]).
//!
//! Session affinity is no part of it: it decides which of the backends is picked, which the caller
//! does here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use sluice_abi::{
    Addr, BackendFlags, Be16, Frontend, FrontendFlags, FrontendKey, SLOTS_PER_CHUNK, Scope,
    SlotKey, SourceRangeKey,
};
use sluice_model::Protocol;

use crate::endpoints::family;
use crate::frontends::any_port;
use crate::{Tables, filter};

/// Where a client is, and how the kernel meets it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// A pod of this node, by a socket: its `connect` or `sendto` is led to the backend before there
    /// is a packet.
    Pod,
    /// A pod of this node whose packets no socket hook has seen: a virtual machine, a raw socket.
    PodPackets,
    /// A process in the node's own network namespace, by a socket.
    Node,
    /// Beyond one of the node's uplinks.
    Outside,
}

/// Who opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Client {
    /// Its address; of a process of the node the one that stands in [`Here`].
    pub addr: IpAddr,
    /// Where it is.
    pub place: Place,
}

/// What of the node decides beside the service tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Here {
    /// The addresses that clients get where theirs must not be seen, at most one a family
    /// ([`sluice_abi::NodeAddrs`]).
    pub addrs: Vec<IpAddr>,
    /// Addresses of the pods of this node ([`sluice_abi::maps::ENDPOINTS`]).
    pub pods: BTreeSet<IpAddr>,
    /// Clients outside get the node's address also where the backend is on this node
    /// (`--masquerade-all`).
    pub masquerade_all: bool,
}

/// Where a connection is going.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Destination {
    /// The address that the client names.
    pub addr: IpAddr,
    /// The port that it names.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Destination {
    /// The key under which clients of that scope look it up.
    pub fn key(&self, scope: Scope) -> FrontendKey {
        FrontendKey {
            addr: Addr::from(self.addr),
            port: Be16::new(self.port),
            proto: self.protocol.number(),
            scope: scope as u8,
        }
    }
}

/// The address that a backend sees as its client's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// The client's own.
    Client,
    /// The node's, with a port of the node's choosing, so that the answer comes by here.
    Node(IpAddr),
    /// The service's, with the client's port: client and backend are one, and it could not answer
    /// itself otherwise.
    Service(IpAddr),
}

/// What becomes of a new connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// It goes to a backend.
    Forward {
        /// Number of the service port.
        service: u32,
        /// Number of the backend.
        backend: u32,
        /// The backend's address and port.
        to: SocketAddr,
        /// Whom the backend takes for its client.
        source: Source,
    },
    /// It is refused at once: the service has no backend.
    Reject {
        /// Number of the service port.
        service: u32,
    },
    /// It is refused at once: the address is a ClusterIP without that port.
    RejectPort,
    /// It gets no answer.
    Drop(DropReason),
    /// The address is not a service's, or not for this client: the connection goes on as it is.
    NotAService,
    /// The tables contradict themselves. No prefix of a plan leads here from sound tables.
    Broken(Breakage),
}

/// Why a connection gets no answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DropReason {
    /// `externalTrafficPolicy: Local`, and no endpoint is on this node: the load balancer is to look
    /// elsewhere.
    NoLocal {
        /// Number of the service port.
        service: u32,
    },
    /// `loadBalancerSourceRanges` do not name the client.
    SourceRange {
        /// Number of the service port.
        service: u32,
    },
    /// The client's address has to be replaced, and the node has none of that family.
    NoNodeAddress,
}

/// How tables contradict themselves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Breakage {
    /// The frontend exists, but the address filter says that there is none.
    FilteredOut,
    /// The frontend says that there is another one for clients outside, and there is none.
    NoExternal,
    /// A chunk of the frontend's list is missing.
    NoChunk(SlotKey),
    /// A slot below the frontend's count is empty.
    EmptySlot {
        /// Number of the list.
        list: u32,
        /// Index of the slot.
        slot: u32,
    },
    /// A slot names a backend that does not exist.
    NoBackend(u32),
    /// The backend is for another protocol.
    WrongProtocol(u32),
}

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FilteredOut => f.write_str("the address filter hides the frontend"),
            Self::NoExternal => f.write_str("the frontend for clients outside is missing"),
            Self::NoChunk(key) => write!(f, "list {} has no chunk {}", key.list, key.chunk),
            Self::EmptySlot { list, slot } => write!(f, "list {list} has an empty slot {slot}"),
            Self::NoBackend(number) => write!(f, "there is no backend {number}"),
            Self::WrongProtocol(number) => write!(f, "backend {number} has another protocol"),
        }
    }
}

/// What a client meets when it opens a connection to `to`. `pick` stands for the random number that
/// chooses the backend: slot `pick` modulo the count.
pub fn trace(tables: &Tables, here: &Here, client: &Client, to: Destination, pick: u32) -> Verdict {
    let frontend = match tables.frontend(client.place, to) {
        Ok(Some(frontend)) => frontend,
        Ok(None) => return Verdict::NotAService,
        Err(breakage) => return Verdict::Broken(breakage),
    };
    let &Frontend { service, count, flags, .. } = frontend;
    let has = |flag: u32| flags & flag != 0;
    if has(FrontendFlags::ANY_PORT) {
        return Verdict::RejectPort;
    }
    if has(FrontendFlags::SOURCE_RANGES) && !tables.admits(service, client.addr) {
        return Verdict::Drop(DropReason::SourceRange { service });
    }
    if count == 0 {
        return if has(FrontendFlags::LOCAL_ONLY) {
            Verdict::Drop(DropReason::NoLocal { service })
        } else {
            Verdict::Reject { service }
        };
    }
    let number = match tables.slot(frontend, pick % count) {
        Ok(number) => number,
        Err(breakage) => return Verdict::Broken(breakage),
    };
    let Some(backend) = tables.backends.get(&number) else {
        return Verdict::Broken(Breakage::NoBackend(number));
    };
    if backend.proto != to.protocol.number() {
        return Verdict::Broken(Breakage::WrongProtocol(number));
    }
    let addr = backend.addr.to_ip();
    let near = backend.flags & BackendFlags::LOCAL != 0 || here.pods.contains(&addr);
    let source = match client.place {
        Place::PodPackets if addr == client.addr => Source::Service(to.addr),
        // A pod of this node answers by here, whatever address the answer is to: its client keeps its
        // own. Under the policy `Local` it always does.
        Place::Outside if !has(FrontendFlags::LOCAL_ONLY) && (here.masquerade_all || !near) => {
            match here.addrs.iter().find(|own| family(own) == family(&addr)) {
                Some(own) => Source::Node(*own),
                None => return Verdict::Drop(DropReason::NoNodeAddress),
            }
        }
        Place::Pod | Place::PodPackets | Place::Node | Place::Outside => Source::Client,
    };
    let to = SocketAddr::new(addr, backend.port.get());
    Verdict::Forward { service, backend: number, to, source }
}

impl Tables {
    /// The frontend that serves a client at that place.
    fn frontend(&self, place: Place, to: Destination) -> Result<Option<&Frontend>, Breakage> {
        let key = to.key(Scope::Internal);
        let found = self.frontends.get(&key);
        let Some(inside) = found.or_else(|| self.frontends.get(&any_port(key.addr))) else {
            return Ok(None);
        };
        if !filter::admits(&self.vip_filter, &key.addr) {
            return Err(Breakage::FilteredOut);
        }
        if key.addr.is_loopback() && place != Place::Node {
            return Ok(None);
        }
        if place == Place::Outside && inside.flags & FrontendFlags::EXTERNAL_DIFFERS != 0 {
            let outside = self.frontends.get(&to.key(Scope::External));
            return outside.map(Some).ok_or(Breakage::NoExternal);
        }
        Ok(Some(inside))
    }

    /// Whether a service port admits a client: whether one of its ranges holds the address.
    fn admits(&self, service: u32, client: IpAddr) -> bool {
        let bits = match client {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        // An IPv4 client would be in an IPv6 range that holds the mapped addresses, as in the kernel.
        (0..=128).any(|len| {
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            let addr = Addr::from(IpAddr::V6((bits & mask).into()));
            self.source_ranges.contains(&SourceRangeKey { prefix_len: 32 + len, service, addr })
        })
    }

    /// The number of the backend in a slot of the frontend's list.
    fn slot(&self, frontend: &Frontend, slot: u32) -> Result<u32, Breakage> {
        let list = frontend.list;
        let chunk = SlotKey { list, chunk: slot / SLOTS_PER_CHUNK };
        let slots = self.slots.get(&chunk).ok_or(Breakage::NoChunk(chunk))?;
        match slots.backend[(slot % SLOTS_PER_CHUNK) as usize] {
            0 => Err(Breakage::EmptySlot { list, slot }),
            number => Ok(number),
        }
    }
}

#[cfg(test)]
mod tests;
