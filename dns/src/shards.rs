//! A map that is cheap to copy and to change a little.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Enough that one of 100,000 entries shares its shard with some hundred others only.
const SHARDS: usize = 512;

/// A hash map in shards, each behind an [`Arc`]: a clone shares all shards, and a change copies the
/// one shard it touches. So a new snapshot costs in proportion to what changed, not to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct ShardMap<K, V> {
    hasher: RandomState,
    shards: Box<[Arc<HashMap<K, V>>]>,
}

impl<K: Eq + Hash + Clone, V: Clone> ShardMap<K, V> {
    /// An empty map.
    pub(crate) fn new() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { hasher: RandomState::new(), shards: vec![empty; SHARDS].into() }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The remainder is below SHARDS, so the cast loses nothing.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }

    /// The value of a key.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[self.shard(key)].get(key)
    }

    /// The key as it is kept, to share it.
    pub(crate) fn get_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        self.shards[self.shard(key)].get_key_value(key).map(|(key, _)| key)
    }

    /// Puts a value, and returns the one that was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let shard = self.shard(&key);
        Arc::make_mut(&mut self.shards[shard]).insert(key, value)
    }

    /// Removes a key, and returns its value; a key that is not there copies nothing.
    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let shard = self.shard(key);
        if !self.shards[shard].contains_key(key) {
            return None;
        }
        Arc::make_mut(&mut self.shards[shard]).remove(key)
    }

    /// All keys and values, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }
}

impl<K: Eq + Hash + Clone, V: Clone + PartialEq> PartialEq for ShardMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(k, v)| other.get(k) == Some(v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_the_original_had_when_one_of_them_changes() {
        let mut map = ShardMap::new();
        for n in 0..2000 {
            assert_eq!(map.insert(n, n), None);
        }
        let old = map.clone();
        assert_eq!(map.insert(7, 70), Some(7));
        assert_eq!(map.remove(&8), Some(8));
        assert_eq!(map.remove(&5000), None);
        assert_eq!((map.len(), old.len()), (1999, 2000));
        assert_eq!((old.get(&7), old.get(&8)), (Some(&7), Some(&8)));
        assert_eq!((map.get(&7), map.get(&8)), (Some(&70), None));
        assert_ne!(map, old);
    }

    #[test]
    fn a_change_copies_one_shard_only() {
        let mut map = ShardMap::new();
        for n in 0..2000 {
            map.insert(n, n);
        }
        let old = map.clone();
        map.insert(7, 70);
        let copied = map.shards.iter().zip(&old.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied, 1);
    }
}
