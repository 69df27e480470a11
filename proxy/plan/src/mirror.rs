//! What the kernel holds, and the difference to what one frontend should be.

use std::collections::BTreeMap;

use sluice_abi::{Addr, Backend, Frontend, FrontendKey};

use crate::backends::Backends;
use crate::filter::{self, FilterRefs};
use crate::frontends::Want;
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
            filter: FilterRefs::default(),
            tables: Tables::default(),
        };
        for number in named_backends {
            mirror.backends.refs.retain(number);
        }
        for (key, frontend) in &tables.frontends {
            mirror.services.refs.retain(frontend.service);
            mirror.retain_list(frontend.list);
            mirror.filter.retain(&key.addr);
        }
        mirror.tables = tables;
        mirror
    }

    /// What the kernel holds.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Makes a frontend what a Service wants it to be.
    pub(crate) fn put(&mut self, key: FrontendKey, want: &Want, stage: &mut Stage) {
        let service = self.service(want, stage);
        let list = self.list(&want.backends, stage);
        let frontend = Frontend {
            service,
            list,
            count: u32::try_from(want.backends.len()).unwrap_or(u32::MAX),
            flags: want.flags,
            affinity_secs: want.affinity_secs,
        };
        self.admit(&key.addr, stage);
        let old = self.tables.frontends.get(&key).copied();
        if old == Some(frontend) {
            return;
        }
        self.services.refs.retain(service);
        self.retain_list(list);
        match old {
            Some(old) => self.release(&old, stage),
            None => {
                self.filter.retain(&key.addr);
            }
        }
        self.emit(Phase::PutFrontends, MapOp::PutFrontend(key, frontend), stage);
    }

    /// Makes a frontend disappear.
    pub(crate) fn delete(&mut self, key: FrontendKey, stage: &mut Stage) {
        let Some(old) = self.tables.frontends.get(&key).copied() else { return };
        self.release(&old, stage);
        stage.loose_bits.extend(self.filter.release(&key.addr));
        self.emit(Phase::DeleteFrontends, MapOp::DeleteFrontend(key), stage);
    }

    /// Deletes what lost its last reference while the plan was made. The last step of a plan.
    pub(crate) fn collect(&mut self, stage: &mut Stage) {
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

    /// Brings to light everything that nothing refers to.
    pub(crate) fn sweep(&mut self, stage: &mut Stage) {
        self.services.forget_restored();
        stage.loose_bits.extend(filter::bits(&self.tables.vip_filter));
        stage.loose_lists.extend(self.tables.slots.keys().map(|key| key.list));
        stage.loose_services.extend(self.tables.names.keys());
        stage.loose_backends.extend(self.tables.backends.keys());
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

    /// Drops a frontend's references.
    fn release(&mut self, old: &Frontend, stage: &mut Stage) {
        if self.services.refs.release(old.service) {
            stage.loose_services.insert(old.service);
        }
        if self.lists.refs.release(old.list) {
            stage.loose_lists.insert(old.list);
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

fn word_at(words: &BTreeMap<u32, u64>, word: u32) -> u64 {
    words.get(&word).copied().unwrap_or(0)
}
