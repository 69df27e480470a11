//! Services.

use std::net::IpAddr;

use sluice_model::{
    IpFamily, LoadBalancerIngress, ResourceKind, Service, ServiceKind, ServicePort, TargetPort,
    TrafficPolicy,
};

use super::FieldError;
use super::field::{
    cidr, each, family_name, one_a_family, optional_port, port, protocol, unicast, unknown,
    virtual_addr,
};
use super::meta::meta;
use crate::wire;

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where there is none: three hours.
const DEFAULT_AFFINITY_SECS: u32 = 10_800;

/// The longest session affinity that Kubernetes allows: a day.
const MAX_AFFINITY_SECS: u32 = 86_400;

pub(super) fn service(wire: wire::Service) -> Result<Service, FieldError> {
    let meta = meta(ResourceKind::Service, wire.metadata)?;
    let spec = wire.spec.unwrap_or_default();
    let kind = kind(&spec)?;
    let external = matches!(kind, ServiceKind::ExternalName(_));
    let Addresses { headless, cluster_ips, ip_families } =
        if external { Addresses::default() } else { addresses(&spec)? };
    let external_ips =
        each(&spec.external_ips, |i, ip| virtual_addr(format_args!("spec.externalIPs[{i}]"), ip))?;
    let mut source_ranges = Vec::new();
    let mut bad_source_ranges = Vec::new();
    for (i, range) in spec.load_balancer_source_ranges.iter().enumerate() {
        match cidr("", range.trim()) {
            Ok(range) => source_ranges.push(range),
            Err(_) => bad_source_ranges.push((i, range.clone())),
        }
    }
    Ok(Service {
        meta,
        kind,
        headless,
        cluster_ips,
        ip_families,
        affinity_secs: affinity(&spec)?,
        external_policy: policy("spec.externalTrafficPolicy", &spec.external_traffic_policy)?,
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref().unwrap_or_default(),
        )?,
        health_check_node_port: optional_port(
            "spec.healthCheckNodePort",
            spec.health_check_node_port,
        )?,
        ports: ports(spec.ports)?,
        // An empty selector selects nothing, like none at all: protobuf does not tell them apart.
        selector: (!spec.selector.is_empty()).then_some(spec.selector),
        external_ips: external_ips.into_iter().collect(),
        ingress: ingress(wire.status)?,
        source_ranges,
        bad_source_ranges,
        publish_not_ready: spec.publish_not_ready_addresses,
        traffic_distribution: spec.traffic_distribution.filter(|text| !text.is_empty()),
    })
}

fn kind(spec: &wire::ServiceSpec) -> Result<ServiceKind, FieldError> {
    match spec.kind.as_str() {
        "" | "ClusterIP" => Ok(ServiceKind::ClusterIp),
        "NodePort" => Ok(ServiceKind::NodePort),
        "LoadBalancer" => Ok(ServiceKind::LoadBalancer),
        "ExternalName" => {
            let field = "spec.externalName";
            let name = spec.external_name.strip_suffix('.').unwrap_or(&spec.external_name);
            let label = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            };
            if name.is_empty() {
                Err(FieldError::new(field, "is missing"))
            } else if name.len() > 253 || !name.split('.').all(label) {
                Err(unknown(field, &spec.external_name, "a DNS name"))
            } else {
                Ok(ServiceKind::ExternalName(name.to_owned()))
            }
        }
        kind => {
            Err(unknown("spec.type", kind, "ClusterIP, NodePort, LoadBalancer or ExternalName"))
        }
    }
}

#[derive(Default)]
struct Addresses {
    headless: bool,
    cluster_ips: Vec<IpAddr>,
    ip_families: Vec<IpFamily>,
}

/// `clusterIP`, `clusterIPs` and `ipFamilies`. No address at all is legal: none is allocated yet.
fn addresses(spec: &wire::ServiceSpec) -> Result<Addresses, FieldError> {
    let (single, all) = (&spec.cluster_ip, &spec.cluster_ips);
    if let (false, Some(first)) = (single.is_empty(), all.first())
        && first != single
    {
        return Err(FieldError::new(
            "spec.clusterIPs[0]",
            format_args!("{first:?} is not spec.clusterIP {single:?}"),
        ));
    }
    let families = each(&spec.ip_families, |i, family| match family.as_str() {
        "IPv4" => Ok(IpFamily::V4),
        "IPv6" => Ok(IpFamily::V6),
        _ => Err(unknown(format_args!("spec.ipFamilies[{i}]"), family, "IPv4 or IPv6")),
    })?;
    for (i, family) in families.iter().enumerate() {
        if families[..i].contains(family) {
            return Err(FieldError::new(
                format_args!("spec.ipFamilies[{i}]"),
                format_args!("{:?} is there twice", family_name(*family)),
            ));
        }
    }
    if single == "None" || all.first().is_some_and(|ip| ip == "None") {
        if let Some(ip) = all.get(1) {
            return Err(FieldError::new(
                "spec.clusterIPs[1]",
                format_args!("{ip:?} stands beside \"None\""),
            ));
        }
        return Ok(Addresses { headless: true, cluster_ips: Vec::new(), ip_families: families });
    }
    let cluster_ips = if all.is_empty() {
        let ip = Some(single).filter(|ip| !ip.is_empty());
        ip.map(|ip| virtual_addr("spec.clusterIP", ip)).transpose()?.into_iter().collect()
    } else {
        each(all, |i, ip| virtual_addr(format_args!("spec.clusterIPs[{i}]"), ip))?
    };
    one_a_family("spec.clusterIPs", &cluster_ips, IpFamily::of)?;
    for (i, (ip, family)) in cluster_ips.iter().zip(&families).enumerate() {
        if IpFamily::of(ip) != *family {
            return Err(FieldError::new(
                format_args!("spec.ipFamilies[{i}]"),
                format_args!("{:?} is not the family of cluster IP {ip}", family_name(*family)),
            ));
        }
    }
    let ip_families =
        if families.is_empty() { cluster_ips.iter().map(IpFamily::of).collect() } else { families };
    Ok(Addresses { headless: false, cluster_ips, ip_families })
}

