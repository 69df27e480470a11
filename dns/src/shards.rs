//! A map that is cheap to copy and to change a little.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

/// Enough that one of 100,000 entries shares its shard with some hundred others only.
const SHARDS: usize = 512;

/// A hash function for keys that come from the network: fast for short keys, and seeded at random, so
/// that nobody outside knows which keys collide. Each eight octets are multiplied into 128 bits with
/// a secret, and the halves are folded together.
#[derive(Clone, Debug)]
struct Seeds {
    start: u64,
    factor: u64,
}

impl Seeds {
    fn new() -> Self {
        let random = RandomState::new();
        // Odd, so that multiplying loses nothing.
        Self { start: random.hash_one(0), factor: random.hash_one(1) | 1 }
    }
}

impl BuildHasher for Seeds {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { state: self.start, factor: self.factor }
    }
}

/// See [`Seeds`].
#[derive(Clone, Debug)]
struct Folded {
    state: u64,
    factor: u64,
}

impl Folded {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        // Both halves count; what is above them is nothing.
        self.state = (product as u64) ^ ((product >> 64) as u64);
        self.state = self.state.rotate_left(23) ^ self.factor;
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        // The length keeps `a` and `a\0` apart.
        self.fold(u64::from_le_bytes(word) ^ (bytes.len() as u64) << 56);
    }

    fn write_u8(&mut self, byte: u8) {
        self.fold(byte.into());
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.state) * u128::from(self.factor);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

/// A hash map in shards, each behind an [`Arc`]: a clone shares all shards, and a change copies the
/// one shard it touches. So a new snapshot costs in proportion to what changed, not to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct ShardMap<K, V> {
    hasher: Seeds,
    shards: Box<[Arc<HashMap<K, V, Seeds>>]>,
}

impl<K: Eq + Hash + Clone, V: Clone> ShardMap<K, V> {
    /// An empty map.
    pub(crate) fn new() -> Self {
        let hasher = Seeds::new();
        let empty = Arc::new(HashMap::with_hasher(hasher.clone()));
        Self { hasher, shards: vec![empty; SHARDS].into() }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // Other bits than those that the map itself goes by. The remainder is below SHARDS, so the
        // cast loses nothing.
        (self.hasher.hash_one(key) >> 32) as usize % SHARDS
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

    /// Puts a value, or takes the one away that is there.
    pub(crate) fn set(&mut self, key: K, value: Option<V>) {
        match value {
            Some(value) => drop(self.insert(key, value)),
            None => drop(self.remove(&key)),
        }
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

    /// Keys that differ little are spread all the same, over shards and within them.
    #[test]
    fn similar_keys_are_spread_evenly() {
        let mut map = ShardMap::new();
        for n in 0..20_000 {
            map.insert(format!("svc-{n}.team-{}", n % 20), n);
            map.insert(format!("{n}"), n);
        }
        let sizes = map.shards.iter().map(|shard| shard.len());
        let (least, most) = (sizes.clone().min(), sizes.max());
        assert!(least > Some(30) && most < Some(150), "{least:?} {most:?}");
        let hashes: std::collections::HashSet<_> =
            map.iter().map(|(key, _)| map.hasher.hash_one(key) >> 24).collect();
        assert_eq!(hashes.len(), map.len(), "40 bits do not collide in a map this small");
        assert_ne!(map.hasher.hash_one("a"), map.hasher.hash_one("a\0"));
        assert_ne!(Seeds::new().hash_one("a"), Seeds::new().hash_one("a"));
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
