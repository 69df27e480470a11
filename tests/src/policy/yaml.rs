//! Policies as the YAML that users write: reading, and writing back.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;
use sluice_model::{
    LabelOperator, LabelRequirement, LabelSelector, Meta, NetworkPolicy, ObjectName, PolicyFault,
    PolicyPeer, PolicyPort, PolicyPortRange, PolicyRule, Protocol,
};

use super::cluster::flow;

/// Reads the NetworkPolicies of a manifest with any number of documents.
///
/// # Panics
/// If a document is not a NetworkPolicy in its outer shape. What is wrong inside of one becomes a fault of the policy.
pub fn policies(yaml: &str) -> Vec<NetworkPolicy> {
    documents(yaml).iter().map(convert).collect()
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
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// `podSelector`.
    pub pod_selector: Option<Selector>,
    /// `namespaceSelector`.
    pub namespace_selector: Option<Selector>,
    /// `ipBlock`.
    pub ip_block: Option<Block>,
}

/// `ipBlock`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// `cidr`.
    pub cidr: String,
    /// `except`.
    #[serde(default)]
    pub except: Vec<String>,
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// `protocol`.
    pub protocol: Option<String>,
    /// `port`.
    pub port: Option<NumberOrName>,
    /// `endPort`.
    pub end_port: Option<i64>,
}

/// `IntOrString`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
pub enum NumberOrName {
    /// A number.
    Number(i64),
    /// A name.
    Name(String),
}

/// The policy that a document means: defaults filled in, values checked. One with a fault is closed in both directions
/// and allows nothing; where the fault is the selector of its pods, for all of its namespace.
pub fn convert(document: &Document) -> NetworkPolicy {
    let spec = &document.spec;
    let mut faults = Faults(Vec::new());
    let meta = Meta {
        name: ObjectName::new(&document.metadata.namespace, &document.metadata.name),
        ..Meta::default()
    };
    let pods = faults.selector("spec.podSelector", &spec.pod_selector);
    let pods = if faults.0.is_empty() { pods } else { LabelSelector::default() };
    for (index, name) in spec.policy_types.iter().enumerate() {
        if name != "Ingress" && name != "Egress" {
            faults.add(format!("spec.policyTypes[{index}]"), format!("unknown type {name}"));
        }
    }
    let given = |name: &str| spec.policy_types.iter().any(|given| given == name);
    let defaults = spec.policy_types.is_empty();
    let isolates_ingress = defaults || given("Ingress");
    let isolates_egress = if defaults { !spec.egress.is_empty() } else { given("Egress") };
    let ingress = faults.rules("spec.ingress", "from", &spec.ingress);
    let egress = faults.rules("spec.egress", "to", &spec.egress);
    if !faults.0.is_empty() {
        let (ingress, egress) = (Some(Vec::new()), Some(Vec::new()));
        return NetworkPolicy { meta, pods, ingress, egress, faults: faults.0 };
    }
    NetworkPolicy {
        meta,
        pods,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
        faults: Vec::new(),
    }
}

