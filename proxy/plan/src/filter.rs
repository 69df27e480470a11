//! How many frontends need each bit of the address filter.

use std::collections::BTreeMap;

use sluice_abi::{Addr, vip_filter_bit};

use crate::refs::Refs;

/// The word and the mask of a filter bit.
pub(crate) fn position(bit: u32) -> (u32, u64) {
    (bit / 64, 1 << (bit % 64))
}

/// Whether the filter lets a program look for frontends of that address.
pub(crate) fn admits(words: &BTreeMap<u32, u64>, addr: &Addr) -> bool {
    let (word, mask) = position(vip_filter_bit(addr));
    words.get(&word).is_some_and(|bits| bits & mask != 0)
}

/// The bits that stand in the words.
pub(crate) fn bits(words: &BTreeMap<u32, u64>) -> impl Iterator<Item = u32> {
    words.iter().flat_map(|(word, bits)| {
        (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word * 64 + bit)
    })
}

/// Counts the frontends by bit.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterRefs {
    refs: Refs,
}

impl FilterRefs {
    /// One more frontend has that address; returns its bit.
    pub(crate) fn retain(&mut self, addr: &Addr) -> u32 {
        let bit = vip_filter_bit(addr);
        self.refs.retain(bit);
        bit
    }

    /// One frontend less; returns the bit if no frontend needs it any more.
    pub(crate) fn release(&mut self, addr: &Addr) -> Option<u32> {
        let bit = vip_filter_bit(addr);
        self.refs.release(bit).then_some(bit)
    }

    /// Whether a frontend needs the bit.
    pub(crate) fn is_used(&self, bit: u32) -> bool {
        self.refs.is_used(bit)
    }
}
