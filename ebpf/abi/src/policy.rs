//! Network policies: who may talk to a pod of this node, and to whom it may.
//!
//! An address has an identity, which stands for all that policies can tell of it: two addresses that
//! every rule in force allows or does not allow alike have the same. A pod has a set of rules for each
//! direction, which it shares with the pods that have the same rules. What is allowed is written down
//! for a set and an identity.

use crate::{Addr, Be16, abi};

/// What a set of rules says: key of a longest-prefix trie, whose values are [`PolicyKey::ALLOW`] and
/// [`PolicyKey::DENY`]. Nothing that is not in it is allowed.
///
/// It is looked up with the identity of the peer, and where that has nothing, with [`PolicyKey::ANYBODY`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PolicyKey {
    /// Leading bits of what follows that count: [`PolicyKey::ANY`], [`PolicyKey::PROTO`], or that
    /// and the bits of the port.
    pub prefix_len: u32,
    /// Number of the set.
    pub set: u32,
    /// Identity of the peer.
    pub identity: u32,
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
    /// Port of the destination.
    pub port: Be16,
}

abi!(PolicyKey, size 16, align 4, fields [0 => prefix_len: u32, 4 => set: u32, 8 => identity: u32, 12 => proto: u8, 13 => reserved: u8, 14 => port: Be16]);

/// What follows the length in a [`PolicyKey`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PolicyRule {
    /// See [`PolicyKey::set`].
    pub set: u32,
    /// See [`PolicyKey::identity`].
    pub identity: u32,
    /// See [`PolicyKey::proto`].
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
    /// See [`PolicyKey::port`].
    pub port: Be16,
}

abi!(PolicyRule, size 12, align 4, fields [0 => set: u32, 4 => identity: u32, 8 => proto: u8, 9 => reserved: u8, 10 => port: Be16]);

impl PolicyKey {
    /// The identity that stands for every peer; also that of an address of which no policy says
    /// anything.
    pub const ANYBODY: u32 = 0;
    /// The value of a key that allows.
    pub const ALLOW: u32 = 1;
    /// The value of a key that denies what the next shorter one, or that for anybody, would allow.
    pub const DENY: u32 = 2;
    /// Length of a key that holds for every protocol.
    pub const ANY: u32 = 64;
    /// Length of a key that holds for every port of its protocol.
    pub const PROTO: u32 = 80;
    /// Length of a key that holds for one port.
    pub const PORT: u32 = 96;

    /// In the order of sets, then identities, so that those of one stand together.
    const fn rank(&self) -> (u32, u32, u8, u16, u32) {
        (self.set, self.identity, self.proto, self.port.get(), self.prefix_len)
    }
}

