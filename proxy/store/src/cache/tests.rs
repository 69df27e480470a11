//! The cache by cases; `properties` has it against a rebuild from scratch.

mod properties;

use sluice_model::{
    AddressType, Conditions, ContainerPort, EndpointSlice, IpFamily, Meta, Namespace, Node, Object,
    ObjectKey, ObjectName, Pod, PodPhase, Protocol, ResourceKind, Service, ServiceKind,
    ServicePort, SliceEndpoint, SlicePort, TargetPort,
};

use super::{Cache, Changes};
use crate::{Event, Rejected};

fn meta(namespace: &str, name: &str) -> Meta {
    Meta { name: ObjectName::new(namespace, name), ..Meta::default() }
}

fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

/// `shop/web`, which selects `app=web`; port `http` 80 to the named port `http`.
fn service() -> Service {
    Service {
        meta: meta("shop", "web"),
        selector: Some(labels(&[("app", "web")])),
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
            target: TargetPort::Name("web".to_owned()),
            node_port: None,
            app_protocol: None,
        }],
        ..Service::default()
    }
}

/// A ready pod with `app=web` and port `web` 8080.
fn pod(name: &str, addr: &str) -> Pod {
    Pod {
        meta: Meta { labels: labels(&[("app", "web"), ("v", "1")]), ..meta("shop", name) },
        node: Some("node-a".to_owned()),
        phase: PodPhase::Running,
        ready: true,
        addrs: vec![addr.parse().unwrap()],
        ports: vec![ContainerPort { name: "web".to_owned(), protocol: Protocol::Tcp, port: 8080 }],
        ..Pod::default()
    }
}

fn slice_endpoint(addr: &str, ready: bool) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![addr.parse().unwrap()],
        conditions: Conditions { ready, serving: ready, terminating: false },
        ..SliceEndpoint::default()
    }
}

fn slice_port(name: &str, port: u16) -> SlicePort {
    SlicePort { name: name.to_owned(), protocol: Protocol::Tcp, port: Some(port) }
}

fn slice(name: &str, endpoints: Vec<SliceEndpoint>, ports: Vec<SlicePort>) -> EndpointSlice {
    EndpointSlice {
        meta: meta("shop", name),
        service: Some(web()),
        import: None,
        cluster: None,
        address_type: AddressType::V4,
        endpoints,
        ports,
    }
}

fn node(name: &str, zone: &str) -> Node {
    let labels = labels(&[("topology.kubernetes.io/zone", zone)]);
    Node { meta: Meta { labels, ..meta("", name) }, ..Node::default() }
}

fn apply(cache: &mut Cache, objects: impl IntoIterator<Item = Object>) -> Changes {
    cache.ingest(objects.into_iter().map(|object| Event::Apply(Box::new(object))))
}

fn delete(cache: &mut Cache, kind: ResourceKind, namespace: &str, name: &str) -> Changes {
    cache.ingest([Event::Delete(ObjectKey { kind, name: ObjectName::new(namespace, name) })])
}

/// Addresses of `shop/web`, with `!` before those that are not ready.
fn addresses(cache: &Cache) -> Vec<String> {
    let endpoints = cache.endpoints(&web());
    let shown = endpoints.iter().map(|endpoint| {
        format!("{}{}", if endpoint.conditions.ready { "" } else { "!" }, endpoint.addr)
    });
    shown.collect()
}

