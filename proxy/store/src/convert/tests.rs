//! Every field that can be wrong, wrong once: the message names it and the bad value (O5).

use serde_json::{Value, json};
use sluice_model::{
    IpFamily, Object, PodPhase, Service, ServiceKind, ServicePort, TargetPort, TrafficPolicy,
};

use crate::{Manifest, parse_manifest};

fn parse(value: &Value) -> Manifest {
    parse_manifest("f.json", &value.to_string())
}

/// Puts a value at a JSON pointer, making what is missing on the way.
fn put(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let mut at = &mut object;
    for step in pointer.split('/').skip(1) {
        at = match at {
            Value::Array(array) => &mut array[step.parse::<usize>().unwrap()],
            at => {
                if at.is_null() {
                    *at = json!({});
                }
                at.as_object_mut().unwrap().entry(step).or_insert(Value::Null)
            }
        };
    }
    *at = value;
    object
}

/// Each row: where, what, and what is said of it after the object's name.
fn assert_rejected(base: &Value, name: &str, rows: &[(&str, Value, &str)]) {
    let good = parse(base);
    assert_eq!((good.objects.len(), good.rejected.len()), (1, 0), "{:?}", good.rejected);
    for (pointer, value, message) in rows {
        let manifest = parse(&put(base, pointer, value.clone()));
        assert!(manifest.objects.is_empty(), "{pointer} {value} was taken");
        let said: Vec<String> = manifest.rejected.iter().map(ToString::to_string).collect();
        assert_eq!(said, [format!("{name}{message} (f.json#1)")]);
    }
}

fn web() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["198.51.100.7"],
            "loadBalancerSourceRanges": ["203.0.113.0/24"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            "healthCheckNodePort": 32000,
            "selector": {"app": "web"},
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080, "targetPort": "http"},
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053, "targetPort": 5353},
            ],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.50", "ipMode": "VIP"}, {"hostname": "lb.example.com"},
        ]}},
    })
}

