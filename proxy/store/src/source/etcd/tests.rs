//! Keys and positions.

use std::collections::BTreeSet;

use sluice_model::{LabelSelector, Object, ObjectName, ResourceKind};

use super::keys::{Keys, Prefix, events, object_key, read};
use super::position::{Header, Position};
use crate::{Event, SourceError};

fn prefix(kind: ResourceKind) -> Prefix {
    let keys = Keys::new("/registry/", &BTreeSet::from([kind])).unwrap();
    keys.prefixes()[0].clone()
}

fn name(kind: ResourceKind, key: &str) -> Option<ObjectName> {
    object_key(&prefix(kind), key.as_bytes()).map(|key| key.name)
}

#[test]
fn a_key_names_its_object() {
    use ResourceKind::{
        ClusterNetworkPolicy, EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service,
        ServiceImport,
    };
    for (kind, key, namespace, object) in [
        (Service, "/registry/services/specs/shop/web", "shop", "web"),
        (EndpointSlice, "/registry/endpointslices/shop/web-x1", "shop", "web-x1"),
        (Pod, "/registry/pods/shop/db-0", "shop", "db-0"),
        (Node, "/registry/minions/node-a", "", "node-a"),
        (Namespace, "/registry/namespaces/shop", "", "shop"),
        (NetworkPolicy, "/registry/networkpolicies/shop/web", "shop", "web"),
        // A custom resource: its group comes first.
        (
            ClusterNetworkPolicy,
            "/registry/policy.networking.k8s.io/clusternetworkpolicies/web",
            "",
            "web",
        ),
        (ServiceImport, "/registry/multicluster.x-k8s.io/serviceimports/shop/web", "shop", "web"),
    ] {
        assert_eq!(name(kind, key), Some(ObjectName::new(namespace, object)), "{key}");
    }
    for (kind, key) in [
        (Service, "/registry/services/specs/web"),
        (Service, "/registry/services/specs//web"),
        (Service, "/registry/services/specs/shop/"),
        (Service, "/registry/services/specs/shop/web/x"),
        (Service, "/registry/services/endpoints/shop/web"),
        (Node, "/registry/minions/"),
        (Namespace, "/registry/namespaces/a/b"),
    ] {
        assert_eq!(name(kind, key), None, "{key}");
    }
}

#[test]
fn a_prefix_has_to_be_absolute() {
    let error = Keys::new("registry", &BTreeSet::new()).unwrap_err();
    assert!(matches!(error, SourceError::Prefix { .. }));
    let keys = Keys::new("/", &BTreeSet::from([ResourceKind::Pod])).unwrap();
    assert_eq!(keys.prefixes()[0].key, "/pods/");
}

/// O5: a value under the wrong key is rejected under the name of the key.
#[test]
fn a_value_of_another_object_is_rejected() {
    let namespaces = prefix(ResourceKind::Namespace);
    let value = br#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}"#;
    let at = |key: &str, value: Option<&[u8]>| read(&namespaces, key.as_bytes(), value);
    assert!(matches!(at("/registry/namespaces/shop", Some(value)), Event::Apply(_)));
    let Event::Reject(rejected) = at("/registry/namespaces/bar", Some(value)) else { panic!() };
    assert_eq!(
        rejected.to_string(),
        "Namespace bar: metadata.name: the value is of Namespace shop (/registry/namespaces/bar)"
    );
    let Event::Reject(rejected) = at("/registry/namespaces/a/b", Some(value)) else { panic!() };
    assert_eq!(rejected.key, None);
    assert_eq!(
        at("/registry/namespaces/a/b", None),
        Event::Recover("/registry/namespaces/a/b".to_owned())
    );
    assert!(matches!(at("/registry/namespaces/shop", None), Event::Delete(_)));
}

/// D20: a custom resource, in the JSON in which the API server keeps it.
#[test]
fn an_import_is_read_from_its_json() {
    let imports = prefix(ResourceKind::ServiceImport);
    let value = br#"{"apiVersion":"multicluster.x-k8s.io/v1alpha1","kind":"ServiceImport",
        "metadata":{"creationTimestamp":"2026-01-01T00:00:00Z","generation":1,"name":"web",
        "namespace":"shop","uid":"u"},"spec":{"ips":["10.42.0.1"],"ports":[{"name":"http","port":80,
        "protocol":"TCP"}],"sessionAffinity":"None","type":"ClusterSetIP"},
        "status":{"clusters":[{"cluster":"east"}]}}"#;
    let key = b"/registry/multicluster.x-k8s.io/serviceimports/shop/web";
    let Event::Apply(object) = read(&imports, key, Some(value)) else { panic!() };
    let Object::ServiceImport(import) = *object else { panic!() };
    assert!(!import.headless);
    assert_eq!(import.ips, ["10.42.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((import.ports[0].name.as_str(), import.ports[0].port), ("http", 80));
}

/// P1: a custom resource of the cluster, under the API group's key; one that is broken is closed under its name.
#[test]
fn a_policy_of_the_cluster_is_read_from_its_json() {
    let policies = prefix(ResourceKind::ClusterNetworkPolicy);
    let key = b"/registry/policy.networking.k8s.io/clusternetworkpolicies/platform";
    let value = br#"{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"ClusterNetworkPolicy",
        "metadata":{"creationTimestamp":"2026-01-01T00:00:00Z","generation":1,"name":"platform","uid":"u"},
        "spec":{"tier":"Baseline","priority":12,"subject":{"namespaces":{}},
        "ingress":[{"action":"Deny","from":[{"namespaces":{}}]}]},"status":{"conditions":[]}}"#;
    let Event::Apply(object) = read(&policies, key, Some(value)) else { panic!() };
    let Object::ClusterNetworkPolicy(policy) = *object else { panic!() };
    assert_eq!((policy.tier, policy.priority), (sluice_model::PolicyTier::Baseline, 12));
    assert_eq!(policy.faults, []);
    for (value, reason) in [
        (&b"garbage"[..], "the value is neither JSON"),
        (b"k8s\0\xff", "the value is damaged protobuf"),
        (
            br#"{"apiVersion":"policy.networking.k8s.io/v1beta9","kind":"ClusterNetworkPolicy"}"#,
            "apiVersion: \"policy.networking.k8s.io/v1beta9\" is not",
        ),
    ] {
        let events: Vec<Event> = events(&policies, key, Some(value)).collect();
        let [Event::Apply(object), Event::Reject(rejected)] = &events[..] else {
            panic!("{events:?}")
        };
        let Object::ClusterNetworkPolicy(policy) = &**object else { panic!("{object:?}") };
        assert_eq!(policy.meta.name.to_string(), "platform");
        assert!(policy.ingress.len() == 1 && policy.egress.len() == 1, "{policy:?}");
        let text = rejected.to_string();
        assert!(text.starts_with(&format!("ClusterNetworkPolicy platform: {reason}")), "{text}");
    }
    let deleted = read(&policies, key, None);
    assert!(matches!(deleted, Event::Delete(named) if named.name.to_string() == "platform"));
}

