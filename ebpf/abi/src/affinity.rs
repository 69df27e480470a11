//! Which backend a client had last (`sessionAffinity: ClientIP`).

use crate::{Addr, abi};

/// A client of a service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AffinityKey {
    /// The client's address; of a socket the cookie of its network namespace, which stands for the
    /// pod or the node: two words in the host's order, least significant first, then two of zero.
    pub client: Addr,
    /// Number of the service port.
    pub service: u32,
    /// Bits: [`AffinityKey::COOKIE`], [`AffinityKey::V6`].
    pub flags: u32,
}

abi!(AffinityKey, size 24, align 4, fields [0 => client: Addr, 16 => service: u32, 20 => flags: u32]);

impl AffinityKey {
    /// The client is a network namespace's cookie.
    pub const COOKIE: u32 = 1 << 0;
    /// It came to an IPv6 address of the service. A client has a backend for each family: their
    /// lists have no backend in common.
    pub const V6: u32 = 1 << 1;

    /// The key of sockets in a network namespace that go to an IPv4 address.
    #[inline(always)]
    pub const fn of_namespace(cookie: u64, service: u32) -> Self {
        Self {
            client: Addr([cookie as u32, (cookie >> 32) as u32, 0, 0]),
            service,
            flags: Self::COOKIE,
        }
    }
}

/// The backend that the client had.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Affinity {
    /// When it last opened a connection, in nanoseconds of the monotonic clock
    /// (`bpf_ktime_get_coarse_ns`). The frontend says how long that holds.
    pub last_used: u64,
    /// Number of the backend.
    pub backend: u32,
    /// Number of the list that the backend was last found in.
    pub list: u32,
}

abi!(Affinity, size 16, align 8, fields [0 => last_used: u64, 8 => backend: u32, 12 => list: u32]);
