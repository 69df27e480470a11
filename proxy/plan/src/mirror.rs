//! What the kernel holds, and the difference to what one frontend should be.

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;

use sluice_abi::{Addr, Backend, Frontend, FrontendFlags, FrontendKey, NodePortKey, Scope};

use crate::admissions::Admissions;
use crate::backends::Backends;
use crate::filter::{self, FilterRefs};
use crate::frontends::{Want, is_any_port};
use crate::lists::{self, Lists};
use crate::services::{self, Services};
use crate::stage::{Phase, Stage};
use crate::{MapOp, Tables};

/// The kernel's tables with what is needed to change them: numbers by what they stand for, and how
/// often each is referred to.
///
/// An operation changes the tables here at once and goes into the plan under its phase; so within
/// one plan a later frontend finds what an earlier one made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirror {
    tables: Tables,
    backends: Backends,
    lists: Lists,
    services: Services,
    filter: FilterRefs,
    admissions: Admissions,
    /// The service ports that are served at each port of the node, with the number of frontends.
    node_ports: BTreeMap<NodePortKey, BTreeMap<u32, u32>>,
}

impl Mirror {
    /// From what the kernel holds. The tables need not be sound.
    pub(crate) fn restore(tables: Tables) -> Self {
        let named_lists = tables.frontends.values().map(|frontend| frontend.list);
        let named_backends = tables.slots.values().flat_map(lists::members);
        let mut mirror = Self {
            backends: Backends::restore(&tables.backends, named_backends.clone()),
            lists: Lists::restore(&tables.slots, &tables.backends, named_lists),
            services: Services::restore(&tables.names, &tables.frontends),
            admissions: Admissions::restore(&tables.source_ranges),
            ..Self::default()
        };
        for number in named_backends {
            mirror.backends.refs.retain(number);
        }
        for (key, frontend) in &tables.frontends {
            mirror.retain(key, frontend);
            mirror.filter.retain(&key.addr);
        }
        mirror.tables = tables;
        mirror
    }

    /// What the kernel holds.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Makes a frontend what a Service wants it to be, with the one for clients outside, if they get
    /// something else.
    pub(crate) fn put(&mut self, key: FrontendKey, want: &Want, stage: &mut Stage) {
        let service = self.service(want, stage);
        let mut flags = want.flags;
        if let Some(ranges) = &want.ranges {
            flags |= FrontendFlags::SOURCE_RANGES;
            self.admissions.want(service, ranges);
            stage.ranged.insert(service);
        }
        let mut frontend = |backends: &Arc<[Backend]>, flags, mirror: &mut Self| Frontend {
            service,
            list: mirror.list(backends, stage),
            count: u32::try_from(backends.len()).unwrap_or(u32::MAX),
            flags,
            affinity_secs: want.affinity_secs,
        };
        let Some(outside) = &want.outside else {
            let frontend = frontend(&want.backends, flags, self);
            self.write(key, frontend, stage);
            self.take(outside_of(&key), stage);
            return;
        };
        let of_outside = frontend(outside, flags | FrontendFlags::LOCAL_ONLY, self);
        let of_inside = frontend(&want.backends, flags | FrontendFlags::EXTERNAL_DIFFERS, self);
        self.write(outside_of(&key), of_outside, stage);
        self.write(key, of_inside, stage);
    }

    /// Has all ports of an address refused that have no frontend.
    pub(crate) fn put_any_port(&mut self, key: FrontendKey, stage: &mut Stage) {
        let frontend = Frontend { flags: FrontendFlags::ANY_PORT, ..Frontend::default() };
        self.write(key, frontend, stage);
        self.take(outside_of(&key), stage);
    }

    /// Makes a frontend disappear, with the one for clients outside.
    pub(crate) fn delete(&mut self, key: FrontendKey, stage: &mut Stage) {
        self.take(key, stage);
        if key.scope == Scope::Internal as u8 {
            self.take(outside_of(&key), stage);
        }
    }

    /// Writes one element, unless it is there.
    fn write(&mut self, key: FrontendKey, frontend: Frontend, stage: &mut Stage) {
        self.admit(&key.addr, stage);
        let old = self.tables.frontends.get(&key).copied();
        if old == Some(frontend) {
            return;
        }
        self.retain(&key, &frontend);
        match old {
            Some(old) => self.release(&key, &old, stage),
            None => {
                self.filter.retain(&key.addr);
            }
        }
        if let Some(port) = node_port(&key, &frontend) {
            stage.node_ports.insert(port);
        }
        let phase = if key.scope == Scope::External as u8 {
            Phase::PutExternal
        } else if is_any_port(&key) {
            Phase::PutAnyPort
        } else {
            Phase::PutFrontends
        };
        self.emit(phase, MapOp::PutFrontend(key, frontend), stage);
    }

