//! What a policy of the cluster is read as, and every field that can be wrong, wrong once (P1, P11).

use serde_json::{Value, json};
use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPeer, ClusterPolicyPort, NamespacedPods, Object,
    PolicyAction, PolicyTier, Protocol,
};

use crate::{Manifest, parse_manifest};

fn parse(spec: &Value) -> Manifest {
    let policy = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "p"}, "spec": spec,
    });
    parse_manifest("f.json", &policy.to_string())
}

fn policy(manifest: &Manifest) -> &ClusterNetworkPolicy {
    let [(_, Object::ClusterNetworkPolicy(policy))] = &manifest.objects[..] else {
        panic!("{manifest:?}")
    };
    policy
}

/// A spec without fault, with these fields in place of its own.
fn spec(fields: Value) -> Value {
    let mut spec = json!({"tier": "Admin", "priority": 3, "subject": {"namespaces": {}}});
    let Value::Object(fields) = fields else { panic!("{fields}") };
    for (field, value) in fields {
        spec[field] = value;
    }
    spec
}

#[test]
fn everything_that_a_policy_can_say_is_read() {
    let manifest = parse(&json!({
        "tier": "Baseline", "priority": 1000,
        "subject": {"pods": {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {}}},
        "ingress": null,
        "egress": [{"name": "n", "action": "Pass", "to": [
            {"namespaces": {}},
            {"pods": {"podSelector": {"matchLabels": {"c": "d"}}}},
        ], "protocols": [
            {"tcp": {"destinationPort": {"number": 80}}},
            {"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}},
            {"destinationNamedPort": "web"},
        ]}, {"action": "Deny", "to": [{"nodes": {}}, {"networks": ["10.1.2.3/8", "::/0"]}]}],
    }));
    assert_eq!(manifest.rejected, []);
    let policy = policy(&manifest);
    assert_eq!(policy.meta.name.to_string(), "p");
    assert_eq!((policy.tier, policy.priority), (PolicyTier::Baseline, 1000));
    assert_eq!(policy.subject.namespaces.labels["a"], "b");
    assert!(policy.ingress.is_empty());
    let [first, second] = &policy.egress[..] else { panic!("{policy:?}") };
    assert_eq!((first.name.as_str(), first.action), ("n", PolicyAction::Pass));
    assert_eq!(first.peers[0], ClusterPolicyPeer::Pods(NamespacedPods::default()));
    assert_eq!(
        first.ports,
        [
            ClusterPolicyPort::Numbers(Protocol::Tcp, 80, 80),
            ClusterPolicyPort::Numbers(Protocol::Udp, 1, 65_535),
            ClusterPolicyPort::Name("web".to_owned()),
        ]
    );
    let networks = vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()];
    assert_eq!(second.peers[1], ClusterPolicyPeer::Networks(networks));
    assert!(first.understood && second.understood);
}

