//! A policy belongs to its namespace; and whole scenarios as the documentation's recipes have them.

use super::{Case, policy};

/// Isolation of one, two and all namespaces, and recipes.
pub(super) fn cases() -> Vec<Case> {
    let deny = |namespace: &str| {
        policy(namespace, "default-deny", "podSelector: {}\npolicyTypes: [Ingress, Egress]")
    };
    let within = |namespace: &str| {
        policy(
            namespace,
            "within",
            "podSelector: {}\npolicyTypes: [Ingress, Egress]\ningress: [{from: [{podSelector: {}}]}]\negress: [{to: [{podSelector: {}}]}]",
        )
    };
    let case = |name: &str, rows, yaml: String| Case::new(format!("namespaces/{name}"), rows, yaml);
    vec![
        case("deny-one", &["P1", "P6", "P8"], deny("x")),
        case("deny-two", &["P1"], deny("x") + &deny("y")),
        case("deny-all", &["P1", "P6", "P8"], deny("x") + &deny("y") + &deny("z")),
        case("within-one", &["P1", "P2"], within("x")),
        case("within-each", &["P1", "P2"], within("x") + &within("y") + &within("z")),
        case(
            "policy-elsewhere",
            &["P1"],
            policy(
                "z",
                "deny-a",
                "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Ingress, Egress]",
            ),
        ),
        case(
            "same-name-twice",
            &["P1"],
            policy("x", "same", "podSelector: {}\npolicyTypes: [Ingress]")
                + &policy("y", "same", "podSelector: {}\npolicyTypes: [Egress]"),
        ),
        case(
            "team",
            &["P2"],
            policy(
                "x",
                "team",
                "podSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]",
            ) + &policy(
                "y",
                "team",
                "podSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]",
            ),
        ),
        case(
            "three-tiers",
            &["P1", "P3"],
            policy(
                "x",
                "front",
                "podSelector: {matchLabels: {pod: a}}\ningress: [{ports: [{port: web}]}]",
            ) + &policy(
                "x",
                "middle",
                "podSelector: {matchLabels: {pod: b}}\ningress: [{from: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: web}]}]",
            ) + &policy(
                "x",
                "back",
                "podSelector: {matchLabels: {pod: c}}\ningress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]",
            ),
        ),
        case(
            "only-dns-and-outside",
            &["P3", "P4"],
            policy(
                "x",
                "egress",
                "podSelector: {}\npolicyTypes: [Egress]\negress:\n- {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}], ports: [{port: dns, protocol: UDP}, {port: dns, protocol: TCP}]}\n- {to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 172.16.0.0/12]}}, {ipBlock: {cidr: \"::/0\", except: [\"fd00::/8\"]}}]}",
            ),
        ),
        case(
            "web-for-all-but-one-namespace",
            &["P2", "P3"],
            policy(
                "x",
                "web",
                "podSelector: {matchLabels: {tier: web}}\ningress: [{from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}]}}], ports: [{port: web}]}]",
            ),
        ),
    ]
}
