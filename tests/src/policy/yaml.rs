//! Policies as the YAML that users write: reading, changing what is written, and writing back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sluice_model::{
    ClusterNetworkPolicy, ClusterPolicyPeer, ClusterPolicyPort, ClusterPolicyRule, LabelOperator,
    LabelRequirement, LabelSelector, NamespacedPods, NetworkPolicy, Object, PolicyPeer, PolicyPort,
    PolicyPortRange,
};
use sluice_store::parse_manifest;

use super::cluster::flow;

/// Reads the NetworkPolicies of a manifest with any number of documents, as the agent does.
///
/// # Panics
/// If there is anything else in it but policies of the cluster. What is wrong inside of a policy becomes a fault of it.
pub fn policies(yaml: &str) -> Vec<NetworkPolicy> {
    read("policies.yaml", yaml).0
}

/// Reads the ClusterNetworkPolicies of a manifest in the same way.
///
/// # Panics
/// As [`policies`].
pub fn cluster_policies(yaml: &str) -> Vec<ClusterNetworkPolicy> {
    read("policies.yaml", yaml).1
}

/// The documents of a manifest before any of their values is looked at.
///
/// # Panics
/// If one is not a NetworkPolicy in its outer shape.
pub fn documents(yaml: &str) -> Vec<Document> {
    serde_norway::Deserializer::from_str(yaml)
        .map(Option::<Document>::deserialize)
        .filter_map(|document| document.unwrap_or_else(|error| panic!("{error}\n{yaml}")))
        .collect()
}

/// `networking.k8s.io/v1` NetworkPolicy as written.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// `networking.k8s.io/v1`.
    pub api_version: String,
    /// `NetworkPolicy`.
    pub kind: String,
    /// Name and namespace.
    pub metadata: Metadata,
    /// What the policy says.
    #[serde(default)]
    pub spec: Spec,
}

/// `metadata`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// `name`.
    pub name: String,
    /// `namespace`.
    pub namespace: String,
}

/// `spec`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// `podSelector`.
    #[serde(default)]
    pub pod_selector: Selector,
    /// `policyTypes`; empty where it is not written.
    #[serde(default)]
    pub policy_types: Vec<String>,
    /// `ingress`.
    #[serde(default)]
    pub ingress: Vec<Rule>,
    /// `egress`.
    #[serde(default)]
    pub egress: Vec<Rule>,
}

/// A label selector.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// `matchLabels`.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// `matchExpressions`.
    #[serde(default)]
    pub match_expressions: Vec<Expression>,
}

/// One entry of `matchExpressions`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    /// `key`.
    pub key: String,
    /// `operator`.
    pub operator: String,
    /// `values`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// One entry of `ingress` or `egress`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `from` in ingress, `to` in egress.
    #[serde(default, alias = "from", alias = "to")]
    pub peers: Vec<Peer>,
    /// `ports`.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// One entry of `from` or `to`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// `podSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<Selector>,
    /// `namespaceSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<Selector>,
    /// `ipBlock`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<Block>,
}

/// `ipBlock`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// `cidr`.
    pub cidr: String,
    /// `except`.
    #[serde(default)]
    pub except: Vec<String>,
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// `protocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<NumberOrName>,
    /// `endPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i64>,
}

/// `IntOrString`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum NumberOrName {
    /// A number.
    Number(i64),
    /// A name.
    Name(String),
}

/// The policy that a document means, read as users' manifests are.
///
/// # Panics
/// If the store makes no policy of it.
pub fn convert(document: &Document) -> NetworkPolicy {
    let text = document.tree().to_string();
    read("document.json", &text).0.pop().unwrap_or_else(|| panic!("no policy:\n{text}"))
}

/// Reads the policies of a manifest's text with the agent's own reader.
fn read(path: &str, text: &str) -> (Vec<NetworkPolicy>, Vec<ClusterNetworkPolicy>) {
    let (mut policies, mut of_cluster) = (Vec::new(), Vec::new());
    for (origin, object) in parse_manifest(path, text).objects {
        match object {
            Object::NetworkPolicy(policy) => policies.push(policy),
            Object::ClusterNetworkPolicy(policy) => of_cluster.push(policy),
            _ => panic!("{origin} is no policy\n{text}"),
        }
    }
    (policies, of_cluster)
}