/// A fault within a rule concerns that rule; it is told by name and field.
#[test]
fn a_rule_with_a_fault_fails_closed_by_itself() {
    let good = json!({"action": "Accept", "from": [{"namespaces": {}}]});
    let to = |peer: Value| json!({"action": "Accept", "to": [peer]});
    let with = |protocols: Value| json!({"action": "Accept", "to": [{"namespaces": {}}], "protocols": protocols});
    for (rule, field) in [
        (json!({"action": "Accept"}), "to"),
        (json!({"action": "Accept", "to": []}), "to"),
        (json!({"action": "Accept", "to": null}), "to"),
        (json!({"action": "Accept", "from": [{"namespaces": {}}]}), "from"),
        (json!("Accept"), "action"),
        (to(json!({})), "to[0]"),
        (to(json!({"services": {}})), "to[0].services"),
        (to(json!({"namespaces": {}, "nodes": {}})), "to[0]"),
        (to(json!({"domainNames": ["a.b"]})), "to[0].domainNames"),
        (to(json!({"networks": []})), "to[0].networks"),
        (to(json!({"networks": ["10.0.0.0/8", "x"]})), "to[0].networks[1]"),
        (to(json!({"pods": {}})), "to[0].pods.podSelector"),
        (to(json!({"namespaces": {"matchLabels": {"/": "a"}}})), "to[0].namespaces.matchLabels"),
        (with(json!([])), "protocols"),
        (with(json!([{}])), "protocols[0]"),
        (with(json!([{"tcp": {}}])), "protocols[0].tcp.destinationPort"),
        (with(json!([{"icmp": {}}])), "protocols[0].icmp"),
        (with(json!([{"tcp": {"destinationPort": {}}}])), "protocols[0].tcp.destinationPort"),
        (
            with(json!([{"sctp": {"destinationPort": {"number": 0}}}])),
            "protocols[0].sctp.destinationPort.number",
        ),
        (
            with(json!([{"udp": {"destinationPort": {"range": {"start": 9, "end": 9}}}}])),
            "protocols[0].udp.destinationPort.range.end",
        ),
        (with(json!([{"destinationNamedPort": "Web"}])), "protocols[0].destinationNamedPort"),
    ] {
        let manifest =
            parse(&spec(json!({"ingress": [good], "egress": [rule, with(Value::Null)]})));
        let policy = policy(&manifest);
        let [bad, other] = &policy.egress[..] else { panic!("{rule}: {policy:?}") };
        assert!(!bad.understood && other.understood && policy.ingress[0].understood, "{rule}");
        let known = if rule.is_object() { PolicyAction::Accept } else { PolicyAction::Deny };
        assert_eq!(bad.action, known, "{rule}");
        let told = manifest.rejected[0].to_string();
        let start = format!("ClusterNetworkPolicy p: spec.egress[0].{field}: ");
        assert!(told.starts_with(&start), "{start}: {told}");
        assert!(told.contains("it fails closed"), "{told}");
    }
    for field in ["nodes", "networks", "domainNames"] {
        let value = if field == "nodes" { json!({}) } else { json!(["10.0.0.0/8"]) };
        let rule = json!({"action": "Deny", "from": [{field: value}]});
        let manifest = parse(&spec(json!({"ingress": [rule]})));
        assert!(!policy(&manifest).ingress[0].understood, "{field}");
        assert_eq!(manifest.rejected[0].field, format!("spec.ingress[0].from[0].{field}"));
    }
}

/// Any other fault closes all of the policy, for its own pods where they can be read, in its own tier.
#[test]
fn a_policy_with_another_fault_denies_everything() {
    for (fields, field) in [
        (json!({"tier": "Default"}), "spec.tier"),
        (json!({"tier": null}), "spec.tier"),
        (json!({"priority": -1}), "spec.priority"),
        (json!({"priority": 1001}), "spec.priority"),
        (json!({"priority": "first"}), "spec.priority"),
        (json!({"subject": {}}), "spec.subject"),
        (json!({"subject": null}), "spec.subject"),
        (json!({"subject": {"nodes": {}}}), "spec.subject.nodes"),
        (json!({"subject": {"pods": {"namespaceSelector": {}}}}), "spec.subject.pods.podSelector"),
        (json!({"ingress": {}}), "spec.ingress"),
        (json!({"ingres": []}), "spec.ingres"),
    ] {
        let manifest = parse(&spec(fields.clone()));
        let policy = policy(&manifest);
        for rules in [&policy.ingress, &policy.egress] {
            let [rule] = &rules[..] else { panic!("{fields}: {policy:?}") };
            assert_eq!((rule.action, rule.understood), (PolicyAction::Deny, false), "{fields}");
        }
        assert_eq!(manifest.rejected[0].field, field, "{fields}");
        assert_eq!(policy.tier, PolicyTier::Admin, "{fields}");
        assert_eq!(policy.subject, NamespacedPods::default(), "{fields}");
    }
    let manifest = parse(&spec(json!({
        "tier": "Baseline", "priority": 2000,
        "subject": {"namespaces": {"matchLabels": {"a": "b"}}},
    })));
    assert_eq!(policy(&manifest).tier, PolicyTier::Baseline);
    assert_eq!(policy(&manifest).subject.namespaces.labels["a"], "b");
    for spec in [json!(null), json!([]), json!("Admin")] {
        let manifest = parse(&spec);
        assert_eq!(policy(&manifest).ingress.len(), 1, "{spec}");
        assert_eq!(manifest.rejected[0].field, "spec");
    }
}
