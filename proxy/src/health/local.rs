//! A Service seen from one node: how many of its endpoints are here.

use sluice_model::{Endpoint, Service, ServiceKind, TrafficPolicy};

/// The question of a Service's `healthCheckNodePort`, and the answer's figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node; an endpoint with an address in each family counts once.
    pub local: usize,
}

/// Policies `Local` of a Service that has endpoints elsewhere and none on this node: its traffic
/// here is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoLocal {
    /// `internalTrafficPolicy`.
    pub internal: bool,
    /// `externalTrafficPolicy`.
    pub external: bool,
}

/// Whether the Service has a policy `Local` at all: for others there is nothing to count.
pub(super) fn has_local_policy(service: &Service) -> bool {
    service.internal_policy == TrafficPolicy::Local
        || service.external_policy == TrafficPolicy::Local
}

impl ServiceCheck {
    /// What the Service asks for on the node called `node`; `None` where it asks for nothing: only
    /// a LoadBalancer with `externalTrafficPolicy: Local` does.
    pub fn of(service: &Service, endpoints: &[Endpoint], node: &str) -> Option<Self> {
        let port = service.health_check_node_port.filter(|port| *port != 0)?;
        let asks = service.kind == ServiceKind::LoadBalancer
            && service.external_policy == TrafficPolicy::Local
            && !sluice_plan::is_foreign(service);
        // Terminating endpoints are not counted: the load balancer should have moved on before the
        // last of them ends.
        asks.then(|| Self { port, local: count(endpoints, node) })
    }
}

impl NoLocal {
    /// As seen from the node called `node`.
    pub fn of(service: &Service, endpoints: &[Endpoint], node: &str) -> Self {
        let usable = |e: &Endpoint| e.conditions.ready || e.conditions.serving;
        let here = |e: &Endpoint| e.node.as_deref() == Some(node);
        let none = !sluice_plan::is_foreign(service)
            && endpoints.iter().any(usable)
            && !endpoints.iter().any(|e| usable(e) && here(e));
        let from_outside =
            matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer)
                || !service.external_ips.is_empty();
        Self {
            internal: none && service.internal_policy == TrafficPolicy::Local,
            external: none && from_outside && service.external_policy == TrafficPolicy::Local,
        }
    }
}

/// Ready endpoints on the node, by the family that has more of them.
fn count(endpoints: &[Endpoint], node: &str) -> usize {
    let local = |six: bool| {
        endpoints
            .iter()
            .filter(|e| e.conditions.ready && e.node.as_deref() == Some(node))
            .filter(|e| e.addr.is_ipv6() == six)
            .count()
    };
    local(false).max(local(true))
}

#[cfg(test)]
mod tests {
    use sluice_model::Conditions;

    use super::*;

    fn service() -> Service {
        Service {
            kind: ServiceKind::LoadBalancer,
            external_policy: TrafficPolicy::Local,
            health_check_node_port: Some(32000),
            ..Service::default()
        }
    }

    fn endpoint(addr: &str, node: &str, ready: bool) -> Endpoint {
        Endpoint {
            node: Some(node.to_owned()),
            ..Endpoint::new(
                addr.parse().expect("an address"),
                Vec::new(),
                Conditions { ready, serving: true, terminating: !ready },
            )
        }
    }

    /// S11
    #[test]
    fn ready_endpoints_of_this_node_count_once_whatever_their_families() {
        let endpoints = [
            endpoint("10.0.0.1", "here", true),
            endpoint("fd00::1", "here", true),
            endpoint("10.0.0.2", "here", true),
            endpoint("10.0.0.3", "here", false),
            endpoint("10.0.0.4", "there", true),
        ];
        let check = |node| ServiceCheck::of(&service(), &endpoints, node);
        assert_eq!(check("here"), Some(ServiceCheck { port: 32000, local: 2 }));
        assert_eq!(check("there"), Some(ServiceCheck { port: 32000, local: 1 }));
        assert_eq!(check("elsewhere"), Some(ServiceCheck { port: 32000, local: 0 }));
    }

    /// S11
    #[test]
    fn only_load_balancers_with_the_local_policy_are_asked_about() {
        let none = |change: fn(&mut Service)| {
            let mut service = service();
            change(&mut service);
            assert_eq!(ServiceCheck::of(&service, &[], "here"), None, "{service:?}");
        };
        none(|s| s.kind = ServiceKind::NodePort);
        none(|s| s.external_policy = TrafficPolicy::Cluster);
        none(|s| s.health_check_node_port = None);
        none(|s| s.health_check_node_port = Some(0));
        none(|s| {
            let label = "service.kubernetes.io/service-proxy-name".to_owned();
            s.meta.labels.insert(label, "other".to_owned());
        });
    }

    #[test]
    fn traffic_that_is_dropped_for_want_of_a_local_endpoint_is_told_by_policy() {
        let there = [endpoint("10.0.0.4", "there", true)];
        let external = NoLocal { internal: false, external: true };
        assert_eq!(NoLocal::of(&service(), &there, "here"), external);
        assert_eq!(NoLocal::of(&service(), &there, "there"), NoLocal::default());
        // Without any endpoint the policy is not to blame.
        assert_eq!(NoLocal::of(&service(), &[], "here"), NoLocal::default());
        let mut both = service();
        both.internal_policy = TrafficPolicy::Local;
        let all = NoLocal { internal: true, external: true };
        assert_eq!(NoLocal::of(&both, &there, "here"), all);
        both.kind = ServiceKind::ClusterIp;
        let internal = NoLocal { internal: true, external: false };
        assert_eq!(NoLocal::of(&both, &there, "here"), internal);
    }
}
