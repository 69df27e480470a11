//! Plans become map elements.

use std::{fmt::Debug, mem::discriminant};

use sluice_plan::MapOp;

use super::{
    ApplyError, Dataplane,
    map::{Map, Plain},
    spec,
    sys::Stopped,
};

impl Dataplane {
    /// Does the operations in order. Neighbours of the same kind are done with one system call.
    ///
    /// Every operation may be done twice, and what is to be deleted may be gone already, so a plan
    /// that failed halfway can be done again from its start.
    pub fn apply(&mut self, ops: &[MapOp]) -> Result<(), ApplyError> {
        self.in_runs(ops, |run| self.apply_run(run))
    }

    /// Does the operations, neighbours of the same kind at once.
    pub(super) fn in_runs<O: Copy + Debug>(
        &self,
        ops: &[O],
        apply: impl Fn(&[O]) -> Result<(), Failure>,
    ) -> Result<(), ApplyError<O>> {
        let mut done = 0;
        for run in ops.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
            apply(run).map_err(|failure| failure.at(run, done, self))?;
            done += run.len();
        }
        Ok(())
    }

    fn apply_run(&self, run: &[MapOp]) -> Result<(), Failure> {
        let maps = &self.view.maps;
        let Some(first) = run.first() else { return Ok(()) };
        match first {
            MapOp::PutBackend(..) => put(&maps.backends, run, |op| match op {
                MapOp::PutBackend(key, value) => Some((*key, *value)),
                _ => None,
            }),
            MapOp::PutSlots(..) => put(&maps.slots, run, |op| match op {
                MapOp::PutSlots(key, value) => Some((*key, *value)),
                _ => None,
            }),
            MapOp::PutName(..) => put(&maps.names, run, |op| match op {
                MapOp::PutName(key, value) => Some((*key, *value)),
                _ => None,
            }),
            MapOp::SetFilterWord(..) => put(&maps.vip_filter, run, |op| match op {
                MapOp::SetFilterWord(key, value) => Some((*key, *value)),
                _ => None,
            }),
            MapOp::PutSourceRange(..) => put(&maps.source_ranges, run, |op| match op {
                MapOp::PutSourceRange(key) => Some((*key, 1)),
                _ => None,
            }),
            MapOp::PutNodePort(..) => put(&maps.node_ports, run, |op| match op {
                MapOp::PutNodePort(key, value) => Some((*key, *value)),
                _ => None,
            }),
            MapOp::PutFrontend(..) => put(&maps.frontends, run, |op| match op {
                MapOp::PutFrontend(key, value) => Some((*key, *value)),
                _ => None,
            }),
            MapOp::DeleteBackend(..) => delete(&maps.backends, run, |op| match op {
                MapOp::DeleteBackend(key) => Some(*key),
                _ => None,
            }),
            MapOp::DeleteSlots(..) => delete(&maps.slots, run, |op| match op {
                MapOp::DeleteSlots(key) => Some(*key),
                _ => None,
            }),
            MapOp::DeleteName(..) => delete(&maps.names, run, |op| match op {
                MapOp::DeleteName(key) => Some(*key),
                _ => None,
            }),
            MapOp::DeleteSourceRange(..) => delete(&maps.source_ranges, run, |op| match op {
                MapOp::DeleteSourceRange(key) => Some(*key),
                _ => None,
            }),
            MapOp::DeleteNodePort(..) => delete(&maps.node_ports, run, |op| match op {
                MapOp::DeleteNodePort(key) => Some(*key),
                _ => None,
            }),
            MapOp::DeleteFrontend(..) => delete(&maps.frontends, run, |op| match op {
                MapOp::DeleteFrontend(key) => Some(*key),
                _ => None,
            }),
        }
    }
}

pub(super) fn put<O, K: Plain, V: aya::Pod>(
    map: &Map<K, V>,
    run: &[O],
    element: impl Fn(&O) -> Option<(K, V)>,
) -> Result<(), Failure> {
    let (keys, values): (Vec<K>, Vec<V>) = run.iter().filter_map(element).unzip();
    map.put_all(&keys, &values).map_err(|stopped| Failure { map: map.name(), stopped })
}

pub(super) fn delete<O, K: Plain, V: aya::Pod>(
    map: &Map<K, V>,
    run: &[O],
    key: impl Fn(&O) -> Option<K>,
) -> Result<(), Failure> {
    let keys: Vec<K> = run.iter().filter_map(key).collect();
    map.delete_all(&keys).map_err(|stopped| Failure { map: map.name(), stopped })
}

/// A run of operations stopped.
pub(super) struct Failure {
    map: &'static str,
    stopped: Stopped,
}

impl Failure {
    /// The error, where so many operations were done before the run.
    pub(super) fn at<O: Copy + Debug>(
        self,
        run: &[O],
        before: usize,
        dataplane: &Dataplane,
    ) -> ApplyError<O> {
        let Self { map, stopped: Stopped { done, error } } = self;
        // The elements of a run are its operations, one each; the last stands for a count that
        // says that all were done.
        let op = Box::new(run[done.min(run.len() - 1)]);
        let done = before + done;
        match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => ApplyError::Full {
                map,
                size: dataplane.view.size(map).unwrap_or(0),
                flag: spec::size_flag(map),
                op,
                done,
            },
            _ => ApplyError::Refused { map, op, done, source: error },
        }
    }
}
