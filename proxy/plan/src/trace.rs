//! What a new connection would meet, told from the tables alone.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use sluice_abi::{Addr, Be16, FrontendKey, SLOTS_PER_CHUNK, Scope, SlotKey};
use sluice_model::Protocol;

use crate::{Tables, filter};

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
    },
    /// It is refused at once: the service has no backend.
    Reject {
        /// Number of the service port.
        service: u32,
    },
    /// The address is not a service's: the connection goes on as it is.
    NotAService,
    /// The tables contradict themselves. No prefix of a plan leads here from sound tables.
    Broken(Breakage),
}

/// How tables contradict themselves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Breakage {
    /// The frontend exists, but the address filter says that there is none.
    FilteredOut,
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
            Self::NoChunk(key) => write!(f, "list {} has no chunk {}", key.list, key.chunk),
            Self::EmptySlot { list, slot } => write!(f, "list {list} has an empty slot {slot}"),
            Self::NoBackend(number) => write!(f, "there is no backend {number}"),
            Self::WrongProtocol(number) => write!(f, "backend {number} has another protocol"),
        }
    }
}

/// What a client of that scope meets when it opens a connection to `to`. `pick` stands for the
/// random number that chooses the backend: slot `pick` modulo the count.
pub fn trace(tables: &Tables, client: Scope, to: Destination, pick: u32) -> Verdict {
    let key = to.key(client);
    let Some(frontend) = tables.frontends.get(&key) else { return Verdict::NotAService };
    if !filter::admits(&tables.vip_filter, &key.addr) {
        return Verdict::Broken(Breakage::FilteredOut);
    }
    if frontend.count == 0 {
        return Verdict::Reject { service: frontend.service };
    }
    let slot = pick % frontend.count;
    let chunk = SlotKey { list: frontend.list, chunk: slot / SLOTS_PER_CHUNK };
    let Some(slots) = tables.slots.get(&chunk) else {
        return Verdict::Broken(Breakage::NoChunk(chunk));
    };
    let number = slots.backend[(slot % SLOTS_PER_CHUNK) as usize];
    if number == 0 {
        return Verdict::Broken(Breakage::EmptySlot { list: frontend.list, slot });
    }
    let Some(backend) = tables.backends.get(&number) else {
        return Verdict::Broken(Breakage::NoBackend(number));
    };
    if backend.proto != key.proto {
        return Verdict::Broken(Breakage::WrongProtocol(number));
    }
    Verdict::Forward {
        service: frontend.service,
        backend: number,
        to: SocketAddr::new(backend.addr.to_ip(), backend.port.get()),
    }
}

#[cfg(test)]
mod tests;
