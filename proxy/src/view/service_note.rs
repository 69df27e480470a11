//! Why a Service has no frontend, for people.

use sluice_model::{Endpoint, Service, ServiceKind};

/// Addresses that are named; of more, their number is.
const NAMED: usize = 4;

/// What there is to know of a Service that the source has, and for which the kernel has no frontend.
pub fn service_note(service: &Service, endpoints: &[Endpoint]) -> String {
    let name = &service.meta.name;
    if sluice_plan::is_foreign(service) {
        return format!(
            "{name}: its labels (service-proxy-name or headless) leave it to somebody else"
        );
    }
    if let ServiceKind::ExternalName(target) = &service.kind {
        return format!(
            "{name}: ExternalName: cluster DNS answers with {target}, and clients connect to that"
        );
    }
    if service.headless {
        let answered: Vec<_> = endpoints
            .iter()
            .filter(|endpoint| endpoint.conditions.ready || service.publish_not_ready)
            .map(|endpoint| endpoint.addr.to_string())
            .collect();
        let more = answered.len().saturating_sub(NAMED);
        let named = answered.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        return match (answered.len(), more) {
            (0, _) => {
                format!("{name}: headless: no endpoint is ready, and cluster DNS has no answer")
            }
            (_, 0) => format!("{name}: headless: cluster DNS answers with its endpoints {named}"),
            _ => format!(
                "{name}: headless: cluster DNS answers with its endpoints {named}, +{more} more"
            ),
        };
    }
    if service.ports.is_empty() {
        return format!("{name}: it has no ports");
    }
    if service.cluster_ips.is_empty() {
        return format!("{name}: it has no address yet");
    }
    format!("{name}: it has none of its addresses here")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sluice_model::{Conditions, Meta, ObjectName};

    use super::*;

    fn service() -> Service {
        let meta = Meta { name: ObjectName::new("shop", "web"), ..Meta::default() };
        Service { meta, ..Service::default() }
    }

    fn pods(count: u8, ready: bool) -> Vec<Endpoint> {
        let conditions = Conditions { ready, serving: ready, terminating: false };
        (1..=count)
            .map(|last| Endpoint::new([10, 0, 0, last].into(), Vec::new(), conditions))
            .collect()
    }

    /// S21, S34: what a Service without frontends is for is told.
    #[test]
    fn every_kind_without_a_frontend_is_explained() {
        let headless = Service { headless: true, ..service() };
        let note = |service: &Service, pods: &[Endpoint]| {
            service_note(service, pods).strip_prefix("shop/web: ").expect("the name").to_owned()
        };
        let all = "headless: cluster DNS answers with its endpoints 10.0.0.1, 10.0.0.2";
        assert_eq!(note(&headless, &pods(2, true)), all);
        assert!(note(&headless, &pods(6, true)).ends_with("10.0.0.4, +2 more"));
        let none = "headless: no endpoint is ready, and cluster DNS has no answer";
        assert_eq!(note(&headless, &pods(2, false)), none);
        let early = Service { publish_not_ready: true, ..headless };
        assert_eq!(note(&early, &pods(2, false)), all);

        let kind = ServiceKind::ExternalName("example.org".to_owned());
        let external = Service { kind, ..service() };
        let answer =
            "ExternalName: cluster DNS answers with example.org, and clients connect to that";
        assert_eq!(note(&external, &[]), answer);

        let mut foreign = service();
        let label = "service.kubernetes.io/service-proxy-name".to_owned();
        foreign.meta.labels = BTreeMap::from([(label, "other".to_owned())]);
        assert!(note(&foreign, &[]).ends_with("leave it to somebody else"));

        assert_eq!(note(&service(), &[]), "it has no ports");
    }
}
