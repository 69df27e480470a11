//! What the programs wrote down of a pod beside its flows: which of its flows policies allowed, and
//! which backends it had of services with affinity. It goes with the pod, as its flows do, so that the
//! next one with its address is not taken for it.

use std::path::Path;

use sluice_abi::{Addr, Affinity, AffinityKey, PolicyFlow, PolicyFlowKey, maps};

use super::{
    Dataplane, DataplaneError,
    leaving::Leaving,
    map::{Map, Plain, Progress},
    view::map_error,
};

/// A key that tells whose the entry is.
trait Whose {
    /// Whether it is one of these addresses'.
    fn is_of(&self, is_one: &dyn Fn(&Addr) -> bool) -> bool;
}

impl Whose for PolicyFlowKey {
    fn is_of(&self, is_one: &dyn Fn(&Addr) -> bool) -> bool {
        is_one(&self.low) || is_one(&self.high)
    }
}

impl Whose for AffinityKey {
    fn is_of(&self, is_one: &dyn Fn(&Addr) -> bool) -> bool {
        // A network namespace has its cookie to itself.
        self.flags & Self::COOKIE == 0 && is_one(&self.client)
    }
}

impl Dataplane {
    /// Removes what is written down of these addresses beside their flows.
    pub(super) fn forget_remains(
        &self,
        is_one: &dyn Fn(&Addr) -> bool,
    ) -> Result<(), DataplaneError> {
        let maps = &self.view.maps;
        forget(&maps.policy_flows, PolicyFlow::default(), is_one)?;
        forget(&maps.affinity, Affinity::default(), is_one)
    }
}

fn forget<K: Plain + Whose, V: aya::Pod>(
    map: &Map<K, V>,
    empty: V,
    is_one: &dyn Fn(&Addr) -> bool,
) -> Result<(), DataplaneError> {
    let mut keys = Vec::new();
    map.for_each(empty, |key, _| {
        if key.is_of(is_one) {
            keys.push(*key);
        }
    })
    .map_err(map_error(map, "read"))?;
    map.delete_all(&keys).map_err(|stopped| map_error(map, "delete from")(stopped.error))
}

/// One map, gone through some elements at a time.
#[derive(Debug)]
struct Sweep<K, V> {
    map: Map<K, V>,
    progress: Progress,
}

impl<K: Plain + Whose, V: aya::Pod + Default> Sweep<K, V> {
    fn open(name: &'static str, directory: &Path) -> Result<Self, DataplaneError> {
        let path = directory.join(name);
        match Map::open(name, &path, false) {
            Ok(map) => Ok(Self { map, progress: Progress::default() }),
            Err(source) => Err(DataplaneError::File { action: "open", path, source }),
        }
    }

    /// Removes those of the next few thousand elements that are of an address among `leaving`; whether
    /// they were the last.
    fn step(&mut self, leaving: &Leaving) -> Result<bool, DataplaneError> {
        let Self { map, progress } = self;
        let mut keys = Vec::new();
        let last = map
            .visit_some(progress, V::default(), &mut |key, _| keys.push(*key))
            .map_err(map_error(map, "read"))?;
        // Whoever takes an address back finds what is its own, or nothing.
        let forgotten = leaving.with(|is_leaving| {
            keys.retain(|key| key.is_of(is_leaving));
            map.delete_all(&keys)
        });
        forgotten.map_err(|stopped| map_error(map, "delete from")(stopped.error))?;
        Ok(last)
    }
}

/// Goes through what is written down beside the flows, where a pod went.
#[derive(Debug)]
pub(super) struct Remains {
    policy_flows: Sweep<PolicyFlowKey, PolicyFlow>,
    affinity: Sweep<AffinityKey, Affinity>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// There is nothing to do.
    Done,
    PolicyFlows,
    Affinity,
}

impl Remains {
    /// Of the maps that are pinned there.
    pub(super) fn open(directory: &Path) -> Result<Self, DataplaneError> {
        Ok(Self {
            policy_flows: Sweep::open(maps::POLICY_FLOWS, directory)?,
            affinity: Sweep::open(maps::AFFINITY, directory)?,
            stage: Stage::Done,
        })
    }

    /// All of it is to be looked at.
    pub(super) fn begin(&mut self) {
        self.stage = Stage::PolicyFlows;
    }

    /// Whether that is not done yet.
    pub(super) fn are_due(&self) -> bool {
        self.stage != Stage::Done
    }

    /// Looks at the next part; whether it was the last.
    pub(super) fn step(&mut self, leaving: &Leaving) -> Result<bool, DataplaneError> {
        match self.stage {
            Stage::PolicyFlows if self.policy_flows.step(leaving)? => self.stage = Stage::Affinity,
            Stage::Affinity if self.affinity.step(leaving)? => self.stage = Stage::Done,
            _ => {}
        }
        Ok(self.stage == Stage::Done)
    }
}
