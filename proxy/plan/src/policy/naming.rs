//! Which things name which peers.

use std::collections::{BTreeSet, HashMap};

/// Numbers of things (identities, sets) by the peers that they name.
#[derive(Clone, Debug, Default)]
pub(super) struct Naming(HashMap<u32, BTreeSet<u32>>);

impl Naming {
    /// The thing names these peers.
    pub(super) fn add(&mut self, peers: impl Iterator<Item = u32>, number: u32) {
        for peer in peers {
            self.0.entry(peer).or_default().insert(number);
        }
    }

    /// It names them no more.
    pub(super) fn remove(&mut self, peers: impl Iterator<Item = u32>, number: u32) {
        for peer in peers {
            if let Some(numbers) = self.0.get_mut(&peer) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.0.remove(&peer);
                }
            }
        }
    }

    /// What names the peer.
    pub(super) fn of(&self, peer: u32) -> impl Iterator<Item = u32> + use<'_> {
        self.0.get(&peer).into_iter().flatten().copied()
    }
}
