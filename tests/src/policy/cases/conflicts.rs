//! Policies that overlap: what any of them allows is allowed.

use super::{Case, policy};
use crate::policy::cluster::World;

const ALL_OF_X: &str = "podSelector: {}\n";
const POD_A: &str = "podSelector: {matchLabels: {pod: a}}\n";

/// Two policies in one namespace, or one at each end.
pub(super) fn cases(world: &World) -> Vec<Case> {
    let yb = world.text("y/b", false);
    let xb = world.text("x/b", false);
    let pods = "10.244.0.0/16";
    let except_yb = format!("{{ipBlock: {{cidr: {pods}, except: [{yb}/32]}}}}");
    let except_xb = format!("{{ipBlock: {{cidr: {pods}, except: [{xb}/32]}}}}");
    let two = |name: &str, rows, first: (&str, String), second: (&str, String)| {
        let yaml = policy(first.0, "first", &first.1) + &policy(second.0, "second", &second.1);
        Case::new(format!("conflicts/{name}"), rows, yaml)
    };
    let x = |selector: &str, rest: &str| ("x", format!("{selector}{rest}"));
    let y = |selector: &str, rest: &str| ("y", format!("{selector}{rest}"));
    let in_allows = |peer: &str| format!("policyTypes: [Ingress]\ningress: [{{from: [{peer}]}}]");
    let out_allows = |peer: &str| format!("policyTypes: [Egress]\negress: [{{to: [{peer}]}}]");
    vec![
        two(
            "deny-then-allow-ingress",
            &["P1"],
            x(ALL_OF_X, "policyTypes: [Ingress]"),
            x(POD_A, "policyTypes: [Ingress]\ningress: [{}]"),
        ),
        two(
            "allow-then-deny-ingress",
            &["P1"],
            x(POD_A, "policyTypes: [Ingress]\ningress: [{}]"),
            x(ALL_OF_X, "policyTypes: [Ingress]"),
        ),
        two(
            "deny-then-allow-egress",
            &["P1"],
            x(ALL_OF_X, "policyTypes: [Egress]"),
            x(POD_A, "policyTypes: [Egress]\negress: [{}]"),
        ),
        two(
            "allow-then-deny-egress",
            &["P1"],
            x(POD_A, "policyTypes: [Egress]\negress: [{}]"),
            x(ALL_OF_X, "policyTypes: [Egress]"),
        ),
        two(
            "union-of-peers",
            &["P1", "P2"],
            x(POD_A, &in_allows("{podSelector: {matchLabels: {pod: b}}}")),
            x(POD_A, &in_allows("{namespaceSelector: {matchLabels: {ns: z}}}")),
        ),
        two(
            "union-of-ports",
            &["P1", "P3"],
            x(POD_A, "ingress: [{ports: [{port: 80}]}]"),
            x(POD_A, "ingress: [{ports: [{port: 81, protocol: UDP}]}]"),
        ),
        two(
            "peers-of-one-ports-of-the-other",
            &["P1"],
            x(
                POD_A,
                "ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]",
            ),
            x(
                POD_A,
                "ingress: [{from: [{podSelector: {matchLabels: {pod: c}}}], ports: [{port: 81}]}]",
            ),
        ),
        two(
            "overlapping-ranges",
            &["P3"],
            x(POD_A, "ingress: [{ports: [{port: 1, endPort: 80}]}]"),
            x(POD_A, "ingress: [{ports: [{port: 80, endPort: 81}]}]"),
        ),
        two(
            "except-and-pod",
            &["P4"],
            x(POD_A, &in_allows(&except_yb)),
            x(
                POD_A,
                &in_allows(
                    "{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}",
                ),
            ),
        ),
        two(
            "except-and-block",
            &["P4"],
            x(POD_A, &in_allows(&except_yb)),
            x(POD_A, &in_allows(&format!("{{ipBlock: {{cidr: {yb}/32}}}}"))),
        ),
        two(
            "except-and-another-except",
            &["P4"],
            x(POD_A, &out_allows(&except_yb)),
            x(POD_A, &out_allows(&except_xb)),
        ),
        Case::new(
            "conflicts/except-and-block-in-one-rule",
            &["P4"],
            policy(
                "x",
                "one",
                &format!(
                    "{POD_A}{}",
                    in_allows(&format!("{except_yb}, {{ipBlock: {{cidr: {yb}/31}}}}"))
                ),
            ),
        ),
        two(
            "both-ends-agree",
            &["P1"],
            x(POD_A, &out_allows("{namespaceSelector: {matchLabels: {ns: y}}}")),
            y(ALL_OF_X, &in_allows("{namespaceSelector: {matchLabels: {ns: x}}}")),
        ),
        two(
            "destination-denies",
            &["P1"],
            x(POD_A, "policyTypes: [Egress]\negress: [{}]"),
            y(ALL_OF_X, "policyTypes: [Ingress]"),
        ),
        two(
            "source-denies",
            &["P1"],
            x(POD_A, "policyTypes: [Egress]"),
            y(ALL_OF_X, "policyTypes: [Ingress]\ningress: [{}]"),
        ),
        two(
            "ends-allow-different-ports",
            &["P1", "P3"],
            x(POD_A, "policyTypes: [Egress]\negress: [{ports: [{port: 80}]}]"),
            y(ALL_OF_X, "ingress: [{ports: [{port: 81}]}]"),
        ),
        two(
            "directions-apart",
            &["P1"],
            x(POD_A, "policyTypes: [Ingress]\ningress: [{from: [{podSelector: {}}]}]"),
            x(
                POD_A,
                "policyTypes: [Egress]\negress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]",
            ),
        ),
        two(
            "overlapping-targets",
            &["P1"],
            x(
                "podSelector: {matchExpressions: [{key: tier, operator: Exists}]}\n",
                &in_allows("{podSelector: {matchLabels: {pod: c}}}"),
            ),
            x(
                "podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}\n",
                &in_allows("{namespaceSelector: {matchLabels: {ns: y}}}"),
            ),
        ),
    ]
}
