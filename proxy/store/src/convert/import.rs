//! ServiceImports.

use sluice_model::{ImportPort, IpFamily, ResourceKind, ServiceImport};

use super::FieldError;
use super::field::{each, one_a_family, port, protocol, unknown, virtual_addr};
use super::meta::meta;
use crate::wire;

pub(super) fn import(wire: wire::ServiceImport) -> Result<ServiceImport, FieldError> {
    let meta = meta(ResourceKind::ServiceImport, wire.metadata)?;
    let spec = wire.spec;
    let headless = match spec.kind.as_str() {
        "ClusterSetIP" => false,
        "Headless" => true,
        "" => return Err(FieldError::new("spec.type", "is missing")),
        other => return Err(unknown("spec.type", other, "ClusterSetIP or Headless")),
    };
    let ips = each(&spec.ips, |i, ip| virtual_addr(format_args!("spec.ips[{i}]"), ip))?;
    one_a_family("spec.ips", &ips, IpFamily::of)?;
    let ports = each(spec.ports, |i, wire| {
        let at = |field: &str| format!("spec.ports[{i}].{field}");
        Ok(ImportPort {
            protocol: protocol(at("protocol"), &wire.protocol)?,
            port: port(at("port"), wire.port)?,
            name: wire.name,
        })
    })?;
    let ips = if headless { Vec::new() } else { ips };
    Ok(ServiceImport { meta, headless, ips, ports })
}
