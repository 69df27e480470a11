//! Connection tracking of flows that are translated packet by packet.
//!
//! A translated flow has two entries, made and removed together: the forward one, keyed by what the
//! client sends, says which backend the flow has, and which address the client has there; the reverse
//! one, keyed by what the backend sends, says which service address its packets must seem to come
//! from, and who the client is. Flows of sockets that the cgroup
//! programs connected straight to a backend have none: no packet of theirs needs translation.

use crate::{Addr, Be16, abi};

/// Bits of [`CtKey::flags`] and [`CtEntry::flags`].
pub struct CtFlags;

impl CtFlags {
    /// In a key: the entry is keyed by the backend's packets.
    pub const REVERSE: u8 = 1 << 0;
    /// In an entry: TCP, a FIN was seen from the client.
    pub const FIN_CLIENT: u16 = 1 << 0;
    /// In an entry: TCP, a FIN was seen from the backend.
    pub const FIN_BACKEND: u16 = 1 << 1;
    /// In an entry: TCP, a RST was seen.
    pub const RST: u16 = 1 << 2;
    /// In an entry: the backend has answered.
    pub const REPLIED: u16 = 1 << 3;
    /// In an entry: the client has another address and port at the backend. They are
    /// [`CtEntry::nat_addr`] and [`CtEntry::nat_port`] of the forward entry; the reverse entry has
    /// the client's own there.
    pub const SNAT: u16 = 1 << 4;
    /// In an entry: the client is outside; what it is answered leaves by an uplink.
    pub const EXTERNAL: u16 = 1 << 5;
    /// In an entry: the client is a pod that left the cluster, or a socket of the node that would
    /// have met another flow's port. There is no service and no backend: `service`, `backend` and
    /// `list` are 0, and the destination stays.
    pub const MASQUERADE: u16 = 1 << 6;
    /// In an entry: client and backend are the same pod; it sees the service as its client.
    pub const HAIRPIN: u16 = 1 << 7;
}

/// A packet's addresses and ports, as they stand in the packet that is looked up.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CtKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// [`CtFlags::REVERSE`] or 0.
    pub flags: u8,
    /// Zero.
    pub reserved: u16,
}

abi!(CtKey, size 40, align 4, fields [0 => src: Addr, 16 => dst: Addr, 32 => sport: Be16, 34 => dport: Be16, 36 => proto: u8, 37 => flags: u8, 38 => reserved: u16]);

/// What becomes of a packet of the flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CtEntry {
    /// Nanoseconds of the kernel's monotonic clock (`bpf_ktime_get_ns`) when a packet was last
    /// seen.
    pub last_seen: u64,
    /// Forward: the backend's address, written into the destination. Reverse: the service's,
    /// written into the source.
    pub addr: Addr,
    /// The port that goes with it.
    pub port: Be16,
    /// Bits of [`CtFlags`].
    pub flags: u16,
    /// Number of the service port.
    pub service: u32,
    /// Number of the backend.
    pub backend: u32,
    /// Number of the backend list that the backend was last found in. While the frontend still
    /// names this list, the backend need not be looked for again.
    pub list: u32,
    /// With [`CtFlags::SNAT`], forward: the client's address at the backend, written into the
    /// source. Reverse: the client's own, written into the destination. Else zero.
    pub nat_addr: Addr,
    /// The port that goes with it.
    pub nat_port: Be16,
    /// Zero.
    pub reserved: u16,
    /// Zero.
    pub reserved2: u32,
}

abi!(CtEntry, size 64, align 8, fields [0 => last_seen: u64, 8 => addr: Addr, 24 => port: Be16, 26 => flags: u16, 28 => service: u32, 32 => backend: u32, 36 => list: u32, 40 => nat_addr: Addr, 56 => nat_port: Be16, 58 => reserved: u16, 60 => reserved2: u32]);
