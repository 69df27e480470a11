//! Policies that cannot be read: closed for their pods, and no obstacle to what others allow.

use super::{Case, policy};

const POD_A: &str = "podSelector: {matchLabels: {pod: a}}\n";

const SPECS: [(&str, &str); 13] = [
    ("cidr", "ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/40}}]}]"),
    (
        "except-not-within",
        "ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.0.0.0/8]}}]}]",
    ),
    (
        "except-of-the-other-family",
        "ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [\"fd00::/8\"]}}]}]",
    ),
    (
        "except-of-all",
        "ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.255.0/16]}}]}]",
    ),
    ("end-port-below-port", "ingress: [{ports: [{port: 81, endPort: 80}]}]"),
    ("end-port-of-a-name", "ingress: [{ports: [{port: web, endPort: 81}]}]"),
    ("end-port-alone", "ingress: [{ports: [{endPort: 81}]}]"),
    ("port-too-large", "ingress: [{ports: [{port: 65536}]}, {ports: [{port: 80}]}]"),
    ("protocol", "ingress: [{ports: [{protocol: ICMP}]}]"),
    (
        "operator",
        "ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: Gt, values: [a]}]}}]}]",
    ),
    (
        "in-without-values",
        "ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In}]}}]}]",
    ),
    ("peer-of-two-kinds", "ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]"),
    ("peer-of-no-kind", "ingress: [{from: [{}, {podSelector: {}}]}]"),
];

/// Each fault for pod a; one in the selector of the pods; one beside a policy that allows.
pub(super) fn cases() -> Vec<Case> {
    let case = |name: &str, yaml: String| Case::new(format!("faults/{name}"), &["P11"], yaml);
    let mut cases: Vec<Case> = SPECS
        .iter()
        .map(|(name, spec)| case(name, policy("x", name, &format!("{POD_A}{spec}"))))
        .collect();
    cases.push(case(
        "selector-of-pods",
        policy("x", "broken", "podSelector: {matchExpressions: [{key: pod, operator: Exists, values: [a]}]}\ningress: [{}]"),
    ));
    let broken = policy(
        "x",
        "broken",
        &format!(
            "{POD_A}policyTypes: [Ingress, Egress]\negress: [{{}}]\ningress: [{{ports: [{{port: 0}}]}}]"
        ),
    );
    let good = "ingress: [{from: [{podSelector: {}}]}]";
    cases.push(case("beside-a-good-one", broken + &policy("x", "good", &format!("{POD_A}{good}"))));
    cases
}
