//! Policies of the cluster, alone and with those of namespaces between their tiers.

use super::{Case, policy};
use crate::policy::cluster::World;

/// Subjects.
const X: &str = "subject: {namespaces: {matchLabels: {ns: x}}}";
const X_A: &str = "subject: {pods: {namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}}";
const Y: &str = "subject: {namespaces: {matchLabels: {ns: y}}}";
const ALL: &str = "subject: {namespaces: {}}";

/// Peers.
const OF_X: &str = "{namespaces: {matchLabels: {ns: x}}}";
const OF_Y: &str = "{namespaces: {matchLabels: {ns: y}}}";
const PODS: &str = "{namespaces: {}}";
const Y_B: &str =
    "{pods: {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}}";
const Y_A: &str =
    "{pods: {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}}";
const NODE_B: &str = "{nodes: {matchLabels: {kubernetes.io/hostname: node-b}}}";
const WORLD: &str = "{networks: [0.0.0.0/0, \"::/0\"]}";

/// What NetworkPolicies say of pods of `x`.
const NOTHING_IN: &str = "podSelector: {}\npolicyTypes: [Ingress]";
const ALL_IN: &str = "podSelector: {}\npolicyTypes: [Ingress]\ningress: [{}]";

/// A policy of the cluster; `spec` holds further lines.
fn cluster(name: &str, tier: &str, priority: u32, spec: &str) -> String {
    let mut yaml = format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         tier: {tier}\n  priority: {priority}\n"
    );
    for line in spec.lines() {
        yaml.push_str(&format!("  {line}\n"));
    }
    yaml
}

fn rule(direction: &str, action: &str, peer: &str, protocols: &str) -> String {
    let field = if direction == "ingress" { "from" } else { "to" };
    let protocols = match protocols {
        "" => String::new(),
        list => format!(", protocols: [{list}]"),
    };
    format!("{{action: {action}, {field}: [{peer}]{protocols}}}")
}

/// A subject and rules of one direction: action, peers and protocols.
fn rules(subject: &str, direction: &str, list: &[(&str, &str, &str)]) -> String {
    let list: Vec<String> = list
        .iter()
        .map(|(action, peer, protocols)| rule(direction, action, peer, protocols))
        .collect();
    format!("{subject}\n{direction}: [{}]", list.join(", "))
}

fn port(protocol: &str, number: u16) -> String {
    format!("{{{protocol}: {{destinationPort: {{number: {number}}}}}}}")
}

fn range(protocol: &str, start: u16, end: u16) -> String {
    format!("{{{protocol}: {{destinationPort: {{range: {{start: {start}, end: {end}}}}}}}}}")
}

fn named(name: &str) -> String {
    format!("{{destinationNamedPort: {name}}}")
}

/// An Admin policy for `x` with rules for ingress.
fn admin_in(list: &[(&str, &str, &str)]) -> String {
    cluster("admin", "Admin", 10, &rules(X, "ingress", list))
}

/// The same for egress.
fn admin_out(list: &[(&str, &str, &str)]) -> String {
    cluster("admin", "Admin", 10, &rules(X, "egress", list))
}

fn baseline_in(list: &[(&str, &str, &str)]) -> String {
    cluster("baseline", "Baseline", 10, &rules(X, "ingress", list))
}

/// Tiers, actions, priorities, ports, peers, and what is not understood.
pub(super) fn cases(world: &World) -> Vec<Case> {
    let mut cases = actions();
    cases.extend(baseline());
    cases.extend(order());
    cases.extend(ports());
    cases.extend(addresses(world));
    cases.extend(subjects());
    cases.extend(closed(world));
    cases
}

fn case(name: &str, documents: &[String]) -> Case {
    Case::new(format!("tiers/{name}"), &["P1"], documents.concat())
}

