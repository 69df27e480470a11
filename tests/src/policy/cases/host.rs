//! Nodes and pods of the host network.

use super::{BOTH, Case, for_pod_a, policy, rule, words};
use crate::policy::cluster::World;

/// A pod of the host network as subject, as peer by its labels, and by its node's address.
pub(super) fn cases(world: &World) -> Vec<Case> {
    let mut cases = vec![
        Case::new(
            "host/subject",
            &["P6"],
            // `y/host` has these labels, and is not selected.
            policy(
                "y",
                "deny-b",
                "podSelector: {matchLabels: {pod: b}}\npolicyTypes: [Ingress, Egress]",
            ),
        ),
        Case::new(
            "host/subjects-all",
            &["P6"],
            policy("y", "deny", "podSelector: {}\npolicyTypes: [Ingress, Egress]"),
        ),
    ];
    for direction in BOTH {
        let (_, field) = words(direction);
        let by_label =
            "{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}";
        let by_address = format!(
            "{{ipBlock: {{cidr: {}/32}}}}, {{ipBlock: {{cidr: \"{}/128\"}}}}",
            world.text("y/host", false),
            world.text("y/host", true)
        );
        for (name, peer) in [("label", by_label), ("address", &by_address)] {
            let yaml = for_pod_a(direction, &[rule(direction, &[peer], &["{port: 80}"])]);
            cases.push(Case::new(format!("host/{field}/{name}"), &["P4", "P6"], yaml));
        }
        // A pod of the host network has no named ports of its own, and no node has.
        let yaml = for_pod_a(direction, &[rule(direction, &[&by_address], &["{port: web}"])]);
        cases.push(Case::new(format!("host/{field}/address-and-name"), &["P3", "P6"], yaml));
    }
    cases
}
