//! The policies, and the pods that they name.

use std::fmt::Write as _;

use super::{Load, RULES};
use crate::topology::{POD_PORT, PORT, Sluice};

/// The pods that are measured, and others, on a node elsewhere, that rules name.
pub(super) fn pods(sluice: &Sluice, others: usize) -> String {
    let (client, server) = sluice.pods();
    let mut yaml =
        client.manifest(&[("app", "client")]) + "---\n" + &server.manifest(&[("app", "server")]);
    for number in (1..others).step_by(2) {
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: other-{number}, namespace: default, \
             labels: {{app: other-{number}}}}}\nspec: {{nodeName: elsewhere, containers: []}}\n\
             status: {{phase: Running, podIP: 10.246.{}.{}, podIPs: [{{ip: 10.246.{0}.{1}}}, {{ip: \"fd00:246::{number:x}\"}}]}}\n",
            number / 250,
            number % 250 + 1,
        );
    }
    yaml
}

/// The policies of a node.
pub(super) fn policies(load: Load) -> String {
    let ports = format!("ports: [{{port: {PORT}}}, {{port: {POD_PORT}}}]");
    match load {
        Load::Open => String::new(),
        Load::Rules => {
            let rules = |peers: &str, last: &str| -> String {
                let names = (0..RULES).map(|number| peer(number, RULES, last));
                let rules: Vec<_> = names.map(|name| format!("{{{peers}: [{name}], {ports}}}")).collect();
                rules.join(", ")
            };
            [
                policy("default-deny", "podSelector: {}, policyTypes: [Ingress, Egress]"),
                policy(
                    "server",
                    &format!(
                        "podSelector: {{matchLabels: {{app: server}}}}, ingress: [{}]",
                        rules("from", "client")
                    ),
                ),
                policy(
                    "client",
                    &format!(
                        "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{}]",
                        rules("to", "server")
                    ),
                ),
            ]
            .concat()
        }
        Load::Policies(count) => (0..count)
            .map(|number| {
                let from = peer(number, count, "client");
                policy(
                    &format!("server-{number}"),
                    &format!(
                        "podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{from}], {ports}}}]"
                    ),
                )
            })
            .collect(),
    }
}

/// Peer number `number` of `count`: a block of addresses, a pod, or at last the pod that is measured.
fn peer(number: usize, count: usize, last: &str) -> String {
    if number + 1 == count {
        format!("{{podSelector: {{matchLabels: {{app: {last}}}}}}}")
    } else if number.is_multiple_of(2) {
        format!("{{ipBlock: {{cidr: 10.247.{}.{}/32}}}}", number / 250, number % 250 + 1)
    } else {
        format!("{{podSelector: {{matchLabels: {{app: other-{number}}}}}}}")
    }
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{{spec}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_yaml_and_as_many_as_said() {
        for (load, count) in [(Load::Open, 0), (Load::Rules, 3), (Load::Policies(7), 7)] {
            let text = policies(load);
            let kinds: Vec<serde_json::Value> = text
                .split("---\n")
                .filter(|text| !text.is_empty())
                .map(|text| serde_norway::from_str(text).expect("YAML"))
                .collect();
            assert_eq!(kinds.len(), count, "{text}");
            assert!(kinds.iter().all(|document| document["kind"] == "NetworkPolicy"));
        }
        let rules = policies(Load::Rules);
        assert_eq!(rules.matches("from: [").count(), RULES);
        assert_eq!(rules.matches("to: [").count(), RULES);
        assert_eq!(rules.matches("app: client").count(), 2);
    }
}
