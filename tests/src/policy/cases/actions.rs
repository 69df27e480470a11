//! What a policy does without saying for whom: all, nothing, and the defaults of `policyTypes`.

use super::{Case, policy};

const SPECS: [(&str, &str); 16] = [
    ("deny-ingress", "policyTypes: [Ingress]"),
    ("deny-ingress-written", "policyTypes: [Ingress]\ningress: []"),
    ("deny-egress", "policyTypes: [Egress]"),
    ("deny-egress-written", "policyTypes: [Egress]\negress: []"),
    ("deny-both", "policyTypes: [Ingress, Egress]"),
    ("allow-ingress", "policyTypes: [Ingress]\ningress: [{}]"),
    ("allow-egress", "policyTypes: [Egress]\negress: [{}]"),
    ("allow-both", "policyTypes: [Ingress, Egress]\ningress: [{}]\negress: [{}]"),
    ("allow-ingress-deny-egress", "policyTypes: [Ingress, Egress]\ningress: [{}]"),
    ("allow-egress-deny-ingress", "policyTypes: [Ingress, Egress]\negress: [{}]"),
    ("default-types", ""),
    ("default-types-empty-egress", "egress: []"),
    ("default-types-egress", "egress: [{to: [{podSelector: {}}]}]"),
    (
        "default-types-both",
        "ingress: [{from: [{podSelector: {}}]}]\negress: [{to: [{podSelector: {}}]}]",
    ),
    (
        "rules-of-a-type-left-out",
        "policyTypes: [Egress]\ningress: [{from: [{podSelector: {}}]}]\negress: [{}]",
    ),
    (
        "rules-of-the-other-type-left-out",
        "policyTypes: [Ingress]\ningress: [{}]\negress: [{to: [{podSelector: {}}]}]",
    ),
];

/// Each for pod a, and the first ones for a whole namespace with empty lists of peers and ports.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, spec) in SPECS {
        let spec = format!("podSelector: {{matchLabels: {{pod: a}}}}\n{spec}");
        cases.push(Case::new(format!("actions/{name}"), &["P1"], policy("x", name, &spec)));
    }
    for (name, rules) in [
        ("empty-from", "policyTypes: [Ingress]\ningress: [{from: []}]"),
        (
            "empty-ports",
            "policyTypes: [Ingress]\ningress: [{from: [{podSelector: {}}], ports: []}]",
        ),
        ("empty-to", "policyTypes: [Egress]\negress: [{to: [], ports: [{port: 80}]}]"),
    ] {
        let spec = format!("podSelector: {{}}\n{rules}");
        cases.push(Case::new(format!("actions/{name}"), &["P1", "P3"], policy("x", name, &spec)));
    }
    cases
}
