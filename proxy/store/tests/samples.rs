//! What a real kube-apiserver wrote: its protobuf values in etcd and the JSON of its API are the
//! same objects. `testdata/etcd/FILE.pb` is the value of `/registry/` + FILE with `__` for `/`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sluice_model::{
    AddressType, Conditions, IpFamily, LabelOperator, LabelRequirement, LabelSelector, Object,
    ObjectKey, ObjectName, PodPhase, PolicyPeer, PolicyPort, PolicyPortRange, PolicyRule, Protocol,
    ServiceKind, TargetPort, TrafficPolicy,
};
use sluice_store::{DecodeError, decode_value, parse_manifest};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/etcd")
}

/// All values of the sample, by the objects' keys.
fn from_protobuf() -> BTreeMap<ObjectKey, Object> {
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(testdata()).expect("testdata is part of the source") {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pb") {
            let object = decode_value(&fs::read(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(objects.insert(object.key(), object).is_none());
        }
    }
    objects
}

/// The same objects as the API returned them.
fn from_json() -> BTreeMap<ObjectKey, Object> {
    let mut objects = BTreeMap::new();
    for file in ["cluster.json", "shop-namespace.json"] {
        let text = fs::read_to_string(testdata().join(file)).unwrap();
        let manifest = parse_manifest(file, &text);
        assert_eq!(manifest.rejected, []);
        objects.extend(manifest.objects.into_iter().map(|(_, object)| (object.key(), object)));
    }
    objects
}

fn get<'a>(objects: &'a BTreeMap<ObjectKey, Object>, key: &str) -> &'a Object {
    objects
        .iter()
        .find(|(k, _)| k.to_string() == key)
        .map(|(_, object)| object)
        .unwrap_or_else(|| panic!("{key} is not among the samples"))
}

#[test]
fn protobuf_and_json_of_an_object_give_the_same_model() {
    let (protobuf, json) = (from_protobuf(), from_json());
    for (key, object) in &json {
        assert_eq!(protobuf.get(key), Some(object), "{key}");
    }
    // `default/kubernetes` and its slice are in etcd only.
    let only_there: Vec<String> =
        protobuf.keys().filter(|key| !json.contains_key(key)).map(ToString::to_string).collect();
    assert_eq!(only_there, ["Service default/kubernetes", "EndpointSlice default/kubernetes"]);
}

/// S3 (several ports, named target), S26.
#[test]
fn a_dual_stack_service_comes_out_whole() {
    let objects = from_protobuf();
    let Object::Service(web) = get(&objects, "Service shop/web") else { panic!() };
    assert_eq!(web.kind, ServiceKind::ClusterIp);
    let ips: Vec<IpAddr> = vec!["10.96.87.25".parse().unwrap(), "fd00:96::3852".parse().unwrap()];
    assert_eq!(web.cluster_ips, ips);
    assert_eq!(web.ip_families, [IpFamily::V4, IpFamily::V6]);
    assert_eq!(web.ports[0].target, TargetPort::Name("http".to_owned()));
    assert_eq!(web.ports[1].target, TargetPort::Number(5353));
    assert_eq!(web.affinity_secs, Some(600));
    assert_eq!(web.traffic_distribution.as_deref(), Some("PreferSameZone"));
    assert_eq!(web.selector.as_ref().unwrap()["app"], "web");
    assert_eq!(web.meta.created, 1_795_190_202);
    assert!(web.meta.annotations.is_empty(), "kubectl's copy of the object is left out");
}

#[test]
fn the_other_types_of_service_come_out_whole() {
    let objects = from_protobuf();
    let Object::Service(edge) = get(&objects, "Service shop/edge") else { panic!() };
    assert_eq!(edge.kind, ServiceKind::LoadBalancer);
    assert_eq!(edge.ports[0].node_port, Some(30443));
    assert_eq!(edge.external_policy, TrafficPolicy::Local);
    assert_eq!(edge.health_check_node_port, Some(32000));
    assert_eq!(edge.source_ranges, ["203.0.113.0/24".parse().unwrap()]);
    assert!(edge.external_ips.contains(&"198.51.100.7".parse::<IpAddr>().unwrap()));
    assert_eq!(edge.ingress.iter().map(|i| i.proxy).collect::<Vec<_>>(), [false, true]);

    let Object::Service(db) = get(&objects, "Service shop/db") else { panic!() };
    assert!(db.headless && db.publish_not_ready && db.cluster_ips.is_empty());

    let Object::Service(legacy) = get(&objects, "Service shop/legacy") else { panic!() };
    assert_eq!(legacy.kind, ServiceKind::ExternalName("legacy.example.com".to_owned()));
}

