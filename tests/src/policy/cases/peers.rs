//! Whom a rule allows: selectors and blocks, in both directions, alone and beside others.

use super::{BOTH, Case, for_pod_a, rule, words};
use crate::policy::cluster::World;

const PODS: [(&str, &str); 10] = [
    ("pods-with-a-namespaces-label", "{podSelector: {matchLabels: {team: red}}}"),
    ("pod", "{podSelector: {matchLabels: {pod: b}}}"),
    ("pods-all", "{podSelector: {}}"),
    ("pods-in", "{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}"),
    (
        "pods-not-in",
        "{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}",
    ),
    (
        "pods-not-in-where-absent",
        "{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}}",
    ),
    ("pods-exists", "{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}"),
    (
        "pods-does-not-exist",
        "{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}",
    ),
    (
        "pods-label-and-expression",
        "{podSelector: {matchLabels: {tier: web}, matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}",
    ),
    (
        "pods-contradiction",
        "{podSelector: {matchLabels: {pod: b}, matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}",
    ),
];

const NAMESPACES: [(&str, &str); 14] = [
    ("namespace-own", "{namespaceSelector: {matchLabels: {ns: x}}}"),
    ("namespace-other", "{namespaceSelector: {matchLabels: {ns: y}}}"),
    ("namespaces-all", "{namespaceSelector: {}}"),
    ("namespaces-shared-label", "{namespaceSelector: {matchLabels: {team: red}}}"),
    (
        "namespaces-in",
        "{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y, z]}]}}",
    ),
    (
        "namespaces-not-in",
        "{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x, y]}]}}",
    ),
    (
        "namespaces-not-in-where-absent",
        "{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}}",
    ),
    (
        "namespaces-exists",
        "{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}",
    ),
    (
        "namespaces-does-not-exist",
        "{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}",
    ),
    ("namespace-name", "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}"),
    (
        "namespace-names-in",
        "{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [x, z]}]}}",
    ),
    (
        "namespace-name-not-in",
        "{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [z]}]}}",
    ),
    ("namespace-with-a-pods-label", "{namespaceSelector: {matchLabels: {pod: a}}}"),
    ("namespaces-none", "{namespaceSelector: {matchLabels: {ns: nowhere}}}"),
];

const PAIRS: [(&str, &str); 9] = [
    (
        "pod-of-namespace",
        "{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}",
    ),
    (
        "pod-of-own-namespace",
        "{namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: b}}}",
    ),
    ("pod-of-all-namespaces", "{namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}"),
    ("pods-all-of-namespace", "{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {}}"),
    ("pods-all-of-all-namespaces", "{namespaceSelector: {}, podSelector: {}}"),
    (
        "pods-in-of-namespaces-in",
        "{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [x, z]}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}",
    ),
    (
        "pods-without-label-of-namespaces-with",
        "{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}, podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}",
    ),
    (
        "pod-of-named-namespace",
        "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}, podSelector: {matchLabels: {pod: a}}}",
    ),
    (
        "pod-with-a-namespaces-label",
        "{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {ns: x}}}",
    ),
];

/// Blocks of addresses, as `(name, ipBlock)`.
fn blocks(world: &World) -> Vec<(&'static str, String)> {
    let pod = |name: &str| (world.text(name, false), world.text(name, true));
    let (yb4, yb6) = pod("y/b");
    let (zc4, zc6) = pod("z/c");
    let (out4, out6) = pod("out");
    let (node4, node6) = pod("node-b");
    let cidr = |node: usize, v6: bool| {
        let mut cidrs = world.nodes[node].pod_cidrs.iter();
        cidrs.find(|net| net.addr().is_ipv6() == v6).map_or(String::new(), ToString::to_string)
    };
    let block = |cidr: &str, except: &[&str]| {
        let except: Vec<String> = except.iter().map(|net| format!("\"{net}\"")).collect();
        if except.is_empty() {
            format!("{{ipBlock: {{cidr: \"{cidr}\"}}}}")
        } else {
            format!("{{ipBlock: {{cidr: \"{cidr}\", except: [{}]}}}}", except.join(", "))
        }
    };
    vec![
        ("block-v4-all", block("0.0.0.0/0", &[])),
        ("block-v6-all", block("::/0", &[])),
        ("block-pod", block(&format!("{yb4}/32"), &[])),
        ("block-pod-v6", block(&format!("{yb6}/128"), &[])),
        ("block-pods-of-node", block(&cidr(0, false), &[])),
        ("block-pods-of-node-v6", block(&cidr(1, true), &[])),
        ("block-host-bits", block(&format!("{yb4}/24"), &[])),
        ("block-host-bits-v6", block(&format!("{yb6}/64"), &[])),
        ("block-outside", block(&format!("{out4}/32"), &[])),
        ("block-outside-v6", block(&format!("{out6}/128"), &[])),
        ("block-node", block(&format!("{node4}/32"), &[])),
        ("block-node-v6", block(&format!("{node6}/128"), &[])),
        ("except-pod", block("10.244.0.0/16", &[&format!("{yb4}/32")])),
        ("except-pod-v6", block("fd00:244::/32", &[&format!("{yb6}/128")])),
        ("except-two", block("10.244.0.0/16", &[&format!("{yb4}/32"), &format!("{zc4}/32")])),
        ("except-nested", block("fd00:244::/32", &[&cidr(1, true), &format!("{zc6}/128")])),
        ("except-host-bits", block("10.0.0.0/8", &[&format!("{yb4}/24")])),
        ("except-pods", block("0.0.0.0/0", &["10.244.0.0/16"])),
        ("except-pods-v6", block("::/0", &["fd00:244::/32"])),
        ("except-all-in-halves", block("0.0.0.0/0", &["0.0.0.0/1", "128.0.0.0/1"])),
    ]
}

/// What stands beside another peer: in the same list, or in a rule of its own.
const BESIDE: [&str; 7] = [
    "pod",
    "pods-exists",
    "namespace-other",
    "pod-of-namespace",
    "block-pod",
    "except-pod",
    "except-pods-v6",
];

const OTHER: &str =
    "{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: a}}}";

/// Each kind alone in each direction, and some beside another.
pub(super) fn cases(world: &World) -> Vec<Case> {
    let mut kinds: Vec<(&str, String)> = PODS
        .iter()
        .chain(&NAMESPACES)
        .chain(&PAIRS)
        .map(|(name, peer)| (*name, (*peer).to_owned()))
        .collect();
    kinds.extend(blocks(world));
    let mut cases = Vec::new();
    for direction in BOTH {
        let (_, field) = words(direction);
        for (name, peer) in &kinds {
            let rows: &[&str] = if peer.contains("ipBlock") { &["P4"] } else { &["P2"] };
            let yaml = for_pod_a(direction, &[rule(direction, &[peer], &[])]);
            cases.push(Case::new(format!("peers/{field}/{name}"), rows, yaml));
            if BESIDE.contains(name) {
                let in_list = rule(direction, &[peer, OTHER], &[]);
                let apart = [rule(direction, &[OTHER], &[]), rule(direction, &[peer], &[])];
                for (place, rules) in [("in-list", &[in_list][..]), ("in-rules", &apart[..])] {
                    let name = format!("peers/{field}/{name}-beside-another-{place}");
                    cases.push(Case::new(name, rows, for_pod_a(direction, rules)));
                }
            }
        }
    }
    cases
}
