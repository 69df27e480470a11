//! The tables of network policies: written, read back, and what the programs dropped for them.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::maps::{Map as AyaMap, MapData, MapError, RingBuf};
use sluice_abi::{
    DropEvent, PolicyDrops, PolicyFlow, PolicyFlowKey, PolicyKey, PolicySets, PolicyState, maps,
};
use sluice_plan::{PolicyOp, PolicyTables};

use super::{
    ApplyError, Dataplane, DataplaneError, Pinned,
    apply::{Failure, delete, put},
    load::PinDirs,
    sys,
    view::{map_error, sorted},
};

/// A plan for policies could not be carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// An operation failed.
    #[error(transparent)]
    Apply(#[from] ApplyError<PolicyOp>),
    /// The programs could not be told, or the tables not be read.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

impl PolicyError {
    /// The map that could not be written, where it is one of the tables.
    pub fn map(&self) -> Option<&'static str> {
        match self {
            Self::Apply(error) => Some(error.map()),
            Self::Dataplane(DataplaneError::Map { map, .. }) => Some(map),
            Self::Dataplane(_) => None,
        }
    }
}

/// Whether sets of rules isolate their pod.
fn is_policed(sets: &PolicySets) -> bool {
    *sets != PolicySets { ingress: PolicySets::OPEN, egress: PolicySets::OPEN }
}

/// Says that the pod at an interface is isolated.
fn mark(state: &mut PolicyState, ifindex: u32) {
    let bit = PolicyState::bit(ifindex);
    state.filter[bit as usize / 64] |= 1 << (bit % 64);
    state.policed = 1;
}

impl Dataplane {
    /// Does the operations in order, then has all flows of isolated pods judged again. Neighbours of
    /// the same kind are done with one system call.
    ///
    /// A pod that is isolated is so from the moment that its operation is done; one that is not any
    /// more costs nothing afterwards. Every operation may be done twice, and what is to be deleted
    /// may be gone already, so a plan that failed halfway can be done again from its start.
    ///
    /// # Errors
    ///
    /// [`ApplyError`] where an operation failed: those before it are in force.
    pub fn apply_policy(&mut self, ops: &[PolicyOp]) -> Result<(), PolicyError> {
        if ops.is_empty() {
            return Ok(());
        }
        let held = self.view.policy_state()?;
        let mut state = held;
        for op in ops {
            if let PolicyOp::PutSets(ifindex, sets) = op
                && is_policed(sets)
            {
                mark(&mut state, *ifindex);
            }
        }
        self.judged |= state.policed != 0;
        // Before the tables say so, for the programs look here first.
        if state != held {
            self.put_policy_state(&state)?;
        }
        let done = self.in_runs(ops, |run| self.apply_policy_run(run));
        // What was done before an operation that failed is in force too.
        self.raise_epoch(state)?;
        done.map_err(PolicyError::from)
    }

    fn apply_policy_run(&self, run: &[PolicyOp]) -> Result<(), Failure> {
        let maps = &self.view.maps;
        let Some(first) = run.first() else { return Ok(()) };
        match first {
            PolicyOp::PutRule(..) => put(&maps.policy, run, |op| match op {
                PolicyOp::PutRule(key) => Some((*key, PolicyKey::ALLOW)),
                _ => None,
            }),
            PolicyOp::PutDenial(..) => put(&maps.policy, run, |op| match op {
                PolicyOp::PutDenial(key) => Some((*key, PolicyKey::DENY)),
                _ => None,
            }),
            PolicyOp::DeleteRule(..) => delete(&maps.policy, run, |op| match op {
                PolicyOp::DeleteRule(key) => Some(*key),
                _ => None,
            }),
            PolicyOp::PutIdentity(..) => put(&maps.identities, run, |op| match op {
                PolicyOp::PutIdentity(key, identity) => Some((*key, *identity)),
                _ => None,
            }),
            PolicyOp::DeleteIdentity(..) => delete(&maps.identities, run, |op| match op {
                PolicyOp::DeleteIdentity(key) => Some(*key),
                _ => None,
            }),
            PolicyOp::PutSets(..) => put(&maps.policy_sets, run, |op| match op {
                PolicyOp::PutSets(ifindex, sets) => Some((*ifindex, *sets)),
                _ => None,
            }),
            PolicyOp::DeleteSets(..) => {
                let ifindex = |op: &PolicyOp| match op {
                    PolicyOp::DeleteSets(ifindex) => Some(*ifindex),
                    _ => None,
                };
                delete(&maps.policy_sets, run, ifindex)?;
                // The number of the interface may be another pod's next.
                delete(&maps.policy_drops, run, ifindex)
            }
        }
    }

