//! Wrong evaluators: each breaks one rule of the API. A table of cases that lets one pass is too weak.
//!
//! Most are the oracle with its input changed, so that they say in one line which rule they break.

mod blocks;
mod isolation;
mod others;
mod peers;
mod ports;

use std::fmt;

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_model::{
    LabelOperator, LabelSelector, NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule,
};

use super::cases::Case;
use super::cluster::World;
use super::oracle::verdict;
use super::table::{Query, Table};
use super::yaml::{self, Document};

/// How a wrong evaluator differs.
enum Wrong {
    /// It reads a document wrongly.
    Documents(Box<dyn Fn(&mut Document)>),
    /// It takes the policies for others.
    Policies(Box<Change>),
    /// It takes the world for another.
    World(Box<dyn Fn(&mut World)>),
    /// It concludes wrongly.
    Verdict(Box<Conclusion>),
}

type Change = dyn Fn(&World, &mut Vec<NetworkPolicy>);

type Conclusion = dyn Fn(&World, &[NetworkPolicy], &Query) -> bool;

/// A wrong evaluator.
pub struct Mutation {
    /// The rule as it understands it.
    pub name: &'static str,
    /// The row of the semantics that it breaks.
    pub row: &'static str,
    wrong: Wrong,
}

impl fmt::Debug for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.row, self.name)
    }
}

impl Mutation {
    /// Whether some cell of a case tells it from the oracle, which reads these policies in it and whose table is `right`.
    pub fn is_caught(
        &self,
        world: &World,
        case: &Case,
        policies: &[NetworkPolicy],
        right: &Table,
    ) -> bool {
        let differs = |judge: &dyn Fn(&Query) -> bool| {
            right.iter().any(|(query, expected)| judge(query) != *expected)
        };
        let changed: Vec<NetworkPolicy> = match &self.wrong {
            Wrong::Documents(change) => {
                let mut documents = yaml::documents(&case.yaml);
                documents.iter_mut().for_each(change);
                documents.iter().map(yaml::convert).collect()
            }
            Wrong::Policies(change) => {
                let mut changed = policies.to_vec();
                change(world, &mut changed);
                changed
            }
            Wrong::World(change) => {
                let mut changed = world.clone();
                change(&mut changed);
                return differs(&|query| allowed(&changed, policies, query));
            }
            Wrong::Verdict(conclude) => {
                return differs(&|query| conclude(world, policies, query));
            }
        };
        changed != policies && differs(&|query| allowed(world, &changed, query))
    }
}

/// All wrong evaluators.
pub fn all() -> Vec<Mutation> {
    [isolation::all(), peers::all(), ports::all(), blocks::all(), others::all()]
        .into_iter()
        .flatten()
        .collect()
}

fn mutation(row: &'static str, name: &'static str, wrong: Wrong) -> Mutation {
    Mutation { name, row, wrong }
}

fn allowed(world: &World, policies: &[NetworkPolicy], query: &Query) -> bool {
    verdict(world, policies, query).is_allowed()
}

fn on_documents(change: impl Fn(&mut Document) + 'static) -> Wrong {
    Wrong::Documents(Box::new(change))
}

fn on_policies(change: impl Fn(&World, &mut Vec<NetworkPolicy>) + 'static) -> Wrong {
    Wrong::Policies(Box::new(change))
}

fn on_world(change: impl Fn(&mut World) + 'static) -> Wrong {
    Wrong::World(Box::new(change))
}

fn concluding(conclude: impl Fn(&World, &[NetworkPolicy], &Query) -> bool + 'static) -> Wrong {
    Wrong::Verdict(Box::new(conclude))
}

/// Changes the rules of each direction.
fn directions(policies: &mut [NetworkPolicy], mut change: impl FnMut(&mut Vec<PolicyRule>)) {
    for policy in policies.iter_mut().filter(|policy| policy.faults.is_empty()) {
        policy.ingress.iter_mut().chain(&mut policy.egress).for_each(&mut change);
    }
}

/// Puts others in the place of each peer. A list that becomes empty would allow everybody: give [`nobody`] then.
fn replace_peers(
    policies: &mut [NetworkPolicy],
    replacement: impl Fn(&PolicyPeer) -> Vec<PolicyPeer>,
) {
    directions(policies, |rules| {
        for rule in rules {
            rule.peers = rule.peers.iter().flat_map(&replacement).collect();
        }
    });
}

/// Puts others in the place of each port; a rule that had ports and has none left is dropped.
fn on_ports(replacement: impl Fn(&World, &PolicyPort) -> Vec<PolicyPort> + 'static) -> Wrong {
    on_policies(move |world, policies| {
        directions(policies, |rules| {
            rules.retain_mut(|rule| {
                let had_none = rule.ports.is_empty();
                rule.ports = rule.ports.iter().flat_map(|port| replacement(world, port)).collect();
                had_none || !rule.ports.is_empty()
            });
        });
    })
}

/// Changes every selector, those of the policies' pods and those of peers.
fn selectors(policies: &mut [NetworkPolicy], change: impl Fn(&mut LabelSelector)) {
    for policy in policies.iter_mut() {
        change(&mut policy.pods);
    }
    directions(policies, |rules| {
        for peer in rules.iter_mut().flat_map(|rule| &mut rule.peers) {
            if let PolicyPeer::Pods { namespaces, pods } = peer {
                namespaces.iter_mut().chain(pods).for_each(&change);
            }
        }
    });
}

fn on_operators(change: impl Fn(&mut LabelOperator) + 'static) -> Wrong {
    on_policies(move |_, policies| {
        selectors(policies, |selector| {
            for requirement in &mut selector.expressions {
                change(&mut requirement.operator);
            }
        });
    })
}

/// A peer that matches nobody.
fn nobody() -> PolicyPeer {
    let label = ("no-such-label".to_owned(), String::new());
    let selector = LabelSelector { labels: [label].into(), expressions: Vec::new() };
    PolicyPeer::Pods { namespaces: None, pods: Some(selector) }
}

/// A block of all addresses of a family.
fn everywhere(v6: bool) -> PolicyPeer {
    let cidr = if v6 { Ipv6Net::default().into() } else { Ipv4Net::default().into() };
    PolicyPeer::Block { cidr, except: Vec::new() }
}
