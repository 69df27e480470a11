//! EndpointSlices.

use sluice_model::{
    AddressType, Conditions, EndpointSlice, IpFamily, ObjectName, ObjectRef, ResourceKind,
    SliceEndpoint, SlicePort,
};

use super::FieldError;
use super::field::{each, family_name, port, protocol, unicast, unknown};
use super::meta::meta;
use crate::wire;

/// The label that says which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says which ServiceImport a slice belongs to.
const IMPORT_NAME: &str = "multicluster.kubernetes.io/service-name";
/// The label that says which cluster of the set its endpoints are in.
const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";

pub(super) fn slice(wire: wire::EndpointSlice) -> Result<EndpointSlice, FieldError> {
    let meta = meta(ResourceKind::EndpointSlice, wire.metadata)?;
    let (address_type, family) = match wire.address_type.as_str() {
        "IPv4" => (AddressType::V4, Some(IpFamily::V4)),
        "IPv6" => (AddressType::V6, Some(IpFamily::V6)),
        "FQDN" => (AddressType::Fqdn, None),
        "" => return Err(FieldError::new("addressType", "is missing")),
        other => return Err(unknown("addressType", other, "IPv4, IPv6 or FQDN")),
    };
    let endpoints = match family {
        Some(family) => {
            each(wire.endpoints, |i, wire| endpoint(i, wire, family, &meta.name.namespace))?
        }
        // Host names have no place in a data plane; the slice itself still counts.
        None => Vec::new(),
    };
    let ports = each(wire.ports, |i, wire| {
        let at = |field: &str| format!("ports[{i}].{field}");
        Ok(SlicePort {
            name: wire.name.unwrap_or_default(),
            protocol: protocol(at("protocol"), wire.protocol.as_deref().unwrap_or_default())?,
            port: wire.port.map(|number| port(at("port"), number)).transpose()?,
        })
    })?;
    let label = |label| meta.labels.get(label).filter(|value| !value.is_empty()).cloned();
    let named = |name| ObjectName::new(meta.name.namespace.clone(), name);
    let service = label(SERVICE_NAME).map(named);
    let import = label(IMPORT_NAME).map(named);
    let cluster = label(SOURCE_CLUSTER);
    Ok(EndpointSlice { meta, service, import, cluster, address_type, endpoints, ports })
}

fn endpoint(
    i: usize,
    wire: wire::Endpoint,
    family: IpFamily,
    namespace: &str,
) -> Result<SliceEndpoint, FieldError> {
    if wire.addresses.is_empty() {
        return Err(FieldError::new(format_args!("endpoints[{i}].addresses"), "is empty"));
    }
    let addresses = each(&wire.addresses, |j, text| {
        let at = format_args!("endpoints[{i}].addresses[{j}]");
        let addr = unicast(at, text)?;
        if IpFamily::of(&addr) == family {
            Ok(addr)
        } else {
            let family = family_name(family);
            Err(FieldError::new(at, format_args!("{addr} is not of addressType {family}")))
        }
    })?;
    let conditions = wire.conditions.unwrap_or_default();
    let hints = wire.hints.unwrap_or_default();
    Ok(SliceEndpoint {
        addresses,
        conditions: Conditions {
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
        },
        hostname: wire.hostname.filter(|text| !text.is_empty()),
        node: wire.node_name.filter(|text| !text.is_empty()),
        zone: wire.zone.filter(|text| !text.is_empty()),
        target: wire.target_ref.filter(|target| !target.name.is_empty()).map(|target| {
            let namespace =
                if target.namespace.is_empty() { namespace.to_owned() } else { target.namespace };
            ObjectRef { kind: target.kind, name: ObjectName { namespace, name: target.name } }
        }),
        for_zones: hints.for_zones.into_iter().map(|hint| hint.name).collect(),
        for_nodes: hints.for_nodes.into_iter().map(|hint| hint.name).collect(),
    })
}
