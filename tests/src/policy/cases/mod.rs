//! The table of cases: policies as users write them, made of named parts, and hand-written facts about some.
//!
//! A case's name tells its parts, for example `peers/ingress/except-pod`. The facts (`facts.txt`) were written by hand
//! from the API's text, so that the evaluator is checked by something else than itself.

mod actions;
mod conflicts;
mod faults;
mod host;
mod namespaces;
mod peers;
mod ports;
mod rules;
mod target;
mod tiers;

use std::fmt;

use sluice_model::{ClusterNetworkPolicy, NetworkPolicy};

use super::cluster::World;
use super::oracle::Direction;
use super::table::Query;
use super::yaml;

/// Policies and what they are there to show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// `GROUP/…`, unique.
    pub name: String,
    /// The rows of the semantics that it shows.
    pub rows: &'static [&'static str],
    /// The policies as YAML.
    pub yaml: String,
}

impl Case {
    fn new(
        name: impl Into<String>,
        rows: &'static [&'static str],
        yaml: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), rows, yaml: yaml.into() }
    }

    /// The part of the name before the first slash.
    pub fn group(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// The policies.
    pub fn policies(&self) -> Vec<NetworkPolicy> {
        yaml::policies(&self.yaml)
    }

    /// Those of the cluster.
    pub fn cluster_policies(&self) -> Vec<ClusterNetworkPolicy> {
        yaml::cluster_policies(&self.yaml)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "# {} ({})\n{}", self.name, self.rows.join(", "), self.yaml)
    }
}

/// All cases. The world tells the addresses that go into ipBlocks; it has the parties of [`World::standard`].
pub fn all(world: &World) -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(target::cases());
    cases.extend(actions::cases());
    cases.extend(peers::cases(world));
    cases.extend(ports::cases());
    cases.extend(rules::cases());
    cases.extend(conflicts::cases(world));
    cases.extend(namespaces::cases());
    cases.extend(faults::cases());
    cases.extend(host::cases(world));
    cases
}

/// The cases of policies of the cluster, with those of namespaces beside them.
pub fn tiers(world: &World) -> Vec<Case> {
    tiers::cases(world)
}

/// A fact about a case, written by hand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fact {
    /// The case's name.
    pub case: String,
    /// The cell.
    pub query: Query,
    /// Whether it is allowed.
    pub allowed: bool,
    /// The line of `facts.txt`, from 1.
    pub line: usize,
}

/// The facts of `facts.txt`. Blank lines and those that begin with `#` are skipped, `[CASE]` names the case of those
/// that follow, and these are `allow` or `deny` and a [`Query::text`]; a text without a family is a fact of both.
///
/// # Panics
/// If a line cannot be read.
pub fn facts(world: &World) -> Vec<Fact> {
    read_facts(world, "facts.txt", include_str!("facts.txt"))
}

/// The facts of `tiers.txt` about [`tiers`], in the same form.
///
/// # Panics
/// If a line cannot be read.
pub fn tier_facts(world: &World) -> Vec<Fact> {
    read_facts(world, "tiers.txt", include_str!("tiers.txt"))
}

fn read_facts(world: &World, file: &str, contents: &str) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut case = "";
    for (index, line) in contents.lines().enumerate() {
        let line = line.trim();
        let number = index + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            case = name;
            continue;
        }
        let (word, text) = line.split_once(' ').unwrap_or((line, ""));
        let allowed = match word {
            "allow" => true,
            "deny" => false,
            _ => panic!("{file}:{number}: neither allow nor deny: {line}"),
        };
        let texts = if text.ends_with(" v4") || text.ends_with(" v6") {
            vec![text.to_owned()]
        } else {
            vec![format!("{text} v4"), format!("{text} v6")]
        };
        for text in texts {
            let query = Query::parse(world, &text)
                .unwrap_or_else(|| panic!("{file}:{number}: cannot read {text}"));
            facts.push(Fact { case: case.to_owned(), query, allowed, line: number });
        }
    }
    facts
}

/// A policy's document. `spec` holds the lines below `spec:`, without indentation.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    let mut yaml = format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n"
    );
    for line in spec.lines() {
        yaml.push_str("  ");
        yaml.push_str(line);
        yaml.push('\n');
    }
    yaml
}

/// A policy in `x` for pod a with these rules (each in flow style) in one direction.
fn for_pod_a(direction: Direction, rules: &[String]) -> String {
    let (kind, field) = words(direction);
    let mut spec =
        format!("podSelector: {{matchLabels: {{pod: a}}}}\npolicyTypes: [{kind}]\n{field}:");
    if rules.is_empty() {
        spec.push_str(" []");
    }
    for rule in rules {
        spec.push_str(&format!("\n- {rule}"));
    }
    policy("x", &format!("{field}-of-a"), &spec)
}

/// A rule in flow style; an empty list is left out.
fn rule(direction: Direction, peers: &[&str], ports: &[&str]) -> String {
    let field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let mut parts = Vec::new();
    if !peers.is_empty() {
        parts.push(format!("{field}: [{}]", peers.join(", ")));
    }
    if !ports.is_empty() {
        parts.push(format!("ports: [{}]", ports.join(", ")));
    }
    format!("{{{}}}", parts.join(", "))
}

/// `policyTypes` and the field of the rules.
fn words(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("Ingress", "ingress"),
        Direction::Egress => ("Egress", "egress"),
    }
}

const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];