impl Ord for PolicyKey {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for PolicyKey {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The sets of rules of a pod of this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PolicySets {
    /// For connections to the pod.
    pub ingress: u32,
    /// For connections from it.
    pub egress: u32,
}

abi!(PolicySets, size 8, align 4, fields [0 => ingress: u32, 4 => egress: u32]);

impl PolicySets {
    /// The pod is not isolated in that direction: everything is allowed.
    pub const OPEN: u32 = 0;
    /// Nothing is allowed: a set that never has a rule.
    pub const CLOSED: u32 = u32::MAX;
    /// Both directions closed: what a pod has of which nothing is known yet.
    pub const SHUT: Self = Self { ingress: Self::CLOSED, egress: Self::CLOSED };
}

/// Words of [`PolicyState::filter`].
pub const POLICY_FILTER_WORDS: u32 = 16;

/// What the programs know of the policies of their node before they look anything up.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PolicyState {
    /// Raised by the agent after each change of the tables, never 0 then. A flow that was judged
    /// under another one is judged again.
    pub epoch: u32,
    /// Not 0 while a pod of the node is isolated. Nothing else is looked at while it is 0.
    pub policed: u32,
    /// A bit for the interface of each pod that is isolated, see [`PolicyState::bit`].
    pub filter: [u64; POLICY_FILTER_WORDS as usize],
}

abi!(PolicyState, size 136, align 8, fields [0 => epoch: u32, 4 => policed: u32, 8 => filter: [u64; 16]]);

impl PolicyState {
    /// The bit of [`PolicyState::filter`] that stands for an interface, and for others.
    #[inline(always)]
    pub const fn bit(ifindex: u32) -> u32 {
        ifindex % (64 * POLICY_FILTER_WORDS)
    }
}

/// The two ends of a flow of an isolated pod, and nothing of its direction: a packet and its answer
/// have the same. Addresses and ports are those that the server sees.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PolicyFlowKey {
    /// Address of the lower end: the one whose address, or else whose port, is the smaller number as
    /// it stands in memory.
    pub low: Addr,
    /// Address of the other end.
    pub high: Addr,
    /// Port of the lower end; of ICMP's echo, the identifier; 0 for protocols without ports.
    pub low_port: Be16,
    /// Port of the other end, as above.
    pub high_port: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

abi!(PolicyFlowKey, size 40, align 4, fields [0 => low: Addr, 16 => high: Addr, 32 => low_port: Be16, 34 => high_port: Be16, 36 => proto: u8, 37 => reserved: [u8; 3]]);

/// A flow that was allowed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PolicyFlow {
    /// Nanoseconds of the kernel's monotonic clock when a packet was last seen, to about a second.
    pub last_seen: u64,
    /// [`PolicyState::epoch`] under which the client was allowed to ask the server; 0: it was not.
    pub egress: u32,
    /// [`PolicyState::epoch`] under which the server was allowed to be asked; 0: it was not.
    pub ingress: u32,
    /// [`PolicyFlow::FROM_HIGH`] and [`PolicyFlow::NODE`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

abi!(PolicyFlow, size 24, align 8, fields [0 => last_seen: u64, 8 => egress: u32, 12 => ingress: u32, 16 => flags: u32, 20 => reserved: u32]);

impl PolicyFlow {
    /// The client is the end that the key calls high.
    pub const FROM_HIGH: u32 = 1 << 0;
    /// The client is a process of the node itself, which every pod of the node admits.
    pub const NODE: u32 = 1 << 1;
}

/// Packets that policies did not let pass at the interface of one pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PolicyDrops {
    /// To the pod.
    pub ingress: u64,
    /// From the pod.
    pub egress: u64,
}

abi!(PolicyDrops, size 16, align 8, fields [0 => ingress: u64, 8 => egress: u64]);

/// Whose rules were asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Direction {
    /// Those for connections to the pod.
    Ingress = 0,
    /// Those for connections from it.
    Egress = 1,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// The pod is isolated, and no rule of its set allows it.
    NotAllowed = 0,
    /// The pod has no rules at all ([`PolicySets::CLOSED`]).
    Closed = 1,
    /// A fragment whose datagram's ports are not known, to or from a pod that is isolated.
    UnknownFragment = 2,
}

impl DropReason {
    /// Every reason with its name.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::NotAllowed, "not_allowed"),
        (Self::Closed, "closed"),
        (Self::UnknownFragment, "unknown_fragment"),
    ];
}

/// A packet that was dropped, as the ring buffer has it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DropEvent {
    /// Nanoseconds of the kernel's monotonic clock (`CLOCK_MONOTONIC`).
    pub time: u64,
    /// Where the packet comes from: its real sender, whatever the pod would have seen.
    pub src: Addr,
    /// Where it goes, after translation.
    pub dst: Addr,
    /// Interface of the pod whose rules were asked.
    pub ifindex: u32,
    /// The set of rules, see [`PolicySets`].
    pub set: u32,
    /// Identity of the other end.
    pub identity: u32,
    /// Bytes of the packet, its Ethernet header included.
    pub len: u32,
    /// Source port; of ICMP's echo, the identifier.
    pub sport: Be16,
    /// Destination port, after translation.
    pub dport: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// A [`DropReason`].
    pub reason: u8,
    /// Not 0 if the packet was taken for an answer, so that the ports are the other way round: the
    /// rules were asked for the source port.
    pub answer: u8,
}

abi!(DropEvent, size 64, align 8, fields [0 => time: u64, 8 => src: Addr, 24 => dst: Addr, 40 => ifindex: u32, 44 => set: u32, 48 => identity: u32, 52 => len: u32, 56 => sport: Be16, 58 => dport: Be16, 60 => proto: u8, 61 => direction: u8, 62 => reason: u8, 63 => answer: u8]);