struct Faults(Vec<PolicyFault>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(PolicyFault { field: field.into(), message: message.into() });
    }

    fn rules(&mut self, field: &str, peers: &str, rules: &[Rule]) -> Vec<PolicyRule> {
        let rule = |(index, rule): (usize, &Rule)| {
            let field = format!("{field}[{index}]");
            let peer = |(index, peer)| self.peer(&format!("{field}.{peers}[{index}]"), peer);
            let peers = rule.peers.iter().enumerate().filter_map(peer).collect();
            let port = |(index, port)| self.port(&format!("{field}.ports[{index}]"), port);
            let ports = rule.ports.iter().enumerate().filter_map(port).collect();
            PolicyRule { peers, ports }
        };
        rules.iter().enumerate().map(rule).collect()
    }

    fn peer(&mut self, field: &str, peer: &Peer) -> Option<PolicyPeer> {
        match (&peer.pod_selector, &peer.namespace_selector, &peer.ip_block) {
            (None, None, Some(block)) => self.block(&format!("{field}.ipBlock"), block),
            (None, None, None) => {
                self.add(field, "neither a selector nor an ipBlock");
                None
            }
            (pods, namespaces, None) => Some(PolicyPeer::Pods {
                namespaces: namespaces
                    .as_ref()
                    .map(|selector| self.selector(&format!("{field}.namespaceSelector"), selector)),
                pods: pods
                    .as_ref()
                    .map(|selector| self.selector(&format!("{field}.podSelector"), selector)),
            }),
            _ => {
                self.add(field, "both a selector and an ipBlock");
                None
            }
        }
    }

    fn block(&mut self, field: &str, block: &Block) -> Option<PolicyPeer> {
        let cidr = self.cidr(&format!("{field}.cidr"), &block.cidr)?;
        let mut except = Vec::new();
        for (index, text) in block.except.iter().enumerate() {
            let field = format!("{field}.except[{index}]");
            let inner = self.cidr(&field, text)?;
            if !cidr.contains(&inner) || inner == cidr {
                self.add(field, format!("{inner} is not within {cidr}"));
            }
            except.push(inner);
        }
        Some(PolicyPeer::Block { cidr, except })
    }

    fn cidr(&mut self, field: &str, text: &str) -> Option<IpNet> {
        match text.parse::<IpNet>() {
            Ok(net) => Some(net.trunc()),
            Err(error) => {
                self.add(field, format!("{text}: {error}"));
                None
            }
        }
    }

    fn port(&mut self, field: &str, port: &Port) -> Option<PolicyPort> {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => {
                self.add(format!("{field}.protocol"), format!("unknown protocol {other}"));
                return None;
            }
        };
        let number = |number: i64| u16::try_from(number).ok().filter(|number| *number > 0);
        let ports = match (&port.port, port.end_port) {
            (None, None) => PolicyPortRange::All,
            (Some(NumberOrName::Name(name)), None) if !name.is_empty() => {
                PolicyPortRange::Name(name.clone())
            }
            (Some(NumberOrName::Number(first)), last) => {
                match (number(*first), number(last.unwrap_or(*first))) {
                    (Some(first), Some(last)) if first <= last => {
                        PolicyPortRange::Numbers(first, last)
                    }
                    _ => {
                        self.add(field, "port or endPort is not a port, or endPort is below port");
                        return None;
                    }
                }
            }
            _ => {
                self.add(field, "endPort without a numeric port, or an empty name");
                return None;
            }
        };
        Some(PolicyPort { protocol, ports })
    }

    fn selector(&mut self, field: &str, selector: &Selector) -> LabelSelector {
        let mut expressions = Vec::new();
        for (index, expression) in selector.match_expressions.iter().enumerate() {
            let values: BTreeSet<String> = expression.values.iter().cloned().collect();
            let operator = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => LabelOperator::In(values),
                ("NotIn", false) => LabelOperator::NotIn(values),
                ("Exists", true) => LabelOperator::Exists,
                ("DoesNotExist", true) => LabelOperator::DoesNotExist,
                (operator, _) => {
                    self.add(
                        format!("{field}.matchExpressions[{index}]"),
                        format!("operator {operator} with {} values", values.len()),
                    );
                    continue;
                }
            };
            expressions.push(LabelRequirement { key: expression.key.clone(), operator });
        }
        LabelSelector { labels: selector.match_labels.clone(), expressions }
    }
}

/// Policies without faults as a manifest. [`policies`] reads the same ones from it.
pub fn write(policies: &[NetworkPolicy]) -> String {
    policies.iter().map(document).collect()
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

    fn one(spec: &str) -> NetworkPolicy {
        let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: ";
        policies(&format!("{head}{spec}\n")).remove(0)
    }

    /// P1
    #[test]
    fn policy_types_default_to_ingress_and_to_egress_where_it_has_rules() {
        let types = |spec: &str| {
            let policy = one(spec);
            (policy.ingress.map(|rules| rules.len()), policy.egress.map(|rules| rules.len()))
        };
        assert_eq!(types("{podSelector: {}}"), (Some(0), None));
        assert_eq!(types("{podSelector: {}, egress: []}"), (Some(0), None));
        assert_eq!(types("{podSelector: {}, egress: [{}]}"), (Some(0), Some(1)));
        assert_eq!(
            types("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}"),
            (None, Some(0))
        );
        assert_eq!(
            types("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}"),
            (Some(0), None)
        );
    }

    /// P11
    #[test]
    fn a_fault_is_named_and_closes_the_policy() {
        let faults = |spec: &str| -> Vec<String> {
            let policy = one(spec);
            assert_eq!((&policy.ingress, &policy.egress), (&Some(vec![]), &Some(vec![])), "{spec}");
            policy.faults.into_iter().map(|fault| fault.field).collect()
        };
        assert_eq!(
            faults("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}"),
            ["spec.ingress[0].from[0].ipBlock.cidr"]
        );
        assert_eq!(
            faults("{podSelector: {}, egress: [{}, {ports: [{port: 90, endPort: 80}]}]}"),
            ["spec.egress[1].ports[0]"]
        );
        let selector = "{matchLabels: {a: b}, matchExpressions: [{key: a, operator: Near}]}";
        assert_eq!(
            faults(&format!("{{podSelector: {selector}}}")),
            ["spec.podSelector.matchExpressions[0]"]
        );
        assert!(one(&format!("{{podSelector: {selector}}}")).pods.labels.is_empty());
    }

    /// P4
    #[test]
    fn host_bits_of_a_cidr_are_cut_off() {
        let policy = one(
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.9.8.7/16]}}]}]}",
        );
        let rule = &policy.ingress.unwrap()[0];
        let net = |text: &str| text.parse().unwrap();
        let block = PolicyPeer::Block { cidr: net("10.0.0.0/8"), except: vec![net("10.9.0.0/16")] };
        assert_eq!(rule.peers, [block]);
    }
}