    /// Writes down which pods are isolated as the tables have it, under the next epoch.
    fn raise_epoch(&self, before: PolicyState) -> Result<(), DataplaneError> {
        let epoch = before.epoch.checked_add(1).unwrap_or(1);
        let mut state = PolicyState { epoch, ..PolicyState::default() };
        let map = &self.view.maps.policy_sets;
        map.for_each(PolicySets::default(), |ifindex, sets| {
            if is_policed(sets) {
                mark(&mut state, *ifindex);
            }
        })
        .map_err(map_error(map, "read"))?;
        self.put_policy_state(&state)
    }

    fn put_policy_state(&self, state: &PolicyState) -> Result<(), DataplaneError> {
        let map = &self.view.maps.policy_state;
        map.put(&0, state).map_err(map_error(map, "write"))
    }

    /// The tables of network policies as the kernel holds them.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn policy_tables(&self) -> Result<PolicyTables, DataplaneError> {
        self.view.policy_tables()
    }
}

impl Pinned {
    /// The tables of network policies.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn policy_tables(&self) -> Result<PolicyTables, DataplaneError> {
        let mut tables = PolicyTables::default();
        let map = &self.maps.identities;
        map.for_each(0, |key, identity| {
            tables.identities.insert(*key, *identity);
        })
        .map_err(map_error(map, "read"))?;
        let map = &self.maps.policy;
        map.for_each(0, |key, value| {
            let allows = *value == PolicyKey::ALLOW;
            let known = if allows { &mut tables.rules } else { &mut tables.denials };
            known.insert(*key);
        })
        .map_err(map_error(map, "read"))?;
        let map = &self.maps.policy_sets;
        map.for_each(PolicySets::default(), |ifindex, sets| {
            tables.sets.insert(*ifindex, *sets);
        })
        .map_err(map_error(map, "read"))?;
        Ok(tables)
    }

    /// What the programs know of the policies before they look anything up.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn policy_state(&self) -> Result<PolicyState, DataplaneError> {
        let map = &self.maps.policy_state;
        let state = map.get(&0, PolicyState::default()).map_err(map_error(map, "read"))?;
        Ok(state.unwrap_or_default())
    }

    /// The flows of isolated pods, sorted by key.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn policy_flows(&self) -> Result<Vec<(PolicyFlowKey, PolicyFlow)>, DataplaneError> {
        sorted(&self.maps.policy_flows)
    }

    /// How many packets policies did not let pass, by the index of the pod's host-side interface,
    /// sorted.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn policy_drops(&self) -> Result<Vec<(u32, PolicyDrops)>, DataplaneError> {
        sorted(&self.maps.policy_drops)
    }
}

/// The ring buffer of packets that were dropped. An event is read once: of several readers, each
/// gets a part. While nobody reads, the oldest ones stay and new ones are lost.
pub struct Drops {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Drops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drops").finish_non_exhaustive()
    }
}

impl Drops {
    /// Opens the ring buffer that is pinned under the root (`--bpf-root`). [`Drops::take`] gives what
    /// is in it already, too.
    ///
    /// # Errors
    ///
    /// Nothing is pinned there, or this process may not read it.
    pub fn open(bpf_root: &Path) -> Result<Self, DataplaneError> {
        let path = PinDirs::new(bpf_root).maps.join(maps::DROP_EVENTS);
        let failed = |path: &PathBuf, source| DataplaneError::MapInfo {
            path: path.clone(),
            source: Box::new(source),
        };
        let map = MapData::from_pin(&path).map_err(|source: MapError| failed(&path, source))?;
        let map = AyaMap::from_map_data(map).map_err(|source| failed(&path, source))?;
        let ring = RingBuf::try_from(map).map_err(|source| failed(&path, source))?;
        Ok(Self { ring })
    }

    /// The next event; `None` if there is none yet. The file descriptor becomes readable when there
    /// is.
    pub fn take(&mut self) -> Option<DropEvent> {
        self.ring.next().and_then(|item| sys::from_bytes(&item))
    }

    /// Leaves out what is in the buffer already.
    pub fn skip_all(&mut self) {
        while self.ring.next().is_some() {}
    }
}

impl AsFd for Drops {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