/// O5: what no decoder takes is rejected with a reason, and the key names the object.
#[test]
fn a_value_that_is_no_object_is_rejected() {
    let services = prefix(ResourceKind::Service);
    for (value, reason) in [
        (&b"garbage"[..], "the value is neither JSON nor Kubernetes protobuf"),
        (b"k8s\0\xff", "the value is damaged protobuf"),
        (b"{\"kind\"", "the value is not JSON"),
        (b"k8s:enc:secretbox:v1:k:\0", "the value is encrypted at rest (k8s:enc:secretbox:v1:k)"),
        (br#"{"apiVersion":"v1","kind":"Secret"}"#, "the value is a v1 Secret"),
    ] {
        let event = read(&services, b"/registry/services/specs/shop/web", Some(value));
        let Event::Reject(rejected) = event else { panic!("{event:?}") };
        assert!(rejected.reason.starts_with(reason), "{}", rejected.reason);
        assert!(rejected.to_string().starts_with("Service shop/web: "), "{rejected}");
    }
}

/// P11: of a policy that no decoder takes, the key names the namespace that is closed; one with a wrong
/// field is closed for its own pods. Both are told.
#[test]
fn a_policy_that_cannot_be_read_is_applied_closed() {
    let policies = prefix(ResourceKind::NetworkPolicy);
    let wrong = br#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["ingress"]}}"#;
    for (value, own, reason) in [
        (&b"garbage"[..], false, "the value is neither JSON nor Kubernetes protobuf"),
        (b"k8s\0\xff", false, "the value is damaged protobuf"),
        (b"k8s:enc:secretbox:v1:k:\0", false, "the value is encrypted at rest"),
        (wrong, true, "spec.policyTypes[0]: \"ingress\" is not Ingress or Egress"),
    ] {
        let key = b"/registry/networkpolicies/shop/web";
        let said: Vec<Event> = events(&policies, key, Some(value)).collect();
        let [Event::Apply(object), Event::Reject(rejected)] = &said[..] else { panic!("{said:?}") };
        let Object::NetworkPolicy(policy) = &**object else { panic!("{object:?}") };
        assert_eq!(policy.meta.name, ObjectName::new("shop", "web"));
        assert_eq!(policy.pods != LabelSelector::default(), own, "{rejected}");
        assert_eq!((&policy.ingress, &policy.egress), (&Some(vec![]), &Some(vec![])));
        let expected = format!("NetworkPolicy shop/web: {reason}");
        assert!(rejected.to_string().starts_with(&expected), "{rejected}");
    }
}

fn header(cluster: u64, term: u64, revision: i64) -> Header {
    Header { cluster, term, revision }
}

fn listed(revision: i64) -> Position {
    let kinds = [ResourceKind::Service, ResourceKind::Pod];
    Position::listed(header(7, 3, revision), kinds.into_iter())
}

/// O1: a store that went back, or is another one, is listed anew.
#[test]
fn a_position_is_void_in_another_store() {
    let position = listed(100);
    assert_eq!(position.void(&header(7, 3, 100)), None);
    assert_eq!(position.void(&header(7, 4, 250)), None, "an election changes nothing");
    assert!(position.void(&header(8, 3, 200)).unwrap().contains("cluster"));
    assert!(position.void(&header(7, 9, 99)).unwrap().contains("from 100 to 99"));
    assert!(position.void(&header(7, 2, 200)).unwrap().contains("term"));
    assert_eq!(position.void_in_stream(&header(7, 1, 1)), None, "answers may be old");
    assert!(position.void_in_stream(&header(8, 3, 200)).is_some());
}

#[test]
fn a_watch_resumes_where_its_kind_was_read_up_to() {
    let mut position = listed(100);
    assert_eq!(position.next(ResourceKind::Service), 101);
    position.event(ResourceKind::Service, 105);
    position.seen(&header(7, 3, 120));
    assert_eq!(position.next(ResourceKind::Service), 105, "one revision may come in parts");
    assert_eq!(position.next(ResourceKind::Pod), 101, "another kind's watch may be behind");
    assert_eq!(position.revision(), 120);
    position.progress(ResourceKind::Pod, 110);
    assert_eq!(position.next(ResourceKind::Pod), 111);
    position.progress(ResourceKind::Pod, 90);
    assert_eq!(position.next(ResourceKind::Pod), 111);
}