    /// Deletes one element, if it is there.
    fn take(&mut self, key: FrontendKey, stage: &mut Stage) {
        let Some(old) = self.tables.frontends.get(&key).copied() else { return };
        self.release(&key, &old, stage);
        stage.loose_bits.extend(self.filter.release(&key.addr));
        let phase = if key.scope == Scope::External as u8 {
            Phase::DeleteExternal
        } else if is_any_port(&key) {
            Phase::DeleteAnyPort
        } else {
            Phase::DeleteFrontends
        };
        self.emit(phase, MapOp::DeleteFrontend(key), stage);
    }

    /// Deletes what lost its last reference while the plan was made. The last step of a plan.
    pub(crate) fn collect(&mut self, stage: &mut Stage) {
        for key in std::mem::take(&mut stage.node_ports) {
            self.settle_node_port(key, stage);
        }
        for service in std::mem::take(&mut stage.ranged) {
            self.settle_ranges(service, stage);
        }
        for bit in std::mem::take(&mut stage.loose_bits) {
            self.clear_bit(bit, stage);
        }
        for list in std::mem::take(&mut stage.loose_lists) {
            if !self.lists.refs.is_used(list) {
                self.delete_list(list, stage);
            }
        }
        for number in std::mem::take(&mut stage.loose_services) {
            if !self.services.refs.is_used(number) {
                let name = self.tables.names.get(&number).copied();
                self.services.forget(number, name.as_ref());
                if name.is_some() {
                    self.emit(Phase::DeleteNames, MapOp::DeleteName(number), stage);
                }
            }
        }
        for number in std::mem::take(&mut stage.loose_backends) {
            if !self.backends.refs.is_used(number)
                && let Some(backend) = self.tables.backends.get(&number).copied()
            {
                self.backends.forget(number, &backend);
                self.emit(Phase::DeleteBackends, MapOp::DeleteBackend(number), stage);
            }
        }
    }

    /// Brings to light everything that nothing refers to. To be called when all that was restored has
    /// been stated, or is nobody's.
    pub(crate) fn sweep(&mut self, stage: &mut Stage) {
        self.services.forget_restored();
        self.sweep_unused(stage);
        stage.ranged.extend(self.admissions.services());
        // Those that are there too much, and those that are missing.
        stage.node_ports.extend(self.tables.node_ports.keys().copied());
        stage.node_ports.extend(self.node_ports.keys().copied());
    }

    /// Brings to light what takes room and nothing refers to.
    pub(crate) fn sweep_unused(&self, stage: &mut Stage) {
        stage.loose_bits.extend(filter::bits(&self.tables.vip_filter));
        stage.loose_lists.extend(self.tables.slots.keys().map(|key| key.list));
        stage.loose_services.extend(self.tables.names.keys());
        stage.loose_backends.extend(self.tables.backends.keys());
    }

    /// Takes a port of the node for one of the service ports that are served there, or gives it back.
    /// The one that has it keeps it for as long as it is among them.
    ///
    /// One without a name, as damaged tables may have it, is passed over: it gets its name when it is
    /// stated, or goes, and [`Mirror::sweep`] comes after that. Until then the port stays as it is: it
    /// is served, so no process of the node may bind it.
    fn settle_node_port(&mut self, key: NodePortKey, stage: &mut Stage) {
        let current = self.tables.node_ports.get(&key).copied();
        let Some(users) = self.node_ports.get(&key) else {
            if current.is_some() {
                self.emit(Phase::DeleteNodePorts, MapOp::DeleteNodePort(key), stage);
            }
            return;
        };
        if current.is_some_and(|service| users.contains_key(&service)) {
            return;
        }
        let first = users.keys().find(|service| self.tables.names.contains_key(service)).copied();
        if let Some(first) = first {
            self.emit(Phase::PutNodePorts, MapOp::PutNodePort(key, first), stage);
        }
    }

    /// Brings the ranges that a service port admits to what it wants.
    fn settle_ranges(&mut self, service: u32, stage: &mut Stage) {
        let change = self.admissions.settle(service);
        for key in change.put {
            self.emit(Phase::PutSourceRanges, MapOp::PutSourceRange(key), stage);
        }
        for key in change.delete {
            self.emit(Phase::DeleteSourceRanges, MapOp::DeleteSourceRange(key), stage);
        }
    }

    /// The number of the service port, with its name in the table.
    fn service(&mut self, want: &Want, stage: &mut Stage) -> u32 {
        let number = self.services.number(&want.port, &self.tables.names);
        if !self.tables.names.contains_key(&number) {
            let name = services::kernel_name(&want.port);
            self.emit(Phase::PutNames, MapOp::PutName(number, name), stage);
        }
        number
    }

