//! The ranges of clients that each service port admits.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sluice_abi::SourceRangeKey;

use crate::ranges::Range;
use crate::refs::Refs;

/// What the kernel has and what the Services want, by service number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admissions {
    held: HashMap<u32, BTreeSet<SourceRangeKey>>,
    wanted: HashMap<u32, Arc<[Range]>>,
    /// How many frontends of each service port ask for the client's address.
    pub(crate) refs: Refs,
}

/// What to change.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) put: Vec<SourceRangeKey>,
    pub(crate) delete: Vec<SourceRangeKey>,
}

impl Admissions {
    /// From what the kernel holds, but for the references.
    pub(crate) fn restore(ranges: &BTreeSet<SourceRangeKey>) -> Self {
        let mut admissions = Self::default();
        for key in ranges {
            admissions.held.entry(key.service).or_default().insert(*key);
        }
        admissions
    }

    /// The service port wants these.
    pub(crate) fn want(&mut self, service: u32, ranges: &Arc<[Range]>) {
        self.wanted.insert(service, Arc::clone(ranges));
    }

    /// The service ports that the kernel has ranges for.
    pub(crate) fn services(&self) -> impl Iterator<Item = u32> {
        self.held.keys().copied()
    }

    /// What leads from what the kernel has for a service port to what it wants, which the kernel is
    /// taken to have from then on. A service port that has not said what it wants keeps what it has
    /// for as long as a frontend asks.
    pub(crate) fn settle(&mut self, service: u32) -> Change {
        if !self.refs.is_used(service) {
            self.wanted.remove(&service);
            let delete = self.held.remove(&service).into_iter().flatten().collect();
            return Change { put: Vec::new(), delete };
        }
        let Some(wanted) = self.wanted.get(&service) else { return Change::default() };
        let wanted: BTreeSet<_> = wanted.iter().map(|range| range.key(service)).collect();
        let held = self.held.remove(&service).unwrap_or_default();
        let change = Change {
            put: wanted.difference(&held).copied().collect(),
            delete: held.difference(&wanted).copied().collect(),
        };
        if !wanted.is_empty() {
            self.held.insert(service, wanted);
        }
        change
    }
}
