//! Nodes.

use ipnet::IpNet;
use sluice_model::{IpFamily, Node, NodeAddress, NodeAddressKind, ResourceKind, Taint};

use super::FieldError;
use super::field::{cidr, each, one_a_family, unicast};
use super::meta::meta;
use crate::wire;

pub(super) fn node(wire: wire::Node) -> Result<Node, FieldError> {
    let meta = meta(ResourceKind::Node, wire.metadata)?;
    let spec = wire.spec.unwrap_or_default();
    let pod_cidrs = if spec.pod_cidrs.is_empty() {
        let net = Some(spec.pod_cidr.as_str()).filter(|net| !net.is_empty());
        net.map(|net| cidr("spec.podCIDR", net)).transpose()?.into_iter().collect()
    } else {
        each(&spec.pod_cidrs, |i, net| cidr(format_args!("spec.podCIDRs[{i}]"), net))?
    };
    one_a_family("spec.podCIDRs", &pod_cidrs, |net| match net {
        IpNet::V4(_) => IpFamily::V4,
        IpNet::V6(_) => IpFamily::V6,
    })?;
    let mut addrs = Vec::new();
    for (i, entry) in wire.status.unwrap_or_default().addresses.iter().enumerate() {
        let kind = match entry.kind.as_str() {
            "InternalIP" => NodeAddressKind::Internal,
            "ExternalIP" => NodeAddressKind::External,
            // Host names, in all their kinds.
            _ => continue,
        };
        let addr = unicast(format_args!("status.addresses[{i}].address"), &entry.address)?;
        addrs.push(NodeAddress { kind, addr });
    }
    let taints =
        spec.taints.into_iter().map(|taint| Taint { key: taint.key, effect: taint.effect });
    Ok(Node { meta, pod_cidrs, addrs, taints: taints.collect() })
}
