//! The order of a plan.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::NodePortKey;

use crate::MapOp;

/// The phases of a plan, in their order.
///
/// What is referred to is written before what refers to it, and deleted after it, so that a program
/// that runs between any two operations finds each frontend as it was or as it will be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    PutBackends,
    PutSlots,
    PutNames,
    PutSourceRanges,
    PutNodePorts,
    SetFilter,
    /// Frontends for clients outside: before those that say that there are such.
    PutExternal,
    PutFrontends,
    /// What stands for all other ports of an address, while those that have frontends have them.
    PutAnyPort,
    DeleteAnyPort,
    DeleteFrontends,
    DeleteExternal,
    ClearFilter,
    DeleteNodePorts,
    DeleteSourceRanges,
    DeleteSlots,
    DeleteNames,
    DeleteBackends,
}

/// A plan in the making: its operations, and what may have become garbage on the way.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    ops: Vec<(Phase, MapOp)>,
    /// Filter words before and after the frontends change; only the last value of each counts.
    pub(crate) set_words: BTreeMap<u32, u64>,
    pub(crate) clear_words: BTreeMap<u32, u64>,
    /// Lists, service numbers, backends and filter bits that lost a reference.
    pub(crate) loose_lists: BTreeSet<u32>,
    pub(crate) loose_services: BTreeSet<u32>,
    pub(crate) loose_backends: BTreeSet<u32>,
    pub(crate) loose_bits: BTreeSet<u32>,
    /// Service numbers whose admitted ranges, and ports of the node whose owners, may have changed.
    pub(crate) ranged: BTreeSet<u32>,
    pub(crate) node_ports: BTreeSet<NodePortKey>,
}

impl Stage {
    /// Adds an operation.
    pub(crate) fn push(&mut self, phase: Phase, op: MapOp) {
        self.ops.push((phase, op));
    }

    /// The operations in their order.
    pub(crate) fn into_ops(mut self) -> Vec<MapOp> {
        let words = |phase, words: BTreeMap<u32, u64>| {
            words.into_iter().map(move |(word, bits)| (phase, MapOp::SetFilterWord(word, bits)))
        };
        self.ops.extend(words(Phase::SetFilter, self.set_words));
        self.ops.extend(words(Phase::ClearFilter, self.clear_words));
        // Stable: within a phase the order of arrival stays.
        self.ops.sort_by_key(|(phase, _)| *phase);
        self.ops.into_iter().map(|(_, op)| op).collect()
    }
}
