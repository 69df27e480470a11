//! Whom a policy is for: `podSelector`.

use super::{BOTH, Case, policy, words};

const SELECTORS: [(&str, &str); 11] = [
    ("all", "{}"),
    ("label", "{matchLabels: {pod: a}}"),
    ("two-labels", "{matchLabels: {pod: a, tier: web}}"),
    ("labels-of-no-pod", "{matchLabels: {pod: a, tier: db}}"),
    ("in", "{matchExpressions: [{key: pod, operator: In, values: [b, c]}]}"),
    ("not-in", "{matchExpressions: [{key: pod, operator: NotIn, values: [a, d]}]}"),
    ("not-in-where-absent", "{matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}"),
    ("exists", "{matchExpressions: [{key: tier, operator: Exists}]}"),
    ("does-not-exist", "{matchExpressions: [{key: tier, operator: DoesNotExist}]}"),
    (
        "label-and-expression",
        "{matchLabels: {tier: web}, matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}",
    ),
    (
        "two-expressions",
        "{matchExpressions: [{key: tier, operator: Exists}, {key: pod, operator: In, values: [b, c]}]}",
    ),
];

/// Each selector with nothing allowed, each direction.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in BOTH {
        let (kind, field) = words(direction);
        for (name, selector) in SELECTORS {
            let spec = format!("podSelector: {selector}\npolicyTypes: [{kind}]");
            cases.push(Case::new(
                format!("target/{field}/{name}"),
                &["P1", "P2"],
                policy("x", "deny", &spec),
            ));
        }
    }
    cases
}
