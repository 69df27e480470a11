//! What comes after a plan that could not be done to its end.

use std::collections::BTreeSet;

use sluice_abi::{FrontendFlags, FrontendKey, Scope};

use crate::MapOp;

/// What a planner takes for written and the kernel does not hold, since a plan stopped halfway: a map
/// was full.
///
/// Until there is a planner made from what the kernel really holds, plans rest on a picture that is
/// wrong. Most of each can be done all the same, and is to be, or one Service that finds no room would
/// keep all others from changing. Two things cannot: to refer to what was never written, and to delete
/// what the planner thinks is needed no more, while the kernel still has what needs it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Setback {
    happened: bool,
    backends: BTreeSet<u32>,
    lists: BTreeSet<u32>,
    /// Service ports without their name or a range that they admit.
    services: BTreeSet<u32>,
    frontends: BTreeSet<FrontendKey>,
}

impl Setback {
    /// A plan stopped; these of its operations were not done.
    pub fn stopped(&mut self, left: &[MapOp]) {
        self.happened = true;
        for op in left {
            match *op {
                MapOp::PutBackend(number, _) => {
                    self.backends.insert(number);
                }
                MapOp::PutSlots(key, _) => {
                    self.lists.insert(key.list);
                }
                MapOp::PutName(number, _) => {
                    self.services.insert(number);
                }
                MapOp::PutSourceRange(key) => {
                    self.services.insert(key.service);
                }
                MapOp::PutFrontend(key, _) => {
                    self.frontends.insert(key);
                }
                _ => {}
            }
        }
    }

    /// What may be done of a plan that was made since: all of it while nothing stopped. `None`: it
    /// rests on what is missing, and nothing of it may be done; it is missing from now on, too.
    pub fn admit(&mut self, mut ops: Vec<MapOp>) -> Option<Vec<MapOp>> {
        if !self.happened {
            return Some(ops);
        }
        if ops.iter().any(|op| self.lacks_what_it_needs(op)) {
            self.stopped(&ops);
            return None;
        }
        // What is left over goes with the sweep of the next planner.
        ops.retain(|op| {
            !matches!(op, MapOp::DeleteBackend(_) | MapOp::DeleteSlots(_) | MapOp::DeleteName(_))
        });
        Some(ops)
    }

    fn lacks_what_it_needs(&self, op: &MapOp) -> bool {
        match op {
            MapOp::PutSlots(_, slots) => {
                slots.backend.iter().any(|number| self.backends.contains(number))
            }
            MapOp::PutNodePort(_, service) => self.services.contains(service),
            MapOp::PutFrontend(key, frontend) => {
                let outside = FrontendKey { scope: Scope::External as u8, ..*key };
                let differs = frontend.flags & FrontendFlags::EXTERNAL_DIFFERS != 0;
                self.lists.contains(&frontend.list)
                    || self.services.contains(&frontend.service)
                    || differs && self.frontends.contains(&outside)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_abi::{Backend, Frontend, SlotKey, Slots};

    use super::*;

    fn slots(list: u32, backend: u32) -> MapOp {
        let mut slots = Slots::default();
        slots.backend[0] = backend;
        MapOp::PutSlots(SlotKey { list, chunk: 0 }, slots)
    }

    fn frontend(list: u32) -> MapOp {
        let frontend = Frontend { service: 1, list, count: 1, ..Frontend::default() };
        MapOp::PutFrontend(FrontendKey::default(), frontend)
    }

    /// S33: of two Services with one backend that found no room, neither refers to it.
    #[test]
    fn nothing_refers_to_what_was_not_written() {
        let mut setback = Setback::default();
        let deletes = vec![MapOp::DeleteBackend(3)];
        assert_eq!(setback.admit(deletes.clone()), Some(deletes), "nothing happened");
        setback.stopped(&[MapOp::PutBackend(7, Backend::default()), slots(5, 7), frontend(5)]);
        assert_eq!(setback.admit(vec![slots(6, 7), frontend(6)]), None);
        assert_eq!(setback.admit(vec![frontend(6)]), None, "that list was not written either");
        assert_eq!(setback.admit(vec![frontend(5)]), None);
        let others = vec![slots(8, 4), frontend(8)];
        assert_eq!(setback.admit(others.clone()), Some(others));
    }

    /// S33: a list may still be named by the frontend that was to be switched to another.
    #[test]
    fn nothing_is_deleted_that_may_be_in_use() {
        let mut setback = Setback::default();
        setback.stopped(&[frontend(2)]);
        let gone = MapOp::DeleteFrontend(FrontendKey::default());
        let ops = vec![
            gone,
            MapOp::DeleteSlots(SlotKey { list: 1, chunk: 0 }),
            MapOp::DeleteName(1),
            MapOp::DeleteBackend(3),
        ];
        assert_eq!(setback.admit(ops), Some(vec![gone]));
    }
}
