//! What could not be understood.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_model::ObjectKey;

use crate::Rejected;

/// The rejections in force, one an origin, and which of them are new since [`Rejects::begin`].
#[derive(Debug, Default)]
pub(super) struct Rejects {
    by_origin: BTreeMap<String, Rejected>,
    by_key: HashMap<ObjectKey, BTreeSet<String>>,
    /// In force at `begin` and gone since: the same coming back is no news.
    before: Vec<Rejected>,
    /// Origins of what came since `begin`.
    fresh: BTreeSet<String>,
}

impl Rejects {
    pub(super) fn begin(&mut self) {
        self.before.clear();
        self.fresh.clear();
    }

    /// What is in force now and was not at `begin`.
    pub(super) fn end(&mut self) -> Vec<Rejected> {
        let before = std::mem::take(&mut self.before);
        std::mem::take(&mut self.fresh)
            .iter()
            .filter_map(|origin| self.by_origin.get(origin))
            .filter(|rejected| !before.contains(rejected))
            .cloned()
            .collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rejected> {
        self.by_origin.values()
    }

    pub(super) fn insert(&mut self, rejected: Rejected) {
        if self.by_origin.get(&rejected.origin) == Some(&rejected) {
            return;
        }
        self.recover_origin(&rejected.origin);
        if let Some(key) = &rejected.key {
            self.by_key.entry(key.clone()).or_default().insert(rejected.origin.clone());
        }
        self.fresh.insert(rejected.origin.clone());
        self.by_origin.insert(rejected.origin.clone(), rejected);
    }

    pub(super) fn recover_origin(&mut self, origin: &str) {
        let Some(rejected) = self.by_origin.remove(origin) else { return };
        if let Some(key) = &rejected.key
            && let Some(origins) = self.by_key.get_mut(key)
        {
            origins.remove(origin);
            if origins.is_empty() {
                self.by_key.remove(key);
            }
        }
        if !self.fresh.remove(origin) {
            self.before.push(rejected);
        }
    }

    pub(super) fn recover_key(&mut self, key: &ObjectKey) {
        for origin in self.by_key.get(key).cloned().unwrap_or_default() {
            self.recover_origin(&origin);
        }
    }

    /// Puts all rejections of a new list in the place of the old ones.
    pub(super) fn replace(&mut self, rejected: impl Iterator<Item = Rejected>) {
        let new: BTreeMap<String, Rejected> =
            rejected.map(|rejected| (rejected.origin.clone(), rejected)).collect();
        let gone: Vec<String> =
            self.by_origin.keys().filter(|origin| !new.contains_key(*origin)).cloned().collect();
        for origin in gone {
            self.recover_origin(&origin);
        }
        for rejected in new.into_values() {
            self.insert(rejected);
        }
    }
}
