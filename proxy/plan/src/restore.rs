//! Frontends that the kernel had when the agent began, and whom they belonged to.

use std::collections::{BTreeSet, HashMap};

use sluice_abi::{Frontend, FrontendFlags, FrontendKey};
use sluice_model::ObjectName;

use crate::Tables;
use crate::frontends::{any_port, inside};

/// Restored frontends whose Service has not been heard of yet.
///
/// Until it has, or until the restored state is pruned, its frontends stay as they are: another
/// Service that asks for one of them may be the lesser claimant that merely came first, and to give
/// it the frontend would cross connections for as long as the rest of the list takes to arrive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// More than one where Services share an address: any of them may want its other ports refused.
    by_key: HashMap<FrontendKey, BTreeSet<ObjectName>>,
    by_service: HashMap<ObjectName, BTreeSet<FrontendKey>>,
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
            held.hold(inside(key), &service);
            let any_port = any_port(key.addr);
            let of_cluster = |f: &Frontend| f.flags & FrontendFlags::CLUSTER_IP != 0;
            if of_cluster(frontend) && tables.frontends.contains_key(&any_port) {
                held.hold(any_port, &service);
            }
        }
        held
    }

    fn hold(&mut self, key: FrontendKey, service: &ObjectName) {
        self.by_key.entry(key).or_default().insert(service.clone());
        self.by_service.entry(service.clone()).or_default().insert(key);
    }

    /// Whether the frontend waits for its Service.
    pub(crate) fn holds(&self, key: &FrontendKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// The Service has been heard of: its frontends are held for it no more.
    pub(crate) fn release(&mut self, service: &ObjectName) -> BTreeSet<FrontendKey> {
        let keys = self.by_service.remove(service).unwrap_or_default();
        for key in &keys {
            let Some(services) = self.by_key.get_mut(key) else { continue };
            services.remove(service);
            if services.is_empty() {
                self.by_key.remove(key);
            }
        }
        keys
    }

    /// All sources have been heard: no frontend is held any more.
    pub(crate) fn release_all(&mut self) {
        *self = Self::default();
    }
}
