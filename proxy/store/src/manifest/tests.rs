//! Documents, lists and other kinds.

use super::*;

fn names(manifest: &Manifest) -> Vec<String> {
    manifest.objects.iter().map(|(origin, object)| format!("{origin} {}", object.key())).collect()
}

fn said(manifest: &Manifest) -> Vec<String> {
    manifest.rejected.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_has_any_number_of_documents() {
    let text = "\
# a comment before everything
---
apiVersion: v1
kind: Namespace
metadata: {name: a}
--- # a comment on the marker
apiVersion: v1
kind: Namespace
metadata: {name: b}
---
# nothing but a comment
---
--- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
...
%YAML 1.1
---
null
---
apiVersion: v1
kind: Namespace
metadata:
  name: d
  annotations:
    note: |
      --- not a marker
      ... nor this
";
    let manifest = parse_manifest("f.yaml", text);
    assert_eq!(said(&manifest), [""; 0]);
    assert_eq!(
        names(&manifest),
        [
            "f.yaml#1 Namespace a",
            "f.yaml#2 Namespace b",
            "f.yaml#3 Namespace c",
            "f.yaml#5 Namespace d"
        ]
    );
}

#[test]
fn windows_line_ends_and_no_last_line_end_are_fine() {
    let text = "apiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: a}\r\n---\r\napiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: b}";
    assert_eq!(names(&parse_manifest("f", text)), ["f#1 Namespace a", "f#2 Namespace b"]);
    assert_eq!(parse_manifest("f.yaml", ""), Manifest::default());
    assert_eq!(parse_manifest("f.json", " \n"), Manifest::default());
}

/// O5: the message has the file, the document and the file's line.
#[test]
fn a_document_that_is_not_yaml_leaves_the_others_alone() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Namespace
metadata: {name: b
---
apiVersion: v1
kind: Namespace
metadata: {name: c}
";
    let manifest = parse_manifest("/etc/f.yaml", text);
    assert_eq!(names(&manifest), ["/etc/f.yaml#1 Namespace a", "/etc/f.yaml#3 Namespace c"]);
    let said = said(&manifest);
    assert_eq!(said.len(), 1);
    assert!(said[0].ends_with("(/etc/f.yaml#2)"), "{}", said[0]);
    assert!(said[0].contains("at line 7") || said[0].contains("at line 8"), "{}", said[0]);
    assert_eq!(manifest.rejected[0].key, None);
}

#[test]
fn json_files_hold_documents_too() {
    let text = r#"
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}
        {"apiVersion": "#;
    let manifest = parse_manifest("f.json", text);
    assert_eq!(names(&manifest), ["f.json#1 Namespace a", "f.json#2 Namespace b"]);
    assert_eq!(said(&manifest).len(), 1);
    assert!(said(&manifest)[0].contains("line 4"), "{:?}", said(&manifest));
}

#[test]
fn lists_hold_objects() {
    let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 0}]}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: x}}
- 7
---
apiVersion: v1
kind: NamespaceList
items:
- metadata: {name: b}
- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSliceList
items:
- {metadata: {name: e}, addressType: IPv4, endpoints: []}
---
apiVersion: v1
kind: ConfigMapList
items: [{metadata: {name: x}}]
---
{apiVersion: v1, kind: PodList, items: null}
---
{apiVersion: v1, kind: PodList, items: 1}
";
    let manifest = parse_manifest("f", text);
    assert_eq!(
        names(&manifest),
        [
            "f#1[0] Namespace a",
            "f#2[0] Namespace b",
            "f#2[1] Namespace c",
            "f#3[0] EndpointSlice default/e"
        ]
    );
    assert_eq!(
        said(&manifest),
        [
            "Service default/s: spec.ports[0].port: 0 is not 1 to 65535 (f#1[1])",
            "is not an object (f#1[3])",
            "items: is not a list (f#6)"
        ]
    );
}

#[test]
fn anchors_and_merge_keys_are_resolved() {
    let text = "\
apiVersion: v1
kind: Service
metadata: &m {name: s, labels: &l {app: web}}
spec:
  clusterIP: 10.96.0.1
  selector: {<<: *l, tier: front}
  ports: [{port: 80}]
";
    let manifest = parse_manifest("f", text);
    assert_eq!(said(&manifest), [""; 0]);
    let Some((_, Object::Service(service))) = manifest.objects.first() else { panic!() };
    let selector = service.selector.as_ref().unwrap();
    assert_eq!((selector["app"].as_str(), selector["tier"].as_str()), ("web", "front"));
}

#[test]
fn kinds_of_others_are_left_out() {
    for text in [
        "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: x}, spec: 7}",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}",
        "{apiVersion: v1, kind: Endpoints, metadata: {name: x}}",
    ] {
        assert_eq!(parse_manifest("f", text), Manifest::default(), "{text}");
    }
    let old = "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, metadata: {name: x}}";
    let expected = r#"apiVersion: "discovery.k8s.io/v1beta1" is not "discovery.k8s.io/v1" (f#1)"#;
    assert_eq!(said(&parse_manifest("f", old)), [expected]);
}
