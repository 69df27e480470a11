//! Service numbers.

use std::collections::{BTreeMap, HashMap};
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
    /// frontends is nobody's.
    pub(crate) fn restore(
        names: &BTreeMap<u32, ServiceName>,
        frontends: &BTreeMap<FrontendKey, Frontend>,
    ) -> Self {
        let borne: BTreeMap<u32, u8> =
            frontends.iter().map(|(key, frontend)| (frontend.service, key.proto)).collect();
        let mut services =
            Self { ids: Ids::after(names.keys().chain(borne.keys()).copied()), ..Self::default() };
        for (number, protocol) in borne.into_iter().filter(|(number, _)| *number != 0) {
            if let Some(name) = names.get(&number) {
                services.restored.entry((*name, protocol)).or_insert(number);
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

#[cfg(test)]
mod tests {
    use sluice_model::{ObjectName, Protocol};

    use super::*;

    fn port(name: &str, protocol: Protocol) -> Arc<ServicePortName> {
        let service = ObjectName::new("ns", name);
        Arc::new(ServicePortName { service, port: String::new(), protocol })
    }

    /// One frontend of that protocol that bears number 7, the name of which is `web`.
    fn restored(proto: u8) -> (Services, BTreeMap<u32, ServiceName>) {
        let names = BTreeMap::from([(7, ServiceName::new("ns", "web", ""))]);
        let key = FrontendKey { proto, ..FrontendKey::default() };
        let frontends = BTreeMap::from([(key, Frontend { service: 7, ..Frontend::default() })]);
        (Services::restore(&names, &frontends), names)
    }

    #[test]
    fn restored_number_goes_to_the_port_of_its_name_and_protocol() {
        let (mut services, names) = restored(proto::UDP);
        assert_eq!(services.number(&port("web", Protocol::Tcp), &names), 8);
        assert_eq!(services.number(&port("web", Protocol::Udp), &names), 7);
        assert_eq!(services.number(&port("dns", Protocol::Udp), &names), 9);
    }

    #[test]
    fn restored_number_that_was_deleted_is_not_given_again() {
        let (mut services, mut names) = restored(proto::TCP);
        services.forget(7, names.remove(&7).as_ref());
        assert_eq!(services.number(&port("web", Protocol::Tcp), &names), 8);
    }
}
