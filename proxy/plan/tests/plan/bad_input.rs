//! Every field that can be wrong is wrong once: one warning names object and field, and whatever
//! else there is is programmed.

use serde_json::{Value, json};
use sluice_model::Protocol::Tcp;
use sluice_plan::{NodeContext, Planner};
use sluice_store::{Cache, Event, parse_manifest};

use crate::common::{Kernel, backends_of};

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "bad", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.66", "clusterIPs": ["10.96.0.66", "fd00:96::66"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30066, "protocol": "TCP"},
                {"name": "dns", "port": 53, "targetPort": "dns", "nodePort": 30067, "protocol": "UDP"},
            ],
            "externalIPs": ["192.0.2.66"],
            "loadBalancerSourceRanges": ["203.0.113.0/24"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
            "healthCheckNodePort": 32066,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.66", "ipMode": "VIP"}]}},
    })
}

fn slice() -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "bad-1", "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": "bad"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.1.66"], "nodeName": "node-a",
                       "conditions": {"ready": true}}],
    })
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "bad"},
        "spec": {"podCIDR": "10.244.6.0/24", "podCIDRs": ["10.244.6.0/24", "fd00:244:6::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.66"}]},
    })
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad", "namespace": "shop"},
        "spec": {
            "nodeName": "node-a",
            "containers": [{"ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}],
            "initContainers": [{"restartPolicy": "Always", "ports": [{"containerPort": 9}]}],
        },
        "status": {"phase": "Running", "podIP": "10.244.1.67", "podIPs": [{"ip": "10.244.1.67"}]},
    })
}

/// What is programmed whatever else is there.
const GOOD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: good, namespace: shop}
spec:
  clusterIP: "10.96.0.1"
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: good-1
  namespace: shop
  labels: {"kubernetes.io/service-name": good}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ["10.244.1.2"]}]
"#;

/// Puts a value where the pointer says; null takes the field away.
fn put(object: &mut Value, pointer: &str, value: &Value) {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match parent {
        Value::Object(map) if value.is_null() => _ = map.remove(key),
        Value::Object(map) => _ = map.insert(key.to_owned(), value.clone()),
        Value::Array(list) => {
            let index: usize = key.parse().expect("an index");
            if index == list.len() { list.push(value.clone()) } else { list[index] = value.clone() }
        }
        _ => panic!("{pointer}"),
    }
}

/// All that is said when a source is read that holds that object, with and after the good ones.
fn warnings(object: &Value) -> Vec<String> {
    let mut cache = Cache::new();
    let mut planner = Planner::new();
    planner.set_node(NodeContext { name: "node-a".to_owned(), ..NodeContext::default() });
    let mut kernel = Kernel::default();
    let mut said = Vec::new();
    for first in [true, false] {
        let mut events = vec![];
        if first {
            events.push(Event::Init);
        }
        for manifest in
            [parse_manifest("bad.json", &object.to_string()), parse_manifest("good.yaml", GOOD)]
        {
            events.extend(manifest.objects.into_iter().map(|(_, o)| Event::Apply(Box::new(o))));
            events.extend(manifest.rejected.into_iter().map(Event::Reject));
        }
        if first {
            events.push(Event::InitDone);
        }
        let changes = cache.ingest(events);
        said.extend(changes.rejected.iter().map(ToString::to_string));
        for name in &changes.services {
            let plan = match cache.service(name) {
                Some(service) => planner.upsert(service, &cache.endpoints(name)),
                None => planner.remove(name),
            };
            kernel.apply_watched(&plan.ops);
            said.extend(plan.warnings.iter().map(ToString::to_string));
        }
        assert_eq!(backends_of(&kernel.tables, "10.96.0.1", 80, Tcp), ["10.244.1.2:8080"]);
    }
    said
}

/// Object, what is done to it, and the field that the warning names.
type Row = (fn() -> Value, &'static [(&'static str, &'static str)], &'static str);