    /// The list with these backends; 0 if there are none.
    fn list(&mut self, wanted: &[Backend], stage: &mut Stage) -> u32 {
        if wanted.is_empty() {
            return 0;
        }
        let mut content: Box<[u32]> =
            wanted.iter().map(|backend| self.backend(*backend, stage)).collect();
        content.sort_unstable();
        if let Some(list) = self.lists.find(&content) {
            return list;
        }
        let list = self.lists.create(content.clone(), &self.tables.slots);
        for (key, slots) in lists::chunks(list, &content) {
            self.emit(Phase::PutSlots, MapOp::PutSlots(key, slots), stage);
        }
        for number in content {
            self.backends.refs.retain(number);
        }
        list
    }

    /// The number of the backend, with the backend in the table.
    fn backend(&mut self, backend: Backend, stage: &mut Stage) -> u32 {
        if let Some(number) = self.backends.find(&backend) {
            return number;
        }
        let number = self.backends.create(backend, &self.tables.backends);
        self.emit(Phase::PutBackends, MapOp::PutBackend(number, backend), stage);
        number
    }

    /// Counts a frontend's reference to a list. Number 0 stands for no list, and is not counted.
    fn retain_list(&mut self, list: u32) {
        if list != 0 {
            self.lists.refs.retain(list);
        }
    }

    /// Counts a frontend's references.
    fn retain(&mut self, key: &FrontendKey, frontend: &Frontend) {
        self.services.refs.retain(frontend.service);
        self.retain_list(frontend.list);
        if frontend.flags & FrontendFlags::SOURCE_RANGES != 0 {
            self.admissions.refs.retain(frontend.service);
        }
        if let Some(port) = node_port(key, frontend) {
            *self.node_ports.entry(port).or_default().entry(frontend.service).or_default() += 1;
        }
    }

    /// Drops a frontend's references.
    fn release(&mut self, key: &FrontendKey, old: &Frontend, stage: &mut Stage) {
        if self.services.refs.release(old.service) {
            stage.loose_services.insert(old.service);
        }
        if self.lists.refs.release(old.list) {
            stage.loose_lists.insert(old.list);
        }
        if old.flags & FrontendFlags::SOURCE_RANGES != 0
            && self.admissions.refs.release(old.service)
        {
            stage.ranged.insert(old.service);
        }
        if let Some(port) = node_port(key, old) {
            stage.node_ports.insert(port);
            if let btree_map::Entry::Occupied(mut users) = self.node_ports.entry(port) {
                let count = users.get_mut().entry(old.service).or_default();
                *count = count.saturating_sub(1);
                users.get_mut().retain(|_, count| *count > 0);
                if users.get().is_empty() {
                    users.remove();
                }
            }
        }
    }

    fn delete_list(&mut self, list: u32, stage: &mut Stage) {
        let mut members = Vec::new();
        for key in lists::keys(&self.tables.slots, list).collect::<Vec<_>>() {
            members.extend(self.tables.slots.get(&key).into_iter().flat_map(lists::members));
            self.emit(Phase::DeleteSlots, MapOp::DeleteSlots(key), stage);
        }
        for number in &members {
            if self.backends.refs.release(*number) {
                stage.loose_backends.insert(*number);
            }
        }
        self.lists.forget(list, members);
    }

    /// Sets the address's bit in the filter.
    fn admit(&mut self, addr: &Addr, stage: &mut Stage) {
        if !filter::admits(&self.tables.vip_filter, addr) {
            self.set_bit(sluice_abi::vip_filter_bit(addr), stage);
        }
    }

    fn set_bit(&mut self, bit: u32, stage: &mut Stage) {
        let (word, mask) = filter::position(bit);
        let old = word_at(&self.tables.vip_filter, word);
        if old & mask == 0 {
            self.tables.apply(&MapOp::SetFilterWord(word, old | mask));
            stage.set_words.insert(word, old | mask);
        }
    }

    /// Clears a bit that no frontend needs.
    fn clear_bit(&mut self, bit: u32, stage: &mut Stage) {
        let (word, mask) = filter::position(bit);
        let old = word_at(&self.tables.vip_filter, word);
        if !self.filter.is_used(bit) && old & mask != 0 {
            self.tables.apply(&MapOp::SetFilterWord(word, old & !mask));
            stage.clear_words.insert(word, old & !mask);
        }
    }

    fn emit(&mut self, phase: Phase, op: MapOp, stage: &mut Stage) {
        self.tables.apply(&op);
        stage.push(phase, op);
    }
}

/// The key for clients outside at the same address, port and protocol.
fn outside_of(key: &FrontendKey) -> FrontendKey {
    FrontendKey { scope: Scope::External as u8, ..*key }
}

/// The port of the node that the frontend takes.
fn node_port(key: &FrontendKey, frontend: &Frontend) -> Option<NodePortKey> {
    let takes = frontend.flags & FrontendFlags::NODE_PORT != 0;
    takes.then_some(NodePortKey { port: key.port, proto: key.proto, reserved: 0 })
}

fn word_at(words: &BTreeMap<u32, u64>, word: u32) -> u64 {
    words.get(&word).copied().unwrap_or(0)
}
