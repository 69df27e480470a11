//! Pods.

use sluice_model::{ContainerPort, IpFamily, Pod, PodPhase, ResourceKind};

use super::FieldError;
use super::field::{each, nonempty, one_a_family, port, protocol, unicast, unknown};
use super::meta::meta;
use crate::wire;

pub(super) fn pod(wire: wire::Pod) -> Result<Pod, FieldError> {
    let meta = meta(ResourceKind::Pod, wire.metadata)?;
    let spec = wire.spec.unwrap_or_default();
    let status = wire.status.unwrap_or_default();
    let phase = match status.phase.as_str() {
        "" | "Pending" => PodPhase::Pending,
        "Running" => PodPhase::Running,
        "Succeeded" => PodPhase::Succeeded,
        "Failed" => PodPhase::Failed,
        "Unknown" => PodPhase::Unknown,
        other => {
            let known = "Pending, Running, Succeeded, Failed or Unknown";
            return Err(unknown("status.phase", other, known));
        }
    };
    let addrs = if status.pod_ips.is_empty() {
        let ip = Some(status.pod_ip.as_str()).filter(|ip| !ip.is_empty());
        ip.map(|ip| unicast("status.podIP", ip)).transpose()?.into_iter().collect()
    } else {
        each(&status.pod_ips, |i, entry| unicast(format_args!("status.podIPs[{i}].ip"), &entry.ip))?
    };
    one_a_family("status.podIPs", &addrs, IpFamily::of)?;
    let mut ports = Vec::new();
    for (list, containers, sidecars) in [
        ("containers", &spec.containers, false),
        // Only init containers that keep running (sidecars) can serve anything.
        ("initContainers", &spec.init_containers, true),
    ] {
        for (i, container) in containers.iter().enumerate() {
            if sidecars && container.restart_policy.as_deref() != Some("Always") {
                continue;
            }
            for (j, entry) in container.ports.iter().enumerate() {
                let at = |field: &str| format!("spec.{list}[{i}].ports[{j}].{field}");
                ports.push(ContainerPort {
                    name: entry.name.clone(),
                    protocol: protocol(at("protocol"), &entry.protocol)?,
                    port: port(at("containerPort"), entry.container_port)?,
                });
            }
        }
    }
    Ok(Pod {
        meta,
        node: nonempty(spec.node_name),
        hostname: nonempty(spec.hostname),
        subdomain: nonempty(spec.subdomain),
        host_network: spec.host_network,
        phase,
        ready: status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True"),
        addrs,
        ports,
    })
}