impl Document {
    /// The rules of both directions.
    pub fn rules_mut(&mut self) -> impl Iterator<Item = &mut Rule> {
        self.spec.ingress.iter_mut().chain(&mut self.spec.egress)
    }

    /// The document as a tree, each rule's peers under the name that its direction has for them.
    fn tree(&self) -> Value {
        let rules = |rules: &[Rule], peers: &str| -> Vec<Value> {
            rules.iter().map(|rule| json!({ peers: rule.peers, "ports": rule.ports })).collect()
        };
        let Self { api_version, kind, metadata, spec } = self;
        json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": metadata,
            "spec": {
                "podSelector": spec.pod_selector,
                "policyTypes": spec.policy_types,
                "ingress": rules(&spec.ingress, "from"),
                "egress": rules(&spec.egress, "to"),
            },
        })
    }
}

/// Policies without faults as a manifest. [`policies`] reads the same ones from it.
pub fn write(policies: &[NetworkPolicy]) -> String {
    policies.iter().map(document).collect()
}

/// ClusterNetworkPolicies as a manifest, each as JSON. [`cluster_policies`] reads the same ones from it, but for faults: what
/// is written of a rule that is not understood is one of its peers that is of no kind.
pub fn write_cluster(policies: &[ClusterNetworkPolicy]) -> String {
    policies.iter().map(|policy| format!("---\n{}\n", cluster_document(policy))).collect()
}

fn cluster_document(policy: &ClusterNetworkPolicy) -> Value {
    let rules = |rules: &[ClusterPolicyRule], peers: &str| -> Vec<Value> {
        rules.iter().map(|rule| cluster_rule(rule, peers)).collect()
    };
    let ClusterNetworkPolicy { meta, tier, priority, subject, ingress, egress, .. } = policy;
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": meta.name.name},
        "spec": {
            "tier": tier.to_string(),
            "priority": priority,
            "subject": {"pods": namespaced_pods(subject)},
            "ingress": rules(ingress, "from"),
            "egress": rules(egress, "to"),
        },
    })
}

fn cluster_rule(rule: &ClusterPolicyRule, peers_field: &str) -> Value {
    let peer = |peer: &ClusterPolicyPeer| match peer {
        ClusterPolicyPeer::Pods(pods) => json!({"pods": namespaced_pods(pods)}),
        ClusterPolicyPeer::Nodes(nodes) => json!({"nodes": selector_tree(nodes)}),
        ClusterPolicyPeer::Networks(list) => {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            json!({"networks": list})
        }
    };
    let port = |port: &ClusterPolicyPort| match port {
        ClusterPolicyPort::Numbers(protocol, first, last) => {
            let ports = match first == last {
                true => json!({"number": first}),
                false => json!({"range": {"start": first, "end": last}}),
            };
            json!({protocol.to_string().to_lowercase(): {"destinationPort": ports}})
        }
        ClusterPolicyPort::Name(name) => json!({"destinationNamedPort": name}),
    };
    let mut peers: Vec<Value> = rule.peers.iter().map(peer).collect();
    if !rule.understood {
        peers.push(json!({}));
    }
    let mut tree =
        json!({"name": rule.name, "action": rule.action.to_string(), peers_field: peers});
    if !rule.ports.is_empty() {
        tree["protocols"] = rule.ports.iter().map(port).collect();
    }
    tree
}

fn namespaced_pods(pods: &NamespacedPods) -> Value {
    let NamespacedPods { namespaces, pods } = pods;
    json!({"namespaceSelector": selector_tree(namespaces), "podSelector": selector_tree(pods)})
}

fn selector_tree(selector: &LabelSelector) -> Value {
    let expression = |LabelRequirement { key, operator }: &LabelRequirement| match operator {
        LabelOperator::In(values) => json!({"key": key, "operator": "In", "values": values}),
        LabelOperator::NotIn(values) => json!({"key": key, "operator": "NotIn", "values": values}),
        LabelOperator::Exists => json!({"key": key, "operator": "Exists"}),
        LabelOperator::DoesNotExist => json!({"key": key, "operator": "DoesNotExist"}),
    };
    let expressions: Vec<Value> = selector.expressions.iter().map(expression).collect();
    json!({"matchLabels": selector.labels, "matchExpressions": expressions})
}