/// O5: bad addresses, ports and words of a Service.
#[test]
fn a_bad_field_of_a_service_is_named() {
    assert_rejected(
        &web(),
        "Service shop/web: ",
        &[
            (
                "/spec/type",
                json!("Foo"),
                r#"spec.type: "Foo" is not ClusterIP, NodePort, LoadBalancer or ExternalName"#,
            ),
            (
                "/spec/clusterIPs/0",
                json!("10.96.0.2"),
                r#"spec.clusterIPs[0]: "10.96.0.2" is not spec.clusterIP "10.96.0.1""#,
            ),
            (
                "/spec/clusterIPs/1",
                json!("10.96.0.2"),
                "spec.clusterIPs[1]: 10.96.0.2 is a second IPv4 entry",
            ),
            (
                "/spec/clusterIPs/1",
                json!("fd00::zz"),
                r#"spec.clusterIPs[1]: "fd00::zz" is not an IP address"#,
            ),
            (
                "/spec/clusterIPs/1",
                json!("::ffff:10.0.0.1"),
                r#"spec.clusterIPs[1]: "::ffff:10.0.0.1" is an IPv4 address mapped into IPv6"#,
            ),
            (
                "/spec/clusterIPs/1",
                json!("fe80::1"),
                r#"spec.clusterIPs[1]: "fe80::1" is a link-local address"#,
            ),
            (
                "/spec/clusterIPs/1",
                json!("::"),
                r#"spec.clusterIPs[1]: "::" is the unspecified address"#,
            ),
            (
                "/spec/clusterIPs/1",
                json!("ff02::1"),
                r#"spec.clusterIPs[1]: "ff02::1" is a multicast address"#,
            ),
            (
                "/spec/clusterIPs",
                json!(["None"]),
                r#"spec.clusterIPs[0]: "None" is not spec.clusterIP "10.96.0.1""#,
            ),
            (
                "/spec/ipFamilies/1",
                json!("IPv5"),
                r#"spec.ipFamilies[1]: "IPv5" is not IPv4 or IPv6"#,
            ),
            ("/spec/ipFamilies/1", json!("IPv4"), r#"spec.ipFamilies[1]: "IPv4" is there twice"#),
            (
                "/spec/ipFamilies",
                json!(["IPv6"]),
                r#"spec.ipFamilies[0]: "IPv6" is not the family of cluster IP 10.96.0.1"#,
            ),
            (
                "/spec/externalIPs/0",
                json!("127.0.0.1"),
                r#"spec.externalIPs[0]: "127.0.0.1" is a loopback address"#,
            ),
            (
                "/spec/externalIPs/0",
                json!("255.255.255.255"),
                r#"spec.externalIPs[0]: "255.255.255.255" is the broadcast address"#,
            ),
            (
                "/spec/sessionAffinity",
                json!("Cookie"),
                r#"spec.sessionAffinity: "Cookie" is not None or ClientIP"#,
            ),
            (
                "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
                json!(0),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not 1 to 86400",
            ),
            (
                "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
                json!(-1),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: -1 is not 1 to 86400",
            ),
            (
                "/spec/externalTrafficPolicy",
                json!("local"),
                r#"spec.externalTrafficPolicy: "local" is not Cluster or Local"#,
            ),
            (
                "/spec/internalTrafficPolicy",
                json!("Global"),
                r#"spec.internalTrafficPolicy: "Global" is not Cluster or Local"#,
            ),
            (
                "/spec/healthCheckNodePort",
                json!(65536),
                "spec.healthCheckNodePort: 65536 is not 1 to 65535",
            ),
            ("/spec/ports/1/port", json!(0), "spec.ports[1].port: 0 is not 1 to 65535"),
            ("/spec/ports/1/port", json!(70000), "spec.ports[1].port: 70000 is not 1 to 65535"),
            ("/spec/ports/1/port", json!(-1), "spec.ports[1].port: -1 is not 1 to 65535"),
            (
                "/spec/ports/1/port",
                json!("53"),
                r#"spec.ports[1].port: invalid type: string "53", expected i32"#,
            ),
            (
                "/spec/ports/1/name",
                json!("http"),
                r#"spec.ports[1].name: "http" is the name of another port"#,
            ),
            (
                "/spec/ports/1/protocol",
                json!("ICMP"),
                r#"spec.ports[1].protocol: "ICMP" is not TCP, UDP or SCTP"#,
            ),
            (
                "/spec/ports/1/protocol",
                json!("udp"),
                r#"spec.ports[1].protocol: "udp" is not TCP, UDP or SCTP"#,
            ),
            (
                "/spec/ports/1/nodePort",
                json!(99999),
                "spec.ports[1].nodePort: 99999 is not 1 to 65535",
            ),
            (
                "/spec/ports/1/targetPort",
                json!(65536),
                "spec.ports[1].targetPort: 65536 is not 1 to 65535",
            ),
            (
                "/spec/ports/1/targetPort",
                json!("5353"),
                r#"spec.ports[1].targetPort: "5353" is not a port name: at most 15 lower-case letters, digits and '-', at least one letter"#,
            ),
            (
                "/spec/ports/1/targetPort",
                json!(5_000_000_000_u64),
                "spec.ports[1].targetPort: 5000000000 does not fit into 32 bits",
            ),
            (
                "/spec/ports/1/targetPort",
                json!(true),
                "spec.ports[1].targetPort: invalid type: boolean `true`, expected a number or a name",
            ),
            (
                "/spec/selector/app",
                json!(1),
                "spec.selector.app: invalid type: integer `1`, expected a string",
            ),
            (
                "/spec/ports",
                json!("none"),
                r#"spec.ports: invalid type: string "none", expected a sequence"#,
            ),
            (
                "/status/loadBalancer/ingress/0/ip",
                json!("lb"),
                r#"status.loadBalancer.ingress[0].ip: "lb" is not an IP address"#,
            ),
            (
                "/status/loadBalancer/ingress/0/ipMode",
                json!("NAT"),
                r#"status.loadBalancer.ingress[0].ipMode: "NAT" is not VIP or Proxy"#,
            ),
            (
                "/metadata/creationTimestamp",
                json!("yesterday"),
                r#"metadata.creationTimestamp: "yesterday" is not an RFC 3339 time"#,
            ),
        ],
    );
}

#[test]
fn duplicates_within_a_service_are_named() {
    let mut base = web();
    base["spec"]["ports"][1]["protocol"] = json!("TCP");
    assert_rejected(
        &base,
        "Service shop/web: ",
        &[
            ("/spec/ports/1/port", json!(80), "spec.ports[1].port: 80/TCP is there twice"),
            (
                "/spec/ports/1/nodePort",
                json!(30080),
                "spec.ports[1].nodePort: 30080/TCP is there twice",
            ),
        ],
    );
    let mut headless = web();
    headless["spec"]["clusterIP"] = json!("None");
    headless["spec"]["clusterIPs"] = json!(["None"]);
    assert_rejected(
        &headless,
        "Service shop/web: ",
        &[(
            "/spec/clusterIPs",
            json!(["None", "fd00::1"]),
            r#"spec.clusterIPs[1]: "fd00::1" stands beside "None""#,
        )],
    );
}

/// An octet with a leading zero is ten to some and eight to others.
#[test]
fn an_address_with_leading_zeros_is_refused() {
    let mut base = web();
    base["spec"].as_object_mut().unwrap().remove("clusterIPs");
    assert_rejected(
        &base,
        "Service shop/web: ",
        &[(
            "/spec/clusterIP",
            json!("010.0.0.1"),
            r#"spec.clusterIP: "010.0.0.1" is not an IP address"#,
        )],
    );
}

#[test]
fn an_object_without_a_proper_name_is_refused() {
    let long = "a".repeat(254);
    let too_long = format!(
        "metadata.name: {long:?} is not a name: at most 253 lower-case letters, digits, '-' and '.'"
    );
    assert_rejected(
        &web(),
        "",
        &[
            ("/metadata/name", json!(""), "metadata.name: is missing"),
            ("/metadata", Value::Null, "metadata.name: is missing"),
            ("/metadata/name", json!(long), &too_long),
            (
                "/metadata/name",
                json!("Web"),
                r#"metadata.name: "Web" is not a name: at most 253 lower-case letters, digits, '-' and '.'"#,
            ),
            (
                "/metadata/namespace",
                json!("a/b"),
                r#"metadata.namespace: "a/b" is not a name: at most 253 lower-case letters, digits, '-' and '.'"#,
            ),
            ("/kind", Value::Null, "kind: is missing"),
            ("/apiVersion", Value::Null, "apiVersion: is missing"),
            ("/apiVersion", json!("v2"), r#"apiVersion: "v2" is not "v1""#),
            ("/kind", json!(7), "kind: invalid type: integer `7`, expected a string"),
        ],
    );
}

/// O5, for the other kinds.
#[test]
fn a_bad_field_of_a_slice_a_pod_or_a_node_is_named() {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
        "ports": [{"port": 80}],
    });
    assert_rejected(
        &slice,
        "EndpointSlice shop/web-1: ",
        &[
            ("/addressType", json!(""), "addressType: is missing"),
            ("/addressType", json!("ipv4"), r#"addressType: "ipv4" is not IPv4, IPv6 or FQDN"#),
            ("/endpoints/0/addresses", json!([]), "endpoints[0].addresses: is empty"),
            (
                "/endpoints/0/addresses/0",
                json!("x"),
                r#"endpoints[0].addresses[0]: "x" is not an IP address"#,
            ),
            (
                "/endpoints/0/addresses/0",
                json!("fd00::1"),
                "endpoints[0].addresses[0]: fd00::1 is not of addressType IPv4",
            ),
            (
                "/endpoints/0/addresses/0",
                json!("0.0.0.0"),
                r#"endpoints[0].addresses[0]: "0.0.0.0" is the unspecified address"#,
            ),
            ("/ports/0/port", json!(0), "ports[0].port: 0 is not 1 to 65535"),
            ("/ports/0/protocol", json!("X"), r#"ports[0].protocol: "X" is not TCP, UDP or SCTP"#),
        ],
    );
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {
            "containers": [{"ports": [{"name": "web", "containerPort": 80}]}],
            "initContainers": [{"restartPolicy": "Always", "ports": [{"containerPort": 81}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    });
    assert_rejected(
        &pod,
        "Pod shop/p: ",
        &[
            (
                "/status/phase",
                json!("Done"),
                r#"status.phase: "Done" is not Pending, Running, Succeeded, Failed or Unknown"#,
            ),
            (
                "/status/podIPs/1/ip",
                json!("10.0.0.2"),
                "status.podIPs[1]: 10.0.0.2 is a second IPv4 entry",
            ),
            ("/status/podIPs/1/ip", json!("?"), r#"status.podIPs[1].ip: "?" is not an IP address"#),
            (
                "/spec/containers/0/ports/0/containerPort",
                json!(0),
                "spec.containers[0].ports[0].containerPort: 0 is not 1 to 65535",
            ),
            (
                "/spec/containers/0/ports/0/protocol",
                json!("?"),
                r#"spec.containers[0].ports[0].protocol: "?" is not TCP, UDP or SCTP"#,
            ),
            (
                "/spec/initContainers/0/ports/0/containerPort",
                json!(70000),
                "spec.initContainers[0].ports[0].containerPort: 70000 is not 1 to 65535",
            ),
        ],
    );
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]},
        "status": {"addresses": [{"type": "Hostname", "address": "node-a"}, {"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    assert_rejected(
        &node,
        "Node node-a: ",
        &[
            (
                "/spec/podCIDRs/0",
                json!("10.244.1.0"),
                r#"spec.podCIDRs[0]: "10.244.1.0" is not a CIDR"#,
            ),
            (
                "/spec/podCIDRs/1",
                json!("10.244.2.0/24"),
                "spec.podCIDRs[1]: 10.244.2.0/24 is a second IPv4 entry",
            ),
            (
                "/spec/podCIDRs/1",
                json!("::ffff:10.0.0.0/104"),
                r#"spec.podCIDRs[1]: "::ffff:10.0.0.0/104" is an IPv4 prefix mapped into IPv6"#,
            ),
            (
                "/status/addresses/1/address",
                json!("x"),
                r#"status.addresses[1].address: "x" is not an IP address"#,
            ),
        ],
    );
}

fn service(value: &Value) -> Service {
    let manifest = parse(value);
    assert_eq!(manifest.rejected, []);
    match manifest.objects.into_iter().next() {
        Some((_, Object::Service(service))) => service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let bare = service(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "1st"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "selector": {}, "externalIPs": null},
    }));
    assert_eq!(bare.meta.name.to_string(), "default/1st", "S38: names may begin with a digit");
    let port = ServicePort {
        name: String::new(),
        protocol: sluice_model::Protocol::Tcp,
        port: 80,
        target: TargetPort::Number(80),
        node_port: None,
        app_protocol: None,
    };
    assert_eq!(bare.ports, [port]);
    assert_eq!(bare.ip_families, [IpFamily::V4]);
    assert_eq!(bare.selector, None, "an empty selector is none");
    assert_eq!(bare.kind, ServiceKind::ClusterIp);
    assert_eq!(bare.external_policy, TrafficPolicy::Cluster);
    assert_eq!((bare.affinity_secs, bare.headless), (None, false));

    let mut sticky = web();
    sticky["spec"]["sessionAffinityConfig"] = Value::Null;
    assert_eq!(service(&sticky).affinity_secs, Some(10_800));
    assert_eq!(service(&web()).ingress.len(), 1, "a host name is no address");
}

/// S7, O5: a range that cannot be read does not take the Service with it; whoever programs the Service
/// is told, and must not take it for none.
#[test]
fn source_range_that_cannot_be_read_is_kept_as_it_stands() {
    let ranges = json!(["203.0.113.0/33", "198.51.100.0/24", "everybody"]);
    let service = service(&put(&web(), "/spec/loadBalancerSourceRanges", ranges));
    assert_eq!(service.source_ranges.len(), 1);
    let bad = [(0, "203.0.113.0/33".to_owned()), (2, "everybody".to_owned())];
    assert_eq!(service.bad_source_ranges, bad);
}

/// S7: padding is tolerated, and host bits are cleared.
#[test]
fn source_ranges_may_be_padded() {
    let ranges = json!([" 203.0.113.0/24 ", "198.51.100.9/24\n", "fd00::1/64"]);
    let service = service(&put(&web(), "/spec/loadBalancerSourceRanges", ranges));
    let shown: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["203.0.113.0/24", "198.51.100.0/24", "fd00::/64"]);
}

#[test]
fn an_external_name_is_a_dns_name() {
    let external = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "ExternalName", "externalName": "example.com."},
    });
    let kind = ServiceKind::ExternalName("example.com".to_owned());
    assert_eq!(service(&external).kind, kind);
    assert_rejected(
        &external,
        "Service shop/web: ",
        &[
            ("/spec/externalName", json!(""), "spec.externalName: is missing"),
            ("/spec/externalName", json!("a..b"), r#"spec.externalName: "a..b" is not a DNS name"#),
            ("/spec/externalName", json!("a b"), r#"spec.externalName: "a b" is not a DNS name"#),
        ],
    );
}

/// S14: absent conditions.
#[test]
fn an_endpoint_without_conditions_is_ready() {
    let manifest = parse(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": null}}],
        "ports": null,
    }));
    let Some((_, Object::EndpointSlice(slice))) = manifest.objects.first() else { panic!() };
    assert_eq!(slice.endpoints.len(), 2);
    for endpoint in &slice.endpoints {
        assert_eq!(endpoint.conditions, sluice_model::Conditions::default());
    }
}