fn actions() -> Vec<Case> {
    let only_b = "podSelector: {matchLabels: {pod: a}}\ningress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]}]";
    vec![
        case("admin/deny-ingress", &[admin_in(&[("Deny", OF_Y, "")])]),
        case("admin/deny-egress", &[admin_out(&[("Deny", OF_Y, "")])]),
        case("admin/deny-pod", &[admin_in(&[("Deny", Y_B, "")])]),
        case("admin/accept-alone", &[admin_in(&[("Accept", OF_Y, "")])]),
        case(
            "admin/accept-over-network-policy",
            &[admin_in(&[("Accept", OF_Y, "")]), policy("x", "nothing", NOTHING_IN)],
        ),
        case(
            "admin/deny-over-network-policy",
            &[admin_in(&[("Deny", OF_Y, "")]), policy("x", "all", ALL_IN)],
        ),
        case(
            "admin/pass-to-network-policy",
            &[admin_in(&[("Pass", OF_Y, ""), ("Deny", PODS, "")]), policy("x", "only-b", only_b)],
        ),
        case(
            "admin/pass-to-baseline",
            &[
                admin_in(&[("Pass", OF_Y, ""), ("Deny", PODS, "")]),
                baseline_in(&[("Deny", Y_A, "")]),
            ],
        ),
        case(
            "admin/pass-leaves-out-the-rest-of-the-tier",
            &[
                cluster("first", "Admin", 5, &rules(X, "ingress", &[("Pass", OF_Y, "")])),
                cluster("second", "Admin", 6, &rules(X, "ingress", &[("Deny", PODS, "")])),
            ],
        ),
        case(
            "admin/pass-is-not-accept",
            &[admin_in(&[("Pass", OF_Y, "")]), policy("x", "nothing", NOTHING_IN)],
        ),
        case(
            "admin/egress-accept-ingress-deny",
            &[
                cluster("out", "Admin", 1, &rules(X, "egress", &[("Accept", OF_Y, "")])),
                cluster("in", "Admin", 2, &rules(Y, "ingress", &[("Deny", OF_X, "")])),
            ],
        ),
        case(
            "admin/egress-accept-network-policy-of-the-other-end",
            &[admin_out(&[("Accept", OF_Y, "")]), policy("y", "nothing", NOTHING_IN)],
        ),
        case("admin/empty-lists", &[cluster("none", "Admin", 0, &format!("{X}\ningress: []"))]),
    ]
}

fn baseline() -> Vec<Case> {
    let only_y = "podSelector: {matchLabels: {pod: a}}\ningress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]";
    let both = format!(
        "{X}\ningress: [{}]\negress: [{}]",
        rule("ingress", "Deny", OF_Y, ""),
        rule("egress", "Deny", OF_Y, "")
    );
    vec![
        case("baseline/deny", &[baseline_in(&[("Deny", OF_Y, "")])]),
        case(
            "baseline/network-policy-instead",
            &[baseline_in(&[("Deny", PODS, "")]), policy("x", "only-y", only_y)],
        ),
        case(
            "baseline/isolated-in-one-direction",
            &[cluster("baseline", "Baseline", 10, &both), policy("x", "all", ALL_IN)],
        ),
        case(
            "baseline/accept-before-deny",
            &[baseline_in(&[("Accept", Y_B, ""), ("Deny", PODS, "")])],
        ),
        case("baseline/pass", &[baseline_in(&[("Pass", OF_Y, ""), ("Deny", PODS, "")])]),
        case(
            "baseline/admin-before",
            &[
                cluster("z-admin", "Admin", 1000, &rules(X, "ingress", &[("Accept", OF_Y, "")])),
                cluster("a-baseline", "Baseline", 0, &rules(X, "ingress", &[("Deny", PODS, "")])),
            ],
        ),
        case(
            "baseline/all-three",
            &[
                admin_in(&[("Deny", Y_A, ""), ("Pass", PODS, &port("tcp", 80))]),
                policy("x", "only-y", only_y),
                baseline_in(&[("Deny", PODS, &port("tcp", 81))]),
            ],
        ),
        case(
            "baseline/deny-all-pods-of-all",
            &[cluster("baseline", "Baseline", 0, &rules(ALL, "ingress", &[("Deny", PODS, "")]))],
        ),
    ]
}

fn order() -> Vec<Case> {
    let two = |name: &str, first: (&str, u32, &str), second: (&str, u32, &str)| {
        let of = |(name, priority, action): (&str, u32, &str)| {
            cluster(name, "Admin", priority, &rules(X, "ingress", &[(action, OF_Y, "")]))
        };
        case(name, &[of(first), of(second)])
    };
    vec![
        case("order/accept-first", &[admin_in(&[("Accept", OF_Y, ""), ("Deny", OF_Y, "")])]),
        case("order/deny-first", &[admin_in(&[("Deny", OF_Y, ""), ("Accept", OF_Y, "")])]),
        two("order/priority", ("b", 1, "Accept"), ("a", 2, "Deny")),
        two("order/priority-written-last", ("a", 20, "Deny"), ("b", 10, "Accept")),
        two("order/priority-is-a-number", ("a", 100, "Accept"), ("b", 20, "Deny")),
        two("order/first-and-last", ("a", 1000, "Accept"), ("b", 0, "Deny")),
        two("order/tie-denies", ("a", 5, "Deny"), ("b", 5, "Accept")),
        two("order/tie-accepts", ("a", 5, "Accept"), ("b", 5, "Deny")),
        two("order/tie-written-last", ("b", 5, "Deny"), ("a", 5, "Accept")),
    ]
}

