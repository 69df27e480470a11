//! Which Service owns a frontend that several ask for.

use std::collections::HashMap;

use sluice_abi::FrontendKey;
use sluice_model::ObjectName;

/// A Service's place in the queue for a frontend: the oldest first, then the least name. It depends
/// on nothing but the objects, so every node and every restart of the agent decides alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rank {
    /// `creationTimestamp`.
    pub(crate) created: i64,
    /// The Service.
    pub(crate) service: ObjectName,
}

/// The Services that ask for each frontend.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    /// Sorted; never empty.
    by_key: HashMap<FrontendKey, Vec<Rank>>,
}

impl Claims {
    /// The Service asks for the frontend.
    pub(crate) fn add(&mut self, key: FrontendKey, rank: Rank) {
        let ranks = self.by_key.entry(key).or_default();
        if let Err(place) = ranks.binary_search(&rank) {
            ranks.insert(place, rank);
        }
    }

    /// The Service asks for it no more.
    pub(crate) fn remove(&mut self, key: &FrontendKey, rank: &Rank) {
        let Some(ranks) = self.by_key.get_mut(key) else { return };
        ranks.retain(|r| r != rank);
        if ranks.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// The Service that has the frontend, and those that wait for it.
    pub(crate) fn queue(&self, key: &FrontendKey) -> Option<(&ObjectName, &[Rank])> {
        let (first, rest) = self.by_key.get(key)?.split_first()?;
        Some((&first.service, rest))
    }
}
