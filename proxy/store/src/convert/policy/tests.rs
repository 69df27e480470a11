//! What a policy is read as, and every field that can be wrong, wrong once (P1, P11).

use serde_json::{Value, json};
use sluice_model::{LabelSelector, NetworkPolicy, Object, PolicyPeer, PolicyPortRange};

use crate::{Manifest, parse_manifest};

fn parse(spec: Value) -> Manifest {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
    });
    parse_manifest("f.json", &policy.to_string())
}

fn policy(manifest: Manifest) -> NetworkPolicy {
    let [(_, Object::NetworkPolicy(policy))] = &manifest.objects[..] else {
        panic!("{manifest:?}")
    };
    policy.clone()
}

fn good(spec: Value) -> NetworkPolicy {
    let manifest = parse(spec);
    assert_eq!(manifest.rejected, []);
    policy(manifest)
}

/// P1: what `policyTypes` says, and what is meant without it.
#[test]
fn a_direction_is_isolated_by_policy_types_or_by_default() {
    let rule = json!([{}]);
    for (spec, ingress, egress) in [
        (json!({}), Some(0), None),
        (json!({"ingress": [], "egress": []}), Some(0), None),
        (json!({"ingress": null, "egress": null, "policyTypes": null}), Some(0), None),
        (json!({"ingress": rule}), Some(1), None),
        (json!({"egress": rule}), Some(0), Some(1)),
        (json!({"policyTypes": ["Ingress"], "egress": rule}), Some(0), None),
        (json!({"policyTypes": ["Egress"], "ingress": rule}), None, Some(0)),
        (json!({"policyTypes": ["Egress", "Ingress"]}), Some(0), Some(0)),
    ] {
        let policy = good(spec.clone());
        let rules = |rules: Option<Vec<_>>| rules.map(|rules| rules.len());
        assert_eq!((rules(policy.ingress), rules(policy.egress)), (ingress, egress), "{spec}");
    }
}

/// P2: an empty selector is not an absent one.
#[test]
fn peers_keep_which_selectors_they_have() {
    let policy = good(json!({"ingress": [{"from": [
        {"podSelector": {}},
        {"namespaceSelector": {}},
        {"podSelector": {"matchLabels": {"a": ""}}, "namespaceSelector": {}},
    ]}]}));
    let all = || Some(LabelSelector::default());
    let labelled =
        LabelSelector { labels: [("a".to_owned(), String::new())].into(), expressions: Vec::new() };
    assert_eq!(
        policy.ingress.unwrap()[0].peers,
        [
            PolicyPeer::Pods { namespaces: None, pods: all() },
            PolicyPeer::Pods { namespaces: all(), pods: None },
            PolicyPeer::Pods { namespaces: all(), pods: Some(labelled) },
        ]
    );
}

/// P3, P4: defaults of ports; CIDRs with host bits.
#[test]
fn ports_and_blocks_come_out_as_they_are_meant() {
    let policy = good(json!({"egress": [{
        "to": [{"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.9.9.9/16", "10.128.0.0/9"]}}],
        "ports": [{}, {"protocol": "UDP", "port": 53}, {"port": 1, "endPort": 65535},
            {"protocol": "SCTP", "port": "sig-1"}],
    }]}));
    let rule = &policy.egress.unwrap()[0];
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect();
    let cidr = "10.0.0.0/8".parse().unwrap();
    let except = nets(&["10.9.0.0/16", "10.128.0.0/9"]);
    assert_eq!(rule.peers, [PolicyPeer::Block { cidr, except }]);
    let ports: Vec<_> =
        rule.ports.iter().map(|port| (port.protocol.to_string(), port.ports.clone())).collect();
    assert_eq!(
        ports,
        [
            ("TCP".to_owned(), PolicyPortRange::All),
            ("UDP".to_owned(), PolicyPortRange::Numbers(53, 53)),
            ("TCP".to_owned(), PolicyPortRange::Numbers(1, 65535)),
            ("SCTP".to_owned(), PolicyPortRange::Name("sig-1".to_owned())),
        ]
    );
}

