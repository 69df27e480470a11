//! Backend lists: which exist, what is in them, and how they lie in the slots map.

use std::collections::{BTreeMap, HashMap};

use sluice_abi::{Backend, SLOTS_PER_CHUNK, SlotKey, Slots};

use crate::ids::Ids;
use crate::refs::Refs;

/// Slots of a chunk, as the standard library counts.
pub(crate) const CHUNK: usize = SLOTS_PER_CHUNK as usize;

/// The numbers of all backend lists. A list is found by what is in it, so frontends with the same
/// backends share one, and a Service that is stated anew keeps the one it has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    /// By the backend numbers in it, ascending. Damaged lists are not in here.
    by_content: HashMap<Box<[u32]>, u32>,
    /// How many frontends name each list.
    pub(crate) refs: Refs,
    ids: Ids,
}

impl Lists {
    /// From what the kernel holds, but for the references.
    pub(crate) fn restore(
        slots: &BTreeMap<SlotKey, Slots>,
        backends: &BTreeMap<u32, Backend>,
        named_by_frontends: impl Iterator<Item = u32>,
    ) -> Self {
        let mut lists = Self {
            ids: Ids::after(slots.keys().map(|key| key.list).chain(named_by_frontends)),
            ..Self::default()
        };
        for (list, chunks) in by_list(slots) {
            if list != 0
                && let Some(content) = content(&chunks, backends)
            {
                lists.by_content.entry(content).or_insert(list);
            }
        }
        lists
    }

    /// The list with exactly these backends.
    pub(crate) fn find(&self, content: &[u32]) -> Option<u32> {
        self.by_content.get(content).copied()
    }

    /// A number for a new list with these backends.
    pub(crate) fn create(&mut self, content: Box<[u32]>, slots: &BTreeMap<SlotKey, Slots>) -> u32 {
        let refs = &self.refs;
        let list = self.ids.allocate(|n| refs.is_used(n) || keys(slots, n).next().is_some());
        self.by_content.insert(content, list);
        list
    }

    /// The list is gone.
    pub(crate) fn forget(&mut self, list: u32, mut members: Vec<u32>) {
        members.sort_unstable();
        if self.by_content.get(members.as_slice()) == Some(&list) {
            self.by_content.remove(members.as_slice());
        }
    }
}

/// The chunks of a list with that number and content.
pub(crate) fn chunks(list: u32, content: &[u32]) -> impl Iterator<Item = (SlotKey, Slots)> {
    (0..).zip(content.chunks(CHUNK)).map(move |(chunk, part)| {
        let mut slots = Slots::default();
        slots.backend[..part.len()].copy_from_slice(part);
        (SlotKey { list, chunk }, slots)
    })
}

/// The keys of a list's chunks.
pub(crate) fn keys(slots: &BTreeMap<SlotKey, Slots>, list: u32) -> impl Iterator<Item = SlotKey> {
    let range = SlotKey { list, chunk: 0 }..=SlotKey { list, chunk: u32::MAX };
    slots.range(range).map(|(key, _)| *key)
}

/// The backends that a chunk refers to.
pub(crate) fn members(slots: &Slots) -> impl Iterator<Item = u32> + Clone + use<> {
    slots.backend.into_iter().filter(|number| *number != 0)
}

/// The chunks of each list.
pub(crate) fn by_list(slots: &BTreeMap<SlotKey, Slots>) -> BTreeMap<u32, Vec<(u32, &Slots)>> {
    let mut lists: BTreeMap<u32, Vec<(u32, &Slots)>> = BTreeMap::new();
    for (key, value) in slots {
        lists.entry(key.list).or_default().push((key.chunk, value));
    }
    lists
}

/// The backend numbers of a list, ascending, if it is whole: no chunk is missing or empty, only the
/// end of the last one is free, and every backend exists and is in it once.
pub(crate) fn content(
    chunks: &[(u32, &Slots)],
    backends: &BTreeMap<u32, Backend>,
) -> Option<Box<[u32]>> {
    if !chunks.iter().map(|(chunk, _)| *chunk).eq(0..chunks.len() as u32) {
        return None;
    }
    let mut all: Vec<u32> = chunks.iter().flat_map(|(_, slots)| slots.backend).collect();
    let count = all.iter().position(|number| *number == 0).unwrap_or(all.len());
    if count == 0 || count.div_ceil(CHUNK) != chunks.len() || all[count..].iter().any(|n| *n != 0) {
        return None;
    }
    all.truncate(count);
    all.sort_unstable();
    let twice = all.windows(2).any(|pair| pair[0] == pair[1]);
    let known = all.iter().all(|number| backends.contains_key(number));
    (known && !twice).then(|| all.into())
}

#[cfg(test)]
mod tests;
