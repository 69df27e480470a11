//! The kernel's service tables as userspace sees them, and the operations that change them.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::{
    Backend, Frontend, FrontendKey, NodePortKey, ServiceName, SlotKey, Slots, SourceRangeKey,
};

/// What the kernel's service maps hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// [`sluice_abi::maps::FRONTENDS`].
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// [`sluice_abi::maps::SLOTS`].
    pub slots: BTreeMap<SlotKey, Slots>,
    /// [`sluice_abi::maps::BACKENDS`], by backend number.
    pub backends: BTreeMap<u32, Backend>,
    /// [`sluice_abi::maps::SERVICE_NAMES`], by service number.
    pub names: BTreeMap<u32, ServiceName>,
    /// [`sluice_abi::maps::VIP_FILTER`]: the words that are not zero, by their index.
    pub vip_filter: BTreeMap<u32, u64>,
    /// [`sluice_abi::maps::SOURCE_RANGES`]: bits beyond the prefix are zero.
    pub source_ranges: BTreeSet<SourceRangeKey>,
    /// [`sluice_abi::maps::NODE_PORTS`]: the number of a service port that is served there.
    pub node_ports: BTreeMap<NodePortKey, u32>,
}

impl Tables {
    /// Does to these tables what [`MapOp`] does to the kernel's. Deleting what is not there changes
    /// nothing, as in the kernel.
    pub fn apply(&mut self, op: &MapOp) {
        match *op {
            MapOp::PutBackend(number, backend) => {
                self.backends.insert(number, backend);
            }
            MapOp::DeleteBackend(number) => {
                self.backends.remove(&number);
            }
            MapOp::PutSlots(key, slots) => {
                self.slots.insert(key, slots);
            }
            MapOp::DeleteSlots(key) => {
                self.slots.remove(&key);
            }
            MapOp::PutName(number, name) => {
                self.names.insert(number, name);
            }
            MapOp::DeleteName(number) => {
                self.names.remove(&number);
            }
            MapOp::SetFilterWord(word, 0) => {
                self.vip_filter.remove(&word);
            }
            MapOp::SetFilterWord(word, bits) => {
                self.vip_filter.insert(word, bits);
            }
            MapOp::PutSourceRange(key) => {
                self.source_ranges.insert(key);
            }
            MapOp::DeleteSourceRange(key) => {
                self.source_ranges.remove(&key);
            }
            MapOp::PutNodePort(key, service) => {
                self.node_ports.insert(key, service);
            }
            MapOp::DeleteNodePort(key) => {
                self.node_ports.remove(&key);
            }
            MapOp::PutFrontend(key, frontend) => {
                self.frontends.insert(key, frontend);
            }
            MapOp::DeleteFrontend(key) => {
                self.frontends.remove(&key);
            }
        }
    }
}

/// One change to one element of one map. Every operation may be done twice, and an element that is
/// to be deleted may be gone already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapOp {
    /// Inserts or replaces a backend by its number.
    PutBackend(u32, Backend),
    /// Deletes a backend by its number.
    DeleteBackend(u32),
    /// Inserts or replaces one chunk of a backend list.
    PutSlots(SlotKey, Slots),
    /// Deletes one chunk of a backend list.
    DeleteSlots(SlotKey),
    /// Inserts or replaces the name of a service number.
    PutName(u32, ServiceName),
    /// Deletes the name of a service number.
    DeleteName(u32),
    /// Writes the word with that index of the address filter; its bits are in the host's order.
    SetFilterWord(u32, u64),
    /// Admits a range of clients to a service port.
    PutSourceRange(SourceRangeKey),
    /// Admits it no more.
    DeleteSourceRange(SourceRangeKey),
    /// Takes a port of the node for a service port, by its number: no process may bind it.
    PutNodePort(NodePortKey, u32),
    /// Gives a port of the node back.
    DeleteNodePort(NodePortKey),
    /// Inserts or replaces a frontend: the one atomic write that switches it to another list.
    PutFrontend(FrontendKey, Frontend),
    /// Deletes a frontend.
    DeleteFrontend(FrontendKey),
}