fn ports() -> Vec<Case> {
    let (tcp80, tcp81) = (port("tcp", 80), port("tcp", 81));
    let every = range("tcp", 1, 65_535);
    vec![
        case("ports/deny-one", &[admin_in(&[("Deny", OF_Y, &tcp80)])]),
        case("ports/deny-range", &[admin_in(&[("Deny", OF_Y, &range("tcp", 79, 80))])]),
        case(
            "ports/accept-within-denied",
            &[admin_in(&[("Accept", OF_Y, &tcp80), ("Deny", OF_Y, &every)])],
        ),
        case(
            "ports/deny-within-accepted",
            &[
                admin_in(&[("Deny", OF_Y, &tcp81), ("Accept", OF_Y, &range("tcp", 1, 82))]),
                policy("x", "nothing", NOTHING_IN),
            ],
        ),
        case(
            "ports/overlapping-ranges",
            &[
                cluster(
                    "first",
                    "Admin",
                    1,
                    &rules(X, "ingress", &[("Accept", OF_Y, &range("tcp", 80, 81))]),
                ),
                cluster(
                    "second",
                    "Admin",
                    2,
                    &rules(X, "ingress", &[("Deny", PODS, &range("tcp", 81, 82))]),
                ),
            ],
        ),
        case(
            "ports/pass-one",
            &[
                admin_in(&[("Pass", OF_Y, &tcp80), ("Deny", OF_Y, "")]),
                baseline_in(&[("Deny", Y_A, "")]),
            ],
        ),
        case(
            "ports/several-protocols",
            &[admin_in(&[("Deny", OF_Y, &format!("{}, {}", port("udp", 80), port("sctp", 81)))])],
        ),
        case("ports/name-ingress", &[admin_in(&[("Deny", OF_Y, &named("web"))])]),
        case("ports/name-of-any-protocol", &[admin_in(&[("Deny", OF_Y, &named("dns"))])]),
        case("ports/name-egress", &[admin_out(&[("Deny", OF_Y, &named("web"))])]),
        case(
            "ports/name-accept-egress",
            &[admin_out(&[("Accept", PODS, &named("alt")), ("Deny", PODS, "")])],
        ),
        case(
            "ports/name-and-number",
            &[admin_out(&[("Deny", OF_Y, &format!("{}, {tcp80}", named("alt")))])],
        ),
        case(
            "ports/network-policy-less-one",
            &[admin_in(&[("Deny", OF_Y, &tcp80)]), policy("x", "all", ALL_IN)],
        ),
    ]
}

fn addresses(world: &World) -> Vec<Case> {
    let out = world.text("out", false);
    let tcp80 = port("tcp", 80);
    let no_egress = "podSelector: {matchLabels: {pod: a}}\npolicyTypes: [Egress]";
    vec![
        case("networks/deny", &[admin_out(&[("Deny", "{networks: [10.244.2.0/24]}", "")])]),
        case("networks/pods-pass", &[admin_out(&[("Pass", PODS, ""), ("Deny", WORLD, "")])]),
        case("networks/v6-alone", &[admin_out(&[("Deny", "{networks: [\"::/0\"]}", "")])]),
        case(
            "networks/accept-within-denied",
            &[admin_out(&[
                ("Accept", &format!("{{networks: [{out}/32]}}"), ""),
                ("Deny", "{networks: [0.0.0.0/0]}", ""),
            ])],
        ),
        case(
            "networks/several-in-one-peer",
            &[admin_out(&[("Deny", "{networks: [203.0.113.0/24, \"2001:db8::/32\"]}", &tcp80)])],
        ),
        case(
            "networks/baseline",
            &[cluster(
                "baseline",
                "Baseline",
                0,
                &rules(X, "egress", &[("Accept", PODS, ""), ("Deny", WORLD, "")]),
            )],
        ),
        case("nodes/all", &[admin_out(&[("Deny", "{nodes: {}}", "")])]),
        case("nodes/label", &[admin_out(&[("Deny", NODE_B, "")])]),
        case("nodes/accept-port", &[admin_out(&[("Accept", NODE_B, &tcp80), ("Deny", WORLD, "")])]),
        case(
            "nodes/not-in",
            &[admin_out(&[(
                "Deny",
                "{nodes: {matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [node-b]}]}}",
                "",
            )])],
        ),
        case(
            "nodes/own-node-of-an-isolated-pod",
            &[
                cluster(
                    "baseline",
                    "Baseline",
                    0,
                    &rules(X, "egress", &[("Deny", "{nodes: {}}", "")]),
                ),
                policy("x", "no-egress", no_egress),
            ],
        ),
        case(
            "host/no-subject-and-no-peer",
            &[cluster(
                "admin",
                "Admin",
                0,
                &format!(
                    "{ALL}\ningress: [{}]\negress: [{}]",
                    rule("ingress", "Deny", PODS, ""),
                    rule("egress", "Deny", PODS, "")
                ),
            )],
        ),
    ]
}