#[test]
fn only_init_containers_that_keep_running_have_ports() {
    let manifest = parse(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"initContainers": [
            {"ports": [{"containerPort": 1}]},
            {"restartPolicy": "Always", "ports": [{"containerPort": 2}]},
        ]},
    }));
    let Some((_, Object::Pod(pod))) = manifest.objects.first() else { panic!() };
    assert_eq!(pod.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [2]);
    assert_eq!((pod.phase, pod.ready), (PodPhase::Pending, false));
}

/// O5, D20: what is wrong with a ServiceImport is named.
#[test]
fn a_bad_field_of_an_import_is_named() {
    let import = json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "ClusterSetIP", "ips": ["10.42.0.1"], "ports": [{"port": 80}]},
    });
    assert_rejected(
        &import,
        "ServiceImport shop/web: ",
        &[
            (
                "/spec/type",
                json!("Global"),
                "spec.type: \"Global\" is not ClusterSetIP or Headless",
            ),
            ("/spec/type", json!(""), "spec.type: is missing"),
            ("/spec/ips/0", json!("10.42.0"), "spec.ips[0]: \"10.42.0\" is not an IP address"),
            ("/spec/ports/0/port", json!(70000), "spec.ports[0].port: 70000 is not 1 to 65535"),
            (
                "/spec/ports/0/protocol",
                json!("ICMP"),
                "spec.ports[0].protocol: \"ICMP\" is not TCP, UDP or SCTP",
            ),
        ],
    );
}