/// P11: whatever is wrong, the policy isolates its pods both ways, allows nothing, and says why.
#[test]
fn a_wrong_field_closes_the_policy() {
    let from = |peer: Value| json!({"ingress": [{}, {"from": [peer]}]});
    let port = |port: Value| json!({"egress": [{"ports": [port]}]});
    let expression = |entry: Value| from(json!({"podSelector": {"matchExpressions": [entry]}}));
    for (spec, message) in [
        (
            json!({"policyTypes": ["Ingress", "Both"]}),
            "spec.policyTypes[1]: \"Both\" is not Ingress or Egress",
        ),
        (
            from(json!({})),
            "spec.ingress[1].from[0]: has neither a podSelector, nor a namespaceSelector, nor an ipBlock",
        ),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})),
            "spec.ingress[1].from[0]: has an ipBlock and a selector; only one of them may be",
        ),
        (from(json!({"ipBlock": {}})), "spec.ingress[1].from[0].ipBlock.cidr: \"\" is not a CIDR"),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0/33"}})),
            "spec.ingress[1].from[0].ipBlock.cidr: \"10.0.0.0/33\" is not a CIDR",
        ),
        (
            from(
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}}),
            ),
            "spec.ingress[1].from[0].ipBlock.except[1]: \"11.0.0.0/16\" is not inside 10.0.0.0/8",
        ),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/8"]}})),
            "spec.ingress[1].from[0].ipBlock.except[0]: \"10.1.0.0/8\" leaves nothing of 10.0.0.0/8",
        ),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}})),
            "spec.ingress[1].from[0].ipBlock.except[0]: \"0.0.0.0/0\" is not inside 10.0.0.0/8",
        ),
        (
            from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}})),
            "spec.ingress[1].from[0].ipBlock.except[0]: \"fd00::/16\" is not inside 10.0.0.0/8",
        ),
        (
            port(json!({"protocol": "ICMP"})),
            "spec.egress[0].ports[0].protocol: \"ICMP\" is not TCP, UDP or SCTP",
        ),
        (port(json!({"port": 0})), "spec.egress[0].ports[0].port: 0 is not 1 to 65535"),
        (port(json!({"port": 65536})), "spec.egress[0].ports[0].port: 65536 is not 1 to 65535"),
        (port(json!({"port": "80"})), "spec.egress[0].ports[0].port: \"80\" is not a port's name"),
        (
            port(json!({"port": "a--b"})),
            "spec.egress[0].ports[0].port: \"a--b\" is not a port's name",
        ),
        (
            port(json!({"endPort": 80})),
            "spec.egress[0].ports[0].endPort: needs a port that it is the end to",
        ),
        (
            port(json!({"port": "http", "endPort": 80})),
            "spec.egress[0].ports[0].endPort: needs a port that is a number",
        ),
        (
            port(json!({"port": 81, "endPort": 80})),
            "spec.egress[0].ports[0].endPort: 80 is below the port, 81",
        ),
        (
            port(json!({"port": 81, "endPort": 0})),
            "spec.egress[0].ports[0].endPort: 0 is not 1 to 65535",
        ),
        (
            expression(json!({"key": "a", "operator": "in", "values": ["b"]})),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].operator: \"in\" is not In, NotIn, Exists or DoesNotExist",
        ),
        (
            expression(json!({"key": "a", "operator": "In"})),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].values: is empty, which In needs",
        ),
        (
            expression(json!({"key": "a", "operator": "NotIn", "values": []})),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].values: is empty, which NotIn needs",
        ),
        (
            expression(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].values: is not empty, which Exists does not take",
        ),
        (
            expression(json!({"key": "a", "operator": "DoesNotExist", "values": ["b"]})),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].values: is not empty, which DoesNotExist does not take",
        ),
        (
            expression(json!({"key": "a b", "operator": "Exists"})),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].key: \"a b\" is not a label's key",
        ),
        (
            expression(json!({"key": "a", "operator": "In", "values": ["-b"]})),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].values[0]: \"-b\" is not a label's value",
        ),
        (
            from(json!({"namespaceSelector": {"matchLabels": {"Ex.org/a": "b"}}})),
            "spec.ingress[1].from[0].namespaceSelector.matchLabels: \"Ex.org/a\" is not a label's key",
        ),
        (
            from(json!({"namespaceSelector": {"matchLabels": {"ex.org/a": "b c"}}})),
            "spec.ingress[1].from[0].namespaceSelector.matchLabels[ex.org/a]: \"b c\" is not a label's value",
        ),
        // What is of another type, or not known: a later version may have meant to restrict by it.
        (json!({"ingress": {}}), "spec.ingress: invalid type: map, expected a sequence"),
        (
            json!({"ingress": [{"form": []}]}),
            "spec.ingress[0].form: unknown field `form`, expected `ports` or `from`",
        ),
        (
            from(json!({"podSelector": {}, "serviceSelector": {}})),
            "spec.ingress[1].from[0].serviceSelector: unknown field `serviceSelector`, expected one of `podSelector`, `namespaceSelector`, `ipBlock`",
        ),
    ] {
        let mut spec = spec;
        spec["podSelector"] = json!({"matchLabels": {"app": "web"}});
        let manifest = parse(spec.clone());
        let said: Vec<String> = manifest.rejected.iter().map(ToString::to_string).collect();
        let expected =
            format!("NetworkPolicy shop/p: {message}; the policy denies everything (f.json#1)");
        assert_eq!(said, [expected], "{spec}");
        let policy = policy(manifest);
        assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])), "{spec}");
        assert_eq!(policy.pods.labels["app"], "web", "for its own pods only: {spec}");
    }
}

/// P11: a policy that does not say for whom it is, is for all of its namespace.
#[test]
fn a_wrong_pod_selector_closes_the_namespace() {
    for selector in [
        json!({"matchLabels": {"a": "-"}}),
        json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
        json!({"matchLabels": []}),
        json!("all"),
    ] {
        let manifest = parse(json!({"podSelector": selector, "ingress": [{}], "egress": [{}]}));
        assert_eq!(manifest.rejected.len(), 1, "{manifest:?}");
        let policy = policy(manifest);
        assert_eq!(policy.pods, LabelSelector::default());
        assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
    }
}

/// Every fault is kept; the message has the first.
#[test]
fn all_faults_are_told() {
    let manifest = parse(json!({"ingress": [{"from": [{}], "ports": [{"port": 0}]}]}));
    let said = manifest.rejected[0].to_string();
    assert!(said.contains("from[0]: ") && said.contains("(and 1 more)"), "{said}");
    let fields: Vec<String> = policy(manifest).faults.into_iter().map(|f| f.field).collect();
    assert_eq!(fields, ["spec.ingress[0].from[0]", "spec.ingress[0].ports[0].port"]);
}