fn document(policy: &NetworkPolicy) -> String {
    let NetworkPolicy { meta, pods, ingress, egress, .. } = policy;
    let types: Vec<&str> = [("Ingress", ingress), ("Egress", egress)]
        .into_iter()
        .filter_map(|(name, rules)| rules.is_some().then_some(name))
        .collect();
    let mut yaml = format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {}, namespace: {}}}\nspec:\n  \
         podSelector: {}\n  policyTypes: [{}]\n",
        meta.name.name,
        meta.name.namespace,
        selector(pods),
        types.join(", ")
    );
    for (name, peers, list) in [("ingress", "from", ingress), ("egress", "to", egress)] {
        let Some(list) = list else { continue };
        if list.is_empty() {
            yaml.push_str(&format!("  {name}: []\n"));
            continue;
        }
        yaml.push_str(&format!("  {name}:\n"));
        for rule in list {
            yaml.push_str("  - {");
            let mut parts = Vec::new();
            if !rule.peers.is_empty() {
                let list: Vec<String> = rule.peers.iter().map(peer).collect();
                parts.push(format!("{peers}: [{}]", list.join(", ")));
            }
            if !rule.ports.is_empty() {
                let list: Vec<String> = rule.ports.iter().map(port).collect();
                parts.push(format!("ports: [{}]", list.join(", ")));
            }
            yaml.push_str(&format!("{}}}\n", parts.join(", ")));
        }
    }
    yaml
}

fn selector(selector: &LabelSelector) -> String {
    let mut parts = Vec::new();
    if !selector.labels.is_empty() {
        parts.push(format!("matchLabels: {}", flow(&selector.labels)));
    }
    if !selector.expressions.is_empty() {
        let list: Vec<String> = selector
            .expressions
            .iter()
            .map(|LabelRequirement { key, operator }| {
                let (operator, values) = match operator {
                    LabelOperator::In(values) => ("In", Some(values)),
                    LabelOperator::NotIn(values) => ("NotIn", Some(values)),
                    LabelOperator::Exists => ("Exists", None),
                    LabelOperator::DoesNotExist => ("DoesNotExist", None),
                };
                let values = values.map_or(String::new(), |values| {
                    let list: Vec<String> =
                        values.iter().map(|value| format!("\"{value}\"")).collect();
                    format!(", values: [{}]", list.join(", "))
                });
                format!("{{key: {key}, operator: {operator}{values}}}")
            })
            .collect();
        parts.push(format!("matchExpressions: [{}]", list.join(", ")));
    }
    format!("{{{}}}", parts.join(", "))
}

fn peer(peer: &PolicyPeer) -> String {
    match peer {
        PolicyPeer::Pods { namespaces, pods } => {
            let part = |name: &str, part: &Option<LabelSelector>| {
                part.as_ref().map(|part| format!("{name}: {}", selector(part)))
            };
            let parts: Vec<String> =
                [part("namespaceSelector", namespaces), part("podSelector", pods)]
                    .into_iter()
                    .flatten()
                    .collect();
            format!("{{{}}}", parts.join(", "))
        }
        PolicyPeer::Block { cidr, except } => {
            let list: Vec<String> = except.iter().map(|block| format!("\"{block}\"")).collect();
            let except = if list.is_empty() {
                String::new()
            } else {
                format!(", except: [{}]", list.join(", "))
            };
            format!("{{ipBlock: {{cidr: \"{cidr}\"{except}}}}}")
        }
    }
}

fn port(port: &PolicyPort) -> String {
    let protocol = port.protocol;
    match &port.ports {
        PolicyPortRange::All => format!("{{protocol: {protocol}}}"),
        PolicyPortRange::Numbers(first, last) if first == last => {
            format!("{{protocol: {protocol}, port: {first}}}")
        }
        PolicyPortRange::Numbers(first, last) => {
            format!("{{protocol: {protocol}, port: {first}, endPort: {last}}}")
        }
        PolicyPortRange::Name(name) => format!("{{protocol: {protocol}, port: \"{name}\"}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::cases;
    use crate::policy::cluster::World;

    /// A document means the same whether it is read as it is written or by way of its tree.
    #[test]
    fn documents_mean_what_their_text_does() {
        for case in cases::all(&World::standard()) {
            let of_documents: Vec<NetworkPolicy> =
                documents(&case.yaml).iter().map(convert).collect();
            assert_eq!(of_documents, case.policies(), "{case}");
        }
    }
}
