//! The endpoints of a Service, out of its EndpointSlices or out of pods.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_model::{
    Conditions, Endpoint, IpFamily, ObjectRef, Pod, PodPhase, Service, SlicePort, TargetPort,
};

/// Merges the endpoints of all slices into one entry an address, sorted by address.
///
/// Where an address comes more than once, the readiest entry wins (then the first, in the order of
/// the slices) and gives everything but the ports; a less ready one adds only ports that the readier
/// ones do not have.
pub(super) fn merge(endpoints: impl Iterator<Item = Endpoint>) -> Vec<Endpoint> {
    let mut entries: BTreeMap<IpAddr, Vec<Endpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        entries.entry(endpoint.addr).or_default().push(endpoint);
    }
    entries.into_values().filter_map(unite).collect()
}

/// What the endpoint slice controller of Kubernetes would make of the pods that a Service selects:
/// an endpoint for each pod that has an address and has not ended.
///
/// `ready` is the pod's readiness while it is not being deleted, `serving` regardless of that;
/// `publishNotReadyAddresses` makes every endpoint ready, as the controller does (D4).
pub(super) fn derive<'a, 'z>(
    service: &Service,
    pods: impl Iterator<Item = &'a Pod>,
    zone: impl Fn(&str) -> Option<&'z str>,
) -> Vec<Endpoint> {
    let live = pods.filter(|pod| !matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed));
    let families = &service.ip_families;
    merge(live.flat_map(|pod| {
        let addrs = pod.addrs.iter();
        let addrs =
            addrs.filter(|addr| families.is_empty() || families.contains(&IpFamily::of(addr)));
        addrs.map(|&addr| Endpoint {
            addr,
            ports: target_ports(service, pod).collect(),
            conditions: Conditions {
                ready: service.publish_not_ready || (pod.ready && !pod.meta.deleting),
                serving: pod.ready,
                terminating: pod.meta.deleting,
            },
            hostname: (pod.subdomain.as_ref() == Some(&service.meta.name.name))
                .then(|| pod.hostname.clone())
                .flatten(),
            node: pod.node.clone(),
            zone: pod.node.as_deref().and_then(&zone).map(str::to_owned),
            target: Some(ObjectRef { kind: "Pod".to_owned(), name: pod.meta.name.clone() }),
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        })
    }))
}

/// The Service's ports as this pod serves them. A named target port that the pod does not have is
/// left out.
fn target_ports(service: &Service, pod: &Pod) -> impl Iterator<Item = SlicePort> {
    service.ports.iter().filter_map(|port| {
        let number = match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod
                .ports
                .iter()
                .find(|p| p.name == *name && p.protocol == port.protocol)
                .map(|p| p.port),
        };
        number.map(|number| SlicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: Some(number),
        })
    })
}

/// How much use an endpoint is; the greatest wins.
fn rank(conditions: Conditions) -> (bool, bool, bool) {
    (conditions.ready, conditions.serving, !conditions.terminating)
}

/// One endpoint out of all entries of an address.
fn unite(mut entries: Vec<Endpoint>) -> Option<Endpoint> {
    // Stable: entries of one rank keep the order of their slices.
    entries.sort_by_key(|entry| Reverse(rank(entry.conditions)));
    let mut entries = entries.into_iter();
    let mut best = entries.next()?;
    let mut current = rank(best.conditions);
    // Ports of readier entries, which a less ready entry may not add another number to.
    let mut settled = 0;
    for entry in entries {
        if rank(entry.conditions) != current {
            current = rank(entry.conditions);
            settled = best.ports.len();
        }
        for port in entry.ports {
            let taken = best.ports[..settled]
                .iter()
                .any(|p| p.name == port.name && p.protocol == port.protocol);
            if !taken {
                best.ports.push(port);
            }
        }
    }
    best.ports.sort();
    best.ports.dedup();
    Some(best)
}
