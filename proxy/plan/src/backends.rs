//! Backend numbers.

use std::collections::{BTreeMap, HashMap};

use sluice_abi::Backend;

use crate::ids::Ids;
use crate::refs::Refs;

/// The numbers of all backends. Services that lead to the same address, port and protocol share
/// one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backends {
    by_value: HashMap<Backend, u32>,
    /// How many slots name each backend; also numbers that damaged lists name and no table has.
    pub(crate) refs: Refs,
    ids: Ids,
}

impl Backends {
    /// From what the kernel holds, but for the references. Of several numbers for one backend the
    /// least is kept.
    pub(crate) fn restore(
        backends: &BTreeMap<u32, Backend>,
        named_by_slots: impl Iterator<Item = u32>,
    ) -> Self {
        let mut restored = Self {
            ids: Ids::after(backends.keys().copied().chain(named_by_slots)),
            ..Self::default()
        };
        for (number, backend) in backends.iter().filter(|(number, _)| **number != 0) {
            restored.by_value.entry(*backend).or_insert(*number);
        }
        restored
    }

    /// The backend's number, if it has one.
    pub(crate) fn find(&self, backend: &Backend) -> Option<u32> {
        self.by_value.get(backend).copied()
    }

    /// A number for a backend that has none.
    pub(crate) fn create(&mut self, backend: Backend, table: &BTreeMap<u32, Backend>) -> u32 {
        let refs = &self.refs;
        let number = self.ids.allocate(|n| refs.is_used(n) || table.contains_key(&n));
        self.by_value.insert(backend, number);
        number
    }

    /// The backend with that number is gone.
    pub(crate) fn forget(&mut self, number: u32, backend: &Backend) {
        if self.by_value.get(backend) == Some(&number) {
            self.by_value.remove(backend);
        }
    }
}
