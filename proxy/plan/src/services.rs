//! Service numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sluice_abi::{Frontend, FrontendKey, ServiceName, proto};
use sluice_model::ServicePortName;

use crate::ids::Ids;
use crate::refs::Refs;

/// The numbers of all service ports. All frontends of a service port share one, whatever their
/// family; it stays while at least one of them does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    by_name: HashMap<Arc<ServicePortName>, u32>,
    by_number: HashMap<u32, Arc<ServicePortName>>,
    /// Numbers from the kernel that no Service has asked for yet, by name and IP protocol.
    restored: HashMap<(ServiceName, u8), u32>,
    /// How many frontends bear each number.
    pub(crate) refs: Refs,
    ids: Ids,
}

/// The name as the kernel's table has it.
pub(crate) fn kernel_name(port: &ServicePortName) -> ServiceName {
    ServiceName::new(&port.service.namespace, &port.service.name, &port.port)
}

impl Services {
    /// From what the kernel holds, but for the references.
    ///
    /// The names table has no protocol; the frontends that bear a number tell it. A number without
    /// frontends, or with frontends of several protocols, is nobody's.
    pub(crate) fn restore(
        names: &BTreeMap<u32, ServiceName>,
        frontends: &BTreeMap<FrontendKey, Frontend>,
    ) -> Self {
        let mut protocols: BTreeMap<u32, BTreeSet<u8>> = BTreeMap::new();
        for (key, frontend) in frontends {
            protocols.entry(frontend.service).or_default().insert(key.proto);
        }
        let mut services = Self {
            ids: Ids::after(names.keys().chain(protocols.keys()).copied()),
            ..Self::default()
        };
        for (number, protocols) in &protocols {
            if *number != 0
                && protocols.len() == 1
                && let (Some(protocol), Some(name)) = (protocols.first(), names.get(number))
            {
                services.restored.entry((*name, *protocol)).or_insert(*number);
            }
        }
        services
    }

    /// The number of a service port: the one it has, or had in the kernel, or a new one.
    pub(crate) fn number(
        &mut self,
        port: &Arc<ServicePortName>,
        table: &BTreeMap<u32, ServiceName>,
    ) -> u32 {
        if let Some(number) = self.by_name.get(port) {
            return *number;
        }
        let restored = self.restored.remove(&(kernel_name(port), port.protocol.number()));
        let refs = &self.refs;
        let number = restored
            .unwrap_or_else(|| self.ids.allocate(|n| refs.is_used(n) || table.contains_key(&n)));
        self.by_name.insert(Arc::clone(port), number);
        self.by_number.insert(number, Arc::clone(port));
        number
    }

    /// The number is free; `name` is what the kernel's table had for it.
    pub(crate) fn forget(&mut self, number: u32, name: Option<&ServiceName>) {
        if let Some(port) = self.by_number.remove(&number) {
            self.by_name.remove(&port);
        }
        let Some(name) = name else { return };
        for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
            let key = (*name, protocol);
            if self.restored.get(&key) == Some(&number) {
                self.restored.remove(&key);
            }
        }
    }

    /// Forgets what was restored and nobody has asked for.
    pub(crate) fn forget_restored(&mut self) {
        self.restored = HashMap::new();
    }
}
