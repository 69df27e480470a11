//! Frontends that the kernel had when the agent began, and whom they belonged to.

use std::collections::HashMap;

use sluice_abi::{FrontendFlags, FrontendKey};
use sluice_model::ObjectName;

use crate::Tables;

/// Restored frontends whose Service has not been heard of yet.
///
/// Until it has, or until the restored state is pruned, its frontends stay as they are: another
/// Service that asks for one of them may be the lesser claimant that merely came first, and to give
/// it the frontend would cross connections for as long as the rest of the list takes to arrive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    by_key: HashMap<FrontendKey, ObjectName>,
    by_service: HashMap<ObjectName, Vec<FrontendKey>>,
}

impl Held {
    /// All frontends whose service number has a name.
    pub(crate) fn restore(tables: &Tables) -> Self {
        let mut held = Self::default();
        for (key, frontend) in &tables.frontends {
            // Ports of pods are no Service's, and pods are stated first of all.
            if frontend.flags & FrontendFlags::HOST_PORT != 0 {
                continue;
            }
            let Some(name) = tables.names.get(&frontend.service) else { continue };
            let (namespace, name, _) = name.parts();
            let service = ObjectName::new(namespace, name);
            held.by_key.insert(*key, service.clone());
            held.by_service.entry(service).or_default().push(*key);
        }
        held
    }

    /// Whether the frontend waits for its Service.
    pub(crate) fn holds(&self, key: &FrontendKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// The Service has been heard of: its frontends are held no more.
    pub(crate) fn release(&mut self, service: &ObjectName) -> Vec<FrontendKey> {
        let keys = self.by_service.remove(service).unwrap_or_default();
        for key in &keys {
            self.by_key.remove(key);
        }
        keys
    }

    /// All sources have been heard: no frontend is held any more.
    pub(crate) fn release_all(&mut self) {
        *self = Self::default();
    }
}