/// S14: conditions as written.
#[test]
fn slices_pods_and_nodes_come_out_whole() {
    let objects = from_protobuf();
    let Object::EndpointSlice(x1) = get(&objects, "EndpointSlice shop/web-x1") else { panic!() };
    assert_eq!(x1.address_type, AddressType::V4);
    assert_eq!(x1.service, Some(ObjectName::new("shop", "web")));
    assert_eq!(x1.endpoints[0].for_nodes, ["node-a"]);
    assert_eq!(x1.endpoints[0].target.as_ref().unwrap().name, ObjectName::new("shop", "web-0"));
    let expected = Conditions { ready: false, serving: true, terminating: true };
    assert_eq!(x1.endpoints[1].conditions, expected);

    let Object::Pod(pod) = get(&objects, "Pod shop/db-0") else { panic!() };
    assert_eq!((pod.phase, pod.ready, pod.host_network), (PodPhase::Running, true, false));
    assert_eq!((pod.hostname.as_deref(), pod.subdomain.as_deref()), (Some("db-0"), Some("db")));
    assert_eq!(pod.addrs.len(), 2);
    assert_eq!((pod.ports[0].name.as_str(), pod.ports[0].port), ("pg", 5432));

    let Object::Node(node) = get(&objects, "Node node-a") else { panic!() };
    assert_eq!(node.zone(), Some("z1"));
    assert_eq!((node.pod_cidrs.len(), node.addrs.len(), node.taints.len()), (2, 2, 1));
}

/// P1 to P4: a policy with every kind of peer and port.
#[test]
fn a_network_policy_comes_out_whole() {
    let objects = from_protobuf();
    let Object::NetworkPolicy(policy) = get(&objects, "NetworkPolicy shop/db-from-web") else {
        panic!()
    };
    assert_eq!(policy.faults, []);
    assert_eq!(policy.pods, selector(&[("app", "db")]));
    assert_eq!(policy.egress, Some(vec![PolicyRule::default()]));
    let blue = LabelRequirement {
        key: "team".to_owned(),
        operator: LabelOperator::In(["blue".to_owned()].into()),
    };
    let rule = PolicyRule {
        peers: vec![
            PolicyPeer::Pods { namespaces: None, pods: Some(selector(&[("app", "web")])) },
            PolicyPeer::Pods {
                namespaces: Some(LabelSelector {
                    expressions: vec![blue],
                    ..LabelSelector::default()
                }),
                pods: Some(LabelSelector::default()),
            },
            PolicyPeer::Block {
                cidr: "192.0.2.0/24".parse().unwrap(),
                except: vec!["192.0.2.128/25".parse().unwrap()],
            },
        ],
        ports: vec![
            PolicyPort { protocol: Protocol::Tcp, ports: PolicyPortRange::Name("pg".to_owned()) },
            PolicyPort { protocol: Protocol::Tcp, ports: PolicyPortRange::Numbers(6000, 6010) },
        ],
    };
    assert_eq!(policy.ingress, Some(vec![rule]));
}

fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    let labels = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    LabelSelector { labels, expressions: Vec::new() }
}

/// O9: no prefix of a real value panics, and none is taken for the whole.
#[test]
fn a_truncated_value_is_an_error() {
    for entry in fs::read_dir(testdata()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pb") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        // The last bytes are two empty fields of the envelope, which may be absent.
        for end in 0..bytes.len() - 4 {
            assert!(decode_value(&bytes[..end]).is_err(), "{} to {end}", path.display());
        }
    }
}

#[test]
fn what_is_no_plain_value_says_what_it_is() {
    let encrypted = decode_value(b"k8s:enc:aescbc:v1:key1:\x01\x02").unwrap_err();
    assert!(
        matches!(&encrypted, DecodeError::Encrypted { provider } if provider == "k8s:enc:aescbc:v1:key1"),
        "{encrypted}"
    );
    assert!(matches!(decode_value(b"hello"), Err(DecodeError::Format { .. })));
    assert!(matches!(decode_value(b""), Err(DecodeError::Format { .. })));
    assert!(matches!(decode_value(b"{\"kind\":"), Err(DecodeError::Json(_))));
    assert!(matches!(decode_value(b"k8s\0\xff\xff"), Err(DecodeError::Protobuf(_))));
    let ignored = decode_value(br#"{"apiVersion":"v1","kind":"ConfigMap"}"#).unwrap_err();
    assert!(matches!(ignored, DecodeError::Ignored { .. }));
}