/// Values in JSON.
const ROWS: &[Row] = &[
    (service, &[("/metadata/name", r#""Bad_Name""#)], "metadata.name"),
    (service, &[("/metadata/name", "null")], "metadata.name"),
    (service, &[("/metadata/namespace", r#""no good""#)], "metadata.namespace"),
    (service, &[("/metadata/labels", r#"["a"]"#)], "metadata.labels"),
    (service, &[("/spec/type", r#""Gateway""#)], "spec.type"),
    (
        service,
        &[("/spec/clusterIP", r#""10.96.0.999""#), ("/spec/clusterIPs", "null")],
        "spec.clusterIP",
    ),
    (service, &[("/spec/clusterIP", r#""10.96.0.67""#)], "spec.clusterIPs[0]"),
    (service, &[("/spec/clusterIPs/1", r#""fd00::zz""#)], "spec.clusterIPs[1]"),
    (service, &[("/spec/clusterIPs/1", r#""10.96.0.68""#)], "spec.clusterIPs[1]"),
    (service, &[("/spec/clusterIPs/1", r#""::ffff:10.96.0.68""#)], "spec.clusterIPs[1]"),
    (service, &[("/spec/clusterIPs/1", r#""::1""#)], "spec.clusterIPs[1]"),
    (service, &[("/spec/ipFamilies/1", r#""IPv9""#)], "spec.ipFamilies[1]"),
    (service, &[("/spec/ipFamilies/1", r#""IPv4""#)], "spec.ipFamilies[1]"),
    (service, &[("/spec/ipFamilies", r#"["IPv6", "IPv4"]"#)], "spec.ipFamilies[0]"),
    (service, &[("/spec/ports/0/port", "0")], "spec.ports[0].port"),
    (service, &[("/spec/ports/0/port", "70000")], "spec.ports[0].port"),
    (service, &[("/spec/ports/0/port", "-1")], "spec.ports[0].port"),
    (service, &[("/spec/ports/0/port", r#""eighty""#)], "spec.ports[0].port"),
    (service, &[("/spec/ports/0/port", "null")], "spec.ports[0].port"),
    (service, &[("/spec/ports/1/name", r#""http""#)], "spec.ports[1].name"),
    (
        service,
        &[("/spec/ports/1/port", "80"), ("/spec/ports/1/protocol", r#""TCP""#)],
        "spec.ports[1].port",
    ),
    (service, &[("/spec/ports/0/protocol", r#""CARRIER-PIGEON""#)], "spec.ports[0].protocol"),
    (service, &[("/spec/ports/0/targetPort", "65536")], "spec.ports[0].targetPort"),
    (service, &[("/spec/ports/0/targetPort", r#""No Name""#)], "spec.ports[0].targetPort"),
    (service, &[("/spec/ports/0/targetPort", "true")], "spec.ports[0].targetPort"),
    (service, &[("/spec/ports/0/nodePort", "70000")], "spec.ports[0].nodePort"),
    (
        service,
        &[("/spec/ports/1/nodePort", "30066"), ("/spec/ports/1/protocol", r#""TCP""#)],
        "spec.ports[1].nodePort",
    ),
    (service, &[("/spec/externalIPs/0", r#""0.0.0.0""#)], "spec.externalIPs[0]"),
    (service, &[("/spec/externalIPs/0", r#""127.0.0.1""#)], "spec.externalIPs[0]"),
    (service, &[("/spec/externalIPs/0", r#""169.254.169.254""#)], "spec.externalIPs[0]"),
    (service, &[("/spec/externalIPs/0", r#""010.0.0.1""#)], "spec.externalIPs[0]"),
    (
        service,
        &[("/spec/loadBalancerSourceRanges/0", r#""203.0.113.0""#)],
        "spec.loadBalancerSourceRanges[0]",
    ),
    (
        service,
        &[("/spec/loadBalancerSourceRanges/1", r#""fd00::/129""#)],
        "spec.loadBalancerSourceRanges[1]",
    ),
    (service, &[("/spec/sessionAffinity", r#""Cookie""#)], "spec.sessionAffinity"),
    (
        service,
        &[("/spec/sessionAffinityConfig/clientIP/timeoutSeconds", "0")],
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    ),
    (
        service,
        &[("/spec/sessionAffinityConfig/clientIP/timeoutSeconds", "86401")],
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    ),
    (service, &[("/spec/externalTrafficPolicy", r#""Nearest""#)], "spec.externalTrafficPolicy"),
    (service, &[("/spec/internalTrafficPolicy", r#""Nearest""#)], "spec.internalTrafficPolicy"),
    (service, &[("/spec/healthCheckNodePort", "65536")], "spec.healthCheckNodePort"),
    (service, &[("/spec/publishNotReadyAddresses", r#""yes""#)], "spec.publishNotReadyAddresses"),
    (service, &[("/spec/type", r#""ExternalName""#)], "spec.externalName"),
    (
        service,
        &[("/spec/type", r#""ExternalName""#), ("/spec/externalName", r#""a..b""#)],
        "spec.externalName",
    ),
    (
        service,
        &[("/status/loadBalancer/ingress/0/ip", r#""224.0.0.1""#)],
        "status.loadBalancer.ingress[0].ip",
    ),
    (
        service,
        &[("/status/loadBalancer/ingress/0/ipMode", r#""Magic""#)],
        "status.loadBalancer.ingress[0].ipMode",
    ),
    // The good Service was there first, by its name if not by its age.
    (
        service,
        &[
            ("/metadata/name", r#""worse""#),
            ("/spec/clusterIP", "null"),
            ("/spec/clusterIPs", r#"["10.96.0.1"]"#),
            ("/spec/ipFamilies", "null"),
        ],
        "spec.clusterIPs[0]",
    ),
    (slice, &[("/metadata/name", r#""""#)], "metadata.name"),
    (slice, &[("/addressType", r#""IPX""#)], "addressType"),
    (slice, &[("/addressType", "null")], "addressType"),
    (slice, &[("/ports/0/port", "0")], "ports[0].port"),
    (slice, &[("/ports/0/port", "65536")], "ports[0].port"),
    (slice, &[("/ports/0/protocol", r#""ICMP""#)], "ports[0].protocol"),
    (slice, &[("/endpoints/0/addresses/0", r#""10.244.1""#)], "endpoints[0].addresses[0]"),
    (slice, &[("/endpoints/0/addresses/0", r#""fd00::1""#)], "endpoints[0].addresses[0]"),
    (slice, &[("/endpoints/0/addresses/0", r#""0.0.0.0""#)], "endpoints[0].addresses[0]"),
    (slice, &[("/endpoints/0/addresses", "[]")], "endpoints[0].addresses"),
    (slice, &[("/endpoints/0/conditions/ready", r#""maybe""#)], "endpoints[0].conditions.ready"),
    (node, &[("/metadata/name", r#""UPPER""#)], "metadata.name"),
    (node, &[("/spec/podCIDR", r#""10.244.6.0/33""#), ("/spec/podCIDRs", "null")], "spec.podCIDR"),
    (node, &[("/spec/podCIDRs/0", r#""10.244.6.0""#)], "spec.podCIDRs[0]"),
    (node, &[("/spec/podCIDRs/1", r#""10.244.7.0/24""#)], "spec.podCIDRs[1]"),
    (node, &[("/status/addresses/0/address", r#""node-a""#)], "status.addresses[0].address"),
    (pod, &[("/metadata/name", r#""a b""#)], "metadata.name"),
    (pod, &[("/status/phase", r#""Resting""#)], "status.phase"),
    (pod, &[("/status/podIP", r#""1.2.3""#), ("/status/podIPs", "null")], "status.podIP"),
    (pod, &[("/status/podIPs/0/ip", r#""255.255.255.255""#)], "status.podIPs[0].ip"),
    (pod, &[("/status/podIPs/1", r#"{"ip": "10.244.1.68"}"#)], "status.podIPs[1]"),
    (
        pod,
        &[("/spec/containers/0/ports/0/containerPort", "0")],
        "spec.containers[0].ports[0].containerPort",
    ),
    (
        pod,
        &[("/spec/containers/0/ports/0/protocol", r#""X""#)],
        "spec.containers[0].ports[0].protocol",
    ),
    (
        pod,
        &[("/spec/initContainers/0/ports/0/containerPort", "99999")],
        "spec.initContainers[0].ports[0].containerPort",
    ),
];

/// O5: of Service, EndpointSlice, Node and Pod. The warning comes once, though the object is read
/// twice, and the good Service is served.
#[test]
fn every_field_that_is_wrong_is_named_in_one_warning() {
    let mut wrong = Vec::new();
    for (object, patches, field) in ROWS {
        let mut object = object();
        for (pointer, value) in *patches {
            put(&mut object, pointer, &serde_json::from_str(value).expect("JSON"));
        }
        let said = warnings(&object);
        let kind = object["kind"].as_str().expect("a kind");
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        // An object whose name is wrong is named by the file that it stands in.
        let subject = if field.starts_with("metadata.name") { "bad.json#1" } else { name };
        let named = |text: &String| {
            let at = text.find(&format!("{field}:")).or_else(|| text.find(&format!("{field} ")));
            at.is_some() && text.contains(subject) && (subject != name || text.contains(kind))
        };
        if !matches!(&said[..], [one] if named(one)) {
            wrong.push(format!("{kind} {field} {patches:?}: {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

/// O5: what the rows change is right before; no warning is the base's own.
#[test]
fn the_objects_are_right_but_for_what_is_changed() {
    for object in [service, slice, node, pod] {
        assert_eq!(warnings(&object()), [""; 0]);
    }
}