/// S3: a named target port is resolved for each pod.
#[test]
fn endpoints_come_out_of_pods_where_there_is_no_slice() {
    let mut cache = Cache::new();
    let other = Pod {
        ports: vec![ContainerPort { name: "web".to_owned(), protocol: Protocol::Tcp, port: 9090 }],
        ..pod("p2", "10.0.0.2")
    };
    apply(
        &mut cache,
        [
            Object::Service(service()),
            Object::Pod(other),
            Object::Pod(pod("p1", "10.0.0.1")),
            Object::Node(node("node-a", "z1")),
            Object::Pod(Pod { meta: meta("shop", "unselected"), ..pod("x", "10.0.0.3") }),
            Object::Pod(Pod {
                meta: Meta { labels: labels(&[("app", "web")]), ..meta("other", "p1") },
                ..pod("x", "10.0.0.4")
            }),
        ],
    );
    let endpoints = cache.endpoints(&web());
    assert_eq!(addresses(&cache), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(endpoints[0].ports, [slice_port("http", 8080)]);
    assert_eq!(endpoints[1].ports, [slice_port("http", 9090)]);
    assert_eq!(endpoints[0].zone.as_deref(), Some("z1"));
    assert_eq!(endpoints[0].node.as_deref(), Some("node-a"));
    let target = endpoints[0].target.as_ref().unwrap();
    assert_eq!((target.kind.as_str(), &target.name), ("Pod", &ObjectName::new("shop", "p1")));
}

/// S13: as Kubernetes' own controller sets the hints.
#[test]
fn traffic_distribution_becomes_hints() {
    let cases = [
        (None, "", ""),
        (Some("PreferSameZone"), "z1", ""),
        (Some("PreferClose"), "z1", ""),
        (Some("PreferSameNode"), "z1", "node-a"),
        (Some("Nearest"), "", ""),
    ];
    for (distribution, zones, nodes) in cases {
        let mut cache = Cache::new();
        let traffic_distribution = distribution.map(str::to_owned);
        let service = Service { traffic_distribution, ..service() };
        apply(
            &mut cache,
            [
                Object::Node(node("node-a", "z1")),
                Object::Service(service),
                Object::Pod(pod("p1", "10.0.0.1")),
            ],
        );
        let endpoint = &cache.endpoints(&web())[0];
        assert_eq!(endpoint.for_zones.concat(), zones, "{distribution:?}");
        assert_eq!(endpoint.for_nodes.concat(), nodes, "{distribution:?}");
    }
}

/// S14: as Kubernetes' own controller sets the conditions.
#[test]
fn conditions_of_pods_are_those_of_the_slice_controller() {
    let cases = [
        // publishNotReady, ready, deleting, phase: ready, serving, terminating
        (false, true, false, PodPhase::Running, Some((true, true, false))),
        (false, false, false, PodPhase::Running, Some((false, false, false))),
        (false, false, false, PodPhase::Pending, Some((false, false, false))),
        (false, true, true, PodPhase::Running, Some((false, true, true))),
        (false, false, true, PodPhase::Running, Some((false, false, true))),
        (true, false, false, PodPhase::Running, Some((true, false, false))),
        (true, false, true, PodPhase::Running, Some((true, false, true))),
        (true, true, false, PodPhase::Succeeded, None),
        (true, true, false, PodPhase::Failed, None),
    ];
    for (publish_not_ready, ready, deleting, phase, expected) in cases {
        let mut cache = Cache::new();
        let mut pod = Pod { ready, phase, ..pod("p", "10.0.0.1") };
        pod.meta.deleting = deleting;
        let service = Service { publish_not_ready, ..service() };
        apply(&mut cache, [Object::Pod(pod), Object::Service(service)]);
        let seen: Vec<_> = cache.endpoints(&web()).iter().map(|e| e.conditions).collect();
        let expected: Vec<_> = expected
            .map(|(ready, serving, terminating)| Conditions { ready, serving, terminating })
            .into_iter()
            .collect();
        assert_eq!(seen, expected, "{publish_not_ready} {ready} {deleting} {phase:?}");
    }
}

/// D4: the name of a pod belongs to the Service that is its subdomain.
#[test]
fn a_pods_host_name_counts_in_its_own_subdomain() {
    let mut cache = Cache::new();
    let named = |name: &str, addr: &str, subdomain: &str| Pod {
        hostname: Some(name.to_owned()),
        subdomain: Some(subdomain.to_owned()),
        ..pod(name, addr)
    };
    apply(
        &mut cache,
        [
            Object::Service(service()),
            Object::Pod(named("db-0", "10.0.0.1", "web")),
            Object::Pod(named("db-1", "10.0.0.2", "else")),
        ],
    );
    let names: Vec<_> = cache.endpoints(&web()).into_iter().map(|e| e.hostname).collect();
    assert_eq!(names, [Some("db-0".to_owned()), None]);
}

/// S26: a single-stack Service has endpoints of its family alone.
#[test]
fn only_addresses_of_the_services_families_are_endpoints() {
    let mut cache = Cache::new();
    let mut pod = pod("p", "10.0.0.1");
    pod.addrs.push("fd00::1".parse().unwrap());
    apply(&mut cache, [Object::Pod(pod)]);
    for (families, expected) in [
        (vec![IpFamily::V4], vec!["10.0.0.1"]),
        (vec![IpFamily::V6], vec!["fd00::1"]),
        (vec![IpFamily::V6, IpFamily::V4], vec!["10.0.0.1", "fd00::1"]),
        (vec![], vec!["10.0.0.1", "fd00::1"]),
    ] {
        let service = Service { ip_families: families, ..service() };
        apply(&mut cache, [Object::Service(service)]);
        assert_eq!(addresses(&cache), expected);
    }
}

#[test]
fn pods_on_the_hosts_network_share_an_address() {
    let mut cache = Cache::new();
    let mut first = service();
    first.ports[0].target = TargetPort::Number(1);
    let host = |name: &str, ready| Pod { host_network: true, ready, ..pod(name, "192.0.2.1") };
    apply(
        &mut cache,
        [Object::Service(first), Object::Pod(host("a", false)), Object::Pod(host("b", true))],
    );
    let endpoints = cache.endpoints(&web());
    assert_eq!(addresses(&cache), ["192.0.2.1"]);
    assert_eq!(endpoints[0].target.as_ref().unwrap().name.name, "b", "the ready one wins");
}

/// S3: slices are merged and deduplicated, those of host names skipped.
#[test]
fn slices_of_a_service_are_merged() {
    let mut cache = Cache::new();
    let fqdn = EndpointSlice { address_type: AddressType::Fqdn, ..slice("fqdn", vec![], vec![]) };
    apply(
        &mut cache,
        [
            Object::Service(service()),
            Object::EndpointSlice(slice(
                "s1",
                vec![slice_endpoint("10.0.0.2", true), slice_endpoint("10.0.0.1", false)],
                vec![slice_port("http", 8080)],
            )),
            Object::EndpointSlice(slice(
                "s2",
                vec![slice_endpoint("10.0.0.1", true)],
                vec![slice_port("admin", 9000)],
            )),
            Object::EndpointSlice(slice(
                "s3",
                vec![slice_endpoint("10.0.0.2", true)],
                vec![slice_port("http", 8080), slice_port("admin", 9000)],
            )),
            Object::EndpointSlice(fqdn),
            // A slice means that somebody else makes the endpoints: pods do not count.
            Object::Pod(pod("p", "10.0.0.9")),
        ],
    );
    assert_eq!(addresses(&cache), ["10.0.0.1", "10.0.0.2"]);
    let endpoints = cache.endpoints(&web());
    for endpoint in &endpoints {
        assert_eq!(endpoint.ports, [slice_port("admin", 9000), slice_port("http", 8080)]);
    }
}

#[test]
fn a_less_ready_duplicate_adds_no_second_number_to_a_port() {
    let mut cache = Cache::new();
    apply(
        &mut cache,
        [
            Object::Service(service()),
            Object::EndpointSlice(slice(
                "s1",
                vec![slice_endpoint("10.0.0.1", false)],
                vec![slice_port("http", 1), slice_port("admin", 2)],
            )),
            Object::EndpointSlice(slice(
                "s2",
                vec![slice_endpoint("10.0.0.1", true)],
                vec![slice_port("http", 3)],
            )),
        ],
    );
    let expected = [slice_port("admin", 2), slice_port("http", 3)];
    assert_eq!(cache.endpoints(&web())[0].ports, expected);
}

#[test]
fn endpoints_change_hands_between_slices_and_pods() {
    let mut cache = Cache::new();
    apply(&mut cache, [Object::Service(service()), Object::Pod(pod("p", "10.0.0.1"))]);
    assert_eq!(addresses(&cache), ["10.0.0.1"]);
    let endpoint = vec![slice_endpoint("10.0.0.2", true)];
    let changes = apply(&mut cache, [Object::EndpointSlice(slice("s", endpoint, vec![]))]);
    assert!(changes.services.contains(&web()));
    assert_eq!(addresses(&cache), ["10.0.0.2"]);
    // Now a pod means nothing to the Service.
    let changes = apply(&mut cache, [Object::Pod(pod("p2", "10.0.0.3"))]);
    assert!(changes.services.is_empty());
    let changes = delete(&mut cache, ResourceKind::EndpointSlice, "shop", "s");
    assert!(changes.services.contains(&web()));
    assert_eq!(addresses(&cache), ["10.0.0.1", "10.0.0.3"]);
}

#[test]
fn a_service_without_selector_or_of_another_kind_selects_nothing() {
    let mut cache = Cache::new();
    apply(&mut cache, [Object::Pod(pod("p", "10.0.0.1"))]);
    apply(&mut cache, [Object::Service(Service { selector: None, ..service() })]);
    assert_eq!(addresses(&cache), [""; 0]);
    let kind = ServiceKind::ExternalName("example.com".to_owned());
    apply(&mut cache, [Object::Service(Service { kind, ..service() })]);
    assert_eq!(addresses(&cache), [""; 0]);
    // Back in place: it selects again.
    apply(&mut cache, [Object::Service(service())]);
    assert_eq!(addresses(&cache), ["10.0.0.1"]);
}

#[test]
fn a_pod_marks_the_services_that_its_old_or_new_labels_match() {
    let mut cache = Cache::new();
    let v2 = Service {
        meta: meta("shop", "v2"),
        selector: Some(labels(&[("app", "web"), ("v", "2")])),
        ..service()
    };
    apply(&mut cache, [Object::Service(service()), Object::Service(v2)]);
    let marked =
        |changes: Changes| changes.services.into_iter().map(|name| name.name).collect::<Vec<_>>();
    let with = |v: &str| {
        let mut pod = pod("p", "10.0.0.1");
        pod.meta.labels = labels(&[("app", "web"), ("v", v)]);
        Object::Pod(pod)
    };
    assert_eq!(marked(apply(&mut cache, [with("1")])), ["web"]);
    assert_eq!(marked(apply(&mut cache, [with("1")])), [""; 0], "nothing changed");
    assert_eq!(marked(apply(&mut cache, [with("2")])), ["v2", "web"]);
    assert_eq!(marked(apply(&mut cache, [with("3")])), ["v2", "web"]);
    let mut unready = pod("p", "10.0.0.1");
    unready.meta.labels = labels(&[("app", "web"), ("v", "3")]);
    unready.ready = false;
    assert_eq!(marked(apply(&mut cache, [Object::Pod(unready)])), ["web"]);
    assert_eq!(marked(delete(&mut cache, ResourceKind::Pod, "shop", "p")), ["web"]);
}

#[test]
fn a_slice_that_changes_its_service_marks_both() {
    let mut cache = Cache::new();
    let other = Service { meta: meta("shop", "other"), ..service() };
    apply(&mut cache, [Object::Service(service()), Object::Service(other)]);
    let mut moved = slice("s", vec![slice_endpoint("10.0.0.1", true)], vec![]);
    apply(&mut cache, [Object::EndpointSlice(moved.clone())]);
    moved.service = Some(ObjectName::new("shop", "other"));
    let changes = apply(&mut cache, [Object::EndpointSlice(moved.clone())]);
    assert_eq!(changes.services.len(), 2);
    // What only its metadata says changes no endpoint.
    moved.meta.annotations = labels(&[("endpoints.kubernetes.io/last-change-trigger-time", "x")]);
    assert!(apply(&mut cache, [Object::EndpointSlice(moved)]).is_empty());
}

fn namespace(name: &str) -> Event {
    Event::Apply(Box::new(Object::Namespace(Namespace { meta: meta("", name) })))
}

/// S32 (the cache's part): an unfinished list takes nothing away.
#[test]
fn a_list_takes_effect_when_it_is_done() {
    let mut cache = Cache::new();
    assert!(!cache.synced());
    let changes = cache.ingest([Event::Init, namespace("a"), namespace("b"), Event::InitDone]);
    assert!(changes.synced && cache.synced());
    assert_eq!(changes.namespaces.len(), 2);
    // Two lists begin; the first is never done.
    assert!(cache.ingest([Event::Init, namespace("x"), Event::Init, namespace("b")]).is_empty());
    assert!(cache.has_namespace("a") && !cache.has_namespace("x"));
    let changes = cache.ingest([namespace("c"), Event::InitDone]);
    assert_eq!(changes.namespaces.iter().collect::<Vec<_>>(), ["a", "c"]);
    assert!(!cache.has_namespace("a") && cache.has_namespace("b") && cache.has_namespace("c"));
    // The same once more is no change at all.
    let changes = cache.ingest([Event::Init, namespace("b"), namespace("c"), Event::InitDone]);
    assert_eq!(changes, Changes { synced: true, ..Changes::default() });
}

fn reject(name: &str, reason: &str) -> Event {
    Event::Reject(Rejected {
        key: Some(ObjectKey { kind: ResourceKind::Namespace, name: ObjectName::new("", name) }),
        origin: format!("/registry/namespaces/{name}"),
        field: String::new(),
        reason: reason.to_owned(),
    })
}

/// O5: a rejected update keeps the last good version, in a list as well, and is news once.
#[test]
fn a_rejected_object_keeps_its_last_good_form() {
    let mut cache = Cache::new();
    cache.ingest([Event::Init, namespace("a"), reject("b", "bad"), Event::InitDone]);
    assert_eq!(cache.rejected().count(), 1);
    assert_eq!(cache.ingest([reject("a", "bad")]).rejected.len(), 1);
    assert!(cache.ingest([reject("a", "bad")]).rejected.is_empty(), "known already");
    assert_eq!(cache.ingest([reject("a", "worse")]).rejected.len(), 1);
    let list = [Event::Init, reject("a", "worse"), reject("b", "bad"), Event::InitDone];
    let changes = cache.ingest(list);
    assert_eq!(changes, Changes { synced: true, ..Changes::default() });
    assert!(cache.has_namespace("a"));
    assert_eq!(cache.rejected().count(), 2);
    cache.ingest([namespace("b")]);
    cache.ingest([Event::Recover("/registry/namespaces/a".to_owned())]);
    assert_eq!(cache.rejected().count(), 0);
    // Not in the list, neither good nor bad: gone.
    cache.ingest([Event::Init, namespace("b"), Event::InitDone]);
    assert!(!cache.has_namespace("a"));
}

#[test]
fn a_namespace_is_there_when_something_is_in_it() {
    let mut cache = Cache::new();
    assert!(!cache.has_namespace("shop"));
    apply(&mut cache, [Object::Service(service())]);
    assert!(cache.has_namespace("shop") && !cache.has_namespace("sho"));
    assert_eq!(cache.namespaces().count(), 0);
}
