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
}

abi!(SockPeer, size 44, align 4, fields [0 => addr: Addr, 16 => backend_addr: Addr, 32 => port: Be16, 34 => backend_port: Be16, 36 => service: u32, 40 => backend: u32]);

/// Key of the peers of an unconnected datagram socket: it may talk to several services at once.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PeerKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// The backend's address.
    pub addr: Addr,
    /// The backend's port.
    pub port: Be16,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

abi!(PeerKey, size 32, align 8, fields [0 => cookie: u64, 8 => addr: Addr, 24 => port: Be16, 26 => proto: u8, 27 => reserved: [u8; 5]]);