fn subjects() -> Vec<Case> {
    let deny = [("Deny", PODS, "")];
    let not_a = "subject: {pods: {namespaceSelector: {}, podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}}}";
    let metadata_name = "subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: x}}}";
    let of = |name: &str, subject: &str| {
        case(name, &[cluster("admin", "Admin", 0, &rules(subject, "ingress", &deny))])
    };
    vec![
        of("subject/pods", X_A),
        of("subject/not-in", not_a),
        of("subject/namespace-by-name", metadata_name),
        of(
            "subject/pods-of-all-namespaces",
            "subject: {pods: {podSelector: {matchLabels: {pod: c}}}}",
        ),
        case(
            "subject/all",
            &[cluster("admin", "Admin", 0, &rules(ALL, "ingress", &[("Deny", OF_X, "")]))],
        ),
    ]
}

/// What cannot be read, or is not supported.
fn closed(world: &World) -> Vec<Case> {
    let far = world.text("far", false);
    let domain = "{domainNames: [\"*.example.com\"]}";
    let far = format!("{{networks: [{far}/32]}}");
    let spec = |name: &str, spec: &str| case(name, &[cluster("broken", "Admin", 5, spec)]);
    let accept_y = rules(X, "ingress", &[("Accept", OF_Y, "")]);
    vec![
        case(
            "closed/domain-names-accept",
            &[admin_out(&[("Accept", domain, ""), ("Deny", &far, "")])],
        ),
        case("closed/domain-names-deny", &[admin_out(&[("Deny", domain, "")])]),
        case("closed/domain-names-pass", &[admin_out(&[("Pass", domain, &port("tcp", 80))])]),
        case(
            "closed/unknown-peer-accept",
            &[admin_in(&[("Accept", "{services: {}}", ""), ("Deny", OF_Y, "")])],
        ),
        case(
            "closed/unknown-peer-deny",
            &[admin_in(&[("Deny", "{services: {}}", &port("tcp", 80))])],
        ),
        case("closed/empty-peer-pass", &[admin_in(&[("Pass", "{}", "")])]),
        case(
            "closed/unknown-beside-known",
            &[admin_in(&[("Accept", &format!("{OF_Y}, {{}}"), ""), ("Deny", PODS, "")])],
        ),
        case("closed/earlier-rules-hold", &[admin_in(&[("Accept", OF_Y, ""), ("Deny", "{}", "")])]),
        case("closed/nodes-of-ingress", &[admin_in(&[("Deny", NODE_B, "")])]),
        case(
            "closed/peer-of-two-kinds",
            &[admin_in(&[("Deny", "{namespaces: {}, pods: {podSelector: {}}}", "")])],
        ),
        case("closed/no-peers", &[admin_in(&[("Deny", "", "")])]),
        case(
            "closed/range-of-one",
            &[admin_in(&[("Accept", OF_Y, &range("tcp", 80, 80)), ("Deny", OF_Y, "")])],
        ),
        case("closed/name-for-networks", &[admin_out(&[("Deny", &far, &named("web"))])]),
        case(
            "closed/network",
            &[admin_out(&[("Deny", "{networks: [10.0.0.0/33]}", ""), ("Accept", PODS, "")])],
        ),
        case("closed/action", &[admin_in(&[("Allow", OF_Y, "")])]),
        case("closed/baseline-rule", &[baseline_in(&[("Deny", "{}", "")])]),
        case(
            "closed/tier",
            &[cluster("broken", "Default", 5, &accept_y), policy("x", "all", ALL_IN)],
        ),
        case("closed/priority", &[cluster("broken", "Admin", 1001, &accept_y)]),
        case(
            "closed/priority-behind-another",
            &[cluster("a", "Admin", 0, &accept_y), cluster("b", "Admin", 4000, &accept_y)],
        ),
        spec("closed/unknown-field", &format!("{X}\ningres: []")),
        spec("closed/subject", "subject: {namespaces: {}, pods: {podSelector: {}}}"),
        spec("closed/no-subject", &rules("", "ingress", &[("Accept", OF_Y, "")])),
    ]
}
