//! Network policies: who may talk to a pod of this node, and to whom it may.
//!
//! An address has an identity, which stands for all that policies can tell of it: two addresses that
//! every rule in force allows or does not allow alike have the same. A pod has a set of rules for each
//! direction, which it shares with the pods that have the same rules. What is allowed is written down
//! for a set and an identity.

use crate::{Be16, abi};

/// What a set of rules allows: key of a longest-prefix trie. Nothing that is not in it is allowed.
///
/// It is looked up twice: with the identity of the peer, and with [`PolicyKey::ANYBODY`].
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

impl PolicyKey {
    /// The identity that stands for every peer; also that of an address of which no policy says
    /// anything.
    pub const ANYBODY: u32 = 0;
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