fn ports(wire: Vec<wire::ServicePort>) -> Result<Vec<ServicePort>, FieldError> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(wire.len());
    for (i, entry) in wire.into_iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{i}].{field}");
        let number = port(at("port"), entry.port)?;
        let protocol = protocol(at("protocol"), &entry.protocol)?;
        let node_port = optional_port(at("nodePort"), entry.node_port)?;
        let target = target(&at("targetPort"), entry.target_port, number)?;
        for other in &ports {
            if other.name == entry.name {
                let name = &entry.name;
                return Err(FieldError::new(
                    at("name"),
                    format_args!("{name:?} is the name of another port"),
                ));
            }
            if (other.port, other.protocol) == (number, protocol) {
                return Err(FieldError::new(
                    at("port"),
                    format_args!("{number}/{protocol} is there twice"),
                ));
            }
            if node_port.is_some() && (other.node_port, other.protocol) == (node_port, protocol) {
                return Err(FieldError::new(
                    at("nodePort"),
                    format_args!("{}/{protocol} is there twice", entry.node_port),
                ));
            }
        }
        ports.push(ServicePort {
            name: entry.name,
            protocol,
            port: number,
            target,
            node_port,
            app_protocol: entry.app_protocol,
        });
    }
    Ok(ports)
}

/// 0, "" and none at all mean the Service's port itself.
fn target(
    field: &str,
    wire: Option<wire::IntOrString>,
    number: u16,
) -> Result<TargetPort, FieldError> {
    let Some(wire) = wire else { return Ok(TargetPort::Number(number)) };
    match (wire.kind, wire.int, wire.string.as_str()) {
        (0, 0, _) | (1, _, "") => Ok(TargetPort::Number(number)),
        (0, int, _) => port(field, int).map(TargetPort::Number),
        (1, _, name) => {
            let legal = name.len() <= 15
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                && name.contains(|c: char| c.is_ascii_lowercase());
            if legal {
                Ok(TargetPort::Name(name.to_owned()))
            } else {
                Err(FieldError::new(
                    field,
                    format_args!(
                        "{name:?} is not a port name: at most 15 lower-case letters, digits and \
                         '-', at least one letter"
                    ),
                ))
            }
        }
        (kind, ..) => {
            Err(FieldError::new(field, format_args!("{kind} is neither a number nor a string")))
        }
    }
}

fn affinity(spec: &wire::ServiceSpec) -> Result<Option<u32>, FieldError> {
    match spec.session_affinity.as_str() {
        "" | "None" => Ok(None),
        "ClientIP" => {
            let config = spec.session_affinity_config.as_ref();
            let Some(secs) = config
                .and_then(|config| config.client_ip.as_ref())
                .and_then(|client_ip| client_ip.timeout_seconds)
            else {
                return Ok(Some(DEFAULT_AFFINITY_SECS));
            };
            u32::try_from(secs)
                .ok()
                .filter(|secs| (1..=MAX_AFFINITY_SECS).contains(secs))
                .map(Some)
                .ok_or_else(|| {
                    FieldError::new(
                        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                        format_args!("{secs} is not 1 to {MAX_AFFINITY_SECS}"),
                    )
                })
        }
        affinity => Err(unknown("spec.sessionAffinity", affinity, "None or ClientIP")),
    }
}

fn policy(field: &str, value: &str) -> Result<TrafficPolicy, FieldError> {
    match value {
        "" | "Cluster" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        _ => Err(unknown(field, value, "Cluster or Local")),
    }
}

/// Entries with a host name alone are none of a data plane's business.
fn ingress(status: Option<wire::ServiceStatus>) -> Result<Vec<LoadBalancerIngress>, FieldError> {
    let entries = status.and_then(|status| status.load_balancer).unwrap_or_default().ingress;
    let ingress = each(entries, |i, entry| {
        let at = |field: &str| format!("status.loadBalancer.ingress[{i}].{field}");
        if entry.ip.is_empty() {
            return Ok(None);
        }
        let proxy = match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => false,
            Some("Proxy") => true,
            Some(mode) => return Err(unknown(at("ipMode"), mode, "VIP or Proxy")),
        };
        Ok(Some(LoadBalancerIngress { addr: unicast(at("ip"), &entry.ip)?, proxy }))
    })?;
    Ok(ingress.into_iter().flatten().collect())
}
