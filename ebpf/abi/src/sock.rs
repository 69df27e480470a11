//! What a socket believes it is connected to.

use crate::{Addr, Be16, abi};

/// The service address that a program named, and the backend it got instead.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SockPeer {
    /// The service's address.
    pub addr: Addr,
    /// The backend's address.
    pub backend_addr: Addr,
    /// The service's port.
    pub port: Be16,
    /// The backend's port.
    pub backend_port: Be16,
    /// Number of the service port.
    pub service: u32,
    /// Number of the backend.
    pub backend: u32,
    /// Number of the backend list that the backend was last found in. While the frontend still
    /// names this list, the backend need not be looked for again.
    pub list: u32,
    /// Cookie of the socket's network namespace (`SO_NETNS_COOKIE`): where it is found should its
    /// backend go. 0 for a socket that is not connected.
    pub netns: u64,
}

abi!(SockPeer, size 56, align 8, fields [0 => addr: Addr, 16 => backend_addr: Addr, 32 => port: Be16, 34 => backend_port: Be16, 36 => service: u32, 40 => backend: u32, 44 => list: u32, 48 => netns: u64]);

/// Ports in one element of [`BACKEND_PORTS`](crate::maps::BACKEND_PORTS): one cache line.
pub const PORTS_PER_ELEMENT: u32 = 64;

/// One element of [`BACKEND_PORTS`](crate::maps::BACKEND_PORTS), a byte a port.
pub type PortMarks = [u8; PORTS_PER_ELEMENT as usize];

/// Bits of [`PeerKey::flags`].
pub struct PeerFlags;

impl PeerFlags {
    /// The key holds a service's address, not a backend's.
    pub const SERVICE: u8 = 1 << 0;
}

/// Key of the peers of an unconnected datagram socket: it may talk to several services at once.
///
/// A conversation has two entries with the same value: one keyed by the backend's address, to give
/// an answer the service's address; one keyed by the service's address, so that the next datagram
/// goes to the same backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PeerKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// The backend's or the service's address.
    pub addr: Addr,
    /// The backend's or the service's port.
    pub port: Be16,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// [`PeerFlags::SERVICE`] or 0.
    pub flags: u8,
    /// Zero.
    pub reserved: u32,
}

abi!(PeerKey, size 32, align 8, fields [0 => cookie: u64, 8 => addr: Addr, 24 => port: Be16, 26 => proto: u8, 27 => flags: u8, 28 => reserved: u32]);
